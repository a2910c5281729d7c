//! Where quantization goes: which nodes run in 8 bits, and which values carry a range.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use attar_graph::{Graph, Links, Model, Node, Use};
use attar_ops::infer_graph;
use attar_tensor::DType;

use super::attention::{QuantizedAttention, find_attention};
use super::nodes::weight_of;
use super::recurrent;
use crate::Context;

/// The values to quantize and who reads them in 8 bits.
#[derive(Debug, Default)]
pub(crate) struct Placement {
    /// Nodes with a constant weight, by index.
    pub(crate) products: Vec<usize>,
    /// Recurrent layers, by index.
    pub(crate) layers: Vec<usize>,
    /// Readers of each quantized value, as (node, input).
    pub(crate) readers: BTreeMap<String, Vec<(usize, usize)>>,
    /// Values that hold nothing but values of another, whose range they share, in graph order.
    pub(crate) shared: Vec<(String, String)>,
    /// The greatest level of values that have not 256.
    pub(crate) levels: BTreeMap<String, u16>,
    /// Values that convolutions produce, or that are computed from them alone.
    pub(crate) images: BTreeSet<String>,
    /// Convolutions that normalization follows, which keeps their results in float.
    pub(crate) unfolded_count: usize,
}

impl Placement {
    /// Products take 8-bit inputs. What convolutions produce stays in 8 bits through the
    /// activation after them, residual additions, gates, pooling and what moves values, so that a
    /// runtime can keep a whole image network in integers; what matrix products produce stays
    /// float, since normalization and attention follow.
    pub(crate) fn new<'a>(graph: &'a Graph, links: &'a Links<'a>, context: &Context) -> Self {
        Self::without(&BTreeSet::new(), graph, links, context)
    }

    /// As [`new`](Self::new), where the nodes of `left` stay in float.
    pub(crate) fn without<'a>(
        left: &BTreeSet<usize>,
        graph: &'a Graph,
        links: &'a Links<'a>,
        context: &Context,
    ) -> Self {
        let mut placement = Self::default();
        let mut images =
            Images { graph, links, values: BTreeSet::new(), functions: HashMap::new() };
        for (index, node) in graph.nodes.iter().enumerate() {
            if left.contains(&index) || context.exclude.matches(node.label()) {
                continue;
            }
            if let Some(weight) = weight_of(links, node) {
                if context.exclude.matches(weight.name) || !is_quantizable(node) {
                    continue;
                }
                placement.products.push(index);
                placement.read(&node.inputs[0], (index, 0));
                if node.is("Conv") {
                    let next = links.only_use(&node.outputs[0]);
                    let is_unfolded = next.is_some_and(|(_, next)| next.is("BatchNormalization"));
                    placement.unfolded_count += usize::from(is_unfolded);
                    let output = after_activation(links, node);
                    placement.read_by_all(links, output);
                    images.values.insert(output);
                }
                continue;
            }
            let Some(output) = node.outputs.first().filter(|_| node.outputs.len() == 1) else {
                continue;
            };
            if images.values.contains(output.as_str()) {
                continue;
            }
            if let Some(source) = images.function_source(node, None) {
                // What comes out of the last of several nodes is quantized, not what they hand on.
                if images.is_last(output, source) {
                    placement.read_by_all(links, output);
                    images.values.insert(output);
                } else {
                    images.functions.insert(output, source);
                }
            } else if images.is_carried(node) {
                let count = if is_move(node) { 1 } else { node.inputs.len() };
                for (input, name) in node.inputs[..count].iter().enumerate() {
                    placement.read(name, (index, input));
                }
                if is_move(node) {
                    placement.shared.push((output.clone(), node.inputs[0].clone()));
                }
                let output = if node.is("Add") { after_activation(links, node) } else { output };
                placement.read_by_all(links, output);
                images.values.insert(output);
            }
        }
        placement.images = images.values.into_iter().map(str::to_string).collect();
        placement
    }

    /// Q, K and V of attention are in 8 bits too, as `setting` says.
    pub(crate) fn add_attention(
        &mut self,
        graph: &Graph,
        links: &Links,
        context: &Context,
        setting: QuantizedAttention,
    ) {
        for readings in find_attention(graph, links, &context.exclude) {
            let is_wanted = match setting {
                QuantizedAttention::Auto => {
                    readings.iter().all(|reading| self.is_made_by_product(links, &reading.value))
                }
                QuantizedAttention::All => true,
                QuantizedAttention::Off => false,
            };
            if is_wanted {
                readings.iter().for_each(|reading| self.read(&reading.value, reading.reader));
            }
        }
    }

    /// Everything between products that has a form in integers reads 8-bit inputs, so that none of it is
    /// left in float.
    pub(crate) fn add_all(
        &mut self,
        left: &BTreeSet<usize>,
        model: &Model,
        links: &Links,
        context: &Context,
    ) {
        let (graph, facts) = (&model.graph, infer_graph(model));
        let is_float = |name: &str| {
            let dtype = facts.get(name).map(|fact| fact.dtype);
            links.constant(name).is_none() && dtype == Some(DType::F32)
        };
        let has_form = |node: &Node| {
            ["Add", "Concat", "Mul", "Sub", "Split", "GlobalAveragePool"]
                .iter()
                .any(|op| node.is(op))
                || FUNCTIONS.iter().any(|op| node.is(op))
                || is_move(node)
        };
        for (index, node) in graph.nodes.iter().enumerate() {
            if !has_form(node) || left.contains(&index) || context.exclude.matches(node.label()) {
                continue;
            }
            let count = if is_move(node) || node.is("Split") { 1 } else { node.inputs.len() };
            for (input, name) in node.inputs[..count].iter().enumerate() {
                if !name.is_empty() && is_float(name) {
                    self.read(name, (index, input));
                }
            }
            if (is_move(node) || node.is("Split")) && is_float(&node.inputs[0]) {
                let outputs = node.outputs.iter().filter(|output| !output.is_empty());
                for output in outputs {
                    self.shared.push((output.clone(), node.inputs[0].clone()));
                }
            }
        }
    }

    /// Recurrent layers read 8-bit inputs too.
    pub(crate) fn add_layers(
        &mut self,
        left: &BTreeSet<usize>,
        graph: &Graph,
        links: &Links,
        context: &Context,
    ) {
        self.layers = recurrent::layers(graph, links, context);
        self.layers.retain(|index| !left.contains(index));
        for index in self.layers.clone() {
            self.read(&graph.nodes[index].inputs[0], (index, 0));
        }
    }

    /// Whether a product in 8 bits gives the value, a bias perhaps added.
    fn is_made_by_product(&self, links: &Links, value: &str) -> bool {
        let is_product = |value: &str| {
            links.producer(value).is_some_and(|(index, _)| self.products.contains(&index))
        };
        let is_biased = |node: &Node| {
            let [a, b] = node.inputs.as_slice() else { return false };
            let adds = |x: &str, bias: &str| is_product(x) && links.constant(bias).is_some();
            node.is("Add") && (adds(a, b) || adds(b, a))
        };
        is_product(value) || links.producer(value).is_some_and(|(_, node)| is_biased(node))
    }

    /// The greatest level of a value.
    pub(crate) fn level_max(&self, value: &str) -> u16 {
        self.levels.get(value).copied().unwrap_or(255)
    }

    fn read(&mut self, value: &str, reader: (usize, usize)) {
        let readers = self.readers.entry(value.into()).or_default();
        if !readers.contains(&reader) {
            readers.push(reader);
        }
    }

    fn read_by_all(&mut self, links: &Links, value: &str) {
        for &Use { node, input } in links.uses(value) {
            if let Some(input) = input {
                self.read(value, (node, input));
            }
        }
    }
}

