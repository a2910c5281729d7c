//! A convolution and what follows it → `FusedConv`: constant factors and terms go into weights and
//! bias, then a residual addition, an activation, and one factor and term after it.

use attar_graph::{AttributeValue, Edit, Links, Model, Node, Plan};
use attar_tensor::{DType, Tensor};

use super::{scalar, with_scalar};
use crate::{ATTAR_DOMAIN, Facts, infer_graph};

pub fn plan(model: &Model) -> Plan {
    let facts = infer_graph(model);
    let links = Links::new(&model.graph);
    let mut plan = Plan::default();
    let mut taken = vec![false; model.graph.nodes.len()];
    let is_conv = |node: &Node| node.is("Conv") || node.is("ConvTranspose");
    // Later convolutions first: of two that meet in an addition, the later one takes it.
    for (index, node) in model.graph.nodes.iter().enumerate().rev().filter(|(_, n)| is_conv(n)) {
        let mut chain = Chain::new(model, &links, &facts, index, &taken);
        if node.is("Conv") {
            chain.extend();
        } else {
            chain.fold_constants();
        }
        let absorbed = chain.absorbed.clone();
        if let Some((&last, before)) = absorbed.split_last() {
            let (node, constants) = chain.finished();
            absorbed.iter().for_each(|&index| taken[index] = true);
            plan.edits.extend(before.iter().map(|&index| Edit::RemoveNode { index }));
            plan.push(Edit::RemoveNode { index });
            let index = last;
            let set = |(name, tensor)| Edit::SetInitializer { name, tensor };
            plan.edits.extend(constants.into_iter().map(set));
            plan.push(Edit::ReplaceNode { index, node });
        }
    }
    plan
}

/// A convolution while it takes in the nodes behind it.
struct Chain<'a> {
    model: &'a Model,
    links: &'a Links<'a>,
    facts: &'a Facts,
    taken: &'a [bool],
    node: Node,
    /// Weights and bias in f64, once something was folded into them.
    folded: Option<(Vec<f64>, Vec<f64>)>,
    /// What the chain gives so far.
    output: &'a str,
    /// Nodes taken in, in order.
    absorbed: Vec<usize>,
}

impl<'a> Chain<'a> {
    fn new(
        model: &'a Model,
        links: &'a Links<'a>,
        facts: &'a Facts,
        index: usize,
        taken: &'a [bool],
    ) -> Self {
        let node = &model.graph.nodes[index];
        let (folded, absorbed, output) = (None, Vec::new(), node.outputs[0].as_str());
        Self { model, links, facts, taken, node: node.clone(), folded, output, absorbed }
    }

    fn extend(&mut self) {
        self.fold_constants();
        self.take_addend();
        let is_plain = self.take_activation();
        if is_plain {
            self.take_affine("Mul", "scale", 1.0);
            self.take_affine("Add", "shift", 0.0);
        }
    }

    /// The only reader of what the chain gives.
    fn next(&self) -> Option<(usize, &'a Node)> {
        self.links.only_use(self.output).filter(|&(index, _)| !self.taken[index])
    }

    fn absorb(&mut self, index: usize) {
        self.absorbed.push(index);
        self.output = self.model.graph.nodes[index].outputs[0].as_str();
    }

