//! 8-bit convolutions of `builtin`, channels last, beside those in f32 and beside what the CPU's
//! product instruction can do.
//!
//! `cargo run --release -p attar-bench --bin int8_convolution -- [--threads N] [--seconds S]`
//!
//! Each case is one convolution of levels with bias, scales and clamp, levels out. The floor is its
//! products at the peak of one thread times the threads; of a depthwise convolution, which has few
//! products, it is far away by nature.
#![allow(clippy::print_stdout)]

use std::num::NonZeroUsize;
use std::time::Duration;

use attar_evaluate::measure;
use attar_graph::Model;
use attar_graph::testing::graph_from_text;
use attar_runtime::{Builtin, RunOptions, Runtime, Session};
use attar_tensor::Tensor;

type Error = Box<dyn std::error::Error>;

struct Case {
    name: &'static str,
    /// Side of the image, channels in and out.
    sizes: [usize; 3],
    kernel: usize,
    stride: usize,
    is_depthwise: bool,
}

const fn dense(name: &'static str, sizes: [usize; 3], kernel: usize, stride: usize) -> Case {
    Case { name, sizes, kernel, stride, is_depthwise: false }
}

const fn depthwise(
    name: &'static str,
    [side, channels]: [usize; 2],
    kernel: usize,
    stride: usize,
) -> Case {
    Case { name, sizes: [side, channels, channels], kernel, stride, is_depthwise: true }
}

/// Convolutions of MobileNetV2 and of text recognizers.
const CASES: &[Case] = &[
    dense("first 3x3/2", [224, 3, 32], 3, 2),
    dense("expand", [112, 16, 96], 1, 1),
    dense("expand", [28, 32, 192], 1, 1),
    dense("expand", [14, 96, 576], 1, 1),
    dense("project", [56, 144, 24], 1, 1),
    dense("project", [14, 576, 96], 1, 1),
    dense("last", [7, 320, 1280], 1, 1),
    dense("3x3", [56, 64, 64], 3, 1),
    dense("3x3", [14, 256, 256], 3, 1),
    depthwise("depthwise 3x3", [112, 32], 3, 1),
    depthwise("depthwise 3x3/2", [112, 96], 3, 2),
    depthwise("depthwise 3x3", [56, 144], 3, 1),
    depthwise("depthwise 3x3", [14, 576], 3, 1),
    depthwise("depthwise 5x5", [28, 240], 5, 1),
];

struct Arguments {
    threads: NonZeroUsize,
    seconds: f64,
}

fn arguments() -> Result<Arguments, Error> {
    let mut found = Arguments { threads: NonZeroUsize::MIN, seconds: 0.3 };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("`{word}` needs a value"));
        match word.as_str() {
            "--threads" => found.threads = value()?.parse()?,
            "--seconds" => found.seconds = value()?.parse()?,
            _ => return Err(format!("`{word}` is none of --threads and --seconds").into()),
        }
    }
    Ok(found)
}

fn main() -> Result<(), Error> {
    let arguments = arguments()?;
    let peak = attar_ops::int8_operations_per_second() * arguments.threads.get() as f64;
    println!(
        "{} {}, {} thread(s), peak {:.0} GOP/s",
        Builtin.name(),
        Builtin.version(),
        arguments.threads,
        peak / 1e9
    );
    println!(
        "{:<16} {:>5} {:>5} {:>5} {:>10} {:>10} {:>10} {:>8} {:>7} {:>7}",
        "", "side", "in", "out", "f32 ms", "int8 ms", "floor ms", "GOP/s", "share", "gain"
    );
    for case in CASES {
        let [float, int8] = time(case, &arguments)?;
        let [side, inputs, outputs] = case.sizes;
        let pixels = side.div_ceil(case.stride).pow(2);
        let depth = case.kernel.pow(2) * if case.is_depthwise { 1 } else { inputs };
        let operations = 2.0 * (pixels * outputs * depth) as f64;
        println!(
            "{:<16} {side:>5} {inputs:>5} {outputs:>5} {float:>10.4} {int8:>10.4} {:>10.4} {:>8.0} \
             {:>6.0}% {:>6.2}x",
            case.name,
            operations / peak * 1e3,
            operations / int8 / 1e6,
            operations / peak / int8 * 1e5,
            float / int8
        );
    }
    Ok(())
}

