//! What scattering does where something stands already: replace, add, multiply, or keep the
//! lesser or greater.

use attar_graph::Node;
use attar_tensor::{DType, Element, Tensor, bf16, f16};

use crate::words::{by_width, words, words_mut};
use crate::{Backward, Flow, OpError, Reads};

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

/// The gradients of x and of the updates, where they are `wanted`, of a scattering into x that gave
/// y; updates i, in blocks of `size`, at `starts[i]` of y.
///
/// | reduction | dx, du |
/// | --- | --- |
/// | none | dy where nothing was put, dy where it is the last that was put there |
/// | add | dy, dy |
/// | mul | dy times all other factors |
/// | min, max | dy where it is y, shared evenly by those that are equal |
pub(super) fn scatter_back(
    reduction: Reduction,
    run: &mut Backward,
    starts: &[usize],
    size: usize,
) -> Result<Vec<Option<Flow>>, OpError> {
    let mut dx = run.take_gradient();
    let places: Vec<usize> = starts.iter().flat_map(|&start| start..start + size).collect();
    let mut updates = run.tensor(run.shape(2));
    let (dy, du) = (dx.slice_mut::<f32>(), updates.slice_mut::<f32>());
    match reduction {
        Reduction::None => {
            for (du, &place) in du.iter_mut().zip(&places).rev() {
                *du = std::mem::take(&mut dy[place]);
            }
        }
        Reduction::Add => du.iter_mut().zip(&places).for_each(|(du, &place)| *du = dy[place]),
        Reduction::Mul => {
            let (x, u) = (run.input(0)?.slice::<f32>(), run.input(2)?.slice::<f32>());
            let mut products = vec![(1.0_f64, 0_usize); x.len()];
            let all = || (0..x.len()).zip(x).chain(places.iter().copied().zip(u));
            for (place, &factor) in all() {
                let (product, zeros) = &mut products[place];
                if factor == 0.0 { *zeros += 1 } else { *product *= f64::from(factor) }
            }
            let others = |place: usize, factor: f32| match products[place] {
                (product, 0) => product / f64::from(factor),
                (product, 1) if factor == 0.0 => product,
                _ => 0.0,
            };
            for ((du, &place), &u) in du.iter_mut().zip(&places).zip(u) {
                *du = (f64::from(dy[place]) * others(place, u)) as f32;
            }
            for (place, (dy, &x)) in dy.iter_mut().zip(x).enumerate() {
                *dy = (f64::from(*dy) * others(place, x)) as f32;
            }
        }
        Reduction::Min | Reduction::Max => {
            let (x, u) = (run.input(0)?.slice::<f32>(), run.input(2)?.slice::<f32>());
            let y = run.output(0).slice::<f32>();
            let is_y = |place: usize, value: f32| f32::from(u8::from(y[place] == value));
            let mut counts: Vec<f32> =
                x.iter().enumerate().map(|(place, &x)| is_y(place, x)).collect();
            places.iter().zip(u).for_each(|(&place, &u)| counts[place] += is_y(place, u));
            dy.iter_mut().zip(&counts).for_each(|(dy, count)| *dy /= count.max(1.0));
            for ((du, &place), &u) in du.iter_mut().zip(&places).zip(u) {
                *du = dy[place] * is_y(place, u);
            }
            for (place, (dy, &x)) in dy.iter_mut().zip(x).enumerate() {
                *dy *= is_y(place, x);
            }
        }
    }
    Ok(vec![Some(dx.into()), None, Some(updates.into())])
}

impl Reduction {
    /// What [`scatter_back`] reads.
    pub(super) fn reads(self) -> Reads {
        let indices = Reads::NOTHING.input(1);
        match self {
            Self::None | Self::Add => indices,
            Self::Mul => indices.input(0).input(2),
            Self::Min | Self::Max => indices.input(0).input(2).output(0),
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
