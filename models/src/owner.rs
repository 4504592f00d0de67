//! Is this the hand that usually moves this account's mouse? Judged against how other people's do.
//!
//! Every block of counts becomes a point (square roots of shares, on which Euclid's distance is
//! Hellinger's). The background says how points of one person scatter and how people differ. An owner is
//! then judged twice: by a regularised least-squares line between their points and the background's,
//! and, where the background has enough people, by the likelihood ratio of "the same person" against
//! "one of the others" (probabilistic linear discriminant analysis, Ioffe 2006). Owner and impostor
//! need not be among the background. Must not know: sessions, files, names of users.

use crate::hand::{BINS, GROUPS, Hand};
use crate::linear::{Lower, dot, eigen_symmetric};

/// Most background people kept; more add little and cost a matrix of their number squared.
pub const PEOPLE_MAX: usize = 256;
/// Fewest background people, and fewest blocks of each of them and of an owner.
pub const PEOPLE_MIN: usize = 3;
pub const BLOCKS_MIN: usize = 3;

/// How other people's hands look.
#[derive(Clone, Debug)]
pub struct Background {
    /// Share of each bin within its group, over everybody.
    common: Vec<f64>,
    centre: Vec<f64>,
    /// Background's second moments, and within-person spread as ridge; row-major.
    metric: Vec<f64>,
    likelihood: Option<Likelihood>,
}

/// Directions in which people differ, each scaled so that one person's blocks spread by 1.
#[derive(Clone, Debug)]
struct Likelihood {
    axes: Vec<Vec<f64>>,
    /// Variance between people along each axis.
    between: Vec<f64>,
    /// What is known of each background person.
    cohort: Vec<Belief>,
}

/// Where along each axis a person lies, and how surely.
#[derive(Clone, Debug)]
struct Belief {
    mean: Vec<f64>,
    variance: Vec<f64>,
}

/// One person, against a background.
#[derive(Clone, Debug)]
pub struct Owner {
    weights: Vec<f64>,
    middle: f64,
    belief: Option<Belief>,
}

impl Background {
    /// Learns from each person's blocks; people with fewer than [`BLOCKS_MIN`] are passed over. `None`
    /// with fewer than [`PEOPLE_MIN`] people.
    pub fn fit(people: &[Vec<Hand>]) -> Option<Background> {
        let people: Vec<&Vec<Hand>> =
            people.iter().filter(|blocks| blocks.len() >= BLOCKS_MIN).take(PEOPLE_MAX).collect();
        if people.len() < PEOPLE_MIN {
            return None;
        }
        let common = common_shares(people.iter().flat_map(|blocks| blocks.iter()));
        let points: Vec<Vec<Vec<f64>>> =
            people.iter().map(|blocks| blocks.iter().map(|block| point(block, &common)).collect()).collect();
        let mut means: Vec<Vec<f64>> = points.iter().map(|points| mean(points)).collect();
        let centre = mean(&means);
        means.iter_mut().for_each(|mean| subtract(mean, &centre));
        let blocks: usize = points.iter().map(Vec::len).sum();
        let (mut within, mut second) = (vec![0.0; BINS * BINS], vec![0.0; BINS * BINS]);
        for (points, mean) in points.iter().zip(&means) {
            for point in points {
                let mut from_centre = point.clone();
                subtract(&mut from_centre, &centre);
                add_square(&mut second, &from_centre, 1.0 / (points.len() * people.len()) as f64);
                subtract(&mut from_centre, mean);
                add_square(&mut within, &from_centre, 1.0 / (blocks - people.len()) as f64);
            }
        }
        shrink(&mut within, WITHIN_SHRINKAGE);
        let metric =
            second.iter().zip(&within).map(|(second, within)| 0.5 * second + RIDGE * within).collect();
        let likelihood = (people.len() >= LIKELIHOOD_PEOPLE_MIN)
            .then(|| Likelihood::fit(within, &means, &points))
            .flatten()
            .map(|likelihood| likelihood.with_cohort(&points, &centre));
        Some(Background { common, centre, metric, likelihood })
    }

    /// Learns an owner from their blocks; `None` with fewer than [`BLOCKS_MIN`].
    pub fn enrol(&self, blocks: &[Hand]) -> Option<Owner> {
        if blocks.len() < BLOCKS_MIN {
            return None;
        }
        let points: Vec<Vec<f64>> = blocks.iter().map(|block| self.point(block)).collect();
        let own = mean(&points);
        let mut metric = self.metric.clone();
        points.iter().for_each(|point| add_square(&mut metric, point, 0.5 / points.len() as f64));
        let target: Vec<f64> = own.iter().map(|x| 0.5 * x).collect();
        let weights = Lower::factor(metric, BINS)?.solve(&target);
        // Half way between the owner's mean and the background's, which is the origin.
        let middle = 0.5 * dot(&own, &weights);
        let belief = self.likelihood.as_ref().map(|likelihood| likelihood.belief(&points));
        Some(Owner { weights, middle, belief })
    }

