//! Calibration feeds out of a data set: a sample spread over it, one batch in memory at a time.

use attar_compress::{Calibration, PassError};
use attar_evaluate::data::{TensorLabels, Tensors, spread};
use attar_evaluate::{Dataset, EvaluateError, Progress, States, TextEncoder, image_feeds};
use attar_graph::{Dim, Value};
use attar_runtime::{Builtin, RunOptions};
use attar_tensor::Tensor;

use crate::{Error, Subject};

/// A sample of a data set, and how to turn it into feeds.
pub struct CalibrationSample<'a> {
    data: &'a Dataset,
    subject: &'a Subject,
    encoder: Option<TextEncoder>,
    count: usize,
    progress: &'a dyn Progress,
}

/// Examples run together. Images take a thousand times the memory of a text.
const TEXTS_AT_ONCE: usize = 8;
const IMAGES_AT_ONCE: usize = 4;
/// Texts among which those of one length are looked for.
const TEXTS_LOOKED_AT: usize = 512;
/// Tokens of texts that run together: products of so many rows are near their best speed.
const TOKENS_AT_ONCE: usize = 256;

impl<'a> CalibrationSample<'a> {
    /// Takes `count` examples of `data`, prepared as the subject's `attar.toml` says.
    ///
    /// # Errors
    /// No preprocessing for this kind of data.
    pub fn new(
        data: &'a Dataset,
        subject: &'a Subject,
        count: usize,
        progress: &'a dyn Progress,
    ) -> Result<Self, Error> {
        let encoder = match data {
            Dataset::Images(_) => {
                subject.image_input()?;
                None
            }
            Dataset::Tensors(_) => None,
            _ => Some(subject.text_encoder()?),
        };
        Ok(Self { data, subject, encoder, count, progress })
    }

