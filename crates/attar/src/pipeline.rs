//! Carrying out steps: plan, apply, check, and remember what each one did.

use std::time::Instant;

use attar_compress::{Context, Exclude, PassError, QuantizationRecord};
use attar_evaluate::Shape;
use attar_graph::{Model, Plan, apply};
use attar_ops::opset::convert_opset;
use serde::{Deserialize, Serialize};

use crate::heap::SmallHeap;
use crate::layers::{LayerChange, Work};
use crate::step_measures::StepMeasures;
use crate::{Error, Step, TrainingRecord};

/// What one step did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepOutcome {
    pub pass: String,
    /// Edits carried out; 0 says that the model is as it was.
    pub edit_count: usize,
    pub remarks: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    pub node_count_before: usize,
    pub node_count: usize,
    pub weight_bytes_before: u64,
    pub weight_bytes: u64,
    #[serde(default)]
    pub work_before: Work,
    #[serde(default)]
    pub work: Work,
    /// What it did to single layers, where it made them smaller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerChange>,
    pub seconds: f64,
    /// Time and quality of what it left, where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measures: Option<StepMeasures>,
    /// Ranges, methods and errors, where the step quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<QuantizationRecord>,
    /// Where the step trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingRecord>,
    /// The edits, one line each; only kept on a dry run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edits: Vec<String>,
}

impl StepOutcome {
    /// Of a step that has not begun.
    pub(crate) fn before(pass: &str, model: &Model, shape: Shape) -> Self {
        Self {
            pass: pass.into(),
            edit_count: 0,
            remarks: Vec::new(),
            warnings: Vec::new(),
            node_count_before: model.graph.nodes.len(),
            node_count: 0,
            weight_bytes_before: weight_bytes(model),
            weight_bytes: 0,
            work_before: Work::of(model, shape),
            work: Work::default(),
            layers: Vec::new(),
            seconds: 0.0,
            measures: None,
            quantization: None,
            training: None,
            edits: Vec::new(),
        }
    }

    /// Completes it by what the step made.
    pub(crate) fn after(&mut self, model: &Model, shape: Shape, start: Instant) {
        if self.edit_count == 0 {
            self.remarks.push("changed nothing".into());
        }
        self.node_count = model.graph.nodes.len();
        self.weight_bytes = weight_bytes(model);
        self.work = Work::of(model, shape);
        self.seconds = start.elapsed().as_secs_f64();
    }

    /// Applies a plan, and adds it to what the step did.
    /// # Errors
    /// A plan that leaves a broken graph.
    pub(crate) fn carry_out(
        &mut self,
        plan: &Plan,
        model: &mut Model,
        keeps_edits: bool,
    ) -> Result<(), PassError> {
        self.edit_count += plan.edits.len();
        self.remarks.extend(plan.remarks.iter().cloned());
        self.warnings.extend(plan.warnings.iter().cloned());
        if keeps_edits {
            self.edits.extend(plan.edits.iter().map(ToString::to_string));
        }
        if !plan.is_empty() {
            apply(&mut model.graph, plan)?;
            model.import_domains();
        }
        Ok(())
    }
}

/// Rounds of a pass that plans again on its own result.
const ROUNDS_MAX: usize = 32;

/// Plans and applies one step.
///
/// # Errors
/// What the pass cannot do, with the step's number.
pub(crate) fn run_step(
    model: &mut Model,
    step: &Step,
    number: usize,
    context: &mut Context,
    shape: Shape,
    keeps_edits: bool,
) -> Result<StepOutcome, Error> {
    let _small = SmallHeap::new();
    let fail = |source| Error::Step { step: Some(number), pass: step.pass.clone(), source };
    let pass = step.build()?;
    context.exclude = Exclude::new(step.exclude.clone());
    check_exclude(model, &context.exclude).map_err(fail)?;
    let start = Instant::now();
    let mut outcome = StepOutcome::before(&step.pass, model, shape);
    if let Some(remark) = raise_opset(model, pass.opset_min()).map_err(fail)? {
        outcome.remarks.push(remark);
    }
    let prepared = pass.prepare(model).map_err(fail)?;
    outcome.carry_out(&prepared, model, keeps_edits).map_err(fail)?;
    for _ in 0..ROUNDS_MAX {
        let (plan, record): (Plan, _) = pass.plan_recorded(model, context).map_err(fail)?;
        outcome.quantization = record.or(outcome.quantization);
        outcome.carry_out(&plan, model, keeps_edits).map_err(fail)?;
        if plan.is_empty() || !pass.repeats() {
            break;
        }
    }
    outcome.after(model, shape, start);
    Ok(outcome)
}

/// Converts a model to the operator set that a step's edits need, if its own is older.
pub(crate) fn raise_opset(model: &mut Model, needed: i64) -> Result<Option<String>, PassError> {
    let found = model.opset();
    if found >= needed || model.graph.nodes.is_empty() {
        return Ok(None);
    }
    convert_opset(model, needed).map_err(|source| PassError::Convert { needed, source })?;
    Ok(Some(format!("converted from opset {found} to {needed}, which its formats need")))
}

pub(crate) fn check_exclude(model: &Model, exclude: &Exclude) -> Result<(), PassError> {
    let nodes = model.graph.nodes.iter().map(attar_graph::Node::label);
    let names: Vec<&str> = nodes.chain(model.graph.constants().map(|(name, _)| name)).collect();
    match exclude.unmatched(&names).first() {
        Some(pattern) => Err(PassError::UnmatchedExclude { pattern: (*pattern).to_string() }),
        None => Ok(()),
    }
}

/// Bytes of all constants.
pub(crate) fn weight_bytes(model: &Model) -> u64 {
    model.graph.constants().map(|(_, tensor)| tensor.size_bytes() as u64).sum()
}
