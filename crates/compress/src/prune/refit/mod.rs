//! Least-squares reconstruction: once channels are cut, the product that read them is refitted so
//! that what it gives is near to what it gave in the original (He et al., 2017, arXiv:1707.06168).
//!
//! With x of the pruned model and y = x₀·W of the original, W is the minimum of
//! E‖x·W − y‖² + λ‖W − W₀‖², over the kept rows of W and, where there is a bias, over that too.
//! Layers are done in the order of the graph, so that each sees what those before it really give
//! and makes up for their errors. Where x·W is added to something, a residual stream, y is the
//! original's sum less what it is added to now: the sum is what is restored.

mod allot;
mod moments;
mod select;
mod site;
pub(super) mod solve;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use attar_graph::{Links, Model, Value, ValueType, apply};
use attar_runtime::{RunOptions, Session};
use attar_tensor::{DType, Tensor};

use self::moments::{Central, Moments};
use self::select::System;
use self::site::{Residual, Site};
use self::solve::{Factor, dot, product};
use super::score::{channel_scores, least};
use crate::importance::Importance;
use crate::{ChannelGroup, ChannelGroups, Context, Cut, PassError};

/// Smallest ridge, relative to the mean diagonal: what keeps a factor of f32 sums positive definite.
const RIDGE_MIN: f64 = 1e-6;

/// Which channels of a group go.
pub(super) enum Choice {
    These(Vec<usize>),
    /// So many, by second order.
    Count(usize),
}

/// Weights that fit best, and what they follow from.
struct Fitted {
    /// [kept, outputs].
    w: Vec<f64>,
    /// Of the moments and the ridge.
    factor: Factor,
    /// Mean square of what the weights gave before, summed over outputs.
    power: f64,
}

/// Everything known of a model while its groups are cut one after the other.
pub(super) struct Refit<'a> {
    pub(super) model: &'a Model,
    pub(super) found: &'a ChannelGroups,
    pub(super) context: &'a Context<'a>,
    /// λ relative to the mean of the diagonal.
    pub(super) ridge: f64,
    pub(super) cut: Cut,
    pub(super) replaced: BTreeMap<String, Tensor>,
    /// Features of each weight that are gone, by its name.
    gone: BTreeMap<String, BTreeSet<usize>>,
    pub(super) remarks: Vec<String>,
}

impl<'a> Refit<'a> {
    pub(super) fn new(
        model: &'a Model,
        found: &'a ChannelGroups,
        context: &'a Context<'a>,
        ridge: f64,
    ) -> Self {
        Self {
            model,
            found,
            context,
            ridge,
            cut: Cut::default(),
            replaced: BTreeMap::new(),
            gone: BTreeMap::new(),
            remarks: Vec::new(),
        }
    }

    /// Cuts groups in the order of the products that read them. Returns the channels cut of each.
    ///
    /// # Errors
    /// No calibration data, data that does not fit, or a model that does not run.
    pub(super) fn run(
        &mut self,
        groups: &[&ChannelGroup],
        choices: Vec<Choice>,
    ) -> Result<Vec<Vec<usize>>, PassError> {
        let links = Links::new(&self.model.graph);
        let mut order: Vec<(usize, usize, Vec<Site>)> = Vec::new();
        for (index, group) in groups.iter().enumerate() {
            let (sites, others) = self.sites(&links, group);
            for node in others {
                self.remarks.push(format!("`{node}` is not refitted: its rows are not to be had"));
            }
            let place = sites.first().map_or(usize::MAX, |site| site.node);
            order.push((place, index, sites));
        }
        order.sort_by_key(|&(place, index, _)| (place, index));
        let mut removed = vec![Vec::new(); groups.len()];
        let mut choices: Vec<Option<Choice>> = choices.into_iter().map(Some).collect();
        for (_, index, sites) in order {
            let Some(choice) = choices[index].take() else { continue };
            removed[index] = self.stage(groups[index], &sites, choice)?;
        }
        Ok(removed)
    }

