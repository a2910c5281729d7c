//! Writing answers, errors and progress.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;

use attar::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Writes the answer to stdout. A reader that closed the pipe has what it wanted.
pub(crate) fn answer(text: &str) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        eprintln!("error: standard output: {error}");
        std::process::exit(2);
    }
}

/// Writes the answer as JSON.
pub(crate) fn json(value: &impl Serialize) {
    let text = serde_json::to_string_pretty(value).expect("an answer is made of JSON values");
    answer(&format!("{text}\n"));
}

/// Writes an error with its causes and the next step.
pub(crate) fn error(error: &attar::Error) {
    let chain = error.chain();
    let first = error.to_string();
    eprintln!("error: {first}");
    if let Some(causes) = chain.strip_prefix(&first).and_then(|rest| rest.strip_prefix(": ")) {
        eprintln!("  cause: {causes}");
    }
    if let Some(hint) = error.hint() {
        eprintln!("hint: {hint}");
    }
}

/// A line on stderr that tells how far work has come; nothing where stderr is no terminal but the
/// start of each part, said once where the same is done several times in a row.
#[derive(Default)]
pub(crate) struct Bar {
    shown: Mutex<Option<(String, ProgressBar)>>,
    said: Mutex<String>,
}

impl Progress for Bar {
    fn advance(&self, what: &str, done: usize, total: usize) {
        let mut state = self.shown.lock().expect("progress is shown by one thread at a time");
        let is_new = state.as_ref().is_none_or(|(name, _)| name != what);
        if is_new && !std::io::stderr().is_terminal() && done < total {
            let mut said = self.said.lock().expect("progress is shown by one thread at a time");
            if *said != what {
                eprintln!("{what} …");
                *said = what.to_string();
            }
        }
        if is_new {
            let bar = ProgressBar::new(total as u64);
            let style = ProgressStyle::with_template("{msg:20} {bar:30} {pos}/{len} {eta} left");
            bar.set_style(style.expect("the template is well formed"));
            bar.set_message(what.to_string());
            *state = Some((what.to_string(), bar));
        }
        if let Some((_, bar)) = state.as_ref() {
            bar.set_position(done.min(total) as u64);
            if done >= total {
                bar.finish_and_clear();
            }
        }
        if done >= total {
            *state = None;
        }
    }
}

/// Bytes for people: three digits and a unit of a thousand.
pub(crate) fn bytes(size: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = size as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    match (unit, value) {
        (0, _) => format!("{size} B"),
        (_, value) if value < 9.995 => format!("{value:.2} {}", units[unit]),
        (_, value) if value < 99.95 => format!("{value:.1} {}", units[unit]),
        (_, value) => format!("{value:.0} {}", units[unit]),
    }
}

/// Milliseconds for people: two decimals, or as many as show three digits of a tiny model's time.
pub(crate) fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms >= 0.9995 => format!("{ms:.2}"),
        ms if ms >= 0.09995 => format!("{ms:.3}"),
        ms => format!("{ms:.4}"),
    }
}

/// A large count for people: 22.7 M.
pub(crate) fn count(count: u64) -> String {
    match count as f64 {
        value if value >= 1e9 => format!("{:.2} G", value / 1e9),
        value if value >= 1e6 => format!("{:.1} M", value / 1e6),
        value if value >= 1e4 => format!("{:.1} k", value / 1e3),
        _ => count.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_time_shows_three_digits() {
        let shown = [123.456, 1.0, 0.999_8, 0.2345, 0.03912].map(milliseconds);
        assert_eq!(shown, ["123.46", "1.00", "1.00", "0.234", "0.0391"]);
    }
}
