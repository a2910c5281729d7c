//! Tables in 4 or 8 bits: the levels of their rows by blocks.
//!
//! Where gradients of the outputs are known, a row is rounded as GPTQ rounds the weights of an output.
//! An error e of a row moves the outputs by J·e, so that eᵀ·G·e is what is to be small, G the second
//! moments of gradients at looked-up rows: numbers of a row make up for each other's errors. Rows are
//! independent, and how often one is looked up does not matter to its own choice.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use attar_graph::Model;
use attar_ops::logits::weighted_rows;

use super::super::product::transposed;
use super::super::weights::{Grid, Levels, by_moments, halved};
use crate::importance::{GradientTarget, Scoring, each_gradient};
use crate::parallel::each_in_order;
use crate::{Context, PassError};

/// Examples of the calibration data that gradients are taken of.
const EXAMPLES_MAX: usize = 128;
/// Rows of gradients gathered before they are multiplied.
const ROWS_AT_ONCE: usize = 512;
/// Rows of a table that are rounded together.
const CHUNK: usize = 2048;
/// Widths beyond which second moments are not worth their time and memory.
const WIDTH_MAX: usize = 4096;

/// A table in few bits, row by row.
pub(super) struct Blocks {
    /// [rows, width], from 0 on.
    pub(super) levels: Vec<u8>,
    /// [rows, blocks].
    pub(super) scales: Vec<f32>,
    /// The same, from 0 on; the middle level throughout without zero points.
    pub(super) zeros: Vec<u8>,
    /// Whether every scale is a number of f16.
    pub(super) has_half_scales: bool,
}

/// How the rows of a table are rounded.
#[derive(Clone, Copy)]
pub(super) struct Settings<'a> {
    pub(super) bits: u32,
    pub(super) block: usize,
    pub(super) has_zero_points: bool,
    pub(super) wants_half_scales: bool,
    /// [width, width], of gradients; `None` to round to the nearest level.
    pub(super) moments: Option<&'a [f32]>,
}

impl Blocks {
    /// Rounds `table` [rows, width].
    pub(super) fn new(
        table: &[f32],
        width: usize,
        settings: Settings,
        threads: NonZeroUsize,
    ) -> Self {
        let levels = Levels { bits: settings.bits, has_zero_points: settings.has_zero_points };
        let block = settings.block.min(width);
        let weights = match settings.moments {
            Some(moments) => moments.iter().copied().step_by(width + 1).collect(),
            None => vec![1.0; width],
        };
        let chunks: Vec<&[f32]> = table.chunks((CHUNK * width).max(1)).collect();
        let parts = each_in_order(&chunks, threads, |chunk| {
            let rows = chunk.len() / width;
            // Rows are outputs: each has its own blocks.
            let w = transposed(chunk, rows);
            let mut grid = Grid::of_least_error(&w, rows, block, levels, &weights);
            let found = settings.moments.and_then(|moments| by_moments(&w, &mut grid, moments));
            (found.unwrap_or_else(|| grid.nearest(&w)), grid)
        });
        let blocks = width.div_ceil(block.max(1));
        let middle = 1_i16 << (settings.bits - 1);
        let code = |level: i8| (i16::from(level) + middle) as u8;
        let mut made =
            Self { levels: vec![], scales: vec![], zeros: vec![], has_half_scales: false };
        for (found, grid) in parts {
            made.levels.extend(transposed(&found, width).into_iter().map(code));
            made.scales.extend(transposed(&grid.scales, blocks));
            made.zeros.extend(transposed(&grid.zeros, blocks).iter().map(|&z| code(z as i8)));
        }
        if let Some(scales) = halved(&made.scales).filter(|_| settings.wants_half_scales) {
            (made.scales, made.has_half_scales) = (scales, true);
        }
        made
    }

