//! A model that was trained with fake quantizations, in integers: constants are stored as levels,
//! values pass `QuantizeLinear` and `DequantizeLinear`. What is computed stays, bit for bit.

use std::collections::{HashMap, HashSet};

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_ops::{ATTAR_DOMAIN, fake_quantize_levels, fold_constants};
use attar_tensor::{DType, Tensor};

use super::{AwareSettings, packed};
use crate::PassError;

/// Plans to put integers in the place of every `FakeQuantize` node.
///
/// # Errors
/// A scale or zero point that is no constant, or a grid that no type of the model's operator set
/// holds, by its node.
pub fn plan_integers(model: &Model, settings: &AwareSettings) -> Result<Plan, PassError> {
    let graph = &model.graph;
    let links = Links::new(graph);
    let is_fake = |node: &Node| node.domain == ATTAR_DOMAIN && node.op_type == "FakeQuantize";
    let fakes = || graph.nodes.iter().enumerate().filter(|(_, node)| is_fake(node));
    let scales = fakes().flat_map(|(_, node)| &node.inputs[1..]).map(String::as_str);
    let scales: HashSet<&str> = scales.collect();
    let bits_min = if settings.int2 { 2 } else { 4 };
    let packs = settings.packed && !settings.int2;
    let mut export =
        Export { model, links, bits_min, packs, computed: HashMap::new(), plan: Plan::default() };
    export.compute(&scales);
    for (index, node) in fakes() {
        export.replace(index, node)?;
    }
    Ok(export.plan)
}

struct Export<'a> {
    model: &'a Model,
    links: Links<'a>,
    /// Of the smallest type that is used.
    bits_min: usize,
    /// Whether constants of few levels are packed.
    packs: bool,
    /// Scales that are functions of constants.
    computed: HashMap<String, Tensor>,
    plan: Plan,
}

impl Export<'_> {
    /// Computes scales as the model does, and takes the nodes out that did so.
    fn compute(&mut self, names: &HashSet<&str>) {
        let graph = &self.model.graph;
        let mut wanted: HashSet<&str> = names.clone();
        let mut indices = Vec::new();
        for (index, node) in graph.nodes.iter().enumerate().rev() {
            if node.outputs.iter().any(|output| wanted.contains(output.as_str())) {
                wanted.extend(node.inputs.iter().map(String::as_str));
                indices.push(index);
            }
        }
        let mut part = self.model.clone();
        part.graph.nodes = indices.iter().rev().map(|&index| graph.nodes[index].clone()).collect();
        part.graph.outputs.clear();
        for edit in fold_constants(&part, false).edits {
            if let Edit::SetInitializer { name, tensor } = edit {
                self.computed.insert(name, tensor);
            }
        }
        let is_own = |node: &Node| {
            let mut uses = node.outputs.iter().flat_map(|output| self.links.uses(output));
            uses.all(|each| {
                indices.contains(&each.node) || is_setting(&graph.nodes[each.node], each.input)
            })
        };
        let removed = indices.iter().filter(|&&index| {
            graph.nodes[index].constant().is_none() && is_own(&graph.nodes[index])
        });
        self.plan.edits.extend(removed.map(|&index| Edit::RemoveNode { index }));
    }

    fn constant(&self, node: &Node, input: usize) -> Result<Option<Tensor>, PassError> {
        let Some(name) = node.input(input) else { return Ok(None) };
        let found = self.computed.get(name).or_else(|| self.links.constant(name));
        let found = found.map(Tensor::aligned);
        let missing = || PassError::NoScale { node: node.label().into(), tensor: name.into() };
        found.map(Some).ok_or_else(missing)
    }

    fn replace(&mut self, index: usize, node: &Node) -> Result<(), PassError> {
        let scale = self.constant(node, 1)?.ok_or_else(|| PassError::NoScale {
            node: node.label().into(),
            tensor: String::new(),
        })?;
        let zero = self.constant(node, 2)?;
        let zero = zero.unwrap_or_else(|| Tensor::zeros(DType::F32, scale.shape()));
        let grid = Grid::of(node)?;
        let is_constant = self.links.constant(&node.inputs[0]).is_some();
        let packs = self.packs && is_constant && grid.high - grid.low < 4 && grid.low < 0;
        let storage = if packs { Some(DType::I8) } else { self.storage(node, grid) };
        let storage = storage.ok_or_else(|| PassError::NoType {
            node: node.label().into(),
            low: grid.low,
            high: grid.high,
            opset: self.model.opset(),
        })?;
        let real = &node.outputs[0];
        let base = real.strip_suffix("_dequantized").unwrap_or(real);
        let named = |suffix: &str| format!("{base}_{suffix}");
        let (levels, scale_name, zero_name) =
            (named("quantized"), named("scale"), named("zero_point"));
        let zeros: Vec<i32> =
            zero.slice::<f32>().iter().map(|zero| zero.round_ties_even() as i32).collect();
        let stored = |integers: &Tensor| integers.converted(storage).expect("the type holds them");
        let zero_point = stored(&Tensor::new(zero.shape(), &zeros));
        let x = node.inputs[0].as_str();
        if let Some(constant) = self.links.constant(x) {
            let fail = |source| PassError::Levels { node: node.label().into(), source };
            let integers = fake_quantize_levels(node, constant, &scale, Some(&zero));
            let integers = stored(&integers.map_err(fail)?);
            let ends = [grid.low, grid.high];
            let packed = if packs { packed::pack(base, &integers, ends) } else { None };
            match packed {
                Some(packed) => self.plan.edits.extend(packed),
                None => self.set(&levels, integers),
            }
        } else {
            let source = self.clipped(x, &named("clipped"), grid, storage, (&scale, &zero));
            let inputs = [source.as_str(), &scale_name, &zero_name];
            let quantize = Node::new("QuantizeLinear", &levels, &inputs, &[&levels]);
            self.plan.push(Edit::AddNode { node: with_axis(quantize, node, &scale)? });
        }
        self.set(&scale_name, scale.clone());
        self.set(&zero_name, zero_point);
        let inputs = [levels.as_str(), &scale_name, &zero_name];
        let dequantize = Node::new("DequantizeLinear", real, &inputs, &[real]);
        let node = with_axis(dequantize, node, &scale)?;
        self.plan.push(Edit::ReplaceNode { index, node });
        Ok(())
    }

    /// The smallest type that holds the levels; of a value that is cut off before, or chosen from, one
    /// of 8 bits, as ONNX Runtime knows these operators.
    fn storage(&self, node: &Node, grid: Grid) -> Option<DType> {
        let opset = self.model.opset();
        let is_constant = self.links.constant(&node.inputs[0]).is_some();
        let found = grid.storage(opset, self.bits_min)?;
        let is_whole = range(found) == (grid.low, grid.high) && !self.needs_bytes(node);
        if is_constant || is_whole { Some(found) } else { grid.storage(opset, 8) }
    }

    /// Whether ONNX Runtime takes no fewer than 8 bits here: it runs what chooses among values on the
    /// integers themselves, and reads the zero point of a quantization after a Clip as a byte.
    fn needs_bytes(&self, node: &Node) -> bool {
        let chooses = |node: &Node| node.is("MaxPool") || node.is("Resize");
        let mut readers = self.links.uses(&node.outputs[0]).iter();
        let made_by = self.links.producer(&node.inputs[0]);
        readers.any(|reader| chooses(&self.model.graph.nodes[reader.node]))
            || made_by.is_some_and(|(_, node)| chooses(node) || node.is("Clip"))
    }

    /// The value, cut off at the ends of a grid that its type goes beyond.
    fn clipped(
        &mut self,
        x: &str,
        name: &str,
        grid: Grid,
        storage: DType,
        (scale, zero): (&Tensor, &Tensor),
    ) -> String {
        if range(storage) == (grid.low, grid.high) || scale.element_count() != 1 {
            return x.into();
        }
        let (scale, zero) = (scale.slice::<f32>()[0], zero.slice::<f32>()[0].round_ties_even());
        let (low, high) = (format!("{name}_low"), format!("{name}_high"));
        self.set(&low, Tensor::scalar((grid.low as f32 - zero) * scale));
        self.set(&high, Tensor::scalar((grid.high as f32 - zero) * scale));
        self.plan.push(Edit::AddNode { node: Node::new("Clip", name, &[x, &low, &high], &[name]) });
        name.into()
    }

    fn set(&mut self, name: &str, tensor: Tensor) {
        self.plan.push(Edit::SetInitializer { name: name.into(), tensor });
    }
}

