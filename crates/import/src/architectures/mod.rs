//! Networks with first values, to be trained from nothing or as students.

mod bert;
mod cnn;
mod lenet;
mod mlp;
mod mobilenet_v2;
mod options;
mod recurrent;
mod resnet;
#[cfg(test)]
mod tests;
mod text;
mod text_cnn;
mod two_tower;

use attar_graph::{Dim, Model};
use attar_tensor::DType;

use self::options::Options;
use crate::ImportError;
use crate::build::{Builder, check_opset};
use crate::image::convolution::Channels;
use crate::weights::Weights;
use crate::weights::drawing::{Drawing, Initial};

/// A kind of network that can be made.
pub struct Architecture {
    pub name: &'static str,
    /// One line: what it is, and whose.
    pub summary: &'static str,
    pub options: &'static [ArchitectureOption],
    rule: fn(&str, &[usize]) -> Initial,
    build: fn(&mut Builder, &Options) -> Result<ModelInput, ImportError>,
}

/// What can be said of a network.
pub struct ArchitectureOption {
    pub key: &'static str,
    pub default: &'static str,
    pub help: &'static str,
}

/// Every kind of network that can be made.
pub const ARCHITECTURES: [&Architecture; 10] = [
    &bert::BERT,
    &cnn::CNN,
    &recurrent::GRU,
    &lenet::LENET,
    &recurrent::LSTM,
    &mlp::MLP,
    &mobilenet_v2::MOBILENET_V2,
    &resnet::RESNET,
    &text_cnn::TEXT_CNN,
    &two_tower::TWO_TOWER,
];

/// A network with first values, and what it is fed.
#[derive(Debug)]
pub struct NewModel {
    pub model: Model,
    pub input: ModelInput,
}

/// What a new network reads.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelInput {
    /// `x` [batch, features].
    Features,
    /// `image` [batch, channels, size, size] of (value/255 − mean) / std.
    Image { size: usize, mean: Vec<f32>, std: Vec<f32> },
    /// `input_ids` and `attention_mask`, and what else its graph says, [batch, sequence].
    Text { length_max: usize },
}

/// Options that every architecture has.
pub const COMMON_OPTIONS: [ArchitectureOption; 2] = [
    option("seed", "0", "Seed of the first values"),
    option("opset", "17", "Operator set of ONNX, 17 to 21"),
];

const fn option(
    key: &'static str,
    default: &'static str,
    help: &'static str,
) -> ArchitectureOption {
    ArchitectureOption { key, default, help }
}

/// Makes the network called `architecture`. `given` are options by name; the others have their
/// defaults. The same options give the same bytes.
///
/// # Errors
/// A name that is not in the tables, or a value that makes no network.
pub fn new_model(architecture: &str, given: &[(String, String)]) -> Result<NewModel, ImportError> {
    let architecture = find(architecture)?;
    let options = Options::new(architecture, given)?;
    let opset = options.count("opset")? as i64;
    check_opset(opset)?;
    let weights = Weights::drawn(Drawing::new(options.seed()?, architecture.rule));
    let mut builder = Builder::new(architecture.name, weights, opset);
    let input = (architecture.build)(&mut builder, &options)?;
    Ok(NewModel { model: builder.finish().0, input })
}

fn find(name: &str) -> Result<&'static Architecture, ImportError> {
    ARCHITECTURES.into_iter().find(|known| known.name == name).ok_or_else(|| {
        ImportError::NoArchitecture {
            found: name.into(),
            known: ARCHITECTURES.map(|known| known.name).join(", "),
        }
    })
}

/// Makes `value` the only output, [batch, classes].
fn logits(b: &mut Builder, value: &str, class_count: usize) {
    b.output(value, "logits", &[Dim::symbol("batch"), class_count.into()]);
}

/// Declares the image that `options` describe.
fn image(b: &mut Builder, options: &Options) -> Result<(Channels, ModelInput), ImportError> {
    let (channels, size) = (options.count("channels")?, options.count("size")?);
    b.input(
        "image",
        DType::F32,
        &[Dim::symbol("batch"), channels.into(), size.into(), size.into()],
    );
    let (mean, std) =
        (options.per_channel("mean", channels)?, options.per_channel("std", channels)?);
    if let Some(zero) = std.iter().find(|&&std| std <= 0.0) {
        return Err(options.wrong("std", &zero.to_string(), "above 0"));
    }
    Ok((Channels { value: "image".into(), count: channels }, ModelInput::Image { size, mean, std }))
}

/// Convolutions before a `Relu` as He et al. say, whatever the shape; normalizations as if they
/// were not there; the last layer as Glorot and Bengio say, since no `Relu` follows.
fn image_rule(name: &str, shape: &[usize]) -> Initial {
    let (module, part) = name.rsplit_once('.').unwrap_or(("", name));
    match (part, shape.len()) {
        ("running_var", _) | ("weight", 1) => Initial::Ones,
        ("weight", 2) if module.starts_with("classifier") => Initial::Glorot,
        ("weight", _) => Initial::Kaiming,
        _ => Initial::Zeros,
    }
}
