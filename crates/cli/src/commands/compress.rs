//! `attar compress`: the main job.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use attar::{
    Budget, CompressOutcome, CompressRequest, Error, LayerChange, Recipe, Shape, Step, StepOutcome,
    Subject, TrainingData, Validation, compress, dry_run, early_warnings,
};
use clap::Args;

use super::quality::{invariance_table, latency_table, quality_table, size_change};
use crate::arguments::{DataArguments, RuntimeArguments};
use crate::print::{self, bytes, count, milliseconds};
use crate::table::Table;

/// Compress a model by a recipe or by steps, and measure what it cost.
///
/// With `-o`, a run folder with the model ready to serve, recipe, journal and report; without, only
/// what would change. Exit status 1 if the result misses the budget.
#[derive(Args)]
#[command(after_help = "Examples:
  attar compress minilm.onnx --step quantize.static --calibration texts.txt
  attar compress minilm.onnx --step cleanup --step quantize.static --calibration beir/ \\
      --data beir/ --budget quality_drop_max=0.01,size_ratio_max=0.3 -o runs/int8
  attar compress minilm.onnx --recipe recipe.toml --calibration texts.txt -o runs/int8 --resume

Budget keys: size_bytes_max, size_ratio_max, quality_drop_max, speedup_min, cosine_min.
Passes and their settings: attar passes")]
pub(crate) struct Compress {
    /// Model to read (.onnx, or a run folder)
    model: PathBuf,
    /// Steps and budget from a file (.toml)
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "steps",
        help = "Steps and budget from a file (.toml); or give --step"
    )]
    recipe: Option<PathBuf>,
    /// A step, after those of the recipe: PASS or PASS:key=value,…
    #[arg(long = "step", value_name = "STEP")]
    steps: Vec<String>,
    /// Data to measure quality on, before and after
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Data to find ranges with; its labels are not used
    #[arg(long, value_name = "PATH")]
    calibration: Option<PathBuf>,
    /// Data that steps which train learn from, and whose tokens `prune.vocabulary` keeps [default: the calibration data, all of it]
    #[arg(long, value_name = "PATH")]
    training: Option<PathBuf>,
    /// Examples to take of the calibration data, spread over it
    #[arg(long, value_name = "N", default_value = "300")]
    calibration_count: std::num::NonZeroUsize,
    /// Bounds on the result: key=value,…
    #[arg(long, value_name = "BOUNDS")]
    budget: Option<String>,
    /// Run folder to write; without it, a dry run
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Go on with the unfinished run in that folder
    #[arg(long, requires = "output")]
    resume: bool,
    /// Runtime that measures quality: builtin or ort
    #[arg(long, value_name = "NAME", default_value = "builtin")]
    runtime: String,
    /// Do not time original and result
    #[arg(long)]
    no_timing: bool,
    /// Measure time and quality after each step too
    #[arg(long, requires = "output")]
    measure_steps: bool,
    /// Threads of the timed runs
    #[arg(long, value_name = "N", default_value = "1")]
    latency_threads: std::num::NonZeroUsize,
    /// Examples in a timed run
    #[arg(long, value_name = "N", default_value = "1")]
    batch: std::num::NonZeroUsize,
    /// Tokens of a text, or pixels of a side, in a timed run [default: 128, or the image's size]
    #[arg(long, value_name = "N")]
    length: Option<std::num::NonZeroUsize>,
    #[command(flatten)]
    data_arguments: DataArguments,
    #[command(flatten)]
    runtime_arguments: RuntimeArguments,
}

