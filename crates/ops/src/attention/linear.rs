//! `LinearAttention` (opset 27): a state S of keys × values per head is decayed and written at each
//! token, and read by its query (Yang et al., 2024, arXiv:2412.06464).
//!
//! S ← eᵍ·S; v′ = β·(v − Sᵀk), or v; S ← S + k⊗v′; o = scale·Sᵀq.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Element, Tensor};

use super::channel_rules;
use crate::channels::{Channels, Tensors};
use crate::gradient::gradient;
use crate::real::Real;
use crate::{Fact, Flow, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct LinearAttention;

struct Settings {
    heads: usize,
    kv_heads: usize,
    scale: f32,
    decays: bool,
    corrects: bool,
}

impl Settings {
    fn new(node: &Node) -> Result<Self, OpError> {
        let count = |name: &str| {
            let value = node.int_or(name, 0)?;
            let count = usize::try_from(value).ok().filter(|&count| count > 0);
            count.ok_or_else(|| OpError::value(name, value, "above 0"))
        };
        let (heads, kv_heads) = (count("q_num_heads")?, count("kv_num_heads")?);
        if heads % kv_heads != 0 {
            let expected = format!("a multiple of kv_num_heads ({kv_heads})");
            return Err(OpError::value("q_num_heads", heads, expected));
        }
        let (decays, corrects) = match node.text("update_rule")?.unwrap_or("gated_delta") {
            "linear" => (false, false),
            "gated" => (true, false),
            "delta" => (false, true),
            "gated_delta" => (true, true),
            other => {
                let expected = "linear, gated, delta or gated_delta";
                return Err(OpError::value("update_rule", other, expected));
            }
        };
        Ok(Self { heads, kv_heads, scale: node.float_or("scale", 0.0)?, decays, corrects })
    }
}

impl Operator for LinearAttention {
    fn op_type(&self) -> &'static str {
        "LinearAttention"
    }

    fn since_opset(&self) -> i64 {
        27
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=6
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let settings = Settings::new(node)?;
        let (q, v) = (required(inputs, 0)?, required(inputs, 2)?);
        let past = inputs.get(3).copied().flatten();
        let dtype = past.map_or(q.dtype, |past| past.dtype);
        let (Some([batch, tokens, q_hidden]), Some([.., v_hidden])) =
            (q.shape.as_deref(), v.shape.as_deref())
        else {
            return Ok(vec![Fact::unranked(q.dtype), Fact::unranked(dtype)]);
        };
        let (heads, kv_heads) = (Dim::from(settings.heads), Dim::from(settings.kv_heads));
        let (key_size, value_size) = (q_hidden.floor_div(&heads), v_hidden.floor_div(&kv_heads));
        let y = vec![batch.clone(), tokens.clone(), &heads * &value_size];
        let state = vec![batch.clone(), kv_heads, key_size, value_size];
        Ok(vec![Fact::new(q.dtype, y), Fact::new(dtype, state)])
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        channel_rules::linear(node, tensors)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let settings = Settings::new(node)?;
        Ok(Box::new(move |run: &mut Run| match run.input(0)?.dtype() {
            DType::F64 => attend::<f64>(run, &settings),
            _ => attend::<f32>(run, &settings),
        }))
    }

    fn macs(&self, _: &Node, _: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        // The state is read by the query and written by the key.
        let values = outputs.first().map_or(Dim::Unknown, Fact::element_count);
        let state = outputs.get(1).and_then(|state| state.shape.as_ref()?.get(2).cloned());
        &(&values * &state.unwrap_or(Dim::Unknown)) * &Dim::Known(2)
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let settings = Settings::new(node)?;
        gradient(Reads::ALL_INPUTS, move |run| {
            let inputs = Run { inputs: run.inputs.clone(), pool: run.pool };
            let operands = operands::<f32>(&inputs, &settings)?;
            let zeros = |index: usize| {
                let count = run.shapes.get(index).map_or(1, |shape| shape.iter().product());
                vec![0.0; count]
            };
            let mut flows = Flows { all: std::array::from_fn(zeros) };
            let batch = run.shape(0)[0];
            // An absent past has a gradient, which goes nowhere.
            let block = operands.key_size * operands.value_size;
            flows.all[3] = vec![0.0; batch * settings.kv_heads * block];
            for text in 0..batch {
                let slice = |output: usize| run.gradient(output).map(Tensor::slice::<f32>);
                operands.back(slice(0), slice(1), &mut flows, text);
            }
            let flow = |(index, values): (usize, &Vec<f32>)| {
                run.wants(index).then(|| Flow::from(Tensor::new(run.shape(index), values)))
            };
            Ok(flows.all.iter().enumerate().map(flow).collect())
        })
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// Operands, split into rows of heads.
struct Operands<'a, T> {
    query: &'a [T],
    key: &'a [T],
    value: &'a [T],
    past: Option<&'a [T]>,
    decay: Option<&'a [T]>,
    /// Values of the decay per head: one, or one per value of the key.
    decay_size: usize,
    beta: Option<&'a [T]>,
    /// Values of beta per token: one, or one per head.
    beta_count: usize,
    tokens: usize,
    /// Of the queries, and of the keys and values.
    heads: [usize; 2],
    key_size: usize,
    value_size: usize,
    scale: T,
}

/// An optional gate, which a rule either needs or does not take: its values and their count per
/// token.
fn gate<'a, T: Element>(
    run: &'a Run,
    index: usize,
    is_needed: bool,
    rows: [usize; 2],
    allowed: [usize; 2],
) -> Result<(Option<&'a [T]>, usize), OpError> {
    if !is_needed {
        return match run.optional(index) {
            None => Ok((None, 1)),
            Some(_) => {
                Err(OpError::value(&format!("input {index}"), "given", "none for this rule"))
            }
        };
    }
    let tensor = run.typed::<T>(index)?;
    match *tensor.shape() {
        [batch, tokens, size] if [batch, tokens] == rows && allowed.contains(&size) => {
            Ok((Some(tensor.slice()), size))
        }
        _ => Err(OpError::shapes(tensor.shape(), &[rows[0], rows[1], allowed[1]])),
    }
}

