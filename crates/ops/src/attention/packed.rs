//! `Attention` and `QAttention` of ONNX Runtime: the projections to queries, keys and values are one
//! product with weights [input, queries + keys + values], and attention over their result follows.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::backward::Order;
use super::channel_rules;
use super::core::{self, Heads, Layout, Scores, Sizes, check_head_sizes};
use super::padding::Padding;
use super::past::{Rows, joined, past_rows};
use crate::channels::{Channels, Tensors};
use crate::gradient::{gradient, sum_to};
use crate::kernels::gemm::{self, PackedB, Right, Strided};
use crate::kernels::quantize;
use crate::matmul::pack_right;
use crate::microsoft::vector;
use crate::quantized::{Integers, column_scales, left_zeros, product_rows, unsigned};
use crate::row_sums::sum_rows;
use crate::{
    Backward, Fact, Flow, Gradient, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Reads, Run,
    Training, required,
};

/// Inputs: x, weights, bias, mask, past, bias of the scores.
pub(crate) struct PackedAttention;

/// Inputs: x, weights, bias, scales of both, mask, zero points of both, past.
pub(crate) struct QAttention;

/// Attributes, and where the inputs stand that both forms have.
struct Settings {
    heads: usize,
    scale: Option<f32>,
    is_causal: bool,
    /// Sizes of queries, keys and values, where they are not a third each.
    hidden: Option<[usize; 3]>,
    padding: Padding,
    past: usize,
    gives_present: bool,
}

impl Settings {
    fn new(node: &Node, [mask, bias, past]: [usize; 3]) -> Result<Self, OpError> {
        for name in ["do_rotary", "past_present_share_buffer"] {
            if node.int_or(name, 0)? != 0 {
                return Err(OpError::Unsupported { what: format!("the attribute `{name}`") });
            }
        }
        let heads = node.int_or("num_heads", 0)?;
        let hidden = match node.ints("qkv_hidden_sizes")? {
            None | Some([]) => None,
            Some(&[q, k, v]) if q > 0 && k == q && v > 0 => {
                Some([q as usize, k as usize, v as usize])
            }
            Some(other) => {
                let expected = "three sizes, the first two equal";
                return Err(OpError::value("qkv_hidden_sizes", other, expected));
            }
        };
        let scale = node.float_or("scale", 0.0)?;
        Ok(Self {
            heads: usize::try_from(heads)
                .ok()
                .filter(|&heads| heads > 0)
                .ok_or_else(|| OpError::value("num_heads", heads, "above 0"))?,
            scale: (scale != 0.0).then_some(scale),
            is_causal: node.int_or("unidirectional", 0)? != 0,
            hidden,
            padding: Padding { mask, bias, filter: node.float_or("mask_filter_value", -10000.0)? },
            past,
            gives_present: node.outputs.get(1).is_some_and(|output| !output.is_empty()),
        })
    }

    /// Sizes of queries, keys and values in rows of `total`.
    fn hidden(&self, total: usize) -> Result<[usize; 3], OpError> {
        let hidden = self.hidden.unwrap_or([total / 3; 3]);
        let sum = hidden.iter().try_fold(0_usize, |sum, &size| sum.checked_add(size));
        let fits = sum == Some(total) && hidden.iter().all(|size| size % self.heads == 0);
        if fits {
            return Ok(hidden);
        }
        let expected = format!("queries, keys and values of {} heads", self.heads);
        Err(OpError::value("the columns of the weights", total, expected))
    }
}

fn infer(node: &Node, inputs: &[Option<&Fact>], past: usize) -> Result<Vec<Fact>, OpError> {
    let settings = Settings::new(node, [3, 5, 4])?;
    let (x, w) = (required(inputs, 0)?, required(inputs, 1)?);
    let dtype = if x.dtype.is_float() { x.dtype } else { DType::F32 };
    let (Some([batch, tokens, _]), Some([_, total])) = (x.shape.as_deref(), w.shape.as_deref())
    else {
        return Ok(vec![Fact::unranked(dtype); node.outputs.len().max(1)]);
    };
    let [_, key, value] = match settings.hidden {
        Some(hidden) => hidden.map(Dim::from),
        None => [const { Dim::Unknown }; 3].map(|_| total.floor_div(&Dim::Known(3))),
    };
    let y = Fact::new(dtype, vec![batch.clone(), tokens.clone(), value]);
    let heads = Dim::from(settings.heads);
    let past = match inputs.get(past).copied().flatten().map(|past| past.shape.as_deref()) {
        None => Dim::Known(0),
        Some(Some([_, _, _, rows, _])) => rows.clone(),
        Some(_) => Dim::Unknown,
    };
    let present =
        vec![Dim::Known(2), batch.clone(), heads.clone(), &past + tokens, key.floor_div(&heads)];
    let mut facts = vec![y, Fact::new(dtype, present)];
    facts.truncate(node.outputs.len());
    Ok(facts)
}

