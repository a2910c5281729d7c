//! What quantization did to each value and product, for the report.

use serde::{Deserialize, Serialize};

/// Ranges, methods and errors of a static quantization.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QuantizationRecord {
    pub ranges: Vec<RangeRecord>,
    /// The products with the greatest error first.
    pub products: Vec<ProductRecord>,
}

/// The 8-bit grid of one value: real = (q − `zero_point`) · `scale`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RangeRecord {
    pub value: String,
    /// The observer that chose the range.
    pub observer: String,
    /// The least and greatest value seen in calibration.
    pub seen: [f32; 2],
    pub scale: f32,
    pub zero_point: u8,
    /// Error of what reads the value, relative to what it reads, as its histogram predicts it.
    pub relative_error: f64,
}

/// One `MatMul`, Gemm or Conv.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProductRecord {
    pub node: String,
    pub op_type: String,
    /// How its weights were rounded.
    pub rounding: String,
    /// ‖ŷ − y‖ / ‖y‖ that comes from rounding its input alone, and its weights alone: predicted.
    pub input_error: f64,
    pub weight_error: f64,
    /// The same of both and all before it, measured: the quantized model beside the original.
    /// `None` where it was not measured.
    pub output_error: Option<f64>,
    /// Whether it stays in float, and why.
    pub kept_float: Option<String>,
}
