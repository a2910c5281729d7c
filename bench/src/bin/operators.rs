//! Time of single operators on `builtin` over that of ONNX Runtime, in alternating runs of one
//! process.
//!
//! `cargo run --release -p attar-bench --bin operators -- [FAMILY…] [--threads N] [--seconds S]`
//!
//! Without a family, all of them are run.
#![allow(clippy::print_stdout)]

use std::num::NonZeroUsize;
use std::time::Duration;

use attar_bench::{Feed, difference};
use attar_evaluate::{Shape, measure};
use attar_graph::testing::graph_from_text;
use attar_graph::{Model, Value};
use attar_runtime::{Builtin, Ort, RunOptions, Runtime, Session};
use attar_tensor::Tensor;

type Error = Box<dyn std::error::Error>;

/// A family of operators, and its cases: the node, and its inputs.
type Family = (&'static str, &'static [(&'static str, &'static str)]);

const FAMILIES: &[Family] = &[
    (
        "pooling",
        &[
            ("y = MaxPool(x, kernel_shape=2,2, strides=2,2)", "x=1x64x112x112"),
            ("y = MaxPool(x, kernel_shape=3,3, strides=2,2, pads=1,1,1,1)", "x=1x64x112x112"),
            ("y = MaxPool(x, kernel_shape=3,3, pads=1,1,1,1)", "x=1x64x56x56"),
            ("y = MaxPool(x, kernel_shape=5,5, pads=2,2,2,2)", "x=1x256x20x20"),
            ("y = AveragePool(x, kernel_shape=2,2, strides=2,2)", "x=1x64x112x112"),
            ("y = AveragePool(x, kernel_shape=3,3, strides=2,2, pads=1,1,1,1)", "x=1x64x112x112"),
            ("y = AveragePool(x, kernel_shape=3,3, pads=1,1,1,1)", "x=1x64x56x56"),
            ("y = AveragePool(x, kernel_shape=7,7)", "x=1x512x7x7"),
            ("y = MaxPool(x, kernel_shape=3, strides=2)", "x=4x64x4000"),
            ("y = LpPool(x, kernel_shape=2,2, strides=2,2)", "x=1x64x112x112"),
            ("y = GlobalAveragePool(x)", "x=1x1280x7x7"),
            ("y = GlobalAveragePool(x)", "x=1x64x112x112"),
            ("y = GlobalMaxPool(x)", "x=1x64x112x112"),
        ],
    ),
    (
        "resizing",
        &[
            ("s = [1 1 2 2]\ny = Resize(x, , s, mode=nearest)", "x=1x64x40x40"),
            (
                "s = [1 1 2 2]\ny = Resize(x, , s, coordinate_transformation_mode=asymmetric, \
                 nearest_mode=floor)",
                "x=1x32x120x160",
            ),
            ("s = [1 1 0.5 0.5]\ny = Resize(x, , s, mode=nearest)", "x=1x32x120x160"),
            ("s = [1 1 2 2]\ny = Resize(x, , s, mode=linear)", "x=1x64x40x40"),
            ("s = [1 1 4 4]\ny = Resize(x, , s, mode=linear)", "x=1x32x60x80"),
            ("s = [1 1 0.4 0.4]\ny = Resize(x, , s, mode=linear)", "x=1x3x640x480"),
            ("s = [1 1 2 2]\ny = Resize(x, , s, mode=cubic)", "x=1x3x224x224"),
            ("s = [1 1 0.4 0.4]\ny = Resize(x, , s, mode=linear, antialias=1)", "x=1x3x640x480"),
            ("y = GridSample(x, g, padding_mode=border)", "x=1x16x64x64 g=1x64x64x2"),
        ],
    ),
    (
        "normalizing",
        &[
            ("y = InstanceNormalization(x, s, b)", "x=1x64x56x56 s=64 b=64"),
            ("y = GroupNormalization(x, s, b, num_groups=8)", "x=1x64x56x56 s=64 b=64"),
            ("y = BatchNormalization(x, s, b, m, v)", "x=1x64x56x56 s=64 b=64 m=64 v=64=0.5"),
            ("y = LayerNormalization(x, s, b)", "x=1x128x384 s=384 b=384"),
            ("y, m, i = LayerNormalization(x, s, b)", "x=1x128x384 s=384 b=384"),
            ("y = RMSNormalization(x, s)", "x=1x128x384 s=384"),
            ("y = LRN(x, size=5)", "x=1x64x56x56"),
            ("y = LpNormalization(x)", "x=1x128x384"),
            ("y = LpNormalization(x, axis=1)", "x=1x64x56x56"),
            ("y = MeanVarianceNormalization(x)", "x=1x64x56x56"),
        ],
    ),
    (
        "elementwise",
        &[
            ("y = Add(a, b)", "a=1x128x1536 b=1x128x1536"),
            ("y = Add(a, b)", "a=1x128x1536 b=1536"),
            ("y = Mul(a, b)", "a=1x64x56x56 b=1x64x1x1"),
            ("y = Relu(x)", "x=1x64x56x56"),
            ("y = Sigmoid(x)", "x=1x64x56x56"),
            ("y = Tanh(x)", "x=1x64x56x56"),
            ("y = Exp(x)", "x=1x64x56x56"),
            ("y = Erf(x)", "x=1x128x1536"),
            ("y = Gelu(x)", "x=1x128x1536"),
            ("y = HardSwish(x)", "x=1x64x56x56"),
            ("y = LeakyRelu(x)", "x=1x64x56x56"),
            ("y = Sqrt(x)", "x=1x64x56x56=2.5"),
            ("y = Softmax(x)", "x=12x128x128"),
            ("y = ReduceMean(x, keepdims=1)", "x=1x128x384"),
            ("y = Mul(a, b)", "a=1x64x56x56 b=1"),
            ("y = Div(a, b)", "a=32x128x384 b=32x128x1=2.5"),
            ("y = Add(a, b)", "a=8x12x64x64 b=8x1x1x64"),
            ("y = Max(a, b)", "a=1x64x56x56 b=1x64x56x56"),
            ("y = PRelu(a, b)", "a=1x64x56x56 b=64x1x1"),
            ("y = Log(x)", "x=1x80x3000=2.5"),
            ("y = Softplus(x)", "x=1x64x56x56"),
            ("y = Elu(x)", "x=1x64x56x56"),
            ("y = Mish(x)", "x=1x64x56x56"),
            ("y = Sin(x)", "x=1x64x56x56"),
            ("y = LogSoftmax(x)", "x=12x128x128"),
            ("y = ReduceMax(x, axes=1)", "x=1x512x384"),
            ("y = ReduceL1(x, axes=-1)", "x=1x512x384"),
            ("y = ReduceSum(x)", "x=1x64x56x56"),
        ],
    ),
    (
        "moving",
        &[
            ("y = Transpose(x, perm=0,2,1,3)", "x=1x128x12x32"),
            ("y = Transpose(x, perm=0,2,3,1)", "x=1x64x56x56"),
            ("y = Transpose(x, perm=0,3,1,2)", "x=1x56x56x64"),
            ("y = Transpose(x, perm=1,0)", "x=1024x1024"),
            ("y = Concat(a, b, axis=1)", "a=1x64x56x56 b=1x64x56x56"),
            ("y = Concat(a, b, axis=-1)", "a=1x128x384 b=1x128x384"),
            ("a, b = Split(x, axis=1, num_outputs=2)", "x=1x128x56x56"),
        ],
    ),
];

