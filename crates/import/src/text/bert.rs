//! BERT (Devlin et al., 2018, arXiv:1810.04805), and `MiniLM`, which has its graph.

use super::encoder::Encoder;
use super::head::Head;
use super::{TextArchitecture, TokenTypes};
use crate::ImportError;
use crate::transformer::LayerNames;

pub(crate) const BERT: TextArchitecture = TextArchitecture {
    model_type: "bert",
    prefix: "bert.",
    classes: &["BertModel", "BertForMaskedLM", "BertForPreTraining"],
    head: Head {
        class: "BertForSequenceClassification",
        dense: "pooler.dense",
        is_dense_in_encoder: true,
        activation: "tanh",
        output: "classifier",
    },
    build,
    config_names: &[],
    pad_token_id: 0,
    is_counted_from_padding: false,
    ignorable: &[],
};

fn build(encoder: &mut Encoder) -> Result<String, ImportError> {
    let x = encoder.sliced_embeddings(TokenTypes::Input)?;
    let bias = encoder.mask_bias();
    encoder.layers(&LayerNames::BERT, x, &bias)
}
