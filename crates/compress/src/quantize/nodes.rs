//! Building the nodes that quantized graphs are made of.

use std::collections::HashMap;

use attar_graph::{Edit, Graph, Node, Plan};
use attar_tensor::{DType, Tensor};

use super::safe_weight::Bounding;
use super::weight::{WeightRounding, quantize_channels};
use crate::PassError;

/// The grid of an activation: levels from 0 to `level_max`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ActivationRange {
    pub(crate) scale: f32,
    pub(crate) zero_point: u16,
    pub(crate) level_max: u16,
}

impl ActivationRange {
    /// The grid over `low..=high`, widened to hold 0, so that padding and Relu stay exact.
    pub(crate) fn new(low: f32, high: f32, level_max: u16) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let top = f32::from(level_max);
        // Divided first: the difference of the largest floats is not finite.
        let scale = high / top - low / top;
        if scale < f32::MIN_POSITIVE {
            return Self { scale: 1.0, zero_point: 0, level_max };
        }
        let zero_point = (-low / scale).round_ties_even().clamp(0.0, top) as u16;
        Self { scale, zero_point, level_max }
    }

    /// The same ends on a grid of steps of `fit`, which is no finer.
    pub(crate) fn fitted(self, fit: impl Fn(f32) -> f32) -> Self {
        let scale = fit(self.scale);
        let zero = f32::from(self.zero_point) * (self.scale / scale);
        Self { scale, zero_point: zero.round_ties_even() as u16, ..self }
    }

    /// The least value that has a level.
    pub(crate) fn low(self) -> f32 {
        -f32::from(self.zero_point) * self.scale
    }

    /// The greatest value that has a level.
    pub(crate) fn high(self) -> f32 {
        (f32::from(self.level_max) - f32::from(self.zero_point)) * self.scale
    }

    /// `x` through `QuantizeLinear` and back.
    #[cfg(test)]
    pub(crate) fn rounded(self, x: f32) -> f32 {
        let (zero, top) = (f32::from(self.zero_point), f32::from(self.level_max));
        ((x / self.scale).round_ties_even() + zero).clamp(0.0, top) * self.scale - zero * self.scale
    }
}

/// A weight that has been put into the graph in 8 bits.
#[derive(Clone)]
pub(crate) struct QuantizedWeight {
    /// Name of the i8 initializer.
    pub(crate) values: String,
    /// Name of the f32 initializer with one scale per channel.
    pub(crate) scale: String,
    pub(crate) scales: Tensor,
}

/// Collects edits, and remembers which constants have been replaced where.
pub(crate) struct Builder<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) plan: Plan,
    /// Over all weights that were rounded for CPUs that sum in 16 bits.
    pub(crate) bounding: Bounding,
    quantized_weights: HashMap<String, QuantizedWeight>,
    replaced_uses: HashMap<String, usize>,
}

impl<'a> Builder<'a> {
    pub(crate) fn new(graph: &'a Graph) -> Self {
        Self {
            graph,
            plan: Plan::default(),
            bounding: Bounding::default(),
            quantized_weights: HashMap::new(),
            replaced_uses: HashMap::new(),
        }
    }

    pub(crate) fn set(&mut self, name: &str, tensor: Tensor) {
        self.plan.push(Edit::SetInitializer { name: name.into(), tensor });
    }

    pub(crate) fn add(&mut self, node: Node) {
        self.plan.push(Edit::AddNode { node });
    }

    /// Scales of f32, stored in f16 where `are_half`: all of them are numbers of f16, which `Cast`
    /// makes f32 again.
    pub(crate) fn set_scales(&mut self, name: &str, scales: Tensor, are_half: bool) {
        if !are_half {
            return self.set(name, scales);
        }
        let half = format!("{name}_half");
        self.set(&half, scales.converted(DType::F16).expect("floats convert to floats"));
        self.add(Node::new("Cast", name, &[&half], &[name]).with_attribute("to", 1_i64));
    }

