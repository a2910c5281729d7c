//! One head of attention over u8 operands: Q·Kᵀ in 32-bit integers, softmax in f32, probabilities
//! rounded to levels, P·V in integers (after Shen et al., 2020, arXiv:1909.05840).
//!
//! Every path gives the same bits: integer sums are exact, and what is computed in f32 rounds each
//! operation by itself, in one order whatever the instruction set.

use super::softmax::{LANES, max_lanes, sum_lanes};
use super::vectorized;

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
    /// The best that this CPU has.
    pub(crate) fn best() -> Self {
        Self::available()[0]
    }

    /// All that this CPU has, the best first.
    pub(crate) fn available() -> Vec<Self> {
        let mut paths = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
                paths.push(Self::Vnni);
            }
            if is_x86_feature_detected!("avx2") {
                paths.push(Self::Avx2);
            }
        }
        paths.push(Self::Portable);
        paths
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
    /// Rounded to (level − `zero_point`) · scale.
    U8 {
        data: &'a mut [u8],
        stride: usize,
        scale: f32,
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
    /// which levels of 16 bits stand in: two bytes, and so two products.
    pub(crate) probability_scale: Option<f32>,
    pub(crate) value_scale: f32,
}

/// Scale of probabilities in 16 bits.
const FINE_SCALE: f32 = 1.0 / 65535.0;

/// Greatest size of a head whose integer scores cannot leave 32 bits: 2¹⁵·255² < 2³¹.
pub(crate) const HEAD_SIZE_MAX: usize = 1 << 15;

/// Sizes as the packed data has them.
struct Padded {
    keys: usize,
    columns: usize,
    head_size: usize,
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

