//! State dicts that `torch.save` wrote: a zip archive, or before version 1.6 one stream.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::path::Path;

use attar_tensor::{Bytes, DType, Tensor, element_count};
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{self, Object, Pickle, PickleError, Ref, StorageId, TensorId};
use crate::ImportError;

const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

/// Protocol 2, and the number 0x1950a86a20f9469cfc6c as the first of five pickles.
const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Times the size of the file that views which are not in row-major order may take in memory.
const COPIES_MAX: usize = 4;

pub(super) fn recognizes(bytes: &[u8]) -> bool {
    bytes.starts_with(ZIP_MAGIC) || bytes.starts_with(LEGACY_MAGIC)
}

pub(super) fn parse(file: &Path, bytes: &Bytes) -> Result<BTreeMap<String, Tensor>, ImportError> {
    let source = Source { file, bytes };
    if bytes.starts_with(ZIP_MAGIC) { source.parse_zip() } else { source.parse_legacy() }
}

#[derive(Clone, Copy)]
struct Source<'a> {
    file: &'a Path,
    bytes: &'a Bytes,
}

impl<'a> Source<'a> {
    fn malformed(self, reason: impl Into<String>) -> ImportError {
        let (file, expected) = (self.file.into(), "a PyTorch state dict");
        ImportError::Malformed { file, expected, reason: reason.into() }
    }

    fn unsupported(self, what: &str, found: &str, supported: &str) -> ImportError {
        ImportError::Unsupported {
            file: self.file.into(),
            what: what.into(),
            found: found.into(),
            supported: supported.into(),
        }
    }

