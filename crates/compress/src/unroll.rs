//! Recurrent layers written as products and functions, step after step: for runtimes and hardware
//! that have no such layer, or none in integers.

mod activations;

use activations::{Activation, activations};
use attar_graph::{AttributeValue, Edit, Links, Model, Node, Plan};
use attar_ops::infer_graph;
use attar_tensor::{DType, Tensor};
use serde::Deserialize;

use crate::{Context, OptionEntry, Pass, PassError};

/// LSTM, GRU and RNN of a known number of steps become `MatMul`, `Add`, `Sigmoid` and their like.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Unroll {
    #[serde(default = "default_steps")]
    steps_max: usize,
}

fn default_steps() -> usize {
    64
}

pub(crate) const OPTIONS: &[OptionEntry] = &[OptionEntry {
    key: "steps_max",
    default: "64",
    help: "layers of more steps stay: every step is nodes of its own",
}];

impl Pass for Unroll {
    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        if model.opset() < 13 {
            return Err(PassError::Opset { found: model.opset(), needed: 13 });
        }
        let (links, facts) = (Links::new(&model.graph), infer_graph(model));
        let mut plan = Plan::default();
        let mut count = 0;
        for (index, node) in model.graph.nodes.iter().enumerate() {
            let is_layer = ["LSTM", "GRU", "RNN"].iter().any(|op| node.is(op));
            if !is_layer || context.exclude.matches(node.label()) {
                continue;
            }
            let steps =
                facts.get(&node.inputs[0]).and_then(|fact| fact.shape.as_ref()?.first()?.known());
            let made = match steps {
                None => Err("its number of steps is not known".to_string()),
                Some(steps) if steps < 1 || steps > self.steps_max as i64 => {
                    Err(format!("it has {steps} steps"))
                }
                Some(steps) => {
                    Layer::new(&links, node, steps as usize, model.opset()).map(Layer::unrolled)
                }
            };
            match made {
                Ok((nodes, constants)) => {
                    plan.push(Edit::RemoveNode { index });
                    let set = |(name, tensor)| Edit::SetInitializer { name, tensor };
                    plan.edits.extend(constants.into_iter().map(set));
                    plan.edits.extend(nodes.into_iter().map(|node| Edit::AddNode { node }));
                    count += 1;
                }
                Err(reason) => plan.remark(format!("`{}` stays a layer: {reason}", node.label())),
            }
        }
        if count > 0 {
            plan.remark(format!("{count} recurrent layers written as products, step by step"));
        }
        Ok(plan)
    }
}

/// A layer whose weights are known.
struct Layer<'a> {
    node: &'a Node,
    steps: usize,
    gates: usize,
    hidden: usize,
    /// W, R and the biases of each, by rows of gates, for every direction.
    weights: [&'a Tensor; 2],
    bias: Option<Vec<f32>>,
    reversed: Vec<bool>,
    activations: Vec<Activation>,
    clip: Option<f32>,
    couples: bool,
    resets_after: bool,
    /// Operator sets from 18 on have `num_outputs` of `Split`.
    opset: i64,
    /// Whether Y, the states of all steps, is read.
    shows_all: bool,
    nodes: Vec<Node>,
    constants: Vec<(String, Tensor)>,
}

