//! Convolutions, and what is computed between them, with channels as the last axis: tiles of the
//! convolution kernels then read and write whole vectors, and nothing is moved in between.

use std::collections::{HashMap, HashSet};

use attar_graph::{Edit, Graph, Links, Model, Node, Plan};
use attar_tensor::{DType, Tensor};

use crate::quantized_conv::ADDEND;
use crate::{ATTAR_DOMAIN, Facts, MICROSOFT_DOMAIN, infer_graph, operator};

pub fn plan(model: &Model) -> Plan {
    let facts = infer_graph(model);
    let links = Links::new(&model.graph);
    let mut layout = Layout {
        facts: &facts,
        links: &links,
        last_of: HashMap::new(),
        needs_first: HashSet::new(),
        plan: Plan::default(),
    };
    for (index, node) in model.graph.nodes.iter().enumerate() {
        match layout.converted(node) {
            Some(mut node) => {
                let output = node.outputs[0].clone();
                node.outputs[0] = last_name(&output);
                layout.last_of.insert(output, true);
                layout.plan.push(Edit::ReplaceNode { index, node });
            }
            None => match layout.transposed(node) {
                Some(node) => layout.plan.push(Edit::ReplaceNode { index, node }),
                None => layout.needs_first.extend(node.inputs.iter().cloned()),
            },
        }
    }
    layout.needs_first.extend(model.graph.outputs.iter().map(|output| output.name.clone()));
    layout.finished(&model.graph)
}

struct Layout<'a> {
    facts: &'a Facts,
    links: &'a Links<'a>,
    /// Values that exist with channels last; whether they exist in no other form.
    last_of: HashMap<String, bool>,
    /// Values that some node reads with channels first.
    needs_first: HashSet<String>,
    plan: Plan,
}

/// Functions of one value, element by element.
const UNARY: &[&str] = &[
    "Abs",
    "Clip",
    "Dropout",
    "Erf",
    "Exp",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Neg",
    "Relu",
    "Sigmoid",
    "Sqrt",
    "Tanh",
];
const BINARY: &[&str] = &["Add", "Div", "Mul", "Sub"];

fn last_name(value: &str) -> String {
    format!("{value}/channels_last")
}

