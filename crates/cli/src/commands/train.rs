//! `attar train`: any ONNX graph, on a data set.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use attar::{
    Augment, Choice, Error, LOSSES, OPTIMIZERS, Subject, TrainOutcome, TrainRequest,
    TrainerOptions, TrainingData, Validation, parse_choice, parse_schedule, set_choice, train,
    training_defaults,
};
use clap::Args;

use super::pruning::PruneArguments;
use super::quality::quality_table;
use crate::arguments::DataArguments;
use crate::print;
use crate::progress::TrainLine;

/// Train a model on a data set: an ONNX graph goes in, and one with other weights comes out.
///
/// Texts and images are prepared as the attar.toml beside the model says. What is not given is
/// chosen by the kind of data, and printed. Ctrl-C saves; `--resume` goes on, bit for bit.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Train {
    /// Model to read (.onnx, or a run folder)
    #[arg(required_unless_present = "list")]
    model: Option<PathBuf>,
    /// Data set to train on: its training split, or all of it
    #[arg(long, value_name = "SET", required_unless_present = "list")]
    data: Option<PathBuf>,
    /// Run folder to write
    #[arg(short, long, value_name = "DIR", required_unless_present = "list")]
    output: Option<PathBuf>,
    /// Data to watch training by: a set, or a part of the training data, as 0.1
    /// [default: the validation split, if there is one]
    #[arg(long, value_name = "SET|FRACTION", help_heading = "Data")]
    validation: Option<String>,
    /// Changes of images, drawn anew each time: flip,crop=4,mixup=0.2
    #[arg(long, value_name = "LIST", help_heading = "Data")]
    augment: Option<String>,
    /// Model to learn from
    #[arg(long, value_name = "MODEL", help_heading = "Loss")]
    teacher: Option<PathBuf>,
    /// Values that are to be like the teacher's too, by name; `*` is any text, and `auto` what
    /// each LayerNormalization gives. Can be given several times
    #[arg(long = "feature", value_name = "PATTERN", help_heading = "Loss", requires = "teacher")]
    features: Vec<String>,
    /// What to make small: NAME[:key=value,…] [default: by the kind of data]
    #[arg(long, value_name = "LOSS", help_heading = "Loss")]
    loss: Option<String>,
    /// What logits or cosines are divided by
    #[arg(long, value_name = "T", help_heading = "Loss")]
    temperature: Option<f64>,
    /// Share of a label that is spread evenly over all classes
    #[arg(long, value_name = "SHARE", help_heading = "Loss")]
    label_smoothing: Option<f64>,
    #[command(flatten)]
    steps: StepArguments,
    #[command(flatten)]
    weights: WeightArguments,
    #[command(flatten)]
    pruning: PruneArguments,
    #[command(flatten)]
    run: RunArguments,
    #[command(flatten)]
    data_arguments: DataArguments,
}

