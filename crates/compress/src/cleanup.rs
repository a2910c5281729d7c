//! Leaves out what does nothing: the graph computes the same with fewer nodes and bytes.

use std::collections::{BTreeMap, HashMap};

use attar_graph::{Dim, Edit, Model, Node, Plan, Value};
use attar_ops::fuse::dead_nodes;
use attar_ops::{fold_branches, fold_constants, fold_shapes, infer_graph};
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
    /// Sizes of inputs that are always the same.
    #[serde(default)]
    shapes: BTreeMap<String, Vec<i64>>,
}

pub(crate) const OPTIONS: &[OptionEntry] = &[
    OptionEntry {
        key: "inputs",
        default: "{}",
        help: "inputs that always have one value become constants, as `inputs = { sr = 16000 }`: branches \
               that it rules out go",
    },
    OptionEntry {
        key: "shapes",
        default: "{}",
        help: "inputs that always have one shape, as `shapes = { audio = [1, 512] }`: what is computed of \
               their sizes becomes constant",
    },
];

impl Pass for Cleanup {
    fn prepare(&self, model: &Model) -> Result<Plan, PassError> {
        let mut plan = self.fixed(model)?;
        plan.edits.extend(self.sized(model)?.edits);
        Ok(plan)
    }

    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        // One kind at a time: each plan is made for the graph that the one before left.
        let steps = [
            |model: &Model, _: &Context| fold_constants(model, true),
            |model: &Model, _: &Context| fold_shapes(model),
            |model: &Model, _: &Context| fold_branches(model),
            identities,
            views,
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
            let input = graph.inputs.iter().find(|input| input.name == *name);
            let input = input.ok_or_else(|| wrong(format!("the model has no input `{name}`")))?;
            let fixed = format!("{name}/fixed");
            let numbers = match value {
                toml::Value::Array(values) => values.iter().map(number).collect(),
                single => number(single).map(|number| vec![number]),
            };
            let numbers: Vec<f64> =
                numbers.ok_or_else(|| wrong(format!("`{name}` is {value}, expected numbers")))?;
            let dims = input.shape().unwrap_or_default();
            let sizes: Option<Vec<usize>> =
                dims.iter().map(|dim| dim.known().and_then(|n| n.try_into().ok())).collect();
            let shape = match sizes {
                Some(sizes) if sizes.iter().product::<usize>() == numbers.len() => sizes,
                _ if dims.len() == 1 => vec![numbers.len()],
                _ => {
                    let found = numbers.len();
                    return Err(wrong(format!(
                        "`{name}` gets {found} numbers, which do not fill it"
                    )));
                }
            };
            let dtype = input.dtype().unwrap_or(DType::F32);
            let tensor = Tensor::new(&shape, &numbers).converted(dtype);
            let tensor = tensor.map_err(|error| wrong(format!("`{name}`: {error}")))?;
            plan.push(Edit::SetInitializer { name: fixed.clone(), tensor });
            plan.push(Edit::ReplaceUses { from: name.clone(), to: fixed });
            plan.push(Edit::RemoveInput { name: name.clone() });
        }
        Ok(plan)
    }

    /// Gives inputs their shapes, and the sizes that these name to others.
    fn sized(&self, model: &Model) -> Result<Plan, PassError> {
        let graph = &model.graph;
        let mut size_of: HashMap<String, i64> = HashMap::new();
        for (name, sizes) in &self.shapes {
            let input = graph.inputs.iter().find(|input| input.name == *name);
            let input = input.ok_or_else(|| wrong(format!("the model has no input `{name}`")))?;
            let dims = input.shape().unwrap_or_default();
            let is_open = input.shape().is_none();
            let fits = |dim: &Dim, size: i64| dim.known().is_none_or(|known| known == size);
            let is_within = dims.len() == sizes.len()
                && dims.iter().zip(sizes).all(|(dim, &size)| fits(dim, size));
            if sizes.iter().any(|&size| size < 0) || !(is_open || is_within) {
                let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
                let found = dims.join(", ");
                return Err(wrong(format!("`{name}` is [{found}], which {sizes:?} does not fit")));
            }
            for (dim, &size) in dims.iter().zip(sizes) {
                let mut symbol = None;
                dim.for_each_symbol(&mut |name| symbol = Some(name.to_string()));
                let Some(symbol) = symbol.filter(|symbol| dim.same_as(&Dim::symbol(symbol))) else {
                    continue;
                };
                let known = *size_of.entry(symbol.clone()).or_insert(size);
                if known != size {
                    return Err(wrong(format!("`{symbol}` is {known} and {size}")));
                }
            }
        }
        let mut plan = Plan::default();
        if self.shapes.is_empty() {
            return Ok(plan);
        }
        let sized = |value: &Value| {
            let given = self.shapes.get(&value.name);
            let dims = match (given, value.shape()) {
                (Some(sizes), _) => sizes.iter().map(|&size| Dim::Known(size)).collect(),
                (None, Some(dims)) => {
                    let known = |dim: &Dim| dim.evaluate(&|name| size_of.get(name).copied());
                    dims.iter().map(|dim| known(dim).map_or(dim.clone(), Dim::Known)).collect()
                }
                (None, None) => return None,
            };
            Some(Value::tensor(&value.name, value.dtype()?, dims))
        };
        let inputs = graph.inputs.iter().filter(|input| !self.inputs.contains_key(&input.name));
        plan.edits.extend(inputs.filter_map(&sized).map(|value| Edit::DeclareInput { value }));
        let outputs = graph.outputs.iter().filter_map(sized);
        plan.edits.extend(outputs.map(|value| Edit::SetOutput { value }));
        Ok(plan)
    }
}

