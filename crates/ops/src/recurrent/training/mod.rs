//! Recurrent layers in training.
//!
//! Forward, the gates of every step are kept, and LSTM's c: they start as x·Wᵀ + b for all steps in
//! one product, to which each step adds its h·Rᵀ. Backward, through time, the gradient of a step's
//! sums takes the place of its gates, and times R goes to the step before; once all are there,
//! dX = dG·W, dW = dGᵀ·X and dR = dGᵀ·H are one product each.

mod backward;
mod forward;
mod products;

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use super::{Layer, Settings, Sizes, WeightSizes, lengths};
use crate::kernels::recurrent::panel_columns;
use crate::kernels::recurrent_training::Rule;
use crate::kernels::transpose::transpose_matrix;
use crate::kernels::{for_rows, for_rows_of_work};
use crate::{Backward, Flow, Forward, Gradient, Kernel, OpError, Pool, Reads, Training as Trained};

/// Multiplications below which a second thread costs more than it brings.
const PARALLEL_MACS_MIN: usize = 1 << 21;

pub(super) fn gradient(
    node: &Node,
    training: &Trained,
    layer: Layer,
) -> Result<Box<dyn Gradient>, OpError> {
    let settings = Settings::new(node, layer)?;
    Ok(Box::new(RecurrentGradient { settings, reads_x: training.wants(1) }))
}

struct RecurrentGradient {
    settings: Settings,
    /// dW is asked for.
    reads_x: bool,
}

impl Gradient for RecurrentGradient {
    fn reads(&self) -> Reads {
        // The forward run reads every input itself, where the kernel of inference might have kept
        // a constant one.
        let reads = (1..=7).fold(Reads::NOTHING, Reads::input);
        let reads = reads.input_if(0, self.reads_x);
        if self.keeps_output() { reads.output(0) } else { reads }
    }

    fn forward(&self, forward: &mut Forward, _: &dyn Kernel) -> Result<Vec<Tensor>, OpError> {
        self.run_forward(forward)
    }

    fn backward(&self, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
        self.run_backward(run)
    }
}

impl RecurrentGradient {
    /// Whether Y is what the backward run reads of every h; otherwise it is saved beside.
    fn keeps_output(&self) -> bool {
        self.settings.is_wanted(0) && !self.settings.batch_first
    }
}

/// Gates whose recurrent products are of one vector.
#[derive(Clone, Copy)]
struct Part {
    first: usize,
    count: usize,
    /// Which part of a row of gates the product goes to.
    column: usize,
}

/// The sizes of one run, and where a step's values lie. Everything is kept by time, not by the
/// order in which a direction walks: a direction backwards walks from the end to the start.
struct Course<'a> {
    settings: &'a Settings,
    sizes: Sizes,
    lengths: Vec<usize>,
}

impl<'a> Course<'a> {
    fn new(
        settings: &'a Settings,
        [x, w, r]: [&[usize]; 3],
        given: Option<&Tensor>,
    ) -> Result<Self, OpError> {
        let sizes = Sizes::new(x, settings, &WeightSizes::new(settings, w, r)?)?;
        let lengths = lengths(given, &sizes)?;
        Ok(Self { settings, sizes, lengths })
    }

    fn is_ragged(&self) -> bool {
        self.lengths.iter().any(|&length| length < self.sizes.steps)
    }

    /// Rows of W and R.
    fn weight_rows(&self) -> usize {
        self.settings.layer.gates() * self.sizes.hidden
    }

    /// The parts of a row of gates: GRU has a fourth, what the reset gate is multiplied with.
    fn columns(&self) -> usize {
        if self.settings.layer == Layer::Rnn { 1 } else { 4 }
    }

    fn parts(&self) -> Vec<Part> {
        let part = |first, count, column| Part { first, count, column };
        match self.settings.layer {
            Layer::Rnn => vec![part(0, 1, 0)],
            Layer::Lstm => vec![part(0, 4, 0)],
            Layer::Gru if self.settings.resets_after => vec![part(0, 2, 0), part(2, 1, 3)],
            Layer::Gru => vec![part(0, 2, 0), part(2, 1, 2)],
        }
    }

    /// Size of a row of gates: room for the padding of every product. No multiple of 1 KB: columns
    /// of rows so far apart would share few sets of the caches.
    fn stride(&self) -> usize {
        let hidden = self.sizes.hidden;
        let end = |part: Part| part.column * hidden + padded(part.count * hidden);
        let ends = self.parts().into_iter().map(end);
        let size = ends.chain([padded(self.weight_rows()), self.columns() * hidden]).max();
        let size = size.unwrap_or(0);
        if size > 0 && size.is_multiple_of(256) { size + 16 } else { size }
    }

    fn rule(&self, direction: usize) -> Rule {
        let activations = self.settings.activations_of(direction);
        Rule { activations, clip: self.settings.clip.map(|clip| clip as f32) }
    }

    /// Whether derivatives of the gates are saved beside their values.
    fn saves_slopes(&self) -> bool {
        let count = if self.settings.layer == Layer::Rnn { 1 } else { 2 };
        (0..self.sizes.directions).any(|d| !self.rule(d).has_slopes_of_values(count))
    }

    /// Step `index` of a direction's walk.
    fn time(&self, direction: usize, index: usize) -> usize {
        if self.settings.reversed[direction] { self.sizes.steps - 1 - index } else { index }
    }

