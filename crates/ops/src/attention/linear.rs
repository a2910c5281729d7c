//! `LinearAttention` (opset 27): a state S of keys × values per head is decayed and written at each
//! token, and read by its query (Yang et al., 2024, arXiv:2412.06464).
//!
//! S ← eᵍ·S; v′ = β·(v − Sᵀk), or v; S ← S + k⊗v′; o = scale·Sᵀq.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::{Fact, Kernel, OpError, Operator, Run, required};

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

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let settings = Settings::new(node)?;
        Ok(Box::new(move |run: &mut Run| attend(run, &settings)))
    }

    fn macs(&self, _: &Node, _: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        // The state is read by the query and written by the key.
        let values = outputs.first().map_or(Dim::Unknown, Fact::element_count);
        let state = outputs.get(1).and_then(|state| state.shape.as_ref()?.get(2).cloned());
        &(&values * &state.unwrap_or(Dim::Unknown)) * &Dim::Known(2)
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// Operands, split into rows of heads.
struct Operands<'a> {
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    decay: Option<&'a [f32]>,
    /// Values of the decay per head: one, or one per value of the key.
    decay_size: usize,
    beta: Option<&'a [f32]>,
    /// Values of beta per token: one, or one per head.
    beta_count: usize,
    tokens: usize,
    key_size: usize,
    value_size: usize,
    scale: f32,
}

/// An optional gate, which a rule either needs or does not take: its values and their count per
/// token.
fn gate<'a>(
    run: &'a Run,
    index: usize,
    is_needed: bool,
    rows: [usize; 2],
    allowed: [usize; 2],
) -> Result<(Option<&'a [f32]>, usize), OpError> {
    if !is_needed {
        return match run.optional(index) {
            None => Ok((None, 1)),
            Some(_) => {
                Err(OpError::value(&format!("input {index}"), "given", "none for this rule"))
            }
        };
    }
    let tensor = run.typed::<f32>(index)?;
    match *tensor.shape() {
        [batch, tokens, size] if [batch, tokens] == rows && allowed.contains(&size) => {
            Ok((Some(tensor.slice()), size))
        }
        _ => Err(OpError::shapes(tensor.shape(), &[rows[0], rows[1], allowed[1]])),
    }
}

fn attend(run: &mut Run, settings: &Settings) -> Result<Vec<Tensor>, OpError> {
    let (q, k, v) = (run.typed::<f32>(0)?, run.typed::<f32>(1)?, run.typed::<f32>(2)?);
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
    let mut state = run.pool.tensor(DType::F32, &state_shape);
    match run.optional(3) {
        Some(past) if past.dtype() != DType::F32 => {
            return Err(OpError::DType { index: 3, found: past.dtype() });
        }
        Some(past) if *past.shape() != state_shape => {
            return Err(OpError::shapes(past.shape(), &state_shape));
        }
        Some(past) => state.slice_mut::<f32>().copy_from_slice(past.slice()),
        None => state.slice_mut::<f32>().fill(0.0),
    }
    let decay_sizes = [kv_heads, kv_heads * key_size];
    let (decay, decays) = gate(run, 4, settings.decays, [batch, tokens], decay_sizes)?;
    let (beta, beta_count) = gate(run, 5, settings.corrects, [batch, tokens], [1, kv_heads])?;
    let scale = if settings.scale == 0.0 { 1.0 / (key_size as f32).sqrt() } else { settings.scale };
    let operands = Operands {
        query: q.slice(),
        key: k.slice(),
        value: v.slice(),
        decay,
        decay_size: decays / kv_heads,
        beta,
        beta_count,
        tokens,
        key_size,
        value_size,
        scale,
    };
    let mut y = run.pool.tensor(DType::F32, &[batch, tokens, heads * value_size]);
    let text_size = tokens * heads * value_size;
    let state_size = kv_heads * key_size * value_size;
    for text in 0..batch {
        let y = &mut y.slice_mut::<f32>()[text * text_size..(text + 1) * text_size];
        let state = &mut state.slice_mut::<f32>()[text * state_size..(text + 1) * state_size];
        operands.text(y, state, text, [heads, kv_heads]);
    }
    Ok(vec![y, state])
}

impl Operands<'_> {
    fn text(&self, y: &mut [f32], state: &mut [f32], text: usize, [heads, kv_heads]: [usize; 2]) {
        let (key_size, value_size) = (self.key_size, self.value_size);
        let group = heads / kv_heads;
        let mut written = vec![0.0; value_size];
        for token in 0..self.tokens {
            let row = text * self.tokens + token;
            for kv_head in 0..kv_heads {
                let at = row * kv_heads + kv_head;
                let block = key_size * value_size;
                let state = &mut state[kv_head * block..(kv_head + 1) * block];
                self.write(state, &mut written, at, row, kv_head);
                for head in kv_head * group..(kv_head + 1) * group {
                    let query = &self.query[(row * heads + head) * key_size..][..key_size];
                    let out = &mut y[(token * heads + head) * value_size..][..value_size];
                    read(out, state, query);
                    out.iter_mut().for_each(|value| *value *= self.scale);
                }
            }
        }
    }

    /// Decays the state of a head and writes a token's key and value into it.
    fn write(&self, state: &mut [f32], written: &mut [f32], at: usize, row: usize, head: usize) {
        let (key_size, value_size) = (self.key_size, self.value_size);
        let key = &self.key[at * key_size..][..key_size];
        let value = &self.value[at * value_size..][..value_size];
        if let Some(decay) = self.decay {
            let decay = &decay[at * self.decay_size..][..self.decay_size];
            for (i, row) in state.chunks_exact_mut(value_size.max(1)).enumerate() {
                let factor = decay[i % self.decay_size].exp();
                row.iter_mut().for_each(|value| *value *= factor);
            }
        }
        written.copy_from_slice(value);
        if let Some(beta) = self.beta {
            let beta = beta[row * self.beta_count + head % self.beta_count];
            read(written, state, key);
            written.iter_mut().zip(value).for_each(|(out, &v)| *out = beta * (v - *out));
        }
        for (row, &key) in state.chunks_exact_mut(value_size.max(1)).zip(key) {
            row.iter_mut().zip(&*written).for_each(|(state, &v)| *state += key * v);
        }
    }
}

/// out = Sᵀ·x.
fn read(out: &mut [f32], state: &[f32], x: &[f32]) {
    out.fill(0.0);
    for (row, &x) in state.chunks_exact(out.len().max(1)).zip(x) {
        out.iter_mut().zip(row).for_each(|(out, &s)| *out += s * x);
    }
}
