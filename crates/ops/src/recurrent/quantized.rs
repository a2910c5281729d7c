//! `DynamicQuantizeLSTM` of ONNX Runtime: LSTM whose products are of 8-bit weights and of inputs
//! and states that are quantized to u8 while it runs.
//!
//! W is [directions, input, 4·hidden] and R [directions, hidden, 4·hidden], each with a scale and
//! zero point per direction or per column. The range of the input is that of all its steps and
//! items, and that of a state is the batch's: what an item gives depends on the others, as in
//! `DynamicQuantizeLinear`.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::cell::{Prepared, StepInputs, Weights};
use super::scan::{State, scan};
use super::{Layer, Settings, WeightSizes, infer_sized, macs, shaped};
use crate::kernels::elementwise;
use crate::kernels::gemm::Strided;
use crate::kernels::int8::{self, Product, Target, Values};
use crate::kernels::lanes::Real;
use crate::kernels::quantize;
use crate::kernels::recurrent::{Panels, Rows};
use crate::kernels::recurrent_steps::{LstmStep, Step};
use crate::{Fact, Kernel, OpError, Operator, Pool, Run};

pub(crate) struct DynamicQuantizeLstm;

/// Gates of an LSTM.
const GATES: usize = 4;

impl Operator for DynamicQuantizeLstm {
    fn op_type(&self) -> &'static str {
        "DynamicQuantizeLSTM"
    }

    fn domain(&self) -> &'static str {
        "com.microsoft"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        12..=12
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer_sized(node, inputs, Layer::Lstm, hidden_dim(inputs))
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let settings = Settings::new(node, Layer::Lstm)?;
        let constant = |index: usize| constants.get(index).copied().flatten();
        let is_known = |&index: &usize| constant(index).is_some() || node.input(index).is_none();
        if WEIGHTS.iter().all(is_known) {
            let prepared = prepare(&settings, constant)?;
            return Ok(Box::new(move |run: &mut Run| scan(run, &settings, &prepared)));
        }
        let kept = WEIGHTS.map(|index| constant(index).cloned());
        Ok(Box::new(move |run: &mut Run| {
            let prepared = prepare(&settings, |index| {
                let position = WEIGHTS.iter().position(|&weight| weight == index);
                position.and_then(|position| kept[position].as_ref()).or(run.optional(index))
            })?;
            scan(run, &settings, &prepared)
        }))
    }

    fn macs(&self, node: &Node, inputs: &[Option<&Fact>], _: &[Fact]) -> Dim {
        macs(node, inputs, Layer::Lstm, &hidden_dim(inputs))
    }

    fn keeps_constant(&self, input: usize) -> bool {
        WEIGHTS.contains(&input)
    }
}

/// W, R, B, P and the scales and zero points of W and R.
const WEIGHTS: [usize; 8] = [1, 2, 3, 7, 8, 9, 10, 11];

/// Axis 1 of R.
fn hidden_dim(inputs: &[Option<&Fact>]) -> Dim {
    let shape = inputs.get(2).copied().flatten().and_then(|r| r.shape.as_ref());
    shape.and_then(|shape| shape.get(1).cloned()).unwrap_or(Dim::Unknown)
}

/// An 8-bit matrix with what its products need to be read as floats, in the order of the panels.
struct Matrix {
    product: Product,
    scales: Vec<f32>,
    zeros: Vec<i32>,
    /// Σ (b − zero) over each column.
    sums: Vec<i32>,
}

struct QuantizedDirection {
    input: Matrix,
    recurrent: Matrix,
    bias: Vec<f32>,
    peepholes: Option<[Vec<f32>; 3]>,
    /// Without depth: the cell reads sums that are complete.
    panels: Panels<f32>,
}

