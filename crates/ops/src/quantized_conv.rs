//! `QuantizedConv`, made by fusion: a `QLinearConv` of u8 and what follows it, in one pass.
//!
//! y = table[clamp(round(Σ (x − `x_zero)·w` + bias) · scale + zero, low, high)], then perhaps
//! y = round(y + addend) of dequantized values, quantized again: a residual addition.
//!
//! Inputs 0 to 8 are those of `QLinearConv`; then the table (u8, 256), the addend (u8, of y's shape)
//! with its scale and zero point, and scale and zero point of the sum. All but x and the addend are
//! constant; the last seven may be absent. Attributes are those of `Conv`, `low` and `high`.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::conv::infer_fact;
use crate::conv::integer::{Job, convolve};
use crate::kernels::quantize::{self, Term};
use crate::kernels::sums::Levels;
use crate::q_linear_conv::Prepared;
use crate::{ATTAR_DOMAIN, Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct QuantizedConv {
    op_type: &'static str,
    is_channels_last: bool,
}

pub(crate) const QUANTIZED_CONV: QuantizedConv =
    QuantizedConv { op_type: "QuantizedConv", is_channels_last: false };

/// The same where the channels of activations are the last axis.
pub(crate) const CHANNELS_LAST_QUANTIZED_CONV: QuantizedConv =
    QuantizedConv { op_type: "ChannelsLastQuantizedConv", is_channels_last: true };

/// Index of the table among the inputs.
pub(crate) const TABLE: usize = 9;
/// Index of the addend, which scales and zero points follow.
pub(crate) const ADDEND: usize = 10;

impl Operator for QuantizedConv {
    fn op_type(&self) -> &'static str {
        self.op_type
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        8..=15
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, w) = (required(inputs, 0)?, required(inputs, 3)?);
        Ok(vec![infer_fact(node, x, w, DType::U8, self.is_channels_last)?])
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let constant = |index: usize| constants.get(index).copied().flatten();
        let mut prepared = Prepared::new(node, &constant)?;
        let level = |name: &str, default: u8| -> Result<u8, OpError> {
            let value = node.int_or(name, default.into())?;
            u8::try_from(value).map_err(|_| OpError::value(name, value, "a level of u8"))
        };
        let Levels { zero, low, high } = prepared.levels;
        prepared.levels = Levels { zero, low: level("low", low)?, high: level("high", high)? };
        let table = constant(TABLE).map(table).transpose()?;
        let term = |index: usize| -> Result<Term, OpError> {
            let given = |index: usize| constant(index).ok_or(OpError::MissingInput { index });
            Ok(Term {
                scale: given(index)?.values::<f32>().first().copied().unwrap_or(0.0),
                zero_point: i32::from(crate::conv::integer::zero_of_bytes(
                    given(index + 1)?,
                    index + 1,
                )?),
            })
        };
        let sum = match node.input(ADDEND) {
            Some(_) => Some([term(6)?, term(ADDEND + 1)?, term(ADDEND + 3)?]),
            None => None,
        };
        Ok(Box::new(Convolution { prepared, table, sum, is_channels_last: self.is_channels_last }))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        crate::conv::macs(inputs.get(3).copied().flatten(), outputs)
    }

    fn keeps_constant(&self, input: usize) -> bool {
        matches!(input, 1..ADDEND) || input > ADDEND
    }
}

/// The 256 levels of a table.
pub(crate) fn table(tensor: &Tensor) -> Result<Box<[u8; 256]>, OpError> {
    let levels: Option<[u8; 256]> = (tensor.dtype() == DType::U8)
        .then(|| tensor.values::<u8>().as_ref().try_into().ok())
        .flatten();
    levels.map(Box::new).ok_or_else(|| OpError::value("the table", tensor.shape(), "256 of u8"))
}

struct Convolution {
    prepared: Prepared,
    table: Option<Box<[u8; 256]>>,
    /// What levels of the convolution, of the addend and of the sum stand for.
    sum: Option<[Term; 3]>,
    is_channels_last: bool,
}

impl Kernel for Convolution {
    fn run(&self, run: &mut Run) -> Result<Vec<Tensor>, OpError> {
        let x = run.typed::<u8>(0)?;
        let addend = match (&self.sum, self.is_channels_last) {
            (None, _) => None,
            (Some(_), true) => Some(run.typed::<u8>(ADDEND)?.clone()),
            (Some(_), false) => {
                Some(crate::conv::layout::to_channels_last(run.pool, run.typed::<u8>(ADDEND)?))
            }
        };
        if let Some(addend) = &addend {
            self.check(x, addend)?;
        }
        let after = |at: usize, y: &mut [u8]| {
            if let Some(table) = &self.table {
                quantize::look_up(y, table);
            }
            if let (Some(sum), Some(addend)) = (self.sum, &addend) {
                quantize::add_levels(y, &addend.slice::<u8>()[at..at + y.len()], sum);
            }
        };
        let job = Job {
            weights: &self.prepared.weights,
            outputs: &self.prepared.outputs,
            x_zero: self.prepared.x_zero,
            levels: self.prepared.levels,
            is_channels_last: self.is_channels_last,
            after: &after,
        };
        Ok(vec![convolve::<u8>(run.pool, x, &job)?])
    }
}

impl Convolution {
    /// An addend, channels last, has the shape of the output.
    fn check(&self, x: &Tensor, addend: &Tensor) -> Result<(), OpError> {
        let weights = &self.prepared.weights;
        let shape = crate::conv::Shape::new(x.shape(), self.is_channels_last);
        let axes = weights.geometry.axes(shape.spatial)?;
        let sizes = axes.iter().map(|axis| axis.output);
        let expected = crate::conv::output_shape(shape.batch, weights.shape[0], sizes, true)?;
        if addend.shape() == expected {
            return Ok(());
        }
        Err(OpError::shapes(&expected, addend.shape()))
    }
}
