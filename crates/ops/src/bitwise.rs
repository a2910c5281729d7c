//! `BitwiseAnd`, `BitwiseOr`, `BitwiseXor`, `BitwiseNot` (opset 18) and `BitShift` (opset 11) of
//! integers, broadcasting.

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::binary::check_types;
use crate::broadcast::{broadcast_facts, zip};
use crate::number::by_integer;
use crate::{Fact, Kernel, OpError, Operator, Run, required};

macro_rules! bitwise {
    ($($op:ident, |$a:ident, $b:ident| $value:expr;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn since_opset(&self) -> i64 {
                18
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                2..=2
            }

            fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
                Ok(vec![broadcast_facts(&[a, b], a.dtype)?])
            }

            fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
                Ok(Box::new(|run: &mut Run| {
                    check_types(run)?;
                    let pair = [run.input(0)?, run.input(1)?];
                    let dtype = pair[0].dtype();
                    let y = by_integer!(dtype, T => zip::<T, T, T>(run.pool, pair, dtype, |$a, $b| $value),
                                        found => Err(OpError::DType { index: 0, found }));
                    Ok(vec![y?])
                }))
            }
        }
    )*};
}

bitwise! {
    BitwiseAnd, |a, b| a & b;
    BitwiseOr, |a, b| a | b;
    BitwiseXor, |a, b| a ^ b;
}

/// Whether bits move to the left; signed numbers keep their sign on the way to the right.
fn moves_left(node: &Node) -> Result<bool, OpError> {
    match node.text("direction")? {
        Some("LEFT") => Ok(true),
        Some("RIGHT") => Ok(false),
        other => Err(OpError::value("direction", other, "LEFT or RIGHT")),
    }
}

pub(crate) struct BitShift;

impl Operator for BitShift {
    fn op_type(&self) -> &'static str {
        "BitShift"
    }

    fn since_opset(&self) -> i64 {
        11
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
        Ok(vec![broadcast_facts(&[a, b], a.dtype)?])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let moves_left = moves_left(node)?;
        Ok(Box::new(move |run: &mut Run| {
            check_types(run)?;
            let pair = [run.input(0)?, run.input(1)?];
            let dtype = pair[0].dtype();
            let y = by_integer!(dtype, T => zip::<T, T, T>(run.pool, pair, dtype, |a, b| {
                shifted(a, count_of(b), moves_left, T::checked_shl, T::checked_shr)
            }), found => Err(OpError::DType { index: 0, found }));
            Ok(vec![y?])
        }))
    }
}

/// As a count of bits; `None` of a negative or far too great one.
fn count_of<T: TryInto<u32>>(bits: T) -> Option<u32> {
    bits.try_into().ok()
}

/// A shift by as many bits as there are, or more, or fewer than none, leaves the sign alone.
fn shifted<T: PartialOrd + Default + std::ops::Not<Output = T>>(
    a: T,
    bits: Option<u32>,
    moves_left: bool,
    left: fn(T, u32) -> Option<T>,
    right: fn(T, u32) -> Option<T>,
) -> T {
    let fill = if a < T::default() && !moves_left { !T::default() } else { T::default() };
    let shift = if moves_left { left } else { right };
    bits.and_then(|bits| shift(a, bits)).unwrap_or(fill)
}

pub(crate) struct BitwiseNot;

impl Operator for BitwiseNot {
    fn op_type(&self) -> &'static str {
        "BitwiseNot"
    }

    fn since_opset(&self) -> i64 {
        18
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| {
            let mut y = crate::clip::in_place_or_copy(run)?;
            by_integer!(y.dtype(), T => y.slice_mut::<T>().iter_mut().for_each(|y| *y = !*y),
                        found => return Err(OpError::DType { index: 0, found }));
            Ok(vec![y])
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifts_beyond_the_width_leave_the_sign() {
        let shift = |a: i8, bits, left| shifted(a, bits, left, i8::checked_shl, i8::checked_shr);
        assert_eq!(shift(-3, Some(1), false), -2);
        assert_eq!(shift(-3, Some(8), false), -1);
        assert_eq!(shift(-3, None, false), -1);
        assert_eq!(shift(-3, None, true), 0);
        assert_eq!(shift(3, Some(200), false), 0);
    }
}
