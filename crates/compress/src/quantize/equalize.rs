//! Cross-layer equalization (Nagel et al., "Data-free quantization through weight equalization and
//! bias correction", 2019): between two products, channels are scaled so that their weights have
//! equal ranges on both sides. The function stays the same: f(s·x) = s·f(x) for s > 0 and what
//! stands between them, which is nothing, Relu or `LeakyRelu`.

mod ranges;

use std::collections::BTreeMap;

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_tensor::Tensor;
use serde::Deserialize;

use super::nodes::{Weight, weight_of};
use crate::{Context, Pass, PassError};
pub(crate) use ranges::equalize_ranges;

/// Scales channels between a product and the next.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Equalize {}

/// How far one round of the pass may scale a channel, which keeps weights far from the ends of f32.
const FACTOR_MAX: f32 = 1e4;
/// Pairs whose factors are all nearer to 1 are left as they are.
const CHANGE_MIN: f32 = 0.05;

impl Pass for Equalize {
    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        let links = Links::new(&model.graph);
        let (mut plan, mut scaled) = (Plan::default(), Scaled::default());
        // A product takes part in one pair a round: its weights are then as they were read.
        let mut taken = vec![false; model.graph.nodes.len()];
        for (index, node) in model.graph.nodes.iter().enumerate() {
            let Some(first) = side(&links, context, node) else { continue };
            let Some((next_index, next)) = next_product(&links, node) else { continue };
            let Some(second) = side(&links, context, next) else { continue };
            if taken[index] || taken[next_index] || !node.is("Conv") || !next.is("Conv") {
                continue;
            }
            let Some(factors) = factors(&links, node, &first, next, &second)? else { continue };
            taken[index] = true;
            taken[next_index] = true;
            scaled.divide_outputs(&links, node, &factors);
            scaled.multiply_inputs(&links, next, &factors);
        }
        plan.edits = scaled.edits();
        let pairs = taken.iter().filter(|taken| **taken).count() / 2;
        if pairs > 0 {
            plan.remark(format!("{pairs} pairs of convolutions equalized"));
        }
        Ok(plan)
    }

    fn repeats(&self) -> bool {
        true
    }
}

/// The weight of a node that may be changed: it is not excluded, and nothing else reads it.
fn side<'a>(links: &Links<'a>, context: &Context, node: &'a Node) -> Option<Weight<'a>> {
    let weight = weight_of(links, node)?;
    let is_excluded = context.exclude.matches(node.label()) || context.exclude.matches(weight.name);
    (!is_excluded && links.only_use(weight.name).is_some()).then_some(weight)
}

/// The only reader of the node's output, behind a positively homogeneous activation.
fn next_product<'a>(links: &Links<'a>, node: &'a Node) -> Option<(usize, &'a Node)> {
    let (index, next) = links.only_use(&node.outputs[0])?;
    let (index, next) = if next.is("Relu") || next.is("LeakyRelu") {
        links.only_use(&next.outputs[0])?
    } else {
        (index, next)
    };
    (next.input(0).is_some_and(|input| links.producer(input).is_some())).then_some((index, next))
}

/// s of each channel between the two: √(r₁·r₂) / r₂, so that r₁ / s = r₂·s, with r the largest
/// weight on either side. `None` where all are near 1, or the two do not meet.
fn factors(
    links: &Links,
    node: &Node,
    first: &Weight,
    next: &Node,
    second: &Weight,
) -> Result<Option<Vec<f32>>, PassError> {
    let channels = first.tensor.shape()[0];
    let groups = next.int_or("group", 1).unwrap_or(1).max(1) as usize;
    let is_own = |bias: &str| links.constant(bias).is_some() && links.only_use(bias).is_some();
    if second.tensor.shape()[1] * groups != channels || !node.input(2).is_none_or(is_own) {
        return Ok(None);
    }
    for weight in [first, second] {
        if weight.tensor.values::<f32>().iter().any(|w| !w.is_finite()) {
            return Err(PassError::WeightNotFinite { tensor: weight.name.into() });
        }
    }
    let largest =
        |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, |m: f32, w| m.max(w.abs()));
    let w = first.tensor.values::<f32>();
    let kernel = w.len() / channels.max(1);
    let outgoing: Vec<f32> =
        w.chunks_exact(kernel).map(|channel| largest(&mut channel.iter().copied())).collect();
    let mut incoming = vec![0.0_f32; channels];
    for (index, w) in second.tensor.values::<f32>().iter().enumerate() {
        let input = input_channel(second, groups, index);
        incoming[input] = incoming[input].max(w.abs());
    }
    let factor = |(&r1, &r2): (&f32, &f32)| {
        let is_used = r1 > f32::MIN_POSITIVE && r2 > f32::MIN_POSITIVE;
        if is_used { (r1 / r2).sqrt().clamp(1.0 / FACTOR_MAX, FACTOR_MAX) } else { 1.0 }
    };
    let factors: Vec<f32> = outgoing.iter().zip(&incoming).map(factor).collect();
    let is_changed = factors.iter().any(|s| (s - 1.0).abs() > CHANGE_MIN);
    Ok(is_changed.then_some(factors))
}

