//! Nodes whose results nothing reads, and initializers that no node reads.

use std::collections::HashSet;

use attar_graph::{Edit, Graph, Model, Plan};

pub fn plan(model: &Model) -> Plan {
    let graph = &model.graph;
    let mut live: HashSet<&str> = graph.outputs.iter().map(|output| output.name.as_str()).collect();
    let mut plan = Plan::default();
    let mut kept = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate().rev() {
        if !node.outputs.iter().any(|output| live.contains(output.as_str())) {
            plan.push(Edit::RemoveNode { index });
            continue;
        }
        live.extend(node.inputs.iter().map(String::as_str));
        kept.push(node);
        node.subgraphs().for_each(|subgraph| names_read(subgraph, &mut live));
    }
    for name in graph.initializers.keys().filter(|name| !live.contains(name.as_str())) {
        plan.push(Edit::RemoveInitializer { name: name.clone() });
    }
    plan
}

fn names_read<'a>(graph: &'a Graph, live: &mut HashSet<&'a str>) {
    live.extend(graph.outputs.iter().map(|output| output.name.as_str()));
    for node in &graph.nodes {
        live.extend(node.inputs.iter().map(String::as_str));
        node.subgraphs().for_each(|subgraph| names_read(subgraph, live));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::testing::graph_from_text;

    #[test]
    fn a_chain_that_leads_nowhere_goes_with_its_weights() {
        let mut graph = graph_from_text("w = [1]\na = Mul(x, w)\nb = Relu(a)\ny = Neg(x)");
        graph.outputs.retain(|output| output.name == "y");
        let mut model = Model { graph, ..Model::default() };
        let plan = plan(&model);
        attar_graph::apply(&mut model.graph, &plan).unwrap();
        assert_eq!(model.graph.nodes.len(), 1);
        assert!(model.graph.initializers.is_empty());
    }
}