    /// The weight in i8 and its scales, as two initializers made once per weight and axis.
    pub(crate) fn weight(
        &mut self,
        name: &str,
        weight: &Tensor,
        axis: usize,
        level_max: i8,
    ) -> Result<QuantizedWeight, PassError> {
        if let Some(known) = self.quantized_weights.get(&format!("{name}@{axis}")) {
            return Ok(known.clone());
        }
        let rounded = quantize_channels(name, weight, axis, level_max)?;
        Ok(self.rounded_weight(name, axis, rounded))
    }

    /// A weight that has been rounded, as two initializers made once per weight and axis.
    pub(crate) fn rounded_weight(
        &mut self,
        name: &str,
        axis: usize,
        rounded: WeightRounding,
    ) -> QuantizedWeight {
        let key = format!("{name}@{axis}");
        if let Some(known) = self.quantized_weights.get(&key) {
            return known.clone();
        }
        let base = if self.quantized_weights.keys().any(|k| k.starts_with(&format!("{name}@"))) {
            key.clone()
        } else {
            name.to_string()
        };
        let weight = QuantizedWeight {
            values: format!("{base}_quantized"),
            scale: format!("{base}_scale"),
            scales: rounded.scales.clone(),
        };
        self.set(&weight.values, rounded.values);
        self.set(&weight.scale, rounded.scales);
        self.quantized_weights.insert(key, weight.clone());
        weight
    }

    /// Notes that one reader of a constant has another source now.
    pub(crate) fn replaced(&mut self, constant: &str) {
        *self.replaced_uses.entry(constant.into()).or_default() += 1;
    }

    /// The plan, with constants removed that nothing reads any more.
    pub(crate) fn finish(mut self) -> Plan {
        let links = attar_graph::Links::new(self.graph);
        let mut replaced: Vec<(String, usize)> = self.replaced_uses.into_iter().collect();
        replaced.sort();
        for (name, count) in replaced {
            if links.uses(&name).len() != count || self.graph.is_output(&name) {
                continue;
            }
            match links.producer(&name) {
                Some((index, _)) => self.plan.push(Edit::RemoveNode { index }),
                None => self.plan.push(Edit::RemoveInitializer { name }),
            }
        }
        self.plan
    }
}

/// The constant f32 weight of a product, with the axis of its output channels.
pub(crate) struct Weight<'a> {
    pub(crate) name: &'a str,
    pub(crate) tensor: &'a Tensor,
    pub(crate) axis: usize,
}

/// The weight of a `MatMul`, Gemm or Conv, if it is a constant of f32 and the right rank.
pub(crate) fn weight_of<'a>(links: &attar_graph::Links<'a>, node: &'a Node) -> Option<Weight<'a>> {
    let name = node.input(1)?;
    let tensor = links.constant(name)?;
    if tensor.dtype() != attar_tensor::DType::F32 || tensor.element_count() == 0 {
        return None;
    }
    // A product of two constants is left to constant folding.
    if links.constant(node.input(0)?).is_some() {
        return None;
    }
    let axis = if node.is("MatMul") && tensor.rank() == 2 {
        1
    } else if node.is("Gemm") && tensor.rank() == 2 {
        usize::from(node.int_or("transB", 0) == Ok(0))
    } else if node.is("Conv") && tensor.rank() >= 3 {
        0
    } else {
        return None;
    };
    Some(Weight { name, tensor, axis })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_zero_and_a_constant_tensor_has_a_scale() {
        let range = |low, high| ActivationRange::new(low, high, 255);
        let of = |scale, zero_point| ActivationRange { scale, zero_point, level_max: 255 };
        assert_eq!(range(1.0, 2.0), of(2.0 / 255.0, 0));
        assert_eq!(range(-1.0, -0.5).zero_point, 255);
        assert_eq!(range(0.0, 0.0), of(1.0, 0));
        assert_eq!(ActivationRange::new(-1.0, 2.0, 15).zero_point, 5);
    }
}
