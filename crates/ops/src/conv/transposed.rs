//! A convolution run the other way, with its channels last: every input pixel adds
//! x[c] · w[c, o, t] to the outputs under its window. The products are one 1×1 convolution to
//! [tap, output]; a second step adds them up, in the order of taps.

use attar_graph::Node;
use attar_tensor::DType;

use super::engine::{Engine, Job};
use super::settings::Settings;
use crate::geometry::Axis;
use crate::kernels::for_rows;
use crate::{OpError, Pool};

pub(crate) struct Transposed {
    /// [inputs, outputs per group, kernel…]
    pub(crate) shape: Vec<usize>,
    pub(crate) group: usize,
    /// Per group, the 1×1 convolution from its inputs to [tap, output].
    engine: Engine,
}

/// Products that are held at a time, unless one image has more.
const PRODUCTS_MAX: usize = 1 << 22;

impl Transposed {
    /// # Errors
    /// Weights of another shape than [inputs, outputs per group, kernel…].
    pub(crate) fn new(values: &[f32], shape: &[usize], group: usize) -> Result<Self, OpError> {
        if shape.len() < 3 || shape.contains(&0) || !shape[0].is_multiple_of(group) {
            return Err(OpError::value("the weight", shape, format!("inputs in {group} groups")));
        }
        let (inputs, outputs) = (shape[0] / group, shape[1]);
        let taps: usize = shape[2..].iter().product();
        // [group, tap, output, input]
        let mut matrix = Vec::with_capacity(values.len());
        for g in 0..group {
            for row in 0..taps * outputs {
                let (tap, o) = (row / outputs, row % outputs);
                let at = |c: usize| ((g * inputs + c) * outputs + o) * taps + tap;
                matrix.extend((0..inputs).map(|c| values[at(c)]));
            }
        }
        let rows = group * taps * outputs;
        let plain = Node::new("Conv", "", &[], &[]).with_attribute("group", group as i64);
        let settings = Settings::new(&plain, &[1, 1])?;
        let engine = Engine::new_dense(&matrix, &[rows, inputs, 1, 1], settings)?;
        Ok(Self { shape: shape.to_vec(), group, engine })
    }

    /// Convolves into `y`, [batch, spatial…, outputs]. The axes are those of the convolution that
    /// this one reverses: their input is what is made here.
    pub(crate) fn run(
        &self,
        y: &mut [f32],
        x: &[f32],
        axes: &[Axis],
        bias: Option<&[f32]>,
        pool: &Pool,
    ) {
        let pixels: usize = axes.iter().map(|axis| axis.output).product();
        let places: usize = axes.iter().map(|axis| axis.input).product();
        let taps: usize = self.shape[2..].iter().product();
        let outputs = self.shape[1] * self.group;
        let (x_image, y_image) = (pixels * self.shape[0], places * outputs);
        if y.is_empty() {
            return;
        }
        let each = pixels * taps * outputs;
        let images = (PRODUCTS_MAX / each.max(1)).clamp(1, y.len() / y_image);
        for (index, y) in y.chunks_mut(images * y_image).enumerate() {
            let batch = y.len() / y_image;
            let mut products = pool.tensor(DType::F32, &[batch, each]);
            let unit = Axis { input: pixels, output: pixels, ..Axis::UNIT };
            let job = Job {
                x: &x[index * images * x_image..][..batch * x_image],
                batch,
                axes: vec![Axis::UNIT, unit],
                bias: None,
                addend: None,
                pool,
            };
            self.engine.run(products.slice_mut(), &job);
            self.gather(y, products.slice(), bias, axes);
            pool.recycle(products);
        }
    }

    /// Adds up what the products give to each output pixel, in the order of taps.
    fn gather(&self, y: &mut [f32], products: &[f32], bias: Option<&[f32]>, axes: &[Axis]) {
        let (per_group, group) = (self.shape[1], self.group);
        let outputs = per_group * group;
        let (wide, outer) = axes.split_last().expect("there is a spatial axis");
        let lines: usize = outer.iter().map(|axis| axis.input).product();
        let outer_taps: usize = outer.iter().map(|axis| axis.kernel).product();
        let outer_pixels: usize = outer.iter().map(|axis| axis.output).product();
        let taps = outer_taps * wide.kernel;
        // Along a line, what each place gets: from which tap and pixel.
        let given: Vec<Vec<(usize, usize)>> = (0..wide.input)
            .map(|place| {
                let from = |tap| Some((tap, contributor(std::slice::from_ref(wide), place, tap)?));
                (0..wide.kernel).filter_map(from).collect()
            })
            .collect();
        for_rows(y, wide.input * outputs, |first, rows| {
            for (index, line) in rows.chunks_exact_mut(wide.input * outputs).enumerate() {
                let (n, place) = ((first + index) / lines, (first + index) % lines);
                for row in line.chunks_exact_mut(outputs) {
                    match bias {
                        Some(bias) => row.copy_from_slice(bias),
                        None => row.fill(0.0),
                    }
                }
                for outer_tap in 0..outer_taps {
                    let Some(from) = contributor(outer, place, outer_tap) else { continue };
                    let start = (n * outer_pixels + from) * wide.output * taps * outputs;
                    for (row, given) in line.chunks_exact_mut(outputs).zip(&given) {
                        for &(tap, pixel) in given {
                            let tap = outer_tap * wide.kernel + tap;
                            let products = &products[start + pixel * taps * outputs..];
                            for (g, row) in row.chunks_exact_mut(per_group).enumerate() {
                                let products = &products[(g * taps + tap) * per_group..];
                                row.iter_mut()
                                    .zip(products)
                                    .for_each(|(y, &product)| *y += product);
                            }
                        }
                    }
                }
            }
        });
    }
}

/// The input pixel whose window has its tap on an output place, both in row-major order.
pub(crate) fn contributor(axes: &[Axis], mut place: usize, mut tap: usize) -> Option<usize> {
    let (mut at, mut pitch) = (0, 1);
    for axis in axes.iter().rev() {
        let shifted = place % axis.input + axis.pad;
        let from = shifted.checked_sub(tap % axis.kernel * axis.dilation)?;
        if !from.is_multiple_of(axis.stride) || from / axis.stride >= axis.output {
            return None;
        }
        at += from / axis.stride * pitch;
        place /= axis.input;
        tap /= axis.kernel;
        pitch *= axis.output;
    }
    Some(at)
}
