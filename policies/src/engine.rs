//! All sessions of one shard: the state machine from inputs to effects.
//!
//! Invariants: a denial has an incident that names its rule; shadow changes no standing; a pardon
//! wins over rules; a closed session leaves nothing behind; the same inputs give the same effects.
//! A clock may jump either way: spans that would be negative count as zero. Must not know: how
//! effects are carried out.

use crate::budget::{Cap, Grant, SharedBudget};
use crate::decide::decide;
use crate::facts::{Facts, FlowFacts};
use crate::identity::{Identity, SessionId, SubjectId};
use crate::policy::{Measure, PolicySet, Rule};
use gaitway_models::profile::Ending;
use gaitway_models::replay::{Repetition, ReplayKind, SharedMemory};
use gaitway_models::session::RequestSeen;
use gaitway_models::{
    Assessment, Batch, Detector, Profile, ProfileState, Session, TelemetryState, Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Decisions kept per session for the ops page.
pub const DECISIONS_SEEN_MAX: usize = 8;
/// Rules read a session's requests this often, and what came since at the next tick: a flood does not
/// cost a judgement each.
const REQUEST_JUDGE_EVERY: Duration = Duration::from_millis(100);
/// A session of which so much has been seen before teaches nobody's profile.
const REPLAYED_SHARE: f32 = 0.5;
/// Share of the threshold from which evidence for somebody else keeps a session from teaching.
const DOUBTED_SHARE: f32 = 0.5;
/// A step back of the clock that is taken for the usual trimming and ignored.
const CLOCK_BACK_MAX: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
pub struct EngineLimits {
    /// Most sessions a shard holds; past it the idlest is closed first.
    pub sessions_max: usize,
    /// A session without any input for this long is closed.
    pub session_idle_ms: u64,
    /// How long a pardon exempts a session from rules, in ms.
    pub pardon_ms: u64,
    /// How long a revocation lasts when the token does not say when it expires, in ms.
    pub revocation_ms: u64,
}

/// Everything that can happen to a shard.
#[derive(Clone, Debug)]
pub enum Input {
    /// A telemetry batch of one page view.
    Batch {
        identity: Identity,
        page: u64,
        batch: Batch,
    },
    /// One proxied request.
    Request {
        identity: Identity,
        request: RequestSeen,
        route: String,
        net_ip: String,
        /// Two capital letters; "" if unknown.
        net_country: String,
    },
    ChallengePassed {
        session: SessionId,
    },
    /// The person has logged in again as a step-up asked, or as near to it as this installation can tell.
    StepUpPassed {
        session: SessionId,
        /// An identity provider says who it is. A button that anybody can press lifts the step-up and proves
        /// nothing.
        vouched: bool,
    },
    Operator {
        session: SessionId,
        action: OperatorAction,
        by: String,
        why: String,
    },
    /// Learnt from another replica through the revocation board.
    Peer {
        session: SessionId,
        revoked: bool,
        until: Timestamp,
    },
    /// What is kept of the hand of the person whose session it is; an empty profile for somebody new, or one to
    /// be forgotten. Without it nothing is learnt of the session, and nobody is doubted.
    Profile {
        session: SessionId,
        /// Whose it is: a session that has changed hands meanwhile must not get it.
        subject: SubjectId,
        profile: Box<Profile>,
    },
    /// Facts gathered elsewhere, in place of batches and requests: recorded sessions are replayed
    /// with it. The session's age and passed challenges stay the engine's own.
    Observed {
        identity: Identity,
        facts: Box<Facts>,
    },
    /// An operator has looked at what tripped the budget and lets the policy enforce again.
    ResetBudget {
        by: String,
    },
    /// Time passes; at least once a second.
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperatorAction {
    Revoke,
    Pardon,
}

/// What the request path does with a session until told otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "standing")]
pub enum Standing {
    Allow,
    /// Header to the app.
    Tag {
        value: String,
    },
    /// Token bucket over the session's requests.
    Throttle {
        requests_per_minute: u32,
        burst: u32,
    },
    Challenge,
    /// Back to the identity provider for a stronger or fresher login (RFC 9470).
    StepUp {
        acr_values: String,
        /// 0: no demand on age.
        max_age_seconds: u64,
    },
    /// Refused for a while as by `Deny`, and slowly: every answer takes this long.
    Tarpit {
        incident: String,
        delay_ms: u64,
    },
    /// Revoked: `incident` is the number shown to the person; empty if another replica knows it.
    Deny {
        incident: String,
    },
}

/// Everything a shard asks the world to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Stand {
        session: SessionId,
        standing: Standing,
        until: Timestamp,
    },
    Incident(Box<Incident>),
    /// The session is gone; drop what is kept for it.
    Forget {
        session: SessionId,
    },
    /// A session that ended well has taught: what is to be kept of the person from now on. Comes before its
    /// `Forget`.
    Learnt {
        session: SessionId,
        subject: SubjectId,
        profile: Box<Profile>,
    },
    /// A cap of the budget was reached. Must be told loudly.
    BudgetTripped {
        at: Timestamp,
        cap: Cap,
        /// What the cap allowed.
        allowed: u32,
        /// Whose logout would have been one too many.
        session: SessionId,
        /// The one account that is spared from now on; `None`: everything is in shadow until reset by hand.
        account: Option<SubjectId>,
        /// The rule that asked for one logout too many.
        rule: String,
        policy_version: String,
    },
    BudgetReset {
        at: Timestamp,
        by: String,
    },
}

