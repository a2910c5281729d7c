//! Conv (opset 1 and later) over any number of spatial axes, ONNX Runtime's `FusedConv`, and
//! attar's own with channels last.
//!
//! y[o] = bias[o] + Σ w[o, c, i, j] · x[c, y·stride + i·dilation − pad, …], by group. The fused
//! forms add their fourth input, then apply `activation`.

pub(crate) mod backward;
pub(crate) mod engine;
mod gradient;
pub(crate) mod int8;
#[cfg(test)]
mod int8_tests;
pub(crate) mod integer;
pub(crate) mod layout;
pub(crate) mod settings;
mod strip;
pub(crate) mod transposed;
mod wide;

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use self::engine::{Engine, Job};
use self::layout::{to_channels_first, to_channels_last};
use self::settings::Settings;
use crate::channels::{Channels, Place, Tensors, input, output};
use crate::geometry::{Axis, Geometry};
use crate::{ATTAR_DOMAIN, Fact, Gradient, Kernel, OpError, Operator, Run, Training, required};

/// A convolution, in one of its forms.
pub(crate) struct Convolution {
    op_type: &'static str,
    domain: &'static str,
    /// Where x, y and the addend have their channels.
    is_channels_last: bool,
}

/// Conv of ONNX.
pub(crate) const CONV: Convolution =
    Convolution { op_type: "Conv", domain: "", is_channels_last: false };

/// Conv with what follows it, made by fusion.
pub(crate) const FUSED_CONV: Convolution =
    Convolution { op_type: "FusedConv", domain: ATTAR_DOMAIN, is_channels_last: false };

/// The same where the channels of activations are the last axis.
pub(crate) const CHANNELS_LAST_CONV: Convolution =
    Convolution { op_type: "ChannelsLastConv", domain: ATTAR_DOMAIN, is_channels_last: true };

/// What ONNX Runtime's optimizer leaves in files.
pub(crate) const MICROSOFT_FUSED_CONV: Convolution =
    Convolution { op_type: "FusedConv", domain: "com.microsoft", is_channels_last: false };

