//! Nodes that compute in a half type. A value has its f32 name and, where half nodes make or read it,
//! one more; a Cast stands between the two where both are wanted, and nowhere else.

use std::collections::{BTreeMap, BTreeSet};

use attar_graph::{Edit, Graph, Links, Model, Node, Plan, captured_names};
use attar_ops::{Facts, infer_graph};
use attar_tensor::{DType, Tensor};

use super::{HalfType, remark_unfit};
use crate::quantize::calibrate::{Fold, observe};
use crate::{Context, PassError};

/// How far below the largest number what was seen in calibration must stay.
const MARGIN: f32 = 2.0;

/// Operators that ONNX defines for half types in every float input and output.
const OPERATORS: &[&str] = &[
    "Abs",
    "Add",
    "ArgMax",
    "ArgMin",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Ceil",
    "Clip",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Cos",
    "CumSum",
    "DepthToSpace",
    "Div",
    "Einsum",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Floor",
    "GRU",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "LSTM",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LogSoftmax",
    "MatMul",
    "Max",
    "MaxPool",
    "Mean",
    "Min",
    "Mul",
    "Neg",
    "PRelu",
    "Pad",
    "Pow",
    "RNN",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Round",
    "Selu",
    "Shape",
    "Sigmoid",
    "Sign",
    "Sin",
    "Size",
    "Slice",
    "Softmax",
    "Softplus",
    "SpaceToDepth",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Tanh",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Where",
];

/// Operators whose work is worth a Cast on each side.
const HEAVY: &[&str] = &["Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"];

/// The largest magnitude of a value over the calibration data.
#[derive(Default)]
struct Largest(f32);

impl Fold for Largest {
    fn fold(&mut self, tensor: &Tensor) -> bool {
        let largest = tensor.values::<f32>().iter().fold(0.0_f32, |largest, x| {
            if x.is_nan() { f32::INFINITY } else { largest.max(x.abs()) }
        });
        self.0 = self.0.max(largest);
        true
    }
}

pub(super) fn plan(model: &Model, format: HalfType, context: &Context) -> Result<Plan, PassError> {
    let facts = infer_graph(model);
    let mut half = Half {
        graph: &model.graph,
        links: Links::new(&model.graph),
        facts: &facts,
        format,
        nodes: BTreeSet::new(),
    };
    let mut plan = Plan::default();
    let largest = half.seen(model, context)?;
    if context.calibration.is_none() && !model.graph.nodes.is_empty() {
        plan.warn(
            "without calibration data only constants were looked at: values may overflow; give a \
             sample with `--calibration`",
        );
    }
    half.choose(&largest, context, &mut plan);
    half.leave_islands();
    half.write(&mut plan);
    let count = half.nodes.len();
    plan.remark(match count {
        0 => format!("no node can compute in {}", format.dtype()),
        _ => format!("{count} of {} nodes compute in {}", model.graph.nodes.len(), format.dtype()),
    });
    if count > 0 && format == HalfType::Bf16 {
        plan.warn("ONNX Runtime has hardly any operator in bf16 on CPUs: it may refuse the model");
    }
    Ok(plan)
}

struct Half<'a> {
    graph: &'a Graph,
    links: Links<'a>,
    facts: &'a Facts,
    format: HalfType,
    /// Indices of the nodes that compute in the half type.
    nodes: BTreeSet<usize>,
}

impl<'a> Half<'a> {
    fn is_f32(&self, name: &str) -> bool {
        if let Some(constant) = self.links.constant(name) {
            return constant.dtype() == DType::F32;
        }
        self.facts.get(name).is_some_and(|fact| fact.dtype == DType::F32)
    }

    /// The largest magnitude of every f32 value.
    fn seen(
        &self,
        model: &Model,
        context: &Context,
    ) -> Result<BTreeMap<String, Largest>, PassError> {
        let produced = self.graph.nodes.iter().filter(|node| node.constant().is_none());
        let values = produced.flat_map(|node| node.outputs.iter());
        let inputs = self.graph.required_inputs().map(|input| &input.name);
        let mut records: BTreeMap<String, Largest> = values
            .chain(inputs)
            .filter(|name| !name.is_empty() && self.is_f32(name))
            .map(|name| (name.clone(), Largest::default()))
            .collect();
        if context.calibration.is_some() && !records.is_empty() {
            observe(model, &mut records, context)?;
        }
        Ok(records)
    }

