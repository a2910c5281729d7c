//! Constant folding: nodes whose inputs are all constant are computed once.

use std::collections::{HashMap, HashSet};

use attar_graph::{AttributeValue, Edit, Graph, Model, Plan, all_names, inline_branch};
use attar_tensor::{DType, Tensor};

use crate::{Pool, Run, check, infer_graph};

/// Operators whose result is meant to be larger than what they read: left to the runtime unless
/// everything is to be folded.
const GROWING: &[&str] = &["ConstantOfShape", "DequantizeLinear", "Expand", "Range", "Tile"];

/// Bytes below which a result may be larger than what it is computed from.
const GROWTH_MIN: usize = 1024;

/// Operators that draw anew whenever they run, though a runtime may draw the same numbers.
const RANDOM: &[&str] = &[
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
];

/// Plans to replace nodes that read only constants by their results.
///
/// With `keep_small`, nodes that would grow the file stay: a dequantized weight is four times
/// the quantized one. Random operators and those attar does not know stay always.
pub fn fold_constants(model: &Model, keep_small: bool) -> Plan {
    fold(model, keep_small, keep_small)
}

/// As with `keep_small`, for a model that is about to run: its size does not matter, while weights that
/// are dequantized are to be seen as such.
pub fn fold_unpacking(model: &Model) -> Plan {
    fold(model, true, false)
}

fn fold(model: &Model, keeps_growing: bool, keeps_size: bool) -> Plan {
    let graph = &model.graph;
    let mut plan = Plan::default();
    let mut folded: HashMap<&str, Tensor> = HashMap::new();
    let pool = Pool::default();
    let constants: HashMap<&str, &Tensor> = graph.constants().collect();
    let scales = if keeps_size { scales(graph) } else { HashSet::new() };
    for (index, node) in graph.nodes.iter().enumerate() {
        let grows = keeps_growing && GROWING.contains(&node.op_type.as_str());
        let draws = RANDOM.contains(&node.op_type.as_str());
        if node.is("Constant") || grows || draws || node.subgraphs().next().is_some() {
            continue;
        }
        let lookup =
            |name: &String| folded.get(name.as_str()).or(constants.get(name.as_str()).copied());
        let all_constant = node.inputs.iter().all(|name| name.is_empty() || lookup(name).is_some());
        // Results that the graph itself returns keep their node: an output needs a producer.
        if !all_constant || node.outputs.iter().any(|output| graph.is_output(output)) {
            continue;
        }
        let inputs: Vec<Option<Tensor>> =
            node.inputs.iter().map(|name| lookup(name).map(Tensor::aligned)).collect();
        let read_bytes: usize = inputs.iter().flatten().map(Tensor::size_bytes).sum();
        let Ok(operator) = check(node, model.opset()) else { continue };
        let references: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
        let Ok(kernel) = operator.kernel(node, &references) else { continue };
        let Ok(outputs) = kernel.run(&mut Run { inputs, pool: &pool }) else { continue };
        let sizes = [read_bytes, outputs.iter().map(Tensor::size_bytes).sum()];
        // Twice as much is a half type that becomes f32, whose weights passes are to see; not its
        // scales.
        let is_scale = node.is("Cast") && scales.contains(node.outputs[0].as_str());
        if is_scale && sizes[1] > sizes[0] {
            continue;
        }
        if keeps_size && sizes[1] > (2 * sizes[0]).max(GROWTH_MIN) {
            continue;
        }
        plan.push(Edit::RemoveNode { index });
        for (name, tensor) in node.outputs.iter().zip(outputs).filter(|(name, _)| !name.is_empty())
        {
            plan.push(Edit::SetInitializer { name: name.clone(), tensor: tensor.clone() });
            folded.insert(name, tensor);
        }
    }
    plan
}

/// Values that packed numbers are multiplied by to be real again.
fn scales(graph: &Graph) -> HashSet<&str> {
    let mut scales = HashSet::new();
    for node in &graph.nodes {
        let input = match node.op_type.as_str() {
            "DequantizeLinear" => 1,
            "GatherBlockQuantized" | "MatMulNBits" => 2,
            _ => continue,
        };
        scales.extend(node.input(input));
    }
    scales
}

