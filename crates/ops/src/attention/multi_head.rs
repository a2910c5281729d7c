//! `MultiHeadAttention` of ONNX Runtime: attention over queries, keys and values that were projected
//! before, which may stand in one tensor, have a bias to be added, and follow a past.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::backward::Order;
use super::channel_rules;
use super::core::{Attention, Heads, Layout, Scores, Sizes, check_head_sizes};
use super::padding::Padding;
use super::past::{Rows, joined, past_rows};
use crate::channels::{Channels, Tensors};
use crate::gradient::{gradient, sum_to};
use crate::microsoft::vector;
use crate::normalization_gradient::place;
use crate::row_sums::sum_rows;
use crate::{
    Backward, Fact, Flow, Gradient, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Reads, Run,
    Training, required,
};

pub(crate) struct MultiHeadAttention;

/// Indices of the inputs.
mod input {
    pub(super) const KEY: usize = 1;
    pub(super) const VALUE: usize = 2;
    pub(super) const BIAS: usize = 3;
    pub(super) const MASK: usize = 4;
    pub(super) const SCORE_BIAS: usize = 5;
    pub(super) const PAST_KEY: usize = 6;
    pub(super) const PAST_VALUE: usize = 7;
}

struct Settings {
    heads: usize,
    scale: Option<f32>,
    is_causal: bool,
    padding: Padding,
    gives_present: bool,
}

impl Settings {
    fn new(node: &Node) -> Result<Self, OpError> {
        let heads = node.int_or("num_heads", 0)?;
        let heads = usize::try_from(heads)
            .ok()
            .filter(|&heads| heads > 0)
            .ok_or_else(|| OpError::value("num_heads", heads, "above 0"))?;
        let scale = node.float_or("scale", 0.0)?;
        let has = |output: usize| node.outputs.get(output).is_some_and(|name| !name.is_empty());
        if node.input(8).is_some() || node.input(9).is_some() || has(3) {
            let what = "a shared cache, or scores as an output".into();
            return Err(OpError::Unsupported { what });
        }
        Ok(Self {
            heads,
            scale: (scale != 0.0).then_some(scale),
            is_causal: node.int_or("unidirectional", 0)? != 0,
            padding: Padding {
                mask: input::MASK,
                bias: input::SCORE_BIAS,
                filter: node.float_or("mask_filter_value", -10000.0)?,
            },
            gives_present: has(1) || has(2),
        })
    }
}

impl Operator for MultiHeadAttention {
    fn op_type(&self) -> &'static str {
        "MultiHeadAttention"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=10
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer(node, inputs)
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        channel_rules::multi_head(node, tensors)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let settings = Settings::new(node)?;
        Ok(Box::new(move |run: &mut Run| attend(run, &settings)))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let settings = Settings::new(node)?;
        let has_past =
            [input::PAST_KEY, input::PAST_VALUE].iter().any(|&i| node.input(i).is_some());
        if settings.gives_present || has_past {
            // A cache is for generating text, which is no training.
            return Err(OpError::NoGradient);
        }
        gradient(Reads::ALL_INPUTS, move |run: &mut Backward| flow_back(run, &settings))
    }

    fn macs(&self, node: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        let Ok(facts) = infer_sizes(node, inputs) else { return Dim::Unknown };
        let rows = outputs.first().map_or(Dim::Unknown, Fact::element_count);
        // Q·Kᵀ as much as P·V where the sizes of keys and values agree, as they nearly always do.
        &(&rows * &facts.keys) * &Dim::Known(2)
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// Sizes as far as they are known before a run.
struct Described {
    batch: Dim,
    queries: Dim,
    keys: Dim,
    hidden: Dim,
    value_hidden: Dim,
}

fn infer_sizes(node: &Node, inputs: &[Option<&Fact>]) -> Result<Described, OpError> {
    let heads = Dim::from(Settings::new(node)?.heads);
    let shape = |index: usize| inputs.get(index)?.as_ref()?.shape.as_deref();
    let has = |index: usize| inputs.get(index).copied().flatten().is_some();
    let unknown = || Dim::Unknown;
    let (batch, queries, hidden) = match required(inputs, 0)?.shape.as_deref() {
        Some([batch, queries, hidden]) => (batch.clone(), queries.clone(), hidden.clone()),
        Some([batch, queries, heads, _, size]) => (batch.clone(), queries.clone(), heads * size),
        _ => (unknown(), unknown(), unknown()),
    };
    let new = match shape(input::KEY) {
        Some([_, keys, _] | [_, keys, _, _, _] | [_, _, keys, _]) => keys.clone(),
        Some(_) => unknown(),
        None if has(input::KEY) => unknown(),
        None => queries.clone(),
    };
    let value_hidden = match shape(input::VALUE) {
        Some([_, _, hidden]) => hidden.clone(),
        Some([_, _, _, size]) => &heads * size,
        _ if has(input::VALUE) => unknown(),
        _ => hidden.clone(),
    };
    let past = match shape(input::PAST_KEY) {
        Some([_, _, past, _]) => past.clone(),
        _ if has(input::PAST_KEY) => unknown(),
        _ => Dim::Known(0),
    };
    Ok(Described { batch, queries, keys: &past + &new, hidden, value_hidden })
}

fn infer(node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
    let dtype = required(inputs, 0)?.dtype;
    let heads = Dim::from(Settings::new(node)?.heads);
    let sizes = infer_sizes(node, inputs)?;
    let Described { batch, queries, keys, hidden, value_hidden } = sizes;
    let cache = |hidden: &Dim| {
        let dims = vec![batch.clone(), heads.clone(), keys.clone(), hidden.floor_div(&heads)];
        Fact::new(dtype, dims)
    };
    let (key, value) = (cache(&hidden), cache(&value_hidden));
    let y = Fact::new(dtype, vec![batch.clone(), queries, value_hidden]);
    let mut facts = vec![y, key, value];
    facts.truncate(node.outputs.len());
    Ok(facts)
}

/// Rows of heads, wherever they stand.
#[derive(Clone, Copy)]
struct Part<'a> {
    rows: Heads<'a, f32>,
    count: usize,
    size: usize,
    /// Whether a bias is added to it: not where it stands as a cache would.
    takes_bias: bool,
}

