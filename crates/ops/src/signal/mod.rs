//! Signal operators: Fourier transforms, windows, the mel scale.

mod adjoint;
mod dft;
mod fourier;
mod mel_weight_matrix;
mod spectrum;
mod stft;
mod window;

pub(crate) use dft::Dft;
pub(crate) use mel_weight_matrix::MelWeightMatrix;
pub(crate) use spectrum::Spectrum;
pub(crate) use stft::Stft;
pub(crate) use window::{BlackmanWindow, HammingWindow, HannWindow};

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::{Fact, OpError, Run};

/// The one integer of an input.
fn integer(run: &Run, index: usize) -> Result<i64, OpError> {
    let tensor = run.input(index)?;
    match tensor.to_i64().as_deref() {
        Some(&[value]) => Ok(value),
        _ => Err(OpError::value(&format!("input {index}"), tensor, "one integer")),
    }
}

/// A length given by an input: 1 or more.
fn length(run: &Run, index: usize) -> Result<usize, OpError> {
    let value = integer(run, index)?;
    let error = || OpError::value(&format!("input {index}"), value, "a length above 0");
    usize::try_from(value).ok().filter(|&length| length > 0).ok_or_else(error)
}

/// What is known of a length given by an input; the default where it is absent.
fn length_dim(node: &Node, inputs: &[Option<&Fact>], index: usize, default: Dim) -> Dim {
    if node.input(index).is_none() {
        return default;
    }
    let fact = inputs.get(index).copied().flatten();
    fact.and_then(|fact| fact.elements()?.first().cloned()).unwrap_or(Dim::Unknown)
}

/// The element type that the attribute `output_datatype` asks for.
fn output_type(node: &Node) -> Result<DType, OpError> {
    let code = node.int_or("output_datatype", 1)?;
    Ok(match code {
        1 => DType::F32,
        2 => DType::U8,
        3 => DType::I8,
        4 => DType::U16,
        5 => DType::I16,
        6 => DType::I32,
        7 => DType::I64,
        10 => DType::F16,
        11 => DType::F64,
        12 => DType::U32,
        13 => DType::U64,
        16 => DType::BF16,
        _ => return Err(OpError::value("output_datatype", code, "a type of numbers")),
    })
}

/// Numbers as a tensor of the type asked for.
fn typed(shape: &[usize], values: &[f64], dtype: DType) -> Tensor {
    Tensor::new(shape, values).converted(dtype).expect("`output_type` gives types of numbers")
}

/// The numbers of a float input.
fn floats(run: &Run, index: usize) -> Result<Vec<f64>, OpError> {
    let tensor = run.input(index)?;
    if !tensor.dtype().is_float() {
        return Err(OpError::DType { index, found: tensor.dtype() });
    }
    Ok(tensor.to_f64().expect("floats are numbers"))
}
