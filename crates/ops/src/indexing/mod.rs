//! Operators that read or write elements by index.

mod compress;
mod gather_elements;
mod gather_nd;
mod non_max_suppression;
mod non_zero;
mod one_hot;
mod reduction;
mod reverse_sequence;
mod scatter_elements;
mod scatter_nd;
mod tensor_scatter;
mod top_k;
mod unique;

pub(crate) use compress::Compress;
pub(crate) use gather_elements::GatherElements;
pub(crate) use gather_nd::GatherND;
pub(crate) use non_max_suppression::NonMaxSuppression;
pub(crate) use non_zero::NonZero;
pub(crate) use one_hot::OneHot;
pub(crate) use reverse_sequence::ReverseSequence;
pub(crate) use scatter_elements::ScatterElements;
pub(crate) use scatter_nd::ScatterND;
pub(crate) use tensor_scatter::TensorScatter;
pub(crate) use top_k::TopK;
pub(crate) use unique::Unique;

use attar_graph::Node;
use attar_tensor::Tensor;

use crate::fact::resolve_axis;
use crate::{OpError, Run};

/// The attribute `axis` as an index below `rank`.
pub(crate) fn axis_of(node: &Node, default: i64, rank: usize) -> Result<usize, OpError> {
    let axis = node.int_or("axis", default)?;
    resolve_axis(axis, rank)
        .ok_or_else(|| OpError::value("axis", axis, format!("below rank {rank}")))
}

/// The integers of an input.
pub(crate) fn integers(run: &Run, index: usize) -> Result<Vec<i64>, OpError> {
    integers_of(run.input(index)?, index)
}

pub(crate) fn integers_of(tensor: &Tensor, index: usize) -> Result<Vec<i64>, OpError> {
    tensor.to_i64().ok_or(OpError::DType { index, found: tensor.dtype() })
}

/// An index counted from the end when negative.
pub(crate) fn bounded(index: i64, size: usize) -> Result<usize, OpError> {
    resolve_axis(index, size)
        .ok_or_else(|| OpError::value("an index", index, format!("within −{size}..{size}")))
}

