//! Backward through time.

use attar_tensor::{DType, Tensor};
use rayon::prelude::*;

use super::products::{bias_gradient, input_gradient, r_gradient, w_gradient};
use super::{Course, RecurrentGradient, pack, padded, swapped};
use crate::kernels::lanes::Real;
use crate::kernels::recurrent::{Product, Rows, Start};
use crate::kernels::recurrent_training::{
    Cells, SCRATCH, add_column_products, gru_backward, gru_reset_backward, lstm_backward,
    rnn_backward,
};
use crate::kernels::{elementwise, for_rows};
use crate::recurrent::{Layer, Sizes};
use crate::{Backward, Flow, OpError, Pool};

/// What all tasks read.
struct Shared<'a> {
    course: &'a Course<'a>,
    /// For each direction, R of each part, packed for dG·R.
    recurrent: Vec<Vec<Tensor>>,
    /// h before each step, [direction, step, item]; zeros where an item takes no part.
    before: &'a [f32],
    cells: &'a [f32],
    initial_c: Option<&'a [f32]>,
    peepholes: Option<&'a [f32]>,
    dy: Option<&'a [f32]>,
    pool: &'a Pool,
}

/// What one direction and range of the batch computes.
struct Task<'a> {
    direction: usize,
    first: usize,
    count: usize,
    /// By time.
    gates: Vec<&'a mut [f32]>,
    slopes: Vec<&'a mut [f32]>,
    /// Gradients of the state, padded units a row; h alone is padded.
    dh: &'a mut [f32],
    dc: &'a mut [f32],
}

impl RecurrentGradient {
    pub(super) fn run_backward(&self, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
        let shapes = [run.shape(0), run.shape(1), run.shape(2)];
        let given = |index: usize| run.inputs.get(index).and_then(Option::as_ref);
        let course = Course::new(&self.settings, shapes, given(4))?;
        let sizes = course.sizes;
        let mut saved = std::mem::take(&mut run.saved).into_iter();
        let mut next = || saved.next().expect("the forward run saved it");
        let [mut gates, mut slopes, cells] = [next(), next(), next()];
        let y = if self.keeps_output() { run.output(0).clone() } else { next() };
        let before = states_before(&course, y.slice(), given(5).map(Tensor::slice), run.pool);
        let dy = run.gradients.first_mut().and_then(Option::take);
        let dy = dy.map(|dy| steps_first(dy, sizes.batch_first, run.pool));
        let [mut dh, mut dc] = [1, 2].map(|output| state_gradient(&course, run, output));
        let shared = Shared {
            course: &course,
            recurrent: packed(&course, run.input(2)?.slice::<f32>(), run.pool),
            before: before.slice(),
            cells: cells.slice(),
            initial_c: given(6).map(Tensor::slice),
            peepholes: given(7).map(Tensor::slice),
            dy: dy.as_ref().map(Tensor::slice),
            pool: run.pool,
        };
        walk(&shared, [&mut gates, &mut slopes, &mut dh, &mut dc].map(Tensor::slice_mut::<f32>));
        let dp = (run.wants(7) && self.settings.layer == Layer::Lstm)
            .then(|| peephole_gradient(&shared, gates.slice(), run));
        shared.recurrent.into_iter().flatten().for_each(|tensor| run.pool.recycle(tensor));
        let mut flows: Vec<Option<Flow>> = vec![None; 8];
        flows[0] = run.wants(0).then(|| input_gradient(&course, gates.slice(), run)).transpose()?;
        flows[1] = run.wants(1).then(|| w_gradient(&course, gates.slice(), run)).transpose()?;
        let (gate_values, states) = (gates.slice::<f32>(), before.slice::<f32>());
        flows[2] = run.wants(2).then(|| r_gradient(&course, gate_values, states, run));
        flows[3] = run.wants(3).then(|| bias_gradient(&course, gate_values, run));
        flows[5] = run.wants(5).then(|| state_flow(&course, dh.slice(), run));
        flows[6] = run.wants(6).then(|| state_flow(&course, dc.slice(), run));
        flows[7] = dp;
        let rest = [gates, slopes, cells, y, before, dh, dc];
        rest.into_iter().chain(dy).for_each(|tensor| run.pool.recycle(tensor));
        Ok(flows)
    }
}

