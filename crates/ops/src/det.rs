//! Det (opset 11): determinants of square matrices, by elimination with partial pivoting in f64.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::gradient::gradient;
use crate::{Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct Det;

impl Operator for Det {
    fn op_type(&self) -> &'static str {
        "Det"
    }

    fn since_opset(&self) -> i64 {
        11
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        if shape.len() < 2 {
            return Err(OpError::value("the input's rank", shape.len(), "at least 2"));
        }
        Ok(vec![Fact::new(x.dtype, shape[..shape.len() - 2].to_vec())])
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| {
            let x = run.input(0)?;
            let [outer @ .., rows, columns] = x.shape() else {
                return Err(OpError::value("the input's shape", x.shape(), "[…, M, M]"));
            };
            if rows != columns {
                return Err(OpError::value("the input's shape", x.shape(), "[…, M, M]"));
            }
            let error = OpError::DType { index: 0, found: x.dtype() };
            if !matches!(x.dtype(), DType::F32 | DType::F64) {
                return Err(error);
            }
            let mut values = x.to_f64().ok_or(error)?;
            let count: usize = outer.iter().product();
            let size = *rows;
            let y: Vec<f64> = match size {
                0 => vec![1.0; count],
                _ => values.chunks_exact_mut(size * size).map(|m| determinant(m, size)).collect(),
            };
            let y = Tensor::new(outer, &y).converted(x.dtype());
            Ok(vec![y.map_err(|_| OpError::DType { index: 0, found: x.dtype() })?])
        }))
    }

    /// dX = dy · the cofactors of X.
    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        gradient(Reads::NOTHING.input(0), |run| {
            let dy = run.take_gradient();
            let x = run.input(0)?;
            let size = *x.shape().last().unwrap_or(&0);
            let mut dx = run.tensor(x.shape());
            let matrices = x.slice::<f32>().chunks_exact((size * size).max(1));
            let flows = dx.slice_mut::<f32>().chunks_exact_mut((size * size).max(1));
            for ((dx, matrix), &dy) in flows.zip(matrices).zip(dy.slice::<f32>()) {
                for (at, dx) in dx.iter_mut().enumerate() {
                    *dx = (f64::from(dy) * cofactor(matrix, size, at)) as f32;
                }
            }
            run.pool.recycle(dy);
            Ok(vec![Some(dx.into())])
        })
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// Of a row-major matrix, which is used up.
fn determinant(matrix: &mut [f64], size: usize) -> f64 {
    let mut result = 1.0;
    for step in 0..size {
        let magnitude = |row: &usize| matrix[row * size + step].abs();
        let pivot = (step..size).max_by(|a, b| magnitude(a).total_cmp(&magnitude(b)));
        let pivot = pivot.expect("there is a row left");
        if matrix[pivot * size + step] == 0.0 {
            return 0.0;
        }
        if pivot != step {
            (0..size).for_each(|column| matrix.swap(pivot * size + column, step * size + column));
            result = -result;
        }
        let head = matrix[step * size + step];
        result *= head;
        for row in step + 1..size {
            let factor = matrix[row * size + step] / head;
            for column in step..size {
                matrix[row * size + column] -= factor * matrix[step * size + column];
            }
        }
    }
    result
}

/// (−1)^(row + column) times the determinant without the row and the column of element `at`. Also
/// where the matrix has no inverse.
fn cofactor(matrix: &[f32], size: usize, at: usize) -> f64 {
    let (row, column) = (at / size, at % size);
    let is_kept = |&(place, _): &(usize, &f32)| place / size != row && place % size != column;
    let kept = matrix.iter().enumerate().filter(is_kept).map(|(_, &x)| f64::from(x));
    let mut minor: Vec<f64> = kept.collect();
    let sign = if (row + column).is_multiple_of(2) { 1.0 } else { -1.0 };
    sign * determinant(&mut minor, size - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_exchanged_where_a_pivot_is_zero() {
        assert_eq!(determinant(&mut [0.0, 2.0, 3.0, 4.0], 2), -6.0);
        assert_eq!(determinant(&mut [1.0, 2.0, 2.0, 4.0], 2), 0.0);
    }
}
