//! How well models do on those they never learnt from, with honest intervals.
//!
//! Here are the figures every task shares: one row a judgement, resampled by whoever it came from, never
//! by window. Each task has a file of its own. Must not know: files, pages.

pub mod bot;
pub mod compare;
pub mod drift;
pub mod keystroke;
pub mod replay;
pub mod site;
pub mod user;

use crate::artifact::ArtifactError;
use crate::detector::probability;
use crate::train::TrainError;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::BTreeMap;
use thiserror::Error;

/// A figure with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

#[derive(Debug, Error)]
pub enum EvaluateError {
    #[error("{0}")]
    Artifact(#[from] ArtifactError),
    #[error("{0}")]
    Train(#[from] TrainError),
    #[error("the data hold no recordings")]
    Empty,
}

/// One judged window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judged {
    /// Nats for `positive`; above zero it is called.
    pub score: f32,
    /// What is sought is truly there: a bot, or somebody else.
    pub positive: bool,
    /// Who or which session it came from; resampled as a whole.
    pub cluster: usize,
}

/// Numbers names in order of appearance.
#[derive(Default)]
pub(crate) struct Names(BTreeMap<String, usize>);

impl Names {
    pub(crate) fn number(&mut self, name: &str) -> usize {
        let next = self.0.len();
        *self.0.entry(name.to_string()).or_insert(next)
    }
}

/// Share of the rows `of` a kind that also `is`; NaN without any.
pub(crate) fn share(rows: &[Judged], of: impl Fn(&Judged) -> bool, is: impl Fn(&Judged) -> bool) -> f64 {
    let whole = rows.iter().filter(|row| of(row)).count();
    let part = rows.iter().filter(|row| of(row) && is(row)).count();
    part as f64 / whole as f64
}

/// Positives passed over.
pub(crate) fn far(rows: &[Judged]) -> f64 {
    share(rows, |row| row.positive, |row| row.score <= 0.0)
}

/// Negatives called positive.
pub(crate) fn frr(rows: &[Judged]) -> f64 {
    share(rows, |row| !row.positive, |row| row.score > 0.0)
}

/// Area under the ROC curve, ties counted half (Mann and Whitney).
pub(crate) fn auc(rows: &[Judged]) -> f64 {
    if rows.is_empty() {
        return f64::NAN;
    }
    let curve = roc(rows);
    curve.windows(2).map(|pair| (pair[1].0 - pair[0].0) * 0.5 * (pair[1].1 + pair[0].1)).sum()
}

/// Where false alarms equal misses.
pub(crate) fn eer(rows: &[Judged]) -> f64 {
    let curve = roc(rows);
    let crossing = curve.windows(2).find(|pair| pair[1].0 >= 1.0 - pair[1].1);
    crossing.map_or(f64::NAN, |pair| {
        // Linear between the two points.
        let (a, b) = (pair[0].0 - (1.0 - pair[0].1), pair[1].0 - (1.0 - pair[1].1));
        let t = if b > a { -a / (b - a) } else { 1.0 };
        pair[0].0 + t * (pair[1].0 - pair[0].0)
    })
}

/// Points of the ROC curve, from the strictest threshold to the laxest: false alarms, detections.
pub(crate) fn roc(rows: &[Judged]) -> Vec<(f64, f64)> {
    let mut sorted: Vec<(f32, bool)> = rows.iter().map(|row| (row.score, row.positive)).collect();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
    let positives = sorted.iter().filter(|(_, positive)| *positive).count() as f64;
    let negatives = sorted.len() as f64 - positives;
    let (mut hits, mut alarms) = (0.0, 0.0);
    let mut curve = vec![(0.0, 0.0)];
    for (i, &(score, positive)) in sorted.iter().enumerate() {
        if positive {
            hits += 1.0
        } else {
            alarms += 1.0
        }
        if sorted.get(i + 1).is_none_or(|next| next.0 != score) {
            curve.push((alarms / negatives, hits / positives));
        }
    }
    curve
}

/// Expected calibration error over ten equal bins of probability.
pub(crate) fn ece(rows: &[Judged]) -> f64 {
    let gap = |bin: Reliability| bin.windows as f64 * (bin.predicted - bin.observed).abs();
    reliability(rows).into_iter().map(gap).sum::<f64>() / rows.len() as f64
}

/// Windows whose stated probability lies in one tenth: what was said, and what was so.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Reliability {
    pub windows: usize,
    pub predicted: f64,
    pub observed: f64,
}

/// The reliability diagram: stated against observed, tenths without a row left out.
pub(crate) fn reliability(rows: &[Judged]) -> Vec<Reliability> {
    let mut bins = [(0usize, 0.0f64, 0.0f64); 10];
    for row in rows {
        let p = f64::from(probability(row.score));
        let bin = &mut bins[((p * 10.0) as usize).min(9)];
        *bin = (bin.0 + 1, bin.1 + p, bin.2 + f64::from(u8::from(row.positive)));
    }
    let mean = |&(windows, predicted, observed): &(usize, f64, f64)| {
        let n = windows as f64;
        (windows > 0).then(|| Reliability { windows, predicted: predicted / n, observed: observed / n })
    };
    bins.iter().filter_map(mean).collect()
}

/// Who was taken for whom, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Confusion {
    pub people_called_people: usize,
    pub people_called_bots: usize,
    pub bots_called_people: usize,
    pub bots_called_bots: usize,
}