impl Case {
    /// The convolution in f32, or of levels.
    fn model(&self, is_int8: bool) -> Model {
        let [side, inputs, outputs] = self.sizes;
        let (group, depth) = if self.is_depthwise { (inputs, 1) } else { (1, inputs) };
        let (pad, stride) = (self.kernel / 2, self.stride);
        let attributes =
            format!("pads={pad},{pad},{pad},{pad}, strides={stride},{stride}, group={group}");
        let (dtype, names) =
            if is_int8 { ("u8", "x, s, z, w, ws, wz, s, z, b") } else { ("f32", "x, w, b") };
        let operator = if is_int8 { "ChannelsLastQuantizedConv" } else { "ChannelsLastConv" };
        let mut graph = graph_from_text(&format!(
            "x: {dtype}[1, {side}, {side}, {inputs}]\ny = {operator}({names}, {attributes})"
        ));
        graph.nodes[0].domain = attar_ops::ATTAR_DOMAIN.into();
        let shape = [outputs, depth, self.kernel, self.kernel];
        let count: usize = shape.iter().product();
        // Pairs of neighbours fit 16 bits, as in every model that attar quantizes.
        let weights: Vec<i8> = (0..count).map(|i| (i * 37 % 127) as i8 - 63).collect();
        if is_int8 {
            graph.set_initializer("w", Tensor::new(&shape, &weights));
            graph.set_initializer("ws", Tensor::new(&[outputs], &vec![0.001_f32; outputs]));
            graph.set_initializer("wz", Tensor::new(&[outputs], &vec![0_i8; outputs]));
            graph.set_initializer("b", Tensor::new(&[outputs], &vec![100_i32; outputs]));
            graph.set_initializer("s", Tensor::scalar(0.02_f32));
            graph.set_initializer("z", Tensor::scalar(128_u8));
        } else {
            let weights: Vec<f32> = weights.iter().map(|&w| f32::from(w) * 0.001).collect();
            graph.set_initializer("w", Tensor::new(&shape, &weights));
            graph.set_initializer("b", Tensor::new(&[outputs], &vec![0.002_f32; outputs]));
        }
        let names: Vec<String> = graph.initializers.keys().cloned().collect();
        graph.inputs.retain(|input| !names.contains(&input.name));
        let opsets = [(String::new(), 23), (attar_ops::ATTAR_DOMAIN.into(), 1)];
        Model { opsets: opsets.into_iter().collect(), graph, ..Model::default() }
    }
}

/// Turns of either form: the better median of each is shown.
const ROUNDS: usize = 3;

/// Milliseconds in f32 and in levels, run in turn.
fn time(case: &Case, arguments: &Arguments) -> Result<[f64; 2], Error> {
    let options = RunOptions { threads: arguments.threads, observed: Vec::new() };
    let mut float = Builtin.load(&case.model(false), &options)?;
    let mut int8 = Builtin.load(&case.model(true), &options)?;
    let shape = [1, case.sizes[0], case.sizes[0], case.sizes[1]];
    let count: usize = shape.iter().product();
    let levels: Vec<u8> = (0..count).map(|i| (i * 29 % 255) as u8).collect();
    let values: Vec<f32> = levels.iter().map(|&x| (f32::from(x) - 128.0) * 0.02).collect();
    let feeds = [
        ("x".to_string(), Tensor::new(&shape, &values)),
        ("x".into(), Tensor::new(&shape, &levels)),
    ];
    let time = Duration::from_secs_f64(arguments.seconds / ROUNDS as f64);
    let mut best = [f64::INFINITY; 2];
    for _ in 0..ROUNDS {
        let sessions: [&mut dyn Session; 2] = [float.as_mut(), int8.as_mut()];
        for ((session, feed), best) in sessions.into_iter().zip(&feeds).zip(&mut best) {
            let times = measure(&mut [session], &[vec![feed.clone()]], 1, 10, time)?;
            *best = best.min(times[0].p50_ms);
        }
    }
    Ok(best)
}
