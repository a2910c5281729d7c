//! Vision transformers in Hugging Face folders.

use std::path::Path;

use attar_graph::Dim;

use super::ImportedImage;
use super::processor::Processor;
use super::vit::{self, Config};
use crate::build::{Builder, check_opset};
use crate::config::ConfigFile;
use crate::weights::Weights;
use crate::{FolderOptions, ImportError};

/// One kind of image network that folders hold.
pub struct ImageFolderArchitecture {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// What may stand before the names of the encoder's weights.
    pub(super) prefix: &'static str,
    /// Classes in config.json whose encoder this is.
    pub(super) classes: &'static [&'static str],
    /// Classes with scores: the layers that make them, of which the n-th reads the n-th token.
    pub(super) heads: &'static [(&'static str, &'static [&'static str])],
    /// Tokens before those of the patches.
    pub(super) tokens: &'static [&'static str],
}

/// Every kind of image network that folders may hold.
pub const FOLDER_ARCHITECTURES: [&ImageFolderArchitecture; 2] = [&vit::DEIT, &vit::VIT];

/// Beginnings of the names of what training alone needs.
const IGNORABLE: [&str; 3] = ["pooler.", "decoder.", "embeddings.mask_token"];

pub(crate) fn is_known(model_type: &str) -> bool {
    FOLDER_ARCHITECTURES.iter().any(|kind| kind.model_type == model_type)
}

/// Imports the image network in `folder` with its head, or with its pooler where it has no head;
/// unless told otherwise.
///
/// # Errors
/// Whatever would make the graph another model than the folder describes.
pub fn import_image(folder: &Path, options: &FolderOptions) -> Result<ImportedImage, ImportError> {
    check_opset(options.opset)?;
    let file = ConfigFile::read(folder)?;
    let architecture = find(&file)?;
    let heads = architecture.heads_of(&file)?;
    let config = Config::new(&file)?;
    let processor = Processor::read(folder)?;
    processor.check(config.num_channels, config.image_size())?;
    let mut weights = Weights::open_folder(folder)?;
    weights.allow_prefix(architecture.prefix);

    let mut b = Builder::new(architecture.model_type, weights, options.opset);
    let tokens = vit::tokens(&mut b, architecture, &config)?;
    let batch = Dim::symbol("batch");
    let mut remark = None;
    if !options.pooling {
        let token_count = config.patch_count()? + architecture.tokens.len();
        let dims = [batch, token_count.into(), config.hidden_size().into()];
        b.output(&tokens, "last_hidden_state", &dims);
    } else if let Some(heads) = heads {
        let (logits, count) = vit::logits(&mut b, &config, heads, &tokens)?;
        b.output(&logits, "logits", &[batch, count.into()]);
    } else {
        let (vector, size, is_pooled) = vit::vector(&mut b, &config, &tokens)?;
        let name = if is_pooled { "pooler_output" } else { "image_embedding" };
        if !is_pooled {
            remark = Some("there is no pooler: the vector is that of the first token".to_string());
        }
        b.output(&vector, name, &[batch, size.into()]);
    }
    let (model, weights) = b.finish();
    let ignorable = [&IGNORABLE[..], heads.unwrap_or(&[])].concat();
    Ok(ImportedImage {
        model,
        unused: weights.unused(architecture.model_type, &ignorable)?,
        remarks: weights.remarks().into_iter().chain(remark).collect(),
        size: processor.size,
        resize: processor.resize,
        is_stretched: processor.is_stretched,
        resampling: processor.resampling,
        mean: processor.mean,
        std: processor.std,
    })
}

fn find(file: &ConfigFile) -> Result<&'static ImageFolderArchitecture, ImportError> {
    let model_type = file.model_type()?;
    let found = FOLDER_ARCHITECTURES.iter().find(|kind| kind.model_type == model_type);
    found.copied().ok_or_else(|| {
        let known: Vec<&str> = FOLDER_ARCHITECTURES.iter().map(|kind| kind.model_type).collect();
        file.unsupported("model_type", model_type, &known.join(", "))
    })
}

impl ImageFolderArchitecture {
    /// The layers of the folder's head, if it has one.
    fn heads_of(&self, file: &ConfigFile) -> Result<Option<&'static [&'static str]>, ImportError> {
        let mut found = None;
        for class in file.classes() {
            if let Some((_, heads)) = self.heads.iter().find(|(known, _)| *known == class) {
                found = Some(*heads);
            } else if !self.classes.contains(&class) {
                let heads = self.heads.iter().map(|(class, _)| *class);
                let known: Vec<&str> = self.classes.iter().copied().chain(heads).collect();
                return Err(file.unsupported("the class", class, &known.join(", ")));
            }
        }
        Ok(found)
    }
}
