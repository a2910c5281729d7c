//! Windows (opset 17 and later), with t = 2πn / N, or 2πn / (N − 1) if not periodic:
//! Hann ½ − ½·cos t, Hamming 25/46 − 21/46·cos t, Blackman 0.42 − ½·cos t + 0.08·cos 2t.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::{integer, output_type, typed};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

macro_rules! windows {
    ($($op:ident, $weights:expr;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn since_opset(&self) -> i64 {
                17
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                1..=1
            }

            fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                let size = required(inputs, 0)?.elements().and_then(<[Dim]>::first).cloned();
                Ok(vec![Fact::new(output_type(node)?, vec![size.unwrap_or(Dim::Unknown)])])
            }

            fn kernel(
                &self,
                node: &Node,
                _: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                let dtype = output_type(node)?;
                let is_periodic = node.int_or("periodic", 1)? != 0;
                Ok(Box::new(move |run: &mut Run| Ok(vec![window(run, $weights, is_periodic, dtype)?])))
            }
        }
    )*};
}

windows! {
    BlackmanWindow, [0.42, -0.5, 0.08];
    HammingWindow, [25.0 / 46.0, -21.0 / 46.0, 0.0];
    HannWindow, [0.5, -0.5, 0.0];
}

/// a + b·cos t + c·cos 2t.
fn window(
    run: &Run,
    [a, b, c]: [f64; 3],
    is_periodic: bool,
    dtype: DType,
) -> Result<Tensor, OpError> {
    let size = integer(run, 0)?;
    let count = usize::try_from(size).map_err(|_| OpError::value("the size", size, "0 or more"))?;
    // Refuses what memory does not hold, before numbers are computed.
    run.pool.declared(DType::F64, &[count])?;
    let period = if is_periodic { count } else { count.saturating_sub(1) };
    let value = |n: usize| {
        let t = 2.0 * std::f64::consts::PI * n as f64 / period as f64;
        // One symmetric point is the middle of the window.
        if period == 0 { a - b + c } else { a + b * t.cos() + c * (2.0 * t).cos() }
    };
    Ok(typed(&[count], &(0..count).map(value).collect::<Vec<f64>>(), dtype))
}
