//! How the learning rate moves over a run.

use serde::{Deserialize, Serialize};

/// The learning rate by step: it rises evenly over the warm-up, and then goes as `decay` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The highest rate.
    pub learning_rate: f64,
    #[serde(default)]
    pub decay: Decay,
    #[serde(default)]
    pub warm_up: Span,
}

/// What the learning rate does after the warm-up; `end` is what it comes to, as a share of the
/// highest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Decay {
    #[default]
    Constant,
    Linear {
        #[serde(default)]
        end: f64,
    },
    Cosine {
        #[serde(default)]
        end: f64,
    },
    /// Multiplied by `factor` after every `every`.
    Step { every: Span, factor: f64 },
}

/// A part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Span {
    Steps(u64),
    /// Of the whole run's steps.
    Fraction(f64),
}

impl Default for Span {
    fn default() -> Self {
        Self::Steps(0)
    }
}

impl Span {
    pub fn steps(self, step_count: u64) -> u64 {
        match self {
            Self::Steps(steps) => steps,
            Self::Fraction(fraction) => (fraction.clamp(0.0, 1.0) * step_count as f64) as u64,
        }
    }
}

impl Schedule {
    pub fn constant(learning_rate: f64) -> Self {
        Self { learning_rate, decay: Decay::Constant, warm_up: Span::default() }
    }

    /// The rate of step `step`, from 0, of `step_count`. With w steps of warm-up, step s < w has
    /// (s + 1)/w of the rate; after it, p = (s − w)/(`step_count` − w) goes from 0 towards 1, and a
    /// linear rate is 1 − p, a cosine one (1 + cos πp)/2, between the highest and the end.
    pub fn rate(&self, step: u64, step_count: u64) -> f64 {
        let warm_up = self.warm_up.steps(step_count);
        if step < warm_up {
            return self.learning_rate * (step + 1) as f64 / warm_up as f64;
        }
        let (done, rest) = (step - warm_up, step_count.saturating_sub(warm_up).max(1));
        let progress = (done as f64 / rest as f64).min(1.0);
        let between = |share: f64, end: f64| end + (1.0 - end) * share;
        self.learning_rate
            * match self.decay {
                Decay::Constant => 1.0,
                Decay::Linear { end } => between(1.0 - progress, end),
                Decay::Cosine { end } => {
                    between(0.5 * (1.0 + (std::f64::consts::PI * progress).cos()), end)
                }
                Decay::Step { every, factor } => {
                    let times = done / every.steps(step_count).max(1);
                    factor.powi(times.min(10_000) as i32)
                }
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(decay: Decay, warm_up: Span) -> Vec<f64> {
        let schedule = Schedule { learning_rate: 2.0, decay, warm_up };
        let rounded = |rate: f64| (rate * 1000.0).round() / 1000.0;
        (0..8).map(|step| rounded(schedule.rate(step, 8))).collect()
    }

    #[test]
    fn a_rate_rises_over_the_warm_up_and_then_decays() {
        let linear = Decay::Linear { end: 0.0 };
        let expected = [0.5, 1.0, 1.5, 2.0, 2.0, 1.5, 1.0, 0.5];
        assert_eq!(rates(linear, Span::Steps(4)), expected);
        assert_eq!(rates(linear, Span::Fraction(0.5)), expected);
        let cosine = Decay::Cosine { end: 0.5 };
        let expected = [2.0, 1.962, 1.854, 1.691, 1.5, 1.309, 1.146, 1.038];
        assert_eq!(rates(cosine, Span::default()), expected);
        let step = Decay::Step { every: Span::Fraction(0.25), factor: 0.1 };
        assert_eq!(rates(step, Span::default()), [2.0, 2.0, 0.2, 0.2, 0.02, 0.02, 0.002, 0.002]);
        assert_eq!(rates(Decay::Constant, Span::Steps(2))[..3], [1.0, 2.0, 2.0]);
    }
}
