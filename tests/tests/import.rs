//! Imported models on both runtimes against the frameworks they come from.
//!
//! `tests/reference` holds the expected values and the script that made them.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use attar_graph::{Model, validate};
use attar_import::{
    FolderOptions, ImportError, ImportedText, OPSETS, import_mobilenet_v2, import_text,
    import_weights,
};
use attar_ops::fuse::fuse_for_runtime;
use attar_runtime::{Builtin, Ort, RunOptions, Runtime, Session};
use attar_tensor::Tensor;
use attar_tests::{data, ort_library};
use serde_json::{Value, json};

/// Two frameworks sum a few thousand products in f32 in different orders, layer upon layer; what
/// they differ by stays below this on values of about 1.
const TOLERANCE: f32 = 1e-4;

fn reference(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("reference/{name}.json"));
    let bytes = std::fs::read(path).expect("the reference is committed");
    serde_json::from_slice(&bytes).expect("the script writes JSON")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("the reference has a list here")
}

fn floats(value: &Value) -> Vec<f32> {
    list(value).iter().map(|x| x.as_f64().expect("a number") as f32).collect()
}

fn sessions(model: &Model) -> [(&'static str, Box<dyn Session>); 2] {
    let threads = NonZeroUsize::MIN.saturating_add(1);
    let options = RunOptions { threads, ..RunOptions::default() };
    let ort = Ort::find(Some(&ort_library())).expect("the library loads");
    let runtimes: [&dyn Runtime; 2] = [&Builtin, &ort];
    runtimes.map(|runtime| {
        let session = runtime.load(model, &options);
        let session = session.unwrap_or_else(|error| panic!("{}: {error}", runtime.name()));
        (runtime.name(), session)
    })
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // A NaN is no maximum, so it is asked for by itself.
    assert!(found.iter().all(|x| x.is_finite()), "{what}");
    let largest = differences.fold(0.0, f32::max);
    assert!(largest <= TOLERANCE, "{what} differs by {largest}");
}

/// Texts of different lengths as one padded batch.
struct Batch {
    ids: Tensor,
    mask: Tensor,
    types: Tensor,
    lengths: Vec<usize>,
}

impl Batch {
    fn new(texts: &[Vec<i64>], pad_token_id: i64) -> Self {
        let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
        let length = *lengths.iter().max().expect("a batch has texts");
        let padded = |row: &[i64], fill: i64| {
            let mut row = row.to_vec();
            row.resize(length, fill);
            row
        };
        let shape = [texts.len(), length];
        let ids: Vec<i64> = texts.iter().flat_map(|row| padded(row, pad_token_id)).collect();
        let mask: Vec<i64> = texts.iter().flat_map(|row| padded(&vec![1; row.len()], 0)).collect();
        Self {
            ids: Tensor::new(&shape, &ids),
            mask: Tensor::new(&shape, &mask),
            types: Tensor::new(&shape, &vec![0_i64; ids.len()]),
            lengths,
        }
    }

    fn run(&self, session: &mut dyn Session) -> Tensor {
        let all = [
            ("input_ids", &self.ids),
            ("attention_mask", &self.mask),
            ("token_type_ids", &self.types),
        ];
        let feeds = &all[..session.inputs().len()];
        session.run(feeds).expect("the model runs").remove(0)
    }
}

fn texts(reference: &Value) -> Vec<Vec<i64>> {
    let ids = |row| list(row).iter().map(|id| id.as_i64().expect("a token id")).collect();
    list(&reference["ids"]).iter().map(ids).collect()
}

fn import(name: &str, pooling: bool) -> ImportedText {
    let options = FolderOptions { pooling, ..FolderOptions::default() };
    let imported = import_text(&data(name), &options).expect("the folder is whole");
    validate(&imported.model.graph).expect("the graph is well formed");
    imported
}

fn sentence_vectors_match(name: &str) {
    let reference = reference(name);
    let imported = import(name, true);
    assert_eq!(reference["pad_token_id"], imported.pad_token_id);
    let texts = texts(&reference);
    let batch = Batch::new(&texts, imported.pad_token_id);
    for (runtime, mut session) in sessions(&imported.model) {
        let vectors = batch.run(session.as_mut());
        let vectors = vectors.values::<f32>();
        let hidden = vectors.len() / texts.len();
        let expected = list(&reference["sentence_embedding"]);
        for (index, (vector, expected)) in vectors.chunks(hidden).zip(expected).enumerate() {
            let what = format!("{name} on {runtime}, text {index}");
            assert_close(vector, &floats(expected), &what);
        }
        // Without the padding that its neighbours ask for.
        let alone = Batch::new(&texts[..1], imported.pad_token_id).run(session.as_mut());
        assert_close(&alone.values::<f32>(), &vectors[..hidden], &format!("{name} alone"));
    }
}

fn token_vectors_match(name: &str) {
    let reference = reference(name);
    let imported = import(name, false);
    let batch = Batch::new(&texts(&reference), imported.pad_token_id);
    for (runtime, mut session) in sessions(&imported.model) {
        let tokens = batch.run(session.as_mut());
        let &[count, length, hidden] = tokens.shape() else { panic!("{:?}", tokens.shape()) };
        assert_eq!(count, batch.lengths.len());
        let values = tokens.values::<f32>();
        for (index, &own) in batch.lengths.iter().enumerate() {
            for (key, token) in [("first_token", 0), ("last_token", own - 1)] {
                let start = (index * length + token) * hidden;
                let expected = floats(&reference[key][index]);
                let what = format!("{name} on {runtime}, {key} of text {index}");
                assert_close(&values[start..start + expected.len()], &expected, &what);
            }
        }
    }
}

#[test]
fn minilm_gives_the_sentence_vectors_of_transformers() {
    sentence_vectors_match("minilm");
}

#[test]
fn minilm_gives_the_token_vectors_of_transformers() {
    token_vectors_match("minilm");
}

#[test]
fn mpnet_gives_the_sentence_vectors_of_transformers() {
    sentence_vectors_match("mpnet");
}

#[test]
fn mpnet_gives_the_token_vectors_of_transformers() {
    token_vectors_match("mpnet");
}

#[test]
fn lengths_padding_and_unused_weights_come_with_the_model() {
    let minilm = import_text(&data("minilm"), &FolderOptions::default()).unwrap();
    assert_eq!((minilm.length_max, minilm.lowercase), (256, false));
    let unused = ["embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"];
    assert_eq!(minilm.unused, unused);
    assert_eq!(minilm.tokenizer, data("minilm/tokenizer.json"));
    let mpnet = import_text(&data("mpnet"), &FolderOptions::default()).unwrap();
    assert_eq!((mpnet.length_max, mpnet.pad_token_id), (384, 1));
}

/// A folder with the weights of `MiniLM` and another pooling.
fn with_pooling(flags: &[&str]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(flags.join("-"));
    std::fs::create_dir_all(folder.join("1_Pooling")).expect("the folder for tests is writable");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let (from, to) = (data("minilm").join(name), folder.join(name));
        let linked = to.exists() || std::fs::hard_link(&from, &to).is_ok();
        // A hard link cannot reach another file system.
        assert!(linked || std::fs::copy(&from, &to).is_ok(), "{} is writable", to.display());
    }
    let config: Value = flags.iter().map(|&flag| (flag, true)).collect();
    let modules = json!([
        { "path": "", "type": "sentence_transformers.models.Transformer" },
        { "path": "1_Pooling", "type": "sentence_transformers.models.Pooling" },
    ]);
    for (name, value) in [("1_Pooling/config.json", config), ("modules.json", modules)] {
        std::fs::write(folder.join(name), value.to_string()).expect("the file is writable");
    }
    folder
}

