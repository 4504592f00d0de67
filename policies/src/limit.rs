//! Rate limits: whose requests are counted together, how many there may be, and one bucket's arithmetic.
//!
//! A bucket is a single number, the moment at which it will be full again (the generic cell rate
//! algorithm of ITU-T I.371): nothing has to be refilled by a timer, and a forgotten bucket is a full
//! one. Must not know: where buckets are kept, what a refused request gets to see.

use crate::engine::Mode;
use crate::route::DEFAULT_ROUTE;
use std::sync::Arc;

/// Most limits in a policy: each that applies is counted on every request.
pub const LIMITS_MAX: usize = 16;
/// Largest rate and largest burst.
pub const REQUESTS_MAX: u32 = 1_000_000;

/// The part of an IPv6 address that one customer is usually given.
pub const IPV6_PREFIX: u8 = 64;

const MINUTE_NS: u64 = 60_000_000_000;

/// One row of the policy's `limits`.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    pub name: Arc<str>,
    pub per: Per,
    pub rate: Rate,
    pub mode: Mode,
    /// Names of the routes it covers; `None`: all of them.
    pub routes: Option<Vec<String>>,
    /// Bits of an IPv6 address that count as one address.
    pub ipv6_prefix: u8,
}

/// Whose requests share a bucket. In this order they are counted: somebody who is refused as one
/// session or address must not use up what everybody shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Per {
    Session,
    Address,
    /// All requests on one route together.
    Route,
}

/// A token bucket's size and speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// At least 1.
    pub requests_per_minute: u32,
    /// Requests that may come at once; at least 1.
    pub burst: u32,
}

/// What one request found in its bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub admitted: bool,
    /// Requests that may follow at once.
    pub remaining: u32,
    /// Seconds until the bucket is full again, rounded up.
    pub full_in_seconds: u32,
    /// Seconds until one more request fits, rounded up; 0 if one does now.
    pub retry_after_seconds: u32,
}

impl Limit {
    /// Whether requests on `route` are counted; "" is the default route, as in facts.
    pub fn covers(&self, route: &str) -> bool {
        let route = if route.is_empty() { DEFAULT_ROUTE } else { route };
        self.routes.as_ref().is_none_or(|routes| routes.iter().any(|name| name == route))
    }

    /// The limit in words, for comparing two policies.
    pub fn sentence(&self) -> String {
        let per = match self.per {
            Per::Session => "a session".to_owned(),
            Per::Address if self.ipv6_prefix == IPV6_PREFIX => "an address".into(),
            Per::Address => format!("an address (IPv6 by /{})", self.ipv6_prefix),
            Per::Route => "a route".into(),
        };
        let routes = match &self.routes {
            None => String::new(),
            Some(routes) => format!(", on {}", routes.join(" and ")),
        };
        let mode = if self.mode == Mode::Shadow { "shadow" } else { "enforce" };
        let Rate { requests_per_minute, burst } = self.rate;
        format!("{requests_per_minute} a minute for {per}, {burst} at once{routes}, {mode}")
    }
}

impl Rate {
    /// Takes one request out of the bucket that is full again at `full_at`, if there is one in it. Times
    /// are nanoseconds of one clock that never goes back.
    pub fn take(self, full_at: &mut u64, now: u64) -> Room {
        let one = MINUTE_NS / u64::from(self.requests_per_minute.max(1));
        let all = one.saturating_mul(u64::from(self.burst.max(1)));
        let next = (*full_at).max(now).saturating_add(one);
        let admitted = next - now <= all;
        if admitted {
            *full_at = next;
        }
        let missing = full_at.saturating_sub(now);
        let over = missing.saturating_add(one).saturating_sub(all);
        Room {
            admitted,
            remaining: u32::try_from(all.saturating_sub(missing) / one).unwrap_or(u32::MAX),
            full_in_seconds: seconds(missing),
            retry_after_seconds: seconds(over),
        }
    }

    /// Seconds in which an empty bucket fills, rounded up: the window of the `RateLimit-Policy` field.
    pub fn window_seconds(self) -> u32 {
        let seconds = (u64::from(self.burst) * 60).div_ceil(u64::from(self.requests_per_minute.max(1)));
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }
}

fn seconds(ns: u64) -> u32 {
    u32::try_from(ns.div_ceil(1_000_000_000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate_does() {
        let rate = Rate { requests_per_minute: 60, burst: 3 };
        let mut full_at = 0;
        let remaining: Vec<u32> = (0..3).map(|_| rate.take(&mut full_at, 0).remaining).collect();
        assert_eq!(remaining, [2, 1, 0]);
        let refused = rate.take(&mut full_at, 0);
        assert_eq!(
            refused,
            Room { admitted: false, remaining: 0, full_in_seconds: 3, retry_after_seconds: 1 }
        );
        assert!(!rate.take(&mut full_at, SECOND - 1).admitted, "a moment too early");
        assert!(rate.take(&mut full_at, SECOND).admitted);
        assert!(!rate.take(&mut full_at, SECOND).admitted);
        // After a long pause there is one burst and not more.
        let later = (0..5).filter(|_| rate.take(&mut full_at, 3_600 * SECOND).admitted).count();
        assert_eq!(later, 3);
    }

    #[test]
    fn refused_requests_do_not_push_the_next_one_back() {
        let rate = Rate { requests_per_minute: 6, burst: 1 };
        let mut full_at = 0;
        assert!(rate.take(&mut full_at, 0).admitted);
        for n in 0..1_000 {
            assert!(!rate.take(&mut full_at, n).admitted);
        }
        assert!(rate.take(&mut full_at, 10 * SECOND).admitted);
    }

    #[test]
    fn no_more_than_burst_and_rate_pass_however_requests_come() {
        for (rpm, burst) in [(1, 1), (7, 3), (60, 20), (599, 100), (REQUESTS_MAX, 5), (3, REQUESTS_MAX)] {
            let rate = Rate { requests_per_minute: rpm, burst };
            let (mut full_at, mut now, mut passed) = (0, 0, 0u64);
            // A fixed, uneven stream of arrivals over some minutes.
            for n in 0..20_000u64 {
                now += (n * 7_919 % 40) * 1_000_000;
                let room = rate.take(&mut full_at, now);
                passed += u64::from(room.admitted);
                assert!(room.remaining <= burst && room.full_in_seconds <= rate.window_seconds());
                assert!(room.admitted || room.retry_after_seconds > 0, "{room:?}");
            }
            let most = u64::from(burst) + now * u64::from(rpm) / MINUTE_NS + 1;
            assert!(passed <= most, "{passed} of at most {most} at {rpm}/min, burst {burst}");
        }
    }

    #[test]
    fn the_ends_of_the_range_do_not_overflow() {
        let rate = Rate { requests_per_minute: 1, burst: REQUESTS_MAX };
        let mut full_at = 0;
        assert!(rate.take(&mut full_at, u64::MAX - 1).admitted);
        let mut full_at = u64::MAX;
        assert!(!Rate { requests_per_minute: 1, burst: 1 }.take(&mut full_at, 0).admitted);
        assert_eq!(rate.window_seconds(), 60_000_000);
    }
}
