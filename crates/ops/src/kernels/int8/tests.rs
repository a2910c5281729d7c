//! Every path against plain loops, and against each other.

use super::super::gemm::Strided;
use super::*;

/// Bytes that look random, with the ends of the range among them.
fn bytes(count: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        match state >> 29 {
            0 => 255,
            1 => 0,
            _ => (state >> 16) as u8,
        }
    };
    (0..count).map(next).collect()
}

fn signed(count: usize, seed: u32) -> Vec<i8> {
    bytes(count, seed).into_iter().map(|byte| byte.wrapping_sub(128).cast_signed()).collect()
}

fn floats(count: usize, seed: u32, scale: f32) -> Vec<f32> {
    signed(count, seed).into_iter().map(|value| f32::from(value) * scale).collect()
}

/// One product: sizes, and what its results pass through.
#[derive(Clone, Copy)]
struct Case {
    sizes: [usize; 3],
    zero_point: u8,
    activation: Activation,
    output: Output<'static>,
    /// Bytes between the rows of the left side, and values between those of the results.
    gaps: [usize; 2],
    /// Bits that weights lack.
    shift: u32,
}

impl Case {
    fn sides(&self) -> (Vec<u8>, Vec<i8>) {
        let [m, k, n] = self.sizes;
        let weights = signed(k * n, 2).iter().map(|w| w >> self.shift).collect();
        (bytes(m * (k + self.gaps[0]), 1), weights)
    }

    fn scales(&self) -> Vec<f32> {
        floats(self.sizes[2], 3, 1e-6).iter().map(|scale| scale.abs() + 1e-5).collect()
    }

    /// y by plain loops, in f64 from exact sums.
    fn expected(&self) -> Vec<f64> {
        let [m, k, n] = self.sizes;
        let (a, b) = self.sides();
        let (scales, bias) = (self.scales(), floats(n, 4, 0.01));
        let value = |i: usize| {
            let (row, column) = (i / n, i % n);
            let term = |j: usize| {
                let left = i64::from(a[row * (k + self.gaps[0]) + j]) - i64::from(self.zero_point);
                left * i64::from(b[j * n + column])
            };
            let sum: i64 = (0..k).map(term).sum();
            let x = sum as f64 * f64::from(scales[column]) + f64::from(bias[column]);
            match self.activation {
                Activation::None => x,
                Activation::Clip { low, high } => x.clamp(low.into(), high.into()),
                Activation::Gelu => 0.5 * x * (1.0 + crate::unary::erf_f64(x / 2_f64.sqrt())),
                Activation::Each(_) => x.tanh(),
            }
        };
        (0..m * n).map(value).collect()
    }

    /// What the path gives: y (if it is written) and levels, gaps taken out.
    fn run(&self, path: Path) -> (Vec<f32>, Vec<u8>) {
        let [m, k, n] = self.sizes;
        let (a, b) = self.sides();
        let weights = Weights::with_path(path, Strided::rows(&b, k, n));
        let bias = floats(n, 4, 0.01);
        let (zero, act) = (self.zero_point, self.activation);
        let product = Product::new(weights, zero, &self.scales(), Some(&bias), act, self.output);
        assert_eq!([product.depth(), product.columns()], [k, n]);
        let stride = n + self.gaps[1];
        let (mut y, mut q) = (vec![-7.0; m * stride], vec![77; m * stride]);
        let left = Rows { data: &a, count: m, stride: k + self.gaps[0] };
        let values = match self.output {
            Output::F32 => Values::F32(&mut y),
            Output::U8 { .. } => Values::U8(&mut q),
        };
        let target = Target { values, stride };
        run_all(left, [(&product, target)].into_iter());
        let has_gap = |i: &usize| i % stride >= n;
        let gaps = (0..m * stride).filter(has_gap);
        gaps.for_each(|i| assert!(y[i] == -7.0 && q[i] == 77, "a gap at {i} was written"));
        let kept = |i: &usize| !has_gap(i);
        (
            (0..m * stride).filter(kept).map(|i| y[i]).collect(),
            (0..m * stride).filter(kept).map(|i| q[i]).collect(),
        )
    }
}