    /// The products that read a group, and the names of those that cannot be refitted.
    fn sites(&self, links: &Links, group: &ChannelGroup) -> (Vec<Site>, Vec<String>) {
        let (mut sites, others) = Site::of(self.model, links, group);
        for site in &mut sites {
            let is_like = |r: &Residual| self.found.have_same_shape(&r.other, &r.sum);
            site.residual = site.residual.take().filter(is_like);
        }
        (sites, others)
    }

    fn stage(
        &mut self,
        group: &ChannelGroup,
        sites: &[Site],
        choice: Choice,
    ) -> Result<Vec<usize>, PassError> {
        let is_nothing = match &choice {
            Choice::These(channels) => channels.is_empty(),
            Choice::Count(count) => *count == 0,
        };
        if is_nothing {
            return Ok(Vec::new());
        }
        let mut centrals = Vec::new();
        for (site, moments) in sites.iter().zip(self.moments(sites)?) {
            if moments.rows < 2 * site.size {
                self.remarks.push(format!(
                    "`{}` is refitted from {} rows for {} inputs: more calibration data would help",
                    self.model.graph.nodes[site.node].label(),
                    moments.rows,
                    site.size
                ));
            }
            centrals.push(moments.finish(site.bias.is_some()));
        }
        let channels = match choice {
            Choice::These(channels) => channels,
            Choice::Count(count) if sites.is_empty() => self.of_least_weight(group, count)?,
            Choice::Count(count) => {
                let removed = self.select(group, sites, &centrals, count)?;
                let mut channels: Vec<usize> = removed.into_iter().map(|(c, _)| c).collect();
                channels.sort_unstable();
                channels
            }
        };
        self.take(group, sites, &centrals, &channels);
        Ok(channels)
    }

    /// Channels of a group that no product reads which could be refitted.
    fn of_least_weight(
        &mut self,
        group: &ChannelGroup,
        count: usize,
    ) -> Result<Vec<usize>, PassError> {
        let text =
            format!("`{}` goes by \"l2\": no product that reads it can be refitted", group.name);
        self.remarks.push(text);
        let importance = Importance::named("l2");
        let scores = channel_scores(self.model, self.context, &[group], importance, 0)?;
        Ok(least(&scores[0], count))
    }

    /// Cuts channels, and refits the products that read them.
    fn take(
        &mut self,
        group: &ChannelGroup,
        sites: &[Site],
        centrals: &[Central],
        channels: &[usize],
    ) {
        for (site, central) in sites.iter().zip(centrals) {
            for axis in group.axes.iter().filter(|axis| axis.tensor == site.weight) {
                let gone = self.gone.entry(site.weight.clone()).or_default();
                channels.iter().for_each(|&c| gone.extend(site.features(axis.of(c))));
            }
            self.refit(site, central);
        }
        self.cut.remove(group, channels.iter().copied());
    }

    /// The model as it is after the cuts so far.
    fn pruned(&self) -> Result<Model, PassError> {
        let mut model = self.model.clone();
        if !self.cut.is_empty() {
            let plan = self.found.edits(self.model, &self.cut, &self.replaced)?;
            apply(&mut model.graph, &plan)?;
        }
        Ok(model)
    }

