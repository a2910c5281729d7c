//! `RotaryEmbedding` (opset 23, and ONNX Runtime's form): pairs of a head's values turn by an angle
//! of their position, (x₁, x₂) → (x₁·cos − x₂·sin, x₁·sin + x₂·cos) (Su et al., 2021,
//! arXiv:2104.09864).

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use super::channel_rules;
use crate::channels::{Channels, Tensors};
use crate::gradient::gradient;
use crate::kernels::for_rows;
use crate::normalization_gradient::place;
use crate::real::Real;
use crate::{
    Backward, Fact, Gradient, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Reads, Run, Training,
    required,
};

pub(crate) struct RotaryEmbedding;

/// Inputs x, positions, cosines, sines; positions may be one offset for every text.
pub(crate) struct MicrosoftRotaryEmbedding;

struct Settings {
    heads: usize,
    /// How many values of a head turn; 0 for all.
    rotary_size: usize,
    is_interleaved: bool,
    /// Indices of the inputs: cosines, sines, positions.
    inputs: [usize; 3],
}

impl Settings {
    fn new(node: &Node, inputs: [usize; 3]) -> Result<Self, OpError> {
        let count = |name: &str| {
            let value = node.int_or(name, 0)?;
            usize::try_from(value).map_err(|_| OpError::value(name, value, "0 or more"))
        };
        Ok(Self {
            heads: count("num_heads")?,
            rotary_size: count("rotary_embedding_dim")?,
            is_interleaved: node.int_or("interleaved", 0)? != 0,
            inputs,
        })
    }

    /// The places of pair `i` of `half`.
    fn pair(&self, i: usize, half: usize) -> [usize; 2] {
        if self.is_interleaved { [2 * i, 2 * i + 1] } else { [i, i + half] }
    }
}

impl Operator for RotaryEmbedding {
    fn op_type(&self) -> &'static str {
        "RotaryEmbedding"
    }

    fn since_opset(&self) -> i64 {
        23
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=4
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        channel_rules::rotary(node, tensors, [1, 2])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let settings = Settings::new(node, [1, 2, 3])?;
        Ok(Box::new(move |run: &mut Run| match run.input(0)?.dtype() {
            DType::F64 => rotate::<f64>(run, &settings, false),
            _ => rotate::<f32>(run, &settings, false),
        }))
    }

    fn gradient(&self, node: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        rotation_gradient(Settings::new(node, [1, 2, 3])?, training)
    }

    fn widens_half(&self) -> bool {
        true
    }
}

