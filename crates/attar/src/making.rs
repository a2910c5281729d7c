//! Making a model with first values, and writing it with what feeding it needs.

use std::path::Path;

use attar_evaluate::{ImageInput, Preprocessing, Resample, TextInput, tokenizer_size};
use attar_import::ModelInput;

use crate::importing::{Parts, check_folder, folder_of};
use crate::{Error, ImportOutcome};

/// What to make and where to put it.
pub struct NewRequest<'a> {
    /// One of [`ARCHITECTURES`](crate::ARCHITECTURES).
    pub architecture: &'a str,
    /// Options of the architecture by name; what is not given has its default.
    pub options: &'a [(String, String)],
    /// The tokenizer of a text model: it is copied beside it, and says the vocabulary's size.
    pub tokenizer: Option<&'a Path>,
    /// The ONNX file to write.
    pub output: &'a Path,
}

/// Makes a model to be trained.
///
/// # Errors
/// An architecture or option that there is not, or a value that makes no model.
pub fn new_model(request: &NewRequest) -> Result<ImportOutcome, Error> {
    let folder = folder_of(request.output);
    check_folder(folder, request.output)?;
    let mut options = request.options.to_vec();
    if let Some(tokenizer) = request.tokenizer {
        let size = tokenizer_size(tokenizer)?;
        match options.iter().find(|(key, _)| key == "vocabulary") {
            None => options.push(("vocabulary".into(), size.to_string())),
            Some((_, given)) if given.parse().is_ok_and(|given: usize| given >= size) => {}
            Some((_, given)) => {
                return Err(Error::Usage {
                    message: format!(
                        "{} has {size} tokens, the vocabulary {given}",
                        request.tokenizer.map_or_else(String::new, |p| p.display().to_string())
                    ),
                    hint: "leave `vocabulary` out: the tokenizer says it".into(),
                });
            }
        }
    }
    let made = attar_import::new_model(request.architecture, &options)?;
    let mut remarks = Vec::new();
    let mut preprocessing = Preprocessing::default();
    match made.input {
        ModelInput::Features => {}
        ModelInput::Image { size, mean, std } => {
            let (resize, stretch, resample) = (size, false, Resample::default());
            preprocessing.image = Some(ImageInput { resize, stretch, resample, size, mean, std });
        }
        ModelInput::Text { length_max } => {
            preprocessing.text = Some(TextInput { tokenizer: "tokenizer.json".into(), length_max });
            if request.tokenizer.is_none() && !folder.join("tokenizer.json").is_file() {
                remarks.push(format!(
                    "there is no tokenizer yet: put tokenizer.json into {}",
                    folder.display()
                ));
            }
        }
    }
    let tokenizer = request.tokenizer.map(Path::to_path_buf);
    let parts = Parts { model: made.model, preprocessing, tokenizer, unused: Vec::new(), remarks };
    parts.write(folder, request.output)
}
