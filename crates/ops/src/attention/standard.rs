//! `Attention` (opset 23, windows and the visible count of a cache from 24 and 25):
//! Y = softmax(cap(scale·Q·Kᵀ) + mask)·V per head, with grouped heads and cached keys and values.

use std::ops::Range;

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::backward::Order;
use super::channel_rules;
use super::core::{self, Heads, Layout, Mask, Scores, Sizes, Stage, check_head_sizes};
use super::past::{Rows, joined, past_rows};
use super::real::Real;
use crate::channels::{Channels, Tensors};
use crate::gradient::{add_assign, gradient, sum_to};
use crate::normalization_gradient::place;
use crate::{
    Backward, Fact, Flow, Gradient, Kernel, OpError, Operator, Pool, Reads, Run, Training, required,
};

pub(crate) struct Attention;

/// The attributes.
struct Settings {
    heads: Option<usize>,
    kv_heads: Option<usize>,
    scale: Option<f32>,
    cap: f32,
    is_causal: bool,
    /// Keys to the left and to the right of its own position that a query sees.
    window: [Option<i64>; 2],
    stage: Option<Stage>,
    /// Whether present keys or values are asked for.
    gives_present: bool,
    output_count: usize,
}

impl Settings {
    fn new(node: &Node) -> Result<Self, OpError> {
        let count = |name: &str| match node.int(name)? {
            None => Ok(None),
            Some(count @ 1..) => Ok(usize::try_from(count).ok()),
            Some(other) => Err(OpError::value(name, other, "above 0")),
        };
        let side = |name: &str| match node.int_or(name, -1)? {
            -1 => Ok(None),
            size @ 0.. => Ok(Some(size)),
            other => Err(OpError::value(name, other, "-1 or more")),
        };
        let has = |output: usize| node.outputs.get(output).is_some_and(|name| !name.is_empty());
        let stage = match node.int_or("qk_matmul_output_mode", 0)? {
            0 => Stage::Product,
            1 => Stage::Capped,
            2 => Stage::Masked,
            3 => Stage::Probabilities,
            other => return Err(OpError::value("qk_matmul_output_mode", other, "0 to 3")),
        };
        let scale = node.attribute("scale").map(|_| node.float_or("scale", 1.0)).transpose()?;
        Ok(Self {
            heads: count("q_num_heads")?,
            kv_heads: count("kv_num_heads")?,
            scale,
            cap: node.float_or("softcap", 0.0)?,
            is_causal: node.int_or("is_causal", 0)? != 0,
            window: [side("left_window_size")?, side("right_window_size")?],
            stage: has(3).then_some(stage),
            gives_present: has(1) || has(2),
            output_count: node.outputs.len(),
        })
    }

    /// Batch, heads, rows and size of a head of an operand.
    fn split(shape: &[usize], heads: Option<usize>) -> Result<[usize; 4], OpError> {
        match *shape {
            [batch, heads, rows, size] => Ok([batch, heads, rows, size]),
            [batch, rows, hidden] => {
                let heads = heads.ok_or_else(|| {
                    OpError::value("q_num_heads or kv_num_heads", "absent", "a count of heads")
                })?;
                if hidden % heads != 0 {
                    let expected = format!("a multiple of {heads} heads");
                    return Err(OpError::value("the last axis", hidden, expected));
                }
                Ok([batch, heads, rows, hidden / heads])
            }
            _ => Err(OpError::value("the shape of an operand", shape, "of rank 3 or 4")),
        }
    }

    /// The keys that a query at a position sees.
    fn visible(&self, position: i64, valid: usize) -> Range<usize> {
        let [left, right] = self.window;
        let mut end = valid as i64;
        if self.is_causal {
            end = end.min(position.saturating_add(1));
        }
        if let Some(right) = right {
            end = end.min(position.saturating_add(right).saturating_add(1));
        }
        let start = left.map_or(0, |left| position.saturating_sub(left));
        let end = end.max(0) as usize;
        (start.max(0) as usize).min(end)..end
    }
}

