//! Windows that slide over spatial axes: `kernel_shape`, `strides`, `dilations`, `pads`,
//! `auto_pad` and `ceil_mode` of convolution and pooling.

use std::ops::Range;

use attar_graph::{Dim, Node};

use crate::OpError;

/// How windows are laid over the spatial axes of an input; sizes are those of each axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Geometry {
    pub(crate) kernel: Vec<usize>,
    pub(crate) strides: Vec<usize>,
    pub(crate) dilations: Vec<usize>,
    pub(crate) padding: Padding,
    /// Whether a last window that is only partly inside counts (pooling).
    pub(crate) ceil_mode: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Padding {
    /// Starts of all axes, then ends.
    Explicit(Vec<usize>),
    /// As much as makes the output ⌈input / stride⌉ long, the odd one at the end.
    SameUpper,
    /// The same, the odd one at the start.
    SameLower,
}

/// What a geometry makes of one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Axis {
    pub(crate) input: usize,
    pub(crate) output: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) dilation: usize,
    /// Padding before the first element.
    pub(crate) pad: usize,
    /// Padding behind the last element, as far as the attributes ask for it.
    pub(crate) pad_end: usize,
}

impl Axis {
    /// An axis of one element that no window moves along.
    pub(crate) const UNIT: Self =
        Self { input: 1, output: 1, kernel: 1, stride: 1, dilation: 1, pad: 0, pad_end: 0 };

    /// The input index under a tap of an output, or `None` in the padding.
    pub(crate) fn source(&self, output: usize, tap: usize) -> Option<usize> {
        let padded = output * self.stride + tap * self.dilation;
        padded.checked_sub(self.pad).filter(|&at| at < self.input)
    }

    /// The taps of an output that lie on the input, not in the padding.
    pub(crate) fn taps(&self, output: usize) -> Range<usize> {
        let start = output * self.stride;
        let first = self.pad.saturating_sub(start).div_ceil(self.dilation).min(self.kernel);
        let inside = self.pad.saturating_add(self.input).saturating_sub(start);
        first..inside.div_ceil(self.dilation).min(self.kernel).max(first)
    }

    /// How many taps of an output lie on the input or the padding that was asked for.
    pub(crate) fn padded_tap_count(&self, output: usize) -> usize {
        let end = self.input.saturating_add(self.pad).saturating_add(self.pad_end);
        let inside = end.saturating_sub(output * self.stride);
        inside.div_ceil(self.dilation).min(self.kernel)
    }
}

impl Geometry {
    /// Reads the attributes of a node whose windows have the size `kernel`.
    ///
    /// # Errors
    /// Lists of another length, negative padding, strides or dilations below 1.
    pub(crate) fn new(node: &Node, kernel: &[usize]) -> Result<Self, OpError> {
        let spatial = kernel.len();
        let strides = list(node, "strides", 1, spatial)?;
        let padding = match node.text("auto_pad")?.unwrap_or("NOTSET") {
            "NOTSET" | "" => Padding::Explicit(list(node, "pads", 0, spatial.saturating_mul(2))?),
            "VALID" => Padding::Explicit(vec![0; spatial.saturating_mul(2)]),
            "SAME_UPPER" => Padding::SameUpper,
            "SAME_LOWER" => Padding::SameLower,
            other => return Err(OpError::value("auto_pad", other, "one that ONNX defines")),
        };
        Ok(Self {
            kernel: kernel.to_vec(),
            strides,
            dilations: list(node, "dilations", 1, spatial)?,
            padding,
            ceil_mode: node.int_or("ceil_mode", 0)? != 0,
        })
    }

    /// Reads the attributes of a node that names its window by `kernel_shape`, as pooling does.
    ///
    /// # Errors
    /// As [`Geometry::new`], and a `kernel_shape` that is absent or has sizes below 1.
    pub(crate) fn of_pooling(node: &Node) -> Result<Self, OpError> {
        let shape = node.ints("kernel_shape")?.unwrap_or(&[]);
        let kernel: Option<Vec<usize>> =
            shape.iter().map(|&size| usize::try_from(size).ok().filter(|&size| size > 0)).collect();
        match kernel {
            Some(kernel) if !kernel.is_empty() => Self::new(node, &kernel),
            _ => Err(OpError::value("kernel_shape", shape, "sizes of at least 1")),
        }
    }

    /// Output size and padding along one axis; `None` where no window fits or sizes overflow.
    pub(crate) fn axis(&self, axis: usize, input: usize) -> Option<Axis> {
        let (kernel, stride) = (self.kernel[axis], self.strides[axis]);
        let dilation = self.dilations[axis];
        let reach = self.reach(axis)?;
        let (output, pad, pad_end) = match &self.padding {
            Padding::Explicit(pads) => {
                let (start, end) = (pads[axis], pads[self.kernel.len() + axis]);
                let free = input.checked_add(start)?.checked_add(end)?.checked_sub(reach)?;
                let steps = if self.ceil_mode { free.div_ceil(stride) } else { free / stride };
                // A window that begins behind the input and the padding before it is none.
                let is_outside =
                    self.ceil_mode && steps.checked_mul(stride)? >= input.checked_add(start)?;
                (if is_outside { steps } else { steps.checked_add(1)? }, start, end)
            }
            same => {
                let output = input.div_ceil(stride);
                let covered = output.checked_sub(1)?.checked_mul(stride)?.checked_add(reach)?;
                let total = covered.saturating_sub(input);
                let start = if *same == Padding::SameUpper { total / 2 } else { total.div_ceil(2) };
                (output, start, total - start)
            }
        };
        // Every padded index that a tap reads is then addressable.
        output.checked_mul(stride)?.checked_add(reach)?;
        Some(Axis { input, output, kernel, stride, dilation, pad, pad_end })
    }

