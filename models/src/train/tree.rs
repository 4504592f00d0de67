//! One decision tree that a person can read, grown by linfa-trees.
//!
//! linfa's trees are trained with `<=` and asked with `<`, never part values closer than 1e-5 and know
//! no missing ones. So they are grown on ranks, where neighbours are one apart and every split lies
//! between two of them, and the ranks are translated back. Must not know: what the rows mean.

use super::ensemble::{Ensemble, Split, TreeNode, normalise};
use crate::forest::{FEATURES_MAX, Leaves};
use linfa::dataset::DatasetBase;
use linfa::traits::Fit;
use linfa_trees::{DecisionTree, TreeNode as Grown};
use ndarray::{Array1, Array2};

/// How the tree is grown.
#[derive(Clone, Copy, Debug)]
pub struct TreeParams {
    pub depth_max: usize,
    /// Least weight of the rows in a leaf; rows weigh 1 on average.
    pub leaf_weight_min: f32,
}

impl Default for TreeParams {
    fn default() -> TreeParams {
        TreeParams { depth_max: 5, leaf_weight_min: 20.0 }
    }
}

impl Fit<Array2<f64>, Array1<bool>, linfa::Error> for TreeParams {
    type Object = Ensemble;

    /// NaN is missing and goes where the share of `true` is smaller. Leaves hold the weighted share of
    /// `true` among the training rows that reach them.
    fn fit(&self, dataset: &DatasetBase<Array2<f64>, Array1<bool>>) -> Result<Ensemble, linfa::Error> {
        let (rows, features) = dataset.records.dim();
        if rows == 0 || dataset.targets.len() != rows {
            return Err(linfa::Error::NotEnoughSamples);
        }
        if features == 0 || features > FEATURES_MAX {
            return Err(linfa::Error::Parameters(format!("a tree takes 1 to {FEATURES_MAX} features")));
        }
        let values: Vec<Vec<f64>> = dataset.records.columns().into_iter().map(distinct).collect();
        let ranks = Array2::from_shape_fn((rows, features), |(i, j)| {
            let x = dataset.records[(i, j)];
            let known = &values[j];
            // A missing value stands in the middle while the tree is grown.
            if x.is_nan() { (known.len() / 2) as f64 } else { known.partition_point(|v| *v < x) as f64 }
        });
        let weight = |i: usize| dataset.weights.get(i).copied().unwrap_or(1.0);
        let ranked = DatasetBase::new(ranks, dataset.targets.clone()).with_weights(untied(dataset));
        let grown = DecisionTree::params()
            .max_depth(Some(self.depth_max))
            .min_weight_leaf(self.leaf_weight_min)
            .fit(&ranked)?;
        let mut importances = vec![0.0; features];
        let mut tree = vec![TreeNode { value: 0.0, split: None }];
        translate(grown.root_node(), 0, &values, &mut tree);
        weigh(&mut tree, &mut importances, dataset, weight);
        normalise(&mut importances);
        Ok(Ensemble { trees: vec![tree], importances, leaves: Leaves::Share })
    }
}

/// linfa breaks ties between labels by the order of a hash map; so there must be none.
fn untied(dataset: &DatasetBase<Array2<f64>, Array1<bool>>) -> Array1<f32> {
    let weight = |i: usize| dataset.weights.get(i).copied().unwrap_or(1.0);
    let targets = dataset.targets.iter().enumerate();
    targets.map(|(i, &is)| weight(i) * if is { 1.000_01 } else { 1.0 }).collect()
}

fn distinct(column: ndarray::ArrayView1<f64>) -> Vec<f64> {
    let mut values: Vec<f64> = column.iter().copied().filter(|x| !x.is_nan()).collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    values
}

/// Copies a node and what is below it, its rank turned into the middle between the values it parts.
fn translate(grown: &Grown<f64, bool>, at: usize, values: &[Vec<f64>], tree: &mut Vec<TreeNode>) {
    let [Some(left), Some(right)] = grown.children()[..] else { return };
    if grown.is_leaf() {
        return;
    }
    let (feature, rank, _) = grown.split();
    let known = &values[feature];
    let above = (rank.max(0.0).ceil() as usize).clamp(1, known.len().max(2) - 1);
    let (Some(low), Some(high)) = (known.get(above - 1), known.get(above)) else { return };
    let child = tree.len();
    tree.extend([0, 1].map(|_| TreeNode { value: 0.0, split: None }));
    tree[at].split =
        Some(Split { feature, threshold: low + 0.5 * (high - low), missing_right: false, child });
    translate(left, child, values, tree);
    translate(right, child + 1, values, tree);
}

