//! Carries out incidents: record, revoke, alert. In that order; each step may be repeated safely.
//!
//! The store's table is the queue: an incident in memory only waits to be written there. Lanes
//! record and revoke, in order within a session; one loop per sink tells; one loop mends what failed
//! or was left by a process that died. Invariant: nothing here decides. An incident arrives complete
//! and only gains outcomes.

mod budget;

use crate::alert::{AlertError, AlertSink, letter};
use crate::clock;
use crate::revocation::{RevocationError, Revocations, Scope};
use crate::store::{
    BoardEffect, IncidentFilter, IncidentRow, Step, StepState, Store, StoreError, revocations_of, scopes_of,
};
use budget::{Budget, Plan};
use futures_util::StreamExt;
use futures_util::future::join_all;
use gaitway_models::Timestamp;
use gaitway_policies::Incident;
use rand::Rng;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub struct Outbox {
    lanes: Vec<mpsc::Sender<Incident>>,
    work: Arc<Work>,
    /// Stopped when the outbox is dropped.
    tasks: Mutex<JoinSet<()>>,
}

/// What became of an incident that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It is on its way.
    Taken,
    /// It is on record, and carried out or about to be: not a second time, as somebody may have been pardoned
    /// since.
    Known,
    /// An operator has undone since what it asks for.
    Pardoned,
    /// It should come again; why.
    Later(&'static str),
}

/// How much the outbox holds and how patient it is.
#[derive(Clone, Copy, Debug)]
pub struct OutboxLimits {
    /// Incidents that wait to be recorded; one more makes its shard wait.
    pub queue_max: usize,
    /// Incidents carried out but not recorded because the store is down. At about 4 KiB each.
    pub unrecorded_max: usize,
    /// How long a revocation waits for its record; a store that is slower counts as down.
    pub record_wait: Duration,
    /// How long the board may take before the step is tried again.
    pub board_wait: Duration,
    /// Wait before the second attempt; doubles each time up to `backoff_max`, with jitter.
    pub backoff_first: Duration,
    pub backoff_max: Duration,
    /// How long a step belongs to the process that took it up; longer than any delivery lasts.
    pub lease: Duration,
    /// Age at which an incident that could not be told is given up: old news, and the queue must end.
    pub give_up: Duration,
    /// How long incidents and audit records are kept: long enough for a quarterly review.
    pub retention: Duration,
    /// How long a person's profile is kept that no session has taught anything.
    pub profile_retention: Duration,
    /// How often the table is asked for steps that became due.
    pub poll: Duration,
    /// Deliveries of one sink at the same time.
    pub deliveries_max: usize,
    /// The "hour" of a sink's deliveries per hour.
    pub hour: Duration,
    /// How long a digest collects incidents once the hour's single mails are used up.
    pub digest_collect: Duration,
}

impl Default for OutboxLimits {
    fn default() -> OutboxLimits {
        OutboxLimits {
            queue_max: 1_024,
            unrecorded_max: 4_096,
            record_wait: Duration::from_secs(1),
            board_wait: Duration::from_secs(5),
            backoff_first: Duration::from_secs(1),
            backoff_max: Duration::from_secs(300),
            lease: Duration::from_secs(180),
            give_up: Duration::from_secs(7 * 24 * 3600),
            retention: Duration::from_secs(90 * 24 * 3600),
            profile_retention: Duration::from_secs(90 * 24 * 3600),
            poll: Duration::from_secs(1),
            deliveries_max: 4,
            hour: Duration::from_secs(3600),
            digest_collect: Duration::from_secs(60),
        }
    }
}

