//! `ConvTranspose` (opset 1 and later) over any number of spatial axes, and attar's own with
//! channels last.
//!
//! Every input pixel adds x[c] · w[c, o, t] to the outputs under its window:
//! y[o, p·stride + t·dilation − pad] += …, plus bias[o], by group. The products are one 1×1
//! convolution to [tap, output]; a second step adds them up, in the order of taps.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::channels::{Channels, Place, Tensors, input, output};
use crate::conv::backward::{Window, column_sums};
use crate::conv::engine::{Engine, Job};
use crate::conv::layout::{to_channels_first, to_channels_last};
use crate::conv::settings::{Settings, group};
use crate::conv::transposed::{Transposed, contributor};
use crate::conv::{Shape, kernel_sizes, output_shape};
use crate::geometry::{Axis, Geometry, Padding, list};
use crate::{
    ATTAR_DOMAIN, Backward, Fact, Flow, Gradient, Kernel, OpError, Operator, Reads, Run, Training,
    required,
};

pub(crate) struct ConvTranspose {
    op_type: &'static str,
    domain: &'static str,
    is_channels_last: bool,
}

/// `ConvTranspose` of ONNX.
pub(crate) const CONV_TRANSPOSE: ConvTranspose =
    ConvTranspose { op_type: "ConvTranspose", domain: "", is_channels_last: false };

/// The same where the channels of activations are the last axis; made by fusion.
pub(crate) const CHANNELS_LAST_CONV_TRANSPOSE: ConvTranspose = ConvTranspose {
    op_type: "ChannelsLastConvTranspose",
    domain: ATTAR_DOMAIN,
    is_channels_last: true,
};

