//! Conv (opset 1 and later, one or two spatial axes), and attar's form with a clamp after it.
//!
//! y[o] = bias[o] + Σ w[o, c, i, j] · x[c, y·stride + i·dilation − pad, …], by group.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::geometry::Geometry;
use crate::kernels::depthwise::{Window, depthwise_channel};
use crate::kernels::gemm::{self, PackedA, Strided};
use crate::kernels::{elementwise, for_rows};
use crate::{ATTAR_DOMAIN, Fact, Kernel, OpError, Operator, Run, required};

/// A convolution, with or without a clamp after it.
pub(crate) struct Convolution {
    op_type: &'static str,
    domain: &'static str,
}

/// Conv of ONNX.
pub(crate) const CONV: Convolution = Convolution { op_type: "Conv", domain: "" };

/// Conv, then clamp to the attributes `min` and `max`; made by fusion.
pub(crate) const FUSED_CONV: Convolution =
    Convolution { op_type: "FusedConv", domain: ATTAR_DOMAIN };

impl Operator for Convolution {
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
        infer(node, inputs)
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        kernel(node, constants)
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        macs(inputs, outputs)
    }

    fn keeps_constant(&self, input: usize) -> bool {
        input == 1
    }
}

fn macs(inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
    let weights = inputs.get(1).copied().flatten().and_then(|w| w.shape.as_ref());
    match weights {
        Some(shape) => &outputs[0].element_count() * &crate::fact::product(&shape[1..]),
        None => Dim::Unknown,
    }
}

#[derive(Clone, Debug)]
struct Settings {
    group: usize,
    geometry: Geometry,
    bounds: [f32; 2],
}

impl Settings {
    fn new(node: &Node, kernel: &[usize]) -> Result<Self, OpError> {
        let group = node.int_or("group", 1)?;
        Ok(Self {
            group: usize::try_from(group)
                .ok()
                .filter(|&group| group > 0)
                .ok_or_else(|| OpError::value("group", group, "at least 1"))?,
            geometry: Geometry::new(node, kernel)?,
            bounds: [
                node.float_or("min", f32::NEG_INFINITY)?,
                node.float_or("max", f32::INFINITY)?,
            ],
        })
    }
}

fn infer(node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
    let (x, w) = (required(inputs, 0)?, required(inputs, 1)?);
    let (Some(shape), Some(kernel)) = (&x.shape, &w.shape) else {
        return Ok(vec![Fact::unranked(x.dtype)]);
    };
    if shape.len() != kernel.len() || shape.len() < 3 {
        let text = |dims: &[Dim]| format!("of rank {}", dims.len());
        return Err(OpError::Shapes { a: text(shape), b: text(kernel) });
    }
    let mut dims = vec![shape[0].clone(), kernel[0].clone()];
    let sizes = kernel[2..].iter().map(|dim| usize::try_from(dim.known()?).ok());
    match sizes.collect::<Option<Vec<usize>>>() {
        Some(sizes) => {
            let geometry = Geometry::new(node, &sizes)?;
            dims.extend((0..sizes.len()).map(|axis| geometry.output_dim(axis, &shape[axis + 2])));
        }
        None => dims.resize(shape.len(), Dim::Unknown),
    }
    Ok(vec![Fact::new(x.dtype, dims)])
}

/// Weights in the form that the shape of the convolution calls for.
enum Weights {
    /// One kernel per channel: [channels, kernel].
    Depthwise(Vec<f32>),
    /// One packed matrix [outputs, inputs·kernel] per group.
    Packed(Vec<PackedA>),
}

struct ConvKernel {
    settings: Settings,
    /// [outputs, inputs per group, kernel…]
    shape: Vec<usize>,
    weights: Weights,
}

fn kernel(node: &Node, constants: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
    let constant = constants.get(1).copied().flatten().filter(|w| w.dtype() == DType::F32);
    let node = node.clone();
    if let Some(w) = constant {
        return Ok(Box::new(ConvKernel::new(&node, w)?));
    }
    // Weights that are computed are packed anew on each run.
    Ok(Box::new(move |run: &mut Run| {
        let kernel = ConvKernel::new(&node, run.typed::<f32>(1)?)?;
        kernel.run(run)
    }))
}

