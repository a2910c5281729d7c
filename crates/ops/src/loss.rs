//! `NegativeLogLikelihoodLoss` (opset 12) and `SoftmaxCrossEntropyLoss` (opset 12):
//! loss = −weight[c]·log p[c] for the class c of each place, and its sum or weighted mean.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::kernels::for_rows;
use crate::rows::AxisView;
use crate::softmax::log_softmax_row;
use crate::{
    Backward, Fact, Flow, Forward, Gradient, Kernel, OpError, Operator, Reads, Run, Training,
    required,
};

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

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        Ok(Box::new(LossGradient { settings: Settings::new(node)?, takes_scores: false }))
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

    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        Ok(Box::new(LossGradient { settings: Settings::new(node)?, takes_scores: true }))
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
    let x = run.input(0)?;
    let expected: Vec<usize> = [&x.shape()[..1], &x.shape()[2..]].concat();
    let chosen = Chosen::new(x.shape(), run.input(1)?, run.optional(2), settings)?;
    let y = match settings.reduction {
        Reduction::None => Tensor::new(&expected, &chosen.losses(log_p)),
        Reduction::Sum => Tensor::scalar(chosen.losses(log_p).iter().sum::<f64>()),
        Reduction::Mean => {
            Tensor::scalar(chosen.losses(log_p).iter().sum::<f64>() / chosen.total())
        }
    };
    y.converted(x.dtype()).map_err(|_| OpError::DType { index: 0, found: x.dtype() })
}

/// The scores that count: those of the class of each place.
struct Chosen {
    /// Class and where its score stands; `None` where the place is ignored.
    scores: Vec<Option<(usize, usize)>>,
    /// By class.
    weights: Vec<f64>,
}

impl Chosen {
    fn new(
        shape: &[usize],
        classes: &Tensor,
        weights: Option<&Tensor>,
        settings: Settings,
    ) -> Result<Self, OpError> {
        let (count, inner): (usize, usize) = (shape[1], shape[2..].iter().product());
        if classes.shape() != [&shape[..1], &shape[2..]].concat() {
            return Err(OpError::shapes(shape, classes.shape()));
        }
        let found = classes.dtype();
        let places = classes.to_i64().ok_or(OpError::DType { index: 1, found })?;
        let weights = match weights {
            Some(weights) if weights.shape() != [count] => {
                return Err(OpError::shapes(&[count], weights.shape()));
            }
            Some(weights) => {
                weights.to_f64().ok_or(OpError::DType { index: 2, found: weights.dtype() })?
            }
            None => vec![1.0; count],
        };
        let score = |(place, &found): (usize, &i64)| -> Result<_, OpError> {
            if Some(found) == settings.ignored {
                return Ok(None);
            }
            let class = usize::try_from(found).ok().filter(|&class| class < count);
            let expected = || format!("0 to {}", count.saturating_sub(1));
            let class = class.ok_or_else(|| OpError::value("a class", found, expected()))?;
            Ok(Some((class, (place / inner * count + class) * inner + place % inner)))
        };
        let scores = places.iter().enumerate().map(score).collect::<Result<_, _>>()?;
        Ok(Self { scores, weights })
    }

    fn losses(&self, log_p: &[f64]) -> Vec<f64> {
        let loss = |score: &Option<(usize, usize)>| {
            score.map_or(0.0, |(class, at)| -self.weights[class] * log_p[at])
        };
        self.scores.iter().map(loss).collect()
    }

    /// The weights of all places.
    fn total(&self) -> f64 {
        self.scores.iter().flatten().map(|(class, _)| self.weights[*class]).sum()
    }

    /// What flows back to the loss of each place.
    fn shares(&self, dy: &[f32], reduction: Reduction) -> Vec<f64> {
        let count = self.scores.len();
        match reduction {
            Reduction::None => dy.iter().map(|&dy| f64::from(dy)).collect(),
            Reduction::Sum => vec![f64::from(dy[0]); count],
            Reduction::Mean => vec![f64::from(dy[0]) / self.total(); count],
        }
    }

