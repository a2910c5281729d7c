//! How channels pass through an operator: which indices of which axes can only be cut together.
//!
//! A rule speaks of all axes of a node at once and knows no direction, so that a cut spreads from
//! wherever it starts. An axis that a rule does not mention is used as a whole: nothing of it can
//! be cut.

use attar_graph::Dim;

use crate::Fact;
use crate::fact::product;

/// A tensor of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    Input(usize),
    Output(usize),
}

/// An axis of a tensor of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Axis {
    pub port: Port,
    pub axis: usize,
}

pub(crate) fn input(index: usize, axis: usize) -> Axis {
    Axis { port: Port::Input(index), axis }
}

pub(crate) fn output(index: usize, axis: usize) -> Axis {
    Axis { port: Port::Output(index), axis }
}

/// Which index of one axis goes with which of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// `from + i` with `to + i`, for i below `count`.
    Range { from: usize, to: usize, count: usize },
    /// Every index i with ((i / inner) mod count) · stride.
    Factor { inner: usize, count: usize, stride: usize },
}

/// Two axes whose indices are cut together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tie {
    pub from: Axis,
    pub to: Axis,
    pub map: Map,
}

/// Where a node says a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Attribute(&'static str),
    /// Of an attribute that is a list.
    AttributeElement(&'static str, usize),
    InputElement(usize, usize),
    /// A place in an axis, which counts from its end: it changes with a cut behind it too.
    InputElementFromEnd(usize, usize),
}

/// Indices `from..up_to` of an axis, in blocks of `per`. A cut counts the blocks of which anything
/// is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    pub axis: Axis,
    pub from: usize,
    pub up_to: usize,
    pub per: usize,
}

/// A number that a node says, which is a count of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub place: Place,
    pub blocks: Blocks,
}

/// What a node takes from the size of a block while no attribute says it. It is written down
/// before blocks get smaller.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fixed {
    pub attribute: &'static str,
    pub value: f32,
    pub blocks: Blocks,
}

/// The rule of one node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Channels {
    pub ties: Vec<Tie>,
    /// Axes of which any part can go without touching another: what is summed over.
    pub free: Vec<Axis>,
    /// Axes over which statistics are taken, so that a cut changes what is computed for the rest.
    pub statistics: Vec<Axis>,
    /// Axes that stay whole though a tie mentions them.
    pub whole: Vec<Axis>,
    /// Axes over which products of two tensors are summed: a channel adds nothing where one of
    /// the two is zero.
    pub summed: Vec<[Axis; 2]>,
    pub sizes: Vec<Size>,
    pub fixed: Vec<Fixed>,
}

/// Which axis a reshape may be cut along where it splits one axis into several, of those longer
/// than 1. Each choice gives channels of its own: whole heads, or the same place in every head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    First,
    SecondLast,
    Last,
}

/// What is known of a node's tensors.
pub struct Tensors<'a> {
    pub inputs: &'a [Option<&'a Fact>],
    pub outputs: &'a [Option<&'a Fact>],
    pub factor: Factor,
}

impl<'a> Tensors<'a> {
    /// The shape, or `None` where the tensor is absent or its rank unknown.
    pub(crate) fn shape(&self, port: Port) -> Option<&'a [Dim]> {
        let fact = match port {
            Port::Input(index) => self.inputs.get(index),
            Port::Output(index) => self.outputs.get(index),
        };
        fact.copied().flatten()?.shape.as_deref()
    }

    pub(crate) fn rank(&self, port: Port) -> Option<usize> {
        self.shape(port).map(<[Dim]>::len)
    }

    /// The size of an axis, where it is a number.
    pub(crate) fn size(&self, axis: Axis) -> Option<usize> {
        usize::try_from(self.shape(axis.port)?.get(axis.axis)?.known()?).ok()
    }

    /// The elements of an integer input that is known.
    pub(crate) fn integers(&self, input: usize) -> Option<Vec<i64>> {
        let fact = self.inputs.get(input).copied().flatten()?;
        fact.known_elements().or_else(|| fact.constant.as_ref()?.to_i64())
    }
}

