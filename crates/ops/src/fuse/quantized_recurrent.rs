//! Recurrent layers of dequantized weights and a dequantized input → `QuantizedLSTM` and its kin.

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_tensor::{DType, Tensor};

use super::producer;
use super::quantized::has_scalars;
use crate::ATTAR_DOMAIN;
use crate::recurrent::has_bounded_state;

/// `LSTM`, `GRU` and `RNN` whose states are bounded.
pub fn plan(model: &Model) -> Plan {
    let links = Links::new(&model.graph);
    let mut plan = Plan::default();
    for (index, node) in model.graph.nodes.iter().enumerate() {
        if matches!(has_bounded_state(node), Ok(true))
            && node.domain.is_empty()
            && let Some((node, edits)) = quantized(&links, node)
        {
            plan.edits.extend(edits);
            plan.push(Edit::ReplaceNode { index, node });
        }
    }
    plan
}

/// The node, and the edits that make its weights matrices.
fn quantized(links: &Links, layer: &Node) -> Option<(Node, Vec<Edit>)> {
    let (_, x) = producer(links, layer.input(0)?, "DequantizeLinear")?;
    has_scalars(links, x).then_some(())?;
    let w = Weights::new(links, layer.input(1)?)?;
    let r = Weights::new(links, layer.input(2)?)?;
    let is_constant = |index: usize| {
        layer.input(index).is_none_or(|name| {
            links.constant(name).is_some_and(|tensor| tensor.dtype() == DType::F32)
        })
    };
    if !is_constant(3) || !is_constant(7) {
        return None;
    }
    let mut inputs: Vec<&str> = (0..8).map(|index| layer.input(index).unwrap_or("")).collect();
    (inputs[1], inputs[2]) = (&w.name, &r.name);
    inputs.extend([x.input(1)?, x.input(2)?, &w.scales, &r.scales]);
    let mut node = layer.clone().with_domain(ATTAR_DOMAIN);
    node.op_type = format!("Quantized{}", layer.op_type);
    node.inputs = inputs.into_iter().map(str::to_string).collect();
    let edits = [w, r]
        .into_iter()
        .map(|weights| Edit::SetInitializer { name: weights.name, tensor: weights.levels });
    Some((node, edits.collect()))
}

/// Symmetric levels [rows, depth] with a scale for each row.
struct Weights {
    /// Name that the levels get.
    name: String,
    levels: Tensor,
    /// Name of the scales.
    scales: String,
}

impl Weights {
    /// Of a value [directions, rows, depth]: dequantized along its rows, as one direction, or as a
    /// matrix that is reshaped afterwards.
    fn new(links: &Links, value: &str) -> Option<Self> {
        let (real, is_matrix) = match producer(links, value, "Reshape") {
            Some((_, reshape)) => (reshape.input(0)?, true),
            None => (value, false),
        };
        let (_, node) = producer(links, real, "DequantizeLinear")?;
        let constant = |index: usize| links.constant(node.input(index)?);
        let levels = constant(0).filter(|levels| levels.dtype() == DType::I8)?;
        let (rows, depth, axis) = match (levels.shape(), is_matrix) {
            (&[rows, depth], true) => (rows, depth, 0),
            (&[1, rows, depth], false) => (rows, depth, 1),
            _ => return None,
        };
        constant(1).filter(|scales| scales.dtype() == DType::F32 && scales.shape() == [rows])?;
        let is_symmetric = match node.input(2) {
            Some(zero) => links.constant(zero)?.bytes().iter().all(|&byte| byte == 0),
            None => true,
        };
        let given = node.int_or("axis", 1).ok()?;
        let given = if given < 0 { given + levels.rank() as i64 } else { given };
        let fits = given == axis && node.int_or("block_size", 0).ok()? == 0 && is_symmetric;
        fits.then(|| Self {
            name: format!("{value}/rows"),
            levels: levels.reshaped(&[rows, depth]),
            scales: node.inputs[1].clone(),
        })
    }
}
