//! The layers that BERT's family and vision transformers share: attention, feed-forward,
//! normalization before or after each.

mod activation;

use std::path::PathBuf;

use attar_graph::Node;
use serde::Deserialize;

use self::activation::ACTIVATIONS;
pub(crate) use self::activation::activation;
use crate::ImportError;
use crate::build::{Builder, scope};
use crate::config::unsupported;

/// What of config.json decides the layers.
#[derive(Deserialize)]
pub(crate) struct LayerConfig {
    #[serde(skip)]
    pub(crate) file: PathBuf,
    /// What training leaves out of each part's output; imported networks are past theirs.
    #[serde(skip)]
    pub(crate) dropout: f64,
    pub(crate) hidden_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) intermediate_size: usize,
    #[serde(default = "gelu")]
    pub(crate) hidden_act: String,
    #[serde(default = "epsilon")]
    pub(crate) layer_norm_eps: f32,
    #[serde(default = "yes")]
    qkv_bias: bool,
    #[serde(default)]
    is_decoder: bool,
}

// What every architecture here has where config.json is silent.

fn gelu() -> String {
    "gelu".into()
}

fn epsilon() -> f32 {
    1e-12
}

fn yes() -> bool {
    true
}

impl LayerConfig {
    /// Refuses what no layer here does.
    pub(crate) fn check(&self) -> Result<(), ImportError> {
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if heads == 0 || hidden == 0 || hidden % heads != 0 {
            let found = format!("{hidden} in {heads} heads");
            return Err(self.unsupported("hidden_size", &found, "a multiple of the heads"));
        }
        if self.is_decoder {
            return Err(self.unsupported("is_decoder", "true", "false: encoders"));
        }
        Ok(())
    }

    pub(crate) fn unsupported(&self, what: &str, found: &str, supported: &str) -> ImportError {
        unsupported(&self.file, what, found, supported)
    }

    fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// The activation that `key` of config.json calls `name`.
    pub(crate) fn activation(
        &self,
        b: &mut Builder,
        [key, name]: [&str; 2],
        place: &str,
        x: &str,
    ) -> Result<String, ImportError> {
        activation(b, name, place, x).ok_or_else(|| self.unsupported(key, name, ACTIVATIONS))
    }
}

/// Where an architecture keeps the parts of its layers.
pub(crate) struct LayerNames {
    /// What stands before a layer's number; the other names come after it.
    pub(crate) layers: &'static str,
    pub(crate) query: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: &'static str,
    pub(crate) attention_output: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) wide: &'static str,
    pub(crate) narrow: &'static str,
    pub(crate) output_norm: &'static str,
    /// Whether attention and feed-forward are normalized before they read x, and not their sums
    /// with x after it.
    pub(crate) is_norm_first: bool,
}

impl LayerNames {
    pub(crate) const BERT: Self = Self {
        layers: "encoder.layer",
        query: "attention.self.query",
        key: "attention.self.key",
        value: "attention.self.value",
        attention_output: "attention.output.dense",
        attention_norm: "attention.output.LayerNorm",
        wide: "intermediate.dense",
        narrow: "output.dense",
        output_norm: "output.LayerNorm",
        is_norm_first: false,
    };
}

/// All layers of a transformer.
pub(crate) struct Layers<'a> {
    pub(crate) config: &'a LayerConfig,
    pub(crate) names: &'a LayerNames,
    /// Added to the attention scores of each layer.
    pub(crate) score_bias: Option<&'a str>,
}

