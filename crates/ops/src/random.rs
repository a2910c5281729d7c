//! `RandomNormal`, `RandomUniform`, their `Like` forms, Bernoulli (opset 15) and Multinomial.
//!
//! attar is deterministic: every run of a node draws the same numbers, those of its `seed`, and a
//! node without one has the seed 0. The numbers are not those of another runtime.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor, element_count};

use crate::onnx_type::dtype_attribute;
use crate::{
    Backward, Fact, Flow, Forward, Gradient, Kernel, OpError, Operator, Reads, Run, Training,
    required,
};

/// The generator of Steele, Lea & Flood, 2014 (`SplitMix64`).
struct Generator(u64);

impl Generator {
    fn new(node: &Node) -> Result<Self, OpError> {
        Ok(Self(u64::from(node.float_or("seed", 0.0)?.to_bits())))
    }

    /// From 0 up to but not including 1.
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// With mean 0 and deviation 1 (Box & Muller, 1958).
    fn normal(&mut self) -> f64 {
        let (radius, angle) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }
}

/// Which numbers a node draws.
#[derive(Clone, Copy)]
enum Draw {
    Normal { mean: f64, scale: f64 },
    Uniform { low: f64, high: f64 },
}

impl Draw {
    fn normal(node: &Node) -> Result<Self, OpError> {
        let (mean, scale) = (node.float_or("mean", 0.0)?, node.float_or("scale", 1.0)?);
        Ok(Self::Normal { mean: f64::from(mean), scale: f64::from(scale) })
    }

    fn uniform(node: &Node) -> Result<Self, OpError> {
        let (low, high) = (node.float_or("low", 0.0)?, node.float_or("high", 1.0)?);
        Ok(Self::Uniform { low: f64::from(low), high: f64::from(high) })
    }

    fn tensor(
        self,
        mut generator: Generator,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Tensor, OpError> {
        let count = element_count(shape).filter(|&count| count <= ELEMENTS_MAX);
        let count =
            count.ok_or_else(|| OpError::value("the shape", shape, "an addressable size"))?;
        let values: Vec<f64> = (0..count)
            .map(|_| match self {
                Self::Normal { mean, scale } => mean + scale * generator.normal(),
                Self::Uniform { low, high } => low + (high - low) * generator.uniform(),
            })
            .collect();
        converted(&Tensor::new(shape, &values), dtype)
    }
}

/// Most numbers drawn at once: a declared shape must not exhaust the memory.
const ELEMENTS_MAX: usize = 1 << 30;

fn converted(values: &Tensor, dtype: DType) -> Result<Tensor, OpError> {
    let refused = || OpError::Unsupported { what: format!("random numbers of type {dtype}") };
    values.converted(dtype).map_err(|_| refused())
}

macro_rules! random {
    ($($op:ident, $since:expr, $inputs:expr, $draw:expr;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn since_opset(&self) -> i64 {
                $since
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                $inputs..=$inputs
            }

            fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                let given = dtype_attribute(node, "dtype")?;
                if $inputs == 0 {
                    let dims = shape_attribute(node)?.into_iter().map(Dim::from).collect();
                    return Ok(vec![Fact::new(given.unwrap_or(DType::F32), dims)]);
                }
                let x = required(inputs, 0)?;
                Ok(vec![x.with_dtype(given.unwrap_or(x.dtype))])
            }

            fn kernel(
                &self,
                node: &Node,
                _: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                let draw: Draw = $draw(node)?;
                let node = node.clone();
                Ok(Box::new(move |run: &mut Run| {
                    let given = dtype_attribute(&node, "dtype")?;
                    let (shape, dtype) = if $inputs == 0 {
                        (shape_attribute(&node)?, given.unwrap_or(DType::F32))
                    } else {
                        let x = run.input(0)?;
                        (x.shape().to_vec(), given.unwrap_or(x.dtype()))
                    };
                    Ok(vec![draw.tensor(Generator::new(&node)?, &shape, dtype)?])
                }))
            }

            fn gradient(
                &self,
                node: &Node,
                _: &Training,
            ) -> Result<Box<dyn Gradient>, OpError> {
                Ok(Box::new(Drawn { operator: &$op, node: node.clone() }))
            }

            fn differs_in_training(&self) -> bool {
                true
            }
        }
    )*};
}

random! {
    RandomNormal, 1, 0, Draw::normal;
    RandomNormalLike, 1, 1, Draw::normal;
    RandomUniform, 1, 0, Draw::uniform;
    RandomUniformLike, 1, 1, Draw::uniform;
}

/// In training every step draws other numbers, and the same when it is repeated. They are constant
/// to what the node reads: a shape, or probabilities.
struct Drawn {
    operator: &'static dyn Operator,
    node: Node,
}

impl Gradient for Drawn {
    fn reads(&self) -> Reads {
        Reads::NOTHING
    }

    fn forward(&self, forward: &mut Forward, _: &dyn Kernel) -> Result<Vec<Tensor>, OpError> {
        let own = self.node.float_or("seed", 0.0)?.to_bits();
        let seed = own ^ (forward.seed as u32) ^ ((forward.seed >> 32) as u32);
        let node = self.node.clone().with_attribute("seed", f32::from_bits(seed));
        self.operator.kernel(&node, &[])?.run(&mut forward.run)
    }

    fn backward(&self, _: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
        Ok(Vec::new())
    }
}

fn shape_attribute(node: &Node) -> Result<Vec<usize>, OpError> {
    let dims = node.ints("shape")?.ok_or_else(|| OpError::value("shape", "absent", "sizes"))?;
    dims.iter()
        .map(|&dim| usize::try_from(dim).map_err(|_| OpError::value("a size", dim, "0 or greater")))
        .collect()
}

