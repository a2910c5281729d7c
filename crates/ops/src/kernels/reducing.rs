//! Loops that give a gradient back to the elements that were reduced: f is what each of them is
//! due, y what they were reduced to.

use super::{math, vectorized};
use crate::broadcast::Operand;

macro_rules! giving_loops {
    ($($(#[$meta:meta])* $name:ident($x:ident, $f:ident, $y:ident) => $value:expr;)*) => {
        vectorized! {$(
            $(#[$meta])*
            pub(crate) fn $name<FMA>(
                dx: &mut [f32],
                x: &[f32],
                f: Operand<'_, f32>,
                y: Operand<'_, f32>,
            ) {
                match (f, y) {
                    (Operand::Row(f), Operand::Row(y)) => {
                        for (((dx, &$x), &$f), &$y) in dx.iter_mut().zip(x).zip(f).zip(y) {
                            *dx = $value;
                        }
                    }
                    (Operand::Scalar($f), Operand::Scalar($y)) => {
                        for (dx, &$x) in dx.iter_mut().zip(x) {
                            *dx = $value;
                        }
                    }
                    _ => unreachable!("both have the shape of what was reduced to"),
                }
            }
        )*}
    };
}

giving_loops! {
    signed(x, f, _y) => if x > 0.0 { f } else if x < 0.0 { -f } else { 0.0 };
    exponential(x, f, y) => f * math::exp::<FMA>(x - y);
    equal(x, f, y) => if x == y { f } else { 0.0 };
}

/// dx = f.
pub(crate) fn repeat(dx: &mut [f32], f: Operand<'_, f32>) {
    match f {
        Operand::Row(f) => dx.copy_from_slice(f),
        Operand::Scalar(f) => dx.fill(f),
    }
}
