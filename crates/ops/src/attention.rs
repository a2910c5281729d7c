//! `FusedAttention`, made by fusion: softmax(scale·Q·Kᵀ + mask)·V per head
//! (Vaswani et al., 2017, arXiv:1706.03762).
//!
//! Q, K and V are [batch, sequence, heads·size] as the projections leave them, and so is the
//! result: heads are read and written in place of a transpose. The mask is [batch, 1, 1, keys],
//! [1, 1, 1, keys], or with a row per query or per head.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};
use rayon::prelude::*;

use crate::kernels::gemm::{self, Right, Strided};
use crate::kernels::softmax;
use crate::{ATTAR_DOMAIN, Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct FusedAttention;

struct Sizes {
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    head_size: usize,
}

impl Operator for FusedAttention {
    fn op_type(&self) -> &'static str {
        "FusedAttention"
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=4
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![required(inputs, 0)?.with_dtype(DType::F32)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let heads = node.int_or("heads", 1)?.max(1) as usize;
        let scale = node.float_or("scale", 1.0)?;
        Ok(Box::new(move |run: &mut Run| attend(run, heads, scale)))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], _: &[Fact]) -> Dim {
        // Q·Kᵀ and P·V: twice batch · queries · keys · hidden.
        let (Some(Some(q)), Some(Some(k))) = (inputs.first(), inputs.get(1)) else {
            return Dim::Unknown;
        };
        let keys = k.shape.as_ref().and_then(|shape| shape.get(1).cloned());
        &(&q.element_count() * &keys.unwrap_or(Dim::Unknown)) * &Dim::Known(2)
    }
}

fn attend(run: &mut Run, heads: usize, scale: f32) -> Result<Vec<Tensor>, OpError> {
    let (q, k, v) = (run.typed::<f32>(0)?, run.typed::<f32>(1)?, run.typed::<f32>(2)?);
    let error = || OpError::shapes(q.shape(), k.shape());
    let (&[batch, queries, hidden], &[batch_k, keys, hidden_k]) = (q.shape(), k.shape()) else {
        return Err(error());
    };
    let fits = batch == batch_k && hidden == hidden_k && hidden % heads == 0;
    if !fits || k.shape() != v.shape() {
        return Err(error());
    }
    let sizes = Sizes { batch, heads, queries, keys, head_size: hidden / heads };
    let mask = run.optional(3).map(|mask| Mask::new(mask, &sizes)).transpose()?;
    let mut y = run.pool.tensor(DType::F32, q.shape());
    if y.element_count() == 0 {
        return Ok(vec![y]);
    }
    let [q, k, v] = [q, k, v].map(Tensor::slice::<f32>);
    // Per head: scores [queries, keys] and the result [queries, head size].
    let scratch_size = queries * (keys + sizes.head_size);
    let per_text = |(text, y): (usize, &mut [f32])| {
        let mut scratch = run.pool.buffer(scratch_size * 4);
        let values: &mut [f32] = bytemuck::cast_slice_mut(scratch.as_bytes_mut());
        for head in 0..sizes.heads {
            attend_head(y, [q, k, v], mask.as_ref(), &sizes, [text, head], scale, values);
        }
        run.pool.recycle_buffer(scratch);
    };
    let text_size = queries * hidden;
    if rayon::current_num_threads() > 1 && sizes.batch > 1 {
        y.slice_mut::<f32>().par_chunks_mut(text_size).enumerate().for_each(per_text);
    } else if rayon::current_num_threads() > 1 {
        attend_heads_apart(y.slice_mut::<f32>(), [q, k, v], mask.as_ref(), &sizes, scale);
    } else {
        y.slice_mut::<f32>().chunks_mut(text_size).enumerate().for_each(per_text);
    }
    Ok(vec![y])
}