/// Products of the projections, of Q·Kᵀ and of P·V.
fn macs(node: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
    let shape = |index: usize| inputs.get(index)?.as_ref()?.shape.as_deref();
    let (Some([batch, tokens, size]), Some([_, total])) = (shape(0), shape(1)) else {
        return Dim::Unknown;
    };
    let present = outputs.get(1).and_then(|present| present.shape.as_deref());
    let keys = match present {
        Some([_, _, _, keys, _]) => keys,
        _ => tokens,
    };
    let hidden = match Settings::new(node, [3, 5, 4]).ok().and_then(|settings| settings.hidden) {
        Some([query, _, value]) => Dim::from(query + value),
        None => &total.floor_div(&Dim::Known(3)) * &Dim::Known(2),
    };
    let rows = batch * tokens;
    &(&rows * &(size * total)) + &(&rows * &(keys * &hidden))
}

impl Operator for PackedAttention {
    fn op_type(&self) -> &'static str {
        "Attention"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=7
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer(node, inputs, 4)
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        channel_rules::packed(node, tensors)
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let settings = Settings::new(node, [3, 5, 4])?;
        let packed = constants.get(1).copied().flatten().and_then(pack_right);
        Ok(Box::new(move |run: &mut Run| {
            let (qkv, total) = project(run, packed.as_ref())?;
            let result = attend(run, &settings, &qkv, total);
            run.pool.recycle(qkv);
            result
        }))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let settings = Settings::new(node, [3, 5, 4])?;
        if settings.gives_present || node.input(4).is_some() {
            // A cache is for generating text, which is no training.
            return Err(OpError::NoGradient);
        }
        gradient(Reads::ALL_INPUTS, move |run: &mut Backward| flow_back(run, &settings))
    }

    fn macs(&self, node: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        macs(node, inputs, outputs)
    }

    fn widens_half(&self) -> bool {
        true
    }
}

impl Operator for QAttention {
    fn op_type(&self) -> &'static str {
        "QAttention"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        5..=9
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer(node, inputs, 8)
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        // No input is a bias of the scores.
        let settings = Settings::new(node, [5, usize::MAX, 8])?;
        let constant = |index: usize| constants.get(index).copied().flatten();
        let is_computed = node.input(7).is_some() && constant(7).is_none();
        let packed = match constant(1) {
            Some(w) if !is_computed => Some(Integers::from_tensor(w, 1, false, constant(7))?),
            _ => None,
        };
        Ok(Box::new(move |run: &mut Run| {
            let (qkv, total) = project_integers(run, packed.as_ref())?;
            let result = attend(run, &settings, &qkv, total);
            run.pool.recycle(qkv);
            result
        }))
    }

    fn macs(&self, node: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        macs(node, inputs, outputs)
    }
}

/// Batch, tokens and size of x.
fn rows_of(x: &Tensor) -> Result<[usize; 3], OpError> {
    match *x.shape() {
        [batch, tokens, size] => Ok([batch, tokens, size]),
        _ => Err(OpError::value("the shape of input 0", x.shape(), "of rank 3")),
    }
}

/// x·W + bias: the rows, and their size.
fn project(run: &Run, packed: Option<&(PackedB, Vec<usize>)>) -> Result<(Tensor, usize), OpError> {
    let x = run.typed::<f32>(0)?;
    let [batch, tokens, size] = rows_of(x)?;
    let w = run.typed::<f32>(1)?;
    let total = match *w.shape() {
        [rows, total] if rows == size => total,
        _ => return Err(OpError::shapes(x.shape(), w.shape())),
    };
    let right = match packed {
        Some((packed, _)) => Right::Packed(packed),
        None => Right::Strided(Strided::rows(w.slice::<f32>(), size, total)),
    };
    let bias = vector(run, 2, total)?;
    let mut qkv = run.pool.tensor(DType::F32, &[batch * tokens, total]);
    let x = Strided::rows(x.slice::<f32>(), batch * tokens, size);
    gemm::matmul(qkv.slice_mut::<f32>(), x, right, bias);
    Ok((qkv, total))
}

