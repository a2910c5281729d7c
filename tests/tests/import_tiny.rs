//! A tiny network of every architecture that folders may hold, on both runtimes against
//! `transformers`.
//!
//! `tests/reference/tiny` holds configs, names and shapes of weights, and expected outputs;
//! `make_tiny_reference.py` made them. The weights are made here, from the same formula.

#[path = "import_tiny/training.rs"]
mod training;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use attar_evaluate::TextEncoder;
use attar_graph::{Model, validate};
use attar_import::{
    FOLDER_ARCHITECTURES, FolderOptions, Imported, TEXT_ARCHITECTURES, import_folder,
};
use attar_ops::fuse::fuse_for_runtime;
use attar_runtime::{Builtin, Ort, RunOptions, Runtime};
use attar_tensor::{DType, Tensor};
use attar_tests::{Folder, ort_library};
use serde_json::{Map, Value, json};

/// Of the largest value of an output: what f32 may differ by from the f64 of the reference.
const TOLERANCE: f32 = 1e-5;

const NAMES: [&str; 18] = [
    "bert",
    "bert_f16",
    "bert_ranker",
    "camembert",
    "deit_classifier",
    "deit_distilled",
    "distilbert",
    "distilbert_ranker",
    "electra",
    "electra_ranker",
    "mpnet",
    "mpnet_ranker",
    "roberta",
    "roberta_ranker",
    "vit",
    "vit_classifier",
    "xlm_roberta",
    "xlm_roberta_ranker",
];

/// One of the networks, and a folder of its own for it; removed at the end.
struct Network {
    reference: Value,
    folder: Folder,
}

impl Network {
    fn new(name: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let path = format!("{}/reference/tiny/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(path).expect("the reference is committed");
        let reference: Value = serde_json::from_slice(&bytes).expect("the script writes JSON");
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = Folder::new(&format!("tiny-{number}"));
        let network = Self { reference, folder };
        network.write("config.json", network.reference["config"].to_string().as_bytes());
        if network.is_image() {
            network.write("preprocessor_config.json", network.processor().to_string().as_bytes());
        } else {
            network.write("tokenizer.json", b"{}");
        }
        network
    }

    /// With its weights in one file.
    fn whole(name: &str) -> Self {
        let network = Self::new(name);
        let all = |_: &str| true;
        network.write("model.safetensors", &network.safetensors(all));
        network
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.folder.join(name), bytes).expect("the file is writable");
    }

    fn is_image(&self) -> bool {
        self.reference["config"]["image_size"].is_u64()
    }

    fn processor(&self) -> Value {
        let config = &self.reference["config"];
        let (size, channels) = (&config["image_size"], &config["num_channels"]);
        let each = vec![0.5; channels.as_u64().expect("a count") as usize];
        json!({
            "size": { "height": size, "width": size }, "resample": 3,
            "image_mean": each, "image_std": each,
        })
    }

    fn tensor_names(&self) -> Vec<&String> {
        self.reference["tensors"].as_object().expect("an object").keys().collect()
    }

    fn layer_count(&self) -> usize {
        let config = &self.reference["config"];
        let count = config.get("num_hidden_layers").or_else(|| config.get("n_layers"));
        count.and_then(Value::as_u64).expect("a count") as usize
    }

    /// The file of the weights whose name `is_in`.
    fn safetensors(&self, is_in: impl Fn(&str) -> bool) -> Vec<u8> {
        let (label, dtype) = match self.reference["stored_as"].as_str().expect("a type") {
            "float16" => ("F16", DType::F16),
            "bfloat16" => ("BF16", DType::BF16),
            _ => ("F32", DType::F32),
        };
        let (mut header, mut data) = (Map::new(), Vec::new());
        for (name, shape) in self.reference["tensors"].as_object().expect("an object") {
            if !is_in(name) {
                continue;
            }
            let start = data.len();
            let weights = weights(name, &sizes(shape)).converted(dtype).expect("floats convert");
            data.extend_from_slice(weights.bytes());
            let offsets = [start, data.len()];
            let entry = json!({ "dtype": label, "shape": shape, "data_offsets": offsets });
            header.insert(name.clone(), entry);
        }
        let header = Value::Object(header).to_string();
        let size = (header.len() as u64).to_le_bytes();
        [&size[..], header.as_bytes(), &data].concat()
    }

