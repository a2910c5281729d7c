//! `AffineGrid` (opset 20): grid[n, …] = θₙ · (x, y, [z,] 1), the coordinates from −1 to 1 over the
//! target size (Jaderberg et al., 2015, arXiv:1506.02025).

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::gradient::gradient;
use crate::real::{Real, by_real};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct AffineGrid;

impl Operator for AffineGrid {
    fn op_type(&self) -> &'static str {
        "AffineGrid"
    }

    fn since_opset(&self) -> i64 {
        20
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    /// dθ = Σ dgrid ⊗ (x, y, [z,] 1) over the places.
    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let aligns = node.int_or("align_corners", 0)? != 0;
        gradient(Reads::NOTHING, move |run| {
            let dy = run.take_gradient();
            let mut theta = run.tensor(run.shape(0));
            let [_, sizes @ .., axes] = dy.shape() else { return Ok(Vec::new()) };
            let (axes, places) = (*axes, sizes.iter().product::<usize>());
            let per_item = axes * (axes + 1);
            let (mut sums, mut point) = (vec![0.0_f64; per_item], vec![1.0; axes + 1]);
            let items = dy.slice::<f32>().chunks_exact((places * axes).max(1));
            for (theta, dy) in theta.slice_mut::<f32>().chunks_exact_mut(per_item).zip(items) {
                sums.fill(0.0);
                for (place, dy) in dy.chunks_exact(axes).enumerate() {
                    set_point(&mut point, place, sizes, aligns);
                    for (row, &dy) in sums.chunks_exact_mut(axes + 1).zip(dy) {
                        row.iter_mut().zip(&point).for_each(|(sum, x)| *sum += f64::from(dy) * x);
                    }
                }
                theta.iter_mut().zip(&sums).for_each(|(theta, &sum)| *theta = sum as f32);
            }
            run.pool.recycle(dy);
            Ok(vec![Some(theta.into())])
        })
    }

    fn widens_half(&self) -> bool {
        true
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (theta, size) = (required(inputs, 0)?, required(inputs, 1)?);
        let Some(sizes) = size.elements() else { return Ok(vec![Fact::unranked(theta.dtype)]) };
        if !(4..=5).contains(&sizes.len()) {
            return Err(OpError::value("size", sizes.len(), "4 or 5 sizes"));
        }
        let spatial = sizes[2..].iter().cloned();
        let dims = std::iter::once(sizes[0].clone()).chain(spatial);
        let dims = dims.chain(std::iter::once(Dim::from(sizes.len() - 2)));
        Ok(vec![Fact::new(theta.dtype, dims.collect())])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let aligns = node.int_or("align_corners", 0)? != 0;
        Ok(Box::new(move |run: &mut Run| {
            let theta = run.input(0)?;
            let found = run.typed::<i64>(1)?.values::<i64>();
            let sizes: Option<Vec<usize>> =
                found.iter().map(|&size| usize::try_from(size).ok()).collect();
            let sizes = sizes
                .filter(|sizes| (4..=5).contains(&sizes.len()))
                .ok_or_else(|| OpError::value("size", &found, "4 or 5 sizes"))?;
            let axes = sizes.len() - 2;
            if theta.shape() != [sizes[0], axes, axes + 1] {
                return Err(OpError::shapes(theta.shape(), &sizes));
            }
            let mut shape = vec![sizes[0]];
            shape.extend(&sizes[2..]);
            shape.push(axes);
            let mut y = run.output(theta.dtype(), &shape)?;
            by_real!(theta, 0, T => {
                fill::<T>(y.slice_mut::<T>(), theta.slice::<T>(), &sizes[2..], aligns);
                Ok(vec![y])
            })
        }))
    }
}

fn fill<T: Real>(y: &mut [T], theta: &[T], sizes: &[usize], aligns: bool) {
    let axes = sizes.len();
    let places: usize = sizes.iter().product();
    if y.is_empty() {
        return;
    }
    let mut point = vec![T::ONE; axes + 1];
    for (item, theta) in theta.chunks_exact(axes * (axes + 1)).enumerate() {
        let grid = &mut y[item * places * axes..(item + 1) * places * axes];
        for (place, out) in grid.chunks_exact_mut(axes).enumerate() {
            set_point(&mut point, place, sizes, aligns);
            for (out, row) in out.iter_mut().zip(theta.chunks_exact(axes + 1)) {
                *out = row.iter().zip(&point).fold(T::ZERO, |sum, (&a, &b)| sum + a * b);
            }
        }
    }
}

/// The coordinates of a place; the last axis of the image is the first coordinate.
fn set_point<T: Real>(point: &mut [T], place: usize, sizes: &[usize], aligns: bool) {
    let mut rest = place;
    for (point, &size) in point.iter_mut().zip(sizes.iter().rev()) {
        *point = T::of(coordinate(rest % size, size, aligns));
        rest /= size;
    }
}

fn coordinate(index: usize, size: usize, aligns: bool) -> f64 {
    let (index, size) = (index as f64, size as f64);
    match aligns {
        true if size > 1.0 => 2.0 * index / (size - 1.0) - 1.0,
        // A single place has no corners; it is where the steps begin.
        true => -1.0,
        false => (2.0 * index + 1.0) / size - 1.0,
    }
}
