//! Gradient-boosted trees, grown by forust-ml and laid flat like all others.
//!
//! One thread and no sampling, so the same rows give the same bytes. Must not know: what the rows mean.

use super::ensemble::{Ensemble, Split, TreeNode, normalise};
use super::forest::{Missing, Monotone};
use crate::forest::{FEATURES_MAX, Leaves};
use forust_ml::constraints::{Constraint, ConstraintMap};
use forust_ml::tree::Tree;
use forust_ml::{GradientBooster, Matrix};
use linfa::dataset::DatasetBase;
use linfa::traits::Fit;
use ndarray::{Array1, Array2};

/// How the trees are grown.
#[derive(Clone, Debug)]
pub struct BoostParams {
    pub trees: usize,
    pub depth_max: usize,
    /// Share of each tree's correction that is taken.
    pub learning_rate: f32,
    /// Least curvature of the loss in a leaf, about a quarter of its rows' weight at even odds.
    pub leaf_weight_min: f32,
    pub missing: Missing,
    /// As in `ForestParams`.
    pub monotone: Vec<Monotone>,
}

impl Default for BoostParams {
    fn default() -> BoostParams {
        BoostParams {
            trees: 100,
            depth_max: 5,
            learning_rate: 0.1,
            leaf_weight_min: 1.0,
            missing: Missing::Learn,
            monotone: Vec::new(),
        }
    }
}

impl Fit<Array2<f64>, Array1<bool>, linfa::Error> for BoostParams {
    type Object = Ensemble;

    /// NaN is missing. Fails on an empty data set, on more features than the evaluator can address, and
    /// on what forust refuses.
    fn fit(&self, dataset: &DatasetBase<Array2<f64>, Array1<bool>>) -> Result<Ensemble, linfa::Error> {
        let features = dataset.records.ncols();
        let mut booster = self.boost(dataset)?;
        if self.missing == Missing::TowardsFalse {
            booster.trees.iter_mut().for_each(send_missing_down);
        }
        let mut importances = vec![0.0; features];
        let trees = (booster.trees.iter().enumerate())
            .map(|(i, tree)| {
                // The first tree carries what was assumed before any.
                let base = if i == 0 { booster.base_score } else { 0.0 };
                for node in tree.nodes.iter().filter(|node| !node.is_leaf) {
                    importances[node.split_feature] += f64::from(node.split_gain);
                }
                lay_out(tree, base)
            })
            .collect();
        normalise(&mut importances);
        Ok(Ensemble { trees, importances, leaves: Leaves::LogOdds })
    }
}

impl BoostParams {
    fn boost(
        &self,
        dataset: &DatasetBase<Array2<f64>, Array1<bool>>,
    ) -> Result<GradientBooster, linfa::Error> {
        let (rows, features) = dataset.records.dim();
        if rows == 0 || dataset.targets.len() != rows {
            return Err(linfa::Error::NotEnoughSamples);
        }
        if features == 0 || features > FEATURES_MAX || self.trees == 0 {
            return Err(linfa::Error::Parameters(format!(
                "boosting takes 1 to {FEATURES_MAX} features and at least one tree"
            )));
        }
        let columns: Vec<f64> = dataset.records.t().iter().copied().collect();
        let targets: Vec<f64> = dataset.targets.iter().map(|&is| f64::from(u8::from(is))).collect();
        let weight = |i| f64::from(dataset.weights.get(i).copied().unwrap_or(1.0));
        let weights: Vec<f64> = (0..rows).map(weight).collect();
        let constraint = |(i, monotone): (usize, &Monotone)| match monotone {
            Monotone::Free => None,
            Monotone::Rising => Some((i, Constraint::Positive)),
            Monotone::Falling => Some((i, Constraint::Negative)),
        };
        let constraints: ConstraintMap = self.monotone.iter().enumerate().filter_map(constraint).collect();
        let mut booster = GradientBooster::default()
            .set_iterations(self.trees)
            .set_learning_rate(self.learning_rate)
            .set_max_depth(self.depth_max)
            .set_min_leaf_weight(self.leaf_weight_min)
            .set_initialize_base_score(true)
            .set_monotone_constraints(Some(constraints))
            .set_parallel(false);
        let refused = |e: forust_ml::errors::ForustError| linfa::Error::Parameters(e.to_string());
        booster.fit(&Matrix::new(&columns, rows, features), &targets, &weights, None).map_err(refused)?;
        Ok(booster)
    }
}

