//! Constants that hold shapes: which elements can be set, and how.

use attar_graph::{Graph, Links, Node};
use attar_ops::Facts;
use attar_tensor::Tensor;

/// A value as new elements: a constant, or a `Concat` of which one part is new.
pub(super) enum NewShape {
    Constant(Tensor),
    /// The node, and its parts with their new elements.
    Concat {
        node: usize,
        parts: Vec<(usize, Tensor)>,
    },
}

/// A number to be written into a value.
#[derive(Clone, Copy)]
pub(super) struct Element {
    pub(super) index: usize,
    pub(super) new: i64,
    /// Whether it is a place in an axis: of sizes, 0 and −1 stay, which stand for no number.
    pub(super) is_place: bool,
}

/// Whether [`set`] can set this element.
pub(super) fn can_set(graph: &Graph, facts: &Facts, value: &str, index: usize) -> bool {
    set(graph, facts, value, &[Element { index, new: 0, is_place: false }]).is_some()
}

/// `value` with these elements.
pub(super) fn set(
    graph: &Graph,
    facts: &Facts,
    value: &str,
    elements: &[Element],
) -> Option<NewShape> {
    let fact = facts.get(value)?;
    if let Some(known) = fact.known_elements() {
        let is_scalar = fact.rank() == Some(0);
        return Some(NewShape::Constant(replaced(known, elements, is_scalar)));
    }
    let node = graph.nodes.iter().position(|node| node.outputs.iter().any(|out| out == value))?;
    if !graph.nodes[node].is("Concat") {
        return None;
    }
    let mut start = 0;
    let mut parts = Vec::new();
    for (part, name) in graph.nodes[node].inputs.iter().enumerate() {
        let own = facts.get(name)?;
        let length = own.elements()?.len();
        let within = |element: &Element| {
            let index = element.index.checked_sub(start).filter(|&index| index < length)?;
            Some(Element { index, ..*element })
        };
        let own_elements: Vec<Element> = elements.iter().filter_map(within).collect();
        if !own_elements.is_empty() {
            parts.push((part, replaced(own.known_elements()?, &own_elements, false)));
        }
        start += length;
    }
    Some(NewShape::Concat { node, parts })
}

fn replaced(mut known: Vec<i64>, elements: &[Element], is_scalar: bool) -> Tensor {
    for &Element { index, new, is_place } in elements {
        if let Some(element) = known.get_mut(index).filter(|element| is_place || **element > 0) {
            *element = new;
        }
    }
    if is_scalar { Tensor::scalar(known[0]) } else { Tensor::new(&[known.len()], &known) }
}

/// Which sizes of its input are read from a `Shape` node; `None` where that cannot be told.
pub(super) fn sizes_read(graph: &Graph, facts: &Facts, shape: &Node) -> Option<Vec<usize>> {
    if shape.attribute("start").is_some() || shape.attribute("end").is_some() {
        return None;
    }
    let output = shape.outputs.first()?;
    let rank = facts.get(output)?.elements()?.len();
    if graph.is_output(output) {
        return None;
    }
    let links = Links::new(graph);
    let mut read = Vec::new();
    for used in links.uses(output) {
        let node = &graph.nodes[used.node];
        let integers = |input: usize| facts.get(node.input(input)?)?.known_elements();
        let from_end =
            |index: i64| usize::try_from(if index < 0 { index + rank as i64 } else { index }).ok();
        if node.is("Gather") && used.input == Some(0) {
            for index in integers(1)? {
                read.push(from_end(index)?);
            }
        } else if node.is("Slice") && used.input == Some(0) && node.inputs.len() <= 4 {
            let (start, end) = (integers(1)?, integers(2)?);
            let end = (*end.first()?).min(rank as i64);
            read.extend(from_end(*start.first()?)?..from_end(end)?.min(rank));
        } else {
            return None;
        }
    }
    Some(read)
}
