//! Integer-only inference (Jacob et al., 2018, arXiv:1712.05877): between the first quantization and the
//! last dequantization nothing is a float.
//!
//! A product's sums v become levels by a multiplier and a shift, q = clamp(⌊(v·m + 2ⁿ⁻¹) / 2ⁿ⌋ + zero),
//! with m = round(s·2ⁿ) of s = `scale_x`·`scale_w` / `scale_y`, n so that the largest m of a tensor has 31
//! bits. Nodes are ONNX's own on 64-bit integers; what is below zero is clamped, so that a division that
//! truncates is a shift.

mod pointwise;

use attar_graph::{Edit, Graph, Links, Model, Node, Plan};
use attar_ops::fuse::dead_nodes;
use attar_ops::{Facts, infer_graph};
use attar_tensor::{DType, Tensor};
use serde::Deserialize;

use super::placement::FUNCTIONS;
use super::product::transposed;
use crate::{Context, Pass, PassError};

/// QDQ pairs and the float operators between them → products of integers, multipliers and shifts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IntegerOnly {}

impl Pass for IntegerOnly {
    fn opset_min(&self) -> i64 {
        13
    }

    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        let facts = infer_graph(model);
        let links = Links::new(&model.graph);
        let mut form = Form {
            graph: &model.graph,
            model,
            links: &links,
            facts: &facts,
            plan: Plan::default(),
        };
        let comes_back = comes_back(&model.graph, &links);
        let mut count = 0;
        for (index, node) in model.graph.nodes.iter().enumerate() {
            if context.exclude.matches(node.label()) {
                continue;
            }
            let made = match node.op_type.as_str() {
                "QuantizeLinear" => form.ended_by(index, node),
                "Conv" | "Gemm" | "MatMul" if !comes_back[index] => form.last(index, node),
                _ => None,
            };
            count += usize::from(made.is_some());
        }
        let mut plan = form.plan;
        if count == 0 {
            // The second round takes away what the first left unread.
            let dead = dead_nodes::plan(model);
            if dead.is_empty() {
                remark_floats(&mut plan, model);
            }
            plan.edits = dead.edits;
            return Ok(plan);
        }
        plan.remark(format!("{count} operators in integers, with multipliers and shifts"));
        Ok(plan)
    }

    fn repeats(&self) -> bool {
        true
    }
}

/// Of each node, whether a quantization comes after it: what it makes is not only of the end.
fn comes_back(graph: &Graph, links: &Links) -> Vec<bool> {
    let mut found = vec![false; graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate().rev() {
        let mut read = node.outputs.iter().flat_map(|output| links.uses(output));
        found[index] =
            read.any(|each| graph.nodes[each.node].is("QuantizeLinear") || found[each.node]);
    }
    found
}

/// Nodes that a remark names.
const NAMED: usize = 5;

/// Says what is float between the first quantization and the last dequantization.
fn remark_floats(plan: &mut Plan, model: &Model) {
    let graph = &model.graph;
    if !graph.nodes.iter().any(|node| node.is("QuantizeLinear")) {
        plan.remark("nothing is quantized: run `quantize.static` first");
        return;
    }
    let links = Links::new(graph);
    let comes_back = comes_back(graph, &links);
    let is_float = |(index, node): &(usize, &Node)| {
        let mut made = node.inputs.iter().filter_map(|input| links.producer(input));
        let starts = made.any(|(_, from)| from.is("DequantizeLinear"));
        starts && comes_back[*index] && !node.is("DequantizeLinear")
    };
    let found = graph.nodes.iter().enumerate().filter(is_float);
    let mut floats: Vec<String> = found.map(|(_, node)| format!("`{}`", node.label())).collect();
    if floats.is_empty() {
        plan.remark("no float is left between the first quantization and the last dequantization");
        return;
    }
    floats.truncate(NAMED);
    plan.warn(format!(
        "floats are left, for there is no integer form: {}; smoothed activations are multiplied in \
         floats, which `smooth = \"off\"` of `quantize.static` avoids",
        floats.join(", ")
    ));
}

/// Names of levels, scale and zero point.
type Quantized<'a> = [&'a str; 3];

