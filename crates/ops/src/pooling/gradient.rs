//! Gradients of pooling, plane by plane: of a mean dy/count under the window, of the greatest dy
//! where it first stands, of a power mean dy·sign(x)·|x|ᵖ⁻¹·y¹⁻ᵖ.

use super::{PoolKernel, Pooling, Windows, counts};
use crate::global_pool::power_slopes;
use crate::kernels::for_rows;
use crate::{Backward, Flow, Gradient, OpError, Reads};

pub(super) fn gradient(kernel: PoolKernel) -> Result<Box<dyn Gradient>, OpError> {
    let reads = match kernel.pooling {
        Pooling::Average => Reads::NOTHING,
        Pooling::Max => Reads::NOTHING.input(0),
        Pooling::Lp => Reads::NOTHING.input(0).output(0),
    };
    crate::gradient::gradient(reads, move |run| kernel.back(run))
}

impl PoolKernel {
    fn back(&self, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
        let dy = run.take_gradient();
        let windows = Windows::new(self.geometry.axes(&run.shape(0)[2..])?)?;
        let mut dx = run.tensor(run.shape(0));
        let is_average = self.pooling == Pooling::Average;
        let x = if is_average { &[] } else { run.input(0)?.slice::<f32>() };
        let y = if self.pooling == Pooling::Lp { run.output(0).slice::<f32>() } else { &[] };
        let flow = dy.slice::<f32>();
        let (plane, pooled) = (windows.input_size(), windows.ends.len() * windows.split().0.output);
        let (columns, rows) = counts(&windows, self.counts_padding);
        for_rows(dx.slice_mut::<f32>(), plane, |first, planes| {
            for (index, dx) in planes.chunks_exact_mut(plane).enumerate() {
                let at = first + index;
                let flow = &flow[at * pooled..(at + 1) * pooled];
                dx.fill(0.0);
                match self.pooling {
                    Pooling::Average => windows.spread(dx, flow, &columns, &rows),
                    Pooling::Max => windows.to_greatest(dx, flow, &x[at * plane..][..plane]),
                    Pooling::Lp => {
                        let (x, y) = (&x[at * plane..][..plane], &y[at * pooled..][..pooled]);
                        windows.to_powers(dx, flow, x, y, self.p);
                    }
                }
            }
        });
        run.pool.recycle(dy);
        Ok(vec![Some(dx.into())])
    }
}

impl Windows {
    /// Calls `visit` with every output of a plane and the places under its window, in order.
    fn for_windows(&self, mut visit: impl FnMut(usize, usize, &[usize])) {
        let (last, _) = self.split();
        let mut places = Vec::new();
        for row in 0..self.ends.len() {
            for column in 0..last.output {
                places.clear();
                let first = column * last.stride;
                for &source in self.rows_under(row) {
                    places.extend(
                        last.taps(column).map(|tap| {
                            source * last.input + first + tap * last.dilation - last.pad
                        }),
                    );
                }
                visit(row, column, &places);
            }
        }
    }

    fn spread(&self, dx: &mut [f32], dy: &[f32], columns: &[usize], rows: &[usize]) {
        self.for_windows(|row, column, places| {
            let flow = dy[row * columns.len() + column] / (rows[row] * columns[column]) as f32;
            places.iter().for_each(|&place| dx[place] += flow);
        });
    }

    fn to_greatest(&self, dx: &mut [f32], dy: &[f32], x: &[f32]) {
        let width = self.split().0.output;
        self.for_windows(|row, column, places| {
            let greatest = places.iter().copied().reduce(|best, place| {
                if x[place] > x[best] || x[best].is_nan() { place } else { best }
            });
            if let Some(greatest) = greatest {
                dx[greatest] += dy[row * width + column];
            }
        });
    }

    fn to_powers(&self, dx: &mut [f32], dy: &[f32], x: &[f32], y: &[f32], p: i64) {
        let width = self.split().0.output;
        let mut slopes = Vec::new();
        self.for_windows(|row, column, places| {
            let at = row * width + column;
            let under: Vec<f32> = places.iter().map(|&place| x[place]).collect();
            slopes.resize(places.len(), 0.0);
            power_slopes(&mut slopes, &under, y[at], dy[at], p);
            places.iter().zip(&slopes).for_each(|(&place, slope)| dx[place] += slope);
        });
    }
}