impl Channels {
    /// Index with index. Axes of open size, or of one index, have nothing to cut.
    pub(crate) fn tie(&mut self, tensors: &Tensors, from: Axis, to: Axis) {
        match (tensors.size(from), tensors.size(to)) {
            (Some(count), Some(other)) if count == other => {
                self.ties.push(Tie { from, to, map: Map::Range { from: 0, to: 0, count } });
            }
            _ => self.whole.extend([from, to]),
        }
    }

    /// `count` indices of `from`, starting with `first`, with those of `to` starting with `start`.
    pub(crate) fn tie_range(
        &mut self,
        from: Axis,
        first: usize,
        to: Axis,
        start: usize,
        count: usize,
    ) {
        self.ties.push(Tie { from, to, map: Map::Range { from: first, to: start, count } });
    }

    /// Index i of `from` with index ((i / inner) mod count) · stride of `to`.
    pub(crate) fn tie_factor(&mut self, from: Axis, to: Axis, [inner, count, stride]: [usize; 3]) {
        self.ties.push(Tie { from, to, map: Map::Factor { inner, count, stride } });
    }

    /// Index with index, of axes over which products are summed.
    pub(crate) fn tie_summed(&mut self, tensors: &Tensors, a: Axis, b: Axis) {
        self.tie(tensors, a, b);
        self.summed.push([a, b]);
    }

    /// Says where the node holds the size of an axis.
    pub(crate) fn held(&mut self, tensors: &Tensors, place: Place, axis: Axis) {
        if let Some(up_to) = tensors.size(axis) {
            self.sizes.push(Size { place, blocks: Blocks { axis, from: 0, up_to, per: 1 } });
        }
    }

    /// All axes of `from` with those of `to`, except `whole`.
    pub(crate) fn tie_all(&mut self, tensors: &Tensors, from: Port, to: Port, whole: &[usize]) {
        let rank = tensors.rank(from).unwrap_or(0);
        for axis in (0..rank).filter(|axis| !whole.contains(axis)) {
            self.tie(tensors, Axis { port: from, axis }, Axis { port: to, axis });
        }
    }

    /// Axes of an input with those of output 0, counted from the last: what broadcasting does.
    pub(crate) fn tie_broadcast(&mut self, tensors: &Tensors, index: usize) {
        let (Some(rank), Some(out)) =
            (tensors.rank(Port::Input(index)), tensors.rank(Port::Output(0)))
        else {
            return;
        };
        for axis in 0..rank.min(out) {
            let from = input(index, rank - 1 - axis);
            if tensors.size(from) != Some(1) {
                self.tie(tensors, from, output(0, out - 1 - axis));
            }
        }
    }

    /// The rule of what works element by element on the given inputs, which broadcast.
    pub(crate) fn elementwise(tensors: &Tensors, inputs: std::ops::Range<usize>) -> Self {
        let mut channels = Self::default();
        inputs.for_each(|index| channels.tie_broadcast(tensors, index));
        channels
    }

    /// The rule of what gives every output the axes of input 0, except `whole`.
    pub(crate) fn like_input(tensors: &Tensors, whole: &[usize]) -> Self {
        let mut channels = Self::default();
        for index in 0..tensors.outputs.len() {
            channels.tie_all(tensors, Port::Input(0), Port::Output(index), whole);
        }
        channels
    }

    /// The rule of a reshape: runs of axes whose products agree stand for each other.
    pub(crate) fn reshaped(tensors: &Tensors) -> Self {
        let mut channels = Self::default();
        let (Some(x), Some(y)) = (tensors.shape(Port::Input(0)), tensors.shape(Port::Output(0)))
        else {
            return channels;
        };
        for (from, to) in runs(x, y) {
            let long = |shape: &[Dim], run: std::ops::Range<usize>| -> Vec<usize> {
                run.filter(|&axis| shape[axis] != Dim::Known(1)).collect()
            };
            let (from, to) = (long(x, from), long(y, to));
            match (from.as_slice(), to.as_slice()) {
                (&[a], &[b]) => channels.tie(tensors, input(0, a), output(0, b)),
                (&[a], parts) if parts.len() > 1 => {
                    let parts: Vec<Axis> = parts.iter().map(|&axis| output(0, axis)).collect();
                    channels.tie_parts(tensors, input(0, a), &parts);
                }
                (parts, &[b]) if parts.len() > 1 => {
                    let parts: Vec<Axis> = parts.iter().map(|&axis| input(0, axis)).collect();
                    channels.tie_parts(tensors, output(0, b), &parts);
                }
                _ => {}
            }
        }
        channels
    }

