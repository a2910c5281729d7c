//! Small encoders in temporary folders, whole and broken.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use attar_graph::validate;
use attar_tensor::{DType, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::*;

/// A folder of a BERT with one layer, four channels and two heads; removed at the end.
struct TestFolder {
    path: PathBuf,
    config: Value,
    tensors: BTreeMap<String, Vec<usize>>,
}

impl TestFolder {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("attar-import-{}-{number}", std::process::id()));
        std::fs::create_dir_all(path.join("1_Pooling")).unwrap();
        let folder = Self { path, config: config(), tensors: bert_tensors() };
        folder.write("tokenizer.json", &json!({}));
        folder.write("1_Pooling/config.json", &json!({ "pooling_mode_mean_tokens": true }));
        folder.write_modules(&[("", "Transformer"), ("1_Pooling", "Pooling")]);
        folder
    }

    fn write(&self, name: &str, value: &Value) {
        std::fs::write(self.path.join(name), value.to_string()).unwrap();
    }

    fn write_modules(&self, modules: &[(&str, &str)]) {
        let modules: Vec<Value> = modules
            .iter()
            .map(|(path, class)| json!({ "path": path, "type": format!("package.{class}") }))
            .collect();
        self.write("modules.json", &modules.into());
    }

    fn with_config(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.config[key] = value.into();
        self
    }

    /// Writes tensors of increasing halves, as f32 or f16.
    fn write_tensors(&self, file: &str, tensors: &BTreeMap<String, Vec<usize>>, dtype: Dtype) {
        let to = if dtype == Dtype::F16 { DType::F16 } else { DType::F32 };
        let stored: Vec<(&String, Tensor)> = tensors
            .iter()
            .map(|(name, shape)| {
                let count: usize = shape.iter().product();
                let values: Vec<f32> = (0..count).map(|x| x as f32 / 2.0).collect();
                (name, Tensor::new(shape, &values).converted(to).unwrap())
            })
            .collect();
        let views: Vec<(&String, TensorView)> = stored
            .iter()
            .map(|(name, tensor)| {
                let view = TensorView::new(dtype, tensor.shape().to_vec(), tensor.bytes());
                (*name, view.unwrap())
            })
            .collect();
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::write(self.path.join(file), bytes).unwrap();
    }

    fn import(&self) -> Result<ImportedText, ImportError> {
        self.write_tensors("model.safetensors", &self.tensors, Dtype::F32);
        self.import_as_is(&FolderOptions::default())
    }

    fn import_as_is(&self, options: &FolderOptions) -> Result<ImportedText, ImportError> {
        self.write("config.json", &self.config);
        import_text(&self.path, options)
    }

    /// The message of the import, with file names alone.
    fn error(&self) -> String {
        let error = self.import().expect_err("the folder is broken");
        assert!(!error.hint().is_empty());
        error.to_string().replace(&format!("{}/", self.path.display()), "")
    }
}

