//! The gradient of Resize: what each output was made of gets its share back, axis by axis.

use attar_tensor::Tensor;

use super::numbers;
use super::settings::Settings;
use super::taps::Taps;
use crate::kernels::for_rows;
use crate::kernels::resample::{add_scaled, scatter_taps};
use crate::{Backward, Flow, Gradient, OpError, Pool, Reads, Run};

/// dx[i] = Σ weight·dy[o] over the taps of every output o that stand at i. Nothing flows to the
/// region of interest and to the sizes.
pub(super) struct ResizeGradient {
    pub(super) settings: Settings,
}

impl Gradient for ResizeGradient {
    fn reads(&self) -> Reads {
        Reads::NOTHING.input(1).input(2).input(3)
    }

    fn backward(&self, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
        let mut flow = run.take_gradient();
        let settings = Run { inputs: std::mem::take(&mut run.inputs), pool: run.pool };
        let roi = numbers(&settings, 1, Tensor::to_f64)?;
        let scales = numbers(&settings, 2, Tensor::to_f32)?;
        let sizes = numbers(&settings, 3, Tensor::to_i64)?;
        let shape = run.shape(0);
        let scaled =
            self.settings.scaled(shape, roi.as_deref(), scales.as_deref(), sizes.as_deref())?;
        if flow.element_count() == 0 {
            return Ok(vec![Some(run.zeros(shape).into())]);
        }
        let taps: Vec<Taps> = scaled.iter().map(|axis| Taps::new(&self.settings, axis)).collect();
        for (axis, taps) in taps.iter().enumerate() {
            if !taps.are_identity(shape[axis]) {
                let next = along_axis(run.pool, &flow, taps, axis, shape[axis]);
                run.pool.recycle(std::mem::replace(&mut flow, next));
            }
        }
        Ok(vec![Some(flow.into())])
    }
}

/// [outer, outputs, inner] → [outer, size, inner].
fn along_axis(pool: &Pool, dy: &Tensor, taps: &Taps, axis: usize, size: usize) -> Tensor {
    let mut shape = dy.shape().to_vec();
    let (outputs, inner): (usize, usize) = (shape[axis], shape[axis + 1..].iter().product());
    shape[axis] = size;
    let mut dx = pool.tensor(dy.dtype(), &shape);
    let dy = dy.slice::<f32>();
    // Outputs outside the region of interest were made of nothing.
    let inside = |output: usize| !taps.outside[output];
    for_rows(dx.slice_mut::<f32>(), size * inner, |first, blocks| {
        let from = dy[first * outputs * inner..].chunks_exact(outputs * inner);
        for (dx, dy) in blocks.chunks_exact_mut(size * inner).zip(from) {
            dx.fill(0.0);
            if inner == 1 && !taps.outside.contains(&true) {
                scatter_taps(dx, dy, &taps.indices, &taps.weights, taps.count);
                continue;
            }
            for (output, dy) in dy.chunks_exact(inner).enumerate().filter(|(o, _)| inside(*o)) {
                for tap in output * taps.count..(output + 1) * taps.count {
                    let to = &mut dx[taps.indices[tap] * inner..][..inner];
                    add_scaled(to, dy, taps.weights[tap]);
                }
            }
        }
    });
    dx
}
