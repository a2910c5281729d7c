//! The forward run, and its repetition segment by segment.

use attar_ops::{DataRun, Datum, Forward, OpError, Pool, Run};
use attar_tensor::{DType, Tensor};

use super::finite::Watch;
use super::{Recording, Source, Step, StepContext, StepKernel, Tape};
use crate::TrainError;

impl Tape {
    /// Runs the graph on one tensor per input, with the variables' present contents. Feeds of half
    /// types are taken in f32.
    ///
    /// # Errors
    /// [`TrainError::Node`] for the node that fails.
    ///
    /// # Panics
    /// When feeds or variables are not as many as the tape's.
    pub fn forward(
        &self,
        variables: &[Tensor],
        feeds: Vec<Tensor>,
        context: StepContext,
        pool: &Pool,
    ) -> Result<Recording, TrainError> {
        self.forward_watched(variables, feeds, context, pool, Watch::default())
    }

    pub(super) fn forward_watched(
        &self,
        variables: &[Tensor],
        feeds: Vec<Tensor>,
        context: StepContext,
        pool: &Pool,
        watch: Watch,
    ) -> Result<Recording, TrainError> {
        assert_eq!(feeds.len(), self.input_slots.len(), "one feed per input");
        assert_eq!(variables.len(), self.variables.len(), "one tensor per variable");
        let mut recording = Recording {
            outputs: Vec::new(),
            updates: Vec::new(),
            slots: vec![None; self.slot_count],
            shapes: vec![Vec::new(); self.steps.len()],
            saved: self.steps.iter().map(|_| Vec::new()).collect(),
            context,
            watch,
        };
        for (feed, &slot) in feeds.into_iter().zip(&self.input_slots) {
            recording.slots[slot] = Some(Datum::Tensor(widened(&feed).aligned()));
        }
        for (index, segment) in self.segments.iter().enumerate() {
            self.run_steps(segment.steps.clone(), variables, &mut recording, pool)?;
            if index + 1 < self.segments.len() {
                for step in segment.steps.clone() {
                    recording.saved[step].drain(..).for_each(|tensor| pool.recycle(tensor));
                }
                drop_slots(&mut recording.slots, &segment.internal, pool);
            }
        }
        let output = |(position, source): (usize, &Source)| match *source {
            Source::Constant(index) => Ok(self.constants[index].clone()),
            Source::Variable(index) => Ok(variables[index].clone()),
            Source::Slot(slot) => match &recording.slots[slot] {
                Some(Datum::Tensor(tensor)) => Ok(tensor.clone()),
                _ => Err(TrainError::NoTensor { output: self.outputs[position].name.clone() }),
            },
            Source::Absent => unreachable!("outputs have names"),
        };
        let outputs = self.output_sources.iter().enumerate().map(output);
        recording.outputs = outputs.collect::<Result<_, _>>()?;
        Ok(recording)
    }

    /// Runs a segment once more, for what it left for its backward run.
    pub(super) fn repeat(
        &self,
        segment: usize,
        variables: &[Tensor],
        recording: &mut Recording,
        pool: &Pool,
    ) -> Result<(), TrainError> {
        let updates = std::mem::take(&mut recording.updates);
        self.run_steps(self.segments[segment].steps.clone(), variables, recording, pool)?;
        recording.updates = updates;
        Ok(())
    }

    fn run_steps(
        &self,
        range: std::ops::Range<usize>,
        variables: &[Tensor],
        recording: &mut Recording,
        pool: &Pool,
    ) -> Result<(), TrainError> {
        for index in range {
            let step = &self.steps[index];
            self.run_step(index, step, variables, recording, pool)
                .map_err(|source| step.error(source))?;
        }
        Ok(())
    }

