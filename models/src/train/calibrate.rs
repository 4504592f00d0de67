//! Platt's scaling: forest shares become log-likelihood ratios, fitted on people and families held out.
//!
//! Must not know: where the scores come from.

use crate::detector::logit;

/// Slope and intercept of log-likelihood ratio over the forest's logit, by Newton's method on the
/// logistic loss. Weights make both classes equally heavy, so log odds are log-likelihood ratios. A
/// small ridge keeps the slope finite where the classes separate, and the slope never turns negative.
pub fn platt(scores: &[(f32, bool, f32)]) -> (f32, f32) {
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
        for &(score, is_bot, weight) in scores {
            let x = f64::from(logit(score));
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
    (a as f32, b as f32)
}

const ITERATIONS: usize = 60;
const RIDGE: f64 = 1e-3;
const SOFT: f64 = 0.01;

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

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
