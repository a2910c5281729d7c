//! `ViT` (Dosovitskiy et al., 2020, arXiv:2010.11929) and `DeiT` (Touvron et al., 2020,
//! arXiv:2012.12877), which has one token more: patches as tokens, normalized before each part.

use attar_graph::{Dim, Node};
use attar_tensor::DType;
use serde::Deserialize;

use crate::ImportError;
use crate::build::Builder;
use crate::config::ConfigFile;
use crate::transformer::{LayerConfig, LayerNames, Layers};

use super::ImageFolderArchitecture;

pub(super) const VIT: ImageFolderArchitecture = ImageFolderArchitecture {
    model_type: "vit",
    prefix: "vit.",
    classes: &["ViTModel", "ViTForMaskedImageModeling"],
    heads: &[("ViTForImageClassification", &["classifier"])],
    tokens: &["cls_token"],
};

pub(super) const DEIT: ImageFolderArchitecture = ImageFolderArchitecture {
    model_type: "deit",
    prefix: "deit.",
    classes: &["DeiTModel", "DeiTForMaskedImageModeling"],
    heads: &[
        ("DeiTForImageClassification", &["classifier"]),
        ("DeiTForImageClassificationWithTeacher", &["cls_classifier", "distillation_classifier"]),
    ],
    tokens: &["cls_token", "distillation_token"],
};

const LAYER: LayerNames = LayerNames {
    query: "attention.attention.query",
    key: "attention.attention.key",
    value: "attention.attention.value",
    attention_norm: "layernorm_before",
    output_norm: "layernorm_after",
    is_norm_first: true,
    ..LayerNames::BERT
};

const IMAGE: &str = "pixel_values";

#[derive(Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    layers: LayerConfig,
    image_size: Sides,
    patch_size: Sides,
    #[serde(default = "three")]
    pub(super) num_channels: usize,
    #[serde(default = "tanh")]
    pooler_act: String,
    pooler_output_size: Option<usize>,
}

fn three() -> usize {
    3
}

fn tanh() -> String {
    "tanh".into()
}

/// One number for a square, or height and width.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Sides {
    Square(usize),
    Each([usize; 2]),
}

impl Sides {
    fn each(self) -> [usize; 2] {
        match self {
            Self::Square(side) => [side; 2],
            Self::Each(sides) => sides,
        }
    }
}

impl Config {
    pub(super) fn new(file: &ConfigFile) -> Result<Self, ImportError> {
        let mut config: Self = file.parse(&[])?;
        config.layers.file.clone_from(&file.file);
        config.layers.check()?;
        if !matches!(config.num_channels, 1 | 3) {
            let found = config.num_channels.to_string();
            return Err(config.layers.unsupported("num_channels", &found, "1, 3"));
        }
        config.patch_count()?;
        Ok(config)
    }

    pub(super) fn image_size(&self) -> [usize; 2] {
        self.image_size.each()
    }

    pub(super) fn hidden_size(&self) -> usize {
        self.layers.hidden_size
    }

    /// Whole patches in an image.
    pub(super) fn patch_count(&self) -> Result<usize, ImportError> {
        let (image, patch) = (self.image_size.each(), self.patch_size.each());
        let count = |axis: usize| image[axis].checked_div(patch[axis]).filter(|&count| count > 0);
        let all = count(0).zip(count(1)).and_then(|(y, x)| y.checked_mul(x));
        all.filter(|&all| i32::try_from(all).is_ok()).ok_or_else(|| {
            let found = format!("{patch:?} in images of {image:?}");
            self.layers.unsupported("patch_size", &found, "at least one patch in an image")
        })
    }
}

/// The normalized vectors of all tokens, [batch, tokens + patches, hidden].
pub(super) fn tokens(
    b: &mut Builder,
    architecture: &ImageFolderArchitecture,
    config: &Config,
) -> Result<String, ImportError> {
    let [height, width] = config.image_size();
    let dims = [Dim::symbol("batch"), config.num_channels.into(), height.into(), width.into()];
    b.input(IMAGE, DType::F32, &dims);
    let x = embeddings(b, architecture, config)?;
    let layers = Layers { config: &config.layers, names: &LAYER, score_bias: None };
    let x = layers.build(b, x)?;
    b.layer_norm("layernorm", &x, config.hidden_size(), config.layers.layer_norm_eps)
}

