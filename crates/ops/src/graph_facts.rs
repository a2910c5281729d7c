//! Facts of every value of a graph, and what each node costs.

use std::collections::{BTreeMap, HashMap};

use attar_graph::{Dim, Graph, Model, Node, Value};
use attar_tensor::{DType, Tensor};

use crate::opset::{OpsetError, is_convertible, prepared};
use crate::{Fact, OpError, check};

/// What inference found.
#[derive(Debug, Default)]
pub struct Facts {
    by_value: HashMap<String, Fact>,
    /// Nodes that could not be inferred, with the reason, in node order.
    pub problems: Vec<(String, OpError)>,
    /// How many bodies are open around the graph being looked at.
    depth: usize,
}

/// Bodies nested deeper are not looked into: a loop's body is looked at more than once, and the
/// count multiplies with every level.
const DEPTH_MAX: usize = 6;

impl Facts {
    pub fn get(&self, value: &str) -> Option<&Fact> {
        self.by_value.get(value)
    }
}

/// Infers types and shapes of all values, those inside bodies too. Where an operator is unknown,
/// what the file records of its outputs is taken instead.
///
/// Functions are looked into, and nodes of older operator sets are understood by their newer form.
pub fn infer_graph(model: &Model) -> Facts {
    match prepared(model) {
        Ok(None) => infer_as_it_is(model, model.opset()),
        Ok(Some(prepared)) => infer_as_it_is(&prepared, prepared.opset()),
        Err(error) => {
            let mut facts = infer_as_it_is(model, model.opset());
            if let OpsetError::Node { node, source, .. } = error {
                facts.problems.push((node, source));
            }
            facts
        }
    }
}

/// What can be told whatever the operator set: nodes that an operator does not take stay unknown.
pub(crate) fn lenient_facts(model: &Model) -> Facts {
    infer_as_it_is(model, i64::MAX)
}

/// What can be told of a body's outputs from the body alone.
pub(crate) fn facts_of_body(body: &Graph) -> Vec<Option<Fact>> {
    let inputs = body.inputs.iter().map(fact_of).collect();
    Facts::default().infer(body, i64::MAX, inputs)
}

fn infer_as_it_is(model: &Model, opset: i64) -> Facts {
    let mut facts = Facts::default();
    let inputs = model.graph.inputs.iter().map(fact_of).collect();
    facts.infer(&model.graph, opset, inputs);
    facts
}

impl Facts {
    /// Infers one graph from what is known of its inputs, and tells what is known of its outputs.
    fn infer(&mut self, graph: &Graph, opset: i64, inputs: Vec<Option<Fact>>) -> Vec<Option<Fact>> {
        for (input, fact) in graph.inputs.iter().zip(inputs) {
            match fact.or_else(|| fact_of(input)) {
                Some(fact) => self.by_value.insert(input.name.clone(), fact),
                // The body may have been looked at before with more known.
                None => self.by_value.remove(&input.name),
            };
        }
        for (name, stored) in &graph.initializers {
            self.by_value.insert(name.clone(), Fact::constant(&stored.tensor));
        }
        let recorded: HashMap<&str, &Value> =
            graph.values.iter().chain(&graph.outputs).map(|v| (v.name.as_str(), v)).collect();
        for node in &graph.nodes {
            let mut inferred = self.infer_node(node, opset).into_iter();
            for output in &node.outputs {
                let fact = inferred.next().flatten();
                if output.is_empty() {
                    continue;
                }
                let known = recorded.get(output.as_str()).and_then(|value| fact_of(value));
                match merged(fact, known) {
                    Some(fact) => self.by_value.insert(output.clone(), fact),
                    None => self.by_value.remove(output),
                };
            }
        }
        graph.outputs.iter().map(|output| self.get(&output.name).cloned()).collect()
    }

    fn infer_node(&mut self, node: &Node, opset: i64) -> Vec<Option<Fact>> {
        let inputs: Vec<Option<Fact>> =
            node.inputs.iter().map(|name| self.by_value.get(name).cloned()).collect();
        let inputs: Vec<Option<&Fact>> = inputs.iter().map(Option::as_ref).collect();
        let result = check(node, opset).and_then(|operator| match operator.over_data() {
            Some(_) if node.subgraphs().next().is_some() && self.depth == DEPTH_MAX => {
                Ok(Vec::new())
            }
            Some(operator) if node.subgraphs().next().is_some() => {
                self.depth += 1;
                let facts = operator.infer_bodies(node, &inputs, &mut |graph, inputs| {
                    self.infer(graph, opset, inputs)
                });
                self.depth -= 1;
                facts
            }
            _ => Ok(operator.infer(node, &inputs)?.into_iter().map(Some).collect()),
        });
        match result {
            Ok(facts) => facts,
            // The input is there, but nothing is known of it.
            Err(OpError::MissingInput { index }) if node.input(index).is_some() => Vec::new(),
            Err(problem) => {
                let problem = (node.label().to_string(), problem);
                if !self.problems.contains(&problem) {
                    self.problems.push(problem);
                }
                Vec::new()
            }
        }
    }
}