    /// All axes of an input of the given spatial sizes.
    ///
    /// # Errors
    /// A rank that is not the window's, or an axis on which no window fits.
    pub(crate) fn axes(&self, input: &[usize]) -> Result<Vec<Axis>, OpError> {
        let fail = || OpError::shapes(input, &self.kernel);
        if input.len() != self.kernel.len() {
            return Err(fail());
        }
        let axes = input.iter().enumerate().map(|(axis, &size)| self.axis(axis, size));
        axes.collect::<Option<_>>().ok_or_else(fail)
    }

    /// The output size of an axis whose input size may be a symbol.
    pub(crate) fn output_dim(&self, axis: usize, input: &Dim) -> Dim {
        if let Some(size) = input.known() {
            let size = usize::try_from(size).ok().and_then(|size| self.axis(axis, size));
            return size.map_or(Dim::Unknown, |axis| axis.output.into());
        }
        let stride = Dim::from(self.strides[axis]);
        let one = Dim::Known(1);
        match &self.padding {
            Padding::Explicit(pads) if !self.ceil_mode => {
                let pads = pads[axis].checked_add(pads[self.kernel.len() + axis]);
                let (Some(pads), Some(reach)) = (pads, self.reach(axis)) else {
                    return Dim::Unknown;
                };
                let (Ok(pads), Ok(reach)) = (i64::try_from(pads), i64::try_from(reach)) else {
                    return Dim::Unknown;
                };
                &(input + &Dim::Known(pads - reach)).floor_div(&stride) + &one
            }
            // Whether the last window lies outside depends on the size.
            Padding::Explicit(_) => Dim::Unknown,
            _ => (&(input + &stride) - &one).floor_div(&stride),
        }
    }

    /// How far a dilated window reaches.
    fn reach(&self, axis: usize) -> Option<usize> {
        self.kernel[axis].checked_sub(1)?.checked_mul(self.dilations[axis])?.checked_add(1)
    }
}

/// An attribute of `count` integers that are at least `least`, its default as well.
pub(crate) fn list(
    node: &Node,
    name: &str,
    least: i64,
    count: usize,
) -> Result<Vec<usize>, OpError> {
    // An empty list is what some exporters write for an absent one.
    let Some(values) = node.ints(name)?.filter(|values| !values.is_empty()) else {
        return Ok(vec![least as usize; count]);
    };
    if values.len() == count && values.iter().all(|&value| value >= least) {
        return Ok(values.iter().map(|&value| value as usize).collect());
    }
    Err(OpError::value(name, values, format!("{count} values of at least {least}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::testing::graph_from_text;

    fn geometry(attributes: &str, kernel: &[usize]) -> Result<Geometry, OpError> {
        let graph = graph_from_text(&format!("y = Conv(x, {attributes})"));
        Geometry::new(&graph.nodes[0], kernel)
    }

    fn sizes(attributes: &str, kernel: usize, input: usize) -> Option<(usize, usize)> {
        let axis = geometry(attributes, &[kernel]).unwrap().axis(0, input)?;
        Some((axis.output, axis.pad))
    }

    #[test]
    fn windows_are_counted_for_every_kind_of_padding() {
        assert_eq!(sizes("strides=2", 3, 8), Some((3, 0)));
        assert_eq!(sizes("strides=2, pads=1,1", 3, 8), Some((4, 1)));
        assert_eq!(sizes("dilations=3", 3, 8), Some((2, 0)));
        assert_eq!(sizes("dilations=4", 3, 8), None);
        assert_eq!(sizes("auto_pad=SAME_UPPER, strides=2", 4, 9), Some((5, 1)));
        assert_eq!(sizes("auto_pad=SAME_LOWER, strides=2", 4, 9), Some((5, 2)));
    }

    #[test]
    fn ceil_mode_counts_a_partial_window_but_none_in_the_padding() {
        assert_eq!(sizes("strides=2, ceil_mode=1", 3, 8), Some((4, 0)));
        assert_eq!(sizes("strides=3, ceil_mode=1, pads=0,1", 1, 3), Some((1, 0)));
    }

    #[test]
    fn taps_are_those_on_the_input() {
        let axis = geometry("strides=2, pads=2,2, dilations=2", &[3]).unwrap().axis(0, 5).unwrap();
        let taps: Vec<_> = (0..axis.output).map(|output| axis.taps(output)).collect();
        assert_eq!(taps, [1..3, 0..3, 0..2]);
        for output in 0..axis.output {
            let inside: Vec<_> = (0..3).filter(|&tap| axis.source(output, tap).is_some()).collect();
            assert_eq!(inside, axis.taps(output).collect::<Vec<_>>());
        }
        assert_eq!(axis.padded_tap_count(2), 3);
    }

    #[test]
    fn sizes_that_overflow_fit_nowhere() {
        let huge = i64::MAX;
        assert_eq!(sizes(&format!("dilations={huge}"), 9, 8), None);
        assert_eq!(sizes(&format!("strides={huge}, pads={huge},{huge}"), 1, 8), None);
        assert!(geometry("pads=-1,0", &[3]).is_err());
        assert!(geometry("strides=0", &[3]).is_err());
    }

    #[test]
    fn a_symbol_gives_an_expression() {
        let geometry = geometry("strides=2, pads=1,1", &[3]).unwrap();
        let dim = geometry.output_dim(0, &Dim::symbol("w"));
        assert_eq!(dim.evaluate(&|_| Some(8)), Some(4));
    }
}
