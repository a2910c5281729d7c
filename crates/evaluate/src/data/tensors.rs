//! Arrays: `.npz`, `.npy`, or a folder of `.npy`; one for each input of a model, and `labels`.

use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use attar_tensor::{Bytes, DType, Tensor};
use zip::{CompressionMethod, ZipArchive};

use super::npy::read_npy;
use super::rows::BadRows;
use crate::EvaluateError;

/// Arrays whose first axis counts the examples.
#[derive(Debug, Default)]
pub struct Tensors {
    /// By the name of the model's input; of one array any name will do.
    pub arrays: Vec<(String, Tensor)>,
    pub labels: TensorLabels,
    /// The sequence that each example belongs to, where an array `sequence` says it.
    pub sequences: Option<Vec<i64>>,
    pub count: usize,
    path: PathBuf,
}

/// What belongs to every example.
#[derive(Debug, Default)]
pub enum TensorLabels {
    #[default]
    None,
    /// Whole numbers: classes.
    Classes(Vec<usize>),
    /// Real numbers [count, …], as f32.
    Values(Tensor),
}

const LABELS: &str = "labels";
const SEQUENCE: &str = "sequence";

/// What compressed arrays may unpack to, in bytes, or in sizes of their file if that is more.
const UNPACKED_BYTES_MAX: u64 = 1 << 30;
const UNPACKED_RATIO_MAX: u64 = 64;

pub(crate) fn looks_like_tensors(folder: &Path) -> bool {
    npy_files(folder).is_ok_and(|files| !files.is_empty())
}

fn npy_files(folder: &Path) -> Result<Vec<PathBuf>, EvaluateError> {
    let entries = std::fs::read_dir(folder).map_err(EvaluateError::file(folder))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "npy"));
    files.sort();
    Ok(files)
}

impl Tensors {
    pub(crate) fn load(path: &Path, bad: &mut BadRows) -> Result<Self, EvaluateError> {
        let named = if path.is_dir() {
            npy_files(path)?.iter().map(|file| read_file(file)).collect::<Result<_, _>>()?
        } else if path.extension().is_some_and(|extension| extension == "npz") {
            read_archive(path)?
        } else {
            vec![read_file(path)?]
        };
        let fail = |message: String| EvaluateError::Format { path: path.into(), message };
        let rows = |name: &str, tensor: &Tensor| match tensor.shape().first() {
            // A shape without elements may claim any count of examples.
            Some(_) if tensor.bytes().is_empty() => Err(fail(format!("array `{name}` is empty"))),
            Some(&count) => Ok(count),
            None => Err(fail(format!("array `{name}` is a single number, not one per example"))),
        };
        let Some((first, tensor)) = named.first() else {
            return Err(fail("it holds no array".into()));
        };
        let count = rows(first, tensor)?;
        for (name, tensor) in &named {
            let other = rows(name, tensor)?;
            if other != count {
                let message = format!("`{name}` has {other} examples and `{first}` has {count}");
                return Err(fail(message));
            }
        }
        let mut data = Self { count, path: path.into(), ..Self::default() };
        let mut good = vec![true; count];
        for (name, tensor) in named {
            mark_broken(path, &name, &tensor, &mut good, bad)?;
            if name == LABELS {
                data.labels = labels(path, &tensor, &mut good, bad)?;
            } else if name == SEQUENCE {
                let numbers = tensor.converted(DType::I64).ok().filter(|t| t.rank() == 1);
                let numbers = numbers.ok_or_else(|| {
                    fail(format!(
                        "`{name}` is {}{:?}, not one number per example",
                        tensor.dtype(),
                        tensor.shape()
                    ))
                })?;
                data.sequences = Some(numbers.values::<i64>().into_owned());
            } else {
                data.arrays.push((name, tensor));
            }
        }
        if data.arrays.is_empty() {
            return Err(fail("it holds no array for a model's input".into()));
        }
        let kept: Vec<usize> = (0..count).filter(|&row| good[row]).collect();
        if kept.len() < count { data.subset(&kept) } else { Ok(data) }
    }

