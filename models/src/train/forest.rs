//! The random forest trainer: linfa's `Fit`, byte-identical under a seed.
//!
//! Breiman's forest with what linfa's own lacks: features drawn at each split, leaf probabilities,
//! class and row weights, missing values. Splits are found on histograms of at most 255 bins a
//! feature. One thread, a fixed order of sums, one random stream a tree: no result depends on
//! scheduling or hashing. Must not know: what the rows mean.

use super::ensemble::{Ensemble, Split, TreeNode, normalise};
use crate::forest::{FEATURES_MAX, Leaves};
use linfa::dataset::DatasetBase;
use linfa::traits::Fit;
use ndarray::{Array1, Array2, ArrayView1};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How a forest is grown.
#[derive(Clone, Debug)]
pub struct ForestParams {
    pub trees: usize,
    pub depth_max: usize,
    /// Fewest rows (drawn, with repetition) in a leaf.
    pub leaf_rows_min: u32,
    /// Features drawn at a split; 0 means the square root of all.
    pub features_per_split: usize,
    /// Weights of the classes false and true, on top of row weights.
    pub class_weights: (f64, f64),
    pub missing: Missing,
    /// Features along which the share of `true` may only rise or only fall, by column; columns beyond
    /// the end are free.
    pub monotone: Vec<Monotone>,
    pub seed: u64,
}

/// What a tree may learn along one feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Monotone {
    Free,
    Rising,
    Falling,
}

/// Which side of a split missing values take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The side that separates the training rows better.
    Learn,
    /// The side with the smaller share of `true`: what is missing never raises a score.
    TowardsFalse,
}

impl Default for ForestParams {
    fn default() -> ForestParams {
        ForestParams {
            trees: 100,
            depth_max: 12,
            leaf_rows_min: 2,
            features_per_split: 0,
            class_weights: (1.0, 1.0),
            missing: Missing::Learn,
            monotone: Vec::new(),
            seed: 0,
        }
    }
}

impl Fit<Array2<f64>, Array1<bool>, linfa::Error> for ForestParams {
    type Object = Ensemble;

    /// NaN is missing. Fails on an empty data set, on more features than the evaluator can address,
    /// and when weights are negative or do not fit the rows.
    fn fit(&self, dataset: &DatasetBase<Array2<f64>, Array1<bool>>) -> Result<Ensemble, linfa::Error> {
        let (rows, features) = dataset.records.dim();
        if rows == 0 || features == 0 || dataset.targets.len() != rows {
            return Err(linfa::Error::NotEnoughSamples);
        }
        if features > FEATURES_MAX || self.trees == 0 || rows > u32::MAX as usize {
            return Err(linfa::Error::Parameters(format!(
                "a forest takes 1 to {FEATURES_MAX} features and at least one tree"
            )));
        }
        let columns: Vec<Binned> = (0..features).map(|i| Binned::new(dataset.records.column(i))).collect();
        let weight_of = |row: usize| {
            let class = if dataset.targets[row] { self.class_weights.1 } else { self.class_weights.0 };
            class * dataset.weights.get(row).map_or(1.0, |&weight| f64::from(weight))
        };
        let weights: Vec<f64> = (0..rows).map(weight_of).collect();
        if weights.iter().any(|weight| !weight.is_finite() || *weight < 0.0) {
            return Err(linfa::Error::Parameters("weights must be finite and not negative".into()));
        }
        let mut importances = vec![0.0; features];
        let trees = (0..self.trees)
            .map(|tree| {
                let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
                rng.set_stream(tree as u64);
                let grower =
                    Grower::new(self, &columns, &dataset.targets, &weights, &mut rng, &mut importances);
                grower.grow()
            })
            .collect();
        normalise(&mut importances);
        Ok(Ensemble { trees, importances, leaves: Leaves::Share })
    }
}

/// A column cut into bins by quantiles; the last bin is for missing values.
struct Binned {
    bins: Vec<u8>,
    /// Upper edge of each bin but the last: halfway between the values it parts.
    cuts: Vec<f64>,
}

