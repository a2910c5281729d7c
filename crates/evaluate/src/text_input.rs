//! Texts to token ids, and token ids to the feeds that a model asks for.

use std::path::Path;
use std::str::FromStr;

use attar_graph::Value;
use attar_tensor::{DType, Tensor};
use tokenizers::{EncodeInput, Tokenizer, TruncationParams};

use crate::{EvaluateError, Preprocessing};

/// What `work` gives, or the message of its error. `tokenizers` asserts some of what a file says (the
/// table of a `Precompiled` normalizer, for one), and a broken file is no reason to end.
pub(crate) fn caught<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("a part of it is broken (see above)".into()),
    }
}

/// A text in token ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    pub ids: Vec<i64>,
    pub types: Vec<i64>,
}

/// A tokenizer with a model's length.
pub struct TextEncoder {
    tokenizer: Tokenizer,
    padding: i64,
}

impl TextEncoder {
    /// The tokenizer that `attar.toml` names, relative to `folder`.
    ///
    /// # Errors
    /// No text section, or a tokenizer that cannot be read.
    pub fn new(preprocessing: &Preprocessing, folder: &Path) -> Result<Self, EvaluateError> {
        let text =
            preprocessing.text.as_ref().ok_or(EvaluateError::NoPreprocessing { data: "texts" })?;
        let path = folder.join(&text.tokenizer);
        let mut tokenizer = read_tokenizer(&path)?;
        let fail = |message: String| EvaluateError::Tokenizer { path: path.clone(), message };
        let truncation = TruncationParams { max_length: text.length_max, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|error| fail(error.to_string()))?;
        let padding = tokenizer
            .get_padding()
            .map(|padding| padding.pad_id)
            .or_else(|| ["[PAD]", "<pad>"].iter().find_map(|token| tokenizer.token_to_id(token)))
            .unwrap_or(0);
        tokenizer.with_padding(None);
        Ok(Self { tokenizer, padding: i64::from(padding) })
    }

    /// Every text in token ids, special ones included, on all threads of the caller's pool.
    ///
    /// # Errors
    /// What the tokenizer reports.
    pub fn encode(&self, texts: &[&str]) -> Result<Vec<Encoded>, EvaluateError> {
        self.encode_all(texts.to_vec())
    }

    /// Every pair of texts in one row of token ids, as a cross-encoder reads them; the longer of
    /// the two is cut first.
    ///
    /// # Errors
    /// What the tokenizer reports.
    pub fn encode_pairs(&self, pairs: &[(&str, &str)]) -> Result<Vec<Encoded>, EvaluateError> {
        self.encode_all(pairs.to_vec())
    }

    fn encode_all<'s, T: Into<EncodeInput<'s>> + Send>(
        &self,
        inputs: Vec<T>,
    ) -> Result<Vec<Encoded>, EvaluateError> {
        let encodings = caught(|| self.tokenizer.encode_batch_fast(inputs, true))
            .map_err(|message| EvaluateError::Tokenizer { path: "tokenizer".into(), message })?;
        let wide = |ids: &[u32]| ids.iter().map(|&id| i64::from(id)).collect();
        Ok(encodings
            .iter()
            .map(|e| Encoded { ids: wide(e.get_ids()), types: wide(e.get_type_ids()) })
            .collect())
    }

    /// One tensor [batch, longest] per model input, padded at the end.
    ///
    /// # Errors
    /// An input that is none of ids, mask and types.
    pub fn feeds(
        &self,
        batch: &[&Encoded],
        inputs: &[Value],
    ) -> Result<Vec<(String, Tensor)>, EvaluateError> {
        let longest = batch.iter().map(|encoded| encoded.ids.len()).max().unwrap_or(0);
        self.padded_feeds(batch, inputs, longest)
    }

