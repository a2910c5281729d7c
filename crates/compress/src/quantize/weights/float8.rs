//! Weights as floats of 8 bits (Micikevicius et al., 2022, arXiv:2209.05433), with a scale per output.

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_tensor::{DType, Tensor};
use serde::Deserialize;

use super::super::nodes::Builder;
use super::target::{Layout, Target, targets};
use crate::{Context, OptionEntry, Pass, PassError};

/// `DequantizeLinear` of 8-bit floats before what reads a weight.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Float8Quantize {
    #[serde(default)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    /// Four bits of exponent, three of mantissa.
    #[default]
    E4m3,
    /// Five and two.
    E5m2,
}

impl Format {
    fn dtype(self) -> DType {
        match self {
            Self::E4m3 => DType::F8E4M3FN,
            Self::E5m2 => DType::F8E5M2,
        }
    }

    /// The largest finite number.
    fn largest(self) -> f32 {
        match self {
            Self::E4m3 => 448.0,
            Self::E5m2 => 57344.0,
        }
    }
}

pub(crate) const FLOAT8_OPTIONS: &[OptionEntry] = &[OptionEntry {
    key: "format",
    default: "\"e4m3\"",
    help: "\"e4m3\", four bits of exponent and three of mantissa, or \"e5m2\"",
}];

impl Pass for Float8Quantize {
    fn opset_min(&self) -> i64 {
        19
    }

    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        let links = Links::new(&model.graph);
        let targets = targets(&model.graph, &links, context, 8);
        let mut builder = Builder::new(&model.graph);
        for target in &targets {
            self.write(&mut builder, target)?;
        }
        let mut plan = builder.finish();
        plan.remark(match targets.len() {
            0 => "nothing to quantize: no product with a constant f32 weight".into(),
            count => format!("{count} tensors in {}", self.format.dtype()),
        });
        Ok(plan)
    }
}

impl Float8Quantize {
    fn write(&self, builder: &mut Builder, target: &Target) -> Result<(), PassError> {
        let (name, shape) = (target.name, target.tensor.shape());
        let values = target.tensor.values::<f32>();
        if values.iter().any(|w| !w.is_finite()) {
            return Err(PassError::WeightNotFinite { tensor: name.into() });
        }
        // Of recurrent layers the outputs take two axes: one scale has to do for all.
        let axis = match target.layout {
            Layout::InputsFirst => Some(1),
            Layout::InputsLast | Layout::Kernel => Some(0),
            Layout::Recurrent => None,
        };
        let count = axis.map_or(1, |axis| shape[axis]);
        let inner: usize = axis.map_or(values.len(), |axis| shape[axis + 1..].iter().product());
        let channel = |index: usize| index / inner.max(1) % count.max(1);
        let mut scales = vec![0.0_f32; count];
        for (index, w) in values.iter().enumerate() {
            let largest = &mut scales[channel(index)];
            *largest = largest.max(w.abs());
        }
        for scale in &mut scales {
            *scale /= self.format.largest();
            if *scale < f32::MIN_POSITIVE {
                *scale = 1.0;
            }
        }
        let scaled: Vec<f32> =
            values.iter().enumerate().map(|(index, w)| w / scales[channel(index)]).collect();
        let rounded = Tensor::new(shape, &scaled).converted(self.format.dtype());
        let base = if target.is_own { name.to_string() } else { format!("{name}_{axis:?}") };
        let [levels, scale, real] =
            ["float8", "scale", "dequantized"].map(|part| format!("{base}_{part}"));
        builder.set(&levels, rounded.expect("floats convert to floats"));
        let scale_shape = axis.map_or(Vec::new(), |_| vec![count]);
        builder.set(&scale, Tensor::new(&scale_shape, &scales));
        let node = Node::new("DequantizeLinear", &real, &[&levels, &scale], &[&real]);
        builder.add(match axis {
            Some(axis) => node.with_attribute("axis", axis as i64),
            None => node,
        });
        for &(index, input) in &target.readers {
            builder.replaced(name);
            builder.plan.push(Edit::SetInput { index, input, value: real.clone() });
        }
        Ok(())
    }
}
