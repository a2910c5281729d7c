//! A data set as batches to train on.

use std::sync::Mutex;

use attar_evaluate::data::{TensorLabels, Tensors};
use attar_evaluate::{Dataset, EvaluateError, decode_image};
use attar_runtime::Session;
use attar_tensor::Tensor;
use attar_train::{Batch, Rng, Source, Targets, TrainError};
use rayon::prelude::*;

use super::augment::{Augment, mixed};
use super::feeder::Feeder;
use crate::Error;

/// What an example is, and what a loss compares the output with.
pub(crate) enum Form {
    /// One row, and its class.
    Classes(Vec<u32>),
    /// One row, and numbers.
    Values(Tensor),
    /// Two rows, or one of two texts, and how alike they are.
    Likeness(Vec<f32>),
    /// A query's row, and that of one of its documents, by index.
    Relevant(Vec<Vec<usize>>),
    /// One row.
    Plain,
}

/// A model that is learned from.
pub(crate) struct Teacher<'a> {
    pub(crate) name: String,
    pub(crate) feeder: Feeder<'a>,
    pub(crate) session: Mutex<Box<dyn Session>>,
    /// Which of the session's outputs is the one to learn.
    pub(crate) output: usize,
    /// Which of them are features.
    pub(crate) features: Vec<usize>,
}

/// A data set for one model, and perhaps its teacher.
pub(crate) struct BatchSource<'a> {
    pub(crate) data: &'a Dataset,
    pub(crate) form: Form,
    pub(crate) count: usize,
    pub(crate) lengths: Option<Vec<usize>>,
    pub(crate) student: Feeder<'a>,
    pub(crate) teacher: Option<Teacher<'a>>,
    pub(crate) augment: Augment,
    /// Scores per example that the model gives.
    pub(crate) class_count: usize,
    /// Decodes images.
    pub(crate) threads: rayon::ThreadPool,
}

/// How long each example is in tokens, by what the form makes of texts.
pub(crate) fn example_lengths(form: &Form, feeder: &Feeder, data: &Dataset) -> Option<Vec<usize>> {
    let lengths = feeder.lengths()?;
    Some(match (form, data) {
        (Form::Likeness(scores), _) if !feeder.is_paired() => {
            let (first, second) = lengths.split_at(scores.len());
            first.iter().zip(second).map(|(&a, &b)| a.max(b)).collect()
        }
        (Form::Relevant(relevant), Dataset::Retrieval(data)) => {
            let queries = lengths[data.documents.len()..].iter();
            let longest = |(&query, documents): (&usize, &Vec<usize>)| {
                documents.iter().map(|&document| lengths[document]).fold(query, usize::max)
            };
            queries.zip(relevant).map(longest).collect()
        }
        _ => lengths,
    })
}

impl Source for BatchSource<'_> {
    fn len(&self) -> usize {
        self.count
    }

    fn lengths(&self) -> Option<&[usize]> {
        self.lengths.as_deref()
    }

    fn batch(&self, indices: &[usize], draw: &mut Rng) -> Result<Batch, TrainError> {
        self.made(indices, &self.augment, draw).map_err(|error| data_error(&error))
    }
}

/// An error of data, as the trainer passes it on.
pub(crate) fn data_error(error: &Error) -> TrainError {
    TrainError::data(error.chain(), error.hint().unwrap_or_default())
}

