//! The board the request path reads: what to do with a session until told otherwise.
//!
//! Written by shards only. Reading costs one atomic load while nobody stands out.

use gaitway_models::Timestamp;
use gaitway_policies::{SessionId, Standing};
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

/// Independent locks, so that one shard's write seldom meets a request.
const PARTS: usize = 16;

/// What the request path does with one request now.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Allow,
    /// Pass, with a header to the app.
    Tag(String),
    /// Too fast; try again after so many seconds.
    Throttled {
        retry_after_seconds: u32,
    },
    Challenge,
    Deny {
        incident: String,
    },
}

struct Entry {
    standing: Standing,
    until: Timestamp,
    bucket: Mutex<Bucket>,
}

/// Token bucket of one throttled session.
struct Bucket {
    tokens: f64,
    filled_at: Timestamp,
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

    /// Whether the session may pass at `now`; takes a token if it is throttled.
    pub fn verdict(&self, session: &SessionId, now: Timestamp) -> Verdict {
        if self.entries.load(Ordering::Acquire) == 0 {
            return Verdict::Allow;
        }
        let part = self.part(session).read().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = part.get(session).filter(|entry| now < entry.until) else { return Verdict::Allow };
        match &entry.standing {
            Standing::Allow => Verdict::Allow,
            Standing::Tag { value } => Verdict::Tag(value.clone()),
            // Until an identity provider is connected, proving presence is the step up there is.
            Standing::Challenge | Standing::StepUp { .. } => Verdict::Challenge,
            Standing::Deny { incident } => Verdict::Deny { incident: incident.clone() },
            Standing::Throttle { requests_per_minute, burst } => {
                let mut bucket = entry.bucket.lock().unwrap_or_else(PoisonError::into_inner);
                bucket.take(now, f64::from(*requests_per_minute) / 60.0, f64::from(*burst))
            }
        }
    }

    /// Sets a session's standing; `Allow` removes it from the board.
    pub fn set(&self, session: SessionId, standing: Standing, until: Timestamp, now: Timestamp) {
        if standing == Standing::Allow {
            return self.forget(&session);
        }
        let burst = if let Standing::Throttle { burst, .. } = standing { f64::from(burst) } else { 0.0 };
        let bucket = Mutex::new(Bucket { tokens: burst, filled_at: now });
        let mut part = self.part(&session).write().unwrap_or_else(PoisonError::into_inner);
        if part.insert(session, Entry { standing, until, bucket }).is_none() {
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

impl Bucket {
    fn take(&mut self, now: Timestamp, per_second: f64, burst: f64) -> Verdict {
        let passed = now.since(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + passed * per_second).min(burst.max(1.0));
        self.filled_at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Verdict::Allow;
        }
        let wait = ((1.0 - self.tokens) / per_second.max(1e-3)).ceil();
        Verdict::Throttled { retry_after_seconds: wait.clamp(1.0, 3600.0) as u32 }
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
        board.set(SESSION, Standing::Challenge, Timestamp(100), Timestamp(0));
        assert_eq!(board.verdict(&SESSION, Timestamp(99)), Verdict::Challenge);
        assert_eq!(board.verdict(&OTHER, Timestamp(99)), Verdict::Allow);
        assert_eq!(board.verdict(&SESSION, Timestamp(100)), Verdict::Allow);
        board.sweep(Timestamp(100));
        assert!(board.is_empty());
    }

    #[test]
    fn allow_and_forget_leave_nothing_behind() {
        let board = Standings::new();
        board.set(SESSION, Standing::Deny { incident: "A".into() }, Timestamp(100), Timestamp(0));
        board.set(SESSION, Standing::Allow, Timestamp(100), Timestamp(0));
        board.forget(&OTHER);
        assert!(board.is_empty());
        assert_eq!(board.verdict(&SESSION, Timestamp(1)), Verdict::Allow);
    }

    #[test]
    fn a_throttled_session_gets_its_burst_then_its_rate() {
        let board = Standings::new();
        let throttle = Standing::Throttle { requests_per_minute: 60, burst: 2 };
        board.set(SESSION, throttle, Timestamp(100_000), Timestamp(0));
        assert_eq!(board.verdict(&SESSION, Timestamp(0)), Verdict::Allow);
        assert_eq!(board.verdict(&SESSION, Timestamp(0)), Verdict::Allow);
        assert_eq!(board.verdict(&SESSION, Timestamp(0)), Verdict::Throttled { retry_after_seconds: 1 });
        assert_eq!(board.verdict(&SESSION, Timestamp(1000)), Verdict::Allow);
        assert_eq!(board.verdict(&SESSION, Timestamp(1500)), Verdict::Throttled { retry_after_seconds: 1 });
    }
}
