//! The rows X of a product X·W, as its operator takes them out of its input.

use attar_graph::{Graph, Model, Node};
use attar_tensor::{DType, Tensor};

use crate::layout::{DataAxis, Matrix, readings};

/// A constant weight, the value it meets, and how rows of the one meet matrices of the other.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    /// The weight's name.
    pub(crate) name: String,
    /// The node that reads it, the first of several.
    pub(crate) index: usize,
    pub(crate) data: String,
    pub(crate) rows: Rows,
    pub(crate) matrices: Vec<Matrix>,
}

/// How rows are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// The channels at each place.
    Channels(DataAxis),
    /// What a kernel covers at each place of its output, tap by tap; of each group by itself.
    Windows(Window),
}

/// The geometry of a convolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    padding: Padding,
    groups: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Padding {
    /// Before each axis; then after each axis.
    Given(Vec<usize>, Vec<usize>),
    /// So that there are ⌈size / stride⌉ outputs; whether the odd one stands before.
    Same(bool),
}

/// The products of the constants `names` whose rows can be taken, in the order of the names.
pub(crate) fn products(model: &Model, names: &[String]) -> Vec<Product> {
    names.iter().filter_map(|name| product(&model.graph, name)).collect()
}

fn product(graph: &Graph, name: &str) -> Option<Product> {
    let tensor = graph.constant(name)?;
    let readings = readings(graph, name)?;
    let first = &readings[0];
    if tensor.dtype() != DType::F32 || graph.constant(first.data).is_some() {
        return None;
    }
    let rows = match first.node.op_type.as_str() {
        "Conv" => Rows::Windows(window(first.node, tensor.shape())?),
        // What it sums over lies scattered over the places of its output.
        "ConvTranspose" => return None,
        // Each matrix of a batch meets rows of its own.
        "MatMul" if tensor.rank() > 2 => return None,
        _ => Rows::Channels(first.data_axis),
    };
    let index = graph.nodes.iter().position(|node| std::ptr::eq(node, first.node))?;
    let matrices = first.layout.matrices(tensor.shape());
    Some(Product { name: name.into(), index, data: first.data.into(), rows, matrices })
}

fn window(node: &Node, shape: &[usize]) -> Option<Window> {
    let kernel = shape[2..].to_vec();
    let axes = kernel.len();
    let sizes = |name: &str, default: usize, count: usize| -> Option<Vec<usize>> {
        let given = node.ints(name).ok()?;
        let Some(given) = given else { return Some(vec![default; count]) };
        let sizes = given.iter().map(|&size| usize::try_from(size).ok());
        sizes.collect::<Option<Vec<_>>>().filter(|sizes| sizes.len() == count)
    };
    let padding = match node.text("auto_pad").ok()? {
        Some("SAME_UPPER") => Padding::Same(false),
        Some("SAME_LOWER") => Padding::Same(true),
        Some("VALID") => Padding::Given(vec![0; axes], vec![0; axes]),
        _ => {
            let mut pads = sizes("pads", 0, 2 * axes)?;
            let after = pads.split_off(axes);
            Padding::Given(pads, after)
        }
    };
    let groups = node.int_or("group", 1).ok().and_then(|groups| usize::try_from(groups).ok())?;
    let (strides, dilations) = (sizes("strides", 1, axes)?, sizes("dilations", 1, axes)?);
    if strides.contains(&0) || groups == 0 {
        return None;
    }
    Some(Window { kernel, strides, dilations, padding, groups })
}

/// Places taken of one image.
const PLACES_MAX: usize = 256;

impl Rows {
    /// Shows the rows of a value, each with its group. Of images of many places some are taken,
    /// spread over them.
    pub(crate) fn for_each(&self, tensor: &Tensor, visit: &mut dyn FnMut(usize, &[f32])) {
        let values = tensor.values::<f32>();
        match self {
            Self::Channels(axis) => {
                let Some([outer, channels, inner]) = axis.split(tensor.shape()) else { return };
                let mut row = Vec::with_capacity(channels);
                let step = inner.div_ceil(PLACES_MAX).max(1) | 1;
                for first in (0..outer).map(|index| index * channels * inner) {
                    for place in (0..inner).step_by(step) {
                        row.clear();
                        row.extend(values[first + place..].iter().step_by(inner).take(channels));
                        visit(0, &row);
                    }
                }
            }
            Self::Windows(window) => window.for_each(tensor.shape(), &values, visit),
        }
    }
}

impl Window {
    fn for_each(&self, shape: &[usize], values: &[f32], visit: &mut dyn FnMut(usize, &[f32])) {
        let axes = self.kernel.len();
        if shape.len() != axes + 2 {
            return;
        }
        let (sizes, channels) = (&shape[2..], shape[1]);
        let (before, outputs) = self.places(sizes);
        let (inner, count): (usize, usize) = (sizes.iter().product(), outputs.iter().product());
        let taps: usize = self.kernel.iter().product();
        let each = channels / self.groups;
        let step = count.div_ceil(PLACES_MAX).max(1) | 1;
        let mut row = Vec::with_capacity(taps * each);
        for image in 0..shape[0] {
            for place in (0..count).step_by(step) {
                let at = position(place, &outputs);
                let reads: Vec<Option<usize>> =
                    (0..taps).map(|tap| self.read(&at, tap, &before, sizes)).collect();
                for group in 0..self.groups {
                    row.clear();
                    let first = (image * channels + group * each) * inner;
                    for read in &reads {
                        let taken = (0..each).map(|channel| first + channel * inner);
                        row.extend(
                            taken.map(|first| read.map_or(0.0, |read| values[first + read])),
                        );
                    }
                    visit(group, &row);
                }
            }
        }
    }

