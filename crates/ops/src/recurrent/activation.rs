//! The activation functions of recurrent layers, by the names ONNX gives them.

use attar_graph::{AttributeValue, Node};

use crate::OpError;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    Sigmoid,
    Tanh,
    Relu,
    Softsign,
    Softplus,
    LeakyRelu(f64),
    ThresholdedRelu(f64),
    Elu(f64),
    Affine(f64, f64),
    ScaledTanh(f64, f64),
    HardSigmoid(f64, f64),
}

impl Activation {
    /// The activation of one value.
    pub(crate) fn apply(self, x: f64) -> f64 {
        match self {
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Tanh => x.tanh(),
            Self::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Self::Softsign => x / (1.0 + x.abs()),
            // ln(1 + eˣ), without the overflow of eˣ.
            Self::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            Self::LeakyRelu(alpha) => {
                if x < 0.0 {
                    alpha * x
                } else {
                    x
                }
            }
            Self::ThresholdedRelu(alpha) => {
                if x > alpha {
                    x
                } else {
                    0.0
                }
            }
            Self::Elu(alpha) => {
                if x < 0.0 {
                    alpha * x.exp_m1()
                } else {
                    x
                }
            }
            Self::Affine(alpha, beta) => alpha * x + beta,
            Self::ScaledTanh(alpha, beta) => alpha * (beta * x).tanh(),
            Self::HardSigmoid(alpha, beta) => (alpha * x + beta).clamp(0.0, 1.0),
        }
    }

    /// The derivative at one value; at a kink, that of one side.
    pub(crate) fn slope(self, x: f64) -> f64 {
        let y = self.apply(x);
        match self {
            Self::Sigmoid => y * (1.0 - y),
            Self::Tanh => 1.0 - y * y,
            Self::Relu => f64::from(u8::from(x > 0.0)),
            Self::Softsign => (1.0 + x.abs()).powi(-2),
            Self::Softplus => Self::Sigmoid.apply(x),
            Self::LeakyRelu(alpha) => {
                if x < 0.0 {
                    alpha
                } else {
                    1.0
                }
            }
            Self::ThresholdedRelu(alpha) => f64::from(u8::from(x > alpha)),
            Self::Elu(alpha) => {
                if x < 0.0 {
                    alpha * x.exp()
                } else {
                    1.0
                }
            }
            Self::Affine(alpha, _) => alpha,
            Self::ScaledTanh(alpha, beta) => alpha * beta * (1.0 - (beta * x).tanh().powi(2)),
            Self::HardSigmoid(alpha, beta) => {
                if (0.0..=1.0).contains(&(alpha * x + beta)) {
                    alpha
                } else {
                    0.0
                }
            }
        }
    }

    /// Whether the derivative follows from the value alone.
    pub(crate) fn has_slope_of_value(self) -> bool {
        matches!(self, Self::Sigmoid | Self::Tanh | Self::Relu)
    }
}

/// The activations of every direction: `defaults` for each, or those of the attribute.
///
/// alpha and beta are lists from which every activation that has one takes the next.
///
/// # Errors
/// Names that ONNX does not define, or too few of them.
pub(super) fn activations(
    node: &Node,
    defaults: &[Activation],
    directions: usize,
) -> Result<Vec<Activation>, OpError> {
    let names = match node.attribute("activations") {
        None => return Ok(defaults.repeat(directions)),
        Some(AttributeValue::Strings(names)) => names,
        Some(other) => return Err(OpError::value("activations", other.kind(), "strings")),
    };
    if names.is_empty() {
        return Ok(defaults.repeat(directions));
    }
    let count = defaults.len() * directions;
    if names.len() != count {
        return Err(OpError::value("the count of activations", names.len(), count.to_string()));
    }
    let mut alphas = floats(node, "activation_alpha")?.iter();
    let mut betas = floats(node, "activation_beta")?.iter();
    let next = |list: &mut std::slice::Iter<f32>, default: f64| {
        list.next().map_or(default, |&value| f64::from(value))
    };
    let mut result = Vec::with_capacity(count);
    for name in names {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        result.push(match name.as_str() {
            "sigmoid" => Activation::Sigmoid,
            "tanh" => Activation::Tanh,
            "relu" => Activation::Relu,
            "softsign" => Activation::Softsign,
            "softplus" => Activation::Softplus,
            "leakyrelu" => Activation::LeakyRelu(next(&mut alphas, 0.01)),
            "thresholdedrelu" => Activation::ThresholdedRelu(next(&mut alphas, 1.0)),
            "elu" => Activation::Elu(next(&mut alphas, 1.0)),
            "affine" => Activation::Affine(next(&mut alphas, 1.0), next(&mut betas, 0.0)),
            "scaledtanh" => Activation::ScaledTanh(next(&mut alphas, 1.0), next(&mut betas, 1.0)),
            "hardsigmoid" => Activation::HardSigmoid(next(&mut alphas, 0.2), next(&mut betas, 0.5)),
            _ => return Err(OpError::value("an activation", name, "one that ONNX defines")),
        });
    }
    Ok(result)
}

fn floats<'a>(node: &'a Node, name: &str) -> Result<&'a [f32], OpError> {
    match node.attribute(name) {
        None => Ok(&[]),
        Some(AttributeValue::Floats(values)) => Ok(values),
        Some(other) => Err(OpError::value(name, other.kind(), "floats")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphas_and_betas_go_to_those_that_have_one() {
        let node = Node::new("LSTM", "", &[], &[])
            .with_attribute(
                "activations",
                AttributeValue::Strings(
                    ["Tanh", "hardSigmoid", "LeakyRelu"]
                        .map(|name| name.as_bytes().to_vec().into())
                        .to_vec(),
                ),
            )
            .with_attribute("activation_alpha", AttributeValue::Floats(vec![0.3, 0.7]))
            .with_attribute("activation_beta", AttributeValue::Floats(vec![0.25]));
        let found = activations(&node, &[Activation::Sigmoid; 3], 1).unwrap();
        let [alpha, beta, slope] = [0.3_f32, 0.25, 0.7].map(f64::from);
        let expected =
            [Activation::Tanh, Activation::HardSigmoid(alpha, beta), Activation::LeakyRelu(slope)];
        assert_eq!(found, expected);
        assert!(activations(&node, &[Activation::Sigmoid], 1).is_err());
    }

    #[test]
    fn softplus_of_a_large_value_is_the_value() {
        assert_eq!(Activation::Softplus.apply(1000.0), 1000.0);
        assert!((Activation::Softplus.apply(0.0) - std::f64::consts::LN_2).abs() < 1e-15);
    }
}
