//! `RotaryEmbedding` (opset 23, and ONNX Runtime's form): pairs of a head's values turn by an angle
//! of their position, (x₁, x₂) → (x₁·cos − x₂·sin, x₁·sin + x₂·cos) (Su et al., 2021,
//! arXiv:2104.09864).

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::kernels::for_rows;
use crate::{Fact, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Run, required};

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

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let settings = Settings::new(node, [1, 2, 3])?;
        Ok(Box::new(move |run: &mut Run| rotate(run, &settings)))
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

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        if node.int_or("is_packed_batching", 0)? != 0 {
            return Err(OpError::Unsupported { what: "is_packed_batching".into() });
        }
        let settings = Settings::new(node, [2, 3, 1])?;
        Ok(Box::new(move |run: &mut Run| rotate(run, &settings)))
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

fn rotate(run: &mut Run, settings: &Settings) -> Result<Vec<Tensor>, OpError> {
    let [cos_index, sin_index, position_index] = settings.inputs;
    let x = run.typed::<f32>(0)?;
    let (cos, sin) = (run.typed::<f32>(cos_index)?, run.typed::<f32>(sin_index)?);
    if cos.shape() != sin.shape() || cos.rank() == 0 {
        return Err(OpError::shapes(cos.shape(), sin.shape()));
    }
    let half = cos.shape()[cos.rank() - 1];
    let (tokens, queries, heads, size, is_apart) = match *x.shape() {
        [batch, heads, queries, size] => (batch * queries, queries, heads, size, true),
        [batch, queries, hidden] => {
            // Without a count of heads, the tables tell the size of one.
            let size = match hidden.checked_div(settings.heads) {
                Some(size) => size,
                None => half * 2,
            };
            if size == 0 || hidden % size != 0 {
                return Err(OpError::value(
                    "the size of a head",
                    size,
                    format!("a part of {hidden}"),
                ));
            }
            (batch * queries, queries, hidden / size, size, false)
        }
        _ => return Err(OpError::value("the shape of input 0", x.shape(), "of rank 3 or 4")),
    };
    let rotary = if settings.rotary_size == 0 { size } else { settings.rotary_size };
    if rotary > size || rotary != half * 2 {
        return Err(OpError::value(
            "twice the last axis of the tables",
            half * 2,
            rotary.to_string(),
        ));
    }
    let positions = Positions::new(run.optional(position_index), position_index, tokens)?;
    let row_count = cos.element_count().checked_div(half).unwrap_or(0);
    let is_outside = |token: usize| positions.row(token, queries) >= row_count;
    if half > 0 && (0..tokens).any(is_outside) {
        return Err(OpError::value("a position", "past the tables", format!("below {row_count}")));
    }
    let mut y = run.pool.tensor(DType::F32, x.shape());
    let (x, cos, sin) = (x.slice::<f32>(), cos.slice::<f32>(), sin.slice::<f32>());
    for_rows(y.slice_mut::<f32>(), size, |first, rows| {
        for (i, y) in rows.chunks_exact_mut(size).enumerate() {
            let row = first + i;
            let token = if is_apart {
                row / (heads * queries) * queries + row % queries
            } else {
                row / heads
            };
            let at = positions.row(token, queries) * half;
            y.copy_from_slice(&x[row * size..(row + 1) * size]);
            turn(&mut y[..rotary], &cos[at..at + half], &sin[at..at + half], settings);
        }
    });
    Ok(vec![y])
}

fn turn(row: &mut [f32], cos: &[f32], sin: &[f32], settings: &Settings) {
    let half = cos.len();
    for (i, (&cos, &sin)) in cos.iter().zip(sin).enumerate() {
        let [a, b] = if settings.is_interleaved { [2 * i, 2 * i + 1] } else { [i, i + half] };
        let (x, y) = (row[a], row[b]);
        row[a] = x * cos - y * sin;
        row[b] = x * sin + y * cos;
    }
}
