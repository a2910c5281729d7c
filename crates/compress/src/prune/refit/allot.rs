//! How much of each group goes when all are ranked together.
//!
//! Second order gives, for each group, what its product loses with every channel more. What the
//! model's outputs lose by it differs from product to product: it is measured once, with the group
//! cut and refitted by itself, and the curve scaled to it. Then the cheapest steps for their
//! multiply-accumulates are taken, on the lower convex hull of each curve (as Kurtic et al.,
//! "`ZipLM`", 2023, arXiv:2302.04089, choose by time).

use attar_graph::{Links, Model, Value, apply};
use attar_tensor::{DType, Tensor};

use super::moments::Central;
use super::site::Site;
use super::{Refit, shown};
use crate::{ChannelGroup, PassError};

/// Of a group, what is left at least.
const KEPT_MIN: f64 = 0.15;
/// Examples that the outputs are measured on.
const EXAMPLES_MAX: usize = 64;
/// Numbers held at once as moments: 128 MB of f64.
const NUMBERS_MAX: usize = 1 << 24;

/// What a group costs.
struct Curve {
    /// Channels of one step.
    step: usize,
    /// Operations of one channel.
    macs: f64,
    /// By channels cut.
    costs: Vec<f64>,
}

impl Refit<'_> {
    /// How many channels to cut of each group, so that as many operations go in all as if `wanted`
    /// went. Channels of a group go in steps of `step`. Groups that no product reads keep what is
    /// wanted.
    ///
    /// # Errors
    /// No calibration data, data that does not fit, or a model that does not run.
    pub(in super::super) fn allot(
        &self,
        groups: &[&ChannelGroup],
        wanted: &[usize],
        step: &dyn Fn(&ChannelGroup) -> usize,
    ) -> Result<Vec<usize>, PassError> {
        let links = Links::new(&self.model.graph);
        let mut waiting: Vec<(usize, Vec<Site>)> = Vec::new();
        let mut numbers = 0;
        let mut curves: Vec<Option<Curve>> = groups.iter().map(|_| None).collect();
        let reference = self.reference()?;
        for (index, group) in groups.iter().enumerate().filter(|(index, _)| wanted[*index] > 0) {
            let (sites, _) = self.sites(&links, group);
            if sites.is_empty() {
                continue;
            }
            let own: usize = sites.iter().map(|site| site.size * (site.size + site.outputs)).sum();
            if numbers + own > NUMBERS_MAX {
                self.measure(&mut waiting, groups, wanted, &reference, &mut curves)?;
                numbers = 0;
            }
            numbers += own;
            waiting.push((index, sites));
        }
        self.measure(&mut waiting, groups, wanted, &reference, &mut curves)?;
        for (group, curve) in groups.iter().zip(&mut curves) {
            if let Some(curve) = curve {
                curve.step = step(group);
            }
        }
        Ok(cheapest(&curves, wanted))
    }

    /// The curves of groups, from one pass over the data.
    fn measure(
        &self,
        waiting: &mut Vec<(usize, Vec<Site>)>,
        groups: &[&ChannelGroup],
        wanted: &[usize],
        reference: &[Vec<Tensor>],
        curves: &mut [Option<Curve>],
    ) -> Result<(), PassError> {
        let sites: Vec<Site> = waiting.iter().flat_map(|(_, sites)| sites).cloned().collect();
        let mut centrals = self.moments(&sites)?.into_iter().zip(&sites);
        for (index, sites) in std::mem::take(waiting) {
            let own = centrals.by_ref().take(sites.len());
            let own: Vec<Central> =
                own.map(|(moments, site)| moments.finish(site.bias.is_some())).collect();
            let group = groups[index];
            let most = group.channel_count as f64 * (1.0 - KEPT_MIN);
            let order = self.select(group, &sites, &own, (most as usize).max(wanted[index]))?;
            let mut costs = vec![0.0];
            for (_, cost) in &order {
                costs.push(costs[costs.len() - 1] + cost.max(0.0));
            }
            let gone: Vec<usize> = order.iter().take(wanted[index]).map(|(c, _)| *c).collect();
            let lost = self.lost(group, &sites, &own, &gone, reference)?;
            let scale = lost / costs[gone.len().min(costs.len() - 1)].max(f64::MIN_POSITIVE);
            costs.iter_mut().for_each(|cost| *cost *= scale);
            let macs = group.macs as f64 / group.channel_count.max(1) as f64;
            curves[index] = Some(Curve { step: 1, macs, costs });
        }
        Ok(())
    }

    /// The original's outputs, example by example.
    fn reference(&self) -> Result<Vec<Vec<Tensor>>, PassError> {
        let mut outputs = Vec::new();
        self.run_examples(self.model.clone(), &mut |found| outputs.push(found))?;
        Ok(outputs)
    }

    /// What the outputs miss once a group is cut by itself: Σ of squares, relative, over outputs.
    fn lost(
        &self,
        group: &ChannelGroup,
        sites: &[Site],
        centrals: &[Central],
        gone: &[usize],
        reference: &[Vec<Tensor>],
    ) -> Result<f64, PassError> {
        let mut alone = Refit::new(self.model, self.found, self.context, self.ridge);
        alone.take(group, sites, centrals, gone);
        let mut model = self.model.clone();
        apply(&mut model.graph, &self.found.edits(self.model, &alone.cut, &alone.replaced)?)?;
        let count = reference.first().map_or(0, Vec::len);
        let mut sums = vec![[0.0_f64; 2]; count];
        let mut references = reference.iter();
        self.run_examples(model, &mut |found| {
            let Some(expected) = references.next() else { return };
            for (sums, (y, expected)) in sums.iter_mut().zip(found.iter().zip(expected)) {
                if y.shape() != expected.shape() {
                    continue;
                }
                let (y, expected) = (y.values::<f32>(), expected.values::<f32>());
                for (y, expected) in y.iter().zip(expected.iter()) {
                    sums[0] += f64::from(y - expected).powi(2);
                    sums[1] += f64::from(*expected).powi(2);
                }
            }
        })?;
        Ok(sums.iter().map(|[lost, power]| lost / power.max(f64::MIN_POSITIVE)).sum())
    }

    /// Shows the f32 outputs of the first examples.
    fn run_examples(
        &self,
        model: Model,
        visit: &mut dyn FnMut(Vec<Tensor>),
    ) -> Result<(), PassError> {
        let calibration = self.context.calibration.ok_or(PassError::NoCalibration)?;
        let is_float = |value: &&Value| value.dtype().is_none_or(DType::is_float);
        let outputs = model.graph.outputs.iter().filter(is_float);
        let names = outputs.map(|output| output.name.clone()).collect();
        let mut session = self.load(model, names)?;
        let inputs = session.inputs().to_vec();
        let mut count = 0;
        calibration.for_each_batch(&inputs, &mut |feeds| {
            if count < EXAMPLES_MAX {
                visit(shown(session.as_mut(), feeds)?.into_values().collect());
            }
            count += 1;
            Ok(())
        })
    }
}

