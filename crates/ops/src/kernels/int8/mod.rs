//! Products of u8 rows and constant i8 columns, and all that follows them up to the next product:
//! y = activation((a − `zero_point`)·b·scales + bias), as f32 or quantized to u8.
//!
//! Sums are exact 32-bit integers. A tile of them is held in registers over the whole depth and
//! turned into results at once. Every path gives the same bits, for any number of rows and threads.

#[cfg(target_arch = "x86_64")]
mod bit_tile;
mod bits;
mod epilogue;
#[cfg(target_arch = "aarch64")]
mod neon;
mod peak;
mod tile;
mod vector;
mod weights;
#[cfg(target_arch = "x86_64")]
mod wide256;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

use attar_tensor::DType;
use rayon::prelude::*;

#[cfg(test)]
use weights::Path;
pub(crate) use weights::Weights;
pub use weights::int8_operations_per_second;

/// What a product's results pass through, while a tile of them is in the cache.
#[derive(Clone, Copy)]
pub(crate) enum Activation {
    None,
    /// Within low..=high: `Relu` and `Clip`.
    Clip {
        low: f32,
        high: f32,
    },
    /// ½·x·(1 + erf(x/√2)).
    Gelu,
    /// Any other function, over slices.
    Each(fn(&mut [f32])),
}

/// What a product gives.
#[derive(Clone, Copy)]
pub(crate) enum Output<'a> {
    F32,
    /// Levels clamp(round(y / scale) + zero point), rounded half to even, by one scale for all or one
    /// per column. Without an activation between, or with `Clip`, the scale of the sums is divided by
    /// that of the levels beforehand: a y within an ulp of a tie may fall to its other side.
    U8 {
        scales: &'a [f32],
        zero_point: u8,
    },
}

/// A product made ready: packed weights and all that its results pass through.
pub(crate) struct Product {
    weights: Weights,
    k: usize,
    n: usize,
    /// What the sums of each column start with: −`zero_point`·Σb, and what makes up for the path's
    /// offset. As the next two, padded with zeros.
    starts: Vec<i32>,
    scales: Vec<f32>,
    bias: Vec<f32>,
    activation: Activation,
    dtype: DType,
    levels: Levels,
    /// Of each column, what y is divided (or multiplied) by, padded with ones.
    level_factors: Vec<f32>,
    /// Ends of the levels of each column before the zero point is added, padded with zeros.
    level_ends: [Vec<f32>; 2],
}

/// From y to its levels.
#[derive(Clone, Copy)]
struct Levels {
    division: Division,
    zero_point: i32,
}

/// How y is divided by the scale of its levels.
#[derive(Clone, Copy, PartialEq)]
enum Division {
    /// Beforehand, with the scale of the sums.
    Done,
    By,
    /// By its inverse, where the activation is off by more than this rounds.
    Times,
}

impl Levels {
    /// Whether the activation may be off by a hundredth of a level.
    fn is_coarse(self) -> bool {
        self.division == Division::Times
    }
}

impl Product {
    /// (a − `zero_point`)·weights, times one scale per column (that of a times that of b) or one
    /// for all, plus the bias if there is one.
    ///
    /// # Panics
    /// When `scales` or `bias` have another size.
    pub(crate) fn new(
        weights: Weights,
        zero_point: u8,
        scales: &[f32],
        bias: Option<&[f32]>,
        activation: Activation,
        output: Output,
    ) -> Self {
        let (k, n) = (weights.depth(), weights.columns());
        assert!(scales.len() == n || scales.len() == 1, "one scale per column");
        let bias = bias.map_or_else(|| vec![0.0; n], <[f32]>::to_vec);
        assert_eq!(bias.len(), n, "one bias per column");
        let sums = weights.column_sums().iter();
        let offset = weights.path().left_offset() - i32::from(zero_point);
        let starts = sums.map(|sum| sum.wrapping_mul(offset)).collect();
        let scales = (0..n).map(|i| scales[if scales.len() == 1 { 0 } else { i }]).collect();
        let mut product = Self {
            weights,
            k,
            n,
            starts,
            scales,
            bias,
            activation,
            dtype: DType::F32,
            levels: Levels { division: Division::Done, zero_point: 0 },
            level_factors: Vec::new(),
            level_ends: Default::default(),
        };
        match output {
            Output::F32 => {}
            Output::U8 { scales, zero_point } => product.quantize(scales, zero_point),
        }
        let padded = product.weights.padded_columns();
        product.starts.resize(padded, 0);
        product.scales.resize(padded, 0.0);
        product.bias.resize(padded, 0.0);
        product.level_factors.resize(padded, 1.0);
        product.level_ends.iter_mut().for_each(|ends| ends.resize(padded, 0.0));
        product
    }

