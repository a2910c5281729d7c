//! Constant folding: nodes whose inputs are all constant are computed once.

use std::collections::HashMap;

use attar_graph::{Edit, Model, Plan};
use attar_tensor::Tensor;

use crate::{Pool, Run, check};

/// Operators whose result is meant to be larger than what they read: left to the runtime unless
/// everything is to be folded.
const GROWING: &[&str] = &["ConstantOfShape", "DequantizeLinear", "Expand", "Range", "Tile"];

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
    let graph = &model.graph;
    let mut plan = Plan::default();
    let mut folded: HashMap<&str, Tensor> = HashMap::new();
    let pool = Pool::default();
    let constants: HashMap<&str, &Tensor> = graph.constants().collect();
    for (index, node) in graph.nodes.iter().enumerate() {
        let grows = keep_small && GROWING.contains(&node.op_type.as_str());
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
        let Ok(operator) = check(node, model.opset()) else { continue };
        let references: Vec<Option<&Tensor>> = inputs.iter().map(Option::as_ref).collect();
        let Ok(kernel) = operator.kernel(node, &references) else { continue };
        let Ok(outputs) = kernel.run(&mut Run { inputs, pool: &pool }) else { continue };
        plan.push(Edit::RemoveNode { index });
        for (name, tensor) in node.outputs.iter().zip(outputs).filter(|(name, _)| !name.is_empty())
        {
            plan.push(Edit::SetInitializer { name: name.clone(), tensor: tensor.clone() });
            folded.insert(name, tensor);
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::testing::graph_from_text;

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
