//! Softmax, `LogSoftmax` and Hardmax along one axis (opset 13 and later):
//! y = exp(x − max x) / Σ exp(x − max x); its logarithm; 1 at the first greatest element.
//!
//! Up to opset 12 all axes from `axis` on counted as one; models of those opsets are refused.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::clip::in_place_or_copy;
use crate::gradient::{gradient, zero_gradient};
use crate::kernels::{gradient as kernels, softmax};
use crate::rows::AxisView;
use crate::{Backward, Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

/// What a row becomes, in place, in both types of float; rows of the given size lie together.
#[derive(Clone, Copy)]
struct RowLoops {
    f32_rows: fn(&mut [f32], usize),
    f64_row: fn(&mut [f64]),
    /// What flows out becomes what flows in, given the results; `None` where nothing does.
    gradient: Option<fn(&mut [f32], &[f32], usize)>,
}

macro_rules! along_an_axis {
    ($($op:ident, $loops:expr;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn since_opset(&self) -> i64 {
                13
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                1..=1
            }

            fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                let x = required(inputs, 0)?;
                Ok(vec![x.with_dtype(x.dtype)])
            }

            fn channels(&self, node: &Node, tensors: &$crate::channels::Tensors) -> Option<$crate::channels::Channels> {
                let rank = tensors.rank($crate::channels::Port::Input(0))?;
                let axis = $crate::fact::resolve_axis(node.int_or("axis", -1).ok()?, rank)?;
                Some($crate::channels::Channels::like_input(tensors, &[axis]))
            }

            fn kernel(
                &self,
                node: &Node,
                _: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                let axis = node.int_or("axis", -1)?;
                Ok(Box::new(move |run: &mut Run| apply(run, axis, $loops)))
            }

            fn gradient(
                &self,
                node: &Node,
                _: &Training,
            ) -> Result<Box<dyn Gradient>, OpError> {
                along_axis_gradient(node.int_or("axis", -1)?, $loops)
            }

            fn widens_half(&self) -> bool {
                true
            }
        }
    )*};
}

along_an_axis! {
    Hardmax, RowLoops {
        f32_rows: |rows, size| rows.chunks_exact_mut(size).for_each(hard_row),
        f64_row: hard_row,
        gradient: None,
    };
    LogSoftmax, RowLoops {
        f32_rows: softmax::log_softmax_rows,
        f64_row: log_softmax_row,
        gradient: Some(kernels::log_softmax_rows),
    };
    Softmax, RowLoops {
        f32_rows: softmax::softmax_rows,
        f64_row: softmax_row,
        gradient: Some(|dy, y, size| kernels::softmax_rows(dy, y, size, 1.0)),
    };
}

/// Softmax: dx = y·(dy − Σ y·dy). Its logarithm: dx = dy − exp(y)·Σ dy.
fn along_axis_gradient(axis: i64, loops: RowLoops) -> Result<Box<dyn Gradient>, OpError> {
    let Some(row_gradient) = loops.gradient else { return zero_gradient() };
    gradient(Reads::NOTHING.output(0), move |run: &mut Backward| {
        let mut dy = run.take_gradient();
        let view = AxisView::new(run.shape(0), axis)?;
        let y = run.output(0).slice::<f32>();
        view.change_rows_beside(dy.slice_mut::<f32>(), y, |dy, y| row_gradient(dy, y, view.size));
        Ok(vec![Some(dy.into())])
    })
}

fn apply(run: &mut Run, axis: i64, loops: RowLoops) -> Result<Vec<Tensor>, OpError> {
    let (found, view) = (run.input(0)?.dtype(), AxisView::new(run.input(0)?.shape(), axis)?);
    match found {
        DType::F32 => {
            let mut y = in_place_or_copy(run)?;
            view.change_rows(y.slice_mut::<f32>(), |rows| (loops.f32_rows)(rows, view.size));
            Ok(vec![y])
        }
        DType::F64 => {
            let mut y = in_place_or_copy(run)?;
            view.change_rows(y.slice_mut::<f64>(), |rows| {
                rows.chunks_exact_mut(view.size).for_each(loops.f64_row);
            });
            Ok(vec![y])
        }
        _ => Err(OpError::DType { index: 0, found }),
    }
}

fn hard_row<T: PartialOrd + Copy + From<u8>>(row: &mut [T]) {
    let mut first = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[first] {
            first = i;
        }
    }
    row.fill(T::from(0));
    if let Some(x) = row.get_mut(first) {
        *x = T::from(1);
    }
}

fn softmax_row(row: &mut [f64]) {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    row.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum: f64 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
}

pub(crate) fn log_softmax_row(row: &mut [f64]) {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
    row.iter_mut().for_each(|x| *x = *x - max - sum.ln());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_elements_is_hard() {
        let mut row = [1.0_f32, 3.0, 3.0];
        hard_row(&mut row);
        assert_eq!(row, [0.0, 1.0, 0.0]);
    }
}
