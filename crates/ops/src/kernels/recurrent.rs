//! Products of recurrent layers, for a few rows at once; what becomes of the sums happens while they
//! are in registers.
//!
//! A sum starts with what it is added to and takes its products in the order of k, whatever the
//! number of rows: a batch item's result does not depend on the others.

use super::lanes::{Lanes, Real, Work};
use super::prefetch;

/// Columns (gate, unit) of a matrix in panels: each holds, for every k, some units of every gate,
/// so that a tile ends with all that their cells need.
pub(crate) struct Panels<T> {
    data: Vec<T>,
    depth: usize,
    gates: usize,
    /// Units of a panel; those behind the last are zero.
    units: usize,
    count: usize,
}

/// Vectors that a tile holds of each gate.
const fn vectors_per_gate(gates: usize) -> usize {
    match gates {
        1 => 4,
        2 | 3 => 2,
        _ => 1,
    }
}

impl<T: Real> Panels<T> {
    /// Packs weight `at(gate, unit, k)`.
    pub(crate) fn new(
        [gates, units, depth]: [usize; 3],
        at: impl Fn(usize, usize, usize) -> T,
    ) -> Self {
        let panel_units = vectors_per_gate(gates) * T::lanes();
        let count = units.div_ceil(panel_units);
        let mut data = vec![T::default(); count * depth * gates * panel_units];
        let rows = data.chunks_exact_mut(gates * panel_units);
        for (index, row) in rows.enumerate() {
            let (panel, k) = (index / depth, index % depth);
            for (gate, values) in row.chunks_exact_mut(panel_units).enumerate() {
                for (value, unit) in values.iter_mut().zip(panel * panel_units..units) {
                    *value = at(gate, unit, k);
                }
            }
        }
        Self { data, depth, gates, units: panel_units, count }
    }

    /// Size of a row of sums, in the order of the panels.
    pub(crate) fn width(&self) -> usize {
        self.count * self.gates * self.units
    }

    /// Units with the padding of the last panel.
    pub(crate) fn padded_units(&self) -> usize {
        self.count * self.units
    }

    /// Gate and unit of each column, in the order of the panels; `None` for those of padding.
    pub(crate) fn columns(&self, units: usize) -> impl Iterator<Item = Option<[usize; 2]>> {
        let (gates, own) = (self.gates, self.units);
        (0..self.width()).map(move |column| {
            let unit = column / own / gates * own + column % own;
            (unit < units).then_some([column / own % gates, unit])
        })
    }

    /// One value per column, in the order of the panels; `units` of each gate are there.
    pub(crate) fn arranged(&self, units: usize, at: impl Fn(usize, usize) -> T) -> Vec<T> {
        let value = |place: Option<[usize; 2]>| place.map(|[gate, unit]| at(gate, unit));
        self.columns(units).map(|place| value(place).unwrap_or_default()).collect()
    }
}

/// What becomes of a tile's sums.
pub(super) trait Cell<L: Lanes, const V: usize> {
    /// What the sums of a row and panel start with.
    fn start(&self, row: usize, panel: usize) -> [L; V];

    fn finish(&mut self, row: usize, panel: usize, sums: [L; V]);
}

/// `V` vectors from a place in a slice.
#[inline(always)]
pub(super) fn load<L: Lanes, const V: usize>(from: &[L::Item], at: usize) -> [L; V] {
    let from = &from[at..at + V * L::COUNT];
    let mut vectors = [L::splat(L::Item::default()); V];
    for v in 0..V {
        vectors[v] = L::load(&from[v * L::COUNT..]);
    }
    vectors
}

/// One panel for `R` rows.
#[inline(always)]
fn tile<L: Lanes, C: Cell<L, V>, const V: usize, const R: usize>(
    weights: &[L::Item],
    inputs: [&[L::Item]; R],
    rows: [usize; R],
    panel: usize,
    cell: &mut C,
) {
    let mut sums = [[L::splat(L::Item::default()); V]; R];
    for r in 0..R {
        sums[r] = cell.start(rows[r], panel);
    }
    let depth = weights.len() / (V * L::COUNT);
    assert!(inputs.iter().all(|input| input.len() == depth), "a row has the panel's depth");
    for (k, weights) in weights.chunks_exact(V * L::COUNT).enumerate() {
        let w: [L; V] = load(weights, 0);
        for r in 0..R {
            // SAFETY: k is below the depth, which is every row's size.
            let x = L::splat(unsafe { *inputs[r].get_unchecked(k) });
            for v in 0..V {
                sums[r][v] = w[v].fma(x, sums[r][v]);
            }
        }
    }
    for r in 0..R {
        cell.finish(rows[r], panel, sums[r]);
    }
}

/// Rows of a matrix: a stride between those that follow each other.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) stride: usize,
}

/// inputs·panels for the given rows, each sum handed to the cell.
#[inline(always)]
pub(super) fn product<L: Lanes, C: Cell<L, V>, const V: usize>(
    panels: &Panels<L::Item>,
    inputs: Rows<L::Item>,
    rows: &[usize],
    cell: &mut C,
) {
    assert_eq!(V * L::COUNT, panels.gates * panels.units, "panels are packed for these vectors");
    product_of::<L, C, V>(&panels.data, [panels.count, panels.depth], inputs, rows, cell);
}

