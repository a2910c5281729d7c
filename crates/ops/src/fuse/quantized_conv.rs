//! Image networks in QDQ form → operators of u8: what lies between `DequantizeLinear` and
//! `QuantizeLinear` becomes one operator that reads and writes levels.

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_tensor::{DType, Tensor};

use super::producer;
use super::window::bounds;
use crate::kernels::quantize;
use crate::quantized_conv::{ADDEND, TABLE};
use crate::{ATTAR_DOMAIN, Facts, MICROSOFT_DOMAIN, Pool, Run, check, infer_graph};

/// One operator for every `QuantizeLinear` whose input is computed from levels.
pub fn plan(model: &Model) -> Plan {
    let links = Links::new(&model.graph);
    let mut plan = Plan::default();
    for (index, node) in model.graph.nodes.iter().enumerate() {
        let Some(output) = Scaled::new(&links, node).filter(|_| node.is("QuantizeLinear")) else {
            continue;
        };
        let fusion = Fusion { model, links: &links, quantize: node, output };
        if let Some((node, constant)) = fusion.fused() {
            if let Some((name, tensor)) = constant {
                plan.push(Edit::SetInitializer { name, tensor });
            }
            plan.push(Edit::ReplaceNode { index, node });
        }
    }
    plan
}

/// `QLinearConv` of u8 with constants is a `QuantizedConv` as it stands.
pub fn plan_operators(model: &Model) -> Plan {
    let links = Links::new(&model.graph);
    let mut plan = Plan::default();
    let is_u8 = |name: Option<&str>| {
        name.and_then(|name| links.constant(name)).is_some_and(|zero| zero.dtype() == DType::U8)
    };
    for (index, node) in model.graph.nodes.iter().enumerate().filter(|(_, n)| n.is("QLinearConv")) {
        let inputs = node.inputs[1..].iter();
        let is_fixed = inputs.clone().all(|name| name.is_empty() || links.constant(name).is_some());
        if is_fixed && is_u8(node.input(2)) && is_u8(node.input(7)) {
            let mut node = node.clone();
            node.op_type = "QuantizedConv".into();
            plan.push(Edit::ReplaceNode { index, node: node.with_domain(ATTAR_DOMAIN) });
        }
    }
    plan
}

/// A table, then a residual addition join the convolution before them.
pub fn plan_epilogues(model: &Model) -> Plan {
    let facts = infer_graph(model);
    let links = Links::new(&model.graph);
    let mut plan = Plan::default();
    let mut taken = vec![false; model.graph.nodes.len()];
    // Later convolutions first: of two that meet in an addition, the later one takes it.
    for (index, node) in model.graph.nodes.iter().enumerate().rev() {
        if !is_own(node, "QuantizedConv") || taken[index] {
            continue;
        }
        let (mut fused, mut place, mut absorbed) = (node.clone(), index, Vec::new());
        for absorb in [with_table, with_addend] {
            let next = links.only_use(&fused.outputs[0]).filter(|&(next, _)| !taken[next]);
            if let Some((next, reader)) = next
                && let Some(node) = absorb(&fused, reader, &facts)
            {
                absorbed.push(place);
                taken[next] = true;
                (fused, place) = (node, next);
            }
        }
        if !absorbed.is_empty() {
            plan.edits.extend(absorbed.into_iter().map(|index| Edit::RemoveNode { index }));
            plan.push(Edit::ReplaceNode { index: place, node: fused });
        }
    }
    plan
}

fn with_table(conv: &Node, reader: &Node, _: &Facts) -> Option<Node> {
    if !is_own(reader, "LevelTable") || conv.inputs.len() > TABLE {
        return None;
    }
    let mut fused = conv.clone();
    fused.inputs.resize(TABLE, String::new());
    fused.inputs.push(reader.inputs[1].clone());
    fused.outputs.clone_from(&reader.outputs);
    Some(fused)
}

