//! Images to tensors: resize the short side, cut the centre, normalize.

use std::path::Path;

use attar_graph::Value;
use attar_tensor::Tensor;
use image::imageops::FilterType;
use rayon::prelude::*;

use crate::data::ImageSource;
use crate::{EvaluateError, ImageInput, Resample};

/// Pixels that an image may have while it is resized. One of a single row would be as wide as it
/// is, times the size asked for.
const RESIZED_PIXELS_MAX: usize = 1 << 24;

/// One image as [channels, size, size]; the channels are those of `mean`.
///
/// # Errors
/// A file that is no image, or one much longer than it is wide.
pub fn decode_image(source: &ImageSource, input: &ImageInput) -> Result<Vec<f32>, EvaluateError> {
    check_input(input)?;
    let (path, image) = match source {
        ImageSource::Gray { pixels, width } => {
            let path = Path::new("an IDX image");
            let height = pixels.len() / (*width).max(1);
            check_sides(path, *width, height, input)?;
            return Ok(gray_image(pixels, *width, input));
        }
        ImageSource::File(path) => (path, image::open(path)),
    };
    let image = image.map_err(|error| EvaluateError::Format {
        path: path.clone(),
        message: error.to_string(),
    })?;
    check_sides(path, image.width() as usize, image.height() as usize, input)?;
    Ok(normalized(&image, input))
}

fn check_input(input: &ImageInput) -> Result<(), EvaluateError> {
    if input.mean.len() != input.std.len() || !matches!(input.mean.len(), 1 | 3) {
        return Err(EvaluateError::NoPreprocessing { data: "images of 1 or 3 channels" });
    }
    Ok(())
}

fn check_sides(
    path: &Path,
    width: usize,
    height: usize,
    input: &ImageInput,
) -> Result<(), EvaluateError> {
    let (short, long) = (width.min(height), width.max(height));
    let resized = |side: usize| Some((side.checked_mul(input.resize)? / short).max(input.size));
    let pixels = if short == 0 { None } else { resized(short).zip(resized(long)) };
    match pixels.and_then(|(a, b)| a.checked_mul(b)) {
        Some(1..=RESIZED_PIXELS_MAX) => Ok(()),
        _ => Err(EvaluateError::Format {
            path: path.into(),
            message: format!(
                "{width} × {height} pixels cannot be resized to {} and cut to {}",
                input.resize, input.size
            ),
        }),
    }
}

/// One image of single bytes.
pub fn gray_image(pixels: &[u8], width: usize, input: &ImageInput) -> Vec<f32> {
    let height = pixels.len() / width.max(1);
    let buffer = image::GrayImage::from_raw(width as u32, height as u32, pixels.to_vec())
        .expect("an IDX image has as many bytes as pixels");
    normalized(&image::DynamicImage::ImageLuma8(buffer), input)
}

fn normalized(image: &image::DynamicImage, input: &ImageInput) -> Vec<f32> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let short = width.min(height).max(1);
    // As torchvision does: the long side is cut off, the crop's offset rounded half to even.
    let scaled = |side: usize| {
        let side = if input.stretch { input.resize } else { side * input.resize / short };
        side.max(input.size) as u32
    };
    let filter = match input.resample {
        Resample::Bilinear => FilterType::Triangle,
        Resample::Bicubic => FilterType::CatmullRom,
    };
    let is_scaled = [width, height] == [scaled(width), scaled(height)].map(|side| side as usize);
    let image = if is_scaled {
        image.clone()
    } else {
        image.resize_exact(scaled(width), scaled(height), filter)
    };
    let centre = |side: u32| ((side as f64 - input.size as f64) / 2.0).round_ties_even() as u32;
    let (left, top) = (centre(image.width()), centre(image.height()));
    let image = image.crop_imm(left, top, input.size as u32, input.size as u32);
    let plane = input.size * input.size;
    let mut values = vec![0.0; input.mean.len() * plane];
    let mut fill = |channel: usize, bytes: &mut dyn Iterator<Item = u8>| {
        let (mean, std) = (input.mean[channel], input.std[channel]);
        let out = &mut values[channel * plane..(channel + 1) * plane];
        out.iter_mut()
            .zip(bytes)
            .for_each(|(out, byte)| *out = (f32::from(byte) / 255.0 - mean) / std);
    };
    if input.mean.len() == 1 {
        fill(0, &mut image.to_luma8().pixels().map(|pixel| pixel[0]));
    } else {
        let rgb = image.to_rgb8();
        (0..3).for_each(|channel| fill(channel, &mut rgb.pixels().map(|pixel| pixel[channel])));
    }
    values
}

