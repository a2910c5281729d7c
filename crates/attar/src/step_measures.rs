//! Time and quality after single steps, and the clock that passes decide by.

use std::num::NonZeroUsize;
use std::time::Duration;

use attar_compress::{PassError, Timing};
use attar_evaluate::{Interval, Shape, measure, synthetic_feeds};
use attar_graph::Model;
use attar_runtime::{RunOptions, Runtime, Session};
use serde::{Deserialize, Serialize};

use crate::{Evaluation, LatencyRow};

/// What a model is like after a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepMeasures {
    pub times: Vec<RuntimeTime>,
    /// The data set's first metric.
    pub metric: Option<StepMetric>,
}

/// Medians on one runtime, run in turn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuntimeTime {
    pub runtime: String,
    pub original_ms: f64,
    pub ms: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepMetric {
    pub name: String,
    pub value: f64,
    /// Against the original, on the same examples.
    pub difference: f64,
    /// 95 % interval of the difference.
    pub low: f64,
    pub high: f64,
}

impl StepMeasures {
    pub(crate) fn new(latency: &[LatencyRow], quality: Option<&Evaluation>) -> Self {
        let time = |row: &LatencyRow| RuntimeTime {
            runtime: row.runtime.clone(),
            original_ms: row.models[0].p50_ms,
            ms: row.models[1].p50_ms,
        };
        let metric = |quality: &Evaluation| {
            let metric = quality.models.get(1)?.metrics.first()?;
            let Interval { value: difference, low, high, .. } = metric.difference?;
            let (name, value) = (metric.name.to_string(), metric.interval.value);
            Some(StepMetric { name, value, difference, low, high })
        };
        Self { times: latency.iter().map(time).collect(), metric: quality.and_then(metric) }
    }
}

/// The runtime and shape that a model is made for.
pub(crate) struct Clock<'a> {
    pub(crate) runtime: &'a dyn Runtime,
    pub(crate) threads: NonZeroUsize,
    pub(crate) shape: Shape,
}

/// Runs of each model, and how long they take together at least.
const RUNS_MIN: usize = 20;
const TIME_MIN: Duration = Duration::from_millis(300);

impl Timing for Clock<'_> {
    fn ratio(&self, a: &Model, b: &Model) -> Result<f64, PassError> {
        let options = RunOptions { threads: self.threads, observed: Vec::new() };
        let mut sessions: [Box<dyn Session>; 2] =
            [self.runtime.load(a, &options)?, self.runtime.load(b, &options)?];
        let feeds = [
            synthetic_feeds(sessions[0].inputs(), self.shape)?,
            synthetic_feeds(sessions[1].inputs(), self.shape)?,
        ];
        let mut borrowed: Vec<&mut dyn Session> =
            sessions.iter_mut().map(|session| &mut **session as _).collect();
        let times = measure(&mut borrowed, &feeds, self.shape.batch, RUNS_MIN, TIME_MIN)?;
        Ok(times[1].least_ms / times[0].least_ms)
    }
}