    /// The examples of these indices.
    ///
    /// # Errors
    /// None left.
    pub fn subset(&self, indices: &[usize]) -> Result<Self, EvaluateError> {
        if indices.is_empty() {
            let message = "its arrays hold no example".into();
            return Err(EvaluateError::Format { path: self.path.clone(), message });
        }
        let arrays = self.arrays.iter();
        Ok(Self {
            arrays: arrays.map(|(name, t)| (name.clone(), gather_rows(t, indices))).collect(),
            labels: match &self.labels {
                TensorLabels::None => TensorLabels::None,
                TensorLabels::Classes(classes) => {
                    TensorLabels::Classes(indices.iter().map(|&index| classes[index]).collect())
                }
                TensorLabels::Values(values) => TensorLabels::Values(gather_rows(values, indices)),
            },
            sequences: self
                .sequences
                .as_ref()
                .map(|of| indices.iter().map(|&index| of[index]).collect()),
            count: indices.len(),
            path: self.path.clone(),
        })
    }

    /// Fails for the first example whose class is `count` or more.
    ///
    /// # Errors
    /// The example, with its number.
    pub fn check_classes(&self, count: usize) -> Result<(), EvaluateError> {
        let TensorLabels::Classes(classes) = &self.labels else { return Ok(()) };
        match classes.iter().position(|&class| class >= count) {
            None => Ok(()),
            Some(row) => Err(EvaluateError::Class {
                path: self.path.clone(),
                line: row + 1,
                message: format!(
                    "labels[{row}] is {}, and the model's classes are 0 to {}",
                    classes[row],
                    count.saturating_sub(1)
                ),
            }),
        }
    }

    /// Whether an example goes on where the one before it ended.
    pub fn continues(&self, index: usize) -> bool {
        let same = |of: &Vec<i64>| index > 0 && of[index] == of[index - 1];
        index > 0 && self.sequences.as_ref().is_none_or(same)
    }

    /// One tensor per model input, of the examples of these indices. One example whose array has an
    /// axis more than the input is that input.
    ///
    /// # Errors
    /// An input that has no array, or an array of another type.
    pub fn feeds(
        &self,
        indices: &[usize],
        inputs: &[attar_graph::Value],
    ) -> Result<Vec<(String, Tensor)>, EvaluateError> {
        let only =
            if inputs.len() == 1 && self.arrays.len() == 1 { self.arrays.first() } else { None };
        inputs
            .iter()
            .map(|input| {
                let missing = || EvaluateError::Input { input: input.name.clone(), data: "arrays" };
                let named = self.arrays.iter().find(|(name, _)| *name == input.name).or(only);
                let (_, tensor) = named.ok_or_else(missing)?;
                let mut rows = gather_rows(tensor, indices);
                let rank = input.shape().map_or(rows.rank(), <[_]>::len);
                if indices.len() == 1 && rows.rank() == rank + 1 {
                    rows = rows.reshaped(&rows.shape()[1..]);
                }
                let rows = rows.converted(input.dtype().unwrap_or(DType::F32));
                Ok((input.name.clone(), rows.map_err(|_| missing())?))
            })
            .collect()
    }
}

/// The rows of these indices along the first axis, all of whose elements are whole bytes.
pub fn gather_rows(tensor: &Tensor, indices: &[usize]) -> Tensor {
    let rows = tensor.shape().first().copied().unwrap_or(1).max(1);
    let size = tensor.bytes().len() / rows;
    let mut bytes = attar_tensor::Buffer::zeroed(size * indices.len());
    for (out, &index) in bytes.as_bytes_mut().chunks_exact_mut(size.max(1)).zip(indices) {
        out.copy_from_slice(&tensor.bytes()[index * size..(index + 1) * size]);
    }
    let mut shape = tensor.shape().to_vec();
    shape[0] = indices.len();
    Tensor::from_buffer(tensor.dtype(), &shape, bytes)
}

fn read_file(path: &Path) -> Result<(String, Tensor), EvaluateError> {
    let bytes = attar_tensor::map_file(path).map_err(EvaluateError::file(path))?;
    let tensor =
        read_npy(&bytes).map_err(|message| EvaluateError::Format { path: path.into(), message })?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok((name, tensor))
}

fn read_archive(path: &Path) -> Result<Vec<(String, Tensor)>, EvaluateError> {
    let bytes = attar_tensor::map_file(path).map_err(EvaluateError::file(path))?;
    let fail = |message: String| EvaluateError::Format { path: path.into(), message };
    let mut archive =
        ZipArchive::new(Cursor::new(bytes.as_ref())).map_err(|error| fail(error.to_string()))?;
    let mut left = UNPACKED_BYTES_MAX.max(bytes.len() as u64 * UNPACKED_RATIO_MAX);
    let mut arrays = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(|error| fail(error.to_string()))?;
        let name = entry.name().strip_suffix(".npy").unwrap_or(entry.name()).to_string();
        let fail = |message: String| fail(format!("array `{name}`: {message}"));
        let content = entry_bytes(entry, &bytes, &mut left).map_err(fail)?;
        arrays.push((name.clone(), read_npy(&content).map_err(fail)?));
    }
    Ok(arrays)
}

