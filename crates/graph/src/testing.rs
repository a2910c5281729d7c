//! Graphs written as text, for tests.

use attar_tensor::{DType, Tensor};

use crate::{AttributeValue, Dim, Graph, Node, Value};

/// Reads a graph, one definition a line.
///
/// `w = [1 2; 3 4]` is an f32 initializer (`;` between rows; one row without `;` is a vector);
/// `y = Softmax(x, axis=1)` is a node, `a, b = Split(x)` one with two outputs; lists are written
/// `perm=1,0`. Names that nothing defines are f32 inputs of unknown shape, typed by
/// `x: f32[batch, 3]`; what nothing reads is an output.
///
/// # Panics
/// On text that is none of these.
pub fn graph_from_text(text: &str) -> Graph {
    let mut graph = Graph { name: "test".into(), ..Graph::default() };
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some((name, declared)) = line.split_once(':').filter(|(n, _)| !n.contains('=')) {
            graph.inputs.push(declared_input(name.trim(), declared.trim()));
            continue;
        }
        let (left, right) = line.split_once('=').expect("a definition has `=`");
        let (left, right) = (left.trim(), right.trim());
        if right.starts_with('[') {
            graph.set_initializer(left, matrix(right));
        } else {
            graph.nodes.push(node(left, right));
        }
    }
    name_the_ends(&mut graph);
    graph
}

fn declared_input(name: &str, declared: &str) -> Value {
    let (dtype, dims) = declared.split_once('[').expect("a type is written f32[2, n]");
    let dtype = DType::from_name(dtype).unwrap_or_else(|| panic!("no type `{dtype}`"));
    let dims = dims.trim_end_matches(']').split(',').map(str::trim).filter(|dim| !dim.is_empty());
    Value::tensor(name, dtype, dims.map(crate::parse_dim).collect())
}

fn matrix(text: &str) -> Tensor {
    let text = text.trim_matches(['[', ']']);
    let rows: Vec<Vec<f32>> = text
        .split(';')
        .map(|row| row.split_whitespace().map(|x| x.parse().expect("a number")).collect())
        .collect();
    let values: Vec<f32> = rows.concat();
    match rows.len() {
        1 => Tensor::new(&[values.len()], &values),
        count => Tensor::new(&[count, values.len() / count], &values),
    }
}

fn node(outputs: &str, call: &str) -> Node {
    let (op_type, rest) = call.split_once('(').expect("a node is written Op(…)");
    let arguments = rest.trim_end().strip_suffix(')').expect("a node ends with `)`");
    let outputs: Vec<&str> = outputs.split(',').map(str::trim).collect();
    let mut node = Node::new(op_type, outputs[0], &[], &outputs);
    let mut attribute: Option<(String, String)> = None;
    let arguments = arguments.split(',').map(str::trim).filter(|_| !arguments.trim().is_empty());
    for argument in arguments {
        if let Some((name, value)) = argument.split_once('=') {
            set_attribute(&mut node, attribute.take());
            attribute = Some((name.trim().into(), value.trim().into()));
        } else if let Some((_, value)) = &mut attribute {
            value.push(' ');
            value.push_str(argument);
        } else {
            node.inputs.push(argument.into());
        }
    }
    set_attribute(&mut node, attribute);
    node
}

fn set_attribute(node: &mut Node, attribute: Option<(String, String)>) {
    let Some((name, text)) = attribute else { return };
    let parts: Vec<&str> = text.split(' ').collect();
    let ints: Option<Vec<i64>> = parts.iter().map(|part| part.parse().ok()).collect();
    let floats = || parts.iter().map(|part| part.parse().expect("a number")).collect();
    let strings = || parts.iter().map(|part| part.as_bytes().to_vec().into()).collect();
    let is_recurrent = matches!(node.op_type.as_str(), "LSTM" | "GRU" | "RNN");
    let value: AttributeValue = match (ints, text.parse::<f32>()) {
        _ if name == "activations" => AttributeValue::Strings(strings()),
        _ if name.starts_with("activation_") && is_recurrent => AttributeValue::Floats(floats()),
        (Some(ints), _) if ints.len() == 1 && !is_list(&name) => ints[0].into(),
        (Some(ints), _) => ints.into(),
        (None, Ok(float)) => float.into(),
        (None, Err(_)) => text.as_str().into(),
    };
    node.attributes.insert(name, value.into());
}

/// Attributes that are lists even with one element.
fn is_list(name: &str) -> bool {
    matches!(
        name,
        "axes"
            | "perm"
            | "pads"
            | "output_padding"
            | "strides"
            | "dilations"
            | "kernel_shape"
            | "split"
            | "shape"
            | "starts"
            | "ends"
            | "qkv_hidden_sizes"
            | "scan_input_axes"
            | "scan_output_axes"
            | "scan_input_directions"
            | "scan_output_directions"
    )
}

fn name_the_ends(graph: &mut Graph) {
    let unknown = |name: &str| {
        let mut value = Value::tensor(name, DType::F32, Vec::<Dim>::new());
        value.value_type = Some(crate::ValueType::Tensor { dtype: Some(DType::F32), shape: None });
        value
    };
    let produced: Vec<String> =
        graph.nodes.iter().flat_map(|node| node.outputs.iter().cloned()).collect();
    let read: Vec<String> =
        graph.nodes.iter().flat_map(|node| node.inputs.iter().cloned()).collect();
    for name in read.iter().filter(|name| !name.is_empty()) {
        let is_defined = produced.contains(name)
            || graph.initializers.contains_key(name)
            || graph.inputs.iter().any(|input| input.name == *name);
        if !is_defined {
            graph.inputs.push(unknown(name));
        }
    }
    for name in produced.iter().filter(|name| !name.is_empty() && !read.contains(name)) {
        graph.outputs.push(unknown(name));
    }
}
