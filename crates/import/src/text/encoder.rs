//! The layers that encoders of BERT's family share: attention, feed-forward, normalization.

use super::config::Config;
use crate::ImportError;
use crate::build::{Builder, scope};
use attar_graph::{Dim, Node};
use attar_tensor::DType;

/// What a masked token's scores are lowered by: e^−10⁹ is exactly 0 in f32 whatever the scores,
/// and a text with no token at all still has finite vectors.
const MASKED: f32 = -1e9;

/// ONNX's number of f32, for `Cast`.
const ONNX_FLOAT: i64 = 1;

/// An encoder in the making.
pub(crate) struct Encoder<'a> {
    pub(crate) builder: Builder,
    pub(crate) config: &'a Config,
    /// The mask as floats, [batch, sequence].
    pub(crate) mask: String,
}

/// Where an architecture keeps the parts of one layer, from `encoder.layer.N.` on.
pub(crate) struct LayerNames {
    pub(crate) query: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: &'static str,
    pub(crate) attention_output: &'static str,
    pub(crate) attention_norm: &'static str,
}

impl<'a> Encoder<'a> {
    /// Declares the inputs that every encoder has.
    pub(crate) fn new(mut builder: Builder, config: &'a Config) -> Self {
        let dims = [Dim::symbol("batch"), Dim::symbol("sequence")];
        builder.input("input_ids", DType::I64, &dims);
        builder.input("attention_mask", DType::I64, &dims);
        let cast = Node::new("Cast", "/mask/Cast", &["attention_mask"], &[]);
        let mask = builder.push(cast.with_attribute("to", ONNX_FLOAT));
        Self { builder, config, mask }
    }

    /// What the mask adds to attention scores, [batch, 1, 1, sequence].
    pub(crate) fn mask_bias(&mut self) -> String {
        let b = &mut self.builder;
        let (one, masked) = (b.scalar("mask.one", 1.0), b.scalar("mask.low", MASKED));
        let is_padding = b.node("Sub", "/mask/Sub", &[&one, &self.mask]);
        let bias = b.node("Mul", "/mask/Mul", &[&is_padding, &masked]);
        let axes = b.integers("mask.axes", &[1, 2]);
        b.node("Unsqueeze", "/mask/Unsqueeze", &[&bias, &axes])
    }

    /// Rows of the table at `path`, looked up by `ids`.
    pub(crate) fn embedding(
        &mut self,
        path: &str,
        ids: &str,
        row_count: usize,
    ) -> Result<String, ImportError> {
        let shape = [row_count, self.config.hidden_size];
        let table = self.builder.weight(&format!("{path}.weight"), &shape)?;
        Ok(self.builder.node("Gather", &format!("{}/Gather", scope(path)), &[&table, ids]))
    }

    pub(crate) fn layer_norm(&mut self, path: &str, x: &str) -> Result<String, ImportError> {
        let size = [self.config.hidden_size];
        let scale = self.builder.weight(&format!("{path}.weight"), &size)?;
        let bias = self.builder.weight(&format!("{path}.bias"), &size)?;
        let name = format!("{}/LayerNormalization", scope(path));
        let node = Node::new("LayerNormalization", &name, &[x, &scale, &bias], &[]);
        Ok(self.builder.push(node.with_attribute("epsilon", self.config.layer_norm_eps)))
    }

    /// All layers; `score_bias` is added to the attention scores of each.
    pub(crate) fn layers(
        &mut self,
        names: &LayerNames,
        mut x: String,
        score_bias: &str,
    ) -> Result<String, ImportError> {
        for index in 0..self.config.num_hidden_layers {
            let layer = format!("encoder.layer.{index}");
            let attended = self.attention(names, &layer, &x, score_bias)?;
            x = self.feed_forward(&layer, &attended)?;
        }
        Ok(x)
    }

