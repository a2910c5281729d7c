//! `LeNet-5` (`LeCun` et al., 1998), with `Relu` and the maxima of windows where it had sigmoids and
//! scaled sums.

use attar_graph::Node;

use super::options::Options;
use super::{Architecture, ModelInput, image, image_rule, logits, option};
use crate::ImportError;
use crate::build::{Builder, scope};

pub(super) const LENET: Architecture = Architecture {
    name: "lenet",
    summary: "LeNet-5 for small images: two convolutions and three linear layers",
    options: &[
        option("channels", "1", "Channels of the images"),
        option("size", "28", "Height and width of the images, at least 12"),
        option("classes", "10", "Scores that come out"),
        option("mean", "0.5", "Subtracted from pixels of 0 to 1, for all channels or each"),
        option("std", "0.5", "What they are divided by then"),
    ],
    rule: image_rule,
    build,
};

/// Height and width of the filters.
const WINDOW: usize = 5;

fn build(b: &mut Builder, options: &Options) -> Result<ModelInput, ImportError> {
    let (pixels, input) = image(b, options)?;
    let size = options.count("size")?;
    if size < 12 {
        return Err(options.wrong("size", &size.to_string(), "12 or more"));
    }
    // 28 pixels are padded to the 32 of the paper.
    let x = filtered(b, "features.0", &pixels.value, [6, pixels.count], WINDOW / 2)?;
    let x = filtered(b, "features.1", &x, [16, 6], 0)?;
    let side = (size / 2 - (WINDOW - 1)) / 2;
    let mut x = b.node("Flatten", "/Flatten", &[&x]);
    let mut count = 16 * side * side;
    for (index, out) in [120, 84].into_iter().enumerate() {
        let path = format!("hidden.{index}");
        let y = b.gemm(&path, &x, [out, count])?;
        x = b.node("Relu", &format!("{}/Relu", scope(&path)), &[&y]);
        count = out;
    }
    let class_count = options.count("classes")?;
    let y = b.gemm("classifier", &x, [class_count, count])?;
    logits(b, &y, class_count);
    Ok(input)
}

/// Filters of 5×5, `Relu`, and the maxima of 2×2.
fn filtered(
    b: &mut Builder,
    path: &str,
    x: &str,
    [out, count]: [usize; 2],
    padding: usize,
) -> Result<String, ImportError> {
    let place = scope(path);
    let weight = b.weight(&format!("{path}.weight"), &[out, count, WINDOW, WINDOW])?;
    let bias = b.weight(&format!("{path}.bias"), &[out])?;
    let conv = Node::new("Conv", &format!("{place}/Conv"), &[x, &weight, &bias], &[])
        .with_attribute("kernel_shape", vec![WINDOW as i64; 2])
        .with_attribute("pads", vec![padding as i64; 4]);
    let y = b.push(conv);
    let y = b.node("Relu", &format!("{place}/Relu"), &[&y]);
    Ok(b.max_pool(&format!("{place}/MaxPool"), &y, [2, 2, 0]))
}
