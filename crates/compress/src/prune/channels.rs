//! Structured pruning: whole channels are cut out, so that the model gets smaller and faster
//! (Li et al., 2017, arXiv:1608.08710, by the size of weights; coupled channels as in `DepGraph`,
//! Fang et al., 2023, arXiv:2301.12900).

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use attar_graph::{Model, Plan};
use attar_ops::fold_constants;
use serde::Deserialize;

use super::refit::{Choice, Refit};
use super::score::{ChannelImportance, channel_scores, least};
use super::step_back::step_back;
use super::unstructured::contradiction;
use crate::sensitivity::SensitivitySetting;
use crate::{
    ChannelGroup, ChannelGroups, ChannelKind, Context, Exclude, Fraction, OptionEntry, Pass,
    PassError,
};

/// Cuts the channels of least importance out of weights, shapes and attributes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChannelPrune {
    sparsity: Sparsity,
    #[serde(default)]
    importance: ChannelImportance,
    #[serde(default)]
    scope: Scope,
    #[serde(default = "default_kinds")]
    kinds: Vec<ChannelKind>,
    #[serde(default = "one")]
    round_to: NonZeroUsize,
    /// λ of the refit, relative to the mean second moment; 0 for none.
    #[serde(default)]
    ridge: f64,
    /// Whether what makes the model slower is cut less, where it can be timed.
    #[serde(default = "yes")]
    timed: bool,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    sensitivity: SensitivitySetting,
}

/// One for all groups, or by kind or group.
#[derive(Clone, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "`sparsity` is a fraction from 0 to 1, or a table of them by kind or group"
)]
enum Sparsity {
    All(Fraction),
    /// By the name of a kind, or a pattern of names of groups.
    By(BTreeMap<String, Fraction>),
}

impl Sparsity {
    /// That of a group; the first entry that fits, names of groups before kinds.
    fn of(&self, group: &ChannelGroup) -> Option<Fraction> {
        let by = match self {
            Self::All(fraction) => return Some(*fraction),
            Self::By(by) => by,
        };
        let fits = |pattern: &str| Exclude::new(vec![pattern.to_string()]).matches(&group.name);
        by.iter()
            .find(|(pattern, _)| fits(pattern))
            .or_else(|| by.iter().find(|(kind, _)| *kind == group.kind.name()))
            .map(|(_, fraction)| *fraction)
    }
}

/// Which channels compete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Scope {
    #[default]
    Group,
    Global,
}

fn default_kinds() -> Vec<ChannelKind> {
    vec![ChannelKind::Conv, ChannelKind::Columns, ChannelKind::Heads, ChannelKind::Recurrent]
}

fn yes() -> bool {
    true
}

fn one() -> NonZeroUsize {
    NonZeroUsize::MIN
}

pub(crate) const OPTIONS: &[OptionEntry] = &[
    OptionEntry {
        key: "sparsity",
        default: "",
        help: "fraction of the channels cut, or a table of fractions by kind or name of a group",
    },
    OptionEntry {
        key: "importance",
        default: "\"l2\"",
        help: "\"second-order\": by what the next product loses once it is refitted, from calibration \
               data; or that of the channel's weights, added up: \"l1\", \"l2\", \"relative\", \
               \"activation\", \"taylor\", \"taylor2\", \"loss\" or \"random\", see below",
    },
    OptionEntry {
        key: "scope",
        default: "\"group\"",
        help: "\"group\": that fraction of each group; \"global\": of all groups ranked together; by \
               second order, that part of their operations, from each group what the outputs miss \
               least",
    },
    OptionEntry {
        key: "kinds",
        default: "[\"conv\", \"columns\", \"heads\", \"recurrent\"]",
        help: "what is cut; also \"head-dims\" and \"width\"",
    },
    OptionEntry {
        key: "round_to",
        default: "1",
        help: "channels kept of each group are a multiple of this; heads are not rounded",
    },
    OptionEntry {
        key: "ridge",
        default: "0.0",
        help: "above 0, the product behind a cut is refitted from calibration data, layer after \
               layer; its pull towards the original weights, relative to the mean second moment",
    },
    OptionEntry {
        key: "timed",
        default: "true",
        help: "cut less of a group where the model, timed on the chosen runtime, is slower for it",
    },
    OptionEntry { key: "seed", default: "0", help: "of whatever is drawn" },
    OptionEntry {
        key: "sensitivity",
        default: "\"\"",
        help: "file of `attar sensitivity --by group --json`: each group gets the fraction of least \
               error, for as many bytes of weights; \"\" for none",
    },
];

