//! `TopK` (opset 11 and later): the `k` largest or smallest elements along an axis, and where they
//! stand; of equal ones that with the lower index. A NaN counts as the largest.

use std::cmp::Ordering;

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Element, Tensor};

use super::{axis_of, integers};
use crate::rows::AxisView;
use crate::{
    Backward, Fact, Flow, Forward, Gradient, Kernel, OpError, Operator, Reads, Run, Training,
    required,
};

pub(crate) struct TopK;

impl Operator for TopK {
    fn op_type(&self) -> &'static str {
        "TopK"
    }

    fn since_opset(&self) -> i64 {
        11
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, k) = (required(inputs, 0)?, required(inputs, 1)?);
        let Some(shape) = &x.shape else {
            return Ok(vec![Fact::unranked(x.dtype), Fact::unranked(DType::I64)]);
        };
        let mut shape = shape.clone();
        let axis = axis_of(node, -1, shape.len())?;
        let k = k.elements().and_then(<[Dim]>::first);
        shape[axis] = k.cloned().unwrap_or(Dim::Unknown);
        Ok(vec![Fact::new(x.dtype, shape.clone()), Fact::new(DType::I64, shape)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        let largest = node.int_or("largest", 1)? != 0;
        Ok(Box::new(move |run: &mut Run| {
            let x = run.input(0)?;
            let axis = axis_of(&node, -1, x.rank())?;
            let size = x.shape()[axis];
            let k = match integers(run, 1)?.as_slice() {
                &[k] if (0..=size as i64).contains(&k) => k as usize,
                found => {
                    return Err(OpError::value("k", found, format!("one number up to {size}")));
                }
            };
            let mut shape = x.shape().to_vec();
            shape[axis] = k;
            let mut values = run.pool.tensor(x.dtype(), &shape);
            let mut indices = run.pool.tensor(DType::I64, &shape);
            let inner: usize = shape[axis + 1..].iter().product();
            let sizes = Sizes { size, k, inner };
            macro_rules! by_type {
                ($($dtype:ident => $ty:ty),*) => {
                    match x.dtype() {
                        $(DType::$dtype => select::<$ty>(
                            values.slice_mut(), indices.slice_mut(), x.slice(), sizes, largest),)*
                        found => return Err(OpError::DType { index: 0, found }),
                    }
                };
            }
            by_type!(F32 => f32, F64 => f64, I64 => i64, I32 => i32, I16 => i16, I8 => i8,
                     U64 => u64, U32 => u32, U16 => u16, U8 => u8);
            Ok(vec![values, indices])
        }))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        Ok(Box::new(TopKGradient { axis: node.int_or("axis", -1)? }))
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// dx is dy at the places that were picked.
struct TopKGradient {
    axis: i64,
}

impl Gradient for TopKGradient {
    fn reads(&self) -> Reads {
        Reads::NOTHING
    }

    fn forward(&self, forward: &mut Forward, kernel: &dyn Kernel) -> Result<Vec<Tensor>, OpError> {
        let outputs = kernel.run(&mut forward.run)?;
        forward.saved.push(outputs[1].clone());
        Ok(outputs)
    }

    fn backward(&self, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
        let Some(dy) = run.gradient(0) else { return Ok(Vec::new()) };
        let AxisView { size, inner } = AxisView::new(run.shape(0), self.axis)?;
        let AxisView { size: k, .. } = AxisView::new(dy.shape(), self.axis)?;
        let mut dx = run.zeros(run.shape(0));
        let to = dx.slice_mut::<f32>();
        let picked = run.saved[0].slice::<i64>().iter().zip(dy.slice::<f32>()).enumerate();
        for (place, (&index, &dy)) in picked {
            let (block, column) = (place / (k * inner), place % inner);
            to[(block * size + index as usize) * inner + column] = dy;
        }
        Ok(vec![Some(dx.into())])
    }
}

#[derive(Clone, Copy)]
struct Sizes {
    /// Along the axis.
    size: usize,
    k: usize,
    /// Elements between two neighbours along the axis.
    inner: usize,
}

/// An order of all values, NaN above the others.
fn order<T: PartialOrd>(a: &T, b: &T) -> Ordering {
    let is_nan = |x: &T| x.partial_cmp(x).is_none();
    a.partial_cmp(b).unwrap_or_else(|| is_nan(a).cmp(&is_nan(b)))
}

fn select<T: Element + PartialOrd>(
    values: &mut [T],
    indices: &mut [i64],
    x: &[T],
    Sizes { size, k, inner }: Sizes,
    largest: bool,
) {
    if k == 0 || inner == 0 {
        return;
    }
    let mut row: Vec<(T, usize)> = Vec::with_capacity(size);
    let before = |a: &(T, usize), b: &(T, usize)| {
        let by_value = order(&a.0, &b.0);
        let by_value = if largest { by_value.reverse() } else { by_value };
        by_value.then(a.1.cmp(&b.1))
    };
    for (block, x) in x.chunks_exact(size * inner).enumerate() {
        for column in 0..inner {
            row.clear();
            row.extend(x[column..].iter().step_by(inner).copied().zip(0..));
            if k < size {
                row.select_nth_unstable_by(k, before);
            }
            row[..k].sort_unstable_by(before);
            for (rank, &(value, index)) in row[..k].iter().enumerate() {
                let place = (block * k + rank) * inner + column;
                values[place] = value;
                indices[place] = index as i64;
            }
        }
    }
}
