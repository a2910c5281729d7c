//! Times steps of optimizers beside the floor: the bytes they move over the memory's speed.
//!
//!     cargo run --release -p attar-bench --bin optimizer -- [MILLIONS OF WEIGHTS]
//!
//! The memory's speed is that of a moving average on as many threads: two arrays read, one written.

use std::error::Error;
use std::io::Write;
use std::time::Instant;

use attar_ops::Flow;
use attar_ops::optimize::{Adam, Moments, Rule, Sgd, average, square_sum, update};
use attar_tensor::Tensor;

const ROUNDS: usize = 15;
const BYTES: f64 = 4.0;

fn main() -> Result<(), Box<dyn Error>> {
    let millions: usize = std::env::args().nth(1).map_or(Ok(22), |text| text.parse())?;
    let shape = [millions * 1000, 1000];
    let mut out = std::io::stdout();
    writeln!(out, "{millions} M weights; ms a step, best of {ROUNDS}, and times the floor")?;
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        pool.install(|| measure(&shape, threads, &mut out))?;
    }
    Ok(())
}

fn measure(shape: &[usize], threads: usize, out: &mut dyn Write) -> std::io::Result<()> {
    let count = (shape[0] * shape[1]) as f64;
    let mut weight = filled(shape);
    let gradient = Flow::Dense(filled(shape));
    let mut moments = Moments::zeros(shape, 2);
    let mut other = filled(shape);
    let copy_ms = best_ms(|| average(other.slice_mut::<f32>(), weight.slice::<f32>(), 0.999));
    let bytes_per_ms = 3.0 * BYTES * count / copy_ms;
    writeln!(out, "{threads} threads: {:.1} GB/s", bytes_per_ms / 1e6)?;
    let mut report = |name: &str, ms: f64, streams: f64| {
        let floor = streams * BYTES * count / bytes_per_ms;
        writeln!(out, "  {name:<14} {ms:7.2} ms  {:.2}x", ms / floor)
    };
    let ms = best_ms(|| {
        std::hint::black_box(square_sum(&gradient));
    });
    report("norm", ms, 1.0)?;
    let (learning_rate, weight_decay, scale) = (1e-3, 0.01, 1.0);
    let betas = [0.9, 0.999];
    let adam = Adam {
        learning_rate,
        betas,
        epsilon: 1e-8,
        weight_decay,
        is_coupled: false,
        scale,
        step: 3,
    };
    let mut step = |rule: &dyn Rule, moments: &mut Moments| {
        best_ms(|| assert!(update(rule, &mut weight, &gradient, moments)))
    };
    report("adamw", step(&adam, &mut moments), 7.0)?;
    let (momentum, dampening, is_nesterov) = (0.9, 0.0, false);
    let sgd = Sgd { learning_rate, momentum, dampening, is_nesterov, weight_decay, scale, step: 3 };
    moments.tensors.pop();
    report("sgd momentum", step(&sgd, &mut moments), 5.0)?;
    report("sgd", step(&sgd, &mut Moments::zeros(shape, 0)), 3.0)
}

fn filled(shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i: usize| (i % 1013) as f32 / 1013.0 - 0.5).collect();
    Tensor::new(shape, &values)
}

fn best_ms(mut work: impl FnMut()) -> f64 {
    let once = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64() * 1e3
    };
    (0..ROUNDS).map(once).fold(f64::INFINITY, f64::min)
}