struct Arguments {
    families: Vec<String>,
    threads: NonZeroUsize,
    seconds: f64,
}

fn arguments() -> Result<Arguments, Error> {
    let mut parsed = Arguments { families: Vec::new(), threads: NonZeroUsize::MIN, seconds: 0.5 };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--threads" => parsed.threads = value()?.parse()?,
            "--seconds" => parsed.seconds = value()?.parse()?,
            family if FAMILIES.iter().any(|(name, _)| *name == family) => {
                parsed.families.push(word);
            }
            other => {
                let names: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
                return Err(format!("`{other}` is no family; there are {names:?}").into());
            }
        }
    }
    Ok(parsed)
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
        "{:72} {:>30} {:>10} {:>10} {:>6} {:>9}",
        "node", "inputs", "builtin ms", "ort ms", "ratio", "max diff"
    );
    for (name, cases) in FAMILIES {
        if !arguments.families.is_empty() && !arguments.families.iter().any(|f| f == name) {
            continue;
        }
        println!("{name}");
        for (text, inputs) in *cases {
            if let Err(error) = bench(text, inputs, runtimes, &arguments) {
                println!("{text:72} {inputs:>30} {error}");
            }
        }
    }
    Ok(())
}

/// The graph as a model whose inputs have the given shapes.
fn model(text: &str, inputs: &str) -> Model {
    let mut lines = String::new();
    for (name, rest) in inputs.split(' ').filter_map(|input| input.split_once('=')) {
        let sizes = rest.split('=').next().unwrap_or_default().replace('x', ", ");
        lines = lines + name + ": f32[" + &sizes + "]\n";
    }
    let mut graph = graph_from_text(&(lines + text));
    for output in &mut graph.outputs {
        output.value_type = None;
    }
    // ONNX Runtime takes opset 23 in a file of IR version 10.
    Model {
        ir_version: 10,
        opsets: [(String::new(), 23)].into_iter().collect(),
        graph,
        ..Model::default()
    }
}

fn bench(
    text: &str,
    inputs: &str,
    runtimes: [&dyn Runtime; 2],
    arguments: &Arguments,
) -> Result<(), Error> {
    let options = RunOptions { threads: arguments.threads, observed: Vec::new() };
    let model = model(text, inputs);
    let given = inputs.split(' ').map(str::parse).collect::<Result<Vec<Feed>, _>>()?;
    let mut builtin = runtimes[0].load(&model, &options)?;
    let mut ort = runtimes[1].load(&model, &options)?;
    let shape = Shape { batch: 1, length: 1 };
    let wanted: Vec<Value> = builtin.inputs().to_vec();
    let feeds = Feed::all(&wanted, &given, shape)?;
    let named: Vec<(&str, &Tensor)> =
        feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let apart = difference(&builtin.run(&named)?, &ort.run(&named)?);
    let time = Duration::from_secs_f64(arguments.seconds);
    let mut in_turn: [&mut dyn Session; 2] = [builtin.as_mut(), ort.as_mut()];
    let times = measure(&mut in_turn, &[feeds.clone(), feeds.clone()], 1, 20, time)?;
    println!(
        "{:72} {inputs:>30} {:>10.4} {:>10.4} {:>6.2} {apart:>9.1e}",
        text.rsplit('\n').next().unwrap_or(text),
        times[0].p50_ms,
        times[1].p50_ms,
        times[0].p50_ms / times[1].p50_ms,
    );
    Ok(())
}
