//! What every fuzz target does with an input, shared with the test that replays the corpus.
//!
//! An error is a fine answer; a panic, an abort, endless work or memory without bound is not.

use std::fs;
use std::path::{Path, PathBuf};

use attar_evaluate::{DataKind, Dataset, Preprocessing, TextEncoder, TextInput};
use attar_tensor::Bytes;

/// A target by name.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 5] = [
    ("data", data),
    ("onnx", onnx),
    ("pth", pth),
    ("safetensors", safetensors),
    ("tokenizer", tokenizer),
];

/// A model that is read is written, field by field, as it was; and its shapes can be asked for.
pub fn onnx(input: &[u8]) {
    let Ok(model) = attar_onnx::from_bytes(Bytes::copy_from_slice(input), None) else { return };
    let written = attar_onnx::to_bytes(&model).expect("a model that was read can be written");
    assert!(attar_onnx::testing::say_the_same(input, &written), "a field was lost or changed");
    let again = attar_onnx::from_bytes(written.clone().into(), None)
        .expect("a model that was written can be read");
    let rewritten = attar_onnx::to_bytes(&again).expect("a model that was read can be written");
    assert!(written == rewritten, "writing once more changes the bytes");
    let _ = attar_ops::infer_graph(&model);
}

/// A file of weights that has nothing to say about how it is packed.
pub fn safetensors(input: &[u8]) {
    let _ = attar_import::read_weights(Path::new("w.safetensors"), &Bytes::copy_from_slice(input));
}

/// An archive or stream as `torch.save` writes it. Inputs that begin otherwise are a pickle, put
/// into a stream: the fuzzer need not find checksums to get at the machine.
pub fn pth(input: &[u8]) {
    const STREAM: &[u8] =
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    let file = Path::new("w.pth");
    let _ = attar_import::read_weights(file, &Bytes::copy_from_slice(input));
    if !input.starts_with(b"PK") && !input.starts_with(&STREAM[..15]) {
        let _ = attar_import::read_weights(file, &[STREAM, input].concat().into());
    }
}

/// A data set: the first byte says of which kind, zero bytes part its files.
pub fn data(input: &[u8]) {
    let Some((&kind, content)) = input.split_first() else { return };
    let folder = Folder::new("data");
    let (names, forced): (&[&str], Option<DataKind>) = match kind {
        b'r' => (&["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"], None),
        b'i' => (&["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"], None),
        b'l' => (&["labels.tsv", "a.png"], Some(DataKind::Images)),
        b'p' => (&["pairs.tsv"], None),
        b'c' => (&["pairs.csv"], None),
        b'j' => (&["rows.jsonl"], None),
        b't' => (&["rows.txt"], None),
        b'a' => (&["rows.csv"], Some(DataKind::Labelled)),
        b's' => (&["rows.jsonl"], Some(DataKind::Labelled)),
        b'n' => (&["features.npy"], None),
        b'z' => (&["arrays.npz"], None),
        _ => return,
    };
    // IDX files are full of zeros: there the first length byte parts them.
    let parts: Vec<&[u8]> = match (kind, content.split_first()) {
        (b'i', Some((&at, rest))) => {
            let (images, labels) = rest.split_at(usize::from(at).min(rest.len()));
            vec![images, labels]
        }
        _ => content.splitn(names.len(), |&byte| byte == 0).collect(),
    };
    for (name, part) in names.iter().zip(parts) {
        folder.write(name, part);
    }
    let path = match names {
        [only] => folder.path.join(only),
        _ => folder.path.clone(),
    };
    for skip_bad in [false, true] {
        if let Ok((data, _)) = Dataset::open(&path, forced, skip_bad) {
            use_data(&data);
        }
    }
}

fn use_data(data: &Dataset) {
    assert!(data.texts().iter().all(|text| text.len() < usize::MAX));
    match data {
        Dataset::Labelled(data) => {
            assert!(data.labels.iter().all(|&label| label < data.names.len()));
        }
        Dataset::Tensors(data) => {
            let inputs = data.arrays.iter().map(|(name, _)| attar_graph::Value::untyped(name));
            let _ = data.feeds(&[0, data.count - 1], &inputs.collect::<Vec<_>>());
        }
        _ => {}
    }
    if let Dataset::Images(images) = data {
        assert_eq!(images.images.len(), images.labels.len());
        let (mean, std) = (vec![0.5], vec![0.5]);
        let input = attar_evaluate::ImageInput {
            resize: 8,
            size: 8,
            mean,
            std,
            resample: attar_evaluate::Resample::default(),
            stretch: false,
        };
        for image in images.images.iter().take(3) {
            let _ = attar_evaluate::decode_image(image, &input);
        }
    }
}

/// A `tokenizer.json`, asked to encode a text.
pub fn tokenizer(input: &[u8]) {
    let folder = Folder::new("tokenizer");
    folder.write("tokenizer.json", input);
    let text = TextInput { tokenizer: "tokenizer.json".into(), length_max: 16 };
    let preprocessing = Preprocessing { text: Some(text), ..Preprocessing::default() };
    if let Ok(encoder) = TextEncoder::new(&preprocessing, &folder.path) {
        let _ = encoder.encode(&["Hello, naïve wörld 東京!", ""]);
    }
}

/// A folder in memory where there is one, used again for every input of this process.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new(name: &str) -> Self {
        let memory = PathBuf::from("/dev/shm");
        let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let path = parent.join(format!("attar-fuzz-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a folder can be made");
        Self { path }
    }

    fn write(&self, name: &str, content: &[u8]) {
        let path = self.path.join(name);
        let parent = path.parent().expect("the file is in the folder");
        fs::create_dir_all(parent).expect("a folder can be made");
        fs::write(&path, content).expect("a file can be written");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