/// [batch, steps, directions, hidden] as [steps, directions, batch, hidden].
fn steps_first(dy: Tensor, batch_first: bool, pool: &Pool) -> Tensor {
    if !batch_first {
        return dy;
    }
    let &[batch, steps, directions, hidden] = dy.shape() else { unreachable!("Y has four axes") };
    let swapped = swapped(&dy.reshaped(&[batch, steps * directions, hidden]), pool);
    pool.recycle(dy);
    swapped.reshaped(&[steps, directions, batch, hidden])
}

/// The state that each step starts from, by direction, time and item.
fn states_before(course: &Course, y: &[f32], initial: Option<&[f32]>, pool: &Pool) -> Tensor {
    let Sizes { steps, batch, hidden, directions, .. } = course.sizes;
    let mut before = pool.tensor(DType::F32, &[directions * steps * batch, hidden]);
    for_rows(before.slice_mut::<f32>(), hidden, |first, states| {
        for (index, state) in states.chunks_exact_mut(hidden).enumerate() {
            let (item, block) = ((first + index) % batch, (first + index) / batch);
            let (direction, time) = (block / steps, block % steps);
            let is_active = time < course.lengths[item];
            match (course.time_before(direction, time, item), initial) {
                (Some(time), _) if is_active => {
                    let row = course.output_row(direction, time, item);
                    state.copy_from_slice(&y[row * hidden..][..hidden]);
                }
                (None, Some(initial)) if is_active => {
                    let at = course.sizes.state_at(direction, item);
                    state.copy_from_slice(&initial[at..at + hidden]);
                }
                _ => state.fill(0.0),
            }
        }
    });
    before
}

/// What flows into a last state, [direction, item]: h padded, and c.
fn state_gradient(course: &Course, run: &Backward, output: usize) -> Tensor {
    let Sizes { batch, hidden, directions, .. } = course.sizes;
    let width = if output == 1 { padded(hidden) } else { hidden };
    let mut state = run.zeros(&[directions * batch, width]);
    if let Some(given) = run.gradient(output) {
        let given = given.slice::<f32>();
        for (row, state) in state.slice_mut::<f32>().chunks_exact_mut(width).enumerate() {
            let at = course.sizes.state_at(row / batch, row % batch);
            state[..hidden].copy_from_slice(&given[at..at + hidden]);
        }
    }
    state
}

/// The gradient of an initial state, in its layout.
fn state_flow(course: &Course, state: &[f32], run: &Backward) -> Flow {
    let Sizes { batch, hidden, directions, .. } = course.sizes;
    let mut flow = run.tensor(&course.sizes.state_shape());
    let values = flow.slice_mut::<f32>();
    let width = state.len() / (directions * batch).max(1);
    for (row, state) in state.chunks_exact(width.max(1)).enumerate() {
        let at = course.sizes.state_at(row / batch, row % batch);
        values[at..at + hidden].copy_from_slice(&state[..hidden]);
    }
    flow.into()
}

fn packed(course: &Course, r: &[f32], pool: &Pool) -> Vec<Vec<Tensor>> {
    let (rows, hidden) = (course.weight_rows(), course.sizes.hidden);
    let of = |direction: usize| {
        let r = &r[direction * rows * hidden..][..rows * hidden];
        let parts = course.parts().into_iter().map(move |part| {
            let rows = part.first * hidden..(part.first + part.count) * hidden;
            pack(&r[rows.start * hidden..rows.end * hidden], hidden, pool)
        });
        parts.collect()
    };
    (0..course.sizes.directions).map(of).collect()
}

