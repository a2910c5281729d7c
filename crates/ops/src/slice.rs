//! Slice (opset 10 and later, where starts, ends, axes and steps are inputs).

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::channels::{Blocks, Channels, Place, Port, Size, Tensors, input, output};
use crate::gradient::gradient;
use crate::squeeze::resolve_axes;
use crate::words::{by_width, check_movable, for_every_type, words, words_mut};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct Slice;

/// Along one axis: the first index, the step, and how many.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cut {
    start: i64,
    step: i64,
    count: usize,
}

/// Clamps start and end as ONNX says: ends may lie outside, negative ones count from the end.
fn cut(size: i64, start: i64, end: i64, step: i64) -> Result<Cut, OpError> {
    if step == 0 {
        return Err(OpError::value("step", step, "not 0"));
    }
    let from_end = |index: i64| if index < 0 { index.saturating_add(size) } else { index };
    let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
    let start = from_end(start).clamp(low.max(0), high.max(0));
    let end = from_end(end).clamp(low, high);
    let distance = if step > 0 { end - start } else { start - end };
    let count = if size == 0 || distance <= 0 {
        0
    } else {
        (distance as u64).div_ceil(step.unsigned_abs()) as usize
    };
    Ok(Cut { start, step, count })
}

struct Ranges {
    starts: Vec<i64>,
    ends: Vec<i64>,
    axes: Vec<i64>,
    steps: Vec<i64>,
}

impl Ranges {
    fn new(
        starts: Vec<i64>,
        ends: Vec<i64>,
        axes: Option<Vec<i64>>,
        steps: Option<Vec<i64>>,
    ) -> Result<Self, OpError> {
        let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
        let lengths = [starts.len(), ends.len(), axes.len(), steps.len()];
        if lengths.iter().any(|&length| length != starts.len()) {
            return Err(OpError::value("starts, ends, axes, steps", lengths, "equal lengths"));
        }
        Ok(Self { starts, ends, axes, steps })
    }

    /// (axis, start, end, step) for every cut axis.
    fn cuts(&self, rank: usize) -> Result<Vec<(usize, i64, i64, i64)>, OpError> {
        (0..self.starts.len())
            .map(|i| {
                let axis = resolve_axes(&self.axes[i..=i], rank)?[0];
                Ok((axis, self.starts[i], self.ends[i], self.steps[i]))
            })
            .collect()
    }
}