fn wrong(message: String) -> PassError {
    PassError::Settings { pass: "cleanup", message, known: "inputs, shapes".into() }
}

fn number(value: &toml::Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|integer| integer as f64))
}

/// `Identity`, `Dropout` without a mask that is read, casts to the type that is there, slices of
/// everything, and transposes that move nothing. Where the output is one of the graph, the node stays:
/// it gives the value its name.
fn identities(model: &Model, _: &Context) -> Plan {
    let graph = &model.graph;
    let facts = infer_graph(model);
    let is_alike = |node: &Node| {
        if !node.is("Cast") && !node.is("Slice") {
            return false;
        }
        let [x, y] = [&node.inputs[0], &node.outputs[0]].map(|value| facts.get(value));
        let (Some(x), Some(y)) = (x, y) else { return false };
        // As many, one after the other.
        let is_whole = || {
            let step = |value: &str| graph.constant(value).and_then(Tensor::to_i64);
            let steps = node.input(4).map_or(Some(vec![1]), step);
            let is_forward = steps.is_some_and(|steps| steps.iter().all(|&step| step == 1));
            let [Some(x), Some(y)] = [&x.shape, &y.shape] else { return false };
            is_forward && x.len() == y.len() && x.iter().zip(y).all(|(x, y)| x.same_as(y))
        };
        if node.is("Cast") { x.dtype == y.dtype } else { is_whole() }
    };
    let links = attar_graph::Links::new(graph);
    let mut plan = Plan::default();
    let mut gone: HashMap<&str, &str> = HashMap::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        let is_identity = node.is("Identity")
            || is_alike(node)
            || (node.is("Dropout") && !node.outputs[1..].iter().any(|mask| links.is_read(mask)))
            || (node.is("Transpose")
                && node.ints("perm").is_ok_and(|perm| {
                    perm.is_some_and(|perm| perm.iter().enumerate().all(|(i, &p)| i as i64 == p))
                }));
        if is_identity && !graph.is_output(&node.outputs[0]) {
            // What it reads may be another's output that goes.
            let mut to = node.inputs[0].as_str();
            while let Some(before) = gone.get(to) {
                to = before;
            }
            gone.insert(node.outputs[0].as_str(), to);
            let (from, to) = (node.outputs[0].clone(), to.to_string());
            plan.push(Edit::ReplaceUses { from, to });
            plan.push(Edit::RemoveNode { index });
        }
    }
    plan
}

/// Chains of nodes that only name the axes anew, where they end in the shape that they began with, and
/// transposes that move but axes of size 1.
fn views(model: &Model, _: &Context) -> Plan {
    let graph = &model.graph;
    let facts = infer_graph(model);
    let shape = |value: &str| facts.get(value).and_then(|fact| fact.shape.as_deref());
    let is_view = |node: &Node| {
        let views = ["Reshape", "Squeeze", "Unsqueeze", "Flatten"];
        views.iter().any(|op| node.is(op))
            || (node.is("Transpose") && keeps_order(node, shape(&node.inputs[0])))
    };
    let is_same = |a: &str, b: &str| match (shape(a), shape(b)) {
        (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same_as(b)),
        _ => false,
    };
    let links = attar_graph::Links::new(graph);
    let mut plan = Plan::default();
    for node in graph.nodes.iter().filter(|node| is_view(node)) {
        let output = &node.outputs[0];
        if graph.is_output(output) || !links.is_read(output) {
            continue;
        }
        let mut first = &node.inputs[0];
        let mut same = is_same(first, output).then_some(first);
        while let Some((_, before)) = links.producer(first).filter(|(_, node)| is_view(node)) {
            first = &before.inputs[0];
            same = if is_same(first, output) { Some(first) } else { same };
        }
        if let Some(first) = same {
            // One at a time: a chain may be part of another.
            plan.push(Edit::ReplaceUses { from: output.clone(), to: first.clone() });
            return plan;
        }
    }
    plan
}