impl Outbox {
    /// Starts the workers; what a former process left of revocations and pardons is done before
    /// this returns, what it left of alerts soon after.
    pub async fn start(
        store: Arc<dyn Store>,
        revocations: Arc<Revocations>,
        sinks: Vec<Arc<dyn AlertSink>>,
        limits: OutboxLimits,
    ) -> Arc<Outbox> {
        let work = Arc::new(Work {
            store,
            revocations,
            desks: sinks.into_iter().map(Desk::new).collect(),
            lanes: (0..LANES).map(|_| tokio::sync::Mutex::new(VecDeque::new())).collect(),
            limits,
            depth: AtomicI64::new(0),
            unrecorded: AtomicI64::new(0),
            offered: Mutex::default(),
        });
        work.take_over().await;
        let mut tasks = JoinSet::new();
        let lanes = (0..LANES)
            .map(|lane| {
                let (sender, receiver) = mpsc::channel((limits.queue_max / LANES).max(1));
                tasks.spawn(Arc::clone(&work).run_lane(lane, receiver));
                sender
            })
            .collect();
        for desk in 0..work.desks.len() {
            tasks.spawn(Arc::clone(&work).run_desk(desk));
        }
        tasks.spawn(Arc::clone(&work).run_mender());
        Arc::new(Outbox { lanes, work, tasks: Mutex::new(tasks) })
    }

    /// Hands an incident over. Bounded: waits when full, never drops. Called by shards only.
    pub async fn submit(&self, incident: Incident) {
        self.count_incident(&incident);
        let lane = lane_of(&incident);
        if let Err(mpsc::error::SendError(incident)) = self.lanes[lane].send(incident).await {
            // The workers are gone, at shutdown: the shard does it itself rather than lose it.
            self.work.carry_out(lane, incident).await;
        }
    }

    /// Hands over an incident whose sender sends it again until it is carried out: once, however often it comes,
    /// on whatever replica, and never against a pardon. Takes no room from the shards, which wait on the same
    /// lanes: it never waits for a place, and takes nothing while the store takes nothing.
    pub async fn offer(&self, incident: Incident) -> Offered {
        if self.is_behind() {
            return Offered::Later("the store is behind");
        }
        let known =
            tokio::time::timeout(self.work.limits.record_wait, self.work.store.incident(&incident.id));
        match known.await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(_))) => return Offered::Known,
            Ok(Err(_)) | Err(_) => return Offered::Later("the store does not answer"),
        }
        if BoardEffect::of(&incident) == BoardEffect::Revoke {
            let board = &self.work.revocations;
            if !board.is_caught_up() {
                return Offered::Later("pardons of other replicas may be unknown");
            }
            if scopes_of(&incident).iter().any(|scope| board.is_pardoned_since(scope, incident.at)) {
                return Offered::Pardoned;
            }
        }
        let mut offered = self.work.offered.lock().unwrap_or_else(PoisonError::into_inner);
        if offered.len() >= OFFERED_MAX || offered.contains(&incident.id) {
            return Offered::Later("it, or enough others, wait for their records");
        }
        let Ok(place) = self.lanes[lane_of(&incident)].try_reserve() else {
            return Offered::Later("the outbox is full");
        };
        offered.insert(incident.id.clone());
        self.count_incident(&incident);
        place.send(incident);
        Offered::Taken
    }

    /// Incidents not yet recorded and carried out.
    pub fn depth(&self) -> usize {
        usize::try_from(self.work.depth.load(Ordering::Acquire)).unwrap_or(0)
    }

    /// Whether something waits because the store does not take it.
    fn is_behind(&self) -> bool {
        self.work.unrecorded.load(Ordering::Acquire) > 0
    }

    /// Waits until an incident is recorded and in force, at most so long; whether it is.
    pub async fn is_carried_out(&self, incident: &str, patience: Duration) -> bool {
        let carried_out = async {
            loop {
                let row = self.work.store.incident(incident).await.ok().flatten();
                let is_done = |row: &IncidentRow| {
                    let board = row.steps.iter().find(|step| is_board_step(&step.name));
                    board.is_none_or(|step| step.state == StepState::Done)
                };
                if row.is_some_and(|row| is_done(&row)) {
                    return;
                }
                tokio::time::sleep(CARRIED_OUT_POLL).await;
            }
        };
        tokio::time::timeout(patience, carried_out).await.is_ok()
    }

    /// Waits until everything handed over is recorded, carried out and told, as far as it is due;
    /// then stops the workers. Past the deadline it stops anyway: what is recorded goes on at the
    /// next start.
    pub async fn drain(&self, deadline: Duration) {
        let drained = async {
            while self.depth() > 0 || !self.work.is_told().await {
                tokio::time::sleep(DRAIN_POLL).await;
            }
        };
        if tokio::time::timeout(deadline, drained).await.is_err() {
            let depth = self.depth();
            if depth > 0 {
                tracing::error!(outbox.depth = depth, "stopped with incidents that are not recorded");
            } else {
                tracing::warn!("stopped before all alerts were told; they go out at the next start");
            }
        }
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }

    fn count_incident(&self, incident: &Incident) {
        metrics::counter!("gaitway_incidents_total",
            "action" => letter::action_name(incident.action), "mode" => letter::mode_name(incident.mode))
        .increment(1);
        self.work.count(1);
    }
}

