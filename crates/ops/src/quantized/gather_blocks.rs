//! `GatherBlockQuantized` of ONNX Runtime: rows picked from a table in 4 or 8 bits, with a scale
//! (and a zero point) for each block along an axis, as f32.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::fact::resolve_axis;
use crate::kernels::for_rows;
use crate::{Fact, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Run, required};

pub(crate) struct GatherBlockQuantized;

struct Settings {
    gather_axis: i64,
    quantize_axis: i64,
    block: usize,
    bits: usize,
}

impl Settings {
    fn new(node: &Node) -> Result<Self, OpError> {
        let block = node.int_or("block_size", 128)?;
        let bits = node.int_or("bits", 4)?;
        if !matches!(bits, 2 | 4 | 8) {
            return Err(OpError::value("bits", bits, "2, 4 or 8"));
        }
        Ok(Self {
            gather_axis: node.int_or("gather_axis", 0)?,
            quantize_axis: node.int_or("quantize_axis", 1)?,
            block: usize::try_from(block)
                .ok()
                .filter(|&size| size >= 16)
                .ok_or_else(|| OpError::value("block_size", block, "16 or more"))?,
            bits: bits as usize,
        })
    }

    /// Values that one element of the table holds: bytes hold several along the last axis.
    fn values_per_element(&self, dtype: DType) -> usize {
        if dtype == DType::U8 { 8 / self.bits } else { 1 }
    }
}

impl Operator for GatherBlockQuantized {
    fn op_type(&self) -> &'static str {
        "GatherBlockQuantized"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=4
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let settings = Settings::new(node)?;
        let (data, indices) = (required(inputs, 0)?, required(inputs, 1)?);
        let dtype = required(inputs, 2)?.dtype;
        let (Some(shape), Some(picked)) = (&data.shape, &indices.shape) else {
            return Ok(vec![Fact::unranked(dtype)]);
        };
        let axis = resolve_axis(settings.gather_axis, shape.len())
            .ok_or_else(|| OpError::value("gather_axis", settings.gather_axis, "an axis"))?;
        let mut dims = shape.clone();
        if let Some(last) = dims.last_mut() {
            *last = &*last * &Dim::from(settings.values_per_element(data.dtype));
        }
        dims.splice(axis..=axis, picked.iter().cloned());
        Ok(vec![Fact::new(dtype, dims)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let settings = Settings::new(node)?;
        Ok(Box::new(move |run: &mut Run| gather(run, &settings)))
    }

    fn widens_half(&self) -> bool {
        true
    }

    fn reads_in_place(&self, input: usize) -> bool {
        input == 0
    }
}

/// Packed integers read one by one: low bits first, each row of bytes a row of values.
struct Levels<'a> {
    bytes: &'a [u8],
    bits: usize,
    is_signed: bool,
}

impl<'a> Levels<'a> {
    fn new(tensor: &'a Tensor, index: usize, bits: usize) -> Result<Self, OpError> {
        let (bits, is_signed) = match tensor.dtype() {
            DType::U8 => (bits, false),
            DType::U4 => (4, false),
            DType::I4 => (4, true),
            found => return Err(OpError::DType { index, found }),
        };
        Ok(Self { bytes: tensor.bytes(), bits, is_signed })
    }

    fn at(&self, index: usize) -> i32 {
        let bit = index * self.bits;
        let mask = ((1_u32 << self.bits) - 1) as u8;
        let level = i32::from((self.bytes[bit / 8] >> (bit % 8)) & mask);
        let half = 1 << (self.bits - 1);
        if self.is_signed && level >= half { level - 2 * half } else { level }
    }
}

impl Levels<'_> {
    /// values = (levels − zero)·scale, levels from `first` on.
    fn scaled(&self, values: &mut [f32], first: usize, zero: i32, scale: f32) {
        let bit = first * self.bits;
        let per_byte = 8 / self.bits;
        if !bit.is_multiple_of(8) || !values.len().is_multiple_of(per_byte) {
            let all = values.iter_mut().enumerate();
            return all.for_each(|(i, y)| *y = (self.at(first + i) - zero) as f32 * scale);
        }
        // What each level stands for is computed once.
        let mut table = [0.0_f32; 256];
        let table = &mut table[..1 << self.bits];
        let half = 1 << (self.bits - 1);
        for (level, value) in (0_i32..).zip(&mut *table) {
            let level = if self.is_signed && level >= half { level - 2 * half } else { level };
            *value = (level - zero) as f32 * scale;
        }
        let bytes = &self.bytes[bit / 8..][..values.len() / per_byte];
        let mask = table.len() - 1;
        for (values, &byte) in values.chunks_exact_mut(per_byte).zip(bytes) {
            for (i, value) in values.iter_mut().enumerate() {
                *value = table[usize::from(byte) >> (i * self.bits) & mask];
            }
        }
    }
}

