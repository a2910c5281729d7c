//! Forward, keeping the gates.

use attar_tensor::{DType, Tensor};
use rayon::prelude::*;

use super::{Course, Part, RecurrentGradient, pack_transposed, padded, swapped, time_first};
use crate::kernels::for_rows_of_work;
use crate::kernels::lanes::Real;
use crate::kernels::recurrent::{Product, Rows, Start};
use crate::kernels::recurrent_training::{Cells, gru_gates, gru_state, lstm_forward, rnn_forward};
use crate::recurrent::{Layer, shaped};
use crate::{Forward, OpError, Pool, Run};

/// Rows that are projected at once: enough to use each panel of the weights many times while it
/// is in the cache.
const CHUNK_ROWS: usize = 64;

/// The weights of one direction, packed for x·Wᵀ and h·Rᵀ.
struct Direction {
    input: Tensor,
    /// What x·Wᵀ is added to, per column of the panels.
    bias: Vec<f32>,
    recurrent: Vec<Packed>,
}

struct Packed {
    part: Part,
    panels: Tensor,
    /// What the product is added to; `None` for the sum that is there.
    bias: Option<Vec<f32>>,
}

/// What one direction and range of the batch computes: by time.
struct Task<'a> {
    direction: usize,
    first: usize,
    count: usize,
    gates: Vec<&'a mut [f32]>,
    slopes: Vec<&'a mut [f32]>,
    cells: Vec<&'a mut [f32]>,
    y: Vec<&'a mut [f32]>,
}

/// What all tasks read.
struct Shared<'a> {
    course: &'a Course<'a>,
    directions: Vec<Direction>,
    initial_h: Option<&'a [f32]>,
    initial_c: Option<&'a [f32]>,
    peepholes: Option<&'a [f32]>,
    pool: &'a Pool,
}

impl RecurrentGradient {
    /// Computes the outputs. Saves the gates of every step, [direction, step, item, gate]; their
    /// derivatives where these do not follow from them; LSTM's c, [direction, step, item]; and Y as
    /// [step, direction, item], where the output is none.
    pub(super) fn run_forward(&self, forward: &mut Forward) -> Result<Vec<Tensor>, OpError> {
        let run = &forward.run;
        let [x, w, r] = [run.typed::<f32>(0)?, run.typed::<f32>(1)?, run.typed::<f32>(2)?];
        let shapes = [x, w, r].map(Tensor::shape);
        let course = Course::new(&self.settings, shapes, run.optional(4))?;
        let sizes = course.sizes;
        let pool = run.pool;
        let is_lstm = self.settings.layer == Layer::Lstm;
        let shared = shared(run, &course)?;
        let x = time_first(x, sizes.batch_first, pool);
        let rows = sizes.directions * sizes.steps * sizes.batch;
        let matrix = |is_there: bool, width: usize| {
            pool.tensor(DType::F32, &[if is_there { rows } else { 0 }, width])
        };
        let mut gates = matrix(true, course.stride());
        project(&shared, x.slice::<f32>(), gates.slice_mut::<f32>());
        pool.recycle(x);
        let mut slopes = matrix(course.saves_slopes(), course.stride());
        let mut cells = matrix(is_lstm, sizes.hidden);
        let shape = [sizes.steps, sizes.directions, sizes.batch, sizes.hidden];
        let mut y = pool.tensor(DType::F32, &shape);
        if course.is_ragged() {
            y.slice_mut::<f32>().fill(0.0);
        }
        walk(&shared, [&mut gates, &mut slopes, &mut cells, &mut y].map(Tensor::slice_mut::<f32>));
        let last_h = last_state(&shared, y.slice::<f32>(), shared.initial_h, true);
        let last_c = is_lstm.then(|| last_state(&shared, cells.slice(), shared.initial_c, false));
        recycle(shared);
        forward.saved.extend([gates, slopes, cells]);
        let output = if self.keeps_output() {
            y
        } else {
            let output = if self.settings.is_wanted(0) {
                let whole = y.reshaped(&[sizes.steps, sizes.directions, sizes.batch, sizes.hidden]);
                batch_first(&whole, pool)
            } else {
                Tensor::zeros(DType::F32, &[0])
            };
            forward.saved.push(y);
            output
        };
        Ok([output, last_h].into_iter().chain(last_c).collect())
    }
}

/// [steps, directions, batch, hidden] as [batch, steps, directions, hidden].
fn batch_first(y: &Tensor, pool: &Pool) -> Tensor {
    let &[steps, directions, batch, hidden] = y.shape() else { unreachable!("Y has four axes") };
    let rows = y.reshaped(&[steps * directions, batch, hidden]);
    swapped(&rows, pool).reshaped(&[batch, steps, directions, hidden])
}

