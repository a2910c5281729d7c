//! `QuantizedLayerNormalization`, made by fusion: y = LayerNormalization(x + skip) over the last axis,
//! and its levels clamp(round(y / scale) + zero point) as u8.
//!
//! Inputs: x, skip (or none), scale and bias (or none) of the normalization, scales (one, or one for
//! each place in a row) and zero points (all the same) of the levels. Outputs: y, for the next residual addition, and the levels, for the next product.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::clip::in_place_or_copy;
use crate::kernels::for_row_pairs;
use crate::kernels::normalize_levels::{Normalization, layer_normalize_levels};
use crate::quantized_matmul::shared_zero;
use crate::{ATTAR_DOMAIN, Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct QuantizedLayerNormalization;

impl Operator for QuantizedLayerNormalization {
    fn op_type(&self) -> &'static str {
        "QuantizedLayerNormalization"
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        6..=6
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(DType::F32), x.with_dtype(DType::U8)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let epsilon = node.float_or("epsilon", 1e-5)?;
        Ok(Box::new(move |run: &mut Run| {
            let row_size = check(run)?;
            let mut y = in_place_or_copy(run)?;
            let mut q = run.pool.tensor(DType::U8, y.shape());
            let skip = run.optional(1).map(Tensor::slice::<f32>);
            let scale = run.input(2)?.slice::<f32>();
            let bias = run.optional(3).map(Tensor::slice::<f32>);
            let constants = constants(run, row_size)?;
            let (inverse_scales, zeros) = constants.slice::<f32>().split_at(row_size);
            let by = Normalization {
                scale,
                bias: bias.unwrap_or(zeros),
                inverse_scales,
                zero_point: i32::from(shared_zero(run.input(5)?, 5)?),
                epsilon,
            };
            let (y_values, q_values) = (y.slice_mut::<f32>(), q.slice_mut::<u8>());
            for_row_pairs(y_values, q_values, row_size, |first, y, q| {
                let skip = skip.map(|skip| &skip[first * row_size..][..y.len()]);
                layer_normalize_levels(y, q, skip, by);
            });
            run.pool.recycle(constants);
            Ok(vec![y, q])
        }))
    }
}

/// One over the scale of the levels of each place in a row, and zeros for a bias. Values are multiplied,
/// not divided: one within an ulp of a tie may fall to its other side.
fn constants(run: &Run, row_size: usize) -> Result<Tensor, OpError> {
    let scales = run.input(4)?.slice::<f32>();
    let mut constants = run.pool.tensor(DType::F32, &[2, row_size]);
    let (inverses, zeros) = constants.slice_mut::<f32>().split_at_mut(row_size);
    for (inverse, &scale) in inverses.iter_mut().zip(scales.iter().cycle()) {
        // Of a scale that has no inverse, 0 still has the level of the zero point.
        *inverse = (1.0 / scale).min(f32::MAX);
    }
    zeros.fill(0.0);
    Ok(constants)
}

/// The size of a row, once every input fits it.
fn check(run: &Run) -> Result<usize, OpError> {
    let x = run.typed::<f32>(0)?;
    let row_size =
        *x.shape().last().ok_or_else(|| OpError::value("the rank of x", 0, "above 0"))?;
    for index in [1, 2, 3, 4].into_iter().filter(|&index| run.optional(index).is_some()) {
        let found = run.typed::<f32>(index)?;
        let fits = match index {
            1 => found.shape() == x.shape(),
            4 => [1, row_size].contains(&found.element_count()),
            _ => found.element_count() == row_size,
        };
        if !fits {
            return Err(OpError::shapes(x.shape(), found.shape()));
        }
    }
    Ok(row_size)
}
