//! Running a model over a data set: texts to vectors, images to scores.

use attar_graph::{Dim, Value};
use attar_runtime::Session;
use attar_tensor::{DType, Tensor};

use crate::data::{ImageSource, Tensors};
use crate::{Encoded, EvaluateError, ImageInput, Progress, States, TextEncoder, image_feeds};

/// Vectors, one row each.
#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    pub dimension: usize,
    pub values: Vec<f32>,
}

/// Scores of images, one row each.
pub type Scores = Embeddings;

impl Embeddings {
    pub fn count(&self) -> usize {
        self.values.len() / self.dimension.max(1)
    }

    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.dimension..(index + 1) * self.dimension]
    }
}

/// The index of the output that is one row per example: the named one, or the only one of two axes.
pub(crate) fn row_output(
    session: &dyn Session,
    name: Option<&str>,
    wanted: &'static str,
) -> Result<usize, EvaluateError> {
    let outputs: &[Value] = session.outputs();
    let found = if let Some(name) = name {
        outputs.iter().position(|output| output.name == name)
    } else {
        let is_row = |output: &&Value| {
            output.dtype() == Some(DType::F32) && output.shape().is_some_and(|s| s.len() == 2)
        };
        match outputs.iter().filter(is_row).count() {
            1 => outputs.iter().position(|output| is_row(&output)),
            _ => outputs.iter().position(|output| output.name == "sentence_embedding"),
        }
    };
    found.ok_or_else(|| EvaluateError::Output {
        wanted,
        outputs: outputs.iter().map(|o| o.name.as_str()).collect::<Vec<_>>().join(", "),
    })
}

/// The name of the output that is one row per example: the named one, or the only one of two axes.
///
/// # Errors
/// None, or several.
pub fn rows_output(session: &dyn Session, name: Option<&str>) -> Result<String, EvaluateError> {
    let output = row_output(session, name, "a row per example")?;
    Ok(session.outputs()[output].name.clone())
}

/// Runs one batch and takes the rows out of the chosen output.
pub(crate) fn run_rows(
    session: &mut dyn Session,
    output: usize,
    feeds: &[(String, Tensor)],
    count: usize,
) -> Result<Tensor, EvaluateError> {
    let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(name, t)| (name.as_str(), t)).collect();
    let rows = session.run(&feeds)?.swap_remove(output);
    rows_of(session, output, &rows, count)
}

/// An output as a row for each example; a number for each is a row of one.
fn rows_of(
    session: &dyn Session,
    output: usize,
    rows: &Tensor,
    count: usize,
) -> Result<Tensor, EvaluateError> {
    let rows = if rows.rank() == 1 { rows.reshaped(&[rows.shape()[0], 1]) } else { rows.clone() };
    let name = session.outputs()[output].name.clone();
    if rows.dtype() == DType::F32 && rows.rank() == 2 && rows.shape()[0] == count {
        let width = rows.shape()[1].max(1);
        return match rows.values::<f32>().iter().position(|value| !value.is_finite()) {
            Some(at) => Err(EvaluateError::NotFinite { output: name, example: at / width }),
            None => Ok(rows),
        };
    }
    Err(EvaluateError::OutputShape {
        output: name,
        found: format!("{}{:?}", rows.dtype(), rows.shape()),
        expected: format!("f32[{count}, …]"),
    })
}

/// One vector per text, in order. Texts of like length run together, so that little is padded.
///
/// # Errors
/// A model that does not take texts or has no vector, or a failing run.
pub fn embed(
    session: &mut dyn Session,
    encoder: &TextEncoder,
    output: Option<&str>,
    texts: &[&str],
    batch_size: usize,
    progress: &dyn Progress,
) -> Result<Embeddings, EvaluateError> {
    let output = row_output(session, output, "a vector per text")?;
    let encoded = encoder.encode(texts)?;
    run_all(session, encoder, output, &encoded, batch_size, &|done| {
        progress.advance("embedding texts", done, texts.len());
    })
}

/// Whether the model gives one number for a row of tokens, as cross-encoders do of two texts.
///
/// # Errors
/// A model without an output of one row per example.
pub fn gives_one_score(session: &dyn Session, output: Option<&str>) -> Result<bool, EvaluateError> {
    let output = &session.outputs()[row_output(session, output, "a row per text")?];
    Ok(output.shape().is_some_and(|shape| shape.get(1) == Some(&Dim::Known(1))))
}

/// A cross-encoder's score of every pair of texts, in order.
///
/// # Errors
/// As [`embed`].
pub fn score_pairs(
    session: &mut dyn Session,
    encoder: &TextEncoder,
    output: Option<&str>,
    pairs: &[(&str, &str)],
    batch_size: usize,
    progress: &dyn Progress,
) -> Result<Scores, EvaluateError> {
    let output = row_output(session, output, "a score per pair")?;
    let encoded = encoder.encode_pairs(pairs)?;
    run_all(session, encoder, output, &encoded, batch_size, &|done| {
        progress.advance("scoring pairs", done, pairs.len());
    })
}