impl Operator for Attention {
    fn op_type(&self) -> &'static str {
        "Attention"
    }

    fn since_opset(&self) -> i64 {
        23
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=7
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer(node, inputs)
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        channel_rules::standard(node, tensors)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let settings = Settings::new(node)?;
        Ok(Box::new(move |run: &mut Run| match run.input(0)?.dtype() {
            DType::F64 => attend::<f64>(run, &settings),
            _ => attend::<f32>(run, &settings),
        }))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let settings = Settings::new(node)?;
        gradient(Reads::ALL_INPUTS, move |run: &mut Backward| flow_back(run, &settings))
    }

    fn macs(&self, node: &Node, inputs: &[Option<&Fact>], _: &[Fact]) -> Dim {
        let Ok(facts) = Described::new(node, inputs) else { return Dim::Unknown };
        let rows = &(&facts.batch * &facts.heads) * &(&facts.queries * &facts.keys);
        &rows * &(&facts.size + &facts.value_size)
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// Sizes as far as they are known before a run.
struct Described {
    batch: Dim,
    heads: Dim,
    kv_heads: Dim,
    queries: Dim,
    keys: Dim,
    size: Dim,
    value_size: Dim,
    is_packed: bool,
}

impl Described {
    fn new(node: &Node, inputs: &[Option<&Fact>]) -> Result<Self, OpError> {
        let settings = Settings::new(node)?;
        let split = |index: usize, heads: Option<usize>| -> Result<[Dim; 4], OpError> {
            let Some(shape) = &required(inputs, index)?.shape else {
                return Ok([const { Dim::Unknown }; 4]);
            };
            Ok(match shape.as_slice() {
                [batch, heads, rows, size] => [batch, heads, rows, size].map(Dim::clone),
                [batch, rows, hidden] => {
                    let heads = heads.map_or(Dim::Unknown, Dim::from);
                    let size = hidden.floor_div(&heads);
                    [batch.clone(), heads, rows.clone(), size]
                }
                other => {
                    return Err(OpError::value("the rank of an operand", other.len(), "3 or 4"));
                }
            })
        };
        let [batch, heads, queries, size] = split(0, settings.heads)?;
        let [_, kv_heads, new, _] = split(1, settings.kv_heads)?;
        let [.., value_size] = split(2, settings.kv_heads)?;
        let past = match inputs.get(4).copied().flatten().map(|past| past.shape.as_deref()) {
            None => Dim::Known(0),
            Some(Some([_, _, past, _])) => past.clone(),
            Some(_) => Dim::Unknown,
        };
        let is_packed = required(inputs, 0)?.rank() == Some(3);
        let keys = &past + &new;
        Ok(Self { batch, heads, kv_heads, queries, keys, size, value_size, is_packed })
    }
}

fn infer(node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
    let q = required(inputs, 0)?;
    let facts = Described::new(node, inputs)?;
    let value_dtype = required(inputs, 2)?.dtype;
    let Described { batch, heads, kv_heads, queries, keys, size, value_size, is_packed } = facts;
    let y = match (q.rank(), is_packed) {
        (None, _) => Fact::unranked(q.dtype),
        (_, true) => Fact::new(q.dtype, vec![batch.clone(), queries.clone(), &heads * &value_size]),
        _ => {
            let dims = vec![batch.clone(), heads.clone(), queries.clone(), value_size.clone()];
            Fact::new(q.dtype, dims)
        }
    };
    let cache =
        |dtype, size| Fact::new(dtype, vec![batch.clone(), kv_heads.clone(), keys.clone(), size]);
    let scores = vec![batch.clone(), heads, queries, keys.clone()];
    let mut outputs =
        vec![y, cache(q.dtype, size), cache(value_dtype, value_size), Fact::new(q.dtype, scores)];
    outputs.truncate(node.outputs.len());
    Ok(outputs)
}

/// Sizes of the operands, once they fit together; `keys` counts the new ones.
fn sizes_of(run: &Run, settings: &Settings) -> Result<Sizes, OpError> {
    let (q, k, v) = (run.input(0)?, run.input(1)?, run.input(2)?);
    let [batch, heads, queries, head_size] = Settings::split(q.shape(), settings.heads)?;
    let [batch_k, kv_heads, keys, size_k] = Settings::split(k.shape(), settings.kv_heads)?;
    let [batch_v, heads_v, keys_v, value_size] = Settings::split(v.shape(), settings.kv_heads)?;
    if [batch_k, size_k] != [batch, head_size] || q.rank() != k.rank() {
        return Err(OpError::shapes(q.shape(), k.shape()));
    }
    if [batch_v, heads_v, keys_v] != [batch, kv_heads, keys] || k.rank() != v.rank() {
        return Err(OpError::shapes(k.shape(), v.shape()));
    }
    if kv_heads == 0 || heads % kv_heads != 0 {
        let expected = format!("a multiple of the {kv_heads} heads of keys");
        return Err(OpError::value("the count of query heads", heads, expected));
    }
    check_head_sizes([head_size, value_size])?;
    Ok(Sizes { batch, heads, kv_heads, queries, keys, head_size, value_size })
}

fn heads_of<T: Real>(x: &Tensor, heads: usize) -> Heads<'_, T> {
    match *x.shape() {
        [_, rows, hidden] => Heads::packed(x.slice(), rows, heads, hidden / heads),
        _ => Heads::apart(x.slice(), x.shape()[2], heads, x.shape()[3]),
    }
}

