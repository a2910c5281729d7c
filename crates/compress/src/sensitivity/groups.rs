//! What the products that read a group of channels lose, at each fraction of the channels cut.
//!
//! A channel that is cut is as good as weights of zero in all that reads it. So the error comes from
//! rows kept of each product, as for a tensor: ‖X·E‖ / ‖X·W‖, where E are the weights that meet the
//! channels that go. Where several products read a group, the root of their mean square counts.

use std::collections::{BTreeMap, BTreeSet};

use attar_graph::{Graph, Model, apply};
use attar_ops::fold_constants;
use attar_tensor::Tensor;

use super::predict::{Probe, block_of, observe_rows, wrong};
use super::{
    Estimate, GroupSensitivity, Level, LevelSensitivity, Measured, Sensitivity, SensitivityOptions,
    ratio,
};
use crate::importance::{Importance, Scoring};
use crate::layout::readings;
use crate::moments::{Product, RowSample, products};
use crate::prune::{channel_scores, least_first, prunable};
use crate::{ChannelGroup, ChannelGroups, Context, Cut, PassError};

/// Finds out what cutting the channels of each group by itself does: those of least importance,
/// which is added up over a channel. `measure` is handed the model that is really cut, at the
/// fractions that are to be measured.
///
/// # Errors
/// No data, an importance or a fraction that there is not, or what `measure` returns.
pub fn group_sensitivity<E: From<PassError>>(
    model: &Model,
    context: &Context,
    options: &SensitivityOptions,
    measure: &mut dyn FnMut(&Model, [usize; 2]) -> Result<Measured, E>,
) -> Result<Sensitivity, E> {
    let importance = Importance::try_from(options.importance.clone()).map_err(wrong)?;
    let fractions = options.fractions()?;
    let model = &folded(model)?;
    let found = ChannelGroups::find(model, &context.exclude);
    let products = products(model, &prunable(model, context)?);
    let reads: Vec<Vec<Read>> =
        found.groups.iter().map(|group| reads(&model.graph, &products, group)).collect();
    let samples = samples(model, context, &products, &reads)?;
    let names: Vec<String> = products.iter().map(|product| product.name.clone()).collect();
    let scoring = Scoring { model, names: &names, context, seed: options.seed };
    let groups: Vec<&ChannelGroup> = found.groups.iter().collect();
    let scores = channel_scores(model, context, &groups, importance, options.seed)?;
    let orders = scores.iter().map(|scores| least_first(scores));
    let total = reads.iter().filter(|reads| !reads.is_empty()).count() * options.measured.len();
    let mut done = 0;
    let mut result = Sensitivity::default();
    for ((group, reads), order) in found.groups.iter().zip(&reads).zip(orders) {
        let readers: Vec<Reader> = reads.iter().map(|read| read.with(&scoring, &samples)).collect();
        let mut levels = Vec::new();
        let looked_at = fractions.iter().zip(&options.sparsities);
        for (fraction, &sparsity) in looked_at.filter(|_| !readers.is_empty()) {
            let count = fraction.of(group.channel_count).min(group.channel_count - 1);
            let gone = &order[..count];
            let mut measured = Measured::default();
            if options.measured.contains(&sparsity) {
                measured = measure(&without(model, &found, group, gone)?, [done, total])?;
                done += 1;
            }
            let error = error(group, &readers, gone, options.seed);
            let Measured { output_error, metric } = measured;
            let level = Level::Sparsity(sparsity);
            levels.push(LevelSensitivity { level, error, output_error, metric });
        }
        result.groups.push(GroupSensitivity {
            name: group.name.clone(),
            kind: group.kind,
            block: block_of(&group.name),
            channel_count: group.channel_count,
            levels,
        });
    }
    Ok(result)
}

/// The model that groups are found in: as `prune.channels` prepares it.
fn folded(model: &Model) -> Result<Model, PassError> {
    let mut folded = model.clone();
    apply(&mut folded.graph, &fold_constants(model, true))?;
    Ok(folded)
}

/// A product that reads channels of a group.
struct Read<'a> {
    index: usize,
    product: &'a Product,
    /// The axis of the weight that meets the channels, and which of the group's axes that is.
    input_axis: usize,
    group_axis: usize,
}

