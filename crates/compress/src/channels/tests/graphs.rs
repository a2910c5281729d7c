//! Chains and branches of operators, drawn from a seed and written as text.

mod shaping;

use super::OPEN;

/// A value of a graph.
#[derive(Clone)]
struct Value {
    name: String,
    shape: Vec<usize>,
    is_read: bool,
}

/// Draws one graph.
pub(super) struct Graphs {
    state: u64,
    text: String,
    values: Vec<Value>,
    count: usize,
}

/// Operators that work element by element on one input.
const UNARY: &[&str] = &[
    "Relu",
    "Sigmoid",
    "Tanh",
    "HardSwish",
    "Gelu",
    "Erf",
    "Softplus",
    "Identity",
    "Neg",
    "Mish",
    "Elu",
    "Abs",
];

/// One way to go on from a value, which says whether it can.
type Step = fn(&mut Graphs, &Value) -> Option<()>;

/// With how often each is drawn.
const STEPS: &[(Step, usize)] = &[
    (Graphs::convolution, 6),
    (Graphs::transposed_convolution, 2),
    (Graphs::product, 6),
    (Graphs::gemm, 3),
    (Graphs::scores, 2),
    (Graphs::unary, 5),
    (Graphs::constant_operand, 4),
    (Graphs::combined, 5),
    (Graphs::gated, 2),
    (Graphs::normalized, 4),
    (Graphs::layer_normalized, 2),
    (Graphs::pooled, 3),
    (Graphs::resized, 2),
    (Graphs::concatenated, 4),
    (Graphs::split, 3),
    (Graphs::sliced, 3),
    (Graphs::transposed, 3),
    (Graphs::reshaped, 4),
    (Graphs::flattened, 1),
    (Graphs::expanded, 1),
    (Graphs::softmax, 1),
    (Graphs::reduced, 2),
    (Graphs::padded, 1),
];

