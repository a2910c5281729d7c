//! Gradients of a model's outputs over calibration data.
//!
//! At the original's own outputs every loss that compares with them is flat, and first derivatives
//! of it are zero. What tells weights apart is how far the outputs y move: for a vector v of random
//! signs, E[(∂(v·y)/∂w)²] = Σₖ (∂yₖ/∂w)², the diagonal of the Gauss-Newton matrix of ½‖y − y₀‖²
//! (Hutchinson, 1990). So one gradient of v·y is taken for every batch. With labels it is that of
//! the cross-entropy of the first output.

use attar_graph::Value;
use attar_ops::{Flow, Pool};
use attar_tensor::{DType, Tensor};
use attar_train::{Choice, LossRun, Rng, StepContext, Tape, TapeOptions, Targets, build_loss};

use super::Scoring;
use crate::PassError;

/// What gradients are taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The outputs, with random signs.
    Outputs,
    /// The same, each output divided by its norm over the batch.
    RelativeOutputs,
    /// The loss that the labels of the data make.
    Labels,
}

/// Sums `term(w, g)` over the batches, for every weight of every tensor, and divides by how many
/// there were. A batch of several examples adds the gradients of each, with signs of their own.
///
/// # Errors
/// No data, a model through which no gradient flows, or values that are not finite.
pub(super) fn means(
    scoring: &Scoring,
    target: Target,
    term: fn(f32, f32) -> f32,
) -> Result<Vec<Vec<f32>>, PassError> {
    let mut sums: Vec<Vec<f32>> =
        (0..scoring.names.len()).map(|i| vec![0.0; scoring.tensor(i).element_count()]).collect();
    let count = each(scoring, target, usize::MAX, &mut |index, w, g| {
        let mut is_finite = true;
        for ((sum, &w), &g) in sums[index].iter_mut().zip(w).zip(g) {
            *sum += term(w, g);
            is_finite &= sum.is_finite();
        }
        is_finite
    })?;
    sums.iter_mut().flatten().for_each(|sum| *sum /= count as f32);
    Ok(sums)
}

/// Shows the gradient of every tensor that has one, for each of the first `batches_max` batches: the
/// tensor's index, its values and the gradient. `visit` returns whether what it makes of them is
/// finite. Returns how many batches there were of these.
///
/// # Errors
/// As [`means`].
pub(crate) fn each(
    scoring: &Scoring,
    target: Target,
    batches_max: usize,
    visit: &mut dyn FnMut(usize, &[f32], &[f32]) -> bool,
) -> Result<usize, PassError> {
    let calibration = scoring.context.calibration.ok_or(PassError::NoCalibration)?;
    if scoring.names.is_empty() {
        return Ok(0);
    }
    let classes = match target {
        Target::Outputs | Target::RelativeOutputs => None,
        Target::Labels => Some(calibration.classes()?.ok_or(PassError::NoLabels)?),
    };
    let loss = build_loss(&Choice::new("cross-entropy"))?;
    let graph = &scoring.model.graph;
    let is_float = |output: &&Value| output.dtype().is_none_or(DType::is_float);
    let outputs = graph.outputs.iter().filter(is_float).map(|output| output.name.clone());
    let options = TapeOptions { outputs: outputs.collect(), ..TapeOptions::default() };
    let tape = Tape::new(scoring.model, scoring.names, &options)?;
    let content = |name: &String| graph.constant(name).expect("variables are constants").aligned();
    let variables: Vec<Tensor> = tape.variables().iter().map(content).collect();
    let place = |name: &String| scoring.names.iter().position(|known| known == name);
    let places: Vec<usize> = tape.trained().iter().filter_map(place).collect();
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(scoring.context.threads.get())
        .build()
        .map_err(|error| PassError::Data {
            message: error.to_string(),
            hint: "ask for fewer threads".into(),
        })?;
    let pool = Pool::default();
    let inputs = tape.inputs().to_vec();
    let mut batch = 0;
    calibration.for_each_batch(&inputs, &mut |feeds| {
        if batch as usize >= batches_max {
            return Ok(());
        }
        let seed = scoring.seed;
        let mut begin = |outputs: &[Tensor]| match &classes {
            None => Ok(signs(outputs, [seed, batch], target == Target::RelativeOutputs)),
            Some(classes) => {
                let of_batch = classes.get(batch as usize).cloned().unwrap_or_default();
                let targets = &Targets::Classes(of_batch);
                let run = LossRun { outputs, targets, scale: 1.0, pool: &pool };
                let mut gradients = loss.measure(&run)?.gradients;
                gradients.resize(outputs.len(), None);
                Ok(gradients)
            }
        };
        let gradients =
            threads.install(|| gradient(&tape, &variables, feeds, &mut begin, &pool))?;
        for (at, flow) in gradients.into_iter().enumerate() {
            let Some(flow) = flow else { continue };
            let index = places[at];
            let gradient = flow.into_dense(&pool);
            let (w, g) = (variables[at].slice::<f32>(), gradient.slice::<f32>());
            if !visit(index, w, g) {
                let tensor = format!("gradient of {}", scoring.names[index]);
                return Err(PassError::NotFinite { tensor, batch: batch as usize });
            }
            pool.recycle(gradient);
        }
        batch += 1;
        Ok(())
    })?;
    if batch == 0 {
        return Err(PassError::EmptyCalibration);
    }
    Ok(batch as usize)
}

