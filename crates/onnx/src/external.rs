//! Tensor data in files beside the model: found, checked and mapped; or written.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use attar_tensor::{Bytes, map_file};

use crate::error::OnnxError;
use crate::fields::entry;
use crate::messages::{EXTERNAL, GraphProto, ModelProto, TensorProto};
use crate::tensor::data_size_bytes;
use crate::walk::for_each_tensor;

/// Readers can map tensors that start on a page.
const PAGE_BYTES: usize = 4096;

/// The folders that a model's data may be in, and the files of them that are open.
pub(crate) struct DataFiles {
    folder: PathBuf,
    /// Resolved paths. Two of them when the model's own path is a symbolic link: download caches
    /// link the model and its data into one folder of their own.
    roots: Vec<PathBuf>,
    mapped: HashMap<String, Bytes>,
}

impl DataFiles {
    /// Data beside the model file at `path`.
    pub(crate) fn beside(path: &Path) -> io::Result<Self> {
        let mut files = Self::within(folder_of(path))?;
        files.roots.extend(path.canonicalize()?.parent().map(Path::to_path_buf));
        Ok(files)
    }

    pub(crate) fn within(folder: &Path) -> io::Result<Self> {
        let roots = vec![folder.canonicalize()?];
        Ok(Self { folder: folder.to_path_buf(), roots, mapped: HashMap::new() })
    }

    fn map(&mut self, location: &str) -> Result<Bytes, String> {
        if let Some(bytes) = self.mapped.get(location) {
            return Ok(bytes.clone());
        }
        let relative = Path::new(location);
        let is_inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if location.is_empty() || !relative.components().all(is_inside) {
            return Err("the path leads out of the model's folder".into());
        }
        let path = self.folder.join(relative);
        let resolved = path.canonicalize().map_err(|error| error.to_string())?;
        if !self.roots.iter().any(|root| resolved.starts_with(root)) {
            return Err("a symbolic link leads out of the model's folder".into());
        }
        // Opening a pipe or a device would wait or act.
        if !resolved.is_file() {
            return Err("it is not a file".into());
        }
        let bytes = map_file(&resolved).map_err(|error| error.to_string())?;
        self.mapped.insert(location.into(), bytes.clone());
        Ok(bytes)
    }
}

/// The folder of a file; that of a bare name is the current one.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Gives every tensor with external data its bytes, mapped, as raw data.
pub(crate) fn resolve(
    model: &mut ModelProto,
    open: &mut dyn FnMut() -> Result<DataFiles, OnnxError>,
) -> Result<(), OnnxError> {
    let mut files = None;
    for_each_tensor(model, &mut |tensor| {
        if tensor.data_location != Some(EXTERNAL) {
            return Ok(());
        }
        let files = match &mut files {
            Some(files) => files,
            none => none.insert(open()?),
        };
        resolve_tensor(tensor, files)
    })
}

fn resolve_tensor(tensor: &mut TensorProto, files: &mut DataFiles) -> Result<(), OnnxError> {
    let setting = |key: &str| {
        let found = tensor.external_data.iter().find(|entry| entry.key.as_deref() == Some(key));
        found.and_then(|entry| entry.value.as_deref())
    };
    let location = setting("location").unwrap_or_default().to_owned();
    let error = |problem: String| OnnxError::External {
        tensor: tensor.name.clone().unwrap_or_default(),
        location: location.clone(),
        problem,
    };
    if tensor.external_data.iter().any(|entry| !entry.unknown.is_empty()) {
        return Err(error("an entry has a field that attar does not know".into()));
    }
    let number = |key: &str| {
        let parse = |text: &str| {
            text.parse::<usize>().map_err(|_| error(format!("{key} `{text}` is not a size")))
        };
        setting(key).map(parse).transpose()
    };
    let offset = number("offset")?.unwrap_or(0);
    let length = number("length")?
        .or_else(|| data_size_bytes(tensor))
        .ok_or_else(|| error("its length is not given".into()))?;
    let bytes = files.map(&location).map_err(&error)?;
    let end = offset.checked_add(length).filter(|&end| end <= bytes.len());
    let end = end.ok_or_else(|| {
        error(format!("{length} bytes at offset {offset} are beyond its end at {}", bytes.len()))
    })?;
    tensor.raw_data = Some(bytes.slice(offset..end));
    tensor.external_data.clear();
    tensor.data_location = None;
    Ok(())
}

/// Moves the raw data of initializers of at least `bytes_min` bytes into `out`, which becomes the
/// file `location`. Returns how many bytes it then has.
pub(crate) fn externalize(
    model: &mut ModelProto,
    location: &str,
    bytes_min: usize,
    out: &mut dyn Write,
) -> io::Result<usize> {
    let mut end = 0;
    model
        .graph
        .iter_mut()
        .try_for_each(|graph| in_graph(graph, location, bytes_min, out, &mut end))?;
    Ok(end)
}