    /// dweight[c] = −Σ share·log p over the places of class c; of a mean, also by what it is
    /// divided by.
    fn weight_gradient(&self, shares: &[f64], log_p: &[f32], reduction: Reduction) -> Vec<f32> {
        let log_p: Vec<f64> = log_p.iter().map(|&value| f64::from(value)).collect();
        let mean = match reduction {
            Reduction::Mean => self.losses(&log_p).iter().sum::<f64>() / self.total(),
            _ => 0.0,
        };
        let mut sums = vec![0.0; self.weights.len()];
        for (score, share) in self.scores.iter().zip(shares) {
            if let Some((class, at)) = *score {
                sums[class] -= share * (log_p[at] + mean);
            }
        }
        sums.into_iter().map(|sum| sum as f32).collect()
    }
}

/// Of either loss. Where x are scores and p their softmax, dx = d log p − p·Σ d log p over the
/// classes, d log p = −weight·share at the class of each place (and what flows to the second output).
struct LossGradient {
    settings: Settings,
    takes_scores: bool,
}

impl Gradient for LossGradient {
    fn reads(&self) -> Reads {
        let reads = Reads::NOTHING.input(1).input(2);
        if self.takes_scores { reads } else { reads.input(0) }
    }

    fn forward(&self, forward: &mut Forward, kernel: &dyn Kernel) -> Result<Vec<Tensor>, OpError> {
        let outputs = kernel.run(&mut forward.run)?;
        if let Some(log_p) = outputs.get(1) {
            let found = log_p.dtype();
            let log_p = log_p.converted(DType::F32);
            forward.saved.push(log_p.map_err(|_| OpError::DType { index: 0, found })?);
        }
        Ok(outputs)
    }

    fn backward(&self, run: &mut Backward) -> Result<Vec<Option<Flow>>, OpError> {
        let shape = run.shape(0);
        let weights = run.inputs.get(2).and_then(Option::as_ref);
        let chosen = Chosen::new(shape, run.input(1)?, weights, self.settings)?;
        let log_p = if self.takes_scores { &run.saved[0] } else { run.input(0)? };
        let reduction = self.settings.reduction;
        let (mut dx, mut dweight) = (run.zeros(shape), None);
        let flow = dx.slice_mut::<f32>();
        if let Some(dy) = run.gradient(1) {
            flow.copy_from_slice(dy.slice::<f32>());
        }
        if let Some(dy) = run.gradient(0) {
            let shares = chosen.shares(dy.slice::<f32>(), reduction);
            for (score, share) in chosen.scores.iter().zip(&shares) {
                if let Some((class, at)) = *score {
                    flow[at] -= (chosen.weights[class] * share) as f32;
                }
            }
            if run.wants(2) {
                let log_p = log_p.slice::<f32>();
                let flow = chosen.weight_gradient(&shares, log_p, reduction);
                dweight = Some(Tensor::new(run.shape(2), &flow).into());
            }
        }
        if self.takes_scores {
            let AxisView { size, inner } = AxisView::new(shape, 1)?;
            let log_p = log_p.slice::<f32>();
            for_rows(flow, size * inner, |first, items| {
                let log_p = log_p[first * size * inner..].chunks_exact(size * inner);
                for (flow, log_p) in items.chunks_exact_mut(size * inner).zip(log_p) {
                    through_softmax(flow, log_p, inner);
                }
            });
        }
        Ok(vec![Some(dx.into()), None, dweight])
    }
}

/// flow −= p·Σ flow over the classes, which are `inner` apart.
fn through_softmax(flow: &mut [f32], log_p: &[f32], inner: usize) {
    for place in 0..inner {
        let line = flow[place..].iter().step_by(inner);
        let sum = line.map(|&flow| f64::from(flow)).sum::<f64>() as f32;
        let line = flow[place..].iter_mut().step_by(inner);
        for (flow, log_p) in line.zip(log_p[place..].iter().step_by(inner)) {
            *flow -= sum * log_p.exp();
        }
    }
}