/// The mask as addends, as long as there are keys: what a shorter one leaves out is not seen.
fn mask_of<'a, T: Real>(mask: &'a Tensor, sizes: &Sizes) -> Result<Mask<'a, T>, OpError> {
    let error = || OpError::DType { index: 3, found: mask.dtype() };
    let given =
        *mask.shape().last().ok_or_else(|| OpError::value("the mask", "a scalar", "rows"))?;
    if mask.dtype() == T::DTYPE && given == sizes.keys {
        return Mask::new(mask.slice::<T>(), mask.shape(), sizes);
    }
    let values: Vec<T> = if mask.dtype() == DType::Bool {
        let addend = |&seen: &u8| if seen == 0 { T::NEG_INFINITY } else { T::default() };
        mask.values::<u8>().iter().map(addend).collect()
    } else {
        let numbers = mask.to_f64().ok_or_else(error)?;
        numbers.into_iter().map(T::from_f64).collect()
    };
    if given >= sizes.keys {
        return Mask::new(values, mask.shape(), sizes);
    }
    let mut shape = mask.shape().to_vec();
    shape[mask.rank() - 1] = sizes.keys;
    let mut padded = Vec::with_capacity(mask.element_count() / given.max(1) * sizes.keys);
    for row in 0..mask.element_count().checked_div(given).unwrap_or(0) {
        padded.extend_from_slice(&values[row * given..(row + 1) * given]);
        padded.resize((row + 1) * sizes.keys, T::NEG_INFINITY);
    }
    if given == 0 {
        padded.resize(shape.iter().product(), T::NEG_INFINITY);
    }
    Mask::new(padded, &shape, sizes)
}

/// How many keys of each text are no padding.
fn valid_keys(run: &Run, sizes: &Sizes) -> Result<Option<Vec<usize>>, OpError> {
    let Some(valid) = run.optional(6) else { return Ok(None) };
    let counts = valid.to_i64().ok_or(OpError::DType { index: 6, found: valid.dtype() })?;
    if counts.len() != sizes.batch {
        return Err(OpError::shapes(valid.shape(), &[sizes.batch]));
    }
    Ok(Some(counts.into_iter().map(|count| count.max(0) as usize).collect()))
}

/// Keys or values with those of the past (input `index`), where there is one or it is asked for.
fn present<T: Real>(
    run: &Run,
    input: usize,
    gives: bool,
    [batch, heads, size]: [usize; 3],
) -> Result<Option<Tensor>, OpError> {
    let (past, new) = (run.optional(input + 3), run.typed::<T>(input)?);
    if past.is_none() && !gives {
        return Ok(None);
    }
    let counts = [batch, heads, size];
    let past = match past {
        Some(past) => Some((past.slice::<T>(), past_rows(past, T::DTYPE, input + 3, counts)?)),
        None => None,
    };
    let new_count = new.shape()[new.rank() - 2];
    let count = if new.rank() == 3 { new.shape()[1] } else { new_count };
    let rows = Rows { heads: heads_of(new, heads), count };
    Ok(Some(joined(past, &rows, counts, run.pool)))
}

/// Keys and values as they are attended to: those of the past before the new ones, where there are.
struct Present {
    key: Option<Tensor>,
    value: Option<Tensor>,
    new_keys: usize,
}

