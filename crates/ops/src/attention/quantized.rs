//! `QuantizedAttention`, made by fusion: softmax(scale·Q·Kᵀ + mask)·V per head over u8 operands
//! (Vaswani et al., 2017, arXiv:1706.03762).
//!
//! Q, K and V are u8 of [batch, sequence, heads·size], as the projections leave them, and so is
//! the result, in f32 or rounded to u8 by one scale (`y_scale`) or one per channel (`y_scales`). The mask is as that of `FusedAttention`. Probabilities that
//! the graph rounds to u8 have its scale; others are rounded to 16 bits, less than what f32 sums of
//! products are off. Both products are exact integers and every f32 operation rounds once, so that
//! every CPU gives the same bits.

use attar_graph::{AttributeValue, Dim, Node};
use attar_tensor::{DType, Tensor};
use rayon::prelude::*;

use super::core::{Mask, Sizes};
use super::fused::{attended, attention_macs, sizes_of};
use crate::kernels::attention8::{Addends, HEAD_SIZE_MAX, KEYS_MAX, Path, Rows8, Shape, Target};
use crate::{ATTAR_DOMAIN, Fact, Kernel, OpError, Operator, Pool, Run};

pub(crate) struct QuantizedAttention;

impl Operator for QuantizedAttention {
    fn op_type(&self) -> &'static str {
        "QuantizedAttention"
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=4
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let dtype = if is_rounded(node) { DType::U8 } else { DType::F32 };
        Ok(vec![attended(inputs, dtype)?])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let kernel = QuantizedKernel::new(node)?;
        Ok(Box::new(move |run: &mut Run| kernel.run(run)))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], _: &[Fact]) -> Dim {
        attention_macs(inputs)
    }
}

fn is_rounded(node: &Node) -> bool {
    ["y_scale", "y_scales"].iter().any(|name| node.attribute(name).is_some())
}

/// Scales and zero points: real = (level − zero) · scale.
struct QuantizedKernel {
    heads: usize,
    scale: f32,
    /// Of Q, K and V.
    scales: [f32; 3],
    zero_points: [u8; 3],
    /// Of probabilities that are u8, whose zero point is 0.
    probability_scale: Option<f32>,
    /// Of the result, where it is rounded: one scale, or one per channel.
    result: Option<(Vec<f32>, u8)>,
}

impl QuantizedKernel {
    fn new(node: &Node) -> Result<Self, OpError> {
        let mut scales = [0.0; 3];
        let mut zero_points = [0; 3];
        for (index, name) in ["q", "k", "v"].into_iter().enumerate() {
            scales[index] = node.float_or(&format!("{name}_scale"), 1.0)?;
            zero_points[index] = node.int_or(&format!("{name}_zero_point"), 0)? as u8;
        }
        let result = if is_rounded(node) {
            let scales = match node.attribute("y_scales") {
                Some(AttributeValue::Floats(scales)) => scales.clone(),
                _ => vec![node.float_or("y_scale", 1.0)?],
            };
            Some((scales, node.int_or("y_zero_point", 0)? as u8))
        } else {
            None
        };
        Ok(Self {
            heads: node.int_or("heads", 1)?.max(1) as usize,
            scale: node.float_or("scale", 1.0)?,
            scales,
            zero_points,
            probability_scale: match node.attribute("p_scale") {
                Some(_) => Some(node.float_or("p_scale", 1.0)?),
                None => None,
            },
            result,
        })
    }

    fn run(&self, run: &mut Run) -> Result<Vec<Tensor>, OpError> {
        let (q, k, v) = (run.typed::<u8>(0)?, run.typed::<u8>(1)?, run.typed::<u8>(2)?);
        let sizes = sizes_of(q.shape(), k.shape(), v.shape(), self.heads)?;
        let head_size = sizes.head_size.max(sizes.value_size);
        if head_size > HEAD_SIZE_MAX {
            let allowed = format!("up to {HEAD_SIZE_MAX}");
            return Err(OpError::value("the size of a head", head_size, allowed));
        }
        if sizes.keys > KEYS_MAX {
            let allowed = format!("up to {KEYS_MAX}");
            return Err(OpError::value("the number of keys", sizes.keys, allowed));
        }
        let mask = match run.optional(3) {
            Some(mask) if mask.dtype() == DType::F32 => {
                Some(Mask::new(mask.slice::<f32>(), mask.shape(), &sizes)?)
            }
            Some(mask) => return Err(OpError::DType { index: 3, found: mask.dtype() }),
            None => None,
        };
        let value_size = sizes.value_size;
        let y_shape = [sizes.batch, sizes.queries, self.heads * value_size];
        let texts = Texts {
            kernel: self,
            operands: [q.slice(), k.slice(), v.slice()],
            mask,
            shape: Shape {
                path: Path::best(),
                queries: sizes.queries,
                keys: sizes.keys,
                head_size: sizes.head_size,
                value_size: sizes.value_size,
                score_scale: self.scale * self.scales[0] * self.scales[1],
                probability_scale: self.probability_scale,
                value_scale: self.scales[2],
            },
            sizes,
        };
        let dtype = if self.result.is_some() { DType::U8 } else { DType::F32 };
        let mut y = run.pool.tensor(dtype, &y_shape);
        match &self.result {
            None => texts.run(y.slice_mut::<f32>(), run.pool, |data, stride, _| Target::F32 {
                data,
                stride,
            }),
            Some((scales, zero_point)) => {
                if scales.len() != 1 && scales.len() != self.heads * value_size {
                    return Err(OpError::shapes(&[self.heads, value_size], &[scales.len()]));
                }
                texts.run(y.slice_mut::<u8>(), run.pool, |data, stride, scales| Target::U8 {
                    data,
                    stride,
                    scales,
                    zero_point: *zero_point,
                });
            }
        }
        Ok(vec![y])
    }
}

