//! `QLinearConv` (opset 10): y = quantize((Σ (x − `x_zero)·(w` − `w_zero`) + bias) · `x_scale` ·
//! `w_scale` / `y_scale`) with exact 32-bit sums, rounded half to even.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::conv::infer_fact;
use crate::conv::int8::{Int8Weights, Outputs};
use crate::conv::integer::{FLIP, Job, convolve, packed, zero_of_bytes};
use crate::kernels::sums::Levels;
use crate::quantized::byte_levels_mut;
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct QLinearConv;

impl Operator for QLinearConv {
    fn op_type(&self) -> &'static str {
        "QLinearConv"
    }

    fn since_opset(&self) -> i64 {
        10
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        8..=9
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, w) = (required(inputs, 0)?, required(inputs, 3)?);
        let dtype = inputs.get(7).copied().flatten().map_or(x.dtype, |zero| zero.dtype);
        Ok(vec![infer_fact(node, x, w, dtype, false)?])
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let constant = |index: usize| constants.get(index).copied().flatten();
        let is_fixed =
            (1..node.inputs.len()).all(|i| constant(i).is_some() || node.input(i).is_none());
        if is_fixed {
            let prepared = Prepared::new(node, &constant)?;
            return Ok(Box::new(move |run: &mut Run| convolution(run, &prepared)));
        }
        let (node, held) = (node.clone(), constant(3).cloned());
        Ok(Box::new(move |run: &mut Run| {
            let input = |index: usize| match index {
                3 => run.optional(3).or(held.as_ref()),
                _ => run.optional(index),
            };
            let prepared = Prepared::new(&node, &input)?;
            convolution(run, &prepared)
        }))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        crate::conv::macs(inputs.get(3).copied().flatten(), outputs)
    }

    fn keeps_constant(&self, input: usize) -> bool {
        input == 3
    }
}

/// All but x, ready to run.
pub(crate) struct Prepared {
    pub(crate) weights: Int8Weights,
    pub(crate) outputs: Outputs,
    pub(crate) x_dtype: DType,
    /// Of u8.
    pub(crate) x_zero: u8,
    y_dtype: DType,
    pub(crate) levels: Levels,
}

impl Prepared {
    /// Reads the inputs behind x.
    ///
    /// # Errors
    /// What does not fit together.
    pub(crate) fn new<'a>(
        node: &Node,
        input: &dyn Fn(usize) -> Option<&'a Tensor>,
    ) -> Result<Self, OpError> {
        let given = |index: usize| input(index).ok_or(OpError::MissingInput { index });
        let w = given(3)?;
        let outputs = w.shape().first().copied().unwrap_or(0);
        let scale = |index: usize, most: usize| -> Result<Vec<f32>, OpError> {
            let tensor = given(index)?;
            if tensor.dtype() != DType::F32 {
                return Err(OpError::DType { index, found: tensor.dtype() });
            }
            let values = tensor.values::<f32>().into_owned();
            let fits = values.len() == 1 || values.len() == most;
            if fits { Ok(values) } else { Err(OpError::shapes(&[most], tensor.shape())) }
        };
        let (x_scale, w_scale, y_scale) = (scale(1, 1)?[0], scale(4, outputs)?, scale(6, 1)?[0]);
        let factors: Vec<f32> = w_scale.iter().map(|w| x_scale * w / y_scale).collect();
        let bias = match input(8) {
            Some(bias) if bias.dtype() != DType::I32 => {
                return Err(OpError::DType { index: 8, found: bias.dtype() });
            }
            Some(bias) if bias.shape() != [outputs] => {
                return Err(OpError::shapes(&[outputs], bias.shape()));
            }
            bias => bias.map(Tensor::values::<i32>),
        };
        let (x_zero, y_zero) = (given(2)?, given(7)?);
        let weights = packed::<u8>(node, w, input(5), [3, 5])?;
        let zero = zero_of_bytes(x_zero, 2)?;
        Ok(Self {
            outputs: weights.outputs(bias.as_deref(), zero, &factors),
            weights,
            x_dtype: x_zero.dtype(),
            x_zero: zero,
            y_dtype: y_zero.dtype(),
            levels: Levels { zero: zero_of_bytes(y_zero, 7)?, ..Levels::ALL },
        })
    }
}

fn convolution(run: &Run, prepared: &Prepared) -> Result<Vec<Tensor>, OpError> {
    let x = run.input(0)?;
    if x.dtype() != prepared.x_dtype {
        return Err(OpError::DType { index: 0, found: x.dtype() });
    }
    let is_signed = prepared.y_dtype == DType::I8;
    let after = |_: usize, y: &mut [u8]| {
        if is_signed {
            y.iter_mut().for_each(|y| *y ^= FLIP);
        }
    };
    let job = Job {
        weights: &prepared.weights,
        outputs: &prepared.outputs,
        x_zero: prepared.x_zero,
        levels: prepared.levels,
        is_channels_last: false,
        after: &after,
    };
    let y = convolve::<u8>(run.pool, x, &job)?;
    if !is_signed {
        return Ok(vec![y]);
    }
    let mut signed = run.pool.tensor(DType::I8, y.shape());
    byte_levels_mut(&mut signed).copy_from_slice(y.slice::<u8>());
    run.pool.recycle(y);
    Ok(vec![signed])
}
