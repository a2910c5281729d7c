//! Recurrent layers: RNN, GRU, LSTM (opset 7 and later, `layout` from 14) and their shared parts.
//!
//! X is [steps, batch, input size], or [batch, steps, input size] with `layout` 1; W and R hold a
//! row per gate and unit, for each direction.

mod activation;
mod cell;
pub(crate) mod fixed;
mod gru;
mod lstm;
mod quantized;
mod rnn;
mod scan;
#[cfg(test)]
mod tests;
mod training;

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

pub(crate) use activation::Activation;
pub use fixed::has_bounded_state;
pub(crate) use fixed::{QUANTIZED_GRU, QUANTIZED_LSTM, QUANTIZED_RNN};
pub(crate) use gru::Gru;
pub(crate) use lstm::Lstm;
pub(crate) use quantized::DynamicQuantizeLstm;
pub(crate) use rnn::Rnn;

use crate::channels::{Channels, Place, Port, Tensors, input};
use crate::{Fact, OpError, required};

/// Which of the three layers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layer {
    Rnn,
    Gru,
    Lstm,
}

impl Layer {
    fn gates(self) -> usize {
        match self {
            Self::Rnn => 1,
            Self::Gru => 3,
            Self::Lstm => 4,
        }
    }

    fn default_activations(self) -> &'static [Activation] {
        match self {
            Self::Rnn => &[Activation::Tanh],
            Self::Gru => &[Activation::Sigmoid, Activation::Tanh],
            Self::Lstm => &[Activation::Sigmoid, Activation::Tanh, Activation::Tanh],
        }
    }
}

/// A hidden unit has a row for each gate in W, R and the biases, a column of R, and its place in the
/// states and outputs, of every direction.
fn unit_channels(tensors: &Tensors) -> Option<Channels> {
    let unit = input(2, 2);
    let size = tensors.size(unit)?;
    let mut channels = Channels::default();
    channels.tie(tensors, input(0, 2), input(1, 2));
    // W, R, B and P: gate after gate.
    for index in [1, 2, 3, 7] {
        if tensors.rank(Port::Input(index)).is_some() {
            channels.tie_factor(input(index, 1), unit, [1, size, 1]);
        }
    }
    for (port, axis) in [
        (Port::Input(5), 2),
        (Port::Input(6), 2),
        (Port::Output(0), 3),
        (Port::Output(1), 2),
        (Port::Output(2), 2),
    ] {
        if tensors.rank(port).is_some() {
            channels.tie(tensors, crate::channels::Axis { port, axis }, unit);
        }
    }
    channels.held(tensors, Place::Attribute("hidden_size"), unit);
    Some(channels)
}

/// What the attributes say.
#[derive(Clone, Debug)]
struct Settings {
    layer: Layer,
    /// For each direction, whether it goes from the end to the start.
    reversed: Vec<bool>,
    /// Of each direction, one after the other.
    activations: Vec<Activation>,
    clip: Option<f64>,
    hidden: Option<usize>,
    batch_first: bool,
    /// LSTM: f = 1 − i.
    couples: bool,
    /// GRU: the reset gate comes after the recurrent product.
    resets_after: bool,
    /// Outputs that something reads.
    wanted: Vec<bool>,
}

