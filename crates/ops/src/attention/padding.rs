//! Masks as ONNX Runtime's attention operators take them: lengths, starts, or 0 and 1 per key; what
//! is masked gets `filter` added to its score. A bias may be added besides.

use attar_tensor::Tensor;

use super::core::{Mask, Sizes};
use crate::broadcast::{broadcast_shapes, broadcast_strides};
use crate::{OpError, Run};

/// Where a node's mask and bias stand, and what a masked score gets.
#[derive(Clone, Copy)]
pub(super) struct Padding {
    pub(super) mask: usize,
    pub(super) bias: usize,
    pub(super) filter: f32,
}

/// Addends of a shape that broadcasts to [batch, heads, queries, keys].
struct Addends {
    values: Vec<f32>,
    shape: [usize; 4],
}

impl Padding {
    /// The sum of mask and bias.
    pub(super) fn addends<'a>(
        &self,
        run: &'a Run,
        sizes: &Sizes,
    ) -> Result<Option<Mask<'a, f32>>, OpError> {
        let mask = match run.optional(self.mask) {
            Some(mask) => Some(self.mask(mask, sizes)?),
            None => None,
        };
        let bias = run.optional(self.bias).map(|_| run.typed::<f32>(self.bias)).transpose()?;
        match (mask, bias) {
            (None, None) => Ok(None),
            (Some(mask), None) => Mask::new(mask.values, &mask.shape, sizes).map(Some),
            (None, Some(bias)) => Mask::new(bias.slice::<f32>(), bias.shape(), sizes).map(Some),
            (Some(mask), Some(bias)) => {
                // Checked for its own sake, so that the sum is no larger than the scores.
                Mask::new(bias.slice::<f32>(), bias.shape(), sizes)?;
                let (values, shape) = sum(&mask, bias)?;
                Mask::new(values, &shape, sizes).map(Some)
            }
        }
    }

    fn mask(&self, mask: &Tensor, sizes: &Sizes) -> Result<Addends, OpError> {
        let (batch, queries, keys) = (sizes.batch, sizes.queries, sizes.keys);
        let error = OpError::DType { index: self.mask, found: mask.dtype() };
        let given = mask.to_i64().ok_or(error)?;
        let of_flag = |&flag: &i64| if flag > 0 { 0.0 } else { self.filter };
        let (values, rows) = match *mask.shape() {
            [count] if count == batch || count == 2 * batch => {
                let mut values = vec![0.0; batch * keys];
                for (text, row) in values.chunks_exact_mut(keys.max(1)).enumerate() {
                    let end = given[text].clamp(0, keys as i64) as usize;
                    row[end..].fill(self.filter);
                    // A second list says where the keys begin.
                    let start = given.get(text + batch).map_or(0, |&start| start);
                    row[..start.clamp(0, keys as i64) as usize].fill(self.filter);
                }
                (values, 1)
            }
            [b, k] if [b, k] == [batch, keys] => (given.iter().map(of_flag).collect(), 1),
            [b, q, k] if [b, q, k] == [batch, queries, keys] => {
                (given.iter().map(of_flag).collect(), queries)
            }
            _ => {
                let expected =
                    format!("[{batch}], [{batch}, {keys}] or [{batch}, {queries}, {keys}]");
                return Err(OpError::value("the shape of the mask", mask.shape(), expected));
            }
        };
        Ok(Addends { values, shape: [batch, 1, rows, keys] })
    }
}

fn sum(mask: &Addends, bias: &Tensor) -> Result<(Vec<f32>, Vec<usize>), OpError> {
    let shape = broadcast_shapes(&mask.shape, bias.shape())?;
    let (left, right) =
        (broadcast_strides(&mask.shape, &shape), broadcast_strides(bias.shape(), &shape));
    let bias = bias.slice::<f32>();
    let count = shape.iter().product();
    let value = |index: usize| {
        let (mut rest, mut at_left, mut at_right) = (index, 0, 0);
        for axis in (0..shape.len()).rev() {
            let position = rest % shape[axis];
            at_left += position * left[axis];
            at_right += position * right[axis];
            rest /= shape[axis];
        }
        mask.values[at_left] + bias[at_right]
    };
    Ok(((0..count).map(value).collect(), shape))
}
