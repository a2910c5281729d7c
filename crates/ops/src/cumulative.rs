//! `CumSum` (opset 11) and `CumProd` (opset 26): running sums and products along an axis.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::number::{Number, by_number};
use crate::rows::AxisView;
use crate::{Fact, Kernel, OpError, Operator, Run, required};

macro_rules! cumulative {
    ($($op:ident, $since:expr, $initial:ident, $next:ident;)*) => {$(
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
                    let view = view(run)?;
                    let x = run.input(0)?;
                    let mut y = run.pool.tensor(x.dtype(), x.shape());
                    by_number!(x.dtype(), T => {
                        let order = Order { view, is_exclusive, is_reverse };
                        order.fold(y.slice_mut::<T>(), x.slice::<T>(), T::$initial, T::$next);
                    }, found => return Err(OpError::DType { index: 0, found }));
                    Ok(vec![y])
                }))
            }

            fn widens_half(&self) -> bool {
                true
            }
        }
    )*};
}

cumulative! {
    CumProd, 26, ONE, times;
    CumSum, 11, ZERO, plus;
}

fn view(run: &Run) -> Result<AxisView, OpError> {
    let (x, axis) = (run.input(0)?, run.input(1)?);
    match axis.to_i64().as_deref() {
        Some(&[axis]) => AxisView::new(x.shape(), axis),
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
