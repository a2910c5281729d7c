//! Runs a recurrent layer over all steps.
//!
//! Directions and parts of the batch are tasks of their own. A task projects the inputs of some
//! steps in one product, then takes these steps one by one; all of its buffers are there before.

use attar_tensor::Tensor;
use rayon::prelude::*;

use super::cell::{Prepared, StepInputs, Weights};
use super::{Layer, Settings, Sizes, lengths, shaped};
use crate::kernels::for_rows;
use crate::kernels::lanes::Real;
use crate::kernels::recurrent::Rows;
use crate::{OpError, Pool, Run};

/// Rows that are projected at once: enough to use each panel of the weights many times while it
/// is in the cache, few enough that their results stay in it as well.
const CHUNK_ROWS: usize = 64;

/// Products below which a second thread costs more than it brings.
const PARALLEL_MACS_MIN: usize = 1 << 21;

/// The state of a task's rows, padded units each, and where its next value goes.
pub(super) struct State<'a, T> {
    pub(super) h: &'a mut [T],
    pub(super) next: &'a mut [T],
    /// LSTM's c; z and r⊙h of a GRU that resets before its product.
    pub(super) extra: &'a mut [T],
}

/// A direction, for some items of the batch.
#[derive(Clone, Copy)]
struct Task {
    direction: usize,
    first: usize,
    count: usize,
}

/// What the tasks of a run share.
struct Scan<'a, T, D: Weights<T>> {
    settings: &'a Settings,
    prepared: &'a Prepared<D>,
    whole: D::Whole,
    sizes: Sizes,
    x: &'a [T],
    lengths: Vec<usize>,
    initial_h: Option<&'a [T]>,
    initial_c: Option<&'a [T]>,
    pool: &'a Pool,
}

/// Where a task's outputs go.
struct Sink<'a, T> {
    y: &'a mut [T],
    start: usize,
    step_stride: usize,
    item_stride: usize,
}

/// The last state of a task: h, and LSTM's c, hidden size each row.
struct Last<T> {
    h: Vec<T>,
    c: Vec<T>,
}

/// Computes all outputs.
pub(super) fn scan<T: Real, D: Weights<T>>(
    run: &Run,
    settings: &Settings,
    prepared: &Prepared<D>,
) -> Result<Vec<Tensor>, OpError> {
    let sizes = Sizes::new(run.input(0)?.shape(), settings, &prepared.sizes)?;
    let state_shape = sizes.state_shape();
    let initial = |index: usize| {
        shaped(run.optional(index), index, T::DTYPE, &state_shape)
            .map(|state| state.map(Tensor::slice::<T>))
    };
    let x = run.typed::<T>(0)?.slice::<T>();
    let scan = Scan {
        settings,
        prepared,
        whole: D::whole(x),
        sizes,
        x,
        lengths: lengths(run.optional(4), &sizes)?,
        initial_h: initial(5)?,
        initial_c: if settings.layer == Layer::Lstm { initial(6)? } else { None },
        pool: run.pool,
    };
    let mut y = if settings.is_wanted(0) {
        run.pool.tensor(T::DTYPE, &sizes.output_shape())
    } else {
        Tensor::zeros(T::DTYPE, &[0])
    };
    if scan.lengths.iter().any(|&length| length < sizes.steps) {
        y.slice_mut::<T>().fill(T::default());
    }
    let tasks = scan.tasks();
    let last = scan.run(&tasks, y.slice_mut::<T>());
    let mut outputs = vec![y];
    outputs.push(scan.joined(&tasks, &last, |last| &last.h));
    if settings.layer == Layer::Lstm {
        outputs.push(scan.joined(&tasks, &last, |last| &last.c));
    }
    Ok(outputs)
}

