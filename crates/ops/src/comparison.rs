//! Comparisons and logic (opset 7 and later): bool results, element by element, broadcasting.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::binary::check_types;
use crate::broadcast::{Loops, broadcast_facts, broadcast_shapes, zip};
use crate::channels::{Channels, Tensors};
use crate::number::by_number;
use crate::{Fact, Kernel, OpError, Operator, Pool, Run, required, shape_logic};

macro_rules! comparisons {
    ($($op:ident, $compare:ident, |$a:ident, $b:ident| $value:expr;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn since_opset(&self) -> i64 {
                7
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                2..=2
            }

            fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
                let mut fact = broadcast_facts(&[a, b], DType::Bool)?;
                shape_logic::follow(self.op_type(), [a, b], &mut fact);
                Ok(vec![fact])
            }

            fn channels(&self, _: &Node, tensors: &$crate::channels::Tensors) -> Option<$crate::channels::Channels> {
                Some($crate::channels::Channels::elementwise(tensors, 0..tensors.inputs.len()))
            }

            fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
                Ok(Box::new(|run: &mut Run| {
                    check_types(run)?;
                    let pair = [run.input(0)?, run.input(1)?];
                    Ok(vec![$compare!(run.pool, pair, |$a, $b| $value)])
                }))
            }

            fn widens_half(&self) -> bool {
                true
            }
        }
    )*};
}

/// Of numbers.
macro_rules! ordered {
    ($pool:expr, $pair:expr, |$a:ident, $b:ident| $value:expr) => {
        by_number!($pair[0].dtype(), T => {
            zip::<T, T, u8>($pool, $pair, DType::Bool, |$a, $b| u8::from($value))?
        }, found => return Err(OpError::DType { index: 0, found }))
    };
}

/// Of numbers, bools and strings.
macro_rules! equal {
    ($pool:expr, $pair:expr, |$a:ident, $b:ident| $value:expr) => {
        match $pair[0].dtype() {
            DType::Bool => zip::<u8, u8, u8>($pool, $pair, DType::Bool, |$a, $b| u8::from($value))?,
            DType::String => equal_strings($pool, $pair)?,
            _ => ordered!($pool, $pair, |$a, $b| $value),
        }
    };
}

/// Of bools.
macro_rules! logical {
    ($pool:expr, $pair:expr, |$a:ident, $b:ident| $value:expr) => {
        match $pair[0].dtype() {
            DType::Bool => zip::<u8, u8, u8>($pool, $pair, DType::Bool, |$a, $b| $value)?,
            found => return Err(OpError::DType { index: 0, found }),
        }
    };
}

comparisons! {
    And, logical, |a, b| a & b;
    Equal, equal, |a, b| a == b;
    Greater, ordered, |a, b| a > b;
    GreaterOrEqual, ordered, |a, b| a >= b;
    Less, ordered, |a, b| a < b;
    LessOrEqual, ordered, |a, b| a <= b;
    Or, logical, |a, b| a | b;
    Xor, logical, |a, b| a ^ b;
}

fn equal_strings(pool: &Pool, [a, b]: [&Tensor; 2]) -> Result<Tensor, OpError> {
    let shape = broadcast_shapes(a.shape(), b.shape())?;
    let loops = Loops::new([a.shape(), b.shape()], &shape);
    let mut y = pool.tensor(DType::Bool, &shape);
    let (a, b, [stride_a, stride_b]) = (a.strings(), b.strings(), loops.inner_strides());
    loops.for_each_row_of(y.slice_mut::<u8>(), |row, [at_a, at_b]| {
        for (i, y) in row.iter_mut().enumerate() {
            *y = u8::from(a[at_a + i * stride_a] == b[at_b + i * stride_b]);
        }
    });
    Ok(y)
}

/// Logical not of bools.
pub(crate) struct Not;

impl Operator for Not {
    fn op_type(&self) -> &'static str {
        "Not"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let mut fact = x.with_dtype(DType::Bool);
        if let Some(elements) = x.elements() {
            fact.set_elements(elements.iter().map(shape_logic::negated).collect());
        }
        Ok(vec![fact])
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        Some(Channels::like_input(tensors, &[]))
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| {
            let x = run.typed::<u8>(0)?;
            let mut y = run.pool.tensor(DType::Bool, x.shape());
            let pairs = y.slice_mut::<u8>().iter_mut().zip(x.slice::<u8>());
            pairs.for_each(|(y, &x)| *y = u8::from(x == 0));
            Ok(vec![y])
        }))
    }
}
