//! `LayerNormalization` (opset 17; ONNX Runtime's optimizer writes it into older ones), and attar's own form with the residual addition before it:
//! y = (x − mean) / √(variance + ε) · scale + bias over the axes from `axis` on
//! (Ba, Kiros & Hinton, 2016, arXiv:1607.06450).

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::clip::in_place_or_copy;
use crate::fact::resolve_axis;
use crate::kernels::{elementwise, for_rows, normalize};
use crate::{ATTAR_DOMAIN, Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct LayerNormalization;

impl Operator for LayerNormalization {
    fn op_type(&self) -> &'static str {
        "LayerNormalization"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=3
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let mut facts = vec![x.with_dtype(x.dtype)];
        if node.outputs.len() > 1 {
            let axis = node.int_or("axis", -1)?;
            let statistics = match &x.shape {
                Some(shape) => {
                    let axis = resolve_axis(axis, shape.len()).unwrap_or(0);
                    let dims = shape.iter().enumerate();
                    let dims = dims.map(|(i, d)| if i < axis { d.clone() } else { Dim::Known(1) });
                    Fact::new(DType::F32, dims.collect())
                }
                None => Fact::unranked(DType::F32),
            };
            facts.resize(node.outputs.len(), statistics);
        }
        Ok(facts)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        if node.outputs.iter().skip(1).any(|output| !output.is_empty()) {
            return Err(OpError::Unsupported { what: "the mean and deviation outputs".into() });
        }
        let (axis, epsilon) = (node.int_or("axis", -1)?, node.float_or("epsilon", 1e-5)?);
        Ok(Box::new(move |run: &mut Run| {
            let row_size = check(run, 1, axis)?;
            let y = in_place_or_copy(run)?;
            Ok(vec![normalized(run, y, row_size, 1, epsilon)?])
        }))
    }
}

/// `LayerNormalization(a + b)`; made by fusion. A second output is a + b itself.
pub(crate) struct SkipLayerNormalization;

impl Operator for SkipLayerNormalization {
    fn op_type(&self) -> &'static str {
        "SkipLayerNormalization"
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=4
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype); node.outputs.len()])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let (axis, epsilon) = (node.int_or("axis", -1)?, node.float_or("epsilon", 1e-5)?);
        let keeps_sum = node.outputs.len() > 1;
        Ok(Box::new(move |run: &mut Run| {
            let row_size = check(run, 2, axis)?;
            let (a, b) = (run.input(0)?, run.typed::<f32>(1)?);
            if a.shape() != b.shape() {
                return Err(OpError::shapes(a.shape(), b.shape()));
            }
            let mut y = in_place_or_copy(run)?;
            let b = run.input(1)?.slice::<f32>();
            for_rows(y.slice_mut::<f32>(), row_size, |first, rows| {
                let start = first * row_size;
                elementwise::add_assign(rows, &b[start..start + rows.len()]);
            });
            let sum = keeps_sum.then(|| {
                let mut sum = run.pool.tensor(DType::F32, y.shape());
                sum.slice_mut::<f32>().copy_from_slice(y.slice::<f32>());
                sum
            });
            let y = normalized(run, y, row_size, 2, epsilon)?;
            Ok(std::iter::once(y).chain(sum).collect())
        }))
    }
}

/// The size of a normalized row, once scale (at `first`) and bias fit it.
fn check(run: &Run, first: usize, axis: i64) -> Result<usize, OpError> {
    let x = run.typed::<f32>(0)?;
    let axis = resolve_axis(axis, x.rank())
        .ok_or_else(|| OpError::value("axis", axis, format!("below {}", x.rank())))?;
    let row = &x.shape()[axis..];
    let row_size: usize = row.iter().product();
    let scale = run.typed::<f32>(first)?;
    if scale.element_count() != row_size {
        return Err(OpError::shapes(row, scale.shape()));
    }
    if let Some(bias) = run.optional(first + 1).filter(|b| b.element_count() != row_size) {
        return Err(OpError::shapes(row, bias.shape()));
    }
    Ok(row_size)
}

fn normalized(
    run: &Run,
    mut y: Tensor,
    row_size: usize,
    first: usize,
    epsilon: f32,
) -> Result<Tensor, OpError> {
    let scale = run.input(first)?.slice::<f32>();
    let bias = run.optional(first + 1).map(Tensor::slice::<f32>);
    for_rows(y.slice_mut::<f32>(), row_size, |_, rows| {
        normalize::layer_normalize_rows(rows, scale, bias, epsilon);
    });
    Ok(y)
}
