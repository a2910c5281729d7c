//! Whether a vector depends on the texts beside it, and how far vectors of two models agree.

use attar_runtime::Session;
use serde::Serialize;

use crate::embed::{row_output, run_rows};
use crate::{Embeddings, EvaluateError, TextEncoder};

/// Texts embedded alone, against the same padded in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Invariance {
    pub text_count: usize,
    /// Texts whose two vectors have the same bits.
    pub bit_equal_count: usize,
    pub cosine_min: f64,
    pub difference_max: f64,
}

/// Embeds each text alone, and in batches of `batch_size` as they come, short beside long.
///
/// # Errors
/// As for embedding.
pub fn batch_invariance(
    session: &mut dyn Session,
    encoder: &TextEncoder,
    output: Option<&str>,
    texts: &[&str],
    batch_size: usize,
) -> Result<Invariance, EvaluateError> {
    let output = row_output(session, output, "a vector per text")?;
    let inputs = session.inputs().to_vec();
    let encoded = encoder.encode(texts)?;
    let mut result = Invariance {
        text_count: texts.len(),
        bit_equal_count: 0,
        cosine_min: 1.0,
        difference_max: 0.0,
    };
    for batch in encoded.chunks(batch_size.max(1)) {
        let examples: Vec<_> = batch.iter().collect();
        let feeds = encoder.feeds(&examples, &inputs)?;
        let together = run_rows(session, output, &feeds, batch.len())?;
        let dimension = together.shape()[1].max(1);
        for (example, row) in batch.iter().zip(together.values::<f32>().chunks_exact(dimension)) {
            let feeds = encoder.feeds(&[example], &inputs)?;
            let alone = run_rows(session, output, &feeds, 1)?;
            let alone = alone.values::<f32>();
            let same = alone.iter().zip(row).all(|(a, b)| a.to_bits() == b.to_bits());
            result.bit_equal_count += usize::from(same);
            if !same {
                result.cosine_min = result.cosine_min.min(cosine(&alone, row));
                result.difference_max = result.difference_max.max(difference_max(&alone, row));
            }
        }
    }
    Ok(result)
}

/// How far the rows of two models' results agree.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    pub cosine_mean: f64,
    pub cosine_min: f64,
    pub difference_max: f64,
}

/// Compares rows of the same examples.
///
/// # Errors
/// Rows of different size.
pub fn agreement(a: &Embeddings, b: &Embeddings) -> Result<Agreement, EvaluateError> {
    if a.dimension != b.dimension || a.values.len() != b.values.len() {
        return Err(EvaluateError::OutputShape {
            output: "the second model's".into(),
            found: format!("{} rows of {}", b.count(), b.dimension),
            expected: format!("{} rows of {}", a.count(), a.dimension),
        });
    }
    let mut result = Agreement { cosine_mean: 0.0, cosine_min: 1.0, difference_max: 0.0 };
    for index in 0..a.count() {
        let (a, b) = (a.row(index), b.row(index));
        let cosine = cosine(a, b);
        result.cosine_mean += cosine;
        result.cosine_min = result.cosine_min.min(cosine);
        result.difference_max = result.difference_max.max(difference_max(a, b));
    }
    result.cosine_mean /= a.count().max(1) as f64;
    Ok(result)
}

/// How far numbers differ, over examples in their order.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Deviation {
    pub mean: f64,
    pub max: f64,
    /// The mean of each quarter of the examples: what grows there is drift.
    pub quarters: [f64; 4],
}

/// Compares rows of the same examples.
///
/// # Errors
/// Rows of different size.
pub fn deviation(a: &Embeddings, b: &Embeddings) -> Result<Deviation, EvaluateError> {
    agreement(a, b)?;
    let count = a.values.len();
    let differences: Vec<f64> = (a.values.iter().zip(&b.values))
        .map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs())
        .collect();
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
    Ok(Deviation {
        mean: mean(&differences),
        max: difference_max(&a.values, &b.values),
        quarters: [0, 1, 2, 3].map(|q| mean(&differences[q * count / 4..(q + 1) * count / 4])),
    })
}

/// The cosine; 1 for two zero vectors, 0 where only one is zero or something is not finite.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let (mut dot, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a), f64::from(b));
        dot += a * b;
        aa += a * a;
        bb += b * b;
    }
    if aa == 0.0 && bb == 0.0 {
        return 1.0;
    }
    let cosine = dot / (aa * bb).sqrt();
    if cosine.is_finite() { cosine } else { 0.0 }
}

fn difference_max(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs()).fold(0.0, f64::max)
}
