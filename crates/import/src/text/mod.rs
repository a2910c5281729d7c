//! Text encoders in Hugging Face and sentence-transformers folders.

mod bert;
mod config;
mod distilbert;
mod electra;
mod encoder;
mod folder;
mod head;
mod mpnet;
mod pooling;
mod roberta;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use attar_graph::{Dim, Model};

pub(crate) use self::bert::BERT;
pub(crate) use self::config::Config;
use self::encoder::Encoder;
use self::folder::Folder;
use self::head::Head;
pub(crate) use self::pooling::{Mode, Pooling, normalize};
use crate::build::{Builder, check_opset};
use crate::config::ConfigFile;
use crate::weights::Weights;
use crate::{FolderOptions, ImportError};

/// A text encoder, and what feeding it needs.
#[derive(Debug)]
pub struct ImportedText {
    /// Takes `input_ids`, `attention_mask` and, where the architecture has them, `token_type_ids`;
    /// gives `sentence_embedding` [batch, hidden], `logits` [batch, labels] or `last_hidden_state`
    /// [batch, sequence, hidden].
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
    /// What was done to the weights.
    pub remarks: Vec<String>,
}

/// One kind of encoder.
pub struct TextArchitecture {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// What may stand before the names of the encoder's weights.
    prefix: &'static str,
    /// Classes in config.json whose encoder this is; their own heads are left out.
    classes: &'static [&'static str],
    head: Head,
    /// Adds the encoder and gives the vectors of its tokens.
    build: fn(&mut Encoder) -> Result<String, ImportError>,
    /// Its own names in config.json, with the usual ones.
    config_names: &'static [(&'static str, &'static str)],
    /// The padding token where config.json names none.
    pad_token_id: i64,
    /// Whether the first token's position is that after the padding token's id.
    is_counted_from_padding: bool,
    /// Beginnings of the names of heads that its checkpoints keep.
    ignorable: &'static [&'static str],
}

/// Where the kinds of tokens come from.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum TokenTypes {
    None,
    /// There is one, added to every position.
    Constant,
    /// The input `token_type_ids`.
    Input,
}

/// Every kind of encoder that can be imported.
pub const TEXT_ARCHITECTURES: [&TextArchitecture; 7] = [
    &bert::BERT,
    &roberta::CAMEMBERT,
    &distilbert::DISTILBERT,
    &electra::ELECTRA,
    &mpnet::MPNET,
    &roberta::ROBERTA,
    &roberta::XLM_ROBERTA,
];

/// Beginnings or ends of the names of heads and constants that checkpoints keep.
const IGNORABLE: [&str; 4] = ["pooler.", "cls.", "lm_head.", "position_ids"];

/// Imports the encoder in `folder` with what makes one row of a text: the pooling of its
/// modules.json, or its head if it is a cross-encoder or classifier; unless told otherwise.
///
/// # Errors
/// Whatever would make the graph another model than the folder describes.
pub fn import_text(folder: &Path, options: &FolderOptions) -> Result<ImportedText, ImportError> {
    check_opset(options.opset)?;
    let folder = Folder::read(folder, options.pooling)?;
    let file = ConfigFile::read(&folder.transformer)?;
    let architecture = TextArchitecture::find(&file)?;
    let has_head = architecture.has_head(&file)?;
    if options.pooling && folder.pooling.is_none() && !has_head {
        return Err(ImportError::NoPooling { folder: folder.transformer });
    }
    let config = Config::new(&file, architecture)?;
    let mut weights = Weights::open_folder(&folder.transformer)?;
    weights.allow_prefix(architecture.prefix);

    let mut builder = Builder::new(architecture.model_type, weights, options.opset);
    let output = match &folder.pooling {
        _ if !options.pooling => Output::Tokens,
        Some(pooling) => Output::Pooled(pooling),
        None => Output::Scores,
    };
    let mut ignorable = [&IGNORABLE, architecture.ignorable].concat();
    if has_head {
        ignorable.extend(architecture.head.names());
    }
    architecture.build(&mut builder, &config, output)?;
    let (model, weights) = builder.finish();
    let pad_token_id = config.pad_token_id.unwrap_or(architecture.pad_token_id);
    let positions = architecture.position_count(&config, pad_token_id)?;
    Ok(ImportedText {
        model,
        length_max: folder.length_max(positions)?,
        lowercase: folder.lowercase()?,
        pad_token_id,
        unused: weights.unused(architecture.model_type, &ignorable)?,
        remarks: weights.remarks(),
        tokenizer: folder.tokenizer,
    })
}

/// What an encoder gives.
#[derive(Clone, Copy)]
pub(crate) enum Output<'a> {
    /// `last_hidden_state` [batch, sequence, hidden].
    Tokens,
    /// `sentence_embedding` [batch, hidden].
    Pooled(&'a Pooling),
    /// `logits` [batch, labels], by the architecture's head.
    Scores,
}

impl TextArchitecture {
    /// Adds the whole network, from its inputs to its output.
    pub(crate) fn build(
        &self,
        builder: &mut Builder,
        config: &Config,
        output: Output,
    ) -> Result<(), ImportError> {
        let mut encoder = Encoder::new(builder, config);
        let tokens = (self.build)(&mut encoder)?;
        let Encoder { builder, mask, .. } = encoder;
        let batch = Dim::symbol("batch");
        match output {
            Output::Tokens => {
                let dims = [batch, Dim::symbol("sequence"), config.hidden_size().into()];
                builder.output(&tokens, "last_hidden_state", &dims);
            }
            Output::Pooled(pooling) => {
                let (vector, size) = pooling.build(builder, &tokens, &mask, config.hidden_size());
                builder.output(&vector, "sentence_embedding", &[batch, size.into()]);
            }
            Output::Scores => {
                let (logits, count) = self.head.build(builder, config, &tokens)?;
                builder.output(&logits, "logits", &[batch, count.into()]);
            }
        }
        Ok(())
    }

    fn find(file: &ConfigFile) -> Result<&'static Self, ImportError> {
        let model_type = file.model_type()?;
        let found = TEXT_ARCHITECTURES.iter().find(|kind| kind.model_type == model_type);
        found.copied().ok_or_else(|| {
            file.unsupported("model_type", model_type, &crate::folder_architectures().join(", "))
        })
    }

    /// Whether the folder has the head that ranks or classifies. Any other head than those known
    /// to be of training alone would lose what it was trained for.
    fn has_head(&self, file: &ConfigFile) -> Result<bool, ImportError> {
        let mut has_head = false;
        for class in file.classes() {
            has_head |= class == self.head.class;
            if class != self.head.class && !self.classes.contains(&class) {
                let known = [self.classes, &[self.head.class]].concat();
                return Err(file.unsupported("the class", class, &known.join(", ")));
            }
        }
        Ok(has_head)
    }

    /// How many tokens have a position.
    fn position_count(&self, config: &Config, pad_token_id: i64) -> Result<usize, ImportError> {
        let rows = config.max_position_embeddings;
        if !self.is_counted_from_padding {
            return Ok(rows);
        }
        let offset = usize::try_from(pad_token_id).ok().and_then(|id| id.checked_add(1));
        offset.and_then(|offset| rows.checked_sub(offset)).filter(|&count| count > 0).ok_or_else(
            || {
                let supported = format!("below the {rows} positions less one");
                config.unsupported("pad_token_id", &pad_token_id.to_string(), &supported)
            },
        )
    }
}
