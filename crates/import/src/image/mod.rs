//! Image networks: from state dicts, which hold weights alone, so that the graph is known by name;
//! and from Hugging Face folders.

pub(crate) mod convolution;
mod folder;
pub(crate) mod mobilenet_v2;
mod processor;
mod vit;

use std::path::Path;

use attar_graph::{Dim, Model};
use attar_tensor::DType;

use crate::ImportError;
use crate::build::{Builder, OPSETS};
use crate::weights::Weights;

pub(crate) use self::folder::is_known;
pub use self::folder::{FOLDER_ARCHITECTURES, ImageFolderArchitecture, import_image};
pub use self::processor::Resampling;

/// An image network, and what feeding it needs.
#[derive(Debug)]
pub struct ImportedImage {
    /// Takes one image [batch, channels, height, width], scaled to 0…1 and normalized; gives
    /// `logits` [batch, classes], a vector [batch, hidden] called `pooler_output` or
    /// `image_embedding`, or `last_hidden_state` [batch, tokens, hidden].
    pub model: Model,
    /// Height and width that the network was trained with.
    pub size: usize,
    /// What the shorter side is scaled to before the middle of `size` is cut out.
    pub resize: usize,
    /// Whether both sides are scaled to `resize`, whatever their ratio.
    pub is_stretched: bool,
    pub resampling: Resampling,
    /// Subtracted from each channel.
    pub mean: Vec<f32>,
    /// What each channel is divided by after that.
    pub std: Vec<f32>,
    /// Tensors of the file that the model has no use for, in order of name.
    pub unused: Vec<String>,
    /// What was done to the weights, and what the output is.
    pub remarks: Vec<String>,
}

/// From the name of the image to that of the logits, and their count.
type Build = fn(&mut Builder, &str) -> Result<(String, usize), ImportError>;

/// One kind of image network.
pub struct ImageArchitecture {
    /// What `--architecture` calls it.
    pub name: &'static str,
    /// Adds the network to the graph and gives its logits and their count.
    build: Build,
    size: usize,
    resize: usize,
    mean: [f32; 3],
    std: [f32; 3],
}

/// Every kind of image network that can be imported.
pub const IMAGE_ARCHITECTURES: [&ImageArchitecture; 1] = [&mobilenet_v2::MOBILENET_V2];

/// Imports the state dict at `path` (.pth or .safetensors) as the network called `architecture`.
///
/// # Errors
/// When the weights are not that network's, or the file is damaged or would run code.
pub fn import_weights(path: &Path, architecture: &str) -> Result<ImportedImage, ImportError> {
    let found = IMAGE_ARCHITECTURES.iter().find(|known| known.name == architecture);
    let Some(found) = found else {
        let known: Vec<&str> = IMAGE_ARCHITECTURES.iter().map(|known| known.name).collect();
        return Err(ImportError::UnknownArchitecture {
            found: architecture.into(),
            known: known.join(", "),
        });
    };
    let weights = Weights::open(path)?;
    found.import(weights)
}

/// Imports `MobileNetV2` of any width from a torchvision state dict.
///
/// # Errors
/// As [`import_weights`].
pub fn import_mobilenet_v2(path: &Path) -> Result<ImportedImage, ImportError> {
    import_weights(path, mobilenet_v2::MOBILENET_V2.name)
}

impl ImageArchitecture {
    fn import(&self, weights: Weights) -> Result<ImportedImage, ImportError> {
        let mut builder = Builder::new(self.name, weights, *OPSETS.start());
        let batch = Dim::symbol("batch");
        let dims = [batch.clone(), 3.into(), Dim::symbol("height"), Dim::symbol("width")];
        builder.input("image", DType::F32, &dims);
        let (logits, class_count) = (self.build)(&mut builder, "image")?;
        builder.output(&logits, "logits", &[batch, class_count.into()]);
        let (model, weights) = builder.finish();
        // Normalizations count the batches they were trained on; no formula reads that.
        let mut unused = weights.unused(self.name, &["num_batches_tracked"])?;
        unused.retain(|name| !name.ends_with("num_batches_tracked"));
        Ok(ImportedImage {
            model,
            size: self.size,
            resize: self.resize,
            is_stretched: false,
            resampling: Resampling::Bilinear,
            mean: self.mean.to_vec(),
            std: self.std.to_vec(),
            unused,
            remarks: weights.remarks(),
        })
    }
}
