//! Steps of a recipe that are no passes, carried out.

use std::time::Instant;

use attar_tensor::Tensor;

use crate::aware::{self, Aware};
use crate::compress::{calibration_sample, context, use_tokenizer};
use crate::pipeline::StepOutcome;
use crate::recover::{self, Recover};
use crate::run_folder::RunFolder;
use crate::stages::Stage;
use crate::training_step::{TrainingRecord, TrainingRun};
use crate::vocabulary::Vocabulary;
use crate::{CalibrationSample, CompressRequest, Error, Subject};

/// Carries out a stage, on the model that the steps before have left.
///
/// # Errors
/// What the stage cannot do, or [`Error::Stopped`].
pub(crate) fn stage_step(
    request: &CompressRequest,
    run: &RunFolder,
    stage: &Stage,
    number: usize,
    current: &mut Subject,
) -> Result<StepOutcome, Error> {
    match stage {
        Stage::Aware(aware) => aware_step(request, run, aware, number, current),
        Stage::Recover(recover) => recover_step(request, run, recover, number, current),
        Stage::Vocabulary(vocabulary) => vocabulary_step(request, run, vocabulary, number, current),
    }
}

/// Trains what the steps before have left.
fn recover_step(
    request: &CompressRequest,
    run: &RunFolder,
    recover: &Recover,
    number: usize,
    current: &mut Subject,
) -> Result<StepOutcome, Error> {
    let start = Instant::now();
    let step = &request.recipe.steps[number - 1];
    let mut outcome = StepOutcome::before(&step.pass, &current.model, request.shape);
    let training = training_run(request, run, recover::ENTRY.name, number, current);
    let Some((trained, record)) = recover.run(&training, &step.exclude)? else {
        return Err(Error::Stopped);
    };
    let is_changed = |(name, tensor): &(&str, &Tensor)| {
        trained.graph.constant(name).is_none_or(|now| now.bytes() != tensor.bytes())
    };
    outcome.edit_count = current.model.graph.constants().filter(is_changed).count();
    note(&mut outcome, record);
    current.model = trained;
    outcome.after(&current.model, request.shape, start);
    Ok(outcome)
}

/// Trains on the grids of integers, and writes the integers.
fn aware_step(
    request: &CompressRequest,
    run: &RunFolder,
    aware: &Aware,
    number: usize,
    current: &mut Subject,
) -> Result<StepOutcome, Error> {
    let start = Instant::now();
    let step = &request.recipe.steps[number - 1];
    let mut outcome = StepOutcome::before(&step.pass, &current.model, request.shape);
    let sample = match (calibration_sample(request, current)?, &request.training) {
        (None, Some((_, data))) => {
            let (count, progress) = (request.calibration_count, request.progress);
            Some(CalibrationSample::new(&data.train, current, count, progress)?)
        }
        (sample, _) => sample,
    };
    let mut context = context(request, sample.as_ref(), None);
    let (mut model, scales) =
        aware.prepare(number, current, &step.exclude, &mut context, &mut outcome)?;
    drop(sample);
    if aware.trains() {
        let student = Subject { model, ..current.clone() };
        let training = training_run(request, run, aware::ENTRY.name, number, &student);
        let Some((trained, record)) = aware.run(&training, scales)? else {
            return Err(Error::Stopped);
        };
        note(&mut outcome, record);
        model = trained;
    }
    aware.finish(number, &mut model, &mut outcome)?;
    current.model = model;
    outcome.after(&current.model, request.shape, start);
    Ok(outcome)
}

fn training_run<'a>(
    request: &'a CompressRequest,
    run: &RunFolder,
    name: &'static str,
    number: usize,
    subject: &'a Subject,
) -> TrainingRun<'a> {
    TrainingRun {
        name,
        original: &request.subject,
        subject,
        data: request.training.as_ref().map(|(path, data)| (*path, data)),
        threads: request.threads,
        folder: run.training_folder(number),
        stop: &request.stop,
        progress: request.progress,
    }
}

fn note(outcome: &mut StepOutcome, record: TrainingRecord) {
    outcome.remarks.push(format!(
        "{} steps of {}, learning rate {}: loss {:.3e} → {:.3e}",
        record.step_count,
        record.loss.name,
        record.learning_rate,
        record.loss_first,
        record.loss_last
    ));
    outcome.training = Some(record);
}

/// Leaves tokens out.
fn vocabulary_step(
    request: &CompressRequest,
    run: &RunFolder,
    vocabulary: &Vocabulary,
    number: usize,
    current: &mut Subject,
) -> Result<StepOutcome, Error> {
    let start = Instant::now();
    let step = &request.recipe.steps[number - 1];
    let mut outcome = StepOutcome::before(&step.pass, &current.model, request.shape);
    let texts = request.training.as_ref().map_or(Vec::new(), |(_, data)| data.train.texts());
    let (plan, json) = vocabulary.plan(number, current, &texts, request.progress)?;
    let fail = |source| Error::Step { step: Some(number), pass: outcome.pass.clone(), source };
    let mut model = current.model.clone();
    attar_graph::apply(&mut model.graph, &plan).map_err(|source| fail(source.into()))?;
    current.model = model;
    use_tokenizer(current, Some(run.write_tokenizer(number, &json)?));
    outcome.edit_count = plan.edits.len();
    outcome.remarks.extend(plan.remarks);
    outcome.warnings.extend(plan.warnings);
    outcome.after(&current.model, request.shape, start);
    Ok(outcome)
}
