//! Softmax's kin, indices of extremes, running sums, losses, determinants and random numbers.

use attar_tensor::{DType, Tensor};

use crate::case::*;
use crate::functions::{numbers_in, tolerance};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes: [&[usize]; 4] = [&[2, 3, 4], &[5, 33], &[1, 7], &[2, 6, 3, 2]];
    for shape in shapes {
        for axis in [-1, 0, 1] {
            for dtype in [DType::F32, DType::F64, DType::F16] {
                let x = || vec![("x", numbers_in(dtype, shape))];
                for op in ["Softmax", "LogSoftmax"] {
                    let text = format!("y = {op}(x, axis={axis})");
                    cases.push(case(text, x()).within(tolerance(dtype)));
                }
                if dtype != DType::F64 {
                    cases.push(case(format!("y = Hardmax(x, axis={axis})"), x()).exact());
                }
            }
            cases.extend(index_cases(shape, axis));
            cases.extend(running_cases(shape, axis));
        }
    }
    cases.extend(loss_cases());
    cases.extend(matrix_cases());
    cases.extend(random_cases());
    cases
}

fn index_cases(shape: &[usize], axis: i64) -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::F64, DType::F16, DType::I8, DType::U8, DType::I32, DType::I64]
    {
        // Small numbers, so that extremes tie.
        let few = numbers_in(dtype, shape).to_f64().expect("numbers");
        let few: Vec<f64> = few.iter().map(|x| (x / 8.0).round()).collect();
        let x = Tensor::new(shape, &few).converted(dtype).expect("numbers convert");
        for op in ["ArgMax", "ArgMin"] {
            for settings in ["", ", keepdims=0", ", select_last_index=1"] {
                let text = format!("y = {op}(x, axis={axis}{settings})");
                cases.push(case(text, vec![("x", x.clone())]).exact());
            }
        }
    }
    cases
}

fn running_cases(shape: &[usize], axis: i64) -> Vec<Case> {
    let mut cases = Vec::new();
    for settings in ["", ", exclusive=1", ", reverse=1", ", exclusive=1, reverse=1"] {
        for dtype in [DType::F32, DType::F64, DType::I32, DType::I64] {
            let feeds = vec![("x", numbers_in(dtype, shape)), ("a", Tensor::scalar(axis))];
            cases.push(case(format!("y = CumSum(x, a{settings})"), feeds.clone()));
            if !dtype.is_float() {
                cases.push(case(format!("y = CumProd(x, a{settings})"), feeds).opset(26).exact());
            }
        }
    }
    cases
}

fn loss_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes: [(&[usize], &[usize]); 3] =
        [(&[4, 5], &[4]), (&[2, 3, 6], &[2, 6]), (&[2, 4, 3, 2], &[2, 3, 2])];
    for (scores, places) in shapes {
        let (count, classes) = (places.iter().product::<usize>(), scores[1] as i64);
        let labels: Vec<i64> = (0..count as i64).map(|i| i * 7 % classes).collect();
        let labels = Tensor::new(places, &labels);
        for dtype in [DType::F32, DType::F64] {
            let weights = positive(&[scores[1]]).converted(dtype).expect("numbers convert");
            for settings in ["", ", reduction=sum", ", reduction=none", ", ignore_index=1"] {
                for op in ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"] {
                    let feeds = vec![("x", numbers_in(dtype, scores)), ("l", labels.clone())];
                    cases.push(
                        case(format!("y = {op}(x, l{settings})"), feeds.clone()).within(5e-6),
                    );
                    let feeds = [feeds, vec![("w", weights.clone())]].concat();
                    cases.push(case(format!("y = {op}(x, l, w{settings})"), feeds).within(5e-6));
                }
            }
        }
        let feeds = vec![("x", f32s(scores)), ("l", labels)];
        cases.push(case("y, p = SoftmaxCrossEntropyLoss(x, l)", feeds).within(5e-6));
    }
    cases
}

fn matrix_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in [&[1, 1][..], &[4, 4], &[2, 3, 3], &[2, 2, 5, 5]] {
        cases.push(case("y = Det(x)", vec![("x", f32s(shape))]).within(1e-5));
    }
    for (k, dtype) in [(0, 1), (1, 7), (-2, 11), (9, 6)] {
        let text = format!("y = EyeLike(x, k={k}, dtype={dtype})");
        cases.push(case(text, vec![("x", f32s(&[4, 6]))]).exact());
    }
    cases.push(case("y = EyeLike(x)", vec![("x", numbers_in(DType::I64, &[3, 2]))]).exact());
    cases
}

fn random_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for call in [
        "RandomNormalLike(x)",
        "RandomNormalLike(x, dtype=11, mean=1.0, scale=2.0, seed=3.0)",
        "RandomUniformLike(x, low=-1.0, high=4.0)",
        "Bernoulli(x)",
        "Bernoulli(x, dtype=7, seed=2.0)",
        "Multinomial(x, sample_size=5)",
        "Multinomial(x, dtype=7)",
    ] {
        let feeds = vec![("x", positive(&[3, 4]))];
        cases.push(case(format!("y = {call}"), feeds).any_values());
    }
    for call in ["RandomNormal(shape=2 3)", "RandomUniform(shape=4, dtype=11, seed=7.0)"] {
        let text = format!("r = {call}\ny = Identity(r)\nz = Identity(x)");
        cases.push(case(text, vec![("x", f32s(&[1]))]).any_values());
    }
    cases
}
