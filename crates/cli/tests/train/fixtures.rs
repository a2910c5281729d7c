//! Small models and data sets, and the command.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A folder of one test, removed when it ends.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("attar-train-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    /// A new model of the architecture.
    pub(crate) fn model(&self, name: &str, architecture: &str, options: &[&str]) -> String {
        let output = self.path(&format!("{name}/model.onnx"));
        let arguments = [&["new", architecture, "-o", &output], options].concat();
        let made = attar(&arguments);
        assert!(made.status.success(), "{}", stderr(&made));
        output
    }

    /// Eight numbers each, and the class that the first of them decides, or that number itself.
    pub(crate) fn points(&self, name: &str, count: usize, has_classes: bool) -> String {
        let mut numbers = Numbers(7);
        let x: Vec<f32> = (0..count * 8).map(|_| numbers.next()).collect();
        let folder = self.0.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect();
        std::fs::write(folder.join("features.npy"), npy("<f4", &[count, 8], bytes(&x))).unwrap();
        let first: Vec<f32> = x.chunks_exact(8).map(|row| row[0]).collect();
        let labels = if has_classes {
            let classes = first.iter().map(|&x| u8::from(x > 0.0)).collect();
            npy("|u1", &[count], classes)
        } else {
            npy("<f4", &[count, 1], bytes(&first))
        };
        std::fs::write(folder.join("labels.npy"), labels).unwrap();
        folder.display().to_string()
    }

    /// Texts of two topics, each with words of its own.
    pub(crate) fn topics(&self) -> String {
        let (train, validation) = (topic_rows(60, 1), topic_rows(20, 2));
        self.write("topics/train.tsv", train);
        self.write("topics/validation.tsv", validation);
        self.path("topics")
    }

    /// A tokenizer of the words that `topics` is made of.
    pub(crate) fn tokenizer(&self) -> String {
        let words: Vec<&str> = WORDS.iter().flatten().copied().collect();
        let mut vocabulary = String::from("\"[PAD]\":0,\"[UNK]\":1");
        for (index, word) in words.iter().enumerate() {
            write!(vocabulary, ",\"{word}\":{}", index + 2).unwrap();
        }
        let json = format!(
            "{{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[],\
             \"normalizer\":null,\"pre_tokenizer\":{{\"type\":\"Whitespace\"}},\
             \"post_processor\":null,\"decoder\":null,\"model\":{{\"type\":\"WordLevel\",\
             \"vocab\":{{{vocabulary}}},\"unk_token\":\"[UNK]\"}}}}"
        );
        self.write("tokenizer.json", json)
    }

    /// Images of 12 pixels a side, dark above and bright below or the other way round.
    pub(crate) fn images(&self, count: u32) -> String {
        let mut numbers = Numbers(3);
        let (mut pixels, mut labels) = (idx(&[count, 12, 12]), idx(&[count]));
        for index in 0..count {
            let class = (index % 2) as u8;
            labels.push(class);
            for row in 0..12 {
                let is_bright = (row < 6) == (class == 0);
                let base = if is_bright { 180.0 } else { 40.0 };
                pixels.extend((0..12).map(|_| (base + 30.0 * numbers.next()) as u8));
            }
        }
        self.write("images/train-images-idx3-ubyte", pixels);
        self.write("images/train-labels-idx1-ubyte", labels);
        self.path("images")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) const WORDS: [[&str; 6]; 2] = [
    ["goal", "match", "team", "score", "ball", "coach"],
    ["bread", "butter", "salt", "oven", "dough", "spoon"],
];

pub(crate) fn topic_rows(count: usize, seed: u64) -> String {
    let mut numbers = Numbers(seed);
    let mut text = String::from("text\tlabel\n");
    for index in 0..count {
        let words = WORDS[index % 2];
        let pick = |numbers: &mut Numbers| words[(numbers.next().abs() * 5.99) as usize];
        let length = 2 + index % 5;
        let words: Vec<&str> = (0..length).map(|_| pick(&mut numbers)).collect();
        let label = ["sport", "kitchen"][index % 2];
        writeln!(text, "{}\t{label}", words.join(" ")).unwrap();
    }
    text
}

/// Numbers between −1 and 1, the same for the same seed.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

pub(crate) fn npy(kind: &str, shape: &[usize], elements: Vec<u8>) -> Vec<u8> {
    let dims: Vec<String> = shape.iter().map(|dim| format!("{dim},")).collect();
    let dims = dims.concat();
    let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({dims}), }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(elements);
    bytes
}

pub(crate) fn idx(sizes: &[u32]) -> Vec<u8> {
    let sizes_bytes = sizes.iter().flat_map(|size| size.to_be_bytes());
    [0, 0, 8, sizes.len() as u8].into_iter().chain(sizes_bytes).collect()
}

pub(crate) fn attar(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_attar")).args(arguments).output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs a training to its end, and returns its answer.
pub(crate) fn trained(arguments: &[&str]) -> serde_json::Value {
    let output = attar(&[&["train", "--json"], arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

pub(crate) fn metric(answer: &serde_json::Value, model: usize) -> f64 {
    answer["quality"]["models"][model]["metrics"][0]["interval"]["value"].as_f64().unwrap()
}
