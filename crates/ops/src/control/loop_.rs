//! Loop (opset 1 and later): a graph run until its condition fails or the count is reached.
//!
//! Inputs: count (optional), condition (optional), then the carried values. The body takes the
//! iteration's number, the condition and the carried values; it gives the condition, the carried
//! values and the scan outputs, which are stacked along a new first axis.

use attar_graph::{Dim, Graph, Node};
use attar_tensor::{DType, Tensor};

use super::{body_tensor, condition, graph_of, stacked, take_body};
use crate::{Body, DataKernel, DataRun, Datum, Fact, Kernel, OpError, Operator, OverData};

pub(crate) struct Loop;

impl Operator for Loop {
    fn op_type(&self) -> &'static str {
        "Loop"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=usize::MAX
    }

    fn infer(&self, _: &Node, _: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(Vec::new())
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Err(OpError::Unsupported { what: "Loop without its body".into() })
    }

    fn over_data(&self) -> Option<&dyn OverData> {
        Some(self)
    }
}

/// How many values the loop carries.
fn carried_count(node: &Node) -> usize {
    node.inputs.len().saturating_sub(2)
}

struct LoopKernel {
    body: Body,
    carried_count: usize,
    /// What each scan output is when the loop never runs.
    declared: Vec<Option<Tensor>>,
}

impl OverData for Loop {
    fn data_kernel(
        &self,
        node: &Node,
        mut bodies: Vec<Body>,
    ) -> Result<Box<dyn DataKernel>, OpError> {
        let body = take_body(&mut bodies, "body")?;
        let carried_count = carried_count(node);
        if body.input_count() != carried_count + 2 {
            let expected = format!("{} (the loop carries {carried_count})", carried_count + 2);
            return Err(OpError::value(
                "the count of the body's inputs",
                body.input_count(),
                expected,
            ));
        }
        if body.output_count() < carried_count + 1 {
            let expected = format!("at least {}", carried_count + 1);
            let found = body.output_count();
            return Err(OpError::value("the count of the body's outputs", found, expected));
        }
        let declared = outputs_before_any_run(graph_of(node, "body")?);
        let declared = declared.into_iter().skip(1 + carried_count).collect();
        Ok(Box::new(LoopKernel { body, carried_count, declared }))
    }

    fn infer_bodies(
        &self,
        node: &Node,
        inputs: &[Option<&Fact>],
        infer: &mut dyn FnMut(&Graph, Vec<Option<Fact>>) -> Vec<Option<Fact>>,
    ) -> Result<Vec<Option<Fact>>, OpError> {
        let body = graph_of(node, "body")?;
        let mut carried: Vec<Option<Fact>> = inputs
            .iter()
            .skip(2)
            .map(|fact| fact.map(|fact| fact.with_dtype(fact.dtype)))
            .collect();
        // A value whose shape an iteration changes has no shape that holds for all; then those
        // that follow from it may not either. After two looks, nothing is assumed of any shape.
        for look in 0..3 {
            let mut fed = vec![
                Some(Fact::new(DType::I64, Vec::new())),
                Some(Fact::new(DType::Bool, Vec::new())),
            ];
            fed.extend(carried.iter().cloned());
            let outputs = infer(body, fed);
            let mut changed = false;
            for (before, after) in carried.iter_mut().zip(outputs.iter().skip(1)) {
                let mut relaxed = relaxed(before.as_ref(), after.as_ref());
                changed |= relaxed != *before;
                if look == 1 {
                    relaxed = relaxed.map(|fact| Fact::unranked(fact.dtype));
                }
                *before = relaxed;
            }
            if !changed {
                let scans = outputs.into_iter().skip(1 + carried.len());
                let scans = scans.map(|fact| fact.map(|fact| along(&fact, Dim::Unknown)));
                return Ok(carried.into_iter().chain(scans).collect());
            }
        }
        Ok(vec![None; node.outputs.len()])
    }
}

/// For each output of a body, the tensor that stands for no iteration at all: as much of its type
/// and shape as can be told, with sizes that are open taken as 0, as ONNX Runtime does.
fn outputs_before_any_run(body: &Graph) -> Vec<Option<Tensor>> {
    let facts = crate::graph_facts::facts_of_body(body);
    let empty = |fact: Option<Fact>| {
        let fact = fact?;
        let dims = fact.shape?.into_iter();
        let dims = dims.map(|dim| dim.known().and_then(|n| usize::try_from(n).ok()).unwrap_or(0));
        let shape: Vec<usize> = std::iter::once(0).chain(dims).collect();
        match fact.dtype {
            DType::String => Tensor::from_strings(&shape, Vec::new()).ok(),
            dtype => Some(Tensor::zeros(dtype, &shape)),
        }
    };
    facts.into_iter().map(empty).collect()
}

/// What holds before the first iteration and after each.
fn relaxed(before: Option<&Fact>, after: Option<&Fact>) -> Option<Fact> {
    super::either(before?, after?)
}

