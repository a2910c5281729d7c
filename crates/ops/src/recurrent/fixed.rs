//! `QuantizedLSTM`, `QuantizedGRU` and `QuantizedRNN`, made by fusion: a recurrent layer of 8-bit
//! weights whose input has a fixed range.
//!
//! Inputs 0 to 7 are those of the layer, with W [directions·gates·hidden, input] and R
//! [directions·gates·hidden, hidden] in i8 and symmetric; then scale and zero point (u8) of the input
//! and the scales of the rows of W and R. The state is read by its product in levels of 1/127, which
//! hold all that a layer with a bounded activation gives, and kept in f32 everywhere else: what an
//! item of the batch gives is its own. A first state beyond ±1, which no layer gives, is cut off there.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::cell::{Prepared, StepInputs, Weights};
use super::scan::{State, scan};
use super::{Activation, Layer, Settings, WeightSizes, infer_sized, macs, shaped};
use crate::kernels::elementwise;
use crate::kernels::gemm::Strided;
use crate::kernels::int8::{self, Output, Product, Rows as LevelRows, Target, Values};
use crate::kernels::lanes::Real;
use crate::kernels::quantize;
use crate::kernels::recurrent::{Panels, Rows};
use crate::kernels::recurrent_steps::{
    CandidateStep, GruGates, LstmStep, ResetStep, RnnStep, Step,
};
use crate::{ATTAR_DOMAIN, Fact, Kernel, OpError, Operator, Pool, Run};

pub(crate) struct QuantizedLayer {
    op_type: &'static str,
    layer: Layer,
}

pub(crate) const QUANTIZED_LSTM: QuantizedLayer =
    QuantizedLayer { op_type: "QuantizedLSTM", layer: Layer::Lstm };
pub(crate) const QUANTIZED_GRU: QuantizedLayer =
    QuantizedLayer { op_type: "QuantizedGRU", layer: Layer::Gru };
pub(crate) const QUANTIZED_RNN: QuantizedLayer =
    QuantizedLayer { op_type: "QuantizedRNN", layer: Layer::Rnn };

/// Scale and zero point of the input, and the scales of W and R.
pub(crate) const SCALES: [usize; 4] = [8, 9, 10, 11];

/// Levels of a state, which lies within ±1.
const STATE: Range = Range { scale: 1.0 / 127.0, zero: 128 };

/// Whether every state that a layer gives lies within ±1, whatever its weights and inputs.
///
/// # Errors
/// Attributes that no layer has.
pub fn has_bounded_state(node: &Node) -> Result<bool, OpError> {
    let layer = match node.op_type.as_str() {
        "LSTM" => Layer::Lstm,
        "GRU" => Layer::Gru,
        "RNN" => Layer::Rnn,
        _ => return Ok(false),
    };
    let settings = Settings::new(node, layer)?;
    let is_gate = |f: Activation| matches!(f, Activation::Sigmoid | Activation::HardSigmoid(..));
    let is_unit =
        |f: Activation| is_gate(f) || matches!(f, Activation::Tanh | Activation::Softsign);
    Ok((0..settings.directions()).all(|direction| {
        let [f, g, h] = settings.activations_of(direction);
        match layer {
            Layer::Lstm => is_gate(f) && is_unit(h),
            Layer::Gru => is_gate(f) && is_unit(g),
            Layer::Rnn => is_unit(f),
        }
    }))
}

impl Operator for QuantizedLayer {
    fn op_type(&self) -> &'static str {
        self.op_type
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        12..=12
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer_sized(node, inputs, self.layer, hidden_dim(inputs))
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let settings = Settings::new(node, self.layer)?;
        let prepared = prepare(&settings, |index| constants.get(index).copied().flatten())?;
        Ok(Box::new(move |run: &mut Run| scan(run, &settings, &prepared)))
    }

    fn macs(&self, node: &Node, inputs: &[Option<&Fact>], _: &[Fact]) -> Dim {
        macs(node, inputs, self.layer, &hidden_dim(inputs))
    }

    fn keeps_constant(&self, input: usize) -> bool {
        matches!(input, 1..=3 | 7) || SCALES.contains(&input)
    }
}