/// How a step is made.
#[derive(Args)]
#[command(next_help_heading = "Steps")]
struct StepArguments {
    /// How gradients change weights: NAME[:key=value,…]
    #[arg(long, value_name = "OPTIMIZER", default_value = "adamw")]
    optimizer: String,
    /// Highest learning rate [default: by optimizer and kind of data]
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,
    /// How the rate falls: constant, linear, cosine or step:every=0.3,factor=0.1
    #[arg(long, value_name = "SCHEDULE", default_value = "cosine")]
    schedule: String,
    /// How long the rate rises at first: a part of the run, or from 1 on a count of steps
    #[arg(long, value_name = "PART|STEPS", default_value_t = 0.05)]
    warmup: f64,
    /// Share of a weight lost in a step, times the learning rate
    #[arg(long, value_name = "SHARE")]
    weight_decay: Option<f64>,
    /// Times to go over the data [default: by the kind of data]
    #[arg(long, value_name = "N")]
    epochs: Option<NonZeroUsize>,
    /// Steps after which the run ends
    #[arg(long, value_name = "N")]
    steps: Option<std::num::NonZeroU64>,
    /// Examples that go through the model together
    #[arg(long, value_name = "N", default_value = "32")]
    batch: NonZeroUsize,
    /// Batches that make one step
    #[arg(long, value_name = "N", default_value = "1")]
    accumulate: NonZeroUsize,
    /// Norm of all gradients together that they are scaled down to
    #[arg(long, value_name = "NORM")]
    clip: Option<f64>,
    /// Seed of all that is random
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// Which weights change.
#[derive(Args)]
#[command(next_help_heading = "Weights")]
struct WeightArguments {
    /// Weights to leave as they are, by name; `*` is any text. Can be given several times
    #[arg(long, value_name = "PATTERN")]
    freeze: Vec<String>,
    /// Weights to train, by name, instead of all. Can be given several times
    #[arg(long, value_name = "PATTERN")]
    train: Vec<String>,
    /// Leave weights that are zero at zero, as a pruned model needs
    #[arg(long)]
    hold_zeros: bool,
    /// Keep a moving average of the weights, of which each step leaves so much: 0.999
    #[arg(long, value_name = "SHARE")]
    ema: Option<f64>,
}

/// How the run goes.
#[derive(Args)]
#[command(next_help_heading = "Run")]
struct RunArguments {
    /// End after so many validations without a better metric
    #[arg(long, value_name = "N")]
    patience: Option<usize>,
    /// Steps from one validation to the next [default: one after every epoch]
    #[arg(long, value_name = "STEPS")]
    validate_every: Option<std::num::NonZeroU64>,
    /// Steps from one checkpoint to the next [default: one a minute]
    #[arg(long, value_name = "STEPS")]
    checkpoint_every: Option<std::num::NonZeroU64>,
    /// Steps from one line of the journal to the next
    #[arg(long, value_name = "STEPS", default_value = "10")]
    log_every: std::num::NonZeroU64,
    /// Go on with the unfinished run in that folder
    #[arg(long)]
    resume: bool,
    /// Take less memory and more time: what gradients need is computed again
    #[arg(long)]
    recompute: bool,
    /// Threads to compute with [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// List losses and optimizers with their settings
    #[arg(long)]
    list: bool,
}

const EXAMPLES: &str = "Examples:
  attar train cnn/model.onnx --data fashion-mnist/ --validation 0.1 --augment flip,crop=2 \\
      --epochs 10 --batch 128 --learning-rate 0.002 -o runs/fashion
  attar train lstm/model.onnx --data topics/ --epochs 5 --clip 1 -o runs/topics
  attar train minilm/minilm.onnx --data beir/ --loss contrastive:temperature=0.05 \\
      --learning-rate 2e-5 --batch 64 -o runs/search
  attar train student.onnx --data texts.txt --teacher minilm/minilm.onnx --loss cosine -o runs/small
  attar train runs/pruned --data topics/ --hold-zeros --steps 500 -o runs/retrained
  attar train cnn/model.onnx --data fashion-mnist/ --prune-to 0.9 --epochs 10 -o runs/sparse
  attar train --list

Every command above goes on after Ctrl-C or a crash when it is given again with --resume.";

impl Train {
    /// Exits 0 when the run is done, 130 when it was stopped.
    pub(crate) fn run(&self, json: bool) -> Result<ExitCode, Error> {
        if self.run.list {
            list(json);
            return Ok(ExitCode::SUCCESS);
        }
        let (Some(model), Some(path), Some(output)) = (&self.model, &self.data, &self.output)
        else {
            unreachable!("clap requires them")
        };
        let subject = Subject::open(model)?;
        let teacher = self.teacher.as_ref().map(|path| Subject::open(path)).transpose()?;
        let data = self.open_data(path)?;
        let options = self.options(&subject, &data)?;
        let augment = self.augment.as_deref().map(Augment::parse).transpose()?;
        let stop = stop_at_interrupt();
        let mut line = TrainLine::new(stop);
        let request = TrainRequest {
            subject,
            data_path: path,
            data: &data,
            options,
            augment: augment.unwrap_or_default(),
            teacher,
            features: self.features.clone(),
            checkpoint_every: self.run.checkpoint_every.map(std::num::NonZeroU64::get),
            log_every: self.run.log_every.get(),
            output,
            resume: self.run.resume,
        };
        let outcome = train(request, &mut line)?;
        line.end();
        if json {
            print::json(&outcome);
        } else {
            print::answer(&outcome_text(&outcome));
        }
        if outcome.is_stopped {
            let place = output.display();
            eprintln!("stopped; go on with the same command and `--resume` ({place})");
            return Ok(ExitCode::from(130));
        }
        Ok(ExitCode::SUCCESS)
    }