impl Operator for ConvTranspose {
    fn op_type(&self) -> &'static str {
        self.op_type
    }

    fn domain(&self) -> &'static str {
        self.domain
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=3
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer(node, inputs, self.is_channels_last)
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        if self.is_channels_last {
            return None;
        }
        let mut channels = Channels::default();
        channels.tie(tensors, input(0, 0), output(0, 0));
        channels.tie(tensors, input(0, 1), input(1, 0));
        if node.input(2).is_some() {
            channels.tie(tensors, input(2, 0), output(0, 1));
        }
        let (x, w) = (input(0, 1), input(1, 1));
        let group = usize::try_from(node.int_or("group", 1).ok()?).ok()?.max(1);
        let (inputs, each) = (tensors.size(x)?, tensors.size(w)?);
        if group == 1 {
            channels.tie(tensors, w, output(0, 1));
        } else if group == inputs {
            channels.tie_factor(output(0, 1), x, [each, inputs, 1]);
            // The window's own axis of outputs is as long as before.
            channels.held(tensors, Place::Attribute("group"), x);
        } else {
            channels.tie_factor(output(0, 1), w, [1, each, 1]);
            channels.tie_factor(x, x, [1, inputs / group, 1]);
        }
        Some(channels)
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let is_channels_last = self.is_channels_last;
        let constant = constants.get(1).copied().flatten();
        if let Some(w) = constant.filter(|w| w.dtype() == DType::F32) {
            return Ok(Box::new(TransposeKernel::new(node, w, is_channels_last)?));
        }
        let (node, held) = (node.clone(), constant.cloned());
        Ok(Box::new(move |run: &mut Run| {
            if run.optional(1).is_none()
                && let Some(w) = run.inputs.get_mut(1)
            {
                w.clone_from(&held);
            }
            if run.input(0)?.dtype() == DType::F64 {
                return wide(&node, run);
            }
            TransposeKernel::new(&node, run.typed::<f32>(1)?, is_channels_last)?.run(run)
        }))
    }

    fn gradient(&self, node: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        gradient(self, node, training)
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], _: &[Fact]) -> Dim {
        let shape =
            |index: usize| inputs.get(index).copied().flatten().and_then(|f| f.shape.as_ref());
        match (inputs.first().copied().flatten(), shape(1)) {
            (Some(x), Some(w)) if !w.is_empty() => {
                &x.element_count() * &crate::fact::product(&w[1..])
            }
            _ => Dim::Unknown,
        }
    }

    fn keeps_constant(&self, input: usize) -> bool {
        input == 1
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// What the attributes say beyond those of a convolution.
struct Sizes {
    geometry: Geometry,
    output_padding: Vec<usize>,
    output_shape: Option<Vec<usize>>,
}

impl Sizes {
    fn new(node: &Node, kernel: &[usize]) -> Result<Self, OpError> {
        let count = kernel.len();
        let output_shape = match node.ints("output_shape")?.filter(|shape| !shape.is_empty()) {
            // Some exporters write batch and channels too.
            Some(shape) if shape.len() == count || shape.len() == count + 2 => {
                let sizes = shape[shape.len() - count..].iter().map(|&s| usize::try_from(s).ok());
                let sizes = sizes.collect::<Option<Vec<_>>>();
                Some(sizes.ok_or_else(|| OpError::value("output_shape", shape, "sizes"))?)
            }
            Some(shape) => {
                return Err(OpError::value("output_shape", shape, format!("{count} sizes")));
            }
            None => None,
        };
        Ok(Self {
            geometry: Geometry::new(node, kernel)?,
            output_padding: list(node, "output_padding", 0, count)?,
            output_shape,
        })
    }

    /// The axis seen from the output: the forward convolution's input is what is made here.
    fn axis(&self, index: usize, input: usize) -> Option<Axis> {
        let geometry = &self.geometry;
        let (kernel, stride) = (geometry.kernel[index], geometry.strides[index]);
        let dilation = geometry.dilations[index];
        let reach = kernel.checked_sub(1)?.checked_mul(dilation)?.checked_add(1)?;
        let covered = input.checked_sub(1)?.checked_mul(stride)?.checked_add(reach)?;
        let full = covered.checked_add(self.output_padding[index])?;
        let (output, pad) = match (&self.output_shape, &geometry.padding) {
            (Some(shape), padding) => {
                let total = full.saturating_sub(shape[index]);
                let is_upper = *padding == Padding::SameUpper;
                (shape[index], if is_upper { total / 2 } else { total - total / 2 })
            }
            (None, Padding::Explicit(pads)) => {
                let (start, end) = (pads[index], pads[geometry.kernel.len() + index]);
                (full.checked_sub(start.checked_add(end)?)?, start)
            }
            (None, same) => {
                let output = input.checked_mul(stride)?;
                let total = full.saturating_sub(output);
                let is_upper = *same == Padding::SameUpper;
                (output, if is_upper { total / 2 } else { total - total / 2 })
            }
        };
        Some(Axis { input: output, output: input, kernel, stride, dilation, pad, pad_end: 0 })
    }

    fn axes(&self, input: &[usize]) -> Result<Vec<Axis>, OpError> {
        let fail = || OpError::shapes(input, &self.geometry.kernel);
        if input.len() != self.geometry.kernel.len() {
            return Err(fail());
        }
        let axes = input.iter().enumerate().map(|(index, &size)| self.axis(index, size));
        axes.collect::<Option<_>>().ok_or_else(fail)
    }

    fn output_dim(&self, index: usize, input: &Dim) -> Dim {
        if let Some(shape) = &self.output_shape {
            return shape[index].into();
        }
        if let Some(size) = input.known() {
            let axis = usize::try_from(size).ok().and_then(|size| self.axis(index, size));
            return axis.map_or(Dim::Unknown, |axis| axis.input.into());
        }
        let stride = Dim::from(self.geometry.strides[index]);
        let Padding::Explicit(_) = self.geometry.padding else { return input * &stride };
        // One window covers what is added to each further step.
        match self.axis(index, 1 + self.geometry.kernel[index]) {
            Some(axis) => {
                let steps = self.geometry.strides[index] * self.geometry.kernel[index];
                let offset = axis.input as i64 - steps as i64 - self.geometry.strides[index] as i64;
                &(input * &stride) + &Dim::Known(offset)
            }
            None => Dim::Unknown,
        }
    }
}

fn infer(
    node: &Node,
    inputs: &[Option<&Fact>],
    is_channels_last: bool,
) -> Result<Vec<Fact>, OpError> {
    let (x, w) = (required(inputs, 0)?, required(inputs, 1)?);
    let (Some(shape), Some(weight)) = (&x.shape, &w.shape) else {
        return Ok(vec![Fact::unranked(x.dtype)]);
    };
    let rank = shape.len();
    if rank != weight.len() || rank < 3 {
        let text = |dims: &[Dim]| format!("of rank {}", dims.len());
        return Err(OpError::Shapes { a: text(shape), b: text(weight) });
    }
    let first = if is_channels_last { 1 } else { 2 };
    let spatial: Vec<Dim> = match kernel_sizes(weight) {
        Some(kernel) => {
            let sizes = Sizes::new(node, &kernel)?;
            let axes = 0..rank - 2;
            axes.map(|axis| sizes.output_dim(axis, &shape[axis + first])).collect()
        }
        None => vec![Dim::Unknown; rank - 2],
    };
    let mut dims = vec![shape[0].clone()];
    dims.extend(spatial);
    let outputs = &weight[1] * &Dim::from(group(node)?);
    dims.insert(if is_channels_last { rank - 1 } else { 1 }, outputs);
    Ok(vec![Fact::new(x.dtype, dims)])
}

struct TransposeKernel {
    sizes: Sizes,
    transposed: Transposed,
    is_channels_last: bool,
}

impl TransposeKernel {
    fn new(node: &Node, w: &Tensor, is_channels_last: bool) -> Result<Self, OpError> {
        let transposed = Transposed::new(&w.values::<f32>(), w.shape(), group(node)?)?;
        let sizes = Sizes::new(node, &w.shape()[2..])?;
        Ok(Self { sizes, transposed, is_channels_last })
    }
}

impl Kernel for TransposeKernel {
    fn run(&self, run: &mut Run) -> Result<Vec<Tensor>, OpError> {
        let x = run.typed::<f32>(0)?;
        let weight = &self.transposed.shape;
        let shape = Shape::new(x.shape(), self.is_channels_last);
        if x.rank() != weight.len() || shape.channels != weight[0] {
            return Err(OpError::shapes(x.shape(), weight));
        }
        let axes = self.sizes.axes(shape.spatial)?;
        let outputs = weight[1] * self.transposed.group;
        let sizes = || axes.iter().map(|axis| axis.input);
        let output = output_shape(shape.batch, outputs, sizes(), self.is_channels_last)?;
        let output_last = output_shape(shape.batch, outputs, sizes(), true)?;
        let bias = bias::<f32>(run, outputs)?;
        let taps: usize = weight[2..].iter().product();
        let pixels: usize = shape.spatial.iter().product();
        output_shape(1, outputs * taps, [pixels].into_iter(), true)?;
        let pool = run.pool;
        let x = if self.is_channels_last { x.clone() } else { to_channels_last(pool, x) };
        let mut y = pool.tensor(DType::F32, &output_last);
        self.transposed.run(y.slice_mut(), x.slice(), &axes, bias.map(Tensor::slice), pool);
        if self.is_channels_last {
            return Ok(vec![y]);
        }
        pool.recycle(x);
        let first = to_channels_first(pool, &y);
        pool.recycle(y);
        debug_assert_eq!(first.shape(), output);
        Ok(vec![first])
    }
}

/// A bias of one value per output, if there is one.
fn bias<'a, T: attar_tensor::Element>(
    run: &'a Run,
    outputs: usize,
) -> Result<Option<&'a Tensor>, OpError> {
    match run.optional(2) {
        Some(bias) if bias.shape() != [outputs] => Err(OpError::shapes(&[outputs], bias.shape())),
        Some(_) => run.typed::<T>(2).map(Some),
        None => Ok(None),
    }
}

