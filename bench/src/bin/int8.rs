//! 8-bit products of `builtin` with what surrounds them, beside what the CPU's instruction can do.
//!
//! `cargo run --release -p attar-bench --bin int8 -- [--threads N] [--seconds S] [--signs] [M,K,N…]`
//!
//! Each case is quantize → product → bias, activation → quantize, run as `builtin` runs a model: the
//! time holds the quantizing of the f32 input, which in a network the operator before does, and the
//! dequantizing of the output. The floor is the products alone at the peak of one thread times the
//! threads.
//!
//! With `--signs`, products of weights −1 and 1, and of −1, 0 and 1, with rows whose levels have fewer
//! and fewer bits, in turn: what counting bits is worth.
#![allow(clippy::print_stdout)]

use std::num::NonZeroUsize;
use std::time::Duration;

use attar_evaluate::measure;
use attar_graph::Model;
use attar_graph::testing::graph_from_text;
use attar_runtime::{Builtin, RunOptions, Runtime, Session};
use attar_tensor::{DType, Tensor};

type Error = Box<dyn std::error::Error>;

/// Rows, depth and columns: the products of MiniLM-L6 and `MPNet` at 16, 128 and 32 × 32 tokens.
const CASES: &[[usize; 3]] = &[
    [16, 384, 384],
    [16, 384, 1536],
    [16, 1536, 384],
    [128, 384, 384],
    [128, 384, 1536],
    [128, 1536, 384],
    [1024, 384, 384],
    [1024, 384, 1536],
    [1024, 1536, 384],
    [128, 768, 768],
    [128, 768, 3072],
    [128, 3072, 768],
];

/// One row, and many.
const SIGN_CASES: &[[usize; 3]] =
    &[[1, 1024, 1024], [128, 384, 1536], [196, 1152, 256], [1024, 1536, 384]];
/// Bits of the levels of rows. With eight bytes are multiplied.
const BITS: [u32; 5] = [8, 4, 3, 2, 1];

struct Arguments {
    threads: NonZeroUsize,
    seconds: f64,
    signs: bool,
    cases: Vec<[usize; 3]>,
}

fn arguments() -> Result<Arguments, Error> {
    let mut found =
        Arguments { threads: NonZeroUsize::MIN, seconds: 0.3, signs: false, cases: Vec::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("`{word}` needs a value"));
        match word.as_str() {
            "--threads" => found.threads = value()?.parse()?,
            "--seconds" => found.seconds = value()?.parse()?,
            "--signs" => found.signs = true,
            _ => {
                let sizes = word.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
                let sizes = sizes.try_into();
                found.cases.push(sizes.map_err(|_| format!("`{word}` is not M,K,N"))?);
            }
        }
    }
    if found.cases.is_empty() {
        found.cases = if found.signs { SIGN_CASES } else { CASES }.to_vec();
    }
    Ok(found)
}

fn main() -> Result<(), Error> {
    let arguments = arguments()?;
    if arguments.signs {
        return signs(&arguments);
    }
    let peak = attar_ops::int8_operations_per_second() * arguments.threads.get() as f64;
    println!(
        "{} {}, {} thread(s), peak {:.0} GOP/s",
        Builtin.name(),
        Builtin.version(),
        arguments.threads,
        peak / 1e9
    );
    println!(
        "{:>6} {:>6} {:>6} {:>10} {:>10} {:>10} {:>8} {:>8}",
        "rows", "depth", "cols", "follows", "ms", "floor ms", "GOP/s", "share"
    );
    for &[m, k, n] in &arguments.cases {
        for follows in ["", "Relu", "Gelu"] {
            let p50_ms = time(&model([m, k, n], follows), [m, k], &arguments)?;
            let operations = 2.0 * (m * k * n) as f64;
            println!(
                "{m:>6} {k:>6} {n:>6} {:>10} {p50_ms:>10.4} {:>10.4} {:>8.0} {:>7.0}%",
                if follows.is_empty() { "-" } else { follows },
                operations / peak * 1e3,
                operations / p50_ms / 1e6,
                operations / peak / p50_ms * 1e5,
            );
        }
    }
    Ok(())
}

