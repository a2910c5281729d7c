//! Recurrent models in 8 bits over long sequences: what they give stays near the original's, and the
//! states that they hand on do not drift.

use attar_compress::{Calibration, Context, PassError, pass_entry};
use attar_graph::{Model, Value, apply};
use attar_ops::opset::convert_opset;
use attar_runtime::{Builtin, Ort, RunOptions, Runtime};
use attar_tensor::Tensor;
use attar_tests::{data, ort_library};

use super::{Feeds, MODELS};

struct Stream {
    path: &'static str,
    audio: &'static str,
    /// Inputs that are outputs of the call before, with their sizes.
    states: &'static [(&'static str, &'static str, &'static [usize])],
    probability: &'static str,
    /// Mean difference of a probability.
    mean_max: f64,
}

const STREAMS: &[Stream] = &[
    Stream {
        path: "silero/silero_vad_16k_sequence.onnx",
        audio: "input",
        states: &[("h", "hn", &[1, 1, 128]), ("c", "cn", &[1, 1, 128])],
        probability: "speech_probs",
        mean_max: 0.02,
    },
    Stream {
        path: "akiki/akiki-vad.onnx",
        audio: "audio_with_context",
        states: &[("h", "h_out", &[1, 1, 128])],
        probability: "probability",
        mean_max: 0.03,
    },
];

/// Samples of a frame, and of those before it that are shown again.
const FRAME: usize = 512;
const CONTEXT: usize = 64;
const RATE: f32 = 16_000.0;

/// Frames of vowel-like tones that come and go over a floor of noise.
fn frames(count: usize, seed: u32) -> Vec<Tensor> {
    let mut state = seed;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    let mut phase = 0.0_f32;
    let sample = |index: usize| {
        let time = index as f32 / RATE;
        let pitch = 118.0 + 14.0 * (time * 2.1 + seed as f32).sin();
        phase = (phase + pitch / RATE).fract();
        let formants =
            [700.0 + 250.0 * (time * 1.7).sin(), 1500.0 + 500.0 * (time * 2.9).cos(), 2600.0];
        let tone = |harmonic: usize| {
            let frequency = harmonic as f32 * pitch;
            let gain: f32 =
                formants.iter().map(|f| 1.0 / (1.0 + ((frequency - f) / 120.0).powi(2))).sum();
            (gain + 0.02) * (std::f32::consts::TAU * phase * harmonic as f32).sin()
        };
        let voice: f32 = (1..28).map(tone).sum();
        let syllable = (std::f32::consts::TAU * 3.1 * time).sin().max(0.0);
        let is_speaking = (time * 0.6 + seed as f32 * 0.37).fract() < 0.6;
        0.002 * noise() + if is_speaking { 0.12 * syllable * voice } else { 0.0 }
    };
    let samples: Vec<f32> = (0..count * FRAME + CONTEXT).map(sample).collect();
    let frame = |index: usize| {
        Tensor::new(&[1, FRAME + CONTEXT], &samples[index * FRAME..][..FRAME + CONTEXT])
    };
    (0..count).map(frame).collect()
}

struct Batches(Vec<Feeds>);

impl Calibration for Batches {
    fn for_each_batch(
        &self,
        _: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        self.0.iter().try_for_each(|feeds| {
            visit(&feeds.iter().map(|(name, tensor)| (*name, tensor)).collect::<Vec<_>>())
        })
    }
}

/// What the model gives frame by frame, and what it was fed.
fn listen(
    runtime: &dyn Runtime,
    model: &Model,
    stream: &Stream,
    frames: &[Tensor],
) -> (Vec<f64>, Vec<Feeds>) {
    let mut session = runtime.load(model, &RunOptions::default()).expect("it loads");
    let names: Vec<String> = session.outputs().iter().map(|output| output.name.clone()).collect();
    let at = |name: &str| names.iter().position(|output| output == name).expect("an output");
    let zero = |&(input, _, shape): &(&'static str, &str, &[usize])| {
        (input, Tensor::new(shape, &vec![0.0_f32; shape.iter().product()]))
    };
    let mut states: Feeds = stream.states.iter().map(zero).collect();
    let (mut probabilities, mut fed) = (Vec::new(), Vec::new());
    for frame in frames {
        let mut feeds = vec![(stream.audio, frame.clone())];
        feeds.extend(states.clone());
        let borrowed: Vec<(&str, &Tensor)> = feeds.iter().map(|(name, t)| (*name, t)).collect();
        let outputs = session.run(&borrowed).expect("it runs");
        probabilities.push(f64::from(outputs[at(stream.probability)].slice::<f32>()[0]));
        for ((_, state), (_, output, _)) in states.iter_mut().zip(stream.states) {
            *state = outputs[at(output)].clone();
        }
        fed.push(feeds);
    }
    (probabilities, fed)
}

