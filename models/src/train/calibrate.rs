//! Platt's scaling: forest shares become log-likelihood ratios, fitted on people and families held out.
//!
//! Must not know: where the scores come from.

use crate::detector::logit;
use crate::stats::median;

/// Slope and intercept of log-likelihood ratio over the forest's logit, by Newton's method on the
/// logistic loss. Weights make both classes equally heavy, so log odds are log-likelihood ratios. A
/// small ridge keeps the slope finite where the classes separate, and the slope never turns negative.
pub fn platt(scores: &[(f32, bool, f32)]) -> (f32, f32) {
    let log_odds: Vec<(f64, bool, f32)> =
        scores.iter().map(|&(score, is_bot, weight)| (f64::from(logit(score)), is_bot, weight)).collect();
    let (slope, intercept) = logistic(&log_odds);
    (slope as f32, intercept as f32)
}

/// The same over scores on any scale, which is read off the two classes' medians. A slope of zero where
/// positives do not lie above negatives.
pub fn platt_of_any(scores: &[(f32, bool, f32)]) -> (f32, f32) {
    let middle = |of: bool| {
        let mut values: Vec<f32> =
            scores.iter().filter(|(_, is, _)| *is == of).map(|(score, ..)| *score).collect();
        f64::from(median(&mut values))
    };
    let (low, high) = (middle(false), middle(true));
    if high.partial_cmp(&low) != Some(std::cmp::Ordering::Greater) {
        return (0.0, 0.0);
    }
    let (centre, unit) = (0.5 * (low + high), 0.25 * (high - low));
    let scaled: Vec<(f64, bool, f32)> = scores
        .iter()
        .map(|&(score, is_positive, weight)| {
            (((f64::from(score) - centre) / unit).clamp(-FAR, FAR), is_positive, weight)
        })
        .collect();
    let (slope, intercept) = logistic(&scaled);
    ((slope / unit) as f32, (intercept - slope * centre / unit) as f32)
}

fn logistic(scores: &[(f64, bool, f32)]) -> (f64, f64) {
    let weight_of = |class: bool| -> f64 {
        scores.iter().filter(|(_, is, _)| *is == class).map(|(.., w)| f64::from(*w)).sum()
    };
    let (people, bots) = (weight_of(false), weight_of(true));
    if people <= 0.0 || bots <= 0.0 {
        return (0.0, 0.0);
    }
    let (mut a, mut b) = (1.0f64, 0.0f64);
    for _ in 0..ITERATIONS {
        let (mut ga, mut gb, mut haa, mut hab, mut hbb) = (RIDGE * (a - 1.0), RIDGE * b, RIDGE, 0.0, RIDGE);
        for &(x, is_bot, weight) in scores {
            // Platt's softened targets: nothing held out is certain.
            let target = if is_bot { 1.0 - SOFT } else { SOFT };
            let weight = f64::from(weight) / if is_bot { bots } else { people };
            let p = 1.0 / (1.0 + (-(a * x + b)).exp());
            let error = weight * (p - target);
            ga += error * x;
            gb += error;
            let curve = weight * p * (1.0 - p);
            haa += curve * x * x;
            hab += curve * x;
            hbb += curve;
        }
        let determinant = haa * hbb - hab * hab;
        if determinant.abs() < 1e-12 {
            break;
        }
        // Half steps: a full Newton step can overshoot where the classes separate.
        a -= 0.5 * (hbb * ga - hab * gb) / determinant;
        b -= 0.5 * (haa * gb - hab * ga) / determinant;
        a = a.clamp(0.0, 5.0);
        b = b.clamp(-5.0, 5.0);
    }
    (a, b)
}

/// Beyond so many quarters of the way between the medians a score is far out and no more.
const FAR: f64 = 6.0;
const ITERATIONS: usize = 60;
const RIDGE: f64 = 1e-3;
const SOFT: f64 = 0.01;

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn scores_on_another_scale_turn_where_both_are_as_likely() {
        // Two logistic clouds of spread 4 about 20 and 36: even at 28, and one nat for 4/2 of a step.
        let cloud = |middle: f32| {
            (1..200).map(move |i| {
                let share = i as f32 / 200.0;
                middle + 4.0 * (share / (1.0 - share)).ln()
            })
        };
        let scores: Vec<(f32, bool, f32)> = cloud(20.0)
            .map(|score| (score, false, 1.0))
            .chain(cloud(36.0).map(|score| (score, true, 3.0)))
            .collect();
        let (slope, intercept) = platt_of_any(&scores);
        assert!((-intercept / slope - 28.0).abs() < 0.5, "turns at {}", -intercept / slope);
        assert!((0.1..0.3).contains(&slope), "{slope}");
    }

    #[test]
    fn scores_that_are_too_sure_are_toned_down() {
        // True log odds are half of what the scores claim.
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let mut scores = Vec::new();
        for _ in 0..20_000 {
            let x = rng.random_range(-4.0f32..4.0);
            let score = 1.0 / (1.0 + (-x).exp());
            let is_bot = rng.random_bool(f64::from(1.0 / (1.0 + (-0.5 * x).exp())));
            scores.push((score, is_bot, 1.0));
        }
        let (slope, intercept) = platt(&scores);
        assert!((slope - 0.5).abs() < 0.06 && intercept.abs() < 0.1, "{slope} {intercept}");
    }

    #[test]
    fn scores_turned_upside_down_say_nothing_rather_than_the_reverse() {
        let scores: Vec<_> = (0..100).map(|i| (i as f32 / 100.0, i < 50, 1.0)).collect();
        assert_eq!(platt(&scores).0, 0.0);
    }
}
