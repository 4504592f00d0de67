//! Counts requests against the policy's limits: one fixed table of buckets for the whole process.
//!
//! The table's size is set at start and nothing is allocated for a request within its limits. Where
//! no place is left, the bucket that is nearest to full is forgotten: that errs in the visitor's
//! favour. Every replica counts for itself. Must not know: rules, how a refusal is answered.

use super::limits::network_of;
use crate::secret::{self, SecretError};
use gaitway_policies::engine::Mode;
use gaitway_policies::limit::{LIMITS_MAX, Limit, Per, Rate, Room};
use gaitway_policies::{PolicySet, SessionId};
use http::HeaderValue;
use metrics::counter;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::fmt::{self, Write};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::info;

/// Places in which one bucket may lie; a request looks at all of them.
const WAYS: usize = 8;
/// Seconds between two log lines about requests over a limit.
const TELL_EVERY_SECONDS: u64 = 10;
/// Limits that wait to be told of in the audit trail: those of four policies, should the file change
/// that often within a minute. Of more, only metric and log tell.
const NOTED_MAX: usize = 4 * LIMITS_MAX;
/// Name of the bucket of a throttled session in the header fields.
const THROTTLE: &str = "throttle";

pub struct Rates {
    sets: Box<[Mutex<[Slot; WAYS]>]>,
    /// Under a key made at start, so that nobody can choose addresses that meet in one set.
    hasher: SipHasher13,
    started: Instant,
    told_at: AtomicU64,
    noted: Mutex<Vec<Noted>>,
}

/// Requests over one limit that the audit trail has yet to tell of.
#[derive(Debug, PartialEq)]
pub struct Overrun {
    pub limit: String,
    pub mode: Mode,
    pub policy_version: String,
    pub requests: u64,
    /// Since the first of them.
    pub seconds: u64,
}

impl fmt::Display for Overrun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Overrun { limit, requests, seconds, .. } = self;
        let refused = match self.mode {
            Mode::Shadow => "would have refused",
            Mode::Enforce => "refused",
        };
        let plural = if *requests == 1 { "" } else { "s" };
        write!(f, "limit {limit} {refused} {requests} request{plural} within {seconds} s")
    }
}

/// What is counted for an `Overrun`, and when its limit was last told of.
#[derive(Debug)]
struct Noted {
    limit: String,
    mode: Mode,
    policy_version: String,
    requests: u64,
    since: Instant,
    told: Option<Instant>,
}

/// A bucket: whose it is, and when it will be full again in nanoseconds since the start.
#[derive(Clone, Copy, Default)]
struct Slot {
    owner: u128,
    full_at: u64,
}

/// Whose request is counted.
pub struct Requester<'r> {
    /// The session, if the caller presented one.
    pub session: Option<&'r SessionId>,
    pub address: IpAddr,
    pub route: &'r str,
}

/// What counting a request came to.
#[derive(Debug, Default, PartialEq)]
pub struct Counted {
    pub fields: Fields,
    /// The enforced limit that the request is over.
    pub over: Option<Over>,
}

#[derive(Debug, PartialEq)]
pub struct Over {
    pub limit: String,
    pub retry_after_seconds: u32,
}

/// Values of `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers); empty if no
/// enforced limit counted the request.
#[derive(Debug, Default, PartialEq)]
pub struct Fields {
    policy: String,
    state: String,
}

impl Rates {
    /// A table for at least `buckets_max` buckets, 33 bytes each.
    pub fn new(buckets_max: usize) -> Result<Rates, SecretError> {
        let sets = buckets_max.div_ceil(WAYS).max(1);
        Ok(Rates {
            sets: (0..sets).map(|_| Mutex::default()).collect(),
            hasher: SipHasher13::new_with_key(&secret::random()?),
            started: Instant::now(),
            told_at: AtomicU64::new(0),
            noted: Mutex::default(),
        })
    }

