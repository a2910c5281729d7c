//! The values that are to be quantized: what calibration saw of each, and what follows from it.

use std::collections::BTreeMap;

use attar_graph::{Graph, Links, Model, NamePatterns, Node};

use super::calibrate::{Fold, observe};
use super::gram::Gram;
use super::importance::statistics_for;
use super::nodes::{ActivationRange, Weight, weight_of};
use super::observer::{Chosen, Observer, Seen};
use super::placement::Placement;
use super::product::{ScaleGrid, matrix_of};
use super::smooth::{Reader, Smooth, by_input, divisors};
use super::statistics::{ChannelAxis, Statistics};
use crate::parallel::each_in_order;
use crate::{Context, PassError};

/// One value, its record and its grid.
pub(crate) struct Site {
    pub(crate) statistics: Statistics,
    /// Moments of its channels, where a matrix product reads it and they were asked for.
    pub(crate) gram: Option<Vec<f32>>,
    pub(crate) gram_rows: usize,
    /// What each channel is divided by before it is rounded.
    pub(crate) divisors: Option<Vec<f32>>,
    pub(crate) chosen: Chosen,
}

/// Every site, by the name of its value.
#[derive(Default)]
pub(crate) struct Calibrated {
    pub(crate) sites: BTreeMap<String, Site>,
    pub(crate) batch_count: usize,
}

/// What to find out.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) observer: Observer,
    pub(crate) smooth: Smooth,
    pub(crate) moments: bool,
    pub(crate) level_max: i8,
    pub(crate) grid: ScaleGrid,
    /// Ends of values, by patterns of their names: of several, the first.
    pub(crate) ranges: &'a [(NamePatterns, [f32; 2])],
}

/// Channels of a value beyond which its moments would take more memory and time than they are worth:
/// both grow with the square, while rounded weights are a small part of a product's error.
const MOMENTS_CHANNELS_MAX: usize = 1024;

struct Record {
    statistics: Statistics,
    gram: Option<Gram>,
}

impl Fold for Record {
    fn fold(&mut self, tensor: &attar_tensor::Tensor) -> bool {
        let is_finite = self.statistics.fold(tensor);
        if let Some(gram) = self.gram.as_mut().filter(|_| is_finite) {
            gram.fold(tensor);
        }
        is_finite
    }
}

/// Calibrates every value of a placement; those that must have one range take that of their source.
/// The range of a value whose channels are divided is that of the quotients.
///
/// # Errors
/// As [`observe`].
pub(crate) fn sites(
    model: &Model,
    links: &Links,
    placement: &Placement,
    wanted: Wanted,
    context: &Context,
) -> Result<Calibrated, PassError> {
    let graph = &model.graph;
    let mut records: BTreeMap<String, Record> = BTreeMap::new();
    for (value, readers) in &placement.readers {
        let mut statistics = statistics_for(graph, links, readers);
        // What follows a convolution in integers is not to be made float for a multiplication.
        let may_be_divided = wanted.smooth != Smooth::Off
            && !placement.images.contains(value)
            && weights_of(graph, links, readers).is_some();
        if may_be_divided {
            statistics = statistics.with_sample();
        }
        let is_matrix = readers.iter().any(|&(index, input)| {
            input == 0
                && matrix_of(links, &graph.nodes[index])
                    .is_some_and(|(shape, _)| shape[0] <= MOMENTS_CHANNELS_MAX)
        });
        let gram = (wanted.moments && is_matrix).then(|| Gram::new(statistics.axis()));
        records.insert(value.clone(), Record { statistics, gram });
    }
    let batch_count = observe(model, &mut records, context)?;
    let found: Vec<(String, Record)> = records.into_iter().collect();
    let grids = each_in_order(&found, context.threads, |(value, record)| {
        let readers = &placement.readers[value];
        let level_max = placement.level_max(value);
        let choose = |seen: &Statistics| chosen(seen, value, level_max, wanted);
        let plain = choose(&record.statistics)?;
        let smooth = smoothing(graph, links, readers, &record.statistics, wanted.level_max);
        Some(with_least_error(plain, smooth, choose, wanted.smooth))
    });
    let mut sites = BTreeMap::new();
    for ((value, mut record), grid) in found.into_iter().zip(grids) {
        let Some((chosen, divisors)) = grid else { continue };
        record.statistics.drop_sample();
        let (gram_rows, gram) = match record.gram {
            Some(gram) if gram.size > 0 => (gram.rows, Some(gram.finish())),
            _ => (0, None),
        };
        let statistics = record.statistics;
        sites.insert(value, Site { statistics, gram, gram_rows, divisors, chosen });
    }
    for (value, source) in &placement.shared {
        let range = sites.get(source).map(|site| site.chosen.range);
        if let (Some(site), Some(range)) = (sites.get_mut(value), range) {
            site.chosen.range = range;
        }
    }
    Ok(Calibrated { sites, batch_count })
}

