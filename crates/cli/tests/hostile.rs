//! Files that lie, through the command line: an error that names the place, within little memory.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::path::PathBuf;
use std::process::{Command, Output};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("attar-hostile-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, content: &[u8]) -> String {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs attar with memory for the file and for itself, not for what the file declares.
fn attar(arguments: &[&str]) -> Output {
    let binary = env!("CARGO_BIN_EXE_attar");
    if cfg!(target_os = "linux") {
        let script = "ulimit -v 2000000; exec \"$0\" \"$@\"";
        Command::new("sh").args(["-c", script, binary]).args(arguments).output().unwrap()
    } else {
        Command::new(binary).args(arguments).output().unwrap()
    }
}

/// What the command says when it refuses.
fn refusal(arguments: &[&str]) -> String {
    let output = attar(arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    assert!(text.starts_with("error: ") && !text.contains("panicked"), "{text}");
    assert!(output.stdout.is_empty());
    text
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn int(number: u64, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(number << 3, &mut out);
    varint(value, &mut out);
    out
}

fn field(number: u64, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(number << 3 | 2, &mut out);
    varint(content.len() as u64, &mut out);
    out.extend(content);
    out
}

fn text(number: u64, text: &str) -> Vec<u8> {
    field(number, text.as_bytes())
}

/// A model of these fields of its graph.
fn model(graph: &[Vec<u8>]) -> Vec<u8> {
    [int(1, 10), field(8, &int(2, 20)), field(7, &graph.concat())].concat()
}

fn node(input: &str, output: &str) -> Vec<u8> {
    field(1, &[text(1, input), text(2, output), text(4, "Relu")].concat())
}

/// An f32 initializer `w` with these sizes and further fields.
fn initializer(sizes: &[u64], more: &[u8]) -> Vec<u8> {
    let sizes: Vec<u8> = sizes.iter().flat_map(|&size| int(1, size)).collect();
    field(5, &[sizes, int(2, 1), text(8, "w"), more.to_vec()].concat())
}

fn external(location: &str, offset: &str) -> Vec<u8> {
    let entry = |key: &str, value: &str| field(13, &[text(1, key), text(2, value)].concat());
    let entries = [entry("location", location), entry("offset", offset), int(14, 1)].concat();
    model(&[initializer(&[4], &entries)])
}

#[test]
fn models_that_lie_are_refused_by_name() {
    let folder = Folder::new("models");
    let input = text(1, "x");
    let input = field(11, &input);
    let whole = model(&[node("x", "y"), input.clone(), field(12, &text(1, "y"))]);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("cut", whole[..whole.len() - 3].to_vec(), "`ModelProto.graph"),
        ("text", b"version https://git-lfs.github.com/spec/v1".to_vec(), "not an ONNX model"),
        ("empty", vec![], "the model has no graph"),
        ("long field", [field(7, &[]), vec![0x3a, 0xff, 0xff, 0xff, 0xff, 0x7f]].concat(), "graph"),
        ("short data", model(&[initializer(&[1 << 40], &field(9, &[0; 8]))]), "`w` (initializer)"),
        ("no data", model(&[initializer(&[1 << 30], &[])]), "needs 4294967296 bytes, found 0"),
        ("overflow", model(&[initializer(&[1 << 62, 1 << 62], &[])]), "`w` (initializer)"),
        ("negative", model(&[initializer(&[u64::MAX], &[])]), "has a negative size"),
        ("cycle", model(&[node("b", "a"), node("a", "b")]), "takes part in a cycle"),
        ("self", model(&[node("a", "a")]), "takes part in a cycle"),
        ("unsorted", model(&[input.clone(), node("a", "b"), node("x", "a")]), "after it produces"),
        ("dangling", model(&[node("nowhere", "b")]), "`nowhere`, which nothing produces"),
        ("twice", model(&[input.clone(), node("x", "a"), node("x", "a")]), "`a` is produced twice"),
        ("inputs", model(&[input.clone(), input.clone()]), "graph input `x` is there twice"),
        ("output", model(&[field(12, &text(1, "y"))]), "`y` is produced by nothing"),
    ];
    for (name, bytes, message) in cases {
        let error = refusal(&["inspect", &folder.write(&format!("{name}.onnx"), &bytes)]);
        assert!(error.contains(message), "{name}: {error}");
    }
    assert!(attar(&["inspect", &folder.write("whole.onnx", &whole)]).status.success());
}

#[test]
fn external_data_stays_in_the_folder_and_in_its_file() {
    let folder = Folder::new("external");
    let secret = folder.write("secret.bin", &[0; 16]);
    folder.write("models/data.bin", &[0; 16]);
    let linked = folder.0.join("models/link.bin");
    #[cfg(unix)]
    std::os::unix::fs::symlink(&secret, &linked).unwrap();
    for (location, offset, message) in [
        ("../secret.bin", "0", "leads out of the model's folder"),
        (secret.as_str(), "0", "leads out of the model's folder"),
        ("link.bin", "0", "leads out of the model's folder"),
        ("data.bin", "4", "16 bytes at offset 4 are beyond its end at 16"),
        ("data.bin", "18446744073709551615", "are beyond its end at 16"),
        ("data.bin", "99999999999999999999", "is not a size"),
        ("missing.bin", "0", "`missing.bin`"),
        (".", "0", "it is not a file"),
    ] {
        if location == "link.bin" && !linked.exists() {
            continue;
        }
        let path = folder.write("models/m.onnx", &external(location, offset));
        let error = refusal(&["inspect", &path]);
        assert!(error.contains("`w` keeps its data in") && error.contains(message), "{error}");
    }
    let path = folder.write("models/m.onnx", &external("data.bin", "0"));
    assert!(attar(&["inspect", &path]).status.success());
}

#[test]
fn nesting_ten_thousand_deep_is_refused() {
    let folder = Folder::new("deep");
    let mut graph = Vec::new();
    let mut value_type = Vec::new();
    for _ in 0..10_000 {
        let attribute = [text(1, "body"), field(6, &graph), int(20, 5)].concat();
        graph = field(1, &[text(4, "If"), field(5, &attribute)].concat());
        value_type = field(4, &field(1, &value_type));
    }
    let input = field(11, &[text(1, "x"), field(2, &value_type)].concat());
    for (name, graph) in [("graphs", graph), ("types", input)] {
        let path = folder.write(&format!("{name}.onnx"), &model(&[graph]));
        let error = refusal(&["inspect", &path]);
        assert!(error.contains("nested more than 100 deep, in `ModelProto.graph"), "{error}");
    }
}

#[test]
fn state_dicts_and_safetensors_that_lie_are_refused_by_name() {
    let folder = Folder::new("weights");
    let import = |path: &str| {
        let output = folder.0.join("out.onnx").display().to_string();
        refusal(&["import", "--architecture", "mobilenet_v2", path, "-o", &output])
    };
    let call =
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.\
                 \x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.";
    let error = import(&folder.write("call.pth", call));
    assert!(error.contains("calls `os.system`"), "{error}");
    let growth = [&call[..25], &vec![b')'; 1 << 21][..]].concat();
    let error = import(&folder.write("growth.pth", &growth));
    assert!(error.contains("objects"), "{error}");
    for (name, header, message) in [
        ("far", r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, "not a safetensors"),
        ("odd", r#"{"w":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#, "not a safetensors"),
        ("broken", r#"{"w":{"dtype"#, "not a safetensors"),
    ] {
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        let error = import(&folder.write(&format!("{name}.safetensors"), &bytes));
        assert!(error.contains(message) && error.contains(name), "{error}");
    }
    let long = [&(1_u64 << 60).to_le_bytes()[..], b"{}"].concat();
    assert!(import(&folder.write("long.safetensors", &long)).contains("long.safetensors"));
}

#[test]
fn an_archive_that_unpacks_to_more_than_itself_is_refused() {
    // A zip whose only entry, deflated, would be a gigabyte of zeros: its header alone says so.
    let name = b"archive/data.pkl";
    let (packed, unpacked) = (1_000_u32, 1_u32 << 30);
    let entry = |magic: &[u8], extra: usize| -> Vec<u8> {
        let mut out = magic.to_vec();
        out.extend([20, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        out.extend([packed.to_le_bytes(), unpacked.to_le_bytes()].concat());
        out.extend((name.len() as u16).to_le_bytes());
        out.extend(vec![0; extra]);
        out.extend(name);
        out
    };
    let mut file = entry(b"PK\x03\x04", 2);
    file.extend(vec![0; packed as usize]);
    let directory = entry(b"PK\x01\x02\x14\x00", 16);
    let at = file.len() as u32;
    file.extend(&directory);
    file.extend(
        [
            b"PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00",
            &(directory.len() as u32).to_le_bytes()[..],
            &at.to_le_bytes(),
            &[0, 0],
        ]
        .concat(),
    );
    let folder = Folder::new("bomb");
    let (path, output) = (folder.write("bomb.pth", &file), folder.0.join("out.onnx"));
    let output = output.display().to_string();
    let error = refusal(&["import", "--architecture", "mobilenet_v2", &path, "-o", &output]);
    assert!(error.contains("`archive/data.pkl`") && error.contains("stored"), "{error}");
}