    fn import(&self, pooling: bool, opset: i64) -> Imported {
        let imported = import_folder(self.folder.path(), &FolderOptions { pooling, opset });
        let imported =
            imported.unwrap_or_else(|error| panic!("{}: {error}", self.folder.path().display()));
        validate(&imported.model().graph).expect("the graph is well formed");
        imported
    }

    /// The names of the outputs that are known, and whether they are pooled.
    fn outputs(&self) -> Vec<(&str, bool)> {
        let outputs = self.reference["outputs"].as_object().expect("an object");
        outputs.keys().map(|name| (name.as_str(), name != "last_hidden_state")).collect()
    }

    fn feeds(&self) -> Vec<(String, Tensor)> {
        if self.is_image() {
            let config = &self.reference["config"];
            let size = |key: &str| config[key].as_u64().expect("a size") as usize;
            let shape = [2, size("num_channels"), size("image_size"), size("image_size")];
            let image: Vec<f32> =
                values("image", shape.iter().product()).map(|x| (x * 8.0) as f32).collect();
            return vec![("pixel_values".into(), Tensor::new(&shape, &image))];
        }
        let inputs = self.reference["inputs"].as_object().expect("an object");
        let feed = |(name, rows): (&String, &Value)| {
            let rows: Vec<Vec<i64>> = serde_json::from_value(rows.clone()).expect("rows of ids");
            (name.clone(), Tensor::new(&[rows.len(), rows[0].len()], &rows.concat()))
        };
        inputs.iter().map(feed).collect()
    }

    fn assert_runs_as_expected(&self, model: &Model, output: &str, what: &str) {
        let expected: Vec<f32> = serde_json::from_value(self.reference["outputs"][output].clone())
            .expect("a list of numbers");
        let feeds = self.feeds();
        let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let ort = Ort::find(Some(&ort_library())).expect("the library loads");
        let runtimes: [&dyn Runtime; 2] = [&Builtin, &ort];
        for runtime in runtimes {
            let what = format!("{what}, {output} on {}", runtime.name());
            let options = RunOptions { threads: NonZeroUsize::MIN, ..RunOptions::default() };
            let session = runtime.load(model, &options);
            let mut session = session.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(session.outputs()[0].name, output, "{what}");
            let found = session.run(&feeds).expect("the model runs").remove(0);
            let found = found.values::<f32>();
            assert_eq!(found.len(), expected.len(), "{what}");
            let largest = expected.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let difference = (found - expected).abs() / largest;
                // Not `>`, which a NaN would pass.
                assert!(difference <= TOLERANCE, "{what}: [{index}] differs by {difference}");
            }
        }
    }
}

fn sizes(shape: &Value) -> Vec<usize> {
    serde_json::from_value(shape.clone()).expect("a shape")
}

/// Multiples of 2⁻²⁵ between −¼ and ¼: splitmix64 over FNV-1a of the name.
fn values(name: &str, count: usize) -> impl Iterator<Item = f64> {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (1..=count as u64).map(move |index| {
        let mut z = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 40) as f64 / f64::from(1 << 25) - 0.25
    })
}

/// Around 1 where a normalization scales, around 0 everywhere else.
fn weights(name: &str, shape: &[usize]) -> Tensor {
    let is_scale = name.to_lowercase().contains("norm") && name.ends_with(".weight");
    let centre = f64::from(u8::from(is_scale));
    let all: Vec<f32> = values(name, shape.iter().product()).map(|x| (x + centre) as f32).collect();
    Tensor::new(shape, &all)
}