/// The grid of a value as it is, or divided where enough of the error goes by that.
fn with_least_error(
    plain: Chosen,
    smooth: Option<(Vec<f32>, Statistics)>,
    choose: impl Fn(&Statistics) -> Option<Chosen>,
    setting: Smooth,
) -> (Chosen, Option<Vec<f32>>) {
    let Some((divisors, divided)) = smooth else { return (plain, None) };
    // Clipping may have done what dividing promised.
    let remains_max = match divided.axis() {
        ChannelAxis::Last => setting.remains_max(),
        ChannelAxis::Second => Smooth::Auto.remains_max(),
    };
    match choose(&divided) {
        Some(chosen) if chosen.relative_error < remains_max * plain.relative_error => {
            (chosen, Some(divisors))
        }
        _ => (plain, None),
    }
}

/// The range of a value: the one that is given, or the observer's.
fn chosen(statistics: &Statistics, value: &str, level_max: u16, wanted: Wanted) -> Option<Chosen> {
    let seen = Seen::new(statistics, level_max)?;
    let given = wanted.ranges.iter().find(|(patterns, _)| patterns.matches(value));
    let chosen = match given {
        Some((_, [low, high])) => seen.judge(ActivationRange::new(*low, *high, level_max), "given"),
        None => seen.choose(wanted.observer.0),
    };
    let range = chosen.range.fitted(|scale| wanted.grid.fit(scale));
    Some(if range == chosen.range { chosen } else { seen.judge(range, chosen.observer) })
}

/// The weights of all readers, if those can be multiplied by what channels are divided by.
fn weights_of<'a>(
    graph: &'a Graph,
    links: &Links<'a>,
    readers: &[(usize, usize)],
) -> Option<Vec<(&'a Node, Weight<'a>)>> {
    let of = |&(index, input): &(usize, usize)| {
        let node = &graph.nodes[index];
        let weight = weight_of(links, node).filter(|_| input == 0)?;
        // Weights that another product reads too cannot be scaled for this one.
        links.only_use(weight.name)?;
        Some((node, weight))
    };
    readers.iter().map(of).collect()
}

/// What to divide the channels by, and what is then seen; `None` where nothing is gained.
fn smoothing(
    graph: &Graph,
    links: &Links,
    readers: &[(usize, usize)],
    seen: &Statistics,
    level_max: i8,
) -> Option<(Vec<f32>, Statistics)> {
    if !seen.has_sample() {
        return None;
    }
    let mut matrices = Vec::new();
    for (node, weight) in weights_of(graph, links, readers)? {
        matrices.push(match seen.axis() {
            ChannelAxis::Last => matrix_of(links, node).map(|([_, outputs], w)| (outputs, w))?,
            ChannelAxis::Second if node.is("Conv") && node.int_or("group", 1) == Ok(1) => {
                by_input(&weight.tensor.values::<f32>(), weight.tensor.shape())
            }
            ChannelAxis::Second => return None,
        });
    }
    let readers: Vec<Reader> =
        matrices.iter().map(|(outputs, w)| Reader { w, outputs: *outputs }).collect();
    let divisors = divisors(seen, &readers, f32::from(level_max))?;
    let divided = seen.divided(&divisors);
    Some((divisors, divided))
}
