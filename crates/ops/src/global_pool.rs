//! `GlobalAveragePool`, `GlobalMaxPool` and `GlobalLpPool` (opset 2): the mean, the greatest or
//! (Σ |x|ᵖ)^(1/p) over all spatial axes, which stay with size 1.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};
use rayon::prelude::*;

use crate::gradient::gradient;
use crate::kernels::{elementwise, for_rows, normalize};
use crate::{
    Backward, Fact, Flow, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required,
};

#[derive(Clone, Copy)]
enum Pooling {
    Average,
    Max,
    Lp,
}

macro_rules! global_pools {
    ($($op:ident, $since:literal, $pooling:expr;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn since_opset(&self) -> i64 {
                $since
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                1..=1
            }

            fn widens_half(&self) -> bool {
                true
            }

            fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                infer(inputs)
            }

            fn channels(&self, _: &Node, tensors: &$crate::channels::Tensors) -> Option<$crate::channels::Channels> {
                if tensors.outputs.len() > 1 {
                    return None;
                }
                let spatial: Vec<usize> = (2..tensors.rank($crate::channels::Port::Input(0))?).collect();
                Some($crate::channels::Channels::like_input(tensors, &spatial))
            }

            fn kernel(
                &self,
                node: &Node,
                _: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                let p = node.int_or("p", 2)?;
                if p < 1 {
                    return Err(OpError::value("p", p, "at least 1"));
                }
                Ok(Box::new(move |run: &mut Run| pool(run, $pooling, p)))
            }

            fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
                let p = node.int_or("p", 2)?;
                let reads = match $pooling {
                    Pooling::Average => Reads::NOTHING,
                    Pooling::Max => Reads::NOTHING.input(0),
                    Pooling::Lp => Reads::NOTHING.input(0).output(0),
                };
                gradient(reads, move |run| pool_back(run, $pooling, p))
            }
        }
    )*};
}

global_pools! {
    GlobalAveragePool, 1, Pooling::Average;
    GlobalLpPool, 2, Pooling::Lp;
    GlobalMaxPool, 1, Pooling::Max;
}

fn infer(inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
    let x = required(inputs, 0)?;
    Ok(vec![match &x.shape {
        Some(shape) => {
            let dims = shape.iter().enumerate();
            let dims = dims.map(|(i, d)| if i < 2 { d.clone() } else { Dim::Known(1) });
            Fact::new(x.dtype, dims.collect())
        }
        None => Fact::unranked(x.dtype),
    }])
}

fn pool(run: &Run, pooling: Pooling, p: i64) -> Result<Vec<Tensor>, OpError> {
    let x = run.input(0)?;
    if x.rank() < 2 {
        return Err(OpError::value("the input", x.shape(), "batch and channels"));
    }
    let mut shape = x.shape().to_vec();
    shape[2..].fill(1);
    let inner: usize = x.shape()[2..].iter().product();
    let mut y = run.output(x.dtype(), &shape)?;
    match x.dtype() {
        DType::F32 if matches!(pooling, Pooling::Average) && inner > 0 && inner < SMALL_PLANE => {
            let (sums, values) = (y.slice_mut::<f32>(), x.slice::<f32>());
            normalize::scaled_row_sums(sums, values, inner, 1.0 / inner as f32);
        }
        DType::F32 => {
            let row = |plane: &[f32]| row_f32(plane, pooling, p);
            each_plane(y.slice_mut::<f32>(), x.slice::<f32>(), inner, row);
        }
        DType::F64 => {
            let row = |plane: &[f64]| row_f64(plane, pooling, p);
            each_plane(y.slice_mut::<f64>(), x.slice::<f64>(), inner, row);
        }
        found => return Err(OpError::DType { index: 0, found }),
    }
    Ok(vec![y])
}

/// Planes below this size are summed by one call, which would cost more than each of them.
const SMALL_PLANE: usize = 1024;