/// Takes every direction and range of the batch back through all steps.
fn walk(shared: &Shared, [gates, slopes, dh, dc]: [&mut [f32]; 4]) {
    let course = shared.course;
    let (sizes, cuts) = (course.sizes, course.cuts());
    let by_direction = |block: usize| block / sizes.steps.max(1);
    let gates = course.shares(gates, course.stride(), &cuts, by_direction);
    let slopes = course.shares(slopes, course.stride(), &cuts, by_direction);
    let dh = course.shares(dh, padded(sizes.hidden), &cuts, |block| block);
    let dc = course.shares(dc, sizes.hidden, &cuts, |block| block);
    let states = dh.into_iter().flatten().zip(dc.into_iter().flatten());
    let tasks = gates.into_iter().zip(slopes).zip(states).enumerate();
    let tasks: Vec<Task> = tasks
        .map(|(index, ((gates, slopes), (dh, dc)))| {
            let (direction, cut) = (index / cuts.len(), &cuts[index % cuts.len()]);
            Task { direction, first: cut.start, count: cut.len(), gates, slopes, dh, dc }
        })
        .collect();
    if tasks.len() == 1 {
        tasks.into_iter().for_each(|task| task.run(shared));
    } else {
        tasks.into_par_iter().for_each(|task| task.run(shared));
    }
}

impl Task<'_> {
    fn run(mut self, shared: &Shared) {
        let course = shared.course;
        let (steps, hidden) = (course.sizes.steps, course.sizes.hidden);
        let (count, padded) = (self.count, padded(hidden));
        let size = SCRATCH * hidden + count * (hidden + padded);
        let mut scratch = shared.pool.tensor(DType::F32, &[size]);
        let (own, rest) = scratch.slice_mut::<f32>().split_at_mut(SCRATCH * hidden);
        let (states, reset) = rest.split_at_mut(count * hidden);
        for index in (0..steps).rev() {
            let time = course.time(self.direction, index);
            let is_active = |&row: &usize| time < course.lengths[self.first + row];
            let (rows, rest): (Vec<usize>, Vec<usize>) = (0..count).partition(is_active);
            for row in rest {
                self.gates[time][row * course.stride()..][..course.stride()].fill(0.0);
            }
            if let Some(dy) = shared.dy {
                for &row in &rows {
                    let at = course.output_row(self.direction, time, self.first + row) * hidden;
                    let dh = &mut self.dh[row * padded..][..hidden];
                    elementwise::add_assign(dh, &dy[at..at + hidden]);
                }
            }
            let c = if course.settings.layer == Layer::Lstm {
                self.cells(shared, time, &rows, states)
            } else {
                [&[][..], &[][..]]
            };
            self.step(shared, time, &rows, c, [&mut *own, &mut *reset]);
        }
        shared.pool.recycle(scratch);
    }

    /// LSTM's c after and before a step; `states` is room for those that lie apart.
    fn cells<'b>(
        &self,
        shared: &Shared<'b>,
        time: usize,
        rows: &[usize],
        states: &'b mut [f32],
    ) -> [&'b [f32]; 2] {
        let (course, hidden, all) = (shared.course, shared.course.sizes.hidden, shared.cells);
        let of = |time: usize, row: usize, count: usize| {
            let row = course.row(self.direction, time, self.first + row);
            &all[row * hidden..][..count * hidden]
        };
        let before = |row: usize| course.time_before(self.direction, time, self.first + row);
        let after = of(time, 0, self.count);
        if let Some(time) = rows.first().and_then(|&row| before(row))
            && rows.iter().all(|&row| before(row) == Some(time))
        {
            return [after, of(time, 0, self.count)];
        }
        for &row in rows {
            let state = &mut states[row * hidden..(row + 1) * hidden];
            match (before(row), shared.initial_c) {
                (Some(time), _) => state.copy_from_slice(of(time, row, 1)),
                (None, Some(initial)) => {
                    let at = course.sizes.state_at(self.direction, self.first + row);
                    state.copy_from_slice(&initial[at..at + hidden]);
                }
                (None, None) => state.fill(0.0),
            }
        }
        [after, states]
    }

    /// Takes the gradients of the state one step back.
    fn step(
        &mut self,
        shared: &Shared,
        time: usize,
        rows: &[usize],
        [c, c_before]: [&[f32]; 2],
        [scratch, reset]: [&mut [f32]; 2],
    ) {
        let course = shared.course;
        let (settings, hidden) = (course.settings, course.sizes.hidden);
        let cells = Cells {
            hidden,
            rows,
            rule: course.rule(self.direction),
            gates: self.gates[time],
            slopes: self.slopes.get_mut(time).map(|slopes| &mut **slopes),
            stride: course.stride(),
            padded: padded(hidden),
        };
        let before = &shared.before[course.row(self.direction, time, self.first) * hidden..];
        match settings.layer {
            Layer::Rnn => rnn_backward(cells, self.dh),
            Layer::Lstm => {
                let at = self.direction * 3 * hidden;
                let peepholes = shared.peepholes.map(|all| &all[at..at + 3 * hidden]);
                let couples = settings.couples;
                lstm_backward(cells, peepholes, couples, c, c_before, self.dh, self.dc, scratch);
            }
            Layer::Gru => {
                gru_backward(cells, settings.resets_after, before, self.dh, scratch);
                if !settings.resets_after {
                    self.reset_back(shared, time, rows, before, reset);
                    return self.product_back(shared, time, rows, 0);
                }
                self.product_back(shared, time, rows, 1);
            }
        }
        self.product_back(shared, time, rows, 0);
    }

    /// A GRU that resets before its product: back through r⊙h.
    fn reset_back(
        &mut self,
        shared: &Shared,
        time: usize,
        rows: &[usize],
        before: &[f32],
        reset: &mut [f32],
    ) {
        let course = shared.course;
        let hidden = course.sizes.hidden;
        reset.fill(0.0);
        let product = self.product(shared, time, rows, 1);
        f32::dispatch(Product { y: reset, ..product });
        let cells = Cells {
            hidden,
            rows,
            rule: course.rule(self.direction),
            gates: self.gates[time],
            slopes: self.slopes.get_mut(time).map(|slopes| &mut **slopes),
            stride: course.stride(),
            padded: padded(hidden),
        };
        gru_reset_backward(cells, before, reset, self.dh);
    }

    /// dh += dG·R for one part of the gates.
    fn product_back(&mut self, shared: &Shared, time: usize, rows: &[usize], part: usize) {
        let dh = std::mem::take(&mut self.dh);
        f32::dispatch(Product { y: &mut *dh, ..self.product(shared, time, rows, part) });
        self.dh = dh;
    }

    /// A product dG·R that is added to what its `y` will be.
    fn product<'b>(
        &'b self,
        shared: &'b Shared,
        time: usize,
        rows: &'b [usize],
        part: usize,
    ) -> Product<'b> {
        let (course, hidden) = (shared.course, shared.course.sizes.hidden);
        let panels = &shared.recurrent[self.direction][part];
        let part = course.parts()[part];
        let stride = course.stride();
        Product {
            panels: panels.slice::<f32>(),
            depth: part.count * hidden,
            x: Rows { data: &self.gates[time][part.column * hidden..], stride },
            rows,
            start: Start::Sum,
            y: &mut [],
            y_stride: padded(hidden),
            offset: 0,
        }
    }
}