/// A product with the rows kept of it.
struct Reader<'a> {
    read: &'a Read<'a>,
    tensor: &'a Tensor,
    probe: Probe<'a>,
}

impl<'a> Read<'a> {
    fn with(
        &'a self,
        scoring: &Scoring<'a>,
        samples: &'a BTreeMap<usize, RowSample>,
    ) -> Reader<'a> {
        let tensor = scoring.tensor(self.index);
        Reader {
            read: self,
            tensor,
            probe: Probe::new(self.product, tensor, &samples[&self.index]),
        }
    }
}

fn reads<'a>(graph: &Graph, products: &'a [Product], group: &ChannelGroup) -> Vec<Read<'a>> {
    let mut found = Vec::new();
    for (index, product) in products.iter().enumerate() {
        let of_weight = |axis: &&crate::GroupAxis| axis.is_constant && axis.tensor == product.name;
        if !group.axes.iter().any(|axis| of_weight(&axis)) {
            continue;
        }
        let Some(readings) = readings(graph, &product.name) else { continue };
        let input_axis = readings[0].layout.input_axis;
        let place = group.axes.iter().position(|axis| of_weight(&axis) && axis.axis == input_axis);
        if let Some(group_axis) = place {
            found.push(Read { index, product, input_axis, group_axis });
        }
    }
    found
}

/// Rows of every product that reads a group, in one pass over the data.
fn samples(
    model: &Model,
    context: &Context,
    products: &[Product],
    reads: &[Vec<Read>],
) -> Result<BTreeMap<usize, RowSample>, PassError> {
    let read: BTreeSet<usize> = reads.iter().flatten().map(|read| read.index).collect();
    let read: Vec<(usize, &Product)> =
        read.into_iter().map(|index| (index, &products[index])).collect();
    observe_rows(model, context, &read)
}

/// What the products lose together, with its interval; each counts by what it is off of itself.
fn error(group: &ChannelGroup, readers: &[Reader], gone: &[usize], seed: u64) -> Estimate {
    let mut batches: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for Reader { read, tensor, probe } in readers {
        let axis = &group.axes[read.group_axis];
        let indices: BTreeSet<u32> = gone.iter().flat_map(|&c| axis.of(c).to_vec()).collect();
        let of_batches = probe.lost(&zeroed(tensor, read.input_axis, &indices));
        let total: f64 = of_batches.iter().map(|(_, _, power)| power).sum();
        for (batch, lost, power) in of_batches.into_iter().filter(|_| total > 0.0) {
            let sums = batches.entry(batch).or_default();
            *sums = (sums.0 + lost / total, sums.1 + power / total);
        }
    }
    ratio(&batches.into_values().collect::<Vec<_>>(), seed)
}

