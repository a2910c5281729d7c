//! `QLinearAveragePool` and `QLinearGlobalAveragePool` of ONNX Runtime: means of dequantized
//! values, quantized again.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::{Affine, byte_levels, byte_levels_mut, level, quantize_bytes, requantize_bytes};
use crate::geometry::{Axis, Geometry};
use crate::{Fact, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Run, required};

pub(crate) struct QLinearGlobalAveragePool;

pub(crate) struct QLinearAveragePool;

impl Operator for QLinearGlobalAveragePool {
    fn op_type(&self) -> &'static str {
        "QLinearGlobalAveragePool"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        5..=5
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let is_last = node.int_or("channels_last", 0)? != 0;
        let mut y = x.with_dtype(x.dtype);
        if let Some(shape) = &mut y.shape {
            let end = shape.len();
            let spatial = if is_last { 1..end.saturating_sub(1) } else { 2..end };
            for axis in spatial {
                shape[axis] = Dim::Known(1);
            }
        }
        Ok(vec![y])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let is_last = node.int_or("channels_last", 0)? != 0;
        Ok(Box::new(move |run: &mut Run| {
            let (x, y) = (Affine::new(run, 1, 2)?, Affine::new(run, 3, 4)?);
            let input = run.input(0)?;
            let map = Map::new(input.shape(), is_last)?;
            let count: usize = map.spatial.iter().product();
            if count == 0 || i32::try_from(count).is_err() {
                return Err(OpError::value("the spatial size", count, "1 or more, below 2³¹"));
            }
            let levels = byte_levels(input, 0)?;
            let dtype = input.dtype();
            let sum = |image: usize, channel: usize| -> i64 {
                let term = |i: usize| i64::from(level(levels[map.index(image, channel, i)], dtype));
                (0..count).map(term).sum::<i64>() - count as i64 * i64::from(x.zero_point)
            };
            let images = (0..map.images).flat_map(|n| (0..map.channels).map(move |c| (n, c)));
            let sums: Vec<i32> = if is_last && dtype == DType::U8 && count < COUNT_MAX {
                column_sums(levels, count, map.channels, x.zero_point)
            } else {
                images.map(|(n, c)| sum(n, c) as i32).collect()
            };
            let scales = vec![x.scale / (y.scale * count as f32); sums.len()];
            let spatial = vec![1; map.spatial.len()];
            let mut output = run.pool.tensor(dtype, &map.shape(&spatial));
            requantize_bytes(byte_levels_mut(&mut output), &sums, &scales, y.zero_point, dtype);
            Ok(vec![output])
        }))
    }
}