/// A product of constant weights between quantizations.
fn model([m, k, n]: [usize; 3], follows: &str) -> Model {
    let head = format!(
        "x: f32[{m}, {k}]\nq = QuantizeLinear(x, s, z)\nd = DequantizeLinear(q, s, z)\n\
         v = DequantizeLinear(w, ws)\np = MatMul(d, v)\na = Add(p, b)\n"
    );
    let (tail, last) = match follows {
        "" => (String::new(), "a"),
        op => (format!("f = {op}(a)\n"), "f"),
    };
    let end = format!("r = QuantizeLinear({last}, s, z)\ny = DequantizeLinear(r, s, z)");
    let mut graph = graph_from_text(&(head + &tail + &end));
    let weights: Vec<i8> = (0..k * n).map(|i| (i * 37 % 255) as u8 as i8).collect();
    graph.set_initializer("w", Tensor::new(&[k, n], &weights));
    graph.set_initializer("ws", Tensor::new(&[n], &vec![0.001_f32; n]));
    graph.set_initializer("b", Tensor::new(&[n], &vec![0.1_f32; n]));
    graph.set_initializer("s", Tensor::scalar(0.02_f32));
    graph.set_initializer("z", Tensor::scalar(128_u8));
    // They were inputs of unknown content before.
    let constants = &graph.initializers;
    graph.inputs.retain(|input| !constants.contains_key(&input.name));
    Model { opsets: [(String::new(), 23)].into_iter().collect(), graph, ..Model::default() }
}

fn time(model: &Model, size: [usize; 2], arguments: &Arguments) -> Result<f64, Error> {
    let options = RunOptions { threads: arguments.threads, observed: Vec::new() };
    let mut session = Builtin.load(model, &options)?;
    let mut x = Tensor::zeros(DType::F32, &size);
    let values = x.slice_mut::<f32>().iter_mut().enumerate();
    values.for_each(|(i, x)| *x = (i * 29 % 255) as f32 * 0.02 - 2.5);
    let feeds = vec![("x".to_string(), x)];
    let mut in_turn: [&mut dyn Session; 1] = [session.as_mut()];
    let time = Duration::from_secs_f64(arguments.seconds);
    let times = measure(&mut in_turn, &[feeds], 1, 20, time)?;
    Ok(times[0].p50_ms)
}

/// The times of products with weights of two and of three levels, by the bits of the rows.
fn signs(arguments: &Arguments) -> Result<(), Error> {
    println!("{} {}, {} thread(s)", Builtin.name(), Builtin.version(), arguments.threads);
    println!(
        "{:>6} {:>6} {:>6} {:>8}  ms, and how many times as fast as with 8 bits",
        "rows", "depth", "cols", "levels"
    );
    for &[m, k, n] in &arguments.cases {
        for levels in [2, 3] {
            let times = sign_times([m, k, n], levels, arguments)?;
            print!("{m:>6} {k:>6} {n:>6} {levels:>8} ");
            for (bits, ms) in BITS.iter().zip(&times) {
                print!(" {bits} bits: {ms:.4} ({:.2})", times[0] / ms);
            }
            println!();
        }
    }
    Ok(())
}

fn sign_times(
    [m, k, n]: [usize; 3],
    levels: usize,
    arguments: &Arguments,
) -> Result<Vec<f64>, Error> {
    let text = format!(
        "x: u8[{m}, {k}]\nd = DequantizeLinear(x, s, z)\nv = DequantizeLinear(w, ws)\ny = MatMul(d, v)"
    );
    let mut graph = graph_from_text(&text);
    let weight = |i: usize| match ((i * 2_654_435_761) >> 7) % levels {
        0 => -1,
        1 => 1,
        _ => 0,
    };
    let weights: Vec<i8> = (0..k * n).map(weight).collect();
    graph.set_initializer("w", Tensor::new(&[k, n], &weights));
    graph.set_initializer("ws", Tensor::new(&[n], &vec![0.001_f32; n]));
    graph.set_initializer("s", Tensor::scalar(0.02_f32));
    graph.set_initializer("z", Tensor::scalar(0_u8));
    let constants = &graph.initializers;
    graph.inputs.retain(|input| !constants.contains_key(&input.name));
    let opsets = [(String::new(), 23)].into_iter().collect();
    let model = Model { opsets, graph, ..Model::default() };
    let options = RunOptions { threads: arguments.threads, observed: Vec::new() };
    let loaded = BITS.map(|_| Builtin.load(&model, &options));
    let mut sessions = loaded.into_iter().collect::<Result<Vec<_>, _>>()?;
    let feeds = BITS.map(|bits| {
        let x: Vec<u8> = (0..m * k).map(|i| (i * 104_729 % 65_521 % (1 << bits)) as u8).collect();
        vec![("x".to_string(), Tensor::new(&[m, k], &x))]
    });
    let mut in_turn: Vec<&mut dyn Session> =
        sessions.iter_mut().map(|session| &mut **session as _).collect();
    let time = Duration::from_secs_f64(arguments.seconds * BITS.len() as f64);
    let times = measure(&mut in_turn, &feeds, 1, 20, time)?;
    Ok(times.iter().map(|time| time.p50_ms).collect())
}