/// Checks the inputs.
fn operands<'a, T: Real>(run: &'a Run, settings: &Settings) -> Result<Operands<'a, T>, OpError> {
    let (q, k, v) = (run.typed::<T>(0)?, run.typed::<T>(1)?, run.typed::<T>(2)?);
    let (heads, kv_heads) = (settings.heads, settings.kv_heads);
    let &[batch, tokens, q_hidden] = q.shape() else {
        return Err(OpError::value("the shape of input 0", q.shape(), "of rank 3"));
    };
    let key_size = q_hidden / heads;
    if q_hidden % heads != 0 || *k.shape() != [batch, tokens, kv_heads * key_size] {
        return Err(OpError::shapes(q.shape(), k.shape()));
    }
    let value_size = match *v.shape() {
        [b, t, hidden] if [b, t] == [batch, tokens] && hidden % kv_heads == 0 => hidden / kv_heads,
        _ => return Err(OpError::shapes(k.shape(), v.shape())),
    };
    let state_shape = [batch, kv_heads, key_size, value_size];
    let past = match run.optional(3) {
        None => None,
        Some(_) if *run.typed::<T>(3)?.shape() != state_shape => {
            return Err(OpError::shapes(run.input(3)?.shape(), &state_shape));
        }
        Some(past) => Some(past.slice::<T>()),
    };
    let decay_sizes = [kv_heads, kv_heads * key_size];
    let (decay, decays) = gate(run, 4, settings.decays, [batch, tokens], decay_sizes)?;
    let (beta, beta_count) = gate(run, 5, settings.corrects, [batch, tokens], [1, kv_heads])?;
    let scale = f64::from(settings.scale);
    Ok(Operands {
        query: q.slice(),
        key: k.slice(),
        value: v.slice(),
        past,
        decay,
        decay_size: decays / kv_heads,
        beta,
        beta_count,
        tokens,
        heads: [heads, kv_heads],
        key_size,
        value_size,
        scale: T::of(if scale == 0.0 { 1.0 / (key_size as f64).sqrt() } else { scale }),
    })
}