/// A decision that must be recorded, carried out and told. Arrives complete at the outbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// Short, readable, unique: shown to the person and to operators.
    pub id: String,
    pub at: Timestamp,
    pub identity: Identity,
    pub rule: String,
    pub action: Action,
    pub mode: Mode,
    /// Who decided: "policy" or an operator's name.
    pub by: String,
    /// One plain sentence.
    pub reason: String,
    pub policy_version: String,
    pub facts: Facts,
    /// Until when a revocation or pardon holds.
    pub until: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Allow,
    Log,
    Tag,
    Throttle,
    Challenge,
    StepUp,
    Logout,
    LogoutEverywhere,
    Deny,
    Tarpit,
    Pardon,
    /// A cap of the budget was reached; done to nobody, told to operators.
    BudgetTrip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Shadow,
    Enforce,
}

/// What operators see of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionSummary {
    pub identity: Identity,
    pub opened: Timestamp,
    pub last_seen: Timestamp,
    pub requests: u64,
    pub batches: u64,
    pub assessment: Assessment,
    /// What a candidate model says beside the one in force; rules never see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Candidate>,
    /// Share of the latest movement that had been seen before, and how it repeats; `None` until compared.
    pub replay_match: Option<f32>,
    pub replay_kind: Option<ReplayKind>,
    pub standing: Standing,
    pub pardoned_until: Option<Timestamp>,
    /// Rules that matched, enforced or not, newest first, at most eight.
    pub decisions: Vec<DecisionSeen>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    pub bot_score: Option<f32>,
    pub bot_evidence: f32,
    pub bot_threshold: f32,
    pub windows: u32,
    /// Hash of the candidate's file.
    pub model: String,
}