/// Whether axes of other sizes than 1 stay in their order.
fn keeps_order(node: &Node, shape: Option<&[Dim]>) -> bool {
    let Some(shape) = shape else { return false };
    let reversed: Vec<i64> = (0..shape.len() as i64).rev().collect();
    let Ok(perm) = node.ints("perm") else { return false };
    let perm = perm.unwrap_or(&reversed);
    let is_one = |axis: i64| {
        let dim = usize::try_from(axis).ok().and_then(|axis| shape.get(axis));
        dim.is_some_and(|dim| dim.known() == Some(1))
    };
    let moved: Vec<i64> = perm.iter().copied().filter(|&axis| !is_one(axis)).collect();
    moved.is_sorted()
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

    #[test]
    fn views_that_end_where_they_began_go() {
        let text = "x: f32[n, 3, 4]\na = Unsqueeze(x, one)\nb = Reshape(a, sizes)\nc = Neg(b)\n\
                    d = Unsqueeze(c, one)\ne = Transpose(d, perm=1,0,2,3)\nf = Abs(e)\n\
                    g = Transpose(f, perm=0,1,3,2)\ny = Relu(g)";
        let mut model = model(text);
        model.graph.set_initializer("one", Tensor::new(&[1], &[1_i64]));
        model.graph.set_initializer("sizes", Tensor::new(&[3], &[-1_i64, 3, 4]));
        model.graph.inputs.retain(|input| input.name == "x");
        let result = cleaned(&model, "").unwrap();
        let ops: Vec<&str> = result.graph.nodes.iter().map(|node| &*node.op_type).collect();
        // How many examples there are is not known: the first axis may not pass the second.
        assert_eq!(ops[0], "Neg");
        assert_eq!(ops.iter().filter(|op| **op == "Transpose").count(), 2);
        let values: Vec<f32> = (0..24).map(|x| x as f32 - 9.0).collect();
        let x = Tensor::new(&[2, 3, 4], &values);
        assert_eq!(run(&result, &[("x", &x)]), run(&model, &[("x", &x)]));

        let text =
            text.replace("f32[n, 3, 4]", "f32[1, 3, 4]").replace("perm=0,1,3,2", "perm=1,0,2,3");
        let mut model = self::model(&text);
        model.graph.set_initializer("one", Tensor::new(&[1], &[1_i64]));
        model.graph.set_initializer("sizes", Tensor::new(&[3], &[-1_i64, 3, 4]));
        model.graph.inputs.retain(|input| input.name == "x");
        let result = cleaned(&model, "").unwrap();
        let ops: Vec<&str> = result.graph.nodes.iter().map(|node| &*node.op_type).collect();
        assert_eq!(ops, ["Neg", "Unsqueeze", "Abs", "Relu"]);
        let x = Tensor::new(&[1, 3, 4], &values[..12]);
        assert_eq!(run(&result, &[("x", &x)]), run(&model, &[("x", &x)]));
    }

    #[test]
    fn what_follows_from_given_sizes_becomes_constant() {
        let text = "x: f32[n, k]\nh: f32[n, 3]\ns = Shape(x)\nf = Cast(s, to=1)\nm = ReduceMax(f)\n\
                    i = Identity(m)\na = Mul(x, i)\nb = Cast(a, to=1)\nc = Slice(b, zero, most, one)\ny = MatMul(c, h)";
        let mut model = model(text);
        for (name, value) in [("zero", 0_i64), ("most", i64::MAX), ("one", 1)] {
            model.graph.set_initializer(name, Tensor::new(&[1], &[value]));
        }
        model.graph.inputs.retain(|input| ["x", "h"].contains(&&*input.name));
        let result = cleaned(&model, "shapes = { x = [3, 3] }").unwrap();
        let ops: Vec<&str> = result.graph.nodes.iter().map(|node| &*node.op_type).collect();
        assert_eq!(ops, ["Mul", "MatMul"]);
        let h = result.graph.inputs.iter().find(|input| input.name == "h").unwrap();
        assert_eq!(h.shape().unwrap()[0].known(), Some(3), "`n` is 3 everywhere");
        let values: Vec<f32> = (0..9).map(|x| x as f32 - 4.0).collect();
        let x = Tensor::new(&[3, 3], &values);
        let feeds = [("x", &x), ("h", &x)];
        assert_eq!(run(&result, &feeds), run(&model, &feeds));
        let error = |settings: &str| cleaned(&model, settings).unwrap_err().to_string();
        assert!(error("shapes = { x = [3] }").contains("`x` is [n, k], which [3] does not fit"));
        assert!(error("shapes = { h = [3, 4] }").contains("does not fit"));
        assert!(error("shapes = { x = [2, 3], h = [3, 3] }").contains("`n` is"));
        assert!(error("shapes = { z = [1] }").contains("no input `z`"));
    }
}
