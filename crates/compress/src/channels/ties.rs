//! The rules of all nodes, carried out: which places are tied, and which axes stay whole and why.

use attar_graph::{Graph, Model, Node};
use attar_ops::channels::{Channels, Factor, Fixed, Map, Place, Port, Size, Tensors, Tie};
use attar_ops::{Facts, check};

use super::places::Places;
use super::shapes;
use crate::Exclude;

/// Why an axis stays whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Input,
    Output,
    Excluded,
    /// The operator of this node uses the axis as a whole.
    Whole(usize),
    /// The operator of this node has no rule for channels.
    NoRule(usize),
    /// A body of this node reads the tensor.
    Body(usize),
    /// This node computes the shape that another gives its result.
    ComputedShape(usize),
}

impl Reason {
    pub(super) fn text(self, graph: &Graph) -> String {
        let named = |node: usize| {
            let node = &graph.nodes[node];
            format!("`{}` ({})", node.label(), node.op_type)
        };
        match self {
            Self::Input => "an input of the model".into(),
            Self::Output => "an output of the model".into(),
            Self::Excluded => "`exclude`".into(),
            Self::Whole(node) => named(node),
            Self::NoRule(node) => format!("{}, which has no rule for channels", named(node)),
            Self::Body(node) => format!("{}, whose body reads them", named(node)),
            Self::ComputedShape(node) => {
                format!("{}, whose target shape is computed", named(node))
            }
        }
    }
}

/// Ties of one way to cut reshapes.
pub(super) struct Ties {
    parents: Vec<u32>,
    /// By axis.
    pub(super) whole: Vec<Option<Reason>>,
    pub(super) is_normalized: Vec<bool>,
    /// Pairs of axes over which products of computed tensors are summed.
    pub(super) summed: Vec<[usize; 2]>,
    /// Sizes that nodes hold, by node.
    pub(super) sizes: Vec<(usize, Size)>,
    /// Numbers that nodes take from sizes, by node.
    pub(super) fixed: Vec<(usize, Fixed)>,
}

impl Ties {
    pub(super) fn new(
        model: &Model,
        facts: &Facts,
        places: &Places,
        exclude: &Exclude,
        factor: Factor,
    ) -> Self {
        let graph = &model.graph;
        let mut ties = Self {
            parents: (0..places.count as u32).collect(),
            whole: vec![None; places.axes.len()],
            is_normalized: vec![false; places.axes.len()],
            summed: Vec::new(),
            sizes: Vec::new(),
            fixed: Vec::new(),
        };
        ties.keep_ends(graph, places, exclude);
        for (index, node) in graph.nodes.iter().enumerate() {
            if node.constant().is_some() {
                continue;
            }
            for name in node.subgraphs().flat_map(attar_graph::captured_names) {
                ties.keep_value(places, name, Reason::Body(index));
            }
            if exclude.matches(node.label()) {
                ties.keep_node(graph, places, index, Reason::Excluded);
            }
            if node.is("Shape") {
                ties.keep_counted(graph, places, facts, index);
            } else {
                match rule(model, facts, node, factor) {
                    Some(rule) => ties.follow(graph, places, facts, index, rule),
                    None => ties.keep_node(graph, places, index, Reason::NoRule(index)),
                }
            }
        }
        ties
    }

    fn keep_ends(&mut self, graph: &Graph, places: &Places, exclude: &Exclude) {
        for input in &graph.inputs {
            self.keep_value(places, &input.name, Reason::Input);
        }
        for output in &graph.outputs {
            self.keep_value(places, &output.name, Reason::Output);
        }
        for (tensor, entry) in places.tensors.iter().enumerate() {
            if exclude.matches(&entry.name) {
                self.keep_tensor(places, tensor, Reason::Excluded);
            }
            let is_input = graph.inputs.iter().any(|input| input.name == entry.name);
            if entry.reader.is_some() && is_input {
                self.keep_tensor(places, tensor, Reason::Input);
            }
        }
    }

    fn keep_value(&mut self, places: &Places, name: &str, reason: Reason) {
        if let Some(tensor) = places.value(name) {
            self.keep_tensor(places, tensor, reason);
        }
    }

    fn keep_tensor(&mut self, places: &Places, tensor: usize, reason: Reason) {
        for axis in places.axes_of(tensor) {
            self.whole[axis].get_or_insert(reason);
        }
    }

    fn keep_node(&mut self, graph: &Graph, places: &Places, index: usize, reason: Reason) {
        for port in ports(&graph.nodes[index]) {
            if let Some(tensor) = places.at(graph, index, port) {
                self.keep_tensor(places, tensor, reason);
            }
        }
    }

