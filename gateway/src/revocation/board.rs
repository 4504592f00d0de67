//! The records in memory, as the request path reads them: sharded, bounded, nearly free when empty.
//!
//! Must not know: Redis, the clock.

use super::record::{Key, Record};
use super::{Change, Refusal};
use gaitway_models::Timestamp;
use gaitway_policies::Identity;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::broadcast;

pub(super) struct Board {
    shards: Box<[RwLock<Shard>]>,
    /// Records of each kind, so that an installation which revokes sessions only never looks for tokens.
    kinds: [AtomicUsize; 3],
    /// Records that refuse.
    revoked: AtomicUsize,
    entries_max: usize,
    changes: broadcast::Sender<Change>,
}

type Shard = HashMap<Key, Record, BuildHasherDefault<Taken>>;

/// What became of a record offered to the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    Changed,
    /// Already there, or something newer is.
    Known,
    /// Over before it came.
    Expired,
    Full,
}

impl Board {
    pub(super) fn new(entries_max: usize) -> Board {
        Board {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            kinds: Default::default(),
            revoked: AtomicUsize::new(0),
            entries_max,
            changes: broadcast::channel(CHANGES_MAX).0,
        }
    }

    /// Whether the identity is refused now: by its token, its session, or its subject's tokens being
    /// too old. A pardoned session outweighs older revocations of its token and subject.
    pub(super) fn check(&self, identity: &Identity, now: Timestamp) -> Option<Refusal> {
        if self.len() == 0 {
            return None;
        }
        let mut pardoned_at = None;
        if let Some(session) = self.shard_with(&Key::Session(identity.session))
            && let Some(record) = session.get(&Key::Session(identity.session))
        {
            if let Some(refusal) = record.refusal(now) {
                return Some(refusal);
            }
            pardoned_at = record.pardoned_at(now);
        }
        if let Some(token) = identity.token.map(Key::Token)
            && let Some(refusal) = self.refused(&token, now, pardoned_at, |_| true)
        {
            return Some(refusal);
        }
        // Without a moment of issue nobody can say the token is too old; in doubt the page flows.
        let (Some(subject), Some(issued_at)) = (identity.subject.map(Key::Subject), identity.issued_at)
        else {
            return None;
        };
        self.refused(&subject, now, pardoned_at, |record| issued_at < record.before)
    }

    fn refused(
        &self,
        key: &Key,
        now: Timestamp,
        pardoned_at: Option<Timestamp>,
        concerns: impl FnOnce(&Record) -> bool,
    ) -> Option<Refusal> {
        let shard = self.shard_with(key)?;
        let record = shard.get(key)?;
        let is_outweighed = pardoned_at.is_some_and(|at| record.decided_at <= at);
        if is_outweighed || !concerns(record) { None } else { record.refusal(now) }
    }

    /// Takes a record if it is newer than what is known. Subscribers hear of changes in the order in
    /// which they happened to a key.
    pub(super) fn apply(&self, key: Key, record: Record, now: Timestamp) -> Applied {
        if record.keep <= now {
            return Applied::Expired;
        }
        let mut shard = self.write(self.shard_of(&key));
        let len = self.len();
        let change = record.change(&key);
        // Kept for the pardon that it replaced; it refuses nobody.
        let is_over = !record.is_pardon && record.until <= now;
        match shard.entry(key) {
            Entry::Occupied(known) if *known.get() >= record => return Applied::Known,
            Entry::Occupied(mut known) => {
                self.count_revoked(known.get(), -1);
                self.count_revoked(&record, 1);
                known.insert(record);
            }
            Entry::Vacant(_) if len >= self.entries_max => return Applied::Full,
            Entry::Vacant(place) => {
                self.kinds[kind(&key)].fetch_add(1, Ordering::Release);
                self.count_revoked(&record, 1);
                place.insert(record);
            }
        }
        if !is_over {
            // Nobody listening is no error.
            let _ = self.changes.send(change);
        }
        Applied::Changed
    }

    pub(super) fn get(&self, key: &Key) -> Option<Record> {
        self.read(self.shard_of(key)).get(key).cloned()
    }

    /// Drops records that are over; returns how many.
    pub(super) fn sweep(&self, now: Timestamp) -> usize {
        let mut swept = 0;
        for shard in &self.shards {
            // A shard without anything to drop is only read, so sweeping does not hold up requests.
            if !self.read(shard).values().any(|record| record.keep <= now) {
                continue;
            }
            self.write(shard).retain(|key, record| {
                let is_kept = record.keep > now;
                if !is_kept {
                    self.kinds[kind(key)].fetch_sub(1, Ordering::Release);
                    self.count_revoked(record, -1);
                    swept += 1;
                }
                is_kept
            });
        }
        swept
    }

    /// Keys for which `wanted` holds. A shard at a time, so the whole is not one moment's picture.
    pub(super) fn keys(&self, mut wanted: impl FnMut(&Key, &Record) -> bool) -> Vec<Key> {
        let mut keys = Vec::new();
        for shard in &self.shards {
            keys.extend(
                self.read(shard).iter().filter(|(key, record)| wanted(key, record)).map(|(key, _)| *key),
            );
        }
        keys
    }

