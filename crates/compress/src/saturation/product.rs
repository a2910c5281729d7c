//! The products of u8 activations and constant i8 weights in a model, and what they can sum up to.

use attar_graph::{Graph, Links, Model, Node};
use attar_tensor::{DType, Tensor};

use super::{LevelRange, pairs_of};

/// A product of a u8 activation and a constant i8 weight, in QDQ or `QOperator` form.
#[derive(Clone, Debug)]
pub struct IntegerProduct {
    /// The node that multiplies.
    pub node: String,
    /// The levels of the activation.
    pub range: LevelRange,
    pub zero_point: u8,
    /// Weights of each output channel, as [inputs, …window].
    pub channels: Vec<Vec<i8>>,
    /// Sizes of a channel: inputs, and the window of a convolution.
    pub shape: Vec<usize>,
    /// Largest magnitude of the bias in steps of the sums; 0 without one in i32.
    bias_max: i64,
}

/// How far the sums of a product are from what a CPU holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Risk {
    /// Channels with a pair of neighbours that can saturate 16 bits.
    pub channel_count: usize,
    pub pair_count: usize,
    /// The largest magnitude that a sum in 32 bits can reach, before or after the zero point and the
    /// bias are in it.
    pub sum_max: i64,
}

impl Risk {
    /// Every CPU gives the same integers.
    pub fn is_none(&self) -> bool {
        self.channel_count == 0 && self.sum_max <= i64::from(i32::MAX)
    }
}

impl IntegerProduct {
    /// What the weights and the range allow, for any input.
    pub fn risk(&self) -> Risk {
        let pairs = pairs_of(&self.shape);
        let mut risk = Risk::default();
        for channel in &self.channels {
            let is_at_risk =
                |&&(a, b): &&(usize, usize)| self.range.saturates(channel[a], channel[b]);
            let count = pairs.iter().filter(is_at_risk).count();
            risk.channel_count += usize::from(count > 0);
            risk.pair_count += count;
            risk.sum_max = risk.sum_max.max(self.sum_max(channel));
        }
        risk
    }

    fn sum_max(&self, channel: &[i8]) -> i64 {
        let [mut low, mut high, mut weights] = [0_i64; 3];
        for &w in channel {
            let (least, most) = self.range.products(w);
            low += i64::from(least);
            high += i64::from(most);
            weights += i64::from(w);
        }
        let shift = i64::from(self.zero_point) * weights;
        let centred = (low - shift).abs().max((high - shift).abs()) + self.bias_max;
        centred.max(low.abs()).max(high.abs())
    }
}

/// Every product of the model that runtimes compute in u8·i8, in node order.
pub fn integer_products(model: &Model) -> Vec<IntegerProduct> {
    let links = Links::new(&model.graph);
    model.graph.nodes.iter().filter_map(|node| product(&model.graph, &links, node)).collect()
}

/// Where a product reads its operands, by operator.
struct Operands<'a> {
    levels: &'a str,
    zero_point: &'a str,
    weight: &'a Tensor,
    bias: Option<&'a Tensor>,
    is_conv: bool,
    /// Whether the outputs stand on the weight's first axis.
    is_outputs_first: bool,
}

fn operands<'a>(links: &Links<'a>, node: &'a Node) -> Option<Operands<'a>> {
    let constant = |index: usize| links.constant(node.input(index)?);
    let [is_conv, is_gemm] = [node.op_type.ends_with("Conv"), node.op_type.ends_with("Gemm")];
    let is_outputs_first = is_conv || (is_gemm && node.int_or("transB", 0) == Ok(1));
    match node.op_type.as_str() {
        "QLinearConv" | "QLinearMatMul" | "QGemm" | "MatMulIntegerToFloat" => {
            let bias = match node.op_type.as_str() {
                "QLinearConv" => constant(8),
                "QGemm" => constant(6),
                _ => None,
            };
            // ONNX Runtime's product to f32 has its levels first and its zero points last.
            let [zero_point, weight] =
                if node.op_type == "MatMulIntegerToFloat" { [4, 1] } else { [2, 3] };
            let (levels, zero_point) = (node.input(0)?, node.input(zero_point)?);
            let weight = constant(weight)?;
            Some(Operands { levels, zero_point, weight, bias, is_conv, is_outputs_first })
        }
        "Conv" | "MatMul" | "Gemm" => {
            let dequantized = |index: usize| -> Option<&'a Node> {
                let (_, from) = links.producer(node.input(index)?)?;
                from.is("DequantizeLinear").then_some(from)
            };
            let activation = dequantized(0)?;
            let weight = links.constant(dequantized(1)?.input(0)?)?;
            let bias = dequantized(2).and_then(|from| links.constant(from.input(0)?));
            let (levels, zero_point) = (activation.input(0)?, activation.input(2)?);
            Some(Operands { levels, zero_point, weight, bias, is_conv, is_outputs_first })
        }
        _ => None,
    }
}

fn product(graph: &Graph, links: &Links, node: &Node) -> Option<IntegerProduct> {
    let found = operands(links, node)?;
    let zero = links.constant(found.zero_point)?;
    if zero.dtype() != DType::U8 || found.weight.dtype() != DType::I8 || found.weight.rank() < 2 {
        return None;
    }
    let zero_point = *zero.slice::<u8>().first()?;
    let shape = found.weight.shape();
    let w = found.weight.slice::<i8>();
    let channels: Vec<Vec<i8>> = if found.is_outputs_first {
        let size = shape[1..].iter().product::<usize>().max(1);
        w.chunks(size).map(<[i8]>::to_vec).collect()
    } else {
        let columns = shape[shape.len() - 1];
        (0..columns).map(|c| w.iter().skip(c).step_by(columns).copied().collect()).collect()
    };
    let channel_shape =
        if found.is_conv { shape[1..].to_vec() } else { vec![channels.first()?.len()] };
    let bias = found.bias.filter(|bias| bias.dtype() == DType::I32);
    let bias_max = bias.map_or(0, |bias| {
        bias.slice::<i32>().iter().map(|&b| i64::from(b).abs()).max().unwrap_or(0)
    });
    Some(IntegerProduct {
        node: node.label().to_string(),
        range: levels_behind(graph, links, found.levels, zero_point),
        zero_point,
        channels,
        shape: channel_shape,
        bias_max,
    })
}

/// The levels that the quantized value can take, by what produces it: after a Relu none stands below
/// the zero point, in QDQ form.
fn levels_behind(graph: &Graph, links: &Links, levels: &str, zero_point: u8) -> LevelRange {
    let quantize = links.producer(levels).map(|(_, node)| node);
    let real = quantize.filter(|node| node.is("QuantizeLinear")).and_then(|node| node.input(0));
    let is_input = |value: &&str| !graph.inputs.iter().any(|input| input.name == *value);
    real.filter(is_input).map_or(LevelRange::ALL, |real| level_range(links, real, zero_point))
}

/// The levels of a real value on a grid with this zero point.
fn level_range(links: &Links, value: &str, zero_point: u8) -> LevelRange {
    let is_positive = links.producer(value).is_some_and(|(_, node)| {
        let least = |node: &Node| {
            let least = links.constant(node.input(1)?)?;
            if least.dtype() == DType::F32 { least.slice::<f32>().first().copied() } else { None }
        };
        ["Relu", "Sigmoid", "Softmax"].iter().any(|op_type| node.is(op_type))
            || (node.is("Clip") && least(node).is_some_and(|least| least >= 0.0))
    });
    LevelRange { low: if is_positive { zero_point } else { 0 }, high: 255 }
}
