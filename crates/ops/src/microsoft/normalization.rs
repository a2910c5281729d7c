//! Normalizations of ONNX Runtime's optimizer: with the residual addition before them, and by the
//! root mean square alone, y = x / √(mean x² + ε) · scale (Zhang & Sennrich, 2019,
//! arXiv:1910.07467).

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::vector;
use crate::channels::{Channels, Port, Tensors, input};
use crate::clip::in_place_or_copy;
use crate::fact::resolve_axis;
use crate::gradient::add_assign;
use crate::kernels::{elementwise, for_rows, normalize};
use crate::normalization_gradient::{Form, Kind, place};
use crate::rms_normalization::root_mean_square_gradient;
use crate::row_sums::sum_rows;
use crate::{
    Backward, Fact, Flow, Forward, Gradient, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Pool,
    Reads, Run, Training, required,
};

/// y = LayerNormalization(x + skip + bias); inputs x, skip, scale, shift, bias. Output 3 is the sum.
pub(crate) struct MicrosoftSkipLayerNormalization;

/// The same by the root mean square; inputs x, skip, scale, bias.
pub(crate) struct SkipSimplifiedLayerNormalization;

/// Of ONNX's domain by name, of ONNX Runtime by origin; inputs x, scale. Output 1 is 1/√(mean x² + ε).
pub(crate) struct SimplifiedLayerNormalization;

/// Where the vectors of a residual normalization stand.
#[derive(Clone, Copy)]
struct Places {
    shift: Option<usize>,
    bias: usize,
}

macro_rules! residual {
    ($($op:ident, $name:literal, $inputs:expr, $places:expr;)*) => {$(
        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                $name
            }

            fn domain(&self) -> &'static str {
                MICROSOFT_DOMAIN
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                $inputs
            }

            fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                infer_residual(node, inputs)
            }

            fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
                residual_channels(tensors)
            }

            fn kernel(
                &self,
                node: &Node,
                _: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                let epsilon = node.float_or("epsilon", 1e-12)?;
                let statistics = node.outputs.iter().take(3).skip(1);
                if statistics.clone().any(|output| !output.is_empty()) {
                    let what = "the mean and deviation outputs".into();
                    return Err(OpError::Unsupported { what });
                }
                let keeps_sum = node.outputs.get(3).is_some_and(|output| !output.is_empty());
                Ok(Box::new(move |run: &mut Run| residual(run, $places, epsilon, keeps_sum)))
            }

            fn gradient(
                &self,
                node: &Node,
                _: &Training,
            ) -> Result<Box<dyn Gradient>, OpError> {
                let epsilon = node.float_or("epsilon", 1e-12)?;
                let output_count = node.outputs.len();
                Ok(Box::new(ResidualGradient { places: $places, epsilon, output_count }))
            }

            fn widens_half(&self) -> bool {
                true
            }
        }
    )*};
}

residual! {
    MicrosoftSkipLayerNormalization, "SkipLayerNormalization", 3..=5,
        Places { shift: Some(3), bias: 4 };
    SkipSimplifiedLayerNormalization, "SkipSimplifiedLayerNormalization", 3..=4,
        Places { shift: None, bias: 3 };
}

fn infer_residual(node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
    let x = required(inputs, 0)?;
    let mut statistics = x.with_dtype(DType::F32);
    if let Some(last) = statistics.shape.as_mut().and_then(|shape| shape.last_mut()) {
        *last = Dim::Known(1);
    }
    let same = || x.with_dtype(x.dtype);
    let mut facts = vec![same(), statistics.clone(), statistics, same()];
    facts.truncate(node.outputs.len());
    Ok(facts)
}

/// All axes pass, over the last of which statistics are taken.
fn residual_channels(tensors: &Tensors) -> Option<Channels> {
    let last = tensors.rank(Port::Input(0))?.checked_sub(1)?;
    let mut channels = Channels::elementwise(tensors, 0..tensors.inputs.len());
    // Output 3 is the sum.
    channels.tie_all(tensors, Port::Output(3), Port::Output(0), &[]);
    channels.statistics.push(input(0, last));
    Some(channels)
}

/// x + skip + bias in place of x where it dies here, and the size of a row.
fn residual_sum(run: &mut Run, places: Places) -> Result<(Tensor, usize), OpError> {
    let (x, skip) = (run.typed::<f32>(0)?, run.typed::<f32>(1)?);
    let size = *x.shape().last().ok_or_else(|| OpError::value("input 0", "a scalar", "rows"))?;
    let skip_count = skip.element_count();
    // A skip of fewer texts is repeated over them.
    let fits = skip.shape().last() == Some(&size)
        && (x.element_count() == 0 || (skip_count > 0 && x.element_count() % skip_count == 0));
    if !fits {
        return Err(OpError::shapes(x.shape(), skip.shape()));
    }
    run.typed::<f32>(2)?;
    for index in [Some(2), places.shift, Some(places.bias)].into_iter().flatten() {
        vector(run, index, size)?;
    }
    let mut y = in_place_or_copy(run)?;
    let skip = run.input(1)?.slice::<f32>();
    let bias = vector(run, places.bias, size)?;
    for_rows(y.slice_mut::<f32>(), size, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(size).enumerate() {
            let at = (first + i) * size % skip_count;
            elementwise::add_assign(row, &skip[at..at + size]);
            if let Some(bias) = bias {
                elementwise::add_assign(row, bias);
            }
        }
    });
    Ok((y, size))
}