impl Binned {
    fn new(column: ArrayView1<f64>) -> Binned {
        let mut sorted: Vec<f64> = column.iter().copied().filter(|x| !x.is_nan()).collect();
        sorted.sort_by(f64::total_cmp);
        let mut cuts = Vec::new();
        let distinct = 1 + sorted.windows(2).filter(|pair| pair[0] < pair[1]).count();
        // With few distinct values every gap is a cut; otherwise the gap at or after each quantile.
        let wanted = distinct.min(BINS_MAX);
        let mut from = 0;
        for k in 1..wanted {
            let mut i = if distinct <= BINS_MAX { from } else { (k * sorted.len() / wanted).max(from) };
            while i + 1 < sorted.len() && sorted[i] == sorted[i + 1] {
                i += 1;
            }
            if i + 1 >= sorted.len() {
                break;
            }
            cuts.push(sorted[i] + 0.5 * (sorted[i + 1] - sorted[i]));
            from = i + 1;
        }
        let bin = |x: &f64| {
            if x.is_nan() { MISSING_BIN } else { cuts.partition_point(|cut| x > cut) as u8 }
        };
        Binned { bins: column.iter().map(bin).collect(), cuts }
    }
}

struct Grower<'a> {
    params: &'a ForestParams,
    columns: &'a [Binned],
    targets: &'a Array1<bool>,
    weights: &'a [f64],
    rng: &'a mut ChaCha8Rng,
    importances: &'a mut [f64],
    /// Rows drawn by the bootstrap, without repetition; nodes own ranges of it.
    rows: Vec<u32>,
    drawn: Vec<u32>,
    order: Vec<usize>,
    nodes: Vec<TreeNode>,
}

struct Open {
    node: usize,
    /// Between which shares the node and all below it must stay, for the sake of monotone splits above.
    low: f64,
    high: f64,
    from: usize,
    to: usize,
    depth: usize,
}

struct Candidate {
    feature: usize,
    cut: usize,
    missing_right: bool,
    gain: f64,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    /// Weight of `false` and `true`.
    weight: [f64; 2],
    rows: u32,
}

impl Tally {
    fn plus(self, other: Tally) -> Tally {
        Tally {
            weight: [self.weight[0] + other.weight[0], self.weight[1] + other.weight[1]],
            rows: self.rows + other.rows,
        }
    }
    fn minus(self, other: Tally) -> Tally {
        Tally {
            weight: [self.weight[0] - other.weight[0], self.weight[1] - other.weight[1]],
            rows: self.rows - other.rows,
        }
    }
    fn total(self) -> f64 {
        self.weight[0] + self.weight[1]
    }
    fn share(self) -> f64 {
        let total = self.total();
        if total > 0.0 { (self.weight[1] / total).clamp(0.0, 1.0) } else { 0.0 }
    }
    /// Gini impurity times weight.
    fn impurity(self) -> f64 {
        let total = self.total();
        if total > 0.0 { 2.0 * self.weight[0] * self.weight[1] / total } else { 0.0 }
    }
}

