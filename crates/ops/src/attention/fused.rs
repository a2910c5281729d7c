//! `FusedAttention`, made by fusion: softmax(scale·Q·Kᵀ + mask)·V per head
//! (Vaswani et al., 2017, arXiv:1706.03762).
//!
//! Q, K and V are [batch, sequence, heads·size] as the projections leave them, and so is the
//! result: heads are read and written in place of a transpose. The mask is [batch, 1, 1, keys],
//! [1, 1, 1, keys], or with a row per query or per head.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::core::{Attention, Heads, Layout, Scores, Sizes, check_head_sizes, f32_mask};
use crate::{ATTAR_DOMAIN, Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct FusedAttention;

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
    let size = hidden / heads;
    check_head_sizes([size, size])?;
    let sizes =
        Sizes { batch, heads, kv_heads: heads, queries, keys, head_size: size, value_size: size };
    let mask = run.optional(3).map(|mask| f32_mask(mask, 3, &sizes)).transpose()?;
    let mut y = run.pool.tensor(DType::F32, q.shape());
    let attention = Attention {
        query: Heads::packed(q.slice(), queries, heads, size),
        key: Heads::packed(k.slice(), keys, heads, size),
        value: Heads::packed(v.slice(), keys, heads, size),
        scores: Scores { mask, ..Scores::scaled(scale) },
        layout: Layout::packed(&sizes),
        sizes,
    };
    attention.run(y.slice_mut(), None, run.pool);
    Ok(vec![y])
}