    pub(super) fn len(&self) -> usize {
        self.kinds.iter().map(|kind| kind.load(Ordering::Acquire)).sum()
    }

    pub(super) fn revoked(&self) -> usize {
        self.revoked.load(Ordering::Relaxed)
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// The key's shard, unless there is no record of its kind at all.
    fn shard_with(&self, key: &Key) -> Option<RwLockReadGuard<'_, Shard>> {
        if self.kinds[kind(key)].load(Ordering::Acquire) == 0 {
            return None;
        }
        Some(self.read(self.shard_of(key)))
    }

    fn shard_of(&self, key: &Key) -> &RwLock<Shard> {
        // Not one of the bytes that choose the bucket within the shard.
        &self.shards[usize::from(key.bytes()[8]) % SHARDS]
    }

    // A panic while a lock was held cannot leave a map half changed that matters more than serving.
    #[expect(clippy::unused_self, reason = "reads as the board's")]
    fn read<'a>(&self, shard: &'a RwLock<Shard>) -> RwLockReadGuard<'a, Shard> {
        shard.read().unwrap_or_else(PoisonError::into_inner)
    }

    #[expect(clippy::unused_self, reason = "reads as the board's")]
    fn write<'a>(&self, shard: &'a RwLock<Shard>) -> RwLockWriteGuard<'a, Shard> {
        shard.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_revoked(&self, record: &Record, by: isize) {
        if !record.is_pardon {
            self.revoked.fetch_add(by.cast_unsigned(), Ordering::Relaxed);
        }
    }
}

impl Record {
    fn refusal(&self, now: Timestamp) -> Option<Refusal> {
        (!self.is_pardon && now < self.until)
            .then(|| Refusal { incident: self.incident.to_string(), until: self.until })
    }

    fn pardoned_at(&self, now: Timestamp) -> Option<Timestamp> {
        (self.is_pardon && now < self.keep).then_some(self.decided_at)
    }
}

fn kind(key: &Key) -> usize {
    match key {
        Key::Token(_) => 0,
        Key::Session(_) => 1,
        Key::Subject(_) => 2,
    }
}

/// Hands through the eight bytes that `Key` writes.
#[derive(Default)]
pub(super) struct Taken(u64);