fn fact_of(value: &Value) -> Option<Fact> {
    let dtype = value.dtype()?;
    Some(match value.shape() {
        Some(shape) => {
            // An input's open dimension is a size of its own, so that it can be followed.
            let named = shape.iter().enumerate().map(|(axis, dim)| match dim {
                dim if dim.is_open() => Dim::symbol(&format!("{}_{axis}", value.name)),
                dim => dim.clone(),
            });
            Fact::new(dtype, named.collect())
        }
        None => Fact::unranked(dtype),
    })
}

/// The inferred fact, with sizes it leaves unknown taken from the file.
fn merged(inferred: Option<Fact>, recorded: Option<Fact>) -> Option<Fact> {
    let Some(mut fact) = inferred else { return recorded };
    let Some(recorded) = recorded else { return Some(fact) };
    match (&mut fact.shape, recorded.shape) {
        (Some(dims), Some(known)) if dims.len() == known.len() => {
            for (dim, known) in dims.iter_mut().zip(known) {
                if *dim == Dim::Unknown {
                    *dim = known;
                }
            }
        }
        (shape @ None, known) => *shape = known,
        _ => {}
    }
    Some(fact)
}

/// Sizes for symbols, by name.
pub type Bindings = BTreeMap<String, i64>;

/// Operations and bytes of one node, or of a whole graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Multiply-accumulate operations.
    pub macs: u64,
    /// Bytes of the constants read.
    pub weight_bytes: u64,
    /// Bytes of the results written.
    pub activation_bytes: u64,
}

/// The cost of a node; `None` where a size is not known.
#[derive(Clone, Debug)]
pub struct NodeCost {
    pub macs: Option<u64>,
    pub weight_bytes: u64,
    pub activation_bytes: Option<u64>,
}

impl Facts {
    /// What each node of the outer graph costs with the given sizes, in node order.
    pub fn costs(&self, model: &Model, sizes: &Bindings) -> Vec<NodeCost> {
        let constants: HashMap<&str, &Tensor> = model.graph.constants().collect();
        let nodes = model.graph.nodes.iter();
        nodes.map(|node| self.cost(node, model.opset(), sizes, &constants)).collect()
    }

    /// What one node costs with the given sizes. What its bodies cost is not counted.
    pub fn cost(
        &self,
        node: &Node,
        opset: i64,
        sizes: &Bindings,
        constants: &HashMap<&str, &Tensor>,
    ) -> NodeCost {
        let size_of = |name: &str| sizes.get(name).copied();
        let number = |dim: &Dim| dim.evaluate(&size_of).and_then(|n| u64::try_from(n).ok());
        let bytes = |name: &String| {
            let fact = self.get(name)?;
            let count = usize::try_from(number(&fact.element_count())?).ok()?;
            Some(fact.dtype.size_bytes(count)? as u64)
        };
        let mut outputs = node.outputs.iter().filter(|name| !name.is_empty());
        let read = node.inputs.iter().filter_map(|name| constants.get(name.as_str()));
        NodeCost {
            macs: self.macs(node, opset).as_ref().and_then(number),
            weight_bytes: read.map(|tensor| tensor.size_bytes() as u64).sum(),
            activation_bytes: outputs
                .try_fold(0_u64, |sum, name| sum.checked_add(bytes(name)?))
                .filter(|_| node.constant().is_none()),
        }
    }

    fn macs(&self, node: &Node, opset: i64) -> Option<Dim> {
        let operator = check(node, opset).ok()?;
        let inputs: Vec<Option<&Fact>> = node.inputs.iter().map(|name| self.get(name)).collect();
        // An output without a name is one that nothing reads.
        let absent = || Some(Fact::unranked(DType::F32));
        let outputs: Option<Vec<Fact>> = (node.outputs.iter())
            .map(|name| if name.is_empty() { absent() } else { self.get(name).cloned() })
            .collect();
        Some(operator.macs(node, &inputs, &outputs?))
    }
}

