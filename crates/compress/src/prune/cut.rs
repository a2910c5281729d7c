//! Finding the lowest scores without sorting or copying them.

/// Scores up to which a copy is cheaper than counting.
const COPIED_MAX: usize = 1 << 14;

/// Where to cut: everything below the threshold goes, and so many that lie on it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cut {
    threshold: f32,
    ties: usize,
}

impl Cut {
    /// The `count` lowest of all scores that `each` shows, which are not below 0. `each` is called
    /// twice, and shows the same again: the upper and then the lower half of the bits of a float
    /// are counted, whose order is that of the floats.
    ///
    /// # Panics
    /// When there are fewer scores.
    pub(crate) fn lowest(count: usize, mut each: impl FnMut(&mut dyn FnMut(&[f32]))) -> Self {
        if count == 0 {
            return Self { threshold: 0.0, ties: 0 };
        }
        let mut bins = vec![0_usize; 1 << 16];
        each(&mut |scores| {
            for score in scores {
                bins[(score.to_bits() >> 16) as usize] += 1;
            }
        });
        let (upper, rest) = find(&bins, count);
        bins.fill(0);
        each(&mut |scores| {
            for bits in scores.iter().map(|score| score.to_bits()) {
                if (bits >> 16) as usize == upper {
                    bins[(bits & 0xFFFF) as usize] += 1;
                }
            }
        });
        let (lower, ties) = find(&bins, rest);
        Self { threshold: f32::from_bits((upper << 16 | lower) as u32), ties }
    }

    /// As [`lowest`](Self::lowest), of one slice.
    pub(crate) fn of(scores: &[f32], count: usize) -> Self {
        if count == 0 || scores.len() > COPIED_MAX {
            return Self::lowest(count, |show| show(scores));
        }
        let mut copy = scores.to_vec();
        let (below, threshold, _) = copy.select_nth_unstable_by(count - 1, f32::total_cmp);
        let threshold = *threshold;
        let smaller = below.iter().filter(|&&score| score < threshold).count();
        Self { threshold, ties: count - smaller }
    }

    /// Everything up to `threshold`, itself included.
    pub(crate) fn up_to(threshold: f32) -> Self {
        Self { threshold, ties: usize::MAX }
    }

    /// Whether the next score is among the lowest: ties go in order until there are enough.
    pub(crate) fn takes(&mut self, score: f32) -> bool {
        let is_tie = score == self.threshold && self.ties > 0;
        self.ties -= usize::from(is_tie);
        is_tie || score < self.threshold
    }
}

/// The bin that the `count`-th lies in, and its place among those of the bin, from 1.
fn find(bins: &[usize], count: usize) -> (usize, usize) {
    let mut rest = count;
    for (bin, &size) in bins.iter().enumerate() {
        if rest <= size {
            return (bin, rest);
        }
        rest -= size;
    }
    panic!("{count} are asked for, and there are {}", count - rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(scores: &[f32], count: usize) -> Vec<usize> {
        let mut cut = Cut::of(scores, count);
        (0..scores.len()).filter(|&index| cut.takes(scores[index])).collect()
    }

    #[test]
    fn the_lowest_are_taken_and_of_ties_the_first() {
        let scores = [3.0, 1.0, 2.0, 1.0, 1.0, 0.0];
        assert_eq!(taken(&scores, 0), [0_usize; 0]);
        assert_eq!(taken(&scores, 1), [5]);
        assert_eq!(taken(&scores, 3), [1, 3, 5]);
        assert_eq!(taken(&scores, 6), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn as_many_are_taken_as_sorting_takes() {
        let scores: Vec<f32> = (0..1000_u32).map(|i| (i * 7919 % 1009) as f32 * 1e-3).collect();
        let mut order: Vec<usize> = (0..1000).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        for count in [1, 17, 500, 999] {
            let mut expected = order[..count].to_vec();
            expected.sort_unstable();
            assert_eq!(taken(&scores, count), expected);
            let counted = Cut::lowest(count, |show| show(&scores));
            assert_eq!(Cut::of(&scores, count), counted, "by a copy and by counting");
        }
    }
}