/// A Gemm that scales is not one that runtimes have in 8 bits.
fn is_quantizable(node: &Node) -> bool {
    !node.is("Gemm")
        || (node.float_or("alpha", 1.0) == Ok(1.0)
            && node.float_or("beta", 1.0) == Ok(1.0)
            && node.int_or("transA", 0) == Ok(0))
}

/// What convolutions produce, and what is computed from it.
struct Images<'a> {
    graph: &'a Graph,
    links: &'a Links<'a>,
    /// Those in 8 bits.
    values: BTreeSet<&'a str>,
    /// Others that are computed element by element from one of these.
    functions: HashMap<&'a str, &'a str>,
}

/// Functions of one value, element by element, perhaps with scalars.
pub(super) const FUNCTIONS: &[&str] =
    &["Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"];
const OPERATIONS: &[&str] = &["Add", "Div", "Mul", "Sub"];

/// Operators that choose or move values: results lie on the grid of the input.
fn is_move(node: &Node) -> bool {
    let is_nearest = || node.text("mode").is_ok_and(|mode| mode.is_none_or(|m| m == "nearest"));
    let moves = ["Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"];
    moves.iter().any(|op| node.is(op)) || (node.is("Resize") && is_nearest())
}

impl<'a> Images<'a> {
    /// The 8-bit value that a node computes a function of, element by element; of its inputs,
    /// `known` is taken for such a function of that value.
    fn function_source(
        &self,
        node: &'a Node,
        known: Option<(&'a str, &'a str)>,
    ) -> Option<&'a str> {
        let is_listed = |list: &[&str]| list.iter().any(|op| node.is(op));
        if !is_listed(FUNCTIONS) && !is_listed(OPERATIONS) {
            return None;
        }
        let mut source = None;
        for name in node.inputs.iter().map(String::as_str).filter(|name| !name.is_empty()) {
            let constant = self.links.constant(name);
            let found = match (self.functions.get(name), known) {
                _ if constant.is_some_and(|scalar| scalar.element_count() == 1) => continue,
                (_, Some((value, source))) if value == name => source,
                (Some(source), _) => source,
                _ if self.values.contains(name) => name,
                _ => return None,
            };
            if source.is_some_and(|other| other != found) {
                return None;
            }
            source = Some(found);
        }
        source
    }

    /// Whether anything but further functions of `source` reads the value.
    fn is_last(&self, value: &'a str, source: &'a str) -> bool {
        let uses = self.links.uses(value);
        let goes_on = |each: &Use| {
            let known = Some((value, source));
            let reader = &self.graph.nodes[each.node];
            each.input.is_some() && self.function_source(reader, known) == Some(source)
        };
        uses.is_empty() || !uses.iter().all(goes_on)
    }

    /// Whether a node has a form over 8-bit inputs, and has them.
    fn is_carried(&self, node: &Node) -> bool {
        let is_image = |name: &String| self.values.contains(name.as_str());
        let carriers = ["Add", "AveragePool", "Concat", "GlobalAveragePool", "Mul"];
        (carriers.iter().any(|op| node.is(op)) && node.inputs.iter().all(is_image))
            || (is_move(node) && is_image(&node.inputs[0]))
    }
}

