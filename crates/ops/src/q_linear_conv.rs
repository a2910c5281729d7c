//! `QLinearConv` (opset 10): y = quantize((Σ (x − `x_zero)·(w` − `w_zero`) + bias) · `x_scale` ·
//! `w_scale` / `y_scale`) with exact 32-bit sums, rounded half to even.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::conv::infer_fact;
use crate::conv::integer::{IntegerWeights, ZeroPoints};
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
        let constant = constants.get(3).copied().flatten();
        let packed = constant.map(|w| IntegerWeights::new(node, w, 3)).transpose()?;
        let node = node.clone();
        Ok(Box::new(move |run: &mut Run| match &packed {
            Some(packed) => convolve(run, packed),
            None => convolve(run, &IntegerWeights::new(&node, run.input(3)?, 3)?),
        }))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        crate::conv::macs(inputs.get(3).copied().flatten(), outputs)
    }

    fn keeps_constant(&self, input: usize) -> bool {
        input == 3
    }
}

fn convolve(run: &Run, weights: &IntegerWeights) -> Result<Vec<Tensor>, OpError> {
    let outputs = weights.shape[0];
    let scale = |index: usize, most: usize| -> Result<Vec<f32>, OpError> {
        let tensor = run.typed::<f32>(index)?;
        let values = tensor.values::<f32>().into_owned();
        let fits = values.len() == 1 || values.len() == most;
        if fits { Ok(values) } else { Err(OpError::shapes(&[most], tensor.shape())) }
    };
    let (x_scale, w_scale, y_scale) = (scale(1, 1)?[0], scale(4, outputs)?, scale(6, 1)?[0]);
    let factors: Vec<f32> =
        (0..outputs).map(|o| x_scale * w_scale[o % w_scale.len()] / y_scale).collect();
    let zeros = ZeroPoints::new(run.optional(2), run.optional(5), outputs)?;
    let bias = match run.optional(8) {
        Some(bias) if bias.shape() != [outputs] => {
            return Err(OpError::shapes(&[outputs], bias.shape()));
        }
        Some(_) => run.typed::<i32>(8)?.values::<i32>().into_owned(),
        None => vec![0; outputs],
    };
    let zero = run.input(7)?;
    let level = match zero.to_i64().as_deref() {
        Some(&[level]) => level as f32,
        _ => return Err(OpError::value("the zero point of y", zero.shape(), "a scalar")),
    };
    let (low, high) = if zero.dtype() == DType::I8 { (-128.0, 127.0) } else { (0.0, 255.0) };
    let quantize = |o: usize, sum: i32| {
        let scaled = sum.wrapping_add(bias[o]) as f32 * factors[o];
        scaled.max(low - level).min(high - level).round_ties_even() + level
    };
    let x = run.input(0)?;
    let y = match zero.dtype() {
        DType::U8 => weights.run(run.pool, x, &zeros, |o, sum| quantize(o, sum) as u8),
        DType::I8 => weights.run(run.pool, x, &zeros, |o, sum| quantize(o, sum) as i8),
        found => Err(OpError::DType { index: 7, found }),
    };
    Ok(vec![y?])
}
