//! The integer products: a block of eight rows times a packed right side.

use super::{COLUMNS, Path, ROWS};

/// The left side of a product: eight rows of u8, `depth` each, and what each takes off its sums.
pub(super) struct Block<'a> {
    pub(super) left: &'a [u8],
    /// From row to row.
    pub(super) stride: usize,
    pub(super) terms: &'a [i32; ROWS],
    pub(super) depth: usize,
    pub(super) columns: usize,
}

impl Block<'_> {
    /// out = starts - terms + left·right, rows of `columns`.
    pub(super) fn product(&self, path: Path, out: &mut [i32], starts: &[i32], right: &[u8]) {
        let Self { depth, columns, .. } = *self;
        let width = 4 / path.group();
        assert!(
            self.left.len() >= (ROWS - 1) * self.stride + depth
                && right.len() >= depth * columns * width
        );
        assert!(out.len() >= ROWS * columns && starts.len() >= columns);
        assert!(columns.is_multiple_of(COLUMNS) && depth.is_multiple_of(path.group()));
        if columns == 0 {
            return;
        }
        match path {
            #[cfg(target_arch = "x86_64")]
            Path::Vnni => {
                let mut column = 0;
                while column + 2 * COLUMNS <= columns {
                    // SAFETY: the path was found present, and the sizes were checked above.
                    unsafe { x86::vnni::<2>(self, out, starts, right, column) };
                    column += 2 * COLUMNS;
                }
                if column < columns {
                    // SAFETY: as above.
                    unsafe { x86::vnni::<1>(self, out, starts, right, column) };
                }
            }
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => {
                for column in (0..columns).step_by(COLUMNS) {
                    // SAFETY: as above.
                    unsafe { x86::avx2(self, out, starts, right, column) };
                }
            }
            Path::Portable => {
                let right = bytemuck::cast_slice(&right[..depth * columns * 2]);
                self.product_of_pairs(out, starts, right);
            }
        }
    }

    fn product_of_pairs(&self, out: &mut [i32], starts: &[i32], right: &[[i16; 2]]) {
        let Self { depth, columns, .. } = *self;
        for (row, out) in out.chunks_exact_mut(columns).take(ROWS).enumerate() {
            for (out, start) in out.iter_mut().zip(starts) {
                *out = start - self.terms[row];
            }
            let left = self.left[row * self.stride..][..depth].as_chunks::<2>().0;
            for (pair, right) in left.iter().zip(right.chunks_exact(columns)) {
                let pair = pair.map(i32::from);
                for (out, right) in out.iter_mut().zip(right) {
                    *out += pair[0] * i32::from(right[0]) + pair[1] * i32::from(right[1]);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    // Every instruction is of this architecture, and its name says so.
    #![allow(clippy::wildcard_imports)]

    use std::arch::x86_64::*;

    use super::{Block, COLUMNS, ROWS};

    /// Sums of `N`·16 columns from `column` on.
    ///
    /// # Safety
    /// AVX-512 with VNNI; sizes as [`Block::product`] checks them, and the columns are there.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) unsafe fn vnni<const N: usize>(
        block: &Block,
        out: &mut [i32],
        starts: &[i32],
        right: &[u8],
        column: usize,
    ) {
        let Block { stride, depth, columns, .. } = *block;
        // SAFETY: every pointer stays within the slices, whose sizes the caller checked.
        unsafe {
            let mut sums = [[_mm512_setzero_si512(); N]; ROWS];
            for n in 0..N {
                let start = _mm512_loadu_si512(starts.as_ptr().add(column + n * COLUMNS).cast());
                for (sums, &term) in sums.iter_mut().zip(block.terms) {
                    sums[n] = _mm512_sub_epi32(start, _mm512_set1_epi32(term));
                }
            }
            let mut left = block.left.as_ptr();
            let mut right = right.as_ptr().add(column * 4);
            for _ in 0..depth / 4 {
                let mut b = [_mm512_setzero_si512(); N];
                for (n, b) in b.iter_mut().enumerate() {
                    *b = _mm512_loadu_si512(right.add(n * COLUMNS * 4).cast());
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let a = left.add(row * stride).cast::<i32>().read_unaligned();
                    let a = _mm512_set1_epi32(a);
                    for n in 0..N {
                        sums[n] = _mm512_dpbusd_epi32(sums[n], a, b[n]);
                    }
                }
                left = left.add(4);
                right = right.add(columns * 4);
            }
            for (row, sums) in sums.iter().enumerate() {
                for (n, &sums) in sums.iter().enumerate() {
                    let to = out.as_mut_ptr().add(row * columns + column + n * COLUMNS);
                    _mm512_storeu_si512(to.cast(), sums);
                }
            }
        }
    }

    /// Sums of 16 columns from `column` on, four rows at a time.
    ///
    /// # Safety
    /// AVX2; sizes as [`Block::product`] checks them, and the columns are there.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2(
        block: &Block,
        out: &mut [i32],
        starts: &[i32],
        right: &[u8],
        column: usize,
    ) {
        const HALF: usize = COLUMNS / 2;
        let Block { stride, depth, columns, .. } = *block;
        for first in [0, ROWS / 2] {
            // SAFETY: every pointer stays within the slices, whose sizes the caller checked.
            unsafe {
                let mut sums = [[_mm256_setzero_si256(); 2]; ROWS / 2];
                for n in 0..2 {
                    let start = starts.as_ptr().add(column + n * HALF).cast();
                    let start = _mm256_loadu_si256(start);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let term = _mm256_set1_epi32(block.terms[first + row]);
                        sums[n] = _mm256_sub_epi32(start, term);
                    }
                }
                let mut left = block.left.as_ptr().add(first * stride);
                let mut right = right.as_ptr().add(column * 4);
                for _ in 0..depth / 2 {
                    let b = [0, 32].map(|bytes| _mm256_loadu_si256(right.add(bytes).cast()));
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let pair = left.add(row * stride).cast::<i16>().read_unaligned();
                        let a = _mm256_cvtepu8_epi16(_mm_set1_epi16(pair));
                        for n in 0..2 {
                            sums[n] = _mm256_add_epi32(sums[n], _mm256_madd_epi16(a, b[n]));
                        }
                    }
                    left = left.add(2);
                    right = right.add(columns * 4);
                }
                for (row, sums) in sums.iter().enumerate() {
                    for (n, &sums) in sums.iter().enumerate() {
                        let at = (first + row) * columns + column + n * HALF;
                        _mm256_storeu_si256(out.as_mut_ptr().add(at).cast(), sums);
                    }
                }
            }
        }
    }
}