    /// Bytes of packed K and its starts, packed V and its starts, left rows, sums, scores and
    /// addends, each a multiple of a cache line.
    fn areas(&self) -> [usize; 8] {
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
        ];
        bytes.map(|bytes| bytes.next_multiple_of(64))
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
        let mut shape = *self;
        if let Some(shared) = addends.filter(|addends| addends.stride == 0) {
            shape.keys = shape.seen(shared.data, [operands[0], operands[1]]);
        }
        shape.head_of_seen(operands, addends, target, scratch);
    }

    /// Keys up to the last whose probability can be other than exactly 0.
    fn seen(&self, addends: &[f32], operands: [Rows8; 2]) -> usize {
        let [query, key] =
            operands.map(|rows| f32::from(rows.zero_point.max(255 - rows.zero_point)));
        let score_max = self.score_scale.abs() * query * key * self.head_size as f32;
        let addends = &addends[..self.keys];
        let highest = addends.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // exp(−88) counts as 0, and scores differ by twice their bound at most; what is more is
        // for rounding.
        let least = highest - 2.1 * score_max - 100.0 - 1e-5 * highest.abs();
        let is_zero = |addend: &f32| *addend < least;
        if !least.is_finite() {
            return self.keys;
        }
        addends.iter().rposition(|addend| !is_zero(addend)).map_or(self.keys, |last| last + 1)
    }

    fn head_of_seen(
        &self,
        [query, key, value]: [Rows8; 3],
        addends: Option<Addends>,
        target: &mut Target,
        scratch: &mut [u8],
    ) {
        let (path, padded) = (self.path, self.padded());
        let mut rest = scratch;
        let [packed_k, k_starts, packed_v, v_starts, left, sums, scores, bias] =
            self.areas().map(|bytes| {
                let (area, others) = std::mem::take(&mut rest).split_at_mut(bytes);
                rest = others;
                area
            });
        let [k_starts, v_starts, sums]: [&mut [i32]; 3] =
            [k_starts, v_starts, sums].map(bytemuck::cast_slice_mut);
        let [scores, bias]: [&mut [f32]; 2] = [scores, bias].map(bytemuck::cast_slice_mut);
        let scores = &mut scores[..ROWS * padded.keys];
        let bias = &mut bias[..padded.keys];
        // With k' = k - offset and zk' = zk - offset, over a depth of d:
        // Σ (q - zq)·(k - zk) = Σ q·k' - zq·Σ k' - zk'·(Σ q - d·zq),
        // the second term a start of the column, the third one of the row.
        let [query_zero, key_zero, value_zero] =
            [query, key, value].map(|rows| i32::from(rows.zero_point));
        self.pack_keys(packed_k, k_starts, key, query_zero);
        self.pack_values(packed_v, value);
        v_starts.fill(0);
        bias[..self.keys].fill(0.0);
        bias[self.keys..].fill(f32::NEG_INFINITY);
        let mut is_defined = true;
        if let Some(shared) = addends.filter(|addends| addends.stride == 0) {
            is_defined = copy_addends(bias, &shared.data[..self.keys]);
        }
        for first in (0..self.queries).step_by(ROWS) {
            let count = ROWS.min(self.queries - first);
            let mut terms = [0_i32; ROWS];
            let depth = padded.head_size;
            let from = &query.data[first * query.stride..];
            take_rows(left, &mut terms[..count], from, query.stride, self.head_size, depth);
            for term in &mut terms[..count] {
                *term = (key_zero - path.offset()) * (*term - self.head_size as i32 * query_zero);
            }
            let block = Block { left, terms: &terms, depth, columns: padded.keys };
            block.product(path, sums, k_starts, packed_k);
            // NaN where there is no softmax, and for the rows that fill the block up.
            let mut highest = [f32::NAN; ROWS];
            for (row, highest) in highest[..count].iter_mut().enumerate() {
                if let Some(own) = addends.filter(|addends| addends.stride > 0) {
                    let from = &own.data[(first + row) * own.stride..][..self.keys];
                    is_defined = copy_addends(bias, from);
                }
                if is_defined {
                    let area = row * padded.keys..(row + 1) * padded.keys;
                    let (scores, sums) = (&mut scores[area.clone()], &sums[area]);
                    *highest = path.scores(scores, sums, bias, self.score_scale);
                }
            }
            let (levels, low) = left.split_at_mut(ROWS * padded.keys);
            let low = if self.is_fine() { &mut low[..ROWS * padded.keys] } else { &mut [] };
            terms = path.probabilities(levels, low, scores, &highest, self.step());
            for term in &mut terms {
                *term *= value_zero - path.offset();
            }
            let (depth, columns) = (padded.keys, padded.columns);
            let (sums, high) = sums.split_at_mut(ROWS * columns);
            if self.is_fine() {
                let block = Block { left: levels, terms: &[0; ROWS], depth, columns };
                block.product(path, high, v_starts, packed_v);
                let block = Block { left: low, terms: &terms, depth, columns };
                block.product(path, sums, v_starts, packed_v);
                let pairs = sums.iter_mut().zip(&*high);
                pairs.for_each(|(sum, high)| *sum += high << 8);
            } else {
                let block = Block { left: levels, terms: &terms, depth, columns };
                block.product(path, sums, v_starts, packed_v);
            }
            self.put(target, first, &sums[..count * padded.columns]);
        }
    }

    fn is_fine(&self) -> bool {
        self.probability_scale.is_none()
    }

    fn step(&self) -> f32 {
        self.probability_scale.unwrap_or(FINE_SCALE)
    }

    /// Puts rows of sums, from row `first` on, where they belong.
    fn put(&self, target: &mut Target, first: usize, sums: &[i32]) {
        let factor = self.step() * self.value_scale;
        let (size, columns) = (self.value_size, self.padded().columns);
        match target {
            Target::F32 { data, stride } => {
                rescale(&mut data[first * *stride..], *stride, sums, columns, size, factor);
            }
            Target::U8 { data, stride, scale, zero_point } => {
                let (factor, zero_point) = (factor / *scale, i32::from(*zero_point));
                let data = &mut data[first * *stride..];
                requantize(data, *stride, sums, columns, size, factor, zero_point);
            }
        }
    }

    /// K as [depth / group, keys, group], and -zq times the sum of each key.
    fn pack_keys(&self, packed: &mut [u8], starts: &mut [i32], key: Rows8, query_zero: i32) {
        let Padded { keys, head_size, .. } = self.padded();
        let offset = self.path.offset();
        starts.fill(0);
        sum_rows(&mut starts[..self.keys], key.data, key.stride, self.head_size);
        for start in &mut starts[..self.keys] {
            *start = -query_zero * (*start - offset * self.head_size as i32);
        }
        if self.path.is_bytes() {
            let packed: &mut [[u8; 4]] = bytemuck::cast_slice_mut(&mut packed[..head_size * keys]);
            pack_key_bytes(packed, key.data, key.stride, self.keys, self.head_size, keys);
        } else {
            let packed = bytemuck::cast_slice_mut(&mut packed[..head_size * keys * 2]);
            pack_key_pairs(packed, key.data, key.stride, self.keys, self.head_size, keys);
        }
    }

    /// V as [keys / group, columns, group], padded by rows of the offset.
    fn pack_values(&self, packed: &mut [u8], value: Rows8) {
        let Padded { keys, columns, .. } = self.padded();
        let row = |key: usize| match key < self.keys {
            true => &value.data[key * value.stride..][..self.value_size],
            false => &[],
        };
        if self.path.is_bytes() {
            let packed: &mut [[u8; 4]] = bytemuck::cast_slice_mut(&mut packed[..keys * columns]);
            for (step, out) in packed.chunks_exact_mut(columns).enumerate() {
                pack_value_bytes(out, [0, 1, 2, 3].map(|i| row(4 * step + i)));
            }
        } else {
            let packed: &mut [[i16; 2]] =
                bytemuck::cast_slice_mut(&mut packed[..keys * columns * 2]);
            for (step, out) in packed.chunks_exact_mut(columns).enumerate() {
                pack_value_pairs(out, [0, 1].map(|i| row(2 * step + i)));
            }
        }
    }
}

