//! Time and memory of training steps, beside `PyTorch`'s, in alternating rounds.
//!
//! `cargo run --release -p attar-bench --bin training -- [--python PYTHON] [--cases encoder,cnn,lstm,gru]
//! [--threads 1,2] [--rounds N] [--seconds S] [--preload LIBRARY]`
//!
//! Each side is a process of its own, which waits while the other computes. A round is as many steps
//! as fit into the seconds; a side's time is the median of its rounds' medians. The floor is what
//! the products of the forward run and twice as many of the backward run take at the rate of one
//! large product, the better of both sides, measured in the same run. Memory is the most that was
//! resident (Linux only); what a side has before it makes its model stands beside it. `PyTorch` runs
//! `bench/training.py` with the Python that `scripts/bench-venv torch` makes; without `--python`, attar is
//! timed alone.
#![allow(clippy::print_stdout)]

mod process;
mod worker;

use std::error::Error;

use self::process::{Side, Start};
use self::worker::CASES;

struct Arguments {
    python: Option<String>,
    /// Another allocator for `PyTorch`: jemalloc or tcmalloc.
    preload: Option<String>,
    cases: Vec<String>,
    threads: Vec<usize>,
    rounds: usize,
    seconds: f64,
}

fn arguments(words: &[String]) -> Result<Arguments, Box<dyn Error>> {
    let mut parsed = Arguments {
        python: None,
        preload: None,
        cases: CASES.iter().map(|case| case.name.to_string()).collect(),
        threads: vec![1, 2],
        rounds: 5,
        seconds: 2.0,
    };
    for pair in words.chunks(2) {
        let [word, value] = pair else { return Err(format!("{} needs a value", pair[0]).into()) };
        match word.as_str() {
            "--python" => parsed.python = Some(value.clone()),
            "--preload" => parsed.preload = Some(value.clone()),
            "--cases" => parsed.cases = value.split(',').map(String::from).collect(),
            "--threads" => {
                parsed.threads = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
            }
            "--rounds" => parsed.rounds = value.parse()?,
            "--seconds" => parsed.seconds = value.parse()?,
            _ => return Err(format!("there is no option `{word}`").into()),
        }
    }
    Ok(parsed)
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [word, case, threads] = words.as_slice()
        && word == "--worker"
    {
        return worker::serve(case, threads.parse()?);
    }
    let arguments = arguments(&words)?;
    println!(
        "{:8} {:>7} {:>9} {:>9} {:>6} {:>8} {:>9} {:>16} {:>16} {:>6}",
        "case",
        "threads",
        "attar ms",
        "torch ms",
        "ratio",
        "floor ms",
        "GFLOP/s",
        "attar MB",
        "torch MB",
        "ratio"
    );
    for case in &arguments.cases {
        let mut alone: Option<[f64; 2]> = None;
        for &threads in &arguments.threads {
            let medians = compare(&arguments, case, threads)?;
            match alone {
                None if threads == 1 => alone = Some(medians),
                Some(one) => println!(
                    "{case:8} {threads} threads over one: attar {:.2}x, torch {:.2}x",
                    one[0] / medians[0],
                    one[1] / medians[1]
                ),
                None => {}
            }
        }
    }
    Ok(())
}

/// Measures one case and prints its line; gives both medians, in ms.
fn compare(arguments: &Arguments, case: &str, threads: usize) -> Result<[f64; 2], Box<dyn Error>> {
    let program = std::env::current_exe()?;
    let mut sides = vec![Side::start(&program, &["--worker".into()], case, threads, &[])?];
    if let Some(python) = &arguments.python {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/training.py");
        let threads_text = threads.to_string();
        // Memory is kept for the next step, as attar does: none is mapped, none goes back.
        let mut tuned = vec![
            ("MALLOC_MMAP_MAX_", "0"),
            ("MALLOC_TRIM_THRESHOLD_", "17179869184"),
            ("MALLOC_TOP_PAD_", "67108864"),
            ("OMP_NUM_THREADS", threads_text.as_str()),
        ];
        tuned.extend(arguments.preload.as_deref().map(|library| ("LD_PRELOAD", library)));
        sides.push(Side::start(python.as_ref(), &[script.into()], case, threads, &tuned)?);
    }
    let starts: Vec<Start> = sides.iter_mut().map(Side::ready).collect::<Result<_, _>>()?;
    if let [ours, theirs] = starts.as_slice()
        && ours.parameter_count != theirs.parameter_count
    {
        let (ours, theirs) = (ours.parameter_count, theirs.parameter_count);
        return Err(format!("{case}: {ours} parameters here, {theirs} there").into());
    }
    for side in &mut sides {
        side.round(arguments.seconds.min(1.0))?;
    }
    let mut medians = vec![Vec::new(); sides.len()];
    for _ in 0..arguments.rounds {
        for (side, medians) in sides.iter_mut().zip(&mut medians) {
            medians.push(side.round(arguments.seconds)?);
        }
    }
    let rates: Vec<f64> = sides.iter_mut().map(Side::peak).collect::<Result<_, _>>()?;
    let peaks: Vec<f64> = sides.into_iter().map(Side::end).collect::<Result<_, _>>()?;
    let times: Vec<f64> = medians.into_iter().map(process::median).collect();
    let gflops = rates.iter().copied().fold(0.0, f64::max);
    let floor_ms = 3.0 * 2.0 * starts[0].mac_count / (gflops * 1e6);
    let at = |values: &[f64], index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    let memory = |index: usize| match starts.get(index) {
        Some(start) => format!("{:.0} (from {:.0})", peaks[index], start.resident_mb),
        None => "-".into(),
    };
    println!(
        "{case:8} {threads:>7} {:>9.1} {:>9.1} {:>6.2} {floor_ms:>8.1} {gflops:>9.1} {:>16} {:>16} {:>6.2}",
        times[0],
        at(&times, 1),
        times[0] / at(&times, 1),
        memory(0),
        memory(1),
        peaks[0] / at(&peaks, 1),
    );
    Ok([times[0], at(&times, 1)])
}
