//! What operators mean: shapes, values and cost, one file per operator or family.

mod body;
mod broadcast;
pub mod channels;
mod datum;
mod fact;
mod fold;
pub mod fuse;
mod geometry;
mod gradient;
mod graph_facts;
mod kernels;
mod moves;
mod normalization_gradient;
mod number;
mod onnx_type;
pub mod opset;
pub mod optimize;
mod program;
mod quantization;
mod real;
mod row_math;
mod row_sums;
mod rows;
mod run;
mod shape_logic;
mod words;

mod activation;
mod affine_grid;
mod arg_extreme;
mod attention;
mod batch_normalization;
mod binary;
mod bitwise;
mod cast;
mod causal_conv;
mod center_crop_pad;
mod channels_last_pool;
mod clip;
mod col2im;
mod comparison;
mod concat;
mod constant;
mod constant_of_shape;
mod control;
mod conv;
mod conv_integer;
mod conv_transpose;
mod cumulative;
mod deform_conv;
mod dequantize_linear;
mod det;
mod dropout;
mod dynamic_quantize_linear;
mod einsum;
mod expand;
mod eye_like;
mod fake_quantize;
mod flatten;
mod fused_matmul;
mod gather;
mod gelu;
mod gemm;
mod global_pool;
mod grid_sample;
mod group_normalization;
mod identity;
mod indexing;
mod is_nan;
mod layer_normalization;
pub mod logits;
mod loss;
mod lp_normalization;
mod lrn;
mod matmul;
mod matmul_integer;
mod max_unpool;
mod mean_variance_normalization;
mod microsoft;
mod ml;
mod pooling;
mod pow;
mod q_linear_conv;
mod quantize_dequantize;
mod quantize_linear;
mod quantized;
mod quantized_conv;
mod quantized_layer_normalization;
mod quantized_matmul;
mod random;
mod range;
mod recurrent;
mod reduce;
mod reshape;
mod resize;
mod rms_normalization;
mod roi_align;
mod sequence;
mod shape;
mod shaping;
mod signal;
mod slice;
mod softmax;
mod split;
mod squeeze;
mod text;
mod threads;
mod transpose;
mod trigonometry;
mod unary;
mod unsqueeze;
mod variadic;
mod where_;

use attar_graph::{Dim, Graph, GraphError, Node};
use attar_tensor::{DType, Tensor};

pub use body::{Body, bodies};
pub use datum::Datum;
pub use fact::Fact;
pub use fake_quantize::fake_quantize_levels;
pub use fold::{fold_branches, fold_constants, fold_shapes, fold_unpacking};
pub use gradient::{Backward, Flow, Forward, Gradient, Reads, Training, add_assign, add_rows};
pub use graph_facts::{Bindings, Cost, Facts, NodeCost, infer_graph, runs};
pub use kernels::int8::int8_operations_per_second;
pub use kernels::isa_name;
pub use program::{Program, ProgramError, StepTime, Visit};
pub use recurrent::has_bounded_state;
pub use run::{DataKernel, DataRun, Kernel, Pool, Run};
pub use threads::sequential;