const SHAPES: &[[usize; 3]] = &[
    [1, 1, 1],
    [1, 384, 384],
    [2, 3, 5],
    [3, 4, 16],
    [5, 7, 17],
    [6, 8, 64],
    [7, 129, 65],
    [12, 30, 100],
    [13, 66, 127],
    [17, 16, 48],
    [40, 33, 130],
    [3, 0, 20],
    [0, 8, 20],
    [4, 8, 0],
];

const ACTIVATIONS: &[Activation] = &[
    Activation::None,
    Activation::Clip { low: 0.0, high: f32::INFINITY },
    Activation::Clip { low: -0.4, high: 0.7 },
    Activation::Gelu,
    Activation::Each(super::super::elementwise::tanh),
];

const OUTPUTS: &[Output] = &[
    Output::F32,
    Output::U8 { scales: &[0.011], zero_point: 0 },
    Output::U8 { scales: &[0.013], zero_point: 131 },
    Output::U8 { scales: &[0.003], zero_point: 255 },
];

/// Holds a run to the plain loops: y within rounding, and levels within a hair of the exact one.
fn check(case: Case, expected: &[f64], (y, q): &(Vec<f32>, Vec<u8>), what: &str) {
    if !matches!(case.output, Output::U8 { .. }) {
        for (y, expected) in y.iter().zip(expected) {
            // One rounding of the sum, one of its scaling; the polynomial of erf is within 5e-7.
            let tolerance = 1e-6 * expected.abs().max(1.0);
            assert!((f64::from(*y) - expected).abs() <= tolerance, "{what}: {y} {expected}");
        }
    }
    if let Output::U8 { scales: &[scale], zero_point } = case.output {
        for (q, expected) in q.iter().zip(expected) {
            let exact = expected / f64::from(scale) + f64::from(zero_point);
            let bounded = exact.clamp(0.0, 255.0);
            // Half a level, what the rounding of y can move it, and what a coarse GELU adds.
            let coarse = matches!(case.activation, Activation::Gelu);
            let slack = if coarse { 0.51 } else { 0.5 };
            let slack = slack + 1e-6 * expected.abs().max(1.0) / f64::from(scale);
            assert!((f64::from(*q) - bounded).abs() <= slack, "{what}: {q} {exact}");
        }
    }
}

