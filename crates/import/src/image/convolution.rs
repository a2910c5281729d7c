//! What convolutional networks share: a convolution with its normalization.

use attar_graph::Node;

use crate::ImportError;
use crate::build::{Builder, scope};

/// What a normalization adds to a variance before taking its root.
const EPSILON: f32 = 1e-5;

/// A value with its count of channels.
pub(crate) struct Channels {
    pub(crate) value: String,
    pub(crate) count: usize,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Dense,
    /// Each channel by itself.
    Depthwise,
}

/// A convolution without bias, and the normalization after it. The weights say how many channels
/// it gives.
pub(crate) struct Convolution<'a> {
    pub(crate) module: &'a str,
    pub(crate) norm: &'a str,
    pub(crate) size: usize,
    pub(crate) stride: i64,
}

impl Convolution<'_> {
    pub(crate) fn build(
        &self,
        builder: &mut Builder,
        x: &Channels,
        kind: Kind,
    ) -> Result<Channels, ImportError> {
        let weight = format!("{}.weight", self.module);
        let depth = if kind == Kind::Depthwise { 1 } else { x.count };
        let [found, ..] = builder.weights.shape::<4>(&weight)?;
        let count = if kind == Kind::Depthwise { x.count } else { found };
        let weight = builder.weight(&weight, &[count, depth, self.size, self.size])?;
        let size = self.size as i64;
        let groups = if kind == Kind::Depthwise { count as i64 } else { 1 };
        let name = format!("{}/Conv", scope(self.module));
        let conv = Node::new("Conv", &name, &[&x.value, &weight], &[])
            .with_attribute("kernel_shape", vec![size; 2])
            .with_attribute("strides", vec![self.stride; 2])
            .with_attribute("pads", vec![size / 2; 4])
            .with_attribute("group", groups);
        let value = builder.push(conv);
        Ok(Channels { value: self.normalized(builder, &value, count)?, count })
    }

    fn normalized(
        &self,
        builder: &mut Builder,
        x: &str,
        count: usize,
    ) -> Result<String, ImportError> {
        let mut inputs = vec![x.to_string()];
        for part in ["weight", "bias", "running_mean", "running_var"] {
            inputs.push(builder.weight(&format!("{}.{part}", self.norm), &[count])?);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let name = format!("{}/BatchNormalization", scope(self.norm));
        let node = Node::new("BatchNormalization", &name, &inputs, &[]);
        Ok(builder.push(node.with_attribute("epsilon", EPSILON)))
    }
}

impl Channels {
    /// max(x, 0)
    pub(crate) fn rectified(self, builder: &mut Builder, path: &str) -> Self {
        let name = format!("{}/Relu", scope(path));
        Self { value: builder.node("Relu", &name, &[&self.value]), count: self.count }
    }

    /// min(max(x, 0), 6)
    pub(crate) fn clamped(self, builder: &mut Builder, path: &str) -> Self {
        let (low, high) = (builder.scalar("relu6.min", 0.0), builder.scalar("relu6.max", 6.0));
        let name = format!("{}/Clip", scope(path));
        Self { value: builder.node("Clip", &name, &[&self.value, &low, &high]), count: self.count }
    }

    /// The mean over the image, of which training may leave out a part, and the linear layer at
    /// `path`; gives the logits and their count.
    pub(crate) fn classified(
        &self,
        builder: &mut Builder,
        path: &str,
        dropout: f64,
    ) -> Result<(String, usize), ImportError> {
        let [class_count, _] = builder.weights.shape::<2>(&format!("{path}.weight"))?;
        let pooled = builder.node("GlobalAveragePool", "/GlobalAveragePool", &[&self.value]);
        let vector = builder.node("Flatten", "/Flatten", &[&pooled]);
        let vector = builder.dropout("/Dropout", &vector, dropout);
        Ok((builder.gemm(path, &vector, [class_count, self.count])?, class_count))
    }
}