    /// Inputs of the sites in the pruned model beside their outputs in the original.
    fn moments(&self, sites: &[Site]) -> Result<Vec<Moments>, PassError> {
        let mut moments: Vec<Moments> =
            sites.iter().map(|site| Moments::new(site.size, site.outputs)).collect();
        if sites.is_empty() {
            return Ok(moments);
        }
        let calibration = self.context.calibration.ok_or(PassError::NoCalibration)?;
        let kept: Vec<Vec<usize>> = sites.iter().map(|site| self.kept(site)).collect();
        let residuals: Vec<Option<&Residual>> = sites.iter().map(|s| self.residual(s)).collect();
        let is_computed =
            |other: &String| !self.model.graph.inputs.iter().any(|input| input.name == *other);
        let others = residuals.iter().flatten().map(|residual| residual.other.clone());
        let others = others.filter(is_computed);
        let mut of_pruned: Vec<String> =
            sites.iter().map(|site| site.input.clone()).chain(others).collect();
        let target = |site: &Site| {
            self.residual(site).map_or(&site.output, |residual| &residual.sum).clone()
        };
        let targets: Vec<String> = sites.iter().map(target).collect();
        // As long as nothing is cut, one run shows both.
        let mut original = None;
        if self.cut.is_empty() && self.replaced.is_empty() {
            of_pruned.extend(targets.iter().cloned());
        } else {
            original = Some(self.load(self.model.clone(), targets.clone())?);
        }
        let mut pruned = self.load(self.pruned()?, of_pruned)?;
        let inputs = pruned.inputs().to_vec();
        let mut batch = 0;
        calibration.for_each_batch(&inputs, &mut |feeds| {
            let x = shown(pruned.as_mut(), feeds)?;
            let y = match &mut original {
                Some(original) => &shown(original.as_mut(), feeds)?,
                None => &x,
            };
            for (index, (site, moments)) in sites.iter().zip(&mut moments).enumerate() {
                let (Some(input), Some(y)) = (x.get(&site.input), y.get(&targets[index])) else {
                    continue;
                };
                let sum;
                let mut y = y;
                if let Some(Residual { other, .. }) = residuals[index] {
                    let fed = || feeds.iter().find(|(name, _)| name == other).map(|(_, t)| *t);
                    let Some(rest) = x.get(other).or_else(fed) else { continue };
                    sum = difference(y, rest);
                    y = &sum;
                }
                let mut is_finite = true;
                site.rows(input, y, &kept[index], &mut |x, y| {
                    is_finite &= x.iter().all(|x| x.is_finite());
                    moments.push(x.iter().copied(), y);
                });
                if !is_finite {
                    return Err(PassError::NotFinite { tensor: site.input.clone(), batch });
                }
            }
            batch += 1;
            Ok(())
        })?;
        if batch == 0 { Err(PassError::EmptyCalibration) } else { Ok(moments) }
    }

