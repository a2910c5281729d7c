//! `GridSample` (opset 20): y[n, c, p] = x[n, c] sampled at grid[n, p], whose coordinates run from
//! −1 to 1 over each axis, the last axis first; nearest, linear or cubic (a = −0.75).

use attar_graph::{Dim, Node};
use attar_tensor::{Element, Tensor};

use crate::gradient::gradient;
use crate::kernels::for_rows;
use crate::real::{Real, by_real};
use crate::{
    Backward, Fact, Flow, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required,
};

pub(crate) struct GridSample;

impl Operator for GridSample {
    fn op_type(&self) -> &'static str {
        "GridSample"
    }

    fn since_opset(&self) -> i64 {
        16
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn gradient(&self, node: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let sampling = Sampling::new(node)?;
        let reads = Reads::NOTHING.input(1).input_if(0, training.wants(1));
        gradient(reads, move |run| sampling.back(run))
    }

    fn widens_half(&self) -> bool {
        true
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Sampling::new(node)?;
        let (x, grid) = (required(inputs, 0)?, required(inputs, 1)?);
        let (Some(shape), Some(grid)) = (&x.shape, &grid.shape) else {
            return Ok(vec![Fact::unranked(x.dtype)]);
        };
        if shape.len() < 3 || grid.len() != shape.len() {
            let text = |dims: &[Dim]| format!("of rank {}", dims.len());
            return Err(OpError::Shapes { a: text(shape), b: text(grid) });
        }
        let places = grid[1..grid.len() - 1].iter();
        Ok(vec![Fact::new(x.dtype, shape[..2].iter().chain(places).cloned().collect())])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let sampling = Sampling::new(node)?;
        Ok(Box::new(move |run: &mut Run| sampling.run(run)))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

/// What lies outside the image.
#[derive(Clone, Copy, PartialEq)]
enum Outside {
    Zeros,
    Border,
    Reflection,
}

#[derive(Clone, Copy)]
struct Sampling {
    mode: Mode,
    outside: Outside,
    aligns: bool,
}

impl Sampling {
    fn new(node: &Node) -> Result<Self, OpError> {
        Ok(Self {
            // Before opset 20, the modes had the names of the plane.
            mode: match node.text("mode")?.unwrap_or("linear") {
                "nearest" => Mode::Nearest,
                "linear" | "bilinear" => Mode::Linear,
                "cubic" | "bicubic" => Mode::Cubic,
                other => return Err(OpError::value("mode", other, "nearest, linear or cubic")),
            },
            outside: match node.text("padding_mode")?.unwrap_or("zeros") {
                "zeros" => Outside::Zeros,
                "border" => Outside::Border,
                "reflection" => Outside::Reflection,
                other => {
                    let expected = "zeros, border or reflection";
                    return Err(OpError::value("padding_mode", other, expected));
                }
            },
            aligns: node.int_or("align_corners", 0)? != 0,
        })
    }

    fn run(self, run: &Run) -> Result<Vec<Tensor>, OpError> {
        let (x, grid) = (run.input(0)?, run.input(1)?);
        let axes = x.rank().saturating_sub(2);
        let fits = axes > 0
            && grid.rank() == x.rank()
            && grid.shape()[0] == x.shape()[0]
            && grid.shape()[axes + 1] == axes;
        if !fits {
            return Err(OpError::shapes(x.shape(), grid.shape()));
        }
        let mut shape = x.shape()[..2].to_vec();
        shape.extend(&grid.shape()[1..=axes]);
        let found = grid.dtype();
        if !found.is_float() {
            return Err(OpError::DType { index: 1, found });
        }
        let mut y = run.output(x.dtype(), &shape)?;
        if y.element_count() > 0 && x.element_count() == 0 {
            return Err(OpError::value("the image", x.shape(), "one that is not empty"));
        }
        by_real!(x, 0, T => {
            let grid = grid.converted(<T as Element>::DTYPE).expect("floats convert to floats");
            self.sample::<T>(&mut y, x, &grid);
            Ok(vec![y])
        })
    }

    fn sample<T: Real>(self, y: &mut Tensor, x: &Tensor, grid: &Tensor) {
        let sizes = &x.shape()[2..];
        let (channels, plane) = (x.shape()[1], sizes.iter().product::<usize>());
        let places: usize = grid.shape()[1..=sizes.len()].iter().product();
        let points = grid.slice::<T>();
        let values = x.slice::<T>();
        let per_item = places * sizes.len();
        // Channels of an item share their taps, so an item is a row.
        for_rows(y.slice_mut::<T>(), channels * places, |first, items| {
            let mut taps = Taps { indices: Vec::new(), weights: Vec::new() };
            for (index, out) in items.chunks_exact_mut(channels * places).enumerate() {
                let item = first + index;
                let x = &values[item * channels * plane..(item + 1) * channels * plane];
                let points = &points[item * per_item..(item + 1) * per_item];
                for (place, point) in points.chunks_exact(sizes.len()).enumerate() {
                    self.set_taps(&mut taps, point, sizes);
                    for (channel, x) in x.chunks_exact(plane).enumerate() {
                        let terms = taps.indices.iter().zip(&taps.weights);
                        out[channel * places + place] =
                            terms.fold(T::ZERO, |sum, (&at, &weight)| sum + x[at] * weight);
                    }
                }
            }
        });
    }

    /// The elements of the image around a point, and their weights.
    fn set_taps<T: Real>(self, taps: &mut Taps<T>, point: &[T], sizes: &[usize]) {
        taps.indices.clear();
        taps.weights.clear();
        taps.indices.push(0);
        taps.weights.push(T::ONE);
        let mut stride: usize = sizes.iter().product();
        for (&size, &coordinate) in sizes.iter().zip(point.iter().rev()) {
            stride /= size;
            let (first, weights, count) = self.along_axis(coordinate.wide(), size);
            let before = taps.indices.len();
            for (tap, &weight) in weights[..count].iter().enumerate() {
                let Some(at) = self.place(first.saturating_add(tap as i64), size) else { continue };
                let weight = T::of(weight);
                for index in 0..before {
                    taps.indices.push(taps.indices[index] + at * stride);
                    taps.weights.push(taps.weights[index] * weight);
                }
            }
            taps.indices.drain(..before);
            taps.weights.drain(..before);
        }
    }

    /// First index, weights and their count along an axis.
    fn along_axis(self, coordinate: f64, size: usize) -> (i64, [f64; 4], usize) {
        let (x, _) = self.position(coordinate, size);
        let below = x.floor();
        let ratio = x - below;
        // A NaN counts as 0, like any float made an integer.
        let first = below as i64;
        match self.mode {
            Mode::Nearest => (x as i64, [1.0, 0.0, 0.0, 0.0], 1),
            Mode::Linear => (first, [1.0 - ratio, ratio, 0.0, 0.0], 2),
            Mode::Cubic => (first.saturating_sub(1), cubic(ratio), 4),
        }
    }

    /// The derivatives of the weights by the coordinate.
    fn slopes(self, coordinate: f64, size: usize) -> [f64; 4] {
        let (x, slope) = self.position(coordinate, size);
        match self.mode {
            Mode::Nearest => [0.0; 4],
            Mode::Linear => [-slope, slope, 0.0, 0.0],
            Mode::Cubic => cubic_slopes(x - x.floor()).map(|weight| weight * slope),
        }
    }

    /// Where a coordinate lies on an axis, and the derivative of that.
    fn position(self, coordinate: f64, size: usize) -> (f64, f64) {
        let length = size as f64;
        let from_start = coordinate + 1.0;
        let x = if self.aligns {
            from_start * 0.5 * (length - 1.0)
        } else {
            (from_start * length - 1.0) * 0.5
        };
        let step = if self.aligns { 0.5 * (length - 1.0) } else { 0.5 * length };
        let x = if self.mode == Mode::Nearest { x.round_ties_even() } else { x };
        let [low, high] = self.borders(size);
        match self.outside {
            Outside::Zeros => (x, step),
            // Only the taps are brought inside, as in ONNX Runtime and PyTorch; the reference
            // would move the point first.
            _ if self.mode == Mode::Cubic => (x, step),
            _ if (low..=high).contains(&x) => (x, step),
            Outside::Border => (x.clamp(0.0, length - 1.0), 0.0),
            Outside::Reflection => {
                let (inside, forth) = (reflected(x, low, high), reflected(x + REACH, low, high));
                (inside, if forth > inside { step } else { -step })
            }
        }
    }

    fn borders(self, size: usize) -> [f64; 2] {
        let length = size as f64;
        if self.aligns { [0.0, length - 1.0] } else { [-0.5, length - 0.5] }
    }

    /// The index that stands for one which may lie outside.
    fn place(self, index: i64, size: usize) -> Option<usize> {
        let last = size as i64 - 1;
        if (0..=last).contains(&index) {
            return Some(index as usize);
        }
        let [low, high] = self.borders(size);
        match self.outside {
            Outside::Zeros => None,
            Outside::Border => Some(index.clamp(0, last) as usize),
            Outside::Reflection => {
                Some((reflected(index as f64, low, high) as i64).clamp(0, last) as usize)
            }
        }
    }
}

/// Far enough to tell the direction of a reflected coordinate.
const REACH: f64 = 1e-6;

struct Taps<T> {
    indices: Vec<usize>,
    weights: Vec<T>,
}

/// x thrown back at the borders until it lies between them.
fn reflected(x: f64, low: f64, high: f64) -> f64 {
    let range = high - low;
    let distance = if x < low { low - x } else { x - high };
    if (low..=high).contains(&x) || range <= 0.0 || !distance.is_finite() {
        return if range <= 0.0 || !x.is_finite() { low } else { x };
    }
    let count = (distance / range).floor();
    let rest = distance - count * range;
    let is_even = count % 2.0 == 0.0;
    if (x < low) == is_even { low + rest } else { high - rest }
}

/// Keys' cubic convolution, a = −0.75, for the taps −1, 0, 1 and 2.
fn cubic(ratio: f64) -> [f64; 4] {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    [far(ratio + 1.0), near(ratio), near(1.0 - ratio), far(2.0 - ratio)]
}

/// The derivatives of [`cubic`].
fn cubic_slopes(ratio: f64) -> [f64; 4] {
    const A: f64 = -0.75;
    let near = |x: f64| (3.0 * (A + 2.0) * x - 2.0 * (A + 3.0)) * x;
    let far = |x: f64| (3.0 * A * x - 10.0 * A) * x + 8.0 * A;
    [far(ratio + 1.0), near(ratio), -near(1.0 - ratio), -far(2.0 - ratio)]
}

/// Gradients, per item of the batch: dx[tap] = Σ weight·dy, and dgrid = Σ dy·x·∂weight over the
/// channels.
impl Sampling {
    fn back(self, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
        let dy = run.take_gradient();
        let (shape, grid) = (run.shape(0), run.input(1)?);
        let item = Item {
            sampling: self,
            sizes: &shape[2..],
            channels: shape[1],
            plane: shape[2..].iter().product(),
            places: dy.shape()[2..].iter().product(),
        };
        let (per_item, axes) = (item.channels * item.places, item.sizes.len());
        let (dy_values, points) = (dy.slice::<f32>(), grid.slice::<f32>());
        let points_of = |at: usize| &points[at * item.places * axes..][..item.places * axes];
        let flows_of = |at: usize| &dy_values[at * per_item..][..per_item];
        let image_size = item.channels * item.plane;
        let dx = run.wants(0).then(|| {
            let mut dx = run.zeros(shape);
            for_rows(dx.slice_mut::<f32>(), image_size, |first, images| {
                for (index, dx) in images.chunks_exact_mut(image_size).enumerate() {
                    item.image_back(dx, flows_of(first + index), points_of(first + index));
                }
            });
            dx.into()
        });
        let dgrid = if run.wants(1) {
            let x = run.input(0)?.slice::<f32>();
            let mut dgrid = run.zeros(grid.shape());
            let size = item.places * axes;
            for_rows(dgrid.slice_mut::<f32>(), size, |first, grids| {
                for (index, dgrid) in grids.chunks_exact_mut(size).enumerate() {
                    let at = first + index;
                    let x = &x[at * image_size..(at + 1) * image_size];
                    item.grid_back(dgrid, x, flows_of(at), points_of(at));
                }
            });
            Some(dgrid.into())
        } else {
            None
        };
        run.pool.recycle(dy);
        Ok(vec![dx, dgrid])
    }
}

/// One image of the batch.
#[derive(Clone, Copy)]
struct Item<'a> {
    sampling: Sampling,
    sizes: &'a [usize],
    channels: usize,
    plane: usize,
    places: usize,
}

impl Item<'_> {
    fn image_back(self, dx: &mut [f32], dy: &[f32], points: &[f32]) {
        let mut taps = Taps { indices: Vec::new(), weights: Vec::new() };
        for (place, point) in points.chunks_exact(self.sizes.len()).enumerate() {
            self.sampling.set_taps(&mut taps, point, self.sizes);
            for (channel, dx) in dx.chunks_exact_mut(self.plane).enumerate() {
                let dy = dy[channel * self.places + place];
                for (&at, weight) in taps.indices.iter().zip(&taps.weights) {
                    dx[at] += dy * weight;
                }
            }
        }
    }

    fn grid_back(self, dgrid: &mut [f32], x: &[f32], dy: &[f32], points: &[f32]) {
        let axes = self.sizes.len();
        let mut taps = Taps { indices: Vec::new(), weights: Vec::new() };
        let places = dgrid.chunks_exact_mut(axes).zip(points.chunks_exact(axes)).enumerate();
        for (place, (dgrid, point)) in places {
            for (axis, slope) in dgrid.iter_mut().rev().enumerate() {
                self.set_slopes(&mut taps, point, axis);
                for (channel, x) in x.chunks_exact(self.plane).enumerate() {
                    let terms = taps.indices.iter().zip(&taps.weights);
                    let sum: f64 = terms.map(|(&at, weight)| f64::from(x[at]) * weight).sum();
                    *slope += (sum * f64::from(dy[channel * self.places + place])) as f32;
                }
            }
        }
    }

    /// The elements around a point, and the derivatives of their weights along an axis.
    fn set_slopes(self, taps: &mut Taps<f64>, point: &[f32], along: usize) {
        taps.indices.clear();
        taps.weights.clear();
        taps.indices.push(0);
        taps.weights.push(1.0);
        let mut stride = self.plane;
        for (axis, (&size, &coordinate)) in self.sizes.iter().zip(point.iter().rev()).enumerate() {
            stride /= size;
            let coordinate = f64::from(coordinate);
            let (first, mut weights, count) = self.sampling.along_axis(coordinate, size);
            if axis == along {
                weights = self.sampling.slopes(coordinate, size);
            }
            let before = taps.indices.len();
            for (tap, &weight) in weights[..count].iter().enumerate() {
                let at = self.sampling.place(first.saturating_add(tap as i64), size);
                let Some(at) = at else { continue };
                for index in 0..before {
                    taps.indices.push(taps.indices[index] + at * stride);
                    taps.weights.push(taps.weights[index] * weight);
                }
            }
            taps.indices.drain(..before);
            taps.weights.drain(..before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reflection_goes_back_and_forth() {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        near(reflected(-1.0, -0.5, 3.5), 0.0);
        near(reflected(4.0, -0.5, 3.5), 3.0);
        near(reflected(8.5, -0.5, 3.5), 0.5);
        near(reflected(-5.0, -0.5, 3.5), 3.0);
        near(reflected(2.0, 0.0, 0.0), 0.0);
        assert!(reflected(f64::INFINITY, 0.0, 3.0).is_finite());
    }

    #[test]
    fn cubic_weights_sum_to_one() {
        for step in 0..=10 {
            let sum: f64 = cubic(f64::from(step) / 10.0).iter().sum();
            assert!((sum - 1.0).abs() < 1e-12);
        }
    }
}
