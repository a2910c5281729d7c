//! Columns of the weights −1 and 1, or −1, 0 and 1, as bits: products with rows of few levels by
//! counting bits.
//!
//! With aₚ the bits of place p of a row, a·w = Σ 2ᵖ·(|aₚ & plus| − |aₚ & minus|). Where all weights are
//! signs, minus is what plus is not: a·w = 2·Σ 2ᵖ·|aₚ & plus| − Σ a. Three instructions meet 512 products
//! of bits where one meets 64 of bytes, place by place: with many places bytes are faster. A row by
//! itself waits for its weights, which are eight times as few.

use attar_tensor::Buffer;

use super::super::gemm::Strided;

/// Weights whose bits stand in one word.
pub(super) const GROUP: usize = 32;

/// Panels of columns as those of the bytes: of each group of rows a word for every column of a panel,
/// of those that are 1; of three levels then one of those that are −1.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // AVX-512 alone counts them
pub(super) struct BitColumns {
    words: Buffer,
    is_ternary: bool,
    groups: usize,
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
impl BitColumns {
    /// `None` where a weight is neither, or none is.
    pub(super) fn new(b: &Strided<i8>, [panel_columns, lanes]: [usize; 2]) -> Option<Self> {
        let [depth, columns] = b.size;
        let at = |row: usize, column: usize| b.data[row * b.strides[0] + column * b.strides[1]];
        let all = || (0..depth).flat_map(|row| (0..columns).map(move |column| at(row, column)));
        if depth < GROUP || !all().all(|w| (-1..=1).contains(&w)) {
            return None;
        }
        let is_ternary = all().any(|w| w == 0);
        let (groups, padded) = (depth.div_ceil(GROUP), columns.next_multiple_of(lanes));
        let per_column = groups * (1 + usize::from(is_ternary));
        let mut words = Buffer::zeroed(padded * per_column * 4);
        let mut cells = words.as_bytes_mut().chunks_exact_mut(4);
        for first in (0..padded).step_by(panel_columns) {
            let end = padded.min(first + panel_columns);
            for group in 0..groups {
                let rows = group * GROUP..depth.min((group + 1) * GROUP);
                for sign in [1, -1].into_iter().take(1 + usize::from(is_ternary)) {
                    for (column, cell) in (first..end).zip(&mut cells) {
                        if column >= columns {
                            continue;
                        }
                        let bits = rows.clone().enumerate();
                        let is_set = |(_, row): &(usize, usize)| at(*row, column) == sign;
                        let word =
                            bits.filter(is_set).fold(0_u32, |word, (bit, _)| word | 1 << bit);
                        cell.copy_from_slice(&word.to_ne_bytes());
                    }
                }
            }
        }
        Some(Self { words, is_ternary, groups })
    }

    /// Places of the bits of so many rows up to which counting is faster, as it was measured (AMD Zen 4):
    /// of signs, with one place twice, with two 1.15 times, with three 0.8 times as fast as bytes.
    pub(super) fn places_max(&self, rows: usize) -> u32 {
        match (self.is_ternary, rows) {
            (false, 1) => 4,
            (false, _) | (true, 1) => 2,
            (true, _) => 1,
        }
    }

    pub(super) fn is_ternary(&self) -> bool {
        self.is_ternary
    }

    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    /// The words of the panel that begins with that column.
    pub(super) fn panel(&self, first_column: usize) -> *const u32 {
        let per_column = self.groups * (1 + usize::from(self.is_ternary));
        let words: &[u32] = bytemuck::cast_slice(self.words.as_bytes());
        words[first_column * per_column..].as_ptr()
    }
}
