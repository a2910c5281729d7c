//! f32 ⇄ 8-bit: q = clamp(round(x / scale) + `zero_point`), round half to even.

use super::math::fma;
use super::vectorized;

/// Adding this to |x| < 2²² rounds x to the nearest integer, half to even.
const ROUND: f32 = 12_582_912.0;

#[allow(clippy::manual_clamp)] // `clamp` would keep NaN
#[inline(always)]
fn quantize<const LOW: i32, const HIGH: i32>(x: f32, scale: f32, zero_point: i32) -> i32 {
    // Dividing, not multiplying by 1/scale: ONNX says x / scale, and ties must fall alike.
    // NaN has no defined quantized value; `max` turns it into the least.
    let scaled = (x / scale).max(-1024.0).min(1024.0);
    let rounded = (scaled + ROUND) - ROUND;
    // SAFETY: it lies within ±1024 and is no NaN.
    let level = unsafe { rounded.to_int_unchecked::<i32>() };
    (level + zero_point).clamp(LOW, HIGH)
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
    fn the_worked_example_of_the_design() {
        let mut out = [0_u8];
        quantize_u8(&mut out, &[0.8], 1.0 / 255.0, 0);
        assert_eq!(out, [204]);
    }
}