fn shared<'a>(run: &'a Run, course: &'a Course) -> Result<Shared<'a>, OpError> {
    let (sizes, settings, rows) = (course.sizes, course.settings, course.weight_rows());
    let given = |index: usize, shape: &[usize]| {
        shaped(run.optional(index), index, DType::F32, shape).map(|t| t.map(Tensor::slice::<f32>))
    };
    let bias = given(3, &[sizes.directions, 2 * rows])?;
    let is_lstm = settings.layer == Layer::Lstm;
    let peepholes = if is_lstm { given(7, &[sizes.directions, 3 * sizes.hidden])? } else { None };
    let initial_c = if is_lstm { given(6, &sizes.state_shape())? } else { None };
    let (w, r) = (run.input(1)?.slice::<f32>(), run.input(2)?.slice::<f32>());
    let directions = (0..sizes.directions).map(|direction| {
        let w = &w[direction * rows * sizes.input..][..rows * sizes.input];
        let r = &r[direction * rows * sizes.hidden..][..rows * sizes.hidden];
        let bias = bias.map(|bias| &bias[direction * 2 * rows..][..2 * rows]);
        Direction::new(course, [w, r], bias, run.pool)
    });
    Ok(Shared {
        course,
        directions: directions.collect(),
        initial_h: given(5, &sizes.state_shape())?,
        initial_c,
        peepholes,
        pool: run.pool,
    })
}

impl Direction {
    fn new(course: &Course, [w, r]: [&[f32]; 2], bias: Option<&[f32]>, pool: &Pool) -> Self {
        let (rows, hidden) = (course.weight_rows(), course.sizes.hidden);
        let is_late = |part: &Part| part.column >= course.settings.layer.gates();
        let parts = course.parts();
        let late: Vec<usize> = (parts.iter().filter(|part| is_late(part)))
            .flat_map(|part| part.first * hidden..(part.first + part.count) * hidden)
            .collect();
        let mut sums = vec![0.0; padded(rows)];
        for (row, sum) in sums.iter_mut().enumerate().take(rows) {
            let [own, recurrent] = [0, rows].map(|at| bias.map_or(0.0, |bias| bias[at + row]));
            *sum = if late.contains(&row) { own } else { own + recurrent };
        }
        let recurrent = parts.iter().map(|part| {
            let range = part.first * hidden..(part.first + part.count) * hidden;
            let bias = is_late(part).then(|| {
                let of = |row: usize| bias.map_or(0.0, |bias| bias[rows + row]);
                let mut values: Vec<f32> = range.clone().map(of).collect();
                values.resize(padded(range.len()), 0.0);
                values
            });
            let weights = &r[range.start * hidden..range.end * hidden];
            Packed { part: *part, panels: pack_transposed(weights, hidden, pool), bias }
        });
        let recurrent = recurrent.collect();
        Self { input: pack_transposed(w, course.sizes.input, pool), bias: sums, recurrent }
    }
}

/// gates = x·Wᵀ + b for every direction and step.
fn project(shared: &Shared, x: &[f32], gates: &mut [f32]) {
    let sizes = shared.course.sizes;
    let (stride, count) = (shared.course.stride(), sizes.steps * sizes.batch);
    let places: Vec<usize> = (0..CHUNK_ROWS).collect();
    let blocks = gates.chunks_exact_mut((count * stride).max(1));
    for (direction, gates) in shared.directions.iter().zip(blocks) {
        let panels = direction.input.slice::<f32>();
        for_rows_of_work(gates, stride, panels.len() * count, |first, gates| {
            for (index, y) in gates.chunks_mut(CHUNK_ROWS * stride).enumerate() {
                let start = first + index * CHUNK_ROWS;
                let x = Rows { data: &x[start * sizes.input..], stride: sizes.input };
                let rows = &places[..y.len() / stride];
                let start = Start::Bias(&direction.bias);
                let depth = sizes.input;
                let product =
                    Product { panels, depth, x, rows, start, y, y_stride: stride, offset: 0 };
                f32::dispatch(product);
            }
        });
    }
}