/// Axis 1 of R.
fn hidden_dim(inputs: &[Option<&Fact>]) -> Dim {
    let shape = inputs.get(2).copied().flatten().and_then(|r| r.shape.as_ref());
    shape.and_then(|shape| shape.get(1).cloned()).unwrap_or(Dim::Unknown)
}

/// Scale and zero point of what a product reads.
#[derive(Clone, Copy)]
struct Range {
    scale: f32,
    zero: u8,
}

/// Gates whose recurrent products are of one vector.
struct Part {
    input: Product,
    recurrent: Product,
    /// Without depth: cells read sums that are complete.
    panels: Panels<f32>,
}

/// The weights of one direction.
struct LevelDirection {
    range: Range,
    /// One, or two for a GRU that resets before its product: z and r, then the candidate.
    parts: Vec<Part>,
    peepholes: Option<[Vec<f32>; 3]>,
}

fn prepare<'a>(
    settings: &Settings,
    input: impl Fn(usize) -> Option<&'a Tensor>,
) -> Result<Prepared<LevelDirection>, OpError> {
    let required = |index: usize| input(index).ok_or(OpError::MissingInput { index });
    let levels = |index: usize| -> Result<(&Tensor, [usize; 2]), OpError> {
        let tensor = required(index)?;
        match *tensor.shape() {
            _ if tensor.dtype() != DType::I8 => {
                Err(OpError::DType { index, found: tensor.dtype() })
            }
            [rows, depth] => Ok((tensor, [rows, depth])),
            _ => Err(OpError::value("the weights' rank", tensor.rank(), "2")),
        }
    };
    let ((w, w_shape), (r, r_shape)) = (levels(1)?, levels(2)?);
    let directions = settings.directions();
    let apart = |[rows, depth]: [usize; 2]| [directions, rows / directions, depth];
    let sizes = WeightSizes::new(settings, &apart(w_shape), &apart(r_shape))?;
    let rows = settings.layer.gates() * sizes.hidden;
    if w_shape[0] != directions * rows {
        return Err(OpError::shapes(w.shape(), r.shape()));
    }
    let floats = |index: usize, shape: &[usize]| {
        shaped(input(index), index, DType::F32, shape).map(|t| t.and_then(Tensor::to_f32))
    };
    let b = floats(3, &[directions, 2 * rows])?;
    let p = floats(7, &[directions, 3 * sizes.hidden])?;
    let [x_scale, x_zero, ..] = SCALES;
    let range = Range {
        scale: required(x_scale)?.values::<f32>().first().copied().unwrap_or(1.0),
        zero: required(x_zero)?.values::<u8>().first().copied().unwrap_or(0),
    };
    let scales = |index: usize| -> Result<Vec<f32>, OpError> {
        let scales = required(index)?.values::<f32>().into_owned();
        if scales.len() != directions * rows {
            return Err(OpError::shapes(&[directions * rows], &[scales.len()]));
        }
        Ok(scales)
    };
    let (w_scales, r_scales) = (scales(SCALES[2])?, scales(SCALES[3])?);
    let (w, r) = (w.values::<i8>(), r.values::<i8>());
    let direction = |direction: usize| {
        let own = |count: usize| direction * count..(direction + 1) * count;
        LevelDirection::new(
            settings,
            &sizes,
            [
                Matrix { levels: &w[own(rows * sizes.input)], scales: &w_scales[own(rows)], range },
                Matrix {
                    levels: &r[own(rows * sizes.hidden)],
                    scales: &r_scales[own(rows)],
                    range: STATE,
                },
            ],
            b.as_ref().map(|b| &b[own(2 * rows)]),
            p.as_ref().map(|p| &p[own(3 * sizes.hidden)]),
        )
    };
    Ok(Prepared { sizes, directions: (0..directions).map(direction).collect() })
}

/// Rows of weights, their scales, and the range of what they are multiplied with.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    levels: &'a [i8],
    scales: &'a [f32],
    range: Range,
}