/// The gradient that `begin` makes of the outputs, one flow per trained initializer.
fn gradient(
    tape: &Tape,
    variables: &[Tensor],
    feeds: &[(&str, &Tensor)],
    begin: &mut (dyn FnMut(&[Tensor]) -> Result<Vec<Option<Tensor>>, PassError> + Send),
    pool: &Pool,
) -> Result<Vec<Option<Flow>>, PassError> {
    let mut fed = Vec::new();
    for input in tape.inputs() {
        let found = feeds.iter().find(|(name, _)| *name == input.name);
        let (_, tensor) = found.ok_or_else(|| PassError::Data {
            message: format!("input `{}` is not fed", input.name),
            hint: "see what the model reads: `attar inspect MODEL`".into(),
        })?;
        fed.push((*tensor).clone());
    }
    let recording = tape.forward(variables, fed, StepContext::default(), pool)?;
    let gradients = begin(&recording.outputs)?;
    let mut sums: Vec<Option<Flow>> = vec![None; tape.trained().len()];
    tape.backward(variables, recording, gradients, &mut sums, pool)?;
    Ok(sums)
}

/// v for each output of f32: 1 or −1, drawn from the place; over the norm of the output if
/// `is_relative`.
fn signs(outputs: &[Tensor], place: [u64; 2], is_relative: bool) -> Vec<Option<Tensor>> {
    let of_output = |(index, output): (usize, &Tensor)| {
        (output.dtype() == DType::F32).then(|| {
            let mut rng = Rng::new(&[place[0], place[1], index as u64]);
            let mut bits = 0;
            let size = if is_relative { over_norm(&output.values::<f32>()) } else { 1.0 };
            let draw = |at: usize| {
                bits = if at.is_multiple_of(64) { rng.next_u64() } else { bits >> 1 };
                if bits & 1 == 1 { size } else { -size }
            };
            let signs: Vec<f32> = (0..output.element_count()).map(draw).collect();
            Tensor::new(output.shape(), &signs)
        })
    };
    outputs.iter().enumerate().map(of_output).collect()
}

/// 1 / ‖y‖, or 0 where that is not finite.
fn over_norm(y: &[f32]) -> f32 {
    let square: f64 = y.iter().map(|&y| f64::from(y).powi(2)).sum();
    let over = square.sqrt().recip() as f32;
    if over.is_finite() { over } else { 0.0 }
}