/// Copies addends to where scores take them, and says whether a softmax over them is defined.
fn copy_addends(bias: &mut [f32], addends: &[f32]) -> bool {
    bias[..addends.len()].copy_from_slice(addends);
    let mut highest = f32::NEG_INFINITY;
    let mut has_nan = false;
    for &addend in addends {
        highest = if addend > highest { addend } else { highest };
        has_nan |= addend.is_nan();
    }
    highest.is_finite() && !has_nan
}

/// 1.5·2²³: added to x, it leaves the integer nearest to x in the low bits.
const ROUND: f32 = 12_582_912.0;
/// The least exponent of 2 that a normal f32 has.
const LEAST: f32 = -126.0;
/// 2ʳ for |r| ≤ ½ as a polynomial, the highest power first: a least-maximum fit with 1 at 0, made
/// for this file (9e-8).
const POWER: [f32; 6] =
    [1.326_472_6e-3, 9.671_513e-3, 5.550_733_6e-2, 0.240_222_42, 0.693_147, 1.0];

/// eˣ for x ≤ 0 within 2e-7, each operation rounded by itself; 0 where 2ⁿ has no normal f32.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let exponent = x * std::f32::consts::LOG2_E;
    let bounded = if exponent > LEAST { exponent } else { LEAST };
    let shifted = bounded + ROUND;
    let r = bounded - (shifted - ROUND);
    let mut p = POWER[0];
    for coefficient in &POWER[1..] {
        p = p * r + coefficient;
    }
    // The low bits of `shifted` are n: added to the exponent of 2ʳ.
    let power = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    if exponent > LEAST { power } else { 0.0 }
}

#[inline(always)]
fn sum_of(levels: &[u8]) -> i32 {
    levels.iter().map(|&level| i32::from(level)).sum()
}

impl Path {
    /// As the function of that name.
    fn scores(self, scores: &mut [f32], sums: &[i32], bias: &[f32], scale: f32) -> f32 {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Vnni {
            assert!(sums.len() == scores.len() && bias.len() == scores.len());
            assert!(scores.len().is_multiple_of(LANES));
            // SAFETY: the path was found present, and the sizes were checked above.
            return unsafe { x86::scores(scores, sums, bias, scale) };
        }
        scaled_scores(scores, sums, bias, scale)
    }

    /// As the function of that name.
    fn probabilities(
        self,
        levels: &mut [u8],
        low: &mut [u8],
        scores: &mut [f32],
        highest: &[f32; ROWS],
        step: f32,
    ) -> [i32; ROWS] {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Vnni {
            assert!(levels.len() == scores.len() && scores.len().is_multiple_of(ROWS * LANES));
            assert!(low.is_empty() || low.len() == levels.len());
            // SAFETY: the path was found present, and the sizes were checked above.
            return unsafe { x86::probabilities(levels, low, scores, highest, step) };
        }
        probabilities(levels, low, scores, highest, step)
    }
}

