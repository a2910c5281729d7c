//! Which product and which value has how many bits.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use attar_graph::Graph;

use super::AwareSettings;
use super::bits::Bits;
use crate::quantize::placement::Placement;
use crate::{Exclude, PassError};

/// Bits of a product's weight and of what it reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProductBits {
    pub(super) weight: Bits,
    pub(super) input: Bits,
}

/// The bits of every product, by the index of its node.
///
/// # Errors
/// A pattern of `bits` that names no product.
pub(super) fn product_bits(
    graph: &Graph,
    placement: &Placement,
    settings: &AwareSettings,
) -> Result<BTreeMap<usize, ProductBits>, PassError> {
    let labels: Vec<&str> = placement.products.iter().map(|&i| graph.nodes[i].label()).collect();
    let patterns: Vec<(Exclude, Bits)> = (settings.bits.iter())
        .map(|(pattern, &bits)| (Exclude::new(vec![pattern.clone()]), bits))
        .collect();
    if let Some((pattern, _)) =
        settings.bits.iter().zip(&patterns).find_map(|((pattern, _), (names, bits))| {
            (!names.unmatched(&labels).is_empty()).then_some((pattern, bits))
        })
    {
        return Err(PassError::UnmatchedBits { pattern: pattern.clone() });
    }
    let ends = ends(graph, &placement.products);
    let of = |&index: &usize| {
        let label = graph.nodes[index].label();
        let asked = ProductBits { weight: settings.weight_bits, input: settings.activation_bits };
        let named = patterns.iter().find(|(names, _)| names.matches(label));
        let bits = match named {
            Some(&(_, bits)) => ProductBits {
                weight: bits,
                input: if bits.activation_levels().is_some() || bits == Bits::Float {
                    bits
                } else {
                    asked.input
                },
            },
            None if ends.contains(&index) => ProductBits {
                weight: asked.weight.finer(settings.ends_bits),
                input: asked.input.finer(settings.ends_bits),
            },
            None => asked,
        };
        (index, bits)
    };
    Ok(placement.products.iter().map(of).collect())
}

/// Products that no other is before, and products that no other is behind.
fn ends(graph: &Graph, products: &[usize]) -> BTreeSet<usize> {
    let is_product: HashSet<usize> = products.iter().copied().collect();
    let mut ends = BTreeSet::new();
    let mut behind: HashSet<&str> = HashSet::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        let is_behind = node.inputs.iter().any(|input| behind.contains(input.as_str()));
        if is_product.contains(&index) && !is_behind {
            ends.insert(index);
        }
        if is_behind || is_product.contains(&index) {
            behind.extend(node.outputs.iter().map(String::as_str));
        }
    }
    let mut before: HashSet<&str> = HashSet::new();
    for (index, node) in graph.nodes.iter().enumerate().rev() {
        let is_before = node.outputs.iter().any(|output| before.contains(output.as_str()));
        if is_product.contains(&index) && !is_before {
            ends.insert(index);
        }
        if is_before || is_product.contains(&index) {
            before.extend(node.inputs.iter().map(String::as_str).filter(|name| !name.is_empty()));
        }
    }
    ends
}

/// Gives the values of a placement their levels, and leaves out what stays in float. A value has the
/// finest bits that a product reads it with; values of one range have the same.
pub(super) fn place(
    placement: &mut Placement,
    bits: &BTreeMap<usize, ProductBits>,
    settings: &AwareSettings,
) {
    placement.products.retain(|index| bits[index].weight != Bits::Float);
    let mut of_values: BTreeMap<String, Bits> = BTreeMap::new();
    for (value, readers) in &placement.readers {
        let products = readers.iter().filter(|(_, input)| *input == 0);
        let read = products.filter_map(|(index, _)| bits.get(index)).map(|bits| bits.input);
        let finest = read.reduce(Bits::finer).unwrap_or(settings.activation_bits);
        of_values.insert(value.clone(), finest);
    }
    let shared = placement.shared.clone();
    let mut share = |from: &String, to: &String| {
        if let (Some(&from), Some(&other)) = (of_values.get(from), of_values.get(to)) {
            of_values.insert(to.clone(), other.finer(from));
        }
    };
    shared.iter().rev().for_each(|(value, source)| share(value, source));
    shared.iter().for_each(|(value, source)| share(source, value));
    let levels = of_values.into_iter().filter_map(|(v, bits)| Some((v, bits.activation_levels()?)));
    placement.levels = levels.collect();
    let levels = &placement.levels;
    placement.readers.retain(|value, _| levels.contains_key(value));
}
