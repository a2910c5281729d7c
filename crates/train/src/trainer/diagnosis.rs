//! Where a run went wrong: the first value that is not finite.

use std::collections::HashSet;

use attar_graph::{Node, Value};
use attar_ops::Pool;
use attar_tensor::{DType, Tensor};

use super::{Trainer, single};
use crate::{Batch, LossRun, StepContext, Tape, TapeOptions, When};

impl Trainer {
    /// Names the first value of a forward run that is not finite. Runs it again, node by node as
    /// the model is written, keeping every value.
    pub(super) fn culprit(&self, feeds: &[Tensor], context: StepContext) -> String {
        let is_bad = |tensor: &Tensor| first_not_finite(tensor).is_some();
        if let Some((input, _)) = self.tape.inputs().iter().zip(feeds).find(|(_, t)| is_bad(t)) {
            return format!("the data feeds `{}` with a value that is not finite", input.name);
        }
        let named = self.tape.variables().iter().zip(&self.variables);
        if let Some((name, _)) = named.clone().find(|(_, tensor)| is_bad(tensor)) {
            return format!("`{name}` is not finite");
        }
        let found = self.values_of(feeds, context);
        found.unwrap_or_else(|| "every value of the model is finite, the loss alone is not".into())
    }

    /// Names where a gradient stops being finite, on the way back through one of the batches: not
    /// where the weights have been changed by it already.
    pub(super) fn gradient_culprit(&self, batches: &[(Batch, StepContext)]) -> Option<String> {
        batches.iter().find_map(|(batch, context)| {
            let feeds = super::step::feeds_of(&self.tape, batch).ok()?;
            let gradients = |outputs: &[Tensor]| {
                let (targets, pool) = (&batch.targets, &self.pool);
                let run = LossRun { outputs, targets, scale: 1.0, pool };
                let mut gradients = self.loss.measure(&run)?.gradients;
                gradients.resize(outputs.len(), None);
                Ok(gradients)
            };
            let (variables, pool) = (&self.variables, &self.pool);
            let found = self.tape.first_not_finite(variables, feeds, *context, gradients, pool);
            let first = found.ok().flatten().filter(|first| first.when != When::Given);
            first.map(|first| first.to_string())
        })
    }

    fn values_of(&self, feeds: &[Tensor], context: StepContext) -> Option<String> {
        let mut model = self.present_model();
        let needed = needed_nodes(&model.graph.nodes, &self.options.outputs);
        let nodes: Vec<&Node> = needed.iter().map(|&index| &model.graph.nodes[index]).collect();
        let names = nodes.iter().filter(|node| node.constant().is_none());
        let names = names.flat_map(|node| &node.outputs).filter(|name| !name.is_empty());
        let names: Vec<String> = names.cloned().collect();
        let described: Vec<String> = (names.iter())
            .map(|name| {
                let node = nodes.iter().find(|node| node.outputs.contains(name));
                let (label, op_type) =
                    node.map_or(("", ""), |node| (node.label(), node.op_type.as_str()));
                format!("`{name}`, an output of {op_type} (node `{label}`),")
            })
            .collect();
        model.graph.outputs = names.iter().map(Value::untyped).collect();
        let options = TapeOptions { unfused: true, ..TapeOptions::default() };
        let tape = Tape::new(&model, self.trained(), &options).ok()?;
        let variable = |name: &String| model.graph.constant(name).map(single);
        let variables = tape.variables().iter().map(variable).collect::<Option<Vec<_>>>()?;
        let by_name = |input: &Value| {
            let inputs = self.tape.inputs().iter().zip(feeds);
            inputs.clone().find(|(known, _)| known.name == input.name).map(|(_, t)| t.clone())
        };
        let feeds = tape.inputs().iter().map(by_name).collect::<Option<Vec<_>>>()?;
        let recording = tape.forward(&variables, feeds, context, &Pool::default()).ok()?;
        let bad = |wanted: fn(f32) -> bool| {
            recording.outputs.iter().position(|t| first_not_finite(t).is_some_and(wanted))
        };
        // An infinity may be meant, as in a mask; NaN never is.
        if let Some(at) = bad(f32::is_nan) {
            return Some(format!("{} is the first value that is NaN", described[at]));
        }
        let at = bad(f32::is_infinite)?;
        Some(format!("{} is the first value that is infinite", described[at]))
    }
}

/// A NaN, or else an infinity, that a tensor holds.
fn first_not_finite(tensor: &Tensor) -> Option<f32> {
    if tensor.dtype() != DType::F32 {
        return None;
    }
    let values = tensor.values::<f32>();
    let nan = values.iter().copied().find(|x| x.is_nan());
    nan.or_else(|| values.iter().copied().find(|x| x.is_infinite()))
}

/// The nodes that lead to `outputs`, in order.
fn needed_nodes(nodes: &[Node], outputs: &[String]) -> Vec<usize> {
    let mut needed: HashSet<&str> = outputs.iter().map(String::as_str).collect();
    let mut found = Vec::new();
    for (index, node) in nodes.iter().enumerate().rev() {
        if node.outputs.iter().any(|name| needed.contains(name.as_str())) {
            needed.extend(node.inputs.iter().map(String::as_str));
            found.push(index);
        }
    }
    found.reverse();
    found
}