/// FNV-1a of what a case gives, added to that of the cases before.
fn hash(hash: &mut u64, (y, q): &(Vec<f32>, Vec<u8>)) {
    let bytes = y.iter().flat_map(|y| y.to_bits().to_le_bytes()).chain(q.iter().copied());
    bytes.for_each(|byte| *hash = (*hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
}

/// The hash of all cases but those of functions over slices, on every machine.
const BITS: u64 = 17_606_167_813_703_914_380;

/// What a case gives, which is checked, and the same on all paths.
fn on_every_path(case: Case, what: &str) -> (Vec<f32>, Vec<u8>) {
    let ([_, k, n], (_, b)) = (case.sizes, case.sides());
    let expected = case.expected();
    let mut first: Option<(Vec<f32>, Vec<u8>)> = None;
    for path in Path::exact_for(Strided::rows(&b, k, n)) {
        let found = case.run(path);
        check(case, &expected, &found, &format!("{path:?} {what}"));
        let first = first.get_or_insert_with(|| found.clone());
        assert!(first == &found, "{path:?} {what}: bits");
    }
    first.expect("a path ran")
}

#[test]
#[cfg(target_arch = "x86_64")]
fn sums_of_16_bits_are_taken_up_to_their_end_and_no_further() {
    let has_avx2 = Path::available().any(|path| path == Path::Narrow256);
    let (k, n) = (6, 3);
    let mut b = vec![0_i8; k * n];
    let taken =
        |b: &[i8]| Path::exact_for(Strided::rows(b, k, n)).any(|path| path == Path::Narrow256);
    for (pair, fits) in [
        ([127, 1], true),
        ([127, 2], false),
        ([-128, 0], true),
        ([-127, -2], false),
        ([127, -128], true),
    ] {
        // Rows 2 and 3 meet in one sum, rows 3 and 4 do not.
        [b[2 * n + 1], b[3 * n + 1]] = pair;
        b[4 * n + 1] = 127;
        assert_eq!(taken(&b), fits && has_avx2, "{pair:?}");
    }
}

#[test]
fn every_path_gives_what_plain_loops_give_and_the_same_bits() {
    let mut bits = 0xcbf2_9ce4_8422_2325;
    for &sizes in SHAPES {
        for (index, &activation) in ACTIVATIONS.iter().enumerate() {
            for (kind, &output) in OUTPUTS.iter().enumerate() {
                let gaps = if (index + kind) % 2 == 0 { [0, 0] } else { [3, 5] };
                let zero_point = [0, 7, 128, 255][(index + kind) % 4];
                for shift in [0, 1] {
                    let case = Case { sizes, zero_point, activation, output, gaps, shift };
                    let found = on_every_path(case, &format!("{sizes:?} {index} {kind} {shift}"));
                    if shift == 0 && !matches!(activation, Activation::Each(_)) {
                        hash(&mut bits, &found);
                    }
                }
            }
        }
    }
    assert_eq!(bits, BITS, "the same bits as on the machine that this was written on");
}

#[test]
fn sums_are_exact_at_the_ends_of_the_range() {
    let (m, k, n) = (7, 1536, 70);
    let a = vec![255_u8; m * k];
    for value in [-128_i8, 127, -64, 64] {
        let b = vec![value; k * n];
        for path in Path::exact_for(Strided::rows(&b, k, n)) {
            let weights = Weights::with_path(path, Strided::rows(&b, k, n));
            let product = Product::new(weights, 0, &[1.0], None, Activation::None, Output::F32);
            let mut y = vec![0.0; m * n];
            let target = Target { values: Values::F32(&mut y), stride: n };
            let left = Rows { data: &a, count: m, stride: k };
            run_all(left, [(&product, target)].into_iter());
            let expected = (255 * 1536 * i32::from(value)) as f32;
            assert!(y.iter().all(|&y| y == expected), "{path:?} {value}");
        }
    }
}

#[test]
fn sums_alone_are_those_of_plain_loops() {
    for &[m, k, n] in SHAPES {
        let (a, b) = (bytes(m * (k + 3), 1), signed(k * n, 2));
        let term = |row: usize, j: usize, column: usize| {
            i32::from(a[row * (k + 3) + j]) * i32::from(b[j * n + column])
        };
        let expected = |i: usize| (0..k).map(|j| term(i / n, j, i % n)).sum::<i32>();
        for path in Path::exact_for(Strided::rows(&b, k, n)) {
            let product = Product::sums(Weights::with_path(path, Strided::rows(&b, k, n)));
            assert_eq!(product.dtype(), DType::I32);
            let stride = n + 2;
            let mut y = vec![-7; m * stride];
            let left = Rows { data: &a, count: m, stride: k + 3 };
            let target = Target { values: Values::I32(&mut y), stride };
            run_all(left, std::iter::once((&product, target)));
            for (at, &y) in y.iter().enumerate() {
                let (row, column) = (at / stride, at % stride);
                let expected = if column < n { expected(row * n + column) } else { -7 };
                assert_eq!(y, expected, "{path:?}: {m}×{k}×{n} at {row}, {column}");
            }
        }
    }
}

#[test]
fn transposed_weights_and_the_number_of_threads_change_nothing() {
    let (m, k, n) = (64, 96, 384);
    let (a, b) = (bytes(m * k, 5), signed(k * n, 6));
    let transposed: Vec<i8> = (0..n * k).map(|i| b[i % k * n + i / k]).collect();
    let run = |b: Strided<i8>, threads: usize| {
        let output = Output::U8 { scales: &[0.02], zero_point: 100 };
        let product = Product::new(Weights::new(b), 128, &[1e-4], None, Activation::Gelu, output);
        let mut q = vec![0; m * n];
        let target = Target { values: Values::U8(&mut q), stride: n };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let left = Rows { data: &a, count: m, stride: k };
        pool.install(|| run_all(left, [(&product, target)].into_iter()));
        q
    };
    let one = run(Strided::rows(&b, k, n), 1);
    assert!(one.iter().any(|&q| q != one[0]));
    for threads in [1, 2, 3, 5] {
        assert!(run(Strided::rows(&transposed, n, k).transposed(), threads) == one, "{threads}");
    }
}

#[test]
fn a_tall_product_in_parts_gives_what_its_rows_give() {
    let (m, k, n) = (705, 1024, 150);
    assert!(m * k > LEFT_BYTES_MAX);
    let (a, b) = (bytes(m * k, 5), signed(k * n, 6));
    let weights = Weights::new(Strided::rows(&b, k, n));
    let product = Product::new(weights, 128, &[1e-4], None, Activation::None, Output::F32);
    let run = |first: usize, count: usize, threads: usize| {
        let mut y = vec![f32::NAN; count * n];
        let target = Target { values: Values::F32(&mut y), stride: n };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let left = Rows { data: &a[first * k..], count, stride: k };
        pool.install(|| run_all(left, [(&product, target)].into_iter()));
        y
    };
    let parts = [(0, 300), (300, 300), (600, 105)];
    let alone: Vec<f32> = parts.iter().flat_map(|&(first, count)| run(first, count, 1)).collect();
    for threads in [1, 2, 3] {
        assert_eq!(run(0, m, threads), alone, "{threads} threads");
    }
}

#[test]
fn products_of_the_same_rows_run_together_as_alone() {
    let (m, k) = (40, 96);
    let a = bytes(m * k, 5);
    let left = Rows { data: &a, count: m, stride: k };
    let products: Vec<Product> = [384, 70, 1, 0]
        .iter()
        .map(|&n| {
            let weights = Weights::new(Strided::rows(&signed(k * n, 6), k, n));
            Product::new(weights, 9, &[1e-3], None, Activation::None, Output::F32)
        })
        .collect();
    let mut alone: Vec<Vec<f32>> =
        products.iter().map(|product| vec![0.0; m * product.columns()]).collect();
    let mut together = alone.clone();
    for (product, y) in products.iter().zip(&mut alone) {
        let target = Target { values: Values::F32(y), stride: product.columns() };
        run_all(left, [(product, target)].into_iter());
    }
    for threads in [1, 3] {
        together.iter_mut().for_each(|y| y.fill(0.0));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let targets = together.iter_mut().zip(&products).map(|(y, product)| {
                (product, Target { values: Values::F32(y), stride: product.columns() })
            });
            run_all(left, targets);
        });
        assert!(together == alone, "{threads} threads");
    }
}