/// Elements below which a second thread costs more than it brings.
const PARALLEL_MIN: usize = 1 << 16;

fn each_plane<T: Copy + Send + Sync>(
    y: &mut [T],
    x: &[T],
    inner: usize,
    row: impl Fn(&[T]) -> T + Send + Sync,
) {
    let plane = |index: usize| &x[index * inner..(index + 1) * inner];
    if x.len() < PARALLEL_MIN || crate::threads::count() == 1 {
        y.iter_mut().enumerate().for_each(|(index, y)| *y = row(plane(index)));
    } else {
        y.par_iter_mut().enumerate().for_each(|(index, y)| *y = row(plane(index)));
    }
}

fn row_f32(plane: &[f32], pooling: Pooling, p: i64) -> f32 {
    match (pooling, p) {
        (Pooling::Average, _) => normalize::sum_row(plane) / plane.len() as f32,
        (Pooling::Max, _) => elementwise::min_max(plane).1,
        (Pooling::Lp, 2) => normalize::sum_squares_row(plane).sqrt(),
        (Pooling::Lp, _) => {
            let power = |&x: &f32| f64::from(x).abs().powf(p as f64);
            plane.iter().map(power).sum::<f64>().powf(1.0 / p as f64) as f32
        }
    }
}

fn row_f64(plane: &[f64], pooling: Pooling, p: i64) -> f64 {
    match pooling {
        Pooling::Average => plane.iter().sum::<f64>() / plane.len() as f64,
        Pooling::Max => plane.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        Pooling::Lp => {
            let power = |x: &f64| x.abs().powf(p as f64);
            plane.iter().map(power).sum::<f64>().powf(1.0 / p as f64)
        }
    }
}

/// dx of each plane of size n: dy/n; dy at the first greatest; dy·sign(x)·|x|ᵖ⁻¹·y¹⁻ᵖ.
fn pool_back(run: &mut Backward, pooling: Pooling, p: i64) -> Result<Vec<Option<Flow>>, OpError> {
    let dy = run.take_gradient();
    let mut dx = run.tensor(run.shape(0));
    let inner: usize = run.shape(0)[2..].iter().product();
    let flow = dy.slice::<f32>();
    let x = if matches!(pooling, Pooling::Average) { &[] } else { run.input(0)?.slice::<f32>() };
    let y = if matches!(pooling, Pooling::Lp) { run.output(0).slice::<f32>() } else { &[] };
    for_rows(dx.slice_mut::<f32>(), inner, |first, planes| {
        for (index, plane) in planes.chunks_exact_mut(inner).enumerate() {
            let at = first + index;
            match pooling {
                Pooling::Average => plane.fill(flow[at] / inner as f32),
                Pooling::Max => {
                    plane.fill(0.0);
                    plane[first_greatest(&x[at * inner..(at + 1) * inner])] = flow[at];
                }
                Pooling::Lp => {
                    let x = &x[at * inner..(at + 1) * inner];
                    power_slopes(plane, x, y[at], flow[at], p);
                }
            }
        }
    });
    run.pool.recycle(dy);
    Ok(vec![Some(dx.into())])
}

fn first_greatest(x: &[f32]) -> usize {
    let mut best = 0;
    for (at, &x_at) in x.iter().enumerate() {
        if x_at > x[best] || x[best].is_nan() {
            best = at;
        }
    }
    best
}

/// dx = dy·sign(x)·|x|ᵖ⁻¹·y¹⁻ᵖ, and 0 where y is.
pub(crate) fn power_slopes(dx: &mut [f32], x: &[f32], y: f32, dy: f32, p: i64) {
    let slope = |x: f32| match p {
        _ if y == 0.0 || x == 0.0 => 0.0,
        1 => x.signum(),
        2 => x / y,
        _ => (x.abs() / y).powf((p - 1) as f32) * x.signum(),
    };
    dx.iter_mut().zip(x).for_each(|(dx, &x)| *dx = dy * slope(x));
}
