//! What the attributes of a convolution say.

use attar_graph::{AttributeValue, Node};

use crate::OpError;
use crate::fused_matmul::Activation as Function;
use crate::geometry::Geometry;
use crate::kernels::channels_last::{Activation, Finish};
use crate::kernels::{elementwise, slope};

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
    /// dy ← dy · f′(z) of that activation.
    slope: Option<Slope>,
}

type Slope = fn(&mut [f32], &[f32]);

impl Fused {
    pub(crate) fn new(node: &Node) -> Result<Self, OpError> {
        let params: &[f32] = match node.attribute("activation_params") {
            Some(AttributeValue::Floats(params)) => params,
            _ => &[],
        };
        let at = |index: usize, default: f32| params.get(index).copied().unwrap_or(default);
        let mut function: Option<(Function, Slope)> = None;
        let activation = match node.text("activation")?.unwrap_or("") {
            "" => Activation::None,
            "Relu" => Activation::Clamp(0.0, f32::INFINITY),
            "Clip" => Activation::Clamp(at(0, f32::NEG_INFINITY), at(1, f32::INFINITY)),
            "HardSwish" => Activation::HardSwish(at(0, 1.0 / 6.0), at(1, 0.5)),
            "HardSigmoid" => Activation::HardSigmoid(at(0, 0.2), at(1, 0.5)),
            "LeakyRelu" => Activation::LeakyRelu(at(0, 0.01)),
            other => {
                function = Some(match other {
                    "Sigmoid" => (elementwise::sigmoid as Function, slope::sigmoid as Slope),
                    "Silu" => (elementwise::silu, slope::silu),
                    "Tanh" => (elementwise::tanh, slope::tanh),
                    "Gelu" => (elementwise::gelu, slope::gelu),
                    _ => return Err(OpError::value("activation", other, "one that is fused")),
                });
                Activation::None
            }
        };
        let (scale, shift) = (node.float_or("scale", 1.0)?, node.float_or("shift", 0.0)?);
        let (function, slope) = function.unzip();
        Ok(Self { finish: Finish { activation, scale, shift }, function, slope })
    }

    /// z → f(z)·scale + shift.
    pub(crate) fn apply(&self, z: &mut [f32]) {
        if let Some(function) = self.function {
            function(z);
        }
        let Finish { activation, scale, shift } = self.finish;
        for z in z {
            let line = |alpha: f32, beta: f32| (alpha * *z + beta).clamp(0.0, 1.0);
            let y = match activation {
                Activation::Clamp(low, high) => z.max(low).min(high),
                Activation::HardSwish(alpha, beta) => *z * line(alpha, beta),
                Activation::HardSigmoid(alpha, beta) => line(alpha, beta),
                Activation::LeakyRelu(alpha) if *z < 0.0 => alpha * *z,
                Activation::None | Activation::LeakyRelu(_) => *z,
            };
            *z = y * scale + shift;
        }
    }

    /// dy ← dy · f′(z) · scale.
    pub(crate) fn apply_slope(&self, dy: &mut [f32], z: &[f32]) {
        if let Some(slope) = self.slope {
            slope(dy, z);
        }
        match self.finish.activation {
            Activation::None => {}
            Activation::Clamp(low, high) => slope::clamp(dy, z, low, high),
            Activation::HardSwish(alpha, beta) => slope::hard_swish(dy, z, alpha, beta),
            Activation::HardSigmoid(alpha, beta) => slope::hard_sigmoid(dy, z, alpha, beta),
            Activation::LeakyRelu(alpha) => slope::leaky_relu(dy, z, alpha),
        }
        if self.finish.scale != 1.0 {
            dy.iter_mut().for_each(|dy| *dy *= self.finish.scale);
        }
    }

    /// z → f(z)·scale + shift, in f64; `name` is the activation's.
    pub(crate) fn apply_wide(&self, name: &str, z: f64) -> f64 {
        let line = |alpha: f32, beta: f32| (f64::from(alpha) * z + f64::from(beta)).clamp(0.0, 1.0);
        let y = match self.finish.activation {
            Activation::None => match name {
                "Sigmoid" => 1.0 / (1.0 + (-z).exp()),
                "Silu" => z / (1.0 + (-z).exp()),
                "Tanh" => z.tanh(),
                "Gelu" => {
                    0.5 * z * (1.0 + crate::unary::erf_f64(z * std::f64::consts::FRAC_1_SQRT_2))
                }
                _ => z,
            },
            Activation::Clamp(low, high) => z.max(f64::from(low)).min(f64::from(high)),
            Activation::HardSwish(alpha, beta) => z * line(alpha, beta),
            Activation::HardSigmoid(alpha, beta) => line(alpha, beta),
            Activation::LeakyRelu(alpha) if z < 0.0 => f64::from(alpha) * z,
            Activation::LeakyRelu(_) => z,
        };
        y * f64::from(self.finish.scale) + f64::from(self.finish.shift)
    }
}