/// What the node produces, after the clamp that follows it and that a runtime runs with it.
fn after_activation<'a>(links: &Links<'a>, node: &'a Node) -> &'a str {
    match links.only_use(&node.outputs[0]) {
        Some((_, next)) if next.is("Relu") || next.is("Clip") => &next.outputs[0],
        _ => &node.outputs[0],
    }
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;
    use attar_tensor::Tensor;

    use super::*;

    /// The values in 8 bits of a graph with a convolution's weight `w`.
    fn quantized(text: &str) -> Vec<String> {
        let mut graph = graph_from_text(text);
        graph.set_initializer("w", Tensor::new(&[2, 2, 1, 1], &[1.0_f32, 2.0, 3.0, 4.0]));
        graph.inputs.retain(|input| input.name != "w");
        let links = Links::new(&graph);
        let context = Context::new(&attar_runtime::Builtin);
        Placement::new(&graph, &links, &context).readers.into_keys().collect()
    }

    #[test]
    fn a_function_of_several_nodes_is_quantized_where_it_ends() {
        let found = quantized(
            "three = [3]\nsix = [6]\nlow = [0]\nc = Conv(x, w)\na = Add(c, three)\n\
             l = Clip(a, low, six)\nm = Mul(c, l)\nd = Div(m, six)\ny = Conv(d, w)",
        );
        assert_eq!(found, ["c", "d", "x"]);
    }

    #[test]
    fn gates_and_branches_stay_in_integers() {
        let found = quantized(
            "c = Conv(x, w)\ng = GlobalAveragePool(c)\ns = Conv(g, w)\nh = HardSigmoid(s)\n\
             m = Mul(c, h)\np = MaxPool(m, kernel_shape=2,2)\nk = Concat(p, p, axis=1)\n\
             y = Softmax(k)",
        );
        assert_eq!(found, ["c", "g", "h", "k", "m", "p", "s", "x"]);
    }

    #[test]
    fn a_residual_addition_is_quantized_behind_its_clamp() {
        let found = quantized("c = Conv(x, w)\na = Add(c, c)\nr = Relu(a)\ny = Conv(r, w)");
        assert_eq!(found, ["c", "r", "x"]);
    }
}
