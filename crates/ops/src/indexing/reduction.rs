//! What scattering does where something stands already: replace, add, multiply, or keep the
//! lesser or greater.

use attar_graph::Node;
use attar_tensor::{DType, Element, Tensor, bf16, f16};

use crate::OpError;
use crate::words::{by_width, words, words_mut};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Reduction {
    None,
    Add,
    Mul,
    Min,
    Max,
}

impl Reduction {
    pub(super) fn of(node: &Node) -> Result<Self, OpError> {
        Ok(match node.text("reduction")? {
            None | Some("none") => Self::None,
            Some("add") => Self::Add,
            Some("mul") => Self::Mul,
            Some("min") => Self::Min,
            Some("max") => Self::Max,
            Some(other) => {
                return Err(OpError::value("reduction", other, "none, add, mul, min or max"));
            }
        })
    }

    /// Puts blocks of `size` updates at `starts` of `y`, in order.
    ///
    /// # Errors
    /// A reduction of a type without arithmetic.
    pub(super) fn scatter(
        self,
        y: &mut Tensor,
        updates: &Tensor,
        starts: &[usize],
        size: usize,
    ) -> Result<(), OpError> {
        if size == 0 {
            return Ok(());
        }
        if self == Self::None {
            by_width!(updates, Word => {
                let (y, updates) = (words_mut::<Word>(y), words::<Word>(updates));
                for (from, &start) in updates.chunks_exact(size).zip(starts) {
                    y[start..start + size].copy_from_slice(from);
                }
            });
            return Ok(());
        }
        macro_rules! by_type {
            ($($dtype:ident => $ty:ty),*) => {
                match y.dtype() {
                    $(DType::$dtype => self.reduce::<$ty>(
                        y.slice_mut(), updates.slice(), starts, size),)*
                    found => return Err(OpError::DType { index: 0, found }),
                }
            };
        }
        by_type!(F32 => f32, F64 => f64, F16 => f16, BF16 => bf16, I64 => i64, I32 => i32,
                 I16 => i16, I8 => i8, U64 => u64, U32 => u32, U16 => u16, U8 => u8);
        Ok(())
    }

    fn reduce<T: Reducible>(self, y: &mut [T], updates: &[T], starts: &[usize], size: usize) {
        let combine: fn(T, T) -> T = match self {
            Self::None => |_, update| update,
            Self::Add => T::plus,
            Self::Mul => T::times,
            Self::Min => |a, b| if b < a { b } else { a },
            Self::Max => |a, b| if b > a { b } else { a },
        };
        for (from, &start) in updates.chunks_exact(size).zip(starts) {
            let pairs = y[start..start + size].iter_mut().zip(from);
            pairs.for_each(|(y, &update)| *y = combine(*y, update));
        }
    }
}

/// Numbers that can be added up; integers wrap.
trait Reducible: Element + PartialOrd {
    fn plus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
}

macro_rules! reducible {
    ($($ty:ty),* => |$a:ident, $b:ident| $plus:expr, $times:expr) => {$(
        impl Reducible for $ty {
            fn plus(self, other: Self) -> Self {
                let ($a, $b) = (self, other);
                $plus
            }
            fn times(self, other: Self) -> Self {
                let ($a, $b) = (self, other);
                $times
            }
        }
    )*};
}

reducible!(f32, f64, f16, bf16 => |a, b| a + b, a * b);
reducible!(i64, i32, i16, i8, u64, u32, u16, u8 => |a, b| a.wrapping_add(b), a.wrapping_mul(b));
