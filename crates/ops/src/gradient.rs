//! Reverse-mode differentiation: what an operator keeps of its run, and how gradients flow back
//! through it. Gradients are f32.

use attar_tensor::{DType, Tensor, element_count};

use crate::broadcast::Loops;
use crate::kernels::{elementwise, for_rows, for_rows_of_work};
use crate::reduce::fold::{F32Sum, fold};
use crate::{Kernel, OpError, Pool, Run};

/// What is known of a node when it is made ready to train.
pub struct Training<'a> {
    /// Contents of the inputs that never change.
    pub constants: &'a [Option<&'a Tensor>],
    /// Which inputs a gradient is asked of.
    pub wanted: &'a [bool],
}

impl Training<'_> {
    pub fn wants(&self, input: usize) -> bool {
        self.wanted.get(input).copied().unwrap_or(false)
    }

    pub fn constant(&self, input: usize) -> Option<&Tensor> {
        self.constants.get(input).copied().flatten()
    }
}

/// The inputs and outputs of a node whose values [`Gradient::backward`] reads: what must be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    inputs: u64,
    outputs: u64,
}

impl Reads {
    /// Shapes and gradients alone.
    pub const NOTHING: Self = Self { inputs: 0, outputs: 0 };
    pub const ALL_INPUTS: Self = Self { inputs: u64::MAX, outputs: 0 };

    #[must_use]
    pub fn input(mut self, index: usize) -> Self {
        self.inputs |= bit(index);
        self
    }

    #[must_use]
    pub fn output(mut self, index: usize) -> Self {
        self.outputs |= bit(index);
        self
    }

    #[must_use]
    pub fn input_if(self, index: usize, is_read: bool) -> Self {
        if is_read { self.input(index) } else { self }
    }

    pub fn reads_input(self, index: usize) -> bool {
        self.inputs & bit(index) != 0
    }

    pub fn reads_output(self, index: usize) -> bool {
        self.outputs & bit(index) != 0
    }
}

/// Places beyond the 63rd share one bit.
fn bit(index: usize) -> u64 {
    1 << index.min(63)
}

/// A gradient on its way back.
#[derive(Clone, Debug)]
pub enum Flow {
    Dense(Tensor),
    /// Of a table of `shape` of which few rows were read: row i of `rows` is to be added to row
    /// `indices[i]`; an index may come more than once, and is added in this order.
    Rows {
        shape: Vec<usize>,
        indices: Vec<usize>,
        rows: Tensor,
    },
}

impl From<Tensor> for Flow {
    fn from(tensor: Tensor) -> Self {
        Self::Dense(tensor)
    }
}

impl Flow {
    /// As a tensor of the whole shape.
    pub fn into_dense(self, pool: &Pool) -> Tensor {
        match self {
            Self::Dense(tensor) => tensor,
            Self::Rows { shape, indices, rows } => {
                let mut dense = pool.tensor(DType::F32, &shape);
                let values = dense.slice_mut::<f32>();
                values.fill(0.0);
                add_rows(values, &indices, rows.slice::<f32>());
                pool.recycle(rows);
                dense
            }
        }
    }
}

/// Adds row i of `rows` to row `indices[i]` of `table`, in order.
pub fn add_rows(table: &mut [f32], indices: &[usize], rows: &[f32]) {
    let width = rows.len().checked_div(indices.len()).unwrap_or(0);
    for (&index, row) in indices.iter().zip(rows.chunks_exact(width.max(1))) {
        let table = &mut table[index * width..][..width];
        table.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
}

/// The forward run of a node in training.
pub struct Forward<'a> {
    pub run: Run<'a>,
    /// What the node leaves for its own backward run.
    pub saved: Vec<Tensor>,
    /// New contents of inputs that are state, by index: running statistics.
    pub updates: Vec<(usize, Tensor)>,
    /// Seeds what the node draws: the same when a step is repeated, another in every step.
    pub seed: u64,
}

/// The backward run of a node.
pub struct Backward<'a> {
    /// The inputs that [`Gradient::reads`] names; `None` for the others.
    pub inputs: Vec<Option<Tensor>>,
    /// Shapes of all inputs; empty where one is absent.
    pub shapes: &'a [Vec<usize>],
    /// The outputs that [`Gradient::reads`] names; `None` for the others.
    pub outputs: Vec<Option<Tensor>>,
    /// What flows in, by output; `None` where an output has no part in the loss. One at least is
    /// there. Writing into one is cheap as long as nothing else holds it.
    pub gradients: Vec<Option<Tensor>>,
    /// What the forward run saved.
    pub saved: Vec<Tensor>,
    /// Which inputs a gradient is asked of.
    pub wanted: &'a [bool],
    pub pool: &'a Pool,
}

