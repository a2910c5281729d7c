//! Widths held against the clock: fewer channels are not always faster, since kernels like some
//! widths better than others.

use std::collections::{BTreeMap, BTreeSet};

use attar_graph::{Model, apply};

use crate::{ChannelGroup, ChannelGroups, ChannelKind, Cut, PassError, Timing};

/// From here on a model counts as slower: less is noise.
const SLOWER: f64 = 1.03;
/// Widths that are tried are multiples of these.
const MULTIPLES: [usize; 4] = [8, 16, 32, 64];

/// Groups of one kind and size, of which as many channels go, take the same kernels: one of them
/// is timed for all.
type Class = (ChannelKind, usize, usize);

/// Lowers `counts`, the channels to cut of each group, where the model is slower with a group cut
/// than without: to the next width that is not, or to nothing. Returns what it did, in words.
///
/// # Errors
/// A model that the runtime does not take.
pub(super) fn step_back(
    model: &Model,
    found: &ChannelGroups,
    groups: &[&ChannelGroup],
    counts: &mut [usize],
    timing: &dyn Timing,
) -> Result<Vec<String>, PassError> {
    let classes: BTreeSet<Class> = groups
        .iter()
        .zip(counts.iter())
        .filter(|(_, count)| **count > 0)
        .map(|(group, &count)| (group.kind, group.channel_count, count))
        .collect();
    let mut lowered: BTreeMap<Class, (usize, f64)> = BTreeMap::new();
    let cut = |counts: &[usize]| -> Result<Model, PassError> {
        let mut cut = Cut::default();
        for (group, &count) in groups.iter().zip(counts) {
            cut.remove(group, 0..count);
        }
        let mut cut_model = model.clone();
        if !cut.is_empty() {
            apply(&mut cut_model.graph, &found.edits(model, &cut, &BTreeMap::new())?)?;
        }
        Ok(cut_model)
    };
    for class in classes {
        let (_, size, count) = class;
        let is_of_class = |index: usize, counts: &[usize]| {
            (groups[index].kind, groups[index].channel_count, counts[index]) == class
        };
        let members: Vec<usize> = (0..groups.len()).filter(|&i| is_of_class(i, counts)).collect();
        let with = |own: usize, counts: &[usize]| {
            let mut counts = counts.to_vec();
            members.iter().for_each(|&member| counts[member] = own);
            cut(&counts)
        };
        let whole = with(0, counts)?;
        // A first measurement that says slower may be noise: it must say so twice.
        let is_slower = |cut: &Model| -> Result<Option<f64>, PassError> {
            let first = timing.ratio(&whole, cut)?;
            Ok((first > SLOWER && timing.ratio(&whole, cut)? > SLOWER).then_some(first))
        };
        let Some(ratio) = is_slower(&with(count, counts)?)? else { continue };
        let mut own = 0;
        for multiple in MULTIPLES {
            let kept = (size - count + 1).next_multiple_of(multiple);
            if kept < size && is_slower(&with(size - kept, counts)?)?.is_none() {
                own = size - kept;
                break;
            }
        }
        members.iter().for_each(|&member| counts[member] = own);
        lowered.insert(class, (own, ratio));
    }
    let text = |((kind, size, count), (own, ratio)): (&Class, &(usize, f64))| {
        format!(
            "{}: {} of {size} kept instead of {}, with which the model took {ratio:.2} times as \
             long as with all",
            kind.name(),
            size - own,
            size - count
        )
    };
    Ok(lowered.iter().map(text).collect())
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;
    use attar_tensor::Tensor;

    use super::*;
    use crate::Exclude;

    /// Says what a width costs.
    struct Clock(fn(usize) -> f64);

    impl Timing for Clock {
        fn ratio(&self, a: &Model, b: &Model) -> Result<f64, PassError> {
            let width = |model: &Model| model.graph.constant("w").unwrap().shape()[1];
            Ok((self.0)(width(b)) / (self.0)(width(a)))
        }
    }

    fn kept(clock: fn(usize) -> f64, count: usize) -> (usize, Vec<String>) {
        let mut graph = graph_from_text("x: f32[n, 2]\nh = MatMul(x, w)\ny = MatMul(h, v)");
        for (name, shape) in [("w", [2, 64]), ("v", [64, 2])] {
            graph.set_initializer(name, Tensor::new(&shape, &[1.0_f32; 128]));
            graph.inputs.retain(|input| input.name != name);
        }
        let opsets = [(String::new(), 17)].into_iter().collect();
        let model = Model { graph, opsets, ..Model::default() };
        let found = ChannelGroups::find(&model, &Exclude::default());
        let mut counts = [count];
        let group = &found.groups[0];
        let remarks = step_back(&model, &found, &[group], &mut counts, &Clock(clock)).unwrap();
        (64 - counts[0], remarks)
    }

    #[test]
    fn a_faster_width_stays() {
        assert_eq!(kept(|width| width as f64, 31), (33, vec![]));
    }

    #[test]
    fn a_slower_one_becomes_the_next_that_is_not() {
        let odd_is_slow =
            |width: usize| if width.is_multiple_of(16) { width as f64 } else { 100.0 };
        let (width, remarks) = kept(odd_is_slow, 31);
        assert_eq!(width, 48);
        assert!(remarks[0].starts_with("columns: 48 of 64 kept instead of 33"), "{remarks:?}");
    }

    #[test]
    fn where_no_width_is_faster_nothing_is_cut() {
        assert_eq!(kept(|width| 200.0 - width as f64, 31).0, 64);
    }
}