    /// Counts one request. `is_allowed` says whether an allow rule lets it through; it is only asked if
    /// a limit would not.
    pub fn count(
        &self,
        policies: &PolicySet,
        requester: &Requester<'_>,
        is_allowed: impl FnOnce() -> bool,
    ) -> Counted {
        let mut counted = Counted::default();
        let (mut ask, mut allowed) = (Some(is_allowed), false);
        for limit in policies.limits_on(requester.route) {
            let Some(owner) = self.owner(limit, requester) else { continue };
            let room = self.take(owner, limit.rate);
            if limit.mode == Mode::Enforce {
                counted.fields.add(&limit.name, limit.rate, room);
            }
            if room.admitted {
                continue;
            }
            if let Some(ask) = ask.take() {
                allowed = ask();
            }
            if allowed {
                continue;
            }
            self.tell(limit, policies.version());
            if limit.mode == Mode::Enforce {
                counted.over = Some(Over {
                    limit: limit.name.to_string(),
                    retry_after_seconds: room.retry_after_seconds,
                });
                return counted;
            }
        }
        counted
    }

    /// Counts one request of a session that a rule throttles.
    pub fn throttle(&self, session: &SessionId, rate: Rate) -> Counted {
        let mut hasher = self.hasher;
        (THROTTLE, rate, session).hash(&mut hasher);
        let room = self.take(hasher.finish128().as_u128(), rate);
        let mut counted = Counted::default();
        counted.fields.add(THROTTLE, rate, room);
        if !room.admitted {
            let limit = THROTTLE.to_owned();
            counted.over = Some(Over { limit, retry_after_seconds: room.retry_after_seconds });
        }
        counted
    }

    /// Whose bucket the limit takes from; `None` if the request has no such owner. A limit that was
    /// given another rate begins with full buckets.
    fn owner(&self, limit: &Limit, requester: &Requester<'_>) -> Option<u128> {
        let mut hasher = self.hasher;
        (&limit.name, limit.per, limit.rate).hash(&mut hasher);
        match limit.per {
            Per::Session => requester.session?.hash(&mut hasher),
            Per::Address => network_of(requester.address, limit.ipv6_prefix).hash(&mut hasher),
            Per::Route => requester.route.hash(&mut hasher),
        }
        Some(hasher.finish128().as_u128())
    }

    fn take(&self, owner: u128, rate: Rate) -> Room {
        let now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let set = &self.sets[(owner % self.sets.len() as u128) as usize];
        let mut slots = set.lock().unwrap_or_else(PoisonError::into_inner);
        let place = slots.iter().position(|slot| slot.owner == owner).unwrap_or_else(|| {
            // A bucket that is full again carries no memory; else the one that is nearest to it goes.
            let oldest = (0..WAYS).min_by_key(|place| slots[*place].full_at).unwrap_or(0);
            if slots[oldest].full_at > now {
                counter!("gaitway_rate_buckets_forgotten_total").increment(1);
            }
            slots[oldest] = Slot { owner, full_at: 0 };
            oldest
        });
        rate.take(&mut slots[place].full_at, now)
    }

    /// What limits did, or would have done, and was not told yet; each limit at most once every
    /// `every`. Says of nobody whose requests they were.
    pub fn take_overruns(&self, every: Duration) -> Vec<Overrun> {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.retain(|n| n.requests > 0 || n.told.is_some_and(|told| told.elapsed() < every));
        let due = |n: &&mut Noted| n.requests > 0 && n.told.is_none_or(|told| told.elapsed() >= every);
        let take = |n: &mut Noted| {
            n.told = Some(Instant::now());
            Overrun {
                limit: n.limit.clone(),
                mode: n.mode,
                policy_version: n.policy_version.clone(),
                requests: std::mem::take(&mut n.requests),
                seconds: n.since.elapsed().as_secs().max(1),
            }
        };
        noted.iter_mut().filter(due).map(take).collect()
    }

    fn note(&self, limit: &Limit, policy_version: &str) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let known = noted
            .iter_mut()
            .find(|n| n.mode == limit.mode && *n.limit == *limit.name && n.policy_version == policy_version);
        if let Some(known) = known {
            if known.requests == 0 {
                known.since = Instant::now();
            }
            known.requests += 1;
        } else if noted.len() < NOTED_MAX {
            noted.push(Noted {
                limit: limit.name.to_string(),
                mode: limit.mode,
                policy_version: policy_version.to_owned(),
                requests: 1,
                since: Instant::now(),
                told: None,
            });
        }
    }

    /// Metric, a count for the audit trail and, now and then, a log line. None says whose request it was.
    fn tell(&self, limit: &Limit, policy_version: &str) {
        self.note(limit, policy_version);
        let mode = match limit.mode {
            Mode::Shadow => "shadow",
            Mode::Enforce => "enforce",
        };
        counter!("gaitway_rate_limited_total", "limit" => limit.name.to_string(), "mode" => mode)
            .increment(1);
        // Counted from 1, so that the first one is told.
        let now = self.started.elapsed().as_secs() + TELL_EVERY_SECONDS;
        let before = self.told_at.load(Ordering::Relaxed);
        if now - before.min(now) >= TELL_EVERY_SECONDS
            && self.told_at.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            info!(
                limit.name = %limit.name,
                limit.mode = mode,
                policy.version = policy_version,
                "requests came over a rate limit"
            );
        }
    }
}