fn project_integers(run: &Run, packed: Option<&Integers>) -> Result<(Tensor, usize), OpError> {
    let x = run.input(0)?;
    let [batch, tokens, size] = rows_of(x)?;
    let made;
    let right = if let Some(packed) = packed {
        packed
    } else {
        made = Integers::from_tensor(run.input(1)?, 1, false, run.optional(7))?;
        &made
    };
    let [rows, total] = right.size;
    if rows != size {
        return Err(OpError::shapes(x.shape(), &right.size));
    }
    let left = unsigned(x, 0)?;
    let zeros = left_zeros(run.optional(6), 6, x.dtype(), 1, batch * tokens)?;
    let x_scale = run.typed::<f32>(3)?;
    let &[x_scale] = x_scale.values::<f32>().as_ref() else {
        return Err(OpError::value("input 3", x_scale.shape(), "one scale"));
    };
    let scales = column_scales(run.input(4)?, 4, total, x_scale)?;
    let none = vec![0.0; total];
    let bias = vector(run, 2, total)?.unwrap_or(&none);
    let offsets = vec![0; total];
    let mut qkv = run.pool.tensor(DType::F32, &[batch * tokens, total]);
    let out = qkv.slice_mut::<f32>();
    product_rows(out, &left, &zeros, right, run.pool, |_, out: &mut [f32], sums| {
        for (out, sums) in out.chunks_exact_mut(total).zip(sums.chunks_exact(total)) {
            quantize::rescale_row(out, sums, &offsets, &scales, bias);
        }
    });
    Ok((qkv, total))
}

/// The past keys (0) or values (1) of [2, batch, heads, past, size].
fn past_half(
    past: Option<&Tensor>,
    half: usize,
    counts: [usize; 3],
    index: usize,
) -> Result<Option<(&[f32], usize)>, OpError> {
    let Some(past) = past else { return Ok(None) };
    let (&[2, ..], 5) = (past.shape(), past.rank()) else {
        return Err(OpError::value("the shape of the past", past.shape(), "[2, …] of rank 5"));
    };
    if past.dtype() != DType::F32 {
        return Err(OpError::DType { index, found: past.dtype() });
    }
    let size = past.element_count() / 2;
    let rows = past_rows(
        &past.reshaped(&[&[2 * past.shape()[1]], &past.shape()[2..]].concat()),
        DType::F32,
        index,
        [2 * counts[0], counts[1], counts[2]],
    )?;
    Ok(Some((&past.slice::<f32>()[half * size..(half + 1) * size], rows)))
}

fn attend(
    run: &Run,
    settings: &Settings,
    qkv: &Tensor,
    total: usize,
) -> Result<Vec<Tensor>, OpError> {
    let [batch, tokens, _] = rows_of(run.input(0)?)?;
    let heads = settings.heads;
    let [q_hidden, k_hidden, v_hidden] = settings.hidden(total)?;
    let (head_size, value_size) = (k_hidden / heads, v_hidden / heads);
    check_head_sizes([head_size, value_size])?;
    let data = qkv.slice::<f32>();
    let part = |start: usize, size: usize| Heads {
        data: data.get(start..).unwrap_or(&[]),
        strides: [tokens * total, size, total],
    };
    let query = part(0, head_size);
    let new = [part(q_hidden, head_size), part(q_hidden + k_hidden, value_size)];
    let past = run.optional(settings.past);
    let mut sizes = Sizes {
        batch,
        heads,
        kv_heads: heads,
        queries: tokens,
        keys: tokens,
        head_size,
        value_size,
    };
    let mut present = None;
    if past.is_some() || settings.gives_present {
        if head_size != value_size {
            let what = "a past of values whose size is not that of keys".into();
            return Err(OpError::Unsupported { what });
        }
        let counts = [batch, heads, head_size];
        let join = |half: usize| -> Result<Tensor, OpError> {
            let past = past_half(past, half, counts, settings.past)?;
            Ok(joined(past, &Rows { heads: new[half], count: tokens }, counts, run.pool))
        };
        let pair = [join(0)?, join(1)?];
        sizes.keys = pair[0].shape()[2];
        present = Some(pair);
    }
    let whole = |half: usize| match &present {
        Some(pair) => Heads::apart(pair[half].slice(), sizes.keys, heads, head_size),
        None => new[half],
    };
    let mut y = run.pool.tensor(DType::F32, &[batch, tokens, v_hidden]);
    with_attention(run, settings, &sizes, [query, whole(0), whole(1)], |attention| {
        attention.run(y.slice_mut(), None, run.pool);
    })?;
    let Some(pair) = present.filter(|_| settings.gives_present) else { return Ok(vec![y]) };
    let mut both = run.pool.tensor(DType::F32, &[2, batch, heads, sizes.keys, head_size]);
    let half = both.element_count() / 2;
    let (keys, values) = both.slice_mut::<f32>().split_at_mut(half);
    keys.copy_from_slice(pair[0].slice());
    values.copy_from_slice(pair[1].slice());
    Ok(vec![y, both])
}

