//! A crate may use only crates above it in the list, and unsafe code stands in two places only.

use std::path::{Path, PathBuf};

/// The crates in order; `tests` and `bench` may use all.
const ORDER: &[&str] = &[
    "tensor", "graph", "onnx", "import", "ops", "runtime", "train", "evaluate", "compress",
    "attar", "cli",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn package_name(folder: &str) -> String {
    if folder == "attar" { folder.into() } else { format!("attar-{folder}") }
}

#[test]
fn a_crate_uses_only_crates_above_it() {
    for (index, folder) in ORDER.iter().enumerate() {
        let path = root().join("crates").join(folder).join("Cargo.toml");
        let manifest: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
        assert_eq!(manifest["package"]["name"].as_str().unwrap(), package_name(folder));
        let used = manifest["dependencies"].as_table().unwrap();
        for later in &ORDER[index..] {
            assert!(!used.contains_key(&package_name(later)), "{folder} uses {later}");
        }
    }
}

#[test]
fn every_crate_stands_in_the_order() {
    let mut folders: Vec<String> = std::fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    folders.sort();
    let mut known: Vec<&str> = ORDER.to_vec();
    known.sort_unstable();
    assert_eq!(folders, known);
}

#[test]
fn unsafe_code_stands_in_kernels_the_memory_map_and_the_heap_only() {
    let mut open = vec![root().join("crates")];
    let mut allowing = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            if text.contains("allow(unsafe_code)") {
                let path = path.strip_prefix(root().join("crates")).unwrap();
                allowing.push(path.to_string_lossy().into_owned());
            }
        }
    }
    allowing.sort();
    let known = ["attar/src/heap.rs", "ops/src/kernels/mod.rs", "tensor/src/map.rs"];
    assert_eq!(allowing, known);
}
