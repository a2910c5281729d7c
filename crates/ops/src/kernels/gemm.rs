//! Matrix products, by `rten-gemm`: C = A·B (+ bias), matrices given with strides.

use rten_gemm::{BiasVector, GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix};
use rten_tensor::layout::{MutLayout, OverlapPolicy};
use rten_tensor::{Matrix, NdLayout, NdTensorView};

use crate::threads::with_pool;

thread_local! {
    // An executor may not move between threads; making one only asks the CPU what it can.
    static F32: GemmExecutor<f32, f32, f32> = GemmExecutor::default();
}

/// Runs a product of this many rows and columns where its parts may go to other threads; one that
/// `rten-gemm` takes as one block stays where it is.
fn divided<T: Send>([rows, columns]: [usize; 2], multiply: impl FnOnce() -> T + Send) -> T {
    if rows <= 64 && columns <= 128 { multiply() } else { with_pool(multiply) }
}

/// A matrix seen in a slice: sizes [rows, columns] and strides in elements.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) size: [usize; 2],
    pub(crate) strides: [usize; 2],
}

impl<'a, T> Strided<'a, T> {
    /// Row-major, rows next to each other.
    pub(crate) fn rows(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self { data, size: [rows, columns], strides: [columns, 1] }
    }

    pub(crate) fn transposed(self) -> Self {
        let ([rows, columns], [row, column]) = (self.size, self.strides);
        Self { data: self.data, size: [columns, rows], strides: [column, row] }
    }

    fn matrix(self) -> Matrix<'a, T> {
        let layout =
            NdLayout::from_shape_and_strides(self.size, self.strides, OverlapPolicy::AllowOverlap)
                .expect("strides of a matrix view are valid");
        let view = NdTensorView::from_data([self.data.len()], self.data);
        let needed = if self.size.contains(&0) {
            0
        } else {
            (self.size[0] - 1) * self.strides[0] + (self.size[1] - 1) * self.strides[1] + 1
        };
        Matrix::from_storage_and_layout(view.storage().slice(0..needed), layout)
    }
}

/// A constant right side, laid out for the kernel.
pub(crate) struct PackedB {
    whole: PackedBMatrix<f32>,
    /// The same, [`PANEL`] columns each, of a matrix so small that one row times it takes less time than
    /// to hand it to other threads.
    panels: Vec<PackedBMatrix<f32>>,
}

/// Columns that `rten-gemm` takes as one block.
const PANEL: usize = 128;
/// Numbers of the largest matrix that is held twice.
const PANELS_MAX: usize = 1 << 17;

impl PackedB {
    pub(crate) fn new(b: Strided<f32>) -> Self {
        let pack = |b: Strided<f32>| F32.with(|gemm| gemm.prepack_b(b.matrix()));
        let [rows, columns] = b.size;
        let is_small = columns > PANEL && rows * columns <= PANELS_MAX;
        let starts = (0..if is_small { columns } else { 0 }).step_by(PANEL);
        let panel = |first: usize| {
            let size = [rows, PANEL.min(columns - first)];
            pack(Strided { data: &b.data[first * b.strides[1]..], size, ..b })
        };
        Self { whole: pack(b), panels: starts.map(panel).collect() }
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    Strided(Strided<'a, f32>),
    Packed(&'a PackedB),
}

/// out = a·b + bias, `bias` one value per column.
///
/// With a packed right side every row is summed in the same order, however many rows there are;
/// one row times an unpacked right side takes `rten-gemm`'s vector path, which has another order.
pub(crate) fn matmul(out: &mut [f32], a: Strided<f32>, b: Right, bias: Option<&[f32]>) {
    let options =
        |bias: Option<_>| GemmOptions { bias: bias.map(BiasVector::Row), ..GemmOptions::default() };
    let b = match b {
        Right::Strided(b) => GemmInputB::Unpacked(b.matrix()),
        Right::Packed(b) if a.size[0] == 1 && !b.panels.is_empty() => {
            for (index, (out, panel)) in out.chunks_mut(PANEL).zip(&b.panels).enumerate() {
                let bias = bias.map(|bias| &bias[index * PANEL..][..out.len()]);
                let (a, b) = (GemmInputA::Unpacked(a.matrix()), GemmInputB::Packed(panel));
                F32.with(|gemm| gemm.gemm(out, a, b, options(bias)))
                    .expect("sizes of a matrix product were checked");
            }
            return;
        }
        Right::Packed(b) => GemmInputB::Packed(&b.whole),
    };
    let options = options(bias);
    let size = [a.size[0], b.cols()];
    let multiply = || F32.with(|gemm| gemm.gemm(out, GemmInputA::Unpacked(a.matrix()), b, options));
    divided(size, multiply).expect("sizes of a matrix product were checked");
}

/// out = scale·a·b, added to what is there where `adds`.
pub(crate) fn add_matmul(
    out: &mut [f32],
    a: Strided<f32>,
    b: Strided<f32>,
    scale: f32,
    adds: bool,
) {
    let options =
        GemmOptions { alpha: scale, beta: f32::from(u8::from(adds)), ..GemmOptions::default() };
    let (a, b) = (GemmInputA::Unpacked(a.matrix()), GemmInputB::Unpacked(b.matrix()));
    let size = [a.rows(), b.cols()];
    divided(size, || F32.with(|gemm| gemm.gemm(out, a, b, options)))
        .expect("sizes of a matrix product were checked");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_row_gives_what_it_gives_among_others_and_stays_on_its_thread() {
        let (k, n) = (70, 300);
        let number = |i: usize| ((i * i % 101) as f32 * 0.37).sin();
        let a: Vec<f32> = (0..3 * k).map(number).collect();
        let b: Vec<f32> = (0..k * n).map(|i| number(i + 7)).collect();
        let bias: Vec<f32> = (0..n).map(|i| number(i + 3)).collect();
        for b in [Strided::rows(&b, k, n), Strided::rows(&b, n, k).transposed()] {
            let packed = PackedB::new(b);
            assert_eq!(packed.panels.len(), 3);
            let mut all = vec![0.0; 3 * n];
            let left = Strided::rows(&a, 3, k);
            matmul(&mut all, left, Right::Packed(&packed), Some(&bias));
            for (row, expected) in a.chunks_exact(k).zip(all.chunks_exact(n)) {
                let mut out = vec![0.0; n];
                let multiply = || {
                    let row = Strided::rows(row, 1, k);
                    matmul(&mut out, row, Right::Packed(&packed), Some(&bias));
                };
                assert!(!crate::threads::sequential(multiply).1);
                assert_eq!(out, expected);
            }
        }
    }
}
