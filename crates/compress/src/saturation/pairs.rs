//! Which weights of a channel are neighbours in K, the axis that a product sums over.

/// Index pairs of one output channel's weights, given as they are stored: [inputs] of a matrix
/// product, [inputs, …window] of a convolution.
///
/// Kernels take K in fours from its start, so that its elements 2j and 2j + 1 meet. Of a
/// convolution, runtimes lay K out as [inputs, window], as [window, inputs], or as the latter with
/// the inputs of each place filled up to an even count; all three are covered.
pub(crate) fn pairs_of(shape: &[usize]) -> Vec<(usize, usize)> {
    let inputs = shape.first().copied().unwrap_or(0);
    let window: usize = shape.iter().skip(1).product();
    let count = inputs * window;
    let stored = |place: usize, input: usize| input * window + place;
    let mut pairs: Vec<(usize, usize)> = (0..count / 2).map(|j| (2 * j, 2 * j + 1)).collect();
    if inputs > 1 && window > 1 {
        let channels_last = |k: usize| stored(k / inputs, k % inputs);
        pairs.extend((0..count / 2).map(|j| (channels_last(2 * j), channels_last(2 * j + 1))));
        if inputs % 2 == 1 {
            let of_place = |place: usize| {
                (0..inputs / 2).map(move |j| (stored(place, 2 * j), stored(place, 2 * j + 1)))
            };
            pairs.extend((0..window).flat_map(of_place));
        }
        pairs.sort_unstable();
        pairs.dedup();
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_has_one_order_and_a_convolution_three() {
        assert_eq!(pairs_of(&[5]), [(0, 1), (2, 3)]);
        assert_eq!(pairs_of(&[1, 3]), [(0, 1)]);
        // Three inputs, two places: stored i·2 + p; channels last is 0, 2, 4, 1, 3, 5.
        assert_eq!(pairs_of(&[3, 2]), [(0, 1), (0, 2), (1, 3), (2, 3), (3, 5), (4, 1), (4, 5)]);
        assert!(pairs_of(&[0]).is_empty() && pairs_of(&[]).is_empty());
    }
}
