//! A step of a recipe that trains a model as integers will run it, and then puts the integers in.

use attar_compress::saturation::integer_products;
use attar_compress::{
    AWARE_OPTIONS, AwareSettings, Context, Exclude, Fraction, OptionEntry, fold_normalizations,
    plan_aware, plan_integers,
};
use attar_graph::Model;
use attar_ops::ATTAR_DOMAIN;
use attar_ops::opset::convert_opset;
use attar_train::{ScaleOptions, Span};
use serde::Deserialize;

use crate::pipeline::{StepOutcome, check_exclude};
use crate::stages::{StageEntry, joined};
use crate::training_step::{TRAINING_OPTIONS, TrainingRecord, TrainingRun, TrainingSettings};
use crate::{Error, Subject};

pub(crate) const ENTRY: StageEntry = StageEntry {
    name: "quantize.aware",
    summary: "train with weights and activations on the grids of integers, of 8 bits down to one, and \
              write the integers (QDQ); 0 epochs train nothing",
    options: &joined::<{ AWARE_OPTIONS.len() + 1 + TRAINING_OPTIONS.len() }>(
        &joined::<{ AWARE_OPTIONS.len() + 1 }>(AWARE_OPTIONS, OPTIONS),
        &TRAINING_OPTIONS,
    ),
};

const OPTIONS: &[OptionEntry] = &[OptionEntry {
    key: "freeze",
    default: "0.5",
    help: "the last part of the steps, in which scales and zero points no longer learn",
}];

/// The settings of the step.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct Aware {
    #[serde(flatten)]
    training: TrainingSettings,
    #[serde(flatten)]
    quantization: AwareSettings,
    freeze: Fraction,
}

impl Default for Aware {
    fn default() -> Self {
        let (training, quantization) = <(TrainingSettings, AwareSettings)>::default();
        Self { training, quantization, freeze: Fraction::HALF }
    }
}

impl Aware {
    /// What types do not say of the settings.
    ///
    /// # Errors
    /// Bits that there are not, or as [`TrainingSettings::check`].
    pub(crate) fn check(&self) -> Result<(), Error> {
        let place = || format!("step `{}`", ENTRY.name);
        let checked = self.quantization.check();
        checked.map_err(|message| Error::Recipe { place: place(), message })?;
        self.training.check(ENTRY.name)
    }

    /// Whether it learns, or quantizes alone.
    pub(crate) fn trains(&self) -> bool {
        self.training.epochs != Some(0)
    }

    /// Folds normalizations, goes to an operator set that has the types, calibrates, and puts the
    /// fake quantizations in; `outcome` takes note. Also names what learns beside the weights.
    ///
    /// # Errors
    /// As [`plan_aware`], or a node that has no counterpart in the operator set.
    pub(crate) fn prepare(
        &self,
        number: usize,
        subject: &Subject,
        exclude: &[String],
        context: &mut Context,
        outcome: &mut StepOutcome,
    ) -> Result<(Model, Vec<String>), Error> {
        let fail = |source| Error::Step { step: Some(number), pass: ENTRY.name.into(), source };
        let mut model = subject.model.clone();
        context.exclude = Exclude::new(exclude.to_vec());
        check_exclude(&model, &context.exclude).map_err(fail)?;
        outcome.carry_out(&fold_normalizations(&model), &mut model, false).map_err(fail)?;
        let needed = self.quantization.opset();
        if model.opset() < needed {
            outcome.remarks.push(format!("opset {} → {needed}, for its types", model.opset()));
            convert_opset(&mut model, needed)
                .map_err(|source| Error::Convert { path: subject.path.clone(), source })?;
        }
        let made = plan_aware(&model, &self.quantization, context).map_err(fail)?;
        outcome.carry_out(&made.plan, &mut model, false).map_err(fail)?;
        Ok((model, made.scales))
    }

    /// Trains, scales included; `None` if it was stopped before its end.
    ///
    /// # Errors
    /// As [`TrainingSettings::run`].
    pub(crate) fn run(
        &self,
        run: &TrainingRun,
        scales: Vec<String>,
    ) -> Result<Option<(Model, TrainingRecord)>, Error> {
        let until = Span::Fraction(1.0 - self.freeze.get());
        self.training.run(run, |options| {
            options.weights.scales = Some(ScaleOptions { names: scales, until });
        })
    }

    /// Puts integers in the place of fake quantizations.
    ///
    /// # Errors
    /// As [`plan_integers`].
    pub(crate) fn finish(
        &self,
        number: usize,
        model: &mut Model,
        outcome: &mut StepOutcome,
    ) -> Result<(), Error> {
        let fail = |source| Error::Step { step: Some(number), pass: ENTRY.name.into(), source };
        let plan = plan_integers(model, &self.quantization).map_err(fail)?;
        outcome.carry_out(&plan, model, false).map_err(fail)?;
        model.opsets.shift_remove(ATTAR_DOMAIN);
        let products = integer_products(model);
        let at_risk = products.iter().filter(|product| !product.risk().is_none()).count();
        if at_risk > 0 {
            outcome.warnings.push(format!(
                "{at_risk} products in 8 bits could saturate on CPUs that sum in 16 bits (AVX2 \
                 without VNNI) where the runtime does not see to it; weights of 7 bits cannot"
            ));
        }
        Ok(())
    }
}