    /// As [`feeds`](Self::feeds), padded to `length`.
    ///
    /// # Errors
    /// An input that is none of ids, mask and types.
    pub fn padded_feeds(
        &self,
        batch: &[&Encoded],
        inputs: &[Value],
        length: usize,
    ) -> Result<Vec<(String, Tensor)>, EvaluateError> {
        let padded = |row: &dyn Fn(&Encoded) -> Vec<i64>, padding: i64| -> Vec<i64> {
            batch
                .iter()
                .flat_map(|encoded| {
                    let mut row = row(encoded);
                    row.resize(length, padding);
                    row
                })
                .collect()
        };
        inputs
            .iter()
            .map(|input| {
                let values = match input.name.as_str() {
                    name if name.contains("mask") => padded(&|e| vec![1; e.ids.len()], 0),
                    name if name.contains("type") => padded(&|e| e.types.clone(), 0),
                    name if name.contains("ids") => padded(&|e| e.ids.clone(), self.padding),
                    _ => {
                        let input = input.name.clone();
                        return Err(EvaluateError::Input { input, data: "text" });
                    }
                };
                let tensor = Tensor::new(&[batch.len(), length], &values);
                let dtype = input.dtype().unwrap_or(DType::I64);
                let tensor = tensor.converted(dtype).map_err(|_| EvaluateError::Input {
                    input: input.name.clone(),
                    data: "text",
                })?;
                Ok((input.name.clone(), tensor))
            })
            .collect()
    }
}

pub(crate) fn read_tokenizer(path: &Path) -> Result<Tokenizer, EvaluateError> {
    let fail = |message: String| EvaluateError::Tokenizer { path: path.into(), message };
    if !path.is_file() {
        return Err(fail("there is no such file".into()));
    }
    let json = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    // The library below does not say where JSON is broken, and panics in some places.
    serde_json::from_str::<serde::de::IgnoredAny>(&json)
        .map_err(|error| fail(format!("not JSON: {error}")))?;
    caught(|| Tokenizer::from_str(&json)).map_err(fail)
}

/// The rows that a table of embeddings needs for the tokenizer in `path`.
///
/// # Errors
/// A file that is no tokenizer.
pub fn tokenizer_size(path: &Path) -> Result<usize, EvaluateError> {
    let vocabulary = read_tokenizer(path)?.get_vocab(true);
    Ok(vocabulary.into_values().max().map_or(0, |id| id as usize + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TextInput;

    const WORDS: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],
        "normalizer":null,"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,
        "decoder":null,"model":{"type":"WordLevel","vocab":{"?":0,"a":1},"unk_token":"?"}}"#;

    fn encoder(name: &str, content: &[u8], length_max: usize) -> Result<TextEncoder, String> {
        let folder = std::env::temp_dir().join(format!("attar-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("tokenizer.json"), content).unwrap();
        let text = TextInput { tokenizer: "tokenizer.json".into(), length_max };
        let preprocessing = Preprocessing { text: Some(text), ..Preprocessing::default() };
        let encoder = TextEncoder::new(&preprocessing, &folder).map_err(|error| error.to_string());
        std::fs::remove_dir_all(&folder).unwrap();
        encoder
    }

    #[test]
    fn a_broken_tokenizer_is_named_with_its_path() {
        let unknown = WORDS.replace("WordLevel", "Magic");
        let precompiled = r#""normalizer":{"type":"Precompiled","precompiled_charsmap":"AAA="}"#;
        let table = WORDS.replace(r#""normalizer":null"#, precompiled);
        for (name, content) in [
            ("empty", &b""[..]),
            ("cut", &WORDS.as_bytes()[..WORDS.len() / 2]),
            ("binary", b"\xff\xfe\x00"),
            ("list", b"[]"),
            ("unknown", unknown.as_bytes()),
            ("decoder", br#"{"version":"1.0","decoder":{"type"#),
            ("table", table.as_bytes()),
            ("deep", "[".repeat(100_000).as_bytes()),
        ] {
            let Err(error) = encoder(name, content, 8) else { panic!("{name} is a tokenizer") };
            assert!(
                error.starts_with("tokenizer ") && error.contains("tokenizer.json: "),
                "{error}"
            );
        }
    }

    #[test]
    fn texts_are_cut_at_any_length() {
        for length in [0, 1, 2] {
            let encoded = encoder("short", WORDS.as_bytes(), length).unwrap().encode(&["a b a"]);
            assert_eq!(encoded.unwrap()[0].ids.len(), length);
        }
    }
}
