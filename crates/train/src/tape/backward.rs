//! The backward run: gradients of the outputs flow back to the trained initializers.

use attar_ops::{Backward, Datum, Flow, OpError, Pool, add_rows};
use attar_tensor::{DType, Tensor};

use super::finite::Watch;
use super::forward::{drop_slots, is_f32};
use super::{Recording, Source, Step, Tape};
use crate::TrainError;

impl Tape {
    /// Flows `gradients`, those of the outputs, back to the trained initializers, and adds what
    /// arrives to `sums`, one per trained initializer in their order.
    ///
    /// # Errors
    /// [`TrainError::Node`] for the node that fails.
    ///
    /// # Panics
    /// When `gradients` are not as many as the outputs, or `sums` as the trained initializers.
    pub fn backward(
        &self,
        variables: &[Tensor],
        recording: Recording,
        gradients: Vec<Option<Tensor>>,
        sums: &mut [Option<Flow>],
        pool: &Pool,
    ) -> Result<(), TrainError> {
        self.backward_watched(variables, recording, gradients, sums, pool).map(|_| ())
    }

    /// As [`backward`](Self::backward), with what was watched.
    pub(super) fn backward_watched(
        &self,
        variables: &[Tensor],
        mut recording: Recording,
        gradients: Vec<Option<Tensor>>,
        sums: &mut [Option<Flow>],
        pool: &Pool,
    ) -> Result<Watch, TrainError> {
        assert_eq!(gradients.len(), self.output_sources.len(), "one gradient per output");
        assert_eq!(sums.len(), self.trained_count, "one sum per trained initializer");
        let mut flows = Flows { slots: vec![None; self.slot_count], sums, pool };
        for (source, gradient) in self.output_sources.iter().zip(gradients) {
            if let Some(gradient) = gradient {
                flows.add(*source, gradient.into());
            }
        }
        recording.outputs.drain(..).for_each(|tensor| pool.recycle(tensor));
        for index in (0..self.segments.len()).rev() {
            let segment = &self.segments[index];
            if index + 1 < self.segments.len() {
                self.repeat(index, variables, &mut recording, pool)?;
            }
            for step in segment.steps.clone().rev() {
                self.step_back(step, variables, &mut recording, &mut flows)
                    .map_err(|source| self.steps[step].error(source))?;
                drop_slots(&mut recording.slots, &self.steps[step].dies_backward, pool);
            }
            drop_slots(&mut recording.slots, &segment.done, pool);
        }
        recording.slots.into_iter().flatten().for_each(|datum| pool.recycle_datum(datum));
        Ok(recording.watch)
    }

    fn step_back(
        &self,
        index: usize,
        variables: &[Tensor],
        recording: &mut Recording,
        flows: &mut Flows,
    ) -> Result<(), OpError> {
        let step = &self.steps[index];
        let saved = std::mem::take(&mut recording.saved[index]);
        let gradients: Vec<Option<Tensor>> = (step.outputs.iter())
            .map(|slot| slot.and_then(|slot| flows.slots[slot].take()))
            .map(|flow| flow.map(|flow| flow.into_dense(flows.pool)))
            .collect();
        let Some(gradient) = &step.gradient else { return Ok(()) };
        if gradients.iter().all(Option::is_none) || !step.wanted.contains(&true) {
            gradients.into_iter().flatten().chain(saved).for_each(|t| flows.pool.recycle(t));
            return Ok(());
        }
        let reads = gradient.reads();
        let input = |(position, source): (usize, &Source)| match *source {
            _ if !reads.reads_input(position) => None,
            Source::Absent => None,
            Source::Constant(index) => Some(self.constants[index].clone()),
            Source::Variable(index) => Some(variables[index].clone()),
            Source::Slot(slot) => tensor_of(recording.slots[slot].as_ref()),
        };
        let output = |(position, slot): (usize, &Option<usize>)| {
            (*slot)
                .filter(|_| reads.reads_output(position))
                .and_then(|slot| tensor_of(recording.slots[slot].as_ref()))
        };
        let mut run = Backward {
            inputs: step.inputs.iter().enumerate().map(input).map(single).collect(),
            shapes: &recording.shapes[index],
            outputs: step.outputs.iter().enumerate().map(output).map(single).collect(),
            gradients,
            saved,
            wanted: &step.wanted,
            pool: flows.pool,
        };
        let results = gradient.backward(&mut run)?;
        let Backward { inputs, outputs, gradients, saved, .. } = run;
        for (position, result) in results.into_iter().enumerate() {
            let Some(result) = result else { continue };
            if step.wanted.get(position).copied().unwrap_or(false) {
                check_shape(&result, &recording.shapes[index][position], step);
                recording.watch.look_back(step, position, &result);
                flows.add(step.inputs[position], result);
            }
        }
        let rest = inputs.into_iter().chain(outputs).chain(gradients).flatten().chain(saved);
        rest.for_each(|tensor| flows.pool.recycle(tensor));
        Ok(())
    }
}