/// The content of an entry: a part of the file where it is stored as it is.
fn entry_bytes(
    mut entry: zip::read::ZipFile<'_, Cursor<&[u8]>>,
    archive: &Bytes,
    left: &mut u64,
) -> Result<Bytes, String> {
    let mut content = Vec::new();
    if entry.compression() == CompressionMethod::Stored {
        // Reading to the end compares the checksum.
        std::io::copy(&mut entry, &mut std::io::sink()).map_err(|error| error.to_string())?;
        let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
        let size = usize::try_from(entry.size()).ok();
        let range = start.zip(size).and_then(|(start, size)| Some(start..start.checked_add(size)?));
        return match range {
            Some(range) if range.end <= archive.len() => Ok(archive.slice(range)),
            _ => Err("it lies outside of the file".into()),
        };
    }
    entry.by_ref().take(*left + 1).read_to_end(&mut content).map_err(|error| error.to_string())?;
    match left.checked_sub(content.len() as u64) {
        Some(rest) => *left = rest,
        None => return Err("it unpacks to far more than the file holds".into()),
    }
    Ok(content.into())
}

/// Notes the rows that hold a number which is not finite.
fn mark_broken(
    path: &Path,
    name: &str,
    tensor: &Tensor,
    good: &mut [bool],
    bad: &mut BadRows,
) -> Result<(), EvaluateError> {
    let width = tensor.element_count() / good.len().max(1);
    if width == 0 {
        return Ok(());
    }
    let mut rows: Vec<usize> = match tensor.dtype() {
        DType::F32 => not_finite(&tensor.values::<f32>(), f32::is_finite),
        DType::F64 => not_finite(&tensor.values::<f64>(), f64::is_finite),
        DType::F16 => not_finite(&tensor.to_f32().unwrap_or_default(), f32::is_finite),
        _ => Vec::new(),
    };
    rows.iter_mut().for_each(|index| *index /= width);
    rows.dedup();
    for row in rows {
        mark(path, row, &format!("{name}[{row}] is not finite"), good, bad)?;
    }
    Ok(())
}

fn not_finite<T: Copy>(values: &[T], is_finite: impl Fn(T) -> bool) -> Vec<usize> {
    (0..values.len()).filter(|&index| !is_finite(values[index])).collect()
}

fn mark(
    path: &Path,
    row: usize,
    message: &str,
    good: &mut [bool],
    bad: &mut BadRows,
) -> Result<(), EvaluateError> {
    if std::mem::replace(&mut good[row], false) {
        bad.bad(path, row + 1, message)?;
    }
    Ok(())
}

fn labels(
    path: &Path,
    tensor: &Tensor,
    good: &mut [bool],
    bad: &mut BadRows,
) -> Result<TensorLabels, EvaluateError> {
    if matches!(tensor.dtype(), DType::F32 | DType::F64 | DType::F16) {
        let values = tensor.to_f32().expect("floats become f32");
        return Ok(TensorLabels::Values(Tensor::new(tensor.shape(), &values)));
    }
    let classes = tensor.to_i64().filter(|_| tensor.element_count() == good.len());
    let Some(classes) = classes else {
        let message = format!(
            "`labels` is {}{:?}, expected one class per example",
            tensor.dtype(),
            tensor.shape()
        );
        return Err(EvaluateError::Format { path: path.into(), message });
    };
    for (row, &class) in classes.iter().enumerate().filter(|(_, class)| **class < 0) {
        mark(path, row, &format!("labels[{row}] is {class}, no class"), good, bad)?;
    }
    Ok(TensorLabels::Classes(classes.iter().map(|&class| class.max(0) as usize).collect()))
}