    /// What the levels stand for: [rows, width].
    pub(super) fn dequantized(&self, width: usize, block: usize) -> Vec<f32> {
        let blocks = width.div_ceil(block.min(width).max(1));
        let mut values = Vec::with_capacity(self.levels.len());
        for (row, levels) in self.levels.chunks_exact(width.max(1)).enumerate() {
            for (i, &level) in levels.iter().enumerate() {
                let at = row * blocks + i / block;
                values.push((f32::from(level) - f32::from(self.zeros[at])) * self.scales[at]);
            }
        }
        values
    }
}

/// Second moments of gradients.
struct Moments {
    width: usize,
    /// [width, width].
    sums: Vec<f32>,
    /// Rows still to be multiplied.
    waiting: Vec<f32>,
}

impl Moments {
    fn flush(&mut self) {
        let rows = self.waiting.len() / self.width;
        if rows == 0 {
            return;
        }
        let mut part = vec![0.0_f32; self.sums.len()];
        weighted_rows(&mut part, &self.waiting, &self.waiting, [rows, self.width], true);
        self.sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        self.waiting.clear();
    }
}

/// Second moments [width, width] of the gradients of the outputs at the rows of each table that are
/// looked up; nothing where no data is given, or no gradient flows.
///
/// # Errors
/// Data that does not fit, or that holds no example.
pub(crate) fn table_moments(
    model: &Model,
    names: &[String],
    context: &Context,
) -> Result<BTreeMap<String, Vec<f32>>, PassError> {
    let scoring = Scoring { model, names, context, seed: 0 };
    if context.calibration.is_none() || names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let width = |index| scoring.tensor(index).shape()[1];
    let moments = |index| {
        let width = width(index);
        let size = if width > WIDTH_MAX { 0 } else { width * width };
        Moments { width, sums: vec![0.0; size], waiting: Vec::new() }
    };
    let mut all: Vec<Moments> = (0..names.len()).map(moments).collect();
    let target = GradientTarget::RelativeOutputs;
    let shown = each_gradient(&scoring, target, EXAMPLES_MAX, &mut |index, _, gradient| {
        let moments = &mut all[index];
        if moments.sums.is_empty() {
            return true;
        }
        let mut is_finite = true;
        for row in gradient.chunks_exact(moments.width) {
            if row.iter().any(|&g| g != 0.0) {
                is_finite &= row.iter().all(|g| g.is_finite());
                moments.waiting.extend_from_slice(row);
                if moments.waiting.len() >= ROWS_AT_ONCE * moments.width {
                    moments.flush();
                }
            }
        }
        is_finite
    });
    match shown {
        Err(PassError::Train(_) | PassError::NotFinite { .. }) => return Ok(BTreeMap::new()),
        shown => shown?,
    };
    let mut found = BTreeMap::new();
    for (name, mut moments) in names.iter().zip(all) {
        if !moments.sums.is_empty() {
            moments.flush();
            if moments.sums.iter().any(|&sum| sum != 0.0) {
                found.insert(name.clone(), moments.sums);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use attar_graph::Value;
    use attar_graph::testing::graph_from_text;
    use attar_runtime::Builtin;
    use attar_tensor::Tensor;
    use attar_train::Rng;

    use super::*;
    use crate::Calibration;

    const WIDTH: usize = 32;
    const ROWS: usize = 40;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut rng = Rng::new(&[seed]);
        (0..count).map(|_| rng.uniform() as f32 - 0.5).collect()
    }

    fn settings(moments: Option<&[f32]>) -> Settings<'_> {
        Settings { bits: 4, block: 16, has_zero_points: true, wants_half_scales: false, moments }
    }

    /// Σ eᵀ·G·e over the rows.
    fn lost(table: &[f32], blocks: &Blocks, moments: &[f32]) -> f64 {
        let back = blocks.dequantized(WIDTH, 16);
        let e: Vec<f32> = table.iter().zip(back).map(|(w, v)| w - v).collect();
        let of_row = |e: &[f32]| -> f64 {
            let rows = moments.chunks_exact(WIDTH).zip(e);
            rows.map(|(g, e_i)| f64::from(e_i * g.iter().zip(e).map(|(g, e)| g * e).sum::<f32>()))
                .sum()
        };
        e.chunks_exact(WIDTH).map(of_row).sum()
    }

    #[test]
    fn numbers_of_a_row_make_up_for_each_others_errors() {
        let table = numbers(ROWS * WIDTH, 1);
        // Outputs see eight directions well, and the rest hardly.
        let directions = numbers(8 * WIDTH, 2);
        let mut moments = vec![0.0_f32; WIDTH * WIDTH];
        for d in directions.chunks_exact(WIDTH) {
            for (at, moment) in moments.iter_mut().enumerate() {
                *moment += d[at / WIDTH] * d[at % WIDTH];
            }
        }
        let nearest = Blocks::new(&table, WIDTH, settings(None), NonZeroUsize::MIN);
        let made = Blocks::new(&table, WIDTH, settings(Some(&moments)), NonZeroUsize::MIN);
        let (before, after) = (lost(&table, &nearest, &moments), lost(&table, &made, &moments));
        assert!(after < 0.5 * before, "{after} of {before}");
        assert!(made.levels.iter().chain(&made.zeros).all(|&code| code < 16));
    }

    #[test]
    fn rows_beyond_a_chunk_are_rounded_as_those_before() {
        let part = numbers(16 * WIDTH, 3);
        let table: Vec<f32> = part.iter().copied().cycle().take((CHUNK + 16) * WIDTH).collect();
        let made = Blocks::new(&table, WIDTH, settings(None), NonZeroUsize::new(2).unwrap());
        assert_eq!(made.levels.len(), table.len());
        assert_eq!(made.levels[..16 * WIDTH], made.levels[CHUNK * WIDTH..]);
        assert_eq!(made.scales[..16 * 2], made.scales[CHUNK * 2..]);
    }

    struct Ids;

    impl Calibration for Ids {
        fn for_each_batch(
            &self,
            _: &[Value],
            visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
        ) -> Result<(), PassError> {
            (0..4_i64)
                .try_for_each(|batch| visit(&[("ids", &Tensor::new(&[5], &[batch, 3, 7, 7, 11]))]))
        }
    }

    #[test]
    fn moments_are_those_of_what_the_outputs_see() {
        let mut graph = graph_from_text("ids: i64[5]\nh = Gather(t, ids)\ny = MatMul(h, w)");
        graph.inputs.retain(|input| input.name == "ids");
        graph.set_initializer("t", Tensor::new(&[ROWS, WIDTH], &numbers(ROWS * WIDTH, 4)));
        // The first half of a row is not read.
        let mut w = numbers(WIDTH * 3, 5);
        w[..WIDTH / 2 * 3].fill(0.0);
        graph.set_initializer("w", Tensor::new(&[WIDTH, 3], &w));
        let opsets = [(String::new(), 17)].into_iter().collect();
        let model = Model { graph, opsets, ..Model::default() };
        let context = Context { calibration: Some(&Ids), ..Context::new(&Builtin) };
        let found = table_moments(&model, &["t".into()], &context).unwrap();
        let moments = &found["t"];
        for (at, &moment) in moments.iter().enumerate() {
            let (i, j) = (at / WIDTH, at % WIDTH);
            let is_read = i >= WIDTH / 2 && j >= WIDTH / 2;
            assert!(is_read || moment == 0.0, "{i}, {j}: {moment}");
            let other = moments[j * WIDTH + i];
            assert!((moment - other).abs() <= 1e-6 * moment.abs().max(1e-6), "{moment}, {other}");
        }
        assert!(moments[WIDTH * WIDTH - 1] > 0.0);
        let without = Context { calibration: None, ..context };
        assert!(table_moments(&model, &["t".into()], &without).unwrap().is_empty());
    }
}
