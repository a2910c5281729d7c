//! The table of changed meanings, and how each is said in the newer terms.

#![allow(clippy::unnecessary_wraps)] // the table has one signature

use attar_graph::{Attribute, AttributeValue, Node};
use attar_tensor::{DType, Tensor};

use super::{Conversion, Converted};
use crate::OpError;

type Result = std::result::Result<(), OpError>;

const fn from(
    op_type: &'static str,
    version: i64,
    convert: fn(&mut Converted, Node) -> Result,
) -> Conversion {
    Conversion { op_type, version, convert }
}

/// Every change of meaning after opset 6 that touches inference, by operator.
pub(super) const CONVERSIONS: &[Conversion] = &[
    from("Add", 7, broadcast_7),
    from("And", 7, broadcast_7),
    from("BatchNormalization", 7, drop_is_test),
    from("BatchNormalization", 9, batch_normalization_9),
    from("BatchNormalization", 14, batch_normalization_14),
    from("Clip", 11, clip_11),
    from("DFT", 20, dft_20),
    from("Div", 7, broadcast_7),
    from("Dropout", 7, drop_is_test),
    from("Dropout", 12, dropout_12),
    from("Equal", 7, broadcast_7),
    from("Gemm", 7, gemm_7),
    from("Greater", 7, broadcast_7),
    from("GridSample", 20, grid_sample_20),
    from("GroupNormalization", 21, group_normalization_21),
    from("Hardmax", 13, softmax_13),
    from("Less", 7, broadcast_7),
    from("LogSoftmax", 13, softmax_13),
    from("Max", 8, same),
    from("Mean", 8, same),
    from("Min", 8, same),
    from("Mul", 7, broadcast_7),
    from("Or", 7, broadcast_7),
    from("PRelu", 7, slope_7),
    from("Pad", 11, pad_11),
    from("Pow", 7, broadcast_7),
    from("ReduceL1", 18, reduce_axes),
    from("ReduceL2", 18, reduce_axes),
    from("ReduceLogSum", 18, reduce_axes),
    from("ReduceLogSumExp", 18, reduce_axes),
    from("ReduceMax", 18, reduce_axes),
    from("ReduceMean", 18, reduce_axes),
    from("ReduceMin", 18, reduce_axes),
    from("ReduceProd", 18, reduce_axes),
    from("ReduceSum", 13, reduce_axes),
    from("ReduceSumSquare", 18, reduce_axes),
    from("Resize", 11, resize_11),
    from("RoiAlign", 16, roi_align_16),
    from("Scan", 9, scan_9),
    from("Scatter", 11, scatter_11),
    from("Slice", 10, slice_10),
    from("Softmax", 13, softmax_13),
    from("Split", 13, split_13),
    from("Split", 18, split_18),
    from("Squeeze", 13, squeeze_13),
    from("Sub", 7, broadcast_7),
    from("Sum", 8, same),
    from("TopK", 10, top_k_10),
    from("Unsqueeze", 13, squeeze_13),
    from("Upsample", 9, upsample_9),
    from("Upsample", 10, upsample_10),
    from("Xor", 7, broadcast_7),
];

fn integers(values: &[i64]) -> Tensor {
    Tensor::new(&[values.len()], values)
}

/// Takes a list attribute off the node.
fn take_ints(node: &mut Node, name: &str) -> std::result::Result<Option<Vec<i64>>, OpError> {
    let values = node.ints(name)?.map(<[i64]>::to_vec);
    node.attributes.shift_remove(name);
    Ok(values)
}

fn take_float(node: &mut Node, name: &str, default: f32) -> std::result::Result<f32, OpError> {
    let value = node.float_or(name, default)?;
    node.attributes.shift_remove(name);
    Ok(value)
}

fn refuse(what: impl Into<String>) -> Result {
    Err(OpError::Unsupported { what: what.into() })
}

