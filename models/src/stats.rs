//! Small mergeable statistics: constant memory, constant time a value, and adding two gives the same
//! as having seen both streams.
//!
//! Must not know: what the values mean.

/// Count, mean and spread. Sums rather than Welford's update, so that windows can be added; callers
/// feed values of moderate size (mostly logarithms), for which `f32` sums over a window are exact enough.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spread {
    n: f32,
    sum: f32,
    squares: f32,
}

impl Spread {
    pub fn add(&mut self, value: f32) {
        debug_assert!(value.is_finite());
        self.n += 1.0;
        self.sum += value;
        self.squares += value * value;
    }

    pub fn merge(&mut self, other: &Spread) {
        self.n += other.n;
        self.sum += other.sum;
        self.squares += other.squares;
    }

    pub fn n(&self) -> f32 {
        self.n
    }

    /// NaN for fewer than `min` values.
    pub fn mean(&self, min: u32) -> f32 {
        if self.n < (min.max(1)) as f32 { f32::NAN } else { self.sum / self.n }
    }

    /// Standard deviation; NaN for fewer than `min` values.
    pub fn sd(&self, min: u32) -> f32 {
        if self.n < (min.max(2)) as f32 {
            return f32::NAN;
        }
        let mean = self.sum / self.n;
        (self.squares / self.n - mean * mean).max(0.0).sqrt()
    }
}

/// Correlation and slope of pairs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pairs {
    n: f32,
    x: f32,
    y: f32,
    xx: f32,
    yy: f32,
    xy: f32,
}

impl Pairs {
    pub fn add(&mut self, x: f32, y: f32) {
        debug_assert!(x.is_finite() && y.is_finite());
        self.n += 1.0;
        self.x += x;
        self.y += y;
        self.xx += x * x;
        self.yy += y * y;
        self.xy += x * y;
    }

    pub fn merge(&mut self, other: &Pairs) {
        self.n += other.n;
        self.x += other.x;
        self.y += other.y;
        self.xx += other.xx;
        self.yy += other.yy;
        self.xy += other.xy;
    }

    /// Pearson's correlation; NaN for fewer than `min` pairs, 0 where one side does not vary.
    pub fn correlation(&self, min: u32) -> f32 {
        if self.n < (min.max(3)) as f32 {
            return f32::NAN;
        }
        let (cov, vx, vy) = self.moments();
        if vx <= VARIANCE_MIN || vy <= VARIANCE_MIN {
            return 0.0;
        }
        (cov / (vx * vy).sqrt()).clamp(-1.0, 1.0)
    }

    /// Slope of y over x; NaN for fewer than `min` pairs or where x does not vary.
    pub fn slope(&self, min: u32) -> f32 {
        if self.n < (min.max(3)) as f32 {
            return f32::NAN;
        }
        let (cov, vx, _) = self.moments();
        if vx <= VARIANCE_MIN { f32::NAN } else { (cov / vx).clamp(-10.0, 10.0) }
    }

    /// Standard deviation of y about the line fitted over x; NaN for fewer than `min` pairs.
    pub fn residual(&self, min: u32) -> f32 {
        let correlation = self.correlation(min);
        let (_, _, vy) = self.moments();
        (vy.max(0.0) * (1.0 - correlation * correlation)).sqrt()
    }

    fn moments(&self) -> (f32, f32, f32) {
        let (mx, my) = (self.x / self.n, self.y / self.n);
        (self.xy / self.n - mx * my, self.xx / self.n - mx * mx, self.yy / self.n - my * my)
    }
}

/// A histogram on a logarithmic scale with two buckets an octave (relative error of a quantile: 19 %
/// before interpolation), from `2^LOW` up; what lies outside lands in the end buckets.
#[derive(Clone, Copy, Debug)]
pub struct Buckets<const LOW: i32, const N: usize> {
    counts: [u16; N],
}

impl<const LOW: i32, const N: usize> Default for Buckets<LOW, N> {
    fn default() -> Self {
        Buckets { counts: [0; N] }
    }
}