impl Operator for QLinearAveragePool {
    fn op_type(&self) -> &'static str {
        "QLinearAveragePool"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        4..=5
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let geometry = Geometry::of_pooling(node)?;
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let start = if node.int_or("channels_last", 0)? != 0 { 1 } else { 2 };
        if shape.len() != geometry.kernel.len() + 2 {
            let expected = format!("{}", geometry.kernel.len() + 2);
            return Err(OpError::value("the rank of input 0", shape.len(), expected));
        }
        let mut dims = shape.clone();
        for axis in 0..geometry.kernel.len() {
            dims[start + axis] = geometry.output_dim(axis, &shape[start + axis]);
        }
        Ok(vec![Fact::new(x.dtype, dims)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let geometry = Geometry::of_pooling(node)?;
        let is_last = node.int_or("channels_last", 0)? != 0;
        let counts_padding = node.int_or("count_include_pad", 0)? != 0;
        Ok(Box::new(move |run: &mut Run| {
            let (x, y) = (Affine::new(run, 1, 2)?, Affine::new(run, 3, 4)?);
            let input = run.input(0)?;
            let map = Map::new(input.shape(), is_last)?;
            let axes = geometry.axes(&map.spatial)?;
            let levels = byte_levels(input, 0)?;
            let value = |at: usize| x.value(level(levels[at], input.dtype()));
            let sizes: Vec<usize> = axes.iter().map(|axis| axis.output).collect();
            let outputs = Map { spatial: sizes.clone(), ..map.clone() };
            let count: usize = sizes.iter().product();
            let mut means = vec![0.0; map.images * map.channels * count];
            for image in 0..map.images {
                for channel in 0..map.channels {
                    for at in 0..count {
                        let term = |i: usize| value(map.index(image, channel, i));
                        let mean = window_mean(&axes, at, counts_padding, term);
                        means[outputs.index(image, channel, at)] = mean;
                    }
                }
            }
            let mut output = run.pool.tensor(input.dtype(), &map.shape(&sizes));
            quantize_bytes(byte_levels_mut(&mut output), &means, y, input.dtype());
            Ok(vec![output])
        }))
    }
}

/// Pixels whose levels certainly add up within i32.
const COUNT_MAX: usize = 1 << 22;

/// Sums over the pixels of each image, off the zero point, of levels with channels last.
fn column_sums(levels: &[u8], count: usize, channels: usize, zero_point: i32) -> Vec<i32> {
    let images = levels.len() / (count * channels).max(1);
    let mut sums = vec![-zero_point * count as i32; images * channels];
    if channels == 0 {
        return sums;
    }
    let images = levels.chunks_exact(count * channels);
    for (sums, image) in sums.chunks_exact_mut(channels).zip(images) {
        for pixel in image.chunks_exact(channels) {
            sums.iter_mut().zip(pixel).for_each(|(sum, &level)| *sum += i32::from(level));
        }
    }
    sums
}

/// The mean under the window at an output position; `value` reads a spatial position.
fn window_mean(
    axes: &[Axis],
    position: usize,
    counts_padding: bool,
    value: impl Fn(usize) -> f32,
) -> f32 {
    let taps: usize = axes.iter().map(|axis| axis.kernel).product();
    let (mut sum, mut count) = (0.0, 0_usize);
    for tap in 0..taps {
        let (mut rest, mut rest_tap, mut at, mut stride) = (position, tap, 0, 1);
        let (mut is_inside, mut is_counted) = (true, true);
        for axis in axes.iter().rev() {
            let (output, tap) = (rest % axis.output, rest_tap % axis.kernel);
            match axis.source(output, tap) {
                Some(index) => at += index * stride,
                None => is_inside = false,
            }
            // What lies beyond the padding, in a window of ceil_mode, is never counted.
            let padded = output * axis.stride + tap * axis.dilation;
            is_counted &= padded < axis.input + axis.pad + axis.pad_end;
            rest /= axis.output;
            rest_tap /= axis.kernel;
            stride *= axis.input;
        }
        if is_inside {
            sum += value(at);
        }
        count += usize::from(is_inside || (counts_padding && is_counted));
    }
    sum / count.max(1) as f32
}

/// Where images, channels and spatial positions stand.
#[derive(Clone)]
struct Map {
    images: usize,
    channels: usize,
    spatial: Vec<usize>,
    is_last: bool,
}

impl Map {
    fn new(shape: &[usize], is_last: bool) -> Result<Self, OpError> {
        match *shape {
            [images, ref spatial @ .., channels] if is_last => {
                Ok(Self { images, channels, spatial: spatial.to_vec(), is_last })
            }
            [images, channels, ref spatial @ ..] if !is_last => {
                Ok(Self { images, channels, spatial: spatial.to_vec(), is_last })
            }
            _ => Err(OpError::value("the shape of input 0", shape, "images and channels")),
        }
    }

    fn index(&self, image: usize, channel: usize, position: usize) -> usize {
        let count: usize = self.spatial.iter().product();
        if self.is_last {
            (image * count + position) * self.channels + channel
        } else {
            (image * self.channels + channel) * count + position
        }
    }

    fn shape(&self, spatial: &[usize]) -> Vec<usize> {
        if self.is_last {
            [&[self.images], spatial, &[self.channels]].concat()
        } else {
            [&[self.images, self.channels], spatial].concat()
        }
    }
}
