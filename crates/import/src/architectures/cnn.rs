//! A plain network of 3×3 convolutions, as VGG is (Simonyan and Zisserman, 2014, arXiv:1409.1556),
//! with normalization, and one linear layer over the mean of what is left of the image.

use super::options::Options;
use super::{Architecture, ModelInput, image, image_rule, logits, option};
use crate::ImportError;
use crate::build::{Builder, scope};
use crate::image::convolution::{Convolution, Kind};

pub(super) const CNN: Architecture = Architecture {
    name: "cnn",
    summary: "3x3 convolutions with BatchNormalization and Relu, halved by maxima after each stage",
    options: &[
        option("channels", "1", "Channels of the images"),
        option("size", "28", "Height and width of the images"),
        option("widths", "32,64,128", "Channels of each stage"),
        option("depth", "2", "Convolutions in each stage"),
        option("dropout", "0", "Fraction of the last vector that training leaves out"),
        option("classes", "10", "Scores that come out"),
        option("mean", "0.5", "Subtracted from pixels of 0 to 1, for all channels or each"),
        option("std", "0.5", "What they are divided by then"),
    ],
    rule: image_rule,
    build,
};

fn build(b: &mut Builder, options: &Options) -> Result<ModelInput, ImportError> {
    let (mut x, input) = image(b, options)?;
    let widths = options.counts("widths")?;
    let (depth, size) = (options.count("depth")?, options.count("size")?);
    // The last stage is not halved.
    if size >> (widths.len() - 1).min(63) == 0 {
        let expected = format!("one stage more than {size} pixels can be halved, or fewer");
        return Err(options.wrong("widths", options.text("widths"), &expected));
    }
    let stage_count = widths.len();
    for (stage, width) in widths.into_iter().enumerate() {
        for index in 0..depth {
            let path = format!("features.{stage}.{index}");
            let (module, norm) = (format!("{path}.conv"), format!("{path}.norm"));
            b.weights.declare(&format!("{module}.weight"), &[width, x.count, 3, 3]);
            let convolution = Convolution { module: &module, norm: &norm, size: 3, stride: 1 };
            x = convolution.build(b, &x, Kind::Dense)?.rectified(b, &path);
        }
        if stage + 1 < stage_count {
            let name = format!("{}/MaxPool", scope(&format!("features.{stage}")));
            x.value = b.max_pool(&name, &x.value, [2, 2, 0]);
        }
    }
    let class_count = options.count("classes")?;
    b.weights.declare("classifier.weight", &[class_count, x.count]);
    let dropout = options.number("dropout", [0.0, 0.99])?;
    let (scores, _) = x.classified(b, "classifier", dropout)?;
    logits(b, &scores, class_count);
    Ok(input)
}
