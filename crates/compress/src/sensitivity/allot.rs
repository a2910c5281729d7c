//! Which tensor, or which group of channels, gets which sparsity, so that the predicted error of all
//! is least.
//!
//! The error of each at every sparsity is known, Σ of the squares is to be least, and so many
//! weights go in all. On the lower convex hull of each curve the cheapest step is always next, so
//! that one sort of all steps gives the optimum.

use std::collections::BTreeMap;

use attar_graph::Model;
use serde::Deserialize;

use super::{LevelSensitivity, Sensitivity, TensorSensitivity};
use crate::prune::prunable;
use crate::{ChannelGroup, Context, Fraction, PassError};

/// The setting of a pass: what was found, or nothing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "Source")]
pub(crate) struct SensitivitySetting(Source);

/// A recipe names a file; whoever builds the pass puts its content in its place.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Source {
    Path(String),
    Found(Sensitivity),
}

impl Default for Source {
    fn default() -> Self {
        Self::Path(String::new())
    }
}

impl From<Source> for SensitivitySetting {
    fn from(source: Source) -> Self {
        Self(source)
    }
}

/// A sparsity for each tensor, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Allotment(BTreeMap<String, Fraction>);

impl Allotment {
    pub(crate) fn of(&self, name: &str) -> Fraction {
        self.0.get(name).copied().unwrap_or(Fraction::NOTHING)
    }
}

impl SensitivitySetting {
    pub(crate) fn is_empty(&self) -> bool {
        matches!(&self.0, Source::Path(path) if path.is_empty())
    }

    /// The sparsity of each tensor of `model`; `None` where the setting is empty.
    ///
    /// # Errors
    /// A file of another model.
    pub(crate) fn allotted(
        &self,
        model: &Model,
        context: &Context,
        sparsity: Fraction,
    ) -> Result<Option<Allotment>, PassError> {
        let Some(found) = self.found()? else { return Ok(None) };
        let mut tensors = Vec::new();
        for name in prunable(model, context)? {
            let count = model.graph.constant(&name).map_or(0, attar_tensor::Tensor::element_count);
            let known = found.tensors.iter().find(|tensor| tensor.name == name);
            let known = known.filter(|tensor| tensor.element_count == count);
            let missing =
                || unusable(format!("the sensitivity of `{name}` [{count}] is not in it"));
            tensors.push(known.ok_or_else(missing)?);
        }
        Ok(Some(allot(&tensors, sparsity)))
    }

    /// How many channels of each group go, so that as many bytes of weights do as where `wanted` do;
    /// `None` where the setting is empty. Of groups that no product reads those go that are wanted.
    ///
    /// # Errors
    /// A file of another model, or of its tensors.
    pub(crate) fn allotted_channels(
        &self,
        groups: &[&ChannelGroup],
        wanted: &[usize],
    ) -> Result<Option<Vec<usize>>, PassError> {
        let Some(found) = self.found()? else { return Ok(None) };
        let mut curves = Vec::new();
        let mut total = 0.0;
        for (group, &wanted) in groups.iter().zip(wanted) {
            let known = found.groups.iter().find(|known| {
                let count = known.channel_count;
                (&known.name, known.kind, count) == (&group.name, group.kind, group.channel_count)
            });
            let levels = &known.ok_or_else(|| no_group(group))?.levels;
            let amount = group.weight_bytes as f64;
            if levels.is_empty() {
                curves.push(Curve { amount: 0.0, points: Vec::new() });
                continue;
            }
            total += amount * wanted as f64 / group.channel_count as f64;
            curves.push(Curve { amount, points: costs(levels) });
        }
        let shares = shares(&curves, total);
        let counts = groups.iter().zip(wanted).zip(curves.iter().zip(shares));
        let count =
            |((group, &wanted), (curve, share)): ((&&ChannelGroup, &usize), (&Curve, f64))| {
                let part = share / curve.amount;
                let all = group.channel_count;
                if part.is_finite() {
                    ((part * all as f64).round() as usize).min(all)
                } else {
                    wanted
                }
            };
        Ok(Some(counts.map(count).collect()))
    }

