//! How much an error of each input channel weighs in the product that reads it.

use attar_graph::{Graph, Links};

use super::nodes::weight_of;
use super::statistics::{ChannelAxis, Statistics};

/// An empty record for a value with these readers, as (node, input).
///
/// The sum over independent errors e of the channels of an input is ‖e·W‖² = Σ e²·‖row of W‖²: the
/// squares of a channel's weights are its importance. A value that also goes on as it is, to an
/// addition, has channels of one importance.
pub(crate) fn statistics_for(
    graph: &Graph,
    links: &Links,
    readers: &[(usize, usize)],
) -> Statistics {
    let mut axis = None;
    let mut importance: Vec<f32> = Vec::new();
    let mut is_known = true;
    for &(index, input) in readers {
        let node = &graph.nodes[index];
        let weight = weight_of(links, node).filter(|_| input == 0);
        let Some(weight) = weight else {
            axis.get_or_insert(ChannelAxis::Second);
            is_known = false;
            continue;
        };
        let is_conv = node.is("Conv");
        axis.get_or_insert(if is_conv { ChannelAxis::Second } else { ChannelAxis::Last });
        let groups = if is_conv { node.int_or("group", 1).unwrap_or(1).max(1) as usize } else { 1 };
        let rows = input_channel_squares(&weight.tensor.values::<f32>(), weight.tensor.shape(), {
            (weight.axis, groups)
        });
        if importance.is_empty() {
            importance = rows;
        } else if importance.len() == rows.len() {
            importance.iter_mut().zip(&rows).for_each(|(sum, row)| *sum += row);
        } else {
            is_known = false;
        }
    }
    // Weights that are all zero, or beyond f32 when squared, would hide every error.
    let total: f32 = importance.iter().sum();
    if !(is_known && total.is_finite() && total > 0.0) {
        importance.clear();
    }
    Statistics::new(axis.unwrap_or(ChannelAxis::Last), importance)
}

/// Sum of squares of the weights that each input channel meets. The outputs stand on axis 0, of
/// which each group has its own inputs, or on axis 1.
fn input_channel_squares(w: &[f32], shape: &[usize], (axis, groups): (usize, usize)) -> Vec<f32> {
    if axis == 1 {
        return w.chunks_exact(shape[1]).map(|row| row.iter().map(|w| w * w).sum()).collect();
    }
    let (outputs, inputs) = (shape[0], shape[1]);
    let inner: usize = shape[2..].iter().product();
    let mut sums = vec![0.0; inputs * groups];
    let outputs_each = (outputs / groups).max(1);
    for (index, kernel) in w.chunks_exact(inner).enumerate() {
        let (output, input) = (index / inputs, index % inputs);
        let group = (output / outputs_each).min(groups - 1);
        sums[group * inputs + input] += kernel.iter().map(|w| w * w).sum::<f32>();
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_weigh_the_squares_of_their_weights_in_every_layout() {
        let w = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(input_channel_squares(&w, &[2, 2], (1, 1)), [5.0, 25.0]);
        assert_eq!(input_channel_squares(&w, &[2, 2], (0, 1)), [10.0, 20.0]);
        // Depthwise: two groups of one channel, two taps each.
        assert_eq!(input_channel_squares(&w, &[2, 1, 2], (0, 2)), [5.0, 25.0]);
    }
}
