//! QDQ form to `QOperator` form: a float operator between `DequantizeLinear` and `QuantizeLinear`
//! becomes the one that is defined on levels.
//!
//! `QLinearConv` is ONNX's own; `QLinearAdd`, `QLinearGlobalAveragePool`, `QGemm` and
//! `MatMulIntegerToFloat` are ONNX Runtime's, of the domain `com.microsoft`.

use attar_graph::{Edit, Graph, Links, Model, Node, Plan};
use attar_ops::MICROSOFT_DOMAIN;
use attar_ops::fuse::dead_nodes;
use attar_tensor::DType;
use serde::Deserialize;

use crate::{Context, Pass, PassError};

/// Conv, Add, `GlobalAveragePool`, Gemm and `MatMul` between quantized values → their form on levels.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QOperator {}

impl Pass for QOperator {
    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        let links = Links::new(&model.graph);
        let mut plan = Plan::default();
        for (index, node) in model.graph.nodes.iter().enumerate() {
            if context.exclude.matches(node.label()) {
                continue;
            }
            let form = Form { graph: &model.graph, links: &links, context };
            if let Some(node) = form.on_levels(node) {
                plan.push(Edit::ReplaceNode { index, node });
            }
        }
        if plan.is_empty() {
            return Ok(dead_nodes::plan(model));
        }
        plan.remark(format!("{} operators on levels", plan.edits.len()));
        Ok(plan)
    }

    /// The second round takes away what the first left unread.
    fn repeats(&self) -> bool {
        true
    }
}

/// Names of levels, scale and zero point.
type Quantized<'a> = [&'a str; 3];

struct Form<'a> {
    graph: &'a Graph,
    links: &'a Links<'a>,
    context: &'a Context<'a>,
}

impl<'a> Form<'a> {
    /// What takes the place of `node`: a `QuantizeLinear` that ends a group, or a product whose
    /// result stays float.
    fn on_levels(&self, node: &'a Node) -> Option<Node> {
        if node.is("QuantizeLinear") {
            return self.ended_by(node);
        }
        // A product before a QuantizeLinear is taken with it.
        if self.quantize_after(node.outputs.first()?).is_some() {
            return None;
        }
        match node.op_type.as_str() {
            "MatMul" => self.product_to_float(node),
            "Gemm" => self.gemm(node, None),
            _ => None,
        }
    }

    fn ended_by(&self, quantize: &'a Node) -> Option<Node> {
        let y = [quantize.outputs.first()?.as_str(), quantize.input(1)?, quantize.input(2)?];
        let is_u8 = self.links.constant(y[2]).is_some_and(|zero| zero.dtype() == DType::U8);
        if !is_u8 {
            return None;
        }
        let value = self.before_clamp(quantize.input(0)?, y)?;
        let (_, node) = self.links.producer(value)?;
        if self.context.exclude.matches(node.label()) {
            return None;
        }
        match node.op_type.as_str() {
            "Conv" => self.convolution(node, y),
            "Gemm" => self.gemm(node, Some(y)),
            "MatMul" => {
                let (a, b) = (self.dequantized(node.input(0)?)?, self.weight(node)?);
                let inputs = [&a[..], &b[..], &y[1..]].concat();
                Some(Node::new("QLinearMatMul", node.label(), &inputs, &[y[0]]))
            }
            "Add" => {
                let (a, b) = (self.dequantized(node.input(0)?)?, self.dequantized(node.input(1)?)?);
                let inputs = [a, b].concat();
                Some(microsoft("QLinearAdd", node, &[&inputs[..], &y[1..]].concat(), y[0]))
            }
            "GlobalAveragePool" => {
                let x = self.dequantized(node.input(0)?)?;
                let inputs = [&x[..], &y[1..]].concat();
                let pool = microsoft("QLinearGlobalAveragePool", node, &inputs, y[0]);
                Some(pool.with_attribute("channels_last", 0_i64))
            }
            // What moves values moves their levels, where both grids are one.
            "Flatten" | "Reshape" | "Transpose" => {
                let x = self.dequantized(node.input(0)?)?;
                let is_same =
                    (1..3).all(|i| self.links.constant(x[i]) == self.links.constant(y[i]));
                let mut moved = node.clone();
                moved.inputs[0] = x[0].into();
                moved.outputs = vec![y[0].into()];
                is_same.then_some(moved)
            }
            _ => None,
        }
    }