impl Backward<'_> {
    pub fn wants(&self, input: usize) -> bool {
        self.wanted.get(input).copied().unwrap_or(false)
    }

    pub fn shape(&self, input: usize) -> &[usize] {
        self.shapes.get(input).map_or(&[], Vec::as_slice)
    }

    /// A kept input.
    ///
    /// # Errors
    /// When it is absent.
    pub fn input(&self, index: usize) -> Result<&Tensor, OpError> {
        self.inputs.get(index).and_then(Option::as_ref).ok_or(OpError::MissingInput { index })
    }

    /// # Panics
    /// When [`Gradient::reads`] did not name the output.
    pub fn output(&self, index: usize) -> &Tensor {
        self.outputs[index].as_ref().expect("the gradient names the outputs it reads")
    }

    /// The gradient of an output that has part in the loss.
    pub fn gradient(&self, output: usize) -> Option<&Tensor> {
        self.gradients.get(output).and_then(Option::as_ref)
    }

    /// The gradient of the only output, to read or to write in place.
    ///
    /// # Panics
    /// When it was taken before.
    pub fn take_gradient(&mut self) -> Tensor {
        self.gradients[0].take().expect("a node without gradient is not run backward")
    }

    /// An f32 tensor with arbitrary content.
    pub fn tensor(&self, shape: &[usize]) -> Tensor {
        self.pool.tensor(DType::F32, shape)
    }

    /// An f32 tensor of zeros.
    pub fn zeros(&self, shape: &[usize]) -> Tensor {
        let mut zeros = self.tensor(shape);
        zeros.slice_mut::<f32>().fill(0.0);
        zeros
    }
}

/// A node in training.
pub trait Gradient: Send + Sync {
    /// What [`backward`](Self::backward) reads.
    fn reads(&self) -> Reads;

    /// Inputs that hold state, which a forward run updates: running statistics.
    fn states(&self) -> &[usize] {
        &[]
    }

    /// Runs the node forward; `kernel` is the one of inference. Overridden where training computes
    /// something else, or leaves something for `backward`.
    ///
    /// # Errors
    /// Inputs whose types or shapes the operator does not take.
    fn forward(&self, forward: &mut Forward, kernel: &dyn Kernel) -> Result<Vec<Tensor>, OpError> {
        kernel.run(&mut forward.run)
    }