/// Rows normalized in place.
fn normalize(
    run: &Run,
    y: &mut Tensor,
    size: usize,
    places: Places,
    epsilon: f32,
) -> Result<(), OpError> {
    let scale = run.input(2)?.slice::<f32>();
    let optional = |index: usize| vector(run, index, size);
    let shift = places.shift.map(optional).transpose()?.flatten();
    for_rows(y.slice_mut::<f32>(), size, |_, rows| match places.shift {
        Some(_) => normalize::layer_normalize_rows(rows, scale, shift, epsilon),
        None => normalize::root_mean_square_rows(rows, scale, epsilon),
    });
    Ok(())
}

fn copied(x: &Tensor, pool: &Pool) -> Tensor {
    let mut copy = pool.tensor(DType::F32, x.shape());
    copy.slice_mut::<f32>().copy_from_slice(x.slice());
    copy
}

fn residual(
    run: &mut Run,
    places: Places,
    epsilon: f32,
    keeps_sum: bool,
) -> Result<Vec<Tensor>, OpError> {
    let (mut y, size) = residual_sum(run, places)?;
    let sum = keeps_sum.then(|| copied(&y, run.pool));
    normalize(run, &mut y, size, places, epsilon)?;
    let Some(sum) = sum else { return Ok(vec![y]) };
    let none = || Tensor::zeros(DType::F32, &[0]);
    Ok(vec![y, none(), none(), sum])
}

/// What the normalization gives and what flows into the sum itself is the gradient of x, of skip and,
/// summed over rows, of the bias.
struct ResidualGradient {
    places: Places,
    epsilon: f32,
    output_count: usize,
}

impl Gradient for ResidualGradient {
    fn reads(&self) -> Reads {
        Reads::NOTHING.input(2)
    }

    fn forward(&self, forward: &mut Forward, _: &dyn Kernel) -> Result<Vec<Tensor>, OpError> {
        let run = &mut forward.run;
        let (sum, size) = residual_sum(run, self.places)?;
        let mut y = copied(&sum, run.pool);
        normalize(run, &mut y, size, self.places, self.epsilon)?;
        forward.saved.push(sum.clone());
        let none = || Tensor::zeros(DType::F32, &[0]);
        let outputs = [y, none(), none(), sum].into_iter();
        Ok(outputs.take(self.output_count).collect())
    }

    fn backward(&self, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
        let Places { shift, bias } = self.places;
        let kind = if shift.is_some() { Kind::Deviation } else { Kind::RootMeanSquare };
        let form = Form { kind, epsilon: self.epsilon, scale: 2, bias: shift };
        let mut flows = vec![None; 5];
        let sum = run.saved.pop().expect("the forward run saved the sum");
        let size = run.input(2)?.element_count();
        let mut dsum = match run.gradients[0].take() {
            Some(dy) => form.flow_back(dy, &sum, &[size], &mut flows, run)?,
            None => run.zeros(sum.shape()),
        };
        if let Some(other) = run.gradient(3) {
            add_assign(dsum.slice_mut::<f32>(), other.slice::<f32>());
        }
        run.pool.recycle(sum);
        let summed = |shape: &[usize]| {
            let mut sums = run.tensor(shape);
            sum_rows(dsum.slice::<f32>(), sums.slice_mut::<f32>(), run.pool);
            sums
        };
        if run.wants(bias) {
            flows[bias] = Some(summed(run.shape(bias)).into());
        }
        if run.wants(1) {
            let is_repeated = run.shape(1).iter().product::<usize>() != dsum.element_count();
            let dskip = if is_repeated { summed(run.shape(1)) } else { dsum.clone() };
            flows[1] = Some(dskip.reshaped(run.shape(1)).into());
        }
        place(&mut flows, Some(0), dsum, run);
        Ok(flows)
    }
}

impl Operator for SimplifiedLayerNormalization {
    fn op_type(&self) -> &'static str {
        "SimplifiedLayerNormalization"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let axis = node.int_or("axis", -1)?;
        let mut statistics = x.with_dtype(DType::F32);
        if let Some(shape) = &mut statistics.shape {
            let axis = resolve_axis(axis, shape.len()).unwrap_or(0);
            shape[axis..].fill(Dim::Known(1));
        }
        let mut facts = vec![x.with_dtype(x.dtype), statistics];
        facts.truncate(node.outputs.len());
        Ok(facts)
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        let rank = tensors.rank(Port::Input(0))?;
        let first = resolve_axis(node.int_or("axis", -1).ok()?, rank)?;
        let mut channels = Channels::elementwise(tensors, 0..tensors.inputs.len());
        channels.statistics.extend((first..rank).map(|axis| input(0, axis)));
        Some(channels)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let (axis, epsilon) = (node.int_or("axis", -1)?, node.float_or("epsilon", 1e-5)?);
        if node.outputs.get(1).is_some_and(|output| !output.is_empty()) {
            return Err(OpError::Unsupported { what: "the deviation output".into() });
        }
        Ok(Box::new(move |run: &mut Run| {
            let x = run.typed::<f32>(0)?;
            let axis = resolve_axis(axis, x.rank())
                .ok_or_else(|| OpError::value("axis", axis, format!("below {}", x.rank())))?;
            let size: usize = x.shape()[axis..].iter().product();
            run.typed::<f32>(1)?;
            vector(run, 1, size)?;
            let mut y = in_place_or_copy(run)?;
            let scale = run.input(1)?.slice::<f32>();
            for_rows(y.slice_mut::<f32>(), size, |_, rows| {
                normalize::root_mean_square_rows(rows, scale, epsilon);
            });
            Ok(vec![y])
        }))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        root_mean_square_gradient(node.int_or("axis", -1)?, node.float_or("epsilon", 1e-5)?)
    }

    fn widens_half(&self) -> bool {
        true
    }
}