/// The fact of values stacked along a new first axis.
fn along(fact: &Fact, count: Dim) -> Fact {
    match &fact.shape {
        Some(shape) => {
            Fact::new(fact.dtype, std::iter::once(count).chain(shape.iter().cloned()).collect())
        }
        None => Fact::unranked(fact.dtype),
    }
}

impl DataKernel for LoopKernel {
    fn run(&self, run: &mut DataRun) -> Result<Vec<Datum>, OpError> {
        let count = match run.optional(0) {
            Some(_) => {
                let tensor = run.tensor(0)?;
                let value = tensor.to_i64().filter(|values| values.len() == 1);
                let found = || format!("{}{:?}", tensor.dtype(), tensor.shape());
                value.ok_or_else(|| OpError::value("the count", found(), "one integer"))?[0]
            }
            None => i64::MAX,
        };
        let mut goes_on = match run.optional(1) {
            Some(_) => condition(run.tensor(1)?)?,
            None => true,
        };
        let mut carried = Vec::with_capacity(self.carried_count);
        for index in 0..self.carried_count {
            // A carried optional may be absent: then it is empty.
            carried.push(run.inputs[2 + index].take().unwrap_or(Datum::Empty));
        }
        let mut scans: Vec<Vec<Tensor>> = vec![Vec::new(); self.declared.len()];
        let mut iteration = 0;
        while goes_on && iteration < count {
            let mut inputs = Vec::with_capacity(2 + carried.len());
            inputs.push(Datum::Tensor(Tensor::scalar(iteration)));
            inputs.push(Datum::Tensor(Tensor::from_bools(&[], &[goes_on])));
            inputs.append(&mut carried);
            let mut outputs = self.body.run(inputs, run)?.into_iter();
            let first = outputs.next().expect("the count of outputs was checked");
            goes_on = condition(&body_tensor(first, "the condition")?)?;
            carried.extend(outputs.by_ref().take(self.carried_count));
            for (scan, output) in scans.iter_mut().zip(outputs) {
                scan.push(body_tensor(output, "a scan output")?);
            }
            iteration += 1;
        }
        let mut results = carried;
        for (scan, declared) in scans.iter().zip(&self.declared) {
            let empty = || {
                declared.clone().ok_or_else(|| OpError::Unsupported {
                    what: "a loop that never ran, whose body declares no rank for a scan output,"
                        .into(),
                })
            };
            results.push(Datum::Tensor(stacked(scan, 0, false, empty)?));
        }
        Ok(results)
    }
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;
    use attar_graph::{AttributeValue, Model};

    use super::*;
    use crate::{Pool, Program};

    /// A loop that doubles `x` five times, and keeps each result.
    fn doubling() -> Model {
        let mut body = graph_from_text(
            "i: i64[]\nc: bool[]\nbefore: f32[2]\nagain = Identity(c)\nafter = Add(before, step)\n\
             kept = Identity(after)",
        );
        body.inputs.retain(|input| input.name != "step");
        body.outputs = ["again", "after", "kept"].map(attar_graph::Value::untyped).to_vec();
        let mut graph = graph_from_text("count: i64[]\nx: f32[2]\nstep: f32[2]\nz = Relu(step)");
        let node = Node::new("Loop", "loop", &["count", "", "x"], &["y", "all"])
            .with_attribute("body", AttributeValue::Graph(Box::new(body)));
        graph.nodes.push(node);
        graph.outputs = ["y", "all", "z"].map(attar_graph::Value::untyped).to_vec();
        Model { graph, opsets: [(String::new(), 17)].into_iter().collect(), ..Model::default() }
    }

    #[test]
    fn a_loop_carries_values_captures_others_and_stacks_what_it_scans() {
        let program = Program::new(doubling(), &[]).unwrap();
        let feeds = [
            Tensor::scalar(3_i64),
            Tensor::new(&[2], &[1.0_f32, 10.0]),
            Tensor::new(&[2], &[1.0_f32, 2.0]),
        ];
        let outputs = program.run(feeds.map(Datum::Tensor).to_vec(), &Pool::default()).unwrap();
        assert_eq!(outputs[0].tensor().unwrap().slice::<f32>(), [4.0, 16.0]);
        let all = outputs[1].tensor().unwrap();
        assert_eq!(
            (all.shape(), all.slice::<f32>()),
            (&[3, 2][..], &[2.0, 12.0, 3.0, 14.0, 4.0, 16.0][..])
        );
    }

    #[test]
    fn shapes_that_no_iteration_changes_are_known() {
        let facts = crate::infer_graph(&doubling());
        assert!(facts.problems.is_empty(), "{:?}", facts.problems);
        assert_eq!(facts.get("y").unwrap().shape, Some(vec![Dim::Known(2)]));
        assert_eq!(facts.get("all").unwrap().shape, Some(vec![Dim::Unknown, Dim::Known(2)]));
    }
}