    /// What is padded before each axis, and the sizes of the output.
    fn places(&self, sizes: &[usize]) -> (Vec<usize>, Vec<usize>) {
        let (mut before, mut outputs) = (Vec::new(), Vec::new());
        for (axis, &size) in sizes.iter().enumerate() {
            let stride = self.strides[axis];
            let extent = (self.kernel[axis].max(1) - 1) * self.dilations[axis] + 1;
            let (first, output) = match &self.padding {
                Padding::Given(first, last) => {
                    let padded = size + first[axis] + last[axis];
                    (first[axis], padded.checked_sub(extent).map_or(0, |rest| rest / stride + 1))
                }
                Padding::Same(is_lower) => {
                    let output = size.div_ceil(stride);
                    let needed = output.saturating_sub(1) * stride + extent;
                    let all = needed.saturating_sub(size);
                    (if *is_lower { all.div_ceil(2) } else { all / 2 }, output)
                }
            };
            before.push(first);
            outputs.push(output);
        }
        (before, outputs)
    }

    /// The place in the image that a tap reads at a place of the output; `None` for padding.
    fn read(&self, at: &[usize], tap: usize, before: &[usize], sizes: &[usize]) -> Option<usize> {
        let tap = position(tap, &self.kernel);
        let mut place = 0;
        for axis in 0..sizes.len() {
            let read = at[axis] * self.strides[axis] + tap[axis] * self.dilations[axis];
            let read = read.checked_sub(before[axis]).filter(|&read| read < sizes[axis])?;
            place = place * sizes[axis] + read;
        }
        Some(place)
    }
}

/// An index of a row-major array as a position on each axis.
fn position(mut index: usize, sizes: &[usize]) -> Vec<usize> {
    let mut position = vec![0; sizes.len()];
    for (at, &size) in position.iter_mut().zip(sizes).rev() {
        *at = index % size;
        index /= size;
    }
    position
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::testing::graph_from_text;
    use attar_runtime::{Builtin, RunOptions, Runtime};
    use attar_train::Rng;

    /// Rows times matrices are what the runtime computes, at every place, in order.
    fn check(call: &str, weight_shape: &[usize], data_shape: &[usize]) {
        let mut rng = Rng::new(&[1]);
        let mut drawn = |shape: &[usize]| {
            let values: Vec<f32> =
                (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
            Tensor::new(shape, &values)
        };
        let (w, x) = (drawn(weight_shape), drawn(data_shape));
        let opsets = [(String::new(), 17)].into_iter().collect();
        let mut graph = graph_from_text(&format!("y = {call}"));
        graph.inputs.retain(|input| input.name == "x");
        graph.set_initializer("w", w.clone());
        let model = Model { ir_version: 8, opsets, graph, ..Model::default() };
        let product = products(&model, &["w".into()]).remove(0);
        let weights = w.values::<f32>();
        let mut found: Vec<f32> = Vec::new();
        product.rows.for_each(&x, &mut |group, row| {
            let own = product.matrices.iter().filter(|matrix| matrix.group == group);
            for matrix in own {
                found.extend(matrix.outputs.iter().map(|output| -> f32 {
                    assert_eq!(matrix.inputs.len(), row.len());
                    matrix
                        .inputs
                        .iter()
                        .zip(row)
                        .map(|(input, x)| x * weights[input + output])
                        .sum()
                }));
            }
        });
        let mut session = Builtin.load(&model, &RunOptions::default()).unwrap();
        let y = session.run(&[("x", &x)]).unwrap().remove(0);
        // Outputs as rows: [images, places, channels].
        let axis = if call.starts_with("Conv") { DataAxis::Second } else { DataAxis::Last };
        let mut expected = Vec::new();
        Rows::Channels(axis).for_each(&y, &mut |_, row| expected.extend_from_slice(row));
        assert_eq!(found.len(), expected.len(), "{call}");
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Sums of at most 36 products in f32.
        assert!(worst < 1e-4, "{call}: {worst}");
    }

    #[test]
    fn rows_times_matrices_are_what_the_operator_computes() {
        check("MatMul(x, w)", &[5, 7], &[2, 3, 5]);
        check("Gemm(x, w, transB=1)", &[7, 5], &[4, 5]);
        check("Conv(x, w)", &[3, 4, 1, 1], &[2, 4, 5, 6]);
        check("Conv(x, w, pads=1 1 1 1)", &[3, 4, 3, 3], &[2, 4, 5, 6]);
        check("Conv(x, w, pads=2 0 1 1, strides=2 1, dilations=1 2)", &[3, 4, 3, 2], &[1, 4, 7, 6]);
        check("Conv(x, w, group=4, pads=1 1 1 1, strides=2 2)", &[8, 1, 3, 3], &[2, 4, 6, 6]);
        check("Conv(x, w, group=2)", &[6, 2, 3], &[2, 4, 9]);
    }
}
