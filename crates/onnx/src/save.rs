//! Writing a model: weights go from where they are to the file, without a copy of the whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use attar_graph::Model;
use prost::{Message, encode_length_delimiter};

use crate::error::OnnxError;
use crate::external::{externalize, folder_of};
use crate::messages::ModelProto;
use crate::model::write_model;

/// Bytes that one protobuf message can have.
const MESSAGE_BYTES_MAX: usize = 0x7fff_ffff;
/// From this size on, tensors leave a model that is too large for one message.
const EXTERNAL_BYTES_MIN: usize = 1024;

/// How to write a model.
#[derive(Clone, Debug, Default)]
pub struct SaveOptions {
    /// Initializers of at least this size go into a second file, `NAME.onnx.data`. With `None`
    /// there is one only if the model is too large for one message.
    pub external_data_min_bytes: Option<usize>,
}

/// The model as one ONNX message.
///
/// # Errors
/// [`OnnxError::TooLarge`] from 2 GB on.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>, OnnxError> {
    let proto = write_model(model)?;
    let mut bytes = Vec::with_capacity(check_size(&proto, MESSAGE_BYTES_MAX)?);
    stream(proto, &mut bytes).expect("a vector takes every byte");
    Ok(bytes)
}

fn check_size(proto: &ModelProto, limit: usize) -> Result<usize, OnnxError> {
    match proto.encoded_len() {
        size_bytes if size_bytes <= limit => Ok(size_bytes),
        size_bytes => Err(OnnxError::TooLarge { size_bytes, limit }),
    }
}

/// Writes a model file, and its data file if it has one. Both appear whole, by rename; a model may
/// be saved over the file it was loaded from.
///
/// # Errors
/// When a file cannot be written, or the model is too large even without its initializers.
pub fn save(model: &Model, path: &Path, options: &SaveOptions) -> Result<(), OnnxError> {
    save_within(MESSAGE_BYTES_MAX, model, path, options)
}

fn save_within(
    limit: usize,
    model: &Model,
    path: &Path,
    options: &SaveOptions,
) -> Result<(), OnnxError> {
    let in_file = |source| OnnxError::io(path, source);
    let mut proto = write_model(model)?;
    let is_too_large = proto.encoded_len() > limit;
    let bytes_min = options.external_data_min_bytes.or(is_too_large.then_some(EXTERNAL_BYTES_MIN));
    let data = match bytes_min {
        Some(bytes_min) => write_data(&mut proto, path, bytes_min).map_err(in_file)?,
        None => None,
    };
    check_size(&proto, limit)?;
    let mut pending = PendingFile::create(path).map_err(in_file)?;
    stream(proto, &mut pending.file).map_err(in_file)?;
    // Both are whole now; the data comes first, since the model names it.
    data.map_or(Ok(()), PendingFile::commit).map_err(in_file)?;
    pending.commit().map_err(in_file)
}

/// Moves large initializers into the data file, if there are any.
fn write_data(
    proto: &mut ModelProto,
    model_path: &Path,
    bytes_min: usize,
) -> io::Result<Option<PendingFile>> {
    let not_a_name = || io::Error::new(io::ErrorKind::InvalidInput, "the file name is not UTF-8");
    let name = model_path.file_name().and_then(|name| name.to_str()).ok_or_else(not_a_name)?;
    let location = format!("{name}.data");
    let mut pending = PendingFile::create(&model_path.with_file_name(&location))?;
    let size_bytes = externalize(proto, &location, bytes_min, &mut pending.file)?;
    Ok((size_bytes > 0).then_some(pending))
}

/// Key bytes of length-delimited fields: field number · 8 + 2.
const MODEL_GRAPH: u8 = 7 << 3 | 2;
const GRAPH_NODE: u8 = 1 << 3 | 2;
const GRAPH_INITIALIZER: u8 = 5 << 3 | 2;
const TENSOR_RAW_DATA: u8 = 9 << 3 | 2;

/// Encodes the model node by node and tensor by tensor, raw data straight from where it is.
/// Fields of a message may come in any order; the graph comes last here.
fn stream(mut proto: ModelProto, out: &mut dyn Write) -> io::Result<()> {
    let Some(mut graph) = proto.graph.take() else { return out.write_all(&proto.encode_to_vec()) };
    out.write_all(&proto.encode_to_vec())?;
    write_key(out, MODEL_GRAPH, graph.encoded_len())?;
    for node in std::mem::take(&mut graph.node) {
        write_key(out, GRAPH_NODE, node.encoded_len())?;
        out.write_all(&node.encode_to_vec())?;
    }
    for mut tensor in std::mem::take(&mut graph.initializer) {
        write_key(out, GRAPH_INITIALIZER, tensor.encoded_len())?;
        let raw = tensor.raw_data.take();
        out.write_all(&tensor.encode_to_vec())?;
        if let Some(raw) = raw {
            write_key(out, TENSOR_RAW_DATA, raw.len())?;
            out.write_all(&raw)?;
        }
    }
    out.write_all(&graph.encode_to_vec())
}