    fn open_data(&self, path: &std::path::Path) -> Result<TrainingData, Error> {
        let validation = match self.validation.as_deref() {
            None => Validation::OwnSplit,
            Some(text) => match text.parse() {
                Ok(fraction) => Validation::Fraction(fraction),
                Err(_) => Validation::Path(std::path::Path::new(text)),
            },
        };
        let data = self.data_arguments.open_training(path, &validation, self.steps.seed)?;
        if data.bad_count > 0 {
            eprintln!("warning: {}: {} bad rows left out", path.display(), data.bad_count);
        }
        Ok(data)
    }

    fn options(&self, subject: &Subject, data: &TrainingData) -> Result<TrainerOptions, Error> {
        let steps = &self.steps;
        let mut optimizer = parse_choice(&steps.optimizer)?;
        let given = self.loss.as_deref().map(parse_choice).transpose()?;
        let defaults = training_defaults(subject, data, self.teacher.is_some(), &optimizer.name);
        let defaults = match (defaults, &given) {
            (Ok(defaults), _) => defaults,
            // Whatever is wrong with it, the loss that was named is tried on the data.
            (Err(error), None) => return Err(error),
            (Err(_), Some(_)) => attar::TrainDefaults::default(),
        };
        let mut loss = given.unwrap_or_else(|| Choice::new(defaults.loss));
        for (key, value) in
            [("temperature", self.temperature), ("label-smoothing", self.label_smoothing)]
        {
            if let Some(value) = value {
                set_choice(&mut loss, key, value)?;
            }
        }
        if let Some(decay) = steps.weight_decay {
            set_choice(&mut optimizer, "weight-decay", decay)?;
        }
        let rate = steps.learning_rate.unwrap_or(defaults.learning_rate);
        let schedule = parse_schedule(&steps.schedule, rate, steps.warmup)?;
        let mut options = TrainerOptions::new(loss, optimizer, schedule);
        self.check_numbers(rate)?;
        let weights = &self.weights;
        options.weights.freeze.clone_from(&weights.freeze);
        options.weights.train.clone_from(&weights.train);
        options.weights.hold_zeros = weights.hold_zeros;
        options.weights.average = weights.ema;
        options.batches.size = steps.batch;
        options.batches.accumulate = steps.accumulate;
        options.batches.seed = steps.seed;
        options.length.steps_max = steps.steps.map(std::num::NonZeroU64::get);
        options.length.epochs = match (steps.epochs, steps.steps) {
            (Some(epochs), _) => epochs.get(),
            (None, Some(_)) => 0,
            (None, None) => defaults.epochs,
        };
        options.length.validate_every = self.run.validate_every.map(std::num::NonZeroU64::get);
        options.length.patience = self.run.patience;
        options.clip_norm = steps.clip;
        options.prune = self.pruning.options()?;
        options.machine.recompute = self.run.recompute;
        options.machine.threads = self.run.threads.unwrap_or_else(attar::default_threads);
        Ok(options)
    }

