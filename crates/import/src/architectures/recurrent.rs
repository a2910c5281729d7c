//! Classifiers of texts by recurrent layers: LSTM (Hochreiter and Schmidhuber, 1997) and GRU (Cho
//! et al., 2014, arXiv:1406.1078).

use attar_graph::Node;

use super::options::Options;
use super::text::{
    CLASSES, DROPOUT, EMBEDDING, LENGTH, TABLE, Texts, VOCABULARY, classifier, embedding, pooled,
};
use super::{Architecture, ArchitectureOption, ModelInput, option};
use crate::ImportError;
use crate::build::Builder;
use crate::weights::drawing::Initial;

pub(super) const LSTM: Architecture = Architecture {
    name: "lstm",
    summary: "Classifier of texts by LSTM layers",
    options: OPTIONS,
    rule: lstm_rule,
    build: |b, options| build(b, options, &Cell { op_type: "LSTM", gates: 4 }),
};

pub(super) const GRU: Architecture = Architecture {
    name: "gru",
    summary: "Classifier of texts by GRU layers",
    options: OPTIONS,
    rule: gru_rule,
    build: |b, options| build(b, options, &Cell { op_type: "GRU", gates: 3 }),
};

const OPTIONS: &[ArchitectureOption] = &[
    VOCABULARY,
    EMBEDDING,
    option("layers", "1", "Recurrent layers"),
    option("hidden", "128", "Size of a layer's state, in each direction"),
    option("bidirectional", "true", "Whether texts are read from both ends"),
    option("pooling", "max", "How tokens become one vector: last (the last state), mean, max"),
    DROPOUT,
    CLASSES,
    LENGTH,
];

struct Cell {
    op_type: &'static str,
    gates: usize,
}

fn lstm_rule(name: &str, shape: &[usize]) -> Initial {
    // ONNX's order of gates is input, output, forget, cell.
    rule(name, shape, 4, Initial::GateBias { gates: 4, open: 2 })
}

fn gru_rule(name: &str, shape: &[usize]) -> Initial {
    rule(name, shape, 3, Initial::Zeros)
}

fn rule(name: &str, _: &[usize], gates: usize, bias: Initial) -> Initial {
    match name.rsplit_once('.') {
        Some((_, "input_weight")) => Initial::GlorotGates(gates),
        Some((_, "recurrent_weight")) => Initial::OrthogonalGates(gates),
        Some(("embedding", _)) => TABLE,
        Some(("classifier", "weight")) => Initial::Glorot,
        Some(("classifier", _)) => Initial::Zeros,
        _ => bias,
    }
}

fn build(b: &mut Builder, options: &Options, cell: &Cell) -> Result<ModelInput, ImportError> {
    let texts = Texts::declare(b, "");
    let (vocabulary, mut size) = (options.count("vocabulary")?, options.count("embedding")?);
    let dropout = options.number("dropout", [0.0, 0.99])?;
    // Layers take time as the first axis: turning the ids is cheaper than turning their vectors.
    let ids = transposed(b, "/embedding/Transpose", &texts.ids, &[1, 0]);
    let mut x = embedding(b, "embedding", &ids, [vocabulary, size])?;
    let lengths = b.reduce("ReduceSum", "/lengths/ReduceSum", "attention_mask", 1, false);
    let lengths = Node::new("Cast", "/lengths/Cast", &[&lengths], &[]);
    let lengths = b.push(lengths.with_attribute("to", ONNX_INT32));
    let directions = if options.flag("bidirectional")? { 2 } else { 1 };
    let hidden = options.count("hidden")?;
    let layer_count = options.count("layers")?;
    let is_last = options.choice("pooling", &["last", "mean", "max"])? == "last";
    let mut state = String::new();
    for index in 0..layer_count {
        let path = format!("layers.{index}");
        let layer = Layer { cell, path: &path, directions, hidden };
        x = b.dropout(&format!("/{path}/Dropout"), &x, dropout);
        let (y, last) = layer.build(b, &x, size, &lengths)?;
        (state, size) = (last, directions * hidden);
        let is_top = index + 1 == layer_count;
        // [steps, directions, batch, hidden]: the vectors of both directions become one, and above
        // the last layer a text's vectors come together.
        if !is_top {
            x = joined(b, &path, &y, &[0, 2, 1, 3], size);
        } else if !is_last {
            x = joined(b, &path, &y, &[2, 0, 1, 3], size);
        }
    }
    let vector = if is_last {
        let turned = transposed(b, "/state/Transpose", &state, &[1, 0, 2]);
        let shape = b.integers("state.shape", &[0, size as i64]);
        b.node("Reshape", "/state/Reshape", &[&turned, &shape])
    } else {
        pooled(b, options.choice("pooling", &["mean", "max"])?, &x, &texts.mask, size)
    };
    classifier(b, options, &vector, size)?;
    Ok(ModelInput::Text { length_max: options.count("length")? })
}

/// ONNX's number of i32, for `Cast`.
const ONNX_INT32: i64 = 6;

fn transposed(b: &mut Builder, name: &str, x: &str, perm: &[i64]) -> String {
    b.push(Node::new("Transpose", name, &[x], &[]).with_attribute("perm", perm.to_vec()))
}

/// Turns `y`, and makes one axis of its last two.
fn joined(b: &mut Builder, path: &str, y: &str, perm: &[i64], size: usize) -> String {
    let turned = transposed(b, &format!("/{path}/Transpose"), y, perm);
    let shape = b.integers("layers.shape", &[0, 0, size as i64]);
    b.node("Reshape", &format!("/{path}/Reshape"), &[&turned, &shape])
}

struct Layer<'a> {
    cell: &'a Cell,
    path: &'a str,
    directions: usize,
    hidden: usize,
}

impl Layer<'_> {
    /// The states after every step [steps, directions, batch, hidden], zero beyond a text's length,
    /// and after the last [directions, batch, hidden].
    fn build(
        &self,
        b: &mut Builder,
        x: &str,
        size: usize,
        lengths: &str,
    ) -> Result<(String, String), ImportError> {
        let Self { cell, path, directions, hidden } = *self;
        let rows = cell.gates * hidden;
        let input = b.weight(&format!("{path}.input_weight"), &[directions, rows, size])?;
        let state = b.weight(&format!("{path}.recurrent_weight"), &[directions, rows, hidden])?;
        let bias = b.weight(&format!("{path}.bias"), &[directions, 2 * rows])?;
        let direction = if directions == 2 { "bidirectional" } else { "forward" };
        let name = format!("/{path}/{}", cell.op_type);
        let mut node = Node::new(cell.op_type, &name, &[x, &input, &state, &bias, lengths], &[])
            .with_attribute("hidden_size", hidden as i64)
            .with_attribute("direction", direction);
        if cell.op_type == "GRU" {
            // The form that PyTorch has: one product for all gates.
            node = node.with_attribute("linear_before_reset", 1_i64);
        }
        let last = format!("{name}_state");
        let states = b.push_with(node, &last);
        Ok((states, last))
    }
}
