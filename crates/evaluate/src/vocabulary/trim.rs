//! A tokenizer with fewer tokens, which splits every text that needs no other as before.
//!
//! A text is split into the same tokens if all of them, and all that lead to them, are kept:
//! `WordPiece` takes the longest token that fits, Unigram the likeliest path, and both still find it;
//! BPE joins pairs in their order, and needs every token that it joins on the way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use serde_json::{Map, Value};

use crate::text_input::{caught, read_tokenizer};
use crate::{EvaluateError, Progress};

/// Which tokens are kept, besides special ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrimOptions {
    /// Tokens at most, the most frequent; by default all that the texts use.
    pub tokens_max: Option<usize>,
    /// Whether tokens of a single character stay, so that other words are spelled, not unknown.
    pub characters: bool,
}

/// A tokenizer with fewer tokens.
#[derive(Clone, Debug)]
pub struct TrimmedTokenizer {
    /// The content of tokenizer.json.
    pub json: String,
    /// Of each token its number before, ascending: the rows of an embedding table that stay.
    pub kept: Vec<u32>,
    /// Tokens before.
    pub size_before: usize,
    /// Different tokens in the texts, and those of them that did not stay.
    pub used_count: usize,
    pub dropped_count: usize,
    /// The padding's number, before and now.
    pub padding: Option<(u32, u32)>,
}

/// Texts that are split together.
const CHUNK: usize = 4096;

/// Keeps the tokens that texts use.
///
/// # Errors
/// A file that is no tokenizer, or one of another kind than `WordPiece`, `WordLevel`, BPE, Unigram.
pub fn trim_tokenizer(
    path: &Path,
    texts: &[&str],
    options: TrimOptions,
    progress: &dyn Progress,
) -> Result<TrimmedTokenizer, EvaluateError> {
    let fail = |message: String| EvaluateError::Tokenizer { path: path.into(), message };
    let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    let mut json: Value = serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
    let mut tokenizer = read_tokenizer(path)?;
    tokenizer.with_truncation(None).map_err(|error| fail(error.to_string()))?;
    tokenizer.with_padding(None);
    let ids: BTreeMap<String, u32> = tokenizer.get_vocab(true).into_iter().collect();
    let size_before = ids.values().max().map_or(0, |&id| id as usize + 1);
    let mut counts = vec![0_u64; size_before];
    for (number, chunk) in texts.chunks(CHUNK).enumerate() {
        progress.advance("counting tokens", number * CHUNK, texts.len());
        let encoded = caught(|| tokenizer.encode_batch_fast(chunk.to_vec(), true)).map_err(fail)?;
        for &id in encoded.iter().flat_map(tokenizers::Encoding::get_ids) {
            counts[id as usize] += 1;
        }
    }
    progress.advance("counting tokens", texts.len(), texts.len());
    let model = Pieces::of(&json["model"], &ids).map_err(fail)?;
    let mut kept: BTreeSet<u32> = special_ids(&json, &ids);
    if options.characters {
        kept.extend(model.characters());
    }
    let mut used: Vec<u32> =
        (0..size_before as u32).filter(|&id| counts[id as usize] > 0).collect();
    used.sort_by_key(|&id| (std::cmp::Reverse(counts[id as usize]), id));
    for &id in &used {
        let mut added = model.leading_to(id);
        added.insert(id);
        added.retain(|id| !kept.contains(id));
        if options.tokens_max.is_none_or(|most| kept.len() + added.len() <= most) {
            kept.extend(added);
        }
    }
    let dropped_count = used.iter().filter(|id| !kept.contains(id)).count();
    let kept: Vec<u32> = kept.into_iter().collect();
    let now: HashMap<u32, u32> = kept.iter().zip(0..).map(|(&before, now)| (before, now)).collect();
    let padding = padding_id(&json, &ids).and_then(|id| Some((id, *now.get(&id)?)));
    rewrite(&mut json, &now).map_err(fail)?;
    let json = serde_json::to_string(&json).expect("what was read as JSON is written as JSON");
    caught(|| json.parse::<tokenizers::Tokenizer>()).map_err(fail)?;
    Ok(TrimmedTokenizer { json, kept, size_before, used_count: used.len(), dropped_count, padding })
}

fn padding_id(json: &Value, ids: &BTreeMap<String, u32>) -> Option<u32> {
    let stated = json["padding"]["pad_id"].as_u64().and_then(|id| u32::try_from(id).ok());
    stated.or_else(|| ["[PAD]", "<pad>"].iter().find_map(|token| ids.get(*token).copied()))
}