/// Lanes work side by side, so that one slow revocation does not hold up every other.
const LANES: usize = 4;
/// Offered and not yet recorded; a quarter of what a lane holds, so that the shards have the rest.
const OFFERED_MAX: usize = 64;
/// Incidents read in one go; also the longest digest, about 150 KiB of text.
const BATCH: u32 = 1_000;
/// Outcomes remembered because the store did not take them.
const UNMARKED_MAX: usize = 10_000;
/// Earlier revocations of one session that a pardon looks up.
const PARDON_LOOKUP: u32 = 100;
const DRAIN_POLL: Duration = Duration::from_millis(20);
const CARRIED_OUT_POLL: Duration = Duration::from_millis(10);

const REVOKE: &str = "revoke";
const PARDON: &str = "pardon";

/// What all workers share.
struct Work {
    store: Arc<dyn Store>,
    revocations: Arc<Revocations>,
    desks: Vec<Desk>,
    /// Per lane: what is carried out but not recorded. Whoever touches the board for a session holds
    /// its lane's lock, so a late revocation never overtakes a pardon.
    lanes: Vec<tokio::sync::Mutex<VecDeque<Unrecorded>>>,
    limits: OutboxLimits,
    depth: AtomicI64,
    unrecorded: AtomicI64,
    /// Incidents that were offered and are not recorded yet.
    offered: Mutex<HashSet<String>>,
}

struct Unrecorded {
    incident: Incident,
    steps: Vec<Step>,
}

/// A sink and its loop's state.
struct Desk {
    sink: Arc<dyn AlertSink>,
    wake: Notify,
    busy: AtomicBool,
    /// Not before this moment, in ms: the hour's deliveries are used up.
    closed_until: AtomicU64,
}

impl Desk {
    fn new(sink: Arc<dyn AlertSink>) -> Desk {
        Desk { sink, wake: Notify::new(), busy: AtomicBool::new(false), closed_until: AtomicU64::new(0) }
    }
}

/// Incidents of one person share a lane, because a pardon may concern all of them.
fn lane_of(incident: &Incident) -> usize {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let hash = match incident.identity.subject {
        Some(subject) => hasher.hash_one(subject),
        None => hasher.hash_one(incident.identity.session),
    };
    usize::try_from(hash % LANES as u64).unwrap_or(0)
}

/// Record and revoke.
impl Work {
    async fn run_lane(self: Arc<Self>, lane: usize, mut incidents: mpsc::Receiver<Incident>) {
        let unrecorded_max = (self.limits.unrecorded_max / LANES).max(1);
        let mut waiting = 0;
        let mut failures = 0;
        let mut retry_at = Instant::now();
        loop {
            tokio::select! {
                incident = incidents.recv(), if waiting < unrecorded_max => match incident {
                    Some(incident) => self.carry_out(lane, incident).await,
                    None => return,
                },
                () = tokio::time::sleep_until(retry_at), if waiting > 0 => self.record_waiting(lane).await,
            }
            let still = self.lanes[lane].lock().await.len();
            if still == 0 {
                failures = 0;
            } else if still >= waiting {
                failures += 1;
                retry_at = Instant::now() + self.backoff(failures).min(STORE_RETRY_MAX);
            }
            waiting = still;
        }
    }

