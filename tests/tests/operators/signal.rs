//! Fourier transforms, windows, the mel scale.

use attar_tensor::{DType, Tensor};

use crate::case::*;

/// ONNX Runtime sums in f32, and twiddles by recurrence; attar in f64.
const F32_SUMS: f64 = 2e-5;

/// Its angles are rounded to f32 there too.
const F64_SUMS: f64 = 1e-6;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (dtype, tolerance) in [(DType::F32, F32_SUMS), (DType::F64, F64_SUMS)] {
        for shape in [&[2, 16, 1][..], &[1, 10, 2], &[3, 25, 1], &[1, 37, 2], &[2, 12, 5, 2]] {
            for axis in [1_i64, -2] {
                let feeds = || vec![("x", typed(dtype, shape)), ("a", Tensor::scalar(axis))];
                cases.push(case("y = DFT(x, , a)", feeds()).opset(20).within(tolerance));
                let inverse = case("y = DFT(x, , a, inverse=1)", feeds());
                cases.push(inverse.opset(20).within(tolerance));
                if shape.last() == Some(&1) {
                    let half = case("y = DFT(x, , a, onesided=1)", feeds());
                    cases.push(half.opset(20).within(tolerance));
                }
            }
            for length in [8_i64, 20] {
                let feeds = vec![("x", typed(dtype, shape)), ("n", Tensor::scalar(length))];
                cases.push(case("y = DFT(x, n, axis=1)", feeds).within(tolerance));
            }
        }
        for (size, frame) in [(64, 16), (100, 25), (400, 80)] {
            let feeds = vec![
                ("x", typed(dtype, &[2, size, 1])),
                ("p", Tensor::scalar(10_i64)),
                ("w", typed(dtype, &[frame])),
                ("n", Tensor::scalar(frame as i64)),
            ];
            for settings in ["", ", onesided=0"] {
                let text = format!("y = STFT(x, p, w, n{settings})");
                cases.push(case(text, feeds.clone()).within(tolerance));
            }
            let text = "y = STFT(x, p, , n)";
            let feeds = feeds.into_iter().filter(|(name, _)| *name != "w").collect();
            cases.push(case(text, feeds).within(tolerance));
        }
    }
    for window in ["HannWindow", "HammingWindow", "BlackmanWindow"] {
        for size in [10_i64, 17] {
            for settings in ["", ", periodic=0", ", output_datatype=11"] {
                let feeds = vec![("n", Tensor::scalar(size))];
                let text = format!("y = {window}(n{settings})");
                // ONNX Runtime computes the angle in f32.
                cases.push(case(text, feeds).within(1e-6));
            }
        }
    }
    for (bands, size, rate, low, high) in
        [(8, 16, 8192, 0.0, 4096.0), (20, 400, 16000, 40.0, 7600.0)]
    {
        let feeds = vec![
            ("b", Tensor::scalar(bands as i64)),
            ("n", Tensor::scalar(size as i64)),
            ("r", Tensor::scalar(rate as i64)),
            ("l", Tensor::scalar(low as f32)),
            ("h", Tensor::scalar(high as f32)),
        ];
        cases.push(case("y = MelWeightMatrix(b, n, r, l, h)", feeds));
    }
    cases
}
