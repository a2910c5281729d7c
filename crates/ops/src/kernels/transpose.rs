//! Matrices with their axes swapped.

use super::for_rows;

/// Side of the squares that are moved together: both sides' lines stay in the L1 cache.
const SIDE: usize = 16;

/// Each [rows, columns] matrix of `x` becomes [columns, rows].
pub(crate) fn transpose_matrix<T: Copy + Send + Sync>(
    y: &mut [T],
    x: &[T],
    [rows, columns]: [usize; 2],
) {
    let strip = SIDE * rows;
    let plane = rows * columns;
    if rows == 3 {
        // The planes of a picture.
        return y
            .chunks_exact_mut(plane)
            .zip(x.chunks_exact(plane))
            .for_each(|(y, x)| interleave::<T, 3>(y, x));
    }
    let strips = columns.div_ceil(SIDE);
    // The last strip of a matrix may be shorter, so matrices are walked one by one.
    for (y, x) in y.chunks_exact_mut(plane).zip(x.chunks_exact(plane)) {
        let whole = columns / SIDE * strip;
        let (full, rest) = y.split_at_mut(whole);
        for_rows(full, strip, |first, y| {
            for (index, y) in y.chunks_exact_mut(strip).enumerate() {
                transpose_strip::<T, SIDE>(y, x, rows, columns, (first + index) * SIDE);
            }
        });
        if whole < plane {
            let start = (strips - 1) * SIDE;
            for (index, y) in rest.chunks_exact_mut(rows).enumerate() {
                transpose_strip::<T, 1>(y, x, rows, columns, start + index);
            }
        }
    }
}

/// As [`transpose_matrix`], for few rows.
fn interleave<T: Copy + Send + Sync, const ROWS: usize>(y: &mut [T], x: &[T]) {
    let columns = x.len() / ROWS;
    for_rows(y, ROWS, |first, y| {
        let rows: [&[T]; ROWS] = std::array::from_fn(|row| &x[row * columns + first..]);
        let pixels = y.as_chunks_mut::<ROWS>().0;
        let rows = rows.map(|row| &row[..pixels.len()]);
        for (at, pixel) in pixels.iter_mut().enumerate() {
            *pixel = rows.map(|row| row[at]);
        }
    });
}

/// Writes columns `start`..`start` + `N` of `x` as rows.
fn transpose_strip<T: Copy, const N: usize>(
    y: &mut [T],
    x: &[T],
    rows: usize,
    columns: usize,
    start: usize,
) {
    for first in (0..rows).step_by(SIDE) {
        let count = (rows - first).min(SIDE);
        for row in first..first + count {
            let line: &[T; N] =
                x[row * columns + start..].first_chunk().expect("a strip lies inside its matrix");
            for (index, &value) in line.iter().enumerate() {
                y[index * rows + row] = value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns_for_every_size() {
        for (rows, columns) in [(1, 5), (3, 40), (16, 16), (17, 33), (40, 3), (100, 64)] {
            let x: Vec<f32> = (0..2 * rows * columns).map(|i| i as f32).collect();
            let mut y = vec![0.0; x.len()];
            transpose_matrix(&mut y, &x, [rows, columns]);
            for (i, &value) in y.iter().enumerate() {
                let (n, at) = (i / (rows * columns), i % (rows * columns));
                let expected = n * rows * columns + at % rows * columns + at / rows;
                assert_eq!(value, expected as f32);
            }
        }
    }
}