#[cfg(test)]
mod tests {
    use super::super::npy::testing::npy;
    use super::*;
    use std::io::Write;

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn archive(name: &str, arrays: &[(&str, Vec<u8>)], method: CompressionMethod) -> PathBuf {
        let file = format!("attar-tensors-{}-{name}.npz", std::process::id());
        let path = std::env::temp_dir().join(file);
        let mut writer = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        for (name, content) in arrays {
            let options = zip::write::SimpleFileOptions::default().compression_method(method);
            writer.start_file(format!("{name}.npy"), options).unwrap();
            writer.write_all(content).unwrap();
        }
        writer.finish().unwrap();
        path
    }

    fn load(name: &str, arrays: &[(&str, Vec<u8>)], skips: bool) -> Result<Tensors, String> {
        let path = archive(name, arrays, CompressionMethod::Deflated);
        let result = Tensors::load(&path, &mut BadRows::new(skips));
        std::fs::remove_file(path).unwrap();
        result.map_err(|error| error.to_string())
    }

    #[test]
    fn stored_and_compressed_archives_hold_the_same_arrays() {
        let x = npy("<f4", "False", "(2, 2)", &floats(&[1.0, 2.0, 3.0, 4.0]));
        let y = npy("|u1", "False", "(2,)", &[1, 0]);
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            let path = archive("same", &[("x", x.clone()), ("labels", y.clone())], method);
            let data = Tensors::load(&path, &mut BadRows::new(false)).unwrap();
            std::fs::remove_file(path).unwrap();
            assert_eq!(data.arrays[0].1, Tensor::new(&[2, 2], &[1.0_f32, 2.0, 3.0, 4.0]));
            assert!(matches!(&data.labels, TensorLabels::Classes(c) if c == &[1, 0]));
            let input = attar_graph::Value::tensor("other", DType::F32, vec![]);
            let feeds = data.feeds(&[1], &[input]).unwrap();
            assert_eq!(feeds[0].1, Tensor::new(&[1, 2], &[3.0_f32, 4.0]));
            assert!(data.check_classes(1).unwrap_err().to_string().contains("labels[0] is 1"));
        }
    }

    #[test]
    fn broken_arrays_are_errors_that_name_them() {
        let x = || ("x", npy("<f4", "False", "(2, 1)", &floats(&[1.0, 2.0])));
        let cases: &[(&str, Vec<(&str, Vec<u8>)>, &str)] = &[
            (
                "count",
                vec![x(), ("labels", npy("|u1", "False", "(3,)", &[0; 3]))],
                "`labels` has 3",
            ),
            ("none", vec![], "it holds no array"),
            ("alone", vec![("labels", npy("|u1", "False", "(3,)", &[0; 3]))], "it holds no array"),
            ("negative", vec![x(), ("labels", npy("|i1", "False", "(2,)", &[0, 255]))], "is -1"),
            ("nan", vec![("x", npy("<f4", "False", "(1,)", &floats(&[f32::NAN])))], "x[0] is not"),
            ("text", vec![("x", b"hello".to_vec())], "array `x`: it is no NumPy array"),
            ("number", vec![("x", npy("<f4", "False", "()", &[0; 4]))], "a single number"),
        ];
        for (name, arrays, expected) in cases {
            let error = load(name, arrays, false).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn rows_that_are_not_finite_can_be_left_out() {
        let x = npy("<f4", "False", "(3,)", &floats(&[1.0, f32::INFINITY, 3.0]));
        let y = npy("<f4", "False", "(3,)", &floats(&[0.1, 0.2, 0.3]));
        let data = load("skip", &[("x", x), ("labels", y)], true).unwrap();
        assert_eq!(data.arrays[0].1, Tensor::new(&[2], &[1.0_f32, 3.0]));
        assert!(matches!(&data.labels, TensorLabels::Values(v) if v.shape() == [2]));
    }

    #[test]
    fn archives_broken_anywhere_get_an_answer() {
        let x = npy("<f4", "False", "(2, 2)", &floats(&[1.0, 2.0, 3.0, 4.0]));
        let huge = npy("<f4", "False", "(9223372036854775807, 9223372036854775807, 0)", &[]);
        assert!(load("huge", &[("x", huge)], false).unwrap_err().contains("is empty"));
        let path = archive("broken", &[("x", x.clone()), ("labels", x)], CompressionMethod::Stored);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x5a;
            for bytes in [&flipped[..], &whole[..at]] {
                std::fs::write(&path, bytes).unwrap();
                let _ = Tensors::load(&path, &mut BadRows::new(at % 2 == 0));
            }
        }
        std::fs::remove_file(path).unwrap();
    }
}
