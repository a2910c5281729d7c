//! Quality, time and batch invariance of models, the first being what the others are held against.

use std::num::NonZeroUsize;
use std::time::Duration;

use attar_evaluate::{
    Agreement, Dataset, Deviation, Interval, Invariance, Latency, Progress, Shape, agreement,
    batch_invariance, data, deviation, measure, synthetic_feeds,
};
use attar_runtime::{RunOptions, Runtime, Session};
use serde::Serialize;

use crate::examination::{Examination, Outcome};
use crate::{Error, Subject};

/// How to evaluate.
pub struct EvaluateOptions<'a> {
    pub runtime: &'a dyn Runtime,
    pub threads: NonZeroUsize,
    pub batch_size: usize,
    pub progress: &'a dyn Progress,
}

/// Quality of several models on one data set.
#[derive(Debug, Serialize)]
pub struct Evaluation {
    pub data_kind: &'static str,
    pub example_count: usize,
    pub runtime: String,
    pub models: Vec<ModelQuality>,
}

#[derive(Debug, Serialize)]
pub struct ModelQuality {
    pub name: String,
    pub size_bytes: u64,
    pub metrics: Vec<MetricResult>,
    /// Agreement of its vectors or scores with the first model's; none where it gives one number,
    /// which has no direction.
    pub agreement: Option<Agreement>,
    /// How far what it gives for arrays is from what the first model gives, in their order.
    pub deviation: Option<Deviation>,
}

#[derive(Debug, Serialize)]
pub struct MetricResult {
    pub name: &'static str,
    pub interval: Interval,
    /// Against the first model, on the same examples.
    pub difference: Option<Interval>,
}

/// Evaluates models on a data set. Memory holds one model's session at a time.
///
/// # Errors
/// Models or data that do not fit together.
pub fn evaluate_models(
    subjects: &[&Subject],
    data: &Dataset,
    options: &EvaluateOptions,
) -> Result<Evaluation, Error> {
    let mut outcomes: Vec<Outcome> = Vec::new();
    for subject in subjects {
        let run_options = RunOptions { threads: options.threads, observed: Vec::new() };
        let mut session = subject.session(options.runtime, &run_options)?;
        let examination = Examination::new(subject, session.as_ref(), data)?;
        outcomes.push(examination.run(session.as_mut(), options.batch_size, options.progress)?);
    }
    let models = subjects.iter().zip(&outcomes).enumerate().map(|(index, (subject, outcome))| {
        let reference = (index > 0).then(|| &outcomes[0]);
        // Vectors of another length have no angle to the first model's.
        let size = outcome.rows.dimension;
        let with_direction = reference.filter(|first| size > 1 && first.rows.dimension == size);
        Ok(ModelQuality {
            name: subject.name.clone(),
            size_bytes: subject.size_bytes,
            metrics: metric_results(outcome, reference),
            agreement: with_direction
                .map(|first| agreement(&first.rows, &outcome.rows))
                .transpose()?,
            deviation: reference
                .filter(|first| matches!(data, Dataset::Tensors(_)) && first.rows.dimension == size)
                .map(|first| deviation(&first.rows, &outcome.rows))
                .transpose()?,
        })
    });
    Ok(Evaluation {
        data_kind: data.kind_name(),
        example_count: data.example_count(),
        runtime: format!("{} {}", options.runtime.name(), options.runtime.version()),
        models: models.collect::<Result<_, Error>>()?,
    })
}

fn metric_results(outcome: &Outcome, reference: Option<&Outcome>) -> Vec<MetricResult> {
    let results = outcome.measures.iter().enumerate().map(|(index, measure)| {
        let before = reference.map(|first| &first.measures[index]);
        MetricResult {
            name: measure.name,
            interval: measure.interval(),
            difference: before.map(|before| measure.difference(before)),
        }
    });
    results.collect()
}

/// Times of several models on one runtime, measured in turn.
#[derive(Debug, Serialize)]
pub struct LatencyRow {
    pub runtime: String,
    pub threads: usize,
    pub shape: Shape,
    pub models: Vec<Latency>,
}

/// Runs the models in turn on made-up inputs of the given shape.
///
/// # Errors
/// A model that the runtime does not take.
pub fn latency_of(
    subjects: &[&Subject],
    runtime: &dyn Runtime,
    threads: NonZeroUsize,
    shape: Shape,
    seconds: f64,
) -> Result<LatencyRow, Error> {
    let options = RunOptions { threads, observed: Vec::new() };
    let mut sessions: Vec<Box<dyn Session>> = subjects
        .iter()
        .map(|subject| subject.session(runtime, &options))
        .collect::<Result<_, _>>()?;
    let names: Vec<&str> = subjects.iter().map(|subject| subject.name.as_str()).collect();
    let subject = format!("{} on {}", names.join(", "), runtime.name());
    let fail = |source| Error::Runtime { subject: subject.clone(), source };
    let feeds = sessions
        .iter()
        .map(|session| synthetic_feeds(session.inputs(), shape))
        .collect::<Result<Vec<_>, _>>()
        .map_err(fail)?;
    let mut borrowed: Vec<&mut dyn Session> = sessions.iter_mut().map(|s| &mut **s as _).collect();
    let time = Duration::from_secs_f64(seconds);
    let models = measure(&mut borrowed, &feeds, shape.batch, 10, time).map_err(fail)?;
    let runtime = format!("{} {}", runtime.name(), runtime.version());
    Ok(LatencyRow { runtime, threads: threads.get(), shape, models })
}

/// Batch invariance of several models on one runtime.
#[derive(Debug, Serialize)]
pub struct RuntimeInvariance {
    pub runtime: String,
    pub models: Vec<Invariance>,
}

/// Embeds `count` texts alone and in batches of 16.
///
/// # Errors
/// Models that do not take texts.
pub fn runtime_invariance(
    subjects: &[&Subject],
    runtime: &dyn Runtime,
    data: &Dataset,
    count: usize,
) -> Result<RuntimeInvariance, Error> {
    let texts = data.texts();
    let texts: Vec<&str> = data::spread(texts.len(), count).into_iter().map(|i| texts[i]).collect();
    let models = subjects
        .iter()
        .map(|subject| {
            let mut session = subject.session(runtime, &RunOptions::default())?;
            let encoder = subject.text_encoder()?;
            Ok(batch_invariance(session.as_mut(), &encoder, subject.output(), &texts, 16)?)
        })
        .collect::<Result<_, Error>>()?;
    Ok(RuntimeInvariance { runtime: format!("{} {}", runtime.name(), runtime.version()), models })
}
