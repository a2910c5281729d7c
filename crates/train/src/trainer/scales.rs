//! Scales that learn for a part of the run.

use attar_ops::Flow;

use super::Trainer;
use crate::{ScaleOptions, Span};

/// Which of the trained initializers are scales, and how long they learn.
pub(super) struct Scales {
    indices: Vec<usize>,
    until: Span,
    /// Whether the next step leaves them as they are.
    are_settled: bool,
}

impl Scales {
    pub(super) fn new(options: &ScaleOptions, trained: &[String]) -> Self {
        let is_scale = |index: &usize| options.names.contains(&trained[*index]);
        let indices = (0..trained.len()).filter(is_scale).collect();
        Self { indices, until: options.until, are_settled: false }
    }
}

impl Trainer {
    /// Notes whether scales still learn in the next step of a run of `step_count` steps.
    pub(super) fn note_scales(&mut self, step_count: u64) {
        let step = self.progress.step;
        if let Some(scales) = &mut self.scales {
            scales.are_settled = step >= scales.until.steps(step_count);
        }
    }

    /// Takes away what flowed to scales that are settled.
    pub(super) fn hold_scales(&self, gradients: &mut [Option<Flow>]) {
        let settled = self.scales.as_ref().filter(|scales| scales.are_settled);
        for &index in settled.map_or(&[][..], |scales| &scales.indices) {
            gradients[index] = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use attar_ops::ATTAR_DOMAIN;
    use attar_tensor::Tensor;

    use super::super::tests::{Points, model};
    use super::*;
    use crate::{Choice, Schedule, Silent, TrainerOptions};

    const QUANTIZED: &str = "x: f32[n, 2]
        w = [0.4 -0.3; 0.2 0.5]
        s = [-2 -3]
        t = Exp(s)
        f = FakeQuantize(w, t, axis=1, level_min=-7, level_max=7)
        y = MatMul(x, f)";

    /// The weight and its scale after so many steps, of which the scale learns in `until`.
    fn trained(step_count: u64, until: Span) -> [Tensor; 2] {
        let mut model = model(QUANTIZED);
        let fake = model.graph.nodes.iter_mut().find(|node| node.op_type == "FakeQuantize");
        fake.unwrap().domain = ATTAR_DOMAIN.into();
        let schedule = Schedule::constant(0.02);
        let loss = Choice::new("cross-entropy");
        let mut options = TrainerOptions::new(loss, Choice::new("adamw"), schedule);
        options.length.epochs = 6;
        options.length.steps_max = Some(step_count);
        options.batches.size = NonZeroUsize::new(8).unwrap();
        options.weights.scales = Some(ScaleOptions { names: vec!["s".into()], until });
        let mut trainer = Trainer::new(&model, options).unwrap();
        assert_eq!(trainer.trained(), ["w", "s"]);
        trainer.run(&Points::new(0.0), None, &mut Silent, None).unwrap();
        let model = trainer.model();
        ["w", "s"].map(|name| model.graph.constant(name).unwrap().clone())
    }

    #[test]
    fn scales_learn_until_they_are_settled_and_weights_to_the_end() {
        let [w, s] = trained(10, Span::Steps(10));
        assert_ne!(s.slice::<f32>(), [-2.0, -3.0]);
        let [later_w, later_s] = trained(40, Span::Steps(10));
        assert_eq!(later_s.bytes(), s.bytes());
        assert_ne!(later_w.bytes(), w.bytes());
        let [_, fixed] = trained(40, Span::Fraction(0.0));
        assert_eq!(fixed.slice::<f32>(), [-2.0, -3.0]);
    }
}
