//! `FlexAttention` (ai.onnx.preview, version 1): Y = prob(softmax(score(scale·Q·Kᵀ)))·V, where
//! `score` and `prob` are graphs in attributes (Dong et al., 2024, arXiv:2412.05496).

use attar_graph::{Dim, Graph, Node};
use attar_tensor::{DType, Tensor};

use super::core::{Heads, Sizes, check_head_sizes};
use super::real::Real;
use crate::kernels::gemm::Strided;
use crate::{
    Body, DataKernel, DataRun, Datum, Fact, Kernel, OpError, Operator, OverData, required,
};

pub(crate) struct FlexAttention;

impl Operator for FlexAttention {
    fn op_type(&self) -> &'static str {
        "FlexAttention"
    }

    fn domain(&self) -> &'static str {
        "ai.onnx.preview"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=3
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (q, v) = (required(inputs, 0)?, required(inputs, 2)?);
        Ok(vec![match (q.shape.as_deref(), v.shape.as_deref()) {
            (Some([batch, heads, queries, _]), Some([.., size])) => {
                let dims: [&Dim; 4] = [batch, heads, queries, size];
                Fact::new(q.dtype, dims.map(Dim::clone).to_vec())
            }
            _ => Fact::unranked(q.dtype),
        }])
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Err(OpError::Unsupported { what: "FlexAttention without its bodies".into() })
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        let shape = |index: usize| inputs.get(index)?.as_ref()?.shape.as_deref();
        let (Some([.., size]), Some([_, _, keys, _])) = (shape(0), shape(1)) else {
            return Dim::Unknown;
        };
        let Some([batch, heads, queries, value_size]) = outputs[0].shape.as_deref() else {
            return Dim::Unknown;
        };
        let rows = &(batch * heads) * &(queries * keys);
        &rows * &(size + value_size)
    }

    fn over_data(&self) -> Option<&dyn OverData> {
        Some(self)
    }
}

/// The graphs, the scale, and the type that scores have.
struct Settings {
    score: Option<Body>,
    prob: Option<Body>,
    scale: Option<f32>,
    precision: Option<DType>,
}

impl OverData for FlexAttention {
    fn data_kernel(&self, node: &Node, bodies: Vec<Body>) -> Result<Box<dyn DataKernel>, OpError> {
        let precision = match node.int("softmax_precision")? {
            None => None,
            Some(1) => Some(DType::F32),
            Some(10) => Some(DType::F16),
            Some(11) => Some(DType::F64),
            Some(16) => Some(DType::BF16),
            Some(other) => {
                return Err(OpError::value("softmax_precision", other, "1, 10, 11 or 16"));
            }
        };
        let scale = node.attribute("scale").map(|_| node.float_or("scale", 1.0)).transpose()?;
        let mut settings = Settings { score: None, prob: None, scale, precision };
        for body in bodies {
            if body.input_count() != 1 || body.output_count() != 1 {
                let counts = [body.input_count(), body.output_count()];
                return Err(OpError::value("inputs and outputs of a graph", counts, "one of each"));
            }
            match body.attribute() {
                "score_mod" => settings.score = Some(body),
                "prob_mod" => settings.prob = Some(body),
                other => return Err(OpError::value("a graph", other, "score_mod or prob_mod")),
            }
        }
        Ok(Box::new(move |run: &mut DataRun| {
            let dtype = run.tensor(0)?.dtype();
            let is_double = DType::F64;
            if dtype == is_double || settings.precision == Some(is_double) {
                attend::<f64>(run, &settings)
            } else {
                attend::<f32>(run, &settings)
            }
        }))
    }

    fn infer_bodies(
        &self,
        node: &Node,
        inputs: &[Option<&Fact>],
        _: &mut dyn FnMut(&Graph, Vec<Option<Fact>>) -> Vec<Option<Fact>>,
    ) -> Result<Vec<Option<Fact>>, OpError> {
        Ok(self.infer(node, inputs)?.into_iter().map(Some).collect())
    }
}