/// Whether a node reads a value as a scale or zero point of a fake quantization.
fn is_setting(node: &Node, input: Option<usize>) -> bool {
    node.domain == ATTAR_DOMAIN && node.op_type == "FakeQuantize" && input.is_some_and(|at| at > 0)
}

fn with_axis(made: Node, fake: &Node, scale: &Tensor) -> Result<Node, PassError> {
    if scale.rank() == 0 {
        return Ok(made);
    }
    Ok(made.with_attribute("axis", fake.int_or("axis", 1)?))
}

/// The least and the greatest level.
#[derive(Clone, Copy)]
struct Grid {
    low: i64,
    high: i64,
}

impl Grid {
    fn of(node: &Node) -> Result<Self, PassError> {
        if node.text("mode")? == Some("signs") {
            return Ok(Self { low: -1, high: 1 });
        }
        Ok(Self { low: node.int_or("level_min", 0)?, high: node.int_or("level_max", 0)? })
    }

    /// The smallest type of an operator set, of so many bits at least, that holds the levels.
    fn storage(self, opset: i64, bits_min: usize) -> Option<DType> {
        let fits = |(dtype, since): &&(DType, i64)| {
            let (low, high) = range(*dtype);
            *since <= opset && dtype.bits() >= bits_min && low <= self.low && self.high <= high
        };
        TYPES.iter().find(fits).map(|(dtype, _)| *dtype)
    }
}

/// Types of levels, the smallest first, and the operator set from which they can be dequantized.
const TYPES: &[(DType, i64)] = &[
    (DType::U2, 25),
    (DType::I2, 25),
    (DType::U4, 21),
    (DType::I4, 21),
    (DType::U8, 13),
    (DType::I8, 13),
    (DType::U16, 21),
    (DType::I32, 13),
];

fn range(dtype: DType) -> (i64, i64) {
    match dtype {
        DType::U2 => (0, 3),
        DType::I2 => (-2, 1),
        DType::U4 => (0, 15),
        DType::I4 => (-8, 7),
        DType::U8 => (0, 255),
        DType::I8 => (-128, 127),
        DType::U16 => (0, 65_535),
        _ => (i64::from(i32::MIN), i64::from(i32::MAX)),
    }
}