fn model_type(name: &str) -> String {
    let network = Network::new(name);
    network.reference["config"]["model_type"].as_str().expect("a text").into()
}

#[test]
fn there_is_a_network_of_every_architecture() {
    let known = attar_import::folder_architectures();
    assert_eq!(known.len(), TEXT_ARCHITECTURES.len() + FOLDER_ARCHITECTURES.len());
    let shown: Vec<String> = NAMES.iter().map(|name| model_type(name)).collect();
    for architecture in known {
        assert!(shown.iter().any(|shown| shown == architecture), "{architecture}");
    }
}

#[test]
fn every_network_gives_what_transformers_gives() {
    for name in NAMES {
        let network = Network::whole(name);
        for (output, pooling) in network.outputs() {
            for opset in [17, 18, 21] {
                let imported = network.import(pooling, opset);
                let what = format!("{name} at opset {opset}");
                network.assert_runs_as_expected(imported.model(), output, &what);
            }
        }
    }
}

#[test]
fn half_precision_is_remarked_and_nothing_else_is() {
    for name in NAMES {
        let network = Network::whole(name);
        let remarks = match network.import(network.outputs()[0].1, 17) {
            Imported::Text(text) => text.remarks,
            Imported::Image(image) => image.remarks,
        };
        let expected = match network.reference["stored_as"].as_str() {
            Some("float32") => None,
            Some("float16") => Some("weights are f16 in the file and f32 in the model, exactly"),
            _ => Some("weights are bf16 in the file and f32 in the model, exactly"),
        };
        assert_eq!(remarks.len(), usize::from(expected.is_some()), "{name}: {remarks:?}");
        assert!(remarks.iter().all(|remark| remark.ends_with(expected.unwrap_or(""))));
    }
}

#[test]
fn a_head_that_is_left_out_is_reported() {
    let unused = |name: &str, pooling: bool| match Network::whole(name).import(pooling, 17) {
        Imported::Text(text) => text.unused,
        Imported::Image(image) => image.unused,
    };
    for name in NAMES.iter().filter(|name| name.contains('_') && **name != "bert_f16") {
        if *name != "xlm_roberta" {
            assert_eq!(unused(name, true), Vec::<String>::new(), "{name}");
        }
    }
    let classifier = ["classifier.bias", "classifier.weight"];
    let pooler = ["bert.pooler.dense.bias", "bert.pooler.dense.weight"];
    assert_eq!(unused("bert_ranker", false), [pooler, classifier].concat());
    assert_eq!(unused("vit_classifier", false), classifier);
    assert_eq!(unused("roberta", false), ["pooler.dense.bias", "pooler.dense.weight"]);
}

#[test]
fn shards_give_the_model_that_one_file_gives() {
    let whole = Network::whole("xlm_roberta_ranker");
    let sharded = Network::new("xlm_roberta_ranker");
    let files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let names = sharded.tensor_names();
    let is_first = |name: &str| name.contains("layer.0");
    let file_of = |name: &str| files[usize::from(!is_first(name))];
    let map: Map<String, Value> =
        names.iter().map(|name| ((*name).clone(), file_of(name).into())).collect();
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    sharded.write("model.safetensors.index.json", index.to_string().as_bytes());
    for file in files {
        sharded.write(file, &sharded.safetensors(|name| file_of(name) == file));
    }
    // A file that the index does not name, as some folders have it for another framework.
    sharded.write("consolidated.safetensors", &sharded.safetensors(|_| true));
    let [whole, sharded] = [&whole, &sharded].map(|network| network.import(true, 17));
    let [whole, sharded] = [&whole, &sharded].map(|imported| &imported.model().graph);
    assert_eq!(whole.nodes, sharded.nodes);
    let tensors = |graph: &attar_graph::Graph| -> Vec<(String, Tensor)> {
        let named = graph.initializers.iter();
        named.map(|(name, stored)| (name.clone(), stored.tensor.aligned())).collect()
    };
    assert_eq!(tensors(whole), tensors(sharded));
}

