//! Cosine: L = mean(1 − cos(y, t)) to a teacher's embeddings t; or, of pairs with scores s,
//! L = mean(cos(a, b) − s)².

use serde::Deserialize;

use super::pairs::{Cosine, Pairs};
use super::{Loss, LossRun, Measured, mismatch};
use crate::{Targets, TrainError};

pub(super) const NAME: &str = "cosine";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CosineDistance {}

impl Loss for CosineDistance {
    fn measure(&self, run: &LossRun) -> Result<Measured, TrainError> {
        match run.targets {
            Targets::Outputs(outputs) | Targets::Taught { outputs, .. } if !outputs.is_empty() => {
                to_teacher(run, &outputs[0].values::<f32>())
            }
            Targets::Values(scores) => of_pairs(run, &scores.values::<f32>()),
            other => Err(mismatch(NAME, other.kind(), "a teacher's outputs, or scores of pairs")),
        }
    }
}

fn to_teacher(run: &LossRun, teacher: &[f32]) -> Result<Measured, TrainError> {
    let output = run.output(NAME)?;
    let width = output.shape().last().copied().unwrap_or(0);
    if teacher.len() != output.element_count() || width == 0 {
        let found = format!("{} numbers of the teacher", teacher.len());
        return Err(mismatch(NAME, found, format!("{}", output.element_count())));
    }
    let share = 1.0 / (teacher.len() / width) as f64;
    let mut gradient = run.tensor(output.shape());
    gradient.slice_mut::<f32>().fill(0.0);
    let mut sum = 0.0;
    let rows = output.slice::<f32>().chunks_exact(width).zip(teacher.chunks_exact(width));
    for ((y, t), dy) in rows.zip(gradient.slice_mut::<f32>().chunks_exact_mut(width)) {
        let cosine = Cosine::of(y, t);
        sum += 1.0 - cosine.value;
        cosine.flow(y, t, -share * f64::from(run.scale), dy);
    }
    Ok(Measured { loss: sum * share, gradients: vec![Some(gradient)] })
}

fn of_pairs(run: &LossRun, scores: &[f32]) -> Result<Measured, TrainError> {
    let pairs = Pairs::of(run, NAME, 2)?;
    if scores.len() != pairs.count {
        let found = format!("{} scores", scores.len());
        return Err(mismatch(NAME, found, format!("one for each of {} pairs", pairs.count)));
    }
    let share = 1.0 / pairs.count as f64;
    let mut gradient = pairs.gradient();
    let mut sum = 0.0;
    for (index, &score) in scores.iter().enumerate() {
        let (a, b) = (pairs.row(0, index), pairs.row(1, index));
        let cosine = Cosine::of(a, b);
        let off = cosine.value - f64::from(score);
        sum += off * off;
        let factor = 2.0 * off * share * f64::from(run.scale);
        cosine.flow(a, b, factor, &mut gradient[pairs.place(0, index)..][..pairs.width]);
        cosine.flow_back(a, b, factor, &mut gradient[pairs.place(1, index)..][..pairs.width]);
    }
    Ok(pairs.measured(sum * share, &gradient))
}