impl<T: Real, D: Weights<T>> Scan<'_, T, D> {
    /// One task per direction; with threads to spare, the batch is divided as well.
    fn tasks(&self) -> Vec<Task> {
        let Sizes { directions, batch, .. } = self.sizes;
        let threads = crate::threads::count();
        let count = if self.is_parallel() && D::DIVIDES {
            // Whole tiles of four rows.
            batch.div_ceil(threads.div_ceil(directions)).next_multiple_of(4)
        } else {
            batch
        };
        let firsts = (0..batch).step_by(count.max(1));
        (0..directions)
            .flat_map(|direction| firsts.clone().map(move |first| (direction, first)))
            .map(|(direction, first)| Task { direction, first, count: count.min(batch - first) })
            .collect()
    }

    fn is_parallel(&self) -> bool {
        let Sizes { steps, batch, input, hidden, directions, .. } = self.sizes;
        let per_row = self.settings.layer.gates() * hidden * (input + hidden) * directions;
        crate::threads::count() > 1
            && per_row.saturating_mul(steps).saturating_mul(batch) >= PARALLEL_MACS_MIN
    }

    fn run(&self, tasks: &[Task], y: &mut [T]) -> Vec<Last<T>> {
        let Sizes { steps, hidden, .. } = self.sizes;
        let is_wanted = self.settings.is_wanted(0);
        if tasks.len() == 1 || !self.is_parallel() {
            let task = |task: &Task| {
                let mut sink = self.sink(*task, y);
                self.task(*task, is_wanted.then_some(&mut sink))
            };
            return tasks.iter().map(task).collect();
        }
        // Outputs of different tasks lie between each other: each task has its own, copied after.
        let apart: Vec<(Last<T>, Vec<T>)> = tasks
            .par_iter()
            .map(|task| {
                let size = if is_wanted { steps * task.count * hidden } else { 0 };
                let mut y = vec![T::default(); size];
                let (step_stride, item_stride) = (task.count * hidden, hidden);
                let mut sink = Sink { y: &mut y, start: 0, step_stride, item_stride };
                (self.task(*task, is_wanted.then_some(&mut sink)), y)
            })
            .collect();
        let mut all = Vec::with_capacity(tasks.len());
        for (task, (last, part)) in tasks.iter().zip(apart) {
            let mut sink = self.sink(*task, y);
            for (index, row) in part.chunks_exact(hidden).enumerate() {
                sink.write(index / task.count, index % task.count, row);
            }
            all.push(last);
        }
        all
    }

    fn sink<'a>(&self, task: Task, y: &'a mut [T]) -> Sink<'a, T> {
        let Sizes { steps, batch, hidden, directions, batch_first, .. } = self.sizes;
        let Task { direction, first, .. } = task;
        if batch_first {
            let (item_stride, step_stride) = (steps * directions * hidden, directions * hidden);
            let start = first * item_stride + direction * hidden;
            return Sink { y, start, step_stride, item_stride };
        }
        let start = (direction * batch + first) * hidden;
        Sink { y, start, step_stride: directions * batch * hidden, item_stride: hidden }
    }

    fn task(&self, task: Task, mut sink: Option<&mut Sink<T>>) -> Last<T> {
        let Sizes { hidden, input, .. } = self.sizes;
        let direction = &self.prepared.directions[task.direction];
        let lengths = &self.lengths[task.first..task.first + task.count];
        let steps = lengths.iter().copied().max().unwrap_or(0);
        let chunk = (CHUNK_ROWS / task.count.max(1)).clamp(1, steps.max(1));
        let (rows, width) = (chunk * task.count, direction.width());
        let (stride, extras) = (direction.stride(), self.extra_count());
        let size = |count: usize| count * size_of::<T>();
        let mut gathered = self.pool.buffer(size(rows * input));
        let mut projected = self.pool.buffer(size(rows * width));
        let mut buffer = self.pool.buffer(size((2 + extras) * task.count * stride));
        let mut state = self.state(task, bytemuck::cast_slice_mut(buffer.as_bytes_mut()));
        let places: Vec<usize> = (0..rows).collect();
        let mut active: Vec<usize> = (0..task.count).collect();
        let activations = self.settings.activations_of(task.direction);
        for start in (0..steps).step_by(chunk) {
            let steps = start..steps.min(start + chunk);
            let rows = steps.len() * task.count;
            let gathered: &mut [T] = bytemuck::cast_slice_mut(gathered.as_bytes_mut());
            let x = self.inputs(task, steps.clone(), gathered);
            let projected: &mut [T] = bytemuck::cast_slice_mut(projected.as_bytes_mut());
            for_rows(&mut projected[..rows * width], width, |first, y| {
                let x = Rows { data: &x[first * input..], stride: input };
                let rows = &places[..y.len() / width];
                direction.project(y, x, rows, &self.whole, self.pool);
            });
            for step in steps {
                active.retain(|&row| step < lengths[row]);
                let at = (step - start) * task.count * width;
                let projected = &projected[at..at + task.count * width];
                let (settings, rows) = (self.settings, active.as_slice());
                let inputs = StepInputs { settings, activations, projected, rows };
                direction.step(inputs, &mut state, self.pool);
                for &row in &active {
                    let value = &state.next[row * stride..][..hidden];
                    if let Some(sink) = &mut sink {
                        sink.write(self.time(task, step, row), row, value);
                    }
                }
                state.advance(&active, stride);
            }
        }
        let rows = |values: &[T]| -> Vec<T> {
            values.chunks_exact(stride).flat_map(|row| &row[..hidden]).copied().collect()
        };
        let c = if self.settings.layer == Layer::Lstm { rows(state.extra) } else { Vec::new() };
        let last = Last { h: rows(state.h), c };
        for buffer in [gathered, projected, buffer] {
            self.pool.recycle_buffer(buffer);
        }
        last
    }

    /// The step of the input that a row takes as number `step`.
    fn time(&self, task: Task, step: usize, row: usize) -> usize {
        if self.settings.reversed[task.direction] {
            self.lengths[task.first + row] - 1 - step
        } else {
            step
        }
    }

    fn extra_count(&self) -> usize {
        match self.settings.layer {
            Layer::Lstm => 1,
            Layer::Gru if !self.settings.resets_after => 2,
            _ => 0,
        }
    }

    /// The state before the first step.
    fn state<'a>(&self, task: Task, buffer: &'a mut [T]) -> State<'a, T> {
        let hidden = self.sizes.hidden;
        let stride = self.prepared.directions[task.direction].stride();
        buffer.fill(T::default());
        let (h, rest) = buffer.split_at_mut(task.count * stride);
        let (next, extra) = rest.split_at_mut(task.count * stride);
        for (initial, state) in [(self.initial_h, &mut *h), (self.initial_c, &mut *extra)] {
            let Some(initial) = initial else { continue };
            for (row, state) in state.chunks_exact_mut(stride).enumerate() {
                let at = self.sizes.state_at(task.direction, task.first + row);
                state[..hidden].copy_from_slice(&initial[at..at + hidden]);
            }
        }
        State { h, next, extra }
    }

    /// The inputs of some steps, [step, item, input size]: where they are, or gathered.
    fn inputs<'a>(
        &'a self,
        task: Task,
        steps: std::ops::Range<usize>,
        gathered: &'a mut [T],
    ) -> &'a [T] {
        let Sizes { steps: all, batch, input, batch_first, .. } = self.sizes;
        let is_whole = task.count == batch && !batch_first;
        let is_uniform = self.lengths.iter().all(|&length| length == all);
        if is_whole && is_uniform && !self.settings.reversed[task.direction] {
            return &self.x[steps.start * batch * input..];
        }
        for (index, x) in gathered.chunks_exact_mut(input).enumerate() {
            let (step, row) = (steps.start + index / task.count, index % task.count);
            if step >= self.lengths[task.first + row] || step >= steps.end {
                x.fill(T::default());
                continue;
            }
            let (time, item) = (self.time(task, step, row), task.first + row);
            let place = if batch_first { item * all + time } else { time * batch + item };
            x.copy_from_slice(&self.x[place * input..][..input]);
        }
        gathered
    }

    /// The last states of all tasks as one tensor.
    fn joined<'a>(
        &self,
        tasks: &[Task],
        last: &'a [Last<T>],
        of: impl Fn(&'a Last<T>) -> &'a [T],
    ) -> Tensor {
        let hidden = self.sizes.hidden;
        let mut result = self.pool.tensor(T::DTYPE, &self.sizes.state_shape());
        let values = result.slice_mut::<T>();
        for (task, last) in tasks.iter().zip(last) {
            for (row, state) in of(last).chunks_exact(hidden).enumerate() {
                let at = self.sizes.state_at(task.direction, task.first + row);
                values[at..at + hidden].copy_from_slice(state);
            }
        }
        result
    }
}

impl<T: Real> Sink<'_, T> {
    fn write(&mut self, step: usize, item: usize, values: &[T]) {
        let at = self.start + step * self.step_stride + item * self.item_stride;
        self.y[at..at + values.len()].copy_from_slice(values);
    }
}

impl<T: Real> State<'_, T> {
    /// Makes the next state of the rows that took part their state.
    fn advance(&mut self, rows: &[usize], stride: usize) {
        if rows.len() * stride == self.h.len() {
            std::mem::swap(&mut self.h, &mut self.next);
            return;
        }
        for &row in rows {
            let range = row * stride..(row + 1) * stride;
            self.h[range.clone()].copy_from_slice(&self.next[range]);
        }
    }
}
