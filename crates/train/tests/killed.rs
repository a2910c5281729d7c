//! A run that is killed at any moment and resumed ends with the same bits as one that is not.
#![allow(clippy::unwrap_used)] // a test may fail where it stands

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use attar_graph::Model;
use attar_graph::testing::graph_from_text;
use attar_tensor::Tensor;
use attar_train::{
    Batch, Checkpoints, Choice, Decay, Rng, Schedule, Silent, Source, Targets, TrainError, Trainer,
    TrainerOptions, Validate,
};

/// Names the folder that the child trains in.
const FOLDER: &str = "ATTAR_KILLED_FOLDER";
const KILL_COUNT: usize = 10;

struct Points;

impl Source for Points {
    fn len(&self) -> usize {
        80
    }

    fn batch(&self, indices: &[usize], draw: &mut Rng) -> Result<Batch, TrainError> {
        // So that a kill falls between any two steps.
        std::thread::sleep(Duration::from_millis(3));
        let mut rows = Vec::new();
        for &index in indices {
            rows.push(index as f32 / 40.0 - 1.0 + (draw.normal() * 0.1) as f32);
            rows.push((index as f32 * 0.7).sin());
        }
        let labels = indices.iter().map(|&index| u32::from(index % 3 == 0)).collect();
        let feeds = vec![("x".into(), Tensor::new(&[indices.len(), 2], &rows))];
        Ok(Batch { feeds, targets: Targets::Classes(labels), example_count: indices.len() })
    }
}

struct Sum;

impl Validate for Sum {
    fn measure(&mut self, model: &Model) -> Result<f64, TrainError> {
        let sum: f32 = model.graph.constants().flat_map(|(_, t)| t.values::<f32>().to_vec()).sum();
        Ok(f64::from(sum * 40.0).sin())
    }
}

fn trainer() -> Trainer {
    let text = "x: f32[n, 2]
        w = [0.4 -0.3 0.1 0.2; 0.2 0.5 -0.4 0.1]
        b = [0.1 0 -0.1 0.2]
        v = [0.3 -0.3; -0.2 0.2; 0.1 0.1; 0.4 -0.1]
        h = MatMul(x, w)
        i = Add(h, b)
        j = Mul(i, i)
        y = MatMul(j, v)";
    let opsets = [(String::new(), 17)].into_iter().collect();
    let model = Model { ir_version: 8, opsets, graph: graph_from_text(text), ..Model::default() };
    let schedule = Schedule { decay: Decay::Cosine { end: 0.0 }, ..Schedule::constant(0.01) };
    let mut options =
        TrainerOptions::new(Choice::new("cross-entropy"), Choice::new("adamw"), schedule);
    options.length.epochs = 60;
    options.length.validate_every = Some(7);
    options.batches.size = NonZeroUsize::new(8).unwrap();
    options.weights.average = Some(0.9);
    Trainer::new(&model, options).unwrap()
}

/// Trains to the end, from the last checkpoint if there is one: present weights, and the best.
fn train(folder: &Path) -> [Model; 2] {
    let checkpoints = Checkpoints {
        folder: folder.into(),
        every_steps: Some(2),
        every_seconds: None,
        resume: true,
        fingerprint: String::new(),
    };
    let mut trainer = trainer();
    let outcome = trainer.run(&Points, Some(&checkpoints), &mut Silent, Some(&mut Sum)).unwrap();
    assert_eq!(outcome.step, 600);
    [trainer.present_model(), trainer.model()]
}

/// What the killed process runs; a test of nothing when it is not asked by the variable.
#[test]
fn child() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        train(Path::new(&folder));
    }
}

#[test]
fn a_run_killed_ten_times_ends_with_the_same_bits() {
    let root = std::env::temp_dir().join(format!("attar-killed-{}", std::process::id()));
    let _ = fs::remove_dir_all(&root);
    let whole = train(&root.join("whole"));
    let folder: PathBuf = root.join("killed");
    let mut rng = Rng::new(&[u64::from(std::process::id())]);
    let mut kill_count = 0;
    while kill_count < KILL_COUNT {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child"])
            .env(FOLDER, &folder)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(30 + rng.below(120) as u64));
        assert_eq!(child.try_wait().unwrap(), None, "the run ended before it was killed");
        // SIGKILL, which nothing can catch.
        child.kill().unwrap();
        child.wait().unwrap();
        kill_count += 1;
    }
    let resumed = train(&folder);
    assert_eq!(resumed, whole);
    fs::remove_dir_all(&root).unwrap();
}
