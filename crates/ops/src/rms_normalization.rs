//! `RMSNormalization` (opset 23): y = x / √(mean x² + ε) · scale over the axes from `axis` on
//! (Zhang & Sennrich, 2019, arXiv:1910.07467). The result has the type of the scale.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::channels::{Channels, Port, Tensors, input};
use crate::clip::in_place_or_copy;
use crate::fact::resolve_axis;
use crate::gradient::gradient;
use crate::kernels::{for_rows, normalize};
use crate::layer_normalization::scale_and_shift;
use crate::normalization_gradient::{Form, Kind, place};
use crate::real::{by_real, rounded_to, widened};
use crate::row_math::RowMath;
use crate::{Backward, Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct RmsNormalization;

impl Operator for RmsNormalization {
    fn op_type(&self) -> &'static str {
        "RMSNormalization"
    }

    fn since_opset(&self) -> i64 {
        23
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, scale) = (required(inputs, 0)?, required(inputs, 1)?);
        Ok(vec![x.with_dtype(scale.dtype)])
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
        Ok(Box::new(move |run: &mut Run| {
            let (x, scale) = (run.input(0)?, run.input(1)?);
            let axis = resolve_axis(axis, x.rank())
                .ok_or_else(|| OpError::value("axis", axis, format!("below {}", x.rank())))?;
            let row = x.shape()[axis..].to_vec();
            let is_plain = x.dtype() == DType::F32 && scale.dtype() == DType::F32;
            if is_plain && scale.shape() == row {
                let row_size = row.iter().product();
                let mut y = in_place_or_copy(run)?;
                let scale = run.input(1)?.slice::<f32>();
                for_rows(y.slice_mut::<f32>(), row_size, |_, rows| {
                    normalize::rms_normalize_rows(rows, scale, epsilon);
                });
                return Ok(vec![y]);
            }
            let x = widened(x);
            by_real!(x, 0, T => any_type::<T>(run, &x, row.iter().product(), epsilon))
        }))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        root_mean_square_gradient(node.int_or("axis", -1)?, node.float_or("epsilon", 1e-5)?)
    }
}

/// Of inputs x and scale.
pub(crate) fn root_mean_square_gradient(
    axis: i64,
    epsilon: f32,
) -> Result<Box<dyn Gradient>, OpError> {
    let form = Form { kind: Kind::RootMeanSquare, epsilon, scale: 1, bias: None };
    gradient(Reads::NOTHING.input(0).input(1), move |run: &mut Backward| {
        let mut flows = vec![None; 2];
        let (dy, x) = (run.take_gradient(), run.input(0)?);
        let axis = resolve_axis(axis, x.rank()).expect("the forward run checked the axis");
        let dx = form.flow_back(dy, x, &x.shape()[axis..], &mut flows, run)?;
        place(&mut flows, Some(0), dx, run);
        Ok(flows)
    })
}

fn any_type<T: RowMath>(
    run: &Run,
    x: &Tensor,
    row_size: usize,
    epsilon: f32,
) -> Result<Vec<Tensor>, OpError> {
    let dtype = run.input(1)?.dtype();
    if !dtype.is_float() {
        return Err(OpError::DType { index: 1, found: dtype });
    }
    let mut y = run.pool.tensor(x.dtype(), x.shape());
    let rows = y.slice_mut::<T>().chunks_exact_mut(row_size.max(1));
    for (out, x) in rows.zip(x.slice::<T>().chunks_exact(row_size.max(1))) {
        let mean = T::squares(x, T::ZERO) / T::of(row_size as f64);
        let inverse = T::ONE / (mean + T::of(f64::from(epsilon))).sqrt();
        T::affine(out, x, T::ZERO, inverse, T::ZERO);
    }
    scale_and_shift::<T>(run, y.slice_mut::<T>(), x.shape())?;
    Ok(vec![rounded_to(dtype, y)])
}
