//! The false-logout budget and its circuit breaker.
//!
//! No model or rule mistake may log out a company: once a cap would be passed, nothing more is
//! enforced until somebody resets it by hand. One ledger serves all shards of a process. A single
//! account's daily cap protects that account only; otherwise one bot that logs in again and again
//! could switch protection off for everybody. Must not know: rules, conditions, effects.

use crate::policy::Budget;
use gaitway_models::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most accounts whose logouts of the day are remembered; when full, further accounts are spared.
pub const ACCOUNTS_MAX: usize = 100_000;
/// Most logouts remembered for the hour: an hour at the highest rate a policy can grant.
pub const LOGOUTS_MAX: usize = 60 * crate::policy::LOGOUTS_PER_MINUTE_MAX as usize;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// Which cap was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cap {
    PerMinute,
    ShareOfSessions,
    PerUserPerDay,
}

/// The answer to "may one more person be shut out?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    Granted,
    /// The breaker has been open since before; nothing is enforced.
    Open,
    /// This request has opened the breaker; say so loudly, once.
    Tripped {
        cap: Cap,
        allowed: u32,
    },
    /// Only this account is spared for the day. `first` is true the first time.
    AccountSpared {
        allowed: u32,
        first: bool,
    },
}

/// One ledger for all shards of a process; clones share it.
#[derive(Clone, Debug, Default)]
pub struct SharedBudget {
    ledger: Arc<Mutex<Ledger>>,
}

#[derive(Debug, Default)]
struct Ledger {
    sessions: usize,
    /// Times of the logouts of the last hour, in the order they were granted.
    granted: VecDeque<Timestamp>,
    accounts: BTreeMap<[u8; 16], Account>,
    tripped: Option<(Timestamp, Cap)>,
}

#[derive(Debug, Default)]
struct Account {
    /// Logouts of the last day, at most as many as a policy allows one account.
    granted: VecDeque<Timestamp>,
    told: bool,
}

impl SharedBudget {
    pub fn new() -> SharedBudget {
        SharedBudget::default()
    }

    /// Since when and by which cap enforcement is off.
    pub fn tripped(&self) -> Option<(Timestamp, Cap)> {
        self.ledger().tripped
    }

    /// Active sessions of all shards.
    pub fn sessions(&self) -> usize {
        self.ledger().sessions
    }

    /// Logouts granted within the hour before `now`.
    pub fn granted_within_hour(&self, now: Timestamp) -> usize {
        within(&self.ledger().granted, now, HOUR)
    }

    /// Opens the breaker as it stood before a restart: only a person closes it.
    pub fn restore(&self, since: Timestamp, cap: Cap) {
        self.ledger().tripped = Some((since, cap));
    }

    pub(crate) fn session_opened(&self) {
        self.ledger().sessions += 1;
    }

    pub(crate) fn sessions_closed(&self, count: usize) {
        let mut ledger = self.ledger();
        debug_assert!(ledger.sessions >= count, "more sessions closed than opened");
        ledger.sessions = ledger.sessions.saturating_sub(count);
    }

    /// Closes the breaker. Counts start anew: whoever resets has looked at what was counted.
    pub(crate) fn reset(&self) {
        let mut ledger = self.ledger();
        ledger.tripped = None;
        ledger.granted.clear();
        ledger.accounts.clear();
    }

