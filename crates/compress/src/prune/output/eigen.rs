//! Eigenvalues and eigenvectors of symmetric matrices in f64: Householder reflections to three
//! diagonals, then QL steps with implicit shifts (Golub and Van Loan, "Matrix Computations", 8.3).

use rayon::prelude::*;

use crate::prune::refit::solve::dot;

/// Columns of the eigenvectors that are turned together, so that they stay in the cache.
const COLUMNS: usize = 64;
/// QL steps until an eigenvalue is given up; two or three are usual.
const STEPS_MAX: usize = 60;

/// A = Vᵀ·diag(λ)·V, by falling λ.
pub(super) struct Eigen {
    pub(super) values: Vec<f64>,
    /// A row for each eigenvalue, of length 1: [size, size].
    pub(super) vectors: Vec<f64>,
}

impl Eigen {
    /// Of the symmetric matrix `a` [size, size]; `None` where it holds what is not finite.
    pub(super) fn new(mut a: Vec<f64>, size: usize) -> Option<Self> {
        if a.iter().any(|x| !x.is_finite()) {
            return None;
        }
        let reflections = tridiagonal(&mut a, size);
        let mut diagonal: Vec<f64> = (0..size).map(|i| a[i * size + i]).collect();
        let mut beside: Vec<f64> = (1..size).map(|i| a[i * size + i - 1]).collect();
        let mut blocks = by_columns(&basis(&reflections, size), size);
        diagonalize(&mut diagonal, &mut beside, &mut blocks)?;
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by(|&i, &j| diagonal[j].total_cmp(&diagonal[i]));
        let mut vectors = Vec::with_capacity(size * size);
        for &row in &order {
            for block in &blocks {
                vectors.extend_from_slice(&block.values[row * block.width..][..block.width]);
            }
        }
        Some(Self { values: order.iter().map(|&i| diagonal[i]).collect(), vectors })
    }
}

/// I − β·v·vᵀ, where v has zeros before `first`.
struct Reflection {
    first: usize,
    v: Vec<f64>,
    beta: f64,
}

/// Turns `a` into H·A·H with three diagonals, H the product of the reflections, first to last.
fn tridiagonal(a: &mut [f64], size: usize) -> Vec<Reflection> {
    let mut reflections = Vec::new();
    for column in 0..size.saturating_sub(2) {
        let first = column + 1;
        let mut v: Vec<f64> = (first..size).map(|row| a[row * size + column]).collect();
        // Scaled, so that squares of the smallest do not vanish.
        let largest = v.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        if v[1..].iter().all(|x| *x == 0.0) {
            continue;
        }
        v.iter_mut().for_each(|x| *x /= largest);
        let length = dot(&v, &v).sqrt();
        let turned = if v[0] > 0.0 { -length } else { length };
        v[0] -= turned;
        let beta = 2.0 / dot(&v, &v);
        // A − v·wᵀ − w·vᵀ with w = p − (β/2·vᵀp)·v, p = β·A·v.
        let rows = a[first * size..].par_chunks(size);
        let mut w: Vec<f64> = rows.map(|row| beta * dot(&row[first..], &v)).collect();
        let half = 0.5 * beta * dot(&v, &w);
        w.iter_mut().zip(&v).for_each(|(w, v)| *w -= half * v);
        a[first * size..].par_chunks_mut(size).enumerate().for_each(|(i, row)| {
            for (x, (v_j, w_j)) in row[first..].iter_mut().zip(v.iter().zip(&w)) {
                *x -= v[i] * w_j + w[i] * v_j;
            }
        });
        a[first * size + column] = turned * largest;
        reflections.push(Reflection { first, v, beta });
    }
    reflections
}

/// The product of the reflections, last to first: rows that `a` is turned into.
fn basis(reflections: &[Reflection], size: usize) -> Vec<f64> {
    let mut rows = vec![0.0; size * size];
    (0..size).for_each(|i| rows[i * size + i] = 1.0);
    // From the last on, rows before `first` are still those of the identity.
    for Reflection { first, v, beta } in reflections.iter().rev() {
        rows[first * size..].par_chunks_mut(size).for_each(|row| {
            let own = &mut row[*first..];
            let share = beta * dot(own, v);
            own.iter_mut().zip(v).for_each(|(x, v)| *x -= share * v);
        });
    }
    rows
}

/// Some columns of a matrix, [rows, width].
struct Columns {
    width: usize,
    values: Vec<f64>,
}

fn by_columns(matrix: &[f64], size: usize) -> Vec<Columns> {
    let block = |first: usize| {
        let width = COLUMNS.min(size - first);
        let rows = matrix.chunks_exact(size);
        let values = rows.flat_map(|row| row[first..first + width].iter().copied()).collect();
        Columns { width, values }
    };
    (0..size).step_by(COLUMNS).map(block).collect()
}

/// Rows i and i + 1 become c·rᵢ − s·rᵢ₊₁ and s·rᵢ + c·rᵢ₊₁.
struct Turn {
    row: usize,
    c: f64,
    s: f64,
}