fn tensor_of(datum: Option<&Datum>) -> Option<Tensor> {
    datum.and_then(Datum::tensor).cloned()
}

/// A kept value as gradients are computed: f64 in f32, like what flows.
fn single(value: Option<Tensor>) -> Option<Tensor> {
    value.map(|value| match value.dtype() {
        DType::F64 => value.converted(DType::F32).expect("floats convert to f32"),
        _ => value,
    })
}

/// A gradient of another shape than its value is a bug of the operator.
fn check_shape(flow: &Flow, shape: &[usize], step: &Step) {
    let found = match flow {
        Flow::Dense(tensor) => tensor.shape(),
        Flow::Rows { shape, .. } => shape,
    };
    debug_assert_eq!(found, shape, "gradient of {} (node {})", step.op_type, step.node);
}

/// Gradients on their way: of values by slot, and the sums of the trained initializers.
struct Flows<'a> {
    slots: Vec<Option<Flow>>,
    sums: &'a mut [Option<Flow>],
    pool: &'a Pool,
}

impl Flows<'_> {
    fn add(&mut self, to: Source, flow: Flow) {
        let sum = match to {
            Source::Slot(slot) => &mut self.slots[slot],
            Source::Variable(index) if index < self.sums.len() => &mut self.sums[index],
            _ => return,
        };
        *sum = Some(match sum.take() {
            None => flow,
            Some(sum) => added(sum, flow, self.pool),
        });
    }
}

/// The sum of two gradients.
fn added(a: Flow, b: Flow, pool: &Pool) -> Flow {
    match (a, b) {
        (Flow::Dense(mut sum), Flow::Rows { indices, rows, .. })
        | (Flow::Rows { indices, rows, .. }, Flow::Dense(mut sum)) => {
            add_rows(sum.slice_mut::<f32>(), &indices, rows.slice::<f32>());
            pool.recycle(rows);
            sum.into()
        }
        (Flow::Dense(mut sum), Flow::Dense(mut other)) => {
            debug_assert!(is_f32(&sum) && is_f32(&other), "gradients are f32");
            // What is shared would be copied first.
            if !sum.is_unique() && other.is_unique() {
                std::mem::swap(&mut sum, &mut other);
            }
            attar_ops::add_assign(sum.slice_mut::<f32>(), other.slice::<f32>());
            pool.recycle(other);
            sum.into()
        }
        (Flow::Rows { shape, mut indices, rows: a }, Flow::Rows { indices: more, rows: b, .. }) => {
            indices.extend(more);
            let width: usize = shape[1..].iter().product();
            let mut rows = pool.tensor(a.dtype(), &[indices.len(), width]);
            let (first, second) = rows.slice_mut::<f32>().split_at_mut(a.element_count());
            first.copy_from_slice(a.slice::<f32>());
            second.copy_from_slice(b.slice::<f32>());
            pool.recycle(a);
            pool.recycle(b);
            Flow::Rows { shape, indices, rows }
        }
    }
}
