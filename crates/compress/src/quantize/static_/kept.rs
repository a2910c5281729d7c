//! What of a model stays in float.

use std::collections::{BTreeMap, BTreeSet};

use attar_graph::{Links, Model, apply};

use super::StaticQuantize;
use crate::quantize::keep_float::{Cost, KeepFloat, confirmed, kept, kept_in_time};
use crate::quantize::nodes::Builder;
use crate::quantize::placement::Placement;
use crate::quantize::product::Rounded;
use crate::quantize::sites::Site;
use crate::reference::{EXAMPLES_MAX, Reference};
use crate::{Context, PassError};

/// What is known of a model before it is decided what stays in float.
pub(super) struct Known<'a> {
    pub(super) model: &'a Model,
    pub(super) links: &'a Links<'a>,
    pub(super) sites: &'a BTreeMap<String, Site>,
    pub(super) rounded: &'a [(usize, Rounded)],
}

/// What stays in float.
#[derive(Default)]
pub(super) struct Kept {
    /// Indices of nodes, each with the reason.
    pub(super) nodes: Vec<(usize, String)>,
    /// The time of the model with these, as a share of the original's, where that was asked for.
    pub(super) time: Option<f64>,
}

impl From<Vec<(usize, String)>> for Kept {
    fn from(nodes: Vec<(usize, String)>) -> Self {
        Self { nodes, time: None }
    }
}

impl Known<'_> {
    /// Multiply-accumulates of a recurrent layer on the calibration data.
    fn macs_of_layer(&self, index: usize) -> f64 {
        let inputs = &self.model.graph.nodes[index].inputs;
        let weights = inputs[1..].iter().take(2).filter_map(|name| self.links.constant(name));
        let count: usize = weights.map(attar_tensor::Tensor::element_count).sum();
        self.site(index).statistics.count as f64 * count as f64
    }

    /// What node `index` reads.
    pub(super) fn site(&self, index: usize) -> &Site {
        &self.sites[&self.model.graph.nodes[index].inputs[0]]
    }

    /// Leaves out what calibration did not reach.
    pub(super) fn reached(&self, placement: &mut Placement) {
        let is_seen =
            |index: &usize| self.sites.contains_key(&self.model.graph.nodes[*index].inputs[0]);
        placement.layers.retain(is_seen);
        placement.products.retain(|index| self.rounded.iter().any(|(known, _)| known == index));
        placement.readers.retain(|value, _| self.sites.contains_key(value));
    }
}

impl StaticQuantize {
    /// The products and layers that stay in float, with the reason.
    pub(super) fn kept(
        &self,
        known: &Known,
        placement: &Placement,
        batch_count: usize,
        context: &Context,
    ) -> Result<Kept, PassError> {
        let cost = |(index, rounded): &(usize, Rounded)| {
            let site = known.site(*index);
            let squared_error = site.chosen.relative_error.powi(2) + rounded.error.powi(2);
            let weights = rounded.weight.values.element_count();
            Cost {
                index: *index,
                squared_error,
                output_squared_error: None,
                macs: site.statistics.count as f64 * weights as f64,
                weight_count: weights,
            }
        };
        let mut costs: Vec<Cost> = known.rounded.iter().map(cost).collect();
        let macs: f64 = costs.iter().map(|cost| cost.macs).sum();
        // Of as many examples as there may be: whether it is done does not depend on how many there are.
        let of_one = macs / batch_count.max(1) as f64 * EXAMPLES_MAX as f64;
        let nodes: BTreeSet<usize> =
            placement.products.iter().chain(&placement.layers).copied().collect();
        if !self.keep_float.measures(of_one * nodes.len() as f64) {
            let candidates = kept(&costs, self.keep_float);
            if candidates.is_empty() || self.keep_float != KeepFloat::Auto {
                return Ok(candidates.into());
            }
            let reference = Reference::new(known.model, context)?;
            let all = self.lost(&reference, known, &BTreeSet::new(), context)?;
            let without = |(index, _): &(usize, String)| {
                Ok((*index, self.lost(&reference, known, &BTreeSet::from([*index]), context)?))
            };
            let without: Result<Vec<_>, PassError> = candidates.iter().map(without).collect();
            return Ok(confirmed(&costs, all, &without?).into());
        }
        let reference = Reference::new(known.model, context)?;
        for &index in &nodes {
            let mut others = nodes.clone();
            others.remove(&index);
            let lost = Some(self.lost(&reference, known, &others, context)?);
            match costs.iter_mut().find(|cost| cost.index == index) {
                Some(cost) => cost.output_squared_error = lost,
                None => costs.push(Cost {
                    index,
                    squared_error: 0.0,
                    output_squared_error: lost,
                    macs: known.macs_of_layer(index),
                    weight_count: usize::MAX,
                }),
            }
        }
        let KeepFloat::Time(time) = self.keep_float else {
            return Ok(kept(&costs, self.keep_float).into());
        };
        let timing = context.timing.ok_or_else(|| PassError::Settings {
            pass: "quantize.static",
            message: "`keep_float` gives a time, and nothing is timed: leave out `--no-timing`"
                .into(),
            known: "keep_float".into(),
        })?;
        let mut clock = |left: &BTreeSet<usize>| {
            timing.ratio(known.model, &self.quantized(known, left, context)?)
        };
        let (nodes, time) = kept_in_time(&costs, time, &mut clock)?;
        Ok(Kept { nodes, time: Some(time) })
    }

    /// What the outputs lose where all but the nodes of `left` is in 8 bits.
    fn lost(
        &self,
        reference: &Reference,
        known: &Known,
        left: &BTreeSet<usize>,
        context: &Context,
    ) -> Result<f64, PassError> {
        reference.lost(&self.quantized(known, left, context)?)
    }

    /// The model in 8 bits but for the nodes of `left` and its tables.
    fn quantized(
        &self,
        known: &Known,
        left: &BTreeSet<usize>,
        context: &Context,
    ) -> Result<Model, PassError> {
        let mut placement = self.place(known.model, known.links, left, context);
        known.reached(&mut placement);
        let mut builder = Builder::new(&known.model.graph);
        self.write(&mut builder, known, &placement)?;
        let mut changed = known.model.clone();
        apply(&mut changed.graph, &builder.finish())?;
        Ok(changed)
    }
}
