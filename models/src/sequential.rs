//! Evidence over time: a ledger that sums what windows say, and thresholds learnt from whole sessions.
//!
//! Windows of one session resemble each other, so no bound computed as if they were independent holds
//! (with correlation 0.6 a promised 1 false alarm in 1,000 h becomes 500). The threshold therefore
//! comes from the largest value the ledger reached in each of n human sessions: exceeding the k-th
//! largest has probability at most k/(n+1), whatever the dependence within a session.
//! Must not know: features, models.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most a single window may add or take, in nats: no single window can log anyone out.
pub const WINDOW_NATS_MAX: f32 = 2.0;
/// A threshold is never lower than this, in nats: it takes at least three windows to reach.
pub const THRESHOLD_NATS_MIN: f32 = 6.0;

/// Page's CUSUM step on a log-likelihood ratio: adds it, clipped, and starts anew at zero, so that a
/// session taken over late is seen as soon as one that was a bot from the start.
pub fn cusum(evidence: f32, log_ratio: f32) -> f32 {
    if !log_ratio.is_finite() {
        return evidence;
    }
    (evidence + log_ratio.clamp(-WINDOW_NATS_MAX, WINDOW_NATS_MAX)).max(0.0)
}

/// A threshold and what it can promise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    /// Evidence at which a session is called a bot, nats.
    pub nats: f32,
    /// Human sessions it rests on.
    pub sessions: u32,
    /// People it rests on, where each is ranked once, by their highest session; 0 where sessions are ranked.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub people: u32,
    /// Which of their maxima, counted from the largest.
    pub rank: u32,
    /// Greatest probability that a session (where people are ranked: anybody) exchangeable with those
    /// reaches the threshold.
    pub false_alarm_max: f32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// The threshold that a share of at most `false_alarm` of human sessions reaches, from the largest
/// evidence of each of some human sessions. With too few sessions to promise that, the largest of all
/// is taken and `false_alarm_max` says what it is worth. An infinite maximum is above any threshold, and
/// counts as such.
pub fn threshold(mut maxima: Vec<f32>, false_alarm: f32) -> Threshold {
    maxima.sort_by(|a, b| b.total_cmp(a));
    let n = maxima.len();
    let above_all = maxima.iter().filter(|highest| **highest == f32::INFINITY).count();
    let rank = ((false_alarm * (n as f32 + 1.0)).floor() as usize).max(above_all + 1).min(n.max(1));
    let kth = maxima.get(rank - 1).copied().unwrap_or(f32::INFINITY);
    // Strictly above the k-th largest.
    let nats = if kth.is_finite() { (kth + 0.01).max(THRESHOLD_NATS_MIN) } else { f32::MAX };
    let false_alarm_max = rank as f32 / (n as f32 + 1.0);
    Threshold { nats, sessions: n as u32, people: 0, rank: rank as u32, false_alarm_max }
}

/// The same for people, from whose session it is and the largest evidence in it: a person counts once, by
/// the highest of their sessions. Sessions of one person resemble each other, so k/(n+1) of sessions holds
/// only while nobody has several; of people it holds of whoever is met anew, with all their sessions.
pub fn threshold_of_people<'a>(
    sessions: impl IntoIterator<Item = (&'a str, f32)>,
    false_alarm: f32,
) -> Threshold {
    let mut people: BTreeMap<&str, f32> = BTreeMap::new();
    let mut n = 0;
    for (person, highest) in sessions {
        n += 1;
        people.entry(person).and_modify(|most| *most = most.max(highest)).or_insert(highest);
    }
    let count = people.len() as u32;
    Threshold { sessions: n, people: count, ..threshold(people.into_values().collect(), false_alarm) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_single_window_reaches_the_lowest_threshold() {
        assert!(cusum(0.0, f32::MAX) < THRESHOLD_NATS_MIN);
        let windows_needed = (1..).find(|&n| (0..n).fold(0.0, |e, _| cusum(e, 50.0)) >= THRESHOLD_NATS_MIN);
        assert_eq!(windows_needed, Some(3));
    }

    #[test]
    fn human_windows_take_evidence_back_but_never_below_zero() {
        assert_eq!(cusum(1.0, -5.0), 0.0);
        assert_eq!(cusum(3.0, -0.5), 2.5);
        assert_eq!(cusum(3.0, f32::NAN), 3.0);
    }

    #[test]
    fn a_threshold_promises_what_its_sessions_carry() {
        let few = threshold(vec![1.0, 9.0, 4.0], 0.01);
        assert_eq!((few.nats, few.rank, few.sessions), (9.01, 1, 3));
        assert_eq!(few.false_alarm_max, 0.25);
        let many = threshold((0..999).map(|i| i as f32 / 50.0).collect(), 0.01);
        assert_eq!(many.rank, 10);
        assert!((many.nats - (989.0 / 50.0 + 0.01)).abs() < 1e-4);
        assert_eq!(threshold(vec![0.1; 50], 0.5).nats, THRESHOLD_NATS_MIN);
    }

    #[test]
    fn a_session_set_aside_counts_as_one_that_reaches_any_threshold() {
        let maxima = || (0..98).map(|i| i as f32 / 10.0);
        let whole = threshold(maxima().chain([20.0]).collect(), 0.01);
        assert_eq!((whole.nats, whole.rank, whole.false_alarm_max), (20.01, 1, 0.01));
        let one_aside = threshold(maxima().chain([f32::INFINITY]).collect(), 0.01);
        assert_eq!((one_aside.nats, one_aside.rank, one_aside.false_alarm_max), (9.71, 2, 0.02));
        let lax = threshold(maxima().chain([f32::INFINITY]).collect(), 0.05);
        assert_eq!((lax.nats, lax.rank, lax.false_alarm_max), (9.41, 5, 0.05));
        assert_eq!(threshold(vec![f32::INFINITY; 3], 0.05).nats, f32::MAX);
    }

    #[test]
    fn many_sessions_of_a_few_people_promise_no_more_than_a_few_people() {
        let names: Vec<String> = (0..200).map(|i| format!("person {}", i % 4)).collect();
        let sessions = || names.iter().enumerate().map(|(i, name)| (name.as_str(), i as f32 / 10.0));
        let few = threshold_of_people(sessions(), 0.01);
        assert_eq!((few.sessions, few.people, few.rank, few.false_alarm_max), (200, 4, 1, 0.2));
        assert_eq!(few.nats, 19.91);
    }

    #[test]
    fn without_sessions_nothing_is_ever_reached() {
        assert_eq!(threshold(Vec::new(), 0.01).nats, f32::MAX);
    }
}