impl Pass for ChannelPrune {
    fn prepare(&self, model: &Model) -> Result<Plan, PassError> {
        Ok(fold_constants(model, true))
    }

    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        let found = ChannelGroups::find(model, &context.exclude);
        let mut remarks = Vec::new();
        let chosen = self.chosen(&found, &mut remarks);
        let wanted = self.wanted(&chosen)?;
        let mut refit = Refit::new(model, &found, context, self.ridge);
        let scores = match self.importance {
            ChannelImportance::SecondOrder => None,
            ChannelImportance::OfWeights(importance) => {
                Some(channel_scores(model, context, &chosen, importance, self.seed)?)
            }
        };
        let counts = match (self.scope, &scores) {
            (Scope::Group, _) => wanted,
            (Scope::Global, None) => refit.allot(&chosen, &wanted, &|group| self.step(group))?,
            (Scope::Global, Some(scores)) => self.global_counts(wanted.iter().sum(), scores),
        };
        let mut counts: Vec<usize> =
            chosen.iter().zip(counts).map(|(group, count)| self.rounded(group, count)).collect();
        if let Some(timing) = context.timing.filter(|_| self.timed) {
            remarks.extend(step_back(model, &found, &chosen, &mut counts, timing)?);
        }
        let removed = match scores {
            None => refit.run(&chosen, counts.into_iter().map(Choice::Count).collect())?,
            Some(scores) => {
                let removed: Vec<Vec<usize>> =
                    scores.iter().zip(counts).map(|(scores, count)| least(scores, count)).collect();
                if self.ridge > 0.0 {
                    refit.run(&chosen, removed.into_iter().map(Choice::These).collect())?
                } else {
                    for (group, channels) in chosen.iter().zip(&removed) {
                        refit.cut.remove(group, channels.iter().copied());
                    }
                    removed
                }
            }
        };
        let mut plan = if refit.cut.is_empty() {
            Plan::default()
        } else {
            found.edits(model, &refit.cut, &refit.replaced)?
        };
        remarks.append(&mut refit.remarks);
        for remark in remarks.into_iter().chain(by_kind(&chosen, &removed)).chain(blocked(&found)) {
            plan.remark(remark);
        }
        Ok(plan)
    }
}

impl ChannelPrune {
    /// The groups to cut, none of which is in another's way.
    fn chosen<'a>(
        &self,
        found: &'a ChannelGroups,
        remarks: &mut Vec<String>,
    ) -> Vec<&'a ChannelGroup> {
        let mut chosen: Vec<&ChannelGroup> = Vec::new();
        for kind in &self.kinds {
            for group in found.groups.iter().filter(|group| group.kind == *kind) {
                if self.sparsity.of(group).is_none() {
                    continue;
                }
                match chosen.iter().find(|other| !found.go_together(other, group)) {
                    None => chosen.push(group),
                    Some(other) => remarks.push(format!(
                        "{} of `{}` stay: they lie where {} of `{}` are cut",
                        group.kind.name(),
                        group.name,
                        other.kind.name(),
                        other.name
                    )),
                }
            }
        }
        chosen
    }

    /// How many go of each group when all are ranked together, by their score or, where scores of
    /// groups do not compare, by what it is against the mean of their group.
    fn global_counts(&self, total: usize, scores: &[Vec<f64>]) -> Vec<usize> {
        let is_comparable = match self.importance {
            ChannelImportance::SecondOrder => true,
            ChannelImportance::OfWeights(importance) => importance.is_comparable(),
        };
        let mut all: Vec<(f64, usize)> = Vec::new();
        for (index, scores) in scores.iter().enumerate() {
            let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
            let mean = if mean > 0.0 && !is_comparable { mean } else { 1.0 };
            all.extend(scores.iter().map(|score| (score / mean, index)));
        }
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut counts = vec![0; scores.len()];
        for &(_, index) in all.iter().take(total) {
            counts[index] += 1;
        }
        counts
    }

    /// How many channels of each group are to go.
    fn wanted(&self, chosen: &[&ChannelGroup]) -> Result<Vec<usize>, PassError> {
        let of = |group: &&ChannelGroup| {
            self.sparsity.of(group).map_or(0, |fraction| fraction.of(group.channel_count))
        };
        let wanted: Vec<usize> = chosen.iter().map(of).collect();
        if self.scope == Scope::Global && !self.sensitivity.is_empty() {
            let message = "`sensitivity` says how much of each group goes: no scope \"global\"";
            return Err(contradiction("prune.channels", message.into()));
        }
        Ok(self.sensitivity.allotted_channels(chosen, &wanted)?.unwrap_or(wanted))
    }

    /// `count` or fewer, so that what is kept is a multiple of `round_to` and not nothing.
    fn rounded(&self, group: &ChannelGroup, count: usize) -> usize {
        let kept = (group.channel_count - count).max(1).next_multiple_of(self.step(group));
        group.channel_count - kept.min(group.channel_count)
    }

    /// Channels that go together, for the sake of kernels.
    fn step(&self, group: &ChannelGroup) -> usize {
        if group.kind == ChannelKind::Heads { 1 } else { self.round_to.get() }
    }
}

