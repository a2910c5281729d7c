//! Gradients of reductions.

use attar_graph::Node;
use attar_tensor::Tensor;

use super::{Reduction, reduced_axes};
use crate::broadcast::{Loops, Operand};
use crate::gradient::gradient;
use crate::kernels::{elementwise, reducing};
use crate::{Backward, Flow, Gradient, OpError, Reads};

/// How dx comes of dy, y and x:
///
/// | reduction | dx |
/// | --- | --- |
/// | Sum, Mean | dy, dy/n |
/// | L1, L2, `SumSquare` | dy·sign x, dy·x/y (0 where y is), 2·dy·x |
/// | `LogSum`, `LogSumExp` | dy/exp y, dy·exp(x − y) |
/// | Max, Min | dy where x = y, shared evenly by those that are equal |
/// | Prod | dy times the product of the others |
pub(super) fn gradient_of(node: &Node, reduction: Reduction) -> Result<Box<dyn Gradient>, OpError> {
    let node = node.clone();
    let reads = Reads::NOTHING.input(1);
    let reads = match reduction {
        Reduction::Sum | Reduction::Mean => reads,
        Reduction::LogSum => reads.output(0),
        Reduction::L1 | Reduction::SumSquare | Reduction::Prod => reads.input(0),
        _ => reads.input(0).output(0),
    };
    gradient(reads, move |run| {
        let dy = run.take_gradient();
        let shape = run.shape(0);
        let given = run.inputs.get(1).and_then(Option::as_ref).and_then(Tensor::to_i64);
        let axes = reduced_axes(&node, given, shape.len())?;
        let kept: Vec<usize> = (0..shape.len())
            .map(|axis| if axes.contains(&axis) { 1 } else { shape[axis] })
            .collect();
        let count: usize = axes.iter().map(|&axis| shape[axis]).product();
        let dx = reduced_back(run, &dy, &kept, count, reduction)?;
        run.pool.recycle(dy);
        Ok(vec![Some(Flow::from(dx))])
    })
}

fn reduced_back(
    run: &Backward,
    dy: &Tensor,
    kept: &[usize],
    count: usize,
    reduction: Reduction,
) -> Result<Tensor, OpError> {
    let mut dx = run.tensor(run.shape(0));
    // What is multiplied with x, or given to all alike.
    let mut factor = run.tensor(kept);
    factor.slice_mut::<f32>().copy_from_slice(dy.slice::<f32>());
    let factors = factor.slice_mut::<f32>();
    match reduction {
        Reduction::Mean => {
            let each = Operand::Scalar(1.0 / count.max(1) as f32);
            elementwise::mul_in_place(factors, each);
        }
        Reduction::SumSquare => elementwise::mul_in_place(factors, Operand::Scalar(2.0)),
        Reduction::L2 => {
            let quotient = |f: &mut f32, y: f32| *f = if y == 0.0 { 0.0 } else { *f / y };
            factors.iter_mut().zip(run.output(0).slice::<f32>()).for_each(|(f, &y)| quotient(f, y));
        }
        Reduction::LogSum => {
            let values = run.output(0).slice::<f32>();
            factors.iter_mut().zip(values).for_each(|(f, &y)| *f *= (-y).exp());
        }
        _ => {}
    }
    match reduction {
        Reduction::Sum | Reduction::Mean | Reduction::LogSum => {
            spread(&mut dx, [&factor, &factor], kept, |dx, _, f, _| reducing::repeat(dx, f));
        }
        Reduction::L2 | Reduction::SumSquare => {
            spread_by(&mut dx, run.input(0)?, [&factor, &factor], kept, |dx, x, f, _| {
                elementwise::mul(dx, Operand::Row(x), f);
            });
        }
        Reduction::L1 => {
            spread_by(&mut dx, run.input(0)?, [&factor, &factor], kept, reducing::signed);
        }
        Reduction::LogSumExp => {
            spread_by(
                &mut dx,
                run.input(0)?,
                [&factor, run.output(0)],
                kept,
                reducing::exponential,
            );
        }
        Reduction::Max | Reduction::Min => {
            share(factor.slice_mut::<f32>(), run.input(0)?, run.output(0), kept);
            spread_by(&mut dx, run.input(0)?, [&factor, run.output(0)], kept, reducing::equal);
        }
        Reduction::Prod => others(&mut dx, run.input(0)?, &factor, kept),
    }
    run.pool.recycle(factor);
    Ok(dx)
}

type RowWork = fn(&mut [f32], &[f32], Operand<'_, f32>, Operand<'_, f32>);