/// As [`product`], of `count` panels of `depth` rows of `V` vectors.
#[inline(always)]
fn product_of<L: Lanes, C: Cell<L, V>, const V: usize>(
    panels: &[L::Item],
    [count, depth]: [usize; 2],
    inputs: Rows<L::Item>,
    rows: &[usize],
    cell: &mut C,
) {
    let row = |row: usize| &inputs.data[row * inputs.stride..][..depth];
    let size = depth * V * L::COUNT;
    for panel in 0..count {
        let weights = &panels[panel * size..][..size];
        let mut rest = rows;
        if L::ROWS == 4 {
            let (groups, tail) = rest.as_chunks::<4>();
            for &[a, b, c, d] in groups {
                let inputs = [row(a), row(b), row(c), row(d)];
                tile(weights, inputs, [a, b, c, d], panel, cell);
            }
            rest = tail;
        }
        let (groups, tail) = rest.as_chunks::<2>();
        for &[a, b] in groups {
            tile(weights, [row(a), row(b)], [a, b], panel, cell);
        }
        for &a in tail {
            tile(weights, [row(a)], [a], panel, cell);
        }
    }
}

/// y = x·panels + bias for rows 0, 1, …, each result written `offset` into its row.
pub(crate) struct Projection<'a, T> {
    pub(crate) panels: &'a Panels<T>,
    pub(crate) x: Rows<'a, T>,
    pub(crate) rows: &'a [usize],
    /// One value per column of the panels.
    pub(crate) bias: &'a [T],
    pub(crate) y: &'a mut [T],
    pub(crate) y_stride: usize,
    pub(crate) offset: usize,
}

struct Store<'a, T> {
    bias: &'a [T],
    y: &'a mut [T],
    stride: usize,
    offset: usize,
}

impl<L: Lanes, const V: usize> Cell<L, V> for Store<'_, L::Item> {
    #[inline(always)]
    fn start(&self, _: usize, panel: usize) -> [L; V] {
        load(self.bias, panel * V * L::COUNT)
    }

    #[inline(always)]
    fn finish(&mut self, row: usize, panel: usize, sums: [L; V]) {
        let at = row * self.stride + self.offset + panel * V * L::COUNT;
        let y = &mut self.y[at..at + V * L::COUNT];
        for v in 0..V {
            sums[v].store(&mut y[v * L::COUNT..]);
        }
    }
}

impl<T: Real> Work<T> for Projection<'_, T> {
    #[inline(always)]
    fn run<L: Lanes<Item = T>>(self) {
        let Self { panels, x, rows, bias, y, y_stride: stride, offset } = self;
        let mut cell = Store { bias, y, stride, offset };
        match panels.gates {
            3 => product::<L, _, 6>(panels, x, rows, &mut cell),
            _ => product::<L, _, 4>(panels, x, rows, &mut cell),
        }
    }
}

/// Columns that a panel of [`Product`] holds.
pub(crate) fn panel_columns() -> usize {
    4 * f32::lanes()
}

/// y = x·panels, or y += x·panels, for the given rows: panels of [`panel_columns`] columns, the last
/// filled up with zeros, each a row per k. Results start `offset` into their rows, as many as the
/// panels have columns.
pub(crate) struct Product<'a> {
    pub(crate) panels: &'a [f32],
    pub(crate) depth: usize,
    pub(crate) x: Rows<'a, f32>,
    pub(crate) rows: &'a [usize],
    pub(crate) start: Start<'a>,
    pub(crate) y: &'a mut [f32],
    pub(crate) y_stride: usize,
    pub(crate) offset: usize,
}

/// What the sums of a [`Product`] start with.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// One value per column of the panels.
    Bias(&'a [f32]),
    /// What is there.
    Sum,
}

impl<L: Lanes<Item = f32>> Cell<L, 4> for Product<'_> {
    #[inline(always)]
    fn start(&self, row: usize, panel: usize) -> [L; 4] {
        let column = panel * 4 * L::COUNT;
        match self.start {
            Start::Bias(bias) => load(bias, column),
            Start::Sum => {
                let at = row * self.y_stride + self.offset + column;
                // What the next panel's tile of this row starts with.
                for v in 4..8 {
                    prefetch(self.y.as_ptr().wrapping_add(at + v * L::COUNT));
                }
                load(self.y, at)
            }
        }
    }

    #[inline(always)]
    fn finish(&mut self, row: usize, panel: usize, sums: [L; 4]) {
        let at = row * self.y_stride + self.offset + panel * 4 * L::COUNT;
        let y = &mut self.y[at..at + 4 * L::COUNT];
        for v in 0..4 {
            sums[v].store(&mut y[v * L::COUNT..]);
        }
    }
}

impl Work<f32> for Product<'_> {
    #[inline(always)]
    fn run<L: Lanes<Item = f32>>(mut self) {
        let (panels, depth, x, rows) = (self.panels, self.depth, self.x, self.rows);
        let count = panels.len().checked_div(depth * 4 * L::COUNT).unwrap_or(0);
        product_of::<L, _, 4>(panels, [count, depth], x, rows, &mut self);
    }
}
