//! Products whose input is cut: where their weights, biases and rows are.

use attar_graph::{Links, Model};
use attar_tensor::{DType, Tensor};

use crate::ChannelGroup;

/// Features of one row beyond which moments take too much memory.
const SIZE_MAX: usize = 6144;
/// Pixels taken of one image.
const PIXELS_MAX: usize = 256;

/// Where the rows of a product lie in its input.
#[derive(Clone, Debug)]
enum Layout {
    /// Along the last axis.
    Last,
    /// Windows of an image, with all channels of each.
    Windows { kernel: [usize; 2], strides: [usize; 2], pads: [usize; 2], dilations: [usize; 2] },
}

/// A sum of which a product, with its bias, is one part.
#[derive(Clone, Debug)]
pub(super) struct Residual {
    pub(super) other: String,
    pub(super) sum: String,
}

/// A product y = x·W + b, of which inputs are cut.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) node: usize,
    pub(super) input: String,
    pub(super) output: String,
    pub(super) weight: String,
    /// A bias that nothing else reads, which is part of `output` or added to it.
    pub(super) bias: Option<String>,
    pub(super) bias_is_inside: bool,
    /// What the product and its bias are added to.
    pub(super) residual: Option<Residual>,
    /// Rows of W, which are features of x, that each index of the cut axis stands for.
    each: usize,
    pub(super) size: usize,
    pub(super) outputs: usize,
    /// Whether the weights are stored as [outputs, inputs…].
    is_transposed: bool,
    layout: Layout,
}

impl Site {
    /// The products that read channels of `group`, by node, which can be refitted; and the names of
    /// those that cannot.
    pub(super) fn of(
        model: &Model,
        links: &Links,
        group: &ChannelGroup,
    ) -> (Vec<Self>, Vec<String>) {
        let (mut sites, mut others) = (Vec::new(), Vec::new());
        for axis in group.axes.iter().filter(|axis| axis.is_constant && axis.reader.is_none()) {
            for used in links.uses(&axis.tensor) {
                let node = &model.graph.nodes[used.node];
                let is_product = ["MatMul", "Gemm", "Conv"].iter().any(|op| node.is(op))
                    && used.input == Some(1);
                let Some(weight) = links.constant(&axis.tensor).filter(|_| is_product) else {
                    continue;
                };
                let is_conv = node.is("Conv");
                let is_transposed = is_conv || node.int_or("transB", 0).unwrap_or(0) != 0;
                if axis.axis != usize::from(is_transposed) || node.int_or("group", 1) != Ok(1) {
                    continue;
                }
                match Self::new(model, links, used.node, weight, is_transposed) {
                    Some(site) => sites.push(site),
                    None => others.push(node.label().to_string()),
                }
            }
        }
        sites.sort_by_key(|site| site.node);
        (sites, others)
    }

    fn new(
        model: &Model,
        links: &Links,
        index: usize,
        weight: &Tensor,
        is_transposed: bool,
    ) -> Option<Self> {
        let node = &model.graph.nodes[index];
        let shape = weight.shape();
        let is_conv = node.is("Conv");
        let is_scaled =
            node.float_or("alpha", 1.0) != Ok(1.0) || node.float_or("beta", 1.0) != Ok(1.0);
        let is_alone = links.uses(&node.inputs[1]).len() == 1;
        if weight.dtype() != DType::F32
            || node.int_or("transA", 0) != Ok(0)
            || is_scaled
            || !is_alone
        {
            return None;
        }
        let layout = if is_conv {
            windows(node, shape)?
        } else {
            (shape.len() == 2).then_some(Layout::Last)?
        };
        let (outputs, inputs) =
            if is_transposed { (shape[0], shape[1]) } else { (shape[1], shape[0]) };
        let each: usize = shape[2..].iter().product();
        let size = inputs * each;
        if size > SIZE_MAX {
            return None;
        }
        let is_own = |name: &str| {
            let own = links.constant(name).is_some_and(|bias| bias.shape() == [outputs]);
            (own && links.uses(name).len() == 1).then(|| name.to_string())
        };
        let inside = node.input(2);
        let bias = match inside {
            Some(name) => is_own(name),
            None => links
                .only_use(&node.outputs[0])
                .filter(|(_, next)| next.is("Add"))
                .and_then(|(_, next)| next.inputs.iter().find_map(|name| is_own(name)))
                .filter(|_| !is_conv),
        };
        if inside.is_some() && bias.is_none() {
            return None;
        }
        let mut result = node.outputs[0].as_str();
        if bias.is_some() && inside.is_none() {
            result = &links.only_use(result)?.1.outputs[0];
        }
        Some(Self {
            residual: residual(links, result),
            node: index,
            input: node.inputs[0].clone(),
            output: node.outputs[0].clone(),
            weight: node.inputs[1].clone(),
            bias,
            bias_is_inside: inside.is_some(),
            each,
            size,
            outputs,
            is_transposed,
            layout,
        })
    }

