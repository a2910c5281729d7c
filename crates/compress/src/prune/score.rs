//! What each channel of a group is worth, from scores of the weights it owns.

use std::collections::HashMap;

use attar_tensor::{DType, Tensor};
use serde::Deserialize;

use crate::{ChannelGroup, PassError};

/// By what channels are ranked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ChannelImportance {
    L1,
    #[default]
    L2,
    Random,
    /// The rise of the next product's error once it is refitted to do without the channel.
    SecondOrder,
}

/// A score of each channel: of every weight tensor the part of its importance that the channel
/// holds, added up.
///
/// # Errors
/// A weight that is not finite.
pub(super) fn channel_scores(
    group: &ChannelGroup,
    constants: &HashMap<&str, &Tensor>,
    importance: ChannelImportance,
) -> Result<Vec<f64>, PassError> {
    let mut scores = vec![0.0; group.channel_count];
    if importance == ChannelImportance::Random {
        let seed = hash(group.name.bytes().map(u64::from));
        scores
            .iter_mut()
            .enumerate()
            .for_each(|(channel, score)| *score = hash([seed, channel as u64]) as f64);
        return Ok(scores);
    }
    for axis in group.axes.iter().filter(|axis| axis.is_constant) {
        let Some(tensor) = constants.get(axis.tensor.as_str()) else { continue };
        if tensor.dtype() != DType::F32 || tensor.rank() < 2 {
            continue;
        }
        let by_index = index_sums(tensor, axis.axis, importance);
        let total: f64 = by_index.iter().sum();
        if !total.is_finite() {
            return Err(PassError::WeightNotFinite { tensor: axis.tensor.clone() });
        }
        if total > 0.0 {
            for (channel, score) in scores.iter_mut().enumerate() {
                let own: f64 = axis.of(channel).iter().map(|&i| by_index[i as usize]).sum();
                *score += own / total;
            }
        }
    }
    Ok(scores)
}

/// Σ of the scores of the weights at each index of an axis.
fn index_sums(tensor: &Tensor, axis: usize, importance: ChannelImportance) -> Vec<f64> {
    let shape = tensor.shape();
    let (size, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
    let mut sums = vec![0.0_f64; size];
    let score = |w: f32| if importance == ChannelImportance::L1 { w.abs() } else { w * w };
    let values = tensor.values::<f32>();
    if inner == 1 {
        let mut partial = vec![0.0_f32; size];
        for rows in values.chunks(64 * size) {
            for row in rows.chunks_exact(size) {
                partial.iter_mut().zip(row).for_each(|(sum, &w)| *sum += score(w));
            }
            sums.iter_mut().zip(&mut partial).for_each(|(sum, part)| {
                *sum += f64::from(std::mem::take(part));
            });
        }
        return sums;
    }
    for (index, part) in values.chunks_exact(inner.max(1)).enumerate() {
        sums[index % size] += part.iter().map(|&w| f64::from(score(w))).sum::<f64>();
    }
    sums
}

/// A number that looks random, of these (splitmix64 over each).
fn hash(parts: impl IntoIterator<Item = u64>) -> u64 {
    parts.into_iter().fold(0x9e37_79b9_7f4a_7c15, |state, part| {
        let mut z = (state ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}