impl<'a> Layer<'a> {
    /// What stands against it is the reason that is given.
    fn new(links: &Links<'a>, node: &'a Node, steps: usize, opset: i64) -> Result<Self, String> {
        let weight = |index: usize| {
            let name = node.input(index).unwrap_or("");
            let fits = |w: &&Tensor| w.dtype() == DType::F32 && w.rank() == 3;
            links.constant(name).filter(fits).ok_or("its weights are no f32 constants")
        };
        let weights = [weight(1)?, weight(2)?];
        let bias = match node.input(3) {
            None => None,
            Some(name) => {
                let bias = links.constant(name).ok_or("its biases are no constants")?;
                Some(bias.values::<f32>().into_owned())
            }
        };
        if node.input(4).is_some() {
            return Err("its sequences have lengths".into());
        }
        if node.input(7).is_some() {
            return Err("it has peepholes".into());
        }
        let bad = |error: &dyn std::fmt::Display| error.to_string();
        if node.int_or("layout", 0).map_err(|e| bad(&e))? != 0 {
            return Err("its batch comes first".into());
        }
        let gates = match node.op_type.as_str() {
            "LSTM" => 4,
            "GRU" => 3,
            _ => 1,
        };
        let hidden = weights[1].shape()[2];
        let reversed = match node.text("direction").map_err(|e| bad(&e))?.unwrap_or("forward") {
            "reverse" => vec![true],
            "bidirectional" => vec![false, true],
            _ => vec![false],
        };
        let fits = |w: &Tensor| w.shape()[..2] == [reversed.len(), gates * hidden];
        if !fits(weights[0]) || !fits(weights[1]) {
            return Err("its weights do not fit each other".into());
        }
        let clip = node.attribute("clip").map(|_| node.float_or("clip", 0.0)).transpose();
        Ok(Self {
            node,
            steps,
            gates,
            hidden,
            weights,
            bias,
            activations: activations(node, reversed.len())?,
            reversed,
            clip: clip.map_err(|e| bad(&e))?,
            couples: node.int_or("input_forget", 0).map_err(|e| bad(&e))? != 0,
            resets_after: node.int_or("linear_before_reset", 0).map_err(|e| bad(&e))? != 0,
            opset,
            shows_all: node.outputs.first().is_some_and(|y| links.is_read(y)),
            nodes: Vec::new(),
            constants: Vec::new(),
        })
    }

    /// The nodes, and the constants that they read.
    fn unrolled(mut self) -> (Vec<Node>, Vec<(String, Tensor)>) {
        let axis0 = self.constant("axis0", Tensor::new(&[1], &[0_i64]));
        let both = self.constant("axes01", Tensor::new(&[2], &[0_i64, 1]));
        let (mut all, mut last) = (Vec::new(), [Vec::new(), Vec::new()]);
        for direction in 0..self.reversed.len() {
            let projected = self.projected(direction, &axis0);
            let mut state = [5, 6].map(|input| self.initial(input, direction, &axis0));
            let mut outputs = vec![String::new(); self.steps];
            for step in 0..self.steps {
                let time = if self.reversed[direction] { self.steps - 1 - step } else { step };
                let at = format!("{direction}_{time}");
                state = self.step(direction, &at, &projected[time], state);
                if self.shows_all {
                    let h = state[0].clone().unwrap_or_default();
                    outputs[time] = self.op("Unsqueeze", &format!("{at}_output"), &[&h, &both]);
                }
            }
            if self.shows_all {
                let parts: Vec<&str> = outputs.iter().map(String::as_str).collect();
                all.push(self.joined(&format!("{direction}_all"), &parts, 0));
            }
            for (index, state) in state.into_iter().enumerate() {
                let Some(state) = state else { continue };
                let name = format!("{direction}_last{index}");
                last[index].push(self.op("Unsqueeze", &name, &[&state, &axis0]));
            }
        }
        let [last_h, last_c] = last;
        let results = [(all, 1), (last_h, 0), (last_c, 0)];
        for (index, (parts, axis)) in results.into_iter().enumerate() {
            let is_made = |name: &&String| !name.is_empty() && !parts.is_empty();
            let Some(output) = self.node.outputs.get(index).filter(is_made) else { continue };
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            let label = format!("{}/output{index}", self.node.label());
            self.nodes.push(if parts.len() == 1 {
                Node::new("Identity", &label, &parts, &[output])
            } else {
                let node = Node::new("Concat", &label, &parts, &[output]);
                node.with_attribute("axis", axis as i64)
            });
        }
        (self.nodes, self.constants)
    }

