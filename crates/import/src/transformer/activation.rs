//! The functions between the two halves of a feed-forward layer, and in heads.

use attar_graph::Node;

use crate::build::Builder;

/// What `hidden_act` may be.
pub(crate) const ACTIVATIONS: &str =
    "gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, quick_gelu, relu, silu, swish, tanh";

/// Adds the function that Hugging Face calls `name`; `None` where there is no such.
pub(crate) fn activation(b: &mut Builder, name: &str, place: &str, x: &str) -> Option<String> {
    Some(match name {
        "gelu" => gelu(b, place, x),
        // One function; they differ in how its formula is written.
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => gelu_tanh(b, place, x),
        "quick_gelu" => {
            let factor = b.scalar("quick_gelu.factor", 1.702);
            let scaled = b.node("Mul", &format!("{place}/scale/Mul"), &[x, &factor]);
            gated(b, place, x, &scaled)
        }
        "relu" => b.node("Relu", &format!("{place}/Relu"), &[x]),
        "silu" | "swish" => gated(b, place, x, x),
        "tanh" => b.node("Tanh", &format!("{place}/Tanh"), &[x]),
        _ => return None,
    })
}

/// x·sigmoid(gate)
fn gated(b: &mut Builder, place: &str, x: &str, gate: &str) -> String {
    let gate = b.node("Sigmoid", &format!("{place}/Sigmoid"), &[gate]);
    b.node("Mul", &format!("{place}/Mul"), &[x, &gate])
}

/// x·½·(1 + erf(x/√2)): one operator from opset 20 on, and before that the five in the order that
/// runtimes recognize.
fn gelu(b: &mut Builder, place: &str, x: &str) -> String {
    let named = |op_type: &str| format!("{place}/{op_type}");
    if b.opset >= 20 {
        return b.node("Gelu", &named("Gelu"), &[x]);
    }
    let root = b.scalar("gelu.root", std::f32::consts::SQRT_2);
    let (one, half) = (b.scalar("gelu.one", 1.0), b.scalar("gelu.half", 0.5));
    let scaled = b.node("Div", &named("Div"), &[x, &root]);
    let erf = b.node("Erf", &named("Erf"), &[&scaled]);
    let sum = b.node("Add", &named("Add"), &[&erf, &one]);
    let product = b.node("Mul", &named("Mul"), &[x, &sum]);
    b.node("Mul", &named("half/Mul"), &[&product, &half])
}

/// ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))): one operator from opset 20 on, and before that the
/// eight in the order that `PyTorch`'s exporter writes and runtimes recognize.
fn gelu_tanh(b: &mut Builder, place: &str, x: &str) -> String {
    let named = |op_type: &str| format!("{place}/{op_type}");
    if b.opset >= 20 {
        let gelu = Node::new("Gelu", &named("Gelu"), &[x], &[]);
        return b.push(gelu.with_attribute("approximate", "tanh"));
    }
    let (half, one) = (b.scalar("gelu.half", 0.5), b.scalar("gelu.one", 1.0));
    let (three, cubic) = (b.scalar("gelu.three", 3.0), b.scalar("gelu.cubic", 0.044_715));
    let root = b.scalar("gelu.tanh_root", (2.0 / std::f32::consts::PI).sqrt());
    let half_x = b.node("Mul", &named("half/Mul"), &[x, &half]);
    let cube = b.node("Pow", &named("Pow"), &[x, &three]);
    let cube = b.node("Mul", &named("cubic/Mul"), &[&cube, &cubic]);
    let sum = b.node("Add", &named("cubic/Add"), &[x, &cube]);
    let scaled = b.node("Mul", &named("root/Mul"), &[&sum, &root]);
    let tanh = b.node("Tanh", &named("Tanh"), &[&scaled]);
    let sum = b.node("Add", &named("Add"), &[&tanh, &one]);
    b.node("Mul", &named("Mul"), &[&half_x, &sum])
}
