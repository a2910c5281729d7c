//! Comparisons and logic: bool results, element by element, broadcasting.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::binary::broadcast_values;
use crate::broadcast::{broadcast_facts, broadcast_shapes};
use crate::{Fact, Kernel, OpError, Operator, Run, required, shape_logic};

macro_rules! comparisons {
    ($($op:ident, $compare:expr;)*) => {$(
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

            fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
                Ok(Box::new(|run: &mut Run| compare(run, $compare)))
            }
        }
    )*};
}

comparisons! {
    And, |order| order.left_true && order.right_true;
    Equal, |order| order.is(std::cmp::Ordering::Equal);
    Greater, |order| order.is(std::cmp::Ordering::Greater);
    GreaterOrEqual, |order| order.is(std::cmp::Ordering::Greater) || order.is(std::cmp::Ordering::Equal);
    Less, |order| order.is(std::cmp::Ordering::Less);
    LessOrEqual, |order| order.is(std::cmp::Ordering::Less) || order.is(std::cmp::Ordering::Equal);
    Or, |order| order.left_true || order.right_true;
}

/// How two elements stand to each other; a NaN stands in no order.
struct Order {
    ordering: Option<std::cmp::Ordering>,
    left_true: bool,
    right_true: bool,
}

impl Order {
    fn is(&self, ordering: std::cmp::Ordering) -> bool {
        self.ordering == Some(ordering)
    }
}

fn order<T: PartialOrd + Default + Copy>(a: T, b: T) -> Order {
    let zero = T::default();
    Order { ordering: a.partial_cmp(&b), left_true: a != zero, right_true: b != zero }
}

fn compare(run: &mut Run, holds: fn(&Order) -> bool) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (run.input(0)?, run.input(1)?);
    let shape = broadcast_shapes(a.shape(), b.shape())?;
    let error = |index: usize, x: &Tensor| OpError::DType { index, found: x.dtype() };
    let y = if a.dtype().is_float() {
        let (x, y) = (a.to_f64().ok_or(error(0, a))?, b.to_f64().ok_or(error(1, b))?);
        let holds = |a, b| Some(u8::from(holds(&order(a, b))));
        broadcast_values(&x, a.shape(), &y, b.shape(), &shape, holds)
    } else {
        let (x, y) = (a.to_i64().ok_or(error(0, a))?, b.to_i64().ok_or(error(1, b))?);
        let holds = |a, b| Some(u8::from(holds(&order(a, b))));
        broadcast_values(&x, a.shape(), &y, b.shape(), &shape, holds)
    };
    let y = y.expect("a comparison always has a result");
    let bools: Vec<bool> = y.slice::<u8>().iter().map(|&x| x != 0).collect();
    Ok(vec![Tensor::from_bools(&shape, &bools)])
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

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| {
            let x = run.typed::<u8>(0)?;
            let bools: Vec<bool> = x.slice::<u8>().iter().map(|&x| x == 0).collect();
            Ok(vec![Tensor::from_bools(x.shape(), &bools)])
        }))
    }
}
