//! The isolation forest: how few random cuts set a row apart from those it was grown on.
//!
//! Liu, Ting and Zhou, "Isolation Forest" (ICDM 2008), laid flat: eight bytes a node, children side by
//! side, one random stream a tree. Cuts run along single features, so shifts that only show across
//! several features at once need a covariance beside it. Must not know: what the rows mean.

use crate::forest::{self, Forest, ForestError, Leaves, read_u32};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Most trees, rows a tree, and features of a row.
pub const TREES_MAX: usize = 256;
pub const ROWS_PER_TREE_MAX: usize = 1024;
pub const FEATURES_MAX: usize = 128;

/// How a forest is grown; the usual 100 trees of 256 rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsolationParams {
    pub trees: usize,
    pub rows_per_tree: usize,
    pub seed: u64,
}

impl Default for IsolationParams {
    fn default() -> IsolationParams {
        IsolationParams { trees: 100, rows_per_tree: 256, seed: 1 }
    }
}

/// A grown forest.
#[derive(Clone, Debug, PartialEq)]
pub struct IsolationForest {
    nodes: Vec<Node>,
    roots: Vec<u32>,
    features: u32,
    /// Rows each tree was grown on.
    rows: u32,
}

/// A cut, or a leaf.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Node {
    /// Rows below go to the first child; in a leaf, the cuts its rows would still have needed.
    value: f32,
    /// Feature in the upper 8 bits, first child in the lower 24; `LEAF` for a leaf.
    link: u32,
}

impl IsolationForest {
    /// Grows a forest. `None` without two rows, with rows of different or no length, with a value that
    /// is not finite, or with parameters beyond the limits.
    pub fn fit(rows: &[Vec<f32>], params: IsolationParams) -> Option<IsolationForest> {
        let features = rows.first()?.len();
        let sound = |row: &Vec<f32>| row.len() == features && row.iter().all(|value| value.is_finite());
        let IsolationParams { trees, rows_per_tree, seed } = params;
        let within = (1..=TREES_MAX).contains(&trees) && (2..=ROWS_PER_TREE_MAX).contains(&rows_per_tree);
        if rows.len() < 2
            || features == 0
            || features > FEATURES_MAX
            || !within
            || !rows.iter().all(sound)
            || rows.len() > u32::MAX as usize
        {
            return None;
        }
        let drawn = rows_per_tree.min(rows.len());
        let mut forest = IsolationForest {
            nodes: Vec::new(),
            roots: Vec::with_capacity(trees),
            features: features as u32,
            rows: drawn as u32,
        };
        let depth_max = usize::BITS - (drawn - 1).leading_zeros();
        for tree in 0..trees {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(tree as u64);
            let mut sample: Vec<u32> = (0..rows.len() as u32).collect();
            // The first `drawn` of a shuffle: without repetition.
            for i in 0..drawn {
                let other = rng.random_range(i..sample.len());
                sample.swap(i, other);
            }
            forest.roots.push(forest.nodes.len() as u32);
            forest.nodes.push(Node { value: 0.0, link: LEAF });
            let root = forest.nodes.len() - 1;
            forest.grow(rows, &mut sample[..drawn], root, depth_max, &mut rng);
        }
        Some(forest)
    }

    /// How easily a row is set apart, 0 to 1: about a half for a row in the midst, towards 1 for one
    /// that a few cuts suffice for. Reads the features the forest knows; a value that is missing (NaN)
    /// goes to the second child.
    pub fn score(&self, row: &[f32]) -> f32 {
        debug_assert!(row.len() >= self.features as usize);
        let mut sum = 0.0;
        for &root in &self.roots {
            let (mut at, mut depth) = (root as usize, 0.0);
            while self.nodes[at].link != LEAF {
                let Node { value, link } = self.nodes[at];
                let below = row[(link >> 24) as usize] < value;
                at = (link & CHILD_MASK) as usize + usize::from(!below);
                depth += 1.0;
            }
            sum += depth + self.nodes[at].value;
        }
        let mean = sum / self.roots.len() as f32;
        (-mean / cuts_needed(self.rows)).exp2()
    }

    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The same trees in the layout of all experts, which knows missing values: they go where more cuts
    /// are needed and never make a row look set apart.
    pub fn flatten(&self) -> Result<Forest, ForestError> {
        let unit = cuts_needed(self.rows);
        let mut depths = vec![0.0f32; self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.link != LEAF) {
            let child = (node.link & CHILD_MASK) as usize;
            depths[child] = depths[i] + 1.0;
            depths[child + 1] = depths[child];
        }
        let mut values = vec![0.0f32; self.nodes.len()];
        let mut nodes = vec![forest::Node { threshold: f32::INFINITY, link: 0 }; self.nodes.len()];
        // Children lie behind their parent: from the back, each finds them done.
        for (i, node) in self.nodes.iter().enumerate().rev() {
            if node.link == LEAF {
                values[i] = (depths[i] + node.value) / unit;
                nodes[i].link = i as u32;
                continue;
            }
            let child = (node.link & CHILD_MASK) as usize;
            let missing_right = values[child + 1] > values[child];
            let feature = (node.link >> 24) + if missing_right { forest::FEATURES_MAX as u32 } else { 0 };
            // What is below goes left here, what is below or equal there.
            nodes[i] = forest::Node { threshold: node.value.next_down(), link: feature << 24 | child as u32 };
            // How many rows took which side is not kept; attribution takes both as equally likely.
            values[i] = 0.5 * (values[child] + values[child + 1]);
        }
        Forest::new(nodes, values, self.roots.clone(), Leaves::Depth)
    }

