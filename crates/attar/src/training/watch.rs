//! What training is watched by: the metric of the present weights on data that is not trained on.

use attar_evaluate::{Dataset, Embeddings, Silent, agreement};
use attar_graph::Model;
use attar_runtime::{Builtin, RunOptions, Runtime};
use attar_train::{TrainError, Validate};

use super::source::data_error;
use crate::examination::{Examination, Outcome};
use crate::{Error, Subject};

/// Examples run together.
const BATCH_SIZE: usize = 64;

/// Measures a model in training.
pub(crate) struct Watch<'a> {
    subject: &'a Subject,
    examination: Examination<'a>,
    options: RunOptions,
    pub(crate) metric: &'static str,
    /// What a teacher makes of the data, where it has no labels.
    taught: Option<Embeddings>,
}

impl<'a> Watch<'a> {
    /// `None` where the data has no labels and there is no teacher.
    ///
    /// # Errors
    /// A model that does not fit the data.
    pub(crate) fn new(
        subject: &'a Subject,
        teacher: Option<&Subject>,
        data: &'a Dataset,
        options: &RunOptions,
    ) -> Result<Option<Self>, Error> {
        let session = subject.session(&Builtin, options)?;
        let examination = Examination::new(subject, session.as_ref(), data)?;
        let (metric, taught) = match (metric_name(data), teacher) {
            (Some(metric), _) => (metric, None),
            (None, None) => return Ok(None),
            (None, Some(teacher)) => {
                let mut session = teacher.session(&Builtin, options)?;
                let taught = Examination::new(teacher, session.as_ref(), data)?;
                let outcome = taught.run(session.as_mut(), BATCH_SIZE, &Silent)?;
                ("cosine to the teacher", Some(outcome.rows))
            }
        };
        Ok(Some(Self { subject, examination, options: options.clone(), metric, taught }))
    }

    fn value(&self, model: &Model) -> Result<f64, Error> {
        let loaded = Builtin.load(model, &self.options);
        let mut session = loaded.map_err(|source| Error::Runtime {
            subject: format!("{} in training", self.subject.name),
            source,
        })?;
        let Outcome { rows, measures } =
            self.examination.run(session.as_mut(), BATCH_SIZE, &Silent)?;
        match (&self.taught, measures.first()) {
            (Some(taught), _) => Ok(agreement(taught, &rows)?.cosine_mean),
            (None, Some(measure)) => Ok(measure.value()),
            (None, None) => unreachable!("data without a metric is watched with a teacher"),
        }
    }
}

impl Validate for Watch<'_> {
    fn measure(&mut self, model: &Model) -> Result<f64, TrainError> {
        self.value(model).map_err(|error| data_error(&error))
    }
}

/// The first metric of a kind of data; none where nothing is known of it.
fn metric_name(data: &Dataset) -> Option<&'static str> {
    use attar_evaluate::data::TensorLabels;
    Some(match data {
        Dataset::Images(_) => "top-1",
        Dataset::Labelled(_) => "accuracy",
        Dataset::Pairs(_) => "Spearman",
        Dataset::Retrieval(_) => "nDCG@10",
        Dataset::Text(_) => return None,
        Dataset::Tensors(data) => match data.labels {
            TensorLabels::None => return None,
            TensorLabels::Classes(_) => "accuracy",
            TensorLabels::Values(_) => "R²",
        },
    })
}