fn gather(run: &mut Run, settings: &Settings) -> Result<Vec<Tensor>, OpError> {
    let (data, indices, scales) = (run.input(0)?, run.input(1)?, run.typed::<f32>(2)?);
    let levels = Levels::new(data, 0, settings.bits)?;
    let axis_of = |name: &str, axis: i64| {
        resolve_axis(axis, data.rank())
            .ok_or_else(|| OpError::value(name, axis, format!("below {}", data.rank())))
    };
    let gather_axis = axis_of("gather_axis", settings.gather_axis)?;
    let quantize_axis = axis_of("quantize_axis", settings.quantize_axis)?;
    // The table in values, and its blocks.
    let mut shape = data.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last *= settings.values_per_element(data.dtype());
    }
    let mut block_shape = shape.clone();
    block_shape[quantize_axis] = shape[quantize_axis].div_ceil(settings.block);
    if scales.shape() != block_shape {
        return Err(OpError::shapes(scales.shape(), &block_shape));
    }
    let zeros = run.optional(3).map(|zeros| Levels::new(zeros, 3, settings.bits)).transpose()?;
    if zeros.is_some() {
        check_zero_points(run.input(3)?, &block_shape, settings)?;
    }
    let middle = if data.dtype() == DType::U8 { 1 << (settings.bits - 1) } else { 0 };
    let rows = shape[gather_axis];
    let picked = indices.to_i64().ok_or(OpError::DType { index: 1, found: indices.dtype() })?;
    let picked: Vec<usize> = picked
        .into_iter()
        .map(|index| {
            resolve_axis(index, rows)
                .ok_or_else(|| OpError::value("an index", index, format!("below {rows}")))
        })
        .collect::<Result<_, _>>()?;
    let mut y_shape = shape.clone();
    y_shape.splice(gather_axis..=gather_axis, indices.shape().iter().copied());
    let mut y = run.pool.tensor(DType::F32, &y_shape);
    let inner: usize = shape[gather_axis + 1..].iter().product();
    let block_inner: usize = shape[quantize_axis + 1..].iter().product();
    let scales = scales.slice::<f32>();
    let size = shape[quantize_axis];
    if gather_axis == 0
        && quantize_axis + 1 == shape.len()
        && (inner * levels.bits).is_multiple_of(8)
    {
        let blocks = Blocks { size, block: settings.block, middle, scales };
        for_rows(y.slice_mut::<f32>(), inner.max(1), |first, y| {
            let rows = y.chunks_exact_mut(inner.max(1)).zip(&picked[first..]);
            rows.for_each(|(values, &row)| {
                blocks.row(values, row * inner, &levels, zeros.as_ref());
            });
        });
        return Ok(vec![y]);
    }
    for (row, values) in y.slice_mut::<f32>().chunks_exact_mut(inner.max(1)).enumerate() {
        let outer = row / picked.len();
        let start = (outer * rows + picked[row % picked.len()]) * inner;
        for (i, value) in values.iter_mut().enumerate() {
            let at = start + i;
            let along = at / block_inner % size;
            let block = (at / (block_inner * size) * block_shape[quantize_axis]
                + along / settings.block)
                * block_inner
                + at % block_inner;
            // Zero points in bytes are packed like the table, row by row.
            let zero = zeros.as_ref().map_or(middle, |zeros| zeros.at(block));
            *value = (levels.at(at) - zero) as f32 * scales[block];
        }
    }
    Ok(vec![y])
}

/// Blocks along the last axis.
struct Blocks<'a> {
    /// Of the last axis.
    size: usize,
    block: usize,
    /// The zero point where none is given.
    middle: i32,
    scales: &'a [f32],
}

impl Blocks<'_> {
    /// Fills whole rows of values, of which the first is value `start` of the table: the same sums as
    /// value by value.
    fn row(&self, values: &mut [f32], start: usize, levels: &Levels, zeros: Option<&Levels>) {
        let of_row = self.size.div_ceil(self.block);
        for (line, values) in values.chunks_exact_mut(self.size).enumerate() {
            let (first, begin) = (start / self.size + line, start + line * self.size);
            for (index, values) in values.chunks_mut(self.block).enumerate() {
                let block = first * of_row + index;
                let zero = zeros.map_or(self.middle, |zeros| zeros.at(block));
                let from = begin + index * self.block;
                levels.scaled(values, from, zero, self.scales[block]);
            }
        }
    }
}

/// Zero points have the shape of the scales, bytes holding several along the last axis.
fn check_zero_points(zeros: &Tensor, blocks: &[usize], settings: &Settings) -> Result<(), OpError> {
    let mut expected = blocks.to_vec();
    let packed = settings.values_per_element(zeros.dtype());
    if let Some(last) = expected.last_mut() {
        if *last % packed != 0 {
            let what = "an odd count of zero points in a row".into();
            return Err(OpError::Unsupported { what });
        }
        *last /= packed;
    }
    if zeros.shape() == expected {
        return Ok(());
    }
    Err(OpError::shapes(zeros.shape(), &expected))
}