impl Operator for Slice {
    fn op_type(&self) -> &'static str {
        "Slice"
    }

    fn since_opset(&self) -> i64 {
        10
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=5
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let optional = |i: usize| inputs.get(i).copied().flatten();
        let axes = optional(3).map(Fact::known_elements);
        let steps = optional(4).map(Fact::known_elements);
        let (Some(starts), Some(ends)) =
            (required(inputs, 1)?.elements(), required(inputs, 2)?.elements())
        else {
            return Ok(vec![Fact::new(x.dtype, vec![Dim::Unknown; shape.len()])]);
        };
        if matches!(axes, Some(None)) || matches!(steps, Some(None)) {
            return Ok(vec![Fact::new(x.dtype, vec![Dim::Unknown; shape.len()])]);
        }
        // Symbolic starts and ends pass as markers; the loop below looks at the originals.
        let marks = |dims: &[Dim]| dims.iter().map(|dim| dim.known().unwrap_or(0)).collect();
        let ranges = Ranges::new(marks(starts), marks(ends), axes.flatten(), steps.flatten())?;
        let mut dims = shape.clone();
        let mut elements = x.elements().map(<[Dim]>::to_vec);
        for (i, (axis, start, end, step)) in ranges.cuts(shape.len())?.into_iter().enumerate() {
            let are_known = starts[i].is_known() && ends[i].is_known();
            dims[axis] = match shape[axis].known() {
                Some(size) if are_known => {
                    let cut = cut(size, start, end, step)?;
                    elements = elements.filter(|e| e.len() as i64 == size).map(|e| {
                        let index = |k: usize| (cut.start + k as i64 * cut.step) as usize;
                        (0..cut.count).map(|k| e[index(k)].clone()).collect()
                    });
                    Dim::from(cut.count)
                }
                // The whole of an axis of any size, or what a symbolic end within it leaves.
                _ if are_known && start == 0 && step == 1 && end >= i64::from(i32::MAX) => {
                    shape[axis].clone()
                }
                _ if starts[i] == Dim::Known(0) && step == 1 && !ends[i].is_known() => {
                    ends[i].clone()
                }
                // From some way in to a symbolic end, or to one counted from the end. An end beyond
                // the size, or a start behind the end, would be another matter; exporters write none.
                _ if step == 1 && starts[i].is_at_least(0) => match ends[i].known() {
                    None => &ends[i] - &starts[i],
                    Some(end) if end >= i64::from(i32::MAX) => &shape[axis] - &starts[i],
                    Some(end) if end < 0 => &(&shape[axis] + &ends[i]) - &starts[i],
                    Some(_) => Dim::Unknown,
                },
                _ => Dim::Unknown,
            };
            if !are_known {
                elements = None;
            }
        }
        let mut fact = Fact::new(x.dtype, dims);
        if let (Some(elements), Some(1)) = (elements, fact.rank()) {
            fact.set_elements(elements);
        }
        Ok(vec![fact])
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        let rank = tensors.rank(Port::Input(0))?;
        let optional = |index: usize| match tensors.inputs.get(index).copied().flatten() {
            Some(_) => tensors.integers(index).map(Some),
            None => Some(None),
        };
        let count = tensors.size(input(1, 0))?;
        let axes = optional(3)?.unwrap_or_else(|| (0..count as i64).collect());
        let axes: Vec<usize> = axes
            .iter()
            .map(|axis| Some(*resolve_axes(&[*axis], rank).ok()?.first()?))
            .collect::<Option<_>>()?;
        let mut channels = Channels::like_input(tensors, &axes);
        let (Some(starts), Some(ends)) = (tensors.integers(1), tensors.integers(2)) else {
            return Some(channels);
        };
        let ranges = Ranges::new(
            starts.clone(),
            ends.clone(),
            Some(axes.iter().map(|&a| a as i64).collect()),
            optional(4)?,
        );
        for (i, (axis, start, end, step)) in ranges.ok()?.cuts(rank).ok()?.into_iter().enumerate() {
            let Some(size) = tensors.size(input(0, axis)).filter(|_| step == 1) else { continue };
            let Cut { start, count, .. } = cut(size as i64, start, end, step).ok()?;
            let first = usize::try_from(start).ok()?;
            channels.tie_range(output(0, axis), 0, input(0, axis), first, count);
            let bound = |input_index: usize, given: i64, up_to: usize| {
                let place = if given < 0 {
                    Place::InputElementFromEnd(input_index, i)
                } else {
                    Place::InputElement(input_index, i)
                };
                let axis = input(0, axis);
                Size { place, blocks: Blocks { axis, from: 0, up_to, per: 1 } }
            };
            channels.sizes.push(bound(1, starts[i], first));
            if end < size as i64 {
                channels.sizes.push(bound(2, ends[i], first + count));
            }
        }
        Some(channels)
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(for_every_type(
            |index| index == 0,
            |run: &mut Run| {
                let x = run.input(0)?;
                check_movable(0, x)?;
                let cuts = cuts(x.shape(), |index| run.optional(index))?;
                let shape: Vec<usize> = cuts.iter().map(|cut| cut.count).collect();
                if shape == x.shape() && cuts.iter().all(|cut| cut.step == 1) {
                    return Ok(vec![x.clone()]);
                }
                let mut y = run.pool.tensor(x.dtype(), &shape);
                by_width!(x, Word => copy_cut::<Word>(words_mut(&mut y), words(x), x.shape(), &cuts));
                Ok(vec![y])
            },
        ))
    }

    /// dx is dy where it was cut out, 0 elsewhere.
    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let reads = (1..5).fold(Reads::NOTHING, Reads::input);
        gradient(reads, |run| {
            let dy = run.take_gradient();
            let shape = run.shape(0);
            let cuts = cuts(shape, |index| run.inputs.get(index).and_then(Option::as_ref))?;
            if dy.shape() == shape && cuts.iter().all(|cut| cut.step == 1) {
                return Ok(vec![Some(dy.into())]);
            }
            let mut dx = run.zeros(shape);
            put_cut(dx.slice_mut::<f32>(), dy.slice::<f32>(), shape, &cuts);
            run.pool.recycle(dy);
            Ok(vec![Some(dx.into())])
        })
    }
}