impl Drop for TestFolder {
    fn drop(&mut self) {
        // What a failed removal leaves is a temporary folder.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn config() -> Value {
    json!({
        "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 4,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": 6,
        "vocab_size": 5, "type_vocab_size": 2, "pad_token_id": 0,
    })
}

fn bert_tensors() -> BTreeMap<String, Vec<usize>> {
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| tensors.insert(name, shape.to_vec());
    for (table, rows) in [("word", 5), ("position", 6), ("token_type", 2)] {
        add(format!("embeddings.{table}_embeddings.weight"), &[rows, 4]);
    }
    for norm in ["embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"] {
        add(format!("{norm}.LayerNorm.weight"), &[4]);
        add(format!("{norm}.LayerNorm.bias"), &[4]);
    }
    let linear = [
        ("attention.self.query", [4, 4]),
        ("attention.self.key", [4, 4]),
        ("attention.self.value", [4, 4]),
        ("attention.output.dense", [4, 4]),
        ("intermediate.dense", [8, 4]),
        ("output.dense", [4, 8]),
    ];
    for (name, shape) in linear {
        add(format!("encoder.layer.0.{name}.weight"), &shape);
        add(format!("encoder.layer.0.{name}.bias"), &shape[..1]);
    }
    tensors
}

fn dims(value: &attar_graph::Value) -> Vec<String> {
    value.shape().unwrap().iter().map(ToString::to_string).collect()
}

#[test]
fn names_are_those_of_the_checkpoint_and_weights_are_transposed() {
    let imported = TestFolder::new().import().unwrap();
    let graph = &imported.model.graph;
    validate(graph).unwrap();
    let weight = graph.constant("encoder.layer.0.intermediate.dense.weight").unwrap();
    assert_eq!(weight.shape(), [4, 8]);
    assert_eq!(weight.slice::<f32>()[..3], [0.0, 2.0, 4.0]);
    let name = "/encoder/layer.0/attention/self/query/MatMul";
    assert!(graph.nodes.iter().any(|node| node.name == name));
    assert_eq!(graph.outputs[0].name, "sentence_embedding");
    assert_eq!(dims(&graph.outputs[0]), ["batch", "4"]);
}

#[test]
fn every_initializer_is_read() {
    let imported = TestFolder::new().import().unwrap();
    let graph = &imported.model.graph;
    let links = attar_graph::Links::new(graph);
    let unread: Vec<&String> =
        graph.initializers.keys().filter(|name| !links.is_read(name)).collect();
    assert_eq!(unread, Vec::<&String>::new());
}

#[test]
fn prefixed_half_precision_shards_give_the_same_graph() {
    let whole = TestFolder::new().import().unwrap();
    let mut folder = TestFolder::new();
    let renamed = folder.tensors.iter().map(|(name, shape)| {
        let name = name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta");
        (format!("bert.{name}"), shape.clone())
    });
    folder.tensors = renamed.collect();
    let (first, second) = folder.tensors.iter().partition(|(name, _)| name.contains("query"));
    let shards: [BTreeMap<&String, &Vec<usize>>; 2] = [first, second];
    for (index, shard) in shards.iter().enumerate() {
        let shard = shard.iter().map(|(&name, &shape)| (name.clone(), shape.clone())).collect();
        folder.write_tensors(&format!("model-0000{index}.safetensors"), &shard, Dtype::F16);
    }
    let sharded = folder.import_as_is(&FolderOptions::default()).unwrap();
    let [whole, sharded] = [&whole, &sharded].map(|imported| &imported.model.graph);
    let tensors = |graph: &attar_graph::Graph| -> Vec<Tensor> {
        graph.initializers.values().map(|stored| stored.tensor.aligned()).collect()
    };
    assert_eq!(tensors(whole), tensors(sharded));
    assert!(sharded.initializers.contains_key("bert.embeddings.LayerNorm.gamma"));
}

#[test]
fn without_pooling_no_modules_are_needed() {
    let folder = TestFolder::new();
    std::fs::remove_file(folder.path.join("modules.json")).unwrap();
    assert!(folder.error().ends_with("names no pooling in a modules.json"));
    let options = FolderOptions { pooling: false, ..FolderOptions::default() };
    let graph = folder.import_as_is(&options).unwrap().model.graph;
    assert_eq!(graph.outputs[0].name, "last_hidden_state");
    assert_eq!(dims(&graph.outputs[0]), ["batch", "sequence", "4"]);
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let query = "encoder.layer.0.attention.self.query.weight";
    let mut folder = TestFolder::new();
    let shape = folder.tensors.remove(query).unwrap();
    assert_eq!(folder.error(), format!("`model.safetensors` has no tensor `{query}`"));

    folder.tensors.insert(query.into(), vec![4, 5]);
    assert_eq!(
        folder.error(),
        format!("`{query}` in `model.safetensors` has shape [4, 5], expected [4, 4]")
    );

    folder.tensors.insert(query.into(), shape);
    folder.tensors.insert("encoder.layer.1.output.dense.bias".into(), vec![4]);
    let error = folder.error();
    assert!(error.contains("`encoder.layer.1.output.dense.bias`, which is not part"), "{error}");

    let endless = TestFolder::new().with_config("num_hidden_layers", u64::MAX);
    assert!(endless.error().contains("no tensor `encoder.layer.1.attention"));
}

#[test]
fn what_would_be_another_model_is_refused() {
    let cases = [
        (
            "model_type",
            "t5",
            "model_type is `t5`, supported: bert, camembert, deit, distilbert, electra, mpnet, \
             roberta, vit, xlm-roberta",
        ),
        (
            "hidden_act",
            "mish",
            "hidden_act is `mish`, supported: gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, \
             quick_gelu, relu, silu, swish, tanh",
        ),
        ("position_embedding_type", "relative_key", "supported: absolute"),
    ];
    for (key, value, expected) in cases {
        let error = TestFolder::new().with_config(key, value).error();
        assert!(error.starts_with("`config.json`: ") && error.ends_with(expected), "{error}");
    }
    let reader =
        TestFolder::new().with_config("architectures", json!(["BertForQuestionAnswering"]));
    assert!(
        reader.error().contains("the class is `BertForQuestionAnswering`, supported: BertModel")
    );
    let decoder = TestFolder::new().with_config("is_decoder", true);
    assert!(decoder.error().contains("is_decoder is `true`"));
    for heads in [0, 3] {
        let odd = TestFolder::new().with_config("num_attention_heads", heads);
        assert!(odd.error().contains("a multiple of the heads"));
    }
    let options = FolderOptions { opset: 16, ..FolderOptions::default() };
    let error = TestFolder::new().import_as_is(&options).unwrap_err();
    assert_eq!(error.to_string(), "opset 16 cannot be written, 17 to 21 can");
}

/// The folder of a cross-encoder with three labels: pooler and head, all under their names.
fn ranker() -> TestFolder {
    let mut folder =
        TestFolder::new().with_config("architectures", json!(["BertForSequenceClassification"]));
    let encoder = std::mem::take(&mut folder.tensors);
    folder.tensors = encoder.into_iter().map(|(name, s)| (format!("bert.{name}"), s)).collect();
    for (name, rows) in [("bert.pooler.dense", 4), ("classifier", 3)] {
        folder.tensors.insert(format!("{name}.weight"), vec![rows, 4]);
        folder.tensors.insert(format!("{name}.bias"), vec![rows]);
    }
    folder
}

#[test]
fn a_cross_encoder_gives_its_scores() {
    let folder = ranker();
    std::fs::remove_file(folder.path.join("modules.json")).unwrap();
    let imported = folder.import().unwrap();
    let graph = &imported.model.graph;
    validate(graph).unwrap();
    assert_eq!(graph.outputs[0].name, "logits");
    assert_eq!(dims(&graph.outputs[0]), ["batch", "3"]);
    assert_eq!(imported.unused, Vec::<String>::new());
    // As newer releases of sentence-transformers describe it.
    folder.write_modules(&[("", "Transformer")]);
    assert_eq!(folder.import().unwrap().model.graph.outputs[0].name, "logits");
}

#[test]
fn a_folder_that_asks_for_pooling_is_pooled_whatever_class_wrote_it() {
    let imported = ranker().import().unwrap();
    assert_eq!(imported.model.graph.outputs[0].name, "sentence_embedding");
    let unused = ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias"];
    assert_eq!(imported.unused[..3], unused);
}

#[test]
fn weights_of_a_head_that_are_missing_are_named() {
    for name in ["bert.pooler.dense.bias", "classifier.weight", "classifier.bias"] {
        let mut folder = ranker();
        std::fs::remove_file(folder.path.join("modules.json")).unwrap();
        folder.tensors.remove(name);
        assert_eq!(folder.error(), format!("`model.safetensors` has no tensor `{name}`"));
    }
}

#[test]
fn a_padding_token_beyond_the_positions_is_refused() {
    for id in [-1, 5, i64::MAX] {
        let folder = TestFolder::new().with_config("model_type", "roberta");
        let folder = folder.with_config("architectures", json!([])).with_config("pad_token_id", id);
        let expected = format!("pad_token_id is `{id}`, supported: below the 6 positions less one");
        assert!(folder.error().ends_with(&expected), "{}", folder.error());
    }
}

#[test]
fn a_config_that_lacks_something_says_what_under_its_own_name() {
    let mut folder = TestFolder::new().with_config("model_type", "distilbert");
    folder.config["architectures"] = json!([]);
    folder.config.as_object_mut().unwrap().remove("hidden_size");
    assert!(folder.error().ends_with("missing field `dim`"), "{}", folder.error());
    folder.config.as_object_mut().unwrap().remove("model_type");
    assert!(folder.error().ends_with("it has no text `model_type`"), "{}", folder.error());
}

#[test]
fn chains_and_poolings_that_are_not_known_are_refused() {
    let folder = TestFolder::new();
    folder.write_modules(&[("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]);
    assert!(folder.error().contains("is Transformer, Pooling, Dense, supported"));
    folder.write_modules(&[("../..", "Transformer"), ("1_Pooling", "Pooling")]);
    assert!(folder.error().contains("at `../..`"));

    let folder = TestFolder::new();
    folder.write("1_Pooling/config.json", &json!({ "pooling_mode_lasttoken": true }));
    assert!(folder.error().contains("the pooling is `pooling_mode_lasttoken` = true, supported"));
    folder.write("1_Pooling/config.json", &json!({ "pooling_mode_mean_tokens": false }));
    assert!(folder.error().contains("the pooling is none, supported"));
}

#[test]
fn several_poolings_are_put_together_in_one_vector() {
    let folder = TestFolder::new();
    let both = json!({ "pooling_mode_cls_token": true, "pooling_mode_max_tokens": true });
    folder.write("1_Pooling/config.json", &both);
    folder.write_modules(&[("", "Transformer"), ("1_Pooling", "Pooling"), ("2", "Normalize")]);
    let graph = folder.import().unwrap().model.graph;
    assert_eq!(dims(&graph.outputs[0]), ["batch", "8"]);
    assert_eq!(graph.nodes.last().unwrap().name, "/normalize/Div");
}

#[test]
fn the_length_is_the_least_that_someone_asks_for() {
    let folder = TestFolder::new();
    assert_eq!(folder.import().unwrap().length_max, 6);
    // What transformers writes where there is no limit.
    folder.write("tokenizer_config.json", &json!({ "model_max_length": 1e30 }));
    assert_eq!(folder.import().unwrap().length_max, 6);
    folder.write("tokenizer_config.json", &json!({ "model_max_length": 5 }));
    assert_eq!(folder.import().unwrap().length_max, 5);
    let sentence = json!({ "max_seq_length": 4, "do_lower_case": true });
    folder.write("sentence_bert_config.json", &sentence);
    let imported = folder.import().unwrap();
    assert_eq!((imported.length_max, imported.lowercase), (4, true));
}

#[test]
fn missing_and_damaged_files_are_named() {
    let folder = TestFolder::new();
    let error = folder.import_as_is(&FolderOptions::default()).unwrap_err();
    assert!(error.to_string().contains("holds no model.safetensors"));
    std::fs::write(folder.path.join("model.safetensors"), b"<html>not found</html>").unwrap();
    let error = folder.import_as_is(&FolderOptions::default()).unwrap_err();
    assert!(error.to_string().contains("model.safetensors` is not a safetensors or PyTorch file"));
    std::fs::remove_file(folder.path.join("tokenizer.json")).unwrap();
    assert!(folder.error().starts_with("`tokenizer.json`: "));
    let error = import_text(Path::new("/nowhere"), &FolderOptions::default()).unwrap_err();
    assert!(error.to_string().starts_with("`/nowhere"), "{error}");
}