/// Tokens that no text holds, the unknown one, and what a byte falls back to.
fn special_ids(json: &Value, ids: &BTreeMap<String, u32>) -> BTreeSet<u32> {
    let number = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let added = json["added_tokens"].as_array().into_iter().flatten();
    let mut special: BTreeSet<u32> = added.filter_map(|token| number(&token["id"])).collect();
    special.extend(json["model"]["unk_token"].as_str().and_then(|token| ids.get(token)));
    special.extend(number(&json["model"]["unk_id"]));
    special.extend(padding_id(json, ids));
    if json["model"]["byte_fallback"] == Value::Bool(true) {
        special.extend((0..=255).filter_map(|byte: u8| ids.get(&format!("<0x{byte:02X}>"))));
    }
    special
}

/// What tokens are made of.
struct Pieces {
    /// By number; empty where there is none.
    tokens: Vec<String>,
    ids: BTreeMap<String, u32>,
    /// Marks of a piece that goes on a word, and of one that ends it.
    prefix: String,
    suffix: String,
    /// BPE: the rank of a pair.
    ranks: HashMap<(String, String), usize>,
}

impl Pieces {
    fn of(model: &Value, ids: &BTreeMap<String, u32>) -> Result<Self, String> {
        let kind = kind_of(model);
        if !["WordPiece", "WordLevel", "BPE", "Unigram"].contains(&kind) {
            return Err(format!("tokens of a {kind} tokenizer cannot be left out"));
        }
        let mut tokens = vec![String::new(); ids.values().max().map_or(0, |&id| id as usize + 1)];
        for (token, &id) in ids {
            tokens[id as usize].clone_from(token);
        }
        let mark = |key: &str| model[key].as_str().unwrap_or("").to_string();
        let mut ranks = HashMap::new();
        for (rank, pair) in model["merges"].as_array().into_iter().flatten().enumerate() {
            let pair = pair_of(pair).ok_or("a merge is no pair of tokens")?;
            ranks.insert(pair, rank);
        }
        let (prefix, suffix) = (mark("continuing_subword_prefix"), mark("end_of_word_suffix"));
        Ok(Self { tokens, ids: ids.clone(), prefix, suffix, ranks })
    }

    /// The token without the marks of its place in a word.
    fn bare<'a>(&self, token: &'a str) -> &'a str {
        let token = token.strip_prefix(self.prefix.as_str()).unwrap_or(token);
        token.strip_suffix(self.suffix.as_str()).unwrap_or(token)
    }

    fn characters(&self) -> Vec<u32> {
        let is_single = |token: &String| self.bare(token).chars().count() == 1;
        let numbered = self.tokens.iter().zip(0..);
        numbered.filter(|(token, _)| is_single(token)).map(|(_, id)| id).collect()
    }

    /// BPE: every token that is joined on the way to this one, by joining its own characters.
    fn leading_to(&self, id: u32) -> BTreeSet<u32> {
        let token = &self.tokens[id as usize];
        let mut found = BTreeSet::new();
        if self.ranks.is_empty() {
            return found;
        }
        let (has_prefix, has_suffix) = (
            !self.prefix.is_empty() && token.starts_with(&self.prefix),
            !self.suffix.is_empty() && token.ends_with(&self.suffix),
        );
        let letters: Vec<char> = self.bare(token).chars().collect();
        let last = letters.len().saturating_sub(1);
        let mut parts: Vec<String> = (letters.iter().enumerate())
            .map(|(at, letter)| {
                let before = if at > 0 || has_prefix { self.prefix.as_str() } else { "" };
                let after = if at == last && has_suffix { self.suffix.as_str() } else { "" };
                format!("{before}{letter}{after}")
            })
            .collect();
        loop {
            found.extend(parts.iter().filter_map(|part| self.ids.get(part)));
            let rank = |pair: &[String]| self.ranks.get(&(pair[0].clone(), pair[1].clone()));
            let next = parts.windows(2).enumerate().filter_map(|(at, p)| Some((rank(p)?, at)));
            let Some((_, at)) = next.min() else { break };
            let second = parts.remove(at + 1);
            parts[at].push_str(second.strip_prefix(self.prefix.as_str()).unwrap_or(&second));
        }
        found
    }
}