    /// Asks for one logout of `account`; a grant is spent at once.
    pub(crate) fn ask(&self, now: Timestamp, budget: &Budget, account: [u8; 16]) -> Grant {
        let mut ledger = self.ledger();
        if ledger.tripped.is_some() {
            return Grant::Open;
        }
        if let Some(spared) = ledger.spare(now, budget, account) {
            return spared;
        }
        // A time that lies ahead (the clock was set back) still counts: the cautious reading.
        while ledger.granted.front().is_some_and(|at| now.since(*at) >= HOUR) {
            ledger.granted.pop_front();
        }
        let per_minute = budget.logouts_per_minute_max;
        // At least one: a share of a handful of sessions would otherwise forbid all enforcement.
        let share = ((ledger.sessions as f64 * budget.logouts_share_max) as u32).max(1);
        let cap = if within(&ledger.granted, now, MINUTE) >= per_minute as usize {
            Some((Cap::PerMinute, per_minute))
        } else if ledger.granted.len() >= (share as usize).min(LOGOUTS_MAX) {
            Some((Cap::ShareOfSessions, share))
        } else {
            None
        };
        if let Some((cap, allowed)) = cap {
            ledger.tripped = Some((now, cap));
            return Grant::Tripped { cap, allowed };
        }
        ledger.granted.push_back(now);
        ledger.accounts.entry(account).or_default().granted.push_back(now);
        Grant::Granted
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Every change below is complete in itself, so a poisoned ledger is still a true one.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    fn spare(&mut self, now: Timestamp, budget: &Budget, account: [u8; 16]) -> Option<Grant> {
        let allowed = budget.logouts_per_user_per_day_max;
        if self.accounts.len() >= ACCOUNTS_MAX && !self.accounts.contains_key(&account) {
            self.accounts.retain(|_, known| known.granted.back().is_some_and(|at| now.since(*at) < DAY));
            if self.accounts.len() >= ACCOUNTS_MAX {
                return Some(Grant::AccountSpared { allowed, first: false });
            }
        }
        let Some(known) = self.accounts.get_mut(&account) else {
            return (allowed == 0).then_some(Grant::AccountSpared { allowed, first: false });
        };
        while known.granted.front().is_some_and(|at| now.since(*at) >= DAY) {
            known.granted.pop_front();
            known.told = false;
        }
        if known.granted.len() < allowed as usize {
            return None;
        }
        let first = !std::mem::replace(&mut known.told, true);
        Some(Grant::AccountSpared { allowed, first })
    }
}

fn within(granted: &VecDeque<Timestamp>, now: Timestamp, span: Duration) -> usize {
    granted.iter().filter(|at| now.since(**at) < span).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget =
        Budget { logouts_per_minute_max: 2, logouts_share_max: 0.1, logouts_per_user_per_day_max: 1 };

    fn ledger(sessions: usize) -> SharedBudget {
        let budget = SharedBudget::new();
        (0..sessions).for_each(|_| budget.session_opened());
        budget
    }

    fn account(n: u8) -> [u8; 16] {
        [n; 16]
    }

    #[test]
    fn the_minute_cap_opens_the_breaker_until_reset() {
        let budget = ledger(1000);
        assert_eq!(budget.ask(Timestamp(0), &BUDGET, account(1)), Grant::Granted);
        assert_eq!(budget.ask(Timestamp(1), &BUDGET, account(2)), Grant::Granted);
        assert_eq!(
            budget.ask(Timestamp(2), &BUDGET, account(3)),
            Grant::Tripped { cap: Cap::PerMinute, allowed: 2 }
        );
        assert_eq!(budget.ask(Timestamp(DAY.as_millis() as u64 * 9), &BUDGET, account(4)), Grant::Open);
        budget.reset();
        assert_eq!(budget.ask(Timestamp(3), &BUDGET, account(5)), Grant::Granted);
    }

    #[test]
    fn a_breaker_that_was_open_before_a_restart_stays_open() {
        let budget = ledger(1000);
        budget.restore(Timestamp(5), Cap::ShareOfSessions);
        assert_eq!(budget.tripped(), Some((Timestamp(5), Cap::ShareOfSessions)));
        assert_eq!(budget.ask(Timestamp(6), &BUDGET, account(1)), Grant::Open);
        budget.reset();
        assert_eq!(budget.ask(Timestamp(7), &BUDGET, account(1)), Grant::Granted);
    }

    #[test]
    fn the_share_counts_over_an_hour_and_grants_at_least_one() {
        let budget = ledger(10);
        assert_eq!(budget.ask(Timestamp(0), &BUDGET, account(1)), Grant::Granted);
        let later = Timestamp(30 * 60_000);
        assert_eq!(
            budget.ask(later, &BUDGET, account(2)),
            Grant::Tripped { cap: Cap::ShareOfSessions, allowed: 1 }
        );
        let budget = ledger(1);
        assert_eq!(budget.ask(Timestamp(0), &BUDGET, account(1)), Grant::Granted);
        assert_eq!(budget.ask(Timestamp(60 * 60_000), &BUDGET, account(2)), Grant::Granted);
    }

    #[test]
    fn one_account_that_returns_again_and_again_does_not_switch_protection_off() {
        let budget = ledger(1000);
        assert_eq!(budget.ask(Timestamp(0), &BUDGET, account(1)), Grant::Granted);
        for (attempt, first) in [(1, true), (2, false), (3, false)] {
            assert_eq!(
                budget.ask(Timestamp(attempt), &BUDGET, account(1)),
                Grant::AccountSpared { allowed: 1, first }
            );
        }
        assert_eq!(budget.tripped(), None);
        assert_eq!(budget.ask(Timestamp(86_400_000), &BUDGET, account(1)), Grant::Granted);
    }

    #[test]
    fn a_clock_set_back_forgets_no_logout() {
        let budget = ledger(1000);
        let noon = Timestamp(12 * 3_600_000);
        assert_eq!(budget.ask(noon, &BUDGET, account(1)), Grant::Granted);
        assert_eq!(budget.ask(noon, &BUDGET, account(2)), Grant::Granted);
        assert!(matches!(budget.ask(Timestamp(0), &BUDGET, account(3)), Grant::Tripped { .. }));
    }
}