    /// The gates of every step before the state is added: x·Wᵀ + b, [batch, gates·hidden] each.
    fn projected(&mut self, direction: usize, axis0: &str) -> Vec<String> {
        let w = self.matrix(0, direction, 0, self.gates);
        let w = self.constant(&format!("{direction}_w"), w);
        let x = self.node.inputs[0].clone();
        // All rows at once, with the bias: what runtimes have in integers too.
        let depth = self.weights[0].shape()[2] as i64;
        let flat = self.constant("rows", Tensor::new(&[2], &[-1, depth]));
        let rows = self.op("Reshape", &format!("{direction}_rows"), &[&x, &flat]);
        let bias = self.bias_row(direction, true);
        let bias = bias.map(|bias| self.constant(&format!("{direction}_b"), bias));
        let inputs: Vec<&str> = [rows.as_str(), &w].into_iter().chain(bias.as_deref()).collect();
        let product = self.op("Gemm", &format!("{direction}_projected"), &inputs);
        let sizes = [self.steps as i64, -1, (self.gates * self.hidden) as i64];
        let steps = self.constant("steps", Tensor::new(&[3], &sizes));
        let sums = self.op("Reshape", &format!("{direction}_sums"), &[&product, &steps]);
        let parts = self.split(&format!("{direction}_steps"), &sums, self.steps, 0);
        let squeezed = |(time, part): (usize, String)| {
            self.op("Squeeze", &format!("{direction}_{time}_input"), &[&part, axis0])
        };
        parts.into_iter().enumerate().map(squeezed).collect()
    }

    /// Wᵀ or Rᵀ of some gates of a direction, [depth, gates·hidden].
    fn matrix(&self, which: usize, direction: usize, first: usize, count: usize) -> Tensor {
        let weight = self.weights[which];
        let depth = weight.shape()[2];
        let start = (direction * self.gates + first) * self.hidden;
        let rows = count * self.hidden;
        let values = weight.values::<f32>();
        let part = &values[start * depth..][..rows * depth];
        let turned: Vec<f32> = (0..part.len()).map(|i| part[i % rows * depth + i / rows]).collect();
        Tensor::new(&[depth, rows], &turned)
    }

    /// What is added to the sums of a direction before the state is known, or, with `early` false, what
    /// is reset with the product.
    fn bias_row(&self, direction: usize, early: bool) -> Option<Tensor> {
        let rows = self.gates * self.hidden;
        let own = &self.bias.as_ref()?[direction * 2 * rows..][..2 * rows];
        let is_late = |row: usize| self.gates == 3 && self.resets_after && row >= 2 * self.hidden;
        let value = |row: usize| match (early, is_late(row)) {
            (true, false) => own[row] + own[rows + row],
            (true, true) => own[row],
            (false, true) => own[rows + row],
            (false, false) => 0.0,
        };
        Some(Tensor::new(&[rows], &(0..rows).map(value).collect::<Vec<_>>()))
    }

    /// The state before the first step, [batch, hidden]; `None` for zeros.
    fn initial(&mut self, input: usize, direction: usize, axis0: &str) -> Option<String> {
        let name = self.node.input(input)?.to_string();
        let parts = self.split(&format!("{direction}_start{input}"), &name, self.reversed.len(), 0);
        let part = parts[direction].clone();
        Some(self.op("Squeeze", &format!("{direction}_before{input}"), &[&part, axis0]))
    }

    /// h and c after a step whose projected input is `x`.
    fn step(
        &mut self,
        direction: usize,
        at: &str,
        x: &str,
        [h, c]: [Option<String>; 2],
    ) -> [Option<String>; 2] {
        match self.gates {
            4 => self.lstm(direction, at, x, h.as_deref(), c.as_deref()),
            3 => [Some(self.gru(direction, at, x, h)), None],
            _ => {
                let sum = self.recurrent(direction, at, [0, 1], x, h.as_deref());
                [Some(self.gate(direction, 0, &format!("{at}_h"), &sum)), None]
            }
        }
    }