/// A scalar of the type of `like`; f32 where that is not known.
fn scalar_like(to: &Converted, like: &str, value: f32) -> Tensor {
    let scalar = Tensor::scalar(value);
    let dtype = to.dtype(like).unwrap_or(DType::F32);
    scalar.converted(dtype).unwrap_or(scalar)
}

/// Inputs of one shape, which then were all that the operator took.
fn same(to: &mut Converted, node: Node) -> Result {
    to.push(node);
    Ok(())
}

/// Whether it is a test has since been told by what outputs there are.
fn drop_is_test(to: &mut Converted, mut node: Node) -> Result {
    node.attributes.shift_remove("is_test");
    to.push(node);
    Ok(())
}

fn gemm_7(to: &mut Converted, mut node: Node) -> Result {
    node.attributes.shift_remove("broadcast");
    to.push(node);
    Ok(())
}

/// The second operand is aligned where `axis` says: later, always at the end.
fn broadcast_7(to: &mut Converted, mut node: Node) -> Result {
    let axis = node.int("axis")?;
    node.attributes.shift_remove("axis");
    let broadcasts = node.int_or("broadcast", 0)? != 0;
    node.attributes.shift_remove("broadcast");
    if let Some(axis) = axis.filter(|_| broadcasts) {
        let ranks = [0, 1].map(|index| node.input(index).and_then(|name| to.rank(name)));
        let [Some(rank), Some(rank_b)] = ranks else {
            return refuse("`axis` beside operands of unknown rank");
        };
        let axis = axis + i64::from(axis < 0) * rank as i64;
        let behind = rank as i64 - axis - rank_b as i64;
        if axis < 0 || behind < 0 {
            return Err(OpError::value(
                "axis",
                axis,
                format!("at most {}", rank - rank_b.min(rank)),
            ));
        }
        if behind > 0 {
            let axes: Vec<i64> = (rank_b as i64..rank_b as i64 + behind).collect();
            node.inputs[1] = unsqueezed(to, &node, 1, &axes);
        }
    }
    to.push(node);
    Ok(())
}

/// An input of the node with axes of size 1 put in, as opset 6 says it.
fn unsqueezed(to: &mut Converted, node: &Node, input: usize, axes: &[i64]) -> String {
    let list = AttributeValue::from(axes.to_vec());
    to.step(node, "Unsqueeze", "aligned", &[&node.inputs[input]], &[("axes", list)])
}

/// A slope per channel stood for all that follows the channel; later it is aligned at the end.
fn slope_7(to: &mut Converted, mut node: Node) -> Result {
    let slope = node.input(1).ok_or(OpError::MissingInput { index: 1 })?.to_string();
    let Some(rank) = to.rank(&node.inputs[0]) else {
        return refuse("a slope beside an input of unknown rank");
    };
    if to.rank(&slope) == Some(1) && rank > 2 {
        let axes: Vec<i64> = (1..rank as i64 - 1).collect();
        node.inputs[1] = unsqueezed(to, &node, 1, &axes);
    }
    to.push(node);
    Ok(())
}

fn batch_normalization_9(to: &mut Converted, mut node: Node) -> Result {
    // Statistics for every single feature, not for channels.
    if node.int_or("spatial", 1)? == 0 {
        return refuse("`spatial` = 0, which opset 9 dropped,");
    }
    node.attributes.shift_remove("spatial");
    to.push(node);
    Ok(())
}

fn batch_normalization_14(to: &mut Converted, mut node: Node) -> Result {
    if node.outputs.iter().skip(1).any(|output| !output.is_empty()) {
        return refuse("training outputs of before opset 14");
    }
    node.outputs.truncate(1);
    to.push(node);
    Ok(())
}

fn clip_11(to: &mut Converted, mut node: Node) -> Result {
    let bounds = [take_float(&mut node, "min", f32::MIN)?, take_float(&mut node, "max", f32::MAX)?];
    for (suffix, bound) in ["min", "max"].into_iter().zip(bounds) {
        let tensor = scalar_like(to, &node.inputs[0], bound);
        let name = to.constant(&node, suffix, tensor);
        node.inputs.push(name);
    }
    to.push(node);
    Ok(())
}

