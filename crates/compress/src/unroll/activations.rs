//! Activations of recurrent layers as operators.

use attar_graph::{AttributeValue, Node};
use attar_tensor::Bytes;

/// The operator of an activation, with its attributes.
#[derive(Clone)]
pub(super) struct Activation {
    pub(super) op_type: &'static str,
    pub(super) alpha: Option<f32>,
    pub(super) beta: Option<f32>,
}

impl Activation {
    fn plain(op_type: &'static str) -> Self {
        Self { op_type, alpha: None, beta: None }
    }
}

/// Activations that are operators, whether they take alpha and beta.
const ACTIVATIONS: &[(&str, bool, bool)] = &[
    ("Sigmoid", false, false),
    ("Tanh", false, false),
    ("Relu", false, false),
    ("Softsign", false, false),
    ("Softplus", false, false),
    ("LeakyRelu", true, false),
    ("Elu", true, false),
    ("ThresholdedRelu", true, false),
    ("HardSigmoid", true, true),
];

/// The activations of every direction, one after the other.
pub(super) fn activations(node: &Node, directions: usize) -> Result<Vec<Activation>, String> {
    let usual: &[&'static str] = match node.op_type.as_str() {
        "LSTM" => &["Sigmoid", "Tanh", "Tanh"],
        "GRU" => &["Sigmoid", "Tanh"],
        _ => &["Tanh"],
    };
    let named = match node.attribute("activations") {
        Some(AttributeValue::Strings(names)) if !names.is_empty() => Some(names),
        _ => None,
    };
    let Some(names) = named else {
        let all = usual.iter().map(|op| Activation::plain(op));
        return Ok(all.cycle().take(usual.len() * directions).collect());
    };
    if names.len() != usual.len() * directions {
        return Err(format!("it has {} activations", names.len()));
    }
    let floats = |key: &str| match node.attribute(key) {
        Some(AttributeValue::Floats(values)) => values.clone(),
        _ => Vec::new(),
    };
    // Alphas and betas are listed for the activations that take one.
    let mut alphas = floats("activation_alpha").into_iter();
    let mut betas = floats("activation_beta").into_iter();
    let activation = |name: &Bytes| {
        let name = String::from_utf8_lossy(name);
        let known = ACTIVATIONS.iter().find(|(op, ..)| op.eq_ignore_ascii_case(&name));
        let &(op_type, has_alpha, has_beta) =
            known.ok_or_else(|| format!("`{name}` is no operator"))?;
        Ok(Activation {
            op_type,
            alpha: has_alpha.then(|| alphas.next()).flatten(),
            beta: has_beta.then(|| betas.next()).flatten(),
        })
    };
    names.iter().map(activation).collect()
}
