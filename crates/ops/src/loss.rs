//! `NegativeLogLikelihoodLoss` (opset 12) and `SoftmaxCrossEntropyLoss` (opset 12):
//! loss = −weight[c]·log p[c] for the class c of each place, and its sum or weighted mean.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::rows::AxisView;
use crate::softmax::log_softmax_row;
use crate::{Fact, Kernel, OpError, Operator, Run, required};

#[derive(Clone, Copy, PartialEq)]
enum Reduction {
    None,
    Sum,
    Mean,
}

#[derive(Clone, Copy)]
struct Settings {
    reduction: Reduction,
    ignored: Option<i64>,
}

impl Settings {
    fn new(node: &Node) -> Result<Self, OpError> {
        let reduction = match node.text("reduction")?.unwrap_or("mean") {
            "none" => Reduction::None,
            "sum" => Reduction::Sum,
            "mean" => Reduction::Mean,
            other => return Err(OpError::value("reduction", other, "none, sum or mean")),
        };
        Ok(Self { reduction, ignored: node.int("ignore_index")? })
    }

    fn infer(self, inputs: &[Option<&Fact>]) -> Result<Fact, OpError> {
        let (x, classes) = (required(inputs, 0)?, required(inputs, 1)?);
        if self.reduction == Reduction::None {
            return Ok(classes.with_dtype(x.dtype));
        }
        Ok(Fact::new(x.dtype, Vec::<Dim>::new()))
    }
}

pub(crate) struct NegativeLogLikelihoodLoss;

impl Operator for NegativeLogLikelihoodLoss {
    fn op_type(&self) -> &'static str {
        "NegativeLogLikelihoodLoss"
    }

    fn since_opset(&self) -> i64 {
        12
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=3
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![Settings::new(node)?.infer(inputs)?])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let settings = Settings::new(node)?;
        Ok(Box::new(move |run: &mut Run| {
            let scores = scores(run)?;
            Ok(vec![loss(run, &scores, settings)?])
        }))
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// A second output is the logarithm of the softmax of the scores.
pub(crate) struct SoftmaxCrossEntropyLoss;

impl Operator for SoftmaxCrossEntropyLoss {
    fn op_type(&self) -> &'static str {
        "SoftmaxCrossEntropyLoss"
    }

    fn since_opset(&self) -> i64 {
        12
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=3
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let loss = Settings::new(node)?.infer(inputs)?;
        let all = [loss, x.with_dtype(x.dtype)];
        Ok(all.into_iter().take(node.outputs.len()).collect())
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let settings = Settings::new(node)?;
        Ok(Box::new(move |run: &mut Run| {
            let (mut scores, x) = (scores(run)?, run.input(0)?);
            let view = AxisView::new(x.shape(), 1)?;
            view.change_rows(&mut scores, |rows| {
                rows.chunks_exact_mut(view.size).for_each(log_softmax_row);
            });
            let found = x.dtype();
            let log_p = Tensor::new(x.shape(), &scores).converted(found);
            let log_p = log_p.map_err(|_| OpError::DType { index: 0, found })?;
            Ok(vec![loss(run, &scores, settings)?, log_p])
        }))
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// The scores [N, C, …] as f64: sums over many places keep their digits.
fn scores(run: &Run) -> Result<Vec<f64>, OpError> {
    let x = run.input(0)?;
    let error = OpError::DType { index: 0, found: x.dtype() };
    if x.rank() < 2 {
        return Err(OpError::value("the scores' shape", x.shape(), "[N, C, …]"));
    }
    if matches!(x.dtype(), DType::F32 | DType::F64) { x.to_f64().ok_or(error) } else { Err(error) }
}

fn loss(run: &Run, log_p: &[f64], settings: Settings) -> Result<Tensor, OpError> {
    let (x, classes) = (run.input(0)?, run.input(1)?);
    let (count, inner): (usize, usize) = (x.shape()[1], x.shape()[2..].iter().product());
    let expected: Vec<usize> = [&x.shape()[..1], &x.shape()[2..]].concat();
    if classes.shape() != expected {
        return Err(OpError::shapes(x.shape(), classes.shape()));
    }
    let found = classes.dtype();
    let places = classes.to_i64().ok_or(OpError::DType { index: 1, found })?;
    let weights = match run.optional(2) {
        Some(weights) if weights.shape() != [count] => {
            return Err(OpError::shapes(&[count], weights.shape()));
        }
        Some(weights) => {
            weights.to_f64().ok_or(OpError::DType { index: 2, found: weights.dtype() })?
        }
        None => vec![1.0; count],
    };
    let (mut losses, mut total) = (vec![0.0; places.len()], 0.0);
    for (place, (loss, &class)) in losses.iter_mut().zip(&places).enumerate() {
        if Some(class) == settings.ignored {
            continue;
        }
        let class = usize::try_from(class).ok().filter(|&class| class < count);
        let class = class.ok_or_else(|| {
            OpError::value("a class", places[place], format!("0 to {}", count.saturating_sub(1)))
        })?;
        let at = (place / inner * count + class) * inner + place % inner;
        *loss = -weights[class] * log_p[at];
        total += weights[class];
    }
    let sum: f64 = losses.iter().sum();
    let y = match settings.reduction {
        Reduction::None => Tensor::new(&expected, &losses),
        Reduction::Sum => Tensor::scalar(sum),
        Reduction::Mean => Tensor::scalar(sum / total),
    };
    y.converted(x.dtype()).map_err(|_| OpError::DType { index: 0, found: x.dtype() })
}
