//! How levels stand in the file: `DequantizeLinear` before what reads the weight, or `MatMulNBits` in
//! its place.

use std::collections::BTreeMap;

use attar_graph::{Edit, Node};
use attar_ops::MICROSOFT_DOMAIN;
use attar_tensor::{DType, Tensor};
use serde::Deserialize;

use super::super::nodes::Builder;
use super::super::product::transposed;
use super::round::Rounded;
use super::target::{Layout, Target};

/// The nodes that are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Form {
    /// `DequantizeLinear`, standard ONNX.
    #[default]
    Qdq,
    /// `MatMulNBits` of ONNX Runtime where it fits, else as [`Qdq`](Self::Qdq).
    NBits,
}

/// Puts the levels of a weight in the place of the weight.
pub(super) fn write(builder: &mut Builder, target: &Target, rounded: &Rounded, form: Form) {
    let products: Vec<Node> = target
        .readers
        .iter()
        .map_while(|&(index, _)| product(&builder.graph.nodes[index], target, rounded))
        .collect();
    if form == Form::NBits && products.len() == target.readers.len() {
        let names = Names::new(target);
        set_packed(builder, &names, target, rounded);
        for (&(index, _), node) in target.readers.iter().zip(products) {
            builder.replaced(target.name);
            builder.plan.push(Edit::ReplaceNode { index, node });
        }
        return;
    }
    let real = dequantized(builder, target, rounded);
    for &(index, input) in &target.readers {
        builder.replaced(target.name);
        builder.plan.push(Edit::SetInput { index, input, value: real.clone() });
    }
}

/// Divides the channels of values before the products whose weights were multiplied.
pub(super) fn write_divisions(
    builder: &mut Builder,
    divisors: &BTreeMap<String, (Vec<f32>, Vec<usize>)>,
) {
    for (value, (divisors, readers)) in divisors {
        let factors: Vec<f32> = divisors.iter().map(|s| 1.0 / s).collect();
        let (factor, scaled) = (format!("{value}_awq_factor"), format!("{value}_awq"));
        builder.set(&factor, Tensor::new(&[factors.len()], &factors));
        builder.add(Node::new("Mul", &scaled, &[value, &factor], &[&scaled]));
        for &index in readers {
            // Another edit may have put a node in its place.
            let replaced = builder.plan.edits.iter_mut().find_map(|edit| match edit {
                Edit::ReplaceNode { index: at, node } if *at == index => Some(node),
                _ => None,
            });
            if let Some(node) = replaced {
                node.inputs[0].clone_from(&scaled);
            } else {
                let value = scaled.clone();
                builder.plan.push(Edit::SetInput { index, input: 0, value });
            }
        }
    }
}

struct Names {
    levels: String,
    scales: String,
    zeros: String,
    real: String,
}

impl Names {
    fn new(target: &Target) -> Self {
        // A weight may be read in two layouts.
        let base = match target.layout {
            Layout::InputsLast if !target.is_own => format!("{}_rows", target.name),
            _ => target.name.to_string(),
        };
        Self {
            levels: format!("{base}_quantized"),
            scales: format!("{base}_scale"),
            zeros: format!("{base}_zero_point"),
            real: format!("{base}_dequantized"),
        }
    }
}

/// Sets levels, scales and zero points, and adds the `DequantizeLinear`; returns what it makes.
fn dequantized(builder: &mut Builder, target: &Target, rounded: &Rounded) -> String {
    let names = Names::new(target);
    let grid = &rounded.grid;
    let dtype = match rounded.bits {
        8 => DType::I8,
        4 => DType::I4,
        _ => DType::I2,
    };
    let codes = |levels: &[i8]| levels.iter().map(|&level| level as u8).collect::<Vec<u8>>();
    let [inputs, outputs] = target.size();
    let blocks = grid.scales.len() / outputs.max(1);
    let block = grid.block.min(inputs);
    let shape = target.tensor.shape();
    let levels = match target.layout {
        Layout::InputsFirst => codes(&rounded.levels),
        _ => codes(&transposed(&rounded.levels, inputs)),
    };
    // Scales lie as the weights do, the axis of inputs shortened; one per output needs no axis.
    let is_per_output = blocks == 1 && target.layout != Layout::Recurrent;
    let (axis, scale_shape) = match target.layout {
        _ if is_per_output => (usize::from(target.layout == Layout::InputsFirst), vec![outputs]),
        Layout::InputsFirst => (0, vec![blocks, outputs]),
        Layout::InputsLast | Layout::Kernel => (1, vec![outputs, blocks]),
        Layout::Recurrent => (2, vec![shape[0], shape[1], blocks]),
    };
    let moved = |values: &[f32]| match target.layout {
        Layout::InputsFirst => values.to_vec(),
        _ => transposed(values, blocks),
    };
    builder.set(&names.levels, Tensor::from_codes(dtype, shape, &levels));
    let scales = Tensor::new(&scale_shape, &moved(&grid.scales));
    builder.set_scales(&names.scales, scales, rounded.has_half_scales);
    let mut inputs = vec![names.levels.as_str(), &names.scales];
    if rounded.has_zero_points {
        let zeros: Vec<u8> = moved(&grid.zeros).iter().map(|&zero| zero as i8 as u8).collect();
        builder.set(&names.zeros, Tensor::from_codes(dtype, &scale_shape, &zeros));
        inputs.push(&names.zeros);
    }
    let mut node = Node::new("DequantizeLinear", &names.real, &inputs, &[&names.real])
        .with_attribute("axis", axis as i64);
    if !is_per_output {
        node = node.with_attribute("block_size", block as i64);
    }
    builder.add(node);
    names.real
}

