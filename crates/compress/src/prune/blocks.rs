//! Whole residual blocks go: attention or feed-forward parts of a Transformer, blocks of a residual
//! network (depth pruning; by the effect on the output, as in Men et al., 2024, `ShortGPT`,
//! arXiv:2403.03853).

use std::collections::{BTreeMap, BTreeSet};

use attar_graph::{Edit, Graph, Links, Model, Node, Plan, apply};
use attar_ops::infer_graph;
use attar_runtime::RunOptions;
use attar_tensor::{DType, Tensor};
use serde::Deserialize;

use crate::{Context, Exclude, OptionEntry, Pass, PassError};

/// Lets values pass by blocks that add to them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BlockPrune {
    /// How many.
    #[serde(default)]
    count: usize,
    /// Patterns of names of blocks.
    #[serde(default)]
    blocks: Vec<String>,
}

pub(crate) const OPTIONS: &[OptionEntry] = &[
    OptionEntry {
        key: "count",
        default: "0",
        help: "blocks that go, one after the other, each time the one whose absence changes the \
               outputs least on calibration data",
    },
    OptionEntry {
        key: "blocks",
        default: "[]",
        help: "blocks that go, by the name of the node that ends them: names or patterns",
    },
];

/// Examples that effects are measured on.
const EXAMPLES_MAX: usize = 32;

/// A part of the graph that adds something to a value.
#[derive(Clone, Debug, PartialEq)]
struct Block {
    /// The node that ends it.
    name: String,
    from: String,
    to: String,
    /// Elements of the matrices and filters that go with it.
    weight_count: usize,
}

impl Pass for BlockPrune {
    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        let blocks = find_blocks(model, &context.exclude);
        let named = Exclude::new(self.blocks.clone());
        let names: Vec<&str> = blocks.iter().map(|block| block.name.as_str()).collect();
        if let Some(pattern) = named.unmatched(&names).first() {
            return Err(PassError::NoBlock {
                pattern: (*pattern).to_string(),
                known: names.join(", "),
            });
        }
        let mut gone: Vec<&Block> =
            blocks.iter().filter(|block| named.matches(&block.name)).collect();
        let mut effects = Vec::new();
        let left = blocks.len() - gone.len();
        if self.count > 0 && !model.graph.nodes.is_empty() {
            let sample = Sample::of(model, context)?;
            for _ in 0..self.count.min(left) {
                let mut least: Option<(f64, &Block)> = None;
                for block in blocks.iter().filter(|block| !gone.contains(block)) {
                    let tried = [&gone[..], &[block]].concat();
                    let effect = sample.effect(model, &tried, context)?;
                    if least.is_none_or(|(best, _)| effect < best) {
                        least = Some((effect, block));
                    }
                }
                let Some((effect, block)) = least else { break };
                gone.push(block);
                effects.push(effect);
            }
        }
        let mut plan = edits(&model.graph, &gone);
        for (index, block) in gone.iter().enumerate() {
            let measured = (index + effects.len()).checked_sub(gone.len());
            let effect = measured.map_or(String::new(), |at| {
                format!("; outputs are {:.1} % off from then on", 100.0 * effects[at])
            });
            plan.remark(format!(
                "`{}` goes, with {} weights{effect}",
                block.name, block.weight_count
            ));
        }
        if self.count > left {
            plan.warn(format!("there are {left} blocks, not {}", self.count));
        }
        Ok(plan)
    }
}