/// What is cut, by kind.
fn by_kind(chosen: &[&ChannelGroup], removed: &[Vec<usize>]) -> Vec<String> {
    let mut kinds: BTreeMap<ChannelKind, [usize; 3]> = BTreeMap::new();
    for (group, channels) in chosen.iter().zip(removed) {
        let [groups, of, cut] = kinds.entry(group.kind).or_default();
        *groups += 1;
        *of += group.channel_count;
        *cut += channels.len();
    }
    let text = |(kind, [groups, of, cut]): (&ChannelKind, &[usize; 3])| {
        let s = if *groups == 1 { "" } else { "s" };
        format!("{}: {cut} of {of} cut, in {groups} group{s}", kind.name())
    };
    kinds.iter().map(text).collect()
}

/// Reasons named, and weights named for each.
const REASONS_NAMED: usize = 8;

/// What forbids cuts, the most frequent first.
fn blocked(found: &ChannelGroups) -> Vec<String> {
    let mut by_reason: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (tensor, axis, reason) in &found.blocked {
        by_reason.entry(reason).or_default().push(format!("axis {axis} of `{tensor}`"));
    }
    let mut by_reason: Vec<_> = by_reason.into_iter().collect();
    by_reason.sort_by_key(|(_, axes)| std::cmp::Reverse(axes.len()));
    let text = |(reason, axes): &(&str, Vec<String>)| match axes.as_slice() {
        [only] => format!("{only} stays whole because of {reason}"),
        [first, rest @ ..] => {
            format!("{first} and {} more stay whole because of {reason}", rest.len())
        }
        [] => String::new(),
    };
    by_reason.iter().take(REASONS_NAMED).map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::testing::graph_from_text;

    fn plan(settings: &str, text: &str) -> Result<Plan, PassError> {
        let opsets = [(String::new(), 17)].into_iter().collect();
        let model = Model { graph: graph_from_text(text), opsets, ..Model::default() };
        let pass = crate::pass_entry("prune.channels").unwrap();
        let pass = pass.build(settings.parse().unwrap()).unwrap();
        let context = Context::new(&attar_runtime::Builtin);
        pass.plan(&model, &context)
    }

    const NETWORK: &str = "x: f32[n, 2]
        w = [1 0.1 3; 4 0.1 6]
        b = [1 2 3]
        v = [1 1; 1 1; 1 1]
        a = MatMul(x, w)
        c = Add(a, b)
        h = Relu(c)
        y = MatMul(h, v)";

    #[test]
    fn a_channel_goes_from_all_that_holds_it() {
        let plan = plan("sparsity = 0.4", NETWORK).unwrap();
        assert_eq!(plan.to_string(), "set w f32[2, 2]\nset b f32[2]\nset v f32[2, 2]\n");
        assert_eq!(plan.remarks[0], "columns: 1 of 3 cut, in 1 group");
    }

    #[test]
    fn a_table_of_sparsities_cuts_what_it_names() {
        assert!(plan("sparsity = { heads = 0.4 }", NETWORK).unwrap().is_empty());
        assert!(!plan("sparsity = { columns = 0.4 }", NETWORK).unwrap().is_empty());
    }

    #[test]
    fn sensitivities_say_which_group_gives_most() {
        let network = "x: f32[n, 2]
            w = [1 2 3 4; 4 3 2 1]
            v = [1 1 1 1; 2 2 2 2; 3 3 3 3; 4 4 4 4]
            u = [1 1; 2 2; 3 3; 4 4]
            a = MatMul(x, w)
            b = Relu(a)
            c = MatMul(b, v)
            d = Relu(c)
            y = MatMul(d, u)";
        let level = |sparsity: f64, error: f64| {
            let error = format!("{{ value = {error}, low = {error}, high = {error} }}");
            format!("{{ sparsity = {sparsity}, error = {error} }}")
        };
        let group = |name: &str, count: usize, errors: [f64; 2]| {
            let levels = [level(0.25, errors[0]), level(0.5, errors[1])].join(", ");
            format!(
                "{{ name = \"{name}\", kind = \"columns\", block = \"\", \
                 channel_count = {count}, levels = [{levels}] }}"
            )
        };
        let (fragile, robust) = (group("a", 4, [0.3, 0.6]), group("c", 4, [0.01, 0.02]));
        let found = |groups: &str| {
            plan(&format!("sparsity = 0.25\nsensitivity = {{ groups = [{groups}] }}"), network)
        };
        let plan = found(&format!("{fragile}, {robust}")).unwrap();
        assert_eq!(plan.to_string(), "set v f32[4, 2]\nset u f32[2, 2]\n");
        assert_eq!(plan.remarks[0], "columns: 2 of 8 cut, in 2 groups");
        let error = found(&format!("{fragile}, {}", group("c", 5, [0.0; 2]))).unwrap_err();
        let expected = "calibration data: the sensitivity of columns of `c` [4] is not in it";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_refit_without_data_is_an_error() {
        let error = plan("sparsity = 0.4\nridge = 0.01", NETWORK).unwrap_err();
        assert_eq!(error.to_string(), "it needs calibration data, and none was given");
    }
}