#[test]
fn a_scale_of_levels_for_each_column_gives_what_it_gives_alone() {
    let (m, k, n) = (7, 30, 70);
    let (a, b) = (bytes(m * k, 5), signed(k * n, 6));
    let levels = |path: Path, activation: Activation, scales: &[f32]| {
        let weights = Weights::with_path(path, Strided::rows(&b, k, n));
        let output = Output::U8 { scales, zero_point: 100 };
        let product = Product::new(weights, 128, &[1e-4], None, activation, output);
        let mut q = vec![0; m * n];
        let target = Target { values: Values::U8(&mut q), stride: n };
        run_all(Rows { data: &a, count: m, stride: k }, [(&product, target)].into_iter());
        q
    };
    // All of them fit a coarse GELU, or none.
    for least in [4e-3, 1e-3] {
        let scales: Vec<f32> = (0..n).map(|i| least * (1.0 + i as f32 / n as f32)).collect();
        for &activation in ACTIVATIONS {
            for path in Path::exact_for(Strided::rows(&b, k, n)) {
                let found = levels(path, activation, &scales);
                for column in [0, 15, 16, 63, 64, 69] {
                    let alone = levels(path, activation, &scales[column..=column]);
                    let places = (column..m * n).step_by(n);
                    assert!(places.clone().all(|i| found[i] == alone[i]), "{path:?}");
                    assert!(places.clone().any(|i| found[i] != found[column]), "{path:?}");
                }
            }
        }
    }
}

