//! The products over all steps after the sweep back, on tiles of registers of their own: rows of
//! gates lie far apart, which a general product pays for with packing.

use attar_tensor::Tensor;

use super::{Course, pack, padded, swapped, time_first};
use crate::kernels::lanes::Real;
use crate::kernels::outer::{Slab, add_outer};
use crate::kernels::recurrent::{Product, Rows, Start};
use crate::kernels::{elementwise, for_rows_of_work};
use crate::recurrent::Sizes;
use crate::{Backward, Flow, OpError};

/// Rows of dX that are computed at once: their gates stay in the L2 cache while the weights pass.
const CHUNK_ROWS: usize = 64;

/// Columns of gates whose products are summed at once: those of a block of rows stay in the L2
/// cache while the other side's tiles pass.
const CHUNK_COLUMNS: usize = 256;

/// The gradients of some parts of the gates of one direction, a row per step and item.
fn gate_rows<'a>(
    course: &Course,
    gates: &'a [f32],
    direction: usize,
    [first, count]: [usize; 2],
) -> Slab<'a> {
    let Sizes { steps, batch, hidden, .. } = course.sizes;
    let (rows, step) = (steps * batch, course.stride());
    let of = &gates[direction * rows * step..][..rows * step];
    Slab { data: of.get(first * hidden..).unwrap_or(&[]), step, width: count * hidden }
}

/// dX = dG·W, summed over directions.
pub(super) fn input_gradient(
    course: &Course,
    gates: &[f32],
    run: &Backward,
) -> Result<Flow, OpError> {
    let Sizes { steps, batch, input, directions, batch_first, .. } = course.sizes;
    let depth = course.weight_rows();
    let w = run.input(1)?.slice::<f32>();
    let mut dx = run.tensor(&[steps, batch, input]);
    for direction in 0..directions {
        let panels = pack(&w[direction * depth * input..][..depth * input], input, run.pool);
        let dg = gate_rows(course, gates, direction, [0, course.settings.layer.gates()]);
        let work_size = panels.element_count() * steps * batch;
        for_rows_of_work(dx.slice_mut::<f32>(), input, work_size, |first, dx| {
            for (index, dx) in dx.chunks_mut(CHUNK_ROWS * input).enumerate() {
                let dg = dg.below(first + index * CHUNK_ROWS);
                add_input_gradient(dx, input, dg, panels.slice(), direction > 0);
            }
        });
        run.pool.recycle(panels);
    }
    if batch_first {
        let swapped = swapped(&dx, run.pool);
        run.pool.recycle(dx);
        dx = swapped;
    }
    Ok(dx.into())
}

/// Some rows of dX, added to what is there where `adds`.
fn add_input_gradient(dx: &mut [f32], input: usize, dg: Slab, panels: &[f32], adds: bool) {
    let rows: Vec<usize> = (0..dx.len() / input).collect();
    let zeros = vec![0.0; padded(input)];
    let product = |y: &mut [f32], start: Start| {
        let x = Rows { data: dg.data, stride: dg.step };
        let y_stride = zeros.len();
        let depth = dg.width;
        f32::dispatch(Product { panels, depth, x, rows: &rows, start, y, y_stride, offset: 0 });
    };
    if input == zeros.len() {
        return product(dx, if adds { Start::Sum } else { Start::Bias(&zeros) });
    }
    let mut scratch = vec![0.0; rows.len() * zeros.len()];
    product(&mut scratch, Start::Bias(&zeros));
    for (dx, sums) in dx.chunks_exact_mut(input).zip(scratch.chunks_exact(zeros.len())) {
        if adds {
            elementwise::add_assign(dx, &sums[..input]);
        } else {
            dx.copy_from_slice(&sums[..input]);
        }
    }
}

/// y = aᵀ·b over the rows of both, which are summed in one order on any number of threads.
fn outer(y: &mut [f32], a: Slab, b: Slab, rows: usize) {
    for_rows_of_work(y, b.width, rows * a.width * b.width, |first, y| {
        y.fill(0.0);
        for (index, y) in y.chunks_mut(CHUNK_COLUMNS * b.width).enumerate() {
            let start = first + index * CHUNK_COLUMNS;
            let data = a.data.get(start..).unwrap_or(&[]);
            let width = y.len() / b.width;
            add_outer(y, Slab { data, width, ..a }, b, rows);
        }
    });
}

/// dW = dGᵀ·X.
pub(super) fn w_gradient(course: &Course, gates: &[f32], run: &Backward) -> Result<Flow, OpError> {
    let Sizes { steps, batch, input, batch_first, .. } = course.sizes;
    let rows = course.weight_rows();
    let x = time_first(run.input(0)?, batch_first, run.pool);
    let mut dw = run.tensor(run.shape(1));
    let blocks = dw.slice_mut::<f32>().chunks_exact_mut(rows * input);
    for (direction, dw) in blocks.enumerate() {
        let dg = gate_rows(course, gates, direction, [0, course.settings.layer.gates()]);
        let x = Slab { data: x.slice::<f32>(), step: input, width: input };
        outer(dw, dg, x, steps * batch);
    }
    run.pool.recycle(x);
    Ok(dw.into())
}

/// dR = dGᵀ·H, of each part with what its product was of: h, or r⊙h.
pub(super) fn r_gradient(course: &Course, gates: &[f32], before: &[f32], run: &Backward) -> Flow {
    let Sizes { steps, batch, hidden, .. } = course.sizes;
    let (rows, count) = (course.weight_rows(), steps * batch);
    let mut dr = run.tensor(run.shape(2));
    let blocks = dr.slice_mut::<f32>().chunks_exact_mut(rows * hidden);
    for (direction, dr) in blocks.enumerate() {
        let data = &before[direction * count * hidden..][..count * hidden];
        let h = Slab { data, step: hidden, width: hidden };
        for part in course.parts() {
            let resets_before = part.first == 2 && part.column == 2;
            let x = if resets_before { gate_rows(course, gates, direction, [3, 1]) } else { h };
            let dg = gate_rows(course, gates, direction, [part.column, part.count]);
            let own = part.first * hidden * hidden..(part.first + part.count) * hidden * hidden;
            outer(&mut dr[own], dg, x, count);
        }
    }
    dr.into()
}

/// dB = the sum of dG over steps and items, twice: for the bias of x·Wᵀ and that of h·Rᵀ.
pub(super) fn bias_gradient(course: &Course, gates: &[f32], run: &Backward) -> Flow {
    let Sizes { steps, batch, hidden, .. } = course.sizes;
    let (rows, columns, count) = (course.weight_rows(), course.columns(), steps * batch);
    let mut db = run.zeros(run.shape(3));
    let mut sums: Tensor = run.tensor(&[columns * hidden]);
    for (direction, db) in db.slice_mut::<f32>().chunks_exact_mut(2 * rows).enumerate() {
        let dg = gate_rows(course, gates, direction, [0, columns]);
        let all = sums.slice_mut::<f32>();
        for_rows_of_work(all, 1, count * columns * hidden, |first, sums| {
            sums.fill(0.0);
            for row in 0..count {
                elementwise::add_assign(sums, &dg.below(row).data[first..][..sums.len()]);
            }
        });
        db[..rows].copy_from_slice(&all[..rows]);
        for part in course.parts() {
            let own = part.first * hidden..(part.first + part.count) * hidden;
            let column = if part.column == 3 { 3 } else { part.first };
            let from = column * hidden..(column + part.count) * hidden;
            db[rows..][own].copy_from_slice(&all[from]);
        }
    }
    run.pool.recycle(sums);
    db.into()
}