impl Operator for MicrosoftRotaryEmbedding {
    fn op_type(&self) -> &'static str {
        "RotaryEmbedding"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        4..=4
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        channel_rules::rotary(node, tensors, [2, 3])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        if node.int_or("is_packed_batching", 0)? != 0 {
            return Err(OpError::Unsupported { what: "is_packed_batching".into() });
        }
        let settings = Settings::new(node, [2, 3, 1])?;
        Ok(Box::new(move |run: &mut Run| match run.input(0)?.dtype() {
            DType::F64 => rotate::<f64>(run, &settings, false),
            _ => rotate::<f32>(run, &settings, false),
        }))
    }

    fn gradient(&self, node: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        rotation_gradient(Settings::new(node, [2, 3, 1])?, training)
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// Which rows of the tables the tokens of a text use.
enum Positions {
    /// The tables have a row for each token of each text.
    Own,
    /// Row `offset` + token.
    From(usize),
    Listed(Vec<usize>),
}

impl Positions {
    fn new(positions: Option<&Tensor>, index: usize, rows: usize) -> Result<Self, OpError> {
        let Some(tensor) = positions else { return Ok(Self::Own) };
        let error = OpError::DType { index, found: tensor.dtype() };
        let values = tensor.to_i64().ok_or(error)?;
        let row = |&value: &i64| {
            usize::try_from(value).map_err(|_| OpError::value("a position", value, "0 or more"))
        };
        match values.as_slice() {
            [offset] if tensor.rank() < 2 => Ok(Self::From(row(offset)?)),
            _ if values.len() == rows => {
                Ok(Self::Listed(values.iter().map(row).collect::<Result<_, _>>()?))
            }
            _ => Err(OpError::shapes(tensor.shape(), &[rows])),
        }
    }

    /// The row for a token (counted over all texts).
    fn row(&self, token: usize, queries: usize) -> usize {
        match self {
            Self::Own => token,
            Self::From(offset) => offset.saturating_add(token % queries),
            Self::Listed(rows) => rows[token],
        }
    }
}

/// A turn is undone by the turn back: dx is dy turned by −angle. With x = (x₁, x₂) and dy = (g₁, g₂),
/// dcos = g₁·x₁ + g₂·x₂ and dsin = g₂·x₁ − g₁·x₂, summed over what turned by the same angle.
fn rotation_gradient(
    settings: Settings,
    training: &Training,
) -> Result<Box<dyn Gradient>, OpError> {
    let [cos, sin, position] = settings.inputs;
    let wants_tables = training.wants(cos) || training.wants(sin);
    let reads = Reads::NOTHING.input_if(0, wants_tables).input(cos).input(sin).input(position);
    gradient(reads, move |run: &mut Backward| {
        let dy = run.take_gradient();
        let mut flows = vec![None; 4];
        if run.wants(cos) || run.wants(sin) {
            let [dcos, dsin] = table_gradients(&dy, run, &settings)?;
            place(&mut flows, Some(cos), dcos, run);
            place(&mut flows, Some(sin), dsin, run);
        }
        let mut inputs = run.inputs.clone();
        inputs[0] = Some(dy);
        let dx = rotate::<f32>(&mut Run { inputs, pool: run.pool }, &settings, true)?.pop();
        place(&mut flows, Some(0), dx.expect("a rotation has a result"), run);
        Ok(flows)
    })
}

fn table_gradients(
    dy: &Tensor,
    run: &Backward,
    settings: &Settings,
) -> Result<[Tensor; 2], OpError> {
    let [cos, _, position] = settings.inputs;
    let x = run.input(0)?;
    let shape = run.shape(cos);
    let half = shape.last().copied().unwrap_or(0);
    let forward = Run { inputs: run.inputs.clone(), pool: run.pool };
    let plan = Turns::new(x.shape(), half, forward.optional(position), settings)?;
    let (mut dcos, mut dsin) = (run.zeros(shape), run.zeros(shape));
    let (cos_sums, sin_sums) = (dcos.slice_mut::<f32>(), dsin.slice_mut::<f32>());
    let rows = x.slice::<f32>().chunks_exact(plan.size.max(1));
    for (row, (x, dy)) in rows.zip(dy.slice::<f32>().chunks_exact(plan.size.max(1))).enumerate() {
        let at = plan.table_row(row) * half;
        for i in 0..half {
            let [a, b] = settings.pair(i, half);
            cos_sums[at + i] += dy[a] * x[a] + dy[b] * x[b];
            sin_sums[at + i] += dy[b] * x[a] - dy[a] * x[b];
        }
    }
    Ok([dcos, dsin])
}

/// Which row of the tables each row of x turns by.
struct Turns {
    positions: Positions,
    tokens: usize,
    queries: usize,
    heads: usize,
    size: usize,
    is_apart: bool,
}

impl Turns {
    fn new(
        shape: &[usize],
        half: usize,
        positions: Option<&Tensor>,
        settings: &Settings,
    ) -> Result<Self, OpError> {
        let (tokens, queries, heads, size, is_apart) = match *shape {
            [batch, heads, queries, size] => (batch * queries, queries, heads, size, true),
            [batch, queries, hidden] => {
                // Without a count of heads, the tables tell the size of one.
                let size = match hidden.checked_div(settings.heads) {
                    Some(size) => size,
                    None => half * 2,
                };
                if size == 0 || hidden % size != 0 {
                    let expected = format!("a part of {hidden}");
                    return Err(OpError::value("the size of a head", size, expected));
                }
                (batch * queries, queries, hidden / size, size, false)
            }
            _ => return Err(OpError::value("the shape of input 0", shape, "of rank 3 or 4")),
        };
        let positions = Positions::new(positions, settings.inputs[2], tokens)?;
        Ok(Self { positions, tokens, queries, heads, size, is_apart })
    }

    fn table_row(&self, row: usize) -> usize {
        let token = if self.is_apart {
            row / (self.heads * self.queries) * self.queries + row % self.queries
        } else {
            row / self.heads
        };
        self.positions.row(token, self.queries)
    }
}

/// Turns the heads of input 0 by their angles, or back.
fn rotate<T: Real>(run: &mut Run, settings: &Settings, back: bool) -> Result<Vec<Tensor>, OpError> {
    let [cos_index, sin_index, position_index] = settings.inputs;
    let x = run.typed::<T>(0)?;
    let (cos, sin) = (run.typed::<T>(cos_index)?, run.typed::<T>(sin_index)?);
    if cos.shape() != sin.shape() || cos.rank() == 0 {
        return Err(OpError::shapes(cos.shape(), sin.shape()));
    }
    let half = cos.shape()[cos.rank() - 1];
    let plan = Turns::new(x.shape(), half, run.optional(position_index), settings)?;
    let size = plan.size;
    let rotary = if settings.rotary_size == 0 { size } else { settings.rotary_size };
    if rotary > size || rotary != half * 2 {
        return Err(OpError::value(
            "twice the last axis of the tables",
            half * 2,
            rotary.to_string(),
        ));
    }
    let row_count = cos.element_count().checked_div(half).unwrap_or(0);
    let is_outside = |token: usize| plan.positions.row(token, plan.queries) >= row_count;
    if half > 0 && (0..plan.tokens).any(is_outside) {
        return Err(OpError::value("a position", "past the tables", format!("below {row_count}")));
    }
    let mut y = run.pool.tensor(T::DTYPE, x.shape());
    let (x, cos, sin) = (x.slice::<T>(), cos.slice::<T>(), sin.slice::<T>());
    for_rows(y.slice_mut::<T>(), size, |first, rows| {
        for (i, y) in rows.chunks_exact_mut(size).enumerate() {
            let row = first + i;
            let at = plan.table_row(row) * half;
            y.copy_from_slice(&x[row * size..(row + 1) * size]);
            turn(&mut y[..rotary], &cos[at..at + half], &sin[at..at + half], settings, back);
        }
    });
    Ok(vec![y])
}

fn turn<T: Real>(row: &mut [T], cos: &[T], sin: &[T], settings: &Settings, back: bool) {
    let half = cos.len();
    for (i, (&cos, &sin)) in cos.iter().zip(sin).enumerate() {
        let [a, b] = settings.pair(i, half);
        let (x, y) = (row[a], row[b]);
        let sin = if back { T::ZERO - sin } else { sin };
        row[a] = x * cos - y * sin;
        row[b] = x * sin + y * cos;
    }
}