impl BatchSource<'_> {
    /// A batch whose images are not mixed with one another.
    ///
    /// # Errors
    /// Examples that cannot be read, or that the model's inputs do not take.
    pub(crate) fn without_mixing(&self, indices: &[usize], draw: &mut Rng) -> Result<Batch, Error> {
        self.made(indices, &Augment { mixup: 0.0, ..self.augment.clone() }, draw)
    }

    fn made(&self, indices: &[usize], augment: &Augment, draw: &mut Rng) -> Result<Batch, Error> {
        let (feeds, taught, labels) = match self.data {
            Dataset::Images(_) => self.images(indices, augment, draw)?,
            Dataset::Tensors(data) => self.tensors(data, indices)?,
            _ => self.texts(indices, draw)?,
        };
        let targets = match (&self.teacher, labels) {
            (None, labels) => labels,
            (Some(teacher), labels) => {
                let (outputs, features) = teacher.outputs(&taught)?;
                let targets = match labels {
                    Targets::None => Targets::Outputs(outputs),
                    labels => Targets::Taught { labels: Box::new(labels), outputs },
                };
                if features.is_empty() {
                    targets
                } else {
                    Targets::Features { targets: Box::new(targets), features }
                }
            }
        };
        Ok(Batch { feeds, targets, example_count: indices.len() })
    }

    fn texts(&self, indices: &[usize], draw: &mut Rng) -> Result<Made, Error> {
        let rows = self.rows(indices, draw);
        let feeds = self.student.text_feeds(&rows)?;
        let taught = match &self.teacher {
            Some(teacher) => teacher.feeder.text_feeds(&rows)?,
            None => Vec::new(),
        };
        Ok((feeds, taught, self.targets(indices)))
    }

    /// Which texts the examples are, in the order of the batch's rows.
    fn rows(&self, indices: &[usize], draw: &mut Rng) -> Vec<usize> {
        match (&self.form, self.data) {
            (Form::Likeness(scores), _) if !self.student.is_paired() => {
                let second = indices.iter().map(|&index| scores.len() + index);
                indices.iter().copied().chain(second).collect()
            }
            (Form::Relevant(relevant), Dataset::Retrieval(data)) => {
                let queries = indices.iter().map(|&index| data.documents.len() + index);
                // One of a query's documents each time: two of them in a batch would be told apart.
                let mut document = |&index: &usize| {
                    let documents = &relevant[index];
                    documents[draw.below(documents.len())]
                };
                let documents: Vec<usize> = indices.iter().map(&mut document).collect();
                queries.chain(documents).collect()
            }
            _ => indices.to_vec(),
        }
    }

    fn targets(&self, indices: &[usize]) -> Targets {
        match &self.form {
            Form::Classes(classes) => {
                Targets::Classes(indices.iter().map(|&index| classes[index]).collect())
            }
            Form::Values(values) => {
                Targets::Values(attar_evaluate::data::gather_rows(values, indices))
            }
            Form::Likeness(scores) => {
                let scores: Vec<f32> = indices.iter().map(|&index| scores[index]).collect();
                let shape = [scores.len(), 1];
                let rank = if self.student.is_paired() { 2 } else { 1 };
                Targets::Values(Tensor::new(&shape[..rank], &scores))
            }
            Form::Relevant(_) | Form::Plain => Targets::None,
        }
    }

    fn tensors(&self, data: &Tensors, indices: &[usize]) -> Result<Made, Error> {
        let feeds = data.feeds(indices, &self.student.inputs)?;
        let taught = match &self.teacher {
            Some(teacher) => data.feeds(indices, &teacher.feeder.inputs)?,
            None => Vec::new(),
        };
        Ok((feeds, taught, self.targets(indices)))
    }

    fn images(&self, indices: &[usize], augment: &Augment, draw: &mut Rng) -> Result<Made, Error> {
        let Dataset::Images(images) = self.data else { unreachable!("the data holds images") };
        let input = self.student.image.expect("images were asked for");
        let decode = |&index: &usize| decode_image(&images.images[index], input);
        let mut decoded: Vec<Vec<f32>> = self
            .threads
            .install(|| indices.par_iter().map(decode).collect::<Result<_, EvaluateError>>())?;
        let black: Vec<f32> = input.mean.iter().zip(&input.std).map(|(m, s)| -m / s).collect();
        for image in &mut decoded {
            augment.change(image, input.size, &black, draw);
        }
        let mut pixels = decoded.concat();
        let mut targets = self.targets(indices);
        if let Some((share, partners)) = augment.mix(indices.len(), draw) {
            pixels = mixed(&pixels, pixels.len() / indices.len().max(1), share, &partners);
            if let Targets::Classes(classes) = &targets {
                let width = self.class_count;
                let mut soft = vec![0.0; classes.len() * width];
                for (row, &class) in classes.iter().enumerate() {
                    soft[row * width + class as usize] = 1.0;
                }
                let soft = mixed(&soft, width, share, &partners);
                targets = Targets::Soft(Tensor::new(&[classes.len(), width], &soft));
            }
        }
        let shape = [indices.len(), input.mean.len(), input.size, input.size];
        let pixels = Tensor::new(&shape, &pixels);
        let taught = match &self.teacher {
            Some(teacher) => teacher.feeder.image_feed(&pixels),
            None => Vec::new(),
        };
        Ok((self.student.image_feed(&pixels), taught, targets))
    }
}

/// What the model is fed, what its teacher is fed, and what the examples say themselves.
type Made = (Vec<(String, Tensor)>, Vec<(String, Tensor)>, Targets);

impl Teacher<'_> {
    /// The teacher's output for a batch, and its features.
    fn outputs(&self, feeds: &[(String, Tensor)]) -> Result<(Vec<Tensor>, Vec<Tensor>), Error> {
        let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(name, t)| (&name[..], t)).collect();
        let mut session = self.session.lock().expect("a failed run ends the training");
        let run = session.run(&feeds);
        let outputs =
            run.map_err(|source| Error::Runtime { subject: self.name.clone(), source })?;
        let features = self.features.iter().map(|&index| outputs[index].clone()).collect();
        Ok((vec![outputs[self.output].clone()], features))
    }
}

/// The classes of labels, which number the model's scores.
pub(crate) fn classes(labels: &[usize]) -> Form {
    Form::Classes(labels.iter().map(|&label| label as u32).collect())
}

/// What arrays are trained on: their labels.
pub(crate) fn form_of_tensors(data: &Tensors) -> Form {
    match &data.labels {
        TensorLabels::None => Form::Plain,
        TensorLabels::Classes(labels) => classes(labels),
        TensorLabels::Values(values) => Form::Values(values.clone()),
    }
}