/// f64, one output after the other.
fn wide(node: &Node, run: &mut Run) -> Result<Vec<Tensor>, OpError> {
    let (x, w) = (run.typed::<f64>(0)?, run.typed::<f64>(1)?);
    let (shape, weight, group) = (x.shape(), w.shape(), group(node)?);
    let fits = shape.len() == weight.len() && shape.len() >= 3 && shape[1] == weight[0];
    if !fits || !weight[0].is_multiple_of(group) || weight.contains(&0) {
        return Err(OpError::shapes(shape, weight));
    }
    let axes = Sizes::new(node, &weight[2..])?.axes(&shape[2..])?;
    let (inputs, per_group) = (weight[0] / group, weight[1]);
    let outputs = per_group.checked_mul(group).ok_or_else(|| OpError::shapes(shape, weight))?;
    let output = output_shape(shape[0], outputs, axes.iter().map(|axis| axis.input), false)?;
    let bias = bias::<f64>(run, outputs)?.map(|bias| bias.values::<f64>());
    let (x, w) = (x.values::<f64>(), w.values::<f64>());
    let taps: usize = weight[2..].iter().product();
    let pixels: usize = shape[2..].iter().product();
    let plane: usize = axes.iter().map(|axis| axis.input).product();
    let mut y = vec![0.0_f64; output.iter().product()];
    for (index, y) in y.chunks_exact_mut(plane.max(1)).enumerate() {
        let (n, o) = (index / outputs, index % outputs);
        let first = o / per_group * inputs;
        for (place, y) in y.iter_mut().enumerate() {
            *y = bias.as_ref().map_or(0.0, |bias| bias[o]);
            for tap in 0..taps {
                let Some(pixel) = contributor(&axes, place, tap) else { continue };
                for c in first..first + inputs {
                    *y += x[(n * weight[0] + c) * pixels + pixel]
                        * w[(c * per_group + o % per_group) * taps + tap];
                }
            }
        }
    }
    Ok(vec![Tensor::new(&output, &y)])
}

