//! Time of `builtin` over that of ONNX Runtime, in alternating runs of one process, and how far
//! apart their outputs are.
//!
//! `cargo run --release -p attar-bench --bin runtimes -- MODEL… [NAME=SHAPE[=VALUE]…]
//! [--data FOLDER] [--threads N] [--seconds S] [--shapes BATCHxLENGTH,…]`
//!
//! Inputs are named after their model: `det.onnx x=1x3x640x640`, `vad.onnx sr==16000`; others are
//! made up in the given shapes. `--data` adds the models of `bench/models.txt` that lie in the
//! folder.
#![allow(clippy::print_stdout)]

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use attar_bench::{Feed, Job, difference, jobs_of_data};
use attar_evaluate::{Shape, measure};
use attar_runtime::{Builtin, Ort, RunOptions, Runtime, Session};
use attar_tensor::Tensor;

type Error = Box<dyn std::error::Error>;

struct Arguments {
    jobs: Vec<Job>,
    threads: NonZeroUsize,
    seconds: f64,
    shapes: Vec<Shape>,
}

fn arguments() -> Result<Arguments, Error> {
    let mut parsed = Arguments {
        jobs: Vec::new(),
        threads: NonZeroUsize::MIN,
        seconds: 3.0,
        shapes: [(1, 16), (1, 128), (32, 32)]
            .map(|(batch, length)| Shape { batch, length })
            .to_vec(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--threads" => parsed.threads = value()?.parse()?,
            "--seconds" => parsed.seconds = value()?.parse()?,
            "--shapes" => parsed.shapes = shapes(&value()?)?,
            "--data" => parsed.jobs.extend(jobs_of_data(Path::new(&value()?))?),
            feed if feed.contains('=') => match parsed.jobs.last_mut() {
                Some(job) => job.feeds.push(feed.parse()?),
                None => return Err(format!("`{feed}` stands before any model").into()),
            },
            _ => parsed.jobs.push(Job::new(word)),
        }
    }
    Ok(parsed)
}

fn shapes(text: &str) -> Result<Vec<Shape>, Error> {
    text.split(',')
        .map(|shape| {
            let (batch, length) = shape.split_once('x').ok_or("a shape is BATCHxLENGTH")?;
            Ok(Shape { batch: batch.parse()?, length: length.parse()? })
        })
        .collect()
}

fn main() -> Result<(), Error> {
    let arguments = arguments()?;
    let runtimes: [&dyn Runtime; 2] = [&Builtin, &Ort::find(None)?];
    println!(
        "{} {} against {} {}, {} thread(s); medians of alternating runs",
        runtimes[0].name(),
        runtimes[0].version(),
        runtimes[1].name(),
        runtimes[1].version(),
        arguments.threads
    );
    println!(
        "{:36} {:>16} {:>10} {:>10} {:>7} {:>9}",
        "model", "shape", "builtin ms", "ort ms", "ratio", "max diff"
    );
    for job in &arguments.jobs {
        if let Err(error) = bench(job, runtimes, &arguments) {
            println!("{:36} {}", job.name(), chain(error.as_ref()));
        }
    }
    Ok(())
}

/// The message with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn bench(job: &Job, runtimes: [&dyn Runtime; 2], arguments: &Arguments) -> Result<(), Error> {
    let options = RunOptions { threads: arguments.threads, observed: Vec::new() };
    let model = attar_onnx::load(Path::new(&job.path))?;
    let mut builtin = runtimes[0].load(&model, &options)?;
    let mut ort = runtimes[1].load(&model, &options)?;
    // A job that names every input has one shape.
    let is_given = builtin.inputs().iter().all(|input| job.feeds.iter().any(|f| f.is_for(input)));
    let shapes = if is_given { &arguments.shapes[..1] } else { &arguments.shapes[..] };
    for &shape in shapes {
        let feeds = Feed::all(builtin.inputs(), &job.feeds, shape)?;
        let named: Vec<(&str, &Tensor)> =
            feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let apart = difference(&builtin.run(&named)?, &ort.run(&named)?);
        let time = Duration::from_secs_f64(arguments.seconds);
        let mut in_turn: [&mut dyn Session; 2] = [builtin.as_mut(), ort.as_mut()];
        let times = measure(&mut in_turn, &[feeds.clone(), feeds.clone()], shape.batch, 20, time)?;
        let text = match job.feeds.first() {
            Some(feed) if is_given => feed.shape_text(),
            _ => format!("{}x{}", shape.batch, shape.length),
        };
        println!(
            "{:36} {text:>16} {:>10.3} {:>10.3} {:>7.2} {apart:>9.1e}",
            job.name(),
            times[0].p50_ms,
            times[1].p50_ms,
            times[0].p50_ms / times[1].p50_ms,
        );
    }
    Ok(())
}
