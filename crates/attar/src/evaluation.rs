//! Quality, time and batch invariance of models, the first being what the others are held against.

use std::num::NonZeroUsize;
use std::time::Duration;

use attar_evaluate::metrics::{
    CLASS_METRICS, RETRIEVAL_METRICS, is_among_best, rank, spearman, spearman_interval,
};
use attar_evaluate::{
    Agreement, Dataset, Embeddings, Interval, Invariance, Latency, Progress, Shape, agreement,
    batch_invariance, data, embed, gives_one_score, mean_interval, measure, paired_interval,
    resampled_interval, score_images, score_pairs, synthetic_feeds,
};
use attar_runtime::{RunOptions, Runtime, Session};
use serde::Serialize;

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
}

#[derive(Debug, Serialize)]
pub struct MetricResult {
    pub name: &'static str,
    pub interval: Interval,
    /// Against the first model, on the same examples.
    pub difference: Option<Interval>,
}

/// What one model made of the data: rows, and per metric its values or the whole list at once.
struct Outcome {
    rows: Embeddings,
    values: Vec<(&'static str, Vec<f64>)>,
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
        outcomes.push(outcome(subject, session.as_mut(), data, options)?);
    }
    let models = subjects.iter().zip(&outcomes).enumerate().map(|(index, (subject, outcome))| {
        let reference = (index > 0).then(|| &outcomes[0]);
        let with_direction = reference.filter(|first| first.rows.dimension > 1);
        Ok(ModelQuality {
            name: subject.name.clone(),
            size_bytes: subject.size_bytes,
            metrics: metric_results(outcome, reference, data),
            agreement: with_direction
                .map(|first| agreement(&first.rows, &outcome.rows))
                .transpose()?,
        })
    });
    Ok(Evaluation {
        data_kind: data.kind_name(),
        example_count: match data {
            Dataset::Retrieval(data) => data.queries.len(),
            Dataset::Pairs(pairs) => pairs.scores.len(),
            Dataset::Text(texts) => texts.len(),
            Dataset::Images(images) => images.images.len(),
        },
        runtime: format!("{} {}", options.runtime.name(), options.runtime.version()),
        models: models.collect::<Result<_, Error>>()?,
    })
}

fn outcome(
    subject: &Subject,
    session: &mut dyn Session,
    data: &Dataset,
    options: &EvaluateOptions,
) -> Result<Outcome, Error> {
    let (batch_size, progress) = (options.batch_size, options.progress);
    if let Dataset::Images(images) = data {
        let sources: Vec<_> = images.images.iter().collect();
        let input = subject.image_input()?;
        let rows = score_images(session, input, subject.output(), &sources, batch_size, progress)?;
        let values = CLASS_METRICS.iter().map(|metric| {
            let hits = images.labels.iter().enumerate().map(|(index, &label)| {
                f64::from(u8::from(is_among_best(rows.row(index), label, metric.count)))
            });
            (metric.name, hits.collect())
        });
        let values = values.collect();
        return Ok(Outcome { rows, values });
    }
    let encoder = subject.text_encoder()?;
    if gives_one_score(session, subject.output())? {
        let Dataset::Pairs(pairs) = data else {
            let wanted = data.kind_name();
            return Err(attar_evaluate::EvaluateError::OneScore { wanted }.into());
        };
        let second = pairs.second.iter().map(String::as_str);
        let pairs: Vec<_> = pairs.first.iter().map(String::as_str).zip(second).collect();
        let output = subject.output();
        let rows = score_pairs(session, &encoder, output, &pairs, batch_size, progress)?;
        let scores = rows.values.iter().map(|&score| f64::from(score)).collect();
        return Ok(Outcome { rows, values: vec![("Spearman", scores)] });
    }
    let rows = embed(session, &encoder, subject.output(), &data.texts(), batch_size, progress)?;
    let values = match data {
        Dataset::Retrieval(data) => {
            let split = data.documents.len() * rows.dimension;
            let part = |values: &[f32]| Embeddings {
                dimension: rows.dimension,
                values: normalized(values, rows.dimension),
            };
            let (documents, queries) = (part(&rows.values[..split]), part(&rows.values[split..]));
            progress.advance("searching", 0, 1);
            let rankings = rank(&queries, &documents, 100);
            progress.advance("searching", 1, 1);
            let per_query =
                |value: fn(&attar_evaluate::metrics::Ranking, &[(usize, f64)]) -> f64| {
                    rankings
                        .iter()
                        .zip(&data.relevant)
                        .map(|(r, relevant)| value(r, relevant))
                        .collect()
                };
            RETRIEVAL_METRICS.iter().map(|metric| (metric.name, per_query(metric.value))).collect()
        }
        Dataset::Pairs(pairs) => {
            let count = pairs.scores.len();
            let unit = Embeddings {
                dimension: rows.dimension,
                values: normalized(&rows.values, rows.dimension),
            };
            let cosine = |i: usize| {
                let products = unit.row(i).iter().zip(unit.row(count + i));
                products.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
            };
            vec![("Spearman", (0..count).map(cosine).collect())]
        }
        _ => Vec::new(),
    };
    Ok(Outcome { rows, values })
}

/// Rows of length 1, so that the inner product is the cosine.
fn normalized(values: &[f32], dimension: usize) -> Vec<f32> {
    let mut values = values.to_vec();
    for row in values.chunks_exact_mut(dimension.max(1)) {
        let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
        }
    }
    values
}

fn metric_results(
    outcome: &Outcome,
    reference: Option<&Outcome>,
    data: &Dataset,
) -> Vec<MetricResult> {
    let results = outcome.values.iter().enumerate().map(|(index, (name, values))| {
        let before = reference.map(|first| first.values[index].1.as_slice());
        if let Dataset::Pairs(pairs) = data {
            // A correlation belongs to the whole list: pairs are drawn, not averaged.
            let difference = before.map(|before| {
                resampled_interval(values.len(), 1000, |drawn| {
                    let pick = |list: &[f64]| drawn.iter().map(|&i| list[i]).collect::<Vec<_>>();
                    let scores = pick(&pairs.scores);
                    spearman(&pick(values), &scores) - spearman(&pick(before), &scores)
                })
            });
            let interval = spearman_interval(values, &pairs.scores);
            return MetricResult { name, interval, difference };
        }
        let difference = before.map(|before| paired_interval(before, values));
        MetricResult { name, interval: mean_interval(values), difference }
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