impl Compress {
    /// Exits 0 if the result meets the budget, 1 if it does not.
    pub(crate) fn run(&self, json: bool) -> Result<ExitCode, Error> {
        let recipe = self.recipe()?;
        let subject = Subject::open(&self.model)?;
        let bar = print::Bar::default();
        let calibration = match &self.calibration {
            Some(path) => {
                let count = self.calibration_count.get();
                Some((path.as_path(), self.data_arguments.open_calibration(path, count)?))
            }
            None => None,
        };
        let training = self.training(&recipe)?;
        let data = self.data.as_ref().map(|path| self.data_arguments.open(path)).transpose()?;
        let image = subject.preprocessing.as_ref().and_then(|p| p.image.as_ref());
        let length = self.length.map(std::num::NonZeroUsize::get);
        let length = length.unwrap_or(image.map_or(128, |image| image.size));
        let output = self.output.as_deref();
        let request = CompressRequest {
            subject,
            recipe,
            calibration,
            calibration_count: self.calibration_count.get(),
            data,
            training,
            stop: Arc::new(AtomicBool::new(false)),
            runtimes: if output.is_some() { self.runtimes()? } else { Vec::new() },
            threads: self.runtime_arguments.threads(),
            is_timed: !self.no_timing,
            measures_steps: self.measure_steps,
            latency_threads: self.latency_threads,
            shape: Shape { batch: self.batch.get(), length },
            output: output.unwrap_or(Path::new("")),
            resume: self.resume,
            progress: &bar,
        };
        if output.is_none() {
            self.runtime_arguments.runtime(&self.runtime)?;
            if !request.recipe.budget.is_empty() {
                eprintln!("warning: a dry run measures nothing, so it checks no budget");
            }
            let steps = dry_run(&request)?;
            if json {
                print::json(&steps);
            } else {
                print::answer(&plan_text(&steps));
            }
            return Ok(ExitCode::SUCCESS);
        }
        if self.calibration.is_some() && self.calibration == self.data {
            eprintln!(
                "warning: ranges come from the texts that quality is measured on; its labels are \
                 not used, but new texts may fare a little worse"
            );
        }
        for warning in early_warnings(&request)? {
            eprintln!("warning: {warning}");
        }
        stop_at_interrupt(&request);
        let outcome = match compress(&request) {
            Err(Error::Stopped) => return Ok(stopped(request.output)),
            outcome => outcome?,
        };
        if json {
            print::json(&outcome);
        } else {
            print::answer(&outcome_text(&outcome));
        }
        Ok(ExitCode::from(u8::from(!outcome.within_budget)))
    }

    /// What steps that train, or look at texts, read; if there are such.
    fn training(&self, recipe: &Recipe) -> Result<Option<(&Path, TrainingData)>, Error> {
        let path = self.training.as_ref().or(self.calibration.as_ref());
        let Some(path) = path.filter(|_| recipe.steps.iter().any(Step::reads_data)) else {
            return Ok(None);
        };
        let data = self.data_arguments.open_training(path, &Validation::None, 0)?;
        Ok(Some((path, data)))
    }

    fn recipe(&self) -> Result<Recipe, Error> {
        let mut recipe = match &self.recipe {
            Some(path) => Recipe::load(path)?,
            None => Recipe::default(),
        };
        for step in &self.steps {
            recipe.steps.push(Step::parse(step)?);
        }
        if let Some(budget) = &self.budget {
            recipe.budget = Budget::parse(budget)?;
        }
        Ok(recipe)
    }

    /// The one that measures quality first, then the other where it is found.
    fn runtimes(&self) -> Result<Vec<Box<dyn attar::Runtime>>, Error> {
        let mut runtimes = vec![self.runtime_arguments.runtime(&self.runtime)?];
        let (others, missing) = self.runtime_arguments.all()?;
        if let Some(why) = missing {
            eprintln!("warning: not timed on ONNX Runtime: {why}");
        }
        runtimes.extend(others.into_iter().filter(|other| other.name() != self.runtime));
        Ok(runtimes)
    }
}

/// Where a step trains, the first Ctrl-C lets it make a checkpoint; otherwise it ends the program,
/// which loses no step that is done.
fn stop_at_interrupt(request: &CompressRequest) {
    let trains = request.recipe.steps.iter().any(Step::reads_data);
    let (stop, place) = (request.stop.clone(), request.output.to_path_buf());
    // A handler that cannot be set leaves Ctrl-C as it is, which loses nothing either.
    let _ = ctrlc::set_handler(move || {
        if !trains || stop.swap(true, Ordering::SeqCst) {
            let _ = stopped(&place);
            std::process::exit(130);
        }
        eprintln!("\nstopping; once more to stop at once");
    });
}

fn stopped(place: &Path) -> ExitCode {
    eprintln!("\nstopped; go on with the same command and `--resume` ({})", place.display());
    ExitCode::from(130)
}

