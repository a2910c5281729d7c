//! `DeformConv` (opset 19), two spatial axes (Dai et al., 2017, arXiv:1703.06211; Zhu et al., 2018,
//! arXiv:1811.11168): a convolution whose taps are moved by `offset` and weighed by `mask`,
//!
//! y[o, p] = bias[o] + Σ w[o, c, t] · mask[t, p] · x[c, p·stride + t·dilation − pad + offset[t, p]],
//!
//! x between pixels interpolated linearly, and 0 outside.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::conv::settings::group;
use crate::conv::{infer_fact, output_shape};
use crate::geometry::{Axis, Geometry};
use crate::gradient::gradient;
use crate::kernels::for_rows;
use crate::{
    Backward, Fact, Flow, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required,
};

pub(crate) struct DeformConv;

impl Operator for DeformConv {
    fn op_type(&self) -> &'static str {
        "DeformConv"
    }

    fn since_opset(&self) -> i64 {
        19
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=5
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, w) = (required(inputs, 0)?, required(inputs, 1)?);
        Ok(vec![infer_fact(node, x, w, x.dtype, false)?])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        Ok(Box::new(move |run: &mut Run| convolve(&node, run)))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let node = node.clone();
        let reads = Reads::NOTHING.input(0).input(1).input(2).input(4);
        gradient(reads, move |run| back(&node, run))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        crate::conv::macs(inputs.get(1).copied().flatten(), outputs)
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// Sizes of one run, and what it reads, in f64.
struct Deformed {
    x: Vec<f64>,
    w: Vec<f64>,
    offset: Vec<f64>,
    mask: Option<Vec<f64>>,
    axes: [Axis; 2],
    channels: usize,
    outputs: usize,
    group: usize,
    offset_group: usize,
}

/// What a run reads, and the shape of its output; the bias is left to the caller.
fn deformed(node: &Node, inputs: &[Option<Tensor>]) -> Result<(Deformed, Vec<usize>), OpError> {
    let input = |index: usize| {
        inputs.get(index).and_then(Option::as_ref).ok_or(OpError::MissingInput { index })
    };
    let (x, w) = (input(0)?, input(1)?);
    let shape = x.shape();
    if w.rank() != 4 || shape.len() != 4 {
        return Err(OpError::Unsupported { what: "DeformConv over other than two axes".into() });
    }
    let group = group(node)?;
    let offset_group = node.int_or("offset_group", 1)?;
    let offset_group = usize::try_from(offset_group).ok().filter(|&g| g > 0 && shape[1] % g == 0);
    let offset_group =
        offset_group.ok_or_else(|| OpError::value("offset_group", shape[1], "a divisor"))?;
    let fits = w.shape()[1].checked_mul(group) == Some(shape[1]);
    if !fits || !w.shape()[0].is_multiple_of(group) {
        return Err(OpError::shapes(shape, w.shape()));
    }
    let axes = Geometry::new(node, &w.shape()[2..])?.axes(&shape[2..])?;
    let sizes: Vec<usize> = axes.iter().map(|axis| axis.output).collect();
    let output = output_shape(shape[0], w.shape()[0], sizes.iter().copied(), false)?;
    let taps = w.shape()[2] * w.shape()[3];
    let numbers = |index: usize| -> Result<Vec<f64>, OpError> {
        let tensor = input(index)?;
        tensor.to_f64().ok_or(OpError::DType { index, found: tensor.dtype() })
    };
    let expect = |index: usize, channels: usize| -> Result<Vec<f64>, OpError> {
        let expected = [shape[0], channels, sizes[0], sizes[1]];
        if input(index)?.shape() != expected {
            return Err(OpError::shapes(&expected, input(index)?.shape()));
        }
        numbers(index)
    };
    let mask = input(4).is_ok().then(|| expect(4, offset_group * taps)).transpose()?;
    let deformed = Deformed {
        x: numbers(0)?,
        w: numbers(1)?,
        offset: expect(2, 2 * offset_group * taps)?,
        mask,
        axes: [axes[0], axes[1]],
        channels: shape[1],
        outputs: w.shape()[0],
        group,
        offset_group,
    };
    Ok((deformed, output))
}