#[test]
fn the_builtin_runtime_recognizes_every_layer() {
    for name in NAMES {
        let network = Network::whole(name);
        let layers = network.layer_count();
        let (_, pooling) = network.outputs()[0];
        let mut model = network.import(pooling, 17).model().clone();
        fuse_for_runtime(&mut model).expect("the graph is well formed");
        let nodes = &model.graph.nodes;
        let count = |op_type: &str| nodes.iter().filter(|node| node.op_type == op_type).count();
        assert_eq!(count("FusedAttention"), layers, "{name}");
        assert_eq!((count("Softmax"), count("Erf")), (0, 0), "{name}");
        let norms = match model_type(name).as_str() {
            // The sum of words and positions is of two shapes, as no other is.
            "distilbert" => [1, 2 * layers],
            // Where parts are normalized before they read x, x goes on past the normalization of
            // all but the last.
            "deit" | "vit" => [2 * layers, 1],
            _ => [0, 2 * layers + 1],
        };
        let found = ["LayerNormalization", "SkipLayerNormalization"].map(count);
        assert_eq!(found, norms, "{name}");
        let config = &network.reference["config"];
        let activation = config.get("hidden_act").or_else(|| config.get("activation"));
        let fused = |activation: &str| {
            let has = |node: &&attar_graph::Node| {
                node.text("activation").is_ok_and(|found| found == Some(activation))
            };
            nodes.iter().filter(has).count()
        };
        match activation.and_then(Value::as_str) {
            Some("gelu") => assert!(fused("Gelu") >= layers, "{name}"),
            Some("gelu_new") => assert_eq!((count("Gelu"), count("Tanh")), (layers, 0), "{name}"),
            Some("relu") => assert!(fused("Relu") >= layers, "{name}"),
            Some("silu") => assert_eq!(count("Sigmoid"), layers, "{name}"),
            other => panic!("{name} has another activation: {other:?}"),
        }
    }
}

#[test]
fn what_a_processor_does_comes_with_the_model() {
    let network = Network::whole("vit");
    let Imported::Image(image) = network.import(true, 17) else { panic!("ViT takes images") };
    assert_eq!((image.size, image.resize, image.is_stretched), (24, 24, true));
    assert_eq!((image.mean, image.std), (vec![0.5; 3], vec![0.5; 3]));

    let shorter = json!({
        "size": { "shortest_edge": 28 }, "do_center_crop": true, "crop_size": 24,
        "do_normalize": false, "do_convert_rgb": null, "resample": null,
    });
    network.write("preprocessor_config.json", shorter.to_string().as_bytes());
    let Imported::Image(image) = network.import(true, 17) else { panic!("ViT takes images") };
    assert_eq!((image.size, image.resize, image.is_stretched), (24, 28, false));
    assert_eq!((image.mean, image.std), (vec![0.0; 3], vec![1.0; 3]));

    let refused = [
        (json!({ "size": 32 }), "the size is `32`, supported: 24 × 24, the network's image_size"),
        (
            json!({ "size": { "height": 24, "width": 32 } }),
            "size is `24 × 32`, supported: a square",
        ),
        (
            json!({ "size": 24, "resample": 1 }),
            "resample is `1`, supported: 2 (bilinear), 3 (bicubic)",
        ),
        (json!({ "size": 24, "rescale_factor": 1.0 }), "rescale_factor is `1`, supported: 1/255"),
        (json!({ "size": 24, "image_std": [0, 1, 1] }), "of which none divides by zero"),
        (json!({ "size": 0 }), "crop_size is `0`, supported: 1 to 0"),
    ];
    for (processor, expected) in refused {
        network.write("preprocessor_config.json", processor.to_string().as_bytes());
        let error = import_folder(network.folder.path(), &FolderOptions::default()).unwrap_err();
        assert!(error.to_string().ends_with(expected), "{error}");
    }
}