    /// Records and carries out one incident. With the store down it is carried out at once all the
    /// same, and waits in memory for its record.
    async fn carry_out(&self, lane: usize, incident: Incident) {
        let mut unrecorded = self.lanes[lane].lock().await;
        let now = clock::now();
        let mut steps = self.steps(&incident, now);
        let is_recorded = unrecorded.is_empty() && self.record(&incident, &steps).await;
        if let Some(step) = steps.first_mut().filter(|step| is_board_step(&step.name)) {
            self.apply(&incident, step, &[]).await;
            metrics::histogram!("gaitway_outbox_carried_out_seconds")
                .record(clock::now().since(incident.at).as_secs_f64());
        }
        if is_recorded {
            self.mark_recorded(&incident, &steps).await;
        } else {
            unrecorded.push_back(Unrecorded { incident, steps });
            self.count_unrecorded(1);
        }
    }

    /// Writes what waits in memory, oldest first, until the store fails again.
    async fn record_waiting(&self, lane: usize) {
        let mut unrecorded = self.lanes[lane].lock().await;
        while let Some(next) = unrecorded.front() {
            if !self.record(&next.incident, &next.steps).await {
                return;
            }
            self.mark_recorded(&next.incident, &next.steps).await;
            unrecorded.pop_front();
            self.count_unrecorded(-1);
        }
    }

    async fn record(&self, incident: &Incident, steps: &[Step]) -> bool {
        let recorded =
            tokio::time::timeout(self.limits.record_wait, self.store.record(incident, steps)).await;
        let error = match recorded {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".into(),
        };
        metrics::counter!("gaitway_store_errors_total").increment(1);
        tracing::error!(incident.id = %incident.id, %error, "an incident waits in memory: the store does not take it");
        false
    }

    /// The record may be older than the outcome: a store that answered late has the step as pending.
    async fn mark_recorded(&self, incident: &Incident, steps: &[Step]) {
        if let Some(step) = steps.first().filter(|step| is_board_step(&step.name)) {
            self.mark(&incident.id, step).await;
        }
        for desk in &self.desks {
            desk.wake.notify_one();
        }
        self.offered.lock().unwrap_or_else(PoisonError::into_inner).remove(&incident.id);
        self.count(-1);
    }

    /// The steps of a new incident. The board's comes first and is ours for now; the alerts are
    /// anybody's.
    fn steps(&self, incident: &Incident, now: Timestamp) -> Vec<Step> {
        let leased = now.plus(self.limits.lease);
        let mut steps = Vec::with_capacity(1 + self.desks.len());
        match BoardEffect::of(incident) {
            BoardEffect::Revoke => steps.push(Step::pending(REVOKE, leased)),
            BoardEffect::Pardon => steps.push(Step::pending(PARDON, leased)),
            BoardEffect::None => {}
        }
        let wanting = self.desks.iter().filter(|desk| desk.sink.wants(incident));
        steps.extend(wanting.map(|desk| Step::pending(desk.sink.name(), now)));
        steps
    }