    /// The sum that a site is to restore, where it still has all its channels.
    fn residual<'s>(&self, site: &'s Site) -> Option<&'s Residual> {
        site.residual.as_ref().filter(|residual| !self.found.is_cut(&self.cut, &residual.other))
    }

    /// A session that computes these values and no more.
    fn load(&self, mut model: Model, observed: Vec<String>) -> Result<Box<dyn Session>, PassError> {
        model.graph.outputs = observed
            .iter()
            .map(|name| {
                let value_type = Some(ValueType::Tensor { dtype: Some(DType::F32), shape: None });
                Value { value_type, ..Value::untyped(name) }
            })
            .collect();
        let mut seen = BTreeSet::new();
        model.graph.outputs.retain(|output| seen.insert(output.name.clone()));
        let options = RunOptions { threads: self.context.threads, observed };
        Ok(self.context.runtime.load(&model, &options)?)
    }

    /// Features of a site that are still there.
    fn kept(&self, site: &Site) -> Vec<usize> {
        let gone = self.gone.get(&site.weight);
        (0..site.size).filter(|i| gone.is_none_or(|gone| !gone.contains(i))).collect()
    }

    fn weight(&self, name: &str) -> Option<&Tensor> {
        self.replaced.get(name).or_else(|| self.model.graph.constant(name))
    }

    /// `count` channels by second order, in the order that they go in, with what each costs: the
    /// rise of the square error of each product that reads them, relative to what it gives, added
    /// up.
    fn select(
        &self,
        group: &ChannelGroup,
        sites: &[Site],
        centrals: &[Central],
        count: usize,
    ) -> Result<Vec<(usize, f64)>, PassError> {
        let (mut systems, mut blocks) = (Vec::new(), Vec::new());
        for (site, central) in sites.iter().zip(centrals) {
            let axis = group.axes.iter().find(|axis| axis.tensor == site.weight);
            let (Some(axis), Some(w)) = (axis, self.weight(&site.weight)) else { continue };
            let kept = self.kept(site);
            let place: BTreeMap<usize, usize> =
                kept.iter().enumerate().map(|(i, &k)| (k, i)).collect();
            let rows = |channel: usize| -> Vec<usize> {
                let features = site.features(axis.of(channel));
                features.iter().filter_map(|feature| place.get(feature).copied()).collect()
            };
            blocks.push((0..group.channel_count).map(rows).collect());
            let fitted = self.fitted(site, central, &kept, &site.weights(w));
            let Fitted { w, factor, power } =
                fitted.ok_or_else(|| PassError::WeightNotFinite { tensor: site.weight.clone() })?;
            let weight = 1.0 / power.max(f64::MIN_POSITIVE);
            systems.push(System::new(w, factor.inverse(), site.outputs, weight));
        }
        let not_finite = || PassError::WeightNotFinite { tensor: group.name.clone() };
        select::remove(systems, blocks, count).ok_or_else(not_finite)
    }

    /// The best weights of the features `kept`.
    fn fitted(&self, site: &Site, central: &Central, kept: &[usize], w: &[f64]) -> Option<Fitted> {
        let (size, n) = (kept.len(), site.outputs);
        let rows = |matrix: &[f64], width: usize| -> Vec<f64> {
            kept.iter().flat_map(|&i| matrix[i * width..(i + 1) * width].to_vec()).collect()
        };
        let mut h: Vec<f64> = Vec::with_capacity(size * size);
        for &i in kept {
            h.extend(kept.iter().map(|&j| central.xx[i * site.size + j]));
        }
        let own = rows(w, n);
        // What the kept weights as they are leave over.
        let explained = product(&h, &own, [size, n]);
        let power = dot(&own, &explained);
        let rest: Vec<f64> =
            rows(&central.xy, n).iter().zip(&explained).map(|(y, e)| y - e).collect();
        let diagonal: f64 = (0..size).map(|i| h[i * size + i]).sum::<f64>() / size.max(1) as f64;
        let ridge = self.ridge.max(RIDGE_MIN) * diagonal.max(f64::MIN_POSITIVE);
        (0..size).for_each(|i| h[i * size + i] += ridge);
        let factor = Factor::new(h, size)?;
        let change = factor.solve(&rest, n);
        let w = own.iter().zip(&change).map(|(w, change)| w + change).collect();
        Some(Fitted { w, factor, power })
    }

    /// Sets the weights and the bias of a site; leaves them where they cannot be found.
    fn refit(&mut self, site: &Site, central: &Central) {
        let Some(tensor) = self.weight(&site.weight) else { return };
        let (shape, w) = (tensor.shape().to_vec(), site.weights(tensor));
        let kept = self.kept(site);
        // y without the bias that it holds: the mean takes it up where there is a bias to set.
        let Some(fitted) = self.fitted(site, central, &kept, &w) else {
            self.remarks
                .push(format!("`{}` is not refitted: its moments are singular", site.weight));
            return;
        };
        let n = site.outputs;
        let mut all = vec![0.0; w.len()];
        for (row, &feature) in fitted.w.chunks_exact(n).zip(&kept) {
            all[feature * n..(feature + 1) * n].copy_from_slice(row);
        }
        self.replaced.insert(site.weight.clone(), site.stored(&all, &shape));
        let Some(name) = &site.bias else { return };
        let Some(old) = self.weight(name) else { return };
        let given = product(&central.mean_x, &all, [site.size, n]);
        let shift = central.mean_y.iter().zip(&given).map(|(y, x)| y - x);
        let bias: Vec<f32> = if site.bias_is_inside || self.residual(site).is_some() {
            shift.map(|bias| bias as f32).collect()
        } else {
            let old = old.values::<f32>();
            old.iter().zip(shift).map(|(&old, shift)| (f64::from(old) + shift) as f32).collect()
        };
        self.replaced.insert(name.clone(), Tensor::new(&[n], &bias));
    }
}

/// `a` − `b`, of the same shape.
fn difference(a: &Tensor, b: &Tensor) -> Tensor {
    let (from, less) = (a.values::<f32>(), b.values::<f32>());
    let difference: Vec<f32> = from.iter().zip(less.iter()).map(|(a, b)| a - b).collect();
    Tensor::new(a.shape(), &difference)
}

fn shown(
    session: &mut dyn Session,
    feeds: &[(&str, &Tensor)],
) -> Result<BTreeMap<String, Tensor>, PassError> {
    let mut values = BTreeMap::new();
    session.observe(feeds, &mut |name, tensor| {
        if tensor.dtype() == DType::F32 {
            values.insert(name.to_string(), tensor.clone());
        }
    })?;
    Ok(values)
}