impl Matrix<'_> {
    /// The rows at these places, in this order, as columns; zeros where there is none.
    fn product(&self, places: &[Option<usize>], bias: Option<&[f32]>) -> Product {
        let depth = self.levels.len() / self.scales.len().max(1);
        let mut rows = vec![0_i8; places.len() * depth];
        for (row, place) in rows.chunks_exact_mut(depth.max(1)).zip(places) {
            if let Some(place) = place {
                row.copy_from_slice(&self.levels[place * depth..][..depth]);
            }
        }
        let columns = Strided::rows(&rows, places.len(), depth).transposed();
        let scale = |place: &Option<usize>| place.map_or(0.0, |row| self.scales[row]);
        let scales: Vec<f32> = places.iter().map(|p| scale(p) * self.range.scale).collect();
        let (weights, none) = (int8::Weights::new(columns), int8::Activation::None);
        Product::new(weights, self.range.zero, &scales, bias, none, Output::F32)
    }
}

impl LevelDirection {
    fn new(
        settings: &Settings,
        sizes: &WeightSizes,
        [w, r]: [Matrix; 2],
        b: Option<&[f32]>,
        p: Option<&[f32]>,
    ) -> Self {
        let hidden = sizes.hidden;
        let gates = settings.layer.gates();
        let resets_after = settings.layer == Layer::Gru && settings.resets_after;
        let bias = |half: usize, gate: usize, unit: usize| {
            b.map_or(0.0, |b| b[(half * gates + gate) * hidden + unit])
        };
        let part = |first: usize, count: usize| {
            let panels = Panels::<f32>::new([count, hidden, 0], |_, _, _| 0.0);
            let place = |[gate, unit]: [usize; 2]| (first + gate) * hidden + unit;
            let places: Vec<Option<usize>> =
                panels.columns(hidden).map(|column| column.map(place)).collect();
            // The recurrent bias of a candidate that is reset after its product is reset with it.
            let is_late = |gate: usize| resets_after && gate == 2;
            let early = panels.arranged(hidden, |gate, unit| {
                let gate = first + gate;
                bias(0, gate, unit) + if is_late(gate) { 0.0 } else { bias(1, gate, unit) }
            });
            let late = panels.arranged(hidden, |gate, unit| {
                if is_late(first + gate) { bias(1, first + gate, unit) } else { 0.0 }
            });
            let input = w.product(&places, Some(&early));
            Part { input, recurrent: r.product(&places, Some(&late)), panels }
        };
        let parts = match settings.layer {
            Layer::Gru if !resets_after => vec![part(0, 2), part(2, 1)],
            _ => vec![part(0, gates)],
        };
        let stride = parts.iter().map(|part| part.panels.padded_units()).max().unwrap_or(0);
        let padded = |p: &[f32], gate: usize| {
            let mut values = vec![0.0; stride];
            values[..hidden].copy_from_slice(&p[gate * hidden..][..hidden]);
            values
        };
        let peepholes = p.map(|p| [0, 1, 2].map(|gate| padded(p, gate)));
        Self { range: w.range, parts, peepholes }
    }
}

/// y[row] = product of the levels of x[row], for each of the rows; y has rows of `stride` values, of
/// which the product's begin at `offset`.
fn multiply(
    product: &Product,
    (y, stride, offset): (&mut [f32], usize, usize),
    x: Rows<f32>,
    (rows, range): (&[usize], Range),
    pool: &Pool,
) {
    let depth = product.depth();
    let mut buffer = pool.buffer(rows.len() * depth);
    let q = buffer.as_bytes_mut();
    for (q, &row) in q.chunks_exact_mut(depth).zip(rows) {
        let x = &x.data[row * x.stride..][..depth];
        quantize::quantize_u8(q, x, range.scale, i32::from(range.zero));
    }
    let left = LevelRows { data: q, count: rows.len(), stride: depth };
    let target = Target { values: Values::F32(&mut y[offset..]), stride };
    int8::run_all(left, std::iter::once((product, target)));
    pool.recycle_buffer(buffer);
}

