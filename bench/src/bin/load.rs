//! How long a model takes to load, and how much memory: `load [--copy PATH] MODEL…`.
//!
//! With `--copy`, the last model is saved to PATH too. Memory is the most that was resident at a
//! time, mapped files included (Linux only); it is compared with the size of the model and its data.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use attar_evaluate::model_size_bytes;
use attar_onnx::{OnnxError, SaveOptions, load, save};

/// Loads that are timed; the fastest counts, the others had company.
const LOADS: usize = 5;

#[expect(clippy::print_stdout, reason = "a program")]
fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut copy, mut models) = (None, Vec::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--copy" => copy = arguments.next().map(PathBuf::from),
            _ => models.push(PathBuf::from(argument)),
        }
    }
    for (index, path) in models.iter().enumerate() {
        let target = copy.as_deref().filter(|_| index + 1 == models.len());
        match measured(path, target) {
            Ok(line) => println!("{line}"),
            Err(error) => {
                println!("{}: {error}", path.display());
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn measured(path: &Path, copy: Option<&Path>) -> Result<String, OnnxError> {
    let mut fastest = f64::INFINITY;
    let mut loaded = None;
    for _ in 0..LOADS {
        let start = Instant::now();
        let model = load(path)?;
        fastest = fastest.min(start.elapsed().as_secs_f64());
        loaded = Some(model);
    }
    let model = loaded.expect("there is a first load");
    let size_mb = model_size_bytes(path).unwrap_or(0) as f64 / 1e6;
    let mut line = format!(
        "{}: {size_mb:.1} MB, {} nodes, loaded in {:.1} ms",
        path.display(),
        model.graph.nodes.len(),
        fastest * 1e3
    );
    if let Some(copy) = copy {
        let start = Instant::now();
        save(&model, copy, &SaveOptions::default())?;
        line += &format!(", saved in {:.1} s", start.elapsed().as_secs_f64());
    }
    if let Some(peak_mb) = peak_mb() {
        line += &format!(", at most {peak_mb:.1} MB resident ({:.2} of it)", peak_mb / size_mb);
    }
    Ok(line)
}

/// The most memory that this process has had resident.
fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024.0 / 1e6)
}
