//! Channels of what convolutions hand on, brought to one range by factors in the weights around.
//!
//! A value has one grid for all its channels: where one is a hundred times another, the other has few
//! levels. Its producers' outputs are divided by s, its readers' weights multiplied: the function stays,
//! since f(x / s) = f(x) / s for s > 0 and what may stand between: `Relu`, pooling, sums of values that
//! are divided alike, and `Clip` from 0 where what is expected of a channel stays below its end. As
//! SmoothQuant, but for nothing while the model runs.
//!
//! A channel alone is known less well than all together: the largest of n values with tails that fall
//! like e⁻ˣ grows with ln n, so that a channel seen n times is expected to reach ln 10⁶ / ln n times what
//! was seen of it, though not beyond all others. Below a few thousand nothing is changed: a voice detector
//! whose channels were made alike by what a few seconds of one voice showed was off twice as far with
//! another.

use std::collections::BTreeMap;

use attar_graph::{Edit, Graph, Links, Model, Node, Plan, apply};
use attar_tensor::{DType, Tensor};

use super::{Scaled, side};
use crate::quantize::calibrate::{Fold, observe};
use crate::quantize::smooth::{Reader, by_input, divisors_within};
use crate::quantize::statistics::{ChannelAxis, Statistics};
use crate::{Context, PassError};

/// Values of a channel below which its own ends say too little.
const COUNT_MIN: usize = 4096;
/// Values of a channel after which its ends are taken for known.
const KNOWN_COUNT: f32 = 1e6;
/// Room that is left at least between what was seen of a channel and the end of a `Clip`.
const ROOM_MIN: f32 = 1.25;
/// Predicted squared error that may remain for a set to be changed: what gains little loses as much where
/// other data goes beyond what was seen.
const REMAINS_MAX: f64 = 0.7;

/// The model with channels of one range.
pub(crate) struct Equalized {
    pub(crate) model: Model,
    /// What makes it of the original: constants alone.
    pub(crate) edits: Vec<Edit>,
    /// How many sets of values were changed.
    pub(crate) count: usize,
}

/// Equalizes all channels where the outputs are predicted to gain by it, for weights of levels up to
/// `level_max`. `None` where nothing is to be done.
///
/// # Errors
/// As [`observe`].
pub(crate) fn equalize_ranges(
    model: &Model,
    context: &Context,
    level_max: i8,
) -> Result<Option<Equalized>, PassError> {
    let links = Links::new(&model.graph);
    let sets = Sets::find(&model.graph, &links, context).whole();
    if sets.is_empty() {
        return Ok(None);
    }
    let values = sets.iter().flat_map(|set| &set.values);
    let statistics = || Statistics::new(ChannelAxis::Second, Vec::new());
    let mut seen: BTreeMap<String, Statistics> =
        values.map(|value| ((*value).to_string(), statistics())).collect();
    observe(model, &mut seen, context)?;
    let (mut scaled, mut count) = (Scaled::default(), 0);
    for set in &sets {
        count += usize::from(set.equalize(&model.graph, &links, &seen, &mut scaled, level_max));
    }
    if count == 0 {
        return Ok(None);
    }
    let edits = scaled.edits();
    let mut changed = model.clone();
    apply(&mut changed.graph, &Plan { edits: edits.clone(), ..Plan::default() })?;
    Ok(Some(Equalized { model: changed, edits, count }))
}

impl Fold for Statistics {
    fn fold(&mut self, tensor: &Tensor) -> bool {
        Self::fold(self, tensor)
    }
}

/// Values whose channels can only be divided alike.
#[derive(Default)]
struct Set<'a> {
    values: Vec<&'a str>,
    /// Convolutions, by index.
    producers: Vec<usize>,
    readers: Vec<usize>,
    /// Values that are cut off at an end.
    ends: Vec<(&'a str, f32)>,
    /// Whether something else makes or reads a value.
    is_open: bool,
}

