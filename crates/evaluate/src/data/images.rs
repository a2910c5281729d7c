//! Labelled images: a folder per class, a folder with `labels.tsv`, or IDX files.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::Split;
use super::rows::{BadRows, for_each_line};
use crate::EvaluateError;

/// Where an image comes from.
#[derive(Clone, Debug)]
pub enum ImageSource {
    File(PathBuf),
    /// One byte a pixel, rows of `width`.
    Gray {
        pixels: Vec<u8>,
        width: usize,
    },
}

#[derive(Clone, Debug, Default)]
pub struct Images {
    pub images: Vec<ImageSource>,
    pub labels: Vec<usize>,
    /// The classes of folders, by name; none where labels are indices.
    pub names: Vec<String>,
}

/// Pairs of IDX files as MNIST and its kin name them.
const IDX_TEST: [&str; 2] = ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];
const IDX_TRAIN: [&str; 2] = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"];

/// The IDX files of a split, plain or compressed; there is none for validation.
fn idx_files(folder: &Path, split: Split) -> Option<[PathBuf; 2]> {
    let names = match split {
        Split::Train => IDX_TRAIN,
        Split::Test => IDX_TEST,
        Split::Validation => return None,
    };
    let found = |name: &str| {
        let files = [folder.join(name), folder.join(format!("{name}.gz"))];
        files.into_iter().find(|file| file.is_file())
    };
    Some([found(names[0])?, found(names[1])?])
}

/// Whether IDX files of both splits lie there.
pub(super) fn has_split(folder: &Path, split: Split) -> bool {
    idx_files(folder, split).is_some() && idx_files(folder, Split::Train).is_some()
}

/// What a compressed IDX file may unpack to.
const UNPACKED_BYTES_MAX: u64 = 1 << 30;

fn is_image(path: &Path) -> bool {
    path.extension().and_then(|extension| extension.to_str()).is_some_and(|extension| {
        ["jpg", "jpeg", "png"].contains(&extension.to_ascii_lowercase().as_str())
    })
}