impl Layout<'_> {
    /// The node over values with channels last, if it has such a form.
    fn converted(&mut self, node: &Node) -> Option<Node> {
        if node.outputs.len() != 1 {
            return None;
        }
        let is_conv = node.is("Conv") || is_own(node, "FusedConv");
        if is_conv || node.is("ConvTranspose") {
            return self.convolution(node);
        }
        if is_own(node, "QuantizedConv") {
            let values = [node.input(0), node.input(ADDEND)].into_iter().flatten();
            let values: Vec<String> = values.map(Into::into).collect();
            self.rank(&values[0])?;
            let mut node = self.with_inputs(node, &values);
            node.op_type = "ChannelsLastQuantizedConv".into();
            return Some(node);
        }
        if is_own(node, "Spectrum") {
            return Some(node.clone().with_attribute("channels_last", 1_i64));
        }
        let is_last = |input: &String| self.last_of.contains_key(input);
        if is_own(node, "LevelTable") && is_last(&node.inputs[0]) {
            return Some(self.with_inputs(node, &node.inputs[..1]));
        }
        if node.domain == MICROSOFT_DOMAIN && node.inputs.iter().any(is_last) {
            return self.quantized(node);
        }
        let is_fake = is_own(node, "FakeQuantize") || is_own(node, "QuantizeDequantize");
        if is_fake && is_last(&node.inputs[0]) {
            let is_single = node.inputs[1..].iter().all(|input| self.rank(input) == Some(0));
            return is_single.then(|| self.with_inputs(node, &node.inputs[..1]));
        }
        let is_norm = node.is("BatchNormalization") || is_own(node, "FusedBatchNormalization");
        if is_norm && is_last(&node.inputs[0]) {
            let mut node = self.with_inputs(node, &node.inputs[..1]);
            node.op_type = "ChannelsLastBatchNormalization".into();
            node.domain = ATTAR_DOMAIN.into();
            return Some(node);
        }
        if !node.domain.is_empty() || !node.inputs.iter().any(is_last) {
            return None;
        }
        match node.op_type.as_str() {
            op if UNARY.contains(&op) => {
                let scalars = node.inputs[1..].iter().all(|input| {
                    input.is_empty() || self.rank(input).is_some_and(|rank| rank <= 1)
                });
                scalars.then(|| self.with_inputs(node, &node.inputs[..1]))
            }
            "DequantizeLinear" | "QuantizeLinear" => {
                let is_scalar = node.inputs[1..].iter().all(|input| {
                    let shape = self.facts.get(input).and_then(|fact| fact.shape.as_ref());
                    shape.is_some_and(Vec::is_empty)
                });
                let is_known = self.facts.get(&node.inputs[0]).is_some_and(|fact| {
                    matches!(fact.dtype, DType::F32 | DType::U8) && fact.rank().is_some()
                });
                (is_scalar && is_known).then(|| self.with_inputs(node, &node.inputs[..1]))
            }
            op if BINARY.contains(&op) => self.binary(node),
            "GlobalAveragePool" => {
                let mut node = self.with_inputs(node, &node.inputs);
                node.op_type = "ChannelsLastGlobalAveragePool".into();
                node.domain = ATTAR_DOMAIN.into();
                Some(node)
            }
            "Concat" => self.concat(node),
            "Resize" => self.resize(node),
            _ => None,
        }
    }

    /// Of a value that is no constant: its shape with channels last, if it is a vector.
    fn vector_shape(&self, value: &str, rank: usize) -> Option<Vec<usize>> {
        let fact = self.facts.get(value).filter(|fact| fact.dtype == DType::F32)?;
        let sizes = fact.shape.as_ref()?.iter().map(|dim| usize::try_from(dim.known()?).ok());
        moved_shape(&sizes.collect::<Option<Vec<_>>>()?, rank)
    }

    fn rank(&self, value: &str) -> Option<usize> {
        self.facts.get(value)?.rank()
    }

    fn is_f32(&self, value: &str) -> bool {
        self.facts.get(value).is_some_and(|fact| fact.dtype == DType::F32)
    }

    fn convolution(&mut self, node: &Node) -> Option<Node> {
        let (weight, addend) = (node.input(1)?, node.input(3));
        let values = [node.input(0), Some(weight), addend];
        let is_f32 = values.into_iter().flatten().all(|value| self.is_f32(value));
        let rank = self.rank(weight)?;
        if !is_f32 || rank < 3 || self.rank(node.input(0)?)? != rank {
            return None;
        }
        let values: Vec<String> =
            [node.input(0), addend].into_iter().flatten().map(Into::into).collect();
        let mut converted = self.with_inputs(node, &values);
        let name = if node.is("ConvTranspose") { "ConvTranspose" } else { "Conv" };
        converted.op_type = format!("ChannelsLast{name}");
        converted.domain = ATTAR_DOMAIN.into();
        Some(converted)
    }

    /// An operator of ONNX Runtime over levels of u8.
    fn quantized(&mut self, node: &Node) -> Option<Node> {
        let (first, step) = match node.op_type.as_str() {
            "QLinearAdd" | "QLinearMul" => (0, 3),
            "QLinearConcat" => (2, 3),
            "QLinearAveragePool" | "QLinearGlobalAveragePool" => (0, node.inputs.len()),
            _ => return None,
        };
        let last = if first == 0 { 6.min(node.inputs.len()) } else { node.inputs.len() };
        let values = node.inputs[first..last].iter().step_by(step);
        let values: Vec<String> = values.cloned().collect();
        let rank = self.rank(&values[0]).filter(|&rank| rank >= 3)?;
        let is_u8 = |value: &String| {
            let fact = self.facts.get(value);
            fact.is_some_and(|fact| fact.dtype == DType::U8 && fact.rank() == Some(rank))
        };
        if !values.iter().all(is_u8) || values.iter().any(|v| self.links.constant(v).is_some()) {
            return None;
        }
        let converted = self.with_inputs(node, &values);
        match node.op_type.as_str() {
            "QLinearAdd" | "QLinearMul" => Some(converted),
            "QLinearConcat" => {
                let axis = node.int_or("axis", 1).ok()?;
                let is_channels = axis == 1 || axis == 1 - rank as i64;
                is_channels.then(|| converted.with_attribute("axis", rank as i64 - 1))
            }
            _ => {
                let is_first = node.int_or("channels_last", 0) == Ok(0);
                is_first.then(|| converted.with_attribute("channels_last", 1_i64))
            }
        }
    }

    /// The node reading some of its inputs with channels last.
    fn with_inputs(&mut self, node: &Node, values: &[String]) -> Node {
        let mut node = node.clone();
        for value in values {
            let last = self.last(value);
            node.inputs.iter_mut().filter(|input| *input == value).for_each(|input| {
                input.clone_from(&last);
            });
        }
        node
    }

    /// The name of a value with channels last, made from the other form if it is new.
    fn last(&mut self, value: &str) -> String {
        let name = last_name(value);
        if !self.last_of.contains_key(value) {
            let node = Node::new("ToChannelsLast", &name, &[value], &[&name]);
            self.plan.push(Edit::AddNode { node: node.with_domain(ATTAR_DOMAIN) });
            self.last_of.insert(value.into(), false);
        }
        name
    }

    fn binary(&mut self, node: &Node) -> Option<Node> {
        let rank = node.inputs.iter().filter(|input| self.last_of.contains_key(*input));
        let rank = rank.filter_map(|input| self.rank(input)).max().filter(|&rank| rank >= 3)?;
        // Constants that broadcast are moved along, and so are vectors of channels that training
        // changes; other operands must have all axes.
        let (mut constants, mut vectors) = (Vec::new(), Vec::new());
        for input in &node.inputs {
            match self.links.constant(input) {
                Some(constant) if constant.element_count() == 1 && constant.rank() <= rank => {}
                Some(constant) => {
                    let shape = moved_shape(constant.shape(), rank)?;
                    constants.push((input.clone(), constant.reshaped(&shape)));
                }
                None if self.last_of.contains_key(input) => {}
                None if let Some(shape) = self.vector_shape(input, rank) => {
                    vectors.push((input.clone(), shape));
                }
                None if self.rank(input) == Some(rank) && self.is_f32(input) => {}
                None => return None,
            }
        }
        let is_vector = |input: &String| vectors.iter().any(|(vector, _)| vector == input);
        let is_value = |input: &&String| self.links.constant(input).is_none() && !is_vector(input);
        let values: Vec<String> = node.inputs.iter().filter(is_value).cloned().collect();
        let mut converted = self.with_inputs(node, &values);
        for (index, (input, shape)) in vectors.into_iter().enumerate() {
            let name = format!("{}/vector{index}", last_name(&node.outputs[0]));
            let sizes = format!("{name}/shape");
            let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
            let tensor = Tensor::new(&[shape.len()], &shape);
            self.plan.push(Edit::SetInitializer { name: sizes.clone(), tensor });
            let reshape = Node::new("Reshape", &name, &[&input, &sizes], &[&name]);
            self.plan.push(Edit::AddNode { node: reshape });
            converted.inputs.iter_mut().filter(|i| **i == input).for_each(|i| i.clone_from(&name));
        }
        for (input, tensor) in constants {
            let name = last_name(&input);
            converted.inputs.iter_mut().filter(|i| **i == input).for_each(|i| i.clone_from(&name));
            self.plan.push(Edit::SetInitializer { name, tensor });
        }
        Some(converted)
    }

    fn concat(&mut self, node: &Node) -> Option<Node> {
        let rank = self.rank(&node.inputs[0])?;
        let axis = node.int_or("axis", i64::MIN).ok()?;
        let is_channels = axis == 1 || axis == 1 - rank as i64;
        let fits = |input: &String| self.rank(input) == Some(rank) && self.is_f32(input);
        if !is_channels || rank < 3 || !node.inputs.iter().all(fits) {
            return None;
        }
        let converted = self.with_inputs(node, &node.inputs);
        Some(converted.with_attribute("axis", rank as i64 - 1))
    }

    /// A `Resize` whose constant scales or sizes cover all axes.
    fn resize(&mut self, node: &Node) -> Option<Node> {
        operator("", "Resize")?;
        let rank = self.rank(&node.inputs[0])?;
        if node.attribute("axes").is_some() || rank < 3 {
            return None;
        }
        let mut converted = node.clone();
        for index in 1..node.inputs.len() {
            let Some(input) = node.input(index) else { continue };
            let constant = self.links.constant(input)?;
            if constant.element_count() == 0 {
                continue;
            }
            if index == 1 || constant.shape() != [rank] {
                return None;
            }
            let name = last_name(&format!("{input}/{rank}"));
            let tensor = match constant.dtype() {
                DType::F32 => rotated::<f32>(constant),
                DType::I64 => rotated::<i64>(constant),
                _ => return None,
            };
            self.plan.push(Edit::SetInitializer { name: name.clone(), tensor });
            converted.inputs[index] = name;
        }
        converted.inputs[0] = self.last(&node.inputs[0]);
        Some(converted)
    }

    /// A `Transpose` of a value with channels last, which it reads as it lies there.
    fn transposed(&self, node: &Node) -> Option<Node> {
        let input = node.input(0).filter(|_| node.is("Transpose"))?;
        let rank = self.rank(input)?;
        let perm = node.ints("perm").ok()??;
        if self.last_of.get(input) != Some(&true) || perm.len() != rank {
            return None;
        }
        // Where each axis of the original lies.
        let place = |axis: i64| match axis {
            0 => 0,
            1 => rank as i64 - 1,
            other => other - 1,
        };
        let perm: Vec<i64> = perm.iter().map(|&axis| place(axis)).collect();
        let mut converted = node.clone().with_attribute("perm", perm);
        converted.inputs[0] = last_name(input);
        Some(converted)
    }

    /// Gives values that are still read with channels first back in that form.
    fn finished(mut self, graph: &Graph) -> Plan {
        for value in graph.nodes.iter().flat_map(|node| &node.outputs) {
            let is_captured = || self.links.uses(value).iter().any(|each| each.input.is_none());
            let is_last = self.last_of.get(value) == Some(&true);
            if is_last && (self.needs_first.contains(value) || is_captured()) {
                let node = Node::new("ToChannelsFirst", value, &[&last_name(value)], &[value]);
                self.plan.push(Edit::AddNode { node: node.with_domain(ATTAR_DOMAIN) });
            }
        }
        self.plan
    }
}