/// Where sums become levels.
struct Target<'a> {
    /// The value of levels that is made.
    levels: &'a str,
    scale: f64,
    zero: i64,
    /// The least and the greatest level that an activation leaves.
    ends: [i64; 2],
}

/// Of the sums of a product.
struct Sums {
    /// By channel.
    scales: Vec<f64>,
    bias: Vec<i64>,
    /// With which one number per channel stands beside them.
    shape: Vec<usize>,
}

struct Form<'a> {
    graph: &'a Graph,
    model: &'a Model,
    links: &'a Links<'a>,
    facts: &'a Facts,
    plan: Plan,
}

impl<'a> Form<'a> {
    /// Puts integers in the place of what a quantization ends.
    fn ended_by(&mut self, index: usize, quantize: &'a Node) -> Option<()> {
        let scale = self.number(quantize.input(1)?)?;
        let zero = self.links.constant(quantize.input(2)?).filter(|z| z.dtype() == DType::U8)?;
        let zero = i64::from(*zero.slice::<u8>().first()?);
        let levels = quantize.outputs.first()?.as_str();
        let mut y = Target { levels, scale, zero, ends: [0, 255] };
        let value = self.before_clamp(quantize.input(0)?, &mut y)?;
        let (_, node) = self.links.producer(value)?;
        let made = match node.op_type.as_str() {
            "Conv" | "Gemm" | "MatMul" => self.product(node, &y),
            "Add" => self.addition(node, &y),
            "Sub" => self.subtraction(node, &y),
            "Mul" => self.multiplication(node, &y),
            "Concat" => self.joined(node, &y),
            "Split" => self.part(node, value, quantize),
            op if FUNCTIONS.contains(&op) => self.table(node, &y),
            "GlobalAveragePool" => self.average(node, &y),
            "Flatten" | "MaxPool" | "Reshape" | "Squeeze" | "Transpose" | "Unsqueeze" => {
                self.moved(node, quantize)
            }
            _ => None,
        }?;
        self.plan.push(Edit::ReplaceNode { index, node: made });
        Some(())
    }

    fn number(&self, name: &str) -> Option<f64> {
        Some(f64::from(*self.links.constant(name)?.values::<f32>().first()?))
    }