fn step_text(number: usize, step: &StepOutcome) -> String {
    let mut text = format!(
        "step {number} {}: {} edits, {} → {} nodes, weights {} → {}, {:.1} s\n",
        step.pass,
        step.edit_count,
        step.node_count_before,
        step.node_count,
        bytes(step.weight_bytes_before),
        bytes(step.weight_bytes),
        step.seconds
    );
    let (before, after) = (step.work_before, step.work);
    if after.macs < before.macs {
        text.push_str(&format!(
            "  {} → {} multiply-accumulates ({:.2}× fewer), {} → {} parameters\n",
            count(before.macs),
            count(after.macs),
            before.macs as f64 / after.macs.max(1) as f64,
            count(before.parameter_count),
            count(after.parameter_count)
        ));
    }
    if let Some(measures) = &step.measures {
        for time in &measures.times {
            text.push_str(&format!(
                "  {} ms on {}, {:.2}× as fast as the original\n",
                milliseconds(time.ms),
                time.runtime,
                time.original_ms / time.ms
            ));
        }
        if let Some(metric) = &measures.metric {
            text.push_str(&format!(
                "  {} {:.4}, {:+.4} [{:+.4}, {:+.4}]\n",
                metric.name, metric.value, metric.difference, metric.low, metric.high
            ));
        }
    }
    for remark in &step.remarks {
        text.push_str(&format!("  {remark}\n"));
    }
    text.push_str(&layers_text(&step.layers));
    text
}

/// Layers shown; the report has them all.
const LAYERS_SHOWN: usize = 40;

/// What became of the layers that cost most.
fn layers_text(layers: &[LayerChange]) -> String {
    let mut sizes: Vec<u64> = layers.iter().map(|layer| layer.before.macs).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let Some(&least) = sizes.get(LAYERS_SHOWN - 1).or(sizes.last()) else { return String::new() };
    let mut header = vec!["layer", "multiply-accumulates", "parameters"];
    let is_timed = layers.iter().any(|layer| layer.ms.is_some());
    if is_timed {
        header.push("ms on builtin");
    }
    let mut table = Table::new(&header);
    let shown = layers.iter().filter(|layer| layer.before.macs >= least).take(LAYERS_SHOWN);
    for layer in shown {
        let (before, after) = (layer.before, layer.after);
        let mut row = vec![
            format!("{} ({})", layer.node, layer.op_type),
            format!("{} → {}", count(before.macs), count(after.macs)),
            format!("{} → {}", count(before.parameter_count), count(after.parameter_count)),
        ];
        if is_timed {
            row.push(layer.ms.map_or(String::new(), |[a, b]| format!("{a:.3} → {b:.3}")));
        }
        table.row(row);
    }
    let mut text = table.to_string();
    if layers.len() > LAYERS_SHOWN {
        text.push_str(&format!("  and {} more in report.json\n", layers.len() - LAYERS_SHOWN));
    }
    text
}

fn plan_text(steps: &[StepOutcome]) -> String {
    let mut text = String::new();
    for (index, step) in steps.iter().enumerate() {
        step.edits.iter().for_each(|edit| text.push_str(&format!("  {edit}\n")));
        text.push_str(&step_text(index + 1, step));
        step.warnings.iter().for_each(|w| text.push_str(&format!("  warning: {w}\n")));
    }
    text.push_str("nothing written; give `-o DIR` to compress\n");
    text
}

fn outcome_text(outcome: &CompressOutcome) -> String {
    let names = ["original".to_string(), "result".to_string()];
    let mut text = String::new();
    for (index, step) in outcome.steps.iter().enumerate() {
        text.push_str(&step_text(index + 1, step));
    }
    let size = size_change(outcome.size_bytes_before, outcome.size_bytes);
    text.push_str(&format!("\nsize on disk  {size}\n\n"));
    text.push_str(&latency_table(&outcome.latency, &names));
    if let Some(quality) = &outcome.quality {
        text.push_str(&quality_table(quality, &names));
        text.push('\n');
    }
    if !outcome.invariance.is_empty() {
        text.push_str(&invariance_table(&outcome.invariance, &names));
        text.push('\n');
    }
    for warning in &outcome.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    for check in &outcome.budget {
        let found = check.found.map_or("not measured".into(), |found| format!("{found:.4}"));
        let verdict = if check.is_met { "met" } else { "MISSED" };
        text.push_str(&format!("budget {} {}: {found}, {verdict}\n", check.bound, check.limit));
    }
    text.push_str(&format!("ready to serve: {}\n", outcome.output.join("model.onnx").display()));
    text
}