/// Whether `builtin` runs the node as it stands in the model: by its operator, by a function, or
/// by a conversion to a newer operator set.
pub fn runs(model: &Model, node: &Node) -> bool {
    let is_function = (model.functions.iter())
        .any(|function| function.name == node.op_type && function.domain == node.domain);
    is_function || check(node, model.opset()).is_ok() || is_convertible(node, model.opset())
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::testing::graph_from_text;
    use attar_tensor::Tensor;

    fn model(text: &str) -> Model {
        let opsets = [(String::new(), 17)].into_iter().collect();
        Model { graph: graph_from_text(text), opsets, ..Model::default() }
    }

    #[test]
    fn shapes_follow_symbols_through_shape_arithmetic() {
        let model = model(
            "x: f32[batch, sequence, 8]
             four: i64[1]
             s = Shape(x, end=2)
             t = Concat(s, s, axis=0)
             f = Flatten(x, axis=2)",
        );
        let facts = infer_graph(&model);
        let text: Vec<String> =
            facts.get("t").unwrap().elements().unwrap().iter().map(Dim::to_string).collect();
        assert_eq!(text, ["batch", "sequence", "batch", "sequence"]);
        let shape = facts.get("f").unwrap().shape.clone().unwrap();
        assert_eq!(shape[0].to_string(), "batch*sequence");
    }

    fn elements(facts: &Facts, value: &str) -> Vec<String> {
        let elements = facts.get(value).unwrap().elements();
        elements.expect("a followed value").iter().map(Dim::to_string).collect()
    }

    #[test]
    fn the_shape_that_torch_expands_to_stays_symbolic() {
        // x.expand(batch, -1, sequence, 8): each −1 becomes what `ones` says, which Expand ignores.
        let mut model = model(
            "x: f32[1, 4, 1, 8]
             ids: i64[batch, sequence]
             rest: i64[1]
             last: i64[1]
             minus: i64[]
             zero: i64[1]
             one: i64[1]
             s = Shape(ids)
             b = Gather(s, zero)
             q = Gather(s, one)
             target = Concat(b, rest, q, last, axis=0)
             rank = Shape(target)
             ones = ConstantOfShape(rank)
             negative = Mul(ones, minus)
             open = Equal(target, negative)
             chosen = Where(open, ones, target)
             y = Expand(x, chosen)",
        );
        let vectors = [("rest", -1), ("last", 8), ("zero", 0), ("one", 1)];
        for (name, value) in vectors {
            model.graph.set_initializer(name, Tensor::new(&[1], &[value as i64]));
        }
        model.graph.set_initializer("minus", Tensor::scalar(-1_i64));
        let fill = model.graph.nodes.iter_mut().find(|node| node.is("ConstantOfShape")).unwrap();
        let one = attar_graph::AttributeValue::from(Tensor::new(&[1], &[1_i64]));
        fill.attributes.insert("value".into(), one.into());
        let facts = infer_graph(&model);
        assert_eq!(elements(&facts, "chosen"), ["batch", "1", "sequence", "8"]);
        let shape = facts.get("y").unwrap().shape.clone().unwrap();
        let shape: Vec<String> = shape.iter().map(Dim::to_string).collect();
        assert_eq!(shape, ["batch", "4", "sequence", "8"]);
    }

    #[test]
    fn sizes_are_followed_through_conditions_scatters_and_slices() {
        let mut model = model(
            "x: f32[batch, sequence, 8]
             places: i64[1, 1]
             update: i64[1]
             zero: i64[]
             start: i64[1]
             end: i64[1]
             axis: i64[1]
             s = Shape(x)
             t = ScatterND(s, places, update)
             n = Size(x)
             below = Less(n, zero)
             m = Where(below, zero, n)
             cut = Slice(x, start, end, axis)
             a, b = Split(s, axis=0, split=1 2)",
        );
        model.graph.set_initializer("places", Tensor::new(&[1, 1], &[-1_i64]));
        model.graph.set_initializer("zero", Tensor::scalar(0_i64));
        for (name, value) in [("update", 5_i64), ("start", 1), ("end", -1), ("axis", 1)] {
            model.graph.set_initializer(name, Tensor::new(&[1], &[value]));
        }
        let facts = infer_graph(&model);
        assert_eq!(elements(&facts, "t"), ["batch", "sequence", "5"]);
        assert_eq!(elements(&facts, "m"), ["8*batch*sequence"]);
        assert_eq!(elements(&facts, "b"), ["sequence", "8"]);
        let shape = facts.get("cut").unwrap().shape.clone().unwrap();
        assert_eq!(shape[1].to_string(), "sequence - 2");
    }

    #[test]
    fn a_product_counts_its_operations() {
        let model = model("x: f32[n, 2]\nw = [1 2 3; 4 5 6]\ny = MatMul(x, w)");
        let costs = infer_graph(&model).costs(&model, &[("n".to_string(), 5)].into());
        assert_eq!(costs[0].macs, Some(30));
        assert_eq!((costs[0].weight_bytes, costs[0].activation_bytes), (24, Some(60)));
    }

    #[test]
    fn an_unknown_operator_is_reported_and_the_rest_goes_on() {
        let model = model("x: f32[2]\na = Frobnicate(x)\ny = Relu(x)");
        let facts = infer_graph(&model);
        assert_eq!(facts.problems[0].0, "a");
        assert!(facts.get("y").is_some());
    }
}