    /// Revokes or pardons all but the `lifted` scopes, and writes the outcome into the step.
    async fn apply(&self, incident: &Incident, step: &mut Step, lifted: &[Scope]) {
        step.attempts = step.attempts.saturating_add(1);
        // All at once: where the backend is out of reach, each is in force here before it waits to hear so.
        let applied = async {
            let outcomes: Vec<Result<(), RevocationError>> = if step.name == PARDON {
                let scopes = self.pardoned_scopes(incident).await;
                join_all(scopes.into_iter().map(|scope| self.revocations.pardon(scope, incident.until))).await
            } else {
                let wanted = revocations_of(incident).into_iter().filter(|one| !lifted.contains(&one.scope));
                join_all(wanted.map(|revocation| self.revocations.revoke(revocation))).await
            };
            outcomes.into_iter().collect::<Result<(), RevocationError>>()
        };
        let outcome = match tokio::time::timeout(self.limits.board_wait, applied).await {
            Ok(Ok(())) => {
                step.state = StepState::Done;
                step.outcome = if step.name == PARDON { "pardoned" } else { "revoked" }.into();
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the revocation board did not answer in time".into(),
        };
        metrics::counter!("gaitway_outbox_board_errors_total").increment(1);
        tracing::error!(incident.id = %incident.id, step = %step.name, error = %outcome, "will be tried again");
        step.retry_at = clock::now().plus(self.backoff(step.attempts));
        step.outcome = outcome;
    }

    /// Everything that may keep a pardoned person out: what the pardon names, and what earlier
    /// incidents of the session revoked, for instance a token that has been refreshed since.
    async fn pardoned_scopes(&self, pardon: &Incident) -> Vec<Scope> {
        let mut scopes = scopes_of(pardon);
        let filter =
            IncidentFilter { session: Some(pardon.identity.session), since: None, limit: PARDON_LOOKUP };
        match tokio::time::timeout(self.limits.record_wait, self.store.incidents(&filter)).await {
            Ok(Ok(rows)) => {
                for row in rows.iter().filter(|row| row.incident.at <= pardon.at) {
                    for revocation in revocations_of(&row.incident) {
                        if !scopes.contains(&revocation.scope) {
                            scopes.push(revocation.scope);
                        }
                    }
                }
            }
            Ok(Err(_)) | Err(_) => {
                tracing::warn!(session.id = %pardon.identity.session,
                    "the store is down: pardoned the session and its present token only");
            }
        }
        scopes
    }

    async fn mark(&self, incident: &str, step: &Step) -> bool {
        match self.store.update_step(incident, step).await {
            Ok(()) => true,
            Err(error) => {
                metrics::counter!("gaitway_store_errors_total").increment(1);
                tracing::error!(incident.id = incident, step = %step.name, %error, "an outcome was not recorded");
                false
            }
        }
    }

    fn backoff(&self, attempts: u32) -> Duration {
        let doubled = self.limits.backoff_first.saturating_mul(1 << attempts.saturating_sub(1).min(16));
        // Between half and all of it, so that many steps that failed together do not come back together.
        doubled.min(self.limits.backoff_max).mul_f64(rand::rng().random_range(0.5..1.0))
    }

    fn count(&self, change: i64) {
        let depth = self.depth.fetch_add(change, Ordering::AcqRel) + change;
        metrics::gauge!("gaitway_outbox_depth").set(depth as f64);
    }

    fn count_unrecorded(&self, change: i64) {
        let unrecorded = self.unrecorded.fetch_add(change, Ordering::AcqRel) + change;
        metrics::gauge!("gaitway_outbox_unrecorded").set(unrecorded as f64);
    }
}

/// While the store is down, this is how late an incident is recorded after it comes back.
const STORE_RETRY_MAX: Duration = Duration::from_secs(10);

fn is_board_step(name: &str) -> bool {
    name == REVOKE || name == PARDON
}

/// Mend: what failed, and what a process that died left behind.
impl Work {
    /// At start. Without other replicas, whatever was claimed is nobody's any more.
    async fn take_over(&self) {
        let now = clock::now();
        if !self.store.is_shared()
            && let Err(error) = self.store.release(now).await
        {
            tracing::error!(%error, "cannot take over what the last run left; trying again later");
        }
        while self.mend_board().await >= BATCH as usize {}
    }

    async fn run_mender(self: Arc<Self>) {
        let mut swept: Option<Instant> = None;
        loop {
            tokio::time::sleep(self.limits.poll).await;
            self.mend_board().await;
            if swept.is_none_or(|at| at.elapsed() >= SWEEP) {
                swept = Some(Instant::now());
                self.sweep().await;
            }
            if let Ok(pending) = self.store.pending().await {
                metrics::gauge!("gaitway_outbox_steps_pending").set(pending as f64);
            }
        }
    }

    async fn sweep(&self) {
        self.give_up_unknown().await;
        match self.store.prune(clock::ago(self.limits.retention)).await {
            Ok(0) => {}
            Ok(records) => tracing::info!(records, "deleted records past their retention"),
            Err(error) => tracing::warn!(%error, "cannot delete old records now"),
        }
        match self.store.expire_profiles(clock::ago(self.limits.profile_retention)).await {
            Ok(expired) => metrics::counter!("gaitway_profiles_expired_total").increment(expired),
            Err(error) => tracing::warn!(%error, "cannot delete old profiles now"),
        }
        if let Ok(people) = self.store.profiles().await {
            metrics::gauge!("gaitway_profiles").set(people as f64);
        }
    }