/// A step of one group: so many channels more, for so much more error.
struct Step {
    curve: usize,
    channels: usize,
    macs: f64,
    cost: f64,
}

/// How many channels of each curve go: the cheapest steps, until so many operations are gone as
/// `wanted` would take.
fn cheapest(curves: &[Option<Curve>], wanted: &[usize]) -> Vec<usize> {
    let mut counts = wanted.to_vec();
    let mut rest = 0.0;
    let mut steps: Vec<Step> = Vec::new();
    for (index, curve) in curves.iter().enumerate() {
        let Some(curve) = curve else { continue };
        counts[index] = 0;
        rest += wanted[index] as f64 * curve.macs;
        for (from, to) in hull(&curve.costs, curve.step) {
            // Along the hull every step costs the same: so a part of it can be taken.
            let pieces = (to - from).div_ceil(curve.step.max(1));
            let slope = (curve.costs[to] - curve.costs[from]) / (to - from) as f64;
            for piece in 0..pieces {
                let channels = curve.step.min(to - from - piece * curve.step);
                let (macs, cost) = (channels as f64 * curve.macs, channels as f64 * slope);
                steps.push(Step { curve: index, channels, macs, cost });
            }
        }
    }
    // Stable: of like steps the first group's comes first, and a group's stay in order.
    steps.sort_by(|a, b| (a.cost / a.macs).total_cmp(&(b.cost / b.macs)));
    for step in steps {
        if step.macs * 0.5 > rest {
            continue;
        }
        rest -= step.macs;
        counts[step.curve] += step.channels;
    }
    counts
}

/// The corners of the lower convex hull of a curve, at multiples of `step` from 0, as successive
/// pairs.
fn hull(costs: &[f64], step: usize) -> Vec<(usize, usize)> {
    let mut corners: Vec<usize> = Vec::new();
    for next in (0..costs.len()).step_by(step.max(1)) {
        while let [.., before, last] = corners[..] {
            let slope = |from: usize, to: usize| (costs[to] - costs[from]) / (to - from) as f64;
            if slope(before, last) < slope(last, next) {
                break;
            }
            corners.pop();
        }
        corners.push(next);
    }
    corners.windows(2).map(|pair| (pair[0], pair[1])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(macs: f64, step: usize, costs: &[f64]) -> Curve {
        Curve { step, macs, costs: costs.to_vec() }
    }

    fn chosen<const N: usize>(curves: [Curve; N], wanted: [usize; N]) -> Vec<usize> {
        cheapest(&curves.map(Some), &wanted)
    }

    #[test]
    fn the_hull_skips_what_lies_above_it() {
        assert_eq!(hull(&[0.0, 3.0, 4.0, 10.0], 1), [(0, 2), (2, 3)]);
        assert_eq!(hull(&[0.0, 1.0, 3.0, 6.0, 10.0], 2), [(0, 2), (2, 4)]);
    }

    #[test]
    fn operations_go_where_they_cost_least() {
        let dear = curve(1.0, 1, &[0.0, 10.0, 30.0, 60.0]);
        let cheap = curve(1.0, 1, &[0.0, 1.0, 3.0, 6.0]);
        assert_eq!(chosen([dear, cheap], [2, 1]), [0, 3]);
        let small = curve(1.0, 1, &[0.0, 1.0, 2.0, 3.0]);
        let large = curve(4.0, 1, &[0.0, 2.0, 4.0, 6.0]);
        assert_eq!(chosen([small, large], [0, 1]), [0, 1], "a quarter of the cost for each");
    }

    #[test]
    fn a_group_without_a_curve_keeps_what_is_wanted() {
        assert_eq!(cheapest(&[None, Some(curve(1.0, 1, &[0.0, 1.0]))], &[5, 1]), [5, 1]);
    }
}