fn convolve(node: &Node, run: &Run) -> Result<Vec<Tensor>, OpError> {
    let dtype = run.input(0)?.dtype();
    if !matches!(dtype, DType::F32 | DType::F64) {
        return Err(OpError::DType { index: 0, found: dtype });
    }
    let (deformed, output) = deformed(node, &run.inputs)?;
    let bias = match run.optional(3) {
        Some(bias) if bias.shape() != [deformed.outputs] => {
            return Err(OpError::shapes(&[deformed.outputs], bias.shape()));
        }
        Some(bias) => Some(bias.to_f64().ok_or(OpError::DType { index: 3, found: bias.dtype() })?),
        None => None,
    };
    let pixels = output[2] * output[3];
    let mut y = vec![0.0_f64; output.iter().product()];
    for_rows(&mut y, pixels, |first, planes| {
        for (index, plane) in planes.chunks_exact_mut(pixels).enumerate() {
            let at = first + index;
            plane.fill(bias.as_ref().map_or(0.0, |bias| bias[at % deformed.outputs]));
            deformed.add_plane(plane, at / deformed.outputs, at % deformed.outputs);
        }
    });
    let y = Tensor::new(&output, &y).converted(dtype);
    Ok(vec![y.map_err(|_| OpError::DType { index: 0, found: dtype })?])
}

/// With v the value between pixels: dw = Σ dy·mask·v, dmask = Σ dy·w·v, doffset = Σ dy·w·mask·v′,
/// dx the share of each of the four pixels; db = Σ dy.
fn back(node: &Node, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
    let flow = run.take_gradient();
    let dy = flow.to_f64().ok_or(OpError::DType { index: 0, found: flow.dtype() })?;
    let (deformed, output) = deformed(node, &run.inputs)?;
    let mut flows = Flows {
        x: vec![0.0; deformed.x.len()],
        w: vec![0.0; deformed.w.len()],
        offset: vec![0.0; deformed.offset.len()],
        mask: vec![0.0; deformed.offset.len() / 2],
    };
    let pixels = output[2] * output[3];
    let mut bias = vec![0.0; deformed.outputs];
    for (index, dy) in dy.chunks_exact(pixels.max(1)).enumerate() {
        let (n, o) = (index / deformed.outputs, index % deformed.outputs);
        bias[o] += dy.iter().sum::<f64>();
        deformed.plane_back(dy, n, o, &mut flows);
    }
    run.pool.recycle(flow);
    let all = [flows.x, flows.w, flows.offset, bias, flows.mask].into_iter().enumerate();
    let narrow = |(index, values): (usize, Vec<f64>)| {
        run.wants(index).then(|| {
            let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
            Tensor::new(run.shape(index), &values).into()
        })
    };
    Ok(all.map(narrow).collect())
}

/// What flows back, laid out like the inputs.
struct Flows {
    x: Vec<f64>,
    w: Vec<f64>,
    offset: Vec<f64>,
    mask: Vec<f64>,
}

impl Deformed {
    /// Adds every tap to the plane of one output of one image.
    fn add_plane(&self, plane: &mut [f64], n: usize, o: usize) {
        let [tall, wide] = self.axes;
        for c in 0..self.channels / self.group {
            let (weights, image, moved) = self.of_channel(n, o, c);
            for tap in 0..tall.kernel * wide.kernel {
                for (pixel, y) in plane.iter_mut().enumerate() {
                    let (at_y, at_x, mask) = self.place(moved + tap, tap, pixel);
                    let value =
                        interpolated(&self.x[image..], [tall.input, wide.input], at_y, at_x);
                    *y += self.w[weights + tap] * mask * value;
                }
            }
        }
    }

