//! Float operators of the domain `com.microsoft` (and those that ONNX Runtime keeps in ONNX's
//! domain although ONNX has none of the name): what its optimizer leaves in files.

mod bias_softmax;
mod embedding;
mod gelu;
mod normalization;
mod products;
mod quantize;

pub(crate) use bias_softmax::BiasSoftmax;
pub(crate) use embedding::EmbedLayerNormalization;
pub(crate) use gelu::{BiasGelu, FastGelu, MicrosoftGelu, QuickGelu};
pub(crate) use normalization::{
    MicrosoftSkipLayerNormalization, SimplifiedLayerNormalization, SkipSimplifiedLayerNormalization,
};
pub(crate) use products::{FusedGemm, MicrosoftFusedMatMul};
pub(crate) use quantize::{MicrosoftDequantizeLinear, MicrosoftQuantizeLinear};

use attar_tensor::Tensor;

use crate::clip::in_place_or_copy;
use crate::kernels::{elementwise, for_rows};
use crate::{OpError, Run};

/// An optional f32 vector of a given length.
pub(crate) fn vector<'a>(
    run: &'a Run,
    index: usize,
    length: usize,
) -> Result<Option<&'a [f32]>, OpError> {
    if run.optional(index).is_none() {
        return Ok(None);
    }
    let tensor = run.typed::<f32>(index)?;
    if tensor.element_count() != length {
        return Err(OpError::shapes(tensor.shape(), &[length]));
    }
    Ok(Some(tensor.slice()))
}

/// Input 0 with the vector of input 1, if there is one, added to each row; then `finish` over
/// blocks of it.
fn biased(run: &mut Run, finish: impl Fn(&mut [f32]) + Send + Sync) -> Result<Tensor, OpError> {
    let x = run.typed::<f32>(0)?;
    let size = x.shape().last().copied().unwrap_or(1);
    vector(run, 1, size)?;
    let mut y = in_place_or_copy(run)?;
    let bias = vector(run, 1, size)?;
    for_rows(y.slice_mut::<f32>(), size, |_, rows| {
        if let Some(bias) = bias {
            rows.chunks_exact_mut(size).for_each(|row| elementwise::add_assign(row, bias));
        }
        finish(rows);
    });
    Ok(y)
}