    /// Appends the forest's bytes: features, rows a tree, trees, nodes, roots, then value and link of
    /// each node, little endian.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        for count in [self.features, self.rows, self.roots.len() as u32, self.nodes.len() as u32] {
            bytes.extend(count.to_le_bytes());
        }
        self.roots.iter().for_each(|root| bytes.extend(root.to_le_bytes()));
        for node in &self.nodes {
            bytes.extend(node.value.to_le_bytes());
            bytes.extend(node.link.to_le_bytes());
        }
    }

    /// Reads a forest from the front of `bytes` and moves `bytes` past it; `None` for anything that
    /// could not be walked to a leaf. Every link is checked here, so that no walk needs to.
    pub fn read(bytes: &mut &[u8]) -> Option<IsolationForest> {
        let mut next = || read_u32(bytes).ok();
        let (features, rows, trees, count) = (next()?, next()?, next()? as usize, next()? as usize);
        let within = (1..=FEATURES_MAX as u32).contains(&features)
            && (2..=ROWS_PER_TREE_MAX as u32).contains(&rows)
            && (1..=TREES_MAX).contains(&trees)
            && count <= trees * 2 * ROWS_PER_TREE_MAX;
        if !within || bytes.len() < trees * 4 + count * 8 {
            return None;
        }
        let roots = (0..trees).map(|_| read_u32(bytes).ok()).collect::<Option<Vec<_>>>()?;
        let mut nodes = Vec::with_capacity(count);
        for i in 0..count {
            let node = Node { value: f32::from_bits(read_u32(bytes).ok()?), link: read_u32(bytes).ok()? };
            let child = (node.link & CHILD_MASK) as usize;
            // Children lie behind their parent, so every walk ends.
            let cut = node.link >> 24 < features && child > i && child + 1 < count && node.value.is_finite();
            let leaf = node.link == LEAF && node.value.is_finite() && node.value >= 0.0;
            if !cut && !leaf {
                return None;
            }
            nodes.push(node);
        }
        let sound = roots.iter().all(|&root| (root as usize) < count);
        sound.then_some(IsolationForest { nodes, roots, features, rows })
    }

    fn grow(&mut self, rows: &[Vec<f32>], sample: &mut [u32], at: usize, depth: u32, rng: &mut ChaCha8Rng) {
        let cut = if sample.len() > 1 && depth > 0 { self.cut(rows, sample, rng) } else { None };
        let Some((feature, value)) = cut else {
            self.nodes[at] = Node { value: cuts_needed(sample.len() as u32), link: LEAF };
            return;
        };
        let mut below = 0;
        for i in 0..sample.len() {
            if rows[sample[i] as usize][feature] < value {
                sample.swap(i, below);
                below += 1;
            }
        }
        let child = self.nodes.len();
        self.nodes[at] = Node { value, link: (feature as u32) << 24 | child as u32 };
        self.nodes.extend([Node { value: 0.0, link: LEAF }; 2]);
        let (left, right) = sample.split_at_mut(below);
        self.grow(rows, left, child, depth - 1, rng);
        self.grow(rows, right, child + 1, depth - 1, rng);
    }

    /// A random feature that varies among the sample, and a random place between its least and most;
    /// `None` if no feature tried varies.
    fn cut(&self, rows: &[Vec<f32>], sample: &[u32], rng: &mut ChaCha8Rng) -> Option<(usize, f32)> {
        let features = self.features as usize;
        let first = rng.random_range(0..features);
        (0..features).map(|step| (first + step) % features).find_map(|feature| {
            let value = |&row: &u32| rows[row as usize][feature];
            let least = sample.iter().map(value).fold(f32::INFINITY, f32::min);
            let most = sample.iter().map(value).fold(f32::NEG_INFINITY, f32::max);
            let place = least + (most - least) * rng.random_range(0.0..1.0f32);
            // Strictly above the least, so that both sides get a row; `most - least` may also overflow.
            (least < place && place <= most).then_some((feature, place))
        })
    }
}

/// Mean number of cuts that set one of `rows` rows apart (the mean depth of an unsuccessful search in a
/// binary search tree).
fn cuts_needed(rows: u32) -> f32 {
    const EULER: f32 = 0.577_215_7;
    match rows {
        0 | 1 => 0.0,
        2 => 1.0,
        n => 2.0 * ((n as f32 - 1.0).ln() + EULER) - 2.0 * (n as f32 - 1.0) / n as f32,
    }
}

