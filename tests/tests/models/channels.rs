//! Cutting a channel computes what zeroing it in the original computes, for every group of every
//! model.

use std::collections::BTreeMap;

use attar_compress::testing::{rounds, zeroed_and_cut};
use attar_compress::{ChannelGroup, ChannelGroups, Exclude};
use attar_graph::{Model, apply};
use attar_ops::fold_constants;
use attar_runtime::{Builtin, RunOptions, Runtime};
use attar_tensor::Tensor;
use attar_tests::data;

use super::{Entry, MODELS};

/// What the issue asks for, relative to the largest value of an output.
const TOLERANCE: f64 = 1e-4;

/// A model whose products quantize what they read while they run: it has no float channels.
const WITHOUT: &[&str] = &["ddddocr/common_old.onnx"];

/// Largest difference of the outputs, relative to the largest value of each.
fn difference(a: &Model, b: &Model, entry: &Entry) -> f64 {
    let mut worst = 0.0_f64;
    let mut sessions = [a, b].map(|model| {
        Builtin
            .load(model, &RunOptions::default())
            .unwrap_or_else(|e| panic!("{}: {e}", entry.path))
    });
    let feeds = entry.feeds[0]();
    let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let [a, b] = sessions.each_mut().map(|session| {
        session.run(&feeds).unwrap_or_else(|error| panic!("{}: {error}", entry.path))
    });
    for (a, b) in a.iter().zip(&b) {
        let [apart, relative] = super::differences(a, b).unwrap_or([f64::NAN; 2]);
        let apart = if apart <= super::PROBABILITY { 0.0 } else { relative };
        worst = if apart.is_nan() { f64::NAN } else { worst.max(apart) };
    }
    worst
}

/// How far a model with one channel of each group cut is from the one with it zeroed.
fn compare(
    entry: &Entry,
    model: &Model,
    found: &ChannelGroups,
    groups: &[&ChannelGroup],
    at: f64,
) -> f64 {
    let models = zeroed_and_cut(model, found, groups, at).unwrap_or_else(|error| {
        let names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
        panic!("{} {names:?}: {error}", entry.path)
    });
    difference(&models[0], &models[1], entry)
}

#[test]
#[allow(clippy::print_stdout)] // what the test shows
fn a_channel_cut_is_a_channel_zeroed() {
    let wanted = std::env::var("ATTAR_MODELS").unwrap_or_default();
    for entry in MODELS.iter().filter(|entry| entry.path.contains(&wanted)) {
        let mut model = (entry.load)(&data(entry.path));
        let folded = fold_constants(&model, true);
        apply(&mut model.graph, &folded).expect("constants fold");
        let start = std::time::Instant::now();
        let found = ChannelGroups::find(&model, &Exclude::default());
        let took = start.elapsed().as_secs_f64();
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        found.groups.iter().for_each(|group| *kinds.entry(group.kind.name()).or_default() += 1);
        println!("{:45} {took:.2} s {kinds:?}", entry.path);
        let rounds = rounds(&found);
        let is_without = WITHOUT.contains(&entry.path);
        if is_without {
            continue;
        }
        for groups in &rounds {
            for at in [0.0, 0.6] {
                let apart = compare(entry, &model, &found, groups, at);
                if apart <= TOLERANCE {
                    continue;
                }
                // Which of them is it?
                for group in groups {
                    let apart = compare(entry, &model, &found, &[group], at);
                    let (kind, name) = (group.kind.name(), &group.name);
                    let axes: Vec<String> = group
                        .axes
                        .iter()
                        .map(|axis| format!("{}:{}", axis.tensor, axis.axis))
                        .collect();
                    assert!(
                        apart <= TOLERANCE,
                        "{} {kind} `{name}`: {apart:e} {axes:?}",
                        entry.path
                    );
                }
                panic!("{}: {apart:e}, but each group alone is right", entry.path);
            }
        }
    }
}