#[test]
fn each_pooling_follows_its_formula() {
    let texts = texts(&reference("minilm"));
    let tokens = import("minilm", false);
    let batch = Batch::new(&texts, tokens.pad_token_id);
    let [(_, mut session), _] = sessions(&tokens.model);
    let tokens = batch.run(session.as_mut());
    let &[_, length, hidden] = tokens.shape() else { panic!("{:?}", tokens.shape()) };
    let flags =
        ["pooling_mode_cls_token", "pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens"];
    let pooled = import_text(&with_pooling(&flags), &FolderOptions::default()).unwrap();
    for (runtime, mut session) in sessions(&pooled.model) {
        let vectors = batch.run(session.as_mut());
        assert_eq!(vectors.shape(), [texts.len(), 3 * hidden]);
        let rows = tokens.values::<f32>();
        let rows = rows.chunks(length * hidden).zip(&batch.lengths);
        for (vector, (rows, &own)) in vectors.values::<f32>().chunks(3 * hidden).zip(rows) {
            let column = |c: usize| rows[..own * hidden].iter().skip(c).step_by(hidden);
            let max = |c: usize| column(c).copied().fold(f32::NEG_INFINITY, f32::max);
            let mean = |c: usize| column(c).sum::<f32>() / (own as f32).sqrt();
            let expected: Vec<f32> = rows[..hidden]
                .iter()
                .copied()
                .chain((0..hidden).map(max))
                .chain((0..hidden).map(mean))
                .collect();
            assert_close(vector, &expected, runtime);
        }
    }
}