    /// `x` plus h·Rᵀ of some gates, from `first` on.
    fn recurrent(
        &mut self,
        direction: usize,
        at: &str,
        [first, count]: [usize; 2],
        x: &str,
        h: Option<&str>,
    ) -> String {
        let Some(h) = h else { return x.to_string() };
        let product = self.product(direction, at, [first, count], h, None);
        self.op("Add", &format!("{at}_sum{first}"), &[&product, x])
    }

    fn product(
        &mut self,
        direction: usize,
        at: &str,
        [first, count]: [usize; 2],
        h: &str,
        bias: Option<&str>,
    ) -> String {
        let name = format!("{direction}_r{first}");
        let r = match self.known(&name) {
            Some(known) => known,
            None => self.constant(&name, self.matrix(1, direction, first, count)),
        };
        let inputs: Vec<&str> = [h, &r].into_iter().chain(bias).collect();
        self.op("Gemm", &format!("{at}_recurrent{first}"), &inputs)
    }

    fn lstm(
        &mut self,
        direction: usize,
        at: &str,
        x: &str,
        h: Option<&str>,
        c: Option<&str>,
    ) -> [Option<String>; 2] {
        let sum = self.recurrent(direction, at, [0, 4], x, h);
        let gates = self.split(&format!("{at}_gates"), &sum, 4, 1);
        let i = self.gate(direction, 0, &format!("{at}_i"), &gates[0]);
        let o = self.gate(direction, 0, &format!("{at}_o"), &gates[1]);
        let f = if self.couples {
            let one = self.constant("one", Tensor::scalar(1.0_f32));
            self.op("Sub", &format!("{at}_f"), &[&one, &i])
        } else {
            self.gate(direction, 0, &format!("{at}_f"), &gates[2])
        };
        let g = self.gate(direction, 1, &format!("{at}_g"), &gates[3]);
        let entering = self.op("Mul", &format!("{at}_entering"), &[&i, &g]);
        let c = match c {
            None => entering,
            Some(c) => {
                let kept = self.op("Mul", &format!("{at}_kept"), &[&f, c]);
                self.op("Add", &format!("{at}_c"), &[&kept, &entering])
            }
        };
        let shown = self.activated(direction, 2, &format!("{at}_shown"), &c);
        let h = self.op("Mul", &format!("{at}_h"), &[&o, &shown]);
        [Some(h), Some(c)]
    }

    fn gru(&mut self, direction: usize, at: &str, x: &str, h: Option<String>) -> String {
        let named = |part: &str| format!("{at}_{part}");
        let inputs = self.split(&named("inputs"), x, 3, 1);
        // z and r of the state, and the third where it is reset after its product.
        let states = if self.resets_after {
            let bias = self.bias_row(direction, false);
            let bias = bias.map(|bias| self.constant(&format!("{direction}_late"), bias));
            match (&h, bias) {
                (None, None) => None,
                // Without a state, the bias alone: one row for all of the batch.
                (None, Some(bias)) => Some(self.split(&named("states"), &bias, 3, 0)),
                (Some(h), bias) => {
                    let sums = self.product(direction, at, [0, 3], h, bias.as_deref());
                    Some(self.split(&named("states"), &sums, 3, 1))
                }
            }
        } else {
            h.as_ref().map(|h| {
                let sums = self.product(direction, at, [0, 2], h, None);
                self.split(&named("states"), &sums, 2, 1)
            })
        };
        let mut gate = |letter: &str, gate: usize| {
            let sum = match &states {
                None => inputs[gate].clone(),
                Some(parts) => {
                    let name = named(&format!("{letter}_sum"));
                    self.op("Add", &name, &[&inputs[gate], &parts[gate]])
                }
            };
            self.gate(direction, 0, &named(letter), &sum)
        };
        let (z, r) = (gate("z", 0), gate("r", 1));
        let late = if self.resets_after {
            states.map(|parts| self.op("Mul", &named("reset"), &[&r, &parts[2]]))
        } else {
            h.as_ref().map(|h| {
                let reset = self.op("Mul", &named("reset"), &[&r, h]);
                self.product(direction, at, [2, 1], &reset, None)
            })
        };
        let sum = match late {
            None => inputs[2].clone(),
            Some(late) => self.op("Add", &named("n_sum"), &[&inputs[2], &late]),
        };
        let n = self.gate(direction, 1, &named("n"), &sum);
        // h′ = n + z·(h − n)
        match h {
            None => {
                let part = self.op("Mul", &named("part"), &[&z, &n]);
                self.op("Sub", &named("h"), &[&n, &part])
            }
            Some(h) => {
                let way = self.op("Sub", &named("way"), &[&h, &n]);
                let part = self.op("Mul", &named("part"), &[&z, &way]);
                self.op("Add", &named("h"), &[&n, &part])
            }
        }
    }

