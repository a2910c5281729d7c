//! Groups: what is tied in the end, sorted by the axes it lies on.

use std::collections::{BTreeMap, HashMap};

use attar_graph::{Links, Model};
use attar_ops::channels::{Factor, Fixed, Port, Size};
use attar_ops::{Bindings, Facts, MICROSOFT_DOMAIN, infer_graph};

use super::kind::kind_of;
use super::places::Places;
use super::ties::Ties;
use super::zeros::sums_zeros;
use super::{ChannelGroup, GroupAxis};
use crate::Exclude;

const FACTORS: [Factor; 3] = [Factor::First, Factor::SecondLast, Factor::Last];

/// The groups of a model, and what cannot be cut.
pub struct ChannelGroups {
    /// In the order of the graph.
    pub groups: Vec<ChannelGroup>,
    /// Weights of which no channel of an axis can be cut: name, axis, and what forbids it.
    pub blocked: Vec<(String, usize, String)>,
    pub(super) places: Places,
    pub(super) sizes: Vec<(usize, Size)>,
    pub(super) fixed: Vec<(usize, Fixed)>,
    pub(super) facts: Facts,
}

/// Places of one component, sorted, with the axis of each.
type Component = Vec<(usize, u32)>;

impl ChannelGroups {
    /// Finds every group of a model.
    pub fn find(model: &Model, exclude: &Exclude) -> Self {
        let facts = infer_graph(model);
        let places = Places::new(&model.graph, &facts);
        let links = Links::new(&model.graph);
        let weights = weight_axes(model, &places);
        let mut found: Vec<ChannelGroup> = Vec::new();
        let mut by_axes: HashMap<Vec<(usize, usize)>, Vec<usize>> = HashMap::new();
        let mut reasons: BTreeMap<usize, String> = BTreeMap::new();
        let (mut sizes, mut fixed) = (Vec::new(), Vec::new());
        for (bit, factor) in FACTORS.into_iter().enumerate() {
            let mut ties = Ties::new(model, &facts, &places, exclude, factor);
            let (components, whole) = components(&places, &mut ties);
            for (axis, reason) in whole {
                if weights[axis] {
                    reasons.entry(axis).or_insert_with(|| reason.text(&model.graph));
                }
            }
            for (axes, channels) in components {
                if !axes.iter().any(|&(axis, _)| weights[axis]) {
                    continue;
                }
                let same = by_axes.entry(axes.clone()).or_default();
                let mut group = group_of(&places, &axes, &channels);
                group.factors = 1 << bit;
                if let Some(&known) = same.iter().find(|&&known| found[known].axes == group.axes) {
                    found[known].factors |= 1 << bit;
                    continue;
                }
                group.is_exact = !axes.iter().any(|&(axis, _)| ties.is_normalized[axis])
                    && sums_zeros(model, &places, &axes, &ties.summed);
                let Some((kind, name)) = kind_of(model, &links, &group) else { continue };
                (group.kind, group.name) = (kind, name);
                same.push(found.len());
                found.push(group);
            }
            (sizes, fixed) = (ties.sizes, ties.fixed);
        }
        found.sort_by_key(|group| group.axes.first().map(|axis| (axis.dim, axis.indices[0])));
        let mut groups = Self { groups: found, blocked: Vec::new(), places, sizes, fixed, facts };
        groups.weigh(model);
        groups.block(reasons);
        groups
    }

    /// Enters the bytes and operations of every group.
    fn weigh(&mut self, model: &Model) {
        let constants: HashMap<&str, _> = model.graph.constants().collect();
        let mut symbols = Bindings::new();
        for value in &model.graph.inputs {
            for dim in value.shape().unwrap_or_default() {
                dim.for_each_symbol(&mut |name| {
                    symbols.insert(name.to_string(), 1);
                });
            }
        }
        let costs = self.facts.costs(model, &symbols);
        let links = Links::new(&model.graph);
        for group in &mut self.groups {
            let mut by_node: BTreeMap<usize, f64> = BTreeMap::new();
            for axis in group.axes.iter().filter(|axis| axis.is_constant) {
                let Some(tensor) = constants.get(axis.tensor.as_str()) else { continue };
                let size = self.places.axes[axis.dim].size.max(1);
                let part = axis.indices.len() as f64 / size as f64;
                group.weight_bytes += (tensor.size_bytes() as f64 * part) as u64;
                for used in links.uses(&axis.tensor) {
                    let share = by_node.entry(used.node).or_default();
                    *share = share.max(part);
                }
            }
            let of_node =
                |(node, part): (&usize, &f64)| costs[*node].macs.unwrap_or(0) as f64 * part;
            group.macs = by_node.iter().map(of_node).sum::<f64>() as u64;
        }
    }

    fn block(&mut self, reasons: BTreeMap<usize, String>) {
        let mut is_cut = vec![false; self.places.axes.len()];
        for axis in self.groups.iter().flat_map(|group| &group.axes) {
            is_cut[axis.dim] = true;
        }
        for (axis, reason) in reasons.into_iter().filter(|(axis, _)| !is_cut[*axis]) {
            let entry = &self.places.axes[axis];
            let tensor = self.places.tensors[entry.tensor].name.clone();
            self.blocked.push((tensor, entry.axis, reason));
        }
    }

    /// Whether two values are known to have one shape.
    pub(crate) fn have_same_shape(&self, a: &str, b: &str) -> bool {
        let shape = |name: &str| self.facts.get(name)?.shape.clone();
        shape(a).is_some_and(|a| shape(b) == Some(a))
    }