    fn weight(&self) -> Option<&'a Tensor> {
        let weight = self.links.constant(self.node.input(1)?)?;
        (weight.dtype() == DType::F32 && weight.rank() >= 3).then_some(weight)
    }

    /// Outputs of a convolution: the second axis of a transposed one's weights, by group.
    fn outputs(&self, weight: &Tensor) -> Option<usize> {
        if self.node.is("Conv") {
            return Some(weight.shape()[0]);
        }
        (self.node.int_or("group", 1) == Ok(1)).then(|| weight.shape()[1])
    }

    fn fold_constants(&mut self) {
        while let Some((index, node)) = self.next() {
            if self.fold(node).is_none() {
                return;
            }
            self.absorb(index);
        }
    }

    /// Takes a factor or term per output into weights and bias.
    fn fold(&mut self, node: &Node) -> Option<()> {
        let weight = self.weight()?;
        let outputs = self.outputs(weight)?;
        let (a, b) = (node.input(0)?, node.input(1)?);
        let is_left = a == self.output;
        let values = self.per_output(if is_left { b } else { a }, weight.rank(), outputs)?;
        if self.folded.is_none() {
            let bias = match self.node.input(2) {
                Some(name) => {
                    let bias =
                        self.links.constant(name).filter(|bias| bias.shape() == [outputs])?;
                    bias.to_f64()?
                }
                None => vec![0.0; outputs],
            };
            self.folded = Some((weight.to_f64()?, bias));
        }
        let is_transposed = !self.node.is("Conv");
        let (weights, bias) = self.folded.as_mut()?;
        let scale = |weights: &mut [f64], bias: &mut [f64], factor: &dyn Fn(f64) -> f64| {
            let taps: usize = weight.shape()[2..].iter().product();
            let each = if is_transposed { taps } else { taps * weight.shape()[1] };
            for (i, w) in weights.iter_mut().enumerate() {
                *w *= factor(values[i / each % outputs]);
            }
            bias.iter_mut().zip(&values).for_each(|(b, &value)| *b *= factor(value));
        };
        match node.op_type.as_str() {
            "Mul" => scale(weights, bias, &|value| value),
            "Div" if is_left => scale(weights, bias, &|value| 1.0 / value),
            "Add" => bias.iter_mut().zip(&values).for_each(|(b, value)| *b += value),
            "Sub" if is_left => bias.iter_mut().zip(&values).for_each(|(b, value)| *b -= value),
            _ => return None,
        }
        Some(())
    }

    /// A constant that has one value per output, or one for all.
    fn per_output(&self, name: &str, rank: usize, outputs: usize) -> Option<Vec<f64>> {
        let constant = self.links.constant(name).filter(|c| c.dtype() == DType::F32)?;
        let shape = constant.shape();
        if shape.len() > rank {
            return None;
        }
        let channel = (shape.len() + 1).checked_sub(rank);
        let fits = shape
            .iter()
            .enumerate()
            .all(|(axis, &size)| size == 1 || (Some(axis) == channel && size == outputs));
        let values = constant.to_f64().filter(|_| fits)?;
        Some((0..outputs).map(|o| values[o % values.len()]).collect())
    }

    /// An addition of another value of the same shape.
    fn take_addend(&mut self) -> Option<()> {
        let (index, node) = self.next().filter(|(_, node)| node.is("Add"))?;
        let (a, b) = (node.input(0)?, node.input(1)?);
        let other = if a == self.output { b } else { a };
        let shape = |value: &str| self.facts.get(value).and_then(|fact| fact.shape.as_ref());
        let (own, others) = (shape(self.output)?, shape(other)?);
        let is_f32 = self.facts.get(other)?.dtype == DType::F32;
        let is_same = own.len() == others.len()
            && own.iter().zip(others).all(|(a, b)| a.same_as(b))
            && other != self.output;
        if !is_same || !is_f32 || self.links.constant(other).is_some() {
            return None;
        }
        self.node.inputs.resize(3, String::new());
        self.node.inputs.push(other.to_string());
        self.absorb(index);
        Some(())
    }

    /// Takes the activation, if there is one; whether a factor may follow.
    fn take_activation(&mut self) -> bool {
        if self.take_silu().is_some() {
            return false;
        }
        let Some((index, node)) = self.next() else { return true };
        let float = |name: &str, default: f32| node.float_or(name, default).unwrap_or(default);
        let (params, is_plain) = match node.op_type.as_str() {
            _ if !node.domain.is_empty() => return true,
            "Relu" | "HardSwish" => (vec![], true),
            "HardSigmoid" => (vec![float("alpha", 0.2), float("beta", 0.5)], true),
            "LeakyRelu" => (vec![float("alpha", 0.01)], true),
            "Sigmoid" | "Tanh" => (vec![], false),
            "Clip" => match bounds(self.links, node) {
                Some(bounds) => (bounds.to_vec(), true),
                None => return true,
            },
            _ => return true,
        };
        self.set_activation(&node.op_type, params);
        self.absorb(index);
        is_plain
    }

    /// x · sigmoid(x)
    fn take_silu(&mut self) -> Option<()> {
        let [first, second] = self.links.uses(self.output) else { return None };
        let nodes = &self.model.graph.nodes;
        let is_sigmoid = |index: usize| nodes[index].is("Sigmoid");
        let (sigmoid, product) = if is_sigmoid(first.node) {
            (first.node, second.node)
        } else {
            (second.node, first.node)
        };
        let gate = nodes[sigmoid].outputs[0].as_str();
        let is_silu = is_sigmoid(sigmoid)
            && nodes[product].is("Mul")
            && nodes[product].inputs.iter().any(|input| input == gate)
            && self.links.only_use(gate).is_some()
            && !self.model.graph.is_output(self.output)
            && !self.taken[sigmoid]
            && !self.taken[product];
        if !is_silu {
            return None;
        }
        self.set_activation("Silu", Vec::new());
        self.absorb(sigmoid);
        self.absorb(product);
        Some(())
    }

    fn set_activation(&mut self, name: &str, params: Vec<f32>) {
        let node = self.node.clone().with_attribute("activation", name);
        self.node = if params.is_empty() {
            node
        } else {
            node.with_attribute("activation_params", AttributeValue::Floats(params))
        };
    }

    /// A factor or term for all outputs.
    fn take_affine(&mut self, op_type: &str, attribute: &str, neutral: f32) -> Option<()> {
        let (index, node) = self.next().filter(|(_, node)| node.is(op_type))?;
        let (inner, value) = with_scalar(self.links, node)?;
        let constant = if node.input(0) == Some(inner) { node.input(1) } else { node.input(0) };
        let rank = self.links.constant(constant?)?.rank();
        if inner != self.output || value == neutral || rank > self.facts.get(inner)?.rank()? {
            return None;
        }
        self.node = self.node.clone().with_attribute(attribute, value);
        self.absorb(index);
        Some(())
    }

    /// The node in the place of all, and constants of its own: another may share the original's.
    fn finished(&self) -> (Node, Vec<(String, Tensor)>) {
        let mut node = self.node.clone();
        node.outputs = vec![self.output.to_string()];
        if node.is("Conv") {
            node.op_type = "FusedConv".into();
            node.domain = ATTAR_DOMAIN.into();
        }
        let mut constants = Vec::new();
        if let (Some((weights, bias)), Some(weight)) = (&self.folded, self.weight()) {
            let narrow = |values: &[f64]| values.iter().map(|&x| x as f32).collect::<Vec<_>>();
            let names = ["weight", "bias"].map(|part| format!("{}/{part}", self.output));
            node.inputs.resize(node.inputs.len().max(3), String::new());
            node.inputs[1..3].clone_from_slice(&names);
            let [weight_name, bias_name] = names;
            constants.push((weight_name, Tensor::new(weight.shape(), &narrow(weights))));
            constants.push((bias_name, Tensor::new(&[bias.len()], &narrow(bias))));
        }
        (node, constants)
    }
}