impl SessionSummary {
    /// Whether the model in force and the candidate call the session a bot; `None` without a candidate or
    /// until both have judged a window.
    pub fn verdicts(&self) -> Option<(bool, bool)> {
        let (live, beside) = (&self.assessment, self.candidate.as_ref()?);
        let judged = live.windows > 0 && beside.windows > 0;
        judged
            .then_some((live.bot_evidence >= live.bot_threshold, beside.bot_evidence >= beside.bot_threshold))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionSeen {
    pub at: Timestamp,
    pub rule: String,
    pub action: Action,
    pub mode: Mode,
    pub reason: String,
}

/// One shard's sessions.
pub struct Engine {
    shard: u8,
    limits: EngineLimits,
    policies: Arc<PolicySet>,
    /// `None` when recorded assessments are replayed: then batches are counted and not looked at.
    detector: Option<Arc<Detector>>,
    /// Judges every session too, and decides nothing.
    candidate: Option<Arc<Detector>>,
    /// Movement of all sessions of all shards; `None`: nothing is compared.
    memory: Option<SharedMemory>,
    budget: SharedBudget,
    sessions: HashMap<SessionId, Tracked>,
    /// Every session once, idlest first: whom to evict.
    by_last_seen: BTreeSet<(Timestamp, SessionId)>,
    /// Every session once, by the next thing time does to it: its standing ends, or it is closed.
    by_due: BTreeSet<(Timestamp, SessionId)>,
    /// Sessions with requests that rules have not read yet.
    unjudged: BTreeSet<SessionId>,
    incidents: u64,
    /// Time of the latest input, to notice a clock that was set back.
    latest: Timestamp,
}

/// All that is kept of one session; bounded by the limits of its parts.
struct Tracked {
    identity: Identity,
    opened: Timestamp,
    last_seen: Timestamp,
    due: Timestamp,
    requests: u64,
    batches: u64,
    watched: Option<Box<Session>>,
    /// The session as the candidate watches it, and what it says of it.
    beside: Option<Box<(Session, Assessment)>>,
    repetition: Option<Box<Repetition>>,
    /// Whose profile the session is held against.
    profiled: Option<SubjectId>,
    /// What of its end is known already.
    ending: Ending,
    /// What a pardon was given in spite of, for as long as it is said without a break.
    excused: Ending,
    facts: Facts,
    rate: RequestRate,
    standing: Standing,
    /// Meaningless while the standing is `Allow`.
    standing_until: Timestamp,
    /// The standing is a revocation: only a pardon lifts it.
    revoked: bool,
    pardoned_until: Option<Timestamp>,
    challenge_passed_at: Option<Timestamp>,
    /// When rules last read a request; `None` before the first.
    request_judged_at: Option<Timestamp>,
    /// When each rule last spoke; at most one entry a rule of the policies seen, pruned as they cool.
    spoke: Vec<Spoken>,
    seen: VecDeque<DecisionSeen>,
}

struct Spoken {
    rule: Arc<str>,
    mode: Mode,
    at: Timestamp,
    cool_down_ms: u64,
}

impl Engine {
    pub fn new(shard: u8, limits: EngineLimits, policies: Arc<PolicySet>, detector: Arc<Detector>) -> Engine {
        Engine::with(shard, limits, policies, Some(detector))
    }

    /// An engine that gets its assessments from [`Input::Observed`].
    pub fn replaying(shard: u8, limits: EngineLimits, policies: Arc<PolicySet>) -> Engine {
        Engine::with(shard, limits, policies, None)
    }

    fn with(
        shard: u8,
        limits: EngineLimits,
        policies: Arc<PolicySet>,
        detector: Option<Arc<Detector>>,
    ) -> Engine {
        Engine {
            shard,
            limits,
            policies,
            detector,
            candidate: None,
            memory: None,
            budget: SharedBudget::new(),
            sessions: HashMap::new(),
            by_last_seen: BTreeSet::new(),
            by_due: BTreeSet::new(),
            unjudged: BTreeSet::new(),
            incidents: 0,
            latest: Timestamp(0),
        }
    }

    /// Lets another model judge every session beside the one in force, from its own memory of it. Call
    /// before the first input.
    pub fn score_beside(&mut self, candidate: Arc<Detector>) {
        debug_assert!(self.sessions.is_empty(), "sessions were opened without the candidate");
        self.candidate = Some(candidate);
    }

    /// Draws on one ledger with other shards. Call before the first input.
    pub fn share_budget(&mut self, budget: SharedBudget) {
        debug_assert!(self.sessions.is_empty(), "sessions were counted in the old ledger");
        self.budget = budget;
    }

    /// Compares movement with what sessions of all shards did. Call before the first input.
    pub fn share_memory(&mut self, memory: SharedMemory) {
        debug_assert!(self.sessions.is_empty(), "their movement was not compared");
        self.memory = Some(memory);
    }

    /// The ledger this shard draws on.
    pub fn budget(&self) -> &SharedBudget {
        &self.budget
    }

    pub fn policies(&self) -> &Arc<PolicySet> {
        &self.policies
    }

    /// Opens a session that was pardoned before it came here, or came back: rules leave it alone until then.
    /// What a pardon says of what was seen before it, it says of nothing from now on.
    pub fn open_pardoned(
        &mut self,
        effects: &mut Vec<Effect>,
        now: Timestamp,
        identity: Identity,
        until: Timestamp,
    ) {
        let session = self.open(effects, now, identity);
        if let Some(tracked) = self.sessions.get_mut(&session) {
            tracked.pardoned_until = Some(until);
        }
        self.check_invariants();
    }

    pub fn handle(&mut self, effects: &mut Vec<Effect>, now: Timestamp, input: Input) {
        if self.latest.since(now) > CLOCK_BACK_MAX {
            self.handle_clock_set_back(effects, now);
        }
        self.latest = now;
        match input {
            Input::Batch { identity, page, batch } => self.handle_batch(effects, now, identity, page, &batch),
            Input::Observed { identity, facts } => {
                let session = self.open(effects, now, identity);
                if let Some(tracked) = self.sessions.get_mut(&session) {
                    tracked.batches += 1;
                    // Who it is comes from the identity, and was set when the session was opened or changed hands.
                    let known = std::mem::replace(&mut tracked.facts, *facts);
                    tracked.facts.user_id = known.user_id;
                    tracked.facts.user_groups = known.user_groups;
                }
                self.judge(effects, now, session);
            }
            Input::Request { identity, request, route, net_ip, net_country } => {
                self.handle_request(effects, now, identity, request, route, (net_ip, net_country));
            }
            Input::ChallengePassed { session } => self.handle_proof(effects, now, session, None),
            Input::StepUpPassed { session, vouched } => {
                self.handle_proof(effects, now, session, Some(vouched));
            }
            Input::Operator { session, action, by, why } => {
                self.handle_operator(effects, now, session, action, by, why);
            }
            Input::Peer { session, revoked, until } => {
                self.handle_peer(effects, now, session, revoked, until)
            }
            Input::Profile { session, subject, profile } => self.handle_profile(session, subject, *profile),
            Input::ResetBudget { by } => {
                self.budget.reset();
                effects.push(Effect::BudgetReset { at: now, by });
            }
            Input::Tick => self.handle_tick(effects, now),
        }
        self.check_invariants();
    }

    /// Takes new policies. Standings stay until they end; sessions are judged anew by new evidence only.
    pub fn reload(&mut self, policies: Arc<PolicySet>) {
        self.policies = policies;
    }

    /// Summaries, most recently seen first, at most `limit`.
    pub fn sessions(&self, limit: usize) -> Vec<SessionSummary> {
        let recent = self.by_last_seen.iter().rev().take(limit);
        recent.filter_map(|(_, session)| self.session(session)).collect()
    }

    pub fn session(&self, session: &SessionId) -> Option<SessionSummary> {
        let tracked = self.sessions.get(session)?;
        Some(SessionSummary {
            identity: tracked.identity.clone(),
            opened: tracked.opened,
            last_seen: tracked.last_seen,
            requests: tracked.requests,
            batches: tracked.batches,
            assessment: tracked.facts.assessment.clone(),
            candidate: tracked.beside.as_ref().map(|beside| Candidate {
                bot_score: beside.1.bot_score,
                bot_evidence: beside.1.bot_evidence,
                bot_threshold: beside.1.bot_threshold,
                windows: beside.1.windows,
                model: beside.1.model.clone(),
            }),
            replay_match: tracked.facts.replay_match,
            replay_kind: tracked.facts.replay_kind,
            standing: tracked.standing.clone(),
            pardoned_until: tracked.pardoned_until,
            decisions: tracked.seen.iter().cloned().collect(),
        })
    }

    /// What the rules see of a session, for `explain`.
    pub fn facts(&self, session: &SessionId) -> Option<&Facts> {
        self.sessions.get(session).map(|tracked| &tracked.facts)
    }

    /// Whose session it is.
    pub fn identity(&self, session: &SessionId) -> Option<&Identity> {
        self.sessions.get(session).map(|tracked| &tracked.identity)
    }

    /// The session as the detector watches it; `None` if there is none or assessments are replayed.
    pub fn watched(&self, session: &SessionId) -> Option<&Session> {
        self.sessions.get(session)?.watched.as_deref()
    }

    /// Sessions held.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    fn handle_batch(
        &mut self,
        effects: &mut Vec<Effect>,
        now: Timestamp,
        identity: Identity,
        page: u64,
        batch: &Batch,
    ) {
        let session = self.open(effects, now, identity);
        let Some(tracked) = self.sessions.get_mut(&session) else { return };
        tracked.batches += 1;
        let (Some(detector), Some(watched)) = (&self.detector, &mut tracked.watched) else { return };
        if let (Some(candidate), Some(beside)) = (&self.candidate, &mut tracked.beside) {
            let (watched, says) = &mut **beside;
            watched.observe(now, page, batch);
            // Fingerprints are compared once, for the model in force.
            watched.take_shingles().for_each(drop);
            *says = candidate.assess(now, watched);
        }
        watched.observe(now, page, batch);
        if let (Some(memory), Some(repetition)) = (&self.memory, &mut tracked.repetition) {
            let [a, b, c, d, e, f, g, h, ..] = session.0;
            let key = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            for shingle in watched.take_shingles() {
                // Held for one shingle, so that shards do not wait for each other's batches.
                repetition.observe(&mut memory.lock(), now, key, &shingle);
            }
            tracked.facts.replay_match = repetition.share();
            tracked.facts.replay_kind = repetition.kind();
        }
        tracked.facts.assessment = detector.assess(now, watched);
        tracked.note_ending();
        self.judge(effects, now, session);
    }

    /// Holds a session against its person's profile from now on, and against no other: one given before, as of
    /// a person who is to be forgotten, goes with all that was gathered by it. A session that is not here or
    /// has changed hands is left as it is.
    fn handle_profile(&mut self, session: SessionId, subject: SubjectId, profile: Profile) {
        let knows_owners = self.detector.as_ref().is_some_and(|detector| detector.knows_owners());
        let Some(tracked) = self.sessions.get_mut(&session) else { return };
        if !knows_owners || tracked.identity.subject != Some(subject) {
            return;
        }
        tracked.drop_profile();
        if let Some(watched) = &mut tracked.watched {
            watched.set_profile(profile);
            tracked.profiled = Some(subject);
        }
    }

    fn handle_request(
        &mut self,
        effects: &mut Vec<Effect>,
        now: Timestamp,
        identity: Identity,
        request: RequestSeen,
        route: String,
        (net_ip, net_country): (String, String),
    ) {
        let session = self.open(effects, now, identity);
        let Some(tracked) = self.sessions.get_mut(&session) else { return };
        tracked.requests += 1;
        tracked.facts.requests = tracked.requests;
        tracked.facts.requests_per_minute = tracked.rate.count(now);
        let elsewhere = tracked.facts.route != route || tracked.facts.net_ip != net_ip;
        tracked.facts.route = route;
        tracked.facts.net_ip = net_ip;
        tracked.facts.net_country = net_country;
        if let (Some(detector), Some(watched)) = (&self.detector, &mut tracked.watched) {
            watched.observe_request(now, request);
            tracked.facts.flow = FlowFacts::from(watched.flow());
            // A page with a collector turns "unexpected" telemetry into "missing"; other requests change nothing.
            let expected = tracked.facts.assessment.telemetry != TelemetryState::Unexpected;
            if request.collector_injected && !expected {
                tracked.facts.assessment = detector.assess(now, watched);
            }
        }
        let judged_at = tracked.request_judged_at;
        if elsewhere || judged_at.is_none_or(|at| now < at || now.since(at) >= REQUEST_JUDGE_EVERY) {
            tracked.request_judged_at = Some(now);
            self.unjudged.remove(&session);
            self.judge(effects, now, session);
        } else {
            self.unjudged.insert(session);
        }
    }

    /// A challenge was passed, or a step-up, which proves more if somebody vouched for it.
    fn handle_proof(
        &mut self,
        effects: &mut Vec<Effect>,
        now: Timestamp,
        session: SessionId,
        step_up: Option<bool>,
    ) {
        let Some(tracked) = self.sessions.get_mut(&session) else { return };
        tracked.challenge_passed_at = Some(now);
        tracked.facts.challenge_passed = true;
        let lifted = match tracked.standing {
            Standing::Challenge => true,
            Standing::StepUp { .. } => step_up.is_some(),
            _ => false,
        };
        tracked.ending.challenge_failed &= !lifted;
        if let Some(vouched) = step_up {
            tracked.settle_doubt();
            if vouched {
                tracked.prove();
            }
        }
        if lifted {
            self.stand(effects, now, session, Standing::Allow, now);
        }
    }

    fn handle_operator(
        &mut self,
        effects: &mut Vec<Effect>,
        now: Timestamp,
        session: SessionId,
        action: OperatorAction,
        by: String,
        why: String,
    ) {
        // An operator may name a session that was closed long ago but whose revocation still holds.
        let identity = match self.sessions.get(&session) {
            Some(tracked) => tracked.identity.clone(),
            None => Identity {
                session,
                subject: None,
                token: None,
                expires_at: None,
                issued_at: None,
                groups: Vec::new(),
            },
        };
        if !self.sessions.contains_key(&session) {
            self.open(effects, now, identity);
        }
        let Some(tracked) = self.sessions.get_mut(&session) else { return };
        let until = match action {
            OperatorAction::Revoke => revocation_until(&self.limits, now, &tracked.identity),
            OperatorAction::Pardon => now.plus(Duration::from_millis(self.limits.pardon_ms)),
        };
        let act = match action {
            OperatorAction::Revoke => Action::Logout,
            OperatorAction::Pardon => Action::Pardon,
        };
        let id = incident_id(now, self.shard, &mut self.incidents, session);
        let incident = Incident {
            id: id.clone(),
            at: now,
            identity: tracked.identity.clone(),
            rule: "operator".into(),
            action: act,
            mode: Mode::Enforce,
            by,
            reason: why,
            policy_version: self.policies.version().to_owned(),
            facts: tracked.facts.clone(),
            until,
        };
        tracked.remember(DecisionSeen {
            at: now,
            rule: incident.rule.clone(),
            action: act,
            mode: Mode::Enforce,
            reason: incident.reason.clone(),
        });
        effects.push(Effect::Incident(Box::new(incident)));
        match action {
            OperatorAction::Revoke => {
                tracked.pardoned_until = None;
                tracked.revoked = true;
                self.stand(effects, now, session, Standing::Deny { incident: id }, until);
            }
            OperatorAction::Pardon => self.pardon(effects, now, session, until),
        }
    }

    fn handle_peer(
        &mut self,
        effects: &mut Vec<Effect>,
        now: Timestamp,
        session: SessionId,
        revoked: bool,
        until: Timestamp,
    ) {
        // A session that is not here needs no standing: the revocation board itself refuses it.
        let Some(tracked) = self.sessions.get_mut(&session) else { return };
        if !revoked {
            self.pardon(effects, now, session, until);
        } else if !tracked.is_pardoned(now) && !tracked.revoked && until > now {
            let stands_already = matches!(tracked.standing, Standing::Deny { .. } | Standing::Tarpit { .. });
            if stands_already && until <= tracked.standing_until {
                // The board echoes a denial made here: a measure for a while, which ends by itself.
                return;
            }
            tracked.revoked = true;
            // Keep the number the person may already have been shown.
            let incident = match &tracked.standing {
                Standing::Deny { incident } | Standing::Tarpit { incident, .. } => incident.clone(),
                _ => String::new(),
            };
            self.stand(effects, now, session, Standing::Deny { incident }, until);
        }
    }

    /// Lifts whatever stands against a session and exempts it from rules.
    fn pardon(&mut self, effects: &mut Vec<Effect>, now: Timestamp, session: SessionId, until: Timestamp) {
        let Some(tracked) = self.sessions.get_mut(&session) else { return };
        tracked.pardoned_until = Some(until);
        tracked.spoke.clear();
        tracked.revoked = false;
        tracked.settle_doubt();
        tracked.excused = tracked.said();
        tracked.ending = Ending { proved: true, ..Ending::default() };
        // Told even if nothing stands here: a replica's board may still deny.
        self.stand(effects, now, session, Standing::Allow, until);
    }

    fn handle_tick(&mut self, effects: &mut Vec<Effect>, now: Timestamp) {
        for session in std::mem::take(&mut self.unjudged) {
            self.judge(effects, now, session);
        }
        while let Some((due, session)) = self.by_due.first().copied() {
            if due > now {
                return;
            }
            match self.sessions.get_mut(&session) {
                Some(tracked) if tracked.standing != Standing::Allow => {
                    tracked.revoked = false;
                    self.stand(effects, now, session, Standing::Allow, now);
                }
                Some(_) => self.close(effects, session),
                None => {
                    debug_assert!(false, "a deadline without a session");
                    self.by_due.remove(&(due, session));
                }
            }
        }
    }

    /// Moves deadlines along with a clock that was set back: ten minutes of throttling stay ten
    /// minutes. Revocations keep theirs, they are tied to a token's own expiry.
    fn handle_clock_set_back(&mut self, effects: &mut Vec<Effect>, now: Timestamp) {
        let by = self.latest.since(now);
        self.by_last_seen.clear();
        self.by_due.clear();
        let mut sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        sessions.sort_unstable();
        for session in sessions {
            let Some(tracked) = self.sessions.get_mut(&session) else { continue };
            tracked.last_seen = tracked.last_seen.min(now);
            tracked.rate = RequestRate::default();
            tracked.challenge_passed_at = tracked.challenge_passed_at.map(|at| at.min(now));
            for spoken in &mut tracked.spoke {
                spoken.at = spoken.at.min(now);
            }
            self.by_last_seen.insert((tracked.last_seen, session));
            if tracked.standing != Standing::Allow && !tracked.revoked {
                let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
                let until = Timestamp(tracked.standing_until.0.saturating_sub(ms)).max(now);
                tracked.standing_until = until;
                effects.push(Effect::Stand { session, standing: tracked.standing.clone(), until });
            }
            tracked.due = tracked.next_due(&self.limits);
            self.by_due.insert((tracked.due, session));
        }
    }

    /// Finds or makes the session and notes that it lives; evicts the idlest when full.
    fn open(&mut self, effects: &mut Vec<Effect>, now: Timestamp, identity: Identity) -> SessionId {
        let session = identity.session;
        if let Some(tracked) = self.sessions.get_mut(&session) {
            self.by_last_seen.remove(&(tracked.last_seen, session));
            tracked.last_seen = now;
            if tracked.identity.subject != identity.subject {
                tracked.facts.user_id =
                    identity.subject.map(|subject| subject.to_string()).unwrap_or_default();
                tracked.drop_profile();
            }
            if tracked.facts.user_groups != identity.groups {
                tracked.facts.user_groups.clone_from(&identity.groups);
            }
            tracked.identity = identity;
            self.by_last_seen.insert((now, session));
            self.reschedule(session);
            return session;
        }
        while self.sessions.len() >= self.limits.sessions_max.max(1) {
            let Some((_, idlest)) = self.by_last_seen.first().copied() else { break };
            self.close(effects, idlest);
        }
        let facts =
            Facts { user_id: identity.user_id(), user_groups: identity.groups.clone(), ..Facts::default() };
        let due = now.plus(Duration::from_millis(self.limits.session_idle_ms));
        let tracked = Tracked {
            identity,
            opened: now,
            last_seen: now,
            due,
            requests: 0,
            batches: 0,
            watched: self.detector.is_some().then(|| Box::new(Session::new(now))),
            beside: self.candidate.is_some().then(|| Box::new((Session::new(now), Assessment::default()))),
            repetition: self.memory.is_some().then(Box::default),
            profiled: None,
            ending: Ending::default(),
            excused: Ending::default(),
            facts,
            rate: RequestRate::default(),
            standing: Standing::Allow,
            standing_until: now,
            revoked: false,
            pardoned_until: None,
            challenge_passed_at: None,
            request_judged_at: None,
            spoke: Vec::new(),
            seen: VecDeque::new(),
        };
        self.sessions.insert(session, tracked);
        self.by_last_seen.insert((now, session));
        self.by_due.insert((due, session));
        self.budget.session_opened();
        session
    }

    fn close(&mut self, effects: &mut Vec<Effect>, session: SessionId) {
        if let Some(mut tracked) = self.sessions.remove(&session) {
            self.by_last_seen.remove(&(tracked.last_seen, session));
            self.by_due.remove(&(tracked.due, session));
            self.unjudged.remove(&session);
            self.budget.sessions_closed(1);
            tracked.count_towards_drift(self.detector.as_deref(), self.candidate.as_deref());
            if let (Some(subject), Some(detector), Some(watched)) =
                (tracked.profiled, &self.detector, &mut tracked.watched)
                && let Some(profile) = detector.learn(watched, tracked.ending)
            {
                effects.push(Effect::Learnt { session, subject, profile: Box::new(profile) });
            }
            effects.push(Effect::Forget { session });
        }
    }

    /// Puts the session where its next deadline belongs.
    fn reschedule(&mut self, session: SessionId) {
        let Some(tracked) = self.sessions.get_mut(&session) else { return };
        let due = tracked.next_due(&self.limits);
        if due != tracked.due {
            self.by_due.remove(&(tracked.due, session));
            tracked.due = due;
            self.by_due.insert((due, session));
        }
    }

    fn stand(
        &mut self,
        effects: &mut Vec<Effect>,
        now: Timestamp,
        session: SessionId,
        standing: Standing,
        until: Timestamp,
    ) {
        let Some(tracked) = self.sessions.get_mut(&session) else { return };
        match standing {
            Standing::Deny { .. } | Standing::Tarpit { .. } => tracked.ending.revoked = true,
            Standing::Challenge | Standing::StepUp { .. } => tracked.ending.challenge_failed = true,
            Standing::Allow | Standing::Tag { .. } | Standing::Throttle { .. } => {}
        }
        tracked.standing = standing.clone();
        tracked.standing_until = until.max(now);
        effects.push(Effect::Stand { session, standing, until: tracked.standing_until });
        self.reschedule(session);
    }

    /// Reads the rules over the session's facts and acts on what they say.
    fn judge(&mut self, effects: &mut Vec<Effect>, now: Timestamp, session: SessionId) {
        let policies = Arc::clone(&self.policies);
        let Some(tracked) = self.sessions.get_mut(&session) else { return };
        tracked.facts.session_age_seconds = now.since(tracked.opened).as_secs_f64();
        tracked.facts.challenge_passed = tracked
            .challenge_passed_at
            .is_some_and(|at| now.since(at) < Duration::from_millis(policies.challenge_pass_ms));
        if tracked.is_pardoned(now) || tracked.revoked {
            return;
        }
        let decision = decide(&policies, &tracked.facts);
        if let Some(allow) = decision.allowed {
            // A rule about the session itself also frees it; one about this request only speaks for the request.
            if !policies.rules()[allow].of_request && tracked.standing != Standing::Allow {
                self.stand(effects, now, session, Standing::Allow, now);
            }
            return;
        }
        if decision.is_silent() {
            return;
        }
        for index in decision.told {
            self.tell(effects, now, session, &policies.rules()[index], Mode::Shadow);
        }
        if let Some(index) = decision.acts {
            self.act(effects, now, session, &policies.rules()[index]);
        }
    }

    /// Carries an enforced rule out, within the budget.
    fn act(&mut self, effects: &mut Vec<Effect>, now: Timestamp, session: SessionId, rule: &Rule) {
        let Some(tracked) = self.sessions.get_mut(&session) else { return };
        if tracked.is_cooling(now, rule, Mode::Enforce) {
            return;
        }
        if self.budget.tripped().is_some() {
            return self.tell(effects, now, session, rule, Mode::Shadow);
        }
        let stands = tracked.standing.clone();
        if rule.measure.action().shuts_out() {
            let subject = tracked.identity.subject;
            let account = subject.map_or(session.0, |subject| subject.0);
            let tripped = match self.budget.ask(now, &self.policies.budget, account) {
                Grant::Granted => None,
                Grant::Open => Some(None),
                Grant::Tripped { cap, allowed } => Some(Some((cap, allowed, None))),
                // A visitor without a login has no account to name; nothing but this session is spared.
                Grant::AccountSpared { allowed, first } => Some(
                    subject.filter(|_| first).map(|subject| (Cap::PerUserPerDay, allowed, Some(subject))),
                ),
            };
            if let Some(loud) = tripped {
                if let Some((cap, allowed, account)) = loud {
                    effects.push(Effect::BudgetTripped {
                        at: now,
                        cap,
                        allowed,
                        session,
                        account,
                        rule: rule.name.to_string(),
                        policy_version: self.policies.version().to_owned(),
                    });
                }
                return self.tell(effects, now, session, rule, Mode::Shadow);
            }
        }
        let id = self.incident(effects, now, session, rule, Mode::Enforce);
        let Some(tracked) = self.sessions.get_mut(&session) else { return };
        let (standing, until) = match &rule.measure {
            Measure::Allow | Measure::Log => return,
            Measure::Tag { value } => (Standing::Tag { value: value.clone() }, rule.hold_until(now)),
            Measure::Throttle { requests_per_minute, burst } => (
                Standing::Throttle { requests_per_minute: *requests_per_minute, burst: *burst },
                rule.hold_until(now),
            ),
            Measure::Challenge => (Standing::Challenge, rule.hold_until(now)),
            Measure::StepUp { acr_values, max_age_seconds } => (
                Standing::StepUp { acr_values: acr_values.clone(), max_age_seconds: *max_age_seconds },
                rule.hold_until(now),
            ),
            Measure::Logout | Measure::LogoutEverywhere => {
                tracked.revoked = true;
                (Standing::Deny { incident: id }, revocation_until(&self.limits, now, &tracked.identity))
            }
            Measure::Deny => (Standing::Deny { incident: id }, rule.hold_until(now)),
            Measure::Tarpit { delay_ms } => {
                (Standing::Tarpit { incident: id, delay_ms: *delay_ms }, rule.hold_until(now))
            }
        };
        if !is_milder(&standing, &stands) {
            self.stand(effects, now, session, standing, until);
        }
    }

    /// Notes a decision without effect on the session, once per cool-down.
    fn tell(
        &mut self,
        effects: &mut Vec<Effect>,
        now: Timestamp,
        session: SessionId,
        rule: &Rule,
        mode: Mode,
    ) {
        let cooling = self.sessions.get(&session).is_none_or(|tracked| tracked.is_cooling(now, rule, mode));
        if !cooling {
            self.incident(effects, now, session, rule, mode);
        }
    }

    fn incident(
        &mut self,
        effects: &mut Vec<Effect>,
        now: Timestamp,
        session: SessionId,
        rule: &Rule,
        mode: Mode,
    ) -> String {
        let id = incident_id(now, self.shard, &mut self.incidents, session);
        let Some(tracked) = self.sessions.get_mut(&session) else { return id };
        let action = rule.measure.action();
        let until = match action {
            Action::Logout | Action::LogoutEverywhere => {
                revocation_until(&self.limits, now, &tracked.identity)
            }
            Action::Allow | Action::Log => now,
            _ => rule.hold_until(now),
        };
        let reason = rule.reason.text(&tracked.facts);
        tracked.spoke.retain(|spoken| {
            let replaced = *spoken.rule == *rule.name && spoken.mode == mode;
            !replaced && now.since(spoken.at) < Duration::from_millis(spoken.cool_down_ms)
        });
        tracked.spoke.push(Spoken {
            rule: Arc::clone(&rule.name),
            mode,
            at: now,
            cool_down_ms: rule.cool_down_ms,
        });
        tracked.remember(DecisionSeen {
            at: now,
            rule: rule.name.to_string(),
            action,
            mode,
            reason: reason.clone(),
        });
        effects.push(Effect::Incident(Box::new(Incident {
            id: id.clone(),
            at: now,
            identity: tracked.identity.clone(),
            rule: rule.name.to_string(),
            action,
            mode,
            by: "policy".into(),
            reason,
            policy_version: self.policies.version().to_owned(),
            facts: tracked.facts.clone(),
            until,
        })));
        id
    }

    /// What must hold after every input; the simulation also checks what costs more.
    fn check_invariants(&self) {
        debug_assert!(self.sessions.len() <= self.limits.sessions_max.max(1));
        debug_assert_eq!(self.sessions.len(), self.by_last_seen.len());
        debug_assert_eq!(self.sessions.len(), self.by_due.len());
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The ledger may outlive this shard and must not count its sessions any longer.
        self.budget.sessions_closed(self.sessions.len());
    }
}

impl Rule {
    fn hold_until(&self, now: Timestamp) -> Timestamp {
        now.plus(Duration::from_millis(self.hold_ms))
    }
}

impl Tracked {
    fn is_pardoned(&self, now: Timestamp) -> bool {
        self.pardoned_until.is_some_and(|until| now < until)
    }