/// Every value that a node adds something to, where what is added comes from that value alone and
/// from weights. A LayerNormalization that is all that reads the sum belongs to the block.
fn find_blocks(model: &Model, exclude: &Exclude) -> Vec<Block> {
    let graph = &model.graph;
    let (links, facts) = (Links::new(graph), infer_graph(model));
    let shape = |name: &str| facts.get(name).and_then(|fact| fact.shape.clone());
    let is_output = |name: &str| graph.outputs.iter().any(|output| output.name == name);
    let mut blocks: Vec<Block> = Vec::new();
    for node in graph.nodes.iter().filter(|node| node.is("Add")) {
        let [a, b] = [0, 1].map(|at| node.inputs.get(at).map_or("", String::as_str));
        // The shorter way is the value, the longer one what is added to it.
        let Some(from) = [a, b].into_iter().zip([b, a]).find_map(|(value, added)| {
            let is_value = links.constant(value).is_none() && links.constant(added).is_none();
            (is_value && comes_from(&links, added, value)).then_some(value)
        }) else {
            continue;
        };
        let sum = node.outputs[0].as_str();
        let normalized = links.only_use(sum).map(|(_, user)| user).filter(|user| {
            let normalizes = user.is("LayerNormalization") || user.is("RMSNormalization");
            normalizes && user.inputs[0] == sum
        });
        let end = normalized.unwrap_or(node);
        let to = end.outputs[0].as_str();
        let is_alike = shape(from).is_some() && shape(from) == shape(to);
        let is_kept = exclude.matches(end.label()) || exclude.matches(to);
        if is_alike && !is_kept && !is_output(to) && !is_output(sum) {
            let block = Block {
                name: end.label().into(),
                from: from.into(),
                to: to.into(),
                weight_count: 0,
            };
            let weight_count = weights_lost(graph, &block);
            // A polynomial, of GELU for one, also adds something to a value.
            if weight_count > 0 {
                blocks.push(Block { weight_count, ..block });
            }
        }
    }
    blocks
}

/// Whether a value is computed from `origin`, perhaps beside other values that `origin` does not
/// lead to: masks, for one.
fn comes_from(links: &Links, value: &str, origin: &str) -> bool {
    let mut open = vec![value];
    let mut seen: BTreeSet<&str> = open.iter().copied().collect();
    while let Some(name) = open.pop() {
        if name == origin {
            return true;
        }
        let Some((_, node)) = links.producer(name) else { continue };
        open.extend(node.inputs.iter().map(String::as_str).filter(|input| seen.insert(input)));
    }
    false
}

/// What happens when these blocks are passed by: their readers read what went in, and nodes that
/// nobody then reads go.
fn edits(graph: &Graph, blocks: &[&Block]) -> Plan {
    let mut plan = Plan::default();
    let passed: BTreeMap<&str, &str> =
        blocks.iter().map(|block| (block.to.as_str(), block.from.as_str())).collect();
    let origin = |name: &str| {
        let mut name = name.to_string();
        while let Some(from) = passed.get(name.as_str()) {
            name = (*from).to_string();
        }
        name
    };
    for block in blocks {
        plan.push(Edit::ReplaceUses { from: block.to.clone(), to: origin(&block.from) });
    }
    let needed = needed_nodes(graph, &origin);
    let dead = (0..graph.nodes.len()).filter(|index| !needed.contains(index));
    let before = needed_nodes(graph, &|name: &str| name.to_string());
    plan.edits.extend(dead.filter(|i| before.contains(i)).map(|index| Edit::RemoveNode { index }));
    plan
}

/// The nodes that outputs are computed from, where readers of a value read `origin(value)`.
fn needed_nodes(graph: &Graph, origin: &dyn Fn(&str) -> String) -> BTreeSet<usize> {
    let links = Links::new(graph);
    let mut open: Vec<String> = graph.outputs.iter().map(|output| output.name.clone()).collect();
    let mut needed = BTreeSet::new();
    while let Some(name) = open.pop() {
        let Some((index, node)) = links.producer(&name) else { continue };
        if needed.insert(index) {
            let captured = node.subgraphs().flat_map(attar_graph::captured_names);
            let read = node.inputs.iter().map(String::as_str).chain(captured);
            open.extend(read.filter(|name| !name.is_empty()).map(origin));
        }
    }
    needed
}

/// Elements of the matrices and filters that go with a block.
fn weights_lost(graph: &Graph, block: &Block) -> usize {
    let plan = edits(graph, &[block]);
    let gone = plan.edits.iter().filter_map(|edit| match edit {
        Edit::RemoveNode { index } => Some(&graph.nodes[*index]),
        _ => None,
    });
    let names: BTreeSet<&str> = gone.flat_map(read_by).collect();
    let weights = names.iter().filter_map(|name| graph.constant(name));
    weights.filter(|tensor| tensor.rank() >= 2).map(Tensor::element_count).sum()
}