/// Part `index` of `parts` in [batch, rows, heads, parts, size].
fn interleaved(x: &Tensor, index: usize, parts: usize, heads: usize) -> Result<Part<'_>, OpError> {
    match *x.shape() {
        [_, count, h, p, size] if [h, p] == [heads, parts] => {
            let data = x.slice::<f32>();
            let data = data.get(index * size..).unwrap_or(&[]);
            let row = heads * parts * size;
            let rows = Heads { data, strides: [count * row, parts * size, row] };
            Ok(Part { rows, count, size, takes_bias: true })
        }
        _ => Err(OpError::shapes(x.shape(), &[heads, parts])),
    }
}

/// [batch, rows, heads·size], or [batch, heads, rows, size].
fn plain(x: &Tensor, heads: usize) -> Result<Part<'_>, OpError> {
    let data = x.slice::<f32>();
    match *x.shape() {
        [_, count, hidden] if hidden % heads == 0 => {
            let size = hidden / heads;
            let rows = Heads::packed(data, count, heads, size);
            Ok(Part { rows, count, size, takes_bias: true })
        }
        [_, h, count, size] if h == heads => {
            let rows = Heads::apart(data, count, heads, size);
            Ok(Part { rows, count, size, takes_bias: false })
        }
        _ => Err(OpError::value("the shape of an operand", x.shape(), format!("{heads} heads"))),
    }
}

/// Queries, keys and values.
fn parts_of<'a>(run: &'a Run, heads: usize) -> Result<[Part<'a>; 3], OpError> {
    let query = run.typed::<f32>(0)?;
    if query.rank() == 5 {
        let part = |index: usize| interleaved(query, index, 3, heads);
        return Ok([part(0)?, part(1)?, part(2)?]);
    }
    let q = plain(query, heads)?;
    let key = run.typed::<f32>(input::KEY)?;
    if key.rank() == 5 {
        return Ok([q, interleaved(key, 0, 2, heads)?, interleaved(key, 1, 2, heads)?]);
    }
    Ok([q, plain(key, heads)?, plain(run.typed::<f32>(input::VALUE)?, heads)?])
}

