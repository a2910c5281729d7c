//! BERT (Devlin et al., 2018, arXiv:1810.04805), and `MiniLM`, which has its graph.

use attar_graph::Dim;
use attar_tensor::DType;

use super::TextArchitecture;
use super::encoder::{Encoder, LayerNames};
use crate::ImportError;

pub(super) const BERT: TextArchitecture = TextArchitecture {
    model_type: "bert",
    classes: &["BertModel", "BertForMaskedLM", "BertForPreTraining"],
    build,
    pad_token_id: 0,
    position_offset: 0,
};

const LAYER: LayerNames = LayerNames {
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
};

fn build(encoder: &mut Encoder) -> Result<String, ImportError> {
    let x = embeddings(encoder)?;
    let bias = encoder.mask_bias();
    encoder.layers(&LAYER, x, &bias)
}

/// Words, positions and kinds added up.
fn embeddings(encoder: &mut Encoder) -> Result<String, ImportError> {
    let config = encoder.config;
    let words = encoder.embedding("embeddings.word_embeddings", "input_ids", config.vocab_size)?;
    // Positions count from 0 whatever the padding, so their rows are a slice of the table.
    let shape = [config.max_position_embeddings, config.hidden_size];
    let table = encoder.builder.weight("embeddings.position_embeddings.weight", &shape)?;
    let length = encoder.length();
    let name = "/embeddings/position_embeddings/Slice";
    let positions = encoder.rows_for_length(name, &table, &length);
    let mut sum = encoder.builder.node("Add", "/embeddings/positions/Add", &[&words, &positions]);
    if config.type_vocab_size > 0 {
        let dims = [Dim::symbol("batch"), Dim::symbol("sequence")];
        encoder.builder.input("token_type_ids", DType::I64, &dims);
        let path = "embeddings.token_type_embeddings";
        let types = encoder.embedding(path, "token_type_ids", config.type_vocab_size)?;
        // The last sum is of equal shapes: a runtime can join it with the normalization.
        sum = encoder.builder.node("Add", "/embeddings/types/Add", &[&sum, &types]);
    }
    encoder.layer_norm("embeddings.LayerNorm", &sum)
}
