//! How many messages a sink may send in an hour, and when the rest go out as one.
//!
//! Pure: the time is an argument. Must not know: stores, sinks, incidents.

use gaitway_models::Timestamp;
use std::collections::VecDeque;
use std::time::Duration;

/// A sliding hour of deliveries. The last one of the hour is kept for a digest, so that a burst ends
/// with a mail that names the rest of it.
pub(super) struct Budget {
    per_hour_max: Option<usize>,
    hour: Duration,
    collect: Duration,
    spent: VecDeque<Timestamp>,
    collecting_since: Option<Timestamp>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// One message for each.
    Each,
    /// One message for all.
    Together,
    /// None before this moment.
    Wait(Timestamp),
}

impl Budget {
    pub(super) fn new(per_hour_max: Option<u32>, hour: Duration, collect: Duration) -> Budget {
        let per_hour_max = per_hour_max.map(|max| max.max(1) as usize);
        Budget { per_hour_max, hour, collect, spent: VecDeque::new(), collecting_since: None }
    }

    /// What to do with `due` incidents, at least one.
    pub(super) fn plan(&mut self, now: Timestamp, due: usize) -> Plan {
        let Some(per_hour_max) = self.per_hour_max else { return Plan::Each };
        while self.spent.front().is_some_and(|&at| at.plus(self.hour) <= now) {
            self.spent.pop_front();
        }
        match per_hour_max.saturating_sub(self.spent.len()) {
            0 => Plan::Wait(self.spent.front().map_or(now, |at| at.plus(self.hour))),
            1 => {
                let since = *self.collecting_since.get_or_insert(now);
                let until = since.plus(self.collect);
                if until <= now { Plan::Together } else { Plan::Wait(until) }
            }
            left if due < left => Plan::Each,
            _ => Plan::Together,
        }
    }

    /// Counts messages that were delivered.
    pub(super) fn spend(&mut self, now: Timestamp, messages: usize) {
        if self.per_hour_max.is_some() && messages > 0 {
            self.spent.extend(std::iter::repeat_n(now, messages));
            self.collecting_since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp(1_000_000);

    fn seconds(seconds: u64) -> Timestamp {
        START.plus(Duration::from_secs(seconds))
    }

    fn budget(per_hour_max: u32) -> Budget {
        Budget::new(Some(per_hour_max), Duration::from_secs(3600), Duration::from_secs(60))
    }

    #[test]
    fn without_a_limit_every_incident_has_its_message() {
        let mut budget = Budget::new(None, Duration::from_secs(3600), Duration::from_secs(60));
        budget.spend(START, 10_000);
        assert_eq!(budget.plan(START, 10_000), Plan::Each);
    }

    #[test]
    fn single_messages_leave_one_for_the_digest() {
        let mut budget = budget(4);
        for second in 0..3 {
            assert_eq!(budget.plan(seconds(second), 1), Plan::Each);
            budget.spend(seconds(second), 1);
        }
        assert_eq!(budget.plan(seconds(3), 1), Plan::Wait(seconds(63)), "collects for a minute");
        assert_eq!(budget.plan(seconds(40), 9), Plan::Wait(seconds(63)), "from the first that waits");
        assert_eq!(budget.plan(seconds(63), 9), Plan::Together);
        budget.spend(seconds(63), 1);
        assert_eq!(budget.plan(seconds(64), 1), Plan::Wait(seconds(3600)), "the hour is used up");
        assert_eq!(budget.plan(seconds(3600), 500), Plan::Wait(seconds(3660)), "the first slot collects");
        assert_eq!(budget.plan(seconds(3660), 500), Plan::Together);
    }

    #[test]
    fn a_burst_goes_out_as_one_at_once() {
        assert_eq!(budget(10).plan(START, 500), Plan::Together);
        assert_eq!(budget(10).plan(START, 9), Plan::Each);
        assert_eq!(budget(10).plan(START, 10), Plan::Together);
    }

    #[test]
    fn a_limit_of_one_collects() {
        let mut budget = budget(1);
        assert_eq!(budget.plan(START, 1), Plan::Wait(seconds(60)));
        assert_eq!(budget.plan(seconds(60), 5), Plan::Together);
    }

    #[test]
    fn no_hour_ever_has_more_than_the_limit() {
        for per_hour_max in [1, 2, 3, 7, 60] {
            let mut budget = budget(per_hour_max);
            let (mut sent, mut due) = (Vec::new(), 0);
            for second in 0..4 * 3600 {
                due += usize::from(second % 5 == 0);
                if due == 0 {
                    continue;
                }
                let messages = match budget.plan(seconds(second), due) {
                    Plan::Each => due,
                    Plan::Together => 1,
                    Plan::Wait(until) => {
                        assert!(until > seconds(second), "waiting ends in the future");
                        continue;
                    }
                };
                budget.spend(seconds(second), messages);
                sent.extend(std::iter::repeat_n(second, messages));
                due = 0;
            }
            for &from in &sent {
                let hour = sent.iter().filter(|&&at| (from..from + 3600).contains(&at)).count();
                assert!(hour <= per_hour_max as usize, "{hour} of {per_hour_max} from second {from}");
            }
            assert!(sent.len() >= 4, "silence for an hour");
        }
    }
}