impl Columns {
    fn turn(&mut self, turns: &[Turn]) {
        for Turn { row, c, s } in turns {
            let both = &mut self.values[row * self.width..(row + 2) * self.width];
            let (upper, lower) = both.split_at_mut(self.width);
            for (x, y) in upper.iter_mut().zip(lower) {
                (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
            }
        }
    }
}

/// QL steps until nothing stands `beside` the diagonal; `vectors` take part in every turn.
fn diagonalize(diagonal: &mut [f64], beside: &mut [f64], vectors: &mut [Columns]) -> Option<()> {
    let mut turns = Vec::new();
    for first in 0..diagonal.len() {
        for step in 0.. {
            let is_small = |&at: &usize| {
                beside[at].abs() <= f64::EPSILON * (diagonal[at].abs() + diagonal[at + 1].abs())
            };
            let end = (first..beside.len()).find(is_small).unwrap_or(beside.len());
            if end == first {
                break;
            }
            if step == STEPS_MAX {
                return None;
            }
            ql_step(diagonal, beside, first..end, &mut turns);
        }
        vectors.par_iter_mut().for_each(|columns| columns.turn(&turns));
        turns.clear();
    }
    Some(())
}

/// One step on the rows `range.start..=range.end`, shifted by the eigenvalue of the first two that
/// is nearer to the first.
fn ql_step(
    diagonal: &mut [f64],
    beside: &mut [f64],
    range: std::ops::Range<usize>,
    turns: &mut Vec<Turn>,
) {
    let (first, end) = (range.start, range.end);
    let ratio = (diagonal[first + 1] - diagonal[first]) / (2.0 * beside[first]);
    let root = ratio.hypot(1.0).copysign(ratio);
    let mut g = diagonal[end] - diagonal[first] + beside[first] / (ratio + root);
    let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
    for row in range.rev() {
        let (f, b) = (s * beside[row], c * beside[row]);
        let length = f.hypot(g);
        if row + 1 < end {
            beside[row + 1] = length;
        }
        if length == 0.0 {
            // What stands beside vanished on the way: both parts go on by themselves.
            diagonal[row + 1] -= p;
            return;
        }
        (s, c) = (f / length, g / length);
        let shifted = diagonal[row + 1] - p;
        let sum = (diagonal[row] - shifted) * s + 2.0 * c * b;
        p = s * sum;
        diagonal[row + 1] = shifted + p;
        g = c * sum - b;
        turns.push(Turn { row, c, s });
    }
    diagonal[first] -= p;
    beside[first] = g;
    if let Some(small) = beside.get_mut(end) {
        *small = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_train::Rng;

    /// A symmetric matrix with these eigenvalues, turned by random reflections.
    fn matrix(values: &[f64]) -> Vec<f64> {
        let size = values.len();
        let mut rng = Rng::new(&[3]);
        let mut a = vec![0.0; size * size];
        (0..size).for_each(|i| a[i * size + i] = values[i]);
        for _ in 0..3 {
            let v: Vec<f64> = (0..size).map(|_| rng.normal()).collect();
            let beta = 2.0 / dot(&v, &v);
            let w: Vec<f64> = a.chunks_exact(size).map(|row| dot(row, &v)).collect();
            let inner = dot(&v, &w);
            for (at, x) in a.iter_mut().enumerate() {
                let (i, j) = (at / size, at % size);
                *x -= beta * (v[i] * w[j] + w[i] * v[j]) - beta * beta * inner * v[i] * v[j];
            }
        }
        a
    }

    /// The largest of |A·v − λ·v| and |V·Vᵀ − I|.
    fn worst(a: &[f64], found: &Eigen) -> f64 {
        let size = found.values.len();
        let mut worst = 0.0_f64;
        let rows = || found.vectors.chunks_exact(size.max(1));
        for (i, (value, v)) in found.values.iter().zip(rows()).enumerate() {
            for (j, other) in rows().enumerate() {
                let expected = f64::from(u8::from(i == j));
                worst = worst.max((dot(v, other) - expected).abs());
                worst = worst.max((dot(&a[j * size..(j + 1) * size], v) - value * v[j]).abs());
            }
        }
        worst
    }

    #[test]
    fn eigenvalues_that_a_matrix_was_made_of_are_found() {
        // Beyond a block of columns; with equal ones, zeros and a negative one.
        let mut values: Vec<f64> = (0..90).map(|i| f64::from((90 - i) / 3)).collect();
        values.extend([0.0, 0.0, 0.0, 0.0, -5.0]);
        let a = matrix(&values);
        let found = Eigen::new(a.clone(), values.len()).unwrap();
        for (found, expected) in found.values.iter().zip(&values) {
            assert!((found - expected).abs() < 1e-11, "{found}, not {expected}");
        }
        assert!(worst(&a, &found) < 1e-11, "{}", worst(&a, &found));
    }

    #[test]
    fn small_and_singular_matrices_are_matrices_too() {
        for (a, size) in [
            (vec![], 0),
            (vec![4.0], 1),
            (vec![2.0, 1.0, 1.0, 2.0], 2),
            (vec![0.0; 9], 3),
            (vec![1.0; 16], 4),
            (vec![0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], 3),
            (vec![1e-200, 2e-200, 3e-200, 2e-200, 0.0, 1e-200, 3e-200, 1e-200, 5e-200], 3),
        ] {
            let found = Eigen::new(a.clone(), size).unwrap();
            assert!(worst(&a, &found) < 1e-13, "{a:?}");
            assert!(found.values.windows(2).all(|pair| pair[0] >= pair[1]));
        }
        assert!(Eigen::new(vec![f64::NAN], 1).is_none());
    }
}