impl Layers<'_> {
    /// The last layer's vectors for `x` [batch, sequence, hidden].
    pub(crate) fn build(&self, b: &mut Builder, mut x: String) -> Result<String, ImportError> {
        for index in 0..self.config.num_hidden_layers {
            let layer = format!("{}.{index}", self.names.layers);
            x = self.residual(b, &layer, self.names.attention_norm, &x, Self::attention)?;
            x = self.residual(b, &layer, self.names.output_norm, &x, Self::feed_forward)?;
        }
        Ok(x)
    }

    /// norm(x + part(x)), or x + part(norm(x)).
    fn residual(
        &self,
        b: &mut Builder,
        layer: &str,
        norm: &str,
        x: &str,
        part: fn(&Self, &mut Builder, &str, &str) -> Result<(String, String), ImportError>,
    ) -> Result<String, ImportError> {
        let norm = format!("{layer}.{norm}");
        let (size, epsilon) = (self.config.hidden_size, self.config.layer_norm_eps);
        if self.names.is_norm_first {
            let normalized = b.layer_norm(&norm, x, size, epsilon)?;
            let (y, place) = part(self, b, layer, &normalized)?;
            let y = b.dropout(&format!("{place}/Dropout"), &y, self.config.dropout);
            return Ok(b.node("Add", &format!("{place}/residual/Add"), &[&y, x]));
        }
        let (y, place) = part(self, b, layer, x)?;
        let y = b.dropout(&format!("{place}/Dropout"), &y, self.config.dropout);
        let sum = b.node("Add", &format!("{place}/residual/Add"), &[&y, x]);
        b.layer_norm(&norm, &sum, size, epsilon)
    }

    /// softmax(q·kᵀ/√d + bias)·v in each head, and the output layer; with the scope of it all.
    fn attention(
        &self,
        b: &mut Builder,
        layer: &str,
        x: &str,
    ) -> Result<(String, String), ImportError> {
        let (config, names) = (self.config, self.names);
        let query = self.heads(b, &format!("{layer}.{}", names.query), x, &[0, 2, 1, 3])?;
        // Keys come transposed, so that the scores are one product.
        let key = self.heads(b, &format!("{layer}.{}", names.key), x, &[0, 2, 3, 1])?;
        let value = self.heads(b, &format!("{layer}.{}", names.value), x, &[0, 2, 1, 3])?;

        let hidden = config.hidden_size;
        let place = format!("{}/attention", scope(layer));
        let named = |op_type: &str| format!("{place}/{op_type}");
        let root = b.scalar("attention.scale", (config.head_size() as f32).sqrt());
        let scores = b.node("MatMul", &named("scores/MatMul"), &[&query, &key]);
        let mut scores = b.node("Div", &named("Div"), &[&scores, &root]);
        if let Some(bias) = self.score_bias {
            scores = b.node("Add", &named("Add"), &[&scores, bias]);
        }
        let softmax = Node::new("Softmax", &named("Softmax"), &[&scores], &[]);
        let weights = b.push(softmax.with_attribute("axis", -1_i64));
        let context = b.node("MatMul", &named("context/MatMul"), &[&weights, &value]);
        let transpose = Node::new("Transpose", &named("Transpose"), &[&context], &[]);
        let context = b.push(transpose.with_attribute("perm", vec![0, 2, 1, 3]));
        let joined = b.integers("attention.joined_shape", &[0, 0, hidden as i64]);
        let context = b.node("Reshape", &named("Reshape"), &[&context, &joined]);
        let path = format!("{layer}.{}", names.attention_output);
        Ok((b.linear(&path, &context, [hidden, hidden])?, place))
    }

    /// A linear layer, its output split into heads and transposed.
    fn heads(
        &self,
        b: &mut Builder,
        path: &str,
        x: &str,
        perm: &[i64],
    ) -> Result<String, ImportError> {
        let config = self.config;
        let size = [config.hidden_size; 2];
        let y = if config.qkv_bias { b.linear(path, x, size)? } else { b.product(path, x, size)? };
        // Zeros copy batch and sequence: the shape is a constant although they are not.
        let split = [0, 0, config.num_attention_heads as i64, config.head_size() as i64];
        let shape = b.integers("attention.split_shape", &split);
        let place = scope(path);
        let split = b.node("Reshape", &format!("{place}/Reshape"), &[&y, &shape]);
        let transpose = Node::new("Transpose", &format!("{place}/Transpose"), &[&split], &[]);
        Ok(b.push(transpose.with_attribute("perm", perm.to_vec())))
    }

    /// W₂·act(W₁·x), with the scope of its output.
    fn feed_forward(
        &self,
        b: &mut Builder,
        layer: &str,
        x: &str,
    ) -> Result<(String, String), ImportError> {
        let config = self.config;
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let y = b.linear(&format!("{layer}.{}", self.names.wide), x, [inner, hidden])?;
        let place = format!("{}/intermediate", scope(layer));
        let y = config.activation(b, ["hidden_act", &config.hidden_act], &place, &y)?;
        let y = b.linear(&format!("{layer}.{}", self.names.narrow), &y, [hidden, inner])?;
        Ok((y, format!("{}/output", scope(layer))))
    }
}
