//! Every instruction set against the portable form.

use super::*;

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (((i + seed) * 7919 % 2003) as f32 / 1001.0) - 1.0).collect()
}

const FINISHES: [Finish; 4] = [
    Finish { activation: Activation::None, scale: 1.0, shift: 0.0 },
    Finish { activation: Activation::Clamp(-0.5, 0.75), scale: 1.0, shift: 0.0 },
    Finish { activation: Activation::HardSwish(0.2, 0.5), scale: 2.0, shift: -0.25 },
    Finish { activation: Activation::LeakyRelu(0.1), scale: 1.0, shift: 0.0 },
];

fn is_close(found: &[f32], expected: &[f32]) -> bool {
    found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + b.abs()))
}

/// Every instruction set of this CPU gives what the portable form gives.
fn check_dense<const V: usize, const MOST: usize>(row: &DenseRow, size: usize) {
    let mut expected = vec![7.0; size];
    // SAFETY: the slices below hold all that the row names.
    unsafe { dense::<Portable, V, MOST>(expected.as_mut_ptr(), row) };
    let mut found = vec![7.0; size];
    if V <= tile_vectors_max() {
        dense_row(&mut found, row);
        assert!(is_close(&found, &expected), "{} pixels, {V} vectors", row.pixels);
    }
    #[cfg(target_arch = "x86_64")]
    if V == 1 && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        found.fill(7.0);
        // SAFETY: as above, and the instructions were found.
        unsafe { dense::<Avx2, 1, 6>(found.as_mut_ptr(), row) };
        assert!(is_close(&found, &expected), "{} pixels on AVX2", row.pixels);
    }
}

#[test]
fn dense_rows_are_alike_on_every_instruction_set() {
    for (case, pixels) in (1..=31).enumerate() {
        for (width, depth, step) in [(1, 1, 1), (16, 5, 5), (19, 4, 9), (40, 3, 6), (64, 2, 2)] {
            let vectors = usize::div_ceil(width, 16);
            let taps = [0, 3, 11];
            let x = numbers(2 + pixels * step + 11 + depth, case);
            let w = numbers(taps.len() * depth * vectors * 16, 5);
            let addend = numbers(pixels * (width + 3), 9);
            let row = DenseRow {
                x: &x,
                first: 2,
                step,
                taps: &taps,
                depth,
                w: &w,
                bias: &numbers(vectors * 16, 3),
                addend: (case % 2 == 0).then_some(&addend),
                finish: FINISHES[case % 4],
                pixels,
                width,
                out_step: width + 3,
            };
            match vectors {
                1 => check_dense::<1, 14>(&row, pixels * (width + 3)),
                2 => check_dense::<2, 14>(&row, pixels * (width + 3)),
                3 => check_dense::<3, 9>(&row, pixels * (width + 3)),
                _ => check_dense::<4, 6>(&row, pixels * (width + 3)),
            }
        }
    }
}

#[test]
fn depthwise_rows_are_alike_on_every_instruction_set() {
    for (case, pixels) in (1..=20).enumerate() {
        for channels in [1, 15, 16, 33, 48] {
            let taps = [(0, 0), (channels, channels), (5 * channels, 2 * channels)];
            let x = numbers((2 * pixels + 6) * channels, case);
            let addend = numbers(pixels * channels, 9);
            let row = DepthwiseRow {
                x: &x,
                first: 0,
                step: 2 * channels,
                taps: &taps,
                w: &numbers(3 * channels, 4),
                bias: &numbers(channels, 2),
                addend: (case % 2 == 0).then_some(&addend),
                finish: FINISHES[case % 4],
                pixels,
                channels,
                out_step: channels,
            };
            let mut expected = vec![0.0; pixels * channels];
            // SAFETY: the slices above hold all that the row names.
            unsafe { depthwise::<Portable>(expected.as_mut_ptr(), &row) };
            let mut found = vec![0.0; pixels * channels];
            depthwise_row(&mut found, &row);
            assert!(is_close(&found, &expected), "{pixels} pixels of {channels}");
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.fill(0.0);
                // SAFETY: as above, and the instructions were found.
                unsafe { depthwise_avx2(found.as_mut_ptr(), &row) };
                assert!(is_close(&found, &expected), "{pixels} of {channels} on AVX2");
            }
        }
    }
}

#[test]
#[should_panic(expected = "row.x.len()")]
fn a_row_beyond_its_input_is_refused() {
    let finish = FINISHES[0];
    let (x, w, bias) = ([0.0; 10], [0.0; 160], [0.0; 16]);
    let row = DenseRow {
        x: &x,
        first: 1,
        step: 3,
        taps: &[0],
        depth: 3,
        w: &w,
        bias: &bias,
        addend: None,
        finish,
        pixels: 4,
        width: 4,
        out_step: 4,
    };
    dense_row(&mut [0.0; 16], &row);
}