fn sorted_entries(folder: &Path) -> Result<Vec<PathBuf>, EvaluateError> {
    let entries = std::fs::read_dir(folder).map_err(EvaluateError::file(folder))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

pub(crate) fn looks_like_images(folder: &Path) -> bool {
    let has_idx = [Split::Test, Split::Train].iter().any(|&s| idx_files(folder, s).is_some());
    let classes = || {
        let folders = sorted_entries(folder).unwrap_or_default();
        folders.iter().any(|class| {
            class.is_dir()
                && sorted_entries(class).is_ok_and(|files| files.iter().any(|f| is_image(f)))
        })
    };
    has_idx || folder.join("labels.tsv").exists() || classes()
}

impl Images {
    /// Fails for the first image whose class is `count` or more.
    ///
    /// # Errors
    /// The image, by its file or its number.
    pub fn check_classes(&self, count: usize) -> Result<(), EvaluateError> {
        let Some(index) = self.labels.iter().position(|&label| label >= count) else {
            return Ok(());
        };
        let path = match &self.images[index] {
            ImageSource::File(path) => path.clone(),
            ImageSource::Gray { .. } => format!("IDX image {index}").into(),
        };
        let (label, last) = (self.labels[index], count.saturating_sub(1));
        let message = format!("it is of class {label}, and the model's classes are 0 to {last}");
        Err(EvaluateError::Format { path, message })
    }

    /// Of IDX files those of the split, or else those that are there.
    pub(crate) fn load(
        folder: &Path,
        split: Split,
        bad: &mut BadRows,
    ) -> Result<Self, EvaluateError> {
        let splits = [split, Split::Test, Split::Train];
        if let Some([images, labels]) = splits.iter().find_map(|&split| idx_files(folder, split)) {
            return Self::load_idx(&images, &labels);
        }
        let labels = folder.join("labels.tsv");
        let data = if labels.exists() {
            Self::load_labels(folder, &labels, bad)?
        } else {
            Self::load_classes(folder)?
        };
        if data.images.is_empty() {
            return Err(EvaluateError::Format {
                path: folder.into(),
                message: "it holds no image".into(),
            });
        }
        Ok(data)
    }

    /// Rows of file name and class index.
    fn load_labels(folder: &Path, labels: &Path, bad: &mut BadRows) -> Result<Self, EvaluateError> {
        let mut data = Self::default();
        for_each_line(labels, bad, |line, text, bad| {
            let mut fields = text.split('\t');
            let (Some(file), Some(label)) = (fields.next(), fields.next()) else {
                return bad.bad(labels, line, "a row needs a file and a class index");
            };
            match label.trim().parse() {
                Ok(label) if folder.join(file).is_file() => {
                    data.images.push(ImageSource::File(folder.join(file)));
                    data.labels.push(label);
                    Ok(())
                }
                Ok(_) => bad.bad(labels, line, format!("there is no file `{file}`")),
                Err(_) if line == 1 => Ok(()),
                Err(_) => bad.bad(labels, line, format!("the class `{label}` is no index")),
            }
        })?;
        Ok(data)
    }

    /// Class indices are the folders' order by name.
    fn load_classes(folder: &Path) -> Result<Self, EvaluateError> {
        let mut data = Self::default();
        let classes = sorted_entries(folder)?.into_iter().filter(|path| path.is_dir());
        for (label, class) in classes.enumerate() {
            data.names.push(class.file_name().unwrap_or_default().to_string_lossy().into_owned());
            for file in sorted_entries(&class)?.into_iter().filter(|path| is_image(path)) {
                data.images.push(ImageSource::File(file));
                data.labels.push(label);
            }
        }
        Ok(data)
    }

    /// IDX (LeCun): a big-endian header of magic, count, and sizes; then bytes.
    fn load_idx(images: &Path, labels: &Path) -> Result<Self, EvaluateError> {
        let (sizes, pixels) = idx(images, 3)?;
        let (label_sizes, label_bytes) = idx(labels, 1)?;
        if sizes[0] != label_sizes[0] {
            let message = format!("{} labels for {} images", label_sizes[0], sizes[0]);
            return Err(EvaluateError::Format { path: labels.into(), message });
        }
        let plane = sizes[1] * sizes[2];
        if pixels.is_empty() {
            return Err(EvaluateError::Format {
                path: images.into(),
                message: format!("{} images of {} × {} pixels", sizes[0], sizes[1], sizes[2]),
            });
        }
        let image = |pixels: &[u8]| ImageSource::Gray { pixels: pixels.to_vec(), width: sizes[2] };
        Ok(Self {
            images: pixels.chunks_exact(plane).map(image).collect(),
            labels: label_bytes.iter().map(|&label| usize::from(label)).collect(),
            names: Vec::new(),
        })
    }
}

/// The bytes of a file; of a compressed one no more than IDX files of any use have.
fn read_plain(path: &Path) -> Result<Vec<u8>, EvaluateError> {
    if path.extension().is_none_or(|extension| extension != "gz") {
        return std::fs::read(path).map_err(EvaluateError::file(path));
    }
    let file = std::fs::File::open(path).map_err(EvaluateError::file(path))?;
    let mut bytes = Vec::new();
    let mut reader = flate2::read::GzDecoder::new(std::io::BufReader::new(file));
    let read = reader.by_ref().take(UNPACKED_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(EvaluateError::file(path))?;
    if bytes.len() as u64 > UNPACKED_BYTES_MAX {
        let message = format!("it unpacks to more than {UNPACKED_BYTES_MAX} bytes");
        return Err(EvaluateError::Format { path: path.into(), message });
    }
    Ok(bytes)
}

fn idx(path: &Path, rank: usize) -> Result<(Vec<usize>, Vec<u8>), EvaluateError> {
    let bytes = read_plain(path)?;
    let error = |message: String| EvaluateError::Format { path: path.into(), message };
    let header = 4 + 4 * rank;
    if bytes.len() < header || bytes[..4] != [0, 0, 8, rank as u8] {
        return Err(error(format!("not an IDX file of bytes with {rank} axes")));
    }
    let sizes: Vec<usize> = bytes[4..header]
        .chunks_exact(4)
        .map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize)
        .collect();
    let needed = attar_tensor::element_count(&sizes);
    if needed != Some(bytes.len() - header) {
        return Err(error(format!("sizes {sizes:?} do not fit {} bytes", bytes.len() - header)));
    }
    Ok((sizes, bytes[header..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idx_error(name: &str, image_sizes: [u32; 3], pixels: usize, labels: u32) -> String {
        let folder = std::env::temp_dir().join(format!("attar-idx-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = |rank: u8, sizes: &[u32], count: usize| -> Vec<u8> {
            let sizes = sizes.iter().flat_map(|size| size.to_be_bytes());
            [0, 0, 8, rank].into_iter().chain(sizes).chain(vec![0; count]).collect()
        };
        let [images, names] = IDX_TEST;
        std::fs::write(folder.join(images), file(3, &image_sizes, pixels)).unwrap();
        std::fs::write(folder.join(names), file(1, &[labels], labels as usize)).unwrap();
        let error =
            Images::load(&folder, Split::Test, &mut BadRows::new(false)).unwrap_err().to_string();
        std::fs::remove_dir_all(&folder).unwrap();
        error
    }

    #[test]
    fn headers_of_idx_files_that_lie_are_named() {
        let none = idx_error("none", [3, 0, 5], 0, 3);
        assert!(none.ends_with("t10k-images-idx3-ubyte: 3 images of 0 × 5 pixels"), "{none}");
        let large = idx_error("large", [u32::MAX; 3], 8, 3);
        assert!(large.contains("do not fit 8 bytes"), "{large}");
        let few = idx_error("few", [2, 1, 1], 2, 3);
        assert!(few.ends_with("t10k-labels-idx1-ubyte: 3 labels for 2 images"), "{few}");
    }

    #[test]
    fn compressed_idx_files_are_read_and_splits_kept_apart() {
        use std::io::Write;
        let folder = std::env::temp_dir().join(format!("attar-idx-gz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, content: &[u8]| {
            let file = std::fs::File::create(folder.join(format!("{name}.gz"))).unwrap();
            let mut writer = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
            writer.write_all(content).unwrap();
            writer.finish().unwrap();
        };
        write(IDX_TRAIN[0], &[0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 7, 9]);
        write(IDX_TRAIN[1], &[0, 0, 8, 1, 0, 0, 0, 1, 3]);
        assert!(!has_split(&folder, Split::Test) && looks_like_images(&folder));
        for split in [Split::Test, Split::Train] {
            let data = Images::load(&folder, split, &mut BadRows::new(false)).unwrap();
            assert!(
                matches!(&data.images[..], [ImageSource::Gray { pixels, .. }] if pixels == &[7, 9])
            );
        }
        write(IDX_TEST[0], &[0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 5]);
        write(IDX_TEST[1], &[0, 0, 8, 1, 0, 0, 0, 1, 4]);
        assert!(has_split(&folder, Split::Test));
        let data = Images::load(&folder, Split::Test, &mut BadRows::new(false)).unwrap();
        assert_eq!(data.labels, [4]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
