//! `FusedAttention`, made by fusion: softmax(scale·Q·Kᵀ + mask)·V per head
//! (Vaswani et al., 2017, arXiv:1706.03762).
//!
//! Q, K and V are [batch, sequence, heads·size] as the projections leave them, and so is the
//! result: heads are read and written in place of a transpose. The mask is [batch, 1, 1, keys],
//! [1, 1, 1, keys], or with a row per query or per head.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::backward::Order;
use super::core::{Attention, Heads, Layout, Mask, Scores, Sizes, check_head_sizes};
use super::real::Real;
use crate::gradient::{gradient, sum_to};
use crate::normalization_gradient::place;
use crate::{
    ATTAR_DOMAIN, Backward, Fact, Flow, Gradient, Kernel, OpError, Operator, Reads, Run, Training,
    required,
};

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
        Ok(vec![attended(inputs, required(inputs, 0)?.dtype)?])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let heads = node.int_or("heads", 1)?.max(1) as usize;
        let scale = node.float_or("scale", 1.0)?;
        Ok(Box::new(move |run: &mut Run| match run.input(0)?.dtype() {
            DType::F64 => attend::<f64>(run, heads, scale),
            _ => attend::<f32>(run, heads, scale),
        }))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let heads = node.int_or("heads", 1)?.max(1) as usize;
        let scale = node.float_or("scale", 1.0)?;
        gradient(Reads::ALL_INPUTS, move |run: &mut Backward| flow_back(run, heads, scale))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], _: &[Fact]) -> Dim {
        attention_macs(inputs)
    }
}

/// The result: a row for each query, as wide as V.
pub(super) fn attended(inputs: &[Option<&Fact>], dtype: DType) -> Result<Fact, OpError> {
    let (q, v) = (required(inputs, 0)?, required(inputs, 2)?);
    let mut result = q.with_dtype(dtype);
    if let (Some(shape), Some(v)) = (&mut result.shape, &v.shape)
        && let (Some(width), Some(own)) = (shape.last_mut(), v.last())
    {
        width.clone_from(own);
    }
    Ok(result)
}

/// Q·Kᵀ and P·V: twice batch · queries · keys · hidden.
pub(super) fn attention_macs(inputs: &[Option<&Fact>]) -> Dim {
    let (Some(Some(q)), Some(Some(k))) = (inputs.first(), inputs.get(1)) else {
        return Dim::Unknown;
    };
    let keys = k.shape.as_ref().and_then(|shape| shape.get(1).cloned());
    &(&q.element_count() * &keys.unwrap_or(Dim::Unknown)) * &Dim::Known(2)
}

/// Sizes, once the shapes of queries, keys and values fit together. Values may be of another width.
pub(super) fn sizes_of(
    q: &[usize],
    k: &[usize],
    v: &[usize],
    heads: usize,
) -> Result<Sizes, OpError> {
    let error = || OpError::shapes(q, k);
    let (&[batch, queries, hidden], &[batch_k, keys, hidden_k]) = (q, k) else {
        return Err(error());
    };
    let fits = batch == batch_k && hidden == hidden_k && hidden % heads == 0;
    let &[batch_v, keys_v, hidden_v] = v else { return Err(error()) };
    if !fits || [batch_v, keys_v] != [batch, keys] || hidden_v % heads != 0 {
        return Err(OpError::shapes(k, v));
    }
    let (head_size, value_size) = (hidden / heads, hidden_v / heads);
    check_head_sizes([head_size, value_size])?;
    Ok(Sizes { batch, heads, kv_heads: heads, queries, keys, head_size, value_size })
}

/// Attention over tensors, their shapes checked.
fn attention<'a, T: Real>(
    [q, k, v]: [&'a Tensor; 3],
    mask: Option<&'a Tensor>,
    sizes: &Sizes,
    scale: f32,
) -> Result<Attention<'a, T>, OpError> {
    let (heads, size) = (sizes.heads, sizes.head_size);
    let mask = match mask {
        Some(mask) if T::views(mask.dtype()) => {
            Some(Mask::new(mask.slice::<T>(), mask.shape(), sizes)?)
        }
        Some(mask) => return Err(OpError::DType { index: 3, found: mask.dtype() }),
        None => None,
    };
    Ok(Attention {
        query: Heads::packed(q.slice(), sizes.queries, heads, size),
        key: Heads::packed(k.slice(), sizes.keys, heads, size),
        value: Heads::packed(v.slice(), sizes.keys, heads, sizes.value_size),
        scores: Scores { mask, ..Scores::scaled(scale) },
        layout: Layout::packed(sizes),
        sizes: sizes.clone(),
    })
}

fn attend<T: Real>(run: &mut Run, heads: usize, scale: f32) -> Result<Vec<Tensor>, OpError> {
    let (q, k, v) = (run.typed::<T>(0)?, run.typed::<T>(1)?, run.typed::<T>(2)?);
    let sizes = sizes_of(q.shape(), k.shape(), v.shape(), heads)?;
    let y_shape = [sizes.batch, sizes.queries, heads * sizes.value_size];
    let mut y = run.pool.tensor(T::DTYPE, &y_shape);
    let attention = attention::<T>([q, k, v], run.optional(3), &sizes, scale)?;
    attention.run(y.slice_mut(), None, run.pool);
    Ok(vec![y])
}

fn flow_back(run: &mut Backward, heads: usize, scale: f32) -> Result<Vec<Option<Flow>>, OpError> {
    let dy = run.take_gradient();
    let sizes = sizes_of(run.shape(0), run.shape(1), run.shape(2), heads)?;
    let operands = [run.input(0)?, run.input(1)?, run.input(2)?];
    let mask = run.inputs.get(3).and_then(Option::as_ref);
    let attention = attention::<f32>(operands, mask, &sizes, scale)?;
    let rows = Heads::packed(dy.slice(), sizes.queries, heads, sizes.value_size);
    let gradients = attention.flow_back(rows, [Order::Packed; 3], None, run.wants(3), run.pool);
    let mut flows = vec![None; 4];
    place(&mut flows, Some(0), gradients.query, run);
    place(&mut flows, Some(1), gradients.key, run);
    place(&mut flows, Some(2), gradients.value, run);
    if let Some(scores) = gradients.scores {
        flows[3] = Some(sum_to(scores, run.shape(3), run.pool).into());
    }
    run.pool.recycle(dy);
    Ok(flows)
}