impl Confusion {
    /// Counts pairs of what one is and what one was called, `true` for a bot.
    pub(crate) fn count(pairs: impl Iterator<Item = (bool, bool)>) -> Confusion {
        let mut counts = Confusion::default();
        for (is_bot, called_bot) in pairs {
            *match (is_bot, called_bot) {
                (false, false) => &mut counts.people_called_people,
                (false, true) => &mut counts.people_called_bots,
                (true, false) => &mut counts.bots_called_people,
                (true, true) => &mut counts.bots_called_bots,
            } += 1;
        }
        counts
    }
}

/// Mean of one value a person, and its interval from resampling people.
pub(crate) fn mean_figure(values: &[f64]) -> Figure {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let mut rng = ChaCha8Rng::seed_from_u64(RESAMPLING_SEED);
    let drawn = |_| (0..values.len()).map(|_| values[rng.random_range(0..values.len())]).collect::<Vec<_>>();
    let mut means: Vec<f64> = (0..RESAMPLES).map(drawn).map(|drawn| mean(&drawn)).collect();
    means.sort_by(f64::total_cmp);
    let at = |q: f64| means[(q * (RESAMPLES - 1) as f64).round() as usize];
    Figure { value: mean(values), low: at(0.025), high: at(0.975) }
}

/// A figure and its interval from resampling whole clusters, positives and negatives apart.
pub(crate) fn figure(rows: &[Judged], of: impl Fn(&[Judged]) -> f64) -> Figure {
    let value = of(rows);
    let mut clusters: [BTreeMap<usize, Vec<Judged>>; 2] = Default::default();
    for row in rows {
        clusters[usize::from(row.positive)].entry(row.cluster).or_default().push(*row);
    }
    let clusters = clusters.map(|side| side.into_values().collect::<Vec<_>>());
    let mut rng = ChaCha8Rng::seed_from_u64(RESAMPLING_SEED);
    let mut values: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut drawn = Vec::with_capacity(rows.len());
            for side in clusters.iter().filter(|side| !side.is_empty()) {
                for _ in 0..side.len() {
                    drawn.extend_from_slice(&side[rng.random_range(0..side.len())]);
                }
            }
            of(&drawn)
        })
        .filter(|value| value.is_finite())
        .collect();
    values.sort_by(f64::total_cmp);
    let at = |q: f64| {
        values.get((q * values.len().saturating_sub(1) as f64).round() as usize).copied().unwrap_or(f64::NAN)
    };
    Figure { value, low: at(0.025), high: at(0.975) }
}

/// Clopper and Pearson's exact 95 % interval of a share, by bisection on the binomial tail.
pub(crate) fn clopper_pearson(hits: usize, n: usize) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let tail = |p: f64, from: usize| -> f64 {
        // P(X >= from), summed in logarithms.
        let mut ln_choose = 0.0f64;
        let mut sum = 0.0;
        for k in 0..=n {
            if k > 0 {
                ln_choose += ((n - k + 1) as f64 / k as f64).ln();
            }
            if k >= from {
                sum += (ln_choose + k as f64 * p.ln() + (n - k) as f64 * (1.0 - p).ln()).exp();
            }
        }
        sum
    };
    let solve = |from: usize, target: f64| {
        let (mut low, mut high) = (1e-12, 1.0 - 1e-12);
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if tail(middle, from) < target { low = middle } else { high = middle }
        }
        0.5 * (low + high)
    };
    let low = if hits == 0 { 0.0 } else { solve(hits, 0.025) };
    let high = if hits == n { 1.0 } else { solve(hits + 1, 0.975) };
    (low, high)
}

const RESAMPLES: usize = 200;
const RESAMPLING_SEED: u64 = 95;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn rows(scores: &[(f32, bool)]) -> Vec<Judged> {
        let row = |(i, &(score, positive)): (usize, &(f32, bool))| Judged { score, positive, cluster: i };
        scores.iter().enumerate().map(row).collect()
    }

    #[test]
    fn ties_count_half_and_a_perfect_split_has_no_error() {
        assert!((auc(&rows(&[(0.0, true), (0.0, false)])) - 0.5).abs() < 1e-9);
        let perfect = rows(&[(1.0, true), (2.0, true), (-1.0, false), (-2.0, false)]);
        assert_eq!((auc(&perfect), eer(&perfect)), (1.0, 0.0));
        assert!(auc(&[]).is_nan(), "nothing judged says nothing");
    }

    #[test]
    fn the_reliability_diagram_states_what_was_said_and_what_was_so() {
        let even = [(0.0, true), (0.0, false), (0.0, false), (0.0, false)];
        assert_eq!(reliability(&rows(&even)), [Reliability { windows: 4, predicted: 0.5, observed: 0.25 }]);
        assert!((ece(&rows(&even)) - 0.25).abs() < 1e-9);
    }

    #[test]
    fn clopper_pearson_matches_the_rule_of_three_and_a_textbook_value() {
        let (low, high) = clopper_pearson(0, 300);
        assert_eq!(low, 0.0);
        assert!((high - 0.01222).abs() < 1e-4, "{high}");
        let (low, high) = clopper_pearson(4, 20);
        assert!((low - 0.0573).abs() < 1e-3 && (high - 0.4366).abs() < 1e-3, "{low} {high}");
    }
}
