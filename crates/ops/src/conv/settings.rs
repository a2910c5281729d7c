//! What the attributes of a convolution say.

use attar_graph::{AttributeValue, Node};

use crate::OpError;
use crate::fused_matmul::Activation as Function;
use crate::geometry::Geometry;
use crate::kernels::channels_last::{Activation, Finish};
use crate::kernels::elementwise;

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) group: usize,
    pub(crate) geometry: Geometry,
    pub(crate) activation: Fused,
}

impl Settings {
    /// Reads the attributes of a convolution whose weights have the spatial sizes `kernel`.
    ///
    /// # Errors
    /// Attributes that no run could accept.
    pub(crate) fn new(node: &Node, kernel: &[usize]) -> Result<Self, OpError> {
        Ok(Self {
            group: group(node)?,
            geometry: Geometry::new(node, kernel)?,
            activation: Fused::new(node)?,
        })
    }
}

/// # Errors
/// A `group` below 1.
pub(crate) fn group(node: &Node) -> Result<usize, OpError> {
    let group = node.int_or("group", 1)?;
    let valid = usize::try_from(group).ok().filter(|&group| group > 0);
    valid.ok_or_else(|| OpError::value("group", group, "at least 1"))
}

/// What follows the sums: `activation` with `activation_params`, then · `scale` + `shift`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fused {
    pub(crate) finish: Finish,
    /// An activation that is computed block by block instead, after what `finish` does.
    pub(crate) function: Option<Function>,
}

impl Fused {
    pub(crate) fn new(node: &Node) -> Result<Self, OpError> {
        let params: &[f32] = match node.attribute("activation_params") {
            Some(AttributeValue::Floats(params)) => params,
            _ => &[],
        };
        let at = |index: usize, default: f32| params.get(index).copied().unwrap_or(default);
        let mut function: Option<Function> = None;
        let activation = match node.text("activation")?.unwrap_or("") {
            "" => Activation::None,
            "Relu" => Activation::Clamp(0.0, f32::INFINITY),
            "Clip" => Activation::Clamp(at(0, f32::NEG_INFINITY), at(1, f32::INFINITY)),
            "HardSwish" => Activation::HardSwish(at(0, 1.0 / 6.0), at(1, 0.5)),
            "HardSigmoid" => Activation::HardSigmoid(at(0, 0.2), at(1, 0.5)),
            "LeakyRelu" => Activation::LeakyRelu(at(0, 0.01)),
            other => {
                function = Some(match other {
                    "Sigmoid" => elementwise::sigmoid,
                    "Silu" => elementwise::silu,
                    "Tanh" => elementwise::tanh,
                    "Gelu" => elementwise::gelu,
                    _ => return Err(OpError::value("activation", other, "one that is fused")),
                });
                Activation::None
            }
        };
        let (scale, shift) = (node.float_or("scale", 1.0)?, node.float_or("shift", 0.0)?);
        Ok(Self { finish: Finish { activation, scale, shift }, function })
    }
}