/// One call's operands.
struct Texts<'a> {
    kernel: &'a QuantizedKernel,
    operands: [&'a [u8]; 3],
    mask: Option<Mask<'a, f32>>,
    shape: Shape,
    sizes: Sizes,
}

impl Texts<'_> {
    /// Fills y, [batch, queries, heads·size]. Threads take texts, or the heads of a single text.
    fn run<T: bytemuck::Pod + Send + Sync>(
        &self,
        y: &mut [T],
        pool: &Pool,
        target: impl for<'y> Fn(&'y mut [T], usize, &'y [f32]) -> Target<'y> + Sync,
    ) {
        let Sizes { heads, queries, value_size, .. } = self.sizes;
        let hidden = heads * value_size;
        let text_size = queries * hidden;
        if text_size == 0 {
            return;
        }
        let is_parallel = crate::threads::count() > 1;
        if is_parallel && self.sizes.batch == 1 {
            // Each head into a block of its own, put together afterwards.
            let block_size = queries * value_size;
            let mut blocks = pool.buffer(text_size * size_of::<T>());
            let data: &mut [T] = bytemuck::cast_slice_mut(blocks.as_bytes_mut());
            data.par_chunks_mut(block_size).enumerate().for_each(|(head, block)| {
                let mut scratch = pool.buffer(self.shape.scratch_size());
                self.head(
                    0,
                    head,
                    &mut target(block, value_size, self.scales(head)),
                    scratch.as_bytes_mut(),
                );
                pool.recycle_buffer(scratch);
            });
            for (head, block) in data.chunks_exact(block_size).enumerate() {
                for (row, values) in block.chunks_exact(value_size).enumerate() {
                    y[row * hidden + head * value_size..][..value_size].copy_from_slice(values);
                }
            }
            return pool.recycle_buffer(blocks);
        }
        let per_text = |(text, y): (usize, &mut [T])| {
            let mut scratch = pool.buffer(self.shape.scratch_size());
            for head in 0..heads {
                let mut target = target(&mut y[head * value_size..], hidden, self.scales(head));
                self.head(text, head, &mut target, scratch.as_bytes_mut());
            }
            pool.recycle_buffer(scratch);
        };
        if is_parallel {
            y.par_chunks_mut(text_size).enumerate().for_each(per_text);
        } else {
            y.chunks_mut(text_size).enumerate().for_each(per_text);
        }
    }

    /// Scales of the levels of a head's result: one, or one for each element of a row.
    fn scales(&self, head: usize) -> &[f32] {
        let size = self.sizes.value_size;
        match &self.kernel.result {
            Some((scales, _)) if scales.len() > 1 => &scales[head * size..][..size],
            Some((scales, _)) => scales,
            None => &[],
        }
    }

    fn head(&self, text: usize, head: usize, target: &mut Target, scratch: &mut [u8]) {
        let Sizes { heads, queries, keys, head_size, value_size, .. } = self.sizes;
        let of_operand = |index: usize, rows: usize, size: usize| {
            let start = text * rows * heads * size + head * size;
            let data = self.operands[index].get(start..).unwrap_or(&[]);
            let zero_point = self.kernel.zero_points[index];
            Rows8 { data, stride: heads * size, zero_point }
        };
        let operands = [
            of_operand(0, queries, head_size),
            of_operand(1, keys, head_size),
            of_operand(2, keys, value_size),
        ];
        let addends = self.mask.as_ref().map(|mask| {
            let (data, stride) = mask.of_head(text, head);
            Addends { data, stride }
        });
        self.shape.head(operands, addends, target, scratch);
    }
}