/// All sets of a graph, joined as they are found.
#[derive(Default)]
struct Sets<'a> {
    sets: Vec<Set<'a>>,
    /// The set of each value; where sets were joined, the first that has values counts.
    of: BTreeMap<&'a str, usize>,
}

impl<'a> Sets<'a> {
    fn find(graph: &'a Graph, links: &Links<'a>, context: &Context) -> Self {
        let mut sets = Self::default();
        for (index, node) in graph.nodes.iter().enumerate() {
            sets.add(index, node, links, context);
        }
        for output in &graph.outputs {
            sets.open(&output.name);
        }
        sets
    }

    /// Those that are made and read by convolutions alone.
    fn whole(self) -> Vec<Set<'a>> {
        let is_whole = |set: &Set| !set.is_open && !set.readers.is_empty();
        self.sets.into_iter().filter(|set| !set.values.is_empty() && is_whole(set)).collect()
    }

    fn add(&mut self, index: usize, node: &'a Node, links: &Links<'a>, context: &Context) {
        let source = node.input(0).and_then(|input| self.of.get(input).copied());
        if node.is("Conv") && side(links, context, node).is_some() {
            match source {
                Some(set) if channels_of_reader(links, node).is_some() => {
                    self.sets[set].readers.push(index);
                }
                _ => self.open(&node.inputs[0]),
            }
            if node.input(2).is_none_or(|bias| is_own(links, bias)) {
                self.of.insert(&node.outputs[0], self.sets.len());
                let (values, producers) = (vec![node.outputs[0].as_str()], vec![index]);
                self.sets.push(Set { values, producers, ..Set::default() });
            }
            return;
        }
        let end = end_of(links, node);
        let joined: &[String] = match &*node.op_type {
            "Add" if node.is("Add") => &node.inputs,
            "Relu" | "LeakyRelu" | "MaxPool" | "AveragePool" | "GlobalAveragePool" | "Identity"
                if node.domain.is_empty() && node.outputs.len() == 1 =>
            {
                &node.inputs
            }
            "Clip" if end.is_some() => &node.inputs[..1],
            _ => return self.open_all(node),
        };
        let sources: Option<Vec<usize>> =
            joined.iter().map(|input| self.of.get(input.as_str()).copied()).collect();
        let Some(sources) = sources else { return self.open_all(node) };
        let set = sources[1..].iter().fold(sources[0], |set, &other| self.join(set, other));
        let output = node.outputs[0].as_str();
        self.of.insert(output, set);
        self.sets[set].values.push(output);
        if let Some(end) = end.filter(|end| end.is_finite()) {
            self.sets[set].ends.push((output, end));
        }
    }

    fn join(&mut self, a: usize, b: usize) -> usize {
        if a != b {
            let other = std::mem::take(&mut self.sets[b]);
            other.values.iter().for_each(|value| *self.of.entry(value).or_default() = a);
            let set = &mut self.sets[a];
            set.values.extend(other.values);
            set.producers.extend(other.producers);
            set.readers.extend(other.readers);
            set.ends.extend(other.ends);
            set.is_open |= other.is_open;
        }
        a
    }

    fn open(&mut self, value: &str) {
        if let Some(&set) = self.of.get(value) {
            self.sets[set].is_open = true;
        }
    }

    fn open_all(&mut self, node: &Node) {
        node.inputs.iter().for_each(|input| self.open(input));
        for body in node.subgraphs() {
            attar_graph::captured_names(body).into_iter().for_each(|name| self.open(name));
        }
    }
}

fn is_own(links: &Links, bias: &str) -> bool {
    links.constant(bias).is_some() && links.only_use(bias).is_some()
}

/// The end of a `Clip` from 0, infinity where it has none.
fn end_of(links: &Links, node: &Node) -> Option<f32> {
    if !node.is("Clip") {
        return None;
    }
    let bound = |input: usize, none: f32| match node.input(input) {
        None => Some(none),
        Some(name) => {
            let bound = links.constant(name).filter(|bound| bound.dtype() == DType::F32)?;
            bound.values::<f32>().first().copied()
        }
    };
    let [low, high] = [bound(1, f32::NEG_INFINITY)?, bound(2, f32::INFINITY)?];
    (low == 0.0 && high > 0.0).then_some(high)
}