    /// The pickle that `bytes` begin with.
    fn pickle(self, bytes: &[u8]) -> Result<Pickle<'_>, ImportError> {
        pickle::read(bytes).map_err(|error| match error {
            PickleError::Malformed(reason) => self.malformed(reason),
            PickleError::Forbidden(global) => {
                ImportError::ForbiddenGlobal { file: self.file.into(), global }
            }
        })
    }

    /// An archive: `NAME/data.pkl`, and `NAME/data/KEY` for each storage.
    fn parse_zip(self) -> Result<BTreeMap<String, Tensor>, ImportError> {
        let mut archive = ZipArchive::new(Cursor::new(self.bytes.as_ref()))
            .map_err(|error| self.malformed(error.to_string()))?;
        let main = archive.file_names().find(|name| name.ends_with("/data.pkl"));
        let Some(folder) = main.and_then(|name| name.strip_suffix("data.pkl")) else {
            return Err(self.malformed("the archive has no data.pkl"));
        };
        let folder = folder.to_string();
        let byte_order = format!("{folder}byteorder");
        if archive.index_for_name(&byte_order).is_some() {
            let order = self.entry(&mut archive, &byte_order)?;
            if order.as_ref() != b"little" {
                let order = String::from_utf8_lossy(&order).into_owned();
                return Err(self.unsupported("the byte order", &order, "little"));
            }
        }
        let program = self.entry(&mut archive, &format!("{folder}data.pkl"))?;
        let pickle = self.pickle(&program)?;
        let mut storages = HashMap::new();
        for &StorageId { key, .. } in storage_ids(&pickle) {
            if !storages.contains_key(key) {
                storages.insert(key, self.entry(&mut archive, &format!("{folder}data/{key}"))?);
            }
        }
        self.tensors(&pickle, &storages)
    }

    /// The bytes of an archive's entry, which `PyTorch` stores as they are. Taking only those keeps
    /// an archive from unpacking to more than the file.
    fn entry(
        self,
        archive: &mut ZipArchive<Cursor<&[u8]>>,
        name: &str,
    ) -> Result<Bytes, ImportError> {
        let in_entry = |reason: String| self.malformed(format!("entry `{name}`: {reason}"));
        let mut entry = archive.by_name(name).map_err(|error| in_entry(error.to_string()))?;
        if entry.compression() != CompressionMethod::Stored {
            let what = format!("the compression of entry `{name}`");
            return Err(self.unsupported(&what, &entry.compression().to_string(), "stored"));
        }
        // Reading to the end compares the checksum.
        std::io::copy(&mut entry, &mut std::io::sink()).map_err(|e| in_entry(e.to_string()))?;
        let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
        let range = start.zip(usize::try_from(entry.size()).ok());
        let end = range.and_then(|(start, size)| start.checked_add(size));
        match range.zip(end) {
            Some(((start, _), end)) if end <= self.bytes.len() => Ok(self.bytes.slice(start..end)),
            _ => Err(in_entry("it lies outside of the file".into())),
        }
    }

    /// Five pickles (magic, version, system, state dict, order of storages), then each storage as
    /// its count of elements and its bytes.
    fn parse_legacy(self) -> Result<BTreeMap<String, Tensor>, ImportError> {
        let mut rest = &self.bytes[LEGACY_MAGIC.len()..];
        let mut next = || -> Result<Pickle<'_>, ImportError> {
            let pickle = self.pickle(rest)?;
            rest = &rest[pickle.size_bytes..];
            Ok(pickle)
        };
        let (version, system, pickle, order) = (next()?, next()?, next()?, next()?);
        if !matches!(version.objects[version.root], Object::Int(1001)) {
            return Err(self.malformed("its protocol is not 1001"));
        }
        if matches!(value(&system, "little_endian"), Some(Object::Bool(false))) {
            return Err(self.unsupported("the byte order", "big", "little"));
        }
        let dtypes: HashMap<&str, DType> =
            storage_ids(&pickle).map(|id| (id.key, id.dtype)).collect();
        let mut storages = HashMap::new();
        for key in self.keys(&order)? {
            let Some(dtype) = dtypes.get(key) else {
                return Err(self.malformed(format!("no tensor uses storage `{key}`")));
            };
            let storage = self.counted(&mut rest, *dtype);
            let early = || self.malformed(format!("it ends within storage `{key}`"));
            storages.insert(key, storage.ok_or_else(early)?);
        }
        self.tensors(&pickle, &storages)
    }

    fn keys<'b>(self, order: &Pickle<'b>) -> Result<Vec<&'b str>, ImportError> {
        let Object::List(keys) = &order.objects[order.root] else {
            return Err(self.malformed("the order of its storages is no list"));
        };
        let text = |&key: &Ref| match order.objects[key] {
            Object::Text(key) => Ok(key),
            _ => Err(self.malformed("the key of a storage is no text")),
        };
        keys.iter().map(text).collect()
    }

    /// The next storage of a stream.
    fn counted(self, rest: &mut &'a [u8], dtype: DType) -> Option<Bytes> {
        let (count, data) = rest.split_first_chunk::<8>()?;
        let size_bytes = dtype.size_bytes(usize::try_from(u64::from_le_bytes(*count)).ok()?)?;
        let (storage, after) = data.split_at_checked(size_bytes)?;
        *rest = after;
        Some(self.bytes.slice_ref(storage))
    }

    /// The tensors of the dict that the pickle makes, or of its entry `state_dict`.
    fn tensors(
        self,
        pickle: &Pickle,
        storages: &HashMap<&str, Bytes>,
    ) -> Result<BTreeMap<String, Tensor>, ImportError> {
        let Object::Dict(outer) = &pickle.objects[pickle.root] else {
            return Err(self.malformed("it holds no dict"));
        };
        let items = match value(pickle, "state_dict") {
            Some(Object::Dict(inner)) => inner,
            _ => outer,
        };
        let mut tensors = BTreeMap::new();
        let mut copied = 0_usize;
        for &(key, value) in items {
            let Object::Text(name) = pickle.objects[key] else {
                return Err(self.malformed("a key of the state dict is no text"));
            };
            let Object::Tensor(id) = &pickle.objects[value] else {
                return Err(self.malformed(format!("`{name}` is no tensor")));
            };
            let Object::Storage(StorageId { key, dtype }) = pickle.objects[id.storage] else {
                return Err(self.malformed(format!("`{name}` has no storage")));
            };
            let storage = storages.get(key);
            let tensor = storage.and_then(|storage| view(id, dtype, storage)).ok_or_else(|| {
                self.malformed(format!("`{name}` reaches beyond its storage `{key}`"))
            })?;
            // A storage that is viewed again and again takes memory each time.
            if !is_contiguous(id) {
                copied += tensor.size_bytes();
            }
            if copied > self.bytes.len().saturating_mul(COPIES_MAX) {
                let reason = format!("`{name}` and tensors before it overlap: {copied} bytes");
                return Err(self.malformed(reason));
            }
            tensors.insert(name.to_string(), tensor);
        }
        Ok(tensors)
    }
}

