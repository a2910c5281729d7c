//! `DistilBERT` (Sanh et al., 2019, arXiv:1910.01108): BERT without kinds of tokens, under other
//! names.

use super::encoder::Encoder;
use super::head::Head;
use super::{TextArchitecture, TokenTypes};
use crate::ImportError;
use crate::transformer::LayerNames;

pub(super) const DISTILBERT: TextArchitecture = TextArchitecture {
    model_type: "distilbert",
    prefix: "distilbert.",
    classes: &["DistilBertModel", "DistilBertForMaskedLM"],
    head: Head {
        class: "DistilBertForSequenceClassification",
        dense: "pre_classifier",
        is_dense_in_encoder: false,
        activation: "relu",
        output: "classifier",
    },
    build,
    config_names: &[
        ("dim", "hidden_size"),
        ("n_layers", "num_hidden_layers"),
        ("n_heads", "num_attention_heads"),
        ("hidden_dim", "intermediate_size"),
        ("activation", "hidden_act"),
    ],
    pad_token_id: 0,
    is_counted_from_padding: false,
    ignorable: &["vocab_transform.", "vocab_layer_norm.", "vocab_projector."],
};

const LAYER: LayerNames = LayerNames {
    layers: "transformer.layer",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    wide: "ffn.lin1",
    narrow: "ffn.lin2",
    output_norm: "output_layer_norm",
    is_norm_first: false,
};

fn build(encoder: &mut Encoder) -> Result<String, ImportError> {
    let x = encoder.sliced_embeddings(TokenTypes::None)?;
    let bias = encoder.mask_bias();
    encoder.layers(&LAYER, x, &bias)
}