impl Hasher for Taken {
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
    fn write(&mut self, bytes: &[u8]) {
        // Not reached by `Key`; right nonetheless.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Enough that a writer on another core seldom meets a reader; few enough to sweep quickly.
const SHARDS: usize = 64;
/// Changes a subscriber may lag behind before it must read the board anew.
const CHANGES_MAX: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::revocation::{Revocation, Scope};
    use gaitway_policies::{SessionId, SubjectId, TokenId};

    const T: u64 = 1_800_000_000_000;

    fn identity() -> Identity {
        Identity {
            session: SessionId([1; 16]),
            subject: Some(SubjectId([2; 16])),
            token: Some(TokenId([3; 16])),
            expires_at: None,
            issued_at: Some(Timestamp(T)),
            groups: Vec::new(),
        }
    }

    fn session() -> Scope {
        Scope::Session(identity().session)
    }
    fn token() -> Scope {
        Scope::Token(TokenId([3; 16]))
    }
    fn subject(before: u64) -> Scope {
        Scope::Subject { subject: SubjectId([2; 16]), before: Timestamp(before) }
    }

    fn revoked(scope: Scope, decided_at: u64, until: u64) -> (Key, Record) {
        let (decided_at, until) = (Timestamp(decided_at), Timestamp(until));
        let revocation = Revocation { scope, incident: format!("G-{}", decided_at.0), decided_at, until };
        (Key::of(&scope), Record::revoked(&revocation))
    }

    fn pardoned(scope: Scope, decided_at: u64, until: u64) -> (Key, Record) {
        let (key, record) = revoked(scope, decided_at, until);
        (key, Record { is_pardon: true, incident: "".into(), ..record })
    }

    fn check(records: &[(Key, Record)], now: u64, refused: bool) {
        let board = Board::new(100);
        for (key, record) in records {
            board.apply(*key, record.clone(), Timestamp(T));
        }
        assert_eq!(board.check(&identity(), Timestamp(now)).is_some(), refused, "{records:?} at {now}");
    }

    #[test]
    fn each_scope_refuses_its_own() {
        check(&[], T, false);
        for scope in [session(), token(), subject(T + 1)] {
            check(&[revoked(scope, T, T + 100)], T, true);
        }
        check(&[revoked(Scope::Session(SessionId([9; 16])), T, T + 100)], T, false);
        // The same bytes under another kind are somebody else.
        check(&[revoked(Scope::Token(TokenId([1; 16])), T, T + 100)], T, false);
        check(&[revoked(Scope::Session(SessionId([3; 16])), T, T + 100)], T, false);
    }

    #[test]
    fn a_revocation_ends_at_its_time() {
        check(&[revoked(session(), T, T + 100)], T + 99, true);
        check(&[revoked(session(), T, T + 100)], T + 100, false);
    }

    #[test]
    fn a_subject_is_refused_for_tokens_issued_before() {
        check(&[revoked(subject(T), T, T + 100)], T, false);
        check(&[revoked(subject(T + 1), T, T + 100)], T, true);
        let board = Board::new(100);
        let (key, record) = revoked(subject(T + 1), T, T + 100);
        board.apply(key, record, Timestamp(T));
        let unknown = Identity { issued_at: None, ..identity() };
        assert_eq!(board.check(&unknown, Timestamp(T)), None, "no moment of issue, no guilt");
    }

    #[test]
    fn the_later_decision_counts_whatever_comes_first() {
        let (revocation, pardon) = (revoked(session(), T, T + 100), pardoned(session(), T + 1, T + 100));
        check(&[revocation.clone(), pardon.clone()], T + 2, false);
        check(&[pardon.clone(), revocation.clone()], T + 2, false);
        let again = revoked(session(), T + 2, T + 100);
        check(&[revocation.clone(), pardon.clone(), again.clone()], T + 3, true);
        check(&[again, pardon, revocation.clone()], T + 3, true);
        check(&[revocation, pardoned(session(), T, T + 50)], T + 2, false);
    }

    #[test]
    fn any_order_of_the_same_records_ends_alike() {
        let records = [
            revoked(session(), T, T + 100),
            revoked(session(), T + 5, T + 50),
            pardoned(session(), T + 3, T + 70),
            pardoned(session(), T + 5, T + 60),
        ];
        let mut ends = Vec::new();
        for a in 0..4 {
            for b in 0..4 {
                for c in 0..4 {
                    for d in 0..4 {
                        let board = Board::new(100);
                        for n in [a, b, c, d, 0, 1, 2, 3] {
                            let (key, record) = records[n].clone();
                            board.apply(key, record, Timestamp(T));
                        }
                        ends.push(board.get(&records[0].0));
                    }
                }
            }
        }
        assert!(ends.iter().all(|end| *end == ends[0] && end.is_some()));
    }

    #[test]
    fn a_pardoned_session_outweighs_older_revocations_of_its_token_and_subject() {
        let pardon = pardoned(session(), T + 5, T + 100);
        check(&[revoked(token(), T, T + 100), pardon.clone()], T + 6, false);
        check(&[revoked(subject(T + 1), T, T + 100), pardon.clone()], T + 6, false);
        check(&[revoked(token(), T + 6, T + 100), pardon.clone()], T + 7, true);
        check(&[revoked(subject(T + 9), T + 6, T + 100), pardon], T + 7, true);
        check(&[revoked(session(), T, T + 100), pardoned(token(), T + 5, T + 100)], T + 6, true);
    }

    #[test]
    fn the_board_is_bounded_and_swept() {
        let board = Board::new(10);
        let at = |n: u8, until| revoked(Scope::Session(SessionId([n; 16])), T, until);
        for n in 0..10 {
            let (key, record) = at(n, T + 100 + u64::from(n));
            assert_eq!(board.apply(key, record, Timestamp(T)), Applied::Changed);
        }
        let (key, record) = at(10, T + 500);
        assert_eq!(board.apply(key, record.clone(), Timestamp(T)), Applied::Full);
        let (known, newer) = at(3, T + 900);
        let newer = Record { decided_at: Timestamp(T + 1), ..newer };
        assert_eq!(board.apply(known, newer, Timestamp(T)), Applied::Changed, "a known one may change");
        assert_eq!(board.sweep(Timestamp(T + 105)), 5);
        assert_eq!((board.len(), board.revoked()), (5, 5));
        assert_eq!(board.apply(key, record.clone(), Timestamp(T)), Applied::Changed);
        assert_eq!(board.apply(key, record.clone(), Timestamp(T)), Applied::Known);
        assert_eq!(board.apply(key, record, Timestamp(T + 500)), Applied::Expired);
        assert_eq!(board.sweep(Timestamp(T + 5000)), 6);
        assert_eq!((board.len(), board.revoked()), (0, 0));
    }

    #[test]
    fn subscribers_hear_each_change_once() {
        let board = Board::new(10);
        let mut changes = board.subscribe();
        let (key, record) = revoked(session(), T, T + 100);
        for _ in 0..3 {
            board.apply(key, record.clone(), Timestamp(T));
        }
        let (_, pardon) = pardoned(session(), T + 1, T + 100);
        board.apply(key, pardon, Timestamp(T));
        assert!(
            matches!(changes.try_recv(), Ok(Change::Revoked(revocation)) if revocation.scope == session())
        );
        assert!(matches!(changes.try_recv(), Ok(Change::Pardoned { scope, .. }) if scope == session()));
        assert!(changes.try_recv().is_err());
        assert_eq!((board.len(), board.revoked()), (1, 0));
    }
}
