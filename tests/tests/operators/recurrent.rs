//! RNN, GRU and LSTM. ONNX Runtime has no `layout` 1 and no f64: unit tests hold these against
//! the other layout and against f32.

use attar_tensor::{DType, Tensor};

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
    // Whole panels of columns, and rows of gates that would share sets of the caches.
    let whole = [5, 7, 64, 64];
    for direction in ["forward", "bidirectional"] {
        cases.push(layer("LSTM", direction, whole, "xwrbl", ""));
        cases.push(layer("GRU", direction, whole, "xwrbl", ""));
        cases.push(layer("GRU", direction, whole, "xwrb", ", linear_before_reset=1"));
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
    for direction in ["forward", "bidirectional"] {
        for is_per_column in [false, true] {
            for zero in [Tensor::scalar(0_i8), Tensor::scalar(128_u8), Tensor::scalar(121_u8)] {
                cases.push(quantized(direction, [6, 1, 9, 20], is_per_column, &zero));
                cases.push(quantized(direction, [4, 3, 17, 16], is_per_column, &zero));
            }
        }
    }
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

/// The LSTM that ONNX Runtime's quantizer leaves, with weights of the zero point's type.
fn quantized(direction: &str, sizes: Sizes, is_per_column: bool, zero: &Tensor) -> Case {
    let [_, batch, input, hidden] = sizes;
    let directions = if direction == "bidirectional" { 2 } else { 1 };
    let columns = 4 * hidden;
    let weights = |depth: usize| {
        let shape = [directions, depth, columns];
        let levels = (0..directions * depth * columns).map(|i| (i * 7919 % 251) as i32 - 125);
        match zero.dtype() {
            DType::U8 => Tensor::new(&shape, &levels.map(|q| (q + 128) as u8).collect::<Vec<_>>()),
            _ => Tensor::new(&shape, &levels.map(|q| weight_i8(q as i8)).collect::<Vec<_>>()),
        }
    };
    let shape = if is_per_column { vec![directions, columns] } else { vec![directions] };
    let count: usize = shape.iter().product();
    let scale = 0.004 / (hidden as f32).sqrt();
    let scales: Vec<f32> = (0..count).map(|i| scale * (1.0 + (i % 5) as f32 * 0.2)).collect();
    let scales = Tensor::new(&shape, &scales);
    let zeros = match zero.dtype() {
        DType::U8 => Tensor::new(&shape, &vec![zero.slice::<u8>()[0]; count]),
        _ => Tensor::new(&shape, &vec![zero.slice::<i8>()[0]; count]),
    };
    let text = format!(
        "y, yh, yc = DynamicQuantizeLSTM(x, w, r, b, , h, c, , s, z, t, u, hidden_size={hidden}, \
         direction={direction})"
    );
    let state = f32s(&[directions, batch, hidden]);
    let feeds = vec![("x", f32s(&[sizes[0], batch, input])), ("h", state.clone()), ("c", state)];
    // A state that falls on the edge between two of 256 levels is rounded either way.
    let mut case = case(text, feeds).within(2e-3);
    case.constants = vec![
        ("w", weights(input)),
        ("r", weights(hidden)),
        ("b", f32s(&[directions, 2 * columns])),
        ("s", scales.clone()),
        ("z", zeros.clone()),
        ("t", scales),
        ("u", zeros),
    ];
    case.domain("com.microsoft", 1)
}
