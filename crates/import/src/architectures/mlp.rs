//! Linear layers with a function between them.

use attar_graph::Dim;
use attar_tensor::DType;

use super::options::Options;
use super::{Architecture, ModelInput, image, logits, option};
use crate::ImportError;
use crate::build::{Builder, scope};
use crate::transformer::activation;
use crate::weights::drawing::Initial;

pub(super) const MLP: Architecture = Architecture {
    name: "mlp",
    summary: "Linear layers with a function between them, over features or a flattened image",
    options: &[
        option("features", "0", "Size of the input vectors; 0 for images"),
        option("channels", "1", "Channels of the images"),
        option("size", "28", "Height and width of the images"),
        option("hidden", "256,128", "Sizes of the hidden layers"),
        option("activation", "relu", "relu, gelu, silu or tanh"),
        option("classes", "10", "Scores that come out"),
        option("mean", "0.5", "Subtracted from pixels of 0 to 1, for all channels or each"),
        option("std", "0.5", "What they are divided by then"),
    ],
    rule,
    build,
};

fn rule(name: &str, shape: &[usize]) -> Initial {
    match shape {
        [_, _] if name.starts_with("classifier") => Initial::Glorot,
        [_, _] => Initial::Kaiming,
        _ => Initial::Zeros,
    }
}

fn build(b: &mut Builder, options: &Options) -> Result<ModelInput, ImportError> {
    let (mut x, mut count, input) = if options.text("features") == "0" {
        let (pixels, input) = image(b, options)?;
        let side = options.count("size")?;
        let flat = b.node("Flatten", "/Flatten", &[&pixels.value]);
        (flat, pixels.count * side * side, input)
    } else {
        let count = options.count("features")?;
        b.input("x", DType::F32, &[Dim::symbol("batch"), count.into()]);
        ("x".to_string(), count, ModelInput::Features)
    };
    let act = options.choice("activation", &["relu", "gelu", "silu", "tanh"])?;
    for (index, size) in options.counts("hidden")?.into_iter().enumerate() {
        let path = format!("hidden.{index}");
        let y = b.gemm(&path, &x, [size, count])?;
        x = activation(b, act, &scope(&path), &y).expect("the choices are known");
        count = size;
    }
    let class_count = options.count("classes")?;
    let y = b.gemm("classifier", &x, [class_count, count])?;
    logits(b, &y, class_count);
    Ok(input)
}
