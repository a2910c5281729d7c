//! Tokenizers made from texts: words as they are, or in pieces (`WordPiece`). The same texts give the
//! same bytes.

mod merges;
mod trim;

use std::collections::BTreeMap;
use std::str::FromStr;

use rayon::prelude::*;
use serde_json::{Map, Value, json};
use tokenizers::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    Tokenizer,
};

use self::merges::Pieces;
pub use self::trim::{TrimOptions, TrimmedTokenizer, trim_tokenizer};
use crate::{EvaluateError, Progress};

/// What tokens are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizerKind {
    /// Whole words; all others are one unknown token.
    WordLevel,
    /// Words, and pieces of those that are rarer (Schuster and Nakajima, 2012), found by joining
    /// the pair that comes most often. Texts are framed by `[CLS]` and `[SEP]`.
    WordPiece,
}

impl TokenizerKind {
    pub const NAMES: &'static [(&'static str, Self)] =
        &[("wordlevel", Self::WordLevel), ("wordpiece", Self::WordPiece)];

    /// Tokens that no text holds, in order of id.
    fn special_tokens(self) -> &'static [&'static str] {
        match self {
            Self::WordLevel => &["[PAD]", "[UNK]"],
            Self::WordPiece => &["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        }
    }
}

/// How to make a tokenizer.
#[derive(Clone, Debug)]
pub struct TokenizerOptions {
    pub kind: TokenizerKind,
    /// Tokens at most, special ones included.
    pub vocabulary: usize,
    /// How often a word, or a pair of pieces, must come to have a token.
    pub count_min: u64,
    pub lowercase: bool,
}

/// A tokenizer, and what it was made from.
#[derive(Clone, Debug)]
pub struct MadeTokenizer {
    /// The content of tokenizer.json.
    pub json: String,
    pub token_count: usize,
    /// Words in the texts, each as often as it comes.
    pub word_count: u64,
    /// Different words.
    pub distinct_count: usize,
    /// Words in the texts that have no token, not even in pieces.
    pub unknown_count: u64,
}

/// Texts that are counted together.
const CHUNK: usize = 1024;

/// Makes a tokenizer from texts.
///
/// # Errors
/// Texts without a word, or a vocabulary too small for the special tokens and letters.
pub fn make_tokenizer(
    texts: &[&str],
    options: &TokenizerOptions,
    progress: &dyn Progress,
) -> Result<MadeTokenizer, EvaluateError> {
    let counts = count_words(texts, options, progress)?;
    let word_count = counts.values().sum();
    if word_count == 0 {
        return Err(fail("the texts hold no word".into()));
    }
    let special = options.kind.special_tokens();
    if options.vocabulary <= special.len() {
        return Err(too_small(options, special.len() + 1));
    }
    let room = options.vocabulary - special.len();
    let (tokens, unknown_count) = match options.kind {
        TokenizerKind::WordLevel => words(&counts, options, room),
        TokenizerKind::WordPiece => {
            let mut pieces = Pieces::new(&counts);
            if pieces.token_count() > room {
                return Err(too_small(options, pieces.token_count() + special.len()));
            }
            pieces.merge(room, options.count_min.max(1), progress);
            (pieces.tokens, pieces.unknown_count)
        }
    };
    let tokens: Vec<String> = special.iter().map(ToString::to_string).chain(tokens).collect();
    let json = serde_json::to_string_pretty(&document(options, &tokens)).expect("it is JSON");
    // Whoever reads it must be able to.
    Tokenizer::from_str(&json).map_err(|error| fail(error.to_string()))?;
    Ok(MadeTokenizer {
        json: json + "\n",
        token_count: tokens.len(),
        word_count,
        distinct_count: counts.len(),
        unknown_count,
    })
}

fn fail(message: String) -> EvaluateError {
    EvaluateError::Tokenizer { path: "tokenizer.json".into(), message }
}

fn too_small(options: &TokenizerOptions, least: usize) -> EvaluateError {
    fail(format!(
        "a vocabulary of {} does not hold the special tokens and letters: {least} is the least",
        options.vocabulary
    ))
}

/// How often each word comes, as the tokenizer itself will divide texts.
fn count_words(
    texts: &[&str],
    options: &TokenizerOptions,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, u64>, EvaluateError> {
    let special: Vec<String> =
        options.kind.special_tokens().iter().map(ToString::to_string).collect();
    let empty = document(options, &special).to_string();
    let divider = Tokenizer::from_str(&empty).map_err(|error| fail(error.to_string()))?;
    let mut counts = BTreeMap::new();
    for (index, chunk) in texts.chunks(CHUNK).enumerate() {
        progress.advance("counting words", index * CHUNK, texts.len());
        let divided: Vec<Vec<String>> = chunk
            .par_iter()
            .map(|text| divide(&divider, text).map_err(|error| fail(error.to_string())))
            .collect::<Result<_, _>>()?;
        for word in divided.into_iter().flatten() {
            *counts.entry(word).or_insert(0) += 1;
        }
    }
    progress.advance("counting words", texts.len(), texts.len());
    Ok(counts)
}

fn divide(divider: &Tokenizer, text: &str) -> tokenizers::Result<Vec<String>> {
    let mut text = NormalizedString::from(text);
    if let Some(normalizer) = divider.get_normalizer() {
        normalizer.normalize(&mut text)?;
    }
    let mut divided = PreTokenizedString::from(text);
    if let Some(pre_tokenizer) = divider.get_pre_tokenizer() {
        pre_tokenizer.pre_tokenize(&mut divided)?;
    }
    let splits = divided.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
    Ok(splits.into_iter().map(|(word, _, _)| word.to_string()).collect())
}

/// The words that come most often, and in how many places of the texts there are others.
fn words(
    counts: &BTreeMap<String, u64>,
    options: &TokenizerOptions,
    room: usize,
) -> (Vec<String>, u64) {
    let mut all: Vec<(&String, u64)> = counts.iter().map(|(word, &count)| (word, count)).collect();
    all.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let kept = all.iter().take(room).take_while(|(_, count)| *count >= options.count_min).count();
    let unknown = all[kept..].iter().map(|(_, count)| count).sum();
    (all[..kept].iter().map(|(word, _)| (*word).clone()).collect(), unknown)
}

/// The content of tokenizer.json for tokens in order of id.
fn document(options: &TokenizerOptions, tokens: &[String]) -> Value {
    let special = options.kind.special_tokens();
    let added: Vec<Value> = (special.iter().enumerate())
        .map(|(id, token)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    let vocabulary: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let (model, post_processor, decoder) = match options.kind {
        TokenizerKind::WordLevel => (
            json!({ "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" }),
            Value::Null,
            Value::Null,
        ),
        TokenizerKind::WordPiece => (
            json!({
                "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": merges::LETTERS_MAX, "vocab": vocabulary,
            }),
            json!({ "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2] }),
            json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }),
        ),
    };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": options.lowercase,
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;

    const TEXTS: [&str; 4] =
        ["The lower the better, lowest.", "a low lower newest", "Newest low!", "newest widest low"];

    fn made(kind: TokenizerKind, vocabulary: usize) -> Result<MadeTokenizer, String> {
        let options = TokenizerOptions { kind, vocabulary, count_min: 1, lowercase: true };
        make_tokenizer(&TEXTS, &options, &Silent).map_err(|error| error.to_string())
    }

    fn ids(tokenizer: &MadeTokenizer, text: &str) -> Vec<String> {
        let tokenizer = Tokenizer::from_str(&tokenizer.json).unwrap();
        tokenizer.encode(text, true).unwrap().get_tokens().to_vec()
    }

    #[test]
    fn the_words_that_come_most_often_have_tokens() {
        let made = made(TokenizerKind::WordLevel, 6).unwrap();
        assert_eq!((made.token_count, made.word_count, made.distinct_count), (6, 17, 11));
        assert_eq!(ids(&made, "Low the newest?"), ["low", "the", "newest", "[UNK]"]);
        // Of `low`, `newest`, `lower` and `the` there are ten.
        assert_eq!(made.unknown_count, 7);
    }

    #[test]
    fn rare_words_come_in_pieces_and_texts_in_a_frame() {
        let made = made(TokenizerKind::WordPiece, 60).unwrap();
        assert_eq!(made.unknown_count, 0);
        assert_eq!(ids(&made, "lower"), ["[CLS]", "lower", "[SEP]"]);
        let pieces = ids(&made, "lowid")[1..].concat().replace("##", "");
        assert_eq!(pieces, "lowid[SEP]");
        assert_eq!(ids(&made, "z")[1], "[UNK]");
    }

    #[test]
    fn the_same_texts_give_the_same_bytes() {
        for kind in [TokenizerKind::WordLevel, TokenizerKind::WordPiece] {
            assert_eq!(made(kind, 50).unwrap().json, made(kind, 50).unwrap().json);
        }
    }

    #[test]
    fn a_vocabulary_without_room_for_letters_is_refused() {
        let error = made(TokenizerKind::WordPiece, 10).unwrap_err();
        assert!(error.contains("a vocabulary of 10 does not hold"), "{error}");
        let error = made(TokenizerKind::WordLevel, 2).unwrap_err();
        assert!(error.contains("3 is the least"), "{error}");
        let options = TokenizerOptions {
            kind: TokenizerKind::WordLevel,
            vocabulary: 10,
            count_min: 1,
            lowercase: true,
        };
        let error = make_tokenizer(&[" "], &options, &Silent).unwrap_err().to_string();
        assert!(error.ends_with("the texts hold no word"), "{error}");
    }
}