    /// The features that stand for these indices of the cut axis.
    pub(super) fn features(&self, indices: &[u32]) -> Vec<usize> {
        let own = |&index: &u32| index as usize * self.each..(index as usize + 1) * self.each;
        indices.iter().flat_map(own).collect()
    }

    /// W as [size, outputs].
    pub(super) fn weights(&self, tensor: &Tensor) -> Vec<f64> {
        let values = tensor.values::<f32>();
        let mut w = vec![0.0; values.len()];
        for (i, &value) in values.iter().enumerate() {
            w[self.place(i)] = f64::from(value);
        }
        w
    }

    /// W [size, outputs] in the shape of the stored tensor.
    pub(super) fn stored(&self, w: &[f64], shape: &[usize]) -> Tensor {
        let values: Vec<f32> = (0..w.len()).map(|i| w[self.place(i)] as f32).collect();
        Tensor::new(shape, &values)
    }

    fn place(&self, stored: usize) -> usize {
        if self.is_transposed {
            stored % self.size * self.outputs + stored / self.size
        } else {
            stored
        }
    }

    /// Calls `visit` with rows of x and y, as iterators. Features that `kept` does not name are
    /// missing in `x` and zero in its rows.
    pub(super) fn rows(
        &self,
        x: &Tensor,
        y: &Tensor,
        kept: &[usize],
        visit: &mut dyn FnMut(&[f32], &mut dyn Iterator<Item = f32>),
    ) {
        let (xs, ys) = (x.values::<f32>(), y.values::<f32>());
        let mut row = vec![0.0; self.size];
        match &self.layout {
            Layout::Last => {
                let width = kept.len().max(1);
                for (x, y) in xs.chunks_exact(width).zip(ys.chunks_exact(self.outputs)) {
                    kept.iter().zip(x).for_each(|(&to, &value)| row[to] = value);
                    visit(&row, &mut y.iter().copied());
                }
            }
            Layout::Windows { kernel, strides, pads, dilations } => {
                let (&[batch, channels, height, width], &[_, _, rows, columns]) =
                    (x.shape(), y.shape())
                else {
                    return;
                };
                let step = (rows * columns).div_ceil(PIXELS_MAX).max(1) | 1;
                for image in 0..batch {
                    for pixel in (0..rows * columns).step_by(step) {
                        let at = [pixel / columns, pixel % columns];
                        let mut features = kept.iter();
                        for channel in 0..channels {
                            let plane = (image * channels + channel) * height * width;
                            for tap in 0..kernel[0] * kernel[1] {
                                let Some(&to) = features.next() else { break };
                                let taps = [tap / kernel[1], tap % kernel[1]];
                                let place = |i: usize| {
                                    (at[i] * strides[i] + taps[i] * dilations[i])
                                        .checked_sub(pads[i])
                                };
                                row[to] = match (place(0), place(1)) {
                                    (Some(y), Some(x)) if y < height && x < width => {
                                        xs[plane + y * width + x]
                                    }
                                    _ => 0.0,
                                };
                            }
                        }
                        let first = image * self.outputs * rows * columns + pixel;
                        let y = ys[first..].iter().step_by(rows * columns).take(self.outputs);
                        visit(&row, &mut y.copied());
                    }
                }
            }
        }
    }
}

/// The sum that alone reads `result`, if it adds something computed.
fn residual(links: &Links, result: &str) -> Option<Residual> {
    let (_, add) = links.only_use(result).filter(|(_, next)| next.is("Add"))?;
    let other = add.inputs.iter().find(|name| *name != result)?;
    let is_computed = links.constant(other).is_none();
    is_computed.then(|| Residual { other: other.clone(), sum: add.outputs[0].clone() })
}

/// The windows of a convolution over an image; `None` where padding is left to the runtime.
fn windows(node: &attar_graph::Node, shape: &[usize]) -> Option<Layout> {
    if shape.len() != 4 || node.text("auto_pad").ok()?.is_some_and(|pad| pad != "NOTSET") {
        return None;
    }
    let pair = |name: &str, default: usize| {
        let given = node.ints(name).ok()?;
        let at = |i: usize| given.map_or(Some(default), |all| usize::try_from(*all.get(i)?).ok());
        Some([at(0)?, at(1)?])
    };
    Some(Layout::Windows {
        kernel: [shape[2], shape[3]],
        strides: pair("strides", 1)?,
        pads: pair("pads", 0)?,
        dilations: pair("dilations", 1)?,
    })
}
