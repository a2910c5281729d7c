//! Gradients of the convolutions: of x, the weight, the bias, and of what a fused form adds.
//!
//! y = f(z)·scale + shift, z = conv(x, w) + bias + addend: dz = dy · scale · f′(z) is the gradient
//! of the addend and, summed over pixels, of the bias; see [`Window`] for the others.

use attar_graph::Node;
use attar_tensor::Tensor;

use super::backward::{Window, column_sums};
use super::layout::{to_channels_first, to_channels_last};
use super::settings::{Fused, Settings};
use super::{Convolution, Shape};
use crate::kernels::channels_last::Activation;
use crate::kernels::{elementwise, for_rows, slope};
use crate::{Backward, Flow, Forward, Gradient, Kernel, OpError, Operator, Pool, Reads, Training};

struct ConvGradient {
    node: Node,
    is_channels_last: bool,
    reads: Reads,
    fused: Fused,
    /// The convolution without its activation, where the slope is found from z alone.
    bare: Option<Box<dyn Kernel>>,
}

/// # Errors
/// Attributes that the operator does not take.
pub(super) fn gradient(
    operator: &Convolution,
    node: &Node,
    training: &Training,
) -> Result<Box<dyn Gradient>, OpError> {
    let fused = Fused::new(node)?;
    let is_clamp = matches!(fused.finish.activation, Activation::Clamp(..));
    let is_plain = fused.function.is_none() && fused.finish.activation == Activation::None;
    let from_output = is_clamp && fused.finish.scale == 1.0 && fused.finish.shift == 0.0;
    let mut reads = Reads::NOTHING.input_if(0, training.wants(1)).input_if(1, training.wants(0));
    if from_output {
        reads = reads.output(0);
    }
    let bare = if is_plain || from_output {
        None
    } else {
        let mut bare = node.clone();
        for name in ["activation", "activation_params", "scale", "shift"] {
            bare.attributes.shift_remove(name);
        }
        Some(operator.kernel(&bare, training.constants)?)
    };
    let is_channels_last = operator.is_channels_last;
    Ok(Box::new(ConvGradient { node: node.clone(), is_channels_last, reads, fused, bare }))
}

impl Gradient for ConvGradient {
    fn reads(&self) -> Reads {
        self.reads
    }

    fn forward(&self, forward: &mut Forward, kernel: &dyn Kernel) -> Result<Vec<Tensor>, OpError> {
        let Some(bare) = &self.bare else { return kernel.run(&mut forward.run) };
        let sums = bare.run(&mut forward.run)?.remove(0);
        let mut y = forward.run.pool.tensor(sums.dtype(), sums.shape());
        let z = sums.slice::<f32>();
        for_rows(y.slice_mut::<f32>(), 1, |first, y| {
            y.copy_from_slice(&z[first..first + y.len()]);
            self.fused.apply(y);
        });
        forward.saved.push(sums);
        Ok(vec![y])
    }

    fn backward(&self, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
        let mut dz = run.take_gradient();
        self.to_sums(run, &mut dz);
        let pool = run.pool;
        let addend = run.wants(3).then(|| dz.clone());
        if ![0, 1, 2].iter().any(|&input| run.wants(input)) {
            pool.recycle(dz);
            return Ok(vec![None, None, None, addend.map(Flow::from)]);
        }
        let is_last = self.is_channels_last;
        let dz_last = if is_last { dz } else { moved(pool, dz, to_channels_last) };
        let weight = run.shape(1).to_vec();
        let settings = Settings::new(&self.node, weight.get(2..).unwrap_or(&[]))?;
        let shape = Shape::new(run.shape(0), is_last);
        let axes = settings.geometry.axes(shape.spatial)?;
        let window = Window::new(shape.batch, axes, &weight, settings.group, pool)?;
        let db = run.wants(2).then(|| {
            let mut db = run.tensor(run.shape(2));
            column_sums(db.slice_mut(), dz_last.slice(), pool);
            db
        });
        let dw = if run.wants(1) {
            let mut dw = run.tensor(&weight);
            let x = run.input(0)?;
            let x_last = if is_last { x.clone() } else { to_channels_last(pool, x) };
            window.weight_gradient(dw.slice_mut(), x_last.slice(), dz_last.slice());
            pool.recycle(x_last);
            Some(dw)
        } else {
            None
        };
        let dx = if run.wants(0) {
            let mut shape = run.shape(0).to_vec();
            if !is_last {
                shape[1..].rotate_left(1);
            }
            let mut dx = run.tensor(&shape);
            window.data_gradient(dx.slice_mut(), run.input(1)?.slice(), dz_last.slice())?;
            Some(if is_last { dx } else { moved(pool, dx, to_channels_first) })
        } else {
            None
        };
        pool.recycle(dz_last);
        Ok([dx, dw, db, addend].into_iter().map(|flow| flow.map(Flow::from)).collect())
    }
}

impl ConvGradient {
    /// dy → dz.
    fn to_sums(&self, run: &Backward, dy: &mut Tensor) {
        let scale = self.fused.finish.scale;
        if self.reads.reads_output(0) {
            let Activation::Clamp(low, high) = self.fused.finish.activation else { return };
            let y = run.output(0).slice::<f32>();
            for_rows(dy.slice_mut::<f32>(), 1, |first, dy| {
                slope::clamp(dy, &y[first..first + dy.len()], low, high);
            });
        } else if let Some(sums) = run.saved.first() {
            let z = sums.slice::<f32>();
            for_rows(dy.slice_mut::<f32>(), 1, |first, dy| {
                self.fused.apply_slope(dy, &z[first..first + dy.len()]);
            });
        } else if scale != 1.0 {
            let scale = crate::broadcast::Operand::Scalar(scale);
            for_rows(dy.slice_mut::<f32>(), 1, |_, dy| elementwise::mul_in_place(dy, scale));
        }
    }
}

/// A tensor in the other layout; the one given is not needed any more.
fn moved(pool: &Pool, tensor: Tensor, convert: fn(&Pool, &Tensor) -> Tensor) -> Tensor {
    let moved = convert(pool, &tensor);
    pool.recycle(tensor);
    moved
}