impl Fields {
    /// Quota and window are the bucket's size and the time it takes to fill.
    fn add(&mut self, name: &str, rate: Rate, room: Room) {
        let comma = if self.policy.is_empty() { "" } else { ", " };
        // Names are letters, digits and a few marks: nothing in them needs quoting. Writing to a String
        // cannot fail.
        let _ = write!(self.policy, "{comma}\"{name}\";q={};w={}", rate.burst, rate.window_seconds());
        let _ = write!(self.state, "{comma}\"{name}\";r={};t={}", room.remaining, room.full_in_seconds);
    }

    /// Both fields with their names; none if nothing was counted. To be added beside those of the app.
    pub fn into_pairs(self) -> impl Iterator<Item = (&'static str, HeaderValue)> {
        [("ratelimit-policy", self.policy), ("ratelimit", self.state)]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .filter_map(|(name, value)| Some((name, HeaderValue::from_str(&value).ok()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "
mode: enforce
rules: []
routes: [{name: login, match: {path: /login}}]
limits:
  - {name: person, per: session, requests_per_minute: 60, burst: 3}
  - {name: network, per: address, routes: [login], requests_per_minute: 30, burst: 2}
  - {name: all, per: route, requests_per_minute: 600, burst: 4}
  - {name: watched, per: address, requests_per_minute: 1, burst: 1, mode: shadow}
";
    const ALICE: SessionId = SessionId([1; 16]);
    const BOB: SessionId = SessionId([2; 16]);

    fn policies() -> PolicySet {
        PolicySet::parse("p", POLICY).unwrap()
    }

    fn requester<'r>(session: Option<&'r SessionId>, address: &str, route: &'r str) -> Requester<'r> {
        Requester { session, address: address.parse().unwrap(), route }
    }

    /// The limit that each of `times` requests is over; "" for one that passes.
    fn over(rates: &Rates, requester: &Requester<'_>, times: usize) -> Vec<String> {
        let limit = |counted: Counted| counted.over.map(|over| over.limit).unwrap_or_default();
        (0..times).map(|_| limit(rates.count(&policies(), requester, || false))).collect()
    }

    #[test]
    fn sessions_addresses_and_routes_are_counted_apart() {
        let rates = Rates::new(1_024).unwrap();
        let alice = requester(Some(&ALICE), "192.0.2.1", "");
        assert_eq!(over(&rates, &alice, 4), ["", "", "", "person"]);
        // One request is left of the route's four.
        let bob = requester(Some(&BOB), "192.0.2.1", "");
        assert_eq!(over(&rates, &bob, 2), ["", "all"]);
        // Another route has its own bucket, and one more limit.
        let stranger = requester(None, "192.0.2.1", "login");
        assert_eq!(over(&rates, &stranger, 3), ["", "", "network"]);
        // What the address was refused did not come out of the bucket that everybody shares.
        let other = requester(None, "192.0.2.2", "login");
        assert_eq!(over(&rates, &other, 3), ["", "", "network"]);
    }

    #[test]
    fn an_ipv6_customer_is_one_address_and_a_mapped_ipv4_address_is_itself() {
        let rates = Rates::new(1_024).unwrap();
        let from = |address: &str| over(&rates, &requester(None, address, "login"), 1).remove(0);
        assert_eq!([from("2001:db8:0:1::1"), from("2001:db8:0:1::2")], ["", ""]);
        assert_eq!(from("2001:db8:0:1:ffff::3"), "network");
        let rates = Rates::new(1_024).unwrap();
        let from = |address: &str| over(&rates, &requester(None, address, "login"), 1).remove(0);
        assert_eq!([from("192.0.2.1"), from("::ffff:192.0.2.1"), from("192.0.2.1")], ["", "", "network"]);
        assert_eq!(from("192.0.2.2"), "");
    }

    #[test]
    fn the_fields_name_enforced_limits_only() {
        let rates = Rates::new(1_024).unwrap();
        let counted = rates.count(&policies(), &requester(Some(&ALICE), "192.0.2.1", ""), || false);
        assert_eq!(counted.fields.policy, "\"person\";q=3;w=3, \"all\";q=4;w=1");
        assert_eq!(counted.fields.state, "\"person\";r=2;t=1, \"all\";r=3;t=1");
        let nothing = PolicySet::parse("p", "rules: []").unwrap();
        let counted = rates.count(&nothing, &requester(None, "192.0.2.1", ""), || false);
        assert_eq!(counted, Counted::default());
    }

    #[test]
    fn an_allow_rule_is_only_asked_for_and_then_wins() {
        let rates = Rates::new(1_024).unwrap();
        let policies = PolicySet::parse(
            "p",
            "mode: enforce\nrules: []\nlimits: [{name: one, per: address, requests_per_minute: 1, burst: 1}]",
        )
        .unwrap();
        let alice = requester(None, "192.0.2.1", "");
        let mut asked = 0;
        for _ in 0..3 {
            let is_allowed = || {
                asked += 1;
                true
            };
            assert_eq!(rates.count(&policies, &alice, is_allowed).over, None);
        }
        assert_eq!(asked, 2, "not for the one that fits");
        assert!(rates.count(&policies, &alice, || false).over.is_some());
    }

    #[test]
    fn what_limits_did_is_told_once_in_a_while_and_bounded() {
        let rates = Rates::new(1_024).unwrap();
        let watched = |policies: &PolicySet| {
            for _ in 0..3 {
                rates.count(policies, &requester(None, "192.0.2.1", ""), || false);
            }
        };
        let text = "rules: []\nlimits: [{name: watched, per: address, requests_per_minute: 1, burst: 1}]\n";
        let policies = PolicySet::parse("p", text).unwrap();
        watched(&policies);
        let minute = Duration::from_secs(60);
        let told = rates.take_overruns(minute);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].to_string(), "limit watched would have refused 2 requests within 1 s");
        assert_eq!(told[0].policy_version, policies.version());
        watched(&policies);
        assert_eq!(rates.take_overruns(minute), [], "told within this minute");
        assert!(rates.take_overruns(Duration::ZERO).iter().any(|overrun| overrun.requests == 3));
        // However often the file changes.
        for version in 0..2 * NOTED_MAX {
            watched(&PolicySet::parse("p", &format!("{text}# {version}")).unwrap());
        }
        assert_eq!(rates.noted.lock().unwrap().len(), NOTED_MAX);
    }

    #[test]
    fn a_full_table_forgets_the_fullest_bucket_and_never_grows() {
        let rates = Rates::new(WAYS).unwrap();
        assert_eq!(rates.sets.len(), 1);
        let rate = Rate { requests_per_minute: 1, burst: 2 };
        // The first owner has nothing left, the others one request each.
        for owner in 1..=8_u128 {
            rates.take(owner, rate);
        }
        rates.take(1, rate);
        assert!(!rates.take(1, rate).admitted);
        for owner in 9..100_u128 {
            assert!(rates.take(owner, rate).admitted);
        }
        assert!(!rates.take(1, rate).admitted, "the one in debt is remembered longest");
    }

    #[test]
    fn many_threads_together_get_no_more_than_the_burst() {
        let rates = Rates::new(1_024).unwrap();
        let rate = Rate { requests_per_minute: 1, burst: 500 };
        let passed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..1_000).filter(|_| rates.take(7, rate).admitted).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(passed, 500);
    }

    #[test]
    fn a_throttled_session_has_a_bucket_of_its_own() {
        let rates = Rates::new(1_024).unwrap();
        let rate = Rate { requests_per_minute: 60, burst: 1 };
        assert_eq!(rates.throttle(&ALICE, rate).over, None);
        let over = Over { limit: "throttle".into(), retry_after_seconds: 1 };
        assert_eq!(rates.throttle(&ALICE, rate).over, Some(over));
        assert_eq!(rates.throttle(&BOB, rate).over, None);
    }
}
