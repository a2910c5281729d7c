//! A recurrent layer's weights, packed, and one step with them.

use std::any::Any;

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use super::scan::{State, scan};
use super::{Activation, Layer, Settings, WeightSizes, shaped};
use crate::kernels::lanes::Real;
use crate::kernels::recurrent::{Panels, Projection, Rows};
use crate::kernels::recurrent_steps::{CandidateStep, GruStep, LstmStep, ResetStep, RnnStep, Step};
use crate::{Kernel, OpError, Pool, Run};

/// Inputs that are packed where they are constant: W, R, B and LSTM's P.
pub(super) const WEIGHTS: [usize; 4] = [1, 2, 3, 7];

/// Gates whose recurrent products are of one vector, in both of their matrices.
struct Part<T> {
    input: Panels<T>,
    recurrent: Panels<T>,
    /// What the projection adds, in the order of the panels.
    bias: Vec<T>,
}

/// The weights of one direction.
pub(super) struct Direction<T> {
    /// One, or two for a GRU that resets before its product: z and r, then the candidate.
    parts: Vec<Part<T>>,
    /// GRU that resets after: what its third product is added to, per padded unit.
    late_bias: Vec<T>,
    /// LSTM: what i, o and f see of c, per padded unit.
    peepholes: Option<[Vec<T>; 3]>,
}

/// One direction's weights in whatever form, and what a run does with them.
pub(super) trait Weights<T>: Send + Sync {
    /// What must be known of the whole input before any of it is projected.
    type Whole: Sync;

    /// Whether what an item of the batch gives is its own, so that the batch may be divided.
    const DIVIDES: bool;

    fn whole(x: &[T]) -> Self::Whole;

    /// Padded units: the stride between rows of a state.
    fn stride(&self) -> usize;

    /// Size of a row of projected inputs.
    fn width(&self) -> usize;

    /// Projects rows 0, 1, … of the inputs: x·Wᵀ + bias.
    fn project(&self, y: &mut [T], x: Rows<T>, rows: &[usize], whole: &Self::Whole, pool: &Pool);

    /// Writes the next state of the rows.
    fn step(&self, inputs: StepInputs<T>, state: &mut State<T>, pool: &Pool);
}

/// What a step is computed from beside the state.
#[derive(Clone, Copy)]
pub(super) struct StepInputs<'a, T> {
    pub(super) settings: &'a Settings,
    pub(super) activations: [Activation; 3],
    pub(super) projected: &'a [T],
    pub(super) rows: &'a [usize],
}

/// The weights of all directions.
pub(super) struct Prepared<D> {
    pub(super) sizes: WeightSizes,
    pub(super) directions: Vec<D>,
}

impl<T: Real> Prepared<Direction<T>> {
    /// Packs W, R, B and P.
    fn new(settings: &Settings, weights: [Option<&Tensor>; 4]) -> Result<Self, OpError> {
        let [w, r, b, p] = weights;
        let matrix = |index: usize, tensor: Option<&Tensor>| -> Result<Tensor, OpError> {
            let tensor = tensor.ok_or(OpError::MissingInput { index })?;
            if tensor.dtype() == T::DTYPE {
                return Ok(tensor.aligned());
            }
            Err(OpError::DType { index, found: tensor.dtype() })
        };
        let (w, r) = (matrix(1, w)?, matrix(2, r)?);
        let sizes = WeightSizes::new(settings, w.shape(), r.shape())?;
        let (directions, rows) = (sizes.directions, sizes.hidden * settings.layer.gates());
        let b = shaped(b, 3, T::DTYPE, &[directions, 2 * rows])?.map(Tensor::aligned);
        let p = shaped(p, 7, T::DTYPE, &[directions, 3 * sizes.hidden])?.map(Tensor::aligned);
        let parts = |tensor: &Tensor, direction: usize| {
            let size = tensor.element_count() / directions;
            tensor.slice::<T>()[direction * size..][..size].to_vec()
        };
        let directions = (0..directions).map(|direction| {
            let of = |tensor: &Option<Tensor>| tensor.as_ref().map(|all| parts(all, direction));
            let [b, p] = [of(&b), of(&p)];
            let (w, r) = (parts(&w, direction), parts(&r, direction));
            Direction::new(settings, &sizes, [&w, &r], b.as_deref(), p.as_deref())
        });
        Ok(Self { sizes, directions: directions.collect() })
    }
}

impl<T: Real> Direction<T> {
    fn new(
        settings: &Settings,
        sizes: &WeightSizes,
        [w, r]: [&[T]; 2],
        b: Option<&[T]>,
        p: Option<&[T]>,
    ) -> Self {
        let &WeightSizes { input, hidden, .. } = sizes;
        let gates = settings.layer.gates();
        let resets_after = settings.layer == Layer::Gru && settings.resets_after;
        let bias = |gate: usize, unit: usize| b.map_or(T::default(), |b| b[gate * hidden + unit]);
        let recurrent_bias = |gate: usize, unit: usize| bias(gates + gate, unit);
        let part = |first: usize, count: usize| {
            let pack = |matrix: &[T], depth: usize| {
                Panels::new([count, hidden, depth], |gate, unit, k| {
                    matrix[((first + gate) * hidden + unit) * depth + k]
                })
            };
            let input = pack(w, input);
            let bias = input.arranged(hidden, |gate, unit| {
                let gate = first + gate;
                if resets_after && gate == 2 {
                    return bias(gate, unit);
                }
                let sum = bias(gate, unit).to_f64() + recurrent_bias(gate, unit).to_f64();
                T::from_f64(sum)
            });
            Part { input, recurrent: pack(r, hidden), bias }
        };
        let parts = match settings.layer {
            Layer::Gru if !resets_after => vec![part(0, 2), part(2, 1)],
            _ => vec![part(0, gates)],
        };
        let stride = parts.iter().map(|part| part.recurrent.padded_units()).max().unwrap_or(0);
        let padded = |values: &dyn Fn(usize) -> T| -> Vec<T> {
            (0..stride)
                .map(|unit| if unit < hidden { values(unit) } else { T::default() })
                .collect()
        };
        let late_bias =
            if resets_after { padded(&|unit| recurrent_bias(2, unit)) } else { Vec::new() };
        let peepholes =
            p.map(|p| [0, 1, 2].map(|gate: usize| padded(&|unit| p[gate * hidden + unit])));
        Self { parts, late_bias, peepholes }
    }
}