impl Settings {
    fn new(node: &Node, layer: Layer) -> Result<Self, OpError> {
        let reversed = match node.text("direction")?.unwrap_or("forward") {
            "forward" => vec![false],
            "reverse" => vec![true],
            "bidirectional" => vec![false, true],
            other => {
                let expected = "forward, reverse or bidirectional";
                return Err(OpError::value("direction", other, expected));
            }
        };
        let hidden = match node.int("hidden_size")? {
            None => None,
            Some(size) => Some(
                usize::try_from(size)
                    .ok()
                    .filter(|&size| size > 0)
                    .ok_or_else(|| OpError::value("hidden_size", size, "at least 1"))?,
            ),
        };
        let layout = node.int_or("layout", 0)?;
        if !(0..=1).contains(&layout) {
            return Err(OpError::value("layout", layout, "0 or 1"));
        }
        let clip = node.attribute("clip").map(|_| node.float_or("clip", 0.0)).transpose()?;
        if clip.is_some_and(|clip| clip.is_nan() || clip < 0.0) {
            return Err(OpError::value("clip", clip, "at least 0"));
        }
        Ok(Self {
            layer,
            activations: activation::activations(
                node,
                layer.default_activations(),
                reversed.len(),
            )?,
            reversed,
            clip: clip.map(f64::from),
            hidden,
            batch_first: layout == 1,
            couples: node.int_or("input_forget", 0)? != 0,
            resets_after: node.int_or("linear_before_reset", 0)? != 0,
            wanted: node.outputs.iter().map(|name| !name.is_empty()).collect(),
        })
    }

    fn directions(&self) -> usize {
        self.reversed.len()
    }

    fn activations_of(&self, direction: usize) -> [Activation; 3] {
        let count = self.layer.default_activations().len();
        let own = &self.activations[direction * count..][..count];
        std::array::from_fn(|index| own.get(index).copied().unwrap_or(Activation::Tanh))
    }

    fn is_wanted(&self, output: usize) -> bool {
        self.wanted.get(output).copied().unwrap_or(false)
    }
}

/// Sizes of one run, once every input was found to fit.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    steps: usize,
    batch: usize,
    input: usize,
    hidden: usize,
    directions: usize,
    batch_first: bool,
}

impl Sizes {
    /// Of an input of shape `x`.
    fn new(x: &[usize], settings: &Settings, weights: &WeightSizes) -> Result<Self, OpError> {
        let &[outer, inner, input] = x else {
            return Err(OpError::value("the input's shape", x, "three sizes"));
        };
        let [steps, batch] = if settings.batch_first { [inner, outer] } else { [outer, inner] };
        if input != weights.input {
            return Err(OpError::shapes(x, &[weights.directions, weights.input]));
        }
        let sizes = Self {
            steps,
            batch,
            input,
            hidden: weights.hidden,
            directions: weights.directions,
            batch_first: settings.batch_first,
        };
        let outputs = [steps, sizes.directions, batch, sizes.hidden];
        if attar_tensor::element_count(&outputs).is_none() {
            return Err(OpError::value("the output's shape", outputs, "one that is addressable"));
        }
        Ok(sizes)
    }

    fn output_shape(&self) -> [usize; 4] {
        let Self { steps, batch, hidden, directions, .. } = *self;
        if self.batch_first {
            [batch, steps, directions, hidden]
        } else {
            [steps, directions, batch, hidden]
        }
    }

    fn state_shape(&self) -> [usize; 3] {
        let Self { batch, hidden, directions, .. } = *self;
        if self.batch_first { [batch, directions, hidden] } else { [directions, batch, hidden] }
    }

    /// Where the state of a direction and batch item starts.
    fn state_at(&self, direction: usize, item: usize) -> usize {
        let row = if self.batch_first {
            item * self.directions + direction
        } else {
            direction * self.batch + item
        };
        row * self.hidden
    }
}

/// Sizes that W and R have.
#[derive(Clone, Copy, Debug, PartialEq)]
struct WeightSizes {
    directions: usize,
    input: usize,
    hidden: usize,
}

impl WeightSizes {
    /// Of W [directions, gates·hidden, input] and R [directions, gates·hidden, hidden].
    fn new(settings: &Settings, w: &[usize], r: &[usize]) -> Result<Self, OpError> {
        let error = || OpError::shapes(w, r);
        let (&[directions, rows, input], &[directions_r, rows_r, hidden]) = (w, r) else {
            return Err(error());
        };
        let fits = directions == settings.directions()
            && directions_r == directions
            && rows == rows_r
            && hidden.checked_mul(settings.layer.gates()) == Some(rows)
            && input > 0
            && hidden > 0;
        if !fits {
            return Err(error());
        }
        if let Some(declared) = settings.hidden
            && declared != hidden
        {
            let expected = format!("{hidden}, which R has");
            return Err(OpError::value("hidden_size", declared, expected));
        }
        Ok(Self { directions, input, hidden })
    }
}

