//! The cut: constants without their channels, and the nodes that hold sizes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use attar_graph::{AttributeValue, Edit, Links, Model, Node, Plan, apply};
use attar_ops::channels::{Blocks, Fixed, Place, Size};
use attar_ops::infer_graph;
use attar_tensor::{DType, Tensor};

use super::shapes::{self, Element, NewShape};
use super::{ChannelGroup, ChannelGroups};
use crate::PassError;

/// What is taken away, by axis.
#[derive(Clone, Debug, Default)]
pub struct Cut {
    removed: BTreeMap<usize, BTreeSet<u32>>,
}

impl Cut {
    /// Takes these channels of a group away.
    pub fn remove(&mut self, group: &ChannelGroup, channels: impl IntoIterator<Item = usize>) {
        for channel in channels {
            for axis in &group.axes {
                self.removed.entry(axis.dim).or_default().extend(axis.of(channel));
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.removed.is_empty()
    }

    pub(super) fn takes_of(&self, axis: usize) -> bool {
        self.removed.contains_key(&axis)
    }
}

impl ChannelGroups {
    /// The edits that carry out a cut of `model`, which the groups were found in. Constants that
    /// `replaced` names are cut from there.
    ///
    /// # Errors
    /// Where the cut graph would not have the shapes that follow from the cut.
    pub fn edits(
        &self,
        model: &Model,
        cut: &Cut,
        replaced: &BTreeMap<String, Tensor>,
    ) -> Result<Plan, PassError> {
        let mut cutter = Cutter {
            groups: self,
            model,
            links: Links::new(&model.graph),
            cut,
            nodes: BTreeMap::new(),
            plan: Plan::default(),
        };
        cutter.constants(replaced);
        cutter.sizes()?;
        cutter.fixed();
        let mut plan = cutter.plan;
        for (index, node) in cutter.nodes {
            plan.push(Edit::ReplaceNode { index, node });
        }
        self.check(model, cut, &plan)?;
        Ok(plan)
    }

    /// Infers the shapes of the cut graph and compares them with what follows from the cut.
    fn check(&self, model: &Model, cut: &Cut, plan: &Plan) -> Result<(), PassError> {
        let mut after = model.clone();
        apply(&mut after.graph, plan)?;
        let facts = infer_graph(&after);
        if let Some((node, error)) =
            facts.problems.iter().find(|p| !self.facts.problems.contains(p))
        {
            return Err(PassError::Cut { node: node.clone(), message: error.to_string() });
        }
        for (dim, removed) in &cut.removed {
            let entry = &self.places.axes[*dim];
            let tensor = &self.places.tensors[entry.tensor];
            if tensor.reader.is_some() {
                continue;
            }
            let shape = facts.get(&tensor.name).and_then(|fact| fact.shape.as_ref());
            let found = shape.and_then(|shape| shape.get(entry.axis)?.known());
            let expected = (entry.size - removed.len()) as i64;
            if found.is_some_and(|found| found != expected) {
                let message = format!(
                    "axis {} of `{}` would have size {}, expected {expected}",
                    entry.axis,
                    tensor.name,
                    found.unwrap_or(0)
                );
                return Err(PassError::Cut { node: tensor.name.clone(), message });
            }
        }
        Ok(())
    }
}

struct Cutter<'a> {
    groups: &'a ChannelGroups,
    model: &'a Model,
    links: Links<'a>,
    cut: &'a Cut,
    /// Nodes as they will be.
    nodes: BTreeMap<usize, Node>,
    plan: Plan,
}

impl Cutter<'_> {
    fn node(&mut self, index: usize) -> &mut Node {
        let graph = &self.model.graph;
        self.nodes.entry(index).or_insert_with(|| graph.nodes[index].clone())
    }

    fn constants(&mut self, replaced: &BTreeMap<String, Tensor>) {
        // The axes cut of each tensor, as each reader sees it.
        let mut by_tensor: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &dim in self.cut.removed.keys() {
            let tensor = self.groups.places.axes[dim].tensor;
            if self.groups.places.tensors[tensor].is_constant {
                by_tensor.entry(tensor).or_default().push(dim);
            }
        }
        let mut done: HashMap<(&str, Vec<&BTreeSet<u32>>), String> = HashMap::new();
        let mut untouched: BTreeSet<&str> = replaced.keys().map(String::as_str).collect();
        for (tensor, dims) in by_tensor {
            let entry = &self.groups.places.tensors[tensor];
            let Some(whole) = self.links.constant(&entry.name) else { continue };
            let whole = replaced.get(&entry.name).unwrap_or(whole);
            untouched.remove(entry.name.as_str());
            let mut part = whole.clone();
            for &dim in &dims {
                let axis = self.groups.places.axes[dim].axis;
                part = without(&part, axis, &self.cut.removed[&dim]);
            }
            let Some((node, input)) = entry.reader else {
                self.plan.push(Edit::SetInitializer { name: entry.name.clone(), tensor: part });
                continue;
            };
            if self.links.uses(&entry.name).len() == 1 && !self.model.graph.is_output(&entry.name) {
                self.plan.push(Edit::SetInitializer { name: entry.name.clone(), tensor: part });
                continue;
            }
            // Other readers may go on reading all of it.
            let removed: Vec<&BTreeSet<u32>> = dims.iter().map(|d| &self.cut.removed[d]).collect();
            let count = done.len();
            let name = done.entry((&entry.name, removed)).or_insert_with(|| {
                let name = format!("{}/part_{count}", entry.name);
                self.plan.push(Edit::SetInitializer { name: name.clone(), tensor: part });
                name
            });
            let name = name.clone();
            self.node(node).inputs[input] = name;
        }
        for name in untouched {
            let tensor = replaced[name].clone();
            self.plan.push(Edit::SetInitializer { name: name.to_string(), tensor });
        }
    }

