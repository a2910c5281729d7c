//! Max and Min (opset 8 and later), Sum and Mean of any number of tensors, broadcasting. NaN is
//! both the greatest and the least.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::broadcast::{Operand, broadcast_facts, zip, zip_rows};
use crate::gradient::{add_assign, gradient, sum_to};
use crate::kernels::{elementwise, for_rows};
use crate::number::{Number, by_number};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Pool, Reads, Run, Training, required};

type F32Loop = fn(&mut [f32], Operand<'_, f32>, Operand<'_, f32>);

macro_rules! variadic {
    ($($op:ident, $f32_loop:expr, $value:ident, $is_mean:expr, $gradient:expr;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn since_opset(&self) -> i64 {
                8
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                1..=usize::MAX
            }

            fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                let facts: Vec<&Fact> =
                    (0..inputs.len()).map(|i| required(inputs, i)).collect::<Result<_, _>>()?;
                Ok(vec![broadcast_facts(&facts, facts[0].dtype)?])
            }

            fn channels(&self, _: &Node, tensors: &$crate::channels::Tensors) -> Option<$crate::channels::Channels> {
                Some($crate::channels::Channels::elementwise(tensors, 0..tensors.inputs.len()))
            }

            fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
                Ok(Box::new(|run: &mut Run| {
                    let mut y = run.input(0)?.clone();
                    let (count, dtype) = (run.inputs.len(), y.dtype());
                    for index in 1..count {
                        let pair = [&y, typed(run, index, dtype)?];
                        let next = by_number!(dtype, T => {
                            combined::<T>(run.pool, pair, $f32_loop, T::$value)
                        }, found => Err(OpError::DType { index: 0, found }))?;
                        run.pool.recycle(std::mem::replace(&mut y, next));
                    }
                    if $is_mean {
                        y = by_number!(dtype, T => divided::<T>(run.pool, &y, count),
                                       found => Err(OpError::DType { index: 0, found }))?;
                    }
                    Ok(vec![y])
                }))
            }

            fn gradient(
                &self,
                node: &Node,
                _: &Training,
            ) -> Result<Box<dyn Gradient>, OpError> {
                let gradient: fn(usize) -> Result<Box<dyn Gradient>, OpError> = $gradient;
                gradient(node.inputs.len())
            }

            fn widens_half(&self) -> bool {
                true
            }
        }
    )*};
}

variadic! {
    Max, elementwise::greater, greater, false, |_| extreme_gradient();
    Mean, elementwise::add, plus, true, |count| sum_gradient(1.0 / count as f32);
    Min, elementwise::lesser, lesser, false, |_| extreme_gradient();
    Sum, elementwise::add, plus, false, |_| sum_gradient(1.0);
}

/// dx = Σ factor·dy over where x was repeated, for each x.
fn sum_gradient(factor: f32) -> Result<Box<dyn Gradient>, OpError> {
    gradient(Reads::NOTHING, move |run| {
        let mut dy = run.take_gradient();
        if factor != 1.0 {
            for_rows(dy.slice_mut::<f32>(), 1, |_, dy| {
                elementwise::mul_in_place(dy, Operand::Scalar(factor));
            });
        }
        let flow = |index: usize| {
            run.wants(index).then(|| sum_to(dy.clone(), run.shape(index), run.pool).into())
        };
        Ok((0..run.shapes.len()).map(flow).collect())
    })
}

/// dx = Σ dy where x = y, shared evenly by the inputs that are equal there.
fn extreme_gradient() -> Result<Box<dyn Gradient>, OpError> {
    gradient(Reads::ALL_INPUTS.output(0), |run| {
        let mut dy = run.take_gradient();
        let (pool, y) = (run.pool, run.output(0));
        let is_equal = |x: f32, y: f32| if x == y { 1.0 } else { 0.0 };
        let mut equal = Vec::with_capacity(run.shapes.len());
        let mut count = run.zeros(y.shape());
        for index in 0..run.shapes.len() {
            let found = zip::<f32, f32, f32>(pool, [run.input(index)?, y], DType::F32, is_equal)?;
            add_assign(count.slice_mut::<f32>(), found.slice::<f32>());
            equal.push(found);
        }
        let count_values = count.slice::<f32>();
        for_rows(dy.slice_mut::<f32>(), 1, |first, dy| {
            let counts = &count_values[first..first + dy.len()];
            dy.iter_mut().zip(counts).for_each(|(dy, count)| *dy /= count.max(1.0));
        });
        pool.recycle(count);
        let mut flows = Vec::with_capacity(equal.len());
        for (index, mut dx) in equal.into_iter().enumerate() {
            if !run.wants(index) {
                pool.recycle(dx);
                flows.push(None);
                continue;
            }
            let dy = dy.slice::<f32>();
            for_rows(dx.slice_mut::<f32>(), 1, |first, dx| {
                elementwise::mul_in_place(dx, Operand::Row(&dy[first..first + dx.len()]));
            });
            flows.push(Some(sum_to(dx, run.shape(index), pool).into()));
        }
        pool.recycle(dy);
        Ok(flows)
    })
}

fn typed<'a>(run: &'a Run, index: usize, dtype: DType) -> Result<&'a Tensor, OpError> {
    let x = run.input(index)?;
    if x.dtype() == dtype { Ok(x) } else { Err(OpError::DType { index, found: x.dtype() }) }
}

fn combined<T: Number>(
    pool: &Pool,
    pair: [&Tensor; 2],
    f32_loop: F32Loop,
    value: fn(T, T) -> T,
) -> Result<Tensor, OpError> {
    match T::DTYPE {
        DType::F32 => zip_rows::<f32, f32, f32>(pool, pair, DType::F32, f32_loop),
        dtype => zip::<T, T, T>(pool, pair, dtype, value),
    }
}

fn divided<T: Number>(pool: &Pool, y: &Tensor, count: usize) -> Result<Tensor, OpError> {
    let count = Tensor::scalar(T::from_f64(count as f64));
    zip::<T, T, T>(pool, [y, &count], T::DTYPE, T::over)
}