fn dft_20(to: &mut Converted, mut node: Node) -> Result {
    let axis = node.int_or("axis", 1)?;
    node.attributes.shift_remove("axis");
    node.inputs.resize(2, String::new());
    let name = to.constant(&node, "axis", Tensor::scalar(axis));
    node.inputs.push(name);
    to.push(node);
    Ok(())
}

fn dropout_12(to: &mut Converted, mut node: Node) -> Result {
    let ratio = take_float(&mut node, "ratio", 0.5)?;
    let tensor = scalar_like(to, &node.inputs[0], ratio);
    let name = to.constant(&node, "ratio", tensor);
    node.inputs.push(name);
    to.push(node);
    Ok(())
}

fn grid_sample_20(to: &mut Converted, mut node: Node) -> Result {
    let newer = match node.text("mode")? {
        None | Some("bilinear") => "linear",
        Some("bicubic") => "cubic",
        Some(other) => other,
    };
    let newer = AttributeValue::from(newer);
    node.attributes.insert("mode".into(), newer.into());
    to.push(node);
    Ok(())
}

/// Scale and bias come per group before 21, per channel from then on.
fn group_normalization_21(to: &mut Converted, mut node: Node) -> Result {
    let groups = node.int_or("num_groups", 0)?;
    let x = node.inputs[0].clone();
    let channels =
        to.step(&node, "Shape", "channels", &[&x], &[("start", 1.into()), ("end", 2.into())]);
    let count = to.constant(&node, "num_groups", integers(&[groups]));
    let per_group = to.step(&node, "Div", "per_group", &[&channels, &count], &[]);
    let one = to.constant(&node, "one", integers(&[1]));
    let target = to.step(&node, "Concat", "target", &[&one, &per_group], &[("axis", 0.into())]);
    let column = to.constant(&node, "column", integers(&[groups, 1]));
    let flat = to.constant(&node, "flat", integers(&[-1]));
    for index in [1, 2] {
        let input = node.input(index).ok_or(OpError::MissingInput { index })?.to_string();
        let rows = to.step(&node, "Reshape", "rows", &[&input, &column], &[]);
        let wide = to.step(&node, "Expand", "wide", &[&rows, &target], &[]);
        node.inputs[index] = to.step(&node, "Reshape", "each", &[&wide, &flat], &[]);
    }
    to.push(node);
    Ok(())
}

fn pad_11(to: &mut Converted, mut node: Node) -> Result {
    let pads = take_ints(&mut node, "pads")?.unwrap_or_default();
    let value = take_float(&mut node, "value", 0.0)?;
    let pads = to.constant(&node, "pads", integers(&pads));
    let tensor = scalar_like(to, &node.inputs[0], value);
    let value = to.constant(&node, "value", tensor);
    node.inputs.extend([pads, value]);
    to.push(node);
    Ok(())
}

fn reduce_axes(to: &mut Converted, mut node: Node) -> Result {
    if let Some(axes) = take_ints(&mut node, "axes")? {
        let name = to.constant(&node, "axes", integers(&axes));
        node.inputs.push(name);
    }
    to.push(node);
    Ok(())
}

/// Sampled without half pixels, and the nearest one below, as Resize 10 and Upsample do.
fn resize_as_before(node: &mut Node) {
    for (name, value) in
        [("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")]
    {
        node.attributes.insert(name.into(), Attribute::from(AttributeValue::from(value)));
    }
}

fn resize_11(to: &mut Converted, mut node: Node) -> Result {
    // An absent region of interest stands between the input and the scales.
    node.inputs.insert(1, String::new());
    resize_as_before(&mut node);
    to.push(node);
    Ok(())
}