/// Every operator attar gives a meaning to.
pub const OPERATORS: &[&dyn Operator] = &[
    &activation::Celu,
    &activation::Elu,
    &activation::HardSigmoid,
    &activation::HardSwish,
    &activation::LeakyRelu,
    &activation::Mish,
    &activation::PRelu,
    &activation::Relu,
    &activation::Selu,
    &activation::Shrink,
    &activation::Sigmoid,
    &activation::Softplus,
    &activation::Softsign,
    &activation::SwiGLU,
    &activation::Swish,
    &activation::ThresholdedRelu,
    &affine_grid::AffineGrid,
    &arg_extreme::ArgMax,
    &arg_extreme::ArgMin,
    &attention::Attention,
    &attention::FlexAttention,
    &attention::FusedAttention,
    &attention::QuantizedAttention,
    &attention::LinearAttention,
    &attention::MicrosoftRotaryEmbedding,
    &attention::MultiHeadAttention,
    &attention::PackedAttention,
    &attention::QAttention,
    &attention::RotaryEmbedding,
    &batch_normalization::BATCH_NORMALIZATION,
    &batch_normalization::CHANNELS_LAST_BATCH_NORMALIZATION,
    &batch_normalization::FUSED_BATCH_NORMALIZATION,
    &binary::Add,
    &binary::Div,
    &binary::Mod,
    &binary::Mul,
    &binary::Sub,
    &bitwise::BitShift,
    &bitwise::BitwiseAnd,
    &bitwise::BitwiseNot,
    &bitwise::BitwiseOr,
    &bitwise::BitwiseXor,
    &cast::BitCast,
    &cast::Cast,
    &cast::CastLike,
    &causal_conv::CausalConvWithState,
    &center_crop_pad::CenterCropPad,
    &channels_last_pool::ChannelsLastGlobalAveragePool,
    &clip::Clip,
    &col2im::Col2Im,
    &comparison::And,
    &comparison::Equal,
    &comparison::Greater,
    &comparison::GreaterOrEqual,
    &comparison::Less,
    &comparison::LessOrEqual,
    &comparison::Not,
    &comparison::Or,
    &comparison::Xor,
    &concat::Concat,
    &constant::Constant,
    &constant_of_shape::ConstantOfShape,
    &control::If,
    &control::Loop,
    &control::Scan,
    &conv::CHANNELS_LAST_CONV,
    &conv::CONV,
    &conv::FUSED_CONV,
    &conv::MICROSOFT_FUSED_CONV,
    &conv::layout::TO_CHANNELS_FIRST,
    &conv::layout::TO_CHANNELS_LAST,
    &conv_integer::ConvInteger,
    &conv_transpose::CHANNELS_LAST_CONV_TRANSPOSE,
    &conv_transpose::CONV_TRANSPOSE,
    &cumulative::CumProd,
    &cumulative::CumSum,
    &deform_conv::DeformConv,
    &dequantize_linear::DequantizeLinear,
    &det::Det,
    &dropout::Dropout,
    &dynamic_quantize_linear::DynamicQuantizeLinear,
    &einsum::Einsum,
    &expand::Expand,
    &eye_like::EyeLike,
    &fake_quantize::FakeQuantize,
    &flatten::Flatten,
    &fused_matmul::FusedMatMul,
    &gather::Gather,
    &gelu::Gelu,
    &gemm::Gemm,
    &global_pool::GlobalAveragePool,
    &global_pool::GlobalLpPool,
    &global_pool::GlobalMaxPool,
    &grid_sample::GridSample,
    &group_normalization::GroupNormalization,
    &group_normalization::InstanceNormalization,
    &identity::Identity,
    &indexing::Compress,
    &indexing::GatherElements,
    &indexing::GatherND,
    &indexing::NonMaxSuppression,
    &indexing::NonZero,
    &indexing::OneHot,
    &indexing::ReverseSequence,
    &indexing::ScatterElements,
    &indexing::ScatterND,
    &indexing::TensorScatter,
    &indexing::TopK,
    &indexing::Unique,
    &is_nan::IsInf,
    &is_nan::IsNaN,
    &layer_normalization::LayerNormalization,
    &layer_normalization::SkipLayerNormalization,
    &loss::NegativeLogLikelihoodLoss,
    &loss::SoftmaxCrossEntropyLoss,
    &lp_normalization::LpNormalization,
    &lrn::Lrn,
    &matmul::MatMul,
    &matmul_integer::MatMulInteger,
    &max_unpool::MaxUnpool,
    &mean_variance_normalization::MeanVarianceNormalization,
    &microsoft::BiasGelu,
    &microsoft::BiasSoftmax,
    &microsoft::EmbedLayerNormalization,
    &microsoft::FastGelu,
    &microsoft::FusedGemm,
    &microsoft::MicrosoftDequantizeLinear,
    &microsoft::MicrosoftFusedMatMul,
    &microsoft::MicrosoftGelu,
    &microsoft::MicrosoftQuantizeLinear,
    &microsoft::MicrosoftSkipLayerNormalization,
    &microsoft::QuickGelu,
    &microsoft::SimplifiedLayerNormalization,
    &microsoft::SkipSimplifiedLayerNormalization,
    &ml::ArrayFeatureExtractor,
    &ml::Binarizer,
    &pooling::AveragePool,
    &pooling::LpPool,
    &pooling::MaxPool,
    &pow::Pow,
    &q_linear_conv::QLinearConv,
    &quantize_dequantize::QuantizeDequantize,
    &quantize_linear::QuantizeLinear,
    &quantized::DequantizedGather,
    &quantized::DynamicQuantizeMatMul,
    &quantized::GatherBlockQuantized,
    &quantized::LevelTable,
    &quantized::MatMulIntegerToFloat,
    &quantized::MatMulNBits,
    &quantized::QGemm,
    &quantized::QLinearAdd,
    &quantized::QLinearAveragePool,
    &quantized::QLinearConcat,
    &quantized::QLinearGlobalAveragePool,
    &quantized::QLinearLeakyRelu,
    &quantized::QLinearMatMul,
    &quantized::QLinearMul,
    &quantized::QLinearSigmoid,
    &quantized::QLinearSoftmax,
    &quantized_layer_normalization::QuantizedLayerNormalization,
    &quantized_conv::CHANNELS_LAST_QUANTIZED_CONV,
    &quantized_conv::QUANTIZED_CONV,
    &quantized_matmul::QuantizedMatMul,
    &quantized_matmul::QuantizedMatMuls,
    &random::Bernoulli,
    &random::Multinomial,
    &random::RandomNormal,
    &random::RandomNormalLike,
    &random::RandomUniform,
    &random::RandomUniformLike,
    &range::Range,
    &recurrent::DynamicQuantizeLstm,
    &recurrent::Gru,
    &recurrent::Lstm,
    &recurrent::QUANTIZED_GRU,
    &recurrent::QUANTIZED_LSTM,
    &recurrent::QUANTIZED_RNN,
    &recurrent::Rnn,
    &reduce::ReduceL1,
    &reduce::ReduceL2,
    &reduce::ReduceLogSum,
    &reduce::ReduceLogSumExp,
    &reduce::ReduceMax,
    &reduce::ReduceMean,
    &reduce::ReduceMin,
    &reduce::ReduceProd,
    &reduce::ReduceSum,
    &reduce::ReduceSumSquare,
    &reshape::Reshape,
    &resize::Resize,
    &rms_normalization::RmsNormalization,
    &roi_align::RoiAlign,
    &sequence::ConcatFromSequence,
    &sequence::Optional,
    &sequence::OptionalGetElement,
    &sequence::OptionalHasElement,
    &sequence::SequenceAt,
    &sequence::SequenceConstruct,
    &sequence::SequenceEmpty,
    &sequence::SequenceErase,
    &sequence::SequenceInsert,
    &sequence::SequenceLength,
    &sequence::SequenceMap,
    &sequence::SplitToSequence,
    &shape::Shape,
    &shaping::DepthToSpace,
    &shaping::Pad,
    &shaping::Size,
    &shaping::SpaceToDepth,
    &shaping::Tile,
    &shaping::Trilu,
    &signal::BlackmanWindow,
    &signal::Dft,
    &signal::HammingWindow,
    &signal::HannWindow,
    &signal::MelWeightMatrix,
    &signal::Spectrum,
    &signal::Stft,
    &slice::Slice,
    &softmax::Hardmax,
    &softmax::LogSoftmax,
    &softmax::Softmax,
    &split::Split,
    &squeeze::Squeeze,
    &text::LabelEncoder,
    &text::RegexFullMatch,
    &text::StringConcat,
    &text::StringNormalizer,
    &text::StringSplit,
    &text::TfIdfVectorizer,
    &transpose::Transpose,
    &trigonometry::Acos,
    &trigonometry::Acosh,
    &trigonometry::Asin,
    &trigonometry::Asinh,
    &trigonometry::Atan,
    &trigonometry::Atanh,
    &trigonometry::Cos,
    &trigonometry::Cosh,
    &trigonometry::Sin,
    &trigonometry::Sinh,
    &trigonometry::Tan,
    &trigonometry::Tanh,
    &unary::Abs,
    &unary::Ceil,
    &unary::Erf,
    &unary::Exp,
    &unary::Floor,
    &unary::Log,
    &unary::Neg,
    &unary::Reciprocal,
    &unary::Round,
    &unary::Sign,
    &unary::Sqrt,
    &unsqueeze::Unsqueeze,
    &variadic::Max,
    &variadic::Mean,
    &variadic::Min,
    &variadic::Sum,
    &where_::Where,
];