    fn check_numbers(&self, learning_rate: f64) -> Result<(), Error> {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let share = |x: f64| (0.0..1.0).contains(&x);
        let not_negative = |x: f64| x >= 0.0 && x.is_finite();
        let rows: [(&str, Option<f64>, &dyn Fn(f64) -> bool, &str); 7] = [
            ("--learning-rate", Some(learning_rate), &positive, "a number above 0"),
            ("--clip", self.steps.clip, &positive, "a number above 0"),
            ("--temperature", self.temperature, &positive, "a number above 0"),
            ("--label-smoothing", self.label_smoothing, &share, "from 0 up to, but not, 1"),
            ("--ema", self.weights.ema, &share, "from 0 up to, but not, 1"),
            ("--weight-decay", self.steps.weight_decay, &not_negative, "a number from 0"),
            ("--warmup", Some(self.steps.warmup), &not_negative, "a number from 0"),
        ];
        let wrong = rows.iter().find(|(_, value, is_good, _)| value.is_some_and(|x| !is_good(x)));
        match wrong {
            None => Ok(()),
            Some((flag, value, _, expected)) => Err(Error::Usage {
                message: format!("{flag} {}: expected {expected}", value.unwrap_or(f64::NAN)),
                hint: "see `attar train --help`".into(),
            }),
        }
    }
}

/// Becomes true at the first Ctrl-C; the second ends the program.
fn stop_at_interrupt() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    // A handler that cannot be set leaves Ctrl-C as it is: then the last checkpoint is gone on from.
    let _ = ctrlc::set_handler(move || {
        if seen.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("\nstopping after this step; once more to stop at once");
    });
    stop
}

fn list(json: bool) {
    let losses: Vec<_> = LOSSES.iter().map(|e| (e.name, e.summary, e.settings)).collect();
    let optimizers: Vec<_> = OPTIMIZERS.iter().map(|e| (e.name, e.summary, e.settings)).collect();
    if json {
        let rows = |entries: &[(&str, &str, &[attar::SettingEntry])]| {
            let setting = |s: &attar::SettingEntry| serde_json::json!({ "key": s.key, "default": s.default, "help": s.help });
            let row = |(name, summary, settings): &(&str, &str, &[attar::SettingEntry])| {
                let settings: Vec<_> = settings.iter().map(setting).collect();
                serde_json::json!({ "name": name, "summary": summary, "settings": settings })
            };
            entries.iter().map(row).collect::<Vec<_>>()
        };
        let answer = serde_json::json!({
            "losses": rows(&losses),
            "optimizers": rows(&optimizers),
        });
        print::json(&answer);
        return;
    }
    let mut text = String::new();
    for (title, entries) in [("losses", losses), ("optimizers", optimizers)] {
        text.push_str(&format!("{title}\n"));
        for (name, summary, settings) in entries {
            text.push_str(&format!("  {name}: {summary}\n"));
            for setting in settings {
                let default = if setting.default.is_empty() { "none" } else { setting.default };
                let line = format!("    {}={default}: {}\n", setting.key, setting.help);
                text.push_str(&line);
            }
        }
    }
    print::answer(&text);
}

fn outcome_text(outcome: &TrainOutcome) -> String {
    let mut text = String::new();
    if let Some(quality) = &outcome.quality {
        text.push_str(&quality_table(quality, &["original".into(), "result".into()]));
    }
    let epochs = outcome.curve.len();
    let steps = if outcome.step == 1 { "step" } else { "steps" };
    let seconds = outcome.seconds;
    text.push_str(&format!("{} {steps}, {epochs} whole epochs, {seconds:.1} s\n", outcome.step));
    if let Some([zeros, count]) = outcome.pruned_counts {
        let share = 100.0 * zeros as f64 / count.max(1) as f64;
        text.push_str(&format!("{zeros} of {count} weights of products are zero ({share:.1} %)\n"));
    }
    if outcome.is_early {
        text.push_str("ended early: the metric no longer rose\n");
    }
    if !outcome.is_stopped {
        let model = outcome.output.join("model.onnx");
        text.push_str(&format!("ready to serve: {}\n", model.display()));
    }
    text
}
