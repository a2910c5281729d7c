//! `CumSum` (opset 11) and `CumProd` (opset 26): running sums and products along an axis.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::gradient::gradient;
use crate::number::{Number, by_number};
use crate::rows::AxisView;
use crate::{Backward, Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

macro_rules! cumulative {
    ($($op:ident, $since:expr, $initial:ident, $next:ident, $reads:expr, $back:ident;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn since_opset(&self) -> i64 {
                $since
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                2..=2
            }

            fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                let x = required(inputs, 0)?;
                Ok(vec![x.with_dtype(x.dtype)])
            }

            fn kernel(
                &self,
                node: &Node,
                _: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                let is_exclusive = node.int_or("exclusive", 0)? != 0;
                let is_reverse = node.int_or("reverse", 0)? != 0;
                Ok(Box::new(move |run: &mut Run| {
                    let view = view_of(run.input(0)?.shape(), run.input(1)?)?;
                    let x = run.input(0)?;
                    let mut y = run.pool.tensor(x.dtype(), x.shape());
                    by_number!(x.dtype(), T => {
                        let order = Order { view, is_exclusive, is_reverse };
                        order.fold(y.slice_mut::<T>(), x.slice::<T>(), T::$initial, T::$next);
                    }, found => return Err(OpError::DType { index: 0, found }));
                    Ok(vec![y])
                }))
            }

            fn gradient(
                &self,
                node: &Node,
                _: &Training,
            ) -> Result<Box<dyn Gradient>, OpError> {
                let is_exclusive = node.int_or("exclusive", 0)? != 0;
                let is_reverse = node.int_or("reverse", 0)? != 0;
                gradient($reads, move |run| {
                    let dy = run.take_gradient();
                    let view = view_of(run.shape(0), run.input(1)?)?;
                    let mut dx = run.tensor(run.shape(0));
                    let order = Order { view, is_exclusive, is_reverse };
                    $back(run, &order, dx.slice_mut::<f32>(), dy.slice::<f32>())?;
                    run.pool.recycle(dy);
                    Ok(vec![Some(dx.into())])
                })
            }

            fn widens_half(&self) -> bool {
                true
            }
        }
    )*};
}

cumulative! {
    CumProd, 26, ONE, times, Reads::NOTHING.input(0).input(1), products_back;
    CumSum, 11, ZERO, plus, Reads::NOTHING.input(1), sums_back;
}

/// dx is the running sum of dy from the other end.
#[allow(clippy::unnecessary_wraps)] // as the other one
fn sums_back(_: &Backward, order: &Order, dx: &mut [f32], dy: &[f32]) -> Result<(), OpError> {
    let back = Order { is_reverse: !order.is_reverse, ..*order };
    back.fold(dx, dy, 0.0, f32::plus);
    Ok(())
}

/// dxᵢ = Σ dyₖ·yₖ/xᵢ over the products yₖ that xᵢ is part of, multiplied out so that xᵢ may be 0.
///
/// From the last product to the first, tailᵢ = Σ dyₖ·xᵢ₊₁⋯xₖ satisfies tailᵢ₋₁ = dyᵢ₋₁ + xᵢ·tailᵢ,
/// and dxᵢ = (x₀⋯xᵢ₋₁)·tailᵢ.
fn products_back(run: &Backward, order: &Order, dx: &mut [f32], dy: &[f32]) -> Result<(), OpError> {
    let x = run.input(0)?.slice::<f32>();
    let AxisView { size, inner } = order.view;
    let mut before = vec![1.0_f64; size];
    for start in (0..x.len()).step_by((size * inner).max(1)) {
        for column in 0..inner {
            let at = |step: usize| {
                let row = if order.is_reverse { size - 1 - step } else { step };
                start + row * inner + column
            };
            for step in 1..size {
                before[step] = before[step - 1] * f64::from(x[at(step - 1)]);
            }
            let mut tail = 0.0;
            for step in (0..size).rev() {
                // An exclusive product takes x in one step later.
                let into = if order.is_exclusive { step + 1 } else { step };
                let own = if into < size { f64::from(dy[at(into)]) } else { 0.0 };
                let next = if step + 1 < size { f64::from(x[at(step + 1)]) } else { 0.0 };
                tail = own + next * tail;
                dx[at(step)] = (before[step] * tail) as f32;
            }
        }
    }
    Ok(())
}

fn view_of(shape: &[usize], axis: &Tensor) -> Result<AxisView, OpError> {
    match axis.to_i64().as_deref() {
        Some(&[axis]) => AxisView::new(shape, axis),
        _ => Err(OpError::value("axis", axis.shape(), "one integer")),
    }
}

struct Order {
    view: AxisView,
    is_exclusive: bool,
    is_reverse: bool,
}

impl Order {
    fn fold<T: Number>(&self, y: &mut [T], x: &[T], initial: T, next: fn(T, T) -> T) {
        let AxisView { size, inner } = self.view;
        for start in (0..x.len()).step_by((size * inner).max(1)) {
            for column in 0..inner {
                let mut so_far = initial;
                for step in 0..size {
                    let row = if self.is_reverse { size - 1 - step } else { step };
                    let at = start + row * inner + column;
                    let with_this = next(so_far, x[at]);
                    y[at] = if self.is_exclusive { so_far } else { with_this };
                    so_far = with_this;
                }
            }
        }
    }
}
