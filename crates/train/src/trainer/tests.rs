use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

use attar_graph::testing::graph_from_text;
use attar_tensor::Tensor;

use super::*;
use crate::{
    Batch, Choice, Control, Decay, EpochReport, LengthOptions, Monitor, Rng, Schedule, Silent,
    Source, Span, StepReport, Targets, Validate,
};

/// Points of two classes, split by a line; as they are, or moved a little at random.
pub(super) struct Points {
    lengths: Vec<usize>,
    noise: f64,
}

impl Points {
    pub(super) fn new(noise: f64) -> Self {
        Self { lengths: (0..50).map(|index| 1 + index % 4).collect(), noise }
    }
}

impl Source for Points {
    fn len(&self) -> usize {
        50
    }

    fn lengths(&self) -> Option<&[usize]> {
        Some(&self.lengths)
    }

    fn batch(&self, indices: &[usize], draw: &mut Rng) -> Result<Batch, TrainError> {
        let mut rows = Vec::new();
        let mut labels = Vec::new();
        for &index in indices {
            let (a, b) = (index as f32 * 0.37 % 2.0 - 1.0, index as f32 * 0.73 % 2.0 - 1.0);
            labels.push(u32::from(a + 2.0 * b > 0.3));
            rows.extend([a, b].map(|x| x + (draw.normal() * self.noise) as f32));
        }
        let feeds = vec![("x".into(), Tensor::new(&[indices.len(), 2], &rows))];
        Ok(Batch { feeds, targets: Targets::Classes(labels), example_count: indices.len() })
    }
}

const LINE: &str = "x: f32[n, 2]
    w = [0.1 -0.1; 0.2 0.1]
    b = [0 0]
    h = MatMul(x, w)
    y = Add(h, b)";

/// Two layers, squared between.
pub(super) const LAYERS: &str = "x: f32[n, 2]
    w = [0.4 -0.3 0 0.2; 0.2 0.5 -0.4 0]
    b = [0.1 0 -0.1 0.2]
    v = [0.3 -0.3; -0.2 0.2; 0.1 0.1; 0.4 -0.1]
    h = MatMul(x, w)
    i = Add(h, b)
    j = Mul(i, i)
    y = MatMul(j, v)";

pub(super) fn model(text: &str) -> Model {
    let opsets = [(String::new(), 17)].into_iter().collect();
    Model { ir_version: 8, opsets, graph: graph_from_text(text), ..Model::default() }
}

fn options(optimizer: Choice, learning_rate: f64, epochs: usize) -> TrainerOptions {
    let schedule = Schedule::constant(learning_rate);
    let mut options = TrainerOptions::new(Choice::new("cross-entropy"), optimizer, schedule);
    options.length.epochs = epochs;
    options.batches.size = NonZeroUsize::new(8).unwrap();
    options
}

/// Everything that has a state: moments, an average, a schedule, accumulation, validation.
pub(super) fn full_options() -> TrainerOptions {
    let mut options = options(Choice::new("adamw"), 0.02, 6);
    options.schedule.decay = Decay::Cosine { end: 0.1 };
    options.schedule.warm_up = Span::Fraction(0.2);
    options.weights.average = Some(0.95);
    options.batches.accumulate = NonZeroUsize::new(2).unwrap();
    options.batches.seed = 11;
    options.clip_norm = Some(0.5);
    options.length.validate_every = Some(5);
    options
}

pub(super) fn train(
    text: &str,
    options: TrainerOptions,
    source: &dyn Source,
) -> (Trainer, Outcome) {
    let mut trainer = Trainer::new(&model(text), options).unwrap();
    let outcome = trainer.run(source, None, &mut Silent, Some(&mut Spread)).unwrap();
    (trainer, outcome)
}

pub(super) fn weight(model: &Model, name: &str) -> Vec<f32> {
    model.graph.constant(name).unwrap().values::<f32>().into_owned()
}

/// A metric of the weights alone, whose best is not at the end.
pub(super) struct Spread;