fn prepare<'a>(
    settings: &Settings,
    input: impl Fn(usize) -> Option<&'a Tensor>,
) -> Result<Prepared<QuantizedDirection>, OpError> {
    let required = |index: usize| input(index).ok_or(OpError::MissingInput { index });
    let (w, r) = (required(1)?, required(2)?);
    let (&[directions, depth, columns], &[directions_r, hidden, columns_r]) =
        (w.shape(), r.shape())
    else {
        return Err(OpError::shapes(w.shape(), r.shape()));
    };
    // As LSTM has them: a row per gate and unit.
    let as_rows = [[directions, columns, depth], [directions_r, columns_r, hidden]];
    let sizes = WeightSizes::new(settings, &as_rows[0], &as_rows[1])?;
    let b = shaped(input(3), 3, DType::F32, &[directions, 2 * columns])?.map(Tensor::to_f32);
    let p = shaped(input(7), 7, DType::F32, &[directions, 3 * hidden])?.map(Tensor::to_f32);
    let (b, p) = (b.flatten(), p.flatten());
    let matrices = [(1, w, 8, 9), (2, r, 10, 11)];
    let mut prepared = Prepared { sizes, directions: Vec::new() };
    for direction in 0..directions {
        let panels = Panels::<f32>::new([GATES, hidden, 0], |_, _, _| 0.0);
        let matrix = |(index, weights, scale, zero): (usize, &Tensor, usize, usize)| {
            let quantization = [(scale, required(scale)?), (zero, required(zero)?)];
            Matrix::new((index, weights), quantization, direction, &panels, hidden)
        };
        let (input, recurrent) = (matrix(matrices[0])?, matrix(matrices[1])?);
        let bias = panels.arranged(hidden, |gate, unit| {
            let at = |half: usize| (direction * 2 + half) * columns + gate * hidden + unit;
            b.as_ref().map_or(0.0, |b| b[at(0)] + b[at(1)])
        });
        let padded = |p: &[f32], gate: usize| {
            let own = &p[(direction * 3 + gate) * hidden..][..hidden];
            let mut values = vec![0.0; panels.padded_units()];
            values[..hidden].copy_from_slice(own);
            values
        };
        let peepholes = p.as_ref().map(|p| [0, 1, 2].map(|gate| padded(p, gate)));
        prepared.directions.push(QuantizedDirection { input, recurrent, bias, peepholes, panels });
    }
    Ok(prepared)
}

impl Matrix {
    /// Of one direction of the weights, whose depth is axis 1.
    fn new(
        (index, weights): (usize, &Tensor),
        [(scale_index, scale), (zero_index, zero)]: [(usize, &Tensor); 2],
        direction: usize,
        panels: &Panels<f32>,
        hidden: usize,
    ) -> Result<Self, OpError> {
        let (directions, depth) = (weights.shape()[0], weights.shape()[1]);
        let columns = GATES * hidden;
        let centre: u8 = match weights.dtype() {
            DType::I8 => 0,
            DType::U8 => 128,
            found => return Err(OpError::DType { index, found }),
        };
        if scale.dtype() != DType::F32 {
            return Err(OpError::DType { index: scale_index, found: scale.dtype() });
        }
        if zero.dtype() != weights.dtype() {
            return Err(OpError::DType { index: zero_index, found: zero.dtype() });
        }
        let per_column = |tensor: &Tensor| -> Result<usize, OpError> {
            match tensor.element_count() {
                count if count == directions => Ok(1),
                count if count == directions * columns => Ok(columns),
                _ => Err(OpError::shapes(weights.shape(), tensor.shape())),
            }
        };
        let places: Vec<Option<usize>> = panels
            .columns(hidden)
            .map(|place| place.map(|[gate, unit]| gate * hidden + unit))
            .collect();
        let of = |count: usize, column: usize| direction * count + column % count;
        let (scale_count, zero_count) = (per_column(scale)?, per_column(zero)?);
        let (scales, zeros) = (scale.values::<f32>(), zero.bytes());
        // u8 moves down by 128, and its zero point with it.
        let signed = |byte: u8| (byte ^ centre) as i8;
        let scale_at = |place: &Option<usize>| place.map_or(0.0, |c| scales[of(scale_count, c)]);
        let zero_at = |place: &Option<usize>| {
            place.map_or(0, |c| i32::from(signed(zeros[of(zero_count, c)])))
        };
        let zeros: Vec<i32> = places.iter().map(zero_at).collect();
        let rows = weights.bytes()[direction * depth * columns..].chunks_exact(columns);
        let mut data = Vec::with_capacity(depth * places.len());
        let mut sums: Vec<i32> = zeros.iter().map(|zero| -zero * depth as i32).collect();
        for row in rows.take(depth) {
            let start = data.len();
            data.extend(places.iter().map(|place| place.map_or(0, |column| signed(row[column]))));
            sums.iter_mut().zip(&data[start..]).for_each(|(sum, &b)| *sum += i32::from(b));
        }
        let columns = int8::Weights::new(Strided::rows(&data, depth, places.len()));
        let product = Product::sums(columns);
        Ok(Self { product, scales: places.iter().map(scale_at).collect(), zeros, sums })
    }