/// An optional input, once its shape is the expected one.
fn shaped<'a>(
    tensor: Option<&'a Tensor>,
    index: usize,
    dtype: DType,
    shape: &[usize],
) -> Result<Option<&'a Tensor>, OpError> {
    let Some(tensor) = tensor else { return Ok(None) };
    if tensor.dtype() != dtype {
        return Err(OpError::DType { index, found: tensor.dtype() });
    }
    if tensor.shape() != shape {
        let what = format!("the shape of input {index}");
        return Err(OpError::value(&what, tensor.shape(), format!("{shape:?}")));
    }
    Ok(Some(tensor))
}

/// How many steps of each batch item there are, by the input that says so.
fn lengths(tensor: Option<&Tensor>, sizes: &Sizes) -> Result<Vec<usize>, OpError> {
    let Some(tensor) = shaped(tensor, 4, DType::I32, &[sizes.batch])? else {
        return Ok(vec![sizes.steps; sizes.batch]);
    };
    let length = |&value: &i32| {
        let length = usize::try_from(value).ok().filter(|&length| length <= sizes.steps);
        let expected = || format!("0 to {}", sizes.steps);
        length.ok_or_else(|| OpError::value("a sequence length", value, expected()))
    };
    tensor.slice::<i32>().iter().map(length).collect()
}

/// The last axis of R.
fn hidden_dim(inputs: &[Option<&Fact>]) -> Dim {
    let shape = inputs.get(2).copied().flatten().and_then(|r| r.shape.as_ref());
    shape.and_then(|shape| shape.get(2).cloned()).unwrap_or(Dim::Unknown)
}

fn infer(node: &Node, inputs: &[Option<&Fact>], layer: Layer) -> Result<Vec<Fact>, OpError> {
    infer_sized(node, inputs, layer, hidden_dim(inputs))
}

/// The facts of all outputs, `hidden` being what R says.
fn infer_sized(
    node: &Node,
    inputs: &[Option<&Fact>],
    layer: Layer,
    hidden: Dim,
) -> Result<Vec<Fact>, OpError> {
    let settings = Settings::new(node, layer)?;
    let x = required(inputs, 0)?;
    let (outer, inner) = match x.shape.as_deref() {
        None => (Dim::Unknown, Dim::Unknown),
        Some([outer, inner, _]) => (outer.clone(), inner.clone()),
        Some(other) => return Err(OpError::value("the input's rank", other.len(), "3")),
    };
    let hidden = settings.hidden.map_or(hidden, Dim::from);
    let directions = Dim::from(settings.directions());
    let (output, state) = if settings.batch_first {
        let state = vec![outer.clone(), directions.clone(), hidden.clone()];
        (vec![outer, inner, directions, hidden], state)
    } else {
        let state = vec![directions.clone(), inner.clone(), hidden.clone()];
        (vec![outer, directions, inner, hidden], state)
    };
    let mut facts = vec![Fact::new(x.dtype, output), Fact::new(x.dtype, state.clone())];
    facts.extend((layer == Layer::Lstm).then(|| Fact::new(x.dtype, state)));
    Ok(facts)
}

/// Products of every step: gates·hidden·(input + hidden), for each direction and batch item.
fn macs(node: &Node, inputs: &[Option<&Fact>], layer: Layer, hidden: &Dim) -> Dim {
    let Ok(settings) = Settings::new(node, layer) else { return Dim::Unknown };
    let x = inputs.first().copied().flatten().and_then(|x| x.shape.as_deref());
    let Some([outer, inner, input]) = x else { return Dim::Unknown };
    let rows = &Dim::from(layer.gates() * settings.directions()) * hidden;
    &(outer * inner) * &(&(input + hidden) * &rows)
}