impl Validate for Spread {
    fn measure(&mut self, model: &Model) -> Result<f64, TrainError> {
        let sum: f32 = model.graph.constants().flat_map(|(_, t)| t.values::<f32>().to_vec()).sum();
        Ok(f64::from(sum * 40.0).sin())
    }
}

/// Stops after some steps of a session.
pub(super) struct StopAfter(pub(super) usize);

impl Monitor for StopAfter {
    fn step(&mut self, _: &StepReport) -> Control {
        self.0 -= 1;
        if self.0 == 0 { Control::Stop } else { Control::GoOn }
    }

    fn epoch(&mut self, _: &EpochReport) -> Control {
        Control::GoOn
    }
}

/// A folder of one test alone, removed when it ends.
pub(super) struct Folder(std::path::PathBuf);

impl Folder {
    pub(super) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("attar-train-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    pub(super) fn checkpoints(&self) -> Checkpoints {
        Checkpoints {
            folder: self.0.clone(),
            every_steps: Some(3),
            every_seconds: None,
            resume: true,
            fingerprint: "points".into(),
        }
    }

    fn newest(&self) -> std::path::PathBuf {
        let files = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path());
        let is_step = |path: &std::path::PathBuf| path.to_string_lossy().contains("step-");
        files.filter(is_step).max().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_line_between_two_classes_is_found() {
    for optimizer in [Choice::new("sgd").with("momentum", 0.9), Choice::new("adamw")] {
        let mut options = options(optimizer, 0.1, 30);
        options.batches.size = NonZeroUsize::new(50).unwrap();
        options.length.epochs = 200;
        let source = Points::new(0.0);
        let mut trainer = Trainer::new(&model(LINE), options).unwrap();
        assert_eq!(trainer.trained(), ["w", "b"]);
        let outcome = trainer.run(&source, None, &mut Silent, None).unwrap();
        assert_eq!((outcome.step, outcome.epoch, outcome.is_stopped), (200, 200, false));
        let batch = source.batch(&(0..50).collect::<Vec<_>>(), &mut Rng::new(&[])).unwrap();
        let loss = trainer.step(vec![batch], 0.0).unwrap().loss;
        assert!(loss < 0.2, "{loss}");
    }
}

#[test]
fn a_run_stopped_anywhere_and_resumed_ends_with_the_same_bits() {
    let source = Points::new(0.1);
    let (whole, outcome) = train(LAYERS, full_options(), &source);
    assert_eq!(outcome.step, 24);
    assert!(outcome.best_step.unwrap() < 24, "the test wants a best before the end");
    let mut rng = Rng::new(&[5]);
    for turn in 0..6 {
        let folder = Folder::new(&format!("resume-{turn}"));
        let mut sessions = 0;
        let resumed = loop {
            sessions += 1;
            let mut trainer = Trainer::new(&model(LAYERS), full_options()).unwrap();
            let mut monitor = StopAfter(1 + rng.below(9));
            let checkpoints = folder.checkpoints();
            let run = trainer.run(&source, Some(&checkpoints), &mut monitor, Some(&mut Spread));
            let resumed = run.unwrap();
            if !resumed.is_stopped {
                assert_eq!(resumed, outcome);
                break trainer;
            }
        };
        assert!(sessions > 2);
        assert_eq!(resumed.present_model(), whole.present_model());
        assert_eq!(resumed.model(), whole.model());
        assert_eq!(resumed.average, whole.average);
        for (a, b) in resumed.moments.iter().zip(&whole.moments) {
            assert_eq!(a.tensors, b.tensors);
        }
    }
}

#[test]
fn a_run_whose_last_checkpoint_is_broken_goes_on_from_the_one_before() {
    let source = Points::new(0.1);
    let (whole, _) = train(LAYERS, full_options(), &source);
    for damage in 0..3 {
        let folder = Folder::new(&format!("broken-{damage}"));
        let checkpoints = folder.checkpoints();
        let mut trainer = Trainer::new(&model(LAYERS), full_options()).unwrap();
        let mut stop = StopAfter(8);
        trainer.run(&source, Some(&checkpoints), &mut stop, Some(&mut Spread)).unwrap();
        let newest = folder.newest();
        let mut bytes = fs::read(&newest).unwrap();
        match damage {
            0 => bytes.truncate(bytes.len() / 2),
            1 => *bytes.last_mut().unwrap() ^= 1,
            _ => bytes.clear(),
        }
        fs::write(&newest, bytes).unwrap();
        let mut trainer = Trainer::new(&model(LAYERS), full_options()).unwrap();
        let (mut from, mut spread) = (From::default(), Spread);
        trainer.run(&source, Some(&checkpoints), &mut from, Some(&mut spread)).unwrap();
        assert_eq!(from.0, Some(6), "damage {damage}");
        assert_eq!(trainer.present_model(), whole.present_model());
        assert_eq!(trainer.model(), whole.model());
    }
}

/// Which step a run went on from.
#[derive(Default)]
struct From(Option<u64>);

impl Monitor for From {
    fn step(&mut self, _: &StepReport) -> Control {
        Control::GoOn
    }