/// Sizes, with `keys` counting those of the past too, and the keys and values in one piece.
fn joined_parts<T: Real>(run: &Run, settings: &Settings) -> Result<(Sizes, Present), OpError> {
    run.typed::<T>(0)?;
    let mut sizes = sizes_of(run, settings)?;
    let (batch, kv_heads) = (sizes.batch, sizes.kv_heads);
    if run.optional(4).is_some() != run.optional(5).is_some() {
        return Err(OpError::MissingInput { index: if run.optional(4).is_some() { 5 } else { 4 } });
    }
    let gives = settings.gives_present;
    let key = present::<T>(run, 1, gives, [batch, kv_heads, sizes.head_size])?;
    let value = present::<T>(run, 2, gives, [batch, kv_heads, sizes.value_size])?;
    let new_keys = sizes.keys;
    if let (Some(key), Some(value)) = (&key, &value) {
        if key.shape()[2] != value.shape()[2] {
            return Err(OpError::shapes(key.shape(), value.shape()));
        }
        sizes.keys = key.shape()[2];
    }
    Ok((sizes, Present { key, value, new_keys }))
}

/// Calls `work` with the attention that a run asks for.
fn with_attention<T: Real, R>(
    run: &Run,
    settings: &Settings,
    sizes: &Sizes,
    present: &Present,
    work: impl FnOnce(&core::Attention<T>) -> R,
) -> Result<R, OpError> {
    let (q, k, v) = (run.typed::<T>(0)?, run.typed::<T>(1)?, run.typed::<T>(2)?);
    let mask = run.optional(3).map(|mask| mask_of::<T>(mask, sizes)).transpose()?;
    let valid = valid_keys(run, sizes)?;
    let past_count = (sizes.keys - present.new_keys) as i64;
    let (queries, keys) = (sizes.queries as i64, sizes.keys);
    let visible = |text: usize, query: usize| match &valid {
        Some(valid) if run.optional(4).is_none() => {
            settings.visible(query as i64 + valid[text] as i64 - queries, valid[text])
        }
        _ => settings.visible(query as i64 + past_count, keys),
    };
    let is_bounded = settings.is_causal || settings.window != [None; 2] || valid.is_some();
    let layout = if q.rank() == 3 { Layout::packed(sizes) } else { Layout::apart(sizes) };
    let attention = core::Attention {
        query: heads_of(q, sizes.heads),
        key: heads_of(present.key.as_ref().unwrap_or(k), sizes.kv_heads),
        value: heads_of(present.value.as_ref().unwrap_or(v), sizes.kv_heads),
        scores: Scores {
            scale: settings.scale.unwrap_or_else(|| 1.0 / (sizes.head_size as f32).sqrt()),
            cap: settings.cap,
            mask,
            visible: is_bounded.then_some(&visible),
            zeroes_blind: true,
        },
        layout,
        sizes: sizes.clone(),
    };
    Ok(work(&attention))
}

fn attend<T: Real>(run: &mut Run, settings: &Settings) -> Result<Vec<Tensor>, OpError> {
    let (sizes, present) = joined_parts::<T>(run, settings)?;
    let (batch, heads) = (sizes.batch, sizes.heads);
    let y_shape = if run.input(0)?.rank() == 3 {
        vec![batch, sizes.queries, heads * sizes.value_size]
    } else {
        vec![batch, heads, sizes.queries, sizes.value_size]
    };
    let mut y = run.pool.tensor(T::DTYPE, &y_shape);
    let score_shape = [batch, heads, sizes.queries, sizes.keys];
    let mut shown = settings.stage.map(|_| run.pool.tensor(T::DTYPE, &score_shape));
    let at_stage = settings.stage.zip(shown.as_mut().map(Tensor::slice_mut::<T>));
    with_attention::<T, _>(run, settings, &sizes, &present, |attention| {
        attention.run(y.slice_mut(), at_stage, run.pool);
    })?;
    Ok(outputs(y, [present.key, present.value, shown], settings.output_count))
}

/// The outputs up to the last that is asked for; an empty tensor where none is.
fn outputs(y: Tensor, others: [Option<Tensor>; 3], count: usize) -> Vec<Tensor> {
    let empty = || Tensor::zeros(DType::F32, &[0]);
    let others = others.into_iter().map(|tensor| tensor.unwrap_or_else(empty));
    std::iter::once(y).chain(others).take(count.max(1)).collect()
}