/// Fills in shares and what each split gained, and sends missing values to the side with the smaller
/// share: first the sides, from rows that are known there, then all rows.
fn weigh(
    tree: &mut [TreeNode],
    importances: &mut [f64],
    dataset: &DatasetBase<Array2<f64>, Array1<bool>>,
    weight: impl Fn(usize) -> f32,
) {
    let tally = |tree: &[TreeNode], missing_go_on: bool| {
        let mut tallies = vec![[0.0f64; 2]; tree.len()];
        for (i, row) in dataset.records.rows().into_iter().enumerate() {
            let class = usize::from(dataset.targets[i]);
            let mut at = 0;
            tallies[at][class] += f64::from(weight(i));
            while let Some(split) = tree[at].split {
                let x = row[split.feature];
                if x.is_nan() && !missing_go_on {
                    break;
                }
                at = split.child
                    + usize::from(if x.is_nan() { split.missing_right } else { x > split.threshold });
                tallies[at][class] += f64::from(weight(i));
            }
        }
        tallies
    };
    let total = |tally: [f64; 2]| tally[0] + tally[1];
    let share = |tally: [f64; 2]| if total(tally) > 0.0 { tally[1] / total(tally) } else { 0.0 };
    let impurity = |tally: [f64; 2]| 2.0 * share(tally) * tally[0];
    let tallies = tally(tree, false);
    for split in tree.iter_mut().filter_map(|node| node.split.as_mut()) {
        split.missing_right = share(tallies[split.child + 1]) < share(tallies[split.child]);
    }
    let tallies = tally(tree, true);
    for (node, &whole) in tree.iter_mut().zip(&tallies) {
        node.value = share(whole);
        if let Some(split) = node.split {
            let below = impurity(tallies[split.child]) + impurity(tallies[split.child + 1]);
            importances[split.feature] += impurity(whole) - below;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::forest::tests::toy;
    use super::*;
    use crate::forest::Slots;
    use linfa::traits::Predict;

    #[test]
    fn the_flat_tree_agrees_with_linfas_own_on_5000_rows() {
        // Without missing values, of which linfa knows none, and far enough apart for it.
        let clean = |seed| {
            let mut data = toy(5_000, 12, seed);
            data.records.mapv_inplace(|x| if x.is_nan() { 0.5 } else { (x * 1000.0).round() });
            data
        };
        let (data, fresh) = (clean(1), clean(2));
        let params = TreeParams { depth_max: 6, leaf_weight_min: 5.0 };
        let flat = params.fit(&data).unwrap().flatten().unwrap();
        let weighted = data.clone().with_weights(untied(&data));
        let linfas = DecisionTree::params().max_depth(Some(6)).min_weight_leaf(5.0).fit(&weighted).unwrap();
        let labels: Array1<bool> = linfas.predict(&fresh.records);
        let differ = fresh.records.rows().into_iter().zip(&labels).filter(|(row, label)| {
            // linfa trains `<=` and predicts `<`: a row that meets a split exactly is its own affair.
            let on_a_split =
                linfas.iter_nodes().any(|node| !node.is_leaf() && row[node.split().0] == node.split().1);
            let score = flat.predict(&Slots::new(row.iter().map(|&x| x as f32)));
            // Where a leaf holds as many of both, linfa's label is either.
            !on_a_split && score != 0.5 && (score > 0.5) != **label
        });
        assert_eq!(differ.count(), 0);
    }

    #[test]
    fn values_that_lie_close_together_are_parted_and_the_seedless_tree_is_always_the_same() {
        let mut data = toy(2_000, 6, 3);
        data.targets = data.records.column(2).iter().map(|x| *x > 0.2).collect();
        data.records *= 1e-7;
        let tree = TreeParams::default().fit(&data).unwrap();
        let scores: Array1<f64> = tree.predict(&data.records);
        let known = data.records.column(2);
        let right = (0..2_000).filter(|&i| known[i].is_nan() || (scores[i] > 0.5) == data.targets[i]);
        assert!(right.count() > 1_990);
        assert!(tree.importances()[2] > 0.95, "{:?}", tree.importances());
        assert_eq!(tree, TreeParams::default().fit(&data).unwrap());
    }
}