impl Operator for Convolution {
    fn op_type(&self) -> &'static str {
        self.op_type
    }

    fn domain(&self) -> &'static str {
        self.domain
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        if self.domain.is_empty() { 2..=3 } else { 2..=4 }
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer(node, inputs, self.is_channels_last)
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        if self.domain == ATTAR_DOMAIN {
            return None;
        }
        let mut channels = Channels::default();
        if node.input(3).is_some() {
            (0..2).for_each(|axis| channels.tie(tensors, input(3, axis), output(0, axis)));
        }
        channels.tie(tensors, input(0, 0), output(0, 0));
        channels.tie(tensors, input(1, 0), output(0, 1));
        if node.input(2).is_some() {
            channels.tie(tensors, input(2, 0), output(0, 1));
        }
        let (x, w) = (input(0, 1), input(1, 1));
        let group = usize::try_from(node.int_or("group", 1).ok()?).ok()?.max(1);
        let (inputs, each) = (tensors.size(x)?, tensors.size(w)?);
        let outputs = tensors.size(output(0, 1))?;
        if group == 1 {
            channels.tie_summed(tensors, x, w);
        } else if group == inputs && each == 1 {
            // Depthwise: each input has outputs of its own.
            channels.tie_factor(output(0, 1), x, [outputs / inputs, inputs, 1]);
            channels.held(tensors, Place::Attribute("group"), x);
        } else {
            // The same place in every group, so that groups stay of one size.
            channels.tie_factor(output(0, 1), output(0, 1), [1, outputs / group, 1]);
            channels.tie_factor(x, w, [1, each, 1]);
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
            return Ok(Box::new(ConvKernel::new(node, w, is_channels_last)?));
        }
        let (node, held) = (node.clone(), constant.cloned());
        // Weights that are computed are packed anew on each run; f64 needs no packing.
        Ok(Box::new(move |run: &mut Run| {
            if run.optional(1).is_none()
                && let Some(w) = run.inputs.get_mut(1)
            {
                w.clone_from(&held);
            }
            if run.input(0)?.dtype() == DType::F64 {
                return wide::run(&node, run, is_channels_last);
            }
            let kernel = ConvKernel::new(&node, run.typed::<f32>(1)?, is_channels_last)?;
            kernel.run(run)
        }))
    }

    fn gradient(&self, node: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        gradient::gradient(self, node, training)
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        macs(inputs.get(1).copied().flatten(), outputs)
    }

    fn keeps_constant(&self, input: usize) -> bool {
        input == 1
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// Every output takes one operation per weight of its own.
pub(crate) fn macs(weight: Option<&Fact>, outputs: &[Fact]) -> Dim {
    match weight.and_then(|w| w.shape.as_ref()) {
        Some(shape) if !shape.is_empty() => {
            &outputs[0].element_count() * &crate::fact::product(&shape[1..])
        }
        _ => Dim::Unknown,
    }
}

/// Sizes of the windows, if weights of this shape have known ones.
pub(crate) fn kernel_sizes(weight: &[Dim]) -> Option<Vec<usize>> {
    weight.iter().skip(2).map(|dim| usize::try_from(dim.known()?).ok()).collect()
}

fn infer(
    node: &Node,
    inputs: &[Option<&Fact>],
    is_channels_last: bool,
) -> Result<Vec<Fact>, OpError> {
    let (x, w) = (required(inputs, 0)?, required(inputs, 1)?);
    Ok(vec![infer_fact(node, x, w, x.dtype, is_channels_last)?])
}

/// The output of a convolution of `x` with `w`, of type `dtype`.
///
/// # Errors
/// Ranks that differ, attributes that no run could accept.
pub(crate) fn infer_fact(
    node: &Node,
    x: &Fact,
    w: &Fact,
    dtype: DType,
    is_channels_last: bool,
) -> Result<Fact, OpError> {
    let (Some(shape), Some(weight)) = (&x.shape, &w.shape) else {
        return Ok(Fact::unranked(dtype));
    };
    let rank = shape.len();
    if rank != weight.len() || rank < 3 {
        let text = |dims: &[Dim]| format!("of rank {}", dims.len());
        return Err(OpError::Shapes { a: text(shape), b: text(weight) });
    }
    let first = if is_channels_last { 1 } else { 2 };
    let spatial = match kernel_sizes(weight) {
        Some(sizes) => {
            let geometry = Geometry::new(node, &sizes)?;
            let dim = |axis: usize| geometry.output_dim(axis, &shape[axis + first]);
            (0..rank - 2).map(dim).collect()
        }
        None => vec![Dim::Unknown; rank - 2],
    };
    let mut dims = vec![shape[0].clone()];
    dims.extend(spatial);
    dims.insert(if is_channels_last { rank - 1 } else { 1 }, weight[0].clone());
    Ok(Fact::new(dtype, dims))
}

struct ConvKernel {
    engine: Engine,
    is_channels_last: bool,
}

impl ConvKernel {
    fn new(node: &Node, w: &Tensor, is_channels_last: bool) -> Result<Self, OpError> {
        if w.rank() < 3 {
            return Err(OpError::value("the weight", w.shape(), "three axes or more"));
        }
        let settings = Settings::new(node, &w.shape()[2..])?;
        let engine = Engine::new(&w.values::<f32>(), w.shape(), settings)?;
        Ok(Self { engine, is_channels_last })
    }

    /// Bias of one value per output, if there is one.
    fn bias<'a>(&self, run: &'a Run) -> Result<Option<&'a [f32]>, OpError> {
        let Some(bias) = run.optional(2) else { return Ok(None) };
        if bias.shape() != [self.engine.shape[0]] {
            return Err(OpError::shapes(&self.engine.shape, bias.shape()));
        }
        Ok(Some(run.typed::<f32>(2)?.slice()))
    }
}