fn storage_ids<'p, 'a>(pickle: &'p Pickle<'a>) -> impl Iterator<Item = &'p StorageId<'a>> {
    pickle.objects.iter().filter_map(|object| match object {
        Object::Storage(id) => Some(id),
        _ => None,
    })
}

/// What the dict at the root holds under `name`.
fn value<'p, 'a>(pickle: &'p Pickle<'a>, name: &str) -> Option<&'p Object<'a>> {
    let Object::Dict(items) = &pickle.objects[pickle.root] else { return None };
    let is_named = |key: Ref| matches!(pickle.objects[key], Object::Text(text) if text == name);
    items.iter().find(|(key, _)| is_named(*key)).map(|&(_, value)| &pickle.objects[value])
}

/// The elements that `id` picks, copied unless they lie in row-major order; `None` where they
/// reach beyond the storage.
fn view(id: &TensorId, dtype: DType, storage: &Bytes) -> Option<Tensor> {
    let count = element_count(&id.shape)?;
    let size = dtype.size_bytes(1)?;
    // A stride of zero can make a large tensor of one element. Weights are never saved so.
    if id.shape.len() != id.strides.len() || count > storage.len() / size {
        return None;
    }
    let mut last = id.offset;
    for (&dim, &stride) in id.shape.iter().zip(&id.strides).filter(|_| count > 0) {
        last = last.checked_add((dim - 1).checked_mul(stride)?)?;
    }
    if count > 0 && last >= storage.len() / size {
        return None;
    }
    let bytes = if count == 0 {
        Bytes::new()
    } else if is_contiguous(id) {
        storage.slice(id.offset * size..(id.offset + count) * size)
    } else {
        gather(id, count, size, storage)
    };
    Tensor::from_bytes(dtype, &id.shape, bytes).ok()
}

fn is_contiguous(id: &TensorId) -> bool {
    let mut expected = 1;
    id.shape.iter().zip(&id.strides).rev().all(|(&dim, &stride)| {
        // The stride of an axis with one element is never walked.
        let fits = dim == 1 || stride == expected;
        expected = expected.saturating_mul(dim);
        fits
    })
}

