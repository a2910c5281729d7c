//! What text encoders of BERT's family share: inputs, mask, embeddings.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::TokenTypes;
use super::config::Config;
use crate::ImportError;
use crate::build::{Builder, scope};
use crate::transformer::{LayerNames, Layers};

/// What a masked token's scores are lowered by: e^−10⁹ is exactly 0 in f32 whatever the scores,
/// and a text with no token at all still has finite vectors.
const MASKED: f32 = -1e9;

/// ONNX's number of f32, for `Cast`.
const ONNX_FLOAT: i64 = 1;

const WORDS: &str = "embeddings.word_embeddings";
const POSITIONS: &str = "embeddings.position_embeddings";
const TYPES: &str = "embeddings.token_type_embeddings";

/// An encoder in the making.
pub(crate) struct Encoder<'a> {
    pub(crate) builder: &'a mut Builder,
    pub(crate) config: &'a Config,
    /// The mask as floats, [batch, sequence].
    pub(crate) mask: String,
}

impl<'a> Encoder<'a> {
    /// Declares the inputs that every encoder has.
    pub(crate) fn new(builder: &'a mut Builder, config: &'a Config) -> Self {
        let dims = [Dim::symbol("batch"), Dim::symbol("sequence")];
        builder.input("input_ids", DType::I64, &dims);
        builder.input("attention_mask", DType::I64, &dims);
        let cast = Node::new("Cast", "/mask/Cast", &["attention_mask"], &[]);
        let mask = builder.push(cast.with_attribute("to", ONNX_FLOAT));
        Self { builder, config, mask }
    }

    /// What the mask adds to attention scores, [batch, 1, 1, sequence].
    pub(crate) fn mask_bias(&mut self) -> String {
        let b = &mut *self.builder;
        let (one, masked) = (b.scalar("mask.one", 1.0), b.scalar("mask.low", MASKED));
        let is_padding = b.node("Sub", "/mask/Sub", &[&one, &self.mask]);
        let bias = b.node("Mul", "/mask/Mul", &[&is_padding, &masked]);
        let axes = b.integers("mask.axes", &[1, 2]);
        b.node("Unsqueeze", "/mask/Unsqueeze", &[&bias, &axes])
    }

    /// All layers; `score_bias` is added to the attention scores of each.
    pub(crate) fn layers(
        &mut self,
        names: &LayerNames,
        x: String,
        score_bias: &str,
    ) -> Result<String, ImportError> {
        let config = &self.config.layers;
        Layers { config, names, score_bias: Some(score_bias) }.build(self.builder, x)
    }

    /// Words, positions and kinds added up and normalized. Positions count from 0 whatever the
    /// padding, so their rows are a slice of the table.
    pub(crate) fn sliced_embeddings(&mut self, types: TokenTypes) -> Result<String, ImportError> {
        let config = self.config;
        let words = self.embedding(WORDS, "input_ids", config.vocab_size)?;
        let shape = [config.max_position_embeddings, config.embedding_size()];
        let table = self.builder.weight(&format!("{POSITIONS}.weight"), &shape)?;
        let length = self.length();
        let name = format!("{}/Slice", scope(POSITIONS));
        let positions = self.rows_for_length(&name, &table, &length);
        self.summed(types, &words, &positions)
    }

    /// Words, positions and kinds added up and normalized. The position of a token is how many
    /// other than padding stand up to it, plus the id of padding; that of padding is its id.
    pub(crate) fn counted_embeddings(&mut self, types: TokenTypes) -> Result<String, ImportError> {
        let config = self.config;
        let words = self.embedding(WORDS, "input_ids", config.vocab_size)?;
        let ids = self.counted_positions();
        let shape = [config.max_position_embeddings, config.embedding_size()];
        let (name, table) = self.builder.weights.take(&format!("{POSITIONS}.weight"), &shape)?;
        let table = if types == TokenTypes::Constant {
            let shape = [config.type_vocab_size, config.embedding_size()];
            let (_, kinds) = self.builder.weights.take(&format!("{TYPES}.weight"), &shape)?;
            with_row_added(table, &kinds)
        } else {
            table
        };
        let table = self.builder.constant(&name, table);
        let name = format!("{}/Gather", scope(POSITIONS));
        let positions = self.builder.node("Gather", &name, &[&table, &ids]);
        self.summed(types, &words, &positions)
    }

