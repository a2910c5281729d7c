//! Pad (opset 11; axes from 18, `wrap` from 19): elements before and after along each axis, of a
//! constant, the mirrored, repeated or wrapped content; negative counts take elements away; of any
//! type.

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::channels::{Channels, Port, Tensors};
use crate::fact::resolve_axis;
use crate::gradient::gradient;
use crate::indexing::{integers, integers_of, strides_of};
use crate::kernels::for_rows;
use crate::moves::moved_gradient;
use crate::words::{by_width, check_movable, for_every_type, words, words_mut};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct Pad;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mode {
    Constant,
    Reflect,
    Edge,
    Wrap,
}

impl Mode {
    fn of(node: &Node) -> Result<Self, OpError> {
        Ok(match node.text("mode")? {
            None | Some("constant") => Self::Constant,
            Some("reflect") => Self::Reflect,
            Some("edge") => Self::Edge,
            Some("wrap") => Self::Wrap,
            Some(other) => {
                return Err(OpError::value("mode", other, "constant, reflect, edge or wrap"));
            }
        })
    }
}

/// Elements to add before and after, per axis; negative to take away.
fn per_axis<T: Clone>(
    pads: &[T],
    axes: Option<&[i64]>,
    rank: usize,
    none: &T,
) -> Result<Vec<[T; 2]>, OpError> {
    let all: Vec<i64> = (0..rank as i64).collect();
    let axes = axes.unwrap_or(&all);
    if pads.len() != 2 * axes.len() {
        let expected = format!("{}, two for each axis", 2 * axes.len());
        return Err(OpError::value("the count of pads", pads.len(), expected));
    }
    let mut result = vec![[none.clone(), none.clone()]; rank];
    for (i, &axis) in axes.iter().enumerate() {
        let error = || OpError::value("axis", axis, format!("below rank {rank}"));
        let axis = resolve_axis(axis, rank).ok_or_else(error)?;
        result[axis] = [pads[i].clone(), pads[axes.len() + i].clone()];
    }
    Ok(result)
}

impl Operator for Pad {
    fn op_type(&self) -> &'static str {
        "Pad"
    }

    fn since_opset(&self) -> i64 {
        11
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=4
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (x, pads) = (required(inputs, 0)?, required(inputs, 1)?);
        Mode::of(node)?;
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let axes = inputs.get(3).copied().flatten().map(Fact::known_elements);
        let unknown = || Ok(vec![Fact::new(x.dtype, vec![Dim::Unknown; shape.len()])]);
        let Some(pads) = pads.elements() else { return unknown() };
        // The axes are an input whose content is not known.
        let has_axes = node.input(3).is_some();
        let axes = match axes {
            Some(Some(axes)) => Some(axes),
            _ if has_axes => return unknown(),
            _ => None,
        };
        let pads = per_axis(pads, axes.as_deref(), shape.len(), &Dim::Known(0))?;
        let dims = shape.iter().zip(&pads).map(|(dim, [begin, end])| &(dim + begin) + end);
        Ok(vec![Fact::new(x.dtype, dims.collect())])
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        let rank = tensors.rank(Port::Input(0))?;
        let axes = match tensors.inputs.get(3).copied().flatten() {
            Some(_) => Some(tensors.integers(3)?),
            None => None,
        };
        let pads = per_axis(&tensors.integers(1)?, axes.as_deref(), rank, &0).ok()?;
        let padded: Vec<usize> = (0..rank).filter(|&axis| pads[axis] != [0, 0]).collect();
        Some(Channels::like_input(tensors, &padded))
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let mode = Mode::of(node)?;
        Ok(for_every_type(
            |index| index == 0 || index == 2,
            move |run: &mut Run| {
                let rank = run.input(0)?.rank();
                let axes = run.optional(3).map(|axes| integers_of(axes, 3)).transpose()?;
                let pads = per_axis(&integers(run, 1)?, axes.as_deref(), rank, &0)?;
                Ok(vec![padded(run, &pads, mode)?])
            },
        ))
    }

    /// dx is dy without what was added; what mirrored or repeated elements got is added to theirs.
    fn gradient(&self, node: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let mode = Mode::of(node)?;
        if mode != Mode::Constant || training.wants(2) {
            let moved = |index| index == 0 || index == 2;
            return moved_gradient(self.kernel(node, &[])?, moved, node.inputs.len());
        }
        gradient(Reads::NOTHING.input(1).input(3), |run| {
            let axes = run.inputs.get(3).and_then(Option::as_ref);
            let axes = axes.map(|axes| integers_of(axes, 3)).transpose()?;
            let given = integers_of(run.input(1)?, 1)?;
            let pads = per_axis(&given, axes.as_deref(), run.shape(0).len(), &0)?;
            let undone: Vec<[i64; 2]> = pads.iter().map(|[begin, end]| [-begin, -end]).collect();
            let dy = run.take_gradient();
            let inner = Run { inputs: vec![Some(dy)], pool: run.pool };
            let dx = padded(&inner, &undone, Mode::Constant)?;
            inner.inputs.into_iter().flatten().for_each(|dy| run.pool.recycle(dy));
            Ok(vec![Some(dx.into())])
        })
    }
}