/// The rows of all of `encoded`, in order. Texts of like length run together, so that little is
/// padded.
///
/// # Errors
/// A model that does not take texts or has no row for each, or a failing run.
pub fn run_encoded(
    session: &mut dyn Session,
    encoder: &TextEncoder,
    output: Option<&str>,
    encoded: &[Encoded],
    batch_size: usize,
    progress: &dyn Fn(usize),
) -> Result<Embeddings, EvaluateError> {
    let output = row_output(session, output, "a row per text")?;
    run_all(session, encoder, output, encoded, batch_size, progress)
}

fn run_all(
    session: &mut dyn Session,
    encoder: &TextEncoder,
    output: usize,
    encoded: &[Encoded],
    batch_size: usize,
    progress: &dyn Fn(usize),
) -> Result<Embeddings, EvaluateError> {
    let mut order: Vec<usize> = (0..encoded.len()).collect();
    order.sort_by_key(|&index| encoded[index].ids.len());
    let inputs = session.inputs().to_vec();
    let mut vectors = Embeddings { dimension: 0, values: Vec::new() };
    for (number, batch) in order.chunks(batch_size.max(1)).enumerate() {
        progress(number * batch_size);
        let examples: Vec<_> = batch.iter().map(|&index| &encoded[index]).collect();
        let rows = run_rows(session, output, &encoder.feeds(&examples, &inputs)?, batch.len())?;
        if vectors.dimension == 0 {
            vectors.dimension = rows.shape()[1];
            vectors.values = vec![0.0; encoded.len() * vectors.dimension];
        }
        let dimension = vectors.dimension;
        for (&index, row) in batch.iter().zip(rows.values::<f32>().chunks_exact(dimension)) {
            vectors.values[index * dimension..(index + 1) * dimension].copy_from_slice(row);
        }
    }
    progress(encoded.len());
    Ok(vectors)
}

/// The model's scores for every image.
///
/// # Errors
/// A model that does not take images or has no scores, or a failing run.
pub fn score_images(
    session: &mut dyn Session,
    input: &ImageInput,
    output: Option<&str>,
    images: &[&ImageSource],
    batch_size: usize,
    progress: &dyn Progress,
) -> Result<Scores, EvaluateError> {
    let output = row_output(session, output, "a score per class")?;
    let inputs = session.inputs().to_vec();
    let mut scores = Scores { dimension: 0, values: Vec::new() };
    for (number, batch) in images.chunks(batch_size.max(1)).enumerate() {
        progress.advance("scoring images", number * batch_size, images.len());
        let rows = run_rows(session, output, &image_feeds(batch, input, &inputs)?, batch.len())?;
        scores.dimension = rows.shape()[1];
        scores.values.extend_from_slice(&rows.values::<f32>());
    }
    progress.advance("scoring images", images.len(), images.len());
    Ok(scores)
}

/// The model's rows for every example of arrays, one after the other where it has states: from their
/// zeros for each sequence, then from what the call before gave.
///
/// # Errors
/// As [`run_tensors`].
pub fn run_sequences(
    session: &mut dyn Session,
    output: Option<&str>,
    data: &Tensors,
    mut states: States,
    progress: &dyn Progress,
) -> Result<Scores, EvaluateError> {
    let output = row_output(session, output, "a row per example")?;
    let mut inputs = session.inputs().to_vec();
    inputs.retain(|input| !states.holds(&input.name));
    let mut scores = Scores { dimension: 0, values: Vec::new() };
    for index in 0..data.count {
        progress.advance("running sequences", index, data.count);
        if !data.continues(index) {
            states.reset();
        }
        let mut feeds = data.feeds(&[index], &inputs)?;
        feeds.extend(states.feeds());
        let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(name, t)| (&**name, t)).collect();
        let outputs = session.run(&feeds)?;
        states.advance(&outputs);
        let row = rows_of(session, output, &outputs[output], 1)?;
        scores.dimension = row.shape()[1];
        scores.values.extend_from_slice(&row.values::<f32>());
    }
    progress.advance("running sequences", data.count, data.count);
    Ok(scores)
}

/// The model's rows for every example of arrays.
///
/// # Errors
/// A model whose inputs the arrays do not fill, or that has no row per example, or a failing run.
pub fn run_tensors(
    session: &mut dyn Session,
    output: Option<&str>,
    data: &Tensors,
    batch_size: usize,
    progress: &dyn Progress,
) -> Result<Scores, EvaluateError> {
    let output = row_output(session, output, "a row per example")?;
    let inputs = session.inputs().to_vec();
    let mut scores = Scores { dimension: 0, values: Vec::new() };
    let indices: Vec<usize> = (0..data.count).collect();
    for batch in indices.chunks(batch_size.max(1)) {
        progress.advance("running examples", batch[0], data.count);
        let rows = run_rows(session, output, &data.feeds(batch, &inputs)?, batch.len())?;
        scores.dimension = rows.shape()[1];
        scores.values.extend_from_slice(&rows.values::<f32>());
    }
    progress.advance("running examples", data.count, data.count);
    Ok(scores)
}
