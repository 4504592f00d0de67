//! Trees as trainers leave them, and their way into the flat layout.
//!
//! Every trainer ends here, whoever grew the trees: one walk to compare with, one export, one measure of
//! which features mattered. Must not know: how trees are grown, what features mean.

use crate::forest::{FEATURES_MAX, Forest, ForestError, Leaves, NODES_MAX, Node};
use linfa::traits::PredictInplace;
use ndarray::{Array1, Array2, ArrayView1};

/// Grown trees in the trainers' own form, in double precision.
#[derive(Clone, Debug, PartialEq)]
pub struct Ensemble {
    pub(super) trees: Vec<Vec<TreeNode>>,
    /// What each feature's splits gained, adding to 1; empty where a trainer measures none.
    pub(super) importances: Vec<f64>,
    pub(super) leaves: Leaves,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct TreeNode {
    /// In the unit of `Ensemble::leaves`, for inner nodes too: path attribution reads them.
    pub value: f64,
    pub split: Option<Split>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Split {
    pub feature: usize,
    /// Rows with a value up to this go left.
    pub threshold: f64,
    pub missing_right: bool,
    /// The left child; the right one follows it.
    pub child: usize,
}

impl PredictInplace<Array2<f64>, Array1<f64>> for Ensemble {
    /// The score of each row, 0 to 1.
    fn predict_inplace<'a>(&'a self, rows: &'a Array2<f64>, scores: &mut Array1<f64>) {
        for (row, score) in rows.rows().into_iter().zip(scores.iter_mut()) {
            let sum: f64 = self.trees.iter().map(|tree| walk(tree, row)).sum();
            *score = self.leaves.score(sum, self.trees.len());
        }
    }

    fn default_target(&self, rows: &Array2<f64>) -> Array1<f64> {
        Array1::zeros(rows.nrows())
    }
}

impl Ensemble {
    /// The same trees in the flat layout. Thresholds are rounded down to `f32`: for a row of `f32`
    /// values, `x <= threshold` then holds exactly when it held in `f64`.
    pub fn flatten(&self) -> Result<Forest, ForestError> {
        let (mut nodes, mut values, mut roots) = (Vec::new(), Vec::new(), Vec::new());
        for tree in &self.trees {
            let base = nodes.len();
            roots.push(base as u32);
            if base + tree.len() >= NODES_MAX {
                return Err(ForestError::TooLarge("nodes"));
            }
            for (i, node) in tree.iter().enumerate() {
                values.push(node.value as f32);
                nodes.push(match node.split {
                    Some(split) => {
                        let slot = split.feature + if split.missing_right { FEATURES_MAX } else { 0 };
                        Node {
                            threshold: round_down(split.threshold),
                            link: (slot as u32) << 24 | (base + split.child) as u32,
                        }
                    }
                    None => Node { threshold: f32::INFINITY, link: (base + i) as u32 },
                });
            }
        }
        Forest::new(nodes, values, roots, self.leaves)
    }

    pub fn importances(&self) -> &[f64] {
        &self.importances
    }
}

fn walk(tree: &[TreeNode], row: ArrayView1<f64>) -> f64 {
    let mut node = &tree[0];
    while let Some(split) = node.split {
        let x = row[split.feature];
        let right = if x.is_nan() { split.missing_right } else { x > split.threshold };
        node = &tree[split.child + usize::from(right)];
    }
    node.value
}

/// Scales importances to add to 1.
pub(super) fn normalise(importances: &mut [f64]) {
    let total: f64 = importances.iter().sum();
    if total > 0.0 {
        importances.iter_mut().for_each(|importance| *importance /= total);
    }
}

fn round_down(threshold: f64) -> f32 {
    let near = threshold as f32;
    if f64::from(near) > threshold { near.next_down() } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_down_keeps_the_side_of_every_float() {
        let (low, high) = (1.0f32, 1.0f32.next_up());
        let middle = 0.5 * (f64::from(low) + f64::from(high));
        assert!(low <= round_down(middle) && high > round_down(middle));
        assert!(f64::from(round_down(-0.1)) <= -0.1);
    }
}
