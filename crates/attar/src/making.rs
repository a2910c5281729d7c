//! Making a model with first values, and writing it with what feeding it needs.

use std::path::{Path, PathBuf};

use attar_evaluate::data::Split;
use attar_evaluate::{
    Dataset, ImageInput, Preprocessing, Progress, Resample, TextInput, TokenizerKind,
    TokenizerOptions, make_tokenizer, tokenizer_size,
};
use attar_import::ModelInput;
use serde::Serialize;

use crate::importing::{Parts, check_folder, folder_of};
use crate::{Error, ImportOutcome};

/// What to make and where to put it.
pub struct NewRequest<'a> {
    /// One of [`ARCHITECTURES`](crate::ARCHITECTURES).
    pub architecture: &'a str,
    /// Options of the architecture by name; what is not given has its default.
    pub options: &'a [(String, String)],
    /// The tokenizer of a text model: it is copied beside it, and says the vocabulary's size.
    pub tokenizer: Option<&'a Path>,
    /// The ONNX file to write.
    pub output: &'a Path,
}

/// Makes a model to be trained.
///
/// # Errors
/// An architecture or option that there is not, or a value that makes no model.
pub fn new_model(request: &NewRequest) -> Result<ImportOutcome, Error> {
    let folder = folder_of(request.output);
    check_folder(folder, request.output)?;
    let mut options = request.options.to_vec();
    if let Some(tokenizer) = request.tokenizer {
        let size = tokenizer_size(tokenizer)?;
        match options.iter().find(|(key, _)| key == "vocabulary") {
            None => options.push(("vocabulary".into(), size.to_string())),
            Some((_, given)) if given.parse().is_ok_and(|given: usize| given >= size) => {}
            Some((_, given)) => {
                return Err(Error::Usage {
                    message: format!(
                        "{} has {size} tokens, the vocabulary {given}",
                        request.tokenizer.map_or_else(String::new, |p| p.display().to_string())
                    ),
                    hint: "leave `vocabulary` out: the tokenizer says it".into(),
                });
            }
        }
    }
    let made = attar_import::new_model(request.architecture, &options)?;
    let mut remarks = Vec::new();
    let mut preprocessing = Preprocessing::default();
    match made.input {
        ModelInput::Features => {}
        ModelInput::Image { size, mean, std } => {
            let (resize, stretch, resample) = (size, false, Resample::default());
            preprocessing.image = Some(ImageInput { resize, stretch, resample, size, mean, std });
        }
        ModelInput::Text { length_max } => {
            preprocessing.text = Some(TextInput { tokenizer: "tokenizer.json".into(), length_max });
            if request.tokenizer.is_none() && !folder.join("tokenizer.json").is_file() {
                remarks.push(format!(
                    "there is no tokenizer yet: put tokenizer.json into {}",
                    folder.display()
                ));
            }
        }
    }
    let tokenizer = request.tokenizer.map(Path::to_path_buf);
    let parts = Parts { model: made.model, preprocessing, tokenizer, unused: Vec::new(), remarks };
    parts.write(folder, request.output)
}

/// A tokenizer to make from texts.
pub struct TokenizerRequest<'a> {
    pub kind: TokenizerKind,
    /// A data set with texts; of a divided one what is trained on.
    pub data: &'a Path,
    pub skip_bad: bool,
    /// Tokens at most.
    pub vocabulary: usize,
    /// How often a word or a pair of pieces must come.
    pub count_min: u64,
    pub lowercase: bool,
    /// The tokenizer.json to write.
    pub output: &'a Path,
}

/// The tokenizer that was made.
#[derive(Debug, Serialize)]
pub struct TokenizerOutcome {
    pub tokenizer: PathBuf,
    pub token_count: usize,
    pub text_count: usize,
    /// Words in the texts, each as often as it comes.
    pub word_count: u64,
    pub distinct_count: usize,
    /// Of the words in the texts, those that the tokenizer does not know.
    pub unknown: f64,
    /// Rows that could not be read.
    pub bad_count: usize,
}

/// Makes a tokenizer from texts, and writes it.
///
/// # Errors
/// Data without texts, or a vocabulary too small for the letters in them.
pub fn new_tokenizer(
    request: &TokenizerRequest,
    progress: &dyn Progress,
) -> Result<TokenizerOutcome, Error> {
    let found = Dataset::open_split(request.data, None, request.skip_bad, Split::Train)?;
    let no_texts = |what: &str| Error::Usage {
        message: format!("{} {what}", request.data.display()),
        hint: "give texts: .txt, .jsonl, .csv or .tsv, or a folder in BEIR's layout".into(),
    };
    let (data, bad_count) = found.ok_or_else(|| no_texts("has nothing to train on"))?;
    let texts = data.texts();
    if texts.is_empty() {
        return Err(no_texts(&format!("holds {}, no texts", data.kind_name())));
    }
    let TokenizerRequest { kind, vocabulary, count_min, lowercase, output, .. } = *request;
    let options = TokenizerOptions { kind, vocabulary, count_min, lowercase };
    let made = make_tokenizer(&texts, &options, progress)?;
    let folder = folder_of(output);
    std::fs::create_dir_all(folder).map_err(Error::file(folder))?;
    let part = output.with_extension("part");
    let written = std::fs::write(&part, &made.json).and_then(|()| std::fs::rename(&part, output));
    written.map_err(Error::file(output))?;
    Ok(TokenizerOutcome {
        tokenizer: output.to_path_buf(),
        token_count: made.token_count,
        text_count: texts.len(),
        word_count: made.word_count,
        distinct_count: made.distinct_count,
        unknown: made.unknown_count as f64 / made.word_count as f64,
        bad_count,
    })
}