    /// Tries revocations and pardons that are due again; returns how many it dealt with.
    async fn mend_board(&self) -> usize {
        let mut mended = 0;
        for name in [REVOKE, PARDON] {
            let now = clock::now();
            let Ok(rows) = self.store.due_for(name, now, BATCH).await else { continue };
            for row in rows {
                let id = row.incident.id.clone();
                match self.mend_step(name, now, row).await {
                    Ok(()) => mended += 1,
                    Err(error) => {
                        tracing::error!(incident.id = %id, step = name, %error, "cannot try again yet");
                        return 0;
                    }
                }
            }
        }
        mended
    }

    async fn mend_step(&self, name: &str, now: Timestamp, row: IncidentRow) -> Result<(), StoreError> {
        let unrecorded = self.lanes[lane_of(&row.incident)].lock().await;
        // A pardon of this very session may be among them.
        if !unrecorded.is_empty() {
            return Ok(());
        }
        let id = row.incident.id;
        if !self.store.claim(&id, name, now, clock::now().plus(self.limits.lease)).await? {
            return Ok(());
        }
        // Read again under the lock: somebody may have pardoned the session since.
        let Some(row) = self.store.incident(&id).await? else { return Ok(()) };
        let Some(mut step) = row.steps.iter().find(|step| step.name == name).cloned() else { return Ok(()) };
        if self.is_overtaken(&row).await? {
            step.state = StepState::Done;
            step.outcome = "overtaken by a later decision".into();
        } else {
            // A pardon of another session of the same person lifted what reaches the person.
            let lifted: Vec<Scope> = match row.pardoned {
                Some(_) => scopes_of(&row.incident)
                    .into_iter()
                    .filter(|scope| matches!(scope, Scope::Subject { .. }))
                    .collect(),
                None => Vec::new(),
            };
            self.apply(&row.incident, &mut step, &lifted).await;
        }
        self.store.update_step(&id, &step).await
    }

    /// Whether a later pardon of the session undid this revocation, or a later revocation this pardon.
    async fn is_overtaken(&self, row: &IncidentRow) -> Result<bool, StoreError> {
        let incident = &row.incident;
        let session = Some(incident.identity.session);
        if BoardEffect::of(incident) == BoardEffect::Revoke {
            return Ok(row.pardoned.as_ref().is_some_and(|pardon| pardon.session == session));
        }
        let filter = IncidentFilter { session, since: Some(incident.at), limit: PARDON_LOOKUP };
        let later = self.store.incidents(&filter).await?;
        Ok(later.iter().any(|row| {
            row.incident.at > incident.at && BoardEffect::of(&row.incident) == BoardEffect::Revoke
        }))
    }