impl<const LOW: i32, const N: usize> Buckets<LOW, N> {
    /// Adds a value given as its natural logarithm, which callers have at hand.
    pub fn add_ln(&mut self, ln: f32) {
        let at = (ln * std::f32::consts::LOG2_E - LOW as f32) * BUCKETS_PER_OCTAVE;
        // A float cast saturates: NaN and what is below the scale become bucket 0.
        let index = (at as usize).min(N - 1);
        self.counts[index] = self.counts[index].saturating_add(1);
    }

    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
    }

    pub fn n(&self) -> u32 {
        self.counts.iter().map(|&count| u32::from(count)).sum()
    }

    /// Natural logarithm of the quantile `q`, interpolated within its bucket; NaN for fewer than `min` values.
    pub fn quantile_ln(&self, q: f32, min: u32) -> f32 {
        let n = self.n();
        if n < min.max(1) {
            return f32::NAN;
        }
        let rank = q * n as f32;
        let mut below = 0.0;
        for (i, &count) in self.counts.iter().enumerate() {
            let count = f32::from(count);
            if count > 0.0 && below + count >= rank {
                let within = ((rank - below) / count).clamp(0.0, 1.0);
                let octaves = LOW as f32 + (i as f32 + within) / BUCKETS_PER_OCTAVE;
                return octaves * std::f32::consts::LN_2;
            }
            below += count;
        }
        f32::NAN
    }

    /// Entropy over the buckets, in bits; NaN for fewer than `min` values.
    pub fn entropy(&self, min: u32) -> f32 {
        entropy(&self.counts, min)
    }

    /// Share of values below a bucket edge, `2^(LOW + edge / 2)`.
    pub fn share_below(&self, edge: usize, min: u32) -> f32 {
        let n = self.n();
        if n < min.max(1) {
            return f32::NAN;
        }
        let below: u32 = self.counts.iter().take(edge).map(|&count| u32::from(count)).sum();
        below as f32 / n as f32
    }
}

/// Entropy of counts, in bits; NaN for fewer than `min` in all.
pub fn entropy(counts: &[u16], min: u32) -> f32 {
    let n: u32 = counts.iter().map(|&count| u32::from(count)).sum();
    if n < min.max(1) {
        return f32::NAN;
    }
    let share = |count: u16| f32::from(count) / n as f32;
    counts.iter().filter(|&&count| count > 0).map(|&count| -share(count) * share(count).log2()).sum()
}

/// The middle of the values, which are left in another order; NaN of none.
pub fn median(values: &mut [f32]) -> f32 {
    if values.is_empty() {
        return f32::NAN;
    }
    let (middle, n) = (values.len() / 2, values.len());
    let (below, upper, _) = values.select_nth_unstable_by(middle, f32::total_cmp);
    let upper = *upper;
    if n % 2 == 1 { upper } else { 0.5 * (upper + below.iter().copied().fold(f32::NEG_INFINITY, f32::max)) }
}

const BUCKETS_PER_OCTAVE: f32 = 2.0;
/// Below this, a variance is rounding noise of `f32` sums.
const VARIANCE_MIN: f32 = 1e-6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_equals_having_seen_both() {
        let values: Vec<f32> = (1..200).map(|i| (i as f32 * 0.37).sin() * 3.0 + 4.0).collect();
        let (mut all, mut left, mut right) = (Spread::default(), Spread::default(), Spread::default());
        let mut buckets: [Buckets<-4, 24>; 3] = Default::default();
        for (i, &value) in values.iter().enumerate() {
            all.add(value);
            if i % 3 == 0 {
                left.add(value)
            } else {
                right.add(value)
            }
            buckets[0].add_ln(value.ln());
            buckets[1 + i % 2].add_ln(value.ln());
        }
        left.merge(&right);
        assert!((left.mean(1) - all.mean(1)).abs() < 1e-4 && (left.sd(2) - all.sd(2)).abs() < 1e-4);
        let [whole, mut first, second] = buckets;
        first.merge(&second);
        assert_eq!(first.quantile_ln(0.9, 1), whole.quantile_ln(0.9, 1));
    }

    #[test]
    fn quantiles_are_within_a_bucket() {
        let mut buckets = Buckets::<0, 24>::default();
        (1..=1000).for_each(|i| buckets.add_ln((i as f32).ln()));
        for q in [0.1, 0.5, 0.9] {
            let error = (buckets.quantile_ln(q, 1) - (q * 1000.0).ln()).abs();
            assert!(error < 0.1, "quantile {q} is off by {error}");
        }
    }

    #[test]
    fn too_few_values_are_missing_not_zero() {
        let mut spread = Spread::default();
        spread.add(1.0);
        assert!(spread.mean(2).is_nan() && spread.sd(2).is_nan());
        assert!(Buckets::<0, 4>::default().quantile_ln(0.5, 1).is_nan());
        assert!(Pairs::default().correlation(3).is_nan());
    }

    #[test]
    fn a_median_is_the_middle_or_between_the_middle_two() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(&mut []).is_nan());
    }

    #[test]
    fn a_line_has_its_slope() {
        let mut pairs = Pairs::default();
        (0..20).for_each(|i| pairs.add(i as f32 * 0.1, i as f32 * 0.05 + 1.0));
        assert!((pairs.slope(3) - 0.5).abs() < 1e-2 && pairs.correlation(3) > 0.99);
        assert!(pairs.residual(3) < 0.05 && pairs.residual(21).is_nan());
    }
}
