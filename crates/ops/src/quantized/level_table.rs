//! `LevelTable`, made by fusion: y = table[x] of u8, what a function of single values between a
//! `DequantizeLinear` and a `QuantizeLinear` comes to.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::kernels::{for_rows, quantize};
use crate::quantized_conv::table;
use crate::{ATTAR_DOMAIN, Fact, Kernel, OpError, Operator, Run, required};

/// Inputs: x (u8) and the table (u8, 256), which is constant.
pub(crate) struct LevelTable;

impl Operator for LevelTable {
    fn op_type(&self) -> &'static str {
        "LevelTable"
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![required(inputs, 0)?.with_dtype(DType::U8)])
    }

    fn kernel(&self, _: &Node, constants: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let constant = constants.get(1).copied().flatten();
        let table = table(constant.ok_or(OpError::MissingInput { index: 1 })?)?;
        Ok(Box::new(move |run: &mut Run| {
            run.typed::<u8>(0)?;
            let mut y = if let Some(x) = run.take_unique(0) {
                x
            } else {
                let x = run.typed::<u8>(0)?;
                let mut y = run.pool.tensor(DType::U8, x.shape());
                y.slice_mut::<u8>().copy_from_slice(x.slice::<u8>());
                y
            };
            for_rows(y.slice_mut::<u8>(), 1, |_, levels| quantize::look_up(levels, &table));
            Ok(vec![y])
        }))
    }
}