/// Domain of the operators that attar's own fusion makes.
pub const ATTAR_DOMAIN: &str = "attar";

/// Domain of the operators that ONNX Runtime's optimizer and quantizer leave in files.
pub const MICROSOFT_DOMAIN: &str = "com.microsoft";

/// An operator: shape inference, kernel and cost.
pub trait Operator: Sync {
    fn op_type(&self) -> &'static str;

    fn domain(&self) -> &'static str {
        ""
    }

    /// The first version of the operator set whose meaning is the implemented one.
    fn since_opset(&self) -> i64 {
        1
    }

    /// How many inputs a node may have.
    fn input_count(&self) -> std::ops::RangeInclusive<usize>;

    /// Types and shapes of the outputs. Inputs that are absent or unknown are `None`.
    ///
    /// # Errors
    /// Inputs that no run could accept.
    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError>;

    /// Prepares to run a node whose constant inputs are known.
    ///
    /// # Errors
    /// Attributes or constants that the operator does not take.
    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError>;

    /// Multiply-accumulate operations of one run; 0 where none are counted.
    fn macs(&self, _node: &Node, _inputs: &[Option<&Fact>], _outputs: &[Fact]) -> Dim {
        Dim::Known(0)
    }

    /// Whether the kernel keeps its own form of the constant input, so that the original is
    /// needed no more.
    fn keeps_constant(&self, _input: usize) -> bool {
        false
    }

    /// Whether the kernel reads a constant input at any address, and few of its bytes: a large one then
    /// stays in the file that it is mapped from.
    fn reads_in_place(&self, _input: usize) -> bool {
        false
    }

    /// Whether f16 and bf16 inputs are computed in f32 and f32 results rounded back, as ONNX
    /// Runtime does on CPUs. For operators whose kernels know neither.
    fn widens_half(&self) -> bool {
        false
    }

    /// Prepares a node to train.
    ///
    /// # Errors
    /// [`OpError::NoGradient`] where the operator has none, or attributes it does not take.
    fn gradient(&self, _node: &Node, _training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        Err(OpError::NoGradient)
    }

    /// What of its tensors can only be cut together; `None` where nothing can be cut.
    fn channels(&self, _node: &Node, _tensors: &channels::Tensors) -> Option<channels::Channels> {
        None
    }

    /// Whether training runs the node in another way than inference even where no gradient flows.
    fn differs_in_training(&self) -> bool {
        false
    }

    /// The operator's kernels over sequences, optionals or bodies, in place of [`kernel`].
    ///
    /// [`kernel`]: Self::kernel
    fn over_data(&self) -> Option<&dyn OverData> {
        None
    }
}