/// A batch of images for the model's only input.
///
/// # Errors
/// A model with other inputs, or a file that is no image.
pub fn image_feeds(
    sources: &[&ImageSource],
    input: &ImageInput,
    inputs: &[Value],
) -> Result<Vec<(String, Tensor)>, EvaluateError> {
    let [only] = inputs else {
        let input = inputs.get(1).map_or(String::new(), |value| value.name.clone());
        return Err(EvaluateError::Input { input, data: "an image" });
    };
    check_input(input)?;
    let images: Vec<Vec<f32>> =
        sources.par_iter().map(|source| decode_image(source, input)).collect::<Result<_, _>>()?;
    let shape = [sources.len(), input.mean.len(), input.size, input.size];
    Ok(vec![(only.name.clone(), Tensor::new(&shape, &images.concat()))])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(resize: usize, size: usize) -> ImageInput {
        ImageInput {
            resize,
            stretch: false,
            resample: Resample::Bilinear,
            size,
            mean: vec![0.5],
            std: vec![0.25],
        }
    }

    #[test]
    fn the_centre_is_cut_and_normalized() {
        let pixels: Vec<u8> = (0..16).map(|i| i * 10).collect();
        let values = gray_image(&pixels, 4, &input(4, 2));
        let expected = [50.0, 60.0, 90.0, 100.0].map(|x: f32| (x / 255.0 - 0.5) / 0.25);
        assert_eq!(values, expected);
    }

    #[test]
    fn an_offset_of_a_half_goes_to_the_even_pixel() {
        // Five columns, two kept: the offset 1.5 becomes 2, and of seven rows 2.5 becomes 2.
        let pixels: Vec<u8> = (0..35).collect();
        let values = gray_image(&pixels, 5, &input(5, 2));
        let expected = [12.0, 13.0, 17.0, 18.0].map(|x: f32| (x / 255.0 - 0.5) / 0.25);
        assert_eq!(values, expected);
    }

    #[test]
    fn a_stretched_image_loses_nothing_at_its_sides() {
        // Two dark columns of eight: a cut leaves them out, a stretched image keeps them. Its first
        // column reads the first three with weights 3 : 3 : 1, and the third of them is bright.
        let row: Vec<u8> = (0..8).map(|x| if x < 2 { 0 } else { 255 }).collect();
        let stretch = ImageInput { stretch: true, ..input(4, 4) };
        let values = gray_image(&row.repeat(4), 8, &stretch);
        let (dark, bright) = (-2.0, 2.0);
        let expected = dark + (bright - dark) / 7.0;
        // A level of a byte is 1/64 here.
        assert!((values[0] - expected).abs() < 1.0 / 64.0 && values[3] == bright, "{values:?}");
        let cut = gray_image(&row.repeat(4), 8, &input(4, 4));
        assert_eq!(cut, vec![bright; 16]);
    }

    #[test]
    fn an_image_that_would_fill_memory_is_refused() {
        let row = ImageSource::Gray { pixels: vec![0; 1 << 17], width: 1 << 17 };
        let error = decode_image(&row, &input(256, 224)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "an IDX image: 131072 × 1 pixels cannot be resized to 256 and cut to 224"
        );
        let empty = ImageSource::Gray { pixels: vec![], width: 0 };
        assert!(decode_image(&empty, &input(256, 224)).is_err());
        let dot = ImageSource::Gray { pixels: vec![0], width: 1 };
        for (resize, size) in [(usize::MAX, 1), (1, usize::MAX), (0, 0)] {
            assert!(decode_image(&dot, &input(resize, size)).is_err());
        }
        let two = ImageInput { mean: vec![0.5; 2], ..input(1, 1) };
        assert!(decode_image(&dot, &two).is_err());
    }

    #[test]
    fn a_constant_image_stays_constant_when_resized() {
        let values = gray_image(&[128; 100 * 60], 100, &input(32, 32));
        assert!(values.iter().all(|&v| (v - (128.0 / 255.0 - 0.5) / 0.25).abs() < 1e-6));
    }
}
