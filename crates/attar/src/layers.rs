//! What a step did to single layers: operations, parameters and time, before and after.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;

use attar_evaluate::{Shape, synthetic_feeds};
use attar_graph::Model;
use attar_ops::Bindings;
use attar_runtime::{RunOptions, Runtime, RuntimeError, Session};
use attar_tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::inspect::{Inspection, inspect};
use crate::{Error, Subject};

/// What one run costs, and how many parameters it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    pub macs: u64,
    pub parameter_count: u64,
}

impl Work {
    pub(crate) fn of(model: &Model, shape: Shape) -> Self {
        let found = inspected(model, shape);
        Self { macs: found.macs, parameter_count: found.parameter_count }
    }
}

/// A layer that became smaller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerChange {
    pub node: String,
    pub op_type: String,
    pub before: Work,
    pub after: Work,
    /// Medians on `builtin`, where the node was timed before and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<[f64; 2]>,
}

fn inspected(model: &Model, shape: Shape) -> Inspection {
    let mut sizes = Bindings::new();
    for value in model.graph.required_inputs() {
        for (axis, dim) in value.shape().unwrap_or_default().iter().enumerate() {
            let size = if axis == 0 { shape.batch } else { shape.length };
            dim.for_each_symbol(&mut |name| {
                sizes.entry(name.to_string()).or_insert(size as i64);
            });
        }
    }
    inspect(model, &sizes)
}

/// Layers that cost fewer operations than before, in the order of the graph.
pub(crate) fn layer_changes(before: &Model, after: &Model, shape: Shape) -> Vec<LayerChange> {
    let (before, after) = (inspected(before, shape), inspected(after, shape));
    let known: HashMap<&str, Work> = before
        .nodes
        .iter()
        .filter_map(|row| {
            let work = Work { macs: row.macs?, parameter_count: row.parameter_count };
            Some((row.name.as_str(), work))
        })
        .collect();
    let change = |row: &crate::inspect::NodeRow| {
        let before = *known.get(row.name.as_str())?;
        let after = Work { macs: row.macs?, parameter_count: row.parameter_count };
        let (node, op_type) = (row.name.clone(), row.op_type.clone());
        (after.macs < before.macs).then_some(LayerChange { node, op_type, before, after, ms: None })
    };
    after.nodes.iter().filter_map(change).collect()
}

/// Runs of each model of which the median is taken.
const RUNS: usize = 15;
const WARM_UP: usize = 3;

/// The time of one node, or of a fused one.
#[derive(Clone, Debug, Serialize)]
pub struct NodeTime {
    pub node: String,
    pub op_type: String,
    /// Medians, by model; `None` where a model has no such node.
    pub ms: Vec<Option<f64>>,
}

/// What each node of several models takes, run in turn on made-up inputs. In the order of the
/// graphs.
///
/// # Errors
/// A model that the runtime does not take, or a runtime that does not tell.
pub fn node_times(
    subjects: &[&Subject],
    runtime: &dyn Runtime,
    threads: NonZeroUsize,
    shape: Shape,
) -> Result<Vec<NodeTime>, Error> {
    let models: Vec<&Model> = subjects.iter().map(|subject| &subject.model).collect();
    times(&models, runtime, threads, shape).map_err(|source| {
        let names: Vec<&str> = subjects.iter().map(|subject| subject.name.as_str()).collect();
        let subject = format!("{} on {}", names.join(", "), runtime.name());
        Error::Runtime { subject, source }
    })
}

/// As [`node_times`], of models.
pub(crate) fn times(
    models: &[&Model],
    runtime: &dyn Runtime,
    threads: NonZeroUsize,
    shape: Shape,
) -> Result<Vec<NodeTime>, RuntimeError> {
    let options = RunOptions { threads, observed: Vec::new() };
    let mut sessions: Vec<(Box<dyn Session>, Vec<(String, Tensor)>)> = Vec::new();
    for model in models {
        let session = runtime.load(model, &options)?;
        let feeds = synthetic_feeds(session.inputs(), shape)?;
        sessions.push((session, feeds));
    }
    let mut rows: Vec<NodeTime> = Vec::new();
    let mut place: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut samples: Vec<Vec<Vec<f64>>> = Vec::new();
    for round in 0..WARM_UP + RUNS {
        for (index, (session, feeds)) in sessions.iter_mut().enumerate() {
            let feeds: Vec<(&str, &Tensor)> =
                feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
            for step in session.profile(&feeds)? {
                let key = (step.node, step.op_type);
                let at = *place.entry(key).or_insert_with_key(|(node, op_type)| {
                    let (node, op_type) = (node.clone(), op_type.clone());
                    rows.push(NodeTime { node, op_type, ms: vec![None; models.len()] });
                    samples.push(vec![Vec::new(); models.len()]);
                    rows.len() - 1
                });
                if round >= WARM_UP {
                    samples[at][index].push(step.time.as_secs_f64() * 1e3);
                }
            }
        }
    }
    for (row, samples) in rows.iter_mut().zip(&mut samples) {
        for (ms, samples) in row.ms.iter_mut().zip(samples) {
            samples.sort_by(f64::total_cmp);
            *ms = samples.get(samples.len() / 2).copied();
        }
    }
    Ok(rows)
}

/// Enters what each layer takes on `builtin`, before and after. Leaves layers untimed that became
/// part of another step, or where the model does not run.
pub(crate) fn time_layers(
    layers: &mut [LayerChange],
    before: &Model,
    after: &Model,
    threads: NonZeroUsize,
    shape: Shape,
) {
    if layers.is_empty() {
        return;
    }
    let Ok(rows) = times(&[before, after], &attar_runtime::Builtin, threads, shape) else { return };
    for layer in layers {
        let row = rows.iter().find(|row| row.node == layer.node);
        layer.ms = row.and_then(|row| Some([row.ms[0]?, row.ms[1]?]));
    }
}