    /// Steps of a sink that is no longer configured end when they are old; until then the sink may
    /// come back, or belong to another replica.
    async fn give_up_unknown(&self) {
        let now = clock::now();
        let Ok(rows) = self.store.due(now, BATCH).await else { return };
        for row in &rows {
            for step in row.steps.iter().filter(|step| step.state == StepState::Pending) {
                let is_known =
                    is_board_step(&step.name) || self.desks.iter().any(|desk| desk.sink.name() == step.name);
                if is_known || step.retry_at > now {
                    continue;
                }
                if now.since(row.incident.at) > self.limits.give_up {
                    let outcome = "no such sink is configured".into();
                    self.mark(&row.incident.id, &Step { state: StepState::Failed, outcome, ..step.clone() })
                        .await;
                } else {
                    let later = now.plus(UNKNOWN_SINK_RETRY);
                    let _ = self.store.claim(&row.incident.id, &step.name, now, later).await;
                }
            }
        }
    }
}

const UNKNOWN_SINK_RETRY: Duration = Duration::from_secs(3600);
/// Old news and old records are looked for this often.
const SWEEP: Duration = Duration::from_secs(600);

/// Tell.
impl Work {
    async fn run_desk(self: Arc<Self>, desk: usize) {
        let desk = &self.desks[desk];
        let mut budget =
            Budget::new(desk.sink.deliveries_per_hour_max(), self.limits.hour, self.limits.digest_collect);
        let mut unmarked = HashMap::new();
        let mut failures = 0;
        loop {
            let wait = match self.tell(desk, &mut budget, &mut unmarked).await {
                Ok(Some(until)) => {
                    failures = 0;
                    until.since(clock::now())
                }
                Ok(None) => {
                    failures = 0;
                    self.limits.poll
                }
                Err(error) => {
                    failures += 1;
                    if failures == 1 {
                        tracing::error!(sink = desk.sink.name(), %error, "alerts wait: the store does not answer");
                    }
                    self.backoff(failures).min(STORE_RETRY_MAX)
                }
            };
            desk.busy.store(false, Ordering::Release);
            tokio::select! {
                () = desk.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Tells what is due. Returns when to look again, if it is known.
    async fn tell(
        &self,
        desk: &Desk,
        budget: &mut Budget,
        unmarked: &mut HashMap<String, Step>,
    ) -> Result<Option<Timestamp>, StoreError> {
        let now = clock::now();
        let name = desk.sink.name();
        let closed_until = Timestamp(desk.closed_until.load(Ordering::Acquire));
        if closed_until > now {
            return Ok(Some(closed_until));
        }
        desk.busy.store(true, Ordering::Release);
        let mut untold = Vec::new();
        let due = self.store.due_for(name, now, BATCH).await?;
        let may_hide_others = due.len() >= BATCH as usize;
        for row in due {
            let id = &row.incident.id;
            if let Some(step) = unmarked.get(id) {
                if self.mark(id, step).await {
                    unmarked.remove(id);
                }
            } else if desk.sink.is_ready(&row.incident, now) {
                untold.push(row);
            } else if may_hide_others {
                self.store.claim(id, name, now, now.plus(unready_pause(now.since(row.incident.at)))).await?;
            }
        }
        if untold.is_empty() {
            return Ok(None);
        }
        let delivered = match budget.plan(now, untold.len()) {
            Plan::Wait(until) => {
                desk.closed_until.store(until.0, Ordering::Release);
                return Ok(Some(until));
            }
            Plan::Each => self.tell_each(desk, now, untold, unmarked).await,
            Plan::Together => usize::from(self.tell_together(desk, now, untold, unmarked).await),
        };
        budget.spend(clock::now(), delivered);
        // More may have become due meanwhile.
        Ok(Some(clock::now().plus(Duration::from_millis(1)).min(now.plus(self.limits.poll))))
    }

    async fn tell_each(
        &self,
        desk: &Desk,
        now: Timestamp,
        rows: Vec<IncidentRow>,
        unmarked: &mut HashMap<String, Step>,
    ) -> usize {
        let outcomes: Vec<(bool, Option<(String, Step)>)> = futures_util::stream::iter(rows)
            .map(|row| async move {
                if !self.is_ours(desk, &row, now).await {
                    return (false, None);
                }
                let sink = Arc::clone(&desk.sink);
                let incident = row.incident.clone();
                let outcome = guarded(async move { sink.deliver(&incident).await }).await;
                (outcome.is_ok(), self.finish(desk.sink.name(), row, outcome).await)
            })
            .buffer_unordered(self.limits.deliveries_max.max(1))
            .collect()
            .await;
        let delivered = outcomes.iter().filter(|(is_delivered, _)| *is_delivered).count();
        outcomes.into_iter().filter_map(|(_, left)| left).for_each(|left| remember(unmarked, left));
        delivered
    }

    async fn tell_together(
        &self,
        desk: &Desk,
        now: Timestamp,
        rows: Vec<IncidentRow>,
        unmarked: &mut HashMap<String, Step>,
    ) -> bool {
        let mut ours = Vec::with_capacity(rows.len());
        for row in rows {
            if self.is_ours(desk, &row, now).await {
                ours.push(row);
            }
        }
        if ours.is_empty() {
            return false;
        }
        let sink = Arc::clone(&desk.sink);
        let incidents: Vec<Incident> = ours.iter().map(|row| row.incident.clone()).collect();
        let outcome = guarded(async move { sink.deliver_digest(&incidents).await }).await;
        let is_delivered = outcome.is_ok();
        for row in ours {
            let outcome = match &outcome {
                Ok(()) => Ok(()),
                Err(AlertError::Temporary(why)) => Err(AlertError::Temporary(why.clone())),
                Err(AlertError::Permanent(why)) => Err(AlertError::Permanent(why.clone())),
            };
            if let Some(left) = self.finish(desk.sink.name(), row, outcome).await {
                remember(unmarked, left);
            }
        }
        is_delivered
    }

    /// Other replicas may be telling the same incident.
    async fn is_ours(&self, desk: &Desk, row: &IncidentRow, now: Timestamp) -> bool {
        if !self.store.is_shared() {
            return true;
        }
        let lease = clock::now().plus(self.limits.lease);
        self.store.claim(&row.incident.id, desk.sink.name(), now, lease).await.unwrap_or(false)
    }

    /// Writes the outcome of a delivery, or returns what the store did not take.
    async fn finish(
        &self,
        sink: &'static str,
        row: IncidentRow,
        outcome: Result<(), AlertError>,
    ) -> Option<(String, Step)> {
        let mut step = row.steps.into_iter().find(|step| step.name == sink)?;
        let now = clock::now();
        let age = now.since(row.incident.at);
        step.attempts = step.attempts.saturating_add(1);
        let label = match outcome {
            Ok(()) => {
                step.state = StepState::Done;
                step.outcome = "delivered".into();
                metrics::histogram!("gaitway_alert_delay_seconds", "sink" => sink).record(age.as_secs_f64());
                "delivered"
            }
            Err(AlertError::Temporary(why)) if age <= self.limits.give_up => {
                step.retry_at = now.plus(self.backoff(step.attempts));
                tracing::warn!(incident.id = %row.incident.id, sink, attempts = step.attempts, %why,
                    "an alert was not delivered; it will be tried again");
                step.outcome = why;
                "retry"
            }
            Err(AlertError::Temporary(why) | AlertError::Permanent(why)) => {
                step.state = StepState::Failed;
                tracing::error!(incident.id = %row.incident.id, sink, %why, "an alert cannot be delivered");
                step.outcome = why;
                "failed"
            }
        };
        metrics::counter!("gaitway_alerts_total", "sink" => sink, "outcome" => label).increment(1);
        if self.mark(&row.incident.id, &step).await { None } else { Some((row.incident.id, step)) }
    }

    /// Whether no sink has anything to do now.
    async fn is_told(&self) -> bool {
        for desk in &self.desks {
            let now = clock::now();
            if desk.busy.load(Ordering::Acquire) {
                return false;
            }
            let is_closed = desk.closed_until.load(Ordering::Acquire) > now.0;
            let told = self.store.due_for(desk.sink.name(), now, BATCH).await;
            if !is_closed
                && !told.is_ok_and(|rows| rows.iter().all(|row| !desk.sink.is_ready(&row.incident, now)))
            {
                return false;
            }
        }
        true
    }
}

/// How long a step waits that this process cannot deliver, where enough of them fill the head of the queue to
/// hide those it can. At random, because replicas share the queue: else the same one would come first each time
/// and postpone what only another can deliver.
fn unready_pause(age: Duration) -> Duration {
    (age / 8).clamp(UNREADY_RETRY_FIRST, UNREADY_RETRY_MAX).mul_f64(rand::rng().random_range(0.5..1.0))
}

/// A session that was just ended calls again at once, at whichever replica.
const UNREADY_RETRY_FIRST: Duration = Duration::from_secs(2);
/// One that has not called for minutes may call again in hours or never.
const UNREADY_RETRY_MAX: Duration = Duration::from_secs(30);

/// A sink's panic is its own: the loop goes on, and the incident is tried again.
async fn guarded(
    delivery: impl Future<Output = Result<(), AlertError>> + Send + 'static,
) -> Result<(), AlertError> {
    let mut task = JoinSet::new();
    task.spawn(delivery);
    match task.join_next().await {
        Some(Ok(outcome)) => outcome,
        Some(Err(_)) | None => Err(AlertError::Temporary("the sink failed inside".into())),
    }
}

/// Keeps an outcome in mind that the store did not take, so that the delivery is not repeated at once.
fn remember(unmarked: &mut HashMap<String, Step>, (id, step): (String, Step)) {
    if unmarked.len() < UNMARKED_MAX {
        unmarked.insert(id, step);
    }
}
