//! How the weight of a product lies: which axis counts its outputs, which its inputs, and what it
//! is multiplied with.

use attar_graph::{Graph, Node};

/// Axes of a weight. Each further axis counts places: taps of a kernel, directions, batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) output_axis: usize,
    pub(crate) input_axis: usize,
    /// Groups of outputs that have inputs of their own.
    pub(crate) groups: usize,
    /// Whether the further axes are taps, all of which an output sums over; else each place is a
    /// matrix of its own.
    pub(crate) is_kernel: bool,
}

/// A weight, or a part of it, as a matrix: outputs sum over inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Matrix {
    /// Of a grouped convolution.
    pub(crate) group: usize,
    /// Where the weight of input k and output n is: at `inputs[k] + outputs[n]`.
    pub(crate) inputs: Vec<usize>,
    pub(crate) outputs: Vec<usize>,
    /// Successive inputs of one tap.
    pub(crate) run: usize,
}

/// A node that reads a constant as the weight of a product.
pub(crate) struct Reading<'a> {
    pub(crate) node: &'a Node,
    pub(crate) layout: Layout,
    /// The value that meets the weight.
    pub(crate) data: &'a str,
    pub(crate) data_axis: DataAxis,
}

/// Where the channels of a value are that a weight's inputs meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataAxis {
    First,
    Second,
    BeforeLast,
    Last,
}

impl DataAxis {
    /// Sizes of what stands outside of, along and inside the axis; `None` for too few axes.
    pub(crate) fn split(self, shape: &[usize]) -> Option<[usize; 3]> {
        let axis = match self {
            Self::First => 0,
            Self::Second => 1,
            Self::BeforeLast => shape.len().checked_sub(2)?,
            Self::Last => shape.len().checked_sub(1)?,
        };
        let channels = *shape.get(axis)?;
        Some([shape[..axis].iter().product(), channels, shape[axis + 1..].iter().product()])
    }
}

/// Recurrent operators, whose inputs 1 and 2 meet the input and the state.
const RECURRENT: [&str; 3] = ["LSTM", "GRU", "RNN"];

/// Input `input` of `node`, of rank `rank`, as the weight of a product.
pub(crate) fn reading(node: &Node, input: usize, rank: usize) -> Option<Reading<'_>> {
    let (data, data_axis, [output_axis, input_axis]) = match (node.op_type.as_str(), input) {
        _ if !node.domain.is_empty() => return None,
        ("MatMul", 1) if rank >= 2 => (node.input(0)?, DataAxis::Last, [rank - 1, rank - 2]),
        ("MatMul", 0) if rank >= 2 => (node.input(1)?, DataAxis::BeforeLast, [rank - 2, rank - 1]),
        ("Gemm", 1) if rank == 2 => {
            let turned = |name| node.int_or(name, 0).is_ok_and(|turned| turned != 0);
            let axis = if turned("transA") { DataAxis::First } else { DataAxis::Last };
            let axes = if turned("transB") { [0, 1] } else { [1, 0] };
            (node.input(0)?, axis, axes)
        }
        ("Conv", 1) if rank >= 3 => (node.input(0)?, DataAxis::Second, [0, 1]),
        ("ConvTranspose", 1) if rank >= 3 => (node.input(0)?, DataAxis::Second, [1, 0]),
        (op_type, 1) if rank == 3 && RECURRENT.contains(&op_type) => {
            (node.input(0)?, DataAxis::Last, [1, 2])
        }
        (op_type, 2) if rank == 3 && RECURRENT.contains(&op_type) => {
            let state = node.outputs.iter().find(|output| !output.is_empty())?;
            (state.as_str(), DataAxis::Last, [1, 2])
        }
        _ => return None,
    };
    let groups = node.int_or("group", 1).map_or(1, |groups| groups.max(1) as usize);
    let is_kernel = matches!(node.op_type.as_str(), "Conv" | "ConvTranspose");
    let layout = Layout { output_axis, input_axis, groups, is_kernel };
    Some(Reading { node, layout, data, data_axis })
}

/// All readings of the constant `name` as a weight, or `None` where a node reads it otherwise too,
/// or its readers do not agree how it lies.
pub(crate) fn readings<'a>(graph: &'a Graph, name: &str) -> Option<Vec<Reading<'a>>> {
    let rank = graph.constant(name)?.rank();
    let mut found: Vec<Reading> = Vec::new();
    for node in &graph.nodes {
        for (input, _) in node.inputs.iter().enumerate().filter(|(_, input)| *input == name) {
            let reading = reading(node, input, rank)?;
            if found.first().is_some_and(|first| first.layout != reading.layout) {
                return None;
            }
            found.push(reading);
        }
    }
    (!found.is_empty()).then_some(found)
}

impl Layout {
    /// Outputs and inputs of each place.
    pub(crate) fn size(self, shape: &[usize]) -> [usize; 2] {
        [shape[self.output_axis], shape[self.input_axis]]
    }