/// What flows into keys and values of the past goes on to where they came from.
fn flow_back(run: &mut Backward, settings: &Settings) -> Result<Vec<Option<Flow>>, OpError> {
    let dy = run.gradients[0].take();
    let run = &*run;
    let forward = Run { inputs: run.inputs.clone(), pool: run.pool };
    let (sizes, present) = joined_parts::<f32>(&forward, settings)?;
    let order = |index: usize| match run.shape(index).len() {
        3 => Order::Packed,
        _ => Order::Apart,
    };
    let is_joined = present.key.is_some();
    let kv_order = if is_joined { Order::Apart } else { order(1) };
    let (heads, queries, size) = (sizes.heads, sizes.queries, sizes.value_size);
    let dy = dy.unwrap_or_else(|| run.zeros(&[sizes.batch, queries, heads * size]));
    let rows = match order(0) {
        Order::Packed => Heads::packed(dy.slice(), queries, heads, size),
        Order::Apart => Heads::apart(dy.slice(), queries, heads, size),
    };
    let shown = settings.stage.zip(run.gradient(3).map(Tensor::slice::<f32>));
    let (orders, wants_mask) = ([order(0), kv_order, kv_order], run.wants(3));
    let mut gradients = with_attention(&forward, settings, &sizes, &present, |attention| {
        attention.flow_back(rows, orders, shown, wants_mask, run.pool)
    })?;
    let mut flows = vec![None; 6];
    for (index, found) in [(1, &mut gradients.key), (2, &mut gradients.value)] {
        if let Some(more) = run.gradient(index).filter(|_| is_joined) {
            add_assign(found.slice_mut::<f32>(), more.slice::<f32>());
        }
    }
    place(&mut flows, Some(0), gradients.query, run);
    for (index, whole) in [(1, gradients.key), (2, gradients.value)] {
        if is_joined {
            let [past, new] = parted(&whole, present.new_keys, order(index), run.pool);
            run.pool.recycle(whole);
            place(&mut flows, Some(index), new, run);
            place(&mut flows, Some(index + 3), past, run);
        } else {
            place(&mut flows, Some(index), whole, run);
        }
    }
    if let Some(scores) = gradients.scores {
        let given = run.shape(3).last().copied().unwrap_or(0);
        let scores = first_columns(scores, given, run.pool);
        flows[3] = Some(sum_to(scores, run.shape(3), run.pool).into());
    }
    run.pool.recycle(dy);
    Ok(flows)
}

/// The rows of [batch, heads, rows, size] before the last `new`, and those in an order of their own.
fn parted(whole: &Tensor, new: usize, order: Order, pool: &Pool) -> [Tensor; 2] {
    let &[batch, heads, rows, size] = whole.shape() else { unreachable!("keys are apart") };
    let past = rows - new;
    let mut first = pool.tensor(DType::F32, &[batch, heads, past, size]);
    let mut last = pool.tensor(DType::F32, &[batch, heads, new, size]);
    let (old, fresh) = (first.slice_mut::<f32>(), last.slice_mut::<f32>());
    for (index, block) in whole.slice::<f32>().chunks_exact((rows * size).max(1)).enumerate() {
        let (before, after) = block.split_at(past * size);
        old[index * past * size..][..past * size].copy_from_slice(before);
        let (text, head) = (index / heads, index % heads);
        for (row, values) in after.chunks_exact(size).enumerate() {
            let at = match order {
                Order::Apart => index * new + row,
                Order::Packed => (text * new + row) * heads + head,
            };
            fresh[at * size..][..size].copy_from_slice(values);
        }
    }
    [first, last]
}

/// The columns that a mask had; those beyond are of keys that no query saw.
fn first_columns(scores: Tensor, count: usize, pool: &Pool) -> Tensor {
    let mut shape = scores.shape().to_vec();
    let keys = shape[3];
    if count >= keys || count == 1 {
        return scores;
    }
    shape[3] = count;
    let mut cut = pool.tensor(DType::F32, &shape);
    let rows = cut.slice_mut::<f32>().chunks_exact_mut(count.max(1));
    let pairs = rows.zip(scores.slice::<f32>().chunks_exact(keys));
    pairs.for_each(|(cut, row)| cut.copy_from_slice(&row[..count]));
    pool.recycle(scores);
    cut
}