    /// How much a block speaks for somebody else, in about nats: positive for somebody else.
    pub fn score(&self, owner: &Owner, block: &Hand) -> f32 {
        let point = self.point(block);
        let line = LINE_GAIN * (owner.middle - dot(&point, &owner.weights));
        let likelihood = self.likelihood.as_ref().zip(owner.belief.as_ref());
        let ratio = likelihood.map_or(0.0, |(likelihood, belief)| likelihood.ratio(belief, &point));
        (line - LIKELIHOOD_SHARE * ratio) as f32
    }

    /// A block's place in what people differ in, for models of one person alone; `None` where the
    /// background is too small to say what that is.
    pub fn place(&self, block: &Hand) -> Option<Vec<f32>> {
        let point = self.point(block);
        let likelihood = self.likelihood.as_ref()?;
        Some(likelihood.axes.iter().map(|axis| dot(axis, &point) as f32).collect())
    }

    fn point(&self, block: &Hand) -> Vec<f64> {
        let mut point = point(block, &self.common);
        subtract(&mut point, &self.centre);
        point
    }
}

impl Likelihood {
    /// `means` from the centre. `None` if people do not differ.
    fn fit(within: Vec<f64>, means: &[Vec<f64>], points: &[Vec<Vec<f64>>]) -> Option<Likelihood> {
        let lower = Lower::factor(within, BINS)?;
        let people = means.len() as f64;
        let whitened: Vec<Vec<f64>> = means.iter().map(|mean| lower.solve_lower(mean)).collect();
        // The few directions in which the means differ, from the small matrix of their products.
        let products: Vec<f64> =
            whitened.iter().flat_map(|a| whitened.iter().map(move |b| dot(a, b) / people)).collect();
        let blocks = points.iter().map(Vec::len).sum::<usize>() as f64 / people;
        let (mut axes, mut between) = (Vec::new(), Vec::new());
        for (value, vector) in eigen_symmetric(products, means.len()).into_iter().take(AXES_MAX) {
            // A mean of n blocks scatters by 1/n even if all people are alike.
            let spread = value - 1.0 / blocks;
            if spread < BETWEEN_MIN {
                break;
            }
            let mut axis = vec![0.0; BINS];
            for (mean, weight) in whitened.iter().zip(&vector) {
                axis.iter_mut().zip(mean).for_each(|(x, m)| *x += weight * m / (value * people).sqrt());
            }
            axes.push(lower.solve_upper(&axis));
            between.push(spread);
        }
        (!axes.is_empty()).then_some(Likelihood { axes, between, cohort: Vec::new() })
    }

    fn with_cohort(mut self, points: &[Vec<Vec<f64>>], centre: &[f64]) -> Likelihood {
        let beliefs = points.iter().map(|points| {
            let from_centre: Vec<Vec<f64>> = points
                .iter()
                .map(|point| {
                    let mut point = point.clone();
                    subtract(&mut point, centre);
                    point
                })
                .collect();
            self.belief(&from_centre)
        });
        self.cohort = beliefs.collect();
        self
    }

    fn belief(&self, points: &[Vec<f64>]) -> Belief {
        // Blocks of one session resemble each other: beyond a few they teach little more.
        let n = (points.len() as f64).min(BLOCKS_BELIEVED_MAX);
        let own = mean(points);
        let variance: Vec<f64> = self.between.iter().map(|between| between / (n * between + 1.0)).collect();
        let mean = self.axes.iter().zip(&variance).map(|(axis, v)| v * n * dot(axis, &own)).collect();
        Belief { mean, variance }
    }

    /// Log-likelihood ratio of "this person" against "one of the cohort, or anybody".
    fn ratio(&self, belief: &Belief, point: &[f64]) -> f64 {
        let place: Vec<f64> = self.axes.iter().map(|axis| dot(axis, point)).collect();
        let ln = |mean: f64, variance: f64, x: f64| {
            -0.5 * ((variance + 1.0).ln() + (x - mean) * (x - mean) / (variance + 1.0))
        };
        let of = |belief: &Belief| -> f64 {
            let each = place.iter().zip(belief.mean.iter().zip(&belief.variance));
            each.map(|(x, (mean, variance))| ln(*mean, *variance, *x)).sum()
        };
        let anybody: f64 = place.iter().zip(&self.between).map(|(x, between)| ln(0.0, *between, *x)).sum();
        let others: Vec<f64> = self.cohort.iter().map(of).chain([anybody]).collect();
        let most = others.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = others.iter().map(|ln| (ln - most).exp()).sum();
        of(belief) - most - (sum / others.len() as f64).ln()
    }
}