fn upsample_9(to: &mut Converted, mut node: Node) -> Result {
    let scales = match node.attribute("scales") {
        Some(AttributeValue::Floats(scales)) => scales.clone(),
        _ => return Err(OpError::value("attribute `scales`", "absent", "floats")),
    };
    node.attributes.shift_remove("scales");
    let name = to.constant(&node, "scales", Tensor::new(&[scales.len()], &scales));
    node.inputs.push(name);
    to.push(node);
    Ok(())
}

fn upsample_10(to: &mut Converted, mut node: Node) -> Result {
    node.op_type = "Resize".into();
    to.push(node);
    Ok(())
}

fn roi_align_16(to: &mut Converted, mut node: Node) -> Result {
    let mode = AttributeValue::from("output_half_pixel");
    node.attributes.insert("coordinate_transformation_mode".into(), mode.into());
    to.push(node);
    Ok(())
}

fn scan_9(_: &mut Converted, _: Node) -> Result {
    refuse("its batch axis of before opset 9")
}

fn scatter_11(to: &mut Converted, mut node: Node) -> Result {
    node.op_type = "ScatterElements".into();
    to.push(node);
    Ok(())
}

fn slice_10(to: &mut Converted, mut node: Node) -> Result {
    let starts = take_ints(&mut node, "starts")?.unwrap_or_default();
    let ends = take_ints(&mut node, "ends")?.unwrap_or_default();
    let axes = take_ints(&mut node, "axes")?;
    for (suffix, values) in [("starts", Some(starts)), ("ends", Some(ends)), ("axes", axes)] {
        if let Some(values) = values {
            let name = to.constant(&node, suffix, integers(&values));
            node.inputs.push(name);
        }
    }
    to.push(node);
    Ok(())
}

/// All axes from `axis` on counted as one. Where that is the last alone, nothing else changes;
/// otherwise they are made one, and taken apart again.
fn softmax_13(to: &mut Converted, mut node: Node) -> Result {
    let axis = node.int_or("axis", 1)?;
    let x = node.inputs[0].clone();
    let is_last = match to.rank(&x) {
        Some(rank) => axis + i64::from(axis < 0) * rank as i64 == rank as i64 - 1,
        None => axis == -1,
    };
    let last = Attribute::from(AttributeValue::from(-1_i64));
    if is_last {
        node.attributes.insert("axis".into(), last);
        to.push(node);
        return Ok(());
    }
    let shape = to.step(&node, "Shape", "shape", &[&x], &[]);
    let rows = to.step(&node, "Flatten", "rows", &[&x], &[("axis", axis.into())]);
    let result = to.name(&node, "result");
    let output = node.outputs.first().cloned().unwrap_or_default();
    let reshape = Node::new("Reshape", "", &[&result, &shape], &[&output]);
    node.attributes.insert("axis".into(), last);
    node.inputs[0] = rows;
    node.outputs = vec![result];
    to.push(node);
    to.push(reshape);
    Ok(())
}

fn split_13(to: &mut Converted, mut node: Node) -> Result {
    if let Some(sizes) = take_ints(&mut node, "split")? {
        let name = to.constant(&node, "split", integers(&sizes));
        node.inputs.push(name);
    }
    to.push(node);
    Ok(())
}

fn split_18(to: &mut Converted, mut node: Node) -> Result {
    if node.input(1).is_none() {
        let count = AttributeValue::from(node.outputs.len() as i64);
        node.attributes.insert("num_outputs".into(), count.into());
    }
    to.push(node);
    Ok(())
}

fn squeeze_13(to: &mut Converted, mut node: Node) -> Result {
    if let Some(axes) = take_ints(&mut node, "axes")? {
        let name = to.constant(&node, "axes", integers(&axes));
        node.inputs.push(name);
    }
    to.push(node);
    Ok(())
}

fn top_k_10(to: &mut Converted, mut node: Node) -> Result {
    let k = node.int_or("k", 1)?;
    node.attributes.shift_remove("k");
    let name = to.constant(&node, "k", integers(&[k]));
    node.inputs.push(name);
    to.push(node);
    Ok(())
}
