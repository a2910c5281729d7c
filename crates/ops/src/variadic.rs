//! Max and Min (opset 8 and later), Sum and Mean of any number of tensors, broadcasting. NaN is
//! both the greatest and the least.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::broadcast::{Operand, broadcast_facts, zip, zip_rows};
use crate::kernels::elementwise;
use crate::number::{Number, by_number};
use crate::{Fact, Kernel, OpError, Operator, Pool, Run, required};

type F32Loop = fn(&mut [f32], Operand<'_, f32>, Operand<'_, f32>);

macro_rules! variadic {
    ($($op:ident, $f32_loop:expr, $value:ident, $is_mean:expr;)*) => {$(
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

            fn widens_half(&self) -> bool {
                true
            }
        }
    )*};
}

variadic! {
    Max, elementwise::greater, greater, false;
    Mean, elementwise::add, plus, true;
    Min, elementwise::lesser, lesser, false;
    Sum, elementwise::add, plus, false;
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