/// The tensor with zeros at these indices of an axis.
fn zeroed(tensor: &Tensor, axis: usize, indices: &BTreeSet<u32>) -> Tensor {
    let shape = tensor.shape();
    let (size, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
    let mut values = tensor.values::<f32>().into_owned();
    for (index, part) in values.chunks_exact_mut(inner.max(1)).enumerate() {
        if indices.contains(&((index % size) as u32)) {
            part.fill(0.0);
        }
    }
    Tensor::new(shape, &values)
}

/// The model without these channels.
fn without(
    model: &Model,
    found: &ChannelGroups,
    group: &ChannelGroup,
    gone: &[usize],
) -> Result<Model, PassError> {
    let mut model = model.clone();
    let mut cut = Cut::default();
    cut.remove(group, gone.iter().copied());
    if !cut.is_empty() {
        let plan = found.edits(&model, &cut, &BTreeMap::new())?;
        apply(&mut model.graph, &plan)?;
    }
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Feeds, drawn, model, outputs};
    use super::*;
    use crate::ChannelKind;
    use attar_runtime::Builtin;

    fn found(model: &Model, feeds: &Feeds, importance: &str) -> (Sensitivity, Vec<f64>) {
        let context = Context { calibration: Some(feeds), ..Context::new(&Builtin) };
        let options = SensitivityOptions {
            importance: importance.into(),
            sparsities: vec![0.25, 0.5, 1.0],
            measured: vec![0.25, 0.5],
            seed: 1,
        };
        let wanted = outputs(model, feeds);
        let mut errors = Vec::new();
        let mut measure = |cut: &Model, _: [usize; 2]| {
            let sums = wanted.iter().zip(outputs(cut, feeds)).fold((0.0, 0.0), |sums, (a, b)| {
                (sums.0 + f64::from(a - b).powi(2), sums.1 + f64::from(*a).powi(2))
            });
            errors.push((sums.0 / sums.1).sqrt());
            Ok::<_, PassError>(Measured::default())
        };
        let found = group_sensitivity(model, &context, &options, &mut measure).unwrap();
        (found, errors)
    }

    #[test]
    fn what_is_predicted_of_the_last_product_is_what_the_cut_model_does() {
        let cases = [
            (
                "x: f32[n, 4]\nh = MatMul(x, w)\nr = Relu(h)\ny = MatMul(r, v)",
                vec![("w", vec![4, 8]), ("v", vec![8, 3])],
                vec![3, 4],
                ChannelKind::Columns,
            ),
            (
                "x: f32[n, 2, 4, 4]\nh = Conv(x, w)\nr = Relu(h)\ny = Conv(r, v, pads=1 1 1 1)",
                vec![("w", vec![8, 2, 1, 1]), ("v", vec![3, 8, 3, 3])],
                // As many places as rows are kept of a batch.
                vec![1, 2, 4, 4],
                ChannelKind::Conv,
            ),
        ];
        for (text, weights, shape, kind) in cases {
            let model = model(text, &weights);
            let feeds = Feeds((0..12).map(|seed| drawn(seed, &shape)).collect());
            for importance in ["l2", "activation", "taylor2"] {
                let (found, errors) = found(&model, &feeds, importance);
                let [group] = found.groups.as_slice() else { panic!("{found:?}") };
                assert_eq!((group.kind, group.channel_count), (kind, 8));
                let levels = &group.levels;
                for (level, measured) in levels.iter().zip(&errors) {
                    assert!((level.error.value - measured).abs() < 1e-5, "{levels:?} {errors:?}");
                    assert!(level.error.low < level.error.value);
                    assert!(level.error.high > level.error.value);
                }
                assert!(levels[0].error.value < levels[1].error.value);
                // One channel stays.
                assert!(levels[2].error.value < 1.0);
            }
        }
    }

    #[test]
    fn products_that_read_the_same_channels_count_alike() {
        let weights = [("w", vec![4, 8]), ("v", vec![8, 3]), ("u", vec![8, 3])];
        let feeds = Feeds((0..12).map(|seed| drawn(seed, &[3, 4])).collect());
        let error = |ends: &str| {
            let text = format!("x: f32[n, 4]\nh = MatMul(x, w)\nr = Relu(h)\n{ends}");
            let mut model = model(&text, &weights);
            // Channels of rising importance, alike in what reads them.
            let values: Vec<f32> = (0..32_u16).map(|at| f32::from(at % 8 + 1).powi(2)).collect();
            model.graph.set_initializer("w", Tensor::new(&[4, 8], &values));
            for name in ["v", "u"] {
                let Some(tensor) = model.graph.constant(name) else { continue };
                let signs: Vec<f32> = tensor.values::<f32>().iter().map(|x| x.signum()).collect();
                model.graph.set_initializer(name, Tensor::new(&[8, 3], &signs));
            }
            found(&model, &feeds, "l1").0.groups[0].levels[1].error.value
        };
        let (v, u) = (error("y = MatMul(r, v)"), error("y = MatMul(r, u)"));
        let both = error("a = MatMul(r, v)\nb = MatMul(r, u)\ny = Add(a, b)");
        let expected = (0.5 * (v * v + u * u)).sqrt();
        assert!((v - u).abs() > 1e-3 && (both - expected).abs() < 1e-6, "{v} {u} {both}");
    }

    #[test]
    fn a_group_that_no_product_reads_has_no_levels() {
        let model = model(
            "x: f32[n, 2, 5, 5]\nh = Conv(x, w)\nr = Relu(h)\ny = ConvTranspose(r, v)",
            &[("w", vec![8, 2, 1, 1]), ("v", vec![8, 3, 2, 2])],
        );
        let feeds = Feeds(vec![drawn(1, &[2, 2, 5, 5])]);
        let (found, _) = found(&model, &feeds, "l1");
        assert_eq!(found.groups.len(), 1);
        assert!(found.groups[0].levels.is_empty());
    }
}