fn sizes_of(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Sizes, OpError> {
    let error = |a: &Tensor, b: &Tensor| Err(OpError::shapes(a.shape(), b.shape()));
    let &[batch, heads, queries, head_size] = q.shape() else {
        return Err(OpError::value("the shape of input 0", q.shape(), "of rank 4"));
    };
    let (kv_heads, keys) = match *k.shape() {
        [b, kv_heads, keys, size] if b == batch && size == head_size => (kv_heads, keys),
        _ => return error(q, k),
    };
    let value_size = match *v.shape() {
        [b, h, rows, size] if [b, h, rows] == [batch, kv_heads, keys] => size,
        _ => return error(k, v),
    };
    if kv_heads == 0 || heads % kv_heads != 0 {
        return error(q, k);
    }
    check_head_sizes([head_size, value_size])?;
    Ok(Sizes { batch, heads, kv_heads, queries, keys, head_size, value_size })
}

/// Runs a graph over scores; what it gives has their shape.
fn modified<T: Real>(
    body: Option<&Body>,
    scores: Tensor,
    precision: DType,
    run: &DataRun,
) -> Result<Tensor, OpError> {
    let Some(body) = body else { return Ok(scores) };
    let error = |from: &Tensor| OpError::value("the scores", from.dtype(), "a float type");
    let shape = scores.shape().to_vec();
    let given = scores.converted(precision).map_err(|_| error(&scores))?;
    let result = body.run(vec![Datum::Tensor(given)], run)?;
    let Some(Datum::Tensor(result)) = result.into_iter().next() else {
        return Err(OpError::value("the result of a graph", "no tensor", "scores"));
    };
    if result.shape() != shape {
        return Err(OpError::shapes(&shape, result.shape()));
    }
    result.converted(T::DTYPE).map(|result| result.aligned()).map_err(|_| error(&result))
}

fn attend<T: Real>(run: &mut DataRun, settings: &Settings) -> Result<Vec<Datum>, OpError> {
    let dtype = run.tensor(0)?.dtype();
    let operand = |index: usize| {
        let tensor = run.tensor(index)?;
        let error = |_| OpError::DType { index, found: tensor.dtype() };
        Ok::<_, OpError>(tensor.converted(T::DTYPE).map_err(error)?.aligned())
    };
    let (q, k, v) = (operand(0)?, operand(1)?, operand(2)?);
    let sizes = sizes_of(&q, &k, &v)?;
    let scale = settings.scale.unwrap_or_else(|| 1.0 / (sizes.head_size as f32).sqrt());
    let precision = settings.precision.unwrap_or(T::DTYPE);
    let (queries, keys) = (sizes.queries, sizes.keys);
    let query = Heads::apart(q.slice::<T>(), queries, sizes.heads, sizes.head_size);
    let key = Heads::apart(k.slice::<T>(), keys, sizes.kv_heads, sizes.head_size);
    let value = Heads::apart(v.slice::<T>(), keys, sizes.kv_heads, sizes.value_size);
    let mut scores = Tensor::zeros(T::DTYPE, &[sizes.batch, sizes.heads, queries, keys]);
    each_head(&sizes, scores.slice_mut::<T>(), queries * keys, |text, [head, kv_head], scores| {
        let key = key.head(text, kv_head, [keys, sizes.head_size]).transposed();
        T::product(scores, query.head(text, head, [queries, sizes.head_size]), key);
        T::scale(scores, scale);
    });
    scores = modified::<T>(settings.score.as_ref(), scores, precision, run)?;
    T::masked_softmax(scores.slice_mut::<T>(), keys, 1.0, None);
    scores = modified::<T>(settings.prob.as_ref(), scores, precision, run)?;
    let y_shape = [sizes.batch, sizes.heads, queries, sizes.value_size];
    let mut y = Tensor::zeros(T::DTYPE, &y_shape);
    let probabilities = scores.slice::<T>();
    let block = queries * sizes.value_size;
    each_head(&sizes, y.slice_mut::<T>(), block, |text, [head, kv_head], y| {
        if keys > 0 {
            let at = (text * sizes.heads + head) * queries * keys;
            let rows = Strided::rows(&probabilities[at..at + queries * keys], queries, keys);
            T::product(y, rows, value.head(text, kv_head, [keys, sizes.value_size]));
        }
    });
    let y = y.converted(dtype).map_err(|_| OpError::DType { index: 0, found: dtype })?;
    Ok(vec![Datum::Tensor(y)])
}

/// Calls `work(text, [head, head of keys], block)` for every block of `out`.
fn each_head<T>(
    sizes: &Sizes,
    out: &mut [T],
    block: usize,
    mut work: impl FnMut(usize, [usize; 2], &mut [T]),
) {
    for (index, out) in out.chunks_exact_mut(block.max(1)).enumerate() {
        let (text, head) = (index / sizes.heads, index % sizes.heads);
        work(text, [head, head / (sizes.heads / sizes.kv_heads)], out);
    }
}
