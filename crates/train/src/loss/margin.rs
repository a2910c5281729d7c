//! Margin losses. Of scores, the first half s⁺ and the second s⁻: L = mean max(0, m − (s⁺ − s⁻)),
//! or, with a teacher's differences t, L = mean (s⁺ − s⁻ − t)² (`MarginMSE`; Hofstätter et al., 2020).
//! Of embeddings, thirds anchor a, positive p and negative n (triplets; Schroff et al., 2015):
//! L = mean max(0, m − cos(a, p) + cos(a, n)).

use serde::Deserialize;

use super::pairs::{Cosine, Pairs};
use super::{Loss, LossRun, Measured, mismatch};
use crate::{SettingEntry, Targets, TrainError};

pub(super) const NAME: &str = "margin";

pub(super) const SETTINGS: &[SettingEntry] =
    &[SettingEntry { key: "margin", default: "1.0", help: "m: how far right is above wrong" }];

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Margin {
    margin: f64,
}

impl Default for Margin {
    fn default() -> Self {
        Self { margin: 1.0 }
    }
}

impl Loss for Margin {
    fn measure(&self, run: &LossRun) -> Result<Measured, TrainError> {
        let output = run.output(NAME)?;
        let is_score = output.shape().iter().skip(1).all(|&size| size == 1);
        match run.targets {
            Targets::None if is_score => self.of_scores(run, None),
            Targets::Values(t) if is_score => self.of_scores(run, Some(&t.values::<f32>())),
            Targets::None => self.of_triplets(run),
            other => {
                let expected = "no targets, or with scores a teacher's differences";
                Err(mismatch(NAME, other.kind(), expected))
            }
        }
    }
}

impl Margin {
    fn of_scores(&self, run: &LossRun, teacher: Option<&[f32]>) -> Result<Measured, TrainError> {
        let pairs = Pairs::of(run, NAME, 2)?;
        if let Some(teacher) = teacher.filter(|teacher| teacher.len() != pairs.count) {
            let found = format!("{} differences", teacher.len());
            return Err(mismatch(NAME, found, format!("one for each of {} pairs", pairs.count)));
        }
        let share = 1.0 / pairs.count as f64;
        let mut gradient = pairs.gradient();
        let mut sum = 0.0;
        for index in 0..pairs.count {
            let difference = f64::from(pairs.row(0, index)[0]) - f64::from(pairs.row(1, index)[0]);
            let slope = if let Some(teacher) = teacher {
                let off = difference - f64::from(teacher[index]);
                sum += off * off;
                2.0 * off
            } else {
                let short = self.margin - difference;
                sum += short.max(0.0);
                if short > 0.0 { -1.0 } else { 0.0 }
            };
            let factor = (slope * share * f64::from(run.scale)) as f32;
            gradient[pairs.place(0, index)] = factor;
            gradient[pairs.place(1, index)] = -factor;
        }
        Ok(pairs.measured(sum * share, &gradient))
    }

    fn of_triplets(&self, run: &LossRun) -> Result<Measured, TrainError> {
        let triplets = Pairs::of(run, NAME, 3)?;
        let width = triplets.width;
        let share = 1.0 / triplets.count as f64;
        let factor = share * f64::from(run.scale);
        let mut gradient = triplets.gradient();
        let mut sum = 0.0;
        for index in 0..triplets.count {
            let [a, p, n] = [0, 1, 2].map(|group| triplets.row(group, index));
            let (right, wrong) = (Cosine::of(a, p), Cosine::of(a, n));
            let short = self.margin - right.value + wrong.value;
            if short <= 0.0 {
                continue;
            }
            sum += short;
            let [to_a, to_p, to_n] = [0, 1, 2].map(|group| triplets.place(group, index));
            right.flow(a, p, -factor, &mut gradient[to_a..][..width]);
            wrong.flow(a, n, factor, &mut gradient[to_a..][..width]);
            right.flow_back(a, p, -factor, &mut gradient[to_p..][..width]);
            wrong.flow_back(a, n, factor, &mut gradient[to_n..][..width]);
        }
        Ok(triplets.measured(sum * share, &gradient))
    }
}