/// Takes every direction and range of the batch through all steps.
fn walk(shared: &Shared, [gates, slopes, cells, y]: [&mut [f32]; 4]) {
    let course = shared.course;
    let (sizes, cuts) = (course.sizes, course.cuts());
    let steps = sizes.steps.max(1);
    let by_direction = |block: usize| block / steps;
    let gates = course.shares(gates, course.stride(), &cuts, by_direction);
    let slopes = course.shares(slopes, course.stride(), &cuts, by_direction);
    let cells = course.shares(cells, sizes.hidden, &cuts, by_direction);
    let y = course.shares(y, sizes.hidden, &cuts, |block| block % sizes.directions);
    let tasks = gates.into_iter().zip(slopes).zip(cells).zip(y).enumerate();
    let tasks: Vec<Task> = tasks
        .map(|(index, (((gates, slopes), cells), y))| {
            let (direction, cut) = (index / cuts.len(), &cuts[index % cuts.len()]);
            let (first, count) = (cut.start, cut.len());
            Task { direction, first, count, gates, slopes, cells, y }
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
        let (sizes, hidden) = (course.sizes, course.sizes.hidden);
        let mut states = shared.pool.tensor(DType::F32, &[3, self.count, hidden]);
        let (h, rest) = states.slice_mut::<f32>().split_at_mut(self.count * hidden);
        let (c, reset) = rest.split_at_mut(self.count * hidden);
        for (initial, state) in [(shared.initial_h, &mut *h), (shared.initial_c, &mut *c)] {
            for (row, state) in state.chunks_exact_mut(hidden).enumerate() {
                match initial {
                    Some(initial) => {
                        let at = sizes.state_at(self.direction, self.first + row);
                        state.copy_from_slice(&initial[at..at + hidden]);
                    }
                    None => state.fill(0.0),
                }
            }
        }
        for index in 0..sizes.steps {
            let time = course.time(self.direction, index);
            let is_active = |&row: &usize| time < course.lengths[self.first + row];
            let rows: Vec<usize> = (0..self.count).filter(is_active).collect();
            self.step(shared, time, &rows, [&mut *h, &mut *c, &mut *reset]);
            for row in rows.into_iter().map(|row| row * hidden..(row + 1) * hidden) {
                self.y[time][row.clone()].copy_from_slice(&h[row.clone()]);
                if let Some(cells) = self.cells.get_mut(time) {
                    cells[row.clone()].copy_from_slice(&c[row]);
                }
            }
        }
        shared.pool.recycle(states);
    }

    /// Takes the states of the rows one step on.
    fn step(
        &mut self,
        shared: &Shared,
        time: usize,
        rows: &[usize],
        [h, c, reset]: [&mut [f32]; 3],
    ) {
        let course = shared.course;
        let (settings, hidden) = (course.settings, course.sizes.hidden);
        let products = &shared.directions[self.direction].recurrent;
        self.add_product(course, &products[0], time, rows, h);
        match settings.layer {
            Layer::Rnn => rnn_forward(self.cells(course, time, rows), h),
            Layer::Lstm => {
                let at = self.direction * 3 * hidden;
                let peepholes = shared.peepholes.map(|all| &all[at..at + 3 * hidden]);
                let couples = settings.couples;
                lstm_forward(self.cells(course, time, rows), peepholes, couples, c, h);
            }
            Layer::Gru => {
                let resets_after = settings.resets_after;
                if resets_after {
                    self.add_product(course, &products[1], time, rows, h);
                }
                gru_gates(self.cells(course, time, rows), resets_after, h);
                if !resets_after {
                    for &row in rows {
                        let at = row * course.stride() + 3 * hidden;
                        let product = &self.gates[time][at..at + hidden];
                        reset[row * hidden..][..hidden].copy_from_slice(product);
                    }
                    self.add_product(course, &products[1], time, rows, reset);
                }
                gru_state(self.cells(course, time, rows), resets_after, h);
            }
        }
    }

    fn add_product(
        &mut self,
        course: &Course,
        packed: &Packed,
        time: usize,
        rows: &[usize],
        x: &[f32],
    ) {
        let hidden = course.sizes.hidden;
        f32::dispatch(Product {
            panels: packed.panels.slice::<f32>(),
            depth: hidden,
            x: Rows { data: x, stride: hidden },
            rows,
            start: packed.bias.as_deref().map_or(Start::Sum, Start::Bias),
            y: self.gates[time],
            y_stride: course.stride(),
            offset: packed.part.column * hidden,
        });
    }

    fn cells<'b>(&'b mut self, course: &Course, time: usize, rows: &'b [usize]) -> Cells<'b> {
        let hidden = course.sizes.hidden;
        Cells {
            hidden,
            rows,
            rule: course.rule(self.direction),
            gates: self.gates[time],
            slopes: self.slopes.get_mut(time).map(|slopes| &mut **slopes),
            stride: course.stride(),
            padded: padded(hidden),
        }
    }
}

/// The state after the last step of every item, in the layout of `Y_h`; `by_time` where the rows of
/// `states` are those of Y.
fn last_state(shared: &Shared, states: &[f32], initial: Option<&[f32]>, by_time: bool) -> Tensor {
    let (course, sizes) = (shared.course, shared.course.sizes);
    let hidden = sizes.hidden;
    let mut last = shared.pool.tensor(DType::F32, &sizes.state_shape());
    let values = last.slice_mut::<f32>();
    for direction in 0..sizes.directions {
        for (item, &length) in course.lengths.iter().enumerate() {
            let at = sizes.state_at(direction, item);
            let state = &mut values[at..at + hidden];
            let time = if course.settings.reversed[direction] { 0 } else { length.max(1) - 1 };
            let row = if by_time {
                course.output_row(direction, time, item)
            } else {
                course.row(direction, time, item)
            };
            match initial {
                _ if length > 0 => state.copy_from_slice(&states[row * hidden..][..hidden]),
                Some(initial) => state.copy_from_slice(&initial[at..at + hidden]),
                None => state.fill(0.0),
            }
        }
    }
    last
}

fn recycle(shared: Shared) {
    for direction in shared.directions {
        shared.pool.recycle(direction.input);
        direction.recurrent.into_iter().for_each(|packed| shared.pool.recycle(packed.panels));
    }
}