/// Channels that a convolution reads, and its groups: one, or one for each channel.
fn channels_of_reader(links: &Links, node: &Node) -> Option<[usize; 2]> {
    let shape = links.constant(node.input(1)?)?.shape();
    let groups = usize::try_from(node.int_or("group", 1).ok()?).ok()?;
    let channels = shape[1] * groups;
    (groups == 1 || groups == channels).then_some([channels, groups])
}

impl Set<'_> {
    /// Divides the channels if that is predicted to pay.
    fn equalize(
        &self,
        graph: &Graph,
        links: &Links,
        seen: &BTreeMap<String, Statistics>,
        scaled: &mut Scaled,
        level_max: i8,
    ) -> bool {
        let Some(mut together) = self.together(graph, links, seen) else { return false };
        let counts = self.values.iter().map(|value| seen[*value].count);
        let count = counts.min().unwrap_or(0);
        if count < COUNT_MIN {
            return false;
        }
        let room = (KNOWN_COUNT.ln() / (count as f32).ln()).max(1.0);
        together.widen(room);
        let channels = together.low.len();
        let readers: Option<Vec<_>> = self
            .readers
            .iter()
            .map(|&index| rows(links, &graph.nodes[index], channels, scaled))
            .collect();
        let Some(rows) = readers else { return false };
        let readers: Vec<Reader> =
            rows.iter().map(|(outputs, w)| Reader { w, outputs: *outputs }).collect();
        let ends: Vec<f32> = (0..channels).map(|channel| self.least(seen, channel, room)).collect();
        let is_cut = !self.ends.is_empty();
        // A channel that reaches the end of its Clip keeps it.
        let fit = |divisors: Vec<f32>| {
            if !is_cut {
                return divisors;
            }
            let largest = divisors.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
            let within = divisors.iter().zip(&ends);
            within.map(|(s, least)| (s / largest).clamp(*least, 1.0)).collect()
        };
        let found = divisors_within(&together, &readers, f32::from(level_max), &fit, REMAINS_MAX);
        let Some(divisors) = found else { return false };
        for &index in &self.producers {
            scaled.divide_outputs(links, &graph.nodes[index], &divisors);
        }
        for &index in &self.readers {
            scaled.multiply_inputs(links, &graph.nodes[index], &divisors);
        }
        true
    }

    /// The least divisor with which a channel stays below the end of every `Clip`.
    fn least(&self, seen: &BTreeMap<String, Statistics>, channel: usize, room: f32) -> f32 {
        let room = room.max(ROOM_MIN);
        let least = |(value, end): &(&str, f32)| room * seen[*value].high[channel] / end;
        self.ends.iter().map(least).fold(f32::MIN_POSITIVE, f32::max).min(1.0)
    }

    /// What was seen of all values that have a grid, channel by channel; `None` where they differ in
    /// channels.
    fn together(
        &self,
        graph: &Graph,
        links: &Links,
        seen: &BTreeMap<String, Statistics>,
    ) -> Option<Statistics> {
        let producer = links.constant(graph.nodes[*self.producers.first()?].input(1)?)?;
        let channels = producer.shape()[0];
        let mut all: Option<Statistics> = None;
        for value in &self.values {
            let found = &seen[*value];
            if found.low.len() != channels {
                return None;
            }
            // Runtimes quantize behind an activation, not before it.
            let mut uses = links.uses(value).iter().map(|each| &graph.nodes[each.node]);
            if uses.all(|node| node.is("Relu") || node.is("LeakyRelu") || node.is("Clip")) {
                continue;
            }
            match &mut all {
                None => all = Some(found.clone()),
                Some(all) => all.join(found),
            }
        }
        all
    }
}