/// Calls `work` with the attention over queries, keys and values.
fn with_attention<R>(
    run: &Run,
    settings: &Settings,
    sizes: &Sizes,
    [query, key, value]: [Heads<f32>; 3],
    work: impl FnOnce(&core::Attention<f32>) -> R,
) -> Result<R, OpError> {
    let past_count = sizes.keys - sizes.queries;
    let visible = |_: usize, query: usize| 0..past_count + query + 1;
    let mask = settings.padding.addends(run, sizes)?;
    let scale = settings.scale.unwrap_or_else(|| 1.0 / (sizes.head_size as f32).sqrt());
    Ok(work(&core::Attention {
        query,
        key,
        value,
        scores: Scores {
            mask,
            visible: settings.is_causal.then_some(&visible),
            ..Scores::scaled(scale)
        },
        layout: Layout::packed(sizes),
        sizes: sizes.clone(),
    }))
}

/// With [Q K V] = X·W + bias, computed once more: d[Q K V] from the attention, dX = d[Q K V]·Wᵀ,
/// dW = Xᵀ·d[Q K V], dbias = Σ d[Q K V] over rows.
fn flow_back(run: &mut Backward, settings: &Settings) -> Result<Vec<Option<Flow>>, OpError> {
    let dy = run.take_gradient();
    let run = &*run;
    let forward = Run { inputs: run.inputs.clone(), pool: run.pool };
    let (qkv, total) = project(&forward, None)?;
    let [batch, tokens, size] = rows_of(run.input(0)?)?;
    let (heads, hidden) = (settings.heads, settings.hidden(total)?);
    let [head_size, value_size] = [hidden[1] / heads, hidden[2] / heads];
    let starts = [0, hidden[0], hidden[0] + hidden[1]];
    let part = |start: usize, size: usize| Heads {
        data: qkv.slice::<f32>().get(start..).unwrap_or(&[]),
        strides: [tokens * total, size, total],
    };
    let operands = [part(0, head_size), part(starts[1], head_size), part(starts[2], value_size)];
    let sizes = Sizes {
        batch,
        heads,
        kv_heads: heads,
        queries: tokens,
        keys: tokens,
        head_size,
        value_size,
    };
    let rows = Heads::packed(dy.slice(), tokens, heads, value_size);
    let wants_scores = run.wants(settings.padding.bias);
    let gradients = with_attention(&forward, settings, &sizes, operands, |attention| {
        attention.flow_back(rows, [Order::Packed; 3], None, wants_scores, run.pool)
    })?;
    let mut dqkv = qkv;
    let data = dqkv.slice_mut::<f32>();
    let parts = [gradients.query, gradients.key, gradients.value];
    for (part, (start, width)) in parts.into_iter().zip(starts.into_iter().zip(hidden)) {
        let rows = data.chunks_exact_mut(total.max(1)).zip(part.slice().chunks_exact(width.max(1)));
        rows.for_each(|(row, part)| row[start..start + width].copy_from_slice(part));
        run.pool.recycle(part);
    }
    let mut flows = vec![None; run.shapes.len()];
    if let Some(scores) = gradients.scores {
        let index = settings.padding.bias;
        flows[index] = Some(sum_to(scores, run.shape(index), run.pool).into());
    }
    if run.wants(2) {
        let mut bias = run.tensor(run.shape(2));
        sum_rows(dqkv.slice(), bias.slice_mut(), run.pool);
        flows[2] = Some(bias.into());
    }
    let rows = Strided::rows(dqkv.slice::<f32>(), batch * tokens, total);
    if run.wants(0) {
        let w = Strided::rows(run.input(1)?.slice::<f32>(), size, total).transposed();
        let mut dx = run.tensor(run.shape(0));
        gemm::matmul(dx.slice_mut(), rows, Right::Strided(w), None);
        flows[0] = Some(dx.into());
    }
    if run.wants(1) {
        let x = Strided::rows(run.input(0)?.slice::<f32>(), batch * tokens, size).transposed();
        let mut dw = run.tensor(run.shape(1));
        gemm::matmul(dw.slice_mut(), x, Right::Strided(rows), None);
        flows[1] = Some(dw.into());
    }
    run.pool.recycle(dqkv);
    run.pool.recycle(dy);
    Ok(flows)
}