    /// y[row] = x[row]·b + start for the rows, x quantized; `start` is a row for each of y, or one
    /// for all.
    fn product(
        &self,
        (y, start): (&mut [f32], &[f32]),
        x: Rows<f32>,
        rows: &[usize],
        range: Range,
        pool: &Pool,
    ) {
        let (depth, width) = (self.product.depth(), self.scales.len());
        let mut quantized = pool.buffer(rows.len() * depth);
        let mut sums = pool.buffer(rows.len() * width * 4);
        let q = quantized.as_bytes_mut();
        let [scale, zero] = [range.scale, f32::from(range.zero)];
        for (q, &row) in q.chunks_exact_mut(depth).zip(rows) {
            let x = &x.data[row * x.stride..][..depth];
            quantize::quantize_u8(q, x, scale, zero as i32);
        }
        let totals: &mut [i32] = bytemuck::cast_slice_mut(sums.as_bytes_mut());
        let left = int8::Rows { data: q, count: rows.len(), stride: depth };
        let target = Target { values: Values::I32(totals), stride: width };
        int8::run_all(left, std::iter::once((&self.product, target)));
        let has_zeros = self.zeros.iter().any(|&zero| zero != 0);
        for ((q, totals), &row) in q.chunks_exact(depth).zip(totals.chunks_exact(width)).zip(rows) {
            let sum = if has_zeros { q.iter().map(|&q| i32::from(q)).sum() } else { 0 };
            let start = if start.len() == width { start } else { &start[row * width..] };
            quantize::rescale_dynamic_row(
                &mut y[row * width..(row + 1) * width],
                start,
                totals,
                &self.sums,
                &self.zeros,
                &self.scales,
                scale,
                [i32::from(range.zero), sum],
            );
        }
        pool.recycle_buffer(quantized);
        pool.recycle_buffer(sums);
    }
}

/// Scale and zero point of values about to be quantized to u8.
#[derive(Clone, Copy)]
pub(super) struct Range {
    scale: f32,
    zero: u8,
}

impl Range {
    /// The range of several rows; it always holds 0.
    fn of<'a>(rows: impl Iterator<Item = &'a [f32]>) -> Self {
        let ends = rows.map(elementwise::min_max);
        let (low, high) = ends.fold((0.0_f32, 0.0_f32), |a, b| (a.0.min(b.0), a.1.max(b.1)));
        let range = (high - low) / 255.0;
        let scale = if range == 0.0 { 1.0 } else { range };
        Self { scale, zero: (-low / scale).clamp(0.0, 255.0).round_ties_even() as u8 }
    }
}

impl Weights<f32> for QuantizedDirection {
    type Whole = Range;

    const DIVIDES: bool = false;

    fn whole(x: &[f32]) -> Range {
        Range::of(std::iter::once(x))
    }

    fn stride(&self) -> usize {
        self.panels.padded_units()
    }

    fn width(&self) -> usize {
        self.panels.width()
    }

    fn project(&self, y: &mut [f32], x: Rows<f32>, rows: &[usize], whole: &Range, pool: &Pool) {
        self.input.product((y, &self.bias), x, rows, *whole, pool);
    }

    fn step(&self, inputs: StepInputs<f32>, state: &mut State<f32>, pool: &Pool) {
        let StepInputs { settings, activations, projected, rows } = inputs;
        let State { h, next, extra: c } = state;
        let h = Rows { data: h, stride: self.stride() };
        let mut buffer = pool.buffer(projected.len() * 4);
        let sums: &mut [f32] = bytemuck::cast_slice_mut(buffer.as_bytes_mut());
        let depth = self.recurrent.product.depth();
        let range = Range::of(rows.iter().map(|row| &h.data[row * h.stride..][..depth]));
        self.recurrent.product((sums, projected), h, rows, range, pool);
        let step = Step {
            projected: Rows { data: sums, stride: self.width() },
            h,
            rows,
            clip: settings.clip.map(f32::from_f64),
            activations,
        };
        let (panels, peepholes, couples) =
            (&self.panels, self.peepholes.as_ref(), settings.couples);
        f32::dispatch(LstmStep { step, panels, next, c, peepholes, couples });
        pool.recycle_buffer(buffer);
    }
}