impl ConvKernel {
    fn new(node: &Node, w: &Tensor) -> Result<Self, OpError> {
        let shape = w.shape().to_vec();
        if !(3..=4).contains(&shape.len()) {
            return Err(OpError::Unsupported {
                what: format!("a convolution over {} axes", shape.len().saturating_sub(2)),
            });
        }
        let settings = Settings::new(node, &shape[2..])?;
        let group = settings.group;
        if !shape[0].is_multiple_of(group) || shape.contains(&0) {
            return Err(OpError::value("the weight", &shape, format!("outputs in {group} groups")));
        }
        let values = w.values::<f32>();
        let weights = if shape[1] == 1 && shape[0] == group && group > 1 {
            Weights::Depthwise(values.into_owned())
        } else {
            let (rows, columns) = (shape[0] / group, shape[1..].iter().product::<usize>());
            let matrices = values.chunks_exact(rows * columns);
            let pack = |matrix| PackedA::new(Strided::rows(matrix, rows, columns));
            Weights::Packed(matrices.map(pack).collect())
        };
        Ok(Self { settings, shape, weights })
    }

    /// Sizes along two axes; a single axis counts as a row.
    fn window(&self, input: &[usize]) -> Option<Window> {
        let spatial = self.shape.len() - 2;
        let first = 2 - spatial;
        let mut window = Window {
            input: [1; 2],
            output: [1; 2],
            kernel: [1; 2],
            stride: [1; 2],
            dilation: [1; 2],
            pad: [0; 2],
        };
        for axis in 0..spatial {
            let sizes = self.settings.geometry.axis(axis, input[axis + 2])?;
            window.input[first + axis] = sizes.input;
            window.output[first + axis] = sizes.output;
            window.kernel[first + axis] = sizes.kernel;
            window.stride[first + axis] = sizes.stride;
            window.dilation[first + axis] = sizes.dilation;
            window.pad[first + axis] = sizes.pad;
        }
        Some(window)
    }
}

impl Kernel for ConvKernel {
    fn run(&self, run: &mut Run) -> Result<Vec<Tensor>, OpError> {
        let x = run.typed::<f32>(0)?;
        let (group, spatial) = (self.settings.group, self.shape.len() - 2);
        if x.rank() != self.shape.len() || x.shape()[1] != self.shape[1] * group {
            return Err(OpError::shapes(x.shape(), &self.shape));
        }
        let window =
            self.window(x.shape()).ok_or_else(|| OpError::shapes(x.shape(), &self.shape))?;
        let bias = match run.optional(2) {
            Some(bias) if bias.shape() != [self.shape[0]] => {
                return Err(OpError::shapes(&self.shape, bias.shape()));
            }
            Some(bias) => Some(bias.slice::<f32>()),
            None => None,
        };
        let mut shape = vec![x.shape()[0], self.shape[0]];
        shape.extend(&window.output[2 - spatial..]);
        let mut y = run.pool.tensor(DType::F32, &shape);
        match &self.weights {
            Weights::Depthwise(w) => {
                depthwise(
                    run,
                    y.slice_mut::<f32>(),
                    x.slice::<f32>(),
                    w,
                    bias,
                    &window,
                    self.settings.bounds,
                );
            }
            Weights::Packed(w) => {
                self.multiply(run, y.slice_mut::<f32>(), x, w, bias, &window);
            }
        }
        Ok(vec![y])
    }
}