/// Elements in row-major order, each looked up by its strides.
fn gather(id: &TensorId, count: usize, size: usize, storage: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(count * size);
    let mut position = vec![0; id.shape.len()];
    for _ in 0..count {
        let steps: usize = position.iter().zip(&id.strides).map(|(p, stride)| p * stride).sum();
        let at = (id.offset + steps) * size;
        bytes.extend_from_slice(&storage[at..at + size]);
        for axis in (0..position.len()).rev() {
            position[axis] += 1;
            if position[axis] < id.shape[axis] {
                break;
            }
            position[axis] = 0;
        }
    }
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::testing::{legacy_file, zip_file};

    fn parsed(bytes: Vec<u8>) -> Result<BTreeMap<String, Tensor>, String> {
        parse(Path::new("m.pth"), &bytes.into()).map_err(|error| error.to_string())
    }

    fn numbers(count: u8) -> Vec<u8> {
        (0..count).flat_map(|x| (x as f32).to_le_bytes()).collect()
    }

    #[test]
    fn both_containers_hold_the_same_tensors() {
        for write in [zip_file, legacy_file] {
            let file = write("w", &[2, 2], &[2, 1], 1, &numbers(5));
            let tensors = parsed(file).unwrap();
            assert_eq!(tensors["w"], Tensor::new(&[2, 2], &[1.0_f32, 2.0, 3.0, 4.0]));
        }
    }

    #[test]
    fn strides_are_followed() {
        let transposed = parsed(zip_file("w", &[3, 2], &[1, 3], 0, &numbers(6))).unwrap();
        let expected = Tensor::new(&[3, 2], &[0.0_f32, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(transposed["w"], expected);
    }

    #[test]
    fn views_stay_within_their_storage() {
        let beyond = "`m.pth` is not a PyTorch state dict: `w` reaches beyond its storage `7`";
        let views: [(&[u32], &[u32], u32); 6] = [
            (&[2, 2], &[2, 1], 2),
            (&[5], &[2], 0),
            (&[1], &[1], u32::MAX >> 1),
            (&[1 << 30, 1 << 30, 1 << 30], &[0, 0, 0], 0),
            (&[100], &[0], 0),
            (&[2], &[1, 1], 0),
        ];
        for (shape, strides, offset) in views {
            for write in [zip_file, legacy_file] {
                let found = parsed(write("w", shape, strides, offset, &numbers(5)));
                assert_eq!(found.unwrap_err(), beyond, "{shape:?} {strides:?} {offset}");
            }
        }
    }

    #[test]
    fn one_storage_cannot_be_copied_without_end() {
        // The entries of the dict, one transposed view of the same storage each.
        let file = legacy_file("w", &[64, 64], &[1, 64], 0, &vec![0; 4 * 64 * 64]);
        let start = file.windows(2).position(|bytes| bytes == b"X\x01").unwrap();
        let end = file.windows(4).position(|bytes| bytes == b"tRu}").unwrap() + 2;
        let entry = &file[start..end];
        let entries: Vec<u8> = (b'a'..=b'z')
            .flat_map(|name| {
                let mut entry = entry.to_vec();
                entry[5] = name;
                entry
            })
            .collect();
        let many = [&file[..start], &entries, &file[end..]].concat();
        let error = parsed(many).unwrap_err();
        assert!(error.contains("and tensors before it overlap"), "{error}");
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_and_never_a_panic() {
        for write in [zip_file, legacy_file] {
            let file = write("w", &[2, 2], &[2, 1], 0, &numbers(4));
            for size in LEGACY_MAGIC.len()..file.len() {
                assert!(parsed(file[..size].to_vec()).is_err(), "{size} of {}", file.len());
            }
        }
    }

    #[test]
    fn a_changed_byte_of_a_weight_is_found_by_the_checksum() {
        let mut file = zip_file("w", &[4], &[1], 0, &numbers(4));
        let at = file.windows(16).position(|bytes| bytes == numbers(4)).unwrap();
        file[at + 5] ^= 1;
        assert!(parsed(file).unwrap_err().contains("entry `archive/data/7`"));
    }

    #[test]
    fn a_call_of_the_system_is_refused_by_name() {
        let mut file = legacy_file("w", &[4], &[1], 0, &numbers(4));
        let at = file.windows(11).position(|bytes| bytes == b"collections").unwrap();
        file.splice(at..at + 23, *b"os\nsystem");
        assert_eq!(
            parsed(file).unwrap_err(),
            "`m.pth` calls `os.system`, which is not part of saving tensors"
        );
    }

    #[test]
    fn any_changed_byte_gives_an_answer() {
        for write in [zip_file, legacy_file] {
            let file = write("w", &[2, 2], &[2, 1], 0, &numbers(4));
            for at in LEGACY_MAGIC.len()..file.len() {
                for bits in [0x01, 0x80, 0xff] {
                    let mut changed = file.clone();
                    changed[at] ^= bits;
                    // Either is right, as long as it comes.
                    let _ = parsed(changed);
                }
            }
        }
    }
}
