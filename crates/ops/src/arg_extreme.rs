//! `ArgMax` and `ArgMin` (opset 1; ties by `select_last_index` from 12): indices of the greatest and
//! the least elements along an axis.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::fact::resolve_axis;
use crate::number::{Number, by_number};
use crate::rows::AxisView;
use crate::{Fact, Kernel, OpError, Operator, Run, required};

macro_rules! arg_extremes {
    ($($op:ident, $is_max:expr;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                1..=1
            }

            fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                infer(node, inputs)
            }

            fn kernel(
                &self,
                node: &Node,
                _: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                let settings = Settings {
                    axis: node.int_or("axis", 0)?,
                    keeps: node.int_or("keepdims", 1)? != 0,
                    takes_last: node.int_or("select_last_index", 0)? != 0,
                    is_max: $is_max,
                };
                Ok(Box::new(move |run: &mut Run| {
                    let dtype = run.input(0)?.dtype();
                    let y = by_number!(dtype, T => indices::<T>(run, settings),
                                       found => Err(OpError::DType { index: 0, found }));
                    Ok(vec![y?])
                }))
            }

            fn widens_half(&self) -> bool {
                true
            }
        }
    )*};
}

arg_extremes! {
    ArgMax, true;
    ArgMin, false;
}

#[derive(Clone, Copy)]
struct Settings {
    axis: i64,
    keeps: bool,
    takes_last: bool,
    is_max: bool,
}

fn infer(node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
    let Some(shape) = &required(inputs, 0)?.shape else {
        return Ok(vec![Fact::unranked(DType::I64)]);
    };
    let axis = node.int_or("axis", 0)?;
    let axis = resolve_axis(axis, shape.len())
        .ok_or_else(|| OpError::value("axis", axis, format!("below {}", shape.len())))?;
    let mut dims = shape.clone();
    if node.int_or("keepdims", 1)? != 0 {
        dims[axis] = Dim::Known(1);
    } else {
        dims.remove(axis);
    }
    Ok(vec![Fact::new(DType::I64, dims)])
}

fn indices<T: Number>(run: &Run, settings: Settings) -> Result<Tensor, OpError> {
    let x = run.typed::<T>(0)?;
    let AxisView { size, inner } = AxisView::new(x.shape(), settings.axis)?;
    let mut shape = x.shape().to_vec();
    let axis = resolve_axis(settings.axis, shape.len()).expect("the view has the axis");
    if settings.keeps {
        shape[axis] = 1;
    } else {
        shape.remove(axis);
    }
    if size == 0 && !shape.contains(&0) {
        return Err(OpError::value("the size of the axis", 0, "at least 1"));
    }
    let mut y = run.pool.tensor(DType::I64, &shape);
    let data = x.slice::<T>();
    let blocks = data.chunks_exact((size * inner).max(1));
    for (y, block) in y.slice_mut::<i64>().chunks_exact_mut(inner.max(1)).zip(blocks) {
        for (column, y) in y.iter_mut().enumerate() {
            let mut best = 0;
            for row in 1..size {
                let (new, old) = (block[row * inner + column], block[best * inner + column]);
                let is_better = if settings.is_max { new > old } else { new < old };
                if is_better || (settings.takes_last && new == old) {
                    best = row;
                }
            }
            *y = best as i64;
        }
    }
    Ok(y)
}
