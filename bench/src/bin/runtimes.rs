//! Time of `builtin` over that of ONNX Runtime, in alternating runs of one process.
//!
//! `cargo run --release -p attar-bench --bin runtimes -- MODEL… [--threads N] [--seconds S]
//! [--shapes BATCHxLENGTH,…]`
#![allow(clippy::print_stdout)]

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use attar_evaluate::{Shape, measure, synthetic_feeds};
use attar_runtime::{Builtin, Ort, RunOptions, Runtime, Session};

struct Arguments {
    models: Vec<String>,
    threads: NonZeroUsize,
    seconds: f64,
    shapes: Vec<Shape>,
}

fn arguments() -> Result<Arguments, Box<dyn std::error::Error>> {
    let mut parsed = Arguments {
        models: Vec::new(),
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
            _ => parsed.models.push(word),
        }
    }
    Ok(parsed)
}

fn shapes(text: &str) -> Result<Vec<Shape>, Box<dyn std::error::Error>> {
    text.split(',')
        .map(|shape| {
            let (batch, length) = shape.split_once('x').ok_or("a shape is BATCHxLENGTH")?;
            Ok(Shape { batch: batch.parse()?, length: length.parse()? })
        })
        .collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = arguments()?;
    let runtimes: [&dyn Runtime; 2] = [&Builtin, &Ort::find(None)?];
    let options = RunOptions { threads: arguments.threads, observed: Vec::new() };
    println!(
        "{} {} against {} {}, {} thread(s); medians of alternating runs",
        runtimes[0].name(),
        runtimes[0].version(),
        runtimes[1].name(),
        runtimes[1].version(),
        arguments.threads
    );
    println!("{:40} {:>10} {:>10} {:>10} {:>7}", "model", "shape", "builtin ms", "ort ms", "ratio");
    for path in &arguments.models {
        let model = attar_onnx::load(Path::new(path))?;
        let mut sessions =
            [runtimes[0].load(&model, &options)?, runtimes[1].load(&model, &options)?];
        for &shape in &arguments.shapes {
            let feeds = synthetic_feeds(sessions[0].inputs(), shape)?;
            let feeds = [feeds.clone(), feeds];
            let time = Duration::from_secs_f64(arguments.seconds);
            let [builtin, ort] = &mut sessions;
            let mut in_turn: [&mut dyn Session; 2] = [builtin.as_mut(), ort.as_mut()];
            let times = measure(&mut in_turn, &feeds, shape.batch, 20, time)?;
            println!(
                "{:40} {:>10} {:>10.2} {:>10.2} {:>7.2}",
                path,
                format!("{}x{}", shape.batch, shape.length),
                times[0].p50_ms,
                times[1].p50_ms,
                times[0].p50_ms / times[1].p50_ms
            );
        }
    }
    Ok(())
}
