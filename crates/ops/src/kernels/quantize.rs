//! f32 ⇄ 8-bit: q = clamp(round(x / scale) + `zero_point`), round half to even.

use super::math::fma;
use super::vectorized;

/// Adding this to |x| < 2²² rounds x to the nearest integer, half to even.
const ROUND: f32 = 12_582_912.0;

#[allow(clippy::manual_clamp)] // `clamp` would keep NaN
#[inline(always)]
pub(super) fn quantize<const LOW: i32, const HIGH: i32>(
    x: f32,
    scale: f32,
    zero_point: i32,
) -> i32 {
    // Dividing, not multiplying by 1/scale: ONNX says x / scale, and ties must fall alike.
    // NaN has no defined quantized value; `max` turns it into the least.
    let scaled = (x / scale).max(-1024.0).min(1024.0);
    let rounded = (scaled + ROUND) - ROUND;
    // SAFETY: it lies within ±1024 and is no NaN.
    let level = unsafe { rounded.to_int_unchecked::<i32>() };
    (level + zero_point).clamp(LOW, HIGH)
}

/// The level of what is divided already, as [`quantize`] finds it.
#[allow(clippy::manual_clamp)] // `clamp` would keep NaN
#[inline(always)]
pub(super) fn level(scaled: f32, zero_point: i32) -> u8 {
    // NaN becomes the least.
    let bounded = scaled.max(-1024.0).min(1024.0);
    // The low bits are the integer, however negative.
    let rounded = (bounded + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
    (rounded + zero_point).clamp(0, 255) as u8
}

vectorized! {
    pub(crate) fn quantize_u8<FMA>(out: &mut [u8], x: &[f32], scale: f32, zero_point: i32) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = quantize::<0, 255>(x, scale, zero_point) as u8;
        }
    }

    pub(crate) fn quantize_i8<FMA>(out: &mut [i8], x: &[f32], scale: f32, zero_point: i32) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = quantize::<-128, 127>(x, scale, zero_point) as i8;
        }
    }

    pub(crate) fn dequantize_u8<FMA>(out: &mut [f32], q: &[u8], scale: f32, zero_point: i32) {
        for (out, &q) in out.iter_mut().zip(q) {
            *out = (q as i32 - zero_point) as f32 * scale;
        }
    }

    pub(crate) fn dequantize_i8<FMA>(out: &mut [f32], q: &[i8], scale: f32, zero_point: i32) {
        for (out, &q) in out.iter_mut().zip(q) {
            *out = (q as i32 - zero_point) as f32 * scale;
        }
    }

    /// Each value becomes the nearest of the 256 that u8 can tell apart.
    #[allow(clippy::manual_clamp)] // `clamp` would keep NaN
    pub(crate) fn round_to_u8_grid<FMA>(data: &mut [f32], scale: f32, zero_point: i32) {
        let (low, high) = (-zero_point as f32, (255 - zero_point) as f32);
        for value in data {
            let scaled = (*value / scale).max(low).min(high);
            *value = ((scaled + ROUND) - ROUND) * scale;
        }
    }

    /// out = (sums − zero·`column_sums` − `row_sum`·`column_zeros`)·scale·scales + start: what u8·i8
    /// sums stand for, both sides with a zero point; [zero, `row_sum`] of the row.
    pub(crate) fn rescale_dynamic_row<FMA>(
        out: &mut [f32],
        start: &[f32],
        sums: &[i32],
        column_sums: &[i32],
        column_zeros: &[i32],
        scales: &[f32],
        scale: f32,
        row: [i32; 2],
    ) {
        let size = out.len();
        let (start, sums, scales) = (&start[..size], &sums[..size], &scales[..size]);
        let (column_sums, column_zeros) = (&column_sums[..size], &column_zeros[..size]);
        for i in 0..size {
            let sum = sums[i] - row[0] * column_sums[i] - row[1] * column_zeros[i];
            out[i] = fma::<FMA>(sum as f32, scale * scales[i], start[i]);
        }
    }
    /// out = (sums − offsets) · scales + bias, one of each per column.
    pub(crate) fn rescale_row<FMA>(
        out: &mut [f32],
        sums: &[i32],
        offsets: &[i32],
        scales: &[f32],
        bias: &[f32],
    ) {
        let size = out.len();
        let (sums, offsets) = (&sums[..size], &offsets[..size]);
        let (scales, bias) = (&scales[..size], &bias[..size]);
        for i in 0..size {
            out[i] = fma::<FMA>((sums[i] - offsets[i]) as f32, scales[i], bias[i]);
        }
    }
}