/// What is missing goes where the log odds are smaller, and never raises a score.
fn send_missing_down(tree: &mut Tree) {
    for at in 0..tree.nodes.len() {
        let (left, right) = (tree.nodes[at].left_child, tree.nodes[at].right_child);
        if !tree.nodes[at].is_leaf {
            let right_is_lower = tree.nodes[right].weight_value < tree.nodes[left].weight_value;
            tree.nodes[at].missing_node = if right_is_lower { right } else { left };
        }
    }
}

/// The tree with siblings side by side and `base` added throughout.
fn lay_out(tree: &Tree, base: f64) -> Vec<TreeNode> {
    let node = |at: usize| TreeNode { value: base + f64::from(tree.nodes[at].weight_value), split: None };
    let mut laid = vec![node(0)];
    // Where each of forust's inner nodes has come to lie.
    let mut open = vec![(0, 0)];
    while let Some((from, to)) = open.pop() {
        let grown = &tree.nodes[from];
        if grown.is_leaf {
            continue;
        }
        let child = laid.len();
        laid[to].split = Some(Split {
            feature: grown.split_feature,
            // forust sends what is less to the left, we what is less or equal.
            threshold: grown.split_value.next_down(),
            missing_right: grown.missing_node == grown.right_child,
            child,
        });
        laid.extend([node(grown.left_child), node(grown.right_child)]);
        open.extend([(grown.left_child, child), (grown.right_child, child + 1)]);
    }
    laid
}

#[cfg(test)]
mod tests {
    use super::super::forest::tests::toy;
    use super::*;
    use crate::forest::{FEATURES_MAX, Slots};

    #[test]
    fn the_flat_trees_agree_with_forust_on_5000_rows() {
        let (data, fresh) = (toy(6_000, 40, 1), toy(5_000, 40, 2));
        let params = BoostParams { trees: 60, ..BoostParams::default() };
        let flat = params.fit(&data).unwrap().flatten().unwrap();
        let columns: Vec<f64> = fresh.records.t().iter().copied().collect();
        let says = params.boost(&data).unwrap().predict(&Matrix::new(&columns, 5_000, 40), false);
        let worst = fresh.records.rows().into_iter().zip(says).map(|(row, log_odds)| {
            let slots = Slots::new(row.iter().map(|&x| x as f32));
            (f64::from(flat.predict(&slots)) - 1.0 / (1.0 + (-log_odds).exp())).abs()
        });
        let worst = worst.fold(0.0, f64::max);
        assert!(worst <= 1e-6, "largest difference {worst}");
    }

    #[test]
    fn contributions_in_log_odds_are_scaled_to_add_up_to_the_score() {
        let data = toy(3_000, 8, 3);
        let flat = BoostParams { trees: 30, ..BoostParams::default() }.fit(&data).unwrap().flatten().unwrap();
        let mut nothing = [0.0; FEATURES_MAX];
        let blank = Slots::new([f32::NAN; 8]);
        let blank = flat.attribute(&blank, &mut nothing) - nothing.iter().sum::<f32>();
        for row in data.records.rows().into_iter().take(200) {
            let mut contributions = [0.0; FEATURES_MAX];
            let score = flat.attribute(&Slots::new(row.iter().map(|&x| x as f32)), &mut contributions);
            // All rows start from the same score at the roots.
            assert!((score - contributions.iter().sum::<f32>() - blank).abs() < 1e-4);
        }
    }

    #[test]
    fn what_is_missing_never_raises_a_score_when_told_so() {
        let records = Array2::from_shape_fn((220, 1), |(i, _)| match i {
            0..100 => 0.0,
            100..200 => 1.0,
            _ => f64::NAN,
        });
        let data = DatasetBase::new(records, Array1::from_shape_fn(220, |i| i >= 100));
        let score = |missing| {
            let params = BoostParams { trees: 20, missing, ..BoostParams::default() };
            params.fit(&data).unwrap().flatten().unwrap().predict(&Slots::new([f32::NAN]))
        };
        assert!(score(Missing::Learn) > 0.8, "{}", score(Missing::Learn));
        assert!(score(Missing::TowardsFalse) < 0.3, "{}", score(Missing::TowardsFalse));
    }

    #[test]
    fn the_same_rows_grow_the_same_trees() {
        let data = toy(800, 10, 3);
        let params = BoostParams { trees: 10, ..BoostParams::default() };
        assert_eq!(params.fit(&data).unwrap(), params.fit(&data).unwrap());
    }
}