    fn quantize(&mut self, scales: &[f32], zero_point: u8) {
        let n = self.n;
        assert!(scales.len() == n || scales.len() == 1, "one scale of levels per column");
        let scales: Vec<f32> = scales.iter().copied().cycle().take(n).collect();
        let zero = f32::from(zero_point);
        self.dtype = DType::U8;
        self.levels.zero_point = i32::from(zero_point);
        self.level_ends = [vec![-zero; n], vec![255.0 - zero; n]];
        let is_coarse =
            epilogue::is_coarse_enough(&scales) && matches!(self.activation, Activation::Gelu);
        self.levels.division = if is_coarse { Division::Times } else { Division::By };
        let ends = match self.activation {
            Activation::None => [f32::NEG_INFINITY, f32::INFINITY],
            Activation::Clip { low, high } => [low, high],
            Activation::Gelu | Activation::Each(_) => {
                let factor = |scale: f32| if is_coarse { 1.0 / scale } else { scale };
                self.level_factors = scales.into_iter().map(factor).collect();
                return;
            }
        };
        if !scales.iter().all(|scale| scale.is_normal() && *scale > 0.0) {
            // What such a scale gives is left to the division.
            self.level_factors = scales;
            return;
        }
        let [lows, highs] = &mut self.level_ends;
        for (i, scale) in scales.into_iter().enumerate() {
            self.scales[i] /= scale;
            self.bias[i] /= scale;
            let (low, high) = (lows[i], highs[i]);
            lows[i] = (ends[0] / scale).clamp(low, high);
            highs[i] = (ends[1] / scale).clamp(lows[i], high);
        }
        self.levels.division = Division::Done;
        self.activation = Activation::None;
    }

    /// a·weights, the sums themselves.
    pub(crate) fn sums(weights: Weights) -> Self {
        let (k, n, padded) = (weights.depth(), weights.columns(), weights.padded_columns());
        let offset = weights.path().left_offset();
        let sums = weights.column_sums().iter();
        let mut starts: Vec<i32> = sums.map(|sum| sum.wrapping_mul(offset)).collect();
        starts.resize(padded, 0);
        Self {
            weights,
            k,
            n,
            starts,
            scales: Vec::new(),
            bias: Vec::new(),
            activation: Activation::None,
            dtype: DType::I32,
            levels: Levels { division: Division::Done, zero_point: 0 },
            level_factors: Vec::new(),
            level_ends: Default::default(),
        }
    }

    /// Σ of each column of the weights.
    pub(crate) fn column_sums(&self) -> &[i32] {
        self.weights.column_sums()
    }

    /// Rows of the weights: bytes of a row of the left side.
    pub(crate) fn depth(&self) -> usize {
        self.k
    }

    pub(crate) fn columns(&self) -> usize {
        self.n
    }

    fn groups(&self) -> usize {
        self.k.div_ceil(4)
    }

    /// The type of the results.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }
}

/// Computes products of the same rows, on every thread of the pool if there is enough to do.
///
/// # Panics
/// When a slice is too short, or a target lacks what its product gives.
pub(crate) fn run_all<'a>(
    left: Rows<'a>,
    products: impl Iterator<Item = (&'a Product, Target<'a>)>,
) {
    if left.count > 0 {
        let jobs = products.map(|(product, target)| Job::new(product, left, target));
        run_jobs(&jobs.collect::<Vec<_>>());
    }
}