/// What is cut out of `shape`, per axis, as the inputs from 1 on say.
fn cuts<'a>(
    shape: &[usize],
    input: impl Fn(usize) -> Option<&'a Tensor>,
) -> Result<Vec<Cut>, OpError> {
    let list = |index: usize| {
        let integers = |t: &Tensor| t.to_i64().ok_or(OpError::DType { index, found: t.dtype() });
        input(index).map(integers).transpose()
    };
    let missing = |index| OpError::MissingInput { index };
    let ranges =
        Ranges::new(list(1)?.ok_or(missing(1))?, list(2)?.ok_or(missing(2))?, list(3)?, list(4)?)?;
    let mut cuts: Vec<Cut> = shape.iter().map(|&count| Cut { start: 0, step: 1, count }).collect();
    for (axis, start, end, step) in ranges.cuts(shape.len())? {
        cuts[axis] = cut(shape[axis] as i64, start, end, step)?;
    }
    Ok(cuts)
}

/// Axes that are taken whole are part of the axis before them: rows as long as can be.
fn joined(shape: &[usize], cuts: &[Cut]) -> (Vec<usize>, Vec<Cut>) {
    let (mut shape, mut cuts) = (shape.to_vec(), cuts.to_vec());
    while let [.., before, last] = &cuts[..] {
        let size = shape[shape.len() - 1];
        let is_whole = last.start == 0 && last.step == 1 && last.count == size;
        if !is_whole || before.step != 1 {
            break;
        }
        let start = before.start * size as i64;
        let cut = Cut { start, step: 1, count: before.count * size };
        shape.pop();
        cuts.pop();
        let last = cuts.len() - 1;
        shape[last] *= size;
        cuts[last] = cut;
    }
    (shape, cuts)
}

fn copy_cut<T: Copy>(y: &mut [T], x: &[T], shape: &[usize], cuts: &[Cut]) {
    let (shape, cuts) = joined(shape, cuts);
    let (shape, cuts) = (&shape[..], &cuts[..]);
    let step = cuts.last().map_or(1, |last| last.step);
    for_each_row(shape, cuts, y.len(), |row, start| {
        let y = &mut y[row];
        if step == 1 {
            y.copy_from_slice(&x[start..start + y.len()]);
        } else {
            for (k, y) in y.iter_mut().enumerate() {
                *y = x[(start as i64 + k as i64 * step) as usize];
            }
        }
    });
}

/// The reverse of [`copy_cut`]: puts what was cut back where it stood.
fn put_cut(x: &mut [f32], y: &[f32], shape: &[usize], cuts: &[Cut]) {
    let (shape, cuts) = joined(shape, cuts);
    let (shape, cuts) = (&shape[..], &cuts[..]);
    let step = cuts.last().map_or(1, |last| last.step);
    for_each_row(shape, cuts, y.len(), |row, start| {
        let y = &y[row];
        if step == 1 {
            x[start..start + y.len()].copy_from_slice(y);
        } else {
            for (k, &y) in y.iter().enumerate() {
                x[(start as i64 + k as i64 * step) as usize] = y;
            }
        }
    });
}

/// Calls `visit` for each row of the `count` elements that are cut out: its place among them, and
/// where in the whole its first element stands.
fn for_each_row(
    shape: &[usize],
    cuts: &[Cut],
    count: usize,
    mut visit: impl FnMut(std::ops::Range<usize>, usize),
) {
    let Some((last, outer)) = cuts.split_last() else {
        return visit(0..1, 0);
    };
    if count == 0 {
        return;
    }
    let row_size = shape[shape.len() - 1] as i64;
    for row in 0..count / last.count {
        let mut rest = row;
        let mut start = last.start;
        let mut stride = row_size;
        for (axis, cut) in outer.iter().enumerate().rev() {
            start += (cut.start + (rest % cut.count) as i64 * cut.step) * stride;
            rest /= cut.count;
            stride *= shape[axis] as i64;
        }
        visit(row * last.count..(row + 1) * last.count, start as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_clamped_and_steps_may_go_back() {
        assert_eq!(cut(5, 1, i64::MAX, 2).unwrap(), Cut { start: 1, step: 2, count: 2 });
        assert_eq!(cut(5, -1, i64::MIN, -1).unwrap(), Cut { start: 4, step: -1, count: 5 });
        assert_eq!(cut(5, 3, 1, 1).unwrap().count, 0);
        assert_eq!(cut(0, 0, 10, 1).unwrap().count, 0);
    }
}
