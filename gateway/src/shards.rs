//! N tasks, each owning one `Engine`; the only caller of `Engine` and the only writer of `standing`.
//!
//! Doors offer inputs and never wait: a full shard sheds the input and counts it, because late
//! evidence is worth less than a flowing page. Operators' calls do wait.

use crate::clock;
use crate::outbox::Outbox;
use crate::profiles::{Loaded, Profiles, Register};
use crate::recorder::{Recorder, Tap};
use crate::revocation::Revocations;
use crate::standing::Standings;
use crate::store::BudgetTrip;
use gaitway_models::Detector;
use gaitway_models::drift::Drift;
use gaitway_models::replay::{MEMORY_SHINGLES, Memory, SharedMemory};
use gaitway_policies::budget::Cap;
use gaitway_policies::engine::{Action, EngineLimits, Mode, OperatorAction, SessionSummary};
use gaitway_policies::facts::Facts;
use gaitway_policies::{Effect, Engine, Incident, Input, PolicySet, SessionId, SharedBudget, SubjectId};
use metrics::{counter, gauge};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

/// Inputs waiting for one shard: about a second of work for the engine.
const QUEUE_MAX: usize = 16 * 1024;
/// How often a shard is told that time passes.
const TICK: Duration = Duration::from_millis(500);
/// Ticks between two sweeps of the standing board.
const SWEEP_TICKS: u32 = 20;
/// How long movement is remembered in order to recognise it, ms: a week, if there is room for as much.
const MEMORY_TTL_MS: u64 = 7 * 24 * 3600 * 1000;
/// Shards at most; ids of incidents carry the shard in one byte.
const SHARDS_MAX: usize = 64;

/// What a shard needs to do its work.
pub struct Parts {
    pub limits: EngineLimits,
    pub policies: Arc<PolicySet>,
    pub detector: Arc<Detector>,
    /// Judges beside it and decides nothing.
    pub candidate: Option<Arc<Detector>>,
    pub standings: Arc<Standings>,
    pub outbox: Arc<Outbox>,
    pub revocations: Arc<Revocations>,
    /// `None`: nothing is recorded.
    pub recorder: Option<Arc<Recorder>>,
    /// `None`: no session knows its person.
    pub profiles: Option<Arc<Profiles>>,
    /// What had switched enforcement off before this start, if nobody has let rules enforce again since.
    pub trip: Option<BudgetTrip>,
}

/// The handle to all shards.
pub struct Shards {
    senders: Vec<mpsc::Sender<Message>>,
    budget: SharedBudget,
    detector: Arc<Detector>,
    candidate: Option<Arc<Detector>>,
}

#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    #[error("no such session")]
    UnknownSession,
    #[error("the gateway is shutting down")]
    Closed,
}

enum Message {
    Input(Input),
    Operator { input: Input, reply: oneshot::Sender<Option<String>> },
    Sessions { limit: usize, reply: oneshot::Sender<Vec<SessionSummary>> },
    Session { id: SessionId, reply: oneshot::Sender<Option<Box<SessionSummary>>> },
    Facts { id: SessionId, reply: oneshot::Sender<Option<Box<(Arc<PolicySet>, Facts)>>> },
    Profile(Loaded),
    ForgetProfile(SubjectId),
    Reload(Arc<PolicySet>),
}