fn depthwise(
    run: &Run,
    y: &mut [f32],
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    window: &Window,
    bounds: [f32; 2],
) {
    let taps = window.kernel[0] * window.kernel[1];
    let channels = w.len() / taps;
    let plane_in = window.input[0] * window.input[1];
    let plane_out = window.output[0] * window.output[1];
    for_rows(y, plane_out, |first, planes| {
        let mut scratch = run.pool.buffer(window.scratch_size() * 4);
        let values: &mut [f32] = bytemuck::cast_slice_mut(scratch.as_bytes_mut());
        for (index, plane) in planes.chunks_exact_mut(plane_out).enumerate() {
            let (at, channel) = (first + index, (first + index) % channels);
            let x = &x[at * plane_in..(at + 1) * plane_in];
            let w = &w[channel * taps..(channel + 1) * taps];
            let bias = bias.map_or(0.0, |bias| bias[channel]);
            depthwise_channel(plane, x, w, bias, bounds, window, values);
        }
        run.pool.recycle_buffer(scratch);
    });
}

impl ConvKernel {
    fn multiply(
        &self,
        run: &Run,
        y: &mut [f32],
        x: &Tensor,
        w: &[PackedA],
        bias: Option<&[f32]>,
        window: &Window,
    ) {
        let group = self.settings.group;
        let columns = window.output[0] * window.output[1];
        let (rows, channels) = (self.shape[0] / group, self.shape[1]);
        let depth = channels * window.kernel[0] * window.kernel[1];
        let plane = window.input[0] * window.input[1];
        if columns == 0 {
            return;
        }
        let is_pointwise =
            window.kernel == [1, 1] && window.stride == [1, 1] && window.input == window.output;
        let mut scratch = (!is_pointwise).then(|| run.pool.buffer(depth * columns * 4));
        let inputs = x.slice::<f32>().chunks_exact((channels * plane).max(1));
        for (index, (y, x)) in y.chunks_exact_mut(rows * columns).zip(inputs).enumerate() {
            let part = index % group;
            let bias = bias.map(|bias| &bias[part * rows..(part + 1) * rows]);
            let matrix: &[f32] = match &mut scratch {
                Some(scratch) => {
                    let patches = bytemuck::cast_slice_mut(scratch.as_bytes_mut());
                    gather_patches(patches, x, window);
                    patches
                }
                None => x,
            };
            gemm::matmul_packed_left(y, &w[part], Strided::rows(matrix, depth, columns));
            let [low, high] = self.settings.bounds;
            if bias.is_some() || [low, high] != [f32::NEG_INFINITY, f32::INFINITY] {
                // Bias and clamp in one pass: the output no longer fits the cache.
                for_rows(y, columns, |first, rows| {
                    for (index, row) in rows.chunks_exact_mut(columns).enumerate() {
                        let bias = bias.map_or(0.0, |bias| bias[first + index]);
                        elementwise::add_clamp(row, bias, low, high);
                    }
                });
            }
        }
        if let Some(scratch) = scratch {
            run.pool.recycle_buffer(scratch);
        }
    }
}

/// Writes the patch under each output as a column: rows are [channel, kernel y, kernel x].
fn gather_patches(patches: &mut [f32], x: &[f32], window: &Window) {
    let [height, width] = window.input;
    let [out_height, out_width] = window.output;
    let taps = window.kernel[0] * window.kernel[1];
    for_rows(patches, out_height * out_width, |first, rows| {
        for (index, row) in rows.chunks_exact_mut(out_height * out_width).enumerate() {
            let (channel, tap) = ((first + index) / taps, (first + index) % taps);
            let shift_y = tap / window.kernel[1] * window.dilation[0];
            let shift_x = tap % window.kernel[1] * window.dilation[1];
            let x = &x[channel * height * width..(channel + 1) * height * width];
            for (out_y, row) in row.chunks_exact_mut(out_width).enumerate() {
                let y = (out_y * window.stride[0] + shift_y).wrapping_sub(window.pad[0]);
                if y >= height {
                    row.fill(0.0);
                    continue;
                }
                let source = &x[y * width..(y + 1) * width];
                for (out_x, value) in row.iter_mut().enumerate() {
                    let at = (out_x * window.stride[1] + shift_x).wrapping_sub(window.pad[1]);
                    *value = source.get(at).copied().unwrap_or(0.0);
                }
            }
        }
    });
}
