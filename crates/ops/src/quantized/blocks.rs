//! `MatMulNBits` of ONNX Runtime: y = a·B′ + bias, B in 2, 4 or 8 bits with a scale (and a zero
//! point) for each block of a column: w = (q − zero) · scale.
//!
//! A constant B becomes f32 when the model is made ready, packed for the kernel: the file stays
//! small and the product is as fast as that of `MatMul`, in f32. `accuracy_level` asks for less and is
//! met by more.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::kernels::gemm::{self, PackedB, Right, Strided};
use crate::matmul::Sizes;
use crate::microsoft::vector;
use crate::{Fact, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Run, required};

pub(crate) struct MatMulNBits;

/// The layout of B: `columns` of `depth` values.
#[derive(Clone, Copy)]
struct Layout {
    depth: usize,
    columns: usize,
    bits: usize,
    block: usize,
}

impl Layout {
    fn new(node: &Node) -> Result<Self, OpError> {
        let size = |name: &str, default: i64| {
            let value = node.int_or(name, default)?;
            let size = usize::try_from(value).ok().filter(|size| (1..=1 << 31).contains(size));
            size.ok_or_else(|| OpError::value(name, value, "1 or more"))
        };
        let layout = Self {
            depth: size("K", 0)?,
            columns: size("N", 0)?,
            bits: size("bits", 4)?,
            block: size("block_size", 0)?,
        };
        if !matches!(layout.bits, 2 | 4 | 8) {
            return Err(OpError::value("bits", layout.bits, "2, 4 or 8"));
        }
        if layout.block < 16 || !layout.block.is_power_of_two() {
            return Err(OpError::value("block_size", layout.block, "a power of 2 from 16 on"));
        }
        if node.int_or("weight_prepacked", 0)? != 0 {
            return Err(OpError::Unsupported { what: "weight_prepacked".into() });
        }
        Ok(layout)
    }

    fn blocks(self) -> usize {
        self.depth.div_ceil(self.block)
    }

    /// Bytes of a block.
    fn block_bytes(self) -> usize {
        self.block * self.bits / 8
    }

    /// Value `index` of packed ones.
    fn level(self, bytes: &[u8], index: usize) -> u8 {
        let bit = index * self.bits;
        let mask = ((1_u32 << self.bits) - 1) as u8;
        (bytes[bit / 8] >> (bit % 8)) & mask
    }

    /// B as f32, one column after the other.
    fn dequantized(self, run: &Operands) -> Result<Vec<f32>, OpError> {
        let (blocks, block_bytes) = (self.blocks(), self.block_bytes());
        let counts = self.columns.checked_mul(blocks);
        let expected = counts.and_then(|count| count.checked_mul(block_bytes));
        let Some(block_count) = counts.filter(|_| expected == Some(run.b.element_count())) else {
            return Err(OpError::shapes(run.b.shape(), &[self.columns, blocks, block_bytes]));
        };
        let scales = run.scales.values::<f32>();
        if scales.len() != block_count {
            return Err(OpError::shapes(run.scales.shape(), &[self.columns, blocks]));
        }
        let zeros = self.zero_points(run)?;
        let bytes = run.b.bytes();
        let mut values = vec![0.0; self.columns * self.depth];
        for (column, values) in values.chunks_exact_mut(self.depth).enumerate() {
            for (index, values) in values.chunks_mut(self.block).enumerate() {
                let block = column * blocks + index;
                let packed = &bytes[block * block_bytes..][..block_bytes];
                let (scale, zero) = (scales[block], zeros[block]);
                for (i, value) in values.iter_mut().enumerate() {
                    *value = (f32::from(self.level(packed, i)) - zero) * scale;
                }
            }
        }
        Ok(values)
    }