fn kind_of(model: &Value) -> &str {
    match model["type"].as_str() {
        Some(kind) => kind,
        // Files of old say no kind.
        None if model["merges"].is_array() => "BPE",
        None if model["vocab"].is_array() => "Unigram",
        None => "WordPiece",
    }
}

/// A merge, written as one text or as two.
fn pair_of(pair: &Value) -> Option<(String, String)> {
    match pair {
        Value::String(text) => text.split_once(' ').map(|(a, b)| (a.into(), b.into())),
        Value::Array(two) if two.len() == 2 => {
            Some((two[0].as_str()?.into(), two[1].as_str()?.into()))
        }
        _ => None,
    }
}

/// Gives every token its new number, and takes out those that have none.
fn rewrite(json: &mut Value, now: &HashMap<u32, u32>) -> Result<(), String> {
    let of = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok())?;
        now.get(&id).copied()
    };
    let model = &mut json["model"];
    match &mut model["vocab"] {
        Value::Object(vocabulary) => {
            let kept = vocabulary.iter().filter_map(|(token, id)| Some((token.clone(), of(id)?)));
            *vocabulary = kept.map(|(token, id)| (token, id.into())).collect::<Map<_, _>>();
        }
        Value::Array(pieces) => {
            let mut place = 0;
            pieces.retain(|_| {
                place += 1;
                now.contains_key(&(place - 1))
            });
        }
        _ => return Err("it has no vocabulary".into()),
    }
    if let Some(unknown) = of(&model["unk_id"]) {
        model["unk_id"] = unknown.into();
    }
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or("").to_string();
    let known: BTreeSet<String> =
        model["vocab"].as_object().into_iter().flat_map(Map::keys).cloned().collect();
    if let Some(merges) = model["merges"].as_array_mut() {
        merges.retain(|pair| {
            pair_of(pair).is_some_and(|(a, b)| {
                let joined = format!("{a}{}", b.strip_prefix(prefix.as_str()).unwrap_or(&b));
                [&a, &b, &joined].iter().all(|token| known.contains(*token))
            })
        });
    }
    for token in json["added_tokens"].as_array_mut().into_iter().flatten() {
        if let Some(id) = of(&token["id"]) {
            token["id"] = id.into();
        }
    }
    if let Some(id) = of(&json["padding"]["pad_id"]) {
        json["padding"]["pad_id"] = id.into();
    }
    renumber(&mut json["post_processor"], &of);
    Ok(())
}

