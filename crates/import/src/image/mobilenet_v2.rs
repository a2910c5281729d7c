//! `MobileNetV2` (Sandler et al., 2018, arXiv:1801.04381) as torchvision builds it.

use super::ImageArchitecture;
use super::convolution::{Channels, Convolution, Kind};
use crate::ImportError;
use crate::build::{Builder, scope};

pub(super) const MOBILENET_V2: ImageArchitecture = ImageArchitecture {
    name: "mobilenet_v2",
    build,
    size: 224,
    resize: 256,
    mean: [0.485, 0.456, 0.406],
    std: [0.229, 0.224, 0.225],
};

/// Blocks that follow each other, and the stride of their first one. Widths are those of the
/// weights, so every width multiplier fits.
pub(crate) const STAGES: [(usize, i64); 7] =
    [(1, 1), (2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)];

/// Strides of the first convolution and of the first block of each stage.
#[derive(Clone, Copy)]
pub(crate) struct Strides {
    stem: i64,
    stages: [i64; 7],
}

impl Strides {
    /// Those of the paper leave 1/32 of each side of an image; small images are reduced less.
    pub(crate) fn for_size(size: usize) -> Self {
        let mut strides = Self { stem: 2, stages: STAGES.map(|(_, stride)| stride) };
        if size <= 112 {
            strides.stem = 1;
        }
        if size <= 56 {
            strides.stages[1] = 1;
        }
        strides
    }
}

fn build(builder: &mut Builder, image: &str) -> Result<(String, usize), ImportError> {
    let image = Channels { value: image.into(), count: 3 };
    network(builder, &image, Strides::for_size(MOBILENET_V2.size))
}

/// The network over `image`; gives the logits and their count.
pub(crate) fn network(
    builder: &mut Builder,
    image: &Channels,
    strides: Strides,
) -> Result<(String, usize), ImportError> {
    let stem =
        Convolution { module: "features.0.0", norm: "features.0.1", size: 3, stride: strides.stem };
    let mut x = stem.build(builder, image, Kind::Dense)?.clamped(builder, "features.0");
    let mut index = 1;
    for ((block_count, _), first_stride) in STAGES.into_iter().zip(strides.stages) {
        for block in 0..block_count {
            let stride = if block == 0 { first_stride } else { 1 };
            x = inverted_residual(builder, &format!("features.{index}"), &x, stride)?;
            index += 1;
        }
    }
    let path = format!("features.{index}");
    let last = Convolution {
        module: &format!("{path}.0"),
        norm: &format!("{path}.1"),
        size: 1,
        stride: 1,
    };
    let x = last.build(builder, &x, Kind::Dense)?.clamped(builder, &path);
    x.classified(builder, "classifier.1", 0.0)
}

/// Widen (unless the block has no such part), filter each channel, narrow; and add the input where
/// the shapes allow it.
fn inverted_residual(
    builder: &mut Builder,
    path: &str,
    x: &Channels,
    stride: i64,
) -> Result<Channels, ImportError> {
    let part = |index: usize| format!("{path}.conv.{index}");
    let widens = builder.weights.has(&format!("{}.weight", part(3)));
    let mut next = 0;
    let mut wide = Channels { value: x.value.clone(), count: x.count };
    let clamped = [(1, 1, Kind::Dense), (3, stride, Kind::Depthwise)];
    for (size, stride, kind) in clamped.into_iter().skip(usize::from(!widens)) {
        let (module, norm) = (format!("{}.0", part(next)), format!("{}.1", part(next)));
        let convolution = Convolution { module: &module, norm: &norm, size, stride };
        wide = convolution.build(builder, &wide, kind)?.clamped(builder, &part(next));
        next += 1;
    }
    let (module, norm) = (part(next), part(next + 1));
    let narrowing = Convolution { module: &module, norm: &norm, size: 1, stride: 1 };
    let mut y = narrowing.build(builder, &wide, Kind::Dense)?;
    if stride == 1 && y.count == x.count {
        let name = format!("{}/Add", scope(path));
        y.value = builder.node("Add", &name, &[&x.value, &y.value]);
    }
    Ok(y)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use attar_graph::validate;
    use attar_tensor::{DType, Tensor};

    use super::*;
    use crate::weights::Weights;

    /// A network whose stages have `widths` channels, and widen four times.
    fn tensors(stem: usize, widths: [usize; 7]) -> BTreeMap<String, Tensor> {
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: &[usize]| {
            tensors.insert(name, Tensor::zeros(DType::F32, shape));
        };
        let mut layer = |module: String, norm: String, shape: [usize; 4]| {
            add(format!("{module}.weight"), &shape);
            for part in ["weight", "bias", "running_mean", "running_var"] {
                add(format!("{norm}.{part}"), &shape[..1]);
            }
            add(format!("{norm}.num_batches_tracked"), &[]);
        };
        let clamped = |path: String| (format!("{path}.0"), format!("{path}.1"));
        let (module, norm) = clamped("features.0".into());
        layer(module, norm, [stem, 3, 3, 3]);
        let (mut x, mut index) = (stem, 1);
        for ((block_count, _), width) in STAGES.into_iter().zip(widths) {
            for _ in 0..block_count {
                let conv = format!("features.{index}.conv");
                let wide = if index == 1 { x } else { 4 * x };
                let first = usize::from(index > 1);
                if first == 1 {
                    let (module, norm) = clamped(format!("{conv}.0"));
                    layer(module, norm, [wide, x, 1, 1]);
                }
                let (module, norm) = clamped(format!("{conv}.{first}"));
                layer(module, norm, [wide, 1, 3, 3]);
                let (module, norm) = (first + 1, first + 2);
                layer(format!("{conv}.{module}"), format!("{conv}.{norm}"), [width, wide, 1, 1]);
                (x, index) = (width, index + 1);
            }
        }
        let (module, norm) = clamped(format!("features.{index}"));
        layer(module, norm, [20, x, 1, 1]);
        add("classifier.1.weight".into(), &[10, 20]);
        add("classifier.1.bias".into(), &[10]);
        tensors
    }

    #[test]
    fn any_width_imports_and_equal_widths_make_residuals() {
        let tensors = tensors(4, [2, 3, 4, 5, 6, 7, 8]);
        let imported = MOBILENET_V2.import(Weights::from_tensors(tensors)).unwrap();
        let graph = &imported.model.graph;
        validate(graph).unwrap();
        let count = |op_type: &str| graph.nodes.iter().filter(|node| node.is(op_type)).count();
        assert_eq!((count("Conv"), count("Clip"), count("Add")), (52, 35, 10));
        assert_eq!(imported.unused, Vec::<String>::new());
    }

    #[test]
    fn a_depthwise_filter_must_have_a_channel_for_each_of_its_input() {
        let mut tensors = tensors(4, [2, 3, 4, 5, 6, 7, 8]);
        let name = "features.2.conv.1.0.weight";
        tensors.insert(name.into(), Tensor::zeros(DType::F32, &[9, 1, 3, 3]));
        let error = MOBILENET_V2.import(Weights::from_tensors(tensors)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("`{name}` in `test.safetensors` has shape [9, 1, 3, 3], expected [8, 1, 3, 3]")
        );
    }

    #[test]
    fn a_missing_head_is_an_error() {
        let mut tensors = tensors(4, [2, 3, 4, 5, 6, 7, 8]);
        tensors.remove("classifier.1.weight");
        let error = MOBILENET_V2.import(Weights::from_tensors(tensors)).unwrap_err();
        assert_eq!(error.to_string(), "`test.safetensors` has no tensor `classifier.1.weight`");
    }
}