fn with_addend(conv: &Node, reader: &Node, facts: &Facts) -> Option<Node> {
    let is_add = reader.op_type == "QLinearAdd" && reader.domain == MICROSOFT_DOMAIN;
    if !is_add || conv.inputs.len() > ADDEND || conv.input(TABLE).is_some() {
        return None;
    }
    let (left, right) = (&reader.inputs[..3], &reader.inputs[3..6]);
    let (own, addend) = if left[0] == conv.outputs[0] { (left, right) } else { (right, left) };
    let shape = |value: &str| facts.get(value).and_then(|fact| fact.shape.clone());
    let is_same = shape(&own[0]).is_some() && shape(&own[0]) == shape(&addend[0]);
    // What the convolution writes is what the addition reads.
    if !is_same || own[1..] != conv.inputs[6..8] || addend[0] == conv.outputs[0] {
        return None;
    }
    let mut fused = conv.clone();
    fused.inputs.resize(ADDEND, String::new());
    fused.inputs.extend(addend.iter().chain(&reader.inputs[6..]).cloned());
    fused.outputs.clone_from(&reader.outputs);
    Some(fused)
}

fn is_own(node: &Node, op_type: &str) -> bool {
    node.domain == ATTAR_DOMAIN && node.op_type == op_type
}

/// Levels of u8 and what they stand for, as names and values.
struct Scaled<'a> {
    /// Levels, scale and zero point.
    names: [&'a str; 3],
    scale: f32,
    zero: u8,
}

impl<'a> Scaled<'a> {
    /// Of a node that quantizes to or dequantizes from u8 with constant scalars.
    fn new(links: &Links<'a>, node: &'a Node) -> Option<Self> {
        let names = [node.input(0)?, node.input(1)?, node.input(2)?];
        let scale = links.constant(names[1]).filter(|t| t.dtype() == DType::F32)?;
        let zero = links.constant(names[2]).filter(|t| t.dtype() == DType::U8)?;
        if scale.element_count() != 1 || zero.element_count() != 1 {
            return None;
        }
        Some(Self { names, scale: scale.values::<f32>()[0], zero: zero.values::<u8>()[0] })
    }

    /// The levels that a value was dequantized from.
    fn of(links: &Links<'a>, value: &str) -> Option<Self> {
        Self::new(links, producer(links, value, "DequantizeLinear")?.1)
    }

    fn is_like(&self, other: &Self) -> bool {
        self.scale == other.scale && self.zero == other.zero
    }

    /// The level of a real value.
    fn level(&self, value: f32) -> u8 {
        let mut level = [0];
        quantize::quantize_u8(&mut level, &[value], self.scale, self.zero.into());
        level[0]
    }
}

/// A new constant.
type Constant = Option<(String, Tensor)>;

/// What makes an operator of u8 of a `QuantizeLinear` and what is before it.
struct Fusion<'a> {
    model: &'a Model,
    links: &'a Links<'a>,
    quantize: &'a Node,
    output: Scaled<'a>,
}

/// Nodes after one another that become one table, at most.
const DEPTH_MAX: usize = 8;

/// A value computed element by element from the levels of one tensor.
struct Function<'a, 'b> {
    fusion: &'b Fusion<'a>,
    /// The levels.
    x: Option<&'a str>,
}

impl<'a> Function<'a, '_> {
    /// What the value is for each of the 256 levels.
    fn values(&mut self, value: &'a str, depth: usize) -> Option<Tensor> {
        let links = self.fusion.links;
        if let Some(x) = Scaled::of(links, value) {
            if self.x.is_some_and(|known| known != x.names[0]) {
                return None;
            }
            self.x = Some(x.names[0]);
            let value = |level: i32| (level - i32::from(x.zero)) as f32 * x.scale;
            return Some(Tensor::new(&[256], &(0..256).map(value).collect::<Vec<f32>>()));
        }
        let (_, node) = links.producer(value).filter(|_| depth > 0)?;
        let is_function = FUNCTIONS.iter().chain(OPERATIONS).any(|op| node.is(op));
        if !is_function || node.outputs.len() != 1 {
            return None;
        }
        let mut inputs = Vec::new();
        for name in &node.inputs {
            inputs.push(match links.constant(name) {
                _ if name.is_empty() => None,
                Some(scalar) if scalar.element_count() == 1 && scalar.rank() <= 1 => {
                    Some(scalar.aligned())
                }
                Some(_) => return None,
                None => Some(self.values(name, depth - 1)?),
            });
        }
        let constants = vec![None; inputs.len()];
        let kernel = check(node, self.fusion.model.opset()).ok()?.kernel(node, &constants).ok()?;
        kernel.run(&mut Run { inputs, pool: &Pool::default() }).ok()?.pop()
    }
}