impl<'a> Grower<'a> {
    fn new(
        params: &'a ForestParams,
        columns: &'a [Binned],
        targets: &'a Array1<bool>,
        weights: &'a [f64],
        rng: &'a mut ChaCha8Rng,
        importances: &'a mut [f64],
    ) -> Grower<'a> {
        let n = targets.len();
        let mut drawn = vec![0u32; n];
        for _ in 0..n {
            drawn[rng.random_range(0..n)] += 1;
        }
        let rows = (0..n as u32).filter(|&row| drawn[row as usize] > 0).collect();
        let order = (0..columns.len()).collect();
        Grower { params, columns, targets, weights, rng, importances, rows, drawn, order, nodes: Vec::new() }
    }

    fn grow(mut self) -> Vec<TreeNode> {
        let root = self.tally(0, self.rows.len());
        self.nodes.push(TreeNode { value: root.share(), split: None });
        let mut open = vec![Open { node: 0, low: 0.0, high: 1.0, from: 0, to: self.rows.len(), depth: 0 }];
        while let Some(Open { node, low, high, from, to, depth }) = open.pop() {
            if depth >= self.params.depth_max.min(crate::forest::DEPTH_MAX) {
                continue;
            }
            let Some(best) = self.best_split(from, to) else { continue };
            self.importances[best.feature] += best.gain;
            let middle = self.partition(from, to, &best);
            let child = self.nodes.len();
            let shares = [self.tally(from, middle).share(), self.tally(middle, to).share()];
            let shares = shares.map(|share| share.clamp(low, high));
            self.nodes.extend(shares.map(|value| TreeNode { value, split: None }));
            // What lies beyond a monotone split stays beyond its middle, however deep it is split again.
            let between = 0.5 * (shares[0] + shares[1]);
            let ((low_left, high_left), (low_right, high_right)) = match self.monotone(best.feature) {
                Monotone::Free => ((low, high), (low, high)),
                Monotone::Rising => ((low, between), (between, high)),
                Monotone::Falling => ((between, high), (low, between)),
            };
            self.nodes[node].split = Some(Split {
                feature: best.feature,
                threshold: self.columns[best.feature].cuts[best.cut],
                missing_right: best.missing_right,
                child,
            });
            let depth = depth + 1;
            open.push(Open { node: child + 1, low: low_right, high: high_right, from: middle, to, depth });
            open.push(Open { node: child, low: low_left, high: high_left, from, to: middle, depth });
        }
        self.nodes
    }

    fn monotone(&self, feature: usize) -> Monotone {
        self.params.monotone.get(feature).copied().unwrap_or(Monotone::Free)
    }

    fn tally(&self, from: usize, to: usize) -> Tally {
        let mut tally = Tally::default();
        self.rows[from..to].iter().for_each(|&row| self.count(&mut tally, row as usize));
        tally
    }

    #[inline(always)]
    fn count(&self, tally: &mut Tally, row: usize) {
        let drawn = self.drawn[row];
        tally.weight[usize::from(self.targets[row])] += f64::from(drawn) * self.weights[row];
        tally.rows += drawn;
    }

    /// The best split over freshly drawn features; draws on while none of them can split.
    fn best_split(&mut self, from: usize, to: usize) -> Option<Candidate> {
        let whole = self.tally(from, to);
        if whole.rows < 2 * self.params.leaf_rows_min || whole.weight[0] <= 0.0 || whole.weight[1] <= 0.0 {
            return None;
        }
        let features = self.columns.len();
        let wanted = match self.params.features_per_split {
            0 => (features as f64).sqrt().round() as usize,
            wanted => wanted,
        };
        let mut best: Option<Candidate> = None;
        for drawn in 0..features {
            if drawn >= wanted && best.is_some() {
                break;
            }
            let pick = self.rng.random_range(drawn..features);
            self.order.swap(drawn, pick);
            self.try_feature(self.order[drawn], from, to, whole, &mut best);
        }
        best
    }

    fn try_feature(
        &self,
        feature: usize,
        from: usize,
        to: usize,
        whole: Tally,
        best: &mut Option<Candidate>,
    ) {
        let column = &self.columns[feature];
        if column.cuts.is_empty() {
            return;
        }
        let mut histogram = [Tally::default(); 256];
        for &row in &self.rows[from..to] {
            let bin = column.bins[row as usize];
            self.count(&mut histogram[bin as usize], row as usize);
        }
        let missing = histogram[MISSING_BIN as usize];
        let present = whole.minus(missing);
        let mut left = Tally::default();
        for (cut, &tally) in histogram[..column.cuts.len()].iter().enumerate() {
            left = left.plus(tally);
            let right = present.minus(left);
            if left.rows == 0 || right.rows == 0 {
                continue;
            }
            let sides: &[bool] = match self.params.missing {
                _ if missing.rows == 0 => &[false],
                Missing::Learn => &[false, true],
                Missing::TowardsFalse if left.share() <= right.share() => &[false],
                Missing::TowardsFalse => &[true],
            };
            for &missing_right in sides {
                let (l, r) =
                    if missing_right { (left, right.plus(missing)) } else { (left.plus(missing), right) };
                if l.rows < self.params.leaf_rows_min || r.rows < self.params.leaf_rows_min {
                    continue;
                }
                let (low, high) = (l.share(), r.share());
                match self.monotone(feature) {
                    Monotone::Rising if low >= high => continue,
                    Monotone::Falling if low <= high => continue,
                    _ => {}
                }
                let gain = whole.impurity() - l.impurity() - r.impurity();
                if gain > GAIN_MIN * whole.total() && best.as_ref().is_none_or(|best| gain > best.gain) {
                    // A node that never saw a missing value sends it where fewer are `true`.
                    let missing_right =
                        if missing.rows == 0 { right.share() < left.share() } else { missing_right };
                    *best = Some(Candidate { feature, cut, missing_right, gain });
                }
            }
        }
    }

    /// Puts the rows that go left first, keeping their order; returns where the right side starts.
    fn partition(&mut self, from: usize, to: usize, split: &Candidate) -> usize {
        let bins = &self.columns[split.feature].bins;
        let goes_right = |row: u32| {
            let bin = bins[row as usize];
            if bin == MISSING_BIN { split.missing_right } else { bin as usize > split.cut }
        };
        let range = &mut self.rows[from..to];
        let right: Vec<u32> = range.iter().copied().filter(|&row| goes_right(row)).collect();
        let mut middle = 0;
        for i in 0..range.len() {
            if !goes_right(range[i]) {
                range[middle] = range[i];
                middle += 1;
            }
        }
        range[middle..].copy_from_slice(&right);
        from + middle
    }
}

