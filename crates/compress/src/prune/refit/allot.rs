//! How much of each group goes when all are ranked together.
//!
//! Second order gives, for each group, what its product loses with every channel more. What the
//! model's outputs lose by it differs from product to product: it is measured once, with the group
//! cut and refitted by itself, and the curve scaled to it. Then the cheapest steps for their
//! multiply-accumulates are taken, on the lower convex hull of each curve (as Kurtic et al.,
//! "`ZipLM`", 2023, arXiv:2302.04089, choose by time).

use attar_graph::{Links, apply};

use super::Refit;
use super::moments::Central;
use super::site::Site;
use crate::reference::Reference;
use crate::sensitivity::{Curve, shares};
use crate::{ChannelGroup, PassError};

/// Of a group, what is left at least.
const KEPT_MIN: f64 = 0.15;
/// Numbers held at once as moments: 128 MB of f64.
const NUMBERS_MAX: usize = 1 << 24;

/// What a group costs.
struct GroupCurve {
    /// Channels of one step.
    step: usize,
    /// Operations of one channel.
    macs: f64,
    /// By channels cut.
    costs: Vec<f64>,
}

impl GroupCurve {
    fn points(&self) -> Curve {
        let most = (self.costs.len() - 1).max(1) as f64;
        let steps = self.costs.iter().enumerate().step_by(self.step.max(1));
        let points = steps.map(|(count, cost)| (count as f64 / most, *cost)).collect();
        Curve { amount: most * self.macs, points }
    }
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
        let mut curves: Vec<Option<GroupCurve>> = groups.iter().map(|_| None).collect();
        let reference = Reference::new(self.model, self.context)?;
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
        Ok(counts(&curves, wanted))
    }

    /// The curves of groups, from one pass over the data.
    fn measure(
        &self,
        waiting: &mut Vec<(usize, Vec<Site>)>,
        groups: &[&ChannelGroup],
        wanted: &[usize],
        reference: &Reference,
        curves: &mut [Option<GroupCurve>],
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
            curves[index] = Some(GroupCurve { step: 1, macs, costs });
        }
        Ok(())
    }

    /// What the outputs miss once a group is cut by itself: Σ of squares, relative, over outputs.
    fn lost(
        &self,
        group: &ChannelGroup,
        sites: &[Site],
        centrals: &[Central],
        gone: &[usize],
        reference: &Reference,
    ) -> Result<f64, PassError> {
        let mut alone = Refit::new(self.model, self.found, self.context, self.ridge);
        alone.take(group, sites, centrals, gone);
        let mut model = self.model.clone();
        apply(&mut model.graph, &self.found.edits(self.model, &alone.cut, &alone.replaced)?)?;
        reference.lost(&model)
    }
}

/// How many channels of each curve go, so that as many operations do as where `wanted` would.
fn counts(curves: &[Option<GroupCurve>], wanted: &[usize]) -> Vec<usize> {
    let with_curve = || curves.iter().zip(wanted).filter_map(|(c, n)| Some((c.as_ref()?, *n)));
    let points: Vec<Curve> = with_curve().map(|(curve, _)| curve.points()).collect();
    let total = with_curve().map(|(curve, wanted)| wanted as f64 * curve.macs).sum();
    let mut shares = shares(&points, total).into_iter();
    let count = |(curve, wanted): (&Option<GroupCurve>, &usize)| {
        let part = curve.as_ref().and_then(|curve| Some(shares.next()? / curve.macs));
        // Where operations are not known, what is wanted stays.
        part.filter(|part| part.is_finite()).map_or(*wanted, |part| part.round() as usize)
    };
    curves.iter().zip(wanted).map(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(macs: f64, step: usize, costs: &[f64]) -> GroupCurve {
        GroupCurve { step, macs, costs: costs.to_vec() }
    }

    fn chosen<const N: usize>(curves: [GroupCurve; N], wanted: [usize; N]) -> Vec<usize> {
        counts(&curves.map(Some), &wanted)
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
    fn channels_go_in_steps_where_the_curve_is_cheap() {
        let by_two = curve(1.0, 2, &[0.0, 1.0, 1.5, 9.0, 9.5]);
        let dear = curve(1.0, 1, &[0.0, 5.0, 11.0]);
        assert_eq!(chosen([by_two, dear], [2, 0]), [2, 0]);
    }

    #[test]
    fn a_group_without_a_curve_keeps_what_is_wanted() {
        assert_eq!(counts(&[None, Some(curve(1.0, 1, &[0.0, 1.0]))], &[5, 1]), [5, 1]);
    }
}
