//! One head of attention over u8 operands: Q·Kᵀ in 32-bit integers, softmax in f32, probabilities
//! rounded to levels, P·V in integers (after Shen et al., 2020, arXiv:1909.05840).
//!
//! Probabilities that the graph rounds are normalized before. Others are levels of eˣ⁻ᵐᵃˣ in 16
//! bits, which are only divided by their sum behind the product: one pass over the scores, and finer
//! than levels of the quotient.
//!
//! Every path gives the same bits: integer sums are exact, and every operation in f32 rounds once,
//! products with their addend too, in one order whatever the instruction set.

mod pack;
mod probabilities;
mod product;
mod rows;
#[cfg(test)]
mod tests;

use pack::Packing;
use product::Block;
use rows::Sums;

/// Queries that are computed together.
const ROWS: usize = 8;

/// Columns of a packed right side come in multiples of this.
const COLUMNS: usize = 16;

/// Instructions of the integer products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// Four products of u8·i8 to a sum.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// Two products of i16·i16 to a sum: those of u8·i8 (`vpmaddubsw`) saturate.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// As `Avx2`, in plain loops.
    Portable,
}

impl Path {
    /// All of them, the fastest first.
    pub(crate) const ALL: &[Self] = &[
        #[cfg(target_arch = "x86_64")]
        Self::Vnni,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        Self::Portable,
    ];

    /// The best that this CPU has.
    pub(crate) fn best() -> Self {
        Self::ALL.iter().copied().find(|path| path.is_present()).unwrap_or(Self::Portable)
    }

    /// Whether this CPU has the instructions.
    pub(crate) fn is_present(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vnni => {
                is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            Self::Portable => true,
        }
    }

    /// Consecutive elements of depth that stand together in packed data.
    fn group(self) -> usize {
        if self.is_bytes() { 4 } else { 2 }
    }

    /// What is taken off the right side's elements so that they fit its type.
    fn offset(self) -> i32 {
        if self.is_bytes() { 128 } else { 0 }
    }

    fn is_bytes(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Self::Vnni;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }
}

/// Rows of u8 of one head: (level − zero) · scale.
#[derive(Clone, Copy)]
pub(crate) struct Rows8<'a> {
    /// From the head's first element on.
    pub(crate) data: &'a [u8],
    /// From row to row.
    pub(crate) stride: usize,
    pub(crate) zero_point: u8,
}

/// Addends to the scores of one head, `keys` for each query; a stride of 0 for one row for all.
#[derive(Clone, Copy)]
pub(crate) struct Addends<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
}

/// Where a head's result goes: rows of `value_size` elements.
pub(crate) enum Target<'a> {
    F32 {
        data: &'a mut [f32],
        stride: usize,
    },
    /// Rounded to (level − `zero_point`) · scale, one scale for all or one for each element of a row.
    U8 {
        data: &'a mut [u8],
        stride: usize,
        scales: &'a [f32],
        zero_point: u8,
    },
}

/// Sizes and scales that every head shares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) path: Path,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) head_size: usize,
    pub(crate) value_size: usize,
    /// Scale of the integer scores: that of the attention, of Q and of K.
    pub(crate) score_scale: f32,
    /// Scale of probabilities that are u8, with a zero point of 0. Without one they are f32, for
    /// which levels of 16 bits stand in, not normalized: two bytes, and so two products.
    pub(crate) probability_scale: Option<f32>,
    pub(crate) value_scale: f32,
}

/// 1.5·2²³: added to x, it leaves the integer nearest to x in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Greatest size of a head. Each of the four terms of an integer score stays below 2¹³·255² < 2²⁹.
pub(crate) const HEAD_SIZE_MAX: usize = 1 << 13;

/// Most keys. Sums of their bytes times values stay below 2¹⁵·255² < 2³¹.
pub(crate) const KEYS_MAX: usize = 1 << 15;

/// Sizes as the packed data has them.
struct Padded {
    keys: usize,
    columns: usize,
    head_size: usize,
}

/// The parts of a head's scratch.
struct Areas<'a> {
    packed_k: &'a mut [u8],
    k_starts: &'a mut [i32],
    packed_v: &'a mut [u8],
    /// Zeros.
    v_starts: &'a mut [i32],
    /// The left side of a product.
    left: &'a mut [u8],
    sums: &'a mut [i32],
    scores: &'a mut [f32],
    /// A row of addends in powers of two, and whether a softmax over them is defined.
    bias: &'a mut [f32],
    is_defined: bool,
    /// What one is divided by before it becomes a level of the result, for each column.
    inverse_scales: &'a mut [f32],
}

impl Shape {
    fn padded(&self) -> Padded {
        Padded {
            keys: self.keys.next_multiple_of(COLUMNS),
            columns: self.value_size.next_multiple_of(COLUMNS),
            head_size: self.head_size.next_multiple_of(self.path.group()),
        }
    }