impl Shards {
    /// Starts `count` shards on the current runtime. They end when the handle is dropped.
    pub fn start(count: usize, parts: &Parts) -> Arc<Shards> {
        let count = count.clamp(1, SHARDS_MAX);
        let mut limits = parts.limits;
        limits.sessions_max = parts.limits.sessions_max.div_ceil(count);
        let budget = SharedBudget::new();
        if let Some(trip) = &parts.trip {
            budget.restore(trip.at, tripped_cap(&trip.reason));
            gauge!("gaitway_budget_tripped").set(1.0);
            error!(
                incident.id = %trip.incident,
                "the logout budget was used up before this start: every rule only shadows until an operator resets it"
            );
        }
        let memory = SharedMemory::new(Memory::new(MEMORY_SHINGLES, MEMORY_TTL_MS));
        let senders = (0..count)
            .map(|index| {
                let (sender, receiver) = mpsc::channel(QUEUE_MAX);
                let mut engine =
                    Engine::new(index as u8, limits, parts.policies.clone(), parts.detector.clone());
                engine.share_budget(budget.clone());
                if let Some(candidate) = &parts.candidate {
                    engine.score_beside(candidate.clone());
                }
                engine.share_memory(memory.clone());
                let shard = Shard {
                    engine,
                    standings: parts.standings.clone(),
                    outbox: parts.outbox.clone(),
                    revocations: parts.revocations.clone(),
                    tap: parts.recorder.as_ref().map(Recorder::tap),
                    memory: memory.clone(),
                    register: parts.profiles.as_ref().map(|profiles| profiles.register(count)),
                    own: sender.downgrade(),
                    effects: Vec::new(),
                };
                tokio::spawn(shard.run(receiver));
                sender
            })
            .collect();
        let (detector, candidate) = (parts.detector.clone(), parts.candidate.clone());
        Arc::new(Shards { senders, budget, detector, candidate })
    }

    /// Hands an input over without waiting. False: the shard is full and the input was shed.
    pub fn offer(&self, session: &SessionId, input: Input) -> bool {
        let taken = self.shard(session).try_send(Message::Input(input)).is_ok();
        if !taken {
            counter!("gaitway_shard_inputs_shed_total").increment(1);
        }
        taken
    }

    /// Hands an input over that must not be shed; waits while the shard is full.
    pub async fn tell(&self, session: &SessionId, input: Input) {
        // A closed shard means the gateway is shutting down.
        let _ = self.shard(session).send(Message::Input(input)).await;
    }

    /// Live sessions of all shards, most recently seen first.
    pub async fn sessions(&self, limit: usize) -> Vec<SessionSummary> {
        let mut all = Vec::new();
        for sender in &self.senders {
            let (reply, answer) = oneshot::channel();
            if sender.send(Message::Sessions { limit, reply }).await.is_ok() {
                all.extend(answer.await.unwrap_or_default());
            }
        }
        all.sort_by_key(|summary| std::cmp::Reverse(summary.last_seen));
        all.truncate(limit);
        all
    }

    pub async fn session(&self, id: SessionId) -> Option<SessionSummary> {
        let (reply, answer) = oneshot::channel();
        self.shard(&id).send(Message::Session { id, reply }).await.ok()?;
        answer.await.ok()?.map(|summary| *summary)
    }

    /// What the rules see of a session, and the policies in force there.
    pub async fn facts(&self, id: SessionId) -> Option<Box<(Arc<PolicySet>, Facts)>> {
        let (reply, answer) = oneshot::channel();
        self.shard(&id).send(Message::Facts { id, reply }).await.ok()?;
        answer.await.ok()?
    }

    /// An operator revokes or pardons; returns the incident's id once it is on its way to the outbox.
    pub async fn operator(
        &self,
        id: SessionId,
        action: OperatorAction,
        by: String,
        why: String,
    ) -> Result<String, ShardError> {
        let (reply, answer) = oneshot::channel();
        let input = Input::Operator { session: id, action, by, why };
        self.shard(&id).send(Message::Operator { input, reply }).await.map_err(|_| ShardError::Closed)?;
        answer.await.map_err(|_| ShardError::Closed)?.ok_or(ShardError::UnknownSession)
    }

    /// The budget all shards draw on; tells whether and why enforcement is off.
    pub fn budget(&self) -> &SharedBudget {
        &self.budget
    }

    /// How far the people who come have moved from those who taught the model in force, and the candidate.
    pub fn drift(&self) -> (Drift, Option<Drift>) {
        (self.detector.drift(), self.candidate.as_ref().map(|candidate| candidate.drift()))
    }

    /// Lets policies enforce again after the budget tripped.
    pub async fn reset_budget(&self, by: String) -> Result<(), ShardError> {
        let reset = Message::Input(Input::ResetBudget { by });
        self.senders[0].send(reset).await.map_err(|_| ShardError::Closed)
    }

