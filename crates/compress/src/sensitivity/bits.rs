//! What each product, and each embedding table, loses with so many bits for a weight.

use std::collections::BTreeMap;

use attar_graph::{Graph, Links, Model};
use attar_tensor::Tensor;

use super::predict::{Probe, block_of, observe_rows, replaced, wrong};
use super::reach::reached;
use super::{Estimate, Level, LevelSensitivity, Measured, Sensitivity, TensorSensitivity};
use crate::moments::{Product, RowSample, products};
use crate::parallel::each_in_order;
use crate::quantize::{Lookup, Target, lookups, targets};
use crate::{Context, PassError};

/// What to find out.
#[derive(Clone, Debug)]
pub struct BitsOptions {
    /// Of 16, 8, 4 and 2, by falling number; 16 is f16. Tables have no 2.
    pub bits: Vec<u32>,
    /// Of these, those at which the model is handed over to be measured.
    pub measured: Vec<u32>,
    /// Inputs that share a scale.
    pub block: usize,
    /// Of whatever is drawn.
    pub seed: u64,
}

/// Of a table whose rows are to have a scale each.
const TABLE_BLOCK: usize = 64;

/// A weight or a table that is rounded.
enum Rounded<'a> {
    Weight(Target<'a>),
    Table(Lookup<'a>),
}

impl Rounded<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Weight(target) => target.name,
            Self::Table(lookup) => lookup.name,
        }
    }

    fn tensor(&self) -> &Tensor {
        match self {
            Self::Weight(target) => target.tensor,
            Self::Table(lookup) => lookup.table,
        }
    }

    fn node(&self) -> usize {
        match self {
            Self::Weight(target) => target.readers[0].0,
            Self::Table(lookup) => lookup.index,
        }
    }

    /// Inputs that do share a scale where `block` are asked for: 0 for all of an output.
    fn block(&self, block: usize) -> usize {
        match self {
            Self::Weight(target) => match target.block(Some(block)) {
                own if own == target.size()[0] => 0,
                own => own,
            },
            Self::Table(_) => block,
        }
    }

    /// Inputs that share a scale in so many bits, where it is not said otherwise: all of a row in a
    /// table of 8 bits, which in 4 bits has blocks in any case.
    fn usual_block(&self, bits: u32, block: usize) -> usize {
        match (self, bits) {
            (Self::Table(_), 8) => 0,
            (Self::Table(_), 4) if block == 0 => TABLE_BLOCK,
            _ => block,
        }
    }

    /// Its tensor in so many bits; `None` where there is no such form.
    fn rounded(&self, bits: u32, block: usize) -> Result<Option<Tensor>, PassError> {
        let is_beyond_half = |x: &f32| x.abs() > 65504.0;
        if bits == 16 && self.tensor().values::<f32>().iter().any(is_beyond_half) {
            return Ok(None);
        }
        match self {
            Self::Weight(target) => Ok(Some(target.rounded(bits, Some(block)))),
            Self::Table(lookup) => lookup.rounded(bits, block),
        }
    }
}

/// Every table and every weight of a product.
fn all_rounded<'a>(links: &Links<'a>, graph: &'a Graph, context: &Context) -> Vec<Rounded<'a>> {
    let tables = lookups(graph, links, context).into_iter().map(Rounded::Table);
    let weights = targets(graph, links, context, 0).into_iter().map(Rounded::Weight);
    let mut all: Vec<Rounded> = tables.chain(weights).collect();
    // A weight that is read in two layouts is one tensor.
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|each| seen.insert(each.name().to_string()));
    all
}

/// What the outputs lose, to first order and relative to them, where one weight alone has the fewest
/// of `bits` that there are for it: by name, those bits and the loss. One gradient of the outputs for
/// each of some examples serves all.
///
/// # Errors
/// No data, numbers that are not finite, or a model through which no gradient flows.
pub(crate) fn reach_of_bits(
    model: &Model,
    context: &Context,
    options: &BitsOptions,
) -> Result<BTreeMap<String, (u32, f64)>, PassError> {
    let graph = &model.graph;
    let (mut names, mut bits_of, mut changes) = (Vec::new(), Vec::new(), Vec::new());
    for each in all_rounded(&Links::new(graph), graph, context) {
        for &bits in options.bits.iter().rev() {
            let block = each.usual_block(bits, options.block);
            let Some(rounded) = each.rounded(bits, block)? else { continue };
            let (w, rounded) = (each.tensor().values::<f32>(), rounded.values::<f32>());
            changes.push(rounded.iter().zip(w.iter()).map(|(v, w)| v - w).collect());
            names.push(each.name().to_string());
            bits_of.push(bits);
            break;
        }
    }
    let reached = reached(model, context, &names, &changes, options.seed)?;
    Ok(names.into_iter().zip(bits_of.into_iter().zip(reached)).collect())
}

