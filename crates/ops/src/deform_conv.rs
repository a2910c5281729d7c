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
use crate::{Fact, Flow, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

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

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        crate::conv::macs(inputs.get(1).copied().flatten(), outputs)
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let node = node.clone();
        gradient(Reads::NOTHING.input(0).input(1).input(2).input(4), move |run| {
            let dy = run.take_gradient();
            let inputs = Run { inputs: run.inputs.clone(), pool: run.pool };
            let wide: Vec<f64> = dy.slice::<f32>().iter().map(|&dy| dy.into()).collect();
            let deformed = deformed(&node, &inputs)?;
            let flows = deformed.back(&wide);
            let pixels: usize = dy.shape()[2..].iter().product();
            let mut bias = vec![0.0; deformed.outputs];
            for (at, plane) in wide.chunks_exact(pixels.max(1)).enumerate() {
                bias[at % deformed.outputs] += plane.iter().sum::<f64>();
            }
            run.pool.recycle(dy);
            let flow = |index: usize, values: &[f64]| {
                run.wants(index).then(|| {
                    let mut flow = run.tensor(run.shape(index));
                    let places = flow.slice_mut::<f32>().iter_mut().zip(values);
                    places.for_each(|(to, &value)| *to = value as f32);
                    Flow::from(flow)
                })
            };
            Ok(vec![
                flow(0, &flows.x),
                flow(1, &flows.w),
                flow(2, &flows.offset),
                flow(3, &bias),
                flow(4, &flows.mask),
            ])
        })
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

fn convolve(node: &Node, run: &Run) -> Result<Vec<Tensor>, OpError> {
    let (x, w) = (run.input(0)?, run.input(1)?);
    let dtype = x.dtype();
    if !matches!(dtype, DType::F32 | DType::F64) {
        return Err(OpError::DType { index: 0, found: dtype });
    }
    let deformed = deformed(node, run)?;
    let numbers = |index: usize| -> Result<Vec<f64>, OpError> {
        let tensor = run.input(index)?;
        tensor.to_f64().ok_or(OpError::DType { index, found: tensor.dtype() })
    };
    let bias = run.optional(3).map(|_| numbers(3)).transpose()?;
    if bias.as_ref().is_some_and(|bias| bias.len() != w.shape()[0]) {
        return Err(OpError::shapes(w.shape(), run.input(3)?.shape()));
    }
    let sizes = deformed.axes.map(|axis| axis.output);
    let output = output_shape(x.shape()[0], w.shape()[0], sizes.iter().copied(), false)?;
    let mut y = vec![0.0_f64; output.iter().product()];
    for_rows(&mut y, sizes[0] * sizes[1], |first, planes| {
        for (index, plane) in planes.chunks_exact_mut(sizes[0] * sizes[1]).enumerate() {
            let at = first + index;
            plane.fill(bias.as_ref().map_or(0.0, |bias| bias[at % deformed.outputs]));
            deformed.add_plane(plane, at / deformed.outputs, at % deformed.outputs);
        }
    });
    let y = Tensor::new(&output, &y).converted(dtype);
    Ok(vec![y.map_err(|_| OpError::DType { index: 0, found: dtype })?])
}

/// Reads and checks the inputs but the bias.
fn deformed(node: &Node, run: &Run) -> Result<Deformed, OpError> {
    let x = run.input(0)?;
    let (w, shape) = (run.input(1)?, x.shape());
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
    let taps = w.shape()[2] * w.shape()[3];
    let expect = |index: usize, channels: usize| -> Result<Vec<f64>, OpError> {
        let tensor = run.input(index)?;
        let expected = [shape[0], channels, sizes[0], sizes[1]];
        if tensor.shape() != expected {
            return Err(OpError::shapes(&expected, tensor.shape()));
        }
        tensor.to_f64().ok_or(OpError::DType { index, found: tensor.dtype() })
    };
    let numbers = |index: usize| -> Result<Vec<f64>, OpError> {
        let tensor = run.input(index)?;
        tensor.to_f64().ok_or(OpError::DType { index, found: tensor.dtype() })
    };
    let mask = run.optional(4).map(|_| expect(4, offset_group * taps)).transpose()?;
    Ok(Deformed {
        x: numbers(0)?,
        w: numbers(1)?,
        offset: expect(2, 2 * offset_group * taps)?,
        mask,
        axes: [axes[0], axes[1]],
        channels: shape[1],
        outputs: w.shape()[0],
        group,
        offset_group,
    })
}

impl Deformed {
    /// Adds every tap to the plane of one output of one image.
    fn add_plane(&self, plane: &mut [f64], n: usize, o: usize) {
        let [tall, wide] = self.axes;
        let taps = tall.kernel * wide.kernel;
        let pixels = tall.output * wide.output;
        let inputs = self.channels / self.group;
        let first = o / (self.outputs / self.group) * inputs;
        for c in 0..inputs {
            let channel = first + c;
            let part = channel / (self.channels / self.offset_group);
            let image = &self.x[(n * self.channels + channel) * tall.input * wide.input..];
            for tap in 0..taps {
                let weight = self.w[(o * inputs + c) * taps + tap];
                let moved = (n * self.offset_group + part) * taps + tap;
                for (pixel, y) in plane.iter_mut().enumerate() {
                    let [at_y, at_x] = self.place(moved, tap, pixel);
                    let mask = self.mask.as_ref().map_or(1.0, |mask| mask[moved * pixels + pixel]);
                    *y += weight * mask * interpolated(image, [tall.input, wide.input], at_y, at_x);
                }
            }
        }
    }
}

/// The gradients of x, w, the offset and the mask.
struct Flows {
    x: Vec<f64>,
    w: Vec<f64>,
    offset: Vec<f64>,
    mask: Vec<f64>,
}

impl Deformed {
    /// Where a tap of an output pixel reads; `moved` counts item, part and tap.
    fn place(&self, moved: usize, tap: usize, pixel: usize) -> [f64; 2] {
        let [tall, wide] = self.axes;
        let pixels = tall.output * wide.output;
        let place = |axis: Axis, output: usize, tap: usize| {
            (output * axis.stride + tap * axis.dilation) as f64 - axis.pad as f64
        };
        [
            place(tall, pixel / wide.output, tap / wide.kernel)
                + self.offset[2 * moved * pixels + pixel],
            place(wide, pixel % wide.output, tap % wide.kernel)
                + self.offset[(2 * moved + 1) * pixels + pixel],
        ]
    }

    /// With v the interpolated pixel, m the mask and g = Σ dy[o]·w[o] over the outputs:
    /// dw[o] = Σ dy[o]·m·v, dx = g·m·∂v/∂x, doffset = g·m·∂v, dmask = g·v.
    fn back(&self, dy: &[f64]) -> Flows {
        let [tall, wide] = self.axes;
        let (taps, pixels) = (tall.kernel * wide.kernel, tall.output * wide.output);
        let sizes = [tall.input, wide.input];
        let (plane, inputs) = (sizes[0] * sizes[1], self.channels / self.group);
        let outputs = self.outputs / self.group;
        let mut flows = Flows {
            x: vec![0.0; self.x.len()],
            w: vec![0.0; self.w.len()],
            offset: vec![0.0; self.offset.len()],
            mask: vec![0.0; self.offset.len() / 2],
        };
        for channel in 0..self.x.len().checked_div(plane).unwrap_or(0) {
            let (n, c) = (channel / self.channels, channel % self.channels);
            let part = c / (self.channels / self.offset_group);
            let image = channel * plane..(channel + 1) * plane;
            let first = c / inputs * outputs;
            for tap in 0..taps {
                let moved = (n * self.offset_group + part) * taps + tap;
                let weight_of = |o: usize| (o * inputs + c % inputs) * taps + tap;
                for pixel in 0..pixels {
                    let [y, x] = self.place(moved, tap, pixel);
                    let mask = self.mask.as_ref().map_or(1.0, |m| m[moved * pixels + pixel]);
                    let around = Around::new(sizes, y, x);
                    let [v, slope_y, slope_x] = around.values(&self.x[image.clone()]);
                    let mut g = 0.0;
                    for o in first..first + outputs {
                        let dy = dy[(n * self.outputs + o) * pixels + pixel];
                        flows.w[weight_of(o)] += dy * mask * v;
                        g += dy * self.w[weight_of(o)];
                    }
                    flows.mask[moved * pixels + pixel] += g * v;
                    flows.offset[2 * moved * pixels + pixel] += g * mask * slope_y;
                    flows.offset[(2 * moved + 1) * pixels + pixel] += g * mask * slope_x;
                    around.add(&mut flows.x[image.clone()], g * mask);
                }
            }
        }
        flows
    }
}

/// The four pixels around a place, `None` outside the image, and how far it is from the first.
struct Around {
    pixels: [Option<usize>; 4],
    down: f64,
    right: f64,
}

impl Around {
    fn new([height, width]: [usize; 2], y: f64, x: f64) -> Self {
        let (top, left) = (y.floor(), x.floor());
        let pixel = |y: f64, x: f64| {
            let is_inside = y >= 0.0 && x >= 0.0 && y < height as f64 && x < width as f64;
            is_inside.then(|| y as usize * width + x as usize)
        };
        let pixels = [
            pixel(top, left),
            pixel(top, left + 1.0),
            pixel(top + 1.0, left),
            pixel(top + 1.0, left + 1.0),
        ];
        Self { pixels, down: y - top, right: x - left }
    }

    fn weights(&self) -> [f64; 4] {
        let (down, right) = (self.down, self.right);
        [(1.0 - down) * (1.0 - right), (1.0 - down) * right, down * (1.0 - right), down * right]
    }

    /// The interpolated value, and its derivatives by both coordinates.
    fn values(&self, image: &[f64]) -> [f64; 3] {
        let [a, b, c, d] = self.pixels.map(|pixel| pixel.map_or(0.0, |at| image[at]));
        let weights = self.weights();
        let value = weights[0] * a + weights[1] * b + weights[2] * c + weights[3] * d;
        let slope_y = (1.0 - self.right) * (c - a) + self.right * (d - b);
        [value, slope_y, (1.0 - self.down) * (b - a) + self.down * (d - c)]
    }

    fn add(&self, image: &mut [f64], value: f64) {
        for (pixel, weight) in self.pixels.iter().zip(self.weights()) {
            if let Some(at) = *pixel {
                image[at] += value * weight;
            }
        }
    }
}

/// The value between the four pixels around a place; those outside the image are 0.
fn interpolated(image: &[f64], sizes: [usize; 2], y: f64, x: f64) -> f64 {
    Around::new(sizes, y, x).values(image)[0]
}