/// dx is the convolution of dy with w; dw is that convolution's weight gradient with x and dy in
/// each other's place; db = Σ dy over pixels.
fn gradient(
    operator: &ConvTranspose,
    node: &Node,
    training: &Training,
) -> Result<Box<dyn Gradient>, OpError> {
    let (node, is_last) = (node.clone(), operator.is_channels_last);
    let reads = Reads::NOTHING.input_if(1, training.wants(0)).input_if(0, training.wants(1));
    crate::gradient::gradient(reads, move |run| backward(run, &node, is_last))
}

fn backward(run: &mut Backward, node: &Node, is_last: bool) -> Result<Vec<Option<Flow>>, OpError> {
    let pool = run.pool;
    let dy = run.take_gradient();
    let dy_last = if is_last { dy.clone() } else { to_channels_last(pool, &dy) };
    pool.recycle(dy);
    let (shape, weight) = (Shape::new(run.shape(0), is_last), run.shape(1));
    let axes = Sizes::new(node, &weight[2..])?.axes(shape.spatial)?;
    let group = group(node)?;
    let db = run.wants(2).then(|| {
        let mut db = run.tensor(run.shape(2));
        column_sums(db.slice_mut(), dy_last.slice(), pool);
        db
    });
    let dw = if run.wants(1) {
        let mut dw = run.tensor(weight);
        let x = run.input(0)?;
        let x_last = if is_last { x.clone() } else { to_channels_last(pool, x) };
        let window = Window::new(shape.batch, axes.clone(), weight, group, pool)?;
        window.weight_gradient(dw.slice_mut(), dy_last.slice(), x_last.slice());
        pool.recycle(x_last);
        Some(dw)
    } else {
        None
    };
    let dx = if run.wants(0) {
        let mut shape_last = run.shape(0).to_vec();
        if !is_last {
            shape_last[1..].rotate_left(1);
        }
        let mut dx = run.tensor(&shape_last);
        let plain = Node::new("Conv", "", &[], &[]).with_attribute("group", group as i64);
        let settings = Settings::new(&plain, &weight[2..])?;
        let engine = Engine::new(run.input(1)?.slice(), weight, settings)?;
        let mut axes = axes;
        if axes.len() == 1 {
            axes.insert(0, Axis::UNIT);
        }
        let (x, batch) = (dy_last.slice(), shape.batch);
        engine.run(dx.slice_mut(), &Job { x, batch, axes, bias: None, addend: None, pool });
        if is_last {
            Some(dx)
        } else {
            let first = to_channels_first(pool, &dx);
            pool.recycle(dx);
            Some(first)
        }
    } else {
        None
    };
    pool.recycle(dy_last);
    Ok([dx, dw, db].into_iter().map(|flow| flow.map(Flow::from)).collect())
}