/// Numbers of the tokens that frame a text: `["[SEP]", 102]`, or `"ids": [102]`.
fn renumber(value: &mut Value, of: &dyn Fn(&Value) -> Option<u32>) {
    match value {
        Value::Array(pair) if pair.len() == 2 && pair[0].is_string() && pair[1].is_u64() => {
            if let Some(id) = of(&pair[1]) {
                pair[1] = id.into();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| renumber(value, of)),
        Value::Object(entries) => {
            for (key, value) in entries {
                match value.as_array_mut().filter(|_| key == "ids") {
                    Some(ids) => {
                        for id in ids {
                            if let Some(now) = of(id) {
                                *id = now.into();
                            }
                        }
                    }
                    None => renumber(value, of),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokenizers::Tokenizer;

    use super::*;
    use crate::Silent;

    fn file(name: &str, model: &Value, pre_tokenizer: &Value) -> std::path::PathBuf {
        let file = json!({
            "version": "1.0", "truncation": null,
            "padding": { "strategy": "BatchLongest", "direction": "Right",
                "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]" },
            "added_tokens": [
                { "id": 0, "content": "[PAD]", "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true },
                { "id": 3, "content": "[SEP]", "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true }],
            "normalizer": null, "pre_tokenizer": pre_tokenizer,
            "post_processor": { "type": "TemplateProcessing",
                "single": [{ "Sequence": { "id": "A", "type_id": 0 } },
                    { "SpecialToken": { "id": "[SEP]", "type_id": 0 } }],
                "pair": [{ "Sequence": { "id": "A", "type_id": 0 } },
                    { "Sequence": { "id": "B", "type_id": 1 } }],
                "special_tokens": {
                    "[SEP]": { "id": "[SEP]", "ids": [3], "tokens": ["[SEP]"] } } },
            "decoder": null, "model": model
        });
        let path = std::env::temp_dir().join(format!("attar-trim-{name}-{}", std::process::id()));
        std::fs::write(&path, file.to_string()).unwrap();
        path
    }

    /// Trims for `texts`; checks that they get the tokens they had, by their numbers before.
    fn trimmed(
        name: &str,
        model: &Value,
        texts: &[&str],
        options: TrimOptions,
    ) -> (TrimmedTokenizer, Vec<String>) {
        let path = file(name, model, &json!({ "type": "WhitespaceSplit" }));
        let before = Tokenizer::from_file(&path).unwrap();
        let trimmed = trim_tokenizer(&path, texts, options, &Silent).unwrap();
        std::fs::remove_file(&path).unwrap();
        let after: Tokenizer = trimmed.json.parse().unwrap();
        if trimmed.dropped_count == 0 {
            for text in texts {
                let wanted = before.encode(*text, true).unwrap();
                let found = after.encode(*text, true).unwrap();
                assert_eq!(wanted.get_tokens(), found.get_tokens(), "{name}: {text}");
                let numbers = found.get_ids().iter().map(|&id| trimmed.kept[id as usize]);
                assert_eq!(wanted.get_ids(), numbers.collect::<Vec<_>>(), "{name}: {text}");
            }
        }
        let mut tokens: Vec<(u32, String)> =
            after.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        tokens.sort();
        assert_eq!(tokens.len(), trimmed.kept.len(), "numbers have no gaps");
        (trimmed, tokens.into_iter().map(|(_, token)| token).collect())
    }

    const USED: TrimOptions = TrimOptions { tokens_max: None, characters: false };

    fn wordpiece() -> Value {
        json!({ "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": { "[PAD]": 0, "[UNK]": 1, "unused": 2, "[SEP]": 3, "play": 4, "##ing": 5,
                "##ed": 6, "p": 7, "##l": 8, "dog": 9, "##s": 10, "cat": 11 } })
    }

    #[test]
    fn wordpiece_keeps_what_texts_use_and_letters_if_asked() {
        let texts = ["playing cats", "dogs playing"];
        let (trimmed, tokens) = trimmed("used", &wordpiece(), &texts, USED);
        let wanted = ["[PAD]", "[UNK]", "[SEP]", "play", "##ing", "dog", "##s", "cat"];
        assert_eq!(tokens, wanted);
        assert_eq!((trimmed.size_before, trimmed.used_count), (12, 6));
        assert_eq!(trimmed.padding, Some((0, 0)));
        let letters = TrimOptions { characters: true, ..USED };
        let (_, tokens) = self::trimmed("letters", &wordpiece(), &texts, letters);
        assert_eq!(tokens.len(), 10);
        assert!(tokens.contains(&"p".into()) && tokens.contains(&"##l".into()));
    }

    #[test]
    fn the_most_frequent_tokens_stay_where_there_is_room_for_some() {
        let few = TrimOptions { tokens_max: Some(5), ..USED };
        let (trimmed, tokens) =
            trimmed("few", &wordpiece(), &["play play playing dog", "play dog"], few);
        assert_eq!(tokens, ["[PAD]", "[UNK]", "[SEP]", "play", "dog"]);
        assert_eq!((trimmed.used_count, trimmed.dropped_count), (4, 1));
    }

    #[test]
    fn bpe_keeps_what_is_joined_on_the_way() {
        let model = json!({ "type": "BPE", "dropout": null, "unk_token": "[UNK]",
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "vocab": { "[PAD]": 0, "[UNK]": 1, "a": 2, "[SEP]": 3, "b": 4, "c": 5, "d": 6, "ab": 7,
                "bc": 8, "abc": 9, "cd": 10, "abcd": 11 },
            "merges": ["b c", "a bc", "c d", "a b", "ab cd"] });
        let (_, tokens) = trimmed("bpe", &model, &["abc", "abc d"], USED);
        assert_eq!(tokens, ["[PAD]", "[UNK]", "a", "[SEP]", "b", "c", "d", "bc", "abc"]);
    }

    #[test]
    fn unigram_still_takes_the_likeliest_path() {
        let model = json!({ "type": "Unigram", "unk_id": 1, "byte_fallback": false, "vocab": [
            ["[PAD]", 0.0], ["[UNK]", 0.0], ["x", -9.0], ["[SEP]", 0.0], ["he", -3.0],
            ["llo", -3.5], ["hello", -8.0], ["h", -5.0], ["ello", -4.0]] });
        let (_, tokens) = trimmed("unigram", &model, &["hello", "he"], USED);
        assert_eq!(tokens, ["[PAD]", "[UNK]", "[SEP]", "he", "llo"]);
    }
}
