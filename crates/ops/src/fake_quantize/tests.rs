use attar_graph::testing::graph_from_text;
use attar_tensor::DType;

use super::*;
use crate::quantize_linear::integer_range;
use crate::{Pool, operator};

/// Values that lie between levels, on them, half-way, and beyond the ends.
fn values(count: usize, scale: f32) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state as f32 / u32::MAX as f32 - 0.5
    };
    let value = |index: usize| match index % 4 {
        0 => (index as f32 - 40.0) / 2.0 * scale,
        1 => 3000.0 * next() * scale,
        _ => 40.0 * next() * scale,
    };
    (0..count).map(value).collect()
}

fn run(node: &Node, inputs: Vec<Option<Tensor>>) -> Tensor {
    let operator = operator(&node.domain, &node.op_type).unwrap();
    let kernel = operator.kernel(node, &[]).unwrap();
    kernel.run(&mut Run { inputs, pool: &Pool::default() }).unwrap().swap_remove(0)
}

fn fake(text: &str) -> Node {
    graph_from_text(text).nodes[0].clone().with_domain(ATTAR_DOMAIN)
}

#[test]
fn it_gives_what_quantizing_and_dequantizing_give_bit_for_bit() {
    use DType::{I2, I4, I8, I16, U2, U4, U8, U16};
    let shapes: [&[usize]; 7] = [&[], &[1], &[7], &[3, 5], &[2, 4, 3], &[2, 3, 17, 5], &[4, 33]];
    for dtype in [I2, U2, I4, U4, I8, U8, I16, U16] {
        let (low, high) = integer_range(dtype).unwrap();
        for shape in shapes {
            for axis in 0..=shape.len() {
                let count: usize = shape.iter().product();
                // Behind the last axis: one scale for all.
                let channels = shape.get(axis).copied();
                let of: Vec<usize> = channels.into_iter().collect();
                let scales: Vec<f32> =
                    (0..channels.unwrap_or(1)).map(|i| 0.037 * (i + 1) as f32).collect();
                let zeros: Vec<i32> = (0..scales.len() as i64)
                    .map(|i| (low + (i + 1) * (high - low) / 3).clamp(low, high) as i32)
                    .collect();
                let x = Tensor::new(shape, &values(count, 0.037));
                let scale = Tensor::new(&of, &scales);
                let zero = Tensor::new(&of, &zeros).converted(dtype).unwrap();
                let real = Tensor::new(&of, &zero.to_f32().unwrap());
                let at = if channels.is_some() { axis } else { 0 };
                let text = |op: &str| format!("y = {op}(x, s, z, axis={at})");
                let node = |op: &str| graph_from_text(&text(op)).nodes[0].clone();
                let settings = |zero: &Tensor| vec![Some(scale.clone()), Some(zero.clone())];
                let with = |first: &Tensor, zero: &Tensor| {
                    [vec![Some(first.clone())], settings(zero)].concat()
                };
                let q = run(&node("QuantizeLinear"), with(&x, &zero));
                let expected = run(&node("DequantizeLinear"), with(&q, &zero));
                let node = node("FakeQuantize").with_domain(ATTAR_DOMAIN);
                let node = node.with_attribute("level_min", low).with_attribute("level_max", high);
                let found = run(&node, with(&x, &real));
                let bits = |t: &Tensor| -> Vec<u32> {
                    t.slice::<f32>().iter().map(|x| x.to_bits()).collect()
                };
                assert_eq!(bits(&found), bits(&expected), "{dtype} {shape:?} axis {axis}");
                let levels = fake_quantize_levels(&node, &x, &scale, Some(&real)).unwrap();
                let stored = q.converted(DType::I32).unwrap();
                assert_eq!(levels.slice::<i32>(), stored.slice::<i32>(), "{dtype} {shape:?}");
            }
        }
    }
}

#[test]
fn grids_of_other_sizes_end_where_they_are_told_to() {
    let x = Tensor::new(&[6], &[-9.0_f32, -3.5, -0.4, 0.5, 1.5, 9.0]);
    let scale = Tensor::scalar(1.0_f32);
    let levels = |ends: &str| {
        let node = fake(&format!("y = FakeQuantize(x, s, {ends})"));
        run(&node, vec![Some(x.clone()), Some(scale.clone())]).slice::<f32>().to_vec()
    };
    assert_eq!(levels("level_min=-4, level_max=3"), [-4.0, -4.0, 0.0, 0.0, 2.0, 3.0]);
    assert_eq!(levels("level_min=-1, level_max=1"), [-1.0, -1.0, 0.0, 0.0, 1.0, 1.0]);
    assert_eq!(levels("mode=signs"), [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]);
}