#[test]
fn a_text_without_tokens_has_finite_vectors() {
    for name in ["minilm", "mpnet"] {
        let imported = import(name, true);
        let mut batch = Batch::new(&[vec![5, 6, 7]], imported.pad_token_id);
        batch.mask = Tensor::new(&[1, 3], &[0_i64; 3]);
        for (runtime, mut session) in sessions(&imported.model) {
            let vector = batch.run(session.as_mut());
            assert!(vector.values::<f32>().iter().all(|x| x.is_finite()), "{name} on {runtime}");
        }
    }
}

#[test]
fn the_builtin_runtime_recognizes_every_layer() {
    for (name, layers) in [("minilm", 6), ("mpnet", 12)] {
        let mut model = import(name, true).model;
        fuse_for_runtime(&mut model).unwrap();
        let count =
            |op_type: &str| model.graph.nodes.iter().filter(|n| n.op_type == op_type).count();
        assert_eq!(count("FusedAttention"), layers, "{name}");
        assert_eq!(count("SkipLayerNormalization"), 2 * layers + 1, "{name}");
        assert_eq!(count("FusedMatMul"), 6 * layers, "{name}");
        // The one product left pools the tokens.
        assert_eq!((count("Erf"), count("Softmax"), count("MatMul")), (0, 0, 1), "{name}");
    }
}

#[test]
fn every_opset_gives_the_same_vectors() {
    let reference = reference("minilm");
    let texts = texts(&reference);
    let expected = floats(&reference["sentence_embedding"][1]);
    for opset in OPSETS {
        let options = FolderOptions { opset, ..FolderOptions::default() };
        let imported = import_text(&data("minilm"), &options).unwrap();
        let batch = Batch::new(&texts[1..2], imported.pad_token_id);
        for (runtime, mut session) in sessions(&imported.model) {
            let vector = batch.run(session.as_mut());
            assert_close(&vector.values::<f32>(), &expected, &format!("{opset} on {runtime}"));
        }
    }
}

/// The image that `make_reference.py` gives the network.
fn waves(height: usize, width: usize) -> Tensor {
    let mut values = Vec::with_capacity(3 * height * width);
    for channel in 0..3 {
        let channel = channel as f64;
        for y in 0..height {
            for x in 0..width {
                let (y, x) = (y as f64, x as f64);
                let across = (0.05 * (channel + 1.0) * x + 0.3 * channel).sin() * 1.5;
                values.push((across + (0.07 * (channel + 1.0) * y).cos() * 0.8) as f32);
            }
        }
    }
    Tensor::new(&[1, 3, height, width], &values)
}

#[test]
fn mobilenet_v2_gives_the_logits_of_torchvision() {
    let reference = reference("mobilenet_v2");
    let imported = import_mobilenet_v2(&data("mobilenet/mobilenet_v2-b0353104.pth")).unwrap();
    validate(&imported.model.graph).unwrap();
    assert_eq!((imported.size, imported.resize), (224, 256));
    assert_eq!(imported.unused, Vec::<String>::new());
    for (runtime, mut session) in sessions(&imported.model) {
        for case in list(&reference["images"]) {
            let side = |name: &str| case[name].as_u64().unwrap() as usize;
            let image = waves(side("height"), side("width"));
            let logits = session.run(&[("image", &image)]).unwrap().remove(0);
            let expected = floats(&case["logits"]);
            assert_close(&logits.values::<f32>(), &expected, runtime);
        }
    }
}

#[test]
fn weights_of_another_network_are_refused_by_tensor() {
    let error = import_mobilenet_v2(&data("minilm/model.safetensors")).unwrap_err();
    assert!(
        matches!(&error, ImportError::MissingTensor { tensor, .. } if tensor == "features.0.0.weight"),
        "{error}"
    );
    let error = import_weights(&data("minilm/model.safetensors"), "resnet0").unwrap_err();
    assert_eq!(error.to_string(), "no architecture is called `resnet0`; there are mobilenet_v2");
}