#[test]
fn a_vision_transformer_without_pooler_gives_its_first_token() {
    let network = Network::new("vit");
    let file = network.safetensors(|name| !name.starts_with("pooler."));
    network.write("model.safetensors", &file);
    let Imported::Image(image) = network.import(true, 17) else { panic!("ViT takes images") };
    assert_eq!(image.model.graph.outputs[0].name, "image_embedding");
    assert_eq!(image.remarks, ["there is no pooler: the vector is that of the first token"]);
}

/// Words that are their own ids, and pairs as BERT's tokenizer joins them.
fn tokenizer() -> Value {
    let words = (0..99).map(|id| (format!("w{id}"), Value::from(id)));
    let vocabulary: Map<String, Value> = words.collect();
    let special =
        |id: u32| json!({ "id": format!("w{id}"), "ids": [id], "tokens": [format!("w{id}")] });
    let piece = |name: &str, kind: u32| json!({ "Sequence": { "id": name, "type_id": kind } });
    let separator = |kind: u32| json!({ "SpecialToken": { "id": "w3", "type_id": kind } });
    let first = json!({ "SpecialToken": { "id": "w2", "type_id": 0 } });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "decoder": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, piece("A", 0), separator(0)],
            "pair": [first, piece("A", 0), separator(0), piece("B", 1), separator(1)],
            "special_tokens": { "w2": special(2), "w3": special(3) },
        },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" },
    })
}

#[test]
fn an_imported_cross_encoder_is_measured_on_pairs_and_on_nothing_else() {
    let network = Network::whole("bert_ranker");
    network.write("tokenizer.json", tokenizer().to_string().as_bytes());
    let output = network.folder.join("onnx/ranker.onnx");
    let request = attar::ImportRequest {
        source: network.folder.path(),
        architecture: None,
        pooling: true,
        output: &output,
    };
    attar::import(&request).expect("the folder is whole");
    let subject = attar::Subject::open(&output).expect("the model was written");

    let mut pairs = "sentence1\tsentence2\tscore\n".to_string();
    for (text, score) in [("w17 w45 w98\tw60 w5 w33 w71", 2), ("w50\tw9 w9", 1), ("w50\tw9", 0)] {
        pairs.push_str(&format!("{text}\t{score}\n"));
    }
    network.write("pairs.tsv", pairs.as_bytes());
    network.write("texts.txt", b"w50 w9\nw9\n");
    let evaluate = |file: &str| {
        let (data, _) = attar::Dataset::open(&network.folder.join(file), None, false)
            .expect("the data is well formed");
        let options = attar::EvaluateOptions {
            runtime: &Builtin,
            threads: NonZeroUsize::MIN,
            batch_size: 2,
            progress: &attar::Silent,
        };
        attar::evaluate_models(&[&subject, &subject], &data, &options)
    };
    let evaluation = evaluate("pairs.tsv").expect("pairs can be scored");
    assert_eq!(evaluation.models[1].metrics[0].name, "Spearman");
    assert!(evaluation.models[1].agreement.is_none());
    let error = evaluate("texts.txt").expect_err("texts have no score");
    assert!(error.to_string().contains("one score for two texts"), "{error}");

    let encoder = TextEncoder::new(
        subject.preprocessing.as_ref().expect("written"),
        output.parent().expect("a folder"),
    )
    .expect("the tokenizer is whole");
    let encoded = encoder.encode_pairs(&[("w17 w45", "w60")]).expect("words are known");
    assert_eq!(encoded[0].ids, [2, 17, 45, 3, 60, 3]);
    assert_eq!(encoded[0].types, [0, 0, 0, 0, 1, 1]);
}