fn attend<T: Real>(run: &Run, settings: &Settings) -> Result<Vec<Tensor>, OpError> {
    let operands = operands::<T>(run, settings)?;
    let [heads, kv_heads] = operands.heads;
    let (batch, dtype) = (run.input(0)?.shape()[0], run.input(0)?.dtype());
    let (tokens, value_size) = (operands.tokens, operands.value_size);
    let mut state =
        run.pool.tensor(dtype, &[batch, kv_heads, operands.key_size, operands.value_size]);
    match operands.past {
        Some(past) => state.slice_mut::<T>().copy_from_slice(past),
        None => state.slice_mut::<T>().fill(T::ZERO),
    }
    let mut y = run.pool.tensor(dtype, &[batch, tokens, heads * value_size]);
    let text_size = tokens * heads * value_size;
    let state_size = kv_heads * operands.key_size * value_size;
    for text in 0..batch {
        let y = &mut y.slice_mut::<T>()[text * text_size..(text + 1) * text_size];
        let state = &mut state.slice_mut::<T>()[text * state_size..(text + 1) * state_size];
        operands.text(y, state, text);
    }
    Ok(vec![y, state])
}

impl<T: Real> Operands<'_, T> {
    fn text(&self, y: &mut [T], state: &mut [T], text: usize) {
        let [heads, kv_heads] = self.heads;
        let (key_size, value_size) = (self.key_size, self.value_size);
        let group = heads / kv_heads;
        let mut written = vec![T::ZERO; value_size];
        for token in 0..self.tokens {
            let row = text * self.tokens + token;
            for kv_head in 0..kv_heads {
                let at = row * kv_heads + kv_head;
                let block = key_size * value_size;
                let state = &mut state[kv_head * block..(kv_head + 1) * block];
                self.decay(state, at);
                self.write(state, &mut written, at, row, kv_head);
                for head in kv_head * group..(kv_head + 1) * group {
                    let query = &self.query[(row * heads + head) * key_size..][..key_size];
                    let out = &mut y[(token * heads + head) * value_size..][..value_size];
                    read(out, state, query);
                    out.iter_mut().for_each(|value| *value = *value * self.scale);
                }
            }
        }
    }

    /// Decays the state of a head.
    fn decay(&self, state: &mut [T], at: usize) {
        let Some(decay) = self.decay else { return };
        let decay = &decay[at * self.decay_size..][..self.decay_size];
        for (i, row) in state.chunks_exact_mut(self.value_size.max(1)).enumerate() {
            let factor = decay[i % self.decay_size].exp();
            row.iter_mut().for_each(|value| *value = *value * factor);
        }
    }

    /// Writes a token's key and value into the state of a head; leaves what was written.
    fn write(&self, state: &mut [T], written: &mut [T], at: usize, row: usize, head: usize) {
        let (key_size, value_size) = (self.key_size, self.value_size);
        let key = &self.key[at * key_size..][..key_size];
        let value = &self.value[at * value_size..][..value_size];
        written.copy_from_slice(value);
        if let Some(beta) = self.beta {
            let beta = beta[row * self.beta_count + head % self.beta_count];
            read(written, state, key);
            written.iter_mut().zip(value).for_each(|(out, &v)| *out = beta * (v - *out));
        }
        add_product(state, key, written);
    }
}

/// out = Sᵀ·x.
fn read<T: Real>(out: &mut [T], state: &[T], x: &[T]) {
    out.fill(T::ZERO);
    for (row, &x) in state.chunks_exact(out.len().max(1)).zip(x) {
        out.iter_mut().zip(row).for_each(|(out, &s)| *out += s * x);
    }
}

/// S += a⊗b.
fn add_product<T: Real>(state: &mut [T], a: &[T], b: &[T]) {
    for (row, &a) in state.chunks_exact_mut(b.len().max(1)).zip(a) {
        row.iter_mut().zip(b).for_each(|(state, &b)| *state += a * b);
    }
}

/// The gradients of query, key, value, past, decay and beta.
struct Flows {
    all: [Vec<f32>; 6],
}