/// Share of each bin within its group, none of them zero.
fn common_shares<'a>(blocks: impl Iterator<Item = &'a Hand>) -> Vec<f64> {
    let mut shares = vec![0.5; BINS];
    for block in blocks {
        shares.iter_mut().zip(block.counts()).for_each(|(share, count)| *share += f64::from(*count));
    }
    let mut from = 0;
    for (_, bins) in GROUPS {
        let group = &mut shares[from..from + bins];
        let total: f64 = group.iter().sum();
        group.iter_mut().for_each(|share| *share /= total);
        from += bins;
    }
    shares
}

/// Square roots of shares, drawn towards everybody's where a block has few counts.
fn point(block: &Hand, common: &[f64]) -> Vec<f64> {
    let mut point = Vec::with_capacity(BINS);
    for (_, bins) in GROUPS {
        let from = point.len();
        let counts = &block.counts()[from..from + bins];
        let total: f64 = counts.iter().map(|&count| f64::from(count)).sum();
        let share = |(count, common): (&u16, &f64)| {
            ((f64::from(*count) + PRIOR_COUNTS * common) / (total + PRIOR_COUNTS)).sqrt()
        };
        point.extend(counts.iter().zip(&common[from..from + bins]).map(share));
    }
    point
}

fn mean(rows: &[Vec<f64>]) -> Vec<f64> {
    let mut mean = vec![0.0; BINS];
    for row in rows {
        mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x / rows.len() as f64);
    }
    mean
}

fn subtract(row: &mut [f64], other: &[f64]) {
    row.iter_mut().zip(other).for_each(|(x, y)| *x -= y);
}

/// Adds `weight · row rowᵀ`, the lower triangle only.
fn add_square(matrix: &mut [f64], row: &[f64], weight: f64) {
    for (i, x) in row.iter().enumerate() {
        let scaled = weight * x;
        matrix[i * BINS..i * BINS + i + 1].iter_mut().zip(row).for_each(|(sum, y)| *sum += scaled * y);
    }
}

/// Draws a covariance towards its diagonal and keeps it well away from singular.
fn shrink(matrix: &mut [f64], share: f64) {
    let trace: f64 = (0..BINS).map(|i| matrix[i * BINS + i]).sum();
    for i in 0..BINS {
        for k in 0..i {
            matrix[i * BINS + k] *= 1.0 - share;
        }
        matrix[i * BINS + i] += 1e-3 * trace / BINS as f64;
    }
}

/// Counts by which a block is drawn towards everybody, a group.
const PRIOR_COUNTS: f64 = 20.0;
/// Share of the within-person correlations that is not believed.
const WITHIN_SHRINKAGE: f64 = 0.2;
const RIDGE: f64 = 10.0;
/// Makes the line's word, whose ends lie about half apart, comparable with nats.
const LINE_GAIN: f64 = 40.0;
/// What the likelihood counts beside the line: blocks are short and its densities only roughly true.
const LIKELIHOOD_SHARE: f64 = 0.5;
/// With fewer people, how people differ cannot be known.
const LIKELIHOOD_PEOPLE_MIN: usize = 20;
const AXES_MAX: usize = 60;
const BETWEEN_MIN: f64 = 0.02;
const BLOCKS_BELIEVED_MAX: f64 = 5.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hand;
    use crate::sim::Visitor;

    /// Blocks of simulated people who differ by the seed.
    fn person(seed: u64) -> Vec<Hand> {
        let mut visitor = Visitor::person(seed);
        let events: Vec<_> = (0..120).flat_map(|_| visitor.next_batch(2.0).events).collect();
        hand::blocks(&events)
    }

    #[test]
    fn an_owner_is_closer_to_their_own_later_blocks_than_strangers_are() {
        let people: Vec<Vec<Hand>> = (0..24).map(person).collect();
        let background = Background::fit(&people).unwrap();
        assert!(background.place(&people[0][0]).is_some());
        let owned = person(100);
        let owner = background.enrol(&owned[..owned.len() / 2]).unwrap();
        let mean = |blocks: &[Hand]| {
            blocks.iter().map(|block| background.score(&owner, block)).sum::<f32>() / blocks.len() as f32
        };
        let own = mean(&owned[owned.len() / 2..]);
        let strangers: Vec<f32> = (101..109).map(|seed| mean(&person(seed))).collect();
        let further = strangers.iter().filter(|stranger| **stranger > own).count();
        assert!(further >= 7, "own {own}, strangers {strangers:?}");
    }

    #[test]
    fn too_few_people_or_blocks_teach_nothing() {
        let people: Vec<Vec<Hand>> = (0..4).map(person).collect();
        assert!(Background::fit(&people[..2]).is_none());
        let background = Background::fit(&people).unwrap();
        assert!(background.place(&people[0][0]).is_none(), "four people do not say how people differ");
        assert!(background.enrol(&people[0][..BLOCKS_MIN - 1]).is_none());
    }
}