impl LevelDirection {
    /// Part `index`'s sums over levels of the rows of `x`, one row of `sums` for each.
    fn recur(&self, sums: &mut [f32], index: usize, x: Rows<f32>, rows: &[usize], pool: &Pool) {
        let part = &self.parts[index];
        let width = part.panels.width();
        // Rows lie where the state has them, so that a cell finds its own.
        let first = rows.first().copied().unwrap_or(0);
        let is_dense = rows.len() == rows.last().map_or(0, |last| last + 1 - first);
        if is_dense {
            multiply(&part.recurrent, (sums, width, first * width), x, (rows, STATE), pool);
            return;
        }
        for row in rows {
            let row = std::slice::from_ref(row);
            multiply(&part.recurrent, (sums, width, row[0] * width), x, (row, STATE), pool);
        }
    }
}

/// sums[row] += projected[row] from `column` on, for each of the rows.
fn add_rows(sums: &mut [f32], width: usize, projected: Rows<f32>, column: usize, rows: &[usize]) {
    for &row in rows {
        let from = &projected.data[row * projected.stride + column..][..width];
        elementwise::add_assign(&mut sums[row * width..][..width], from);
    }
}

impl Weights<f32> for LevelDirection {
    type Whole = ();

    const DIVIDES: bool = true;

    fn whole(_: &[f32]) {}

    fn stride(&self) -> usize {
        self.parts.iter().map(|part| part.panels.padded_units()).max().unwrap_or(0)
    }

    fn width(&self) -> usize {
        self.parts.iter().map(|part| part.panels.width()).sum()
    }

    fn project(&self, y: &mut [f32], x: Rows<f32>, rows: &[usize], (): &(), pool: &Pool) {
        let (width, mut offset) = (self.width(), 0);
        for part in &self.parts {
            multiply(&part.input, (y, width, offset), x, (rows, self.range), pool);
            offset += part.panels.width();
        }
    }

    fn step(&self, inputs: StepInputs<f32>, state: &mut State<f32>, pool: &Pool) {
        let StepInputs { settings, activations, projected, rows } = inputs;
        let State { h, next, extra } = state;
        let projected = Rows { data: projected, stride: self.width() };
        let h = Rows { data: h, stride: self.stride() };
        let part = &self.parts[0];
        let width = part.panels.width();
        let mut buffer = pool.buffer(projected.data.len() / self.width().max(1) * width * 4);
        let sums: &mut [f32] = bytemuck::cast_slice_mut(buffer.as_bytes_mut());
        self.recur(sums, 0, h, rows, pool);
        let clip = settings.clip.map(f32::from_f64);
        let is_after = settings.layer == Layer::Gru && self.parts.len() == 1;
        if !is_after {
            add_rows(sums, width, projected, 0, rows);
        }
        let complete = Rows { data: &*sums, stride: width };
        let step = Step { projected: complete, h, rows, clip, activations };
        let panels = &part.panels;
        match (settings.layer, self.parts.get(1)) {
            (Layer::Rnn, _) => f32::dispatch(RnnStep { step, panels, next }),
            (Layer::Lstm, _) => {
                let (peepholes, couples) = (self.peepholes.as_ref(), settings.couples);
                f32::dispatch(LstmStep { step, panels, next, c: extra, peepholes, couples });
            }
            (Layer::Gru, None) => {
                let step = Step { projected, ..step };
                f32::dispatch(GruGates { step, sums: complete, panels, next });
            }
            (Layer::Gru, Some(candidate)) => {
                let (z, reset) = extra.split_at_mut(next.len());
                f32::dispatch(ResetStep { step, panels, z, reset });
                let panels = &candidate.panels;
                let late = panels.width();
                let count = projected.data.len() / self.width();
                let mut buffer = pool.buffer(count * late * 4);
                let sums: &mut [f32] = bytemuck::cast_slice_mut(buffer.as_bytes_mut());
                let read = Rows { data: &*reset, stride: h.stride };
                self.recur(sums, 1, read, rows, pool);
                add_rows(sums, late, projected, width, rows);
                let step = Step { projected: Rows { data: sums, stride: late }, ..step };
                f32::dispatch(CandidateStep { step, panels, column: 0, z, reset, next });
                pool.recycle_buffer(buffer);
            }
        }
        pool.recycle_buffer(buffer);
    }
}

#[cfg(test)]
mod tests;