fn quantized(model: &Model, batches: Vec<Feeds>) -> Model {
    let batches = Batches(batches);
    let context = Context { calibration: Some(&batches), ..Context::new(&Builtin) };
    let mut model = model.clone();
    convert_opset(&mut model, 17).expect("every opset is known");
    for name in ["cleanup", "quantize.static"] {
        carry_out(name, &mut model, &context).expect("it fits the model");
    }
    model
}

/// A pass by its defaults, as a recipe would run it.
fn carry_out(name: &str, model: &mut Model, context: &Context) -> Result<(), PassError> {
    let pass = pass_entry(name)?.build(toml::Table::new())?;
    let prepared = pass.prepare(model)?;
    apply(&mut model.graph, &prepared)?;
    loop {
        let plan = pass.plan(model, context)?;
        apply(&mut model.graph, &plan)?;
        if plan.is_empty() || !pass.repeats() {
            return Ok(());
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
#[allow(clippy::print_stdout)] // what the test shows
fn streams_of_levels_do_not_drift() {
    let ort = Ort::find(Some(&ort_library())).expect("./test.sh fetches ONNX Runtime");
    for stream in STREAMS {
        let entry = MODELS.iter().find(|entry| entry.path == stream.path).expect("it is listed");
        let model = (entry.load)(&data(entry.path));
        let (_, fed) = listen(&Builtin, &model, stream, &frames(150, 3));
        let result = quantized(&model, fed);
        let recurrent = result.graph.nodes.iter().filter(|node| node.is("GRU") || node.is("LSTM"));
        let weights = recurrent.map(|node| node.inputs[1].clone()).collect::<Vec<_>>();
        assert!(weights.iter().all(|name| name.ends_with("_w_shaped")), "{weights:?} stay float");
        // Half a minute.
        let heard = frames(940, 8);
        let (expected, _) = listen(&Builtin, &model, stream, &heard);
        let spread = expected.iter().fold(0.0_f64, |m, p| m.max(*p))
            - expected.iter().fold(1.0_f64, |m, p| m.min(*p));
        assert!(spread > 0.3, "{}: it hears no difference: {spread}", stream.path);
        let runtimes: [&dyn Runtime; 2] = [&Builtin, &ort];
        for runtime in runtimes {
            let (found, _) = listen(runtime, &result, stream, &heard);
            let differences: Vec<f64> =
                found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).collect();
            let quarters: Vec<f64> = differences.chunks(235).map(mean).collect();
            let same =
                found.iter().zip(&expected).filter(|(a, b)| (**a > 0.5) == (**b > 0.5)).count();
            println!(
                "{} on {}: mean {:.2e}, most {:.2e}, quarters {}, same decision {:.2} %",
                stream.path,
                runtime.name(),
                mean(&differences),
                differences.iter().fold(0.0_f64, |m, d| m.max(*d)),
                quarters.iter().map(|mean| format!("{mean:.1e}")).collect::<Vec<_>>().join(" "),
                100.0 * same as f64 / found.len() as f64
            );
            assert!(mean(&differences) <= stream.mean_max, "{}", stream.path);
            assert!(
                quarters[3] <= 2.0 * mean(&quarters[..2]) + 0.005,
                "{}: {quarters:?}",
                stream.path
            );
        }
    }
}

/// Seven rows of five dots for each digit.
const DIGITS: [[u8; 7]; 10] = [
    [0b01110, 0b10001, 0b10011, 0b10101, 0b11001, 0b10001, 0b01110],
    [0b00100, 0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110],
    [0b01110, 0b10001, 0b00001, 0b00110, 0b01000, 0b10000, 0b11111],
    [0b11111, 0b00010, 0b00100, 0b00010, 0b00001, 0b10001, 0b01110],
    [0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010],
    [0b11111, 0b10000, 0b11110, 0b00001, 0b00001, 0b10001, 0b01110],
    [0b00110, 0b01000, 0b10000, 0b11110, 0b10001, 0b10001, 0b01110],
    [0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b01000, 0b01000],
    [0b01110, 0b10001, 0b10001, 0b01110, 0b10001, 0b10001, 0b01110],
    [0b01110, 0b10001, 0b10001, 0b01111, 0b00001, 0b00010, 0b01100],
];

/// An image of a number, black on white with a little noise.
fn number_image(number: u64) -> Feeds {
    let digits: Vec<usize> =
        number.to_string().bytes().map(|digit| usize::from(digit - b'0')).collect();
    let (dot, height, step) = (6, 64, 38);
    let width = digits.len() * step + 16;
    let mut state = number as u32;
    let mut pixels: Vec<f32> = (0..height * width)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            1.0 - 0.1 * (state >> 24) as f32 / 255.0
        })
        .collect();
    for (place, &digit) in digits.iter().enumerate() {
        for y in 0..7 * dot {
            for x in 0..5 * dot {
                if DIGITS[digit][y / dot] >> (4 - x / dot) & 1 == 1 {
                    let row = 11 + y + number as usize % 3;
                    pixels[row * width + 10 + place * step + x] = -0.9;
                }
            }
        }
    }
    vec![("input1", Tensor::new(&[1, 1, height, width], &pixels))]
}