    fn is_cooling(&self, now: Timestamp, rule: &Rule, mode: Mode) -> bool {
        self.spoke.iter().any(|spoken| {
            *spoken.rule == *rule.name
                && spoken.mode == mode
                && now.since(spoken.at) < Duration::from_millis(rule.cool_down_ms)
        })
    }

    /// Of what must not be learnt from, what is so now.
    fn said(&self) -> Ending {
        let assessment = &self.facts.assessment;
        let is_called = assessment.windows > 0 && assessment.bot_evidence >= assessment.bot_threshold;
        Ending {
            called_bot: is_called || assessment.automation,
            replayed: self.facts.replay_match.is_some_and(|share| share >= REPLAYED_SHARE),
            doubted: assessment.owner_evidence > DOUBTED_SHARE * assessment.owner_threshold,
            ..Ending::default()
        }
    }

    /// Keeps what must not be learnt from, once it has been so. A pardon speaks for what had been seen when
    /// it was given, and for nothing that comes after.
    fn note_ending(&mut self) {
        let said = self.said();
        let (ending, excused) = (&mut self.ending, &mut self.excused);
        excused.called_bot &= said.called_bot;
        excused.replayed &= said.replayed;
        ending.called_bot |= said.called_bot && !excused.called_bot;
        ending.replayed |= said.replayed && !excused.replayed;
        ending.doubted |= said.doubted;
        ending.proved &= !(said.doubted && self.pardoned_until.is_some());
    }

