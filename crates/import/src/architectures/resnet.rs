//! Residual networks (He et al., 2015, arXiv:1512.03385): of 6n + 2 layers for small images, and of
//! 18 for large ones.

use super::options::Options;
use super::{Architecture, ModelInput, image, image_rule, logits, option};
use crate::ImportError;
use crate::build::Builder;
use crate::image::convolution::{Channels, Convolution, Kind};
use crate::weights::drawing::Initial;

pub(super) const RESNET: Architecture = Architecture {
    name: "resnet",
    summary: "Residual network of 6n + 2 layers (20, 32, 44 …) for small images, or of 18",
    options: &[
        option("depth", "20", "Layers: 18, or 6n + 2 from 8 on"),
        option("width", "1", "Multiplier of all channels"),
        option("channels", "3", "Channels of the images"),
        option("size", "32", "Height and width of the images"),
        option("classes", "10", "Scores that come out"),
        option("mean", "0.5", "Subtracted from pixels of 0 to 1, for all channels or each"),
        option("std", "0.5", "What they are divided by then"),
    ],
    rule,
    build,
};

/// The last normalization of a block begins at zero, so that every block begins as its shortcut
/// (Goyal et al., 2017, arXiv:1706.02677).
fn rule(name: &str, shape: &[usize]) -> Initial {
    if name.ends_with("norm2.weight") { Initial::Zeros } else { image_rule(name, shape) }
}

/// Channels, count of blocks and first stride of each stage, and how an image comes in.
struct Plan {
    stages: Vec<(usize, usize, i64)>,
    /// Size of the first filters; large ones halve the image, and maxima halve it again.
    stem: usize,
}

fn plan(options: &Options) -> Result<Plan, ImportError> {
    let depth = options.count("depth")?;
    if depth == 18 {
        let stages = vec![(64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2)];
        // Small images would be gone before the last stage.
        let stem = if options.count("size")? > 64 { 7 } else { 3 };
        return Ok(Plan { stages, stem });
    }
    let blocks = depth.saturating_sub(2) / 6;
    if blocks == 0 || blocks * 6 + 2 != depth {
        return Err(options.wrong(
            "depth",
            &depth.to_string(),
            "18, or 6n + 2: 8, 14, 20, 26, 32 …",
        ));
    }
    Ok(Plan { stages: vec![(16, blocks, 1), (32, blocks, 2), (64, blocks, 2)], stem: 3 })
}

fn build(b: &mut Builder, options: &Options) -> Result<ModelInput, ImportError> {
    let (pixels, input) = image(b, options)?;
    let width = options.number("width", [0.05, 16.0])?;
    let plan = plan(options)?;
    let scaled = |count: usize| ((count as f64 * width).round() as usize).max(1);
    let stride = if plan.stem > 3 { 2 } else { 1 };
    let stem = [scaled(plan.stages[0].0), plan.stem];
    let mut x = normalized(b, "stem", "", &pixels, stem, stride)?.rectified(b, "stem");
    if plan.stem > 3 {
        x.value = b.max_pool("/stem/MaxPool", &x.value, [3, 2, 1]);
    }
    for (stage, &(out, block_count, first_stride)) in plan.stages.iter().enumerate() {
        for index in 0..block_count {
            let stride = if index == 0 { first_stride } else { 1 };
            x = block(b, &format!("layers.{stage}.{index}"), &x, scaled(out), stride)?;
        }
    }
    let class_count = options.count("classes")?;
    b.weights.declare("classifier.weight", &[class_count, x.count]);
    let (scores, _) = x.classified(b, "classifier", 0.0)?;
    logits(b, &scores, class_count);
    Ok(input)
}

/// relu(x + norm(conv(relu(norm(conv(x)))))), x being filtered where its shape changes.
fn block(
    b: &mut Builder,
    path: &str,
    x: &Channels,
    out: usize,
    stride: i64,
) -> Result<Channels, ImportError> {
    let inner = format!("{path}.inner");
    let y = normalized(b, path, "1", x, [out, 3], stride)?.rectified(b, &inner);
    let y = normalized(b, path, "2", &y, [out, 3], 1)?;
    let shortcut = if stride != 1 || x.count != out {
        normalized(b, &format!("{path}.shortcut"), "", x, [out, 1], stride)?.value
    } else {
        x.value.clone()
    };
    let name = format!("{}/Add", crate::build::scope(path));
    let sum = b.node("Add", &name, &[&y.value, &shortcut]);
    Ok(Channels { value: sum, count: out }.rectified(b, path))
}

/// A convolution at `path` with its normalization, each with the suffix.
fn normalized(
    b: &mut Builder,
    path: &str,
    suffix: &str,
    x: &Channels,
    [out, size]: [usize; 2],
    stride: i64,
) -> Result<Channels, ImportError> {
    let (module, norm) = (format!("{path}.conv{suffix}"), format!("{path}.norm{suffix}"));
    b.weights.declare(&format!("{module}.weight"), &[out, x.count, size, size]);
    Convolution { module: &module, norm: &norm, size, stride }.build(b, x, Kind::Dense)
}