/// Plans to replace what shapes say: `Shape` of a value whose sizes are known, and the arithmetic
/// that follows it, become constants.
pub fn fold_shapes(model: &Model) -> Plan {
    let graph = &model.graph;
    let facts = infer_graph(model);
    let mut plan = Plan::default();
    for (index, node) in graph.nodes.iter().enumerate() {
        let [output] = node.outputs.as_slice() else { continue };
        let draws = RANDOM.contains(&node.op_type.as_str());
        if node.is("Constant") || draws || graph.is_output(output) {
            continue;
        }
        // What is followed of floats is their integer part.
        let is_integer = |name: &str| {
            let dtype = facts.get(name).map(|fact| fact.dtype);
            matches!(dtype, Some(DType::I64 | DType::I32))
        };
        let is_shape = node.is("Shape") || node.is("Size");
        let reads = node.inputs.iter().filter(|name| !name.is_empty());
        if !is_integer(output) || !(is_shape || reads.clone().all(|name| is_integer(name))) {
            continue;
        }
        let known = facts.get(output).and_then(|fact| {
            let elements = fact.known_elements()?;
            let shape = if fact.rank()? == 0 { vec![] } else { vec![elements.len()] };
            Tensor::new(&shape, &elements).converted(fact.dtype).ok()
        });
        if let Some(tensor) = known {
            plan.push(Edit::RemoveNode { index });
            plan.push(Edit::SetInitializer { name: output.clone(), tensor });
        }
    }
    plan
}

/// Plans to put the branch of every `If` in its place whose condition is constant.
pub fn fold_branches(model: &Model) -> Plan {
    let graph = &model.graph;
    let mut plan = Plan::default();
    let mut names = None;
    for (index, node) in graph.nodes.iter().enumerate().filter(|(_, node)| node.is("If")) {
        let condition = node.input(0).and_then(|name| graph.constant(name));
        let Some(condition) = condition.filter(|c| c.element_count() == 1) else { continue };
        let holds = condition.bytes().first() == Some(&1);
        let name = if holds { "then_branch" } else { "else_branch" };
        let Some(AttributeValue::Graph(branch)) = node.attribute(name) else { continue };
        let names = names.get_or_insert_with(|| all_names(graph));
        plan.edits.extend(inline_branch(graph, index, branch, names));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::Node;
    use attar_graph::testing::graph_from_text;

    #[test]
    fn what_is_packed_stays_packed_in_a_file_and_is_unpacked_to_run() {
        let mut graph = graph_from_text("i = Cast(p, to=6)\nw = Gather(t, i)\ny = Mul(x, w)");
        graph.set_initializer("p", Tensor::new(&[4096], &[1_u8; 4096]));
        graph.set_initializer("t", Tensor::new(&[2, 5], &[0.5_f32; 10]));
        graph.inputs.retain(|input| input.name == "x");
        let opsets = [(String::new(), 17)].into_iter().collect();
        let model = Model { graph, opsets, ..Model::default() };
        assert!(fold_constants(&model, true).is_empty());
        assert_eq!(fold_unpacking(&model).edits.len(), 4);
        let mut halves = model;
        halves.graph = graph_from_text("w = Cast(h, to=1)\ny = Mul(x, w)");
        let h = Tensor::new(&[4096], &[0.5_f32; 4096]).converted(DType::F16).unwrap();
        halves.graph.set_initializer("h", h);
        halves.graph.inputs.retain(|input| input.name == "x");
        assert_eq!(fold_constants(&halves, true).edits.len(), 2);
        // Halves that packed weights are multiplied by are no weights.
        let mut scaled = halves;
        scaled.graph.nodes[1] = Node::new("DequantizeLinear", "d", &["p", "w"], &["y"]);
        scaled.graph.set_initializer("p", Tensor::new(&[4096], &[1_u8; 4096]));
        assert!(fold_constants(&scaled, true).is_empty());
        assert_eq!(fold_unpacking(&scaled).edits.len(), 2);
    }

    #[test]
    fn random_numbers_are_not_folded() {
        let graph = graph_from_text("r = RandomNormal(shape=2)\ny = Add(x, r)");
        let opsets = [(String::new(), 17)].into_iter().collect();
        let plan = fold_constants(&Model { graph, opsets, ..Model::default() }, false);
        assert!(plan.edits.is_empty());
    }

    #[test]
    fn a_chain_of_constants_folds_at_once() {
        let graph = graph_from_text("a = [1 2]\nb = Neg(a)\nc = Add(a, b)\ny = Add(x, c)");
        let mut model = Model {
            graph,
            opsets: [(String::new(), 17)].into_iter().collect(),
            ..Model::default()
        };
        let plan = fold_constants(&model, true);
        attar_graph::apply(&mut model.graph, &plan).unwrap();
        assert_eq!(model.graph.nodes.len(), 1);
        assert_eq!(model.graph.constant("c").unwrap().slice::<f32>(), [0.0, 0.0]);
    }
}