const LEAF: u32 = u32::MAX;
const CHILD_MASK: u32 = (1 << 24) - 1;
// The largest forest's nodes can be addressed, and no cut looks like a leaf.
const _: () = assert!(TREES_MAX * 2 * ROWS_PER_TREE_MAX < CHILD_MASK as usize && FEATURES_MAX < 255);

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows around zero, roughly normal, from a seed.
    fn cloud(rows: usize, features: usize, seed: u64) -> Vec<Vec<f32>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut value = || (0..12).map(|_| rng.random_range(-0.5..0.5f32)).sum::<f32>();
        (0..rows).map(|_| (0..features).map(|_| value()).collect()).collect()
    }

    #[test]
    fn the_flat_layout_scores_alike_and_takes_what_is_missing_for_usual() {
        let mut rng = ChaCha8Rng::seed_from_u64(12);
        let mut row = || (0..6).map(|_| rng.random_range(-1.0..1.0f32)).collect::<Vec<_>>();
        let rows: Vec<Vec<f32>> = (0..400).map(|_| row()).collect();
        let forest = IsolationForest::fit(&rows, IsolationParams::default()).unwrap();
        let flat = forest.flatten().unwrap();
        let (mut outliers, mut raised) = (0, 0);
        for _ in 0..5_000 {
            let mut fresh = row();
            fresh[0] *= 3.0;
            let score = flat.predict(&forest::Slots::new(fresh.iter().copied()));
            assert!((score - forest.score(&fresh)).abs() <= 1e-6);
            if fresh[0].abs() > 2.0 {
                fresh[0] = f32::NAN;
                let unknown = flat.predict(&forest::Slots::new(fresh.iter().copied()));
                outliers += 1;
                raised += usize::from(unknown >= score);
            }
        }
        assert!(outliers > 1_000 && raised == 0, "{raised} of {outliers}");
    }

    #[test]
    fn a_row_far_from_all_others_is_set_apart_sooner() {
        let forest = IsolationForest::fit(&cloud(1000, 5, 1), IsolationParams::default()).unwrap();
        let mean =
            |rows: Vec<Vec<f32>>| rows.iter().map(|row| forest.score(row)).sum::<f32>() / rows.len() as f32;
        let usual = mean(cloud(200, 5, 2));
        let strange: Vec<_> =
            cloud(200, 5, 3).into_iter().map(|row| row.iter().map(|v| v + 4.0).collect()).collect();
        let strange = mean(strange);
        assert!((0.35..0.55).contains(&usual) && strange > 0.65, "usual {usual}, strange {strange}");
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_does_not() {
        let bytes = |seed| {
            let params = IsolationParams { seed, ..IsolationParams::default() };
            let mut bytes = Vec::new();
            IsolationForest::fit(&cloud(300, 4, 1), params).unwrap().write(&mut bytes);
            bytes
        };
        assert_eq!(bytes(7), bytes(7));
        assert_ne!(bytes(7), bytes(8));
    }

    #[test]
    fn the_usual_forest_is_small() {
        let forest = IsolationForest::fit(&cloud(1000, 30, 1), IsolationParams::default()).unwrap();
        let mut bytes = Vec::new();
        forest.write(&mut bytes);
        assert!(bytes.len() < 300_000 && forest.nodes() <= 100 * 511, "{} bytes", bytes.len());
    }

    #[test]
    fn what_cannot_be_learnt_from_is_refused() {
        let fit = |rows: &[Vec<f32>]| IsolationForest::fit(rows, IsolationParams::default());
        assert_eq!(fit(&[]), None);
        assert_eq!(fit(&[vec![1.0]]), None);
        assert_eq!(fit(&[vec![1.0], vec![1.0, 2.0]]), None);
        assert_eq!(fit(&[vec![1.0], vec![f32::NAN]]), None);
        assert_eq!(fit(&vec![vec![0.0; FEATURES_MAX + 1]; 2]), None);
        let none = IsolationParams { trees: 0, ..IsolationParams::default() };
        assert_eq!(IsolationForest::fit(&cloud(9, 2, 1), none), None);
        // Rows without any difference have no cut, and none is stranger than another.
        let same = fit(&vec![vec![3.0, 3.0]; 50]).unwrap();
        assert_eq!(same.score(&[3.0, 3.0]), same.score(&[9.0, 9.0]));
    }

    #[test]
    fn bytes_round_trip_and_damage_is_refused_or_walks_to_its_end() {
        let params = IsolationParams { trees: 2, rows_per_tree: 8, seed: 1 };
        let forest = IsolationForest::fit(&cloud(20, 3, 1), params).unwrap();
        let mut bytes = Vec::new();
        forest.write(&mut bytes);
        assert_eq!(IsolationForest::read(&mut bytes.as_slice()), Some(forest));
        for cut in 0..bytes.len() {
            assert_eq!(IsolationForest::read(&mut &bytes[..cut]), None);
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            if let Some(forest) = IsolationForest::read(&mut damaged.as_slice()) {
                let score = forest.score(&[0.1; FEATURES_MAX]);
                assert!((0.0..=1.0).contains(&score), "bit {bit} gave {score}");
            }
        }
    }
}