    fn run_step(
        &self,
        index: usize,
        step: &Step,
        variables: &[Tensor],
        recording: &mut Recording,
        pool: &Pool,
    ) -> Result<(), OpError> {
        let inputs = self.inputs_of(step, variables, &mut recording.slots);
        let outputs: Vec<Datum> = match &step.kernel {
            StepKernel::Data(kernel) => {
                let mut run = DataRun { inputs, pool };
                let outputs = kernel.run(&mut run)?;
                run.inputs.into_iter().flatten().for_each(|datum| pool.recycle_datum(datum));
                outputs
            }
            StepKernel::Tensors(_) => {
                let inputs = inputs
                    .into_iter()
                    .enumerate()
                    .map(|(index, datum)| datum.map(|datum| datum.into_tensor(index)).transpose());
                let run = Run { inputs: inputs.collect::<Result<_, _>>()?, pool };
                Self::run_tensors(index, step, run, recording)?
            }
        };
        recording.watch.look(step, &outputs);
        for (slot, datum) in step.outputs.iter().zip(outputs) {
            match *slot {
                Some(slot) if !step.dies_forward.contains(&slot) => {
                    recording.slots[slot] = Some(datum);
                }
                _ => pool.recycle_datum(datum),
            }
        }
        Ok(())
    }

    /// What a step reads; taken out of its slot where nothing reads it after.
    fn inputs_of(
        &self,
        step: &Step,
        variables: &[Tensor],
        slots: &mut [Option<Datum>],
    ) -> Vec<Option<Datum>> {
        let mut inputs = Vec::with_capacity(step.inputs.len());
        for (position, source) in step.inputs.iter().enumerate() {
            inputs.push(match *source {
                Source::Absent => None,
                Source::Constant(index) => Some(Datum::Tensor(self.constants[index].clone())),
                Source::Variable(index) => Some(Datum::Tensor(variables[index].clone())),
                Source::Slot(slot) => {
                    let is_last = step.dies_forward.contains(&slot)
                        && !step.inputs[position + 1..].contains(source);
                    if is_last { slots[slot].take() } else { slots[slot].clone() }
                }
            });
        }
        inputs
    }

    fn run_tensors(
        index: usize,
        step: &Step,
        mut run: Run,
        recording: &mut Recording,
    ) -> Result<Vec<Datum>, OpError> {
        let StepKernel::Tensors(kernel) = &step.kernel else {
            unreachable!("the caller looked at the kernel")
        };
        let pool = run.pool;
        let shape =
            |input: &Option<Tensor>| input.as_ref().map_or(Vec::new(), |t| t.shape().into());
        recording.shapes[index] = run.inputs.iter().map(shape).collect();
        let outputs = match &step.gradient {
            None => kernel.run(&mut run)?,
            Some(gradient) => {
                let seed = mixed(recording.context.seed, index as u64);
                let mut forward = Forward { run, saved: Vec::new(), updates: Vec::new(), seed };
                let outputs = gradient.forward(&mut forward, kernel.as_ref())?;
                recording.saved[index] = forward.saved;
                for (input, tensor) in forward.updates {
                    if let Some(Source::Variable(variable)) = step.inputs.get(input) {
                        recording.updates.push((*variable, tensor));
                    }
                }
                run = forward.run;
                outputs
            }
        };
        run.inputs.into_iter().flatten().for_each(|tensor| pool.recycle(tensor));
        Ok(outputs.into_iter().map(Datum::Tensor).collect())
    }
}

impl Step {
    pub(super) fn error(&self, source: OpError) -> TrainError {
        let (node, op_type) = (self.node.clone(), self.op_type.clone());
        TrainError::Node { node, op_type, source: Box::new(source) }
    }
}

/// Empties slots whose values are needed no more.
pub(super) fn drop_slots(slots: &mut [Option<Datum>], dropped: &[usize], pool: &Pool) {
    let taken = dropped.iter().filter_map(|&slot| slots[slot].take());
    taken.for_each(|datum| pool.recycle_datum(datum));
}

/// A feed as the widened graph takes it.
fn widened(feed: &Tensor) -> Tensor {
    match feed.dtype() {
        DType::F16 | DType::BF16 => feed.converted(DType::F32).expect("floats convert to f32"),
        _ => feed.clone(),
    }
}

/// A seed of its own for every node of every step (splitmix64, Steele et al., 2014).
fn mixed(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Whether a tensor can carry a gradient.
pub(super) fn is_f32(tensor: &Tensor) -> bool {
    tensor.dtype() == DType::F32
}