#[test]
fn attributes_that_make_no_grid_are_refused() {
    for (attributes, expected) in [
        ("level_min=0", "level_max is \"absent\""),
        ("level_min=3, level_max=3", "above 3"),
        ("level_min=0, level_max=4294967296", "an i32 above 0"),
        ("mode=ternary", "\"levels\" or \"signs\""),
    ] {
        let node = fake(&format!("y = FakeQuantize(x, s, {attributes})"));
        let error = FakeQuantize.kernel(&node, &[]).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// dx, dscale and dzero.
fn gradients(node: &Node, inputs: [&Tensor; 3], dy: &Tensor) -> Vec<Vec<f32>> {
    let wanted = [true; 3];
    let gradient = FakeQuantize.gradient(node, &Training { constants: &[], wanted: &wanted });
    let mut run = Backward {
        inputs: inputs.map(|tensor| Some(tensor.clone())).to_vec(),
        shapes: &inputs.map(|tensor| tensor.shape().to_vec()),
        outputs: vec![None],
        gradients: vec![Some(dy.clone())],
        saved: Vec::new(),
        wanted: &wanted,
        pool: &Pool::default(),
    };
    let flows = gradient.unwrap().backward(&mut run).unwrap();
    let dense = |flow: Flow| flow.into_dense(run.pool).slice::<f32>().to_vec();
    flows.into_iter().flatten().map(dense).collect()
}

#[test]
fn gradients_are_those_of_lsq_and_its_asymmetric_form() {
    for (low, high) in [(-128_i64, 127), (0, 255), (0, 15), (-4, 3), (-1, 1), (0, 65_535)] {
        let (shape, scales) = ([3, 4, 50], [0.02_f32, 0.3, 0.05, 1.0]);
        let zeros = [0.0_f32, 0.3, 1.0, -0.6].map(|zero| zero + low as f32 * 0.5);
        let x = values(600, 0.4);
        let dy = values(600, 0.01);
        let node = fake("y = FakeQuantize(x, s, z, axis=1)");
        let node = node.with_attribute("level_min", low).with_attribute("level_max", high);
        let tensors = [Tensor::new(&shape, &x), Tensor::new(&[4], &scales)];
        let zero = Tensor::new(&[4], &zeros);
        let found = gradients(&node, [&tensors[0], &tensors[1], &zero], &Tensor::new(&shape, &dy));
        let mut expected = [vec![0.0_f64; 600], vec![0.0; 4], vec![0.0; 4]];
        let g = 1.0 / (150.0 * high as f64).sqrt();
        for i in 0..600 {
            let channel = i / 50 % 4;
            let (scale, zero) = (scales[channel], zeros[channel].round_ties_even());
            let (low, high) = (low as f32 - zero, high as f32 - zero);
            let (level, dy) = (x[i] / scale, f64::from(dy[i]));
            if level >= low && level <= high {
                expected[0][i] = dy;
                expected[1][channel] += g * dy * f64::from(level.round_ties_even() - level);
            } else {
                let end = if level < low { low } else { high };
                expected[1][channel] += g * dy * f64::from(end);
                expected[2][channel] -= g * dy * f64::from(scale);
            }
        }
        for (found, expected) in found.iter().zip(&expected) {
            for (found, expected) in found.iter().zip(expected) {
                let tolerance = 1e-5 * (1.0 + expected.abs());
                assert!((f64::from(*found) - expected).abs() < tolerance, "{low}..{high}");
            }
        }
    }
}

#[test]
fn signs_pass_what_is_within_one_and_their_scale_learns_from_all() {
    let x = Tensor::new(&[2, 3], &[0.5_f32, -0.2, 1.5, -2.0, 0.0, 1.0]);
    let dy = Tensor::new(&[2, 3], &[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let (scale, zero) = (Tensor::new(&[2], &[0.3_f32, 0.7]), Tensor::new(&[2], &[0.0_f32; 2]));
    let node = fake("y = FakeQuantize(x, s, z, axis=0, mode=signs)");
    let found = gradients(&node, [&x, &scale, &zero], &dy);
    assert_eq!(found[0], [1.0, 2.0, 0.0, 0.0, 5.0, 6.0]);
    let sums = [1.0 - 2.0 + 3.0, -4.0 + 5.0 + 6.0].map(|sum: f32| sum / 3.0_f32.sqrt());
    assert!(found[1].iter().zip(sums).all(|(a, b)| (a - b).abs() < 1e-6), "{:?}", found[1]);
}