/// An operator whose inputs or outputs are not all tensors, or that runs bodies.
pub trait OverData: Sync {
    /// Prepares to run a node with its bodies, in the order of its attributes.
    ///
    /// # Errors
    /// Attributes or bodies that the operator does not take.
    fn data_kernel(&self, node: &Node, bodies: Vec<Body>) -> Result<Box<dyn DataKernel>, OpError>;

    /// Types and shapes of the outputs of a node with bodies; `None` where nothing is known.
    /// `infer` tells what a body gives for what its own inputs are known to be.
    ///
    /// # Errors
    /// Inputs or bodies that no run could accept.
    fn infer_bodies(
        &self,
        _node: &Node,
        _inputs: &[Option<&Fact>],
        _infer: &mut dyn FnMut(&Graph, Vec<Option<Fact>>) -> Vec<Option<Fact>>,
    ) -> Result<Vec<Option<Fact>>, OpError> {
        Ok(Vec::new())
    }
}

/// Finds an operator by domain and type; `ai.onnx` is the ONNX domain.
pub fn operator(domain: &str, op_type: &str) -> Option<&'static dyn Operator> {
    let domain = if domain == "ai.onnx" { "" } else { domain };
    OPERATORS.iter().copied().find(|op| op.op_type() == op_type && op.domain() == domain)
}