impl<T: Real> Weights<T> for Direction<T> {
    type Whole = ();

    const DIVIDES: bool = true;

    fn whole(_: &[T]) {}

    fn stride(&self) -> usize {
        self.parts.iter().map(|part| part.recurrent.padded_units()).max().unwrap_or(0)
    }

    fn width(&self) -> usize {
        self.parts.iter().map(|part| part.input.width()).sum()
    }

    fn project(&self, y: &mut [T], x: Rows<T>, rows: &[usize], (): &(), _: &Pool) {
        let (width, mut offset) = (self.width(), 0);
        for part in &self.parts {
            let (panels, bias) = (&part.input, part.bias.as_slice());
            T::dispatch(Projection { panels, x, rows, bias, y, y_stride: width, offset });
            offset += panels.width();
        }
    }

    fn step(&self, inputs: StepInputs<T>, state: &mut State<T>, _: &Pool) {
        let StepInputs { settings, activations, projected, rows } = inputs;
        let State { h, next, extra } = state;
        let step = Step {
            projected: Rows { data: projected, stride: self.width() },
            h: Rows { data: h, stride: self.stride() },
            rows,
            clip: settings.clip.map(T::from_f64),
            activations,
        };
        let panels = &self.parts[0].recurrent;
        match (settings.layer, self.parts.get(1)) {
            (Layer::Rnn, _) => T::dispatch(RnnStep { step, panels, next }),
            (Layer::Lstm, _) => {
                let (peepholes, couples) = (self.peepholes.as_ref(), settings.couples);
                T::dispatch(LstmStep { step, panels, next, c: extra, peepholes, couples });
            }
            (Layer::Gru, None) => {
                T::dispatch(GruStep { step, panels, next, bias: &self.late_bias });
            }
            (Layer::Gru, Some(candidate)) => {
                let (z, reset) = extra.split_at_mut(next.len());
                T::dispatch(ResetStep { step, panels, z, reset });
                let column = self.parts[0].input.width();
                let panels = &candidate.recurrent;
                T::dispatch(CandidateStep { step, panels, column, z, reset, next });
            }
        }
    }
}

/// A node of a recurrent layer, ready to run.
struct RecurrentKernel {
    settings: Settings,
    /// The weights that are constant, in the order of [`WEIGHTS`].
    constants: [Option<Tensor>; 4],
    /// [`Prepared`] of the weights' type, where all of them are constant.
    prepared: Option<Box<dyn Any + Send + Sync>>,
}

pub(super) fn kernel(
    node: &Node,
    constants: &[Option<&Tensor>],
    layer: Layer,
) -> Result<Box<dyn Kernel>, OpError> {
    let settings = Settings::new(node, layer)?;
    let constant = |index: usize| constants.get(index).copied().flatten();
    let weights = WEIGHTS.map(constant);
    let is_known = |index: &usize| constant(*index).is_some() || node.input(*index).is_none();
    let prepared: Option<Box<dyn Any + Send + Sync>> = match constant(1).map(Tensor::dtype) {
        Some(DType::F32) if WEIGHTS.iter().all(is_known) => {
            Some(Box::new(Prepared::<Direction<f32>>::new(&settings, weights)?))
        }
        Some(DType::F64) if WEIGHTS.iter().all(is_known) => {
            Some(Box::new(Prepared::<Direction<f64>>::new(&settings, weights)?))
        }
        _ => None,
    };
    let constants = match &prepared {
        Some(_) => [None, None, None, None],
        None => weights.map(Option::<&Tensor>::cloned),
    };
    Ok(Box::new(RecurrentKernel { settings, constants, prepared }))
}

impl Kernel for RecurrentKernel {
    fn run(&self, run: &mut Run) -> Result<Vec<Tensor>, OpError> {
        match run.input(0)?.dtype() {
            DType::F32 => self.typed::<f32>(run),
            DType::F64 => self.typed::<f64>(run),
            found => Err(OpError::DType { index: 0, found }),
        }
    }
}

impl RecurrentKernel {
    fn typed<T: Real>(&self, run: &Run) -> Result<Vec<Tensor>, OpError> {
        if let Some(prepared) = &self.prepared {
            let prepared = prepared.downcast_ref::<Prepared<Direction<T>>>();
            // The weights are of another type than the input.
            let prepared = prepared.ok_or(OpError::DType { index: 0, found: T::DTYPE })?;
            return scan(run, &self.settings, prepared);
        }
        let mut weights = [None; 4];
        for (position, &index) in WEIGHTS.iter().enumerate() {
            weights[position] = self.constants[position].as_ref().or(run.optional(index));
        }
        scan(run, &self.settings, &Prepared::<Direction<T>>::new(&self.settings, weights)?)
    }
}
