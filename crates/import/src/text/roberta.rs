//! `RoBERTa` (Liu et al., 2019, arXiv:1907.11692), XLM-RoBERTa and `CamemBERT`: BERT whose positions
//! count from the padding token's id on.

use super::encoder::Encoder;
use super::head::Head;
use super::{TextArchitecture, TokenTypes};
use crate::ImportError;
use crate::transformer::LayerNames;

pub(super) const ROBERTA: TextArchitecture =
    roberta("roberta", &["RobertaModel", "RobertaForMaskedLM"], "RobertaForSequenceClassification");

pub(super) const XLM_ROBERTA: TextArchitecture = roberta(
    "xlm-roberta",
    &["XLMRobertaModel", "XLMRobertaForMaskedLM"],
    "XLMRobertaForSequenceClassification",
);

pub(super) const CAMEMBERT: TextArchitecture = roberta(
    "camembert",
    &["CamembertModel", "CamembertForMaskedLM"],
    "CamembertForSequenceClassification",
);

const fn roberta(
    model_type: &'static str,
    classes: &'static [&'static str],
    class: &'static str,
) -> TextArchitecture {
    let head = Head {
        class,
        dense: "classifier.dense",
        is_dense_in_encoder: false,
        activation: "tanh",
        output: "classifier.out_proj",
    };
    TextArchitecture {
        model_type,
        prefix: "roberta.",
        classes,
        head,
        build,
        config_names: &[],
        pad_token_id: 1,
        is_counted_from_padding: true,
        ignorable: &[],
    }
}

fn build(encoder: &mut Encoder) -> Result<String, ImportError> {
    // One kind of token is a constant; several are told apart by the tokenizer.
    let types = match encoder.config.type_vocab_size {
        0 => TokenTypes::None,
        1 => TokenTypes::Constant,
        _ => TokenTypes::Input,
    };
    let x = encoder.counted_embeddings(types)?;
    let bias = encoder.mask_bias();
    encoder.layers(&LayerNames::BERT, x, &bias)
}
