//! Text encoders in Hugging Face and sentence-transformers folders.

mod bert;
mod config;
mod encoder;
mod folder;
mod mpnet;
mod pooling;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use attar_graph::{Dim, Model};

use self::config::Config;
use self::encoder::Encoder;
use self::folder::Folder;
use crate::ImportError;
use crate::build::{Builder, OPSETS};
use crate::weights::Weights;

/// How to import a text encoder.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// Give the pooled vector that the folder asks for; otherwise the vector of each token.
    pub pooling: bool,
    /// One of [`OPSETS`].
    pub opset: i64,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self { pooling: true, opset: *OPSETS.start() }
    }
}

/// A text encoder, and what feeding it needs.
#[derive(Debug)]
pub struct ImportedText {
    /// Takes `input_ids`, `attention_mask` and, where the architecture has them, `token_type_ids`;
    /// gives `sentence_embedding` [batch, hidden] or `last_hidden_state` [batch, sequence, hidden].
    pub model: Model,
    /// The tokenizer.json. Its own truncation and padding are left-overs of training.
    pub tokenizer: PathBuf,
    /// Tokens, special ones included, that texts are cut to.
    pub length_max: usize,
    /// Whether texts go to lower case before the tokenizer sees them.
    pub lowercase: bool,
    /// The token that fills shorter texts of a batch.
    pub pad_token_id: i64,
    /// Tensors of the file that the model has no use for, in order of name.
    pub unused: Vec<String>,
}

/// One kind of encoder.
pub struct TextArchitecture {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// Classes in config.json whose encoder this is, the head aside.
    pub classes: &'static [&'static str],
    /// Adds the encoder and gives the vectors of its tokens.
    build: fn(&mut Encoder) -> Result<String, ImportError>,
    /// Positions at the start of the table that no token has.
    position_offset: usize,
    /// The padding token where config.json names none.
    pad_token_id: i64,
}

/// Every kind of encoder that can be imported.
pub const TEXT_ARCHITECTURES: [&TextArchitecture; 2] = [&bert::BERT, &mpnet::MPNET];

/// Beginnings or ends of the names of heads and constants that checkpoints keep.
const IGNORABLE: [&str; 4] = ["pooler.", "cls.", "lm_head.", "position_ids"];

/// Imports the encoder in `folder`, with its pooling unless told otherwise.
///
/// # Errors
/// Whatever would make the graph another model than the folder describes.
pub fn import_folder(folder: &Path, options: &TextOptions) -> Result<ImportedText, ImportError> {
    if !OPSETS.contains(&options.opset) {
        return Err(ImportError::Opset { found: options.opset, range: OPSETS });
    }
    let folder = Folder::read(folder, options.pooling)?;
    let config = Config::read(&folder.transformer)?;
    let architecture = find_architecture(&config)?;
    let mut weights = Weights::open_folder(&folder.transformer)?;
    weights.allow_prefix(&format!("{}.", architecture.model_type));

    let builder = Builder::new(architecture.model_type, weights, options.opset);
    let mut encoder = Encoder::new(builder, &config);
    let tokens = (architecture.build)(&mut encoder)?;
    let Encoder { mut builder, mask, .. } = encoder;
    let batch = Dim::symbol("batch");
    if let Some(pooling) = &folder.pooling {
        let (vector, size) = pooling.build(&mut builder, &tokens, &mask, config.hidden_size);
        builder.output(&vector, "sentence_embedding", &[batch, size.into()]);
    } else {
        let dims = [batch, Dim::symbol("sequence"), config.hidden_size.into()];
        builder.output(&tokens, "last_hidden_state", &dims);
    }
    let (model, weights) = builder.finish();
    let offset = architecture.position_offset;
    Ok(ImportedText {
        model,
        length_max: folder.length_max(config.max_position_embeddings.saturating_sub(offset))?,
        lowercase: folder.lowercase()?,
        pad_token_id: config.pad_token_id.unwrap_or(architecture.pad_token_id),
        unused: weights.unused(architecture.model_type, &IGNORABLE)?,
        tokenizer: folder.tokenizer,
    })
}

fn find_architecture(config: &Config) -> Result<&'static TextArchitecture, ImportError> {
    let names = |names: Vec<&str>| names.join(", ");
    let found = TEXT_ARCHITECTURES.iter().find(|kind| kind.model_type == config.model_type);
    let Some(&architecture) = found else {
        let known = TEXT_ARCHITECTURES.iter().map(|kind| kind.model_type).collect();
        return Err(config.unsupported("model_type", &config.model_type, &names(known)));
    };
    // A class with a head that ranks or classifies would lose what it was trained for.
    let unknown =
        config.architectures.iter().find(|class| !architecture.classes.contains(&class.as_str()));
    match unknown {
        Some(class) => {
            Err(config.unsupported("the class", class, &names(architecture.classes.to_vec())))
        }
        None => Ok(architecture),
    }
}
