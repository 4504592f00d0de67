//! A forest laid flat for fast walking: eight bytes a node, children side by side, no allocation.
//!
//! A leaf points at itself with an infinite threshold, so several trees step in lockstep without
//! asking which of them have arrived; memory latency, the true cost, overlaps. Node values (mean
//! target of what reached the node in training) lie beside and also serve path attribution.
//! Must not know: how trees are grown, what features mean.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Slots of an input row. A feature occupies two: `i` with a missing value as minus infinity and
/// `i + SLOTS / 2` with it as plus infinity, so each split chooses the side of missing values by
/// naming the slot.
pub const SLOTS: usize = 256;
/// Features an input row may have.
pub const FEATURES_MAX: usize = SLOTS / 2;
/// Nodes of one forest; the link has 24 bits.
pub const NODES_MAX: usize = 1 << 24;
/// Depth of a tree.
pub const DEPTH_MAX: usize = 64;
/// Trees of one forest.
pub const TREES_MAX: usize = 4096;

/// An input row, spread to slots.
#[derive(Clone, Debug)]
pub struct Slots([f32; SLOTS]);

/// The evaluator.
#[derive(Clone, Debug, PartialEq)]
pub struct Forest {
    nodes: Vec<Node>,
    values: Vec<f32>,
    roots: Vec<u32>,
    /// Depth of the deepest tree of each lockstep group.
    depths: Vec<u32>,
    leaves: Leaves,
}

/// What the values at the leaves are, and so how trees become one score from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leaves {
    /// Shares of `true`: the score is their mean.
    #[default]
    Share,
    /// Log odds, which trees add to one another: the score is the probability of their sum.
    LogOdds,
    /// Splits it took to set a row apart, relative to what chance takes: the score is 2 to the power of
    /// minus their mean (Liu, Ting and Zhou), near 1 for what is soon apart.
    Depth,
}

impl Leaves {
    /// The score, given the sum of what the trees say.
    pub fn score(self, sum: f64, trees: usize) -> f64 {
        match self {
            Leaves::Share => sum / trees as f64,
            Leaves::LogOdds => 1.0 / (1.0 + (-sum).exp()),
            Leaves::Depth => (-sum / trees as f64).exp2(),
        }
    }

    pub fn is_share(&self) -> bool {
        *self == Leaves::Share
    }