    /// One zero point per block: packed like B's values, or in floats; the middle if none is given.
    fn zero_points(self, run: &Operands) -> Result<Vec<f32>, OpError> {
        let blocks = self.blocks();
        let count = self.columns * blocks;
        let Some(zeros) = run.zero_points else {
            return Ok(vec![f32::from(1_u8 << (self.bits - 1)); count]);
        };
        let row_bytes = (blocks * self.bits).div_ceil(8);
        match zeros.dtype() {
            DType::U8 if zeros.element_count() == self.columns * row_bytes => {
                let bytes = zeros.bytes();
                let at = |i: usize| {
                    let row = &bytes[i / blocks * row_bytes..][..row_bytes];
                    f32::from(self.level(row, i % blocks))
                };
                Ok((0..count).map(at).collect())
            }
            DType::F32 if zeros.element_count() == count => Ok(zeros.values::<f32>().into_owned()),
            DType::U8 | DType::F32 => {
                Err(OpError::shapes(zeros.shape(), &[self.columns, row_bytes]))
            }
            found => Err(OpError::DType { index: 3, found }),
        }
    }
}

/// What B is made of.
struct Operands<'a> {
    b: &'a Tensor,
    scales: &'a Tensor,
    zero_points: Option<&'a Tensor>,
}

impl<'a> Operands<'a> {
    fn new(
        b: &'a Tensor,
        scales: &'a Tensor,
        zero_points: Option<&'a Tensor>,
    ) -> Result<Self, OpError> {
        for (index, tensor, dtype) in [(1, b, DType::U8), (2, scales, DType::F32)] {
            if tensor.dtype() != dtype {
                return Err(OpError::DType { index, found: tensor.dtype() });
            }
        }
        Ok(Self { b, scales, zero_points })
    }
}

/// B packed for the kernel.
fn packed(layout: Layout, operands: &Operands) -> Result<PackedB, OpError> {
    let values = layout.dequantized(operands)?;
    Ok(PackedB::new(Strided::rows(&values, layout.columns, layout.depth).transposed()))
}

impl Operator for MatMulNBits {
    fn op_type(&self) -> &'static str {
        "MatMulNBits"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=6
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let a = required(inputs, 0)?;
        let mut y = a.with_dtype(a.dtype);
        if let Some(last) = y.shape.as_mut().and_then(|shape| shape.last_mut()) {
            *last = Layout::new(node)?.columns.into();
        }
        Ok(vec![y])
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let layout = Layout::new(node)?;
        if node.input(4).is_some() {
            return Err(OpError::Unsupported { what: "MatMulNBits with g_idx".into() });
        }
        let constant = |index: usize| constants.get(index).copied().flatten();
        let is_computed = node.input(3).is_some() && constant(3).is_none();
        let right = match (constant(1), constant(2)) {
            (Some(b), Some(scales)) if !is_computed => {
                Some(packed(layout, &Operands::new(b, scales, constant(3))?)?)
            }
            _ => None,
        };
        Ok(Box::new(move |run: &mut Run| multiply(run, layout, right.as_ref())))
    }

    fn macs(&self, node: &Node, _: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        let depth = Layout::new(node).map_or(Dim::Unknown, |layout| layout.depth.into());
        outputs.first().map_or(Dim::Unknown, |y| &y.element_count() * &depth)
    }

    fn widens_half(&self) -> bool {
        true
    }
}

fn multiply(
    run: &mut Run,
    layout: Layout,
    right: Option<&PackedB>,
) -> Result<Vec<Tensor>, OpError> {
    let a = run.typed::<f32>(0)?;
    let sizes = Sizes::new(a.shape(), &[layout.depth, layout.columns])?;
    let bias = vector(run, 5, layout.columns)?;
    let made;
    let right = if let Some(right) = right {
        right
    } else {
        let operands = Operands::new(run.input(1)?, run.input(2)?, run.optional(3))?;
        made = packed(layout, &operands)?;
        &made
    };
    let rows = sizes.batch.iter().product::<usize>() * sizes.m;
    let mut y = run.pool.tensor(DType::F32, &sizes.output);
    let a = Strided::rows(a.slice::<f32>(), rows, sizes.k);
    gemm::matmul(y.slice_mut::<f32>(), a, Right::Packed(right), bias);
    Ok(vec![y])
}