fn read_by(node: &Node) -> impl Iterator<Item = &str> {
    node.inputs.iter().map(String::as_str)
}

/// Examples with what the whole model makes of them.
struct Sample {
    examples: Vec<Example>,
}

struct Example {
    feeds: Vec<(String, Tensor)>,
    outputs: Vec<Tensor>,
}

impl Sample {
    fn of(model: &Model, context: &Context) -> Result<Self, PassError> {
        let calibration = context.calibration.ok_or(PassError::NoCalibration)?;
        let mut session = context.runtime.load(model, &options(context))?;
        let inputs = session.inputs().to_vec();
        let mut examples = Vec::new();
        let mut count = 0_usize;
        calibration.for_each_batch(&inputs, &mut |_| {
            count += 1;
            Ok(())
        })?;
        let step = count.div_ceil(EXAMPLES_MAX).max(1);
        let mut batch = 0;
        calibration.for_each_batch(&inputs, &mut |feeds| {
            batch += 1;
            if (batch - 1) % step == 0 {
                let outputs = session.run(feeds)?;
                let feeds = feeds.iter().map(|(n, t)| ((*n).to_string(), (*t).clone())).collect();
                examples.push(Example { feeds, outputs });
            }
            Ok(())
        })?;
        if examples.is_empty() { Err(PassError::EmptyCalibration) } else { Ok(Self { examples }) }
    }

    /// ‖ŷ − y‖ / ‖y‖ over all float outputs, without these blocks.
    fn effect(
        &self,
        model: &Model,
        blocks: &[&Block],
        context: &Context,
    ) -> Result<f64, PassError> {
        let mut tried = model.clone();
        apply(&mut tried.graph, &edits(&model.graph, blocks))?;
        let mut session = context.runtime.load(&tried, &options(context))?;
        let (mut lost, mut power) = (0.0, 0.0);
        for example in &self.examples {
            let feeds: Vec<(&str, &Tensor)> =
                example.feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
            let outputs = session.run(&feeds)?;
            for (y, wanted) in outputs.iter().zip(&example.outputs) {
                if wanted.dtype() != DType::F32 || y.shape() != wanted.shape() {
                    continue;
                }
                for (y, wanted) in y.values::<f32>().iter().zip(wanted.values::<f32>().iter()) {
                    lost += f64::from(y - wanted).powi(2);
                    power += f64::from(*wanted).powi(2);
                }
            }
        }
        Ok(if power > 0.0 { (lost / power).sqrt() } else { 0.0 })
    }
}

fn options(context: &Context) -> RunOptions {
    RunOptions { threads: context.threads, observed: Vec::new() }
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;

    use super::*;

    fn model(text: &str) -> Model {
        let opsets = [(String::new(), 17)].into_iter().collect();
        Model { ir_version: 8, opsets, graph: graph_from_text(text), ..Model::default() }
    }

    const TWO: &str = "x: f32[n, 2]
w = [1 2; 3 4]
v = [1 0; 0 1]
a = MatMul(x, w)
b = Add(x, a)
c = MatMul(b, v)
d = Add(c, b)
e = Mul(d, d)
f = Add(d, e)
g = Abs(f)";

    #[test]
    fn blocks_are_found_and_passed_by() {
        let model = model(TWO);
        let blocks = find_blocks(&model, &Exclude::default());
        let ends: Vec<(&str, &str, usize)> =
            blocks.iter().map(|b| (b.from.as_str(), b.to.as_str(), b.weight_count)).collect();
        assert_eq!(ends, [("x", "b", 4), ("b", "d", 4)]);
        let mut graph = model.graph.clone();
        apply(&mut graph, &edits(&model.graph, &blocks.iter().collect::<Vec<_>>())).unwrap();
        assert_eq!(graph.nodes.len(), 3);
        assert_eq!(graph.nodes[0].inputs, ["x", "x"]);
        assert!(graph.initializers.is_empty());
    }

    #[test]
    fn what_adds_two_branches_is_no_block() {
        let model = model("x: f32[n, 2]\na = Relu(x)\nb = Abs(x)\nc = Add(a, b)\nd = Relu(c)");
        assert_eq!(find_blocks(&model, &Exclude::default()), []);
    }
}
