//! Is this the hand that usually moves this account's mouse? Judged against how other people's do.
//!
//! Every block of counts becomes a point (square roots of shares, on which Euclid's distance is
//! Hellinger's). The background says how points of one person scatter and how people differ. An owner is
//! then judged twice: by a regularised least-squares line between their points and the background's,
//! and, where the background has enough people, by the likelihood ratio of "the same person" against
//! "one of the others" (probabilistic linear discriminant analysis, Ioffe 2006). Owner and impostor
//! need not be among the background. A background is rounded to what a model file holds as soon as it is
//! fitted, so that what was calibrated is what judges. Must not know: sessions, files, names of users.

use crate::hand::{self, BINS, GROUPS, Hand};
use crate::linear::{Lower, dot, eigen_symmetric};
use crate::population::read_numbers;
use crate::sequential::Threshold;
use serde::{Deserialize, Serialize};

/// Most background people kept; more add little and cost a matrix of their number squared.
pub const PEOPLE_MAX: usize = 256;
/// Fewest background people, and fewest blocks of each of them and of an owner.
pub const PEOPLE_MIN: usize = 2;
pub const BLOCKS_MIN: usize = 3;

/// How other people's hands look.
#[derive(Clone, Debug, PartialEq)]
pub struct Background {
    /// Share of each bin within its group, over everybody.
    common: Vec<f64>,
    centre: Vec<f64>,
    /// Background's second moments, and within-person spread as ridge; lower triangle by rows, packed.
    metric: Vec<f32>,
    /// The metric's factor.
    factor: Lower,
    likelihood: Option<Likelihood>,
}

/// Directions in which people differ, each scaled so that one person's blocks spread by 1.
#[derive(Clone, Debug, PartialEq)]
struct Likelihood {
    axes: Vec<Vec<f64>>,
    /// Variance between people along each axis.
    between: Vec<f64>,
    /// What is known of each background person.
    cohort: Vec<Belief>,
}

/// Where along each axis a person lies, and how surely.
#[derive(Clone, Debug, PartialEq)]
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

/// A background, what its word is worth, and from when on it is doubt.
#[derive(Clone, Debug, PartialEq)]
pub struct Owners {
    pub background: Background,
    pub card: OwnersCard,
}

/// What a model says about its background.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OwnersCard {
    /// Hash of the distributions that blocks count.
    pub hand: String,
    /// People the background learnt from.
    pub people: u32,
    pub axes: u32,
    pub cohort: u32,
    /// Log-likelihood ratio for "somebody else" = `slope` × score + `intercept`, from people held out.
    pub slope: f32,
    pub intercept: f32,
    /// From whole sessions of people held out; `None` where nobody came twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<Threshold>,
    /// Those people carry the promise that was asked for.
    pub calibrated: bool,
}

impl Owners {
    /// A background whose word is taken as it is, without a threshold.
    pub fn uncalibrated(background: Background, people: usize) -> Owners {
        let (axes, cohort) = background.axes_and_cohort();
        let card = OwnersCard {
            hand: hand::table_hash(),
            people: people as u32,
            axes: axes as u32,
            cohort: cohort as u32,
            slope: 1.0,
            intercept: 0.0,
            threshold: None,
            calibrated: false,
        };
        Owners { background, card }
    }