/// Functions of one value.
const FUNCTIONS: &[&str] = &[
    "Abs",
    "Celu",
    "Clip",
    "Elu",
    "Erf",
    "Exp",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Mish",
    "Neg",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Tanh",
];

/// Functions of two.
const OPERATIONS: &[&str] = &["Add", "Div", "Mul", "Sub"];

/// Operators that only choose or move values: levels of one scale stay as they are.
const MOVES: &[&str] = &[
    "DepthToSpace",
    "Flatten",
    "MaxPool",
    "Reshape",
    "Resize",
    "SpaceToDepth",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

impl<'a> Fusion<'a> {
    fn fused(&self) -> Option<(Node, Constant)> {
        let value = self.output.names[0];
        if let Some(table) = self.table(value) {
            return Some(table);
        }
        self.before(value)
    }

    /// What gives the value that is quantized, or that a clamp behind it makes no smaller set of
    /// levels of.
    fn before(&self, value: &'a str) -> Option<(Node, Constant)> {
        let (_, node) = self.links.producer(value)?;
        // What others read in f32 is computed anyway.
        self.links.only_use(value)?;
        if !node.domain.is_empty() || node.outputs.len() != 1 {
            return None;
        }
        let [_, scale, zero] = self.output.names;
        match node.op_type.as_str() {
            "Conv" => self.convolution(node, None),
            "Relu" | "Clip" => {
                let bounds = bounds(self.links, node)?;
                if let Some((_, conv)) = producer(self.links, node.input(0)?, "Conv") {
                    self.links.only_use(node.input(0)?)?;
                    return self.convolution(conv, Some(bounds));
                }
                let is_free = bounds.map(|bound| self.output.level(bound)) == [0, 255];
                if is_free { self.before(node.input(0)?) } else { None }
            }
            "Add" | "Mul" | "GlobalAveragePool" | "AveragePool" => {
                let inputs = [&self.operands(node)?[..], &[scale, zero]].concat();
                Some((self.microsoft(node, &inputs), None))
            }
            "Concat" => {
                let inputs = [&[scale, zero], &self.operands(node)?[..]].concat();
                Some((self.microsoft(node, &inputs), None))
            }
            op if MOVES.contains(&op) => self.moved(node),
            _ => None,
        }
    }

    /// Levels, scale and zero point of every input.
    fn operands<'b>(&'b self, node: &Node) -> Option<Vec<&'b str>> {
        let mut names = Vec::new();
        for input in &node.inputs {
            names.extend(Scaled::of(self.links, input)?.names);
        }
        Some(names)
    }

    /// ONNX Runtime's operator of the same name over levels.
    fn microsoft(&self, node: &Node, inputs: &[&str]) -> Node {
        let mut fused = node.clone();
        fused.op_type = format!("QLinear{}", node.op_type);
        fused.inputs = inputs.iter().map(|&name| name.into()).collect();
        fused.outputs.clone_from(&self.quantize.outputs);
        fused.with_domain(MICROSOFT_DOMAIN)
    }

    fn moved(&self, node: &Node) -> Option<(Node, Constant)> {
        let x = Scaled::of(self.links, node.input(0)?)?;
        let is_chosen = !node.is("Resize")
            || (node.text("mode").ok()?.unwrap_or("nearest") == "nearest"
                && node.text("coordinate_transformation_mode").ok()? != Some("tf_crop_and_resize"));
        if !x.is_like(&self.output) || !is_chosen {
            return None;
        }
        let mut fused = node.clone();
        fused.inputs[0] = x.names[0].into();
        fused.outputs.clone_from(&self.quantize.outputs);
        Some((fused, None))
    }

    /// What each level becomes, where the value is a function of single levels.
    fn table(&self, value: &'a str) -> Option<(Node, Constant)> {
        let mut function = Function { fusion: self, x: None };
        let values = function.values(value, DEPTH_MAX)?;
        let mut table = [0; 256];
        let (scale, zero) = (self.output.scale, self.output.zero.into());
        quantize::quantize_u8(&mut table, values.values::<f32>().get(..256)?, scale, zero);
        let name = format!("{}/table", self.quantize.outputs[0]);
        let output = &self.quantize.outputs[0];
        let node = Node::new("LevelTable", &self.quantize.name, &[function.x?, &name], &[output]);
        Some((node.with_domain(ATTAR_DOMAIN), Some((name, Tensor::new(&[256], &table)))))
    }

    fn convolution(&self, conv: &Node, clamp: Option<[f32; 2]>) -> Option<(Node, Constant)> {
        let x = Scaled::of(self.links, conv.input(0)?)?;
        let (_, w) = producer(self.links, conv.input(1)?, "DequantizeLinear")?;
        let weight = self.links.constant(w.input(0)?)?;
        let scales = self.links.constant(w.input(1)?).filter(|t| t.dtype() == DType::F32)?;
        let is_8_bit = matches!(weight.dtype(), DType::I8 | DType::U8) && weight.rank() >= 3;
        let outputs = weight.shape().first().copied()?;
        let is_per_output = scales.shape() == [outputs] && w.int_or("axis", 1) == Ok(0);
        let is_zero_known = w.input(2).is_none_or(|zero| self.links.constant(zero).is_some());
        if !is_8_bit || !(is_per_output || scales.element_count() == 1) || !is_zero_known {
            return None;
        }
        let scales = scales.values::<f32>();
        let scales: Vec<f32> = (0..outputs).map(|o| x.scale * scales[o % scales.len()]).collect();
        let name = format!("{}/levels", self.quantize.outputs[0]);
        let bias = match conv.input(2) {
            Some(bias) => Some((name, self.bias(bias, &scales)?)),
            None => None,
        };
        let [_, scale, zero] = self.output.names;
        let weights = [w.input(0)?, w.input(1)?, w.input(2).unwrap_or("")];
        let mut inputs = [&x.names[..], &weights, &[scale, zero]].concat();
        inputs.extend(bias.as_ref().map(|(name, _)| name.as_str()));
        let mut node = conv.clone();
        node.op_type = "QuantizedConv".into();
        node.inputs = inputs.into_iter().map(Into::into).collect();
        node.outputs.clone_from(&self.quantize.outputs);
        if let Some([low, high]) = clamp {
            node = node
                .with_attribute("low", i64::from(self.output.level(low)))
                .with_attribute("high", i64::from(self.output.level(high)));
        }
        Some((node.with_domain(ATTAR_DOMAIN), bias))
    }

    /// A bias, f32 or dequantized, in units of the sums, which have one scale per output; `None` where
    /// these are so coarse that rounding would show in the levels of the result.
    fn bias(&self, name: &str, scales: &[f32]) -> Option<Tensor> {
        let values: Vec<f64> = match producer(self.links, name, "DequantizeLinear") {
            Some((_, node)) => {
                let levels = self.links.constant(node.input(0)?)?;
                let own = self.links.constant(node.input(1)?)?.to_f64()?;
                let zero = node.input(2).map(|zero| self.links.constant(zero)?.to_i64());
                let is_zero =
                    zero.is_none_or(|zero| zero.is_some_and(|z| z.iter().all(|&z| z == 0)));
                if !is_zero || (own.len() != 1 && own.len() != scales.len()) {
                    return None;
                }
                let levels = levels.to_i64()?;
                levels.iter().enumerate().map(|(o, &q)| q as f64 * own[o % own.len()]).collect()
            }
            None => self.links.constant(name)?.to_f64()?,
        };
        if values.len() != scales.len() {
            return None;
        }
        let levels = values.iter().zip(scales).map(|(value, &scale)| {
            let level = (value / f64::from(scale)).round_ties_even();
            let off = (value - level * f64::from(scale)).abs();
            let is_near = off <= BIAS_ERROR_MAX * f64::from(self.output.scale);
            (is_near && level.abs() < f64::from(i32::MAX)).then_some(level as i32)
        });
        Some(Tensor::new(&[scales.len()], &levels.collect::<Option<Vec<i32>>>()?))
    }
}

/// Part of a level that a rounded bias may be off by.
const BIAS_ERROR_MAX: f64 = 0.02;

#[cfg(test)]
mod tests;
