//! Small dense linear algebra: what a covariance of a few hundred columns needs, in a fixed order of sums.
//!
//! Must not know: what rows and columns mean.

/// Lower factor `L` of a symmetric, positive matrix `A = L Lᵀ`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lower {
    rows: Vec<f64>,
    n: usize,
}

impl Lower {
    /// Cholesky's factor; reads the lower triangle of `matrix` (row-major). `None` unless positive.
    pub(crate) fn factor(mut matrix: Vec<f64>, n: usize) -> Option<Lower> {
        debug_assert_eq!(matrix.len(), n * n);
        for i in 0..n {
            let (above, row) = matrix.split_at_mut(i * n);
            for k in 0..i {
                let known = dot(&row[..k], &above[k * n..k * n + k]);
                row[k] = (row[k] - known) / above[k * n + k];
            }
            let rest = row[i] - dot(&row[..i], &row[..i]);
            if !(rest > 0.0 && rest.is_finite()) {
                return None;
            }
            row[i] = rest.sqrt();
        }
        Some(Lower { rows: matrix, n })
    }

    /// `x` with `L x = b`.
    pub(crate) fn solve_lower(&self, b: &[f64]) -> Vec<f64> {
        let mut x = b.to_vec();
        for i in 0..self.n {
            let row = &self.rows[i * self.n..i * self.n + i + 1];
            x[i] = (x[i] - dot(&row[..i], &x[..i])) / row[i];
        }
        x
    }

    /// `x` with `Lᵀ x = b`.
    pub(crate) fn solve_upper(&self, b: &[f64]) -> Vec<f64> {
        let mut x = b.to_vec();
        for i in (0..self.n).rev() {
            let row = &self.rows[i * self.n..i * self.n + i + 1];
            x[i] /= row[i];
            let value = x[i];
            x[..i].iter_mut().zip(row).for_each(|(x, l)| *x -= l * value);
        }
        x
    }

    /// `x` with `A x = b`.
    pub(crate) fn solve(&self, b: &[f64]) -> Vec<f64> {
        self.solve_upper(&self.solve_lower(b))
    }
}

/// Sum of products, over four partial sums in a fixed order.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 4];
    let (a_chunks, b_chunks) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for i in 0..4 {
            sums[i] += x[i] * y[i];
        }
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}

/// Eigenvalues and unit eigenvectors of a symmetric matrix (row-major, `n × n`), largest first: Jacobi's
/// rotations, at most `SWEEPS_MAX` sweeps.
pub(crate) fn eigen_symmetric(mut a: Vec<f64>, n: usize) -> Vec<(f64, Vec<f64>)> {
    let mut vectors = vec![0.0; n * n];
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    for _ in 0..SWEEPS_MAX {
        let off: f64 =
            (0..n).flat_map(|i| (0..i).map(move |k| (i, k))).map(|(i, k)| a[i * n + k].powi(2)).sum();
        let on: f64 = (0..n).map(|i| a[i * n + i].powi(2)).sum();
        if off <= 1e-22 * on {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                if a[p * n + q] == 0.0 {
                    continue;
                }
                let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * a[p * n + q]);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                let s = t * c;
                for k in 0..n {
                    let (x, y) = (a[k * n + p], a[k * n + q]);
                    (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
                }
                for k in 0..n {
                    let (x, y) = (a[p * n + k], a[q * n + k]);
                    (a[p * n + k], a[q * n + k]) = (c * x - s * y, s * x + c * y);
                    // Rows of `vectors` are the eigenvectors.
                    let (x, y) = (vectors[p * n + k], vectors[q * n + k]);
                    (vectors[p * n + k], vectors[q * n + k]) = (c * x - s * y, s * x + c * y);
                }
            }
        }
    }
    let mut pairs: Vec<(f64, Vec<f64>)> =
        (0..n).map(|i| (a[i * n + i], vectors[i * n..(i + 1) * n].to_vec())).collect();
    pairs.sort_by(|x, y| y.0.total_cmp(&x.0));
    pairs
}

const SWEEPS_MAX: usize = 30;

#[cfg(test)]
mod tests {
    use super::*;

    const A: [f64; 9] = [4.0, 1.0, 2.0, 1.0, 3.0, 0.5, 2.0, 0.5, 5.0];

    fn times(x: &[f64]) -> Vec<f64> {
        (0..3).map(|i| dot(&A[3 * i..3 * i + 3], x)).collect()
    }

    #[test]
    fn a_solution_solves() {
        let b = [1.0, -2.0, 0.5];
        let x = Lower::factor(A.to_vec(), 3).unwrap().solve(&b);
        assert!(times(&x).iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{x:?}");
        assert!(Lower::factor(vec![1.0, 2.0, 2.0, 1.0], 2).is_none());
    }

    #[test]
    fn eigenvectors_are_only_stretched() {
        let pairs = eigen_symmetric(A.to_vec(), 3);
        for (value, vector) in &pairs {
            assert!(times(vector).iter().zip(vector).all(|(a, v)| (a - value * v).abs() < 1e-9));
            assert!((dot(vector, vector) - 1.0).abs() < 1e-12);
        }
        assert!(pairs[0].0 > pairs[1].0 && pairs[1].0 > pairs[2].0);
        assert!((pairs.iter().map(|pair| pair.0).sum::<f64>() - 12.0).abs() < 1e-9);
    }
}
