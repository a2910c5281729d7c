//! What each channel of a group is worth: the importance of the weights it owns, added up.

use std::collections::BTreeSet;

use attar_graph::Model;
use attar_tensor::{DType, Tensor};
use serde::Deserialize;

use super::prunable;
use crate::importance::{Importance, Scoring};
use crate::{ChannelGroup, Context, PassError};

/// By what channels are ranked.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum ChannelImportance {
    /// The rise of the next product's error once it is refitted to do without the channel.
    SecondOrder,
    /// That of the channel's weights.
    OfWeights(Importance),
}

impl Default for ChannelImportance {
    fn default() -> Self {
        Self::OfWeights(Importance::named("l2"))
    }
}

impl TryFrom<String> for ChannelImportance {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if name == "second-order" {
            return Ok(Self::SecondOrder);
        }
        let other = |message: String| format!("{message}, second-order");
        Importance::try_from(name).map(Self::OfWeights).map_err(other)
    }
}

/// A score of each channel of each group. Where the importances of different tensors do not
/// compare, of every tensor the part that the channel holds.
///
/// # Errors
/// A weight that is not finite, or what the importance cannot be computed of.
pub(crate) fn channel_scores(
    model: &Model,
    context: &Context,
    groups: &[&ChannelGroup],
    importance: Importance,
    seed: u64,
) -> Result<Vec<Vec<f64>>, PassError> {
    let of_products = prunable(model, context)?;
    let of_products: BTreeSet<&str> = of_products.iter().map(String::as_str).collect();
    let is_scored = |name: &str| {
        let tensor = model.graph.constant(name);
        let is_matrix = tensor.is_some_and(|t| t.dtype() == DType::F32 && t.rank() >= 2);
        is_matrix && (!importance.needs_data() || of_products.contains(name))
    };
    let axes = groups.iter().flat_map(|group| &group.axes);
    let names: BTreeSet<&str> =
        axes.map(|axis| axis.tensor.as_str()).filter(|name| is_scored(name)).collect();
    let names: Vec<String> = names.into_iter().map(str::to_string).collect();
    let scoring = Scoring { model, names: &names, context, seed };
    let scores = importance.scores(&scoring)?;
    let mut found: Vec<Vec<f64>> = groups.iter().map(|g| vec![0.0; g.channel_count]).collect();
    for (index, name) in names.iter().enumerate() {
        let tensor = scoring.tensor(index);
        let of_weights = scores.of(index);
        for (group, found) in groups.iter().zip(&mut found) {
            for axis in group.axes.iter().filter(|axis| axis.is_constant && axis.tensor == *name) {
                let by_index = index_sums(&of_weights, tensor, axis.axis);
                let total: f64 = by_index.iter().sum();
                if !total.is_finite() {
                    return Err(PassError::WeightNotFinite { tensor: name.clone() });
                }
                let scale = if importance.is_comparable() { 1.0 } else { total };
                if scale > 0.0 {
                    for (channel, score) in found.iter_mut().enumerate() {
                        let own = axis.of(channel).iter().map(|&i| by_index[i as usize]);
                        *score += own.sum::<f64>() / scale;
                    }
                }
            }
        }
    }
    Ok(found)
}

/// All channels, those of least score first.
pub(crate) fn least_first(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    order
}

/// The `count` channels of least score, in order of position.
pub(super) fn least(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order = least_first(scores);
    order.truncate(count);
    order.sort_unstable();
    order
}

/// Rows added in f32 before they go into the sums.
const ROWS_AT_ONCE: usize = 64;

/// Σ of the scores of the weights at each index of an axis.
fn index_sums(scores: &[f32], tensor: &Tensor, axis: usize) -> Vec<f64> {
    let shape = tensor.shape();
    let (size, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
    let mut sums = vec![0.0_f64; size];
    if inner == 1 {
        let mut partial = vec![0.0_f32; size];
        for rows in scores.chunks(ROWS_AT_ONCE * size) {
            for row in rows.chunks_exact(size) {
                partial.iter_mut().zip(row).for_each(|(sum, score)| *sum += score);
            }
            sums.iter_mut().zip(&mut partial).for_each(|(sum, part)| {
                *sum += f64::from(std::mem::take(part));
            });
        }
        return sums;
    }
    for (index, part) in scores.chunks_exact(inner.max(1)).enumerate() {
        sums[index % size] += part.iter().map(|&score| f64::from(score)).sum::<f64>();
    }
    sums
}