/// Steps along each axis, in elements.
pub(crate) fn strides_of(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// For an index tensor of the rank of `shape`: where in `shape` each element points, its own place
/// with the coordinate along `axis` replaced.
fn positions_along(
    shape: &[usize],
    axis: usize,
    indices: &[i64],
    indices_shape: &[usize],
) -> Result<Vec<usize>, OpError> {
    let rank = shape.len();
    let fits =
        indices_shape.len() == rank && (0..rank).all(|i| i == axis || indices_shape[i] <= shape[i]);
    if !fits {
        return Err(OpError::shapes(shape, indices_shape));
    }
    let mut strides = strides_of(shape);
    let along = std::mem::take(&mut strides[axis]);
    let (mut place, mut start) = (vec![0; rank], 0);
    let mut positions = Vec::with_capacity(indices.len());
    for &index in indices {
        positions.push(start + bounded(index, shape[axis])? * along);
        for i in (0..rank).rev() {
            place[i] += 1;
            start += strides[i];
            if place[i] < indices_shape[i] {
                break;
            }
            start -= strides[i] * place[i];
            place[i] = 0;
        }
    }
    Ok(positions)
}

/// Blocks that an index tensor of shape `[batch…, …, k]` points at.
struct Blocks {
    /// First element of each.
    starts: Vec<usize>,
    /// Elements of each.
    size: usize,
}

/// The last axis of the indices holds `k` coordinates, of the axes after the batch axes.
fn blocks(
    shape: &[usize],
    batch_dims: usize,
    indices: &[i64],
    indices_shape: &[usize],
) -> Result<Blocks, OpError> {
    let error = || OpError::shapes(shape, indices_shape);
    let Some((&k, outer)) = indices_shape.split_last() else { return Err(error()) };
    let batches = shape.get(..batch_dims).ok_or_else(error)?;
    if outer.get(..batch_dims) != Some(batches) || k > shape.len() - batch_dims {
        return Err(error());
    }
    let strides = strides_of(shape);
    let size: usize = shape[batch_dims + k..].iter().product();
    let batch_size: usize = shape[batch_dims..].iter().product();
    let count: usize = outer.iter().product();
    let per_batch: usize = outer[batch_dims..].iter().product();
    let mut starts = Vec::with_capacity(count);
    for block in 0..count {
        let mut start = block / per_batch.max(1) * batch_size;
        for (i, &index) in indices[block * k..][..k].iter().enumerate() {
            let axis = batch_dims + i;
            start += bounded(index, shape[axis])? * strides[axis];
        }
        starts.push(start);
    }
    Ok(Blocks { starts, size })
}

#[cfg(test)]
mod tests {
    use attar_graph::{Model, testing::graph_from_text};

    use super::*;
    use crate::{Datum, Pool, Program};

    fn error(text: &str, feeds: &[Tensor]) -> String {
        let opsets = [(String::new(), 24)].into_iter().collect();
        let names = ["x", "i", "u", "v"];
        let declared = names.iter().zip(feeds).map(|(name, _)| format!("{name}: f32[]\n"));
        let text: String = declared.chain([text.to_string()]).collect();
        let model = Model { graph: graph_from_text(&text), opsets, ..Model::default() };
        let feeds = feeds.iter().cloned().map(Datum::Tensor).collect();
        let program = Program::new(model, &[]).unwrap();
        program.run(feeds, &Pool::default()).unwrap_err().to_string()
    }

    fn list(values: &[i64]) -> Tensor {
        Tensor::new(&[values.len()], values)
    }

    fn matrix(values: &[i64], columns: usize) -> Tensor {
        Tensor::new(&[values.len() / columns, columns], values)
    }

    #[test]
    fn an_index_outside_is_an_error_that_names_it() {
        let x = || Tensor::new(&[2, 2], &[1.0_f32, 2.0, 3.0, 4.0]);
        let one = || Tensor::new(&[1, 1], &[9.0_f32]);
        let cases: &[(&str, &[Tensor])] = &[
            ("y = Gather(x, i)", &[x(), list(&[2])]),
            ("y = GatherElements(x, i)", &[x(), matrix(&[-3], 1)]),
            ("y = GatherND(x, i)", &[x(), matrix(&[0, i64::MIN], 2)]),
            ("y = ScatterElements(x, i, u)", &[x(), matrix(&[i64::MAX], 1), one()]),
            (
                "y = ScatterND(x, i, u)",
                &[x(), matrix(&[0, 2], 2), list(&[0]).converted(attar_tensor::DType::F32).unwrap()],
            ),
        ];
        for (text, feeds) in cases {
            let message = error(text, feeds);
            assert!(message.contains("an index is"), "{text}: {message}");
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let x = || Tensor::new(&[2, 2], &[1.0_f32, 2.0, 3.0, 4.0]);
        let scalar = || Tensor::scalar(0_i64);
        let cases: &[(&str, &[Tensor])] = &[
            ("y = GatherElements(x, i)", &[x(), list(&[0])]),
            ("y = GatherElements(x, i)", &[x(), matrix(&[0, 0, 0], 3)]),
            ("y = GatherND(x, i)", &[x(), matrix(&[0, 0, 0], 3)]),
            ("y = GatherND(x, i)", &[x(), scalar()]),
            ("y = GatherND(x, i, batch_dims=9)", &[x(), list(&[0])]),
            ("y = ScatterND(x, i, u)", &[x(), matrix(&[0], 1), x()]),
            ("y = TopK(x, i)", &[x(), list(&[3])]),
            ("y = TopK(x, i)", &[x(), list(&[-1])]),
            ("y = OneHot(x, i, u)", &[x(), list(&[-1]), list(&[0, 1])]),
            ("y = OneHot(x, i, u)", &[x(), list(&[3]), list(&[0])]),
            ("y = Compress(x, i, axis=0)", &[x(), Tensor::from_bools(&[3], &[true; 3])]),
            ("y = ReverseSequence(x, i)", &[x(), list(&[3, 0])]),
            ("y = TensorScatter(x, i)", &[x(), x()]),
            ("y = NonMaxSuppression(x, i)", &[x(), x()]),
        ];
        for (text, feeds) in cases {
            error(text, feeds);
        }
    }

    #[test]
    fn a_declared_size_beyond_memory_is_an_error_that_names_the_shape() {
        let x = || Tensor::new(&[1], &[1.0_f32]);
        let huge = i64::MAX / 2;
        let cases: &[(&str, &[Tensor])] = &[
            ("y = ConstantOfShape(x)", &[list(&[huge, 4])]),
            ("y = ConstantOfShape(x)", &[list(&[1 << 60])]),
            ("y = ConstantOfShape(x)", &[list(&[-1])]),
            ("y = Expand(x, i)", &[x(), list(&[huge])]),
            ("y = Tile(x, i)", &[x(), list(&[huge])]),
            ("y = Pad(x, i)", &[x(), list(&[huge, huge])]),
            ("y = Pad(x, i)", &[x(), list(&[i64::MAX, i64::MAX])]),
            (
                "y = Range(x, i, u)",
                &[Tensor::scalar(0_i64), Tensor::scalar(huge), Tensor::scalar(1_i64)],
            ),
            (
                "y = Range(x, i, u)",
                &[Tensor::scalar(0_i64), Tensor::scalar(5_i64), Tensor::scalar(0_i64)],
            ),
            ("y = OneHot(x, i, u)", &[list(&[1]), list(&[huge]), list(&[0, 1])]),
            ("y = CenterCropPad(x, i)", &[x(), list(&[huge])]),
            ("y = HannWindow(x)", &[Tensor::scalar(huge)]),
            ("y = DFT(x, i)", &[Tensor::new(&[1, 1, 1], &[1.0_f32]), Tensor::scalar(huge)]),
        ];
        for (text, feeds) in cases {
            error(text, feeds);
        }
    }
}
