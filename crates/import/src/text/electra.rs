//! ELECTRA's discriminator (Clark et al., 2020, arXiv:2003.10555): BERT, its embeddings widened to
//! the size of the layers where they are of another.

use super::encoder::Encoder;
use super::head::Head;
use super::{TextArchitecture, TokenTypes};
use crate::ImportError;
use crate::transformer::LayerNames;

pub(super) const ELECTRA: TextArchitecture = TextArchitecture {
    model_type: "electra",
    prefix: "electra.",
    classes: &["ElectraModel", "ElectraForPreTraining", "ElectraForMaskedLM"],
    head: Head {
        class: "ElectraForSequenceClassification",
        dense: "classifier.dense",
        is_dense_in_encoder: false,
        activation: "gelu",
        output: "classifier.out_proj",
    },
    build,
    config_names: &[],
    pad_token_id: 0,
    is_counted_from_padding: false,
    ignorable: &["discriminator_predictions.", "generator_predictions.", "generator_lm_head."],
};

fn build(encoder: &mut Encoder) -> Result<String, ImportError> {
    let mut x = encoder.sliced_embeddings(TokenTypes::Input)?;
    let (hidden, size) = (encoder.config.hidden_size(), encoder.config.embedding_size());
    if hidden != size {
        x = encoder.builder.linear("embeddings_project", &x, [hidden, size])?;
    }
    let bias = encoder.mask_bias();
    encoder.layers(&LayerNames::BERT, x, &bias)
}