/// A part with its bias added, as [batch, rows, heads·size].
fn biased(part: &Part, batch: usize, heads: usize, bias: &[f32], run: &Run) -> Tensor {
    let hidden = heads * part.size;
    let mut out = run.pool.tensor(DType::F32, &[batch, part.count, hidden]);
    for (row, out) in out.slice_mut::<f32>().chunks_exact_mut(hidden).enumerate() {
        let (text, at) = (row / part.count, row % part.count);
        for (head, out) in out.chunks_exact_mut(part.size).enumerate() {
            let [text_stride, head_stride, row_stride] = part.rows.strides;
            let start = text * text_stride + head * head_stride + at * row_stride;
            let x = &part.rows.data[start..start + part.size];
            let bias = &bias[head * part.size..(head + 1) * part.size];
            out.iter_mut().zip(x).zip(bias).for_each(|((out, &x), &bias)| *out = x + bias);
        }
    }
    out
}

/// The count of texts, and queries, keys and values once they fit together.
fn checked_parts<'a>(run: &'a Run, heads: usize) -> Result<(usize, [Part<'a>; 3]), OpError> {
    let batch = run.input(0)?.shape().first().copied().unwrap_or(0);
    let parts = parts_of(run, heads)?;
    let [q, k, v] = parts;
    for index in [input::KEY, input::VALUE] {
        if let Some(found) = run.optional(index).filter(|x| x.shape().first() != Some(&batch)) {
            return Err(OpError::shapes(run.input(0)?.shape(), found.shape()));
        }
    }
    check_head_sizes([k.size, v.size])?;
    if q.size != k.size || k.count != v.count {
        let sizes = |part: &Part| vec![batch, heads, part.count, part.size];
        return Err(OpError::shapes(&sizes(&k), &sizes(if q.size == k.size { &v } else { &q })));
    }
    Ok((batch, parts))
}

/// Operands ready to be attended to: with their bias, and after their past.
struct Operands<'a> {
    parts: [Part<'a>; 3],
    with_bias: [Option<Tensor>; 3],
    present: Option<[Tensor; 2]>,
    sizes: Sizes,
}

impl<'a> Operands<'a> {
    fn new(run: &'a Run, settings: &Settings) -> Result<Self, OpError> {
        let heads = settings.heads;
        let (batch, parts) = checked_parts(run, heads)?;
        let [q, k, v] = parts;
        let total: usize = parts.iter().map(|part| heads * part.size).sum();
        let with_bias = match vector(run, input::BIAS, total)? {
            None => [None, None, None],
            Some(bias) => {
                let starts = [0, heads * q.size, heads * (q.size + k.size)];
                [0, 1, 2].map(|index| {
                    let part = &parts[index];
                    let bias = &bias[starts[index]..];
                    part.takes_bias.then(|| biased(part, batch, heads, bias, run))
                })
            }
        };
        let sizes = Sizes {
            batch,
            heads,
            kv_heads: heads,
            queries: q.count,
            keys: k.count,
            head_size: q.size,
            value_size: v.size,
        };
        let mut operands = Self { parts, with_bias, present: None, sizes };
        let past = [run.optional(input::PAST_KEY), run.optional(input::PAST_VALUE)];
        if past[0].is_some() || past[1].is_some() || settings.gives_present {
            let pair = [operands.join(1, past[0], run)?, operands.join(2, past[1], run)?];
            if pair[0].shape()[2] != pair[1].shape()[2] {
                return Err(OpError::shapes(pair[0].shape(), pair[1].shape()));
            }
            operands.sizes.keys = pair[0].shape()[2];
            operands.present = Some(pair);
        }
        Ok(operands)
    }

    fn rows(&self, index: usize) -> Heads<'_, f32> {
        let part = self.parts[index];
        match &self.with_bias[index] {
            Some(tensor) => Heads::packed(tensor.slice(), part.count, self.sizes.heads, part.size),
            None => part.rows,
        }
    }

    fn join(&self, index: usize, past: Option<&Tensor>, run: &Run) -> Result<Tensor, OpError> {
        let counts = [self.sizes.batch, self.sizes.heads, self.parts[index].size];
        let place = input::PAST_KEY + index - 1;
        let past = match past {
            Some(past) => Some((past.slice(), past_rows(past, DType::F32, place, counts)?)),
            None => None,
        };
        let new = Rows { heads: self.rows(index), count: self.parts[index].count };
        Ok(joined(past, &new, counts, run.pool))
    }

    fn whole(&self, index: usize) -> Heads<'_, f32> {
        let (keys, heads) = (self.sizes.keys, self.sizes.heads);
        match &self.present {
            Some(pair) => {
                Heads::apart(pair[index - 1].slice(), keys, heads, self.parts[index].size)
            }
            None => self.rows(index),
        }
    }

    /// Calls `work` with the attention over these.
    fn with_attention<R>(
        &self,
        run: &Run,
        settings: &Settings,
        work: impl FnOnce(&Attention<f32>) -> R,
    ) -> Result<R, OpError> {
        let sizes = &self.sizes;
        let past_count = sizes.keys - self.parts[1].count;
        let visible = |_: usize, query: usize| 0..past_count + query + 1;
        let scale = settings.scale.unwrap_or_else(|| 1.0 / (sizes.head_size as f32).sqrt());
        Ok(work(&Attention {
            query: self.rows(0),
            key: self.whole(1),
            value: self.whole(2),
            scores: Scores {
                mask: settings.padding.addends(run, sizes)?,
                visible: settings.is_causal.then_some(&visible),
                ..Scores::scaled(scale)
            },
            layout: Layout::packed(sizes),
            sizes: sizes.clone(),
        }))
    }
}