    /// Takes from every live session what it knows of the person; what it goes on to teach is not kept.
    pub async fn forget_profile(&self, subject: SubjectId) {
        for sender in &self.senders {
            let _ = sender.send(Message::ForgetProfile(subject)).await;
        }
    }

    /// Swaps the policies in every shard; sessions are judged by them at their next evidence.
    pub async fn reload(&self, policies: Arc<PolicySet>) {
        for sender in &self.senders {
            let _ = sender.send(Message::Reload(policies.clone())).await;
        }
    }

    fn shard(&self, session: &SessionId) -> &mpsc::Sender<Message> {
        // The id is a keyed hash already: its first byte is as good as any.
        &self.senders[usize::from(session.0[0]) % self.senders.len()]
    }
}

struct Shard {
    engine: Engine,
    standings: Arc<Standings>,
    outbox: Arc<Outbox>,
    revocations: Arc<Revocations>,
    tap: Option<Tap>,
    memory: SharedMemory,
    register: Option<Register>,
    /// For what was asked of others; does not keep the shard running.
    own: mpsc::WeakSender<Message>,
    effects: Vec<Effect>,
}

impl Shard {
    async fn run(mut self, mut receiver: mpsc::Receiver<Message>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ticks = 0u32;
        loop {
            tokio::select! {
                biased;
                _ = tick.tick() => {
                    ticks = ticks.wrapping_add(1);
                    if ticks.is_multiple_of(SWEEP_TICKS) {
                        self.standings.sweep(clock::now());
                        gauge!("gaitway_replay_memory_shingles").set(self.memory.lock().len() as f64);
                    }
                    self.handle(Input::Tick).await;
                }
                message = receiver.recv() => match message {
                    Some(message) => self.on_message(message).await,
                    None => return,
                },
            }
        }
    }

    async fn on_message(&mut self, message: Message) {
        match message {
            Message::Input(input) => {
                self.handle(input).await;
            }
            Message::Operator { input, reply } => {
                let incident = self.handle(input).await;
                let _ = reply.send(incident);
            }
            Message::Sessions { limit, reply } => {
                let _ = reply.send(self.engine.sessions(limit));
            }
            Message::Session { id, reply } => {
                let _ = reply.send(self.engine.session(&id).map(Box::new));
            }
            Message::Facts { id, reply } => {
                let facts = self.engine.facts(&id).cloned();
                let policies = self.engine.policies().clone();
                let _ = reply.send(facts.map(|facts| Box::new((policies, facts))));
            }
            Message::Profile(loaded) => {
                if let Some(input) = self.register.as_mut().and_then(|own| own.take(clock::now(), loaded)) {
                    self.handle(input).await;
                }
            }
            Message::ForgetProfile(subject) => {
                let hit = self.register.as_mut().map_or_else(Vec::new, |own| own.forget(subject));
                for session in hit {
                    self.handle(Input::Profile { session, subject, profile: Box::default() }).await;
                }
            }
            Message::Reload(policies) => self.engine.reload(policies),
        }
    }