    /// Bytes of scratch that [`head`](Self::head) needs.
    pub(crate) fn scratch_size(&self) -> usize {
        self.areas().iter().sum()
    }

    /// Bytes of packed K and its starts, packed V and its starts, left rows, sums, scores, addends
    /// and scales of columns, each a multiple of a cache line.
    fn areas(&self) -> [usize; 9] {
        let Padded { keys, columns, head_size } = self.padded();
        let width = 4 / self.path.group();
        let bytes = [
            head_size * keys * width,
            keys * 4,
            keys * columns * width,
            columns * 4,
            ROWS * head_size.max(2 * keys),
            ROWS * keys.max(2 * columns) * 4,
            ROWS * keys * 4,
            keys * 4,
            columns * 4,
        ];
        bytes.map(|bytes| bytes.next_multiple_of(64))
    }

    fn areas_in<'a>(&self, scratch: &'a mut [u8]) -> Areas<'a> {
        let mut rest = scratch;
        let [packed_k, k_starts, packed_v, v_starts, left, sums, scores, bias, inverse] =
            self.areas().map(|bytes| {
                let (area, others) = std::mem::take(&mut rest).split_at_mut(bytes);
                rest = others;
                area
            });
        let [k_starts, v_starts, sums]: [&mut [i32]; 3] =
            [k_starts, v_starts, sums].map(bytemuck::cast_slice_mut);
        let [scores, bias, inverse_scales]: [&mut [f32]; 3] =
            [scores, bias, inverse].map(bytemuck::cast_slice_mut);
        let keys = self.padded().keys;
        Areas {
            packed_k,
            k_starts,
            packed_v,
            v_starts,
            left,
            sums,
            scores: &mut scores[..ROWS * keys],
            bias: &mut bias[..keys],
            is_defined: true,
            inverse_scales,
        }
    }

    /// Y = softmax(scale·Q·Kᵀ + addends)·V of one head.
    ///
    /// Where the softmax is not defined (NaN or +∞ among the addends of a query, or −∞ alone) the
    /// probabilities are 0, as rounding NaN to u8 gives.
    pub(crate) fn head(
        &self,
        operands: [Rows8; 3],
        addends: Option<Addends>,
        target: &mut Target,
        scratch: &mut [u8],
    ) {
        let [query, key, value] = operands;
        let shared = addends.filter(|addends| addends.stride == 0);
        let mut shape = *self;
        if let Some(shared) = shared {
            shape.keys = shape.seen(shared.data, [query, key]);
        }
        let mut areas = shape.areas_in(scratch);
        let Padded { keys, columns, head_size } = shape.padded();
        let packing = Packing { path: shape.path, keys: shape.keys, padded_keys: keys };
        packing.keys(areas.packed_k, key, [shape.head_size, head_size]);
        packing.key_starts(areas.k_starts, key, shape.head_size, query.zero_point);
        packing.values(areas.packed_v, value, [shape.value_size, columns]);
        areas.v_starts.fill(0);
        areas.bias[..shape.keys].fill(0.0);
        areas.bias[shape.keys..].fill(f32::NEG_INFINITY);
        if let Some(shared) = shared {
            areas.is_defined = copy_addends(areas.bias, &shared.data[..shape.keys]);
        }
        if let Target::U8 { scales, .. } = target {
            let inverse = &mut areas.inverse_scales[..shape.value_size];
            match **scales {
                [scale] => inverse.fill(1.0 / scale),
                _ => inverse.iter_mut().zip(*scales).for_each(|(inverse, s)| *inverse = 1.0 / s),
            }
        }
        let own = addends.filter(|addends| addends.stride > 0);
        for first in (0..shape.queries).step_by(ROWS) {
            let count = ROWS.min(shape.queries - first);
            let highest = shape.scores(first..first + count, [query, key], own, &mut areas);
            let factors = shape.context(&highest, value.zero_point, &mut areas);
            shape.put(target, first, &factors[..count], &areas);
        }
    }

    /// Fills the scores of up to eight rows, in powers of two, and gives the highest of each: NaN
    /// where there is no softmax, and for rows beyond.
    fn scores(
        &self,
        rows: std::ops::Range<usize>,
        [query, key]: [Rows8; 2],
        own: Option<Addends>,
        areas: &mut Areas,
    ) -> [f32; ROWS] {
        let Padded { keys, head_size: depth, .. } = self.padded();
        // With k' = k - offset and zk' = zk - offset, over a depth of d:
        // Σ (q - zq)·(k - zk) = Σ q·k' - zq·Σ k' - zk'·(Σ q - d·zq),
        // the second term a start of the column, the third one of the row.
        let mut terms = [0_i32; ROWS];
        let from = &query.data[rows.start * query.stride..];
        let sums = &mut terms[..rows.len()];
        let (left, stride) = if rows.len() == ROWS && depth == self.head_size {
            rows::sum_rows(sums, from, query.stride, depth);
            (from, query.stride)
        } else {
            rows::take_rows(areas.left, sums, from, query.stride, self.head_size, depth);
            (&*areas.left, depth)
        };
        let key_zero = i32::from(key.zero_point) - self.path.offset();
        let query_zeros = self.head_size as i32 * i32::from(query.zero_point);
        sums.iter_mut().for_each(|sum| *sum = key_zero * (*sum - query_zeros));
        let block = Block { left, stride, terms: &terms, depth, columns: keys };
        block.product(self.path, areas.sums, areas.k_starts, areas.packed_k);
        let scale = self.score_scale * std::f32::consts::LOG2_E;
        let mut highest = [f32::NAN; ROWS];
        for (row, (query, highest)) in rows.zip(&mut highest).enumerate() {
            if let Some(own) = own {
                let from = &own.data[query * own.stride..][..self.keys];
                areas.is_defined = copy_addends(areas.bias, from);
            }
            if areas.is_defined {
                let area = row * keys..(row + 1) * keys;
                let (scores, sums) = (&mut areas.scores[area.clone()], &areas.sums[area]);
                *highest = self.path.scores(scores, sums, areas.bias, scale);
            }
        }
        highest
    }

    /// Makes the scores levels, fills the sums of their products with V, and gives what a sum of
    /// each row is multiplied by. Of levels in 16 bits the sums of high bytes stand behind those of
    /// low ones.
    fn context(&self, highest: &[f32; ROWS], value_zero: u8, areas: &mut Areas) -> [f32; ROWS] {
        let Padded { keys: depth, columns, .. } = self.padded();
        let (levels, low) = areas.left.split_at_mut(ROWS * depth);
        let value_zero = i32::from(value_zero) - self.path.offset();
        let (sums, high) = areas.sums.split_at_mut(ROWS * columns);
        let product = |left: &[u8], totals: [i32; ROWS], out: &mut [i32]| {
            let terms = totals.map(|total| total * value_zero);
            let block = Block { left, stride: depth, terms: &terms, depth, columns };
            block.product(self.path, out, areas.v_starts, areas.packed_v);
        };
        if let Some(step) = self.probability_scale {
            let totals = self.path.probabilities(levels, areas.scores, highest, step);
            product(levels, totals, sums);
            return [step * self.value_scale; ROWS];
        }
        let low = &mut low[..ROWS * depth];
        let [high_totals, low_totals] = self.path.weights(levels, low, areas.scores, highest);
        product(levels, high_totals, high);
        product(low, low_totals, sums);
        std::array::from_fn(|row| {
            let total = (i64::from(high_totals[row]) << 8) + i64::from(low_totals[row]);
            if total == 0 { 0.0 } else { self.value_scale / total as f32 }
        })
    }

    /// Keys up to the last whose probability can be other than exactly 0.
    fn seen(&self, addends: &[f32], operands: [Rows8; 2]) -> usize {
        let [query, key] =
            operands.map(|rows| f32::from(rows.zero_point.max(255 - rows.zero_point)));
        let score_max = self.score_scale.abs() * query * key * self.head_size as f32;
        let addends = &addends[..self.keys];
        let highest = rows::highest(addends);
        // exp(−88) counts as 0, and scores differ by twice their bound at most; what is more is
        // for rounding.
        let least = highest - 2.1 * score_max - 100.0 - 1e-5 * highest.abs();
        let is_zero = |addend: &f32| *addend < least;
        if !least.is_finite() {
            return self.keys;
        }
        addends.iter().rposition(|addend| !is_zero(addend)).map_or(self.keys, |last| last + 1)
    }

    /// Puts rows of sums, from row `first` on, where they belong.
    fn put(&self, target: &mut Target, first: usize, factors: &[f32], areas: &Areas) {
        let (size, columns) = (self.value_size, self.padded().columns);
        let high = if self.probability_scale.is_none() { ROWS * columns } else { 0 };
        let sums = Sums { low: areas.sums, high, columns };
        match target {
            Target::F32 { data, stride } => {
                rows::rescale(&mut data[first * *stride..], *stride, sums, factors, size);
            }
            Target::U8 { data, stride, zero_point, .. } => {
                let data = &mut data[first * *stride..];
                let inverse_scales = &areas.inverse_scales[..size];
                let zero_point = i32::from(*zero_point);
                rows::requantize(data, *stride, sums, factors, inverse_scales, zero_point);
            }
        }
    }
}

/// Copies addends to where scores take them, in powers of two, and says whether a softmax over them
/// is defined.
fn copy_addends(bias: &mut [f32], addends: &[f32]) -> bool {
    let [highest, not_a_number] = rows::addends(bias, addends);
    highest.is_finite() && not_a_number == 0.0
}
