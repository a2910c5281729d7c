//! `RoiAlign` (opset 16): every region is cut into bins, and a bin is the mean (or the maximum) of
//! points of the image, interpolated (He et al., 2017, arXiv:1703.06870).

use attar_graph::{Dim, Node};
use attar_tensor::Tensor;

use crate::gradient::gradient;
use crate::kernels::for_rows;
use crate::real::{Real, by_real};
use crate::{Backward, Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct RoiAlign;

impl Operator for RoiAlign {
    fn op_type(&self) -> &'static str {
        "RoiAlign"
    }

    fn since_opset(&self) -> i64 {
        16
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=3
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let alignment = Alignment::new(node)?;
        let reads = Reads::NOTHING.input(1).input(2).input_if(0, alignment.takes_max);
        gradient(reads, move |run| Ok(vec![Some(alignment.align_back(run)?.into())]))
    }

    fn widens_half(&self) -> bool {
        true
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let alignment = Alignment::new(node)?;
        let (x, rois) = (required(inputs, 0)?, required(inputs, 1)?);
        let at = |fact: &Fact, axis: usize| {
            let shape = fact.shape.as_ref().and_then(|shape| shape.get(axis).cloned());
            shape.unwrap_or(Dim::Unknown)
        };
        let bins = alignment.output.map(Dim::from);
        let dims = [at(rois, 0), at(x, 1)].into_iter().chain(bins).collect();
        Ok(vec![Fact::new(x.dtype, dims)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let alignment = Alignment::new(node)?;
        Ok(Box::new(move |run: &mut Run| alignment.run(run)))
    }
}

/// Points along one axis of a bin, at most: more is no region of an image.
const POINTS_MAX: f64 = 16384.0;

#[derive(Clone)]
struct Alignment {
    takes_max: bool,
    /// Whether coordinates are those of pixel centres.
    half_pixel: bool,
    /// Bins along height and width.
    output: [usize; 2],
    /// Points along each axis of a bin; 0 chooses by the region's size.
    sampling_ratio: usize,
    spatial_scale: f32,
}

impl Alignment {
    fn new(node: &Node) -> Result<Self, OpError> {
        let size = |name: &str, default: i64, least: i64| -> Result<usize, OpError> {
            let found = node.int_or(name, default)?;
            let size = usize::try_from(found).ok().filter(|_| found >= least);
            size.ok_or_else(|| OpError::value(name, found, format!("at least {least}")))
        };
        Ok(Self {
            takes_max: match node.text("mode")?.unwrap_or("avg") {
                "avg" => false,
                "max" => true,
                other => return Err(OpError::value("mode", other, "avg or max")),
            },
            half_pixel: match node.text("coordinate_transformation_mode")?.unwrap_or("half_pixel") {
                "half_pixel" => true,
                "output_half_pixel" => false,
                other => {
                    let expected = "half_pixel or output_half_pixel";
                    return Err(OpError::value("coordinate_transformation_mode", other, expected));
                }
            },
            output: [size("output_height", 1, 1)?, size("output_width", 1, 1)?],
            sampling_ratio: size("sampling_ratio", 0, 0)?,
            spatial_scale: node.float_or("spatial_scale", 1.0)?,
        })
    }

    fn run(&self, run: &Run) -> Result<Vec<Tensor>, OpError> {
        let (x, rois) = (run.input(0)?, run.input(1)?);
        let batches = run.typed::<i64>(2)?;
        if x.rank() != 4 || rois.rank() != 2 || rois.shape()[1] != 4 {
            return Err(OpError::shapes(x.shape(), rois.shape()));
        }
        if batches.shape() != [rois.shape()[0]] {
            return Err(OpError::shapes(rois.shape(), batches.shape()));
        }
        let mut shape = vec![rois.shape()[0], x.shape()[1]];
        shape.extend(self.output);
        let mut y = run.output(x.dtype(), &shape)?;
        if y.element_count() == 0 {
            return Ok(vec![y]);
        }
        let regions = self.regions(x.shape(), rois, batches)?;
        by_real!(x, 0, T => {
            self.align::<T>(y.slice_mut::<T>(), x, &regions);
            Ok(vec![y])
        })
    }

    /// The points of every region of images of a shape.
    fn regions(
        &self,
        shape: &[usize],
        rois: &Tensor,
        batches: &Tensor,
    ) -> Result<Vec<Region>, OpError> {
        let &[batch, _, height, width] = shape else { unreachable!("the rank is 4") };
        let image = [height, width];
        if image.contains(&0) {
            return Err(OpError::value("the image", shape, "one that is not empty"));
        }
        let boxes = rois.to_f64().ok_or(OpError::DType { index: 1, found: rois.dtype() })?;
        let mut regions = Vec::with_capacity(rois.shape()[0]);
        for (corners, &index) in boxes.chunks_exact(4).zip(batches.slice::<i64>()) {
            let item = usize::try_from(index).ok().filter(|&item| item < batch);
            let item = item
                .ok_or_else(|| OpError::value("a batch index", index, format!("below {batch}")))?;
            let rows = self.points(corners[1], corners[3], self.output[0], image[0])?;
            let columns = self.points(corners[0], corners[2], self.output[1], image[1])?;
            regions.push((item, rows, columns));
        }
        Ok(regions)
    }

    /// dx: each bin's gradient goes to the elements that it is the mean of, or to the greatest.
    /// None flows to the regions, as in `torchvision`.
    fn align_back(&self, run: &mut Backward) -> Result<Tensor, OpError> {
        let dy = run.take_gradient();
        let shape = run.shape(0);
        let mut dx = run.zeros(shape);
        if dy.element_count() == 0 {
            return Ok(dx);
        }
        let regions = self.regions(shape, run.input(1)?, run.input(2)?)?;
        let x = if self.takes_max { Some(run.input(0)?.slice::<f32>()) } else { None };
        let (channels, plane, width) = (shape[1], shape[2] * shape[3], shape[3]);
        let bins = self.output[0] * self.output[1];
        let (to, values) = (dx.slice_mut::<f32>(), dy.slice::<f32>());
        for (at, &dy) in values.iter().enumerate() {
            let (item, rows, columns) = &regions[at / (channels * bins)];
            let (channel, bin) = (item * channels + at / bins % channels, at % bins);
            let columns = &columns[bin % self.output[1]];
            let rows = &rows[bin / self.output[1]];
            let here = channel * plane..(channel + 1) * plane;
            let to = &mut to[here.clone()];
            let points = rows.iter().flatten().flat_map(|row| {
                columns.iter().flatten().flat_map(move |column| shares(width, row, column))
            });
            let Some(x) = x else {
                let count = (rows.len() * columns.len()).max(1) as f64;
                points.for_each(|(at, weight)| to[at] += (f64::from(dy) * weight / count) as f32);
                continue;
            };
            let x = &x[here];
            // A point outside the image counts as 0.
            let has_outside = rows.contains(&None) || columns.contains(&None);
            let mut best = has_outside.then_some((0.0, None));
            for (at, weight) in points {
                let term = f64::from(x[at]) * weight;
                if best.is_none_or(|(found, _)| term > found) {
                    best = Some((term, Some((at, weight))));
                }
            }
            if let Some((_, Some((at, weight)))) = best {
                to[at] += (f64::from(dy) * weight) as f32;
            }
        }
        run.pool.recycle(dy);
        Ok(dx)
    }

    /// The points of a region along an axis, bin after bin; `None` outside the image.
    fn points(
        &self,
        start: f64,
        end: f64,
        bins: usize,
        size: usize,
    ) -> Result<Vec<Vec<Option<Point>>>, OpError> {
        let offset = if self.half_pixel { 0.5 } else { 0.0 };
        let scale = f64::from(self.spatial_scale);
        let (start, end) = (start * scale - offset, end * scale - offset);
        let length = if self.half_pixel { end - start } else { (end - start).max(1.0) };
        let bin = length / bins as f64;
        let count = match self.sampling_ratio {
            0 => bin.ceil().max(0.0),
            count => count as f64,
        };
        if count > POINTS_MAX || !length.is_finite() {
            let expected = format!("at most {POINTS_MAX} points a bin");
            return Err(OpError::value("a region", [start, end], expected));
        }
        let points = |bin_index: usize| {
            let place =
                |point: usize| start + bin_index as f64 * bin + (point as f64 + 0.5) * bin / count;
            (0..count as usize).map(|point| Point::new(place(point), size)).collect()
        };
        Ok((0..bins).map(points).collect())
    }

    fn align<T: Real>(&self, y: &mut [T], x: &Tensor, regions: &[Region]) {
        let (channels, width) = (x.shape()[1], x.shape()[3]);
        let plane = x.shape()[2] * width;
        let values = x.slice::<T>();
        let bins = self.output[0] * self.output[1];
        for_rows(y, channels * bins, |first, rows| {
            for (index, out) in rows.chunks_exact_mut(channels * bins).enumerate() {
                let (item, rows, columns) = &regions[first + index];
                for (at, out) in out.iter_mut().enumerate() {
                    let (channel, bin) = (item * channels + at / bins, at % bins);
                    let x = &values[channel * plane..(channel + 1) * plane];
                    let rows = &rows[bin / self.output[1]];
                    let columns = &columns[bin % self.output[1]];
                    *out = self.bin(x, width, rows, columns);
                }
            }
        });
    }

    fn bin<T: Real>(
        &self,
        x: &[T],
        width: usize,
        rows: &[Option<Point>],
        columns: &[Option<Point>],
    ) -> T {
        let mut sum = T::ZERO;
        let mut greatest: Option<T> = None;
        for row in rows {
            for column in columns {
                let terms = match (row, column) {
                    (Some(row), Some(column)) => terms(x, width, row, column),
                    _ => [T::ZERO; 4],
                };
                if self.takes_max {
                    for term in terms {
                        greatest = Some(
                            greatest.map_or(term, |best| if term > best { term } else { best }),
                        );
                    }
                } else {
                    sum += (terms[0] + terms[1]) + (terms[2] + terms[3]);
                }
            }
        }
        if self.takes_max {
            greatest.unwrap_or(T::ZERO)
        } else {
            sum / T::of((rows.len() * columns.len()).max(1) as f64)
        }
    }
}

/// Item of the batch, points along the height and along the width.
type Region = (usize, Vec<Vec<Option<Point>>>, Vec<Vec<Option<Point>>>);

/// A point of an axis between two elements.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    low: usize,
    high: usize,
    /// The weight of `high`.
    ratio: f64,
}

impl Point {
    fn new(x: f64, size: usize) -> Option<Self> {
        if !(-1.0..=size as f64).contains(&x) {
            return None;
        }
        let x = x.max(0.0);
        let low = x as usize;
        if low >= size - 1 {
            return Some(Self { low: size - 1, high: size - 1, ratio: 0.0 });
        }
        Some(Self { low, high: low + 1, ratio: x - low as f64 })
    }
}

/// The four weighted neighbours of a point.
fn terms<T: Real>(x: &[T], width: usize, row: &Point, column: &Point) -> [T; 4] {
    shares(width, row, column).map(|(at, weight)| x[at] * T::of(weight))
}

/// Where the four neighbours of a point stand, and their weights.
fn shares(width: usize, row: &Point, column: &Point) -> [(usize, f64); 4] {
    let at = |r: usize, c: usize, weight: f64| (r * width + c, weight);
    let (v, u) = (row.ratio, column.ratio);
    [
        at(row.low, column.low, (1.0 - v) * (1.0 - u)),
        at(row.low, column.high, (1.0 - v) * u),
        at(row.high, column.low, v * (1.0 - u)),
        at(row.high, column.high, v * u),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_outside_the_image_are_none() {
        assert_eq!(Point::new(-1.5, 4), None);
        assert_eq!(Point::new(f64::NAN, 4), None);
        assert_eq!(Point::new(-0.5, 4), Some(Point { low: 0, high: 1, ratio: 0.0 }));
        assert_eq!(Point::new(3.7, 4), Some(Point { low: 3, high: 3, ratio: 0.0 }));
        assert_eq!(Point::new(1.25, 4), Some(Point { low: 1, high: 2, ratio: 0.25 }));
    }
}
