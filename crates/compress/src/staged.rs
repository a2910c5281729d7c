//! A model run over calibration data a stretch of nodes at a time: between two stretches stands, for
//! each example, what later nodes still read. Weights of nodes that are still to come may change
//! meanwhile, and nothing is run twice.

use std::collections::{BTreeMap, BTreeSet};

use attar_graph::{Dim, Edit, Graph, Model, Node, Plan, Value, apply, captured_names};
use attar_runtime::RunOptions;
use attar_tensor::Tensor;

use crate::{Context, PassError};

/// Where a model stands.
pub(crate) struct Staged<'a> {
    model: Model,
    context: &'a Context<'a>,
    /// Nodes that have been run.
    done: usize,
    /// Values by name, of each example.
    live: Vec<BTreeMap<String, Tensor>>,
    /// The first batch of each example.
    batches: Vec<usize>,
    /// Batches of the calibration data.
    pub(crate) batch_count: usize,
    /// Examples of it.
    pub(crate) given_count: usize,
}

impl<'a> Staged<'a> {
    /// The model at its beginning, with every example of the calibration data up to `bytes_max` of
    /// feeds.
    ///
    /// # Errors
    /// No calibration data, or data that does not fit.
    pub(crate) fn new(
        model: &Model,
        context: &'a Context<'a>,
        bytes_max: usize,
    ) -> Result<Self, PassError> {
        let calibration = context.calibration.ok_or(PassError::NoCalibration)?;
        let inputs: Vec<Value> = model.graph.required_inputs().cloned().collect();
        let (mut live, mut first_batches) = (Vec::new(), Vec::new());
        let (mut bytes, mut batch_count, mut given_count) = (0, 0, 0);
        calibration.for_each_group(&inputs, &mut |feeds, batches| {
            batch_count += batches.len();
            given_count += 1;
            bytes += feeds.iter().map(|(_, tensor)| tensor.size_bytes()).sum::<usize>();
            if bytes <= bytes_max {
                let owned =
                    feeds.iter().map(|(name, tensor)| (name.to_string(), (*tensor).clone()));
                live.push(owned.collect());
                first_batches.push(batches[0]);
            }
            Ok(())
        })?;
        let model = model.clone();
        let batches = first_batches;
        Ok(Self { model, context, done: 0, live, batches, batch_count, given_count })
    }

    /// How many examples there are: groups of one shape, or single ones.
    pub(crate) fn count(&self) -> usize {
        self.live.len()
    }

    /// The first batch of an example.
    pub(crate) fn batch(&self, example: usize) -> usize {
        self.batches[example]
    }

    /// Of all values that are held.
    pub(crate) fn bytes(&self) -> usize {
        self.live.iter().flat_map(BTreeMap::values).map(Tensor::size_bytes).sum()
    }

    /// Goes on without the examples from the `count`th.
    pub(crate) fn truncate(&mut self, count: usize) {
        self.live.truncate(count);
    }

    /// A value of an example, if later nodes read it.
    pub(crate) fn value(&self, example: usize, name: &str) -> Option<&Tensor> {
        self.live.get(example)?.get(name)
    }

    /// Changes constants that only nodes to come read.
    ///
    /// # Errors
    /// A name that is no constant.
    pub(crate) fn set(
        &mut self,
        tensors: impl IntoIterator<Item = (String, Tensor)>,
    ) -> Result<(), PassError> {
        let mut plan = Plan::default();
        for (name, tensor) in tensors {
            plan.push(Edit::SetInitializer { name, tensor });
        }
        Ok(apply(&mut self.model.graph, &plan)?)
    }

    /// Runs the nodes before `end`.
    ///
    /// # Errors
    /// A stretch that does not run.
    pub(crate) fn advance(&mut self, end: usize) -> Result<(), PassError> {
        let graph = &self.model.graph;
        let end = end.min(graph.nodes.len());
        if end <= self.done {
            return Ok(());
        }
        let later = names_read(&graph.nodes[end..]);
        if let Some(part) = self.part(end, &later) {
            let options = RunOptions { threads: self.context.threads, observed: Vec::new() };
            let mut session = self.context.runtime.load(&part, &options)?;
            let names: Vec<&str> = part.graph.outputs.iter().map(|o| o.name.as_str()).collect();
            for values in &mut self.live {
                let feeds: Vec<(&str, &Tensor)> = (part.graph.inputs.iter())
                    .filter_map(|input| Some((input.name.as_str(), values.get(&input.name)?)))
                    .collect();
                let outputs = session.run(&feeds)?;
                values.extend(names.iter().map(ToString::to_string).zip(outputs));
                values.retain(|name, _| later.contains(name.as_str()));
            }
        }
        self.done = end;
        Ok(())
    }

