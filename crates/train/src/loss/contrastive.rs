//! Contrastive with in-batch negatives (`InfoNCE`; van den Oord et al., 2018): with queries q and
//! documents d of length 1, s[i, j] = q[i]·d[j]/τ, L is the mean over i of −log softmax(s[i, ·])[i];
//! the symmetric form is the mean of this and of the same over columns.

use attar_ops::logits::{products, row_norms, softmax_with_logs, weighted_rows};
use serde::Deserialize;

use super::pairs::Pairs;
use super::{Loss, LossRun, Measured, mismatch};
use crate::{SettingEntry, Targets, TrainError};

pub(super) const NAME: &str = "contrastive";

pub(super) const SETTINGS: &[SettingEntry] = &[
    SettingEntry { key: "temperature", default: "0.05", help: "τ: what cosines are divided by" },
    SettingEntry {
        key: "symmetric",
        default: "false",
        help: "let documents find their queries too",
    },
    SettingEntry {
        key: "normalize",
        default: "true",
        help: "compare by cosine; else by inner product",
    },
];

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Contrastive {
    temperature: f64,
    symmetric: bool,
    normalize: bool,
}

impl Default for Contrastive {
    fn default() -> Self {
        Self { temperature: 0.05, symmetric: false, normalize: true }
    }
}

impl Loss for Contrastive {
    fn measure(&self, run: &LossRun) -> Result<Measured, TrainError> {
        if !matches!(run.targets, Targets::None) {
            return Err(mismatch(NAME, run.targets.kind(), "no targets"));
        }
        let pairs = Pairs::of(run, NAME, 2)?;
        let (n, width) = (pairs.count, pairs.width);
        let [(q, q_norms), (d, d_norms)] = [0, 1].map(|group| self.unit(pairs.group(group), width));
        let mut scores = vec![0.0; n * n];
        products(&mut scores, &q, &d, width);
        scores.iter_mut().for_each(|s| *s /= self.temperature as f32);
        let sides = if self.symmetric { 2.0 } else { 1.0 };
        let share = f64::from(run.scale) / (n as f64 * sides * self.temperature);
        let mut flow = vec![0.0; n * n];
        let mut loss = surprise(&scores, n, |i, j| i * n + j, share, &mut flow);
        if self.symmetric {
            let columns: Vec<f32> = (0..n * n).map(|at| scores[at % n * n + at / n]).collect();
            loss += surprise(&columns, n, |i, j| j * n + i, share, &mut flow);
        }
        let mut gradient = pairs.gradient();
        let (to_q, to_d) = gradient.split_at_mut(n * width);
        weighted_rows(to_q, &flow, &d, [n, n], false);
        weighted_rows(to_d, &flow, &q, [n, n], true);
        if self.normalize {
            through_norm(to_q, &q, &q_norms, width);
            through_norm(to_d, &d, &d_norms, width);
        }
        Ok(pairs.measured(loss / (n as f64 * sides), &gradient))
    }
}

impl Contrastive {
    /// Rows of length 1, and the lengths they had.
    fn unit(&self, rows: &[f32], width: usize) -> (Vec<f32>, Vec<f64>) {
        let mut unit = rows.to_vec();
        let norms = row_norms(rows, width);
        if self.normalize {
            for (row, &norm) in unit.chunks_exact_mut(width).zip(&norms) {
                let factor = if norm > 0.0 { (1.0 / norm) as f32 } else { 0.0 };
                row.iter_mut().for_each(|x| *x *= factor);
            }
        }
        (unit, norms)
    }
}

/// Σ over i of −log softmax(s[i, ·])[j] at j = i; adds share · (softmax − identity) to `flow` at `place`.
fn surprise(
    scores: &[f32],
    n: usize,
    place: impl Fn(usize, usize) -> usize,
    share: f64,
    flow: &mut [f32],
) -> f64 {
    let (mut softmax, mut logs) = (scores.to_vec(), vec![0.0; n]);
    softmax_with_logs(&mut softmax, n, &mut logs);
    for i in 0..n {
        for j in 0..n {
            let own = if i == j { 1.0 } else { 0.0 };
            flow[place(i, j)] += (f64::from(softmax[i * n + j] - own) * share) as f32;
        }
    }
    (0..n).map(|i| logs[i] - f64::from(scores[i * n + i])).sum()
}

/// From the gradient of u = x/|x| to that of x: (du − (du·u)·u)/|x|.
fn through_norm(gradient: &mut [f32], unit: &[f32], norms: &[f64], width: usize) {
    let rows = gradient.chunks_exact_mut(width).zip(unit.chunks_exact(width)).zip(norms);
    for ((du, u), &norm) in rows {
        let along: f64 = du.iter().zip(u).map(|(&du, &u)| f64::from(du) * f64::from(u)).sum();
        let factor = if norm > 0.0 { 1.0 / norm } else { 0.0 };
        for (du, &u) in du.iter_mut().zip(u) {
            *du = ((f64::from(*du) - along * f64::from(u)) * factor) as f32;
        }
    }
}
