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
    let mut bytes = Vec::with_capacity(check_size(&proto)?);
    stream(proto, &mut bytes).expect("a vector takes every byte");
    Ok(bytes)
}

fn check_size(proto: &ModelProto) -> Result<usize, OnnxError> {
    match proto.encoded_len() {
        size_bytes if size_bytes <= MESSAGE_BYTES_MAX => Ok(size_bytes),
        size_bytes => Err(OnnxError::TooLarge { size_bytes, limit: MESSAGE_BYTES_MAX }),
    }
}

/// Writes a model file, and its data file if it has one. Both appear whole, by rename; a model may
/// be saved over the file it was loaded from.
///
/// # Errors
/// When a file cannot be written, or the model is too large even without its initializers.
pub fn save(model: &Model, path: &Path, options: &SaveOptions) -> Result<(), OnnxError> {
    let in_file = |source| OnnxError::io(path, source);
    let mut proto = write_model(model)?;
    let is_too_large = proto.encoded_len() > MESSAGE_BYTES_MAX;
    let bytes_min = options.external_data_min_bytes.or(is_too_large.then_some(EXTERNAL_BYTES_MIN));
    if let Some(bytes_min) = bytes_min {
        let data_path = data_path(path).map_err(in_file)?;
        write_data(&mut proto, &data_path, bytes_min)
            .map_err(|source| OnnxError::io(&data_path, source))?;
    }
    check_size(&proto)?;
    let mut pending = PendingFile::create(path).map_err(in_file)?;
    stream(proto, &mut pending.file).map_err(in_file)?;
    pending.commit().map_err(in_file)
}

fn data_path(path: &Path) -> io::Result<PathBuf> {
    let not_a_name = || io::Error::new(io::ErrorKind::InvalidInput, "the file name is not UTF-8");
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(not_a_name)?;
    Ok(path.with_file_name(format!("{name}.data")))
}

fn write_data(proto: &mut ModelProto, path: &Path, bytes_min: usize) -> io::Result<()> {
    let location = path.file_name().and_then(|name| name.to_str()).expect("made from UTF-8");
    let mut pending = PendingFile::create(path)?;
    match externalize(proto, location, bytes_min, &mut pending.file)? {
        // No initializer was large enough.
        0 => Ok(()),
        _ => pending.commit(),
    }
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
