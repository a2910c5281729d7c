//! Tensors of a graph, their axes, and a number for every index of every axis.

use std::collections::HashMap;

use attar_graph::Graph;
use attar_ops::Facts;
use attar_ops::channels::{Axis, Port};

/// Axes longer than this are never cut: they count words, not channels.
const SIZE_MAX: usize = 1 << 18;

/// A tensor: a value, or a vector of constants as one node reads it.
pub(super) struct Entry {
    pub(super) name: String,
    /// Vectors that several nodes share, ones and zeros mostly, do not tie these nodes.
    pub(super) reader: Option<(usize, usize)>,
    pub(super) is_constant: bool,
    first: usize,
    rank: usize,
}

/// One axis of a tensor.
pub(super) struct AxisEntry {
    pub(super) tensor: usize,
    pub(super) axis: usize,
    /// 0 where the size is open or 1: there is nothing to cut.
    pub(super) size: usize,
    /// The number of index 0; the others follow.
    pub(super) base: usize,
}

/// All tensors whose rank is known.
pub(super) struct Places {
    pub(super) tensors: Vec<Entry>,
    pub(super) axes: Vec<AxisEntry>,
    pub(super) count: usize,
    values: HashMap<String, usize>,
    readers: HashMap<(usize, usize), usize>,
}

impl Places {
    pub(super) fn new(graph: &Graph, facts: &Facts) -> Self {
        let mut places = Self {
            tensors: Vec::new(),
            axes: Vec::new(),
            count: 0,
            values: HashMap::new(),
            readers: HashMap::new(),
        };
        let is_vector: HashMap<&str, bool> =
            graph.constants().map(|(name, tensor)| (name, tensor.rank() <= 1)).collect();
        for input in &graph.inputs {
            places.add(facts, &input.name, None, false);
        }
        for (index, node) in graph.nodes.iter().enumerate() {
            for (input, name) in node.inputs.iter().enumerate().filter(|(_, n)| !n.is_empty()) {
                match is_vector.get(name.as_str()) {
                    Some(true) => places.add(facts, name, Some((index, input)), true),
                    Some(false) => places.add(facts, name, None, true),
                    None => {}
                }
            }
            for name in node.outputs.iter().filter(|name| !name.is_empty()) {
                places.add(facts, name, None, node.constant().is_some());
            }
        }
        places
    }

    fn add(
        &mut self,
        facts: &Facts,
        name: &str,
        reader: Option<(usize, usize)>,
        is_constant: bool,
    ) {
        if reader.is_none() && self.values.contains_key(name) {
            return;
        }
        let Some(fact) = facts.get(name) else { return };
        let Some(shape) = &fact.shape else { return };
        // Strings, and elements of less than a byte, are not cut.
        let is_whole = fact.dtype.size_bytes(1) != fact.dtype.size_bytes(2).map(|two| two / 2);
        let tensor = self.tensors.len();
        match reader {
            Some(reader) => self.readers.insert(reader, tensor),
            None => self.values.insert(name.to_string(), tensor),
        };
        let (first, rank) = (self.axes.len(), shape.len());
        self.tensors.push(Entry { name: name.to_string(), reader, is_constant, first, rank });
        for (axis, dim) in shape.iter().enumerate() {
            let size = dim.known().and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
            let size = if (2..=SIZE_MAX).contains(&size) && !is_whole { size } else { 0 };
            self.axes.push(AxisEntry { tensor, axis, size, base: self.count });
            self.count += size;
        }
    }

    /// The tensor of a node.
    pub(super) fn at(&self, graph: &Graph, node: usize, port: Port) -> Option<usize> {
        let name = match port {
            Port::Input(input) => {
                if let Some(&tensor) = self.readers.get(&(node, input)) {
                    return Some(tensor);
                }
                graph.nodes[node].input(input)?
            }
            Port::Output(output) => graph.nodes[node].outputs.get(output)?,
        };
        self.value(name)
    }

    pub(super) fn value(&self, name: &str) -> Option<usize> {
        self.values.get(name).copied()
    }

    /// The axes of a tensor.
    pub(super) fn axes_of(&self, tensor: usize) -> std::ops::Range<usize> {
        let Entry { first, rank, .. } = self.tensors[tensor];
        first..first + rank
    }

    /// The axis of a tensor of a node.
    pub(super) fn axis(&self, graph: &Graph, node: usize, axis: Axis) -> Option<usize> {
        self.axes_of(self.at(graph, node, axis.port)?).nth(axis.axis)
    }
}
