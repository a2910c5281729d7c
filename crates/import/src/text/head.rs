//! Heads that turn the first token's vector into scores: of cross-encoders and classifiers.

use super::config::Config;
use crate::ImportError;
use crate::build::{Builder, scope};

/// logits = W₂·act(W₁·h₀ + b₁) + b₂, h₀ being the vector of the first token.
pub(crate) struct Head {
    /// The class in config.json that has this head.
    pub(crate) class: &'static str,
    pub(crate) dense: &'static str,
    /// Whether the first layer stands among the encoder's weights: BERT's pooler does.
    pub(crate) is_dense_in_encoder: bool,
    pub(crate) activation: &'static str,
    pub(crate) output: &'static str,
}

impl Head {
    /// Adds the head over `tokens` [batch, sequence, hidden]; gives the scores and their count.
    /// Weights of the encoder cannot be asked for after it.
    pub(crate) fn build(
        &self,
        b: &mut Builder,
        config: &Config,
        tokens: &str,
    ) -> Result<(String, usize), ImportError> {
        let hidden = config.hidden_size();
        let first = b.token("/classifier/Gather", tokens, 0);
        if !self.is_dense_in_encoder {
            b.weights.leave_prefix();
        }
        let x = b.linear(self.dense, &first, [hidden; 2])?;
        let x = config.layers.activation(
            b,
            ["the head's activation", self.activation],
            &format!("{}/activation", scope(self.dense)),
            &x,
        )?;
        b.weights.leave_prefix();
        let [count, _] = b.weights.shape::<2>(&format!("{}.weight", self.output))?;
        Ok((b.linear(self.output, &x, [count, hidden])?, count))
    }

    /// What the names of its weights begin with.
    pub(crate) fn names(&self) -> [&'static str; 2] {
        [self.dense, self.output]
    }
}
