//! Biases of quantized products: in integers where runtimes want them so, and corrected by the mean
//! that rounded weights add (Nagel et al., "Data-free quantization", 2019, with means from
//! calibration).

use attar_graph::{Edit, Links, Node};
use attar_tensor::Tensor;

use super::nodes::Builder;

/// Gives the product its bias: corrected by `shift` [channels], the mean of what its output lost,
/// and for Gemm and Conv as i32 on the grid of the sums, `scales` [channels].
///
/// Runtimes fuse a convolution or Gemm only if its bias is in integers too, on the grid of the sums:
/// scale of the input times scale of the channel. A `MatMul` is corrected in the addition after it,
/// if that adds a constant.
pub(crate) fn quantize(
    builder: &mut Builder,
    links: &Links,
    index: usize,
    scales: &[f32],
    shift: Option<&[f32]>,
) {
    let node = &builder.graph.nodes[index];
    let shift = shift.filter(|shift| shift.iter().all(|s| s.is_finite()));
    if node.is("MatMul") {
        if let Some(shift) = shift {
            correct_addition(builder, links, node, shift);
        }
        return;
    }
    match node.input(2) {
        Some(bias) => {
            let constant = links.constant(bias).filter(|bias| bias.shape() == [scales.len()]);
            let Some(tensor) = constant else { return };
            let mut values = tensor.values::<f32>().into_owned();
            if let Some(shift) = shift {
                values.iter_mut().zip(shift).for_each(|(b, shift)| *b += shift);
            }
            builder.replaced(bias);
            set_bias(builder, index, &values, scales);
        }
        None if node.is("Conv") => {
            if let Some(shift) = shift {
                set_bias(builder, index, shift, scales);
            }
        }
        None => {}
    }
}

/// A bias in i32 with the scales of the sums it is added to.
fn set_bias(builder: &mut Builder, index: usize, values: &[f32], scales: &[f32]) {
    let levels: Vec<i32> =
        values.iter().zip(scales).map(|(b, scale)| (b / scale).round_ties_even() as i32).collect();
    let base = builder.graph.nodes[index].label().trim_start_matches('/').to_string();
    let named = |suffix: &str| format!("{base}_bias_{suffix}");
    let (q, scale, zero, real) =
        (named("quantized"), named("scale"), named("zero_point"), named("dequantized"));
    builder.set(&q, Tensor::new(&[levels.len()], &levels));
    builder.set(&scale, Tensor::new(&[scales.len()], scales));
    builder.set(&zero, Tensor::new(&[scales.len()], &vec![0_i32; scales.len()]));
    let inputs = [q.as_str(), &scale, &zero];
    let dequantize =
        Node::new("DequantizeLinear", &real, &inputs, &[&real]).with_attribute("axis", 0_i64);
    builder.add(dequantize);
    builder.plan.push(Edit::SetInput { index, input: 2, value: real });
}

fn correct_addition(builder: &mut Builder, links: &Links, node: &Node, shift: &[f32]) {
    let Some((_, next)) = links.only_use(&node.outputs[0]).filter(|(_, next)| next.is("Add"))
    else {
        return;
    };
    let Some(other) = next.inputs.iter().find(|input| **input != node.outputs[0]) else { return };
    let constant = links.constant(other).filter(|bias| bias.shape() == [shift.len()]);
    let Some(tensor) = constant.filter(|_| links.only_use(other).is_some()) else { return };
    if tensor.dtype() != attar_tensor::DType::F32 {
        return;
    }
    let values = tensor.values::<f32>();
    let corrected: Vec<f32> = values.iter().zip(shift).map(|(b, shift)| b + shift).collect();
    builder.set(other, Tensor::new(&[corrected.len()], &corrected));
}