/// One text on several threads: each head into its own block, put together afterwards.
fn attend_heads_apart(
    y: &mut [f32],
    qkv: [&[f32]; 3],
    mask: Option<&Mask>,
    sizes: &Sizes,
    scale: f32,
) {
    let (size, hidden) = (sizes.head_size, sizes.heads * sizes.head_size);
    let blocks: Vec<Vec<f32>> = (0..sizes.heads)
        .into_par_iter()
        .map(|head| {
            let mut scratch = vec![0.0; sizes.queries * (sizes.keys + size)];
            head_result(qkv, mask, sizes, [0, head], scale, &mut scratch);
            scratch.split_off(sizes.queries * sizes.keys)
        })
        .collect();
    for (head, block) in blocks.iter().enumerate() {
        for (row, values) in block.chunks_exact(size).enumerate() {
            y[row * hidden + head * size..][..size].copy_from_slice(values);
        }
    }
}

fn attend_head(
    y: &mut [f32],
    qkv: [&[f32]; 3],
    mask: Option<&Mask>,
    sizes: &Sizes,
    at: [usize; 2],
    scale: f32,
    scratch: &mut [f32],
) {
    let (size, hidden) = (sizes.head_size, sizes.heads * sizes.head_size);
    head_result(qkv, mask, sizes, at, scale, scratch);
    let result = &scratch[sizes.queries * sizes.keys..];
    for (row, values) in result.chunks_exact(size).enumerate() {
        y[row * hidden + at[1] * size..][..size].copy_from_slice(values);
    }
}

/// Fills scratch with the probabilities and, behind them, the head's result.
fn head_result(
    [q, k, v]: [&[f32]; 3],
    mask: Option<&Mask>,
    sizes: &Sizes,
    [text, head]: [usize; 2],
    scale: f32,
    scratch: &mut [f32],
) {
    let hidden = sizes.heads * sizes.head_size;
    let start = |rows: usize| text * rows * hidden + head * sizes.head_size;
    let (q_start, k_start) = (start(sizes.queries), start(sizes.keys));
    let strided =
        |data, rows| Strided { data, size: [rows, sizes.head_size], strides: [hidden, 1] };
    let (scores, result) = scratch.split_at_mut(sizes.queries * sizes.keys);
    let keys = strided(&k[k_start..], sizes.keys).transposed();
    gemm::matmul(scores, strided(&q[q_start..], sizes.queries), Right::Strided(keys), None);
    match mask {
        Some(mask) if mask.is_per_query() => {
            for (row, scores) in scores.chunks_exact_mut(sizes.keys).enumerate() {
                let mask = mask.row(text, head, row);
                softmax::masked_softmax_rows(scores, sizes.keys, scale, Some(mask));
            }
        }
        _ => {
            let mask = mask.map(|mask| mask.row(text, head, 0));
            softmax::masked_softmax_rows(scores, sizes.keys, scale, mask);
        }
    }
    let probabilities = Strided::rows(scores, sizes.queries, sizes.keys);
    let values = strided(&v[k_start..], sizes.keys);
    gemm::matmul(result, probabilities, Right::Strided(values), None);
}

/// A mask to add to scores, with the strides by which it repeats.
struct Mask<'a> {
    values: &'a [f32],
    strides: [usize; 3],
    keys: usize,
}

impl<'a> Mask<'a> {
    fn new(mask: &'a Tensor, sizes: &Sizes) -> Result<Self, OpError> {
        if mask.dtype() != DType::F32 {
            return Err(OpError::DType { index: 3, found: mask.dtype() });
        }
        let target = [sizes.batch, sizes.heads, sizes.queries, sizes.keys];
        let fits = mask.rank() == 4
            && mask.shape()[3] == sizes.keys
            && mask.shape().iter().zip(target).all(|(&size, full)| size == full || size == 1);
        if !fits {
            return Err(OpError::shapes(mask.shape(), &target));
        }
        let strides = crate::broadcast::broadcast_strides(mask.shape(), &target);
        let strides = [strides[0], strides[1], strides[2]];
        Ok(Self { values: mask.slice::<f32>(), strides, keys: sizes.keys })
    }

    fn is_per_query(&self) -> bool {
        self.strides[2] != 0
    }

    fn row(&self, text: usize, head: usize, query: usize) -> &'a [f32] {
        let start = text * self.strides[0] + head * self.strides[1] + query * self.strides[2];
        &self.values[start..start + self.keys]
    }
}