vectorized! {
    /// The sum of each of some rows of `size` levels.
    fn sum_rows<FMA>(sums: &mut [i32], data: &[u8], stride: usize, size: usize) {
        for (row, sum) in sums.iter_mut().enumerate() {
            *sum = sum_of(&data[row * stride..][..size]);
        }
    }

    /// Copies a row for each of `sums`, which it sums, and pads them to `depth` and `ROWS` by 0.
    fn take_rows<FMA>(
        left: &mut [u8],
        sums: &mut [i32],
        data: &[u8],
        stride: usize,
        size: usize,
        depth: usize,
    ) {
        let left = &mut left[..ROWS * depth];
        if depth > size || sums.len() < ROWS {
            left.fill(0);
        }
        for (row, sum) in sums.iter_mut().enumerate() {
            let from = &data[row * stride..][..size];
            left[row * depth..][..size].copy_from_slice(from);
            *sum = sum_of(from);
        }
    }

    /// scores = sums·scale + bias; gives the highest.
    fn scaled_scores<FMA>(scores: &mut [f32], sums: &[i32], bias: &[f32], scale: f32) -> f32 {
        let scores = scores.as_chunks_mut::<LANES>().0;
        let (sums, bias) = (sums.as_chunks::<LANES>().0, bias.as_chunks::<LANES>().0);
        let mut highest = [f32::NEG_INFINITY; LANES];
        for ((scores, sums), bias) in scores.iter_mut().zip(sums).zip(bias) {
            for lane in 0..LANES {
                let score = sums[lane] as f32 * scale + bias[lane];
                scores[lane] = score;
                highest[lane] = if score > highest[lane] { score } else { highest[lane] };
            }
        }
        max_lanes(highest)
    }

    /// Softmax of rows of scores in steps, `highest` the highest of each; 0 where that is not
    /// finite. The levels are u8, or of 16 bits where there is a place for their low bytes. Gives
    /// the sum of each row's levels.
    fn probabilities<FMA>(
        levels: &mut [u8],
        low: &mut [u8],
        scores: &mut [f32],
        highest: &[f32; ROWS],
        step: f32,
    ) -> [i32; ROWS] {
        let size = scores.len() / ROWS;
        let mut totals = [0_i32; ROWS];
        for (row, total) in totals.iter_mut().enumerate() {
            let area = row * size..(row + 1) * size;
            let is_fine = !low.is_empty();
            let low = if is_fine { &mut low[area.clone()] } else { &mut [][..] };
            let levels = &mut levels[area.clone()];
            let highest = highest[row];
            if !highest.is_finite() {
                levels.fill(0);
                low.fill(0);
                continue;
            }
            let (levels, low) =
                (levels.as_chunks_mut::<LANES>().0, low.as_chunks_mut::<LANES>().0);
            let scores = scores[area].as_chunks_mut::<LANES>().0;
            let mut lanes = [0.0_f32; LANES];
            for scores in scores.iter_mut() {
                for lane in 0..LANES {
                    scores[lane] = exp(scores[lane] - highest);
                    lanes[lane] += scores[lane];
                }
            }
            let factor = 1.0 / (sum_lanes(lanes) * step);
            let most = if is_fine { 65535.0 } else { 255.0 };
            let mut of_lanes = [0_i32; LANES];
            for (at, scores) in scores.iter().enumerate() {
                let mut found = [0_i32; LANES];
                for lane in 0..LANES {
                    let level = scores[lane] * factor;
                    let bounded = if level < most { level } else { most };
                    found[lane] = (bounded + ROUND).to_bits() as i32 & 0xffff;
                    of_lanes[lane] += found[lane];
                }
                if is_fine {
                    levels[at] = found.map(|level| (level >> 8) as u8);
                    low[at] = found.map(|level| level as u8);
                } else {
                    levels[at] = found.map(|level| level as u8);
                }
            }
            *total = of_lanes.into_iter().sum();
        }
        totals
    }

    /// out = sums·factor, rows of `size`.
    fn rescale<FMA>(
        out: &mut [f32],
        stride: usize,
        sums: &[i32],
        columns: usize,
        size: usize,
        factor: f32,
    ) {
        for (row, sums) in sums.chunks_exact(columns).enumerate() {
            for (out, &sum) in out[row * stride..][..size].iter_mut().zip(sums) {
                *out = sum as f32 * factor;
            }
        }
    }

    /// out = clamp(round(sums·factor) + `zero_point`), rows of `size`.
    fn requantize<FMA>(
        out: &mut [u8],
        stride: usize,
        sums: &[i32],
        columns: usize,
        size: usize,
        factor: f32,
        zero_point: i32,
    ) {
        let (low, high) = (-zero_point as f32, (255 - zero_point) as f32);
        for (row, sums) in sums.chunks_exact(columns).enumerate() {
            for (out, &sum) in out[row * stride..][..size].iter_mut().zip(sums) {
                let exact = sum as f32 * factor;
                let bounded = if exact > low { exact } else { low };
                let bounded = if bounded < high { bounded } else { high };
                *out = ((bounded + ROUND).to_bits() as i32 + zero_point) as u8;
            }
        }
    }

    fn pack_key_bytes<FMA>(
        packed: &mut [[u8; 4]],
        data: &[u8],
        stride: usize,
        rows: usize,
        size: usize,
        columns: usize,
    ) {
        for row in 0..columns {
            let from = if row < rows { &data[row * stride..][..size] } else { &[] };
            let (groups, rest) = from.as_chunks::<4>();
            for (step, &group) in groups.iter().enumerate() {
                let flipped = u32::from_ne_bytes(group) ^ 0x8080_8080;
                packed[step * columns + row] = flipped.to_ne_bytes();
            }
            for step in groups.len()..packed.len() / columns {
                let mut group = [0; 4];
                if step == groups.len() {
                    group[..rest.len()].copy_from_slice(rest);
                    group[..rest.len()].iter_mut().for_each(|level| *level ^= 128);
                }
                packed[step * columns + row] = group;
            }
        }
    }

    fn pack_key_pairs<FMA>(
        packed: &mut [[i16; 2]],
        data: &[u8],
        stride: usize,
        rows: usize,
        size: usize,
        columns: usize,
    ) {
        for row in 0..columns {
            let from = if row < rows { &data[row * stride..][..size] } else { &[] };
            for (step, out) in packed[row..].iter_mut().step_by(columns).enumerate() {
                let at = |i: usize| i16::from(from.get(2 * step + i).copied().unwrap_or(0));
                *out = [at(0), at(1)];
            }
        }
    }

    fn pack_value_bytes<FMA>(out: &mut [[u8; 4]], rows: [&[u8]; 4]) {
        let size = rows[0].len();
        if rows.iter().all(|row| row.len() == size) {
            let [a, b, c, d] = rows;
            let (b, c, d) = (&b[..size], &c[..size], &d[..size]);
            let (inside, behind) = out.split_at_mut(size);
            for (i, out) in inside.iter_mut().enumerate() {
                *out = [a[i] ^ 128, b[i] ^ 128, c[i] ^ 128, d[i] ^ 128];
            }
            behind.fill([0; 4]);
        } else {
            for (i, out) in out.iter_mut().enumerate() {
                *out = rows.map(|row| row.get(i).map_or(0, |level| level ^ 128));
            }
        }
    }

    fn pack_value_pairs<FMA>(out: &mut [[i16; 2]], rows: [&[u8]; 2]) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = rows.map(|row| i16::from(row.get(i).copied().unwrap_or(0)));
        }
    }
}