    /// softmax(q·kᵀ/√d + bias)·v in each head, the output layer, and the residual normalized.
    fn attention(
        &mut self,
        names: &LayerNames,
        layer: &str,
        x: &str,
        score_bias: &str,
    ) -> Result<String, ImportError> {
        let query = self.heads(&format!("{layer}.{}", names.query), x, &[0, 2, 1, 3])?;
        // Keys come transposed, so that the scores are one product.
        let key = self.heads(&format!("{layer}.{}", names.key), x, &[0, 2, 3, 1])?;
        let value = self.heads(&format!("{layer}.{}", names.value), x, &[0, 2, 1, 3])?;

        let hidden = self.config.hidden_size;
        let b = &mut self.builder;
        let place = format!("{}/attention", scope(layer));
        let named = |op_type: &str| format!("{place}/{op_type}");
        let root = b.scalar("attention.scale", (self.config.head_size() as f32).sqrt());
        let scores = b.node("MatMul", &named("scores/MatMul"), &[&query, &key]);
        let scaled = b.node("Div", &named("Div"), &[&scores, &root]);
        let biased = b.node("Add", &named("Add"), &[&scaled, score_bias]);
        let softmax = Node::new("Softmax", &named("Softmax"), &[&biased], &[]);
        let weights = b.push(softmax.with_attribute("axis", -1_i64));
        let context = b.node("MatMul", &named("context/MatMul"), &[&weights, &value]);
        let transpose = Node::new("Transpose", &named("Transpose"), &[&context], &[]);
        let context = b.push(transpose.with_attribute("perm", vec![0, 2, 1, 3]));
        let joined = b.integers("attention.joined_shape", &[0, 0, hidden as i64]);
        let context = b.node("Reshape", &named("Reshape"), &[&context, &joined]);

        let path = format!("{layer}.{}", names.attention_output);
        let output = b.linear(&path, &context, [hidden, hidden])?;
        let sum = b.node("Add", &named("residual/Add"), &[&output, x]);
        self.layer_norm(&format!("{layer}.{}", names.attention_norm), &sum)
    }

    /// A linear layer, its output split into heads and transposed.
    fn heads(&mut self, path: &str, x: &str, perm: &[i64]) -> Result<String, ImportError> {
        let config = self.config;
        let b = &mut self.builder;
        let y = b.linear(path, x, [config.hidden_size; 2])?;
        // Zeros copy batch and sequence: the shape is a constant although they are not.
        let split = [0, 0, config.num_attention_heads as i64, config.head_size() as i64];
        let shape = b.integers("attention.split_shape", &split);
        let place = scope(path);
        let split = b.node("Reshape", &format!("{place}/Reshape"), &[&y, &shape]);
        let transpose = Node::new("Transpose", &format!("{place}/Transpose"), &[&split], &[]);
        Ok(b.push(transpose.with_attribute("perm", perm.to_vec())))
    }

    /// W₂·act(W₁·x), and the residual normalized.
    fn feed_forward(&mut self, layer: &str, x: &str) -> Result<String, ImportError> {
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let wide = format!("{layer}.intermediate.dense");
        let y = self.builder.linear(&wide, x, [inner, hidden])?;
        let y = self.activation(&format!("{}/intermediate", scope(layer)), &y)?;
        let y = self.builder.linear(&format!("{layer}.output.dense"), &y, [hidden, inner])?;
        let name = format!("{}/output/residual/Add", scope(layer));
        let sum = self.builder.node("Add", &name, &[&y, x]);
        self.layer_norm(&format!("{layer}.output.LayerNorm"), &sum)
    }

    fn activation(&mut self, place: &str, x: &str) -> Result<String, ImportError> {
        match self.config.hidden_act.as_str() {
            "gelu" => Ok(gelu(&mut self.builder, place, x)),
            "relu" => Ok(self.builder.node("Relu", &format!("{place}/Relu"), &[x])),
            found => Err(self.config.unsupported("hidden_act", found, "gelu, relu")),
        }
    }

    /// The length of the batch's texts as a vector of one element.
    pub(crate) fn length(&mut self) -> String {
        let shape = Node::new("Shape", "/embeddings/Shape", &["input_ids"], &[]);
        self.builder.push(shape.with_attribute("start", 1_i64).with_attribute("end", 2_i64))
    }

    /// The first rows of `table`, as many as texts are long.
    pub(crate) fn rows_for_length(&mut self, name: &str, table: &str, length: &str) -> String {
        let start = self.builder.integers("axis.0", &[0]);
        self.builder.node("Slice", name, &[table, &start, length, &start])
    }
}

/// x·½·(1 + erf(x/√2)): one operator from opset 20 on, and before that the five in the order that
/// runtimes recognize.
fn gelu(b: &mut Builder, place: &str, x: &str) -> String {
    let named = |op_type: &str| format!("{place}/{op_type}");
    if b.opset >= 20 {
        return b.node("Gelu", &named("Gelu"), &[x]);
    }
    let root = b.scalar("gelu.root", std::f32::consts::SQRT_2);
    let (one, half) = (b.scalar("gelu.one", 1.0), b.scalar("gelu.half", 0.5));
    let scaled = b.node("Div", &named("Div"), &[x, &root]);
    let erf = b.node("Erf", &named("Erf"), &[&scaled]);
    let sum = b.node("Add", &named("Add"), &[&erf, &one]);
    let product = b.node("Mul", &named("Mul"), &[x, &sum]);
    b.node("Mul", &named("half/Mul"), &[&product, &half])
}