fn attend(run: &mut Run, settings: &Settings) -> Result<Vec<Tensor>, OpError> {
    let operands = Operands::new(run, settings)?;
    let sizes = &operands.sizes;
    let shape = [sizes.batch, sizes.queries, sizes.heads * sizes.value_size];
    let mut y = run.pool.tensor(DType::F32, &shape);
    operands.with_attention(run, settings, |attention| {
        attention.run(y.slice_mut(), None, run.pool);
    })?;
    let present = operands.present.filter(|_| settings.gives_present).into_iter().flatten();
    Ok(std::iter::once(y).chain(present).collect())
}

/// Of a node without past or present.
fn flow_back(run: &mut Backward, settings: &Settings) -> Result<Vec<Option<Flow>>, OpError> {
    let dy = run.take_gradient();
    let run = &*run;
    let forward = Run { inputs: run.inputs.clone(), pool: run.pool };
    let operands = Operands::new(&forward, settings)?;
    let (sizes, parts) = (&operands.sizes, &operands.parts);
    let order = |index: usize| {
        if parts[index].takes_bias { Order::Packed } else { Order::Apart }
    };
    let orders = [0, 1, 2].map(order);
    let rows = Heads::packed(dy.slice(), sizes.queries, sizes.heads, sizes.value_size);
    let wants_scores = run.wants(input::SCORE_BIAS);
    let gradients = operands.with_attention(&forward, settings, |attention| {
        attention.flow_back(rows, orders, None, wants_scores, run.pool)
    })?;
    run.pool.recycle(dy);
    let mut flows = vec![None; 6];
    if let Some(scores) = gradients.scores {
        let flow = sum_to(scores, run.shape(input::SCORE_BIAS), run.pool);
        flows[input::SCORE_BIAS] = Some(flow.into());
    }
    let parts_back = [gradients.query, gradients.key, gradients.value];
    if run.wants(input::BIAS) {
        let mut bias = run.zeros(run.shape(input::BIAS));
        let mut rest = bias.slice_mut::<f32>();
        for (index, part) in parts_back.iter().enumerate() {
            let (sums, after) = rest.split_at_mut(sizes.heads * parts[index].size);
            if parts[index].takes_bias {
                sum_rows(part.slice::<f32>(), sums, run.pool);
            }
            rest = after;
        }
        flows[input::BIAS] = Some(bias.into());
    }
    let rank = |index: usize| run.shape(index).len();
    match (rank(0), rank(input::KEY)) {
        (5, _) => flows[0] = Some(put_together(&parts_back, run.shape(0), run).into()),
        (_, 5) => {
            let shape = run.shape(input::KEY);
            flows[input::KEY] = Some(put_together(&parts_back[1..], shape, run).into());
            flows[0] = Some(parts_back[0].reshaped(run.shape(0)).into());
        }
        _ => {
            for (index, part) in parts_back.into_iter().enumerate() {
                place(&mut flows, Some(index), part, run);
            }
        }
    }
    Ok(flows)
}

/// [batch, rows, heads, parts, size] of as many [batch, rows, heads·size].
fn put_together(parts: &[Tensor], shape: &[usize], run: &Backward) -> Tensor {
    let mut whole = run.tensor(shape);
    let size = shape[4];
    let rows = whole.slice_mut::<f32>().chunks_exact_mut(size.max(1)).enumerate();
    for (index, row) in rows {
        let (at, part) = (index / parts.len(), index % parts.len());
        row.copy_from_slice(&parts[part].slice::<f32>()[at * size..][..size]);
    }
    whole
}