/// Own tokens and patches in one row, and their positions added.
fn embeddings(
    b: &mut Builder,
    architecture: &ImageFolderArchitecture,
    config: &Config,
) -> Result<String, ImportError> {
    let hidden = config.hidden_size();
    let patch_count = config.patch_count()?;
    let patches = patches(b, config, patch_count)?;
    let shape = Node::new("Shape", "/embeddings/Shape", &[IMAGE], &[]);
    let batch = b.push(shape.with_attribute("start", 0_i64).with_attribute("end", 1_i64));
    let one_token = b.integers("embeddings.token_shape", &[1, hidden as i64]);
    let concat = Node::new("Concat", "/embeddings/shape/Concat", &[&batch, &one_token], &[]);
    let shape = b.push(concat.with_attribute("axis", 0_i64));
    let mut row = Vec::new();
    for token in architecture.tokens {
        let token_weight = b.weight(&format!("embeddings.{token}"), &[1, 1, hidden])?;
        row.push(b.node(
            "Expand",
            &format!("/embeddings/{token}/Expand"),
            &[&token_weight, &shape],
        ));
    }
    row.push(patches);
    let row: Vec<&str> = row.iter().map(String::as_str).collect();
    let concat = Node::new("Concat", "/embeddings/Concat", &row, &[]);
    let row = b.push(concat.with_attribute("axis", 1_i64));
    let token_count = patch_count + architecture.tokens.len();
    let positions = b.weight("embeddings.position_embeddings", &[1, token_count, hidden])?;
    Ok(b.node("Add", "/embeddings/positions/Add", &[&row, &positions]))
}

/// A linear layer on each patch, as a convolution that never reads a pixel twice.
fn patches(b: &mut Builder, config: &Config, count: usize) -> Result<String, ImportError> {
    let (hidden, [height, width]) = (config.hidden_size(), config.patch_size.each());
    let path = "embeddings.patch_embeddings.projection";
    let shape = [hidden, config.num_channels, height, width];
    let weight = b.weight(&format!("{path}.weight"), &shape)?;
    let bias = b.weight(&format!("{path}.bias"), &[hidden])?;
    let place = "/embeddings/patch_embeddings";
    let sides = vec![height as i64, width as i64];
    let conv = Node::new("Conv", &format!("{place}/Conv"), &[IMAGE, &weight, &bias], &[])
        .with_attribute("kernel_shape", sides.clone())
        .with_attribute("strides", sides);
    let grid = b.push(conv);
    let shape = b.integers("embeddings.patches_shape", &[0, hidden as i64, count as i64]);
    let flat = b.node("Reshape", &format!("{place}/Reshape"), &[&grid, &shape]);
    let transpose = Node::new("Transpose", &format!("{place}/Transpose"), &[&flat], &[]);
    Ok(b.push(transpose.with_attribute("perm", vec![0, 2, 1])))
}

/// The scores of `heads`, each of which reads its own token, or their mean where there are several;
/// and their count.
pub(super) fn logits(
    b: &mut Builder,
    config: &Config,
    heads: &[&str],
    tokens: &str,
) -> Result<(String, usize), ImportError> {
    b.weights.leave_prefix();
    let [count, _] = b.weights.shape::<2>(&format!("{}.weight", heads[0]))?;
    let mut sum: Option<String> = None;
    for (index, head) in heads.iter().enumerate() {
        let token = b.token(&format!("/{head}/Gather"), tokens, index as i64);
        let scores = b.linear(head, &token, [count, config.hidden_size()])?;
        sum = Some(match sum {
            None => scores,
            Some(before) => b.node("Add", &format!("/{head}/sum/Add"), &[&before, &scores]),
        });
    }
    let sum = sum.expect("a head has at least one layer");
    if heads.len() == 1 {
        return Ok((sum, count));
    }
    let divisor = b.scalar("heads.count", heads.len() as f32);
    Ok((b.node("Div", "/heads/Div", &[&sum, &divisor]), count))
}

/// The vector of the first token and its size, through the pooler if there is one: the second value
/// of the pair says whether.
pub(super) fn vector(
    b: &mut Builder,
    config: &Config,
    tokens: &str,
) -> Result<(String, usize, bool), ImportError> {
    let first = b.token("/pooler/Gather", tokens, 0);
    let hidden = config.hidden_size();
    if !b.weights.has("pooler.dense.weight") {
        return Ok((first, hidden, false));
    }
    let size = config.pooler_output_size.unwrap_or(hidden);
    let y = b.linear("pooler.dense", &first, [size, hidden])?;
    let y = config.layers.activation(b, ["pooler_act", &config.pooler_act], "/pooler", &y)?;
    Ok((y, size, true))
}