fn is_own(node: &Node, op_type: &str) -> bool {
    node.domain == ATTAR_DOMAIN && node.op_type == op_type
}

fn rotated<T: attar_tensor::Element>(vector: &Tensor) -> Tensor {
    let mut values = vector.values::<T>().into_owned();
    values[1..].rotate_left(1);
    Tensor::new(vector.shape(), &values)
}

/// The shape of what broadcasts against channels-first values, for channels last: only of what has
/// a single axis that is not 1.
fn moved_shape(shape: &[usize], rank: usize) -> Option<Vec<usize>> {
    let mut moved = vec![1; rank.checked_sub(shape.len())?];
    moved.extend(shape);
    moved[1..].rotate_left(1);
    let is_vector = moved.iter().filter(|&&size| size != 1).count() <= 1;
    is_vector.then_some(moved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::testing::graph_from_text;

    fn op_types(text: &str) -> Vec<String> {
        let graph = graph_from_text(text);
        let opsets = [(String::new(), 17)].into_iter().collect();
        let mut model = Model { graph, opsets, ..Model::default() };
        model.graph.set_initializer("w", Tensor::new(&[2, 2, 1, 1], &[1.0_f32, 2.0, 3.0, 4.0]));
        model.graph.inputs.retain(|input| input.name != "w");
        let plan = plan(&model);
        attar_graph::apply(&mut model.graph, &plan).unwrap();
        model.graph.nodes.iter().map(|node| node.op_type.clone()).collect()
    }

    #[test]
    fn what_lies_between_convolutions_is_not_moved() {
        let found = op_types(
            "x: f32[1, 2, 4, 4]\na = Conv(x, w)\nb = Relu(a)\nc = Add(b, a)\ny = Conv(c, w)",
        );
        let expected = [
            "ToChannelsLast",
            "ChannelsLastConv",
            "Relu",
            "Add",
            "ChannelsLastConv",
            "ToChannelsFirst",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn other_readers_get_the_form_they_know() {
        let found = op_types("x: f32[1, 2, 4, 4]\na = Conv(x, w)\ny = Softmax(a)\nz = Relu(a)");
        assert_eq!(found.iter().filter(|op| *op == "ToChannelsFirst").count(), 2);
        let found = op_types("x: f32[1, 2, 4, 4]\na = Conv(x, w)\ny = Transpose(a, perm=0,2,3,1)");
        assert_eq!(found, ["ToChannelsLast", "ChannelsLastConv", "Transpose"]);
    }
}
