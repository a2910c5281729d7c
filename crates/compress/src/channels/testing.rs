//! Cutting a channel computes what zeroing it computes: what tests of this share.

use std::collections::BTreeMap;

use attar_graph::{Model, apply};
use attar_ops::{fold_constants, infer_graph};
use attar_runtime::{Builtin, RunOptions, Runtime};
use attar_tensor::{DType, Tensor};

use super::{ChannelGroup, ChannelGroups, Cut, GroupAxis};
use crate::{Exclude, PassError};

/// Largest difference allowed, relative to the largest value of an output: a cut sums in another
/// order.
const TOLERANCE: f64 = 1e-4;

/// The model with one channel of each group zeroed, and with it cut. `at` is where the channel
/// lies, from 0, the first, to 1, the last.
///
/// # Errors
/// Where the groups cannot be cut together.
///
/// # Panics
/// When a group names constants that the model does not have.
pub fn zeroed_and_cut(
    model: &Model,
    found: &ChannelGroups,
    groups: &[&ChannelGroup],
    at: f64,
) -> Result<[Model; 2], PassError> {
    let mut cut = Cut::default();
    let mut zeroed = model.clone();
    for group in groups {
        let channel = (at * (group.channel_count - 1) as f64).round() as usize;
        cut.remove(group, [channel]);
        zero(&mut zeroed, group, channel);
    }
    let plan = found.edits(model, &cut, &BTreeMap::new())?;
    let mut smaller = model.clone();
    apply(&mut smaller.graph, &plan)?;
    Ok([zeroed, smaller])
}

/// Groups that say they are exact, in as few rounds as can be: those of a round go together.
pub fn rounds(found: &ChannelGroups) -> Vec<Vec<&ChannelGroup>> {
    let mut rounds: Vec<Vec<&ChannelGroup>> = Vec::new();
    for group in found.groups.iter().filter(|group| group.is_exact && group.channel_count > 1) {
        let fits = |round: &Vec<&ChannelGroup>| round.iter().all(|o| found.go_together(o, group));
        match rounds.iter_mut().find(|round| fits(round)) {
            Some(round) => round.push(group),
            None => rounds.push(vec![group]),
        }
    }
    rounds
}

/// Sets channel `channel` of `group` to zero: its slices of all that is added and multiplied.
fn zero(model: &mut Model, group: &ChannelGroup, channel: usize) {
    for axis in group.axes.iter().filter(|axis| axis.is_constant) {
        let divides = |node: usize, input: usize| {
            let node = &model.graph.nodes[node];
            node.is("Div") || node.is("Pow") || (node.is("BatchNormalization") && input == 4)
        };
        if axis.reader.is_some_and(|(node, input)| divides(node, input)) {
            continue;
        }
        let name = match axis.reader {
            Some((node, input)) => model.graph.nodes[node].inputs[input].clone(),
            None => axis.tensor.clone(),
        };
        let whole = model.graph.constant(&name).expect("a constant of the group");
        if whole.dtype() != DType::F32 {
            continue;
        }
        let tensor = without_values(whole, axis, channel);
        match axis.reader {
            // Other readers go on with theirs.
            Some((node, input)) => {
                let own = format!("{name}/zeroed_{node}_{input}");
                model.graph.set_initializer(own.clone(), tensor);
                model.graph.nodes[node].inputs[input] = own;
            }
            None if model.graph.initializers.contains_key(&name) => {
                model.graph.set_initializer(name, tensor);
            }
            None => {
                let nodes = &mut model.graph.nodes;
                let source = nodes.iter_mut().find(|node| node.outputs[0] == name);
                source.expect("a Constant node").set_constant(tensor);
            }
        }
    }
}

fn without_values(tensor: &Tensor, axis: &GroupAxis, channel: usize) -> Tensor {
    let shape = tensor.shape().to_vec();
    let inner: usize = shape[axis.axis + 1..].iter().product();
    let mut values = tensor.values::<f32>().into_owned();
    for rows in values.chunks_exact_mut(shape[axis.axis] * inner) {
        for &index in axis.of(channel) {
            rows[index as usize * inner..][..inner].fill(0.0);
        }
    }
    Tensor::new(&shape, &values)
}

/// Every output of a model on `builtin`.
///
/// # Panics
/// When the model does not run.
pub fn outputs(model: &Model, feeds: &[(String, Tensor)]) -> Vec<Tensor> {
    let mut session = Builtin.load(model, &RunOptions::default()).expect("a model that runs");
    let feeds: Vec<(&str, &Tensor)> =
        feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    session.run(&feeds).expect("a model that runs")
}

/// Largest difference of the outputs, relative to the largest value of each.
fn difference(a: &[Tensor], b: &[Tensor]) -> f64 {
    let mut worst = 0.0_f64;
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.shape(), b.shape());
        let (a, b) =
            (a.to_f64().expect("a model that runs"), b.to_f64().expect("a model that runs"));
        let scale = a.iter().fold(1e-6, |most: f64, x| most.max(x.abs()));
        for (a, b) in a.iter().zip(&b) {
            let apart = (a - b).abs() / scale;
            worst = if apart.is_nan() { f64::INFINITY } else { worst.max(apart) };
        }
    }
    worst
}

/// Cuts channels of every exact group, each group by itself, and compares them zeroed: those at
/// `places`, as [`zeroed_and_cut`] has them. Says of each group its kind and its count of channels,
/// with `~` where it is not exact; and which groups have no effect at these places.
///
/// # Panics
/// Where the two differ.
pub fn check_groups(
    what: &str,
    model: &Model,
    feeds: &[(String, Tensor)],
    places: &[f64],
) -> (Vec<String>, Vec<String>) {
    let mut model = model.clone();
    let folded = fold_constants(&model, true);
    apply(&mut model.graph, &folded).expect("a model that runs");
    let facts = infer_graph(&model);
    assert!(facts.problems.is_empty(), "{what}: {:?}", facts.problems);
    let found = ChannelGroups::find(&model, &Exclude::default());
    let whole = outputs(&model, feeds);
    let mut dead = Vec::new();
    for group in found.groups.iter().filter(|g| g.is_exact && g.channel_count > 1) {
        let mut most = 0.0_f64;
        for &at in places {
            let [zeroed, cut] = zeroed_and_cut(&model, &found, &[group], at)
                .unwrap_or_else(|error| panic!("{what}: {}: {error}", described(group)));
            let facts = infer_graph(&cut);
            assert!(facts.problems.is_empty(), "{what}: {:?}", facts.problems);
            let zeroed = outputs(&zeroed, feeds);
            most = most.max(difference(&whole, &zeroed));
            let apart = difference(&zeroed, &outputs(&cut, feeds));
            assert!(apart <= TOLERANCE, "{what}: at {at}: {apart:e}: {}", described(group));
        }
        if most <= TOLERANCE {
            dead.push(described(group));
        }
    }
    let text = |group: &ChannelGroup| {
        let exact = if group.is_exact { "" } else { "~" };
        format!("{exact}{} {}", group.kind.name(), group.channel_count)
    };
    (found.groups.iter().map(text).collect(), dead)
}

fn described(group: &ChannelGroup) -> String {
    let axes: Vec<String> =
        group.axes.iter().map(|axis| format!("{}:{}", axis.tensor, axis.axis)).collect();
    format!("{} of `{}`, on {}", group.kind.name(), group.name, axes.join(" "))
}
