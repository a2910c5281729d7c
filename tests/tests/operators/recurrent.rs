//! RNN, GRU and LSTM. ONNX Runtime has no `layout` 1 and no f64: unit tests hold these against
//! the other layout and against f32.

use attar_tensor::Tensor;

use crate::case::*;

/// Sizes of a layer: steps, batch, input, hidden.
type Sizes = [usize; 4];

/// Inputs of a layer, in the operator's order, under their names there.
fn feeds(
    gates: usize,
    directions: usize,
    sizes: Sizes,
    names: &str,
) -> Vec<(&'static str, Tensor)> {
    let [steps, batch, input, hidden] = sizes;
    let state = [directions, batch, hidden];
    let lengths: Vec<i32> = (0..batch).map(|item| (steps - item * 2 % steps) as i32).collect();
    // Weights that let a difference die away with the steps, as trained ones do.
    let scale = 0.7 / (hidden.max(input) as f32).sqrt();
    let small = |shape: &[usize]| {
        let values: Vec<f32> = f32s(shape).slice::<f32>().iter().map(|x| x * scale).collect();
        Tensor::new(shape, &values)
    };
    let all = [
        ("x", f32s(&[steps, batch, input])),
        ("w", small(&[directions, gates * hidden, input])),
        ("r", small(&[directions, gates * hidden, hidden])),
        ("b", small(&[directions, 2 * gates * hidden])),
        ("l", Tensor::new(&[batch], &lengths)),
        ("h", f32s(&state)),
        ("c", small(&state)),
        ("p", small(&[directions, 3 * hidden])),
    ];
    all.into_iter().filter(|(name, _)| names.contains(name)).collect()
}

fn layer(op: &str, direction: &str, sizes: Sizes, names: &str, settings: &str) -> Case {
    let gates = match op {
        "RNN" => 1,
        "GRU" => 3,
        _ => 4,
    };
    let directions = if direction == "bidirectional" { 2 } else { 1 };
    let order = if op == "LSTM" { "xwrblhcp" } else { "xwrblh" };
    let inputs: Vec<String> = order
        .chars()
        .map(|name| if names.contains(name) { name.to_string() } else { String::new() })
        .collect();
    let inputs = inputs.join(", ");
    let inputs = inputs.trim_end_matches([',', ' ']);
    let outputs = if op == "LSTM" { "y, yh, yc" } else { "y, yh" };
    let text = format!(
        "{outputs} = {op}({inputs}, hidden_size={}, direction={direction}{settings})",
        sizes[3]
    );
    // Sums of a few dozen terms pass through saturating functions, step after step.
    case(text, feeds(gates, directions, sizes, names)).within(4e-6)
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let sizes = [[1, 1, 3, 5], [5, 3, 4, 7], [7, 2, 33, 16], [20, 9, 10, 40], [3, 6, 5, 65]];
    for op in ["RNN", "GRU", "LSTM"] {
        for direction in ["forward", "reverse", "bidirectional"] {
            for sizes in sizes {
                for names in ["xwr", "xwrb", "xwrbl", "xwrblhc"] {
                    cases.push(layer(op, direction, sizes, names, ""));
                    if op == "GRU" {
                        let settings = ", linear_before_reset=1";
                        cases.push(layer(op, direction, sizes, names, settings));
                    }
                }
            }
            cases.push(layer(op, direction, sizes[1], "xwrbhc", ", clip=0.3"));
        }
    }
    let settings = ", linear_before_reset=1, clip=0.3";
    cases.push(layer("GRU", "forward", sizes[1], "xwrbh", settings));
    for settings in ["", ", clip=0.4", ", input_forget=1"] {
        cases.push(layer("LSTM", "bidirectional", sizes[1], "xwrblhcp", settings));
        cases.push(layer("LSTM", "forward", sizes[2], "xwrbp", settings));
    }
    for activation in ["Relu", "Softsign", "Softplus", "Sigmoid", "Tanh"] {
        let settings = format!(", activations={activation}");
        cases.push(layer("RNN", "forward", sizes[1], "xwrb", &settings));
    }
    for activation in ["LeakyRelu", "ThresholdedRelu", "Elu", "HardSigmoid", "Affine", "ScaledTanh"]
    {
        let scales = ", activation_alpha=0.3,0.3, activation_beta=0.6,0.6";
        let settings = format!(", activations={activation},{activation}{scales}");
        cases.push(layer("RNN", "bidirectional", sizes[1], "xwrb", &settings));
    }
    let settings = ", activations=HardSigmoid,Softsign,Tanh, activation_alpha=0.3,0.3, \
                    activation_beta=0.4,0.4";
    cases.push(layer("LSTM", "forward", sizes[1], "xwrbhc", settings));
    cases.push(layer("GRU", "forward", sizes[1], "xwrbh", ", activations=Tanh,Relu"));
    cases.push(packed("LSTM"));
    cases.push(packed("GRU"));
    cases
}

/// A layer whose weights are constants, one output of which nothing reads.
fn packed(op: &str) -> Case {
    let mut case = layer(op, "bidirectional", [6, 5, 8, 20], "xwrb", "");
    case.constants = case.feeds.split_off(1);
    case.text = case.text.replacen("y, ", ", ", 1);
    case
}
