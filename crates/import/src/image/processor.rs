//! `preprocessor_config.json`: how a photograph becomes what an image network takes.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::ImportError;
use crate::config::{read_settings, unsupported};

/// How pixels between those of an image are found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Resampling {
    Bilinear,
    Bicubic,
}

/// The file, where it differs from other processors' with the defaults of those of `ViT`.
#[derive(Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "the file has them")]
struct Content {
    size: Size,
    crop_size: Option<Size>,
    #[serde(default = "yes")]
    do_resize: bool,
    #[serde(default)]
    do_center_crop: bool,
    #[serde(default = "yes")]
    do_rescale: bool,
    #[serde(default = "yes")]
    do_normalize: bool,
    rescale_factor: Option<f64>,
    #[serde(default = "bilinear")]
    resample: u32,
    #[serde(default = "halves")]
    image_mean: Vec<f32>,
    #[serde(default = "halves")]
    image_std: Vec<f32>,
}

fn yes() -> bool {
    true
}

/// PIL's number.
fn bilinear() -> u32 {
    2
}

fn halves() -> Vec<f32> {
    vec![0.5; 3]
}

#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Size {
    Square(usize),
    Sides { height: usize, width: usize },
    Short { shortest_edge: usize },
}

/// What is done to an image.
pub(crate) struct Processor {
    file: PathBuf,
    pub(crate) resize: usize,
    /// Whether both sides become `resize`, and not the short one.
    pub(crate) is_stretched: bool,
    pub(crate) resampling: Resampling,
    /// The square cut out of the middle.
    pub(crate) size: usize,
    pub(crate) mean: Vec<f32>,
    pub(crate) std: Vec<f32>,
}

impl Processor {
    pub(crate) fn read(folder: &Path) -> Result<Self, ImportError> {
        let file = folder.join("preprocessor_config.json");
        let content: Content = read_settings(&file)?;
        let refuse = |what: &str, found: &str, supported: &str| {
            Err(unsupported(&file, what, found, supported))
        };
        let factor = content.rescale_factor.unwrap_or(1.0 / 255.0);
        if !content.do_rescale || (factor * 255.0 - 1.0).abs() > 1e-6 {
            let found = if content.do_rescale { factor.to_string() } else { "none".into() };
            return refuse("rescale_factor", &found, "1/255");
        }
        if !content.do_resize {
            return refuse("do_resize", "false", "true");
        }
        let resampling = match content.resample {
            2 => Resampling::Bilinear,
            3 => Resampling::Bicubic,
            other => return refuse("resample", &other.to_string(), "2 (bilinear), 3 (bicubic)"),
        };
        let (resize, is_stretched) = match content.size {
            Size::Square(side) => (side, true),
            Size::Sides { height, width } if height == width => (height, true),
            Size::Short { shortest_edge } => (shortest_edge, false),
            Size::Sides { height, width } => {
                return refuse("size", &format!("{height} × {width}"), "a square");
            }
        };
        let size = match content.crop_size.filter(|_| content.do_center_crop) {
            None => resize,
            Some(Size::Square(side)) => side,
            Some(Size::Sides { height, width }) if height == width => height,
            Some(_) => return refuse("crop_size", "no square", "a square"),
        };
        if size > resize || size == 0 {
            return refuse("crop_size", &size.to_string(), &format!("1 to {resize}"));
        }
        let (mean, std) = if content.do_normalize {
            (content.image_mean, content.image_std)
        } else {
            (vec![0.0; content.image_mean.len()], vec![1.0; content.image_mean.len()])
        };
        Ok(Self { file, resize, is_stretched, resampling, size, mean, std })
    }

    /// That it makes images of `channels` and `size` [height, width].
    pub(crate) fn check(&self, channels: usize, size: [usize; 2]) -> Result<(), ImportError> {
        if size != [self.size; 2] {
            let supported = format!("{} × {}, the network's image_size", size[0], size[1]);
            return Err(unsupported(&self.file, "the size", &self.size.to_string(), &supported));
        }
        let is_divisor = |x: &f32| x.is_finite() && *x != 0.0;
        if self.std.len() != channels
            || self.mean.len() != channels
            || !self.std.iter().all(is_divisor)
        {
            let found = format!("{:?}, {:?}", self.mean, self.std);
            let supported = format!("{channels} numbers each, of which none divides by zero");
            return Err(unsupported(&self.file, "image_mean, image_std", &found, &supported));
        }
        Ok(())
    }
}