#[allow(clippy::manual_clamp)] // `clamp` would keep NaN
#[inline(always)]
fn requantize<const LOW: i32, const HIGH: i32>(x: f32, zero_point: i32) -> i32 {
    let low = (LOW - zero_point) as f32;
    let bounded = x.max(low).min((HIGH - zero_point) as f32);
    let rounded = (bounded + ROUND) - ROUND;
    // SAFETY: it lies within ±512 and is no NaN: `max` has turned that into the least.
    let level = unsafe { rounded.to_int_unchecked::<i32>() };
    level + zero_point
}

vectorized! {
    /// out = clamp(round(sums · scales) + `zero_point`), one scale per column.
    pub(crate) fn requantize_row_u8<FMA>(
        out: &mut [u8],
        sums: &[i32],
        scales: &[f32],
        zero_point: i32,
    ) {
        for ((out, &sum), &scale) in out.iter_mut().zip(sums).zip(scales) {
            *out = requantize::<0, 255>(sum as f32 * scale, zero_point) as u8;
        }
    }

    pub(crate) fn requantize_row_i8<FMA>(
        out: &mut [i8],
        sums: &[i32],
        scales: &[f32],
        zero_point: i32,
    ) {
        for ((out, &sum), &scale) in out.iter_mut().zip(sums).zip(scales) {
            *out = requantize::<-128, 127>(sum as f32 * scale, zero_point) as i8;
        }
    }

    /// out = clamp(round(a·`a_scale` + b·`b_scale`) + zero), a and b off their zero points.
    pub(crate) fn add_u8<FMA>(
        out: &mut [u8],
        a: Levels<'_>,
        b: Levels<'_>,
        zero_point: i32,
        flip: u8,
    ) {
        combine::<FMA>(out, a, b, flip, |a, b| requantize::<0, 255>(a + b, zero_point));
    }

    /// levels = clamp(round((levels·scale + addend·scale) / scale) + zero), each with its own.
    pub(crate) fn add_levels<FMA>(levels: &mut [u8], addend: &[u8], terms: [Term; 3]) {
        let [a, b, y] = terms;
        let (a_scale, b_scale) = (a.scale / y.scale, b.scale / y.scale);
        for (level, &other) in levels.iter_mut().zip(addend) {
            let left = (*level as i32 - a.zero_point) as f32 * a_scale;
            let right = (other as i32 - b.zero_point) as f32 * b_scale;
            *level = requantize::<0, 255>(left + right, y.zero_point) as u8;
        }
    }

    /// out = clamp(round(a·`a_scale` · b·`b_scale`) + zero), a and b off their zero points.
    pub(crate) fn multiply_u8<FMA>(
        out: &mut [u8],
        a: Levels<'_>,
        b: Levels<'_>,
        zero_point: i32,
        flip: u8,
    ) {
        combine::<FMA>(out, a, b, flip, |a, b| requantize::<0, 255>(a * b, zero_point));
    }
}

/// What u8 levels stand for: (level − zero) · scale.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Term {
    pub(crate) scale: f32,
    pub(crate) zero_point: i32,
}