fn run_jobs(jobs: &[Job]) {
    let threads = crate::threads::count();
    let multiplications: usize = jobs.iter().map(Job::multiplications).sum();
    let panels: usize = jobs.iter().map(Job::panel_count).sum();
    if panels == 0 {
        return;
    }
    let rows = jobs[0].rows;
    let run = |mut panel: usize, first_row: usize, row_end: usize| {
        for job in jobs {
            if panel < job.panel_count() {
                return job.product.weights.path().run(job, Task { panel, first_row, row_end });
            }
            panel -= job.panel_count();
        }
    };
    let is_alone = threads == 1 || multiplications < PARALLEL_MULTIPLICATIONS_MIN;
    let left_bytes = rows * jobs[0].product.k;
    if left_bytes > LEFT_BYTES_MAX && panels > 1 {
        // Rows that stay in the L2 cache meet all panels before the next ones come in.
        let parts = left_bytes.div_ceil(LEFT_BYTES_MAX / 2);
        let parts = if is_alone { parts } else { parts.next_multiple_of(threads) };
        let rows_each = rows.div_ceil(parts);
        let task = |index: usize| {
            let first = (index / panels * rows_each).min(rows);
            run(index % panels, first, (first + rows_each).min(rows));
        };
        if is_alone {
            (0..panels * parts).for_each(task);
        } else {
            (0..panels * parts).into_par_iter().for_each(task);
        }
        return;
    }
    if is_alone {
        return (0..panels).for_each(|panel| run(panel, 0, rows));
    }
    // A thread takes neighbouring panels, so that it reads a part of the weights alone.
    let parts = (threads * TASKS_PER_THREAD).div_ceil(panels);
    let parts = parts.clamp(1, rows.div_ceil(PART_ROWS_MIN));
    let rows_each = rows.div_ceil(parts);
    (0..panels * parts).into_par_iter().for_each(|index| {
        let first = (index % parts * rows_each).min(rows);
        run(index / parts, first, (first + rows_each).min(rows));
    });
}

/// Bytes of the left side that are streamed through once a panel; beyond, it goes in parts of half
/// as many, which leave the L2 cache room for weights and results.
const LEFT_BYTES_MAX: usize = 512 << 10;
/// Multiplications below which a second thread costs more than it brings.
const PARALLEL_MULTIPLICATIONS_MIN: usize = 1 << 20;
const TASKS_PER_THREAD: usize = 3;
const PART_ROWS_MIN: usize = 12;

/// The left side: rows of u8 that begin `stride` bytes after each other.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [u8],
    pub(crate) count: usize,
    pub(crate) stride: usize,
}

/// Where results go, in rows that begin `stride` values after each other.
pub(crate) struct Target<'a> {
    pub(crate) values: Values<'a>,
    pub(crate) stride: usize,
}

/// As many results as a product gives, of its type.
pub(crate) enum Values<'a> {
    F32(&'a mut [f32]),
    U8(&'a mut [u8]),
    I32(&'a mut [i32]),
}

/// A product and the memory it runs on.
struct Job<'a> {
    product: &'a Product,
    left: *const u8,
    left_stride: usize,
    rows: usize,
    out: Out,
    out_stride: usize,
}

#[derive(Clone, Copy)]
enum Out {
    F32(*mut f32),
    U8(*mut u8),
    I32(*mut i32),
}

// SAFETY: tasks write parts of the targets that do not overlap, and read the rest alone.
unsafe impl Sync for Job<'_> {}

/// Some rows of one panel of columns.
#[derive(Clone, Copy)]
struct Task {
    panel: usize,
    first_row: usize,
    row_end: usize,
}

impl<'a> Job<'a> {
    /// Checks that the memory holds the product's rows.
    fn new(product: &'a Product, left: Rows<'a>, target: Target<'a>) -> Self {
        let needed = |stride: usize, size: usize| {
            assert!(left.count == 1 || stride >= size, "rows do not overlap");
            (left.count - 1).checked_mul(stride).and_then(|begin| begin.checked_add(size))
        };
        let holds = |len: usize, needed: Option<usize>| needed.is_some_and(|needed| len >= needed);
        assert!(
            holds(left.data.len(), needed(left.stride, product.k)),
            "the left side has its rows"
        );
        let size = needed(target.stride, product.n);
        let check = |len: usize, dtype: DType| {
            assert_eq!(dtype, product.dtype, "a target is of what its product gives");
            assert!(holds(len, size), "the target has its rows");
        };
        let out = match target.values {
            Values::F32(values) => {
                check(values.len(), DType::F32);
                Out::F32(values.as_mut_ptr())
            }
            Values::U8(values) => {
                check(values.len(), DType::U8);
                Out::U8(values.as_mut_ptr())
            }
            Values::I32(values) => {
                check(values.len(), DType::I32);
                Out::I32(values.as_mut_ptr())
            }
        };
        Self {
            product,
            left: left.data.as_ptr(),
            left_stride: left.stride,
            rows: left.count,
            out,
            out_stride: target.stride,
        }
    }

    fn panel_count(&self) -> usize {
        self.product.n.div_ceil(self.product.weights.path().panel_columns())
    }

    fn multiplications(&self) -> usize {
        self.rows * self.product.n * self.product.k.max(16)
    }
}