    /// One axis that stands for several others, cut along the one that `tensors.factor` says.
    fn tie_parts(&mut self, tensors: &Tensors, whole: Axis, parts: &[Axis]) {
        let sizes: Option<Vec<usize>> = parts.iter().map(|&axis| tensors.size(axis)).collect();
        let (Some(sizes), Some(_)) = (sizes, tensors.size(whole)) else { return };
        let chosen = match tensors.factor {
            Factor::First => 0,
            Factor::SecondLast => parts.len() - 2,
            Factor::Last => parts.len() - 1,
        };
        let inner = sizes[chosen + 1..].iter().product();
        self.tie_factor(whole, parts[chosen], [inner, sizes[chosen], 1]);
    }
}

/// Shortest runs of axes of `x` and `y` with equal products, as ranges of axes.
fn runs(x: &[Dim], y: &[Dim]) -> Vec<(std::ops::Range<usize>, std::ops::Range<usize>)> {
    let mut found = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < x.len() && j < y.len() {
        let Some((end_i, end_j)) = run_from(x, y, i, j) else { break };
        found.push((i..end_i, j..end_j));
        (i, j) = (end_i, end_j);
    }
    found
}

fn run_from(x: &[Dim], y: &[Dim], i: usize, j: usize) -> Option<(usize, usize)> {
    for length in 2..=(x.len() - i) + (y.len() - j) {
        for end_i in i + 1..=x.len().min(i + length - 1) {
            let end_j = j + (length - (end_i - i));
            if end_j <= y.len() && product(&x[i..end_i]).same_as(&product(&y[j..end_j])) {
                return Some((end_i, end_j));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_tensor::DType;

    fn fact(shape: &[i64]) -> Fact {
        Fact::new(DType::F32, shape.iter().map(|&size| Dim::Known(size)).collect())
    }

    fn reshaped(x: &Fact, y: &Fact, factor: Factor) -> Vec<Tie> {
        let tensors = Tensors { inputs: &[Some(x)], outputs: &[Some(y)], factor };
        Channels::reshaped(&tensors).ties
    }

    #[test]
    fn a_split_axis_is_cut_by_blocks_or_by_places() {
        let (x, y) = (fact(&[2, 5, 12]), fact(&[2, 5, 3, 4]));
        let last = |factor| *reshaped(&x, &y, factor).last().unwrap();
        let blocks = Map::Factor { inner: 4, count: 3, stride: 1 };
        assert_eq!(last(Factor::First), Tie { from: input(0, 2), to: output(0, 2), map: blocks });
        let places = Map::Factor { inner: 1, count: 4, stride: 1 };
        assert_eq!(last(Factor::Last), Tie { from: input(0, 2), to: output(0, 3), map: places });
    }

    #[test]
    fn axes_of_size_one_come_and_go() {
        let ties = reshaped(&fact(&[2, 1, 7, 1]), &fact(&[2, 7]), Factor::Last);
        let axes: Vec<(Axis, Axis)> = ties.iter().map(|tie| (tie.from, tie.to)).collect();
        assert_eq!(axes, [(input(0, 0), output(0, 0)), (input(0, 2), output(0, 1))]);
    }

    #[test]
    fn runs_are_found_behind_open_sizes() {
        let (batch, steps) = (Dim::symbol("batch"), Dim::symbol("steps"));
        let x = [batch.clone(), steps.clone(), Dim::Known(12)];
        let y = [&batch * &steps, Dim::Known(3), Dim::Known(4)];
        assert_eq!(runs(&x, &y), [(0..2, 0..1), (2..3, 1..3)]);
    }
}