/// The `MatMulNBits` in the place of a product, if that is all it does.
fn product(node: &Node, target: &Target, rounded: &Rounded) -> Option<Node> {
    if !target.is_matrix_product {
        return None;
    }
    let [inputs, outputs] = target.size();
    let is_plain = node.is("MatMul")
        || (node.float_or("alpha", 1.0) == Ok(1.0)
            && node.float_or("beta", 1.0) == Ok(1.0)
            && node.int_or("transA", 0) == Ok(0)
            && node.input(2).is_none());
    if !is_plain {
        return None;
    }
    let names = Names::new(target);
    let mut read = vec![node.inputs[0].as_str(), &names.levels, &names.scales];
    if rounded.has_zero_points {
        read.push(&names.zeros);
    }
    let product = Node::new("MatMulNBits", node.label(), &read, &[&node.outputs[0]])
        .with_domain(MICROSOFT_DOMAIN)
        .with_attribute("K", inputs as i64)
        .with_attribute("N", outputs as i64)
        .with_attribute("bits", i64::from(rounded.bits))
        .with_attribute("block_size", packed_block(rounded, inputs) as i64);
    Some(product)
}

/// The power of 2 that a block is stored as.
fn packed_block(rounded: &Rounded, inputs: usize) -> usize {
    rounded.grid.block.min(inputs).next_power_of_two().max(16)
}

/// Levels as `MatMulNBits` reads them: for each output its blocks, low bits first, zero points
/// likewise; unsigned, so that the middle is 2ᵇ⁻¹.
fn set_packed(builder: &mut Builder, names: &Names, target: &Target, rounded: &Rounded) {
    let grid = &rounded.grid;
    let [inputs, outputs] = target.size();
    let block = packed_block(rounded, inputs);
    let blocks = inputs.div_ceil(block);
    let bits = rounded.bits as usize;
    let middle = 1_i16 << (bits - 1);
    let shifted = |level: i16| (level + middle) as u8;
    let mut codes = vec![shifted(0); outputs * blocks * block];
    for (input, row) in rounded.levels.chunks_exact(outputs).enumerate() {
        for (output, &level) in row.iter().enumerate() {
            codes[output * blocks * block + input] = shifted(i16::from(level));
        }
    }
    let bytes = |codes: &[u8]| -> Vec<u8> {
        let per_byte = 8 / bits;
        let byte = |codes: &[u8]| {
            codes.iter().enumerate().fold(0, |byte, (i, code)| byte | code << (i * bits))
        };
        codes.chunks(per_byte).map(byte).collect()
    };
    let shape = [outputs, blocks, block * bits / 8];
    builder.set(&names.levels, Tensor::new(&shape, &bytes(&codes)));
    let scales = transposed(&grid.scales, blocks);
    let scales = Tensor::new(&[outputs * blocks], &scales);
    builder.set_scales(&names.scales, scales, rounded.has_half_scales);
    if rounded.has_zero_points {
        let zeros = transposed(&grid.zeros, blocks);
        let rows = zeros.chunks_exact(blocks).flat_map(|row| {
            bytes(&row.iter().map(|&zero| shifted(zero as i16)).collect::<Vec<u8>>())
        });
        let rows: Vec<u8> = rows.collect();
        builder.set(&names.zeros, Tensor::new(&[rows.len()], &rows));
    }
}