/// 1 with the probability that the input gives, else 0.
pub(crate) struct Bernoulli;

impl Operator for Bernoulli {
    fn op_type(&self) -> &'static str {
        "Bernoulli"
    }

    fn since_opset(&self) -> i64 {
        15
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(dtype_attribute(node, "dtype")?.unwrap_or(x.dtype))])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        Ok(Box::new(move |run: &mut Run| {
            let (x, mut generator) = (run.input(0)?, Generator::new(&node)?);
            let dtype = dtype_attribute(&node, "dtype")?.unwrap_or(x.dtype());
            let values = x.to_f64().ok_or(OpError::DType { index: 0, found: x.dtype() })?;
            let drawn: Vec<f64> =
                values.iter().map(|&p| f64::from(u8::from(generator.uniform() < p))).collect();
            Ok(vec![converted(&Tensor::new(x.shape(), &drawn), dtype)?])
        }))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        Ok(Box::new(Drawn { operator: &Bernoulli, node: node.clone() }))
    }

    fn differs_in_training(&self) -> bool {
        true
    }
}

/// Classes drawn by the logarithms of their weights, [batch, classes] → [batch, samples] (opset 7).
pub(crate) struct Multinomial;

/// The samples of each row, and their type.
fn samples(node: &Node) -> Result<(usize, DType), OpError> {
    let size = node.int_or("sample_size", 1)?;
    let count = usize::try_from(size).ok().filter(|&count| count <= ELEMENTS_MAX);
    let count = count.ok_or_else(|| OpError::value("sample_size", size, "0 to 2^30"))?;
    let dtype = dtype_attribute(node, "dtype")?.unwrap_or(DType::I32);
    if matches!(dtype, DType::I32 | DType::I64) {
        return Ok((count, dtype));
    }
    Err(OpError::value("dtype", dtype.name(), "i32 or i64"))
}

impl Operator for Multinomial {
    fn op_type(&self) -> &'static str {
        "Multinomial"
    }

    fn since_opset(&self) -> i64 {
        7
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (count, dtype) = samples(node)?;
        let batch = match required(inputs, 0)?.shape.as_deref() {
            Some([batch, _]) => batch.clone(),
            Some(other) => return Err(OpError::value("the input's rank", other.len(), "2")),
            None => Dim::Unknown,
        };
        Ok(vec![Fact::new(dtype, vec![batch, Dim::from(count)])])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let ((count, dtype), node) = (samples(node)?, node.clone());
        Ok(Box::new(move |run: &mut Run| {
            let (x, mut generator) = (run.input(0)?, Generator::new(&node)?);
            let values = x.to_f64().ok_or(OpError::DType { index: 0, found: x.dtype() })?;
            let &[batch, classes] = x.shape() else {
                return Err(OpError::value("the input's shape", x.shape(), "[batch, classes]"));
            };
            let total = batch.checked_mul(count).filter(|&total| total <= ELEMENTS_MAX);
            if total.is_none() || classes == 0 {
                return Err(OpError::value("the shape", [batch, count, classes], "a smaller one"));
            }
            let mut drawn: Vec<i64> = Vec::with_capacity(batch * count);
            for row in values.chunks_exact(classes) {
                let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = row.iter().map(|x| (x - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                drawn.extend((0..count).map(|_| pick(&weights, generator.uniform() * sum)));
            }
            converted(&Tensor::new(&[batch, count], &drawn), dtype).map(|y| vec![y])
        }))
    }

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        Ok(Box::new(Drawn { operator: &Multinomial, node: node.clone() }))
    }

    fn differs_in_training(&self) -> bool {
        true
    }
}

/// The class whose share of the weights, laid end to end, holds `place`.
fn pick(weights: &[f64], mut place: f64) -> i64 {
    for (class, weight) in weights.iter().enumerate() {
        if place < *weight {
            return class as i64;
        }
        place -= weight;
    }
    weights.len() as i64 - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Pool, Run};

    #[test]
    fn a_step_of_training_draws_its_own_numbers() {
        let node = Node::new("RandomNormal", "x", &[], &["x"]).with_attribute("shape", vec![4_i64]);
        let training = Training { constants: &[], wanted: &[] };
        let gradient = RandomNormal.gradient(&node, &training).unwrap();
        let kernel = RandomNormal.kernel(&node, &[]).unwrap();
        let drawn = |seed: u64| {
            let run = Run { inputs: Vec::new(), pool: &Pool::default() };
            let mut forward = Forward { run, saved: Vec::new(), updates: Vec::new(), seed };
            gradient.forward(&mut forward, kernel.as_ref()).unwrap().remove(0)
        };
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        assert_ne!(drawn(1), drawn(1 << 40));
    }

    #[test]
    fn the_draws_have_the_mean_and_deviation_asked_for() {
        let node = Node::new("RandomNormal", "x", &[], &["x"]);
        let draw = Draw::Normal { mean: 2.0, scale: 3.0 };
        let x = draw.tensor(Generator::new(&node).unwrap(), &[20_000], DType::F64).unwrap();
        let values = x.slice::<f64>();
        let mean = values.iter().sum::<f64>() / 20_000.0;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!((mean - 2.0).abs() < 0.1 && (variance.sqrt() - 3.0).abs() < 0.1);
        let again = draw.tensor(Generator::new(&node).unwrap(), &[20_000], DType::F64).unwrap();
        assert_eq!(x, again);
    }

    #[test]
    fn classes_are_drawn_by_their_weights() {
        assert_eq!([0.0, 0.9, 1.0, 2.9, 3.0].map(|at| pick(&[1.0, 2.0], at)), [0, 0, 1, 1, 1]);
    }
}