    /// Steps from one output and from one input to the next.
    pub(crate) fn strides(self, shape: &[usize]) -> [usize; 2] {
        [self.output_axis, self.input_axis].map(|axis| shape[axis + 1..].iter().product())
    }

    /// Where each place's first weight is, in order.
    fn places(self, shape: &[usize]) -> Vec<usize> {
        let mut places = vec![0];
        for axis in
            (0..shape.len()).filter(|axis| ![self.output_axis, self.input_axis].contains(axis))
        {
            let stride: usize = shape[axis + 1..].iter().product();
            let along = |place: usize| (0..shape[axis]).map(move |index| place + index * stride);
            places = places.into_iter().flat_map(along).collect();
        }
        places
    }

    /// The matrices that a weight consists of; each weight is in one of them. Inputs are those of
    /// the first tap, then those of the second.
    pub(crate) fn matrices(self, shape: &[usize]) -> Vec<Matrix> {
        let [outputs, inputs] = self.size(shape);
        let [output_stride, input_stride] = self.strides(shape);
        let along = |places: &[usize]| -> Vec<usize> {
            let of_place = |&place: &usize| (0..inputs).map(move |i| place + i * input_stride);
            places.iter().flat_map(of_place).collect()
        };
        let outputs: Vec<usize> = (0..outputs).map(|output| output * output_stride).collect();
        let places = self.places(shape);
        if !self.is_kernel {
            let matrix = |place| Matrix {
                group: 0,
                inputs: along(&[place]),
                outputs: outputs.clone(),
                run: inputs,
            };
            return places.into_iter().map(matrix).collect();
        }
        let groups = if self.output_axis < self.input_axis { self.groups } else { 1 };
        let each = (outputs.len() / groups).max(1);
        let parts = outputs.chunks(each).enumerate();
        let matrix = |(group, outputs): (usize, &[usize])| Matrix {
            group,
            inputs: along(&places),
            outputs: outputs.to_vec(),
            run: inputs,
        };
        parts.map(matrix).collect()
    }

    /// The channel of the data that the weight at `offset` meets.
    pub(crate) fn channel(self, shape: &[usize], offset: usize) -> usize {
        let [outputs, inputs] = self.size(shape);
        let [output_stride, input_stride] = self.strides(shape);
        let input = offset / input_stride % inputs;
        if self.output_axis > self.input_axis || self.groups == 1 {
            return input;
        }
        let outputs_each = (outputs / self.groups).max(1);
        offset / output_stride % outputs / outputs_each * inputs + input
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::testing::graph_from_text;

    #[test]
    fn every_product_says_where_its_weight_has_outputs_and_inputs() {
        let graph = graph_from_text(
            "w = [1 2; 3 4]
            a = MatMul(x, w)
            b = Gemm(y, v, transB=1)
            c = Conv(z, k, group=2)
            d = ConvTranspose(z, k)
            e = LSTM(s, m, r)
            f = Add(x, w)",
        );
        let found = |node: usize, input: usize, rank: usize| {
            let reading = reading(&graph.nodes[node], input, rank)?;
            Some((reading.layout.output_axis, reading.layout.input_axis, reading.data.to_string()))
        };
        assert_eq!(found(0, 1, 2), Some((1, 0, "x".into())));
        assert_eq!(found(1, 1, 2), Some((0, 1, "y".into())));
        assert_eq!(found(2, 1, 4), Some((0, 1, "z".into())));
        assert_eq!(found(3, 1, 4), Some((1, 0, "z".into())));
        assert_eq!(found(4, 2, 3), Some((1, 2, "e".into())));
        assert_eq!(found(5, 1, 2), None);
        assert!(readings(&graph, "w").is_none(), "the addition reads it too");
    }

    #[test]
    fn weights_of_a_group_meet_its_own_channels() {
        let layout = Layout { output_axis: 0, input_axis: 1, groups: 2, is_kernel: true };
        // [4 outputs, 1 input of each group, 3 taps]: outputs 2 and 3 meet channel 1.
        let shape = [4, 1, 3];
        let channels: Vec<usize> = (0..12).map(|offset| layout.channel(&shape, offset)).collect();
        assert_eq!(channels, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
        let matrix = |group, outputs: [usize; 2]| Matrix {
            group,
            inputs: vec![0, 1, 2],
            outputs: outputs.to_vec(),
            run: 1,
        };
        assert_eq!(layout.matrices(&shape), [matrix(0, [0, 3]), matrix(1, [6, 9])]);
    }

    #[test]
    fn inputs_of_a_kernel_stand_tap_by_tap_and_directions_apart() {
        let layout = Layout { output_axis: 0, input_axis: 1, groups: 1, is_kernel: true };
        let matrices = layout.matrices(&[1, 2, 2]);
        assert_eq!(matrices[0].inputs, [0, 2, 1, 3]);
        let layout = Layout { output_axis: 1, input_axis: 2, groups: 1, is_kernel: false };
        let matrices = layout.matrices(&[2, 2, 3]);
        assert_eq!(matrices[1].inputs, [6, 7, 8]);
        assert_eq!(matrices[1].outputs, [0, 3]);
    }
}
