//! The line on stderr that tells how far training has come.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use attar::{
    Choice, Control, EpochReport, StepReport, TrainBegun, TrainProgress, ValidationReport,
};
use indicatif::{ProgressBar, ProgressStyle};

/// Steps that the shown loss and speed are a mean of, roughly.
const SMOOTHING: f64 = 0.05;

/// Time from one line to the next where stderr is no terminal.
const LINE_TIME: Duration = Duration::from_secs(10);

/// Follows a training: one line that changes on a terminal, else a line now and then.
pub(crate) struct TrainLine {
    stop: Arc<AtomicBool>,
    bar: Option<ProgressBar>,
    shown: Option<Instant>,
    loss: Option<f64>,
    /// Seconds and examples of a step.
    pace: Option<(f64, f64)>,
    metric: Option<(&'static str, Option<f64>)>,
}

impl TrainLine {
    pub(crate) fn new(stop: Arc<AtomicBool>) -> Self {
        Self { stop, bar: None, shown: None, loss: None, pace: None, metric: None }
    }

    /// Takes the line away.
    pub(crate) fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    fn status(&self, report: &StepReport) -> String {
        let (seconds, examples) = self.pace.unwrap_or((report.seconds, 0.0));
        let left = report.step_count.saturating_sub(report.step) as f64 * seconds;
        let metric = match self.metric {
            Some((name, Some(value))) => format!(", {name} {value:.4}"),
            _ => String::new(),
        };
        format!(
            "epoch {}/{}, step {}/{}: loss {:.4}{metric}, {:.1} examples/s, {} left",
            report.epoch + 1,
            report.epoch_count,
            report.step,
            report.step_count,
            self.loss.unwrap_or(report.loss),
            examples / seconds.max(1e-9),
            clock(left)
        )
    }
}

impl TrainProgress for TrainLine {
    fn begun(&mut self, begun: &TrainBegun) {
        let options = begun.options;
        self.metric = begun.metric.map(|metric| (metric, None));
        let watched = match begun.metric {
            Some(metric) => format!("{metric} on {} others", begun.validation_count),
            None => {
                "watched by nothing: give `--validation SET` or a part, `--validation 0.1`".into()
            }
        };
        self.say(&format!(
            "training {} tensors on {} {}; {watched}",
            begun.weight_count, begun.example_count, begun.data_kind
        ));
        self.say(&format!(
            "loss {}, optimizer {}, learning rate {}, {}, {} epochs, batch {}, seed {}",
            choice_text(&options.loss),
            choice_text(&options.optimizer),
            options.schedule.learning_rate,
            decay_text(options),
            options.length.epochs,
            options.batches.size.get() * options.batches.accumulate.get(),
            options.batches.seed
        ));
        begun.remarks.iter().for_each(|remark| self.say(&format!("note: {remark}")));
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{wide_msg}").expect("it is well formed");
            bar.set_style(style);
            self.bar = Some(bar);
        }
    }

    fn step(&mut self, report: &StepReport) -> Control {
        let smooth = |old: f64, new: f64| old + SMOOTHING * (new - old);
        self.loss = Some(self.loss.map_or(report.loss, |loss| smooth(loss, report.loss)));
        let now = (report.seconds, report.example_count as f64);
        self.pace =
            Some(self.pace.map_or(now, |(seconds, examples)| {
                (smooth(seconds, now.0), smooth(examples, now.1))
            }));
        let is_due = self.shown.is_none_or(|shown| {
            let time = if self.bar.is_some() { Duration::from_millis(100) } else { LINE_TIME };
            shown.elapsed() >= time
        });
        if is_due {
            let status = self.status(report);
            match &self.bar {
                Some(bar) => bar.set_message(status),
                None => eprintln!("{status}"),
            }
            self.shown = Some(Instant::now());
        }
        if self.stop.load(Ordering::SeqCst) { Control::Stop } else { Control::GoOn }
    }

    fn validation(&mut self, report: &ValidationReport) {
        if let Some((_, value)) = &mut self.metric {
            *value = Some(report.metric);
        }
    }

    fn epoch(&mut self, report: &EpochReport) {
        let metric = match (self.metric, report.metric) {
            (Some((name, _)), Some(value)) => {
                let best = if report.is_best { " (best)" } else { "" };
                format!(", {name} {value:.4}{best}")
            }
            _ => String::new(),
        };
        self.say(&format!(
            "epoch {}/{} done: loss {:.4}{metric}, {:.1} examples/s, {}",
            report.epoch + 1,
            report.epoch_count,
            report.loss,
            report.example_count as f64 / report.seconds.max(1e-9),
            clock(report.seconds)
        ));
    }
}

/// `name:key=value,…`, as the command line takes it.
fn choice_text(choice: &Choice) -> String {
    let settings: Vec<String> =
        choice.settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    match settings.as_slice() {
        [] => choice.name.clone(),
        settings => format!("{}:{}", choice.name, settings.join(",")),
    }
}

fn decay_text(options: &attar::TrainerOptions) -> String {
    let decay = serde_json::to_value(options.schedule.decay).unwrap_or_default();
    let name = decay["kind"].as_str().unwrap_or("constant").to_string();
    match options.schedule.warm_up {
        attar::Span::Fraction(part) if part > 0.0 => {
            format!("{name} after {} % of warm-up", part * 100.0)
        }
        attar::Span::Steps(steps) if steps > 0 => format!("{name} after {steps} steps of warm-up"),
        _ => name,
    }
}

/// Minutes and seconds, or hours and minutes.
fn clock(seconds: f64) -> String {
    let seconds = seconds.round().max(0.0) as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{}:{:02} min", seconds / 60, seconds % 60),
        _ => format!("{}:{:02} h", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_clocks() {
        let texts = [0.4, 59.6, 61.0, 3599.0, 7265.0].map(clock);
        assert_eq!(texts, ["0 s", "1:00 min", "1:01 min", "59:59 min", "2:01 h"]);
    }

    #[test]
    fn a_choice_reads_as_it_is_given() {
        let choice = Choice::new("sgd").with("momentum", 0.9).with("nesterov", true);
        assert_eq!(choice_text(&choice), "sgd:momentum=0.9,nesterov=true");
    }
}