/// The input channel that the `index`-th value of [outputs, inputs / groups, …] meets.
fn input_channel(weight: &Weight, groups: usize, index: usize) -> usize {
    let shape = weight.tensor.shape();
    let kernel: usize = shape[2..].iter().product();
    let (output, input) = (index / kernel / shape[1], index / kernel % shape[1]);
    output / (shape[0] / groups).max(1) * shape[1] + input
}

/// Constants with scaled channels, by name; what is not here is as it was.
#[derive(Default)]
struct Scaled(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Scaled {
    fn values(&self, name: &str, tensor: &Tensor) -> Vec<f32> {
        self.0
            .get(name)
            .map_or_else(|| tensor.values::<f32>().into_owned(), |(_, values)| values.clone())
    }

    fn change(&mut self, links: &Links, name: Option<&str>, change: impl Fn(usize, &mut f32)) {
        let Some((name, tensor)) = name.and_then(|name| Some((name, links.constant(name)?))) else {
            return;
        };
        let (_, values) = self
            .0
            .entry(name.to_string())
            .or_insert_with(|| (tensor.shape().to_vec(), tensor.values::<f32>().into_owned()));
        values.iter_mut().enumerate().for_each(|(index, value)| change(index, value));
    }

    /// Divides what each output channel of a convolution gives.
    fn divide_outputs(&mut self, links: &Links, node: &Node, factors: &[f32]) {
        let Some(weight) = weight_of(links, node) else { return };
        let kernel = weight.tensor.element_count() / factors.len().max(1);
        self.change(links, Some(weight.name), |index, w| *w /= factors[index / kernel]);
        self.change(links, node.input(2), |index, bias| *bias /= factors[index]);
    }

    /// Multiplies the weights that meet each input channel of a convolution.
    fn multiply_inputs(&mut self, links: &Links, node: &Node, factors: &[f32]) {
        let Some(weight) = weight_of(links, node) else { return };
        let groups = node.int_or("group", 1).unwrap_or(1).max(1) as usize;
        let factor = |index: usize| factors[input_channel(&weight, groups, index)];
        self.change(links, Some(weight.name), |index, w| *w *= factor(index));
    }

    fn edits(self) -> Vec<Edit> {
        let edit = |(name, (shape, values)): (String, (Vec<usize>, Vec<f32>))| {
            Edit::SetInitializer { name, tensor: Tensor::new(&shape, &values) }
        };
        self.0.into_iter().map(edit).collect()
    }
}

#[cfg(test)]
mod tests {
    use attar_graph::apply;
    use attar_graph::testing::graph_from_text;
    use attar_runtime::{Builtin, RunOptions, Runtime};

    use super::*;

    fn model() -> Model {
        let text = "x: f32[1, 2, 3, 3]\nw = [0]\nb = [3 -1]\nv = [0]\na = Conv(x, w, b)\n\
                    r = Relu(a)\ny = Conv(r, v)";
        let opsets = [(String::new(), 17)].into_iter().collect();
        let mut model =
            Model { ir_version: 8, opsets, graph: graph_from_text(text), ..Model::default() };
        let graph = &mut model.graph;
        graph.set_initializer("w", Tensor::new(&[2, 2, 1, 1], &[100.0_f32, -50.0, 0.5, 1.0]));
        graph.set_initializer("v", Tensor::new(&[1, 2, 1, 1], &[0.01_f32, 4.0]));
        model
    }

    fn equalized(model: &Model) -> Model {
        let mut model = model.clone();
        let context = Context::new(&Builtin);
        let plan = Equalize {}.plan(&model, &context).unwrap();
        apply(&mut model.graph, &plan).unwrap();
        assert!(Equalize {}.plan(&model, &context).unwrap().is_empty(), "it is done in one round");
        model
    }

    #[test]
    fn channels_have_equal_ranges_on_both_sides_and_the_function_stays() {
        let original = model();
        let result = equalized(&original);
        let values = |name: &str| result.graph.constant(name).unwrap().values::<f32>().into_owned();
        let (w, v) = (values("w"), values("v"));
        let near = |a: f32, b: f32| (a / b - 1.0).abs() < 1e-5;
        assert!(near(w[0].abs(), v[0].abs()) && near(w[3].abs(), v[1].abs()), "{w:?} {v:?}");
        let run = |model: &Model| {
            let x: Vec<f32> = (0..18).map(|i| i as f32 / 9.0 - 1.0).collect();
            let x = Tensor::new(&[1, 2, 3, 3], &x);
            let mut session = Builtin.load(model, &RunOptions::default()).unwrap();
            session.run(&[("x", &x)]).unwrap()[0].values::<f32>().into_owned()
        };
        // Factors are no powers of two: each weight is rounded once more.
        let pairs = run(&original).into_iter().zip(run(&result));
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs().max(1.0)));
    }

    #[test]
    fn what_reads_a_value_in_between_keeps_it() {
        let mut original = model();
        original.graph.outputs.push(attar_graph::Value::tensor(
            "r",
            attar_tensor::DType::F32,
            Vec::new(),
        ));
        assert_eq!(equalized(&original).graph, original.graph);
    }
}
