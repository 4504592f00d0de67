//! The board of revocations: a local set that the request path reads, and the backend that makes
//! it durable and shared.
//!
//! Must not know: why something is revoked.

mod board;
mod record;
pub(crate) mod servers;
mod shared;

use board::{Applied, Board};
use gaitway_models::Timestamp;
use gaitway_policies::{Identity, SessionId, SubjectId, TokenId};
use record::{Key, Record};
use serde::{Deserialize, Serialize};
use shared::Shared;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// What a revocation reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    Token(TokenId),
    Session(SessionId),
    /// Every token of the subject issued before the moment, so a refreshed one does not slip through.
    Subject {
        subject: SubjectId,
        before: Timestamp,
    },
}

/// One revocation. Idempotent: applying it twice changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revocation {
    pub scope: Scope,
    /// Number shown to the person and to operators.
    pub incident: String,
    pub decided_at: Timestamp,
    /// Never earlier than the token's own expiry.
    pub until: Timestamp,
}

/// One pardon, as the store remembers it.
#[derive(Clone, Debug, PartialEq)]
pub struct Pardon {
    pub scope: Scope,
    pub decided_at: Timestamp,
    /// How long it is announced to exempt.
    pub until: Timestamp,
}

/// A change of the board, from this process or another replica; also replayed after a gap.
#[derive(Clone, Debug)]
pub enum Change {
    Revoked(Revocation),
    Pardoned { scope: Scope, until: Timestamp },
}

/// Why the path must refuse.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub incident: String,
    pub until: Timestamp,
}

#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    /// In force here and queued for the others; repeat until it is durable.
    #[error("revocation backend is unreachable")]
    Unreachable,
    #[error("the board is full ({0} entries); raise revocation.entries_max")]
    Full(usize),
    #[error("revocation.redis: {0}")]
    Address(String),
    #[error("cannot read {path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
}

/// For metrics and the ops page.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BoardHealth {
    pub backend: &'static str,
    pub connected: bool,
    pub entries: usize,
    /// Writes accepted here that the shared backend does not have yet.
    pub queued: usize,
}

/// Revocations in force. One for the process.
pub struct Revocations {
    board: Arc<Board>,
    backend: Backend,
    default_ttl: Duration,
    tasks: Vec<JoinHandle<()>>,
}

enum Backend {
    /// This process is all there is; what must survive it is in the store.
    Embedded,
    Redis(Arc<Shared>),
}

impl Revocations {
    /// Opens the board with the revocations that the store knows. A shared backend that does not answer is no
    /// reason not to start: after a short wait the gateway serves with what it has and catches up later.
    pub async fn start(
        config: &crate::config::Revocation,
        initial: Vec<Revocation>,
    ) -> Result<Arc<Revocations>, RevocationError> {
        Revocations::start_with(config, initial, Vec::new()).await
    }

    /// The same, with the pardons of the last [`PARDON_KEPT`] too: without them, a late copy of a decision that
    /// was undone before the restart would be in force again.
    pub async fn start_with(
        config: &crate::config::Revocation,
        initial: Vec<Revocation>,
        pardons: Vec<Pardon>,
    ) -> Result<Arc<Revocations>, RevocationError> {
        let board = Arc::new(Board::new(config.entries_max));
        let default_ttl = Duration::from_secs(config.default_ttl_seconds);
        let now = crate::clock::now();
        for pardon in &pardons {
            let record =
                Record::pardoned(pardon, pardon.until.max(kept_after(pardon.decided_at, default_ttl)));
            board.apply(Key::of(&pardon.scope), record, now);
        }
        let mut left_out = 0usize;
        for revocation in &initial {
            let (key, record) = revoked(&board, revocation);
            let applied = board.apply(key, record, now);
            left_out += usize::from(applied == Applied::Full);
        }
        if left_out > 0 {
            // Not starting would be worse: it would shut out everybody.
            tracing::error!(left_out, "the board is full; raise revocation.entries_max");
        }
        let mut tasks = vec![tokio::spawn(sweep_forever(Arc::clone(&board)))];
        let backend = match &config.redis {
            None => Backend::Embedded,
            Some(address) => {
                let shared = Arc::new(Shared::new(config, address, Arc::clone(&board))?);
                let (reader, writer) = (Arc::clone(&shared), Arc::clone(&shared));
                tasks.push(tokio::spawn(async move { reader.read_forever().await }));
                tasks.push(tokio::spawn(async move { writer.write_forever().await }));
                if tokio::time::timeout(START_WAIT, shared.until_synced()).await.is_err() {
                    tracing::error!(
                        "starting without the shared revocations; they are applied once Redis answers"
                    );
                }
                Backend::Redis(shared)
            }
        };
        Ok(Arc::new(Revocations { board, backend, default_ttl, tasks }))
    }

    /// Memory only: called for every request. False "not revoked" lets a stolen token through;
    /// false "revoked" logs a person out.
    pub fn check(&self, identity: &Identity, now: Timestamp) -> Option<Refusal> {
        self.board.check(identity, now)
    }

    /// Applies locally at once, then makes it durable and shared. Safe to repeat.
    ///
    /// `Ok` means durable: all other replicas will see it. `Unreachable` means in force here and, unless
    /// the queue is full, delivered in order when Redis is back; as the queue is memory, the caller
    /// repeats until `Ok`. `Full` means not even in force. An older decision than what is known (a
    /// pardon since) changes nothing and is `Ok`.
    pub async fn revoke(&self, revocation: Revocation) -> Result<(), RevocationError> {
        let (key, record) = revoked(&self.board, &revocation);
        self.decide(key, record).await
    }

