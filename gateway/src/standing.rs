//! The board the request path reads: what to do with a session until told otherwise.
//!
//! Written by shards only. Reading costs one atomic load while nobody stands out.

use gaitway_models::Timestamp;
use gaitway_policies::limit::Rate;
use gaitway_policies::{SessionId, Standing};
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

/// Independent locks, so that one shard's write seldom meets a request.
const PARTS: usize = 16;

/// What the request path does with one request now.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Allow,
    /// Pass, with a header to the app.
    Tag(String),
    /// Pass, as long as the session's requests stay within this rate.
    Throttle(Rate),
    Challenge,
    /// Log in again, as strongly and as lately as this asks.
    StepUp {
        acr_values: String,
        /// 0: no demand on age.
        max_age_seconds: u64,
    },
    /// Refuse, over this long.
    Tarpit {
        incident: String,
        delay: Duration,
    },
    Deny {
        incident: String,
    },
}

struct Entry {
    standing: Standing,
    until: Timestamp,
}

#[derive(Default)]
pub struct Standings {
    entries: AtomicUsize,
    parts: [RwLock<HashMap<SessionId, Entry>>; PARTS],
    hasher: RandomState,
}

impl Standings {
    pub fn new() -> Standings {
        Standings::default()
    }

    /// Whether the session may pass at `now`.
    pub fn verdict(&self, session: &SessionId, now: Timestamp) -> Verdict {
        if self.entries.load(Ordering::Acquire) == 0 {
            return Verdict::Allow;
        }
        let part = self.part(session).read().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = part.get(session).filter(|entry| now < entry.until) else { return Verdict::Allow };
        match &entry.standing {
            Standing::Allow => Verdict::Allow,
            Standing::Tag { value } => Verdict::Tag(value.clone()),
            Standing::Challenge => Verdict::Challenge,
            Standing::StepUp { acr_values, max_age_seconds } => {
                Verdict::StepUp { acr_values: acr_values.clone(), max_age_seconds: *max_age_seconds }
            }
            Standing::Tarpit { incident, delay_ms } => {
                Verdict::Tarpit { incident: incident.clone(), delay: Duration::from_millis(*delay_ms) }
            }
            Standing::Deny { incident } => Verdict::Deny { incident: incident.clone() },
            Standing::Throttle { requests_per_minute, burst } => {
                Verdict::Throttle(Rate { requests_per_minute: *requests_per_minute, burst: *burst })
            }
        }
    }

    /// Sets a session's standing; `Allow` removes it from the board.
    pub fn set(&self, session: SessionId, standing: Standing, until: Timestamp) {
        if standing == Standing::Allow {
            return self.forget(&session);
        }
        let mut part = self.part(&session).write().unwrap_or_else(PoisonError::into_inner);
        if part.insert(session, Entry { standing, until }).is_none() {
            self.entries.fetch_add(1, Ordering::Release);
        }
    }

    pub fn forget(&self, session: &SessionId) {
        let mut part = self.part(session).write().unwrap_or_else(PoisonError::into_inner);
        if part.remove(session).is_some() {
            self.entries.fetch_sub(1, Ordering::Release);
        }
    }

    /// Drops what has run out; the shards' tick calls it so that the board cannot grow for ever.
    pub fn sweep(&self, now: Timestamp) {
        for part in &self.parts {
            let mut part = part.write().unwrap_or_else(PoisonError::into_inner);
            let before = part.len();
            part.retain(|_, entry| now < entry.until);
            self.entries.fetch_sub(before - part.len(), Ordering::Release);
        }
    }

    pub fn len(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn part(&self, session: &SessionId) -> &RwLock<HashMap<SessionId, Entry>> {
        &self.parts[(self.hasher.hash_one(session) as usize) % PARTS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: SessionId = SessionId([7; 16]);
    const OTHER: SessionId = SessionId([8; 16]);

    #[test]
    fn a_standing_holds_for_its_session_until_its_time_ends() {
        let board = Standings::new();
        assert_eq!(board.verdict(&SESSION, Timestamp(0)), Verdict::Allow);
        board.set(SESSION, Standing::Challenge, Timestamp(100));
        assert_eq!(board.verdict(&SESSION, Timestamp(99)), Verdict::Challenge);
        assert_eq!(board.verdict(&OTHER, Timestamp(99)), Verdict::Allow);
        assert_eq!(board.verdict(&SESSION, Timestamp(100)), Verdict::Allow);
        board.sweep(Timestamp(100));
        assert!(board.is_empty());
    }

    #[test]
    fn allow_and_forget_leave_nothing_behind() {
        let board = Standings::new();
        board.set(SESSION, Standing::Deny { incident: "A".into() }, Timestamp(100));
        board.set(SESSION, Standing::Allow, Timestamp(100));
        board.forget(&OTHER);
        assert!(board.is_empty());
        assert_eq!(board.verdict(&SESSION, Timestamp(1)), Verdict::Allow);
    }
}