    /// What flows back to each input, in their order. `None` where nothing was asked or nothing
    /// flows; inputs beyond the end get nothing.
    ///
    /// # Errors
    /// Types or shapes that only the operator's backward form does not take.
    fn backward(&self, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError>;
}

/// The gradient of what was broadcast from `shape`: the sum over the places it was copied to. Summed
/// in one order whatever the number of threads.
pub(crate) fn sum_to(gradient: Tensor, shape: &[usize], pool: &Pool) -> Tensor {
    if gradient.shape() == shape {
        return gradient;
    }
    if gradient.element_count() == element_count(shape).unwrap_or(0) {
        return gradient.reshaped(shape);
    }
    let mut sum = pool.tensor(DType::F32, shape);
    let (sums, values) = (sum.slice_mut::<f32>(), gradient.slice::<f32>());
    if sums.is_empty() {
        return sum;
    }
    let loops = Loops::new([shape], gradient.shape());
    let (outer, chunk_count) = (loops.sizes[0], chunk_count(&loops, sums.len(), values.len()));
    if chunk_count == 1 {
        fold(sums, values, &loops, &F32Sum, |sum| sum);
        pool.recycle(gradient);
        return sum;
    }
    // The outermost axis is summed over in chunks, and these in their order.
    let chunk_rows = outer.div_ceil(chunk_count);
    let row_size = values.len() / outer;
    let chunk_count = outer.div_ceil(chunk_rows);
    let mut parts = pool.tensor(DType::F32, &[chunk_count, sums.len()]);
    for_rows_of_work(parts.slice_mut::<f32>(), sums.len(), values.len(), |first, parts| {
        for (chunk, part) in (first..).zip(parts.chunks_exact_mut(sums.len())) {
            let rows = chunk * chunk_rows..((chunk + 1) * chunk_rows).min(outer);
            let (mut sizes, strides) = (loops.sizes.clone(), loops.strides.clone());
            sizes[0] = rows.len();
            let values = &values[rows.start * row_size..rows.end * row_size];
            fold(part, values, &Loops { sizes, strides }, &F32Sum, |sum| sum);
        }
    });
    let mut chunks = parts.slice::<f32>().chunks_exact(sums.len());
    sums.copy_from_slice(chunks.next().expect("there are two chunks or more"));
    chunks.for_each(|part| elementwise::add_assign(sums, part));
    pool.recycle(parts);
    pool.recycle(gradient);
    sum
}

/// Into how many chunks an outermost axis that is summed over is cut: as many as fill several
/// threads, as long as their sums are small beside what is summed. The sizes alone decide.
fn chunk_count(loops: &Loops<1>, sum_count: usize, value_count: usize) -> usize {
    const CHUNK_MIN: usize = 1 << 15;
    const CHUNKS_MAX: usize = 16;
    if loops.strides[0][0] != 0 {
        return 1;
    }
    let room = value_count / (4 * sum_count);
    (value_count / CHUNK_MIN).min(room).min(loops.sizes[0]).clamp(1, CHUNKS_MAX)
}

/// a += b, element by element, on every thread.
pub fn add_assign(a: &mut [f32], b: &[f32]) {
    for_rows(a, 1, |first, a| elementwise::add_assign(a, &b[first..first + a.len()]));
}

/// A gradient by a function that needs nothing but what it reads.
pub(crate) struct Simple<F> {
    pub(crate) reads: Reads,
    pub(crate) backward: F,
}

impl<F> Gradient for Simple<F>
where
    F: Fn(&mut Backward) -> Result<Vec<Option<Flow>>, OpError> + Send + Sync,
{
    fn reads(&self) -> Reads {
        self.reads
    }

    fn backward(&self, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
        (self.backward)(run)
    }
}

/// A [`Simple`] gradient.
///
/// # Errors
/// None; the type is what operators return.
#[allow(clippy::unnecessary_wraps)] // the type is what operators return
pub(crate) fn gradient<F>(reads: Reads, backward: F) -> Result<Box<dyn Gradient>, OpError>
where
    F: Fn(&mut Backward) -> Result<Vec<Option<Flow>>, OpError> + Send + Sync + 'static,
{
    Ok(Box::new(Simple { reads, backward }))
}

/// Of an operator that leaves its elements as they are, in their order: dx = dy in the shape of x.
///
/// # Errors
/// None; the type is what operators return.
pub(crate) fn reshape_gradient() -> Result<Box<dyn Gradient>, OpError> {
    gradient(Reads::NOTHING, |run| {
        let dy = run.take_gradient();
        let dx = if dy.shape() == run.shape(0) { dy } else { dy.reshaped(run.shape(0)) };
        Ok(vec![Some(dx.into())])
    })
}

/// Of an operator whose gradient the kernel itself computes from dy: a permutation that is its own
/// inverse, or a mask. The inputs from 1 on are settings.
///
/// # Errors
/// None; the type is what operators return.
pub(crate) fn gradient_by_kernel(
    kernel: Box<dyn Kernel>,
    input_count: usize,
) -> Result<Box<dyn Gradient>, OpError> {
    let reads = (1..input_count).fold(Reads::NOTHING, Reads::input);
    gradient(reads, move |run| {
        let mut inputs = std::mem::take(&mut run.inputs);
        inputs[0] = Some(run.take_gradient());
        let dx = kernel.run(&mut Run { inputs, pool: run.pool })?.swap_remove(0);
        Ok(vec![Some(dx.into())])
    })
}

/// Of a function that is constant wherever it has a derivative: nothing flows back.
///
/// # Errors
/// None; the type is what operators return.
pub(crate) fn zero_gradient() -> Result<Box<dyn Gradient>, OpError> {
    gradient(Reads::NOTHING, |_| Ok(Vec::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_broadcast_is_summed_over_every_axis_it_was_repeated_on() {
        let pool = Pool::default();
        for (from, to) in [
            (vec![300, 500], vec![500]),
            (vec![300, 500], vec![]),
            (vec![70, 4, 33, 33], vec![4, 1, 1]),
            (vec![70, 4, 33, 33], vec![70, 1, 33, 1]),
            (vec![5, 2, 3], vec![1, 2, 1]),
        ] {
            let count = element_count(&from).unwrap();
            let values: Vec<f32> = (0..count).map(|i| (i % 7) as f32 - 2.0).collect();
            let gradient = Tensor::new(&from, &values);
            let mut expected = vec![0.0; element_count(&to).unwrap()];
            let loops = Loops::new([&to], &from);
            let (inner, [stride]) = (loops.inner_size(), loops.inner_strides());
            let mut rows = values.chunks_exact(inner);
            loops.for_each_row(|[at]| {
                let row = rows.next().unwrap().iter().enumerate();
                row.for_each(|(i, x)| expected[at + i * stride] += f64::from(*x));
            });
            let sum = sum_to(gradient, &to, &pool);
            assert_eq!(sum.shape(), to);
            let exact: Vec<f32> = expected.iter().map(|&sum| sum as f32).collect();
            assert_eq!(sum.slice::<f32>(), exact, "{from:?} to {to:?}");
        }
    }

    #[test]
    fn a_sum_has_the_same_bits_on_any_number_of_threads() {
        let values: Vec<f32> = (0..200_000).map(|i| (i as f32).sin()).collect();
        let sum_on = |threads: usize| {
            let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let gradient = Tensor::new(&[2000, 100], &values);
            let sum = || sum_to(gradient, &[100], &Pool::default());
            builder.build().unwrap().install(sum).slice::<f32>().to_vec()
        };
        assert_eq!(sum_on(1), sum_on(3));
    }
}
