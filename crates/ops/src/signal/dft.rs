//! DFT (opset 20, where the axis is an input): X[k] = Σ x[n]·e^(−2πi·kn/N) along an axis, or the
//! inverse; the last axis holds real and imaginary parts. One-sided, forward gives the first
//! N/2 + 1 terms, and the inverse takes them and gives real numbers.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::fourier::{Complex, Fourier};
use super::{adjoint, floats, integer, length, length_dim};
use crate::fact::resolve_axis;
use crate::gradient::gradient;
use crate::kernels::for_rows;
use crate::{Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct Dft;

#[derive(Clone, Copy)]
pub(super) struct Direction {
    pub(super) is_inverse: bool,
    pub(super) is_one_sided: bool,
}

impl Direction {
    fn of(node: &Node) -> Result<Self, OpError> {
        let flag = |name| node.int_or(name, 0).map(|flag| flag != 0);
        Ok(Self { is_inverse: flag("inverse")?, is_one_sided: flag("onesided")? })
    }

    pub(super) fn gives_real(self) -> bool {
        self.is_inverse && self.is_one_sided
    }
}

/// The axis of the transform, which is not the last.
fn signal_axis(axis: i64, rank: usize) -> Result<usize, OpError> {
    let found = resolve_axis(axis, rank).filter(|&index| index + 1 < rank);
    found.ok_or_else(|| OpError::value("axis", axis, format!("one of {rank}, but the last")))
}

impl Operator for Dft {
    fn op_type(&self) -> &'static str {
        "DFT"
    }

    fn since_opset(&self) -> i64 {
        20
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=3
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, direction) = (required(inputs, 0)?, Direction::of(node)?);
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let parts = Dim::Known(if direction.gives_real() { 1 } else { 2 });
        let Some(axis) = length_dim(node, inputs, 2, Dim::Known(-2)).known() else {
            let mut shape = vec![Dim::Unknown; shape.len()];
            shape.last_mut().into_iter().for_each(|last| *last = parts.clone());
            return Ok(vec![Fact::new(x.dtype, shape)]);
        };
        let axis = signal_axis(axis, shape.len())?;
        let (one, two) = (Dim::Known(1), Dim::Known(2));
        let default = if direction.gives_real() {
            &two * &(&shape[axis] - &one)
        } else {
            shape[axis].clone()
        };
        let length = length_dim(node, inputs, 1, default);
        let is_half = direction.is_one_sided && !direction.is_inverse;
        let mut dims = shape.clone();
        dims[axis] = if is_half { &length.floor_div(&two) + &one } else { length };
        *dims.last_mut().expect("an axis was found") = parts;
        Ok(vec![Fact::new(x.dtype, dims)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let direction = Direction::of(node)?;
        Ok(Box::new(move |run: &mut Run| {
            let (axis, size) = place(run, run.input(0)?.shape(), direction)?;
            Ok(vec![transform(run, axis, size, direction)?])
        }))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let direction = Direction::of(node)?;
        gradient(Reads::NOTHING.input(1).input(2), move |run| {
            let dy = run.take_gradient();
            let settings = Run { inputs: std::mem::take(&mut run.inputs), pool: run.pool };
            let (axis, size) = place(&settings, run.shape(0), direction)?;
            let mut dx = run.tensor(run.shape(0));
            adjoint::transform_back(&mut dx, &dy, axis, size, direction);
            run.pool.recycle(dy);
            Ok(vec![Some(dx.into())])
        })
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// The axis and the length of the transform of signals of a shape.
fn place(run: &Run, shape: &[usize], direction: Direction) -> Result<(usize, usize), OpError> {
    let axis = if run.optional(2).is_some() { integer(run, 2)? } else { -2 };
    let axis = signal_axis(axis, shape.len())?;
    let from = shape[axis];
    let size = match run.optional(1) {
        Some(_) => length(run, 1)?,
        None if direction.gives_real() => 2 * from.saturating_sub(1),
        None => from,
    };
    if size == 0 {
        return Err(OpError::value("the length of the transform", size, "above 0"));
    }
    Ok((axis, size))
}

fn transform(run: &Run, axis: usize, size: usize, direction: Direction) -> Result<Tensor, OpError> {
    let x = run.input(0)?;
    let parts = *x.shape().last().expect("there is an axis before the last");
    if !matches!(parts, 1 | 2) {
        return Err(OpError::value("the size of the last axis", parts, "1 or 2"));
    }
    let is_half = direction.is_one_sided && !direction.is_inverse;
    let mut shape = x.shape().to_vec();
    shape[axis] = if is_half { size / 2 + 1 } else { size };
    *shape.last_mut().expect("as above") = if direction.gives_real() { 1 } else { 2 };
    // Also refuses a length that the transform itself could not hold.
    run.pool.declared(DType::F64, &[size, 16])?;
    let mut y = run.pool.declared(x.dtype(), &shape)?;
    if y.element_count() == 0 {
        return Ok(y);
    }
    let lines = Lines {
        values: &floats(run, 0)?,
        parts,
        from: x.shape()[axis],
        to: shape[axis],
        inner: shape[axis + 1..shape.len() - 1].iter().product(),
        fourier: &Fourier::new(size),
        size,
        direction,
    };
    match x.dtype() {
        DType::F32 => lines.write(y.slice_mut::<f32>(), |value| value as f32),
        DType::F64 => lines.write(y.slice_mut::<f64>(), |value| value),
        found => return Err(OpError::DType { index: 0, found }),
    }
    Ok(y)
}

/// The signals along an axis.
struct Lines<'a> {
    values: &'a [f64],
    /// 1 for real numbers, 2 for complex ones.
    parts: usize,
    /// Elements along the axis, before and after.
    from: usize,
    to: usize,
    /// Signals beside each other.
    inner: usize,
    fourier: &'a Fourier,
    size: usize,
    direction: Direction,
}

impl Lines<'_> {
    /// Signal `column` of a block, cut or filled up with zeros.
    fn signal(&self, block: usize, column: usize) -> Vec<Complex> {
        let mut signal = vec![Complex::default(); self.size];
        for (n, x) in signal.iter_mut().enumerate().take(self.from) {
            let at = ((block * self.from + n) * self.inner + column) * self.parts;
            x.re = self.values[at];
            x.im = if self.parts == 2 { self.values[at + 1] } else { 0.0 };
        }
        if self.direction.gives_real() {
            // The other half is the conjugate of this; what has no other half is real.
            signal[0].im = 0.0;
            for n in self.size / 2 + 1..self.size {
                signal[n] = signal[self.size - n].conjugate();
            }
            if self.size.is_multiple_of(2) {
                signal[self.size / 2].im = 0.0;
            }
        }
        signal
    }

    fn write<T: Send>(&self, y: &mut [T], round: impl Fn(f64) -> T + Sync + Send) {
        let parts = if self.direction.gives_real() { 1 } else { 2 };
        let block_size = self.to * self.inner * parts;
        for_rows(y, block_size, |first, blocks| {
            for (index, y) in blocks.chunks_exact_mut(block_size).enumerate() {
                for column in 0..self.inner {
                    let signal = self.signal(first + index, column);
                    let found = if self.direction.is_inverse {
                        self.fourier.inverse(&signal)
                    } else {
                        self.fourier.forward(&signal)
                    };
                    for (k, value) in found[..self.to].iter().enumerate() {
                        let at = (k * self.inner + column) * parts;
                        y[at] = round(value.re);
                        if parts == 2 {
                            y[at + 1] = round(value.im);
                        }
                    }
                }
            }
        });
    }
}
