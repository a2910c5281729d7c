//! `MobileNetV2` (Sandler et al., 2018, arXiv:1801.04381), of any width and for any size of image.

use super::options::Options;
use super::{Architecture, ModelInput, image, image_rule, logits, option};
use crate::ImportError;
use crate::build::Builder;
use crate::image::mobilenet_v2::{STAGES, Strides, network};

pub(super) const MOBILENET_V2: Architecture = Architecture {
    name: "mobilenet_v2",
    summary: "MobileNetV2; its strides are adapted to images of 112 pixels or fewer",
    options: &[
        option("width", "1", "Multiplier of all channels"),
        option("channels", "3", "Channels of the images"),
        option("size", "32", "Height and width of the images"),
        option("classes", "10", "Scores that come out"),
        option("mean", "0.5", "Subtracted from pixels of 0 to 1, for all channels or each"),
        option("std", "0.5", "What they are divided by then"),
    ],
    rule: image_rule,
    build,
};

const STEM: usize = 32;
/// Channels that the stages give.
const WIDTHS: [usize; 7] = [16, 24, 32, 64, 96, 160, 320];
const LAST: usize = 1280;
/// Times that a block widens its input, but for the first.
const EXPANSION: usize = 6;

fn build(b: &mut Builder, options: &Options) -> Result<ModelInput, ImportError> {
    let (pixels, input) = image(b, options)?;
    let width = options.number("width", [0.05, 16.0])?;
    let class_count = options.count("classes")?;
    declare(b, width, pixels.count, class_count);
    let (scores, _) = network(b, &pixels, Strides::for_size(options.count("size")?))?;
    logits(b, &scores, class_count);
    Ok(input)
}

/// Says the weights' shapes, by which the network is built.
fn declare(b: &mut Builder, width: f64, channels: usize, class_count: usize) {
    let mut filters = |module: String, shape: [usize; 4]| {
        b.weights.declare(&format!("{module}.weight"), &shape);
    };
    // Blocks that widen are told by the normalization that they have more.
    let mut norms = Vec::new();
    let mut count = rounded(STEM, width);
    filters("features.0.0".into(), [count, channels, 3, 3]);
    let mut index = 1;
    for ((block_count, _), out) in STAGES.into_iter().zip(WIDTHS) {
        for _ in 0..block_count {
            let conv = format!("features.{index}.conv");
            let out = rounded(out, width);
            let mut wide = count;
            let mut part = 0;
            if index > 1 {
                wide *= EXPANSION;
                filters(format!("{conv}.0.0"), [wide, count, 1, 1]);
                norms.push((format!("{conv}.3.weight"), out));
                part = 1;
            }
            filters(format!("{conv}.{part}.0"), [wide, 1, 3, 3]);
            filters(format!("{conv}.{}", part + 1), [out, wide, 1, 1]);
            (count, index) = (out, index + 1);
        }
    }
    let last = rounded(LAST, width.max(1.0));
    filters(format!("features.{index}.0"), [last, count, 1, 1]);
    for (name, out) in norms {
        b.weights.declare(&name, &[out]);
    }
    b.weights.declare("classifier.1.weight", &[class_count, last]);
}

/// A multiple of 8 close to the product, and no more than a tenth below it.
fn rounded(count: usize, width: f64) -> usize {
    let exact = count as f64 * width;
    let near = (((exact + 4.0) / 8.0) as usize * 8).max(8);
    if (near as f64) < 0.9 * exact { near + 8 } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_rounded_as_the_authors_do() {
        let of = |width| WIDTHS.map(|count| rounded(count, width));
        assert_eq!(of(1.0), WIDTHS);
        assert_eq!(of(0.5), [8, 16, 16, 32, 48, 80, 160]);
        assert_eq!(of(0.35), [8, 8, 16, 24, 32, 56, 112]);
        assert_eq!(of(1.4), [24, 32, 48, 88, 136, 224, 448]);
    }
}