    /// The value before a Relu or Clip, whose bounds become ends of levels.
    fn before_clamp(&self, value: &'a str, y: &mut Target) -> Option<&'a str> {
        let is_own = self.links.uses(value).len() == 1 && !self.graph.is_output(value);
        let (_, node) = self.links.producer(value)?;
        if !is_own {
            return None;
        }
        let bound = |index: usize| node.input(index).map(|name| self.number(name));
        let (least, most) = match node.op_type.as_str() {
            "Relu" => (Some(Some(0.0)), None),
            "Clip" => (bound(1), bound(2)),
            _ => return Some(value),
        };
        let level =
            |bound: f64| ((bound / y.scale).round_ties_even() as i64).saturating_add(y.zero);
        if let Some(least) = least {
            y.ends[0] = level(least?).clamp(0, 255);
        }
        if let Some(most) = most {
            y.ends[1] = level(most?).clamp(0, 255);
        }
        let before = node.input(0)?;
        (self.links.uses(before).len() == 1).then_some(before)
    }

    /// The u8 levels that `value` is dequantized from.
    fn dequantized(&self, value: &str) -> Option<(Quantized<'a>, f64, i64)> {
        let (_, node) =
            self.links.producer(value).filter(|(_, node)| node.is("DequantizeLinear"))?;
        let found = [node.input(0)?, node.input(1)?, node.input(2)?];
        let zero = self.links.constant(found[2]).filter(|zero| zero.dtype() == DType::U8)?;
        let zero = i64::from(*zero.slice::<u8>().first()?);
        Some((found, self.number(found[1])?, zero))
    }

    /// The i8 weight of a product and its scales.
    fn weight(&self, node: &Node) -> Option<(&'a str, &'a Tensor, Vec<f64>)> {
        let (_, from) = self.links.producer(node.input(1)?)?;
        let (name, scales) = (from.input(0)?, from.input(1)?);
        let tensor = self.links.constant(name).filter(|w| w.dtype() == DType::I8)?;
        let scales = self.links.constant(scales)?.to_f32()?;
        let is_dequantized = from.is("DequantizeLinear")
            && from.input(2).is_none_or(|zero| {
                self.links.constant(zero).is_some_and(|z| z.bytes().iter().all(|&byte| byte == 0))
            });
        is_dequantized.then(|| (name, tensor, scales.into_iter().map(f64::from).collect()))
    }

    /// The i32 bias on the grid of the sums; zeros where there is none.
    fn bias(&self, node: &Node, count: usize) -> Option<Vec<i64>> {
        let Some(bias) = node.input(2) else { return Some(vec![0; count]) };
        let (_, from) =
            self.links.producer(bias).filter(|(_, node)| node.is("DequantizeLinear"))?;
        let levels = self.links.constant(from.input(0)?).filter(|b| b.dtype() == DType::I32)?;
        let levels: Vec<i64> = levels.slice::<i32>().iter().map(|&b| i64::from(b)).collect();
        (levels.len() == count).then_some(levels)
    }

    /// The sums of a product in i32, of the value `name`, and what they are of. The node keeps its
    /// name, by which reports compare it with what it was.
    fn sums(&mut self, node: &'a Node, name: &str) -> Option<Sums> {
        let ([x, _, x_zero], x_scale, _) = self.dequantized(node.input(0)?)?;
        let (weight, tensor, scales) = self.weight(node)?;
        let (product, channels, shape) = if node.is("Conv") {
            let channels = tensor.shape()[0];
            let mut shape = vec![1; tensor.rank()];
            shape[1] = channels;
            let mut product = node.clone();
            product.op_type = "ConvInteger".into();
            product.name = node.label().into();
            product.inputs = [x, weight, x_zero].map(String::from).to_vec();
            product.outputs = vec![name.into()];
            (product, channels, shape)
        } else {
            let is_plain = node.is("MatMul")
                || (node.float_or("alpha", 1.0) == Ok(1.0)
                    && node.float_or("beta", 1.0) == Ok(1.0)
                    && node.int_or("transA", 0) == Ok(0));
            if !is_plain || tensor.rank() != 2 {
                return None;
            }
            let is_transposed = node.is("Gemm") && node.int_or("transB", 0) != Ok(0);
            let channels = tensor.shape()[usize::from(!is_transposed)];
            let mut w = weight.to_string();
            if is_transposed {
                w = format!("{weight}_transposed");
                let [rows, depth] = [tensor.shape()[0], tensor.shape()[1]];
                let moved = transposed(tensor.slice::<i8>(), rows);
                let tensor = Tensor::new(&[depth, rows], &moved);
                self.plan.push(Edit::SetInitializer { name: w.clone(), tensor });
            }
            let product = Node::new("MatMulInteger", node.label(), &[x, &w, x_zero], &[name]);
            (product, channels, vec![channels])
        };
        let bias = self.bias(node, channels)?;
        self.plan.push(Edit::AddNode { node: product });
        let scales = if scales.len() == 1 { vec![scales[0]; channels] } else { scales };
        let scales = scales.iter().map(|scale| x_scale * scale).collect();
        Some(Sums { scales, bias, shape })
    }

    /// A product, its bias, and a requantization.
    fn product(&mut self, node: &'a Node, y: &Target) -> Option<Node> {
        let name = format!("{}_sums", y.levels);
        let Sums { scales, bias, shape } = self.sums(node, &name)?;
        let factors: Vec<f64> = scales.iter().map(|scale| scale / y.scale).collect();
        self.requantized(node, y, &[(&name, &factors)], &bias, &shape)
    }

    /// A product at the end, whose sums are dequantized.
    fn last(&mut self, index: usize, node: &'a Node) -> Option<()> {
        let output = node.outputs.first()?;
        let [name, biased, bias_name, scale, dequantized] =
            ["sums", "biased", "bias", "sum_scale", "dequantized"]
                .map(|part| format!("{output}_{part}"));
        let Sums { scales, bias, shape } = self.sums(node, &name)?;
        let bias: Option<Vec<i32>> = bias.iter().map(|&b| i32::try_from(b).ok()).collect();
        let tensor = Tensor::new(&shape, &bias?);
        self.plan.push(Edit::SetInitializer { name: bias_name.clone(), tensor });
        let add = Node::new("Add", &biased, &[&name, &bias_name], &[&biased]);
        self.plan.push(Edit::AddNode { node: add });
        let scales: Vec<f32> = scales.iter().map(|&scale| scale as f32).collect();
        let tensor = Tensor::new(&[scales.len()], &scales);
        self.plan.push(Edit::SetInitializer { name: scale.clone(), tensor });
        let real = Node::new("DequantizeLinear", &dequantized, &[&biased, &scale], &[output]);
        let axis = if node.is("Conv") { 1_i64 } else { -1 };
        self.plan.push(Edit::ReplaceNode { index, node: real.with_attribute("axis", axis) });
        Some(())
    }

    fn addition(&mut self, node: &'a Node, y: &Target) -> Option<Node> {
        if let Some(made) = self.plus_constant(node, y) {
            return Some(made);
        }
        let (a, a_scale, a_zero) = self.dequantized(node.input(0)?)?;
        let (b, b_scale, b_zero) = self.dequantized(node.input(1)?)?;
        let factors = [[a_scale / y.scale], [b_scale / y.scale]];
        let terms = [(a[0], &factors[0][..]), (b[0], &factors[1][..])];
        self.shifted(node, y, &terms, &[-a_zero, -b_zero])
    }

    fn average(&mut self, node: &'a Node, y: &Target) -> Option<Node> {
        let (x, scale, zero) = self.dequantized(node.input(0)?)?;
        let shape = self.facts.get(node.input(0)?)?.shape.as_ref()?;
        let places: Option<Vec<i64>> = shape.iter().skip(2).map(attar_graph::Dim::known).collect();
        let count: i64 = places?.iter().product();
        let axes: Vec<i64> = (2..shape.len() as i64).collect();
        let [wide, sums, axes_name] =
            ["wide", "sums", "axes"].map(|part| format!("{}_{part}", y.levels));
        let cast = Node::new("Cast", &wide, &[x[0]], &[&wide]).with_attribute("to", INT32);
        self.plan.push(Edit::AddNode { node: cast });
        let tensor = Tensor::new(&[axes.len()], &axes);
        self.plan.push(Edit::SetInitializer { name: axes_name.clone(), tensor });
        let sum = Node::new("ReduceSum", &sums, &[&wide, &axes_name], &[&sums]);
        self.plan.push(Edit::AddNode { node: sum });
        let factor = [scale / y.scale / count as f64];
        self.shifted(node, y, &[(&sums, &factor)], &[-zero * count])
    }

    /// What moves values moves their levels, where both grids are one.
    fn moved(&self, node: &'a Node, quantize: &'a Node) -> Option<Node> {
        let (x, ..) = self.dequantized(node.input(0)?)?;
        let y = [quantize.input(1)?, quantize.input(2)?];
        let is_same = (0..2).all(|i| self.links.constant(x[i + 1]) == self.links.constant(y[i]));
        let mut moved = node.clone();
        moved.inputs[0] = x[0].into();
        moved.outputs = vec![quantize.outputs[0].clone()];
        is_same.then_some(moved)
    }

    /// Terms of one factor each, to which constants were added before.
    fn shifted(
        &mut self,
        node: &Node,
        y: &Target,
        terms: &[(&str, &[f64])],
        added: &[i64],
    ) -> Option<Node> {
        let multipliers = Multipliers::new(terms.iter().map(|(_, factors)| *factors))?;
        let constant: i64 =
            multipliers.values.iter().zip(added).map(|(m, added)| m[0] * added).sum();
        Some(self.levels(node, y, terms, &multipliers, &[constant], &[]))
    }

    /// Sums of a product, and its bias.
    fn requantized(
        &mut self,
        node: &Node,
        y: &Target,
        terms: &[(&str, &[f64])],
        bias: &[i64],
        shape: &[usize],
    ) -> Option<Node> {
        let multipliers = Multipliers::new(terms.iter().map(|(_, factors)| *factors))?;
        let constants: Vec<i64> =
            multipliers.values[0].iter().zip(bias).map(|(m, bias)| m * bias).collect();
        let last = self.levels(node, y, terms, &multipliers, &constants, shape);
        Some(Node { name: y.levels.into(), ..last })
    }

    /// Σ terms·multipliers + constants, shifted and clamped; the last node of it.
    fn levels(
        &mut self,
        node: &Node,
        y: &Target,
        terms: &[(&str, &[f64])],
        multipliers: &Multipliers,
        constants: &[i64],
        shape: &[usize],
    ) -> Node {
        let named = |part: &str| format!("{}_{part}", y.levels);
        let shift = multipliers.shift;
        // Half a level, and the zero point, in shifted units.
        let own = (y.zero << shift) + (1_i64 << (shift - 1));
        let constants: Vec<i64> = constants.iter().map(|constant| constant + own).collect();
        let mut sum = String::new();
        for (position, ((term, _), values)) in terms.iter().zip(&multipliers.values).enumerate() {
            let [wide, factor, scaled] =
                ["wide", "multiplier", "scaled"].map(|part| named(&format!("{part}_{position}")));
            let cast = Node::new("Cast", &wide, &[term], &[&wide]).with_attribute("to", INT64);
            self.plan.push(Edit::AddNode { node: cast });
            self.constant(&factor, shape, values);
            let product = Node::new("Mul", &scaled, &[&wide, &factor], &[&scaled]);
            self.plan.push(Edit::AddNode { node: product });
            if sum.is_empty() {
                sum = scaled;
            } else {
                let both = named("both");
                let add = Node::new("Add", &both, &[&sum, &scaled], &[&both]);
                self.plan.push(Edit::AddNode { node: add });
                sum = both;
            }
        }
        let [offset, biased, divisor, quotient] =
            ["offset", "biased", "divisor", "quotient"].map(named);
        self.constant(&offset, shape, &constants);
        self.constant(&divisor, &[], &[1 << shift]);
        let [low, high, clamped] = ["low", "high", "clamped"].map(named);
        self.constant(&low, &[], &[y.ends[0]]);
        self.constant(&high, &[], &[y.ends[1]]);
        let steps = [
            Node::new("Add", &biased, &[&sum, &offset], &[&biased]),
            Node::new("Div", &quotient, &[&biased, &divisor], &[&quotient]),
            Node::new("Clip", &clamped, &[&quotient, &low, &high], &[&clamped]),
        ];
        for step in steps {
            self.plan.push(Edit::AddNode { node: step });
        }
        let cast = Node::new("Cast", node.label(), &[&clamped], &[y.levels]);
        cast.with_attribute("to", UINT8)
    }

    fn constant(&mut self, name: &str, shape: &[usize], values: &[i64]) {
        let tensor = Tensor::new(shape, values);
        self.plan.push(Edit::SetInitializer { name: name.into(), tensor });
    }
}

/// ONNX's numbers of types.
const UINT8: i64 = 2;
const INT32: i64 = 6;
const INT64: i64 = 7;

/// Factors as integers over 2ⁿ.
struct Multipliers {
    /// By term.
    values: Vec<Vec<i64>>,
    shift: u32,
}

impl Multipliers {
    /// `None` for factors that no shift of 64-bit numbers holds.
    fn new<'f>(terms: impl Iterator<Item = &'f [f64]> + Clone) -> Option<Self> {
        let largest = terms.clone().flatten().fold(0.0_f64, |largest, f| largest.max(f.abs()));
        if !(largest > 0.0 && largest.is_finite()) {
            return None;
        }
        // The largest multiplier is from 2³⁰ to 2³¹.
        let shift = 30 - largest.log2().floor() as i64;
        let shift = u32::try_from(shift).ok().filter(|shift| (1..=54).contains(shift))?;
        let factor = (1_i64 << shift) as f64;
        let values =
            terms.map(|factors| factors.iter().map(|f| (f * factor).round() as i64).collect());
        Some(Self { values: values.collect(), shift })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multipliers_have_thirty_one_bits_at_most_and_all_the_precision_of_the_largest() {
        let found = Multipliers::new([&[0.0003, 0.02][..]].into_iter()).unwrap();
        let largest = found.values[0][1];
        assert!((1 << 30..1 << 31).contains(&largest), "{largest}");
        let back = largest as f64 / (1_i64 << found.shift) as f64;
        assert!((back / 0.02 - 1.0).abs() < 1e-9);
        assert!(Multipliers::new([&[0.0][..]].into_iter()).is_none());
        assert!(Multipliers::new([&[f64::NAN][..]].into_iter()).is_none());
    }
}