/// The left side of a product: eight rows of u8, `depth` each, and what each takes off its sums.
struct Block<'a> {
    left: &'a [u8],
    terms: &'a [i32; ROWS],
    depth: usize,
    columns: usize,
}

impl Block<'_> {
    /// out = starts - terms + left·right, rows of `columns`.
    fn product(&self, path: Path, out: &mut [i32], starts: &[i32], right: &[u8]) {
        let Self { depth, columns, .. } = *self;
        let width = 4 / path.group();
        assert!(self.left.len() >= ROWS * depth && right.len() >= depth * columns * width);
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
            let left = self.left[row * depth..][..depth].as_chunks::<2>().0;
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
    use std::arch::x86_64::*;

    use super::{Block, COLUMNS, LANES, LEAST, POWER, ROUND, ROWS, sum_lanes};

    /// As [`scaled_scores`](super::scaled_scores), bit for bit.
    ///
    /// # Safety
    /// AVX-512; slices of one length, a multiple of 16.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn scores(scores: &mut [f32], sums: &[i32], bias: &[f32], scale: f32) -> f32 {
        let scale = _mm512_set1_ps(scale);
        let mut highest = _mm512_set1_ps(f32::NEG_INFINITY);
        for at in (0..scores.len()).step_by(LANES) {
            // SAFETY: `at` and the 16 places from there on lie within slices of one length.
            unsafe {
                let sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums.as_ptr().add(at).cast()));
                let addend = _mm512_loadu_ps(bias.as_ptr().add(at));
                let score = _mm512_add_ps(_mm512_mul_ps(sum, scale), addend);
                _mm512_storeu_ps(scores.as_mut_ptr().add(at), score);
                highest = _mm512_max_ps(score, highest);
            }
        }
        _mm512_reduce_max_ps(highest)
    }

    /// As [`probabilities`](super::probabilities), bit for bit. One row's sum is not waited for
    /// before the next row begins.
    ///
    /// # Safety
    /// AVX-512; slices of one length, a multiple of 8·16, but that `low` may be empty.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn probabilities(
        levels: &mut [u8],
        low: &mut [u8],
        scores: &mut [f32],
        highest: &[f32; ROWS],
        step: f32,
    ) -> [i32; ROWS] {
        let size = scores.len() / ROWS;
        let mut factors = [0.0_f32; ROWS];
        for (row, factor) in factors.iter_mut().enumerate() {
            if !highest[row].is_finite() {
                continue;
            }
            let highest = _mm512_set1_ps(highest[row]);
            let mut lanes = _mm512_setzero_ps();
            for at in (row * size..(row + 1) * size).step_by(LANES) {
                // SAFETY: `at` and the 16 places from there on lie within the row.
                unsafe {
                    let place = scores.as_mut_ptr().add(at);
                    let weight = exp(_mm512_sub_ps(_mm512_loadu_ps(place), highest));
                    _mm512_storeu_ps(place, weight);
                    lanes = _mm512_add_ps(lanes, weight);
                }
            }
            let mut of_lanes = [0.0_f32; LANES];
            // SAFETY: an array of 16.
            unsafe { _mm512_storeu_ps(of_lanes.as_mut_ptr(), lanes) };
            *factor = 1.0 / (sum_lanes(of_lanes) * step);
        }
        let is_fine = !low.is_empty();
        let most = _mm512_set1_ps(if is_fine { 65535.0 } else { 255.0 });
        let (round, mask) = (_mm512_set1_ps(ROUND), _mm512_set1_epi32(0xffff));
        let mut totals = [0_i32; ROWS];
        for (row, total) in totals.iter_mut().enumerate() {
            if !highest[row].is_finite() {
                levels[row * size..][..size].fill(0);
                if is_fine {
                    low[row * size..][..size].fill(0);
                }
                continue;
            }
            let factor = _mm512_set1_ps(factors[row]);
            let mut of_lanes = _mm512_setzero_si512();
            for at in (row * size..(row + 1) * size).step_by(LANES) {
                // SAFETY: `at` and the 16 places from there on lie within the row.
                unsafe {
                    let level = _mm512_mul_ps(_mm512_loadu_ps(scores.as_ptr().add(at)), factor);
                    let rounded = _mm512_add_ps(_mm512_min_ps(level, most), round);
                    let bits = _mm512_castps_si512(rounded);
                    let level = _mm512_and_si512(bits, mask);
                    let mut bytes = _mm512_cvtepi32_epi8(level);
                    if is_fine {
                        _mm_storeu_si128(low.as_mut_ptr().add(at).cast(), bytes);
                        bytes = _mm512_cvtepi32_epi8(_mm512_srli_epi32::<8>(level));
                    }
                    _mm_storeu_si128(levels.as_mut_ptr().add(at).cast(), bytes);
                    of_lanes = _mm512_add_epi32(of_lanes, level);
                }
            }
            *total = _mm512_reduce_add_epi32(of_lanes);
        }
        totals
    }

    #[target_feature(enable = "avx512f")]
    fn exp(x: __m512) -> __m512 {
        let least = _mm512_set1_ps(LEAST);
        let round = _mm512_set1_ps(ROUND);
        let exponent = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
        let bounded = _mm512_max_ps(exponent, least);
        let shifted = _mm512_add_ps(bounded, round);
        let r = _mm512_sub_ps(bounded, _mm512_sub_ps(shifted, round));
        let mut p = _mm512_set1_ps(POWER[0]);
        for &coefficient in &POWER[1..] {
            p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(coefficient));
        }
        let exponent_bits = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
        let power = _mm512_add_epi32(_mm512_castps_si512(p), exponent_bits);
        let is_seen = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(exponent, least);
        _mm512_maskz_mov_ps(is_seen, _mm512_castsi512_ps(power))
    }

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
        let Block { depth, columns, .. } = *block;
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
                    let a = left.add(row * depth).cast::<i32>().read_unaligned();
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
        let Block { depth, columns, .. } = *block;
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
                let mut left = block.left.as_ptr().add(first * depth);
                let mut right = right.as_ptr().add(column * 4);
                for _ in 0..depth / 2 {
                    let b = [0, 32].map(|bytes| _mm256_loadu_si256(right.add(bytes).cast()));
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let pair = left.add(row * depth).cast::<i16>().read_unaligned();
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Levels that look random, `from` to `from + spread`.
    fn levels(count: usize, seed: u32, from: u32, spread: u32) -> Vec<u8> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (from + (state >> 16) % spread) as u8
        };
        (0..count).map(next).collect()
    }

    struct Case {
        shape: Shape,
        data: [Vec<u8>; 3],
        zero_points: [u8; 3],
        addends: Option<(Vec<f32>, usize)>,
    }

    impl Case {
        fn new(queries: usize, keys: usize, head_size: usize, value_size: usize) -> Self {
            let shape = Shape {
                path: Path::Portable,
                queries,
                keys,
                head_size,
                value_size,
                score_scale: 0.002,
                probability_scale: Some(1.0 / 255.0),
                value_scale: 0.05,
            };
            let data = [
                levels(queries * head_size, 1, 0, 256),
                levels(keys * head_size, 2, 0, 256),
                levels(keys * value_size, 3, 0, 256),
            ];
            Self { shape, data, zero_points: [120, 131, 7], addends: None }
        }

        fn with_addends(mut self, addends: Vec<f32>, stride: usize) -> Self {
            self.addends = Some((addends, stride));
            self
        }

        fn with_fine_probabilities(mut self) -> Self {
            self.shape.probability_scale = None;
            self
        }

        fn operands(&self) -> [Rows8<'_>; 3] {
            let strides = [self.shape.head_size, self.shape.head_size, self.shape.value_size];
            [0, 1, 2].map(|i| Rows8 {
                data: &self.data[i],
                stride: strides[i],
                zero_point: self.zero_points[i],
            })
        }

        fn run(&self, path: Path) -> Vec<f32> {
            let shape = Shape { path, ..self.shape };
            let mut data = vec![f32::NAN; shape.queries * shape.value_size];
            let mut target = Target::F32 { data: &mut data, stride: shape.value_size };
            let addends = self.addends.as_ref();
            let addends = addends.map(|(data, stride)| Addends { data, stride: *stride });
            // What the last call left in its scratch must not matter.
            let mut scratch = vec![0xa5_a5_a5_a5_u32; shape.scratch_size() / 4];
            let scratch = bytemuck::cast_slice_mut(&mut scratch);
            shape.head(self.operands(), addends, &mut target, scratch);
            data
        }

        /// The same on every path.
        fn run_all(&self) -> Vec<f32> {
            let expected = self.run(Path::Portable);
            for path in Path::available() {
                assert_eq!(self.run(path), expected, "{path:?} {:?}", self.shape);
            }
            expected
        }

        /// The definition, in f64: result and probabilities, neither rounded.
        fn exact(&self) -> (Vec<f64>, Vec<f64>) {
            let Shape { queries, keys, head_size, value_size, .. } = self.shape;
            let at = |i: usize, row: usize, size: usize, column: usize| {
                f64::from(self.data[i][row * size + column]) - f64::from(self.zero_points[i])
            };
            let (mut y, mut all) = (Vec::new(), Vec::new());
            for row in 0..queries {
                let score = |key: usize| {
                    let product = |i| at(0, row, head_size, i) * at(1, key, head_size, i);
                    let addend = self
                        .addends
                        .as_ref()
                        .map_or(0.0, |(addends, stride)| f64::from(addends[row * stride + key]));
                    let sum: f64 = (0..head_size).map(product).sum();
                    sum * f64::from(self.shape.score_scale) + addend
                };
                let scores: Vec<f64> = (0..keys).map(score).collect();
                let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|x| (x - highest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                all.extend(weights.iter().map(|weight| weight / sum));
                let p = &all[row * keys..];
                let result = |column: usize| {
                    let term = |key: usize| p[key] * at(2, key, value_size, column);
                    (0..keys).map(term).sum::<f64>() * f64::from(self.shape.value_scale)
                };
                y.extend((0..value_size).map(result));
            }
            (y, all)
        }
    }

    #[test]
    fn every_path_gives_the_definition_up_to_the_rounding_of_probabilities() {
        for (queries, keys, head_size, value_size) in
            [(1, 1, 1, 1), (7, 5, 3, 2), (8, 16, 32, 32), (13, 37, 24, 40), (9, 130, 64, 64)]
        {
            let shared: Vec<f32> = (0..keys).map(|i| (i as f32 * 0.9).sin() * 3.0).collect();
            let own: Vec<f32> = (0..queries * keys).map(|i| (i as f32 * 0.7).cos()).collect();
            for case in [
                Case::new(queries, keys, head_size, value_size),
                Case::new(queries, keys, head_size, value_size).with_addends(shared, 0),
                Case::new(queries, keys, head_size, value_size).with_addends(own.clone(), keys),
                Case::new(queries, keys, head_size, value_size)
                    .with_addends(own, keys)
                    .with_fine_probabilities(),
            ] {
                let found = case.run_all();
                let (expected, probabilities) = case.exact();
                for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    // Each probability is off by half a step, and by what f32 scores are off.
                    let row = &probabilities[i / value_size * keys..][..keys];
                    let terms = case.data[2].iter().skip(i % value_size).step_by(value_size);
                    let slack: f64 = (row.iter().zip(terms))
                        .map(|(p, &v)| {
                            (0.5 * f64::from(case.shape.step()) + 1e-4 * p)
                                * (f64::from(v) - 7.0).abs()
                                * 0.05
                        })
                        .sum();
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error <= slack + 1e-5, "{i}: {found} {expected} {:?}", case.shape);
                }
            }
        }
    }

    #[test]
    fn one_probability_of_1_gives_the_value_itself() {
        let mut mask = vec![f32::NEG_INFINITY; 40];
        mask[21] = 0.0;
        let case = Case::new(3, 40, 32, 32).with_addends(mask, 0);
        let expected: Vec<f32> = (case.data[2][21 * 32..][..32].iter())
            .map(|&level| (i32::from(level) - 7) as f32 * 255.0 * (1.0 / 255.0 * 0.05))
            .collect();
        for row in case.run_all().chunks_exact(32) {
            assert_eq!(row, expected);
        }
        for row in case.with_fine_probabilities().run_all().chunks_exact(32) {
            let differ = row.iter().zip(&expected).any(|(a, b)| (a - b).abs() > 1e-5);
            assert!(!differ, "{row:?} {expected:?}");
        }
    }

    #[test]
    fn masked_keys_and_neighbours_change_no_bit() {
        let case = || Case::new(11, 23, 32, 32);
        for (fine, start) in [(false, case()), (true, case().with_fine_probabilities())] {
            let alone = start.run_all();
            for (keys, least) in [(24, -1e9), (32, f32::MIN), (57, f32::NEG_INFINITY), (150, -1e4)]
            {
                let mut mask = vec![0.0; 23];
                mask.resize(keys, least);
                let own = mask.repeat(11);
                for (addends, stride) in [(mask, 0), (own, keys)] {
                    let mut padded = case().with_addends(addends, stride);
                    padded.shape.keys = keys;
                    padded.shape.probability_scale = start.shape.probability_scale;
                    padded.data[1].extend(levels((keys - 23) * 32, 9, 0, 256));
                    padded.data[2].extend(levels((keys - 23) * 32, 8, 0, 256));
                    assert_eq!(padded.run_all(), alone, "{keys} {least} {fine}");
                }
            }
        }
    }

    #[test]
    fn a_mask_that_hides_all_alike_hides_none() {
        let alone = Case::new(5, 20, 32, 32).run_all();
        let hidden = Case::new(5, 20, 32, 32).with_addends(vec![f32::MIN; 20], 0).run_all();
        // −3.4e38 swallows every score: all keys weigh the same.
        let mut case = Case::new(5, 20, 32, 32);
        case.shape.score_scale = 0.0;
        let mean = case.run_all();
        assert_eq!(hidden, mean);
        assert_ne!(hidden, alone);
    }

    #[test]
    fn rows_without_a_softmax_are_zero() {
        for addend in [f32::NEG_INFINITY, f32::NAN, f32::INFINITY] {
            let mut addends = vec![if addend.is_nan() { 0.0 } else { addend }; 20];
            addends[13] = addend;
            let case = Case::new(5, 20, 32, 32).with_addends(addends.clone(), 0);
            assert!(case.run_all().iter().all(|&y| y == 0.0), "{addend}");
            // One query only: the others have a mask of their own.
            let mut own = vec![0.0; 5 * 20];
            own[40..60].copy_from_slice(&addends);
            let found = Case::new(5, 20, 32, 32).with_addends(own, 20).run_all();
            let alone = Case::new(5, 20, 32, 32).run_all();
            assert!(found[64..96].iter().all(|&y| y == 0.0), "{addend}");
            assert_eq!(found[..64], alone[..64]);
            assert_eq!(found[96..], alone[96..]);
        }
    }

    #[test]
    fn no_keys_give_zero_and_no_queries_nothing() {
        assert_eq!(Case::new(3, 0, 32, 32).run_all(), [0.0; 96]);
        assert_eq!(Case::new(0, 3, 32, 32).run_all(), []);
    }

    #[test]
    fn integers_are_exact_at_the_ends_of_every_range() {
        for (level, zero_points) in [(255, [0, 0, 0]), (0, [255, 255, 255]), (255, [255, 0, 0])] {
            let mut case = Case::new(4, 64, 512, 48);
            case.data.iter_mut().for_each(|data| data.fill(level));
            case.zero_points = zero_points;
            // All keys alike: probabilities of 1/64, 4 steps each.
            let of = |i: usize| f32::from(level) - f32::from(zero_points[i]);
            let expected = 64.0 * 4.0 * of(2) * (case.shape.step() * 0.05);
            assert_eq!(case.run_all(), [expected; 4 * 48]);
        }
    }

    #[test]
    fn results_in_u8_are_those_in_f32_rounded() {
        let case = Case::new(10, 37, 32, 24);
        let exact = case.run_all();
        let (scale, zero_point) = (0.01, 40);
        for path in Path::available() {
            let shape = Shape { path, ..case.shape };
            let mut data = vec![0; 10 * 24];
            let mut target = Target::U8 { data: &mut data, stride: 24, scale, zero_point };
            let mut scratch = vec![0_u32; shape.scratch_size() / 4];
            let scratch = bytemuck::cast_slice_mut(&mut scratch);
            shape.head(case.operands(), None, &mut target, scratch);
            for (found, exact) in data.iter().zip(&exact) {
                let level = (exact / scale + f32::from(zero_point)).clamp(0.0, 255.0);
                // 1e-4 for ties that one more rounding moves.
                assert!((f32::from(*found) - level).abs() <= 0.5 + 1e-4, "{found} {level}");
            }
        }
    }

    #[test]
    fn exp_is_within_3e_7_and_ends_at_zero() {
        let worst = (0..=87_000).map(|i| {
            let x = -i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            // x·log₂e is rounded once: relative to the exponent, half an ulp.
            (f64::from(exp(x)) - exact).abs() / exact / (1.0 + f64::from(-x) * 0.3)
        });
        assert!(worst.fold(0.0, f64::max) < 3e-7);
        assert_eq!([exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY)], [1.0, 0.0, 0.0]);
    }
}