const BINS_MAX: usize = 255;
const MISSING_BIN: u8 = 255;
/// A split must lower the impurity by more than rounding noise, relative to the node's weight.
const GAIN_MIN: f64 = 1e-9;

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::forest::Slots;
    use linfa::traits::Predict;

    /// Two informative columns among noise, a tenth missing, 3 % of labels flipped.
    pub(crate) fn toy(rows: usize, features: usize, seed: u64) -> DatasetBase<Array2<f64>, Array1<bool>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut records = Array2::zeros((rows, features));
        let mut targets = Array1::from_elem(rows, false);
        for i in 0..rows {
            for j in 0..features {
                records[(i, j)] = f64::from(rng.random_range(-1.0f32..1.0));
            }
            targets[i] = (records[(i, 0)] * records[(i, 1)] > 0.0) ^ rng.random_bool(0.03);
            let hole = rng.random_range(0..features * 10);
            if hole < features {
                records[(i, hole)] = f64::NAN;
            }
        }
        DatasetBase::new(records, targets)
    }

    #[test]
    fn the_flat_forest_agrees_with_the_trainer_on_5000_rows() {
        let data = toy(6_000, 40, 1);
        let forest = ForestParams { trees: 60, seed: 5, ..ForestParams::default() }.fit(&data).unwrap();
        let flat = forest.flatten().unwrap();
        let fresh = toy(5_000, 40, 2);
        let expected: Array1<f64> = forest.predict(&fresh.records);
        let worst = fresh.records.rows().into_iter().zip(&expected).map(|(row, expected)| {
            let slots = Slots::new(row.iter().map(|&x| x as f32));
            (f64::from(flat.predict(&slots)) - expected).abs()
        });
        let worst = worst.fold(0.0, f64::max);
        assert!(worst <= 1e-6, "largest difference {worst}");
    }

    #[test]
    fn the_same_seed_grows_the_same_bytes() {
        let data = toy(800, 10, 3);
        let bytes = |seed| {
            let forest = ForestParams { trees: 10, seed, ..ForestParams::default() }.fit(&data).unwrap();
            let mut bytes = Vec::new();
            forest.flatten().unwrap().write(&mut bytes);
            bytes
        };
        assert_eq!(bytes(1), bytes(1));
        assert_ne!(bytes(1), bytes(2));
    }

    #[test]
    fn it_learns_an_interaction_that_no_single_feature_shows() {
        let data = toy(4_000, 8, 4);
        let forest = ForestParams { trees: 60, seed: 1, ..ForestParams::default() }.fit(&data).unwrap();
        let fresh = toy(2_000, 8, 5);
        let predicted: Array1<f64> = forest.predict(&fresh.records);
        let right =
            predicted.iter().zip(&fresh.targets).filter(|(p, target)| (**p > 0.5) == **target).count();
        assert!(right > 1_700, "{right} of 2000 right");
        assert!(forest.importances()[0] + forest.importances()[1] > 0.5);
    }

    #[test]
    fn what_is_missing_counts_for_false_when_told_so_and_is_learnt_otherwise() {
        // Every missing row is true, which a model must not hold against those it cannot see.
        let records = Array2::from_shape_fn((220, 1), |(i, _)| match i {
            0..100 => 0.0,
            100..200 => 1.0,
            _ => f64::NAN,
        });
        let targets = Array1::from_shape_fn(220, |i| i >= 100);
        let data = DatasetBase::new(records, targets);
        let missing = |missing| {
            let params = ForestParams { trees: 20, missing, ..ForestParams::default() };
            let predicted: Array1<f64> =
                params.fit(&data).unwrap().predict(&Array2::from_elem((1, 1), f64::NAN));
            predicted[0]
        };
        assert!(missing(Missing::Learn) > 0.9, "{}", missing(Missing::Learn));
        assert!(missing(Missing::TowardsFalse) < 0.3, "{}", missing(Missing::TowardsFalse));
    }

    #[test]
    fn a_monotone_forest_never_turns_back() {
        // The target rises, then falls again beyond what a monotone forest may believe.
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        let records = Array2::from_shape_fn((3_000, 4), |_| rng.random_range(-1.0..1.0));
        let targets = Array1::from_shape_fn(3_000, |i| {
            let x = records[(i, 0)] + 0.3 * records[(i, 1)];
            (0.0..0.6).contains(&x)
        });
        let data = DatasetBase::new(records, targets);
        let params =
            ForestParams { trees: 20, monotone: vec![Monotone::Rising], seed: 4, ..ForestParams::default() };
        let forest = params.fit(&data).unwrap();
        for _ in 0..200 {
            let others = [0; 3].map(|_| rng.random_range(-1.0..1.0));
            let line =
                Array2::from_shape_fn(
                    (41, 4),
                    |(i, j)| if j == 0 { i as f64 / 20.0 - 1.0 } else { others[j - 1] },
                );
            let predicted: Array1<f64> = forest.predict(&line);
            let steps = predicted.windows(2);
            assert!(steps.into_iter().all(|pair| pair[0] <= pair[1] + 1e-12), "{predicted}");
        }
    }

    #[test]
    fn weights_count_like_repeated_rows() {
        let records = Array2::from_shape_fn((40, 1), |(i, _)| (i % 2) as f64);
        let targets = Array1::from_shape_fn(40, |i| i % 4 == 0);
        let data = DatasetBase::new(records, targets);
        let params =
            ForestParams { trees: 30, class_weights: (1.0, 3.0), seed: 2, ..ForestParams::default() };
        let forest = params.fit(&data).unwrap();
        let predicted: Array1<f64> = forest.predict(&Array2::zeros((1, 1)));
        // Among rows with value 0, half are true; three times their weight makes three quarters.
        assert!((predicted[0] - 0.75).abs() < 0.08, "{}", predicted[0]);
    }

    #[test]
    fn an_empty_or_too_wide_data_set_is_refused() {
        let empty = DatasetBase::new(Array2::zeros((0, 3)), Array1::from_elem(0, false));
        assert!(ForestParams::default().fit(&empty).is_err());
        let wide = DatasetBase::new(Array2::zeros((4, FEATURES_MAX + 1)), Array1::from_elem(4, true));
        assert!(ForestParams::default().fit(&wide).is_err());
    }
}