/// Finds out what rounding each weight by itself does, to the nearest level: the relative error of
/// what it is multiplied to, from one pass over the data, or of the weight itself where no product is
/// known. `measure` is as in [`sensitivity`](super::sensitivity).
///
/// # Errors
/// No data, bits that there are not, or what `measure` returns.
pub fn bits_sensitivity<E: From<PassError>>(
    model: &Model,
    context: &Context,
    options: &BitsOptions,
    measure: &mut dyn FnMut(&Model, [usize; 2]) -> Result<Measured, E>,
) -> Result<Sensitivity, E> {
    if let Some(bits) = options.bits.iter().find(|bits| !matches!(bits, 2 | 4 | 8 | 16)) {
        return Err(wrong(format!("bits are 16, 8, 4 or 2, not {bits}")).into());
    }
    let graph = &model.graph;
    let links = Links::new(graph);
    let all = all_rounded(&links, graph, context);
    let seen = Seen::new(model, context, &all)?;
    let total = all.len() * options.measured.len();
    let mut done = 0;
    let mut found = Sensitivity::default();
    for each in &all {
        let tensor = each.tensor();
        let probe = seen.probe(each);
        let mut levels = Vec::new();
        for &bits in &options.bits {
            let block = each.usual_block(bits, options.block);
            let Some(rounded) = each.rounded(bits, block)? else {
                continue;
            };
            let error = match &probe {
                Some(probe) => probe.error(&rounded, options.seed),
                None => of_itself(tensor, &rounded),
            };
            let mut measured = Measured::default();
            if options.measured.contains(&bits) {
                let model = replaced(model, each.name(), rounded)?;
                measured = measure(&model, [done, total])?;
                done += 1;
            }
            let Measured { output_error, metric } = measured;
            levels.push(LevelSensitivity { level: Level::Bits(bits), error, output_error, metric });
        }
        let node = &graph.nodes[each.node()];
        found.tensors.push(TensorSensitivity {
            name: each.name().to_string(),
            node: node.label().to_string(),
            op_type: node.op_type.clone(),
            block: block_of(node.label()),
            element_count: tensor.element_count(),
            levels,
        });
    }
    Ok(found)
}

/// Rows of every product, from one pass over the data.
struct Seen {
    products: Vec<Product>,
    samples: BTreeMap<usize, RowSample>,
}

impl Seen {
    fn new(model: &Model, context: &Context, all: &[Rounded]) -> Result<Self, PassError> {
        let names: Vec<String> = all.iter().map(|each| each.name().to_string()).collect();
        let products = products(model, &names);
        let known: Vec<(usize, &Product)> = products.iter().enumerate().collect();
        let samples = observe_rows(model, context, &known)?;
        Ok(Self { products, samples })
    }

    /// `None` where no rows of it are known.
    fn probe<'a>(&'a self, each: &'a Rounded) -> Option<Probe<'a>> {
        let index = self.products.iter().position(|product| product.name == each.name())?;
        let sample = self.samples.get(&index).filter(|sample| !sample.batches().is_empty())?;
        Some(Probe::new(&self.products[index], each.tensor(), sample))
    }
}

/// Bits, and the inputs that share a scale: 0 for all of an output.
pub(crate) type Format = (u32, usize);

/// What is predicted of a weight or a table in several formats.
pub(crate) struct Predicted {
    pub(crate) name: String,
    pub(crate) is_table: bool,
    pub(crate) element_count: usize,
    /// Outputs that a scale each has where inputs share one.
    pub(crate) output_count: usize,
    /// The relative error of its product in each format that there is for it.
    pub(crate) errors: Vec<(Format, f64)>,
}

/// The relative error of every product alone, or of the table itself, in each of `bits` with each of
/// `blocks`, from one pass over the data.
///
/// # Errors
/// No data.
pub(crate) fn predicted_errors(
    model: &Model,
    context: &Context,
    bits: &[u32],
    blocks: &[usize],
) -> Result<Vec<Predicted>, PassError> {
    let graph = &model.graph;
    let links = Links::new(graph);
    let all = all_rounded(&links, graph, context);
    let seen = Seen::new(model, context, &all)?;
    let of = |each: &Rounded| {
        let (tensor, probe) = (each.tensor(), seen.probe(each));
        let mut errors: Vec<(Format, f64)> = Vec::new();
        // Rows of 8 bits are there for tables in any case.
        let rows = matches!(each, Rounded::Table(_)).then_some((8, 0));
        let rows = rows.filter(|_| bits.contains(&8));
        let formats = bits.iter().flat_map(|&bits| blocks.iter().map(move |&block| (bits, block)));
        for (bits, block) in rows.into_iter().chain(formats) {
            let block = if bits == 4 { each.usual_block(4, block) } else { block };
            let own = if bits == 16 { 0 } else { each.block(block) };
            if errors.iter().any(|(known, _)| *known == (bits, own)) {
                continue;
            }
            let Some(rounded) = each.rounded(bits, block)? else { continue };
            let error = match &probe {
                Some(probe) => probe.exact(&rounded),
                None => of_itself(tensor, &rounded).value,
            };
            errors.push(((bits, own), error));
        }
        let output_count = match each {
            Rounded::Weight(target) => target.size()[1],
            Rounded::Table(lookup) => lookup.table.shape()[0],
        };
        Ok(Predicted {
            name: each.name().to_string(),
            is_table: matches!(each, Rounded::Table(_)),
            element_count: tensor.element_count(),
            output_count,
            errors,
        })
    };
    each_in_order(&all, context.threads, of).into_iter().collect()
}

/// ‖W − Ŵ‖ / ‖W‖, which has no interval.
fn of_itself(tensor: &Tensor, rounded: &Tensor) -> Estimate {
    let (w, other) = (tensor.values::<f32>(), rounded.values::<f32>());
    let (mut lost, mut power) = (0.0, 0.0);
    for (w, v) in w.iter().zip(other.iter()) {
        lost += f64::from(w - v).powi(2);
        power += f64::from(*w).powi(2);
    }
    let value = if power > 0.0 { f64::sqrt(lost / power) } else { 0.0 };
    Estimate { value, low: value, high: value }
}