/// Each level becomes that of the table.
pub(crate) fn look_up(levels: &mut [u8], table: &[u8; 256]) {
    #[cfg(target_arch = "x86_64")]
    if super::isa() == super::Isa::Avx512 && is_x86_feature_detected!("avx512vbmi") {
        // SAFETY: the instructions were found.
        return unsafe { look_up_vbmi(levels, table) };
    }
    levels.iter_mut().for_each(|level| *level = table[usize::from(*level)]);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn look_up_vbmi(levels: &mut [u8], table: &[u8; 256]) {
    use std::arch::x86_64::{
        _mm512_loadu_si512, _mm512_mask_blend_epi8, _mm512_movepi8_mask, _mm512_permutex2var_epi8,
        _mm512_storeu_si512,
    };
    let (vectors, rest) = levels.as_chunks_mut::<64>();
    // SAFETY: a quarter of the table is 64 bytes, as is a vector of levels.
    unsafe {
        let quarter = |index: usize| _mm512_loadu_si512(table[index * 64..].as_ptr().cast());
        let (a, b, c, d) = (quarter(0), quarter(1), quarter(2), quarter(3));
        for vector in vectors {
            let at = _mm512_loadu_si512(vector.as_ptr().cast());
            let low = _mm512_permutex2var_epi8(a, at, b);
            let high = _mm512_permutex2var_epi8(c, at, d);
            let found = _mm512_mask_blend_epi8(_mm512_movepi8_mask(at), low, high);
            _mm512_storeu_si512(vector.as_mut_ptr().cast(), found);
        }
    }
    rest.iter_mut().for_each(|level| *level = table[usize::from(*level)]);
}

/// A row of u8 levels, or one for all, and what they stand for: (level − zero) · scale.
#[derive(Clone, Copy)]
pub(crate) struct Levels<'a> {
    pub(crate) data: &'a [u8],
    pub(crate) is_scalar: bool,
    pub(crate) scale: f32,
    pub(crate) zero_point: i32,
}

/// Runs over two rows; `flip` is 128 where the bytes are of i8, whose zero points were moved up.
#[inline(always)]
fn combine<const FMA: bool>(
    out: &mut [u8],
    a: Levels<'_>,
    b: Levels<'_>,
    flip: u8,
    operation: impl Fn(f32, f32) -> i32,
) {
    let value = |x: Levels, level: u8| ((level ^ flip) as i32 - x.zero_point) as f32 * x.scale;
    match (a.is_scalar, b.is_scalar) {
        (true, _) => {
            let left = value(a, a.data[0]);
            for (i, out) in out.iter_mut().enumerate() {
                let right = value(b, b.data[if b.is_scalar { 0 } else { i }]);
                *out = operation(left, right) as u8 ^ flip;
            }
        }
        (false, true) => {
            let right = value(b, b.data[0]);
            for (out, &level) in out.iter_mut().zip(a.data) {
                *out = operation(value(a, level), right) as u8 ^ flip;
            }
        }
        (false, false) => {
            for ((out, &left), &right) in out.iter_mut().zip(a.data).zip(b.data) {
                *out = operation(value(a, left), value(b, right)) as u8 ^ flip;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_even_and_ends_saturate() {
        let mut out = [0_u8; 6];
        quantize_u8(&mut out, &[0.5, 1.5, 2.5, -9.0, 1e30, f32::INFINITY], 1.0, 0);
        assert_eq!(out, [0, 2, 2, 0, 255, 255]);
    }

    #[test]
    fn a_table_is_read_at_every_level() {
        let table: [u8; 256] = std::array::from_fn(|level| (level * 37 % 251) as u8);
        let levels: Vec<u8> = (0..1000).map(|i| (i * 7 % 256) as u8).collect();
        let mut found = levels.clone();
        look_up(&mut found, &table);
        let expected: Vec<u8> = levels.iter().map(|&level| table[usize::from(level)]).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_worked_example_of_the_design() {
        let mut out = [0_u8];
        quantize_u8(&mut out, &[0.8], 1.0 / 255.0, 0);
        assert_eq!(out, [204]);
    }
}