    fn found(&self) -> Result<Option<&Sensitivity>, PassError> {
        match &self.0 {
            Source::Found(found) => Ok(Some(found)),
            Source::Path(path) if path.is_empty() => Ok(None),
            Source::Path(path) => Err(unusable(format!("`{path}` was not read"))),
        }
    }
}

fn no_group(group: &ChannelGroup) -> PassError {
    let (kind, name, count) = (group.kind.name(), &group.name, group.channel_count);
    PassError::Data {
        message: format!("the sensitivity of {kind} of `{name}` [{count}] is not in it"),
        hint: "make it anew for this model: `attar sensitivity MODEL --data SET --by group --json`"
            .into(),
    }
}

fn unusable(message: String) -> PassError {
    let hint = "make it anew for this model: `attar sensitivity MODEL --data SET --json`".into();
    PassError::Data { message, hint }
}

/// What a tensor or a group holds, and what taking of it costs.
pub(crate) struct Curve {
    pub(crate) amount: f64,
    /// (part taken, squared error), from nothing on.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A step of one curve: so much more is taken, for so much more error.
struct Step {
    curve: usize,
    count: f64,
    cost: f64,
}

/// How much is taken of each, `total` of all.
pub(crate) fn shares(curves: &[Curve], total: f64) -> Vec<f64> {
    let mut steps: Vec<Step> = Vec::new();
    for (index, curve) in curves.iter().enumerate().filter(|(_, curve)| curve.amount > 0.0) {
        steps.extend(hull(&curve.points).windows(2).map(|pair| Step {
            curve: index,
            count: (pair[1].0 - pair[0].0) * curve.amount,
            cost: pair[1].1 - pair[0].1,
        }));
    }
    // Stable: of like steps the first one's comes first.
    steps.sort_by(|a, b| (a.cost / a.count).total_cmp(&(b.cost / b.count)));
    let mut taken = vec![0.0_f64; curves.len()];
    let mut rest = total;
    for step in steps {
        let count = step.count.min(rest);
        taken[step.curve] += count;
        rest -= count;
    }
    taken
}

fn allot(tensors: &[&TensorSensitivity], sparsity: Fraction) -> Allotment {
    let total: usize = tensors.iter().map(|tensor| tensor.element_count).sum();
    let curve = |tensor: &&TensorSensitivity| Curve {
        amount: tensor.element_count as f64,
        points: costs(&tensor.levels),
    };
    let curves: Vec<Curve> = tensors.iter().map(curve).collect();
    let taken = shares(&curves, sparsity.of(total) as f64);
    let whole = whole_counts(&taken, sparsity.of(total));
    let fraction = |(tensor, &count): (&&TensorSensitivity, &usize)| {
        (tensor.name.clone(), Fraction::of_count(count, tensor.element_count))
    };
    Allotment(tensors.iter().zip(&whole).map(fraction).collect())
}

/// Counts rounded so that they still sum to `total`.
fn whole_counts(counts: &[f64], total: usize) -> Vec<usize> {
    let (mut sum, mut given) = (0.0, 0);
    let last = counts.len().saturating_sub(1);
    let whole = |(index, count): (usize, &f64)| {
        sum += count;
        let upto = if index == last { total } else { (sum.round() as usize).min(total) };
        let own = upto - given;
        given = upto;
        own
    };
    counts.iter().enumerate().map(whole).collect()
}

/// (sparsity, squared error) from nothing to everything. Where outputs of the model were measured,
/// an error counts as much as it was found to move them.
fn costs(levels: &[LevelSensitivity]) -> Vec<(f64, f64)> {
    let (mut measured, mut own) = (0.0, 0.0);
    for level in levels {
        if let Some(output) = level.output_error {
            measured += output.value.powi(2);
            own += level.error.value.powi(2);
        }
    }
    let weight = if own > 0.0 { measured / own } else { 1.0 };
    let parts = levels.iter().filter_map(|level| Some((level.level.sparsity()?, level)));
    let within = parts.filter(|(part, _)| *part > 0.0 && *part < 1.0);
    let points = within.map(|(part, level)| (part, weight * level.error.value.powi(2)));
    // Nothing remains of an output whose weights are all gone.
    std::iter::once((0.0, 0.0)).chain(points).chain([(1.0, weight)]).collect()
}

/// The lower convex hull of points that stand by rising sparsity.
pub(crate) fn hull(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut hull: Vec<(f64, f64)> = Vec::new();
    for &point in points {
        if hull.last().is_some_and(|last| point.0 <= last.0) {
            continue;
        }
        while let [.., a, b] = hull[..] {
            let is_below = (b.1 - a.1) * (point.0 - a.0) < (point.1 - a.1) * (b.0 - a.0);
            if is_below {
                break;
            }
            hull.pop();
        }
        hull.push(point);
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::super::{Estimate, Level, LevelSensitivity};
    use super::*;

    fn tensor(
        name: &str,
        element_count: usize,
        errors: [f64; 3],
        output: Option<f64>,
    ) -> TensorSensitivity {
        let estimate = |value| Estimate { value, low: value, high: value };
        let level = |(index, error): (usize, f64)| LevelSensitivity {
            level: Level::Sparsity(0.25 * (index + 1) as f64),
            error: estimate(error),
            output_error: output.map(|share| estimate(share * error)),
            metric: None,
        };
        TensorSensitivity {
            name: name.into(),
            node: String::new(),
            op_type: String::new(),
            block: String::new(),
            element_count,
            levels: errors.into_iter().enumerate().map(level).collect(),
        }
    }

    fn counts(tensors: &[TensorSensitivity], sparsity: f64) -> Vec<usize> {
        let tensors: Vec<&TensorSensitivity> = tensors.iter().collect();
        let allotment = allot(&tensors, sparsity.try_into().unwrap());
        tensors.iter().map(|t| allotment.of(&t.name).of(t.element_count)).collect()
    }

    #[test]
    fn the_tensor_that_minds_least_gives_most() {
        let robust = tensor("robust", 100, [0.01, 0.02, 0.1], None);
        let fragile = tensor("fragile", 100, [0.3, 0.6, 0.8], None);
        assert_eq!(counts(&[robust.clone(), fragile.clone()], 0.25), [50, 0]);
        assert_eq!(counts(&[robust, fragile], 0.5), [75, 25]);
    }

    #[test]
    fn as_many_weights_go_as_were_asked_for() {
        let tensors = [
            tensor("a", 333, [0.1, 0.2, 0.4], None),
            tensor("b", 77, [0.2, 0.3, 0.5], None),
            tensor("c", 1001, [0.05, 0.2, 0.6], None),
        ];
        for sparsity in [0.0, 0.1, 0.333, 0.5, 0.9, 1.0] {
            let total = (sparsity * 1411.0_f64).floor() as usize;
            assert_eq!(counts(&tensors, sparsity).iter().sum::<usize>(), total, "{sparsity}");
        }
    }

    #[test]
    fn an_error_that_reaches_the_outputs_counts_more() {
        let quiet = tensor("quiet", 100, [0.1, 0.2, 0.4], Some(0.01));
        let loud = tensor("loud", 100, [0.1, 0.2, 0.4], Some(1.0));
        let found = counts(&[loud, quiet], 0.375);
        assert_eq!(found, [0, 75]);
    }

    #[test]
    fn groups_give_the_bytes_that_were_asked_for_and_the_fragile_one_least() {
        let curve = |amount, errors: [f64; 3]| Curve {
            amount,
            points: costs(&tensor("", 1, errors, None).levels),
        };
        let curves = [curve(1000.0, [0.3, 0.6, 0.8]), curve(4000.0, [0.01, 0.02, 0.1])];
        let taken = shares(&curves, 2500.0);
        assert!((taken[0] + taken[1] - 2500.0).abs() < 1e-9, "{taken:?}");
        assert!(taken[0] == 0.0, "{taken:?}");
        let nothing = Curve { amount: 0.0, points: Vec::new() };
        assert_eq!(shares(&[nothing], 0.0), [0.0]);
    }

    #[test]
    fn a_curve_that_bulges_is_bridged() {
        let points = [(0.0, 0.0), (0.25, 0.5), (0.5, 0.2), (1.0, 1.0)];
        assert_eq!(hull(&points), [(0.0, 0.0), (0.5, 0.2), (1.0, 1.0)]);
    }
}