impl Graphs {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed, text: String::new(), values: Vec::new(), count: 0 }
    }

    /// A graph as text. Whatever nothing reads goes through a product of its own to an output.
    pub(super) fn draw(mut self) -> String {
        let is_open = self.below(2) == 0;
        let batch = if is_open { OPEN } else { 2 };
        let shape = match self.below(3) {
            0 => vec![batch, 3, 6, 6],
            1 => vec![batch, 5, 6],
            _ => vec![batch, 6],
        };
        let rest: Vec<String> = shape[1..].iter().map(ToString::to_string).collect();
        let first = if is_open { "n".to_string() } else { batch.to_string() };
        self.text = format!("x: f32[{first}, {}]\n", rest.join(", "));
        self.values.push(Value { name: "x".into(), shape: shape.clone(), is_read: true });
        let x = self.values[0].clone();
        let begun = if shape.len() == 4 { self.convolution(&x) } else { self.product(&x) };
        assert!(begun.is_some(), "any input can be multiplied");
        let weights: usize = STEPS.iter().map(|(_, weight)| weight).sum();
        let length = 5 + self.below(9);
        let mut made = 0;
        for _ in 0..200 {
            let mut at = self.below(weights);
            let step = STEPS.iter().find(|(_, weight)| match at.checked_sub(*weight) {
                Some(rest) => {
                    at = rest;
                    false
                }
                None => true,
            });
            // Late values are drawn more often, so that chains get long.
            let count = self.values.len();
            let index = if self.below(3) > 0 { count - 1 } else { self.below(count) };
            let value = self.values[index.max(1)].clone();
            let size: usize = value.shape.iter().product();
            if let Some((step, _)) = step
                && size <= 4096
                && step(&mut self, &value).is_some()
            {
                made += 1;
            }
            if made == length {
                break;
            }
        }
        for value in self.values.clone().iter().filter(|value| !value.is_read) {
            self.ended(value);
        }
        self.text
    }

    /// A number below `count` (splitmix64).
    fn below(&mut self, count: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % count as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn name(&mut self, prefix: &str) -> String {
        self.count += 1;
        format!("{prefix}{}", self.count)
    }

    /// A constant; `kind` is one of those that `case` reads.
    fn constant(&mut self, kind: &str, list: &[i64]) -> String {
        let name = self.name("c");
        let list: Vec<String> = list.iter().map(ToString::to_string).collect();
        self.text += &format!("{name} = {kind}[{}]\n", list.join(", "));
        name
    }

    fn weight(&mut self, shape: &[usize]) -> String {
        let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        self.constant("normal", &shape)
    }

    /// A node of one output of this shape.
    #[allow(clippy::unnecessary_wraps)] // what a step ends with
    fn node(&mut self, call: &str, shape: Vec<usize>, reads: &[&Value]) -> Option<()> {
        let name = self.name("v");
        self.text += &format!("{name} = {call}\n");
        self.made(name, shape, reads);
        Some(())
    }

    fn made(&mut self, name: String, shape: Vec<usize>, reads: &[&Value]) {
        for value in &mut self.values {
            value.is_read |= reads.iter().any(|read| read.name == value.name);
        }
        self.values.push(Value { name, shape, is_read: false });
    }

    /// Another value with all sizes but that of `except` those of `like`.
    fn other(&mut self, like: &Value, except: Option<usize>) -> Option<Value> {
        let fits = |value: &&Value| {
            value.shape.len() == like.shape.len()
                && (0..like.shape.len())
                    .all(|axis| Some(axis) == except || value.shape[axis] == like.shape[axis])
        };
        let others: Vec<Value> = self.values[1..].iter().filter(fits).cloned().collect();
        let index = self.below(others.len().max(1));
        others.get(index).cloned()
    }

    fn convolution(&mut self, x: &Value) -> Option<()> {
        let &[batch, inputs, height, width] = x.shape.as_slice() else { return None };
        let divides = |group: &usize| inputs % group == 0;
        let groups: Vec<usize> = [1, 1, 2, inputs].into_iter().filter(divides).collect();
        let group = self.pick(&groups);
        let outputs = match group {
            1 => 2 + self.below(5),
            _ => group * (1 + self.below(2)),
        };
        let (size, pad) = self.pick(&[(1, 0), (3, 1)]);
        let stride = if height % 2 == 0 && width % 2 == 0 { self.pick(&[1, 1, 2]) } else { 1 };
        let w = self.weight(&[outputs, inputs / group, size, size]);
        let bias = if self.below(2) == 0 {
            format!(", {}", self.weight(&[outputs]))
        } else {
            String::new()
        };
        let call = format!(
            "Conv({}, {w}{bias}, group={group}, pads={pad},{pad},{pad},{pad}, strides={stride},{stride})",
            x.name
        );
        self.node(
            &call,
            vec![batch, outputs, height.div_ceil(stride), width.div_ceil(stride)],
            &[x],
        )
    }

    fn transposed_convolution(&mut self, x: &Value) -> Option<()> {
        let &[batch, inputs, height, width] = x.shape.as_slice() else { return None };
        let divides = |group: &usize| inputs % group == 0;
        let groups: Vec<usize> = [1, 2, inputs].into_iter().filter(divides).collect();
        let group = self.pick(&groups);
        let each = 1 + self.below(3);
        let w = self.weight(&[inputs, each, 2, 2]);
        let bias = self.weight(&[group * each]);
        let call = format!("ConvTranspose({}, {w}, {bias}, group={group}, strides=2,2)", x.name);
        self.node(&call, vec![batch, group * each, 2 * height, 2 * width], &[x])
    }

    fn product(&mut self, x: &Value) -> Option<()> {
        let (&last, rest) = x.shape.split_last()?;
        if rest.is_empty() {
            return None;
        }
        let size = self.pick(&[4, 6, 8, 12]);
        let w = self.weight(&[last, size]);
        let shape = [rest, &[size]].concat();
        self.node(&format!("MatMul({}, {w})", x.name), shape, &[x])
    }

    fn gemm(&mut self, x: &Value) -> Option<()> {
        let &[rows, inputs] = x.shape.as_slice() else { return None };
        let (outputs, is_turned) = (self.pick(&[4, 6, 8]), self.below(2));
        let sizes = if is_turned == 1 { [outputs, inputs] } else { [inputs, outputs] };
        let (w, bias) = (self.weight(&sizes), self.weight(&[outputs]));
        let call = format!("Gemm({}, {w}, {bias}, transB={is_turned}, alpha=0.5)", x.name);
        self.node(&call, vec![rows, outputs], &[x])
    }

    /// x·yᵀ, and often that times y.
    fn scores(&mut self, x: &Value) -> Option<()> {
        let rank = x.shape.len();
        if rank < 3 {
            return None;
        }
        let y = self.other(x, Some(rank - 2))?;
        let turned = self.name("v");
        let mut axes: Vec<usize> = (0..rank).collect();
        axes.swap(rank - 1, rank - 2);
        self.text += &format!("{turned} = Transpose({}, perm={})\n", y.name, list(&axes));
        let mut shape = x.shape.clone();
        shape[rank - 1] = y.shape[rank - 2];
        self.node(&format!("MatMul({}, {turned})", x.name), shape, &[x, &y])?;
        if self.below(3) == 0 {
            return Some(());
        }
        let scores = self.values.last()?.clone();
        self.softmax(&scores)?;
        let scores = self.values.last()?.clone();
        self.node(&format!("MatMul({}, {})", scores.name, y.name), x.shape.clone(), &[&scores, &y])
    }

    fn unary(&mut self, x: &Value) -> Option<()> {
        let op = self.pick(UNARY);
        self.node(&format!("{op}({})", x.name), x.shape.clone(), &[x])
    }

    /// A constant along one axis, along all but the first, or for every element.
    fn constant_operand(&mut self, x: &Value) -> Option<()> {
        let axis = 1 + self.below(x.shape.len() - 1);
        let mut sizes = vec![1; x.shape.len() - axis];
        sizes[0] = x.shape[axis];
        let c = match self.below(4) {
            0 => self.weight(&[1]),
            1 => self.weight(&x.shape[1..]),
            _ => self.weight(&sizes),
        };
        let op = self.pick(&["Add", "Mul", "Sub", "PRelu", "Max"]);
        self.node(&format!("{op}({}, {c})", x.name), x.shape.clone(), &[x])
    }

    fn combined(&mut self, x: &Value) -> Option<()> {
        let y = self.other(x, None)?;
        let op = self.pick(&["Add", "Add", "Mul", "Sub", "Max"]);
        self.node(&format!("{op}({}, {})", x.name, y.name), x.shape.clone(), &[x, &y])
    }

    /// Squeeze and excitation: channels times a number that depends on all of them.
    fn gated(&mut self, x: &Value) -> Option<()> {
        let &[batch, size, ..] = x.shape.as_slice() else { return None };
        if x.shape.len() != 4 {
            return None;
        }
        self.node(&format!("GlobalAveragePool({})", x.name), vec![batch, size, 1, 1], &[x])?;
        let mean = self.values.last()?.clone();
        let (inner, outer) = (self.weight(&[2, size, 1, 1]), self.weight(&[size, 2, 1, 1]));
        self.node(&format!("Conv({}, {inner})", mean.name), vec![batch, 2, 1, 1], &[&mean])?;
        let narrow = self.values.last()?.clone();
        self.node(&format!("Conv({}, {outer})", narrow.name), vec![batch, size, 1, 1], &[&narrow])?;
        let wide = self.values.last()?.clone();
        self.node(&format!("Sigmoid({})", wide.name), wide.shape.clone(), &[&wide])?;
        let gate = self.values.last()?.clone();
        self.node(&format!("Mul({}, {})", x.name, gate.name), x.shape.clone(), &[x, &gate])
    }

    fn normalized(&mut self, x: &Value) -> Option<()> {
        let &[_, size, ref rest @ ..] = x.shape.as_slice() else { return None };
        let (scale, bias) = (self.weight(&[size]), self.weight(&[size]));
        // Few numbers, which may all be alike, have no deviation to divide by.
        let is_large = rest.iter().product::<usize>() >= 8;
        let call = match self.below(4) {
            0 if is_large => format!("InstanceNormalization({}, {scale}, {bias}", x.name),
            1 if is_large && size.is_multiple_of(2) => {
                format!("GroupNormalization({}, {scale}, {bias}, num_groups=2", x.name)
            }
            _ => {
                let mean = self.weight(&[size]);
                let variance = self.constant("positive", &[size as i64]);
                format!("BatchNormalization({}, {scale}, {bias}, {mean}, {variance}", x.name)
            }
        };
        self.node(&format!("{call}, epsilon=0.001)"), x.shape.clone(), &[x])
    }

    fn layer_normalized(&mut self, x: &Value) -> Option<()> {
        let &size = x.shape.last()?;
        if size < 4 || x.shape.len() < 2 {
            return None;
        }
        let (scale, bias) = (self.weight(&[size]), self.weight(&[size]));
        let call = format!("LayerNormalization({}, {scale}, {bias}, epsilon=0.01)", x.name);
        self.node(&call, x.shape.clone(), &[x])
    }

    fn pooled(&mut self, x: &Value) -> Option<()> {
        let &[batch, size, height, width] = x.shape.as_slice() else { return None };
        if self.below(3) == 0 {
            let op = self.pick(&["GlobalAveragePool", "GlobalMaxPool"]);
            return self.node(&format!("{op}({})", x.name), vec![batch, size, 1, 1], &[x]);
        }
        if height < 2 || width < 2 {
            return None;
        }
        let op = self.pick(&["MaxPool", "AveragePool"]);
        let call = format!("{op}({}, kernel_shape=2,2, strides=2,2)", x.name);
        self.node(&call, vec![batch, size, height / 2, width / 2], &[x])
    }

    fn resized(&mut self, x: &Value) -> Option<()> {
        let &[batch, size, height, width] = x.shape.as_slice() else { return None };
        let mode = self.pick(&["nearest", "linear"]);
        let sizes = [batch, size, 2 * height, 2 * width];
        let target = self.constant("ints", &sizes.map(|size| size as i64));
        self.node(&format!("Resize({}, , , {target}, mode={mode})", x.name), sizes.to_vec(), &[x])
    }

    fn concatenated(&mut self, x: &Value) -> Option<()> {
        let axis = 1 + self.below(x.shape.len() - 1);
        let mut values = vec![x.clone(), self.other(x, Some(axis))?];
        if self.below(3) == 0 {
            values.extend(self.other(x, Some(axis)));
        }
        let mut shape = x.shape.clone();
        shape[axis] = values.iter().map(|value| value.shape[axis]).sum();
        let names: Vec<&str> = values.iter().map(|value| value.name.as_str()).collect();
        let call = format!("Concat({}, axis={axis})", names.join(", "));
        self.node(&call, shape, &values.iter().collect::<Vec<_>>())
    }

    fn split(&mut self, x: &Value) -> Option<()> {
        let axis = 1 + self.below(x.shape.len() - 1);
        let size = x.shape[axis];
        if size < 4 {
            return None;
        }
        let first = if size.is_multiple_of(2) && self.below(2) == 0 {
            size / 2
        } else {
            1 + self.below(size - 2)
        };
        let names = [self.name("v"), self.name("v")];
        let how = if first * 2 == size && self.below(2) == 0 {
            format!("axis={axis}, num_outputs=2")
        } else {
            let parts = self.constant("ints", &[first as i64, (size - first) as i64]);
            format!("{parts}, axis={axis}")
        };
        self.text += &format!("{}, {} = Split({}, {how})\n", names[0], names[1], x.name);
        for (name, part) in names.into_iter().zip([first, size - first]) {
            let mut shape = x.shape.clone();
            shape[axis] = part;
            self.made(name, shape, &[x]);
        }
        Some(())
    }

    /// An output of two numbers.
    fn ended(&mut self, value: &Value) {
        let size: usize = value.shape[1..].iter().product();
        let [flat, out] = [self.name("v"), self.name("out")];
        let w = self.weight(&[size, 2]);
        self.text += &format!("{flat} = Flatten({})\n{out} = MatMul({flat}, {w})\n", value.name);
    }
}

fn list(axes: &[usize]) -> String {
    axes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
