//! Leaves out what does nothing: the graph computes the same with fewer nodes and bytes.

use std::collections::{BTreeMap, HashMap};

use attar_graph::{Edit, Model, Plan};
use attar_ops::fuse::dead_nodes;
use attar_ops::{fold_branches, fold_constants, fold_shapes};
use attar_tensor::{DType, Tensor};
use serde::Deserialize;

use crate::{Context, OptionEntry, Pass, PassError};

/// Constant folding, branches that are never taken, identities, duplicate initializers and dead nodes,
/// until none is left.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cleanup {
    /// Values of inputs that are always the same.
    #[serde(default)]
    inputs: BTreeMap<String, toml::Value>,
}

pub(crate) const OPTIONS: &[OptionEntry] = &[OptionEntry {
    key: "inputs",
    default: "{}",
    help: "inputs that always have one value become constants, as `inputs = { sr = 16000 }`: branches \
           that it rules out go",
}];

impl Pass for Cleanup {
    fn prepare(&self, model: &Model) -> Result<Plan, PassError> {
        self.fixed(model)
    }

    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        // One kind at a time: each plan is made for the graph that the one before left.
        let steps = [
            |model: &Model, _: &Context| fold_constants(model, true),
            |model: &Model, _: &Context| fold_shapes(model),
            |model: &Model, _: &Context| fold_branches(model),
            identities,
            duplicates,
            |model: &Model, _: &Context| dead_nodes::plan(model),
        ];
        let first = steps.iter().map(|step| step(model, context)).find(|plan| !plan.is_empty());
        Ok(first.unwrap_or_default())
    }

    fn repeats(&self) -> bool {
        true
    }
}

impl Cleanup {
    /// Makes inputs constants.
    fn fixed(&self, model: &Model) -> Result<Plan, PassError> {
        let graph = &model.graph;
        let mut plan = Plan::default();
        for (name, value) in &self.inputs {
            let fail = |message: String| PassError::Settings {
                pass: "cleanup",
                message,
                known: "inputs".into(),
            };
            let input = graph.inputs.iter().find(|input| input.name == *name);
            let input = input.ok_or_else(|| fail(format!("the model has no input `{name}`")))?;
            let fixed = format!("{name}/fixed");
            let numbers = match value {
                toml::Value::Array(values) => values.iter().map(number).collect(),
                single => number(single).map(|number| vec![number]),
            };
            let numbers: Vec<f64> =
                numbers.ok_or_else(|| fail(format!("`{name}` is {value}, expected numbers")))?;
            let dims = input.shape().unwrap_or_default();
            let sizes: Option<Vec<usize>> =
                dims.iter().map(|dim| dim.known().and_then(|n| n.try_into().ok())).collect();
            let shape = match sizes {
                Some(sizes) if sizes.iter().product::<usize>() == numbers.len() => sizes,
                _ if dims.len() == 1 => vec![numbers.len()],
                _ => {
                    let found = numbers.len();
                    return Err(fail(format!(
                        "`{name}` gets {found} numbers, which do not fill it"
                    )));
                }
            };
            let dtype = input.dtype().unwrap_or(DType::F32);
            let tensor = Tensor::new(&shape, &numbers).converted(dtype);
            let tensor = tensor.map_err(|error| fail(format!("`{name}`: {error}")))?;
            plan.push(Edit::SetInitializer { name: fixed.clone(), tensor });
            plan.push(Edit::ReplaceUses { from: name.clone(), to: fixed });
            plan.push(Edit::RemoveInput { name: name.clone() });
        }
        Ok(plan)
    }
}

fn number(value: &toml::Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|integer| integer as f64))
}

/// `Identity`, `Dropout` without a mask that is read, and transposes that move nothing. Where the
/// output is one of the graph, the node stays: it gives the value its name.
fn identities(model: &Model, _: &Context) -> Plan {
    let graph = &model.graph;
    let links = attar_graph::Links::new(graph);
    let mut plan = Plan::default();
    for (index, node) in graph.nodes.iter().enumerate() {
        let is_identity = node.is("Identity")
            || (node.is("Dropout") && !node.outputs[1..].iter().any(|mask| links.is_read(mask)))
            || (node.is("Transpose")
                && node.ints("perm").is_ok_and(|perm| {
                    perm.is_some_and(|perm| perm.iter().enumerate().all(|(i, &p)| i as i64 == p))
                }));
        if is_identity && !graph.is_output(&node.outputs[0]) {
            let (from, to) = (node.outputs[0].clone(), node.inputs[0].clone());
            plan.push(Edit::ReplaceUses { from, to });
            plan.push(Edit::RemoveNode { index });
        }
    }
    plan
}