    /// Where the weights and the image of an output's channel begin, and its first moved tap.
    fn of_channel(&self, n: usize, o: usize, c: usize) -> (usize, usize, usize) {
        let [tall, wide] = self.axes;
        let taps = tall.kernel * wide.kernel;
        let inputs = self.channels / self.group;
        let channel = o / (self.outputs / self.group) * inputs + c;
        let part = channel / (self.channels / self.offset_group);
        let image = (n * self.channels + channel) * tall.input * wide.input;
        ((o * inputs + c) * taps, image, (n * self.offset_group + part) * taps)
    }

    /// Row and column that a moved tap reads, and its mask.
    fn place(&self, moved: usize, tap: usize, pixel: usize) -> (f64, f64, f64) {
        let [tall, wide] = self.axes;
        let pixels = tall.output * wide.output;
        let place = |axis: Axis, output: usize, tap: usize| {
            (output * axis.stride + tap * axis.dilation) as f64 - axis.pad as f64
        };
        let y = place(tall, pixel / wide.output, tap / wide.kernel)
            + self.offset[2 * moved * pixels + pixel];
        let x = place(wide, pixel % wide.output, tap % wide.kernel)
            + self.offset[(2 * moved + 1) * pixels + pixel];
        (y, x, self.mask.as_ref().map_or(1.0, |mask| mask[moved * pixels + pixel]))
    }

    /// Adds what flows back from the plane of one output of one image.
    fn plane_back(&self, dy: &[f64], n: usize, o: usize, flows: &mut Flows) {
        let [tall, wide] = self.axes;
        let pixels = tall.output * wide.output;
        let sizes = [tall.input, wide.input];
        for c in 0..self.channels / self.group {
            let (weights, image, first) = self.of_channel(n, o, c);
            for tap in 0..tall.kernel * wide.kernel {
                let (moved, weight) = (first + tap, self.w[weights + tap]);
                for (pixel, &dy) in dy.iter().enumerate() {
                    let (at_y, at_x, mask) = self.place(moved, tap, pixel);
                    let (mut value, mut down, mut right) = (0.0, 0.0, 0.0);
                    for corner in corners(sizes, at_y, at_x).into_iter().flatten() {
                        let x = self.x[image + corner.place];
                        value += corner.share * x;
                        down += corner.along_y * x;
                        right += corner.along_x * x;
                        flows.x[image + corner.place] += dy * weight * mask * corner.share;
                    }
                    flows.w[weights + tap] += dy * mask * value;
                    flows.mask[moved * pixels + pixel] += dy * weight * value;
                    flows.offset[2 * moved * pixels + pixel] += dy * weight * mask * down;
                    flows.offset[(2 * moved + 1) * pixels + pixel] += dy * weight * mask * right;
                }
            }
        }
    }
}

/// One of the four pixels around a place: its share of the value there, and how the share changes
/// with row and column.
struct Corner {
    place: usize,
    share: f64,
    along_y: f64,
    along_x: f64,
}

/// The pixels around a place that lie inside the image.
fn corners([height, width]: [usize; 2], y: f64, x: f64) -> [Option<Corner>; 4] {
    let (top, left) = (y.floor(), x.floor());
    let (down, right) = (y - top, x - left);
    let corner = |is_low: bool, is_right: bool| {
        let (row, column) =
            (top + f64::from(u8::from(is_low)), left + f64::from(u8::from(is_right)));
        let is_inside = row >= 0.0 && column >= 0.0 && row < height as f64 && column < width as f64;
        let (share_y, slope_y) = if is_low { (down, 1.0) } else { (1.0 - down, -1.0) };
        let (share_x, slope_x) = if is_right { (right, 1.0) } else { (1.0 - right, -1.0) };
        is_inside.then(|| Corner {
            place: row as usize * width + column as usize,
            share: share_y * share_x,
            along_y: slope_y * share_x,
            along_x: share_y * slope_x,
        })
    };
    [corner(false, false), corner(false, true), corner(true, false), corner(true, true)]
}

/// The value between the four pixels around a place; those outside the image are 0.
fn interpolated(image: &[f64], sizes: [usize; 2], y: f64, x: f64) -> f64 {
    let corners = corners(sizes, y, x).into_iter().flatten();
    corners.map(|corner| corner.share * image[corner.place]).sum()
}