    /// The time before, in the order of the walk; `None` where the item starts.
    fn time_before(&self, direction: usize, time: usize, item: usize) -> Option<usize> {
        if self.settings.reversed[direction] {
            (time + 1 < self.lengths[item]).then_some(time + 1)
        } else {
            time.checked_sub(1)
        }
    }

    /// The row of a direction, time and item in what is kept by direction.
    fn row(&self, direction: usize, time: usize, item: usize) -> usize {
        (direction * self.sizes.steps + time) * self.sizes.batch + item
    }

    /// The row of Y, [steps, directions, batch].
    fn output_row(&self, direction: usize, time: usize, item: usize) -> usize {
        (time * self.sizes.directions + direction) * self.sizes.batch + item
    }

    /// Ranges of the batch that are walked on threads of their own: whole tiles of four rows. No
    /// item's result depends on them.
    fn cuts(&self) -> Vec<std::ops::Range<usize>> {
        let Sizes { steps, batch, input, hidden, directions, .. } = self.sizes;
        let macs = (self.weight_rows() * (input + hidden) * directions).saturating_mul(steps);
        let threads = crate::threads::count().div_ceil(directions.max(1));
        let is_parallel = threads > 1 && macs.saturating_mul(batch) >= PARALLEL_MACS_MIN;
        let count = if is_parallel { batch.div_ceil(threads).next_multiple_of(4) } else { batch };
        let cut = |first: usize| first..batch.min(first + count);
        (0..batch).step_by(count.max(1)).map(cut).collect()
    }

    /// Blocks of the batch, `width` a row, as what each direction and range of `cuts` owns of them:
    /// index direction · cuts + cut. `direction_of` tells whose a block is.
    fn shares<'b>(
        &self,
        values: &'b mut [f32],
        width: usize,
        cuts: &[std::ops::Range<usize>],
        direction_of: impl Fn(usize) -> usize,
    ) -> Vec<Vec<&'b mut [f32]>> {
        let mut shares: Vec<Vec<&mut [f32]>> = Vec::new();
        shares.resize_with(self.sizes.directions * cuts.len(), Vec::new);
        let block = (self.sizes.batch * width).max(1);
        for (index, mut rest) in values.chunks_exact_mut(block).enumerate() {
            for (position, cut) in cuts.iter().enumerate() {
                let (own, after) = rest.split_at_mut(cut.len() * width);
                shares[direction_of(index) * cuts.len() + position].push(own);
                rest = after;
            }
        }
        shares
    }
}

/// A tensor that is [steps, batch, …], of one that may be [batch, steps, …].
fn time_first(x: &Tensor, batch_first: bool, pool: &Pool) -> Tensor {
    if batch_first { swapped(x, pool) } else { x.clone() }
}

/// Swaps the first two axes.
fn swapped(x: &Tensor, pool: &Pool) -> Tensor {
    let mut shape = x.shape().to_vec();
    let (a, b) = (shape[0], shape[1]);
    shape.swap(0, 1);
    let width: usize = shape[2..].iter().product();
    let mut y = pool.tensor(DType::F32, &shape);
    let from = x.slice::<f32>();
    for_rows(y.slice_mut::<f32>(), width, |first, y| {
        for (index, y) in y.chunks_exact_mut(width).enumerate() {
            let row = first + index;
            y.copy_from_slice(&from[(row % a * b + row / a) * width..][..width]);
        }
    });
    y
}

/// Columns with those that fill the last panel.
fn padded(columns: usize) -> usize {
    columns.next_multiple_of(panel_columns())
}

/// The rows of a matrix [n, k] as the columns of panels: for x·mᵀ.
fn pack_transposed(m: &[f32], k: usize, pool: &Pool) -> Tensor {
    let (n, width) = (m.len() / k, panel_columns());
    let mut panels = pool.tensor(DType::F32, &[n.div_ceil(width), k, width]);
    for_rows_of_work(panels.slice_mut::<f32>(), k * width, n * k, |first, panels| {
        for (index, panel) in panels.chunks_exact_mut(k * width).enumerate() {
            let start = (first + index) * width;
            let count = width.min(n - start);
            let rows = &m[start * k..][..count * k];
            if count == width {
                transpose_matrix(panel, rows, [width, k]);
                continue;
            }
            for (place, line) in panel.chunks_exact_mut(width).enumerate() {
                line[count..].fill(0.0);
                let values = rows.chunks_exact(k).map(|row| row[place]);
                line.iter_mut().zip(values).for_each(|(to, value)| *to = value);
            }
        }
    });
    panels
}

/// The columns of a matrix [k, n] as the columns of panels: for x·m.
fn pack(m: &[f32], n: usize, pool: &Pool) -> Tensor {
    let (k, width) = (m.len() / n, panel_columns());
    let mut panels = pool.tensor(DType::F32, &[n.div_ceil(width), k, width]);
    for_rows_of_work(panels.slice_mut::<f32>(), width, n * k, |first, lines| {
        for (index, line) in lines.chunks_exact_mut(width).enumerate() {
            let (panel, place) = ((first + index) / k, (first + index) % k);
            let from = &m[place * n + panel * width..(place + 1) * n];
            let count = from.len().min(width);
            line[..count].copy_from_slice(&from[..count]);
            line[count..].fill(0.0);
        }
    });
    panels
}