    fn epoch(&mut self, _: &EpochReport) -> Control {
        Control::GoOn
    }

    fn resumed(&mut self, _: &Path, step: u64) {
        self.0 = Some(step);
    }
}

/// Stops after the first steps of a session, and compares what epochs report with what steps did.
struct Counted {
    stop_after: usize,
    example_count: u64,
    epoch_count: usize,
}

impl Monitor for Counted {
    fn step(&mut self, report: &StepReport) -> Control {
        self.example_count += report.example_count as u64;
        self.stop_after -= 1;
        if self.stop_after == 0 { Control::Stop } else { Control::GoOn }
    }

    fn epoch(&mut self, report: &EpochReport) -> Control {
        assert_eq!(report.example_count, self.example_count);
        self.example_count = 0;
        self.epoch_count += 1;
        Control::GoOn
    }
}

#[test]
fn an_epoch_reports_the_examples_of_its_session() {
    let folder = Folder::new("examples");
    for stop_after in [2, usize::MAX] {
        let mut trainer = Trainer::new(&model(LAYERS), full_options()).unwrap();
        let mut counted = Counted { stop_after, example_count: 0, epoch_count: 0 };
        let checkpoints = folder.checkpoints();
        trainer.run(&Points::new(0.1), Some(&checkpoints), &mut counted, None).unwrap();
        assert_eq!(counted.epoch_count, if stop_after == 2 { 0 } else { 6 });
    }
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let folder = Folder::new("other");
    let mut trainer = Trainer::new(&model(LAYERS), full_options()).unwrap();
    let checkpoints = folder.checkpoints();
    trainer.run(&Points::new(0.1), Some(&checkpoints), &mut StopAfter(4), None).unwrap();
    let mut other = full_options();
    other.schedule.learning_rate = 0.5;
    let mut trainer = Trainer::new(&model(LAYERS), other).unwrap();
    let error = trainer.run(&Points::new(0.1), Some(&checkpoints), &mut Silent, None).unwrap_err();
    assert_eq!(error, TrainError::OtherRun { path: folder.newest() });
}

#[test]
fn a_finished_run_has_nothing_left_to_do() {
    let folder = Folder::new("finished");
    let (source, checkpoints) = (Points::new(0.1), folder.checkpoints());
    let run = || {
        let mut trainer = Trainer::new(&model(LAYERS), full_options()).unwrap();
        let run = trainer.run(&source, Some(&checkpoints), &mut Silent, Some(&mut Spread));
        (run.unwrap(), trainer.model())
    };
    assert_eq!(run(), run());
    let files = fs::read_dir(&folder.0).unwrap().count();
    assert_eq!(files, 3, "two checkpoints and the best weights");
}

#[test]
fn one_and_two_threads_end_with_the_same_bits() {
    let run = |threads| {
        let mut options = full_options();
        options.machine.threads = NonZeroUsize::new(threads).unwrap();
        train(LAYERS, options, &Points::new(0.1)).0.present_model()
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn frozen_and_pruned_weights_stay() {
    let mut options = options(Choice::new("adamw"), 0.05, 3);
    options.weights.freeze = vec!["v".into()];
    let (trainer, _) = train(LAYERS, options, &Points::new(0.0));
    let (before, after) = (model(LAYERS), trainer.model());
    assert_eq!(weight(&before, "v"), weight(&after, "v"));
    for (before, after) in weight(&before, "w").into_iter().zip(weight(&after, "w")) {
        assert_eq!(before == 0.0, after == 0.0);
    }
    assert!(weight(&after, "b")[1] != 0.0, "a bias is no pruned weight");
}

#[test]
fn a_weight_read_twice_stays_one() {
    let text = "x: f32[n, 2]
        w = [0.1 -0.1; 0.2 0.1]
        h = MatMul(x, w)
        y = MatMul(h, w)";
    let (trainer, _) = train(text, options(Choice::new("sgd"), 0.1, 20), &Points::new(0.0));
    assert_eq!(trainer.trained(), ["w"]);
    assert_ne!(weight(&trainer.model(), "w"), weight(&model(text), "w"));
    assert_eq!(trainer.model().graph.nodes, model(text).graph.nodes);
}

#[test]
fn accumulated_batches_step_as_one_large_batch() {
    let source = Points::new(0.0);
    let batch = |range: std::ops::Range<usize>| {
        source.batch(&range.collect::<Vec<_>>(), &mut Rng::new(&[])).unwrap()
    };
    let mut weights = Vec::new();
    for batches in [vec![batch(0..30)], vec![batch(0..20), batch(20..30)]] {
        let options = options(Choice::new("sgd"), 1.0, 1);
        let mut trainer = Trainer::new(&model(LAYERS), options).unwrap();
        trainer.step(batches, 1.0).unwrap();
        weights.push(weight(&trainer.model(), "w"));
    }
    let [large, small] = [&weights[0], &weights[1]];
    assert!(large.iter().zip(small).all(|(a, b)| (a - b).abs() < 1e-6), "{weights:?}");
}

#[test]
fn clipping_bounds_the_step() {
    let mut options = options(Choice::new("sgd"), 1.0, 1);
    options.clip_norm = Some(0.01);
    let mut trainer = Trainer::new(&model(LAYERS), options).unwrap();
    let before = trainer.model();
    let batch = Points::new(0.0).batch(&[0, 1, 2, 3], &mut Rng::new(&[])).unwrap();
    let norm = trainer.step(vec![batch], 1.0).unwrap().gradient_norm.unwrap();
    assert!(norm > 0.01);
    let moved = |name| {
        let pairs = weight(&before, name).into_iter().zip(weight(&trainer.model(), name));
        pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
    };
    let moved = ["w", "b", "v"].map(moved).iter().sum::<f64>().sqrt();
    assert!((moved - 0.01).abs() < 1e-5, "{moved}");
}

#[test]
fn a_value_that_is_not_finite_is_named() {
    let text = "x: f32[n, 2]
        w = [0.1 -0.1; 0.2 0.1]
        zero = [0 0]
        h = MatMul(x, w)
        i = Mul(h, zero)
        j = Div(i, zero)
        y = Add(j, h)";
    let mut options = options(Choice::new("sgd"), 0.1, 1);
    options.weights.freeze = vec!["zero".into()];
    let mut trainer = Trainer::new(&model(text), options).unwrap();
    let error = trainer.run(&Points::new(0.0), None, &mut Silent, None).unwrap_err();
    let message = "step 1: the loss is NaN; `j`, an output of Div (node `j`), is the first value \
                   that is NaN";
    assert_eq!(error.to_string(), message);
}

#[test]
fn data_that_is_not_finite_is_named() {
    let mut trainer = Trainer::new(&model(LINE), options(Choice::new("sgd"), 0.1, 1)).unwrap();
    let before = trainer.present_model();
    let mut batch = Points::new(0.0).batch(&[0, 1], &mut Rng::new(&[])).unwrap();
    batch.feeds[0].1.slice_mut::<f32>()[1] = f32::NAN;
    let error = trainer.step(vec![batch], 0.1).unwrap_err();
    let message = "step 1: the loss is NaN; the data feeds `x` with a value that is not finite";
    assert_eq!(error.to_string(), message);
    assert_eq!(trainer.present_model(), before);
}

#[test]
fn a_gradient_that_is_not_finite_is_named_with_its_node() {
    // The slope of a square root at 0 is infinite, and 0 times it is NaN; the loss is finite.
    let text = "x: f32[n, 2]
        w = [0.1 -0.1; 0.2 0.1]
        h = MatMul(x, w)
        zero = Sub(h, h)
        i = Sqrt(zero)
        y = Add(h, i)";
    let mut options = options(Choice::new("sgd"), 0.1, 1);
    options.clip_norm = Some(1.0);
    let mut trainer = Trainer::new(&model(text), options).unwrap();
    let error = trainer.run(&Points::new(0.0), None, &mut Silent, None).unwrap_err();
    let message = error.to_string();
    let named = "the gradient of `zero` (Sqrt, node `i`) is";
    assert!(message.starts_with("step 1: the loss is 0.") && message.contains(named), "{message}");
}

#[test]
fn weights_of_half_types_train_in_f32_and_are_stored_as_they_were() {
    let mut half = model(LINE);
    let stored = half.graph.constant("w").unwrap().converted(DType::BF16).unwrap();
    half.graph.set_initializer("w", stored.clone());
    let cast = Node::new("Cast", "cast", &["w"], &["wide"]).with_attribute("to", 1_i64);
    half.graph.nodes[0].inputs[1] = "wide".into();
    half.graph.nodes.insert(0, cast);
    let mut single = model(LINE);
    single.graph.set_initializer("w", stored.converted(DType::F32).unwrap());
    // Steps too small for bf16 to show each of them.
    let options = options(Choice::new("sgd"), 1e-3, 4);
    let [half, single] = [half, single].map(|model| {
        let mut trainer = Trainer::new(&model, options.clone()).unwrap();
        trainer.run(&Points::new(0.0), None, &mut Silent, None).unwrap();
        trainer.model()
    });
    let trained = half.graph.constant("w").unwrap();
    assert_ne!(trained, &stored);
    let expected = single.graph.constant("w").unwrap().converted(DType::BF16).unwrap();
    assert_eq!(trained, &expected);
}

#[test]
fn a_run_that_diverges_stops_and_leaves_its_checkpoints() {
    let folder = Folder::new("diverges");
    let mut options = options(Choice::new("sgd"), 0.1, 100);
    options.schedule =
        Schedule { learning_rate: 1e4, warm_up: Span::Steps(400), ..options.schedule };
    let mut trainer = Trainer::new(&model(LAYERS), options.clone()).unwrap();
    let error =
        trainer.run(&Points::new(0.0), Some(&folder.checkpoints()), &mut Silent, None).unwrap_err();
    assert!(matches!(error, TrainError::Diverged { .. } | TrainError::NotFinite { .. }), "{error}");
    let mut trainer = Trainer::new(&model(LAYERS), options).unwrap();
    trainer.resume(&folder.checkpoints()).unwrap().unwrap();
    let is_finite = |name| weight(&trainer.present_model(), name).iter().all(|x| x.is_finite());
    assert!(["w", "b", "v"].into_iter().all(is_finite));
}

#[test]
fn a_run_that_gets_no_better_ends_with_its_best_weights() {
    struct Falling(f64);
    impl Validate for Falling {
        fn measure(&mut self, _: &Model) -> Result<f64, TrainError> {
            self.0 -= 1.0;
            Ok(if self.0 == -3.0 { 10.0 } else { self.0 })
        }
    }
    let mut options = options(Choice::new("sgd"), 0.1, 50);
    options.length = LengthOptions { patience: Some(2), ..options.length };
    let mut trainer = Trainer::new(&model(LINE), options).unwrap();
    let source = Points::new(0.0);
    let outcome = trainer.run(&source, None, &mut Silent, Some(&mut Falling(0.0))).unwrap();
    assert!(outcome.is_early);
    assert_eq!((outcome.epoch, outcome.best, outcome.best_step), (5, Some(10.0), Some(21)));
    assert_ne!(trainer.model(), trainer.present_model());
}