    /// Activation `index` of a direction on a sum, clipped.
    fn gate(&mut self, direction: usize, index: usize, name: &str, sum: &str) -> String {
        let Some(clip) = self.clip else { return self.activated(direction, index, name, sum) };
        let low = self.constant("clip_low", Tensor::scalar(-clip));
        let high = self.constant("clip_high", Tensor::scalar(clip));
        let clipped = self.op("Clip", &format!("{name}_clipped"), &[sum, &low, &high]);
        self.activated(direction, index, name, &clipped)
    }

    fn activated(&mut self, direction: usize, index: usize, name: &str, sum: &str) -> String {
        let of_one = self.activations.len() / self.reversed.len();
        let activation = self.activations[direction * of_one + index].clone();
        let output = self.op(activation.op_type, name, &[sum]);
        if let Some(node) = self.nodes.last_mut() {
            for (key, value) in [("alpha", activation.alpha), ("beta", activation.beta)] {
                if let Some(value) = value {
                    node.attributes.insert(key.into(), AttributeValue::from(value).into());
                }
            }
        }
        output
    }

    /// Equal parts of a value along an axis.
    fn split(&mut self, name: &str, value: &str, count: usize, axis: i64) -> Vec<String> {
        if count == 1 {
            return vec![value.to_string()];
        }
        let outputs: Vec<String> =
            (0..count).map(|part| format!("{}/{name}_{part}", self.node.label())).collect();
        let names: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let label = format!("{}/{name}", self.node.label());
        let mut node = Node::new("Split", &label, &[value], &names).with_attribute("axis", axis);
        if self.opset >= 18 {
            node = node.with_attribute("num_outputs", count as i64);
        }
        self.nodes.push(node);
        outputs
    }

    fn joined(&mut self, name: &str, parts: &[&str], axis: i64) -> String {
        if let [only] = parts {
            return (*only).to_string();
        }
        let output = self.op("Concat", name, parts);
        if let Some(node) = self.nodes.last_mut() {
            node.attributes.insert("axis".into(), AttributeValue::from(axis).into());
        }
        output
    }

    fn op(&mut self, op_type: &str, name: &str, inputs: &[&str]) -> String {
        let output = format!("{}/{name}", self.node.label());
        self.nodes.push(Node::new(op_type, &output, inputs, &[&output]));
        output
    }

    /// A constant of the layer, made once.
    fn constant(&mut self, name: &str, tensor: Tensor) -> String {
        self.known(name).unwrap_or_else(|| {
            let name = format!("{}/{name}", self.node.label());
            self.constants.push((name.clone(), tensor));
            name
        })
    }

    /// A constant that was made before.
    fn known(&self, name: &str) -> Option<String> {
        let name = format!("{}/{name}", self.node.label());
        self.constants.iter().any(|(known, _)| *known == name).then_some(name)
    }
}

#[cfg(test)]
mod tests;