    fn each(
        &self,
        inputs: &[Value],
        visit: &mut dyn FnMut(&[(String, Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        if let Dataset::Images(images) = self.data {
            let input = self.subject.image_input().map_err(|error| data_error(&error))?;
            let picked = spread(images.images.len(), self.count);
            for (number, batch) in picked.chunks(IMAGES_AT_ONCE).enumerate() {
                self.progress.advance("calibrating", number * IMAGES_AT_ONCE, picked.len());
                let sources: Vec<_> = batch.iter().map(|&index| &images.images[index]).collect();
                let feeds = image_feeds(&sources, input, inputs);
                visit(&feeds.map_err(|error| data_error(&error.into()))?)?;
            }
            self.progress.advance("calibrating", picked.len(), picked.len());
            return Ok(());
        }
        if let Dataset::Tensors(tensors) = self.data {
            if !self.subject.states().is_empty() {
                return self.each_of_sequences(tensors, inputs, visit);
            }
            for index in spread(tensors.count, self.count) {
                let feeds = tensors.feeds(&[index], inputs);
                visit(&feeds.map_err(|error| data_error(&error.into()))?)?;
            }
            return Ok(());
        }
        let Some(encoder) = &self.encoder else { return Ok(()) };
        let texts = self.data.texts();
        let picked = spread(texts.len(), self.count);
        for (number, batch) in picked.chunks(TEXTS_AT_ONCE).enumerate() {
            self.progress.advance("calibrating", number * TEXTS_AT_ONCE, picked.len());
            let batch: Vec<&str> = batch.iter().map(|&index| texts[index]).collect();
            let fail = |error: EvaluateError| data_error(&error.into());
            let encoded = encoder.encode(&batch).map_err(fail)?;
            // A text at a time: values at padded places are no part of what the model will see.
            for example in &encoded {
                visit(&encoder.feeds(&[example], inputs).map_err(fail)?)?;
            }
        }
        self.progress.advance("calibrating", picked.len(), picked.len());
        Ok(())
    }

    /// Examples from the first on, one after the other, with the states that the original model is
    /// in: no sequence is shown in parts.
    fn each_of_sequences(
        &self,
        tensors: &Tensors,
        inputs: &[Value],
        visit: &mut dyn FnMut(&[(String, Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        let fail = |error: EvaluateError| data_error(&error.into());
        let session = self.subject.session(&Builtin, &RunOptions::default());
        let mut session = session.map_err(|error| data_error(&error))?;
        let mut states = States::new(self.subject.states(), &*session).map_err(fail)?;
        let others: Vec<Value> =
            inputs.iter().filter(|input| !states.holds(&input.name)).cloned().collect();
        let count = tensors.count.min(self.count);
        for index in 0..count {
            self.progress.advance("calibrating", index, count);
            if !tensors.continues(index) {
                states.reset();
            }
            let mut feeds = tensors.feeds(&[index], &others).map_err(fail)?;
            feeds.extend(states.feeds());
            visit(&feeds)?;
            let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(name, t)| (&**name, t)).collect();
            let outputs = session.run(&feeds).map_err(|error| fail(error.into()))?;
            states.advance(&outputs);
        }
        self.progress.advance("calibrating", count, count);
        Ok(())
    }
}

fn data_error(error: &Error) -> PassError {
    PassError::Data { message: error.chain(), hint: error.hint().unwrap_or_default() }
}

impl CalibrationSample<'_> {
    /// Texts of one length together: the model computes for each what it computes for it alone.
    fn each_group_of_texts(
        &self,
        encoder: &TextEncoder,
        inputs: &[Value],
        visit: &mut dyn FnMut(&[(String, Tensor)], &[usize]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        let fail = |error: EvaluateError| data_error(&error.into());
        let texts = self.data.texts();
        let picked = spread(texts.len(), self.count);
        let mut done = 0;
        for (part, indices) in picked.chunks(TEXTS_LOOKED_AT).enumerate() {
            let looked_at: Vec<&str> = indices.iter().map(|&index| texts[index]).collect();
            let encoded = encoder.encode(&looked_at).map_err(fail)?;
            let mut order: Vec<usize> = (0..encoded.len()).collect();
            order.sort_by_key(|&index| encoded[index].ids.len());
            let length = |index: usize| encoded[index].ids.len();
            let alike = order.chunk_by(|&a, &b| length(a) == length(b));
            let at_once = |alike: &[usize]| (TOKENS_AT_ONCE / length(alike[0]).max(1)).max(1);
            let mut groups: Vec<&[usize]> =
                alike.flat_map(|alike| alike.chunks(at_once(alike))).collect();
            // Who stops early has seen all lengths.
            groups.sort_by_key(|group| group[0]);
            for group in groups {
                self.progress.advance("calibrating", done, picked.len());
                let examples: Vec<_> = group.iter().map(|&index| &encoded[index]).collect();
                let numbers: Vec<usize> =
                    group.iter().map(|index| part * TEXTS_LOOKED_AT + index).collect();
                visit(&encoder.feeds(&examples, inputs).map_err(fail)?, &numbers)?;
                done += group.len();
            }
        }
        self.progress.advance("calibrating", picked.len(), picked.len());
        Ok(())
    }
}

/// Whether the first axis of every input is free.
fn takes_any_number(inputs: &[Value]) -> bool {
    let is_free = |dim: &Dim| matches!(dim, Dim::Symbolic(_) | Dim::Unknown);
    inputs.iter().all(|input| input.shape().and_then(<[Dim]>::first).is_some_and(is_free))
}

impl Calibration for CalibrationSample<'_> {
    fn for_each_batch(
        &self,
        inputs: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        self.each(inputs, &mut |feeds| {
            let feeds: Vec<(&str, &Tensor)> =
                feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
            visit(&feeds)
        })
    }

    fn for_each_group(
        &self,
        inputs: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)], &[usize]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        let mut visit = |feeds: &[(String, Tensor)], numbers: &[usize]| {
            let feeds: Vec<(&str, &Tensor)> =
                feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
            visit(&feeds, numbers)
        };
        if let Some(encoder) = self.encoder.as_ref().filter(|_| takes_any_number(inputs)) {
            return self.each_group_of_texts(encoder, inputs, &mut visit);
        }
        let mut number = 0;
        self.each(inputs, &mut |feeds| {
            visit(feeds, &[number])?;
            number += 1;
            Ok(())
        })
    }

    fn classes(&self) -> Result<Option<Vec<Vec<u32>>>, PassError> {
        let (labels, at_once) = match self.data {
            Dataset::Images(images) => (images.labels.clone(), IMAGES_AT_ONCE),
            Dataset::Tensors(data) => match &data.labels {
                TensorLabels::Classes(classes) => (classes.clone(), 1),
                _ => return Ok(None),
            },
            Dataset::Labelled(data) => {
                let names = self.subject.labels();
                let known = (!names.is_empty()).then(|| data.classes_of(names)).transpose();
                let known = known.map_err(|error| data_error(&error.into()))?;
                (known.unwrap_or_else(|| data.labels.clone()), 1)
            }
            _ => return Ok(None),
        };
        let picked: Vec<u32> = spread(labels.len(), self.count)
            .into_iter()
            .map(|index| labels[index] as u32)
            .collect();
        Ok(Some(picked.chunks(at_once).map(<[u32]>::to_vec).collect()))
    }
}
