use super::probabilities::exp2;
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
        for &path in Path::ALL.iter().filter(|path| path.is_present()) {
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
            // Weights of 1/65535 have a sum of at least 1.
            let step = f64::from(case.shape.probability_scale.unwrap_or(1.0 / 65535.0));
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                // Each probability is off by half a step, and by what f32 scores are off.
                let row = &probabilities[i / value_size * keys..][..keys];
                let terms = case.data[2].iter().skip(i % value_size).step_by(value_size);
                let slack: f64 = (row.iter().zip(terms))
                    .map(|(p, &v)| (0.5 * step + 1e-4 * p) * (f64::from(v) - 7.0).abs() * 0.05)
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
        for (keys, least) in [(24, -1e9), (32, f32::MIN), (57, f32::NEG_INFINITY), (150, -1e4)] {
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
        let expected = 64.0 * 4.0 * of(2) * (1.0 / 255.0 * 0.05);
        assert_eq!(case.run_all(), [expected; 4 * 48]);
    }
}

#[test]
fn results_in_u8_are_those_in_f32_rounded() {
    let case = Case::new(10, 37, 32, 24);
    let exact = case.run_all();
    let (scale, zero_point) = (0.01, 40);
    for &path in Path::ALL.iter().filter(|path| path.is_present()) {
        let shape = Shape { path, ..case.shape };
        let mut data = vec![0; 10 * 24];
        let mut target = Target::U8 { data: &mut data, stride: 24, scales: &[scale], zero_point };
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
fn powers_of_two_are_within_3e_7_and_end_at_zero() {
    let worst = (0..126_000).map(|i| {
        let x = -i as f32 / 1000.0;
        let exact = f64::from(x).exp2();
        (f64::from(exp2(x)) - exact).abs() / exact
    });
    assert!(worst.fold(0.0, f64::max) < 3e-7);
    assert_eq!([exp2(0.0), exp2(-126.5), exp2(f32::NEG_INFINITY)], [1.0, 0.0, 0.0]);
}

#[test]
fn sums_are_exact_with_as_many_keys_as_there_may_be() {
    for (level, zero_point) in [(255, 0), (0, 255)] {
        let mut case = Case::new(2, KEYS_MAX, 4, 16).with_fine_probabilities();
        case.data.iter_mut().for_each(|data| data.fill(level));
        case.zero_points = [level, level, zero_point];
        let expected = (f32::from(level) - f32::from(zero_point)) * 0.05;
        for y in case.run_all() {
            assert!((y - expected).abs() <= 1e-6 * expected.abs(), "{y} {expected}");
        }
    }
}
