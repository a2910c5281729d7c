//! Multi-head attention written out as reshapes, transposes, products and a softmax.

use attar_graph::{Dim, Edit, Links, Model, Node, Plan};
use attar_tensor::DType;

use super::{producer, with_scalar};
use crate::{ATTAR_DOMAIN, Facts, infer_graph};

pub fn plan(model: &Model) -> Plan {
    let facts = infer_graph(model);
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    for (_, softmax) in graph.nodes.iter().enumerate().filter(|(_, node)| node.is("Softmax")) {
        if let Some(found) = Attention::find(&links, &facts, softmax) {
            found.replace(graph, &mut plan);
        }
    }
    plan
}

/// The pieces of one attention.
struct Attention<'a> {
    query: &'a str,
    key: &'a str,
    value: &'a str,
    /// Addends to the scores: position bias, mask.
    addends: Vec<&'a str>,
    scale: f32,
    heads: i64,
    /// The last reshape, whose output the fused node takes over.
    last: usize,
}

impl<'a> Attention<'a> {
    fn find(links: &Links<'a>, facts: &Facts, softmax: &'a Node) -> Option<Self> {
        if !matches!(softmax.int_or("axis", -1), Ok(-1 | 3)) {
            return None;
        }
        let (last, product, _) = context_after(links, facts, softmax.outputs.first()?)?;
        let (value, heads) = heads_of(links, facts, product.input(1)?, &[0, 2, 1, 3])?;
        let (scores, addends) = under_addends(links, facts, softmax.input(0)?)?;
        let mut scale = 1.0;
        let product = unscaled(links, scores, &mut scale);
        let (_, product) = producer(links, product, "MatMul")?;
        let (query, query_heads) =
            heads_of(links, facts, unscaled(links, product.input(0)?, &mut scale), &[0, 2, 1, 3])?;
        let (key, key_heads) =
            heads_of(links, facts, unscaled(links, product.input(1)?, &mut scale), &[0, 2, 3, 1])?;
        let is_run = matches!(facts.get(query)?.dtype, DType::F32 | DType::F64);
        if query_heads != heads || key_heads != heads || addends.len() > 2 || !is_run {
            return None;
        }
        Some(Self { query, key, value, addends, scale, heads, last })
    }

    fn replace(&self, graph: &attar_graph::Graph, plan: &mut Plan) {
        let last = &graph.nodes[self.last];
        let mut inputs = vec![self.query, self.key, self.value];
        let mask = sum_of_addends(&self.addends, &last.outputs[0], plan);
        inputs.extend(mask.as_deref());
        let node = Node::new("FusedAttention", &last.name, &inputs, &[&last.outputs[0]])
            .with_domain(ATTAR_DOMAIN)
            .with_attribute("heads", self.heads)
            .with_attribute("scale", self.scale);
        plan.push(Edit::ReplaceNode { index: self.last, node });
    }
}

/// What is under additions to scores, and the addends.
pub(super) fn under_addends<'a>(
    links: &Links<'a>,
    facts: &Facts,
    mut scores: &'a str,
) -> Option<(&'a str, Vec<&'a str>)> {
    let mut addends = Vec::new();
    while let Some((_, add)) = producer(links, scores, "Add") {
        let (a, b) = (add.input(0)?, add.input(1)?);
        // The scores are the side that a product leads to.
        let (inner, addend) = if leads_to_product(links, a) { (a, b) } else { (b, a) };
        if facts.get(addend)?.rank() != Some(4) {
            return None;
        }
        addends.push(addend);
        scores = inner;
    }
    Some((scores, addends))
}

/// The value that is the sum of all addends; several are added by a node with a name under `base`.
pub(super) fn sum_of_addends(addends: &[&str], base: &str, plan: &mut Plan) -> Option<String> {
    match addends {
        [] => None,
        [only] => Some((*only).to_string()),
        several => {
            let sum = format!("{base}/mask");
            let add = Node::new("Add", &sum, several, &[&sum]);
            plan.push(Edit::AddNode { node: add });
            Some(sum)
        }
    }
}

fn leads_to_product(links: &Links, value: &str) -> bool {
    let mut value = value;
    for _ in 0..4 {
        let Some((_, node)) = links.producer(value) else { return false };
        match node.op_type.as_str() {
            "MatMul" => return true,
            "Mul" | "Div" => match with_scalar(links, node) {
                Some((inner, _)) => value = inner,
                None => return false,
            },
            "Add" => match node.input(0) {
                Some(inner) if leads_to_product(links, inner) => return true,
                _ => match node.input(1) {
                    Some(inner) => value = inner,
                    None => return false,
                },
            },
            _ => return false,
        }
    }
    false
}

/// What is under multiplications and divisions by constants, which go into `scale`.
pub(super) fn unscaled<'a>(links: &Links<'a>, mut value: &'a str, scale: &mut f32) -> &'a str {
    while let Some((_, node)) = links.producer(value) {
        let Some((inner, factor)) = with_scalar(links, node) else { break };
        match node.op_type.as_str() {
            "Mul" => *scale *= factor,
            "Div" => *scale /= factor,
            _ => break,
        }
        value = inner;
    }
    value
}

/// From the probabilities on: product with the values, transpose, reshape. Gives the index of the
/// last reshape, the product, and what the reshape gives.
pub(super) fn context_after<'a>(
    links: &Links<'a>,
    facts: &Facts,
    probabilities: &str,
) -> Option<(usize, &'a Node, &'a str)> {
    let (_, product) = links.only_use(probabilities)?;
    if !product.is("MatMul") || product.inputs[0] != probabilities {
        return None;
    }
    let (_, transpose) = links.only_use(&product.outputs[0])?;
    if !transpose.is("Transpose") || transpose.ints("perm").ok()?? != [0, 2, 1, 3] {
        return None;
    }
    let (last, reshape) = links.only_use(&transpose.outputs[0])?;
    let rank = facts.get(&reshape.outputs[0])?.rank();
    let output = reshape.outputs[0].as_str();
    (reshape.is("Reshape") && rank == Some(3)).then_some((last, product, output))
}

/// The [batch, sequence, hidden] value behind a reshape into heads and a transpose by `perm`.
pub(super) fn heads_of<'a>(
    links: &Links<'a>,
    facts: &Facts,
    value: &str,
    perm: &[i64],
) -> Option<(&'a str, i64)> {
    let (_, transpose) = producer(links, value, "Transpose")?;
    let found = transpose.ints("perm").ok()??;
    let reshaped = if found == perm {
        transpose.input(0)?
    } else {
        // Keys may be transposed twice: into heads, then their last two axes.
        let (_, first) = producer(links, transpose.input(0)?, "Transpose")?;
        let is_twice = perm == [0, 2, 3, 1]
            && found == [0, 1, 3, 2]
            && first.ints("perm").ok()?? == [0, 2, 1, 3];
        if !is_twice {
            return None;
        }
        first.input(0)?
    };
    let (_, reshape) = producer(links, reshaped, "Reshape")?;
    let source = facts.get(reshape.input(0)?)?.shape.as_ref()?;
    let target = facts.get(reshaped)?.shape.as_ref()?;
    let [Dim::Known(heads), Dim::Known(size)] = target.get(2..4)? else { return None };
    // Only the last axis may have been split.
    let is_split = source.len() == 3
        && target.len() == 4
        && source[2] == Dim::Known(heads * size)
        && source[..2].iter().zip(&target[..2]).all(|(a, b)| a.same_as(b));
    is_split.then_some((reshape.input(0)?, *heads))
}
