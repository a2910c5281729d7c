//! Strings.

use attar_graph::AttributeValue;
use attar_tensor::{Bytes, DType, Tensor};

use crate::case::*;

fn strings(words: &[&str]) -> AttributeValue {
    AttributeValue::Strings(words.iter().map(|w| Bytes::copy_from_slice(w.as_bytes())).collect())
}

fn days() -> Tensor {
    texts(&[5], &["monday", "Tuesday", "wednesday", "MONDAY", "Größe"])
}

fn string_cases(cases: &mut Vec<Case>) {
    for action in ["NONE", "LOWER", "UPPER"] {
        for sensitive in [0_i64, 1] {
            let words = texts(&[4], &["monday", "Tuesday", "wednesday", "MONDAY"]);
            for x in [words.clone(), words.reshaped(&[1, 4])] {
                let normalized = case("y = StringNormalizer(x)", vec![("x", x)])
                    .attribute(0, "locale", "C")
                    .attribute(0, "case_change_action", action)
                    .attribute(0, "is_case_sensitive", sensitive)
                    .attribute(0, "stopwords", strings(&["monday"]));
                cases.push(normalized);
            }
        }
    }
    let all = case("y = StringNormalizer(x)", vec![("x", texts(&[1], &["a"]))]);
    cases.push(all.attribute(0, "locale", "C").attribute(0, "stopwords", strings(&["a"])));
    let feeds = vec![("x", texts(&[2, 1], &["a", "b"])), ("z", texts(&[3], &["x", "", "ü"]))];
    cases.push(case("y = StringConcat(x, z)", feeds).opset(20));
    // Of an empty string, ONNX (and attar) make one empty part, ONNX Runtime none.
    let lists = texts(&[2, 2], &["a,b,c", "d,", "x", ",,"]);
    let split = |limit: Option<i64>| {
        let case = case("y, n = StringSplit(x)", vec![("x", lists.clone())]).opset(20);
        let case = case.attribute(0, "delimiter", ",");
        limit.into_iter().fold(case, |case, limit| case.attribute(0, "maxsplit", limit))
    };
    cases.extend([split(None), split(Some(1))]);
    let words = texts(&[3], &["hello world", " a  b ", "def"]);
    cases.push(case("y, n = StringSplit(x)", vec![("x", words)]).opset(20));
    let addresses = texts(&[3], &["a@b.com", "a@b", "www.a@b.com"]);
    let matched = case("y = RegexFullMatch(x)", vec![("x", addresses)]).opset(20);
    cases.push(matched.attribute(0, "pattern", r"(\w+)@\w+\.com"));
}

fn encoder_cases(cases: &mut Vec<Case>) {
    let encoder = |x: Tensor| case("y = LabelEncoder(x)", vec![("x", x)]).domain("ai.onnx.ml", 2);
    cases.push(
        encoder(days())
            .attribute(0, "keys_strings", strings(&["monday", "Tuesday", "Größe"]))
            .attribute(0, "values_int64s", vec![5_i64, 7, 9])
            .attribute(0, "default_int64", -2_i64),
    );
    cases.push(
        encoder(Tensor::new(&[2, 2], &[1_i64, 2, 3, 1]))
            .attribute(0, "keys_int64s", vec![1_i64, 3])
            .attribute(0, "values_strings", strings(&["one", "three"])),
    );
    cases.push(
        encoder(Tensor::new(&[3], &[1.5_f32, -0.5, 2.0]))
            .attribute(0, "keys_floats", AttributeValue::Floats(vec![1.5, -0.5]))
            .attribute(0, "values_floats", AttributeValue::Floats(vec![10.0, 20.0]))
            .attribute(0, "default_float", 0.25_f32),
    );
}

fn n_gram_cases(cases: &mut Vec<Case>) {
    let tokens = Tensor::new(&[2, 6], &[1_i32, 1, 3, 3, 3, 7, 8, 6, 7, 5, 6, 8]);
    for mode in ["TF", "IDF", "TFIDF"] {
        for (least, most, skips) in [(1_i64, 1_i64, 0_i64), (2, 2, 0), (1, 2, 5), (2, 2, 5)] {
            for x in [
                tokens.clone(),
                tokens.converted(DType::I64).expect("numbers convert").reshaped(&[12]),
            ] {
                let vectorizer = case("y = TfIdfVectorizer(x)", vec![("x", x)])
                    .attribute(0, "mode", mode)
                    .attribute(0, "min_gram_length", least)
                    .attribute(0, "max_gram_length", most)
                    .attribute(0, "max_skip_count", skips)
                    .attribute(0, "ngram_counts", vec![0_i64, 4])
                    .attribute(0, "ngram_indexes", vec![0_i64, 1, 2, 3, 4, 5, 6])
                    .attribute(0, "pool_int64s", vec![2_i64, 3, 5, 4, 5, 6, 7, 8, 6, 7])
                    .attribute(0, "weights", vec![0.5_f32, 1.0, 2.0, 3.0, 0.1, 0.2, 0.3]);
                cases.push(vectorizer);
            }
        }
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    string_cases(&mut cases);
    encoder_cases(&mut cases);
    n_gram_cases(&mut cases);
    // Strings are moved like numbers.
    let moved = [
        "y = Transpose(x)",
        "y = Reshape(x, s)",
        "y = Concat(x, x, axis=1)",
        "y = Identity(x)",
        "a, b = Split(x, axis=0)",
        "y = Gather(x, i, axis=1)",
        "y = Tile(x, t)",
        "y = Expand(x, e)",
        "y = GatherElements(x, j, axis=1)",
        "y = Compress(x, c, axis=1)",
        "y, f, v, n = Unique(x)",
    ];
    for text in moved {
        let x = texts(&[2, 3], &["b", "a", "", "a", "ü", "b"]);
        let feeds = [
            ("x", x),
            ("s", i64s(&[3, 2])),
            ("i", i64s(&[2, 0])),
            ("t", i64s(&[2, 1])),
            ("e", i64s(&[2, 1, 1])),
            ("j", Tensor::new(&[2, 1], &[1_i64, -1])),
            ("c", bools(&[3])),
        ];
        let arguments = text.split_once('(').expect("a call").1;
        let feeds = feeds
            .into_iter()
            .filter(|(name, _)| arguments.split([',', ')']).any(|part| part.trim() == *name));
        cases.push(case(text, feeds.collect()));
    }
    cases.into_iter().map(Case::exact).collect()
}