    /// Blocks of which anything is left, and indices that are left of them, before and after; `None`
    /// where nothing of the axis goes.
    fn left(&self, node: usize, blocks: Blocks) -> Option<[[usize; 2]; 2]> {
        let dim = self.groups.places.axis(&self.model.graph, node, blocks.axis)?;
        let removed = self.cut.removed.get(&dim)?;
        let count = |start: usize| {
            let end = (start + blocks.per).min(blocks.up_to);
            end - start - removed.range(start as u32..end as u32).count()
        };
        let starts = (blocks.from..blocks.up_to).step_by(blocks.per);
        let left: Vec<usize> = starts.map(count).collect();
        let after = [left.iter().filter(|&&left| left > 0).count(), left.iter().sum()];
        let size = blocks.up_to - blocks.from;
        let before = [size.div_ceil(blocks.per), size];
        Some([before, after])
    }

    /// Writes down what nodes took from sizes of blocks that are now smaller.
    fn fixed(&mut self) {
        for (index, Fixed { attribute, value, blocks }) in &self.groups.fixed {
            let Some([_, [count, left]]) = self.left(*index, *blocks) else { continue };
            if left != count * blocks.per {
                let value = AttributeValue::Float(*value);
                self.node(*index).attributes.insert((*attribute).into(), value.into());
            }
        }
    }

    fn sizes(&mut self) -> Result<(), PassError> {
        let mut elements: BTreeMap<(usize, usize), Vec<Element>> = BTreeMap::new();
        for (index, Size { place, blocks }) in &self.groups.sizes {
            let Some([[before, _], [after, _]]) = self.left(*index, *blocks) else { continue };
            let is_place = matches!(place, Place::InputElementFromEnd(..));
            if after == before && !is_place {
                continue;
            }
            let new = after as i64;
            match *place {
                Place::Attribute(name) => {
                    self.node(*index)
                        .attributes
                        .insert(name.into(), AttributeValue::Int(new).into());
                }
                Place::AttributeElement(name, element) => {
                    let node = self.node(*index);
                    if let Some(AttributeValue::Ints(all)) =
                        node.attributes.get_mut(name).map(|attribute| &mut attribute.value)
                    {
                        all[element] = new;
                    }
                }
                Place::InputElement(input, element)
                | Place::InputElementFromEnd(input, element) => {
                    let element = Element { index: element, new, is_place };
                    elements.entry((*index, input)).or_default().push(element);
                }
            }
        }
        for (count, ((index, input), new)) in elements.into_iter().enumerate() {
            self.set_shape(index, input, &new, count)?;
        }
        Ok(())
    }

    /// Gives an input that holds sizes a constant of its own.
    fn set_shape(
        &mut self,
        index: usize,
        input: usize,
        elements: &[Element],
        count: usize,
    ) -> Result<(), PassError> {
        let graph = &self.model.graph;
        let value = graph.nodes[index].inputs[input].clone();
        let Some(shape) = shapes::set(graph, &self.groups.facts, &value, elements) else {
            let message = format!("its shape `{value}` cannot be set");
            return Err(PassError::Cut { node: graph.nodes[index].label().to_string(), message });
        };
        let name = format!("{value}/cut_{count}");
        match shape {
            NewShape::Constant(tensor) => {
                let only =
                    self.links.constant(&value).is_some() && self.links.only_use(&value).is_some();
                let name = if only { value } else { name };
                self.plan.push(Edit::SetInitializer { name: name.clone(), tensor });
                self.node(index).inputs[input] = name;
            }
            NewShape::Concat { node: concat, parts } => {
                let mut concat = graph.nodes[concat].clone();
                concat.name = format!("{}/cut_{count}", concat.label());
                concat.outputs = vec![name.clone()];
                for (part, tensor) in parts {
                    let part_name = format!("{name}/part_{part}");
                    self.plan.push(Edit::SetInitializer { name: part_name.clone(), tensor });
                    concat.inputs[part] = part_name;
                }
                self.plan.push(Edit::AddNode { node: concat });
                self.node(index).inputs[input] = name;
            }
        }
        Ok(())
    }
}

/// `tensor` without these indices of an axis.
fn without(tensor: &Tensor, axis: usize, removed: &BTreeSet<u32>) -> Tensor {
    let shape = tensor.shape();
    let (size, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
    let kept: Vec<usize> = (0..size).filter(|&i| !removed.contains(&(i as u32))).collect();
    let mut new_shape = shape.to_vec();
    new_shape[axis] = kept.len();
    if tensor.dtype() == DType::F32 {
        let values = tensor.values::<f32>();
        let mut part = Vec::with_capacity(new_shape.iter().product());
        for rows in values.chunks_exact((size * inner).max(1)) {
            kept.iter().for_each(|&i| part.extend_from_slice(&rows[i * inner..(i + 1) * inner]));
        }
        return Tensor::new(&new_shape, &part);
    }
    let width = tensor.dtype().size_bytes(1).unwrap_or(0) * inner;
    let mut part = Vec::new();
    for rows in tensor.bytes().chunks_exact((size * width).max(1)) {
        kept.iter().for_each(|&i| part.extend_from_slice(&rows[i * width..(i + 1) * width]));
    }
    Tensor::from_bytes(tensor.dtype(), &new_shape, part.into())
        .expect("as many bytes as the kept indices have")
}