impl Operands<'_, f32> {
    /// From the last token to the first, with S′ the decayed state, u what was written, d what
    /// flows back and dS what has come from the tokens after:
    ///
    /// dS += scale·q⊗do; dq = scale·S·do; du = dSᵀ·k; dk = dS·u; where u = β·(v − S′ᵀ·k): dβ = du·(v −
    /// S′ᵀ·k), dv = β·du, dk −= S′·dv, dS −= k⊗dv, else dv = du; dg = Σ dS∘S′; dS ← eᵍ·dS.
    ///
    /// The states of one head over all tokens are kept meanwhile.
    fn back(&self, dy: Option<&[f32]>, dstate: Option<&[f32]>, flows: &mut Flows, text: usize) {
        let [heads, kv_heads] = self.heads;
        let (key_size, value_size, group) = (self.key_size, self.value_size, heads / kv_heads);
        let block = key_size * value_size;
        let [dq, dk, dv, dpast, dg, dbeta] = &mut flows.all;
        let (mut u, mut du) = (vec![0.0; value_size], vec![0.0; value_size]);
        for head in 0..kv_heads {
            let place = (text * kv_heads + head) * block..(text * kv_heads + head + 1) * block;
            let states = self.states(text, head, place.clone());
            let mut ds = dstate.map_or(vec![0.0; block], |ds| ds[place.clone()].to_vec());
            for token in (0..self.tokens).rev() {
                let row = text * self.tokens + token;
                let at = row * kv_heads + head;
                let decayed = &states[token * block..(token + 1) * block];
                let mut state = decayed.to_vec();
                self.write(&mut state, &mut u, at, row, head);
                for query in head * group..(head + 1) * group {
                    let Some(dy) = dy else { continue };
                    let at = row * heads + query;
                    let dy = dy[at * value_size..][..value_size].iter().map(|dy| dy * self.scale);
                    let dy: Vec<f32> = dy.collect();
                    let q = at * key_size..(at + 1) * key_size;
                    apply(&mut dq[q.clone()], &state, &dy, 1.0);
                    add_product(&mut ds, &self.query[q], &dy);
                }
                let key = &self.key[at * key_size..][..key_size];
                let dk = &mut dk[at * key_size..][..key_size];
                read(&mut du, &ds, key);
                apply(dk, &ds, &u, 1.0);
                if let Some(beta) = self.beta {
                    let at_beta = row * self.beta_count + head % self.beta_count;
                    let beta = beta[at_beta];
                    read(&mut u, decayed, key);
                    let value = &self.value[at * value_size..][..value_size];
                    let rest = value.iter().zip(&u).map(|(v, read)| v - read);
                    dbeta[at_beta] += rest.zip(&du).map(|(rest, du)| rest * du).sum::<f32>();
                    du.iter_mut().for_each(|du| *du *= beta);
                    apply(dk, decayed, &du, -1.0);
                    let back: Vec<f32> = du.iter().map(|du| -du).collect();
                    add_product(&mut ds, key, &back);
                }
                dv[at * value_size..][..value_size].copy_from_slice(&du);
                if self.decay.is_some() {
                    let rows = ds
                        .chunks_exact(value_size.max(1))
                        .zip(decayed.chunks_exact(value_size.max(1)));
                    for (i, (ds, s)) in rows.enumerate() {
                        let sum: f32 = ds.iter().zip(s).map(|(ds, s)| ds * s).sum();
                        dg[at * self.decay_size + i % self.decay_size] += sum;
                    }
                    self.decay(&mut ds, at);
                }
            }
            dpast[place].copy_from_slice(&ds);
        }
    }

    /// The decayed states of a head, token after token.
    fn states(&self, text: usize, head: usize, place: std::ops::Range<usize>) -> Vec<f32> {
        let block = place.len();
        let mut state = self.past.map_or(vec![0.0; block], |past| past[place].to_vec());
        let (mut states, mut u) = (Vec::new(), vec![0.0; self.value_size]);
        for token in 0..self.tokens {
            let row = text * self.tokens + token;
            let at = row * self.heads[1] + head;
            self.decay(&mut state, at);
            states.extend_from_slice(&state);
            self.write(&mut state, &mut u, at, row, head);
        }
        states
    }
}

/// out += factor·S·x.
fn apply(out: &mut [f32], state: &[f32], x: &[f32], factor: f32) {
    for (out, row) in out.iter_mut().zip(state.chunks_exact(x.len().max(1))) {
        *out += factor * row.iter().zip(x).map(|(s, x)| s * x).sum::<f32>();
    }
}
