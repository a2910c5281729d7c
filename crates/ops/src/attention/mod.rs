//! Attention in every form: ONNX's, those of ONNX Runtime's optimizer, and attar's own.

mod core;
mod fused;
mod past;
mod real;
mod standard;

pub(crate) use fused::FusedAttention;
pub(crate) use standard::Attention;