impl Kernel for ConvKernel {
    fn run(&self, run: &mut Run) -> Result<Vec<Tensor>, OpError> {
        let x = run.typed::<f32>(0)?;
        let (weight, group) = (&self.engine.shape, self.engine.settings.group);
        let shape = Shape::new(x.shape(), self.is_channels_last);
        let channels = weight[1].checked_mul(group);
        if x.rank() != weight.len() || Some(shape.channels) != channels {
            return Err(OpError::shapes(x.shape(), weight));
        }
        let mut axes = self.engine.settings.geometry.axes(shape.spatial)?;
        let sizes = axes.iter().map(|axis| axis.output);
        let output = output_shape(shape.batch, weight[0], sizes, self.is_channels_last)?;
        // Tiles run along the last axis: one that goes nowhere gives way to the one before.
        while axes.len() > 1 && axes.last() == Some(&Axis::UNIT) {
            axes.pop();
        }
        if axes.len() == 1 {
            axes.insert(0, Axis::UNIT);
        }
        let bias = self.bias(run)?;
        if let Some(addend) = run.optional(3)
            && (addend.shape() != output || addend.dtype() != DType::F32)
        {
            return Err(OpError::shapes(&output, addend.shape()));
        }
        let pool = run.pool;
        let (x_last, addend_last) = if self.is_channels_last {
            (x.clone(), run.optional(3).cloned())
        } else {
            let addend = run.optional(3).map(|addend| to_channels_last(pool, addend));
            (to_channels_last(pool, x), addend)
        };
        let mut y = pool.tensor(DType::F32, &last(&output, self.is_channels_last));
        let job = Job {
            x: x_last.slice(),
            batch: shape.batch,
            axes,
            bias,
            addend: addend_last.as_ref().map(Tensor::slice),
            pool,
        };
        self.engine.run(y.slice_mut(), &job);
        drop(job);
        if self.is_channels_last {
            return Ok(vec![y]);
        }
        pool.recycle(x_last);
        addend_last.into_iter().for_each(|addend| pool.recycle(addend));
        let first = to_channels_first(pool, &y);
        pool.recycle(y);
        Ok(vec![first])
    }
}

/// The parts of an input's shape.
pub(crate) struct Shape<'a> {
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    pub(crate) spatial: &'a [usize],
}

impl<'a> Shape<'a> {
    pub(crate) fn new(shape: &'a [usize], is_channels_last: bool) -> Self {
        match shape {
            [batch, spatial @ .., channels] if is_channels_last => {
                Self { batch: *batch, channels: *channels, spatial }
            }
            [batch, channels, spatial @ ..] => Self { batch: *batch, channels: *channels, spatial },
            _ => Self { batch: 0, channels: 0, spatial: &[] },
        }
    }
}

/// Elements of an output at most: attributes alone must not make a run claim all memory.
const ELEMENTS_MAX: usize = 1 << 32;

/// [batch, outputs, spatial…], or with the outputs last.
///
/// # Errors
/// A shape of more elements than a run may claim.
pub(crate) fn output_shape(
    batch: usize,
    outputs: usize,
    spatial: impl Iterator<Item = usize>,
    is_channels_last: bool,
) -> Result<Vec<usize>, OpError> {
    let mut shape = vec![batch];
    shape.extend(spatial);
    shape.insert(if is_channels_last { shape.len() } else { 1 }, outputs);
    let count = attar_tensor::element_count(&shape).filter(|&count| count <= ELEMENTS_MAX);
    count.map(|_| shape.clone()).ok_or_else(|| {
        OpError::value("the output", &shape, format!("{ELEMENTS_MAX} elements at most"))
    })
}

/// An output shape with its channels moved to the end, if they are not there.
fn last(shape: &[usize], is_channels_last: bool) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if !is_channels_last {
        shape[1..].rotate_left(1);
    }
    shape
}