/// The range that a clamping node leaves.
pub(super) fn bounds(links: &Links, node: &Node) -> Option<[f32; 2]> {
    if node.is("Relu") {
        return Some([0.0, f32::INFINITY]);
    }
    if !node.is("Clip") {
        return None;
    }
    let bound = |index: usize, name: &str, open: f32| match node.input(index) {
        Some(input) => scalar(links, input),
        None => node.float_or(name, open).ok(),
    };
    Some([bound(1, "min", f32::NEG_INFINITY)?, bound(2, "max", f32::INFINITY)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::testing::graph_from_text;

    fn fused(text: &str) -> Vec<Node> {
        let graph = graph_from_text(text);
        let opsets = [(String::new(), 17)].into_iter().collect();
        let mut model = Model { graph, opsets, ..Model::default() };
        model.graph.set_initializer("w", Tensor::new(&[2, 2, 1, 1], &[1.0_f32, 2.0, 3.0, 4.0]));
        model.graph.inputs.retain(|input| input.name != "w");
        let plan = plan(&model);
        attar_graph::apply(&mut model.graph, &plan).unwrap();
        model.graph.nodes
    }

    #[test]
    fn factor_term_residual_activation_and_affine_are_one_node() {
        let nodes = fused(
            "x: f32[1, 2, 4, 4]\nr: f32[1, 2, 4, 4]\ns = [2]\nt = [3]
             a = Conv(x, w)\nb = Mul(a, s)\nc = Add(t, b)\nd = Add(c, r)\ne = Relu(d)
             f = Mul(e, s)\ny = Add(f, t)",
        );
        assert_eq!(nodes.len(), 1);
        assert_eq!(nodes[0].inputs, ["x", "y/weight", "y/bias", "r"]);
        assert_eq!(nodes[0].float_or("shift", 0.0), Ok(3.0));
    }

    #[test]
    fn a_value_that_others_read_ends_the_chain() {
        let nodes = fused("x: f32[1, 2, 4, 4]\na = Conv(x, w)\nb = Relu(a)\ny = Add(a, b)");
        assert_eq!(nodes.len(), 3);
    }

    #[test]
    fn a_product_with_its_own_sigmoid_is_an_activation() {
        let nodes = fused("x: f32[1, 2, 4, 4]\na = Conv(x, w)\nb = Sigmoid(a)\ny = Mul(a, b)");
        assert_eq!(nodes[0].text("activation"), Ok(Some("Silu")));
    }
}
