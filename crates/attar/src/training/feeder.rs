//! How the examples of a data set become a model's inputs.

use attar_evaluate::{
    Dataset, Encoded, EvaluateError, ImageInput, TextEncoder, gives_one_score, rows_output,
};
use attar_graph::{Dim, Value};
use attar_runtime::{Builtin, RunOptions, Session};
use attar_tensor::{DType, Tensor};

use crate::inspect::describe;
use crate::{Error, Subject};

/// A model's side of the data: its inputs, its output, and the texts in its own tokens.
pub(crate) struct Feeder<'a> {
    pub(crate) inputs: Vec<Value>,
    /// The output that is one row per example.
    pub(crate) output: String,
    pub(crate) image: Option<&'a ImageInput>,
    texts: Option<Texts>,
}

struct Texts {
    encoder: TextEncoder,
    encoded: Vec<Encoded>,
    /// Whether two texts make one row of tokens.
    is_paired: bool,
    /// What the model's inputs are fixed to.
    length: Option<usize>,
}

impl<'a> Feeder<'a> {
    /// Encodes all texts of the data; the second result is the model ready to run.
    ///
    /// # Errors
    /// A model or an `attar.toml` that does not fit the data.
    pub(crate) fn new(
        subject: &'a Subject,
        data: &Dataset,
        options: &RunOptions,
    ) -> Result<(Self, Box<dyn Session>), Error> {
        let session = subject.session(&Builtin, options)?;
        let output = rows_output(session.as_ref(), subject.output())?;
        let inputs = session.inputs().to_vec();
        let mut feeder = Self { inputs, output, image: None, texts: None };
        match data {
            Dataset::Images(_) => {
                let input = subject.image_input()?;
                check_image(&feeder.inputs, input)?;
                feeder.image = Some(input);
            }
            Dataset::Tensors(_) => {}
            _ => feeder.texts = Some(Texts::new(subject, session.as_ref(), data, &feeder.inputs)?),
        }
        Ok((feeder, session))
    }

    /// Whether two texts make one row of tokens, which gets one score.
    pub(crate) fn is_paired(&self) -> bool {
        self.texts.as_ref().is_some_and(|texts| texts.is_paired)
    }

    /// Tokens of each text.
    pub(crate) fn lengths(&self) -> Option<Vec<usize>> {
        let texts = self.texts.as_ref()?;
        Some(texts.encoded.iter().map(|encoded| encoded.ids.len()).collect())
    }

    /// The feeds of the texts of these indices.
    ///
    /// # Errors
    /// Inputs that texts do not fill.
    pub(crate) fn text_feeds(
        &self,
        rows: &[usize],
    ) -> Result<Vec<(String, Tensor)>, EvaluateError> {
        let texts = self.texts.as_ref().expect("the data holds texts");
        let batch: Vec<&Encoded> = rows.iter().map(|&row| &texts.encoded[row]).collect();
        match texts.length {
            Some(length) => texts.encoder.padded_feeds(&batch, &self.inputs, length),
            None => texts.encoder.feeds(&batch, &self.inputs),
        }
    }

    /// An image tensor as the model's only input.
    pub(crate) fn image_feed(&self, images: &Tensor) -> Vec<(String, Tensor)> {
        vec![(self.inputs[0].name.clone(), images.clone())]
    }
}

impl Texts {
    fn new(
        subject: &Subject,
        session: &dyn Session,
        data: &Dataset,
        inputs: &[Value],
    ) -> Result<Self, Error> {
        let encoder = subject.text_encoder()?;
        let has_classes = matches!(data, Dataset::Labelled(_) | Dataset::Text(_));
        let is_paired = !has_classes && gives_one_score(session, subject.output())?;
        let encoded = match data {
            Dataset::Pairs(pairs) if is_paired => {
                let second = pairs.second.iter().map(String::as_str);
                let pairs: Vec<_> = pairs.first.iter().map(String::as_str).zip(second).collect();
                encoder.encode_pairs(&pairs)?
            }
            _ if is_paired => {
                return Err(EvaluateError::OneScore { wanted: data.kind_name() }.into());
            }
            _ => encoder.encode(&data.texts())?,
        };
        let fixed = inputs.iter().find_map(|input| match input.shape()?.get(1) {
            Some(&Dim::Known(length)) => Some((input, usize::try_from(length).ok()?)),
            _ => None,
        });
        let longest = encoded.iter().map(|encoded| encoded.ids.len()).max().unwrap_or(0);
        if let Some((input, length)) = fixed
            && longest > length
        {
            return Err(Error::Usage {
                message: format!(
                    "the model's input `{}` takes {length} tokens and a text has {longest}",
                    input.name
                ),
                hint: format!("set `length_max = {length}` in attar.toml"),
            });
        }
        Ok(Self { encoder, encoded, is_paired, length: fixed.map(|(_, length)| length) })
    }
}

/// That the model takes one tensor of the shape `attar.toml` makes of images.
fn check_image(inputs: &[Value], image: &ImageInput) -> Result<(), Error> {
    let [only] = inputs else {
        let input = inputs.get(1).map_or(String::new(), |value| value.name.clone());
        return Err(EvaluateError::Input { input, data: "an image" }.into());
    };
    let made = [image.mean.len(), image.size, image.size];
    let is_taken = only.shape().is_none_or(|shape| {
        let known = |(dim, &size): (&Dim, &usize)| match dim {
            Dim::Known(known) => *known == size as i64,
            _ => true,
        };
        shape.len() == 4 && shape[1..].iter().zip(&made).all(known)
    });
    if is_taken && only.dtype().is_none_or(|dtype| dtype == DType::F32) {
        return Ok(());
    }
    Err(Error::Usage {
        message: format!(
            "the model's input is {}, attar.toml makes f32[batch, {}, {}, {}] of images",
            describe(only),
            made[0],
            made[1],
            made[2]
        ),
        hint: "set `size`, `mean` and `std` of [image] in attar.toml as the model needs them"
            .into(),
    })
}