    fn choose(&mut self, largest: &BTreeMap<String, Largest>, context: &Context, plan: &mut Plan) {
        let captured: BTreeSet<&str> = (self.graph.nodes.iter())
            .flat_map(|node| node.subgraphs().flat_map(captured_names))
            .collect();
        let (mut fits, mut unfit) = (Vec::new(), BTreeSet::new());
        let end = self.format.largest() / MARGIN;
        for (index, node) in self.graph.nodes.iter().enumerate() {
            let is_known = OPERATORS.iter().any(|op| node.is(op));
            let floats = || {
                let names = node.inputs.iter().chain(&node.outputs);
                names.map(String::as_str).filter(|name| !name.is_empty() && self.is_f32(name))
            };
            let is_excluded = context.exclude.matches(node.label())
                || node.inputs.iter().any(|name| context.exclude.matches(name));
            let is_captured = node.outputs.iter().any(|name| captured.contains(name.as_str()));
            if !is_known || is_excluded || is_captured || floats().next().is_none() {
                continue;
            }
            let does_not_fit = |name: &&str| match self.links.constant(name) {
                Some(constant) => {
                    let is_within = |x: &f32| x.abs() <= self.format.largest();
                    !constant.values::<f32>().iter().all(is_within)
                }
                // What was NaN is kept as infinity.
                None => largest.get(*name).is_some_and(|seen| seen.0 > end),
            };
            let beyond: Vec<&str> = floats().filter(does_not_fit).collect();
            if beyond.is_empty() {
                fits.push(index);
            }
            unfit.extend(beyond);
        }
        self.nodes.extend(fits);
        remark_unfit(plan, &unfit.into_iter().collect::<Vec<_>>(), self.format);
    }

    /// A node between f32 neighbours gains nothing by two Casts.
    fn leave_islands(&mut self) {
        loop {
            let is_island = |&index: &usize| {
                let node = &self.graph.nodes[index];
                let is_half = |index: usize| self.nodes.contains(&index);
                let made = node.inputs.iter().filter_map(|name| self.links.producer(name));
                let mut read = node.outputs.iter().flat_map(|name| self.links.uses(name));
                !HEAVY.iter().any(|op| node.is(op))
                    && !made.map(|(index, _)| index).any(is_half)
                    && !read.any(|each| is_half(each.node))
            };
            let islands: Vec<usize> = self.nodes.iter().copied().filter(is_island).collect();
            if islands.is_empty() {
                return;
            }
            islands.iter().for_each(|index| {
                self.nodes.remove(index);
            });
        }
    }

    fn write(&self, plan: &mut Plan) {
        // Values by their f32 name: whether half nodes make them, and whether any reads them.
        let mut wanted: BTreeSet<&str> = BTreeSet::new();
        let mut made: BTreeSet<&str> = BTreeSet::new();
        for &index in &self.nodes {
            let node = &self.graph.nodes[index];
            let of = |names: &'a [String]| {
                names
                    .iter()
                    .map(String::as_str)
                    .filter(|name| !name.is_empty() && self.is_f32(name))
            };
            wanted.extend(of(&node.inputs));
            made.extend(of(&node.outputs));
            plan.push(Edit::ReplaceNode { index, node: self.renamed(node) });
        }
        for name in &wanted {
            if let Some(constant) = self.links.constant(name) {
                let tensor = self.format.rounded(constant).expect("what does not fit stays f32");
                plan.push(Edit::SetInitializer { name: half_name(name), tensor });
            } else if !made.contains(name) {
                add_cast(plan, name, &half_name(name), self.format.code());
            }
        }
        for name in &made {
            let is_wanted = self.graph.is_output(name)
                || self.links.uses(name).iter().any(|each| !self.nodes.contains(&each.node));
            if is_wanted {
                add_cast(plan, &half_name(name), name, 1);
            }
        }
    }

    fn renamed(&self, node: &Node) -> Node {
        let mut half = node.clone();
        for name in half.inputs.iter_mut().chain(&mut half.outputs) {
            if !name.is_empty() && self.is_f32(name) {
                *name = half_name(name);
            }
        }
        if node.is("Cast") && node.outputs.first().is_some_and(|name| self.is_f32(name)) {
            half = half.with_attribute("to", self.format.code());
        }
        half
    }
}

fn add_cast(plan: &mut Plan, from: &str, to: &str, code: i64) {
    let node = Node::new("Cast", &format!("{to}_cast"), &[from], &[to]);
    plan.push(Edit::AddNode { node: node.with_attribute("to", code) });
}

fn half_name(name: &str) -> String {
    format!("{name}_half")
}
