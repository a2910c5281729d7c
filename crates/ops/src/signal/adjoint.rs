//! Gradients of the Fourier transforms, which are linear: the transposed transform of what flows in.
//!
//! A complex number stands for two real ones, and its gradient for theirs. Then the gradient of
//! X = F·x is Fᴴ·dX, F the matrix of the transform, and Fᴴ·g is the conjugate of F applied to the
//! conjugate of g.

use attar_tensor::Tensor;

use super::dft::Direction;
use super::fourier::{Complex, Fourier};
use crate::kernels::for_rows;

/// Fᴴ·g, g filled up with zeros.
pub(super) fn forward_back(fourier: &Fourier, g: Vec<Complex>, size: usize) -> Vec<Complex> {
    let mut g: Vec<Complex> = g.into_iter().map(Complex::conjugate).collect();
    g.resize(size, Complex::default());
    let mut found = fourier.forward(&g);
    found.iter_mut().for_each(|value| *value = value.conjugate());
    found
}

/// Fills dx, the gradient of what was transformed along an axis into what dy is the gradient of.
pub(super) fn transform_back(
    dx: &mut Tensor,
    dy: &Tensor,
    axis: usize,
    size: usize,
    direction: Direction,
) {
    let (shape, fourier) = (dx.shape().to_vec(), Fourier::new(size));
    let rank = shape.len();
    let (from, to) = (shape[axis], dy.shape()[axis]);
    let inner: usize = shape[axis + 1..rank - 1].iter().product();
    let (dx_parts, dy_parts) = (shape[rank - 1], dy.shape()[rank - 1]);
    let (dx_size, dy_size) = (from * inner * dx_parts, to * inner * dy_parts);
    let values = dy.slice::<f32>();
    for_rows(dx.slice_mut::<f32>(), dx_size, |first, blocks| {
        for (index, dx) in blocks.chunks_exact_mut(dx_size).enumerate() {
            let dy = &values[(first + index) * dy_size..][..dy_size];
            for column in 0..inner {
                let term = |k: usize| {
                    let at = (k * inner + column) * dy_parts;
                    let im = if dy_parts == 2 { f64::from(dy[at + 1]) } else { 0.0 };
                    Complex { re: f64::from(dy[at]), im }
                };
                let g = signal_back(&fourier, (0..to).map(term).collect(), size, direction);
                for n in 0..from {
                    let at = (n * inner + column) * dx_parts;
                    let value = g.get(n).copied().unwrap_or_default();
                    dx[at] = value.re as f32;
                    if dx_parts == 2 {
                        dx[at + 1] = value.im as f32;
                    }
                }
            }
        }
    });
}

/// The gradient of one signal.
fn signal_back(
    fourier: &Fourier,
    g: Vec<Complex>,
    size: usize,
    direction: Direction,
) -> Vec<Complex> {
    if !direction.is_inverse {
        return forward_back(fourier, g, size);
    }
    // The inverse is Fᴴ/N, so its gradient is F·g/N.
    let mut found = fourier.forward(&g);
    found.iter_mut().for_each(|value| {
        *value = Complex { re: value.re / size as f64, im: value.im / size as f64 };
    });
    if direction.gives_real() {
        // Term n also stood, conjugate, in place of term N − n; what has no other half is real.
        for (n, value) in found.iter_mut().enumerate() {
            if n == 0 || 2 * n == size {
                value.im = 0.0;
            } else if 2 * n < size {
                *value = Complex { re: 2.0 * value.re, im: 2.0 * value.im };
            } else {
                *value = Complex::default();
            }
        }
    }
    found
}
