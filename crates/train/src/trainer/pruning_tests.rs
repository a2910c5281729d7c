use std::num::NonZeroUsize;

use attar_graph::Model;

use super::tests::{Folder, LAYERS, Points, StopAfter, full_options, model, train, weight};
use super::*;
use crate::{PRUNE_IMPORTANCES, PruneOptions, PruneScope, Rng, Silent, Span};

fn options(importance: &str, sparsity: f64) -> TrainerOptions {
    let mut prune = PruneOptions::to(sparsity);
    prune.importance = importance.into();
    prune.every = 3;
    TrainerOptions { prune: Some(prune), ..full_options() }
}

fn zeros(model: &Model, name: &str) -> usize {
    weight(model, name).iter().filter(|&&w| w == 0.0).count()
}

#[test]
fn the_sparsity_is_reached_exactly_in_the_result_and_in_its_average() {
    for entry in PRUNE_IMPORTANCES {
        for (scope, regrow) in
            [(PruneScope::Tensor, 0.0), (PruneScope::Global, 0.0), (PruneScope::Tensor, 0.3)]
        {
            let mut options = options(entry.name, 0.7);
            let prune = options.prune.as_mut().unwrap();
            (prune.scope, prune.regrow) = (scope, regrow);
            let (trainer, outcome) = train(LAYERS, options, &Points::new(0.1));
            assert!(outcome.best_step.unwrap() > 18, "{outcome:?}");
            for result in [trainer.model(), trainer.present_model()] {
                let found = [zeros(&result, "w"), zeros(&result, "v")];
                match scope {
                    // ⌊0.7 · 8⌋ of each.
                    PruneScope::Tensor => assert_eq!(found, [5, 5], "{}", entry.name),
                    PruneScope::Global => assert_eq!(found[0] + found[1], 11, "{}", entry.name),
                }
                assert!(weight(&result, "b").iter().all(|&b| b != 0.0), "a bias is left whole");
            }
            let global = scope == PruneScope::Global;
            assert_eq!(trainer.pruned_counts(), Some([if global { 11 } else { 10 }, 16]));
        }
    }
}

#[test]
fn a_pruned_run_stopped_anywhere_and_resumed_ends_with_the_same_bits() {
    let source = Points::new(0.1);
    for (turn, importance) in ["l1", "taylor", "movement", "random"].into_iter().enumerate() {
        let mut options = options(importance, 0.6);
        let prune = options.prune.as_mut().unwrap();
        (prune.regrow, prune.every) = (0.25, 2);
        let (whole, outcome) = train(LAYERS, options.clone(), &source);
        let folder = Folder::new(&format!("pruned-{turn}"));
        let mut rng = Rng::new(&[turn as u64]);
        let resumed = loop {
            let mut trainer = Trainer::new(&model(LAYERS), options.clone()).unwrap();
            let mut monitor = StopAfter(1 + rng.below(7));
            let checkpoints = folder.checkpoints();
            let validate = &mut super::tests::Spread;
            let run = trainer.run(&source, Some(&checkpoints), &mut monitor, Some(validate));
            let run = run.unwrap();
            if !run.is_stopped {
                assert_eq!(run, outcome, "{importance}");
                break trainer;
            }
        };
        assert_eq!(resumed.present_model(), whole.present_model(), "{importance}");
        assert_eq!(resumed.model(), whole.model(), "{importance}");
        assert_eq!(resumed.masks(), whole.masks());
        for (a, b) in resumed.moments.iter().zip(&whole.moments) {
            assert_eq!(a.tensors, b.tensors);
        }
    }
}

#[test]
fn what_is_pruned_stays_so_unless_it_regrows() {
    let masks = |regrow: f64, steps: u64| {
        let mut options = options("l1", 0.5);
        let prune = options.prune.as_mut().unwrap();
        (prune.regrow, prune.start, prune.end, prune.every) =
            (regrow, Span::Steps(0), Span::Steps(20), 2);
        let mut trainer = Trainer::new(&model(LAYERS), options).unwrap();
        let source = Points::new(0.1);
        trainer.run(&source, None, &mut StopAfter(steps as usize), None).unwrap();
        let masks = trainer.masks().into_iter().map(|(_, mask)| mask.slice::<f32>().to_vec());
        masks.flatten().collect::<Vec<f32>>()
    };
    let returned = |regrow: f64| {
        let course: Vec<Vec<f32>> = (1..22).map(|steps| masks(regrow, steps)).collect();
        let back = |pair: &[Vec<f32>]| pair[0].iter().zip(&pair[1]).filter(|(a, b)| a > b).count();
        course.windows(2).map(back).sum::<usize>()
    };
    assert_eq!(returned(0.0), 0);
    assert!(returned(0.4) > 0);
}

#[test]
fn zeros_of_an_earlier_pruning_count() {
    let (trainer, _) = train(LAYERS, options("l1", 0.25), &Points::new(0.1));
    // `w` had two zeros of eight, as many as are wanted.
    let before: Vec<bool> = weight(&model(LAYERS), "w").iter().map(|w| *w == 0.0).collect();
    let after: Vec<bool> = weight(&trainer.model(), "w").iter().map(|w| *w == 0.0).collect();
    assert_eq!(before, after);
}

#[test]
fn one_and_two_threads_prune_the_same() {
    let run = |threads: usize| {
        let mut options = options("taylor", 0.5);
        options.machine.threads = NonZeroUsize::new(threads).unwrap();
        train(LAYERS, options, &Points::new(0.1)).0.present_model()
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn pruning_that_cannot_be_is_an_error() {
    let error = |change: &dyn Fn(&mut TrainerOptions)| {
        let mut options = options("l1", 0.5);
        change(&mut options);
        let trainer = Trainer::new(&model(LAYERS), options);
        let run =
            trainer.and_then(|mut trainer| trainer.run(&Points::new(0.0), None, &mut Silent, None));
        run.unwrap_err().to_string()
    };
    let prune = |options: &mut TrainerOptions, change: &dyn Fn(&mut PruneOptions)| {
        change(options.prune.as_mut().unwrap());
    };
    assert!(error(&|o| prune(o, &|p| p.sparsity = 1.5)).contains("`sparsity` is from 0"));
    assert!(error(&|o| prune(o, &|p| p.importance = "l0".into())).contains("there are l1"));
    assert!(error(&|o| prune(o, &|p| p.exclude = vec!["u".into()])).contains("`u` matches none"));
    let all = |p: &mut PruneOptions| p.exclude = vec!["w".into(), "v".into()];
    assert!(error(&|o| prune(o, &all)).contains("is left to prune"));
    let late = |p: &mut PruneOptions| p.end = Span::Steps(1000);
    assert!(error(&|o| prune(o, &late)).contains("pruning ends at step 1000"));
}