    /// Lets a session that is over count among the people of the site, for each model unless that model calls it
    /// a bot.
    fn count_towards_drift(&self, detector: Option<&Detector>, candidate: Option<&Detector>) {
        let Ending { revoked, called_bot, replayed, .. } = self.ending;
        let well = !revoked && !replayed;
        if let (Some(detector), Some(watched)) = (detector, &self.watched) {
            detector.close(watched, well && !called_bot);
        }
        if let (Some(candidate), Some(beside)) = (candidate, &self.beside) {
            let (watched, says) = &**beside;
            candidate.close(watched, well && says.bot_evidence < says.bot_threshold);
        }
    }

    /// An identity provider vouches for the person from now on; what was held until now may be somebody
    /// else's.
    fn prove(&mut self) {
        self.ending.proved = true;
        self.ending.doubted = false;
        if let Some(watched) = &mut self.watched {
            watched.drop_lesson();
        }
    }

    /// Evidence for somebody else starts anew.
    fn settle_doubt(&mut self) {
        self.facts.assessment.owner_evidence = 0.0;
        if let Some(watched) = &mut self.watched {
            watched.settle_doubt();
        }
    }

    /// Somebody else has logged in: what was held of the person before says nothing of them.
    fn drop_profile(&mut self) {
        self.profiled = None;
        self.ending.proved = false;
        self.excused = Ending::default();
        let assessment = &mut self.facts.assessment;
        (assessment.owner_score, assessment.owner_evidence) = (None, 0.0);
        assessment.profile = ProfileState::Off;
        assessment.reasons.iter_mut().for_each(|reason| reason.person = None);
        if let Some(watched) = &mut self.watched {
            watched.drop_profile();
        }
    }