    /// One input through the engine, its effects out. Returns the id of the last incident, if any.
    async fn handle(&mut self, input: Input) -> Option<String> {
        let now = clock::now();
        let copied = self.tap.as_ref().and_then(|tap| tap.copy(now, &input));
        if let (Input::Batch { identity, .. } | Input::Request { identity, .. }, Some(register)) =
            (&input, &mut self.register)
        {
            register.seen_as(identity);
        }
        if let Input::Batch { identity, .. } = &input
            && let Some(loading) = self.register.as_mut().and_then(|register| register.see(now, identity))
        {
            let own = self.own.clone();
            tokio::spawn(async move {
                let loaded = loading.await;
                if let Some(own) = own.upgrade() {
                    let _ = own.send(Message::Profile(loaded)).await;
                }
            });
        }
        // The engine knows live sessions only; the board knows who was pardoned before a pause or a restart.
        if let Input::Batch { identity, .. } | Input::Request { identity, .. } = &input
            && self.engine.identity(&identity.session).is_none()
            && let Some(until) = self.revocations.exempt_until(&identity.session, now)
        {
            self.engine.open_pardoned(&mut self.effects, now, identity.clone(), until);
        }
        self.engine.handle(&mut self.effects, now, input);
        if let (Some(tap), Some(copied)) = (&mut self.tap, copied) {
            tap.tell(now, copied, &self.engine);
        }
        let mut incident_id = None;
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Stand { session, standing, until } => {
                    self.standings.set(session, standing, until);
                }
                Effect::Incident(incident) => {
                    incident_id = Some(incident.id.clone());
                    // Waits when the outbox is full: a decision is never dropped.
                    self.outbox.submit(*incident).await;
                }
                Effect::Forget { session } => {
                    self.standings.forget(&session);
                    if let Some(tap) = &mut self.tap {
                        tap.closed(session);
                    }
                    if let Some(register) = &mut self.register {
                        register.closed(&session);
                    }
                }
                Effect::Learnt { session, subject, profile } => {
                    if let Some(register) = &mut self.register {
                        register.learnt(now, session, subject, profile);
                    }
                }
                Effect::BudgetTripped { at, cap, allowed, session, account, rule, policy_version } => {
                    counter!("gaitway_budget_trips_total").increment(1);
                    if account.is_none() {
                        gauge!("gaitway_budget_tripped").set(1.0);
                    }
                    error!(
                        budget.cap = ?cap,
                        budget.allowed = allowed,
                        budget.whole = account.is_none(),
                        policy.rule = rule,
                        policy.version = policy_version,
                        "the logout budget is used up: what exceeds it only shadows until an operator resets it"
                    );
                    let (identity, facts) = (self.engine.identity(&session), self.engine.facts(&session));
                    if let (Some(identity), Some(facts)) = (identity, facts) {
                        let incident = Incident {
                            id: new_incident_id("BT"),
                            at,
                            identity: identity.clone(),
                            rule,
                            action: Action::BudgetTrip,
                            mode: if account.is_none() { Mode::Enforce } else { Mode::Shadow },
                            by: "policy".into(),
                            reason: trip_reason(cap, allowed),
                            policy_version,
                            facts: facts.clone(),
                            until: at,
                        };
                        // Told as every decision is: recorded first, then to all sinks, again until it is.
                        self.outbox.submit(incident).await;
                    }
                }
                Effect::BudgetReset { by, .. } => {
                    gauge!("gaitway_budget_tripped").set(0.0);
                    warn!(by, "the logout budget was reset, policies enforce again");
                }
            }
        }
        incident_id
    }
}

/// Which cap was reached, and what follows, for whoever is told.
fn trip_reason(cap: Cap, allowed: u32) -> String {
    let off = "Every rule only shadows until an operator lets rules enforce again.";
    match cap {
        Cap::PerMinute => format!(
            "Rules asked for more than {allowed} logouts within a minute (budget: logouts_per_minute_max). {off}"
        ),
        Cap::ShareOfSessions => format!(
            "Rules asked for more than {allowed} logouts within an hour, the largest share of live sessions \
             that the budget allows (budget: logouts_share_max). {off}"
        ),
        Cap::PerUserPerDay => format!(
            "Rules asked for more than {allowed} logouts of one account within a day (budget: \
             logouts_per_user_per_day_max). This account is spared, others are not."
        ),
    }
}

/// The cap that a reason of the whole installation's trip names.
fn tripped_cap(reason: &str) -> Cap {
    if reason.contains("logouts_share_max") { Cap::ShareOfSessions } else { Cap::PerMinute }
}

/// For incidents that no engine numbers. Ten letters and digits that nobody confuses: 2^50 numbers, far
/// more than there will be incidents.
pub fn new_incident_id(prefix: &str) -> String {
    incident_id(prefix, &rand::random())
}

/// The same from bytes that must give the same number again.
pub fn incident_id(prefix: &str, bytes: &[u8; 10]) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    let letter = |byte: &u8| char::from(LETTERS[usize::from(byte % 32)]);
    format!("{prefix}-{}", bytes.iter().map(letter).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trip_tells_its_cap() {
        for cap in [Cap::PerMinute, Cap::ShareOfSessions] {
            assert_eq!(tripped_cap(&trip_reason(cap, 3)), cap);
        }
    }
}
