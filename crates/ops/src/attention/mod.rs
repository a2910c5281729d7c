//! Attention in every form: ONNX's, those of ONNX Runtime's optimizer, and attar's own.

mod backward;
mod channel_rules;
mod channels;
mod core;
mod flex;
mod fused;
mod linear;
mod multi_head;
mod packed;
mod padding;
mod past;
mod quantized;
mod real;
mod rotary;
mod standard;

pub(crate) use flex::FlexAttention;
pub(crate) use fused::FusedAttention;
pub(crate) use linear::LinearAttention;
pub(crate) use multi_head::MultiHeadAttention;
pub(crate) use packed::{PackedAttention, QAttention};
pub(crate) use quantized::QuantizedAttention;
pub(crate) use rotary::{MicrosoftRotaryEmbedding, RotaryEmbedding};
pub(crate) use standard::Attention;