/// Whether an operator can be trained through.
pub fn has_gradient(operator: &dyn Operator) -> bool {
    let node = Node::new(operator.op_type(), "", &[], &[]).with_domain(operator.domain());
    let gradient = operator.gradient(&node, &Training { constants: &[], wanted: &[] });
    !matches!(gradient, Err(OpError::NoGradient))
}

/// The operator of a node, once its count of inputs and its version are ones the operator takes.
///
/// # Errors
/// [`OpError::Unknown`], [`OpError::Opset`] or [`OpError::InputCount`].
pub fn check(node: &Node, opset: i64) -> Result<&'static dyn Operator, OpError> {
    let operator = operator(&node.domain, &node.op_type).ok_or_else(|| OpError::Unknown {
        op_type: node.op_type.clone(),
        domain: node.domain.clone(),
    })?;
    if operator.domain().is_empty() && opset < operator.since_opset() {
        return Err(OpError::Opset { found: opset, since: operator.since_opset() });
    }
    let allowed = operator.input_count();
    if !allowed.contains(&node.inputs.len()) {
        return Err(OpError::InputCount { found: node.inputs.len(), allowed });
    }
    Ok(operator)
}

/// Why an operator cannot take its node, or run. The caller adds which node.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum OpError {
    #[error("attar does not know the operator {op_type}{}", in_domain(.domain))]
    Unknown { op_type: String, domain: String },

    #[error("opset {found} gives it another meaning; attar knows it from opset {since} on")]
    Opset { found: i64, since: i64 },

    #[error("has {found} inputs, takes {} to {}", .allowed.start(), .allowed.end())]
    InputCount { found: usize, allowed: std::ops::RangeInclusive<usize> },

    #[error("input {index} is absent")]
    MissingInput { index: usize },

    #[error("input {index} is {found}, which it does not take")]
    DType { index: usize, found: DType },

    #[error("shapes {a} and {b} do not fit together")]
    Shapes { a: String, b: String },

    #[error("{what} is {found}, expected {expected}")]
    Value { what: String, found: String, expected: String },

    #[error("{what} is not supported")]
    Unsupported { what: String },

    #[error("has no gradient, and lies between a trained weight and the loss")]
    NoGradient,

    /// A node of a body: a branch of If, the body of Loop or Scan.
    #[error("runs {op_type} (node `{node}`), which {source}")]
    Inner { node: String, op_type: String, source: Box<OpError> },

    #[error(transparent)]
    Attribute(#[from] GraphError),
}

fn in_domain(domain: &str) -> String {
    if domain.is_empty() { String::new() } else { format!(" of domain `{domain}`") }
}

impl OpError {
    pub(crate) fn shapes(a: &[usize], b: &[usize]) -> Self {
        Self::Shapes { a: format!("{a:?}"), b: format!("{b:?}") }
    }

    pub(crate) fn value(
        what: &str,
        found: impl std::fmt::Debug,
        expected: impl Into<String>,
    ) -> Self {
        Self::Value { what: what.into(), found: format!("{found:?}"), expected: expected.into() }
    }

    /// The user's next step.
    pub fn hint(&self) -> String {
        match self {
            Self::Unknown { domain, .. } if domain == "com.microsoft.nchwc" => {
                "a layout for one kind of CPU: save the model at ONNX Runtime's optimization level \
                 `extended`, or use the original; ONNX Runtime may run it: `--runtime ort`"
                    .into()
            }
            Self::Unknown { .. } | Self::Unsupported { .. } => {
                "see `attar operators`; ONNX Runtime may run it: `--runtime ort`".into()
            }
            Self::NoGradient => {
                "freeze the weights before it: `--freeze PATTERN`; see `attar operators`".into()
            }
            Self::Opset { since, .. } => format!("export the model for opset {since} or later"),
            Self::Inner { source, .. } => source.hint(),
            _ => "check the model: `attar inspect MODEL`".into(),
        }
    }
}

/// The fact of a required input, or what is missing.
pub(crate) fn required<'a>(inputs: &[Option<&'a Fact>], index: usize) -> Result<&'a Fact, OpError> {
    inputs.get(index).copied().flatten().ok_or(OpError::MissingInput { index })
}