    /// Whether a cut takes something of a value away.
    pub(crate) fn is_cut(&self, cut: &super::Cut, value: &str) -> bool {
        let axes = self.places.value(value).map(|tensor| self.places.axes_of(tensor));
        axes.is_some_and(|mut axes| axes.any(|axis| cut.takes_of(axis)))
    }

    /// Whether channels of both can be cut in one go: they lie on different axes, or were found
    /// together.
    pub fn go_together(&self, a: &ChannelGroup, b: &ChannelGroup) -> bool {
        a.factors & b.factors != 0
            || !a.axes.iter().any(|axis| b.axes.iter().any(|other| other.dim == axis.dim))
    }
}

/// Which axes are channels of products, convolutions, recurrent layers and tables.
fn weight_axes(model: &Model, places: &Places) -> Vec<bool> {
    let graph = &model.graph;
    let mut is_weight = vec![false; places.axes.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        // By input, the axes that hold channels.
        let axes: &[(usize, &[usize])] = match node.op_type.as_str() {
            "MatMul" | "Gemm" | "FusedMatMul" | "FusedGemm" => {
                &[(0, &[0, 1, 2, 3]), (1, &[0, 1, 2, 3])]
            }
            "Conv" | "ConvTranspose" | "FusedConv" => &[(1, &[0, 1])],
            "Attention" if node.domain == MICROSOFT_DOMAIN => &[(1, &[0, 1])],
            "EmbedLayerNormalization" => &[(2, &[1]), (3, &[1]), (4, &[1])],
            "LSTM" | "GRU" | "RNN" => &[(1, &[1, 2]), (2, &[2])],
            "Gather" => &[(0, &[1])],
            _ => continue,
        };
        for &(input, axes) in axes {
            let Some(tensor) = places.at(graph, index, Port::Input(input)) else { continue };
            if !places.tensors[tensor].is_constant || places.tensors[tensor].reader.is_some() {
                continue;
            }
            for axis in places.axes_of(tensor) {
                is_weight[axis] |=
                    axes.contains(&places.axes[axis].axis) && places.axes[axis].size > 0;
            }
        }
    }
    is_weight
}

type ByAxes = Vec<(Vec<(usize, usize)>, Vec<Component>)>;

/// Components of which nothing stays whole, by the axes they lie on and how many places of each;
/// and of the other axes why.
fn components(places: &Places, ties: &mut Ties) -> (ByAxes, Vec<(usize, super::ties::Reason)>) {
    let mut reason_of: Vec<Option<super::ties::Reason>> = vec![None; places.count];
    let mut counts = vec![0_u32; places.count];
    let each_place =
        |axis: usize| places.axes[axis].base..places.axes[axis].base + places.axes[axis].size;
    for axis in 0..places.axes.len() {
        for place in each_place(axis) {
            let root = ties.root(place);
            counts[root] += 1;
            if let Some(reason) = ties.whole[axis] {
                reason_of[root].get_or_insert(reason);
            }
        }
    }
    let mut slots: HashMap<usize, usize> = HashMap::new();
    let mut members: Vec<Component> = Vec::new();
    let mut whole = Vec::new();
    for axis in 0..places.axes.len() {
        let entry = &places.axes[axis];
        for place in each_place(axis) {
            let root = ties.root(place);
            if let Some(reason) = reason_of[root] {
                if place == entry.base {
                    whole.push((axis, reason));
                }
                continue;
            }
            let slot = *slots.entry(root).or_insert_with(|| {
                members.push(Vec::with_capacity(counts[root] as usize));
                members.len() - 1
            });
            members[slot].push((axis, (place - entry.base) as u32));
        }
    }
    let mut slot_of: HashMap<Vec<(usize, usize)>, usize> = HashMap::new();
    let mut by_axes: ByAxes = Vec::new();
    for component in members {
        let mut axes: Vec<(usize, usize)> = Vec::new();
        for &(axis, _) in &component {
            match axes.last_mut() {
                Some((last, count)) if *last == axis => *count += 1,
                _ => axes.push((axis, 1)),
            }
        }
        let slot = *slot_of.entry(axes).or_insert_with_key(|axes| {
            by_axes.push((axes.clone(), Vec::new()));
            by_axes.len() - 1
        });
        by_axes[slot].1.push(component);
    }
    (by_axes, whole)
}

fn group_of(places: &Places, axes: &[(usize, usize)], channels: &[Component]) -> ChannelGroup {
    let mut first = 0;
    let axes = axes
        .iter()
        .map(|&(axis, per_channel)| {
            let own = first..first + per_channel;
            first += per_channel;
            let entry = &places.axes[axis];
            let tensor = &places.tensors[entry.tensor];
            GroupAxis {
                tensor: tensor.name.clone(),
                axis: entry.axis,
                is_constant: tensor.is_constant,
                reader: tensor.reader,
                indices: channels
                    .iter()
                    .flat_map(|channel| channel[own.clone()].iter().map(|&(_, index)| index))
                    .collect(),
                per_channel,
                dim: axis,
            }
        })
        .collect();
    ChannelGroup {
        name: String::new(),
        kind: super::ChannelKind::Columns,
        channel_count: channels.len(),
        is_exact: true,
        axes,
        weight_bytes: 0,
        macs: 0,
        factors: 0,
    }
}