#[test]
fn a_scale_of_zero_is_no_panic() {
    let (a, b) = (bytes(8, 1), signed(8 * 3, 2));
    for scale in [0.0, -1.0, f32::NAN, f32::MIN_POSITIVE / 4.0] {
        for &activation in ACTIVATIONS {
            let weights = Weights::new(Strided::rows(&b, 8, 3));
            let output = Output::U8 { scales: &[scale], zero_point: 9 };
            let product = Product::new(weights, 0, &[1.0], None, activation, output);
            let mut q = [0; 3];
            let target = Target { values: Values::U8(&mut q), stride: 3 };
            let left = Rows { data: &a, count: 1, stride: 8 };
            run_all(left, [(&product, target)].into_iter());
            // NaN is the least level, and ±∞ the ends.
            assert!(q.iter().all(|q| [0, 9, 255].contains(q)) || scale == -1.0, "{q:?} {scale}");
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod bits {
    use super::super::tile::Left;
    use super::super::{bit_tile, bits::BitColumns};
    use super::*;

    fn columns(k: usize, n: usize, is_ternary: bool) -> Vec<i8> {
        let level = |byte: u8| {
            if is_ternary { (byte % 3).cast_signed() - 1 } else { [-1, 1][usize::from(byte % 2)] }
        };
        bytes(k * n, 9).into_iter().map(|byte| level(byte >> 1)).collect()
    }

    #[test]
    fn counted_bits_are_the_products_of_plain_loops() {
        if !bit_tile::is_available() {
            return;
        }
        for (rows, k, n) in [(1, 33, 1), (1, 64, 64), (2, 100, 17), (5, 257, 63), (6, 1152, 50)] {
            for (is_ternary, places) in
                [(false, 0), (false, 1), (false, 2), (false, 4), (true, 1), (true, 2), (true, 3)]
            {
                let b = columns(k, n, is_ternary);
                let held = BitColumns::new(&Strided::rows(&b, k, n), [64, 16]).unwrap();
                let stride = k + 3;
                let a: Vec<u8> = bytes(rows * stride, 5)
                    .iter()
                    .map(|a| a & ((1_u16 << places) - 1) as u8)
                    .collect();
                let starts: Vec<i32> = (0..64).map(|i| i * 1000 - 7).collect();
                let (mut sums, wide) = (vec![0_i32; 6 * 64], n.div_ceil(16));
                let left = Left { data: a.as_ptr(), stride, depth: k };
                // SAFETY: the instructions are there, and the slices hold what is read and written.
                let is_counted = unsafe {
                    bit_tile::tile(&held, 0, (rows, wide), left, &starts, sums.as_mut_ptr())
                };
                assert_eq!(
                    is_counted,
                    places <= held.places_max(rows),
                    "{rows} {is_ternary} {places}"
                );
                if !is_counted {
                    continue;
                }
                for (row, column) in (0..rows).flat_map(|row| (0..n).map(move |c| (row, c))) {
                    let term =
                        |j: usize| i32::from(a[row * stride + j]) * i32::from(b[j * n + column]);
                    let expected = starts[column] + (0..k).map(term).sum::<i32>();
                    let found = sums[row * wide * 16 + column];
                    assert_eq!(
                        found, expected,
                        "{rows}×{k}×{n}, {is_ternary} {places}: {row} {column}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_product_with_signs_has_the_bits_of_the_portable_path() {
        for (m, k, n) in [(1, 40, 200), (13, 100, 70), (50, 576, 130)] {
            for is_ternary in [false, true] {
                for largest in [1, 3, 255] {
                    let b = columns(k, n, is_ternary);
                    let a: Vec<u8> = bytes(m * k, 4).iter().map(|a| a & largest).collect();
                    let scales = vec![0.01; n];
                    let run = |path: Path| {
                        let weights = Weights::with_path(path, Strided::rows(&b, k, n));
                        let product =
                            Product::new(weights, 1, &scales, None, Activation::None, Output::F32);
                        let mut y = vec![0.0; m * n];
                        let target = Target { values: Values::F32(&mut y), stride: n };
                        run_all(
                            Rows { data: &a, count: m, stride: k },
                            std::iter::once((&product, target)),
                        );
                        y
                    };
                    let expected = run(Path::Portable);
                    for path in Path::exact_for(Strided::rows(&b, k, n)) {
                        assert_eq!(
                            run(path),
                            expected,
                            "{path:?}: {m}×{k}×{n} {is_ternary} {largest}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn other_weights_are_no_bits() {
        let held = |b: &[i8]| {
            BitColumns::new(&Strided::rows(b, 32, 1), [64, 16]).map(|bits| bits.is_ternary())
        };
        let signs = columns(32, 1, false);
        assert_eq!(held(&signs), Some(false));
        let mut other = signs.clone();
        other[7] = 0;
        assert_eq!(held(&other), Some(true));
        other[7] = 2;
        assert_eq!(held(&other), None);
    }
}