/// dP of i and f = Σ dG⊙c₋₁, of o = Σ dG⊙c.
fn peephole_gradient(shared: &Shared, gates: &[f32], run: &Backward) -> Flow {
    let (course, hidden) = (shared.course, shared.course.sizes.hidden);
    let Sizes { steps, batch, directions, .. } = course.sizes;
    let mut dp = run.zeros(run.shape(7));
    let zeros = vec![0.0; hidden];
    for direction in 0..directions {
        let dp = &mut dp.slice_mut::<f32>()[direction * 3 * hidden..][..3 * hidden];
        for (time, item) in (0..steps).flat_map(|time| (0..batch).map(move |item| (time, item))) {
            if time >= course.lengths[item] {
                continue;
            }
            let of = |time| &shared.cells[course.row(direction, time, item) * hidden..][..hidden];
            let initial =
                shared.initial_c.map(|all| &all[course.sizes.state_at(direction, item)..]);
            let before = match course.time_before(direction, time, item) {
                Some(time) => of(time),
                None => initial.map_or(zeros.as_slice(), |initial| &initial[..hidden]),
            };
            let dg = &gates[course.row(direction, time, item) * course.stride()..];
            for (place, c) in [before, of(time), before].into_iter().enumerate() {
                let sums = &mut dp[place * hidden..][..hidden];
                add_column_products(sums, &dg[place * hidden..][..hidden], c);
            }
        }
    }
    dp.into()
}