    /// When time next does something to the session: its standing ends, or it has been idle for too long.
    fn next_due(&self, limits: &EngineLimits) -> Timestamp {
        if self.standing == Standing::Allow {
            self.last_seen.plus(Duration::from_millis(limits.session_idle_ms))
        } else {
            self.standing_until
        }
    }

    fn remember(&mut self, seen: DecisionSeen) {
        self.seen.truncate(DECISIONS_SEEN_MAX - 1);
        self.seen.push_front(seen);
    }
}

/// Requests of the last minute, in twelve slots of five seconds.
#[derive(Default)]
struct RequestRate {
    slots: [u32; 12],
    /// Number of the newest slot since the epoch.
    newest: u64,
}

impl RequestRate {
    const SLOT_MS: u64 = 5_000;

    /// Counts one request and returns the requests of the last minute.
    fn count(&mut self, now: Timestamp) -> f64 {
        let slot = now.0 / Self::SLOT_MS;
        let slots = self.slots.len() as u64;
        if slot > self.newest {
            for passed in 1..=(slot - self.newest).min(slots) {
                self.slots[((self.newest + passed) % slots) as usize] = 0;
            }
            // After a long pause the slots between were skipped; all of them are empty now.
            self.newest = slot;
            self.slots[(slot % slots) as usize] = 0;
        }
        // A clock that was set back a little counts into the newest slot.
        let at = (self.newest % slots) as usize;
        self.slots[at] = self.slots[at].saturating_add(1);
        self.slots.iter().map(|count| f64::from(*count)).sum()
    }
}

/// Whether this would soften what stands. Of two step-ups only one whose every answer would also have
/// passed the one that stands takes its place.
fn is_milder(standing: &Standing, stands: &Standing) -> bool {
    /// Demand on age: without any demand at all, proof is wanted from after the question.
    fn age_max(acr_values: &str, max_age_seconds: u64) -> u64 {
        if max_age_seconds == 0 && !acr_values.is_empty() { u64::MAX } else { max_age_seconds }
    }
    let (
        Standing::StepUp { acr_values: new, max_age_seconds: new_age },
        Standing::StepUp { acr_values: old, max_age_seconds: old_age },
    ) = (standing, stands)
    else {
        return rank(standing) < rank(stands);
    };
    let accepts = |acr: &str| old.split_whitespace().any(|accepted| accepted == acr);
    let is_as_strong = old.is_empty() || (!new.is_empty() && new.split_whitespace().all(accepts));
    !is_as_strong || age_max(new, *new_age) > age_max(old, *old_age)
}

fn rank(standing: &Standing) -> u8 {
    match standing {
        Standing::Allow => 0,
        Standing::Tag { .. } => 1,
        Standing::Throttle { .. } => 2,
        Standing::Challenge => 3,
        Standing::StepUp { .. } => 4,
        Standing::Deny { .. } => 5,
        Standing::Tarpit { .. } => 6,
    }
}

/// A revocation outlives the token, whatever the token says.
fn revocation_until(limits: &EngineLimits, now: Timestamp, identity: &Identity) -> Timestamp {
    let least = now.plus(Duration::from_millis(limits.revocation_ms));
    identity.expires_at.map_or(least, |expires_at| expires_at.max(least))
}

/// Twelve letters and digits in three groups, easy to read out: seconds since 2024, shard, a running
/// number and ten bits of the session, so that two replicas do not hand out the same one.
fn incident_id(now: Timestamp, shard: u8, incidents: &mut u64, session: SessionId) -> String {
    /// Crockford's alphabet: no I, L, O or U to misread.
    const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    const EPOCH_SECONDS: u64 = 1_704_067_200;
    let seconds = (now.0 / 1_000).saturating_sub(EPOCH_SECONDS) & ((1 << 30) - 1);
    let session_bits = u64::from(u16::from_le_bytes([session.0[0], session.0[1]])) & 0x3ff;
    let number = seconds << 30 | u64::from(shard) << 22 | (*incidents & 0xfff) << 10 | session_bits;
    *incidents = incidents.wrapping_add(1);
    let mut id = String::with_capacity(14);
    for place in 0..12 {
        if place == 4 || place == 8 {
            id.push('-');
        }
        id.push(char::from(ALPHABET[(number >> (55 - 5 * place) & 31) as usize]));
    }
    id
}

#[cfg(test)]
mod owners;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
