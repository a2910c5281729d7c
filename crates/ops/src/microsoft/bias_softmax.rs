//! `BiasSoftmax` of ONNX Runtime: softmax over the axes from `axis` on of x + bias. The bias is
//! repeated along inner batch axes (`is_inner_broadcast`: rows of x that share one of the bias stand
//! next to each other) or along outer ones.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::channels::{Channels, Port, Tensors, input, output};
use crate::clip::in_place_or_copy;
use crate::fact::resolve_axis;
use crate::gradient::gradient;
use crate::kernels::{elementwise, for_rows, gradient as kernels, softmax};
use crate::normalization_gradient::place;
use crate::row_sums::sum_rows;
use crate::{
    Backward, Fact, Gradient, Kernel, MICROSOFT_DOMAIN, OpError, Operator, Reads, Run, Training,
    required,
};

pub(crate) struct BiasSoftmax;

impl Operator for BiasSoftmax {
    fn op_type(&self) -> &'static str {
        "BiasSoftmax"
    }

    fn domain(&self) -> &'static str {
        MICROSOFT_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        let rank = tensors.rank(Port::Input(0))?;
        if tensors.rank(Port::Input(1)) != Some(rank) {
            return None;
        }
        let mut channels = Channels::default();
        for axis in 0..resolve_axis(node.int_or("axis", 1).ok()?, rank)? {
            channels.tie(tensors, input(0, axis), output(0, axis));
            if tensors.size(input(1, axis)) != Some(1) {
                channels.tie(tensors, input(1, axis), output(0, axis));
            }
        }
        Some(channels)
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let axis = node.int_or("axis", 1)?;
        let is_inner = node.int_or("is_inner_broadcast", 1)? != 0;
        Ok(Box::new(move |run: &mut Run| {
            let (x, bias) = (run.typed::<f32>(0)?, run.typed::<f32>(1)?);
            let axis = resolve_axis(axis, x.rank())
                .ok_or_else(|| OpError::value("axis", axis, format!("below {}", x.rank())))?;
            let size: usize = x.shape()[axis..].iter().product();
            let (count, bias_count) = (x.element_count(), bias.element_count());
            if count == 0 {
                return Ok(vec![run.pool.tensor(DType::F32, x.shape())]);
            }
            if bias_count == 0 || bias_count % size != 0 || count % bias_count != 0 {
                return Err(OpError::shapes(x.shape(), bias.shape()));
            }
            let (bias_rows, repeats) = (bias_count / size, count / bias_count);
            let mut y = in_place_or_copy(run)?;
            let bias = run.input(1)?.slice::<f32>();
            for_rows(y.slice_mut::<f32>(), size, |first, rows| {
                for (i, row) in rows.chunks_exact_mut(size).enumerate() {
                    let row_index = first + i;
                    let at = if is_inner { row_index / repeats } else { row_index % bias_rows };
                    elementwise::add_assign(row, &bias[at * size..(at + 1) * size]);
                }
                softmax::softmax_rows(rows, size);
            });
            Ok(vec![y])
        }))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let axis = node.int_or("axis", 1)?;
        let is_inner = node.int_or("is_inner_broadcast", 1)? != 0;
        gradient(Reads::NOTHING.output(0), move |run: &mut Backward| {
            let mut dx = run.take_gradient();
            let axis = resolve_axis(axis, dx.rank()).expect("the forward run checked the axis");
            let size = dx.shape()[axis..].iter().product::<usize>().max(1);
            let y = run.output(0).slice::<f32>();
            for_rows(dx.slice_mut::<f32>(), size, |first, rows| {
                kernels::softmax_rows(rows, &y[first * size..][..rows.len()], size, 1.0);
            });
            let mut flows = vec![None; 2];
            if run.wants(1) {
                flows[1] = Some(bias_gradient(&dx, size, is_inner, run).into());
            }
            place(&mut flows, Some(0), dx, run);
            Ok(flows)
        })
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// Each row of the bias gets the sum of those that it was added to.
fn bias_gradient(dx: &Tensor, size: usize, is_inner: bool, run: &Backward) -> Tensor {
    let mut sums = run.tensor(run.shape(1));
    let out = sums.slice_mut::<f32>();
    if !is_inner {
        sum_rows(dx.slice::<f32>(), out, run.pool);
        return sums;
    }
    let repeats = dx.element_count() / out.len().max(1);
    let blocks = dx.slice::<f32>().chunks(repeats.max(1) * size);
    out.chunks_mut(size).zip(blocks).for_each(|(out, block)| sum_rows(block, out, run.pool));
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pool;

    /// Softmax of x + bias, each row of x with the row of the bias given for it. ONNX Runtime has no
    /// kernel for CPUs to compare with.
    fn check(x_shape: &[usize], bias_shape: &[usize], is_inner: i64, rows: &[usize]) {
        let values = |count: usize| (0..count).map(|i| (i * 7 % 11) as f32 * 0.3);
        let of = |shape: &[usize]| {
            let count = shape.iter().product();
            Tensor::new(shape, &values(count).collect::<Vec<_>>())
        };
        let (x, bias) = (of(x_shape), of(bias_shape));
        let node = Node::new("BiasSoftmax", "n", &["x", "b"], &["y"])
            .with_attribute("axis", -1_i64)
            .with_attribute("is_inner_broadcast", is_inner);
        let kernel = BiasSoftmax.kernel(&node, &[None, None]).unwrap();
        let size = x_shape[x_shape.len() - 1];
        let mut expected = x.slice::<f32>().to_vec();
        for (row, &of_bias) in expected.chunks_mut(size).zip(rows) {
            elementwise::add_assign(row, &bias.slice::<f32>()[of_bias * size..][..size]);
            softmax::softmax_rows(row, size);
        }
        let pool = Pool::default();
        let y = kernel.run(&mut Run { inputs: vec![Some(x), Some(bias)], pool: &pool }).unwrap();
        assert_eq!(y[0].slice::<f32>(), expected);
    }

    #[test]
    fn the_bias_is_repeated_along_inner_or_outer_batch_axes() {
        check(&[2, 2, 5], &[2, 1, 5], 1, &[0, 0, 1, 1]);
        check(&[2, 2, 5], &[1, 2, 5], 0, &[0, 1, 0, 1]);
    }
}