    /// Sizes that are read become numbers that anything may be done with: their axes stay whole.
    fn keep_counted(&mut self, graph: &Graph, places: &Places, facts: &Facts, index: usize) {
        let node = &graph.nodes[index];
        let Some(tensor) = places.at(graph, index, Port::Input(0)) else { return };
        let read = shapes::sizes_read(graph, facts, node);
        for (axis, entry) in places.axes_of(tensor).enumerate() {
            if read.as_ref().is_none_or(|read| read.contains(&axis)) {
                self.whole[entry].get_or_insert(Reason::Whole(index));
            }
        }
    }

    fn follow(
        &mut self,
        graph: &Graph,
        places: &Places,
        facts: &Facts,
        index: usize,
        rule: Channels,
    ) {
        let mut mentioned: Vec<usize> = Vec::new();
        let axis = |axis| places.axis(graph, index, axis);
        for tie in &rule.ties {
            if let (Some(from), Some(to)) = (axis(tie.from), axis(tie.to)) {
                mentioned.extend([from, to]);
                self.tie(places, from, to, tie, index);
            }
        }
        mentioned.extend(rule.free.iter().filter_map(|&free| axis(free)));
        for port in ports(&graph.nodes[index]) {
            let Some(tensor) = places.at(graph, index, port) else { continue };
            for own in places.axes_of(tensor).filter(|own| !mentioned.contains(own)) {
                self.whole[own].get_or_insert(Reason::Whole(index));
            }
        }
        for own in rule.whole.iter().filter_map(|&whole| axis(whole)) {
            self.whole[own].get_or_insert(Reason::Whole(index));
        }
        for own in rule.statistics.iter().filter_map(|&over| axis(over)) {
            self.is_normalized[own] = true;
        }
        let computed = |own: &usize| !places.tensors[places.axes[*own].tensor].is_constant;
        for [a, b] in rule.summed {
            if let (Some(a), Some(b)) = (axis(a).filter(computed), axis(b).filter(computed)) {
                self.summed.push([a, b]);
            }
        }
        self.fixed.extend(rule.fixed.into_iter().map(|fixed| (index, fixed)));
        for size in rule.sizes {
            let Some(own) = axis(size.blocks.axis).filter(|&own| places.axes[own].size > 0) else {
                continue;
            };
            if let Place::InputElement(input, element) | Place::InputElementFromEnd(input, element) =
                size.place
                && !shapes::can_set(graph, facts, &graph.nodes[index].inputs[input], element)
            {
                self.whole[own].get_or_insert(Reason::ComputedShape(index));
            }
            self.sizes.push((index, size));
        }
    }

    fn tie(&mut self, places: &Places, from: usize, to: usize, tie: &Tie, node: usize) {
        let [from_size, to_size] = [from, to].map(|axis| places.axes[axis].size);
        let fits = match tie.map {
            Map::Range { from, to, count } => {
                from.saturating_add(count) <= from_size && to.saturating_add(count) <= to_size
            }
            Map::Factor { count, stride, .. } => count.saturating_sub(1) * stride < to_size,
        };
        if from_size == 0 || to_size == 0 || !fits {
            for axis in [from, to] {
                self.whole[axis].get_or_insert(Reason::Whole(node));
            }
            return;
        }
        let (from, to) = (&places.axes[from], &places.axes[to]);
        match tie.map {
            Map::Range { from: first, to: start, count } => {
                for i in 0..count {
                    self.join(from.base + first + i, to.base + start + i);
                }
            }
            Map::Factor { inner, count, stride } => {
                for i in 0..from.size {
                    self.join(from.base + i, to.base + (i / inner) % count * stride);
                }
            }
        }
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        // The first place in graph order stands for all.
        self.parents[a.max(b)] = a.min(b) as u32;
    }

    pub(super) fn root(&mut self, mut place: usize) -> usize {
        while self.parents[place] as usize != place {
            let above = self.parents[place] as usize;
            self.parents[place] = self.parents[above];
            place = above;
        }
        place
    }
}

fn ports(node: &Node) -> impl Iterator<Item = Port> {
    (0..node.inputs.len()).map(Port::Input).chain((0..node.outputs.len()).map(Port::Output))
}

/// The rule of a node; `None` also where the rank of one of its tensors is unknown.
fn rule(model: &Model, facts: &Facts, node: &Node, factor: Factor) -> Option<Channels> {
    let operator = check(node, model.opset()).ok()?;
    let all = |names: &'_ [String]| -> Option<Vec<Option<attar_ops::Fact>>> {
        names
            .iter()
            .map(|name| match name.as_str() {
                "" => Some(None),
                name => {
                    facts.get(name).filter(|fact| fact.shape.is_some()).map(|f| Some(f.clone()))
                }
            })
            .collect()
    };
    let (inputs, outputs) = (all(&node.inputs)?, all(&node.outputs)?);
    let inputs: Vec<_> = inputs.iter().map(Option::as_ref).collect();
    let outputs: Vec<_> = outputs.iter().map(Option::as_ref).collect();
    operator.channels(node, &Tensors { inputs: &inputs, outputs: &outputs, factor })
}