/// Input 0 with elements added (or taken away) per axis; a constant is that of input 2, or zero.
pub(super) fn padded(run: &Run, pads: &[[i64; 2]], mode: Mode) -> Result<Tensor, OpError> {
    let x = run.input(0)?;
    check_movable(0, x)?;
    let shape = (x.shape().iter().zip(pads))
        .map(|(&size, &[begin, end])| {
            let sum = i128::from(begin) + i128::from(end) + size as i128;
            let error =
                || OpError::value("the pads of an axis", (begin, end), "a size within memory");
            usize::try_from(sum).map_err(|_| error())
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut y = run.pool.declared(x.dtype(), &shape)?;
    if y.element_count() == 0 {
        return Ok(y);
    }
    let axes = (x.shape().iter().zip(pads).zip(&shape))
        .map(|((&from, &pads), &to)| Places::new(from, pads, to, mode))
        .collect::<Result<Vec<_>, _>>()?;
    by_width!(x, Word => {
        let value = run.optional(2).and_then(|value| words::<Word>(value).first().copied());
        copy(words_mut::<Word>(&mut y), words(x), x.shape(), &axes, value.unwrap_or(0));
    });
    Ok(y)
}

/// For each of `to` places along an axis, where its content stands.
struct Places {
    /// The first element that is left, and how many are.
    first: usize,
    size: usize,
    /// Places added before them.
    before: usize,
    to: usize,
    mode: Mode,
}

impl Places {
    fn new(from: usize, [begin, end]: [i64; 2], to: usize, mode: Mode) -> Result<Self, OpError> {
        // Negative pads take away first; the rest is extended.
        let first = (begin.min(0).unsigned_abs() as usize).min(from);
        let last = from - (end.min(0).unsigned_abs() as usize).min(from);
        let size = last.saturating_sub(first);
        if size == 0 && mode != Mode::Constant {
            return Err(OpError::value("the size of a padded axis", from, "above 0"));
        }
        Ok(Self { first, size, before: begin.max(0) as usize, to, mode })
    }

    /// `None` for the constant.
    fn of(&self, place: usize) -> Option<usize> {
        let (at, size) = (place as i64 - self.before as i64, self.size as i64);
        let at = match self.mode {
            // The most: no division.
            _ if (0..size).contains(&at) => at,
            Mode::Constant => return None,
            Mode::Edge => at.clamp(0, size - 1),
            Mode::Wrap => at.rem_euclid(size),
            Mode::Reflect if size == 1 => 0,
            Mode::Reflect => {
                let period = 2 * (size - 1);
                let at = at.rem_euclid(period);
                at.min(period - at)
            }
        };
        Some(self.first + at as usize)
    }

    /// Neighbours that are copied or filled together.
    fn stretches(&self) -> Vec<Stretch> {
        let own = self.before.min(self.to)..(self.before + self.size).min(self.to);
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut add = |to: usize, size: usize, from: Option<usize>| match stretches.last_mut() {
            Some(last) if from == last.from.map(|first| first + last.size) => last.size += size,
            _ => stretches.push(Stretch { to, size, from }),
        };
        (0..own.start).for_each(|to| add(to, 1, self.of(to)));
        if !own.is_empty() {
            add(own.start, own.len(), self.of(own.start));
        }
        (own.end..self.to).for_each(|to| add(to, 1, self.of(to)));
        stretches
    }
}

/// Neighbours of a row that are copied together, or filled.
struct Stretch {
    to: usize,
    size: usize,
    from: Option<usize>,
}

fn copy<T: Copy + Send + Sync>(y: &mut [T], x: &[T], shape: &[usize], axes: &[Places], value: T) {
    let Some((last, outer)) = axes.split_last() else {
        y.copy_from_slice(x);
        return;
    };
    let strides = strides_of(shape);
    let stretches = last.stretches();
    for_rows(y, last.to, |first, rows| {
        for (index, row) in rows.chunks_exact_mut(last.to).enumerate() {
            let (mut rest, mut start) = (first + index, Some(0));
            for (axis, places) in outer.iter().enumerate().rev() {
                let source = places.of(rest % places.to);
                start = start.zip(source).map(|(start, at)| start + at * strides[axis]);
                rest /= places.to;
            }
            let Some(start) = start else {
                row.fill(value);
                continue;
            };
            for stretch in &stretches {
                // Where an end is mirrored, neighbours come from places in the other order.
                if let (1, Some(from)) = (stretch.size, stretch.from) {
                    row[stretch.to] = x[start + from];
                    continue;
                }
                let row = &mut row[stretch.to..stretch.to + stretch.size];
                match stretch.from {
                    Some(from) => row.copy_from_slice(&x[start + from..][..stretch.size]),
                    None => row.fill(value),
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(from: usize, pads: [i64; 2], mode: Mode) -> Vec<i64> {
        let to = (from as i64 + pads[0] + pads[1]) as usize;
        let places = Places::new(from, pads, to, mode).unwrap();
        let found: Vec<Option<usize>> = (0..to).map(|place| places.of(place)).collect();
        let stretches = places.stretches();
        let together = stretches
            .iter()
            .flat_map(|stretch| (0..stretch.size).map(|at| stretch.from.map(|from| from + at)));
        assert!(together.eq(found.iter().copied()), "{from} {pads:?} {mode:?}");
        found.into_iter().map(|place| place.map_or(-1, |place| place as i64)).collect()
    }

    #[test]
    fn every_mode_extends_what_negative_pads_have_left() {
        assert_eq!(places(3, [2, 1], Mode::Constant), [-1, -1, 0, 1, 2, -1]);
        assert_eq!(places(3, [4, 3], Mode::Reflect), [0, 1, 2, 1, 0, 1, 2, 1, 0, 1]);
        assert_eq!(places(3, [2, 2], Mode::Edge), [0, 0, 0, 1, 2, 2, 2]);
        assert_eq!(places(3, [2, 4], Mode::Wrap), [1, 2, 0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(places(4, [-1, 2], Mode::Edge), [1, 2, 3, 3, 3]);
        assert_eq!(places(4, [-5, 3], Mode::Constant), [-1, -1]);
        assert_eq!(places(5, [-2, -1], Mode::Reflect), [2, 3]);
        assert_eq!(places(3, [1, -2], Mode::Edge), [0, 0]);
    }
}