fn write_key(out: &mut dyn Write, key: u8, size_bytes: usize) -> io::Result<()> {
    let mut header = vec![key];
    encode_length_delimiter(size_bytes, &mut header).expect("a vector grows");
    out.write_all(&header)
}

/// A file beside its target that takes the target's place when it is whole, or vanishes.
struct PendingFile {
    file: BufWriter<File>,
    temporary: PathBuf,
    target: PathBuf,
    is_committed: bool,
}

impl PendingFile {
    fn create(target: &Path) -> io::Result<Self> {
        // Two threads may save to one place at a time.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // A rename would put a file in the place of a device, a pipe or a folder.
        if fs::metadata(target).is_ok_and(|found| !found.is_file()) {
            let message = "is no file, and is not replaced by one";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let name = target.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_string_lossy();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary =
            target.with_file_name(format!(".{name}.{}-{count}.tmp", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        let file = BufWriter::with_capacity(1 << 16, file);
        Ok(Self { file, temporary, target: target.to_path_buf(), is_committed: false })
    }

    fn commit(mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        fs::rename(&self.temporary, &self.target)?;
        self.is_committed = true;
        // Where a folder cannot be synced, the rename is as durable as it gets.
        if let Ok(folder) = File::open(folder_of(&self.target)) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if !self.is_committed {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;
    use attar_tensor::Tensor;

    use super::*;
    use crate::load;
    use crate::tests::Folder;

    fn model() -> Model {
        let mut graph = graph_from_text("w = [1 2; 3 4]\ny = MatMul(x, w)");
        graph.set_initializer("table", Tensor::new(&[600], &[7_i64; 600]));
        Model { ir_version: 10, graph, ..Model::default() }
    }

    #[test]
    fn a_saved_model_is_the_same_and_the_only_file() {
        let folder = Folder::new("saved");
        let path = folder.path.join("model.onnx");
        save(&model(), &path, &SaveOptions::default()).unwrap();
        let loaded = load(&path).unwrap();
        assert_eq!(loaded, model());
        // The tensors are mapped from the file that is replaced.
        save(&loaded, &path, &SaveOptions::default()).unwrap();
        assert_eq!(load(&path).unwrap(), loaded);
        assert_eq!(folder.names(), ["model.onnx"]);
        assert_eq!(fs::read(&path).unwrap(), to_bytes(&model()).unwrap());
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_not_replaced() {
        let folder = Folder::new("socket");
        let path = folder.path.join("model.onnx");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = save(&model(), &path, &SaveOptions::default()).unwrap_err();
        assert!(error.to_string().contains("is not replaced"), "{error}");
        assert_eq!(folder.names(), ["model.onnx"]);
        assert!(!fs::metadata(&path).unwrap().is_file());
    }

    #[test]
    fn weights_go_into_a_second_file_when_asked_or_when_they_must() {
        let folder = Folder::new("external");
        let path = folder.path.join("model.onnx");
        let asked = SaveOptions { external_data_min_bytes: Some(17) };
        save(&model(), &path, &asked).unwrap();
        assert_eq!(load(&path).unwrap(), model());
        assert_eq!(folder.names(), ["model.onnx", "model.onnx.data"]);
        assert_eq!(fs::metadata(folder.path.join("model.onnx.data")).unwrap().len(), 4800);
        // Over itself, now with both tensors outside, each on a page of its own.
        save(&load(&path).unwrap(), &path, &SaveOptions { external_data_min_bytes: Some(0) })
            .unwrap();
        assert_eq!(load(&path).unwrap(), model());
        assert_eq!(fs::metadata(folder.path.join("model.onnx.data")).unwrap().len(), 4096 + 4800);

        let large = folder.path.join("large.onnx");
        save_within(2000, &model(), &large, &SaveOptions::default()).unwrap();
        assert_eq!(load(&large).unwrap(), model());
        assert!(folder.names().contains(&"large.onnx.data".to_owned()));
    }

    #[test]
    fn no_data_file_appears_without_data_for_it() {
        let folder = Folder::new("no-data");
        let options = SaveOptions { external_data_min_bytes: Some(1 << 20) };
        save(&model(), &folder.path.join("model.onnx"), &options).unwrap();
        assert_eq!(folder.names(), ["model.onnx"]);
    }

    #[test]
    fn an_error_leaves_nothing_behind() {
        let folder = Folder::new("error");
        let path = folder.path.join("model.onnx");
        let error = save_within(10, &model(), &path, &SaveOptions::default()).unwrap_err();
        assert!(matches!(error, OnnxError::TooLarge { limit: 10, .. }));
        fs::create_dir(&path).unwrap();
        assert!(save(&model(), &path, &SaveOptions::default()).is_err());
        let missing = folder.path.join("missing/model.onnx");
        assert!(save(&model(), &missing, &SaveOptions::default()).is_err());
        assert_eq!(folder.names(), ["model.onnx"]);
    }
}