    /// The value before a Relu or Clip that the levels' own ends carry out, or `value` itself; none
    /// where something else reads what lies between.
    fn before_clamp(&self, value: &'a str, y: Quantized) -> Option<&'a str> {
        let is_only =
            |value: &str| self.links.uses(value).len() == 1 && !self.graph.is_output(value);
        let (_, node) = self.links.producer(value)?;
        if !is_only(value) {
            return None;
        }
        if !node.is("Relu") && !node.is("Clip") {
            return Some(value);
        }
        let zero = f32::from(*self.links.constant(y[2])?.slice::<u8>().first()?);
        let scale = *self.links.constant(y[1])?.values::<f32>().first()?;
        let (low, high) = (-zero * scale, (255.0 - zero) * scale);
        let bound =
            |index: usize, open: f32| match node.input(index).filter(|name| !name.is_empty()) {
                Some(name) => self.links.constant(name)?.values::<f32>().first().copied(),
                None => Some(open),
            };
        let (least, most) = if node.is("Relu") {
            (0.0, f32::INFINITY)
        } else {
            (bound(1, f32::NEG_INFINITY)?, bound(2, f32::INFINITY)?)
        };
        // A bound half a step inside the last level rounds to it.
        let is_carried = low >= least - scale / 2.0 && high <= most + scale / 2.0;
        let before = node.input(0)?;
        (is_carried && is_only(before)).then_some(before)
    }

    fn convolution(&self, node: &'a Node, y: Quantized<'a>) -> Option<Node> {
        let (x, w) = (self.dequantized(node.input(0)?)?, self.weight(node)?);
        let mut inputs = [&x[..], &w[..], &y[1..]].concat();
        if let Some(bias) = node.input(2).filter(|bias| !bias.is_empty()) {
            inputs.push(self.bias(bias)?);
        }
        let mut on_levels = node.clone();
        on_levels.op_type = "QLinearConv".into();
        on_levels.inputs = inputs.iter().map(|&input| input.into()).collect();
        on_levels.outputs = vec![y[0].into()];
        Some(on_levels)
    }

    /// A Gemm to levels, or without `y` to f32.
    fn gemm(&self, node: &'a Node, y: Option<Quantized<'a>>) -> Option<Node> {
        if node.float_or("beta", 1.0) != Ok(1.0) || node.int_or("transA", 0) != Ok(0) {
            return None;
        }
        let (x, w) = (self.dequantized(node.input(0)?)?, self.weight(node)?);
        let bias = match node.input(2).filter(|bias| !bias.is_empty()) {
            Some(bias) => self.bias(bias)?,
            None => "",
        };
        let mut inputs = [&x[..], &w[..], &[bias][..]].concat();
        if let Some(y) = y {
            inputs.extend(&y[1..]);
        }
        let output = y.map_or(node.outputs[0].as_str(), |y| y[0]);
        let on_levels = microsoft("QGemm", node, &inputs, output);
        let alpha = node.float_or("alpha", 1.0).ok()?;
        let transposed = node.int_or("transB", 0).ok()?;
        Some(on_levels.with_attribute("alpha", alpha).with_attribute("transB", transposed))
    }

    fn product_to_float(&self, node: &'a Node) -> Option<Node> {
        let ([a, a_scale, a_zero], [b, b_scale, b_zero]) =
            (self.dequantized(node.input(0)?)?, self.weight(node)?);
        let inputs = [a, b, a_scale, b_scale, a_zero, b_zero];
        Some(microsoft("MatMulIntegerToFloat", node, &inputs, &node.outputs[0]))
    }

    /// The u8 levels that `value` is dequantized from.
    fn dequantized(&self, value: &str) -> Option<Quantized<'a>> {
        let (_, node) =
            self.links.producer(value).filter(|(_, node)| node.is("DequantizeLinear"))?;
        let found = [node.input(0)?, node.input(1)?, node.input(2)?];
        (self.links.constant(found[2])?.dtype() == DType::U8).then_some(found)
    }

    /// The constant i8 weight that input 1 is dequantized from.
    fn weight(&self, node: &Node) -> Option<Quantized<'a>> {
        let (_, from) = self.links.producer(node.input(1)?)?;
        let found = [from.input(0)?, from.input(1)?, from.input(2)?];
        let is_i8 = self.links.constant(found[0]).is_some_and(|w| w.dtype() == DType::I8);
        (from.is("DequantizeLinear") && is_i8).then_some(found)
    }

    /// The i32 bias on the grid of the sums.
    fn bias(&self, value: &str) -> Option<&'a str> {
        let (_, from) =
            self.links.producer(value).filter(|(_, node)| node.is("DequantizeLinear"))?;
        let name = from.input(0)?;
        (self.links.constant(name)?.dtype() == DType::I32).then_some(name)
    }

    fn quantize_after(&self, value: &str) -> Option<&'a Node> {
        let (_, node) = self.links.only_use(value)?;
        if node.is("Relu") || node.is("Clip") {
            return self.quantize_after(node.outputs.first()?);
        }
        node.is("QuantizeLinear").then_some(node)
    }
}

fn microsoft(op_type: &str, replaced: &Node, inputs: &[&str], output: &str) -> Node {
    Node::new(op_type, replaced.label(), inputs, &[output]).with_domain(MICROSOFT_DOMAIN)
}
