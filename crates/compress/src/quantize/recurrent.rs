//! Recurrent layers in 8 bits: weights with a scale per row, and an input of a fixed range.
//!
//! Written as `DequantizeLinear` of a matrix [directions·gates·hidden, depth] that is reshaped to what
//! the layer reads, and `QuantizeLinear` and `DequantizeLinear` before it. `builtin` runs this in
//! integers, the states in levels of 1/127; other runtimes run the layer in float.

use attar_graph::{Edit, Graph, Links, Node};
use attar_ops::has_bounded_state;
use attar_tensor::{DType, Tensor};

use super::nodes::Builder;
use super::product::{Method, nearest_weights};
use super::weight::WeightRounding;
use crate::{Context, PassError};

/// Inputs of a layer that are weights: W and R.
const WEIGHTS: [usize; 2] = [1, 2];

/// The layers of constant f32 weights whose states are bounded, by the index of their nodes.
pub(super) fn layers(graph: &Graph, links: &Links, context: &Context) -> Vec<usize> {
    let is_layer = |node: &Node| {
        let is_constant = |index: usize| {
            let weight = node.input(index).and_then(|name| links.constant(name));
            weight
                .is_some_and(|w| w.dtype() == DType::F32 && w.rank() == 3 && w.element_count() > 0)
        };
        let is_kept =
            |index: usize| node.input(index).is_none_or(|name| links.constant(name).is_some());
        let is_excluded = || {
            let of_weight = |index: usize| context.exclude.matches(&node.inputs[index]);
            context.exclude.matches(node.label()) || WEIGHTS.into_iter().any(of_weight)
        };
        node.domain.is_empty()
            && has_bounded_state(node) == Ok(true)
            && WEIGHTS.into_iter().all(is_constant)
            && [3, 7].into_iter().all(is_kept)
            && links.constant(&node.inputs[0]).is_none()
            && !is_excluded()
    };
    let nodes = graph.nodes.iter().enumerate();
    nodes.filter(|(_, node)| is_layer(node)).map(|(index, _)| index).collect()
}

/// Puts the weights of a layer into the graph in 8 bits; gives √(‖Ŵ − W‖² / ‖W‖²) over W and R.
///
/// # Errors
/// Weights that are not finite.
pub(super) fn set_weights(
    builder: &mut Builder,
    links: &Links,
    index: usize,
    method: Method,
) -> Result<f64, PassError> {
    let node = &builder.graph.nodes[index];
    let label = node.label().trim_start_matches('/').to_string();
    let (mut lost, mut power) = (0.0, 0.0);
    for (input, letter) in WEIGHTS.into_iter().zip(["w", "r"]) {
        let name = node.inputs[input].as_str();
        let Some(tensor) = links.constant(name) else { continue };
        let depth = tensor.shape()[2];
        let rows = tensor.element_count() / depth;
        let matrix = tensor.reshaped(&[rows, depth]);
        let (rounding, bounding) = nearest_weights(name, &matrix, 0, method)?;
        let [of_lost, of_all] = squares(&matrix, &rounding);
        (lost, power) = (lost + of_lost, power + of_all);
        builder.bounding.add(bounding);
        let dtype = rounding.values.dtype();
        let weight = builder.rounded_weight(name, 0, rounding);
        let zero = format!("{}_zero_point", weight.values);
        builder.set(&zero, Tensor::zeros(dtype, &[rows]));
        let named = |suffix: &str| format!("{label}_{letter}_{suffix}");
        let (real, shaped, shape) = (named("dequantized"), named("shaped"), named("shape"));
        let inputs = [weight.values.as_str(), &weight.scale, &zero];
        let dequantize = Node::new("DequantizeLinear", &real, &inputs, &[&real]);
        builder.add(dequantize.with_attribute("axis", 0_i64));
        let sizes: Vec<i64> = tensor.shape().iter().map(|&size| size as i64).collect();
        builder.set(&shape, Tensor::new(&[3], &sizes));
        builder.add(Node::new("Reshape", &shaped, &[&real, &shape], &[&shaped]));
        builder.replaced(name);
        builder.plan.push(Edit::SetInput { index, input, value: shaped });
    }
    Ok(if power > 0.0 { (lost / power).sqrt() } else { 0.0 })
}

/// Σ(w − ŵ)² and Σw².
fn squares(matrix: &Tensor, rounding: &WeightRounding) -> [f64; 2] {
    let depth = matrix.shape()[1];
    let levels = rounding.values.to_f32().unwrap_or_default();
    let scales = rounding.scales.slice::<f32>();
    matrix.values::<f32>().iter().enumerate().fold([0.0; 2], |[lost, power], (i, w)| {
        let e = f64::from(w - levels[i] * scales[i / depth]);
        [lost + e * e, power + f64::from(*w).powi(2)]
    })
}
