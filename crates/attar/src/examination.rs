//! A model on a data set: its rows, and what the metrics of that kind of data make of them.

use attar_evaluate::data::TensorLabels;
use attar_evaluate::metrics::{CLASS_METRICS, RETRIEVAL_METRICS, RankingMetric, rank};
use attar_evaluate::{
    Dataset, Embeddings, Encoded, EvaluateError, Progress, States, TextEncoder, gives_one_score,
    run_encoded, run_sequences, run_tensors, score_images,
};
use attar_runtime::Session;

use crate::measure::{Measure, class_measures, hits, likeness, value_measures};
use crate::{Error, Subject};

/// Data made ready for a model: its texts are encoded once, however often the model runs.
pub(crate) struct Examination<'a> {
    subject: &'a Subject,
    data: &'a Dataset,
    texts: Option<Texts>,
}

struct Texts {
    encoder: TextEncoder,
    encoded: Vec<Encoded>,
    /// Whether two texts make one row of tokens, which gets one score.
    is_paired: bool,
}

/// What one model made of the data.
pub(crate) struct Outcome {
    pub(crate) rows: Embeddings,
    pub(crate) measures: Vec<Measure>,
}

impl<'a> Examination<'a> {
    /// # Errors
    /// A model or an `attar.toml` that does not fit the data.
    pub(crate) fn new(
        subject: &'a Subject,
        session: &dyn Session,
        data: &'a Dataset,
    ) -> Result<Self, Error> {
        let texts = match data {
            Dataset::Images(_) => {
                subject.image_input()?;
                None
            }
            Dataset::Tensors(_) => None,
            _ => Some(Texts::new(subject, session, data)?),
        };
        Ok(Self { subject, data, texts })
    }

    /// Runs the model of a session over the data. It may be another than the subject's, if only it
    /// has the same inputs and outputs.
    ///
    /// # Errors
    /// A failing run, or labels that the model's outputs do not fit.
    pub(crate) fn run(
        &self,
        session: &mut dyn Session,
        batch_size: usize,
        progress: &dyn Progress,
    ) -> Result<Outcome, Error> {
        let output = self.subject.output();
        let rows = match (self.data, &self.texts) {
            (Dataset::Images(images), _) => {
                let sources: Vec<_> = images.images.iter().collect();
                let input = self.subject.image_input()?;
                score_images(session, input, output, &sources, batch_size, progress)?
            }
            (Dataset::Tensors(data), _) if !self.subject.states().is_empty() => {
                let states = States::new(self.subject.states(), session)?;
                run_sequences(session, output, data, states, progress)?
            }
            (Dataset::Tensors(data), _) => {
                run_tensors(session, output, data, batch_size, progress)?
            }
            (_, Some(Texts { encoder, encoded, is_paired })) => {
                let what = if *is_paired { "scoring pairs" } else { "embedding texts" };
                let advance = |done| progress.advance(what, done, encoded.len());
                run_encoded(session, encoder, output, encoded, batch_size, &advance)?
            }
            (_, None) => unreachable!("texts were encoded"),
        };
        let measures = self.measures(&rows, progress)?;
        Ok(Outcome { rows, measures })
    }

    fn measures(&self, rows: &Embeddings, progress: &dyn Progress) -> Result<Vec<Measure>, Error> {
        Ok(match self.data {
            Dataset::Images(images) => {
                let measure = |count| hits(rows, &images.labels, count);
                let metrics = CLASS_METRICS.iter();
                metrics.map(|metric| Measure::mean(metric.name, measure(metric.count))).collect()
            }
            Dataset::Tensors(data) => match &data.labels {
                TensorLabels::None => Vec::new(),
                TensorLabels::Classes(classes) => {
                    data.check_classes(rows.dimension)?;
                    class_measures(rows, classes)
                }
                TensorLabels::Values(values) => value_measures(rows, values)?,
            },
            Dataset::Labelled(data) => {
                let names = self.subject.labels();
                let classes =
                    if names.is_empty() { data.labels.clone() } else { data.classes_of(names)? };
                data.check_classes(&classes, rows.dimension)?;
                class_measures(rows, &classes)
            }
            Dataset::Retrieval(data) => {
                let split = data.documents.len() * rows.dimension;
                let part = |values: &[f32]| Embeddings {
                    dimension: rows.dimension,
                    values: normalized(values, rows.dimension),
                };
                let documents = part(&rows.values[..split]);
                let queries = part(&rows.values[split..]);
                progress.advance("searching", 0, 1);
                let rankings = rank(&queries, &documents, 100);
                progress.advance("searching", 1, 1);
                let per_query = |metric: &RankingMetric| {
                    let found = rankings.iter().zip(&data.relevant);
                    let values = found.map(|(ranking, relevant)| (metric.value)(ranking, relevant));
                    Measure::mean(metric.name, values.collect())
                };
                RETRIEVAL_METRICS.iter().map(per_query).collect()
            }
            Dataset::Pairs(pairs) => {
                let values = if self.texts.as_ref().is_some_and(|texts| texts.is_paired) {
                    rows.values.iter().map(|&score| f64::from(score)).collect()
                } else {
                    cosines(rows, pairs.scores.len())
                };
                vec![likeness(values, &pairs.scores)]
            }
            Dataset::Text(_) => Vec::new(),
        })
    }
}

impl Texts {
    fn new(subject: &Subject, session: &dyn Session, data: &Dataset) -> Result<Self, Error> {
        let encoder = subject.text_encoder()?;
        let has_classes = matches!(data, Dataset::Labelled(_));
        let is_paired = !has_classes && gives_one_score(session, subject.output())?;
        let encoded = match data {
            Dataset::Pairs(pairs) if is_paired => {
                let second = pairs.second.iter().map(String::as_str);
                let pairs: Vec<_> = pairs.first.iter().map(String::as_str).zip(second).collect();
                encoder.encode_pairs(&pairs)?
            }
            _ if is_paired => {
                return Err(EvaluateError::OneScore { wanted: data.kind_name() }.into());
            }
            _ => encoder.encode(&data.texts())?,
        };
        Ok(Self { encoder, encoded, is_paired })
    }
}

/// The cosine of every row of the first half with its row of the second.
fn cosines(rows: &Embeddings, count: usize) -> Vec<f64> {
    let unit =
        Embeddings { dimension: rows.dimension, values: normalized(&rows.values, rows.dimension) };
    let cosine = |i: usize| {
        let products = unit.row(i).iter().zip(unit.row(count + i));
        products.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    (0..count).map(cosine).collect()
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
