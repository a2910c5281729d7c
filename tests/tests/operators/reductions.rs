//! Reductions in every type that ONNX Runtime computes them in.

use attar_tensor::{DType, Tensor};

use crate::case::*;
use crate::functions::{numbers_in, tolerance};

const OPERATORS: [&str; 10] = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
];

/// Numbers whose products and logarithms stay in range.
fn small(dtype: DType, shape: &[usize]) -> Tensor {
    let values: Vec<f32> = positive(shape).slice::<f32>().iter().map(|x| x + 0.9).collect();
    Tensor::new(shape, &values).converted(dtype).expect("numbers convert")
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes: [&[usize]; 4] = [&[2, 3, 4, 5], &[3, 40], &[7], &[6, 1, 33]];
    for op in OPERATORS {
        for shape in shapes {
            for axes in [&[][..], &[-1], &[0], &[0, -1], &[1, 2]] {
                if axes.iter().any(|axis| *axis >= shape.len() as i64) {
                    continue;
                }
                for settings in ["", ", keepdims=0", ", noop_with_empty_axes=1"] {
                    // An earlier opset of ONNX Runtime leaves out the step after the sum.
                    if settings.contains("noop") && axes.is_empty() && op != "ReduceSum" {
                        continue;
                    }
                    let feeds = vec![("x", small(DType::F32, shape)), ("a", i64s(axes))];
                    let text = format!("y = {op}(x, a{settings})");
                    cases.push(case(text, feeds).opset(18).within(1e-5));
                }
            }
        }
        for dtype in [DType::F64, DType::F16, DType::I32, DType::I64] {
            // ONNX Runtime rounds integer logarithms and roots in another type.
            let is_rounded = matches!(op, "ReduceL2" | "ReduceLogSum" | "ReduceLogSumExp");
            if is_rounded && !dtype.is_float() {
                continue;
            }
            for axes in [&[][..], &[-1], &[0], &[0, 2]] {
                let feeds = vec![("x", small(dtype, &[2, 5, 3])), ("a", i64s(axes))];
                let tolerance = tolerance(dtype).max(1e-5);
                cases.push(case(format!("y = {op}(x, a)"), feeds).opset(18).within(tolerance));
            }
        }
    }
    for op in ["ReduceMax", "ReduceMin"] {
        for x in [numbers_in(DType::I8, &[3, 9]), numbers_in(DType::U8, &[3, 9]), bools(&[3, 9])] {
            for axes in [&[-1][..], &[0], &[0, 1]] {
                let feeds = vec![("x", x.clone()), ("a", i64s(axes))];
                cases.push(case(format!("y = {op}(x, a)"), feeds).opset(20).exact());
            }
        }
    }
    let large = Tensor::new(&[2, 2], &[(1_i64 << 53) + 1, 2, -7, 1 << 60]);
    // ONNX Runtime itself adds i64 in floats.
    for op in ["ReduceMax", "ReduceMin"] {
        let feeds = vec![("x", large.clone()), ("a", i64s(&[1]))];
        cases.push(case(format!("y = {op}(x, a)"), feeds).opset(18).exact());
    }
    cases
}