#[test]
#[allow(clippy::print_stdout)] // what the test shows
fn a_reader_of_captchas_reads_the_same_in_levels() {
    let model = MODELS.iter().find(|entry| entry.path == "ddddocr/common.onnx").expect("listed");
    let model = (model.load)(&data(model.path));
    let number = |index: u64| 1_000 + index * 7_368_787 % 9_000_000;
    let result = quantized(&model, (0..40).map(|index| number_image(number(index))).collect());
    let ort = Ort::find(Some(&ort_library())).expect("./test.sh fetches ONNX Runtime");
    let read = |runtime: &dyn Runtime, model: &Model| -> Vec<Vec<usize>> {
        let mut session = runtime.load(model, &RunOptions::default()).expect("it loads");
        let text = |index: u64| {
            let feeds = number_image(number(index));
            let outputs = session.run(&[("input1", &feeds[0].1)]).expect("it runs");
            let classes = *outputs[0].shape().last().expect("scores of classes");
            let best = |row: &[f32]| {
                (0..row.len())
                    .fold(0, |best, class| if row[class] > row[best] { class } else { best })
            };
            let scores = outputs[0].slice::<f32>().chunks_exact(classes);
            let mut classes: Vec<usize> = scores.map(best).collect();
            classes.dedup();
            classes.retain(|&class| class != 0);
            classes
        };
        (100..160).map(text).collect()
    };
    let expected = read(&Builtin, &model);
    assert!(mean(&expected.iter().map(|text| text.len() as f64).collect::<Vec<_>>()) > 3.0);
    let runtimes: [&dyn Runtime; 2] = [&Builtin, &ort];
    for runtime in runtimes {
        let found = read(runtime, &result);
        let same = found.iter().zip(&expected).filter(|(a, b)| a == b).count();
        let edits: usize = found.iter().zip(&expected).map(|(a, b)| distance(a, b)).sum();
        let letters: usize = expected.iter().map(Vec::len).sum();
        println!(
            "ddddocr on {}: {edits} of {letters} letters read otherwise, {same} of {} numbers alike",
            runtime.name(),
            found.len()
        );
        assert!(edits * 100 <= 8 * letters, "{edits} of {letters} letters");
    }
}

/// Letters to change, to put in or to leave out until both texts are the same (Levenshtein).
fn distance(a: &[usize], b: &[usize]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.iter().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let changed = before + usize::from(letter != other);
            before = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(before + 1);
        }
    }
    row[b.len()]
}