    /// The nodes from where the model stands up to `end`, as a model of its own, if later nodes read
    /// anything of it.
    fn part(&self, end: usize, later: &BTreeSet<&str>) -> Option<Model> {
        let graph = &self.model.graph;
        let is_constant = |node: &&Node| node.constant().is_some();
        let own = &graph.nodes[self.done..end];
        let outputs: Vec<Value> = (own.iter())
            .filter(|node| !is_constant(node))
            .flat_map(|node| &node.outputs)
            .filter(|output| later.contains(output.as_str()))
            .map(Value::untyped)
            .collect();
        if outputs.is_empty() {
            return None;
        }
        let read = names_read(own);
        let constants = graph.nodes.iter().filter(is_constant);
        let constants = constants.filter(|node| read.contains(node.outputs[0].as_str()));
        let nodes =
            constants.chain(own.iter().filter(|node| !is_constant(node))).cloned().collect();
        let first = self.live.first()?;
        let fed = first.iter().filter(|(name, _)| read.contains(name.as_str()));
        let inputs = fed.map(|(name, tensor)| {
            Value::tensor(name, tensor.dtype(), self.dims(name, tensor.shape()))
        });
        let kept = graph.initializers.iter().filter(|(name, _)| read.contains(name.as_str()));
        let part = Graph {
            nodes,
            initializers: kept.map(|(name, stored)| (name.clone(), stored.clone())).collect(),
            inputs: inputs.collect(),
            outputs,
            ..Graph::default()
        };
        Some(Model { graph: part, ..self.model.without_graph() })
    }

    /// Sizes that all examples share are known.
    fn dims(&self, name: &str, first: &[usize]) -> Vec<Dim> {
        let dim = |(axis, &size): (usize, &usize)| {
            let is_shared = self.live.iter().all(|values| {
                values.get(name).is_some_and(|value| value.shape().get(axis) == Some(&size))
            });
            if is_shared { Dim::from(size) } else { Dim::Unknown }
        };
        first.iter().enumerate().map(dim).collect()
    }
}

fn names_read(nodes: &[Node]) -> BTreeSet<&str> {
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for node in nodes {
        names.extend(node.inputs.iter().map(String::as_str));
        names.extend(node.subgraphs().flat_map(captured_names));
    }
    names
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;
    use attar_runtime::{Builtin, Runtime};

    use super::*;
    use crate::Calibration;

    struct Rows;

    impl Calibration for Rows {
        fn for_each_batch(
            &self,
            _: &[Value],
            visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
        ) -> Result<(), PassError> {
            let row =
                |n: usize| Tensor::new(&[n, 2], &(0..2 * n).map(|i| i as f32).collect::<Vec<_>>());
            (1..4).try_for_each(|n| visit(&[("x", &row(n))]))
        }
    }

    #[test]
    fn stretches_give_what_the_whole_gives() {
        let text = "x: f32[n, 2]\nw = [1.0 2.0; 3.0 4.0]\na = MatMul(x, w)\nb = Relu(a)\n\
                    c = Add(b, a)\nd = MatMul(c, v)\ny = Mul(d, x)";
        let mut graph = graph_from_text(text);
        graph.inputs.retain(|input| input.name == "x");
        graph.set_initializer("v", Tensor::new(&[2, 2], &[0.5_f32, -1.0, 2.0, 1.0]));
        let opsets = [(String::new(), 17)].into_iter().collect();
        let mut model = Model { graph, opsets, ..Model::default() };
        let context = Context { calibration: Some(&Rows), ..Context::new(&Builtin) };
        let at = |name: &str| {
            model.graph.nodes.iter().position(|node| node.outputs[0] == name).expect("a node")
        };
        let ends = [at("b"), at("d"), at("y")];
        let mut staged = Staged::new(&model, &context, usize::MAX).unwrap();
        assert_eq!(staged.count(), 3);
        staged.advance(ends[0]).unwrap();
        let a = staged.value(1, "a").unwrap().clone();
        assert_eq!(a.slice::<f32>(), [3.0, 4.0, 11.0, 16.0]);
        // A weight of a node to come changes; what has been run does not.
        let v = Tensor::new(&[2, 2], &[1.0_f32, 0.0, 0.0, -1.0]);
        staged.set([("v".to_string(), v.clone())]).unwrap();
        staged.advance(ends[1]).unwrap();
        assert!(staged.value(1, "a").is_none(), "nothing reads it any more");
        staged.truncate(2);
        staged.advance(ends[2]).unwrap();
        assert_eq!((staged.count(), staged.value(2, "d")), (2, None));
        model.graph.set_initializer("v", v);
        model.graph.outputs = vec![Value::untyped("d")];
        let mut whole = Builtin.load(&model, &RunOptions::default()).unwrap();
        let x = staged.value(1, "x").unwrap();
        assert_eq!(staged.value(1, "d"), whole.run(&[("x", x)]).unwrap().first());
    }
}