    /// Nats for "somebody else" of one block.
    pub fn log_ratio(&self, owner: &Owner, block: &Hand) -> f32 {
        self.card.slope * self.background.score(owner, block) + self.card.intercept
    }
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
        let at = |i: usize, k: usize| (0.5 * second[i * BINS + k] + RIDGE * within[i * BINS + k]) as f32;
        let metric = (0..BINS).flat_map(|i| (0..=i).map(move |k| (i, k))).map(|(i, k)| at(i, k)).collect();
        let likelihood = (people.len() >= LIKELIHOOD_PEOPLE_MIN)
            .then(|| Likelihood::fit(within, &means, &points))
            .flatten()
            .map(|likelihood| likelihood.with_cohort(&points, &centre));
        Background::of(common, centre, metric, likelihood)
    }

    /// Rounds to what a file holds. `None` unless the metric is positive.
    fn of(
        mut common: Vec<f64>,
        mut centre: Vec<f64>,
        metric: Vec<f32>,
        mut likelihood: Option<Likelihood>,
    ) -> Option<Background> {
        let round = |numbers: &mut Vec<f64>| numbers.iter_mut().for_each(|x| *x = f64::from(*x as f32));
        [&mut common, &mut centre].into_iter().for_each(round);
        if let Some(Likelihood { axes, between, cohort }) = &mut likelihood {
            axes.iter_mut().for_each(round);
            round(between);
            cohort
                .iter_mut()
                .for_each(|Belief { mean, variance }| [mean, variance].into_iter().for_each(round));
        }
        let mut square = vec![0.0; BINS * BINS];
        for i in 0..BINS {
            let row = &metric[i * (i + 1) / 2..][..=i];
            square[i * BINS..][..=i].iter_mut().zip(row).for_each(|(x, m)| *x = f64::from(*m));
        }
        let factor = Lower::factor(square, BINS)?;
        Some(Background { common, centre, metric, factor, likelihood })
    }

    /// Directions in which people differ, and people of the cohort; what [`Background::read`] needs to know.
    pub fn axes_and_cohort(&self) -> (usize, usize) {
        self.likelihood.as_ref().map_or((0, 0), |likelihood| (likelihood.axes.len(), likelihood.cohort.len()))
    }

    /// Appends its numbers (`f32`, little endian).
    pub(crate) fn write(&self, bytes: &mut Vec<u8>) {
        let mut put = |x: f32| bytes.extend(x.to_le_bytes());
        self.common.iter().chain(&self.centre).for_each(|x| put(*x as f32));
        self.metric.iter().for_each(|x| put(*x));
        if let Some(Likelihood { axes, between, cohort }) = &self.likelihood {
            axes.iter().flatten().chain(between).for_each(|x| put(*x as f32));
            let beliefs = cohort.iter().flat_map(|belief| belief.mean.iter().chain(&belief.variance));
            beliefs.for_each(|x| put(*x as f32));
        }
    }

    /// Reads a background of so many axes and people from the front of `bytes`; `None` if they end early or
    /// hold what no fit leaves behind.
    pub(crate) fn read((axes, cohort): (usize, usize), bytes: &mut &[u8]) -> Option<Background> {
        if axes > AXES_MAX || cohort > PEOPLE_MAX || (axes == 0) != (cohort == 0) {
            return None;
        }
        let mut take = |n: usize| -> Option<Vec<f64>> {
            let numbers = read_numbers(bytes, n)?;
            numbers.iter().all(|x| x.is_finite()).then(|| numbers.into_iter().map(f64::from).collect())
        };
        let (common, centre) = (take(BINS)?, take(BINS)?);
        let metric: Vec<f32> = take(BINS * (BINS + 1) / 2)?.into_iter().map(|x| x as f32).collect();
        let is_positive = |numbers: &[f64]| numbers.iter().all(|x| *x > 0.0);
        let mut likelihood = None;
        if axes > 0 {
            let directions = (0..axes).map(|_| take(BINS)).collect::<Option<_>>()?;
            let between = take(axes)?;
            let mut belief = |_| Some(Belief { mean: take(axes)?, variance: take(axes)? });
            let cohort: Vec<Belief> = (0..cohort).map(&mut belief).collect::<Option<_>>()?;
            if !is_positive(&between) || !cohort.iter().all(|belief| is_positive(&belief.variance)) {
                return None;
            }
            likelihood = Some(Likelihood { axes: directions, between, cohort });
        }
        if is_positive(&common) { Background::of(common, centre, metric, likelihood) } else { None }
    }

    /// Learns an owner from their blocks; `None` with fewer than [`BLOCKS_MIN`].
    pub fn enrol(&self, blocks: &[Hand]) -> Option<Owner> {
        if blocks.len() < BLOCKS_MIN {
            return None;
        }
        let points: Vec<Vec<f64>> = blocks.iter().map(|block| self.point(block)).collect();
        let own = mean(&points);
        // The owner's second moments add as many directions to the metric as they have blocks, so a small
        // system stands for the large one: (M + c PᵀP)⁻¹ Pᵀ = M⁻¹ Pᵀ (I + c P M⁻¹ Pᵀ)⁻¹.
        let n = points.len();
        let half = 0.5 / n as f64;
        let solved: Vec<Vec<f64>> = points.iter().map(|point| self.factor.solve_lower(point)).collect();
        let mut small = vec![0.0; n * n];
        for i in 0..n {
            for k in 0..=i {
                small[i * n + k] = half * dot(&solved[i], &solved[k]) + f64::from(u8::from(i == k));
            }
        }
        let shares = Lower::factor(small, n)?.solve(&vec![half; n]);
        let mut weights = vec![0.0; BINS];
        for (solved, share) in solved.iter().zip(&shares) {
            weights.iter_mut().zip(solved).for_each(|(x, y)| *x += share * y);
        }
        let weights = self.factor.solve_upper(&weights);
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
/// Within-person spread added to the line's metric. Ten times as much hides how one owner's blocks differ from
/// a few others' (Balabit's training sessions, pooled AUC .91 for .96); SapiMouse does not mind either.
const RIDGE: f64 = 2.0;
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
pub(crate) mod tests {
    use super::*;
    use crate::artifact::Artifact;
    use crate::detector::Detector;
    use crate::sim::Visitor;

    /// The shipped model with a background of simulated people.
    pub(crate) fn detector() -> Detector {
        let people: Vec<Vec<Hand>> = (0..LIKELIHOOD_PEOPLE_MIN as u64 + 4).map(person).collect();
        let owners = Owners::uncalibrated(Background::fit(&people).unwrap(), people.len());
        let base = Artifact::decode(crate::DEFAULT_MODEL).unwrap();
        Detector::load(&Artifact { owners: Some(owners), ..base }.encode()).unwrap()
    }

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
    fn the_bytes_of_a_background_read_back_and_judge_alike_or_are_refused() {
        let people: Vec<Vec<Hand>> = (0..LIKELIHOOD_PEOPLE_MIN as u64).map(person).collect();
        for people in [&people[..], &people[..5]] {
            let background = Background::fit(people).unwrap();
            let mut bytes = Vec::new();
            background.write(&mut bytes);
            let sizes = background.axes_and_cohort();
            assert_eq!(sizes.1, if people.len() > 5 { people.len() } else { 0 });
            let mut rest = bytes.as_slice();
            assert_eq!(Background::read(sizes, &mut rest).as_ref(), Some(&background));
            assert!(rest.is_empty());
            assert_eq!(Background::read(sizes, &mut &bytes[..bytes.len() - 1]), None);
            assert_eq!(Background::read((AXES_MAX + 1, sizes.1), &mut bytes.as_slice()), None);
            let spoilt = |at: usize, x: f32| {
                let mut bytes = bytes.clone();
                bytes[4 * at..4 * at + 4].copy_from_slice(&x.to_le_bytes());
                Background::read(sizes, &mut bytes.as_slice())
            };
            assert_eq!(spoilt(0, -1.0), None, "a share below nothing");
            assert_eq!(spoilt(BINS, f32::NAN), None);
            assert_eq!(spoilt(2 * BINS, -1.0), None, "a metric that is not positive");
        }
    }

    #[test]
    fn enrolling_by_the_small_system_equals_the_large_one() {
        let people: Vec<Vec<Hand>> = (0..4).map(person).collect();
        let background = Background::fit(&people).unwrap();
        let blocks = person(9);
        let owner = background.enrol(&blocks).unwrap();
        let points: Vec<Vec<f64>> = blocks.iter().map(|block| background.point(block)).collect();
        let own = mean(&points);
        let row = |i: usize| -> f64 {
            let metric = |k: usize| {
                let (i, k) = (i.max(k), i.min(k));
                f64::from(background.metric[i * (i + 1) / 2 + k])
            };
            let second = |k: usize| -> f64 {
                points.iter().map(|point| 0.5 * point[i] * point[k] / points.len() as f64).sum()
            };
            (0..BINS).map(|k| (metric(k) + second(k)) * owner.weights[k]).sum()
        };
        for (i, own) in own.iter().enumerate() {
            assert!((row(i) - 0.5 * own).abs() < 1e-9, "row {i}: {} of {}", row(i), 0.5 * own);
        }
    }

    #[test]
    fn too_few_people_or_blocks_teach_nothing() {
        let people: Vec<Vec<Hand>> = (0..4).map(person).collect();
        assert!(Background::fit(&people[..1]).is_none());
        let background = Background::fit(&people).unwrap();
        assert!(background.place(&people[0][0]).is_none(), "four people do not say how people differ");
        assert!(background.enrol(&people[0][..BLOCKS_MIN - 1]).is_none());
    }
}