    /// Undoes a revocation of exactly this scope, and for a session also older ones of its token and
    /// subject. `until`: how long the pardon is announced to exempt. Outcomes as for `revoke`.
    pub async fn pardon(&self, scope: Scope, until: Timestamp) -> Result<(), RevocationError> {
        let key = Key::of(&scope);
        let now = crate::clock::now();
        let known = self.board.get(&key);
        // Later than what it answers, even if the clock of the replica that decided that runs ahead.
        let after_known = known.as_ref().map_or(Timestamp(0), |known| {
            if known.is_pardon { known.decided_at } else { known.decided_at.plus(Duration::from_millis(1)) }
        });
        let keep = known.map_or(until, |known| known.keep.max(until)).max(kept_after(now, self.default_ttl));
        let pardon = Pardon { scope, decided_at: now.max(after_known), until };
        self.decide(key, Record::pardoned(&pardon, keep)).await
    }

    /// Whether exactly this scope was pardoned at this moment or later, or ended again at this moment or later
    /// after a pardon. A false "no" lets an old decision undo a pardon, so ask [`Revocations::is_caught_up`] too.
    pub fn is_pardoned_since(&self, scope: &Scope, moment: Timestamp) -> bool {
        let known = self.board.get(&Key::of(scope));
        known.is_some_and(|known| known.follows_pardon() && known.decided_at >= moment)
    }

    /// Until when a pardon announced to keep rules away from the session, if it does now. Memory only.
    pub fn exempt_until(&self, session: &SessionId, now: Timestamp) -> Option<Timestamp> {
        let known = self.board.get(&Key::Session(*session))?;
        (known.is_pardon && known.until > now).then_some(known.until)
    }

    /// Whether the decisions of all replicas are known here, as far as can be told.
    pub fn is_caught_up(&self) -> bool {
        match &self.backend {
            Backend::Embedded => true,
            Backend::Redis(shared) => shared.is_synced(),
        }
    }

    /// Every change applied to the local board, own and learnt. A receiver that lags too far is told so
    /// and should read `active`.
    pub fn subscribe(&self) -> tokio::sync::broadcast::Receiver<Change> {
        self.board.subscribe()
    }

    /// Revocations in force, at most `limit`, the latest decision first. For the ops page, not for requests.
    pub fn active(&self, limit: usize) -> Vec<Revocation> {
        let now = crate::clock::now();
        let keys = self.board.keys(|_, record| !record.is_pardon && record.until > now);
        let mut active: Vec<Revocation> =
            keys.iter().filter_map(|key| Some(self.board.get(key)?.revocation(key))).collect();
        active.sort_by_key(|revocation| std::cmp::Reverse(revocation.decided_at));
        active.truncate(limit);
        active
    }

    pub fn health(&self) -> BoardHealth {
        let entries = self.board.revoked();
        match &self.backend {
            Backend::Embedded => BoardHealth { backend: "embedded", connected: true, entries, queued: 0 },
            Backend::Redis(shared) => BoardHealth {
                backend: "redis",
                connected: shared.is_synced(),
                entries,
                queued: shared.queued(),
            },
        }
    }

    async fn decide(&self, key: Key, record: Record) -> Result<(), RevocationError> {
        let now = crate::clock::now();
        let mut applied = self.board.apply(key, record.clone(), now);
        if applied == Applied::Full && self.board.sweep(now) > 0 {
            applied = self.board.apply(key, record.clone(), now);
        }
        metrics::gauge!("gaitway_revocations_active").set(shared::count(self.board.revoked()));
        match applied {
            Applied::Full => return Err(RevocationError::Full(self.board.len())),
            Applied::Expired => return Ok(()),
            // Known may still be on its way to Redis from an earlier attempt.
            Applied::Changed | Applied::Known => {}
        }
        let Backend::Redis(shared) = &self.backend else { return Ok(()) };
        // Never the older of the two: Redis might have lost the newer one.
        let newest = self.board.get(&key).unwrap_or(record);
        let acknowledged = shared.enqueue(key, newest).ok_or(RevocationError::Unreachable)?;
        if !shared.is_synced() {
            return Err(RevocationError::Unreachable);
        }
        match tokio::time::timeout(DURABLE_WAIT, acknowledged).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(RevocationError::Unreachable),
        }
    }
}

impl Drop for Revocations {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn sweep_forever(board: Arc<Board>) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        board.sweep(crate::clock::now());
        metrics::gauge!("gaitway_revocations_active").set(shared::count(board.revoked()));
    }
}

/// A revocation's record. In place of a pardon's it is kept as long as that one, or a late copy of what the pardon
/// answered would be in force once this is over.
fn revoked(board: &Board, revocation: &Revocation) -> (Key, Record) {
    let key = Key::of(&revocation.scope);
    let mut record = Record::revoked(revocation);
    if let Some(known) = board.get(&key).filter(Record::follows_pardon) {
        record.keep = record.keep.max(known.keep);
    }
    (key, record)
}

/// Until when a pardon's record is kept at least.
fn kept_after(decided_at: Timestamp, default_ttl: Duration) -> Timestamp {
    decided_at.plus(default_ttl.max(PARDON_KEPT))
}

/// How late a copy of a decision may come and still meet the pardon that answered it: as late as anything is
/// tried again.
pub const PARDON_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a start waits for Redis. Long enough to read a large board, short enough for an orchestrator.
const START_WAIT: Duration = Duration::from_secs(3);
/// How long one attempt waits to hear that a change is durable.
const DURABLE_WAIT: Duration = Duration::from_secs(2);
/// Expired records cost memory only; refusing ends at its time anyway.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod failover;
#[cfg(test)]
mod tests;