    fn summed(
        &mut self,
        types: TokenTypes,
        words: &str,
        positions: &str,
    ) -> Result<String, ImportError> {
        let config = self.config;
        let mut sum = self.builder.node("Add", "/embeddings/positions/Add", &[words, positions]);
        if types == TokenTypes::Input && config.type_vocab_size > 0 {
            let dims = [Dim::symbol("batch"), Dim::symbol("sequence")];
            self.builder.input("token_type_ids", DType::I64, &dims);
            let kinds = self.embedding(TYPES, "token_type_ids", config.type_vocab_size)?;
            // The last sum is of equal shapes: a runtime can join it with the normalization.
            sum = self.builder.node("Add", "/embeddings/types/Add", &[&sum, &kinds]);
        }
        let (size, epsilon) = (config.embedding_size(), config.layers.layer_norm_eps);
        let x = self.builder.layer_norm("embeddings.LayerNorm", &sum, size, epsilon)?;
        Ok(self.builder.dropout("/embeddings/Dropout", &x, config.layers.dropout))
    }

    /// Rows of the table at `path`, looked up by `ids`.
    fn embedding(
        &mut self,
        path: &str,
        ids: &str,
        row_count: usize,
    ) -> Result<String, ImportError> {
        let shape = [row_count, self.config.embedding_size()];
        let table = self.builder.weight(&format!("{path}.weight"), &shape)?;
        Ok(self.builder.node("Gather", &format!("{}/Gather", scope(path)), &[&table, ids]))
    }

    fn counted_positions(&mut self) -> String {
        let padding = self.config.pad_token_id.expect("the architecture has one");
        let b = &mut *self.builder;
        let padding = b.constant("positions.padding", Tensor::scalar(padding));
        let (zero, one) = (
            b.constant("positions.zero", Tensor::scalar(0_i64)),
            b.constant("positions.one", Tensor::scalar(1_i64)),
        );
        let axis = b.constant("positions.axis", Tensor::scalar(1_i64));
        let named = |op_type: &str| format!("/embeddings/positions/{op_type}");
        let is_padding = b.node("Equal", &named("Equal"), &["input_ids", &padding]);
        let steps = b.node("Where", &named("Where"), &[&is_padding, &zero, &one]);
        let counts = b.node("CumSum", &named("CumSum"), &[&steps, &axis]);
        let shifted = b.node("Add", &named("count/Add"), &[&counts, &padding]);
        b.node("Where", &named("padding/Where"), &[&is_padding, &padding, &shifted])
    }

    /// The length of the batch's texts as a vector of one element.
    pub(crate) fn length(&mut self) -> String {
        let shape = Node::new("Shape", "/embeddings/Shape", &["input_ids"], &[]);
        self.builder.push(shape.with_attribute("start", 1_i64).with_attribute("end", 2_i64))
    }

    /// The first rows of `table`, as many as texts are long.
    pub(crate) fn rows_for_length(&mut self, name: &str, table: &str, length: &str) -> String {
        let start = self.builder.integers("axis.0", &[0]);
        self.builder.node("Slice", name, &[table, &start, length, &start])
    }
}

/// Every row of `table` plus the only row of `row`.
fn with_row_added(mut table: Tensor, row: &Tensor) -> Tensor {
    let row = row.values::<f32>();
    for sums in table.slice_mut::<f32>().chunks_exact_mut(row.len().max(1)) {
        sums.iter_mut().zip(row.iter()).for_each(|(sum, x)| *sum += x);
    }
    table
}
