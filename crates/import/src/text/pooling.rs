//! From the vectors of tokens to one of the text, as sentence-transformers does it.

use std::path::Path;

use attar_graph::Node;
use serde_json::{Map, Value};

use crate::ImportError;
use crate::build::Builder;
use crate::config::read_json;

/// How a text's vector comes from those of its tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pooling {
    /// Several are put one after the other.
    pub(crate) modes: Vec<Mode>,
    /// Whether the vector is scaled to length 1.
    pub(crate) is_normalized: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    /// The vector of the first token.
    Cls,
    Max,
    Mean,
    /// The sum divided by the root of the count of tokens.
    MeanSqrtLength,
}

/// The flags of a pooling config, in the order in which their vectors are put together.
const MODES: [(&str, Mode); 4] = [
    ("pooling_mode_cls_token", Mode::Cls),
    ("pooling_mode_max_tokens", Mode::Max),
    ("pooling_mode_mean_tokens", Mode::Mean),
    ("pooling_mode_mean_sqrt_len_tokens", Mode::MeanSqrtLength),
];

impl Pooling {
    pub(crate) fn read(file: &Path, is_normalized: bool) -> Result<Self, ImportError> {
        let config: Map<String, Value> = read_json(file)?;
        let is_set = |name: &str| config.get(name) == Some(&Value::Bool(true));
        let modes: Vec<Mode> =
            MODES.iter().filter(|(flag, _)| is_set(flag)).map(|&(_, mode)| mode).collect();
        let unknown = config
            .iter()
            .filter(|(key, value)| key.starts_with("pooling_mode") && **value != Value::Bool(false))
            .find(|(key, _)| !MODES.iter().any(|(flag, _)| flag == key));
        let found = match unknown {
            Some((key, value)) => format!("`{key}` = {value}"),
            None if modes.is_empty() => "none".into(),
            None => return Ok(Self { modes, is_normalized }),
        };
        Err(ImportError::Unsupported {
            file: file.into(),
            what: "the pooling".into(),
            found,
            supported: MODES.map(|(flag, _)| flag).join(", "),
        })
    }

    /// Adds the pooling of `tokens` [batch, sequence, hidden] under `mask` [batch, sequence]; gives
    /// the vector and its size.
    pub(crate) fn build(
        &self,
        builder: &mut Builder,
        tokens: &str,
        mask: &str,
        hidden_size: usize,
    ) -> (String, usize) {
        let vectors: Vec<String> =
            self.modes.iter().map(|mode| mode.build(builder, tokens, mask)).collect();
        let vector = match vectors.as_slice() {
            [only] => only.clone(),
            several => {
                let inputs: Vec<&str> = several.iter().map(String::as_str).collect();
                let concat = Node::new("Concat", "/pooling/Concat", &inputs, &[]);
                builder.push(concat.with_attribute("axis", 1_i64))
            }
        };
        let vector = if self.is_normalized { normalize(builder, &vector) } else { vector };
        (vector, hidden_size * vectors.len())
    }
}

impl Mode {
    fn build(self, builder: &mut Builder, tokens: &str, mask: &str) -> String {
        match self {
            Self::Cls => builder.token("/pooling/cls/Gather", tokens, 0),
            Self::Max => max(builder, tokens, mask),
            Self::Mean => mean(builder, tokens, mask, false),
            Self::MeanSqrtLength => mean(builder, tokens, mask, true),
        }
    }
}

/// max over tokens, where padding counts as −10⁹.
fn max(builder: &mut Builder, tokens: &str, mask: &str) -> String {
    let mask = mask_of_tokens(builder, "/pooling/max", mask);
    let zero = builder.scalar("pooling.zero", 0.0);
    let low = builder.scalar("pooling.low", -1e9);
    let is_padding = builder.node("Equal", "/pooling/max/Equal", &[&mask, &zero]);
    let masked = builder.node("Where", "/pooling/max/Where", &[&is_padding, &low, tokens]);
    builder.reduce("ReduceMax", "/pooling/max/ReduceMax", &masked, 1, false)
}

/// Σ h·mask / max(Σ mask, 10⁻⁹), or divided by the root of that.
fn mean(builder: &mut Builder, tokens: &str, mask: &str, by_root: bool) -> String {
    let scope = if by_root { "/pooling/mean_sqrt_length" } else { "/pooling/mean" };
    // As a product of matrices, of two equal rows of which the first is kept: ONNX Runtime sums
    // over an axis in another order for one text than for several, and a product of one row in
    // another order with padding than without. So a vector never depends on its batch.
    let axis = builder.integers("axis.1", &[1]);
    let row = builder.node("Unsqueeze", &format!("{scope}/Unsqueeze"), &[mask, &axis]);
    let rows = Node::new("Concat", &format!("{scope}/Concat"), &[&row, &row], &[]);
    let rows = builder.push(rows.with_attribute("axis", 1_i64));
    let sums = builder.node("MatMul", &format!("{scope}/MatMul"), &[&rows, tokens]);
    let sum = builder.token(&format!("{scope}/Gather"), &sums, 0);
    let count = builder.reduce("ReduceSum", &format!("{scope}/count/ReduceSum"), mask, 1, true);
    let least = builder.scalar("pooling.count_min", 1e-9);
    let mut divisor = builder.node("Max", &format!("{scope}/count/Max"), &[&count, &least]);
    if by_root {
        divisor = builder.node("Sqrt", &format!("{scope}/count/Sqrt"), &[&divisor]);
    }
    builder.node("Div", &format!("{scope}/Div"), &[&sum, &divisor])
}

fn mask_of_tokens(builder: &mut Builder, scope: &str, mask: &str) -> String {
    let axis = builder.integers("axis.2", &[2]);
    builder.node("Unsqueeze", &format!("{scope}/Unsqueeze"), &[mask, &axis])
}

/// x / max(‖x‖₂, 10⁻¹²)
pub(crate) fn normalize(builder: &mut Builder, x: &str) -> String {
    let length = builder.reduce("ReduceL2", "/normalize/ReduceL2", x, 1, true);
    let least = builder.scalar("normalize.length_min", 1e-12);
    let length = builder.node("Max", "/normalize/Max", &[&length, &least]);
    builder.node("Div", "/normalize/Div", &[x, &length])
}