/// Calls `work` for rows of dx and the factors that belong to them.
fn spread(dx: &mut Tensor, [f, y]: [&Tensor; 2], kept: &[usize], work: RowWork) {
    let loops = Loops::new([kept], dx.shape());
    let ([stride], f, y) = (loops.inner_strides(), f.slice::<f32>(), y.slice::<f32>());
    loops.for_each_row_of(dx.slice_mut::<f32>(), |dx, [at]| {
        let size = dx.len();
        let (f, y) = (Operand::new(f, at, stride, size), Operand::new(y, at, stride, size));
        work(dx, &[], f, y);
    });
}

/// As [`spread`], with the rows of x.
fn spread_by(dx: &mut Tensor, x: &Tensor, [f, y]: [&Tensor; 2], kept: &[usize], work: RowWork) {
    let shape = x.shape().to_vec();
    let loops = Loops::new([kept, &shape], &shape);
    let ([stride, x_stride], x) = (loops.inner_strides(), x.slice::<f32>());
    let (f, y) = (f.slice::<f32>(), y.slice::<f32>());
    loops.for_each_row_of(dx.slice_mut::<f32>(), |dx, [at, from]| {
        let size = dx.len();
        let (f, y) = (Operand::new(f, at, stride, size), Operand::new(y, at, stride, size));
        // A row of one element has no stride.
        work(dx, &x[from..from + if x_stride == 0 { 1 } else { size }], f, y);
    });
}

/// Divides each factor by the count of elements equal to their extreme.
fn share(factors: &mut [f32], x: &Tensor, y: &Tensor, kept: &[usize]) {
    let mut counts = vec![0.0_f32; factors.len()];
    let loops = Loops::new([kept], x.shape());
    let ([stride], inner, y) = (loops.inner_strides(), loops.inner_size(), y.slice::<f32>());
    let mut rows = x.slice::<f32>().chunks_exact(inner.max(1));
    loops.for_each_row(|[at]| {
        for (i, x) in rows.next().unwrap_or(&[]).iter().enumerate() {
            let at = at + i * stride;
            counts[at] += f32::from(u8::from(*x == y[at]));
        }
    });
    factors.iter_mut().zip(counts).for_each(|(f, count)| *f /= count.max(1.0));
}

/// dx = f times the product of the others, also where factors are 0.
fn others(dx: &mut Tensor, x: &Tensor, factor: &Tensor, kept: &[usize]) {
    let mut products = vec![(1.0_f64, 0_usize); factor.element_count()];
    let loops = Loops::new([kept], x.shape());
    let ([stride], inner) = (loops.inner_strides(), loops.inner_size().max(1));
    let values = x.slice::<f32>();
    let mut rows = values.chunks_exact(inner);
    loops.for_each_row(|[at]| {
        for (i, &x) in rows.next().unwrap_or(&[]).iter().enumerate() {
            let (product, zeros) = &mut products[at + i * stride];
            if x == 0.0 { *zeros += 1 } else { *product *= f64::from(x) }
        }
    });
    let factors = factor.slice::<f32>();
    let mut rows = values.chunks_exact(inner).zip(dx.slice_mut::<f32>().chunks_exact_mut(inner));
    loops.for_each_row(|[at]| {
        let Some((x, dx)) = rows.next() else { return };
        for (i, (&x, dx)) in x.iter().zip(dx).enumerate() {
            let at = at + i * stride;
            let others = match products[at] {
                (product, 0) => product / f64::from(x),
                (product, 1) if x == 0.0 => product,
                _ => 0.0,
            };
            *dx = (f64::from(factors[at]) * others) as f32;
        }
    });
}

#[cfg(test)]
mod tests {
    use attar_tensor::DType;

    use super::*;

    #[test]
    fn a_product_has_a_gradient_where_one_factor_is_zero() {
        let x = Tensor::new(&[3, 2], &[2.0_f32, 0.0, 3.0, 0.0, 4.0, 5.0]);
        let mut dx = Tensor::zeros(DType::F32, &[3, 2]);
        others(&mut dx, &x, &Tensor::new(&[1, 2], &[1.0_f32, 1.0]), &[1, 2]);
        assert_eq!(dx.slice::<f32>(), [12.0, 0.0, 8.0, 0.0, 6.0, 0.0]);
        let x = Tensor::new(&[3], &[2.0_f32, 0.0, 3.0]);
        let mut dx = Tensor::zeros(DType::F32, &[3]);
        others(&mut dx, &x, &Tensor::new(&[1], &[1.0_f32]), &[1]);
        assert_eq!(dx.slice::<f32>(), [0.0, 6.0, 0.0]);
    }
}