/// Constants in attributes stay: ONNX allows only initializers to have external data.
fn in_graph(
    graph: &mut GraphProto,
    location: &str,
    bytes_min: usize,
    out: &mut dyn Write,
    end: &mut usize,
) -> io::Result<()> {
    for tensor in &mut graph.initializer {
        let Some(bytes) = tensor.raw_data.take_if(|bytes| bytes.len() >= bytes_min.max(1)) else {
            continue;
        };
        let offset = end.next_multiple_of(PAGE_BYTES);
        out.write_all(&[0; PAGE_BYTES][..offset - *end])?;
        out.write_all(&bytes)?;
        *end = offset + bytes.len();
        tensor.external_data = vec![
            entry("location", location),
            entry("offset", &offset.to_string()),
            entry("length", &bytes.len().to_string()),
        ];
        tensor.data_location = Some(EXTERNAL);
    }
    let attributes = graph.node.iter_mut().flat_map(|node| &mut node.attribute);
    for attribute in attributes {
        for subgraph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            in_graph(subgraph, location, bytes_min, out, end)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use prost::Message;

    use super::*;
    use crate::tests::Folder;

    /// A model whose only tensor, `w: u8[4]`, is said to be in `location`.
    fn model(location: &str, more: &[(&str, &str)]) -> Vec<u8> {
        let mut external_data = vec![entry("location", location)];
        external_data.extend(more.iter().map(|(key, value)| entry(key, value)));
        let tensor = TensorProto {
            name: Some("w".into()),
            dims: vec![4],
            data_type: Some(2),
            data_location: Some(EXTERNAL),
            external_data,
            ..TensorProto::default()
        };
        let graph = GraphProto { initializer: vec![tensor], ..GraphProto::default() };
        ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
    }

    fn load(folder: &Folder, location: &str, more: &[(&str, &str)]) -> Result<Vec<u8>, String> {
        let path = folder.path.join("model.onnx");
        fs::write(&path, model(location, more)).unwrap();
        let model = crate::load(&path).map_err(|error| error.to_string())?;
        Ok(model.graph.constant("w").unwrap().bytes().to_vec())
    }

    #[test]
    fn data_is_found_by_offset_and_length() {
        let folder = Folder::new("found");
        fs::create_dir(folder.path.join("sub")).unwrap();
        fs::write(folder.path.join("sub/w.bin"), [0, 1, 2, 3, 4, 5]).unwrap();
        assert_eq!(load(&folder, "sub/w.bin", &[]).unwrap(), [0, 1, 2, 3]);
        assert_eq!(load(&folder, "./sub/w.bin", &[("offset", "2")]).unwrap(), [2, 3, 4, 5]);
        let both = [("offset", "1"), ("length", "4"), ("checksum", "unread")];
        assert_eq!(load(&folder, "sub/w.bin", &both).unwrap(), [1, 2, 3, 4]);
    }

    #[test]
    fn sizes_are_checked_before_they_are_used() {
        let folder = Folder::new("sizes");
        fs::write(folder.path.join("w.bin"), [0; 6]).unwrap();
        for (more, message) in [
            (vec![("offset", "3")], "4 bytes at offset 3 are beyond its end at 6"),
            (
                vec![("offset", "18446744073709551615")],
                "4 bytes at offset 18446744073709551615 are beyond its end at 6",
            ),
            (vec![("offset", "-1")], "offset `-1` is not a size"),
            (vec![("length", "7")], "7 bytes at offset 0 are beyond its end at 6"),
        ] {
            let expected = format!("`w` keeps its data in `w.bin`: {message}");
            assert_eq!(load(&folder, "w.bin", &more).unwrap_err(), expected);
        }
        assert_eq!(
            load(&folder, "w.bin", &[("length", "3")]).unwrap_err(),
            "`w` (initializer): shape [4] of u8 needs 4 bytes, found 3"
        );
    }

    #[cfg(unix)]
    #[test]
    fn no_path_leads_out_of_the_folder() {
        let outside = Folder::new("outside");
        fs::write(outside.path.join("secret"), [7; 4]).unwrap();
        let folder = Folder::new("inside");
        let secret = outside.path.join("secret");
        std::os::unix::fs::symlink(&secret, folder.path.join("link")).unwrap();
        std::os::unix::fs::symlink(&outside.path, folder.path.join("linked")).unwrap();
        let up = format!("../{}/secret", outside.path.file_name().unwrap().to_str().unwrap());
        for location in [secret.to_str().unwrap(), &up, "sub/../../secret", ".."] {
            let error = load(&folder, location, &[]).unwrap_err();
            assert!(error.ends_with("the path leads out of the model's folder"), "{error}");
        }
        for location in ["link", "linked/secret"] {
            let error = load(&folder, location, &[]).unwrap_err();
            assert!(error.ends_with("a symbolic link leads out of the model's folder"), "{error}");
        }
        assert!(load(&folder, "", &[]).is_err());
        assert!(load(&folder, ".", &[]).unwrap_err().ends_with("it is not a file"));
        assert!(load(&folder, "missing", &[]).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_cache_may_link_model_and_data_into_one_folder() {
        let blobs = Folder::new("blobs");
        fs::write(blobs.path.join("1"), model("w.bin", &[])).unwrap();
        fs::write(blobs.path.join("2"), [5; 4]).unwrap();
        let folder = Folder::new("snapshot");
        let path = folder.path.join("model.onnx");
        std::os::unix::fs::symlink(blobs.path.join("1"), &path).unwrap();
        std::os::unix::fs::symlink(blobs.path.join("2"), folder.path.join("w.bin")).unwrap();
        assert_eq!(crate::load(&path).unwrap().graph.constant("w").unwrap().bytes(), [5; 4]);
    }

    #[test]
    fn a_model_in_memory_names_its_folder() {
        let folder = Folder::new("memory");
        fs::write(folder.path.join("w.bin"), [1; 4]).unwrap();
        let bytes = Bytes::from(model("w.bin", &[]));
        let model = crate::from_bytes(bytes.clone(), Some(&folder.path)).unwrap();
        assert_eq!(model.graph.constant("w").unwrap().bytes(), [1; 4]);
        let error = crate::from_bytes(bytes, None).unwrap_err();
        assert!(error.to_string().contains("external data without a folder"));
    }
}