    fn allows(self, value: f32) -> bool {
        match self {
            Leaves::Share => (0.0..=1.0).contains(&value),
            Leaves::LogOdds => value.abs() <= LOG_ODDS_MAX,
            Leaves::Depth => (0.0..=DEPTH_MAX as f32).contains(&value),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Node {
    pub threshold: f32,
    /// Slot in the upper 8 bits, first child in the lower 24; a leaf's child is itself.
    pub link: u32,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum ForestError {
    #[error("forest ends early")]
    Short,
    #[error("forest has {0}, more than the limit")]
    TooLarge(&'static str),
    #[error("tree node {0} points outside its tree")]
    Link(usize),
    #[error("tree node {0} holds a value out of its range")]
    Value(usize),
}

impl Slots {
    /// Spreads feature values; NaN is missing. At most `FEATURES_MAX` values are read.
    pub fn new(features: impl IntoIterator<Item = f32>) -> Slots {
        let mut slots = [0.0; SLOTS];
        for (i, value) in features.into_iter().take(FEATURES_MAX).enumerate() {
            let missing = value.is_nan();
            slots[i] = if missing { f32::NEG_INFINITY } else { value };
            slots[i + FEATURES_MAX] = if missing { f32::INFINITY } else { value };
        }
        Slots(slots)
    }
}

impl Forest {
    /// The score of a row, 0 to 1.
    pub fn predict(&self, row: &Slots) -> f32 {
        let mut sum = 0.0f64;
        for (group, &depth) in self.roots.chunks(LANES).zip(&self.depths) {
            let mut at = [0u32; LANES];
            at[..group.len()].copy_from_slice(group);
            for _ in 0..depth {
                for lane in &mut at {
                    *lane = self.step(*lane, row);
                }
            }
            for &leaf in &at[..group.len()] {
                sum += f64::from(self.values[leaf as usize]);
            }
        }
        self.leaves.score(sum, self.roots.len()) as f32
    }

    /// Adds to `contributions` how much each feature moved the score on its way from the roots to the
    /// leaves, and returns the score. Contributions and the roots' score add up to it (Saabas; where
    /// leaves are no shares, the way is walked in their unit and scaled to the score's).
    pub fn attribute(&self, row: &Slots, contributions: &mut [f32; FEATURES_MAX]) -> f32 {
        let weight = self.scale(row);
        for &root in &self.roots {
            let mut at = root;
            loop {
                let next = self.step(at, row);
                if next == at {
                    break;
                }
                let slot = (self.nodes[at as usize].link >> 24) as usize;
                contributions[slot % FEATURES_MAX] +=
                    weight * (self.values[next as usize] - self.values[at as usize]);
                at = next;
            }
        }
        self.predict(row)
    }

    /// What a step of one in a node's value is worth in the score.
    fn scale(&self, row: &Slots) -> f32 {
        let trees = self.roots.len();
        if self.leaves.is_share() {
            return 1.0 / trees as f32;
        }
        let at_roots: f64 = self.roots.iter().map(|&root| f64::from(self.values[root as usize])).sum();
        let at_leaves: f64 = self.roots.iter().map(|&root| f64::from(self.walk(root, row))).sum();
        let way = at_leaves - at_roots;
        if way.abs() < 1e-9 {
            return 0.0;
        }
        ((self.leaves.score(at_leaves, trees) - self.leaves.score(at_roots, trees)) / way) as f32
    }

    fn walk(&self, root: u32, row: &Slots) -> f32 {
        let mut at = root;
        loop {
            let next = self.step(at, row);
            if next == at {
                return self.values[at as usize];
            }
            at = next;
        }
    }

    /// One tree as rules, in reading order; `names` are those of the input's features.
    pub fn rules(&self, tree: usize, names: &[String]) -> Vec<Rule> {
        let mut rules = Vec::new();
        let mut open: Vec<(u32, usize, Option<Rule>)> =
            self.roots.get(tree).map(|&root| (root, 0, None)).into_iter().collect();
        while let Some((at, depth, branch)) = open.pop() {
            rules.extend(branch);
            let node = self.nodes[at as usize];
            let child = node.link & LINK_MASK;
            if child == at {
                rules.push(Rule::Leaf { depth, value: self.values[at as usize] });
                continue;
            }
            let slot = (node.link >> 24) as usize;
            let feature = names.get(slot % FEATURES_MAX).cloned().unwrap_or_default();
            for above in [true, false] {
                let missing = (slot >= FEATURES_MAX) == above;
                let (feature, threshold) = (feature.clone(), node.threshold);
                let branch = Rule::Branch { depth, feature, threshold, above, missing };
                open.push((child + u32::from(above), depth + 1, Some(branch)));
            }
        }
        rules
    }

    pub fn leaves(&self) -> Leaves {
        self.leaves
    }

    pub fn trees(&self) -> usize {
        self.roots.len()
    }

    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Appends the forest's bytes: counts, roots, then threshold, link and value of each node, little endian.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend((self.roots.len() as u32).to_le_bytes());
        bytes.extend((self.nodes.len() as u32).to_le_bytes());
        self.roots.iter().for_each(|root| bytes.extend(root.to_le_bytes()));
        for (node, value) in self.nodes.iter().zip(&self.values) {
            bytes.extend(node.threshold.to_le_bytes());
            bytes.extend(node.link.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
    }

    /// Reads a forest from the front of `bytes` and moves `bytes` past it. Whatever is read can be
    /// walked safely: every link is checked here, so that no walk needs to.
    pub fn read(bytes: &mut &[u8]) -> Result<Forest, ForestError> {
        Forest::read_as(Leaves::Share, bytes)
    }

    /// The same for leaves that are no shares: what they are is not among the bytes.
    pub fn read_as(leaves: Leaves, bytes: &mut &[u8]) -> Result<Forest, ForestError> {
        let trees = read_u32(bytes)? as usize;
        let count = read_u32(bytes)? as usize;
        if trees == 0 || trees > TREES_MAX {
            return Err(ForestError::TooLarge("trees"));
        }
        if count >= NODES_MAX {
            return Err(ForestError::TooLarge("nodes"));
        }
        if bytes.len() < trees * 4 + count * 12 {
            return Err(ForestError::Short);
        }
        let roots = (0..trees).map(|_| read_u32(bytes)).collect::<Result<Vec<_>, _>>()?;
        let mut nodes = Vec::with_capacity(count);
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            let threshold = f32::from_bits(read_u32(bytes)?);
            nodes.push(Node { threshold, link: read_u32(bytes)? });
            values.push(f32::from_bits(read_u32(bytes)?));
        }
        Forest::new(nodes, values, roots, leaves)
    }

    pub(crate) fn new(
        nodes: Vec<Node>,
        values: Vec<f32>,
        roots: Vec<u32>,
        leaves: Leaves,
    ) -> Result<Forest, ForestError> {
        debug_assert_eq!(nodes.len(), values.len());
        // Children come after their parent, so one pass from the back knows every depth.
        let mut depth = vec![0u32; nodes.len()];
        for i in (0..nodes.len()).rev() {
            let child = (nodes[i].link & LINK_MASK) as usize;
            if child != i {
                if child <= i || child + 1 >= nodes.len() || nodes[i].threshold.is_nan() {
                    return Err(ForestError::Link(i));
                }
                depth[i] = 1 + depth[child].max(depth[child + 1]);
            } else if nodes[i].threshold != f32::INFINITY {
                return Err(ForestError::Link(i));
            }
            if !leaves.allows(values[i]) {
                return Err(ForestError::Value(i));
            }
        }
        let mut depths = Vec::with_capacity(roots.len().div_ceil(LANES));
        for group in roots.chunks(LANES) {
            let mut deepest = 0;
            for &root in group {
                deepest = deepest.max(*depth.get(root as usize).ok_or(ForestError::Link(root as usize))?);
            }
            if deepest as usize > DEPTH_MAX {
                return Err(ForestError::TooLarge("levels"));
            }
            depths.push(deepest);
        }
        Ok(Forest { nodes, values, roots, depths, leaves })
    }

    #[inline(always)]
    fn step(&self, at: u32, row: &Slots) -> u32 {
        let node = self.nodes[at as usize];
        let slot = (node.link >> 24) as usize;
        (node.link & LINK_MASK) + u32::from(row.0[slot] > node.threshold)
    }
}

/// A line of a tree written as text, indented by its depth.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// What follows, deeper, holds for rows whose feature is above the threshold, or up to it; and for
    /// rows without that feature where `missing`.
    Branch { depth: usize, feature: String, threshold: f32, above: bool, missing: bool },
    /// In the unit of the forest's leaves.
    Leaf { depth: usize, value: f32 },
}

pub(crate) fn read_u32(bytes: &mut &[u8]) -> Result<u32, ForestError> {
    let (head, rest) = bytes.split_first_chunk().ok_or(ForestError::Short)?;
    *bytes = rest;
    Ok(u32::from_le_bytes(*head))
}

/// Trees stepped together. 16 to 25 were fastest on the machines tried: enough loads in flight to
/// hide a cache miss, few enough to stay in registers.
const LANES: usize = 16;
const LINK_MASK: u32 = (1 << 24) - 1;
/// Beyond this a single tree would claim certainty.
const LOG_ODDS_MAX: f32 = 64.0;

#[cfg(test)]
mod tests {
    use super::*;

    /// One split on feature 3 at 0.5, missing to the right.
    fn stump() -> Forest {
        let leaf = |i: u32| Node { threshold: f32::INFINITY, link: i };
        let split = Node { threshold: 0.5, link: ((3 + FEATURES_MAX as u32) << 24) | 1 };
        Forest::new(vec![split, leaf(1), leaf(2)], vec![0.5, 0.1, 0.9], vec![0], Leaves::Share).unwrap()
    }

    #[test]
    fn a_missing_value_takes_the_side_its_split_chose() {
        let row = |x: f32| Slots::new([0.0, 0.0, 0.0, x]);
        assert_eq!(stump().predict(&row(0.5)), 0.1);
        assert_eq!(stump().predict(&row(0.6)), 0.9);
        assert_eq!(stump().predict(&row(f32::NAN)), 0.9);
    }

    #[test]
    fn a_tree_reads_as_rules() {
        let names: Vec<String> = ["a", "b", "c", "d"].map(String::from).into();
        let branch =
            |above| Rule::Branch { depth: 0, feature: "d".into(), threshold: 0.5, above, missing: above };
        let leaf = |value| Rule::Leaf { depth: 1, value };
        assert_eq!(stump().rules(0, &names), [branch(false), leaf(0.1), branch(true), leaf(0.9)]);
        assert_eq!(stump().rules(1, &names), []);
    }

    #[test]
    fn contributions_add_up_to_the_prediction() {
        let mut contributions = [0.0; FEATURES_MAX];
        let score = stump().attribute(&Slots::new([0.0, 0.0, 0.0, 0.0]), &mut contributions);
        assert!((0.5 + contributions.iter().sum::<f32>() - score).abs() < 1e-6);
        assert!(contributions[3] < 0.0);
    }

    #[test]
    fn bytes_round_trip_and_damage_is_refused_not_walked() {
        let mut bytes = Vec::new();
        stump().write(&mut bytes);
        assert_eq!(Forest::read(&mut bytes.as_slice()), Ok(stump()));
        for cut in 0..bytes.len() {
            assert!(Forest::read(&mut &bytes[..cut]).is_err());
        }
        // Any single flipped bit either is refused or yields a forest that walks to its end.
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            if let Ok(forest) = Forest::read(&mut damaged.as_slice()) {
                let score = forest.predict(&Slots::new([0.3; 8]));
                assert!((0.0..=1.0).contains(&score), "bit {bit} gave {score}");
            }
        }
    }
}
