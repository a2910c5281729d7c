//! The attributes of a Resize, and what sizes and scales make of them.

use attar_graph::Node;

use crate::OpError;
use crate::squeeze::resolve_axes;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mode {
    Nearest,
    Linear,
    Cubic,
}

/// How an output index becomes an input coordinate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Coordinates {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    TfHalfPixelForNn,
    TfCropAndResize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Nearest {
    RoundPreferFloor,
    RoundPreferCeil,
    Floor,
    Ceil,
}

/// What sizes ask for beside themselves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum AspectRatio {
    Stretch,
    NotLarger,
    NotSmaller,
}

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) mode: Mode,
    pub(super) coordinates: Coordinates,
    pub(super) nearest: Nearest,
    pub(super) antialias: bool,
    pub(super) exclude_outside: bool,
    pub(super) extrapolation: f32,
    pub(super) cubic_a: f32,
    axes: Option<Vec<i64>>,
    aspect_ratio: AspectRatio,
}

/// One axis of one Resize.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scaled {
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) scale: f32,
    /// Start and end of the region of interest, as fractions of the axis.
    pub(super) roi: [f32; 2],
}

/// The value of an attribute that names one of several.
fn choice<T: Copy>(node: &Node, name: &str, choices: &[(&str, T)]) -> Result<T, OpError> {
    let Some(found) = node.text(name)? else { return Ok(choices[0].1) };
    let chosen = choices.iter().find(|(word, _)| *word == found);
    chosen.map(|&(_, value)| value).ok_or_else(|| {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        OpError::value(name, found, format!("one of {}", words.join(", ")))
    })
}

impl Settings {
    pub(super) fn new(node: &Node) -> Result<Self, OpError> {
        let modes = [("nearest", Mode::Nearest), ("linear", Mode::Linear), ("cubic", Mode::Cubic)];
        let coordinates = [
            ("half_pixel", Coordinates::HalfPixel),
            ("half_pixel_symmetric", Coordinates::HalfPixelSymmetric),
            ("pytorch_half_pixel", Coordinates::PytorchHalfPixel),
            ("align_corners", Coordinates::AlignCorners),
            ("asymmetric", Coordinates::Asymmetric),
            ("tf_half_pixel_for_nn", Coordinates::TfHalfPixelForNn),
            ("tf_crop_and_resize", Coordinates::TfCropAndResize),
        ];
        let nearest = [
            ("round_prefer_floor", Nearest::RoundPreferFloor),
            ("round_prefer_ceil", Nearest::RoundPreferCeil),
            ("floor", Nearest::Floor),
            ("ceil", Nearest::Ceil),
        ];
        let aspect_ratios = [
            ("stretch", AspectRatio::Stretch),
            ("not_larger", AspectRatio::NotLarger),
            ("not_smaller", AspectRatio::NotSmaller),
        ];
        Ok(Self {
            mode: choice(node, "mode", &modes)?,
            coordinates: choice(node, "coordinate_transformation_mode", &coordinates)?,
            nearest: choice(node, "nearest_mode", &nearest)?,
            antialias: node.int_or("antialias", 0)? != 0,
            exclude_outside: node.int_or("exclude_outside", 0)? != 0,
            extrapolation: node.float_or("extrapolation_value", 0.0)?,
            cubic_a: node.float_or("cubic_coeff_a", -0.75)?,
            axes: node.ints("axes")?.map(<[i64]>::to_vec),
            aspect_ratio: choice(node, "keep_aspect_ratio_policy", &aspect_ratios)?,
        })
    }

    pub(super) fn stretches(&self) -> bool {
        self.aspect_ratio == AspectRatio::Stretch
    }

    /// The axes that scales and sizes are about, in their order.
    pub(super) fn axes(&self, rank: usize) -> Result<Vec<usize>, OpError> {
        let Some(axes) = &self.axes else { return Ok((0..rank).collect()) };
        let in_order = axes.iter().map(|&axis| Ok(resolve_axes(&[axis], rank)?[0]));
        let in_order = in_order.collect::<Result<Vec<usize>, OpError>>()?;
        if resolve_axes(axes, rank)?.len() != axes.len() {
            return Err(OpError::value("axes", axes, "different ones"));
        }
        Ok(in_order)
    }

    /// What becomes of every axis of an input.
    ///
    /// # Errors
    /// Lists of another length, sizes or scales that make no axis, an empty axis that is to grow.
    pub(super) fn scaled(
        &self,
        shape: &[usize],
        roi: Option<&[f64]>,
        scales: Option<&[f32]>,
        sizes: Option<&[i64]>,
    ) -> Result<Vec<Scaled>, OpError> {
        let axes = self.axes(shape.len())?;
        let mut scaled: Vec<Scaled> = (shape.iter())
            .map(|&size| Scaled { input: size, output: size, scale: 1.0, roi: [0.0, 1.0] })
            .collect();
        match (scales, sizes) {
            (Some(scales), None) if scales.len() == axes.len() => {
                for (&axis, &scale) in axes.iter().zip(scales) {
                    let size = (shape[axis] as f32 * scale).floor();
                    // 2⁵³: beyond, floats skip sizes, and no memory holds them.
                    if !(scale > 0.0 && size < 9e15) {
                        return Err(OpError::value("a scale", scale, "above 0 and finite"));
                    }
                    (scaled[axis].scale, scaled[axis].output) = (scale, size as usize);
                }
            }
            (None, Some(sizes)) if sizes.len() == axes.len() => {
                self.set_sizes(&mut scaled, &axes, sizes)?;
            }
            (None, None) | (Some(_), Some(_)) => {
                return Err(OpError::value("scales and sizes", "both or none", "one of them"));
            }
            _ => {
                let found = scales.map_or(0, <[f32]>::len) + sizes.map_or(0, <[i64]>::len);
                let expected = format!("one for each of {} axes", axes.len());
                return Err(OpError::value("the count of scales or sizes", found, expected));
            }
        }
        if self.coordinates == Coordinates::TfCropAndResize {
            let roi = roi.filter(|roi| roi.len() == 2 * axes.len()).ok_or_else(|| {
                OpError::value("roi", roi.map_or(0, <[f64]>::len), "a start and an end each axis")
            })?;
            for (index, &axis) in axes.iter().enumerate() {
                scaled[axis].roi = [roi[index] as f32, roi[axes.len() + index] as f32];
            }
        }
        match scaled.iter().find(|axis| axis.input == 0 && axis.output > 0) {
            Some(axis) => Err(OpError::value("the size of an empty axis", axis.output, "0")),
            None => Ok(scaled),
        }
    }

    fn set_sizes(
        &self,
        scaled: &mut [Scaled],
        axes: &[usize],
        sizes: &[i64],
    ) -> Result<(), OpError> {
        let mut scales = Vec::with_capacity(axes.len());
        for (&axis, &size) in axes.iter().zip(sizes) {
            let output = usize::try_from(size);
            scaled[axis].output =
                output.map_err(|_| OpError::value("a size", size, "at least 0"))?;
            scaled[axis].scale = size as f32 / scaled[axis].input.max(1) as f32;
            scales.push(scaled[axis].scale);
        }
        let scale = match self.aspect_ratio {
            AspectRatio::Stretch => return Ok(()),
            AspectRatio::NotLarger => scales.into_iter().fold(f32::INFINITY, f32::min),
            AspectRatio::NotSmaller => scales.into_iter().fold(0.0, f32::max),
        };
        for &axis in axes {
            scaled[axis].scale = scale;
            scaled[axis].output = (scale * scaled[axis].input as f32 + 0.5).floor() as usize;
        }
        Ok(())
    }
}