/// Initializers with the same bytes: all readers take the first.
fn duplicates(model: &Model, context: &Context) -> Plan {
    let graph = &model.graph;
    let mut first: HashMap<(DType, &[usize], &[u8]), &str> = HashMap::new();
    let mut plan = Plan::default();
    for (name, stored) in &graph.initializers {
        let tensor = &stored.tensor;
        let is_input = graph.inputs.iter().any(|input| input.name == *name);
        // Small ones are not worth a tie between parts that may be compressed apart.
        if tensor.size_bytes() < 64
            || tensor.dtype() == DType::String
            || is_input
            || graph.is_output(name)
            || context.exclude.matches(name)
        {
            continue;
        }
        match first.entry((tensor.dtype(), tensor.shape(), tensor.bytes())) {
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(name);
            }
            std::collections::hash_map::Entry::Occupied(entry) => {
                let (from, to) = (name.clone(), (*entry.get()).to_string());
                plan.push(Edit::ReplaceUses { from: from.clone(), to });
                plan.push(Edit::RemoveInitializer { name: from });
            }
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;
    use attar_graph::{AttributeValue, Value, apply};
    use attar_runtime::{Builtin, RunOptions, Runtime};

    use super::*;
    use crate::pass_entry;

    fn model(text: &str) -> Model {
        let opsets = [(String::new(), 17)].into_iter().collect();
        Model { ir_version: 8, opsets, graph: graph_from_text(text), ..Model::default() }
    }

    fn cleaned(model: &Model, settings: &str) -> Result<Model, PassError> {
        let pass = pass_entry("cleanup")?.build(settings.parse().expect("it is TOML"))?;
        let mut model = model.clone();
        let prepared = pass.prepare(&model)?;
        apply(&mut model.graph, &prepared)?;
        for _ in 0..20 {
            let plan = pass.plan(&model, &Context::new(&Builtin))?;
            if plan.is_empty() {
                return Ok(model);
            }
            apply(&mut model.graph, &plan)?;
        }
        panic!("it never ends");
    }

    fn run(model: &Model, feeds: &[(&str, &Tensor)]) -> Vec<Tensor> {
        Builtin.load(model, &RunOptions::default()).unwrap().run(feeds).unwrap()
    }

    /// y and z by one of two branches, which name their values alike and capture `x` and `h`.
    fn branching() -> Model {
        let mut model = model(
            "x: f32[2, 3]\nrate: i64[]\nh = Neg(x)\nc = Equal(rate, sixteen)\ny, z = If(c)\n\
             u, v = If(c)\nout = Add(y, u)",
        );
        let then = "t = Mul(x, h)\na = Abs(t)\ni = Sqrt(a)";
        let other = "w = [2]\nt = Mul(x, w)\na = Neg(t)";
        for node in model.graph.nodes.iter_mut().filter(|node| node.is("If")) {
            for (name, text, outputs) in
                [("then_branch", then, ["a", "i"]), ("else_branch", other, ["a", "h"])]
            {
                let mut body = graph_from_text(text);
                body.inputs.clear();
                let untyped = Value { value_type: None, ..body.outputs[0].clone() };
                body.outputs =
                    outputs.map(|name| Value { name: name.into(), ..untyped.clone() }).into();
                node.attributes.insert(name.into(), AttributeValue::from(body).into());
            }
        }
        model.graph.set_initializer("sixteen", Tensor::scalar(16_000_i64));
        model.graph.inputs.retain(|input| input.name != "sixteen");
        model
    }

    #[test]
    fn a_fixed_input_rules_branches_out() {
        let model = branching();
        let x = Tensor::new(&[2, 3], &[1.0_f32, -2.0, 3.0, -4.0, 5.0, -6.0]);
        for rate in [16_000_i64, 8000] {
            let expected = run(&model, &[("x", &x), ("rate", &Tensor::scalar(rate))]);
            let result = cleaned(&model, &format!("inputs = {{ rate = {rate} }}")).unwrap();
            assert!(result.graph.nodes.iter().all(|node| !node.is("If")), "{rate}");
            assert_eq!(result.graph.inputs.len(), 1);
            assert_eq!(run(&result, &[("x", &x)]), expected);
            let names: Vec<&str> = result.graph.outputs.iter().map(|o| o.name.as_str()).collect();
            assert_eq!(names, model.graph.outputs.iter().map(|o| &*o.name).collect::<Vec<_>>());
        }
        let left = cleaned(&model, "").unwrap();
        assert_eq!(left.graph.nodes.iter().filter(|node| node.is("If")).count(), 2);
    }

    #[test]
    fn an_input_that_is_not_there_or_does_not_fit_is_named() {
        let error = |settings: &str| cleaned(&branching(), settings).unwrap_err().to_string();
        assert!(error("inputs = { sr = 1 }").contains("no input `sr`"));
        assert!(error("inputs = { rate = [1, 2] }").contains("2 numbers"));
        assert!(error("inputs = { rate = \"fast\" }").contains("expected numbers"));
    }

    #[test]
    fn what_shapes_say_becomes_constants() {
        let text =
            "x: f32[2, 3]\ns = Shape(x)\ng = Gather(s, one)\nf = Cast(g, to=1)\ny = Mul(x, f)";
        let mut model = model(text);
        model.graph.set_initializer("one", Tensor::scalar(1_i64));
        model.graph.inputs.retain(|input| input.name != "one");
        let result = cleaned(&model, "").unwrap();
        let ops: Vec<&str> = result.graph.nodes.iter().map(|node| &*node.op_type).collect();
        assert_eq!(ops, ["Mul"]);
        let x = Tensor::new(&[2, 3], &[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(run(&result, &[("x", &x)]), run(&model, &[("x", &x)]));
    }
}