/// The weights of a reader, those of an input channel in a row, and their count.
fn rows(links: &Links, node: &Node, channels: usize, scaled: &Scaled) -> Option<(usize, Vec<f32>)> {
    let [found, groups] = channels_of_reader(links, node)?;
    let name = node.input(1)?;
    let weight = links.constant(name)?;
    if found != channels {
        return None;
    }
    let w = scaled.values(name, weight);
    // With a group for each channel, the outputs of a channel stand after each other.
    Some(if groups > 1 { (w.len() / channels, w) } else { by_input(&w, weight.shape()) })
}

#[cfg(test)]
mod tests {
    use attar_graph::Value;
    use attar_graph::testing::graph_from_text;
    use attar_runtime::{Builtin, RunOptions, Runtime};

    use super::*;
    use crate::Calibration;

    /// So many.
    struct Images(usize);

    /// Of nine pixels each, behind the pool, more than enough.
    const ENOUGH: usize = COUNT_MIN / 4;

    fn image(seed: usize) -> Tensor {
        let value = |i: usize| ((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0;
        Tensor::new(&[1, 3, 4, 4], &(0..48).map(value).collect::<Vec<f32>>())
    }

    impl Calibration for Images {
        fn for_each_batch(
            &self,
            _: &[Value],
            visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
        ) -> Result<(), PassError> {
            (0..self.0).try_for_each(|seed| visit(&[("x", &image(seed))]))
        }
    }

    /// A model of these nodes; outputs of the convolutions of `large` have one channel a hundred times
    /// the others.
    fn model(text: &str, large: &[&str]) -> Model {
        let mut graph = graph_from_text(text);
        for node in graph.nodes.clone() {
            if !node.is("Conv") {
                continue;
            }
            let name = &node.inputs[1];
            let shape = match name.as_str() {
                "depthwise" => [4, 1, 1, 1],
                "last" => [2, 4, 1, 1],
                "first" | "beside" => [4, 3, 1, 1],
                _ => [4, 4, 1, 1],
            };
            let count: usize = shape.iter().product();
            let per_output = count / shape[0];
            let w = |i: usize| {
                let is_large = large.contains(&name.as_str()) && i / per_output == 1;
                ((i * 29 + name.len() * 13) % 17 + 1) as f32 / 17.0
                    * if is_large { 100.0 } else { 1.0 }
            };
            let w: Vec<f32> = (0..count).map(w).collect();
            graph.set_initializer(name, Tensor::new(&shape, &w));
            if let Some(bias) = node.input(2) {
                graph.set_initializer(bias, Tensor::new(&[4], &[0.1_f32, 0.2, -0.3, 0.0]));
            }
        }
        for (name, value) in [("zero", 0.0_f32), ("six", 6.0)] {
            if graph.nodes.iter().any(|node| node.inputs.iter().any(|input| input == name)) {
                graph.set_initializer(name, Tensor::scalar(value));
            }
        }
        let constants = graph.initializers.clone();
        graph.inputs.retain(|input| !constants.contains_key(&input.name));
        let opsets = [(String::new(), 17)].into_iter().collect();
        Model { ir_version: 8, opsets, graph, ..Model::default() }
    }

    fn equalized(model: &Model) -> Option<Equalized> {
        equalized_by(model, ENOUGH)
    }

    fn equalized_by(model: &Model, images: usize) -> Option<Equalized> {
        let images = Images(images);
        let context = Context { calibration: Some(&images), ..Context::new(&Builtin) };
        equalize_ranges(model, &context, 127).unwrap()
    }

    /// Values of y, and the largest of each channel of `observed`.
    fn run(model: &Model, observed: &str, seed: usize) -> (Vec<f32>, Vec<f32>) {
        let options = RunOptions { observed: vec![observed.into()], ..RunOptions::default() };
        let mut session = Builtin.load(model, &options).unwrap();
        let mut largest = Vec::new();
        let y = session.observe(&[("x", &image(seed))], &mut |name, tensor| {
            if name == observed {
                let planes = tensor.slice::<f32>().chunks_exact(tensor.element_count() / 4);
                let most = |plane: &[f32]| plane.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                largest = planes.map(most).collect();
            }
        });
        (y.unwrap()[0].slice::<f32>().to_vec(), largest)
    }

    fn assert_same(original: &Model, changed: &Model) {
        for seed in 0..4 {
            let (expected, found) = (run(original, "a", seed).0, run(changed, "a", seed).0);
            for (a, b) in expected.iter().zip(&found) {
                assert!((a - b).abs() <= 1e-4 * a.abs().max(1.0), "{a} {b}");
            }
        }
    }

    const CHAIN: &str = "x: f32[1, 3, 4, 4]\na = Conv(x, first, b)\nc = Conv(a, next)\nd = Add(a, c)\n\
                         p = MaxPool(d, kernel_shape=2,2)\ny = Conv(p, last)";

    #[test]
    fn values_that_are_added_up_get_one_range_and_the_function_stays() {
        let original = model(CHAIN, &["first", "next"]);
        let found = equalized(&original).unwrap();
        assert_eq!(found.count, 1);
        assert_same(&original, &found.model);
        for value in ["a", "c", "d", "p"] {
            let spread = |model: &Model| {
                let largest = run(model, value, 0).1;
                largest.iter().fold(0.0_f32, |m, x| m.max(*x))
                    / largest.iter().fold(f32::INFINITY, |m, x| m.min(*x))
            };
            let (before, after) = (spread(&original), spread(&found.model));
            assert!(before > 50.0 && after < before / 5.0, "{value}: {before} {after}");
        }
        let mut changed = original.clone();
        let edits = found.edits;
        apply(&mut changed.graph, &Plan { edits, ..Plan::default() }).unwrap();
        assert_eq!(changed, found.model);
    }

    #[test]
    fn a_channel_that_reaches_the_end_of_its_clip_keeps_it() {
        let text = "x: f32[1, 3, 4, 4]\ne = Conv(x, first, b)\na = Clip(e, zero, six)\n\
                    f = Conv(a, depthwise, group=4)\ng = Clip(f, zero, six)\ny = Conv(g, last)";
        let original = model(text, &["first"]);
        let found = equalized(&original).unwrap();
        assert_same(&original, &found.model);
        let (before, after) = (run(&original, "a", 0).1, run(&found.model, "a", 0).1);
        assert_eq!((before[1], after[1]), (6.0, 6.0));
        let others = || before.iter().zip(&after).filter(|(before, _)| **before < 6.0);
        let within =
            |(before, after): (&f32, &f32)| *after > 0.99 * before && *after < 6.0 / ROOM_MIN;
        assert!(others().count() == 3 && others().all(within), "{before:?} {after:?}");
        assert!(
            others().filter(|(before, after)| **after > 1.5 * **before).count() >= 2,
            "{after:?}"
        );
    }

    #[test]
    fn what_was_seldom_seen_is_left_alone() {
        assert!(equalized_by(&model(CHAIN, &["first", "next"]), ENOUGH / 3).is_none());
    }

    #[test]
    fn what_others_make_or_read_stays() {
        let same =
            |text: &str| assert!(equalized(&model(text, &["first", "next"])).is_none(), "{text}");
        // An output of the model, a function that is not homogeneous, a value that no convolution makes.
        same(&format!("{CHAIN}\nz = Neg(d)"));
        same("x: f32[1, 3, 4, 4]\na = Conv(x, first)\ns = Sigmoid(a)\ny = Conv(s, last)");
        same(
            "x: f32[1, 3, 4, 4]\na = Conv(x, first)\nr = Neg(a)\nd = Add(a, r)\ny = Conv(d, last)",
        );
        // Channels that are alike gain nothing.
        assert!(equalized(&model(CHAIN, &[])).is_none());
    }
}
