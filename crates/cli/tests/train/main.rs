//! `attar train` from the command line: every kind of data, wrong input, and runs that are cut off.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod aware;
mod fixtures;
mod pruned;
mod recover;

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use fixtures::{Folder, Numbers, WORDS, attar, metric, npy, stderr, stdout, topic_rows, trained};

#[test]
fn arrays_of_two_classes_are_told_apart_and_the_run_folder_is_ready_to_serve() {
    let folder = Folder::new("points");
    let options = ["--features", "8", "--hidden", "8", "--classes", "2"];
    let (model, data) = (folder.model("mlp", "mlp", &options), folder.points("set", 200, true));
    let run = folder.path("run");
    let answer = trained(&[
        &model,
        "--data",
        &data,
        "--validation",
        "0.25",
        "--epochs",
        "15",
        "--batch",
        "16",
        "--learning-rate",
        "0.02",
        "-o",
        &run,
    ]);
    assert!(metric(&answer, 1) > 0.9, "{answer}");
    assert!(metric(&answer, 1) > metric(&answer, 0));
    assert_eq!(answer["loss"]["name"], "cross-entropy");
    assert_eq!(answer["curve"].as_array().unwrap().len(), 15);
    assert_eq!(answer["example_count"], 150);
    let place = Path::new(&run);
    let report = std::fs::read_to_string(place.join("report.json")).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&report).unwrap(), answer);
    assert!(!place.join("checkpoints").exists());
    let journal = std::fs::read_to_string(place.join("journal.jsonl")).unwrap();
    let events: Vec<serde_json::Value> =
        journal.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0]["event"], "started");
    assert_eq!(events.last().unwrap()["event"], "finished");
    assert_eq!(events.iter().filter(|event| event["event"] == "epoch").count(), 15);
    let quality = stdout(&attar(&["evaluate", &run, "--data", &data]));
    assert!(quality.contains("accuracy") && quality.contains("macro-F1"), "{quality}");
    let again = attar(&["train", &model, "--data", &data, "-o", &run]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("holds a finished run"), "{}", stderr(&again));
}

#[test]
fn numbers_are_learned_and_a_student_learns_them_from_a_teacher() {
    let folder = Folder::new("values");
    let options = ["--features", "8", "--hidden", "8", "--classes", "1"];
    let (model, data) = (folder.model("mlp", "mlp", &options), folder.points("set", 200, false));
    let run = folder.path("run");
    let common =
        ["--validation", "0.2", "--epochs", "20", "--batch", "16", "--learning-rate", "0.02"];
    let answer = trained(&[&[&model, "--data", &data, "-o", &run], &common[..]].concat());
    assert_eq!(answer["metric"], "R²");
    assert!(metric(&answer, 1) > 0.9, "{answer}");
    // The student sees no labels.
    std::fs::remove_file(Path::new(&data).join("labels.npy")).unwrap();
    let student = folder.path("student");
    let arguments = [&model, "--data", &data, "--teacher", &run, "-o", &student];
    let answer = trained(&[&arguments[..], &common[..]].concat());
    assert_eq!(answer["loss"]["name"], "mse");
    let last = answer["curve"].as_array().unwrap().last().unwrap();
    assert!(last["loss"].as_f64().unwrap() < 0.05, "{answer}");
}

#[test]
fn texts_learn_their_topics_and_the_names_of_classes_go_with_the_model() {
    let folder = Folder::new("topics");
    let (data, tokenizer) = (folder.topics(), folder.tokenizer());
    let options = ["--tokenizer", &tokenizer, "--classes", "2", "--hidden", "12"];
    let model = folder.model("gru", "gru", &options);
    let run = folder.path("run");
    let answer = trained(&[
        &model,
        "--data",
        &data,
        "--epochs",
        "12",
        "--batch",
        "8",
        "--learning-rate",
        "0.02",
        "--clip",
        "1",
        "-o",
        &run,
    ]);
    assert!(metric(&answer, 1) > 0.9, "{answer}");
    let settings = std::fs::read_to_string(Path::new(&run).join("attar.toml")).unwrap();
    assert!(settings.contains("labels = [\"kitchen\", \"sport\"]"), "{settings}");
    assert!(Path::new(&run).join("tokenizer.json").exists());
    // Another set with its classes in another order is measured by their names.
    let other =
        folder.write("other.tsv", "text\tlabel\nball team\tsport\ngoal score match\tsport\n");
    let quality = attar(&["evaluate", &run, "--data", &other, "--json", "--invariance", "0"]);
    let answer: serde_json::Value = serde_json::from_slice(&quality.stdout).unwrap();
    assert_eq!(metric(&answer, 0), 1.0, "{answer}");
}

#[test]
fn images_are_learned_under_augmentation() {
    let folder = Folder::new("images");
    let data = folder.images(60);
    let options = ["--size", "12", "--hidden", "16", "--classes", "2"];
    let model = folder.model("mlp", "mlp", &options);
    let run = folder.path("run");
    let answer = trained(&[
        &model,
        "--data",
        &data,
        "--validation",
        "0.2",
        "--augment",
        "flip,crop=1,mixup=0.2",
        "--epochs",
        "6",
        "--batch",
        "8",
        "--label-smoothing",
        "0.05",
        "--ema",
        "0.9",
        "-o",
        &run,
    ]);
    assert_eq!(answer["metric"], "top-1");
    assert!(metric(&answer, 1) > 0.9, "{answer}");
}

#[test]
fn pairs_and_retrieval_bring_like_texts_together() {
    let folder = Folder::new("pairs");
    let tokenizer = folder.tokenizer();
    let options = [
        "--tokenizer",
        &tokenizer,
        "--hidden",
        "16",
        "--layers",
        "1",
        "--heads",
        "2",
        "--ffn",
        "32",
    ];
    let model = folder.model("bert", "bert", &options);
    let mut pairs = String::new();
    let (mut corpus, mut queries, mut qrels) = (String::new(), String::new(), String::new());
    let mut numbers = Numbers(5);
    for index in 0..24 {
        let mut word = |topic: usize| WORDS[topic][(numbers.next().abs() * 5.99) as usize];
        let (a, b) = (index % 2, index / 2 % 2);
        let score = if a == b { 5 } else { 0 };
        writeln!(pairs, "{} {}\t{} {}\t{score}", word(a), word(a), word(b), word(b)).unwrap();
        let text = format!("{} {} {}", word(a), word(a), word(a));
        writeln!(corpus, "{{\"_id\":\"{index}\",\"text\":\"{text}\"}}").unwrap();
        writeln!(queries, "{{\"_id\":\"{index}\",\"text\":\"{}\"}}", word(a)).unwrap();
        writeln!(qrels, "{index}\t{index}\t1").unwrap();
    }
    let pairs = folder.write("pairs.tsv", pairs);
    folder.write("beir/corpus.jsonl", corpus);
    folder.write("beir/queries.jsonl", queries);
    folder.write("beir/qrels/train.tsv", qrels);
    let common = ["--epochs", "6", "--batch", "8", "--learning-rate", "0.01", "--validation"];
    let run = folder.path("run-pairs");
    let arguments = [&model, "--data", &pairs, "-o", &run];
    let answer = trained(&[&arguments[..], &common, &[&pairs]].concat());
    assert_eq!(
        (&answer["loss"]["name"], &answer["metric"]),
        (&"cosine".into(), &"Spearman".into())
    );
    assert!(metric(&answer, 1) > 0.7 && metric(&answer, 1) > metric(&answer, 0), "{answer}");
    assert_eq!(answer["remarks"][0], "scores are divided by 5, the largest");
    let (beir, run) = (folder.path("beir"), folder.path("run-beir"));
    let arguments = [&model, "--data", &beir, "-o", &run];
    let answer = trained(&[&arguments[..], &common, &["0.2"]].concat());
    assert_eq!(answer["loss"]["name"], "contrastive");
    let losses: Vec<f64> = answer["curve"]
        .as_array()
        .unwrap()
        .iter()
        .map(|point| point["loss"].as_f64().unwrap())
        .collect();
    assert!(losses[5] < losses[0], "{losses:?}");
}

#[test]
fn a_student_learns_texts_from_a_teacher() {
    let folder = Folder::new("taught");
    let tokenizer = folder.tokenizer();
    let options = |hidden| ["--tokenizer", &tokenizer, "--hidden", hidden, "--classes", "2"];
    let teacher = folder.model("teacher", "gru", &options("12"));
    let student = folder.model("student", "gru", &options("6"));
    let texts = folder.write("texts.txt", topic_rows(40, 3));
    let run = folder.path("run");
    let untaught = attar(&["train", &student, "--data", &texts, "-o", &run]);
    assert_eq!(untaught.status.code(), Some(2));
    assert!(stderr(&untaught).contains("--teacher MODEL"), "{}", stderr(&untaught));
    let answer = trained(&[
        &student,
        "--data",
        &texts,
        "--teacher",
        &teacher,
        "--loss",
        "kl",
        "--temperature",
        "2",
        "--validation",
        "0.2",
        "--epochs",
        "8",
        "--batch",
        "8",
        "--learning-rate",
        "0.01",
        "-o",
        &run,
    ]);
    assert_eq!(answer["metric"], "cosine to the teacher");
    assert_eq!(answer["loss"]["temperature"], 2.0);
    let curve = answer["curve"].as_array().unwrap();
    assert!(curve[7]["loss"].as_f64() < curve[0]["loss"].as_f64(), "{answer}");
    // With labels, both are learned.
    let topics = folder.topics();
    let run = folder.path("run-both");
    let answer =
        trained(&[&student, "--data", &topics, "--teacher", &teacher, "--epochs", "1", "-o", &run]);
    assert_eq!(answer["loss"]["name"], "distillation");
}

#[test]
fn a_run_that_is_killed_and_resumed_ends_with_the_same_bytes() {
    let folder = Folder::new("killed");
    let options = ["--features", "8", "--hidden", "64,64", "--classes", "2"];
    let (model, data) = (folder.model("mlp", "mlp", &options), folder.points("set", 400, true));
    let run = |name: &str| folder.path(name);
    let arguments = |output: &str| -> Vec<String> {
        let rest = "--validation 0.1 --epochs 40 --batch 4 --ema 0.99 --checkpoint-every 7 -o";
        ["train", &model, "--data", &data]
            .into_iter()
            .chain(rest.split(' '))
            .chain([output])
            .map(String::from)
            .collect()
    };
    let whole = run("whole");
    let one_thread = [arguments(&whole), vec!["--threads".into(), "1".into()]].concat();
    let one_thread: Vec<&str> = one_thread.iter().map(String::as_str).collect();
    assert!(attar(&one_thread).status.success());
    let cut = run("cut");
    let mut kills = 0;
    for attempt in 0..200 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attar"));
        command.args(arguments(&cut)).args(["--threads", "2"]);
        if attempt > 0 {
            command.arg("--resume");
        }
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        if kills < 5 {
            std::thread::sleep(std::time::Duration::from_millis(150 + 90 * kills));
            if child.try_wait().unwrap().is_none() {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                continue;
            }
        }
        assert!(child.wait().unwrap().success(), "attempt {attempt} failed");
        break;
    }
    assert!(kills > 0, "the run was too short to be killed");
    let bytes = |run: &str| std::fs::read(Path::new(run).join("model.onnx")).unwrap();
    assert!(bytes(&whole) == bytes(&cut), "the resumed run has other weights");
}

#[test]
fn what_is_wrong_is_named_before_the_first_step_and_leaves_no_folder() {
    let folder = Folder::new("wrong");
    let options = ["--features", "8", "--hidden", "4", "--classes", "2"];
    let (model, data) = (folder.model("mlp", "mlp", &options), folder.points("set", 20, true));
    let many = folder.0.join("many");
    std::fs::create_dir_all(&many).unwrap();
    let features = std::fs::read(folder.0.join("set/features.npy")).unwrap();
    std::fs::write(many.join("features.npy"), features).unwrap();
    let labels: Vec<u8> = (0..20).map(|index| if index == 13 { 7 } else { 1 }).collect();
    std::fs::write(many.join("labels.npy"), npy("|u1", &[20], labels)).unwrap();
    let many = many.display().to_string();
    let texts = folder.write("texts.tsv", "text\tlabel\nball\tsport\nbread\tkitchen\nsalt\tfood\n");
    let broken = folder.write("broken.csv", "text,label\na,b\nonly\n");
    let empty = folder.write("empty.csv", "text,label\n");
    let tokenizer = folder.tokenizer();
    let gru_options = ["--tokenizer", &tokenizer, "--classes", "2", "--hidden", "4"];
    let gru = folder.model("gru", "gru", &gru_options);
    let run = folder.path("run");
    let cases: &[(&[&str], &str, &str)] = &[
        (
            &[&model, "--data", &many],
            "labels[13] is 7, and the model's classes are 0 to 1",
            "more classes",
        ),
        (
            &[&gru, "--data", &texts],
            "gives 2 scores per example, the data has 3 classes",
            "3 classes",
        ),
        (&[&gru, "--data", &broken], "broken.csv:3: 1 columns, expected 2", "--skip-bad"),
        (&[&gru, "--data", &empty], "it holds no labelled text", ""),
        (&[&gru, "--data", &data], "input `input_ids` is not one that arrays can fill", ""),
        (&[&model, "--data", &texts], "no attar.toml", ""),
        (&[&model, "--data", "nosuch"], "nosuch", ""),
        (&[&model, "--data", &data, "--loss", "nosuch"], "no loss is called `nosuch`", "--help"),
        (&[&model, "--data", &data, "--loss", "cross-entropy:x=1"], "unknown field `x`", "--help"),
        (&[&model, "--data", &data, "--optimizer", "nosuch"], "no optimizer is called", "--help"),
        (&[&model, "--data", &data, "--schedule", "cosin"], "no schedule `cosin`", "constant"),
        (&[&model, "--data", &data, "--temperature", "2"], "has no `temperature`", ""),
        (&[&model, "--data", &data, "--learning-rate", "0"], "--learning-rate 0", "--help"),
        (&[&model, "--data", &data, "--augment", "flip"], "arrays cannot be augmented", "images"),
        (&[&model, "--data", &data, "--freeze", "nosuch*"], "`nosuch*` matches none", "inspect"),
        (&[&model, "--data", &data, "--patience", "2"], "no validation data", "--validation"),
        (&[&model, "--data", &data, "--validation", "1.5"], "1.5 of 20 examples", "between"),
        (&[&model, "--data", &data, "--teacher", &gru], "is not one that arrays can fill", ""),
    ];
    for (arguments, cause, hint) in cases {
        let output = attar(&[&["train", "-o", &run], *arguments].concat());
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(cause) && text.contains(hint), "{arguments:?}: {text}");
        assert!(stdout(&output).is_empty(), "{arguments:?}");
        assert!(!Path::new(&run).exists(), "{arguments:?}");
    }
}

#[test]
fn another_command_cannot_resume_a_run() {
    let folder = Folder::new("other");
    let options = ["--features", "8", "--hidden", "4", "--classes", "2"];
    let (model, data) = (folder.model("mlp", "mlp", &options), folder.points("set", 20, true));
    let run = folder.path("run");
    std::fs::create_dir_all(&run).unwrap();
    std::fs::write(Path::new(&run).join("mine.txt"), "precious").unwrap();
    let refused = attar(&["train", &model, "--data", &data, "-o", &run]);
    assert!(stderr(&refused).contains("is not empty and is no run"), "{}", stderr(&refused));
    let list = stdout(&attar(&["train", "--list"]));
    for name in ["cross-entropy", "contrastive", "adamw", "sgd", "momentum"] {
        assert!(list.contains(name), "{list}");
    }
}

#[test]
fn an_interrupt_saves_and_says_how_to_go_on() {
    let folder = Folder::new("interrupt");
    let options = ["--features", "8", "--hidden", "64,64", "--classes", "2"];
    let (model, data) = (folder.model("mlp", "mlp", &options), folder.points("set", 400, true));
    let run = folder.path("run");
    let arguments = ["train", &model, "--data", &data, "--batch", "4", "-o", &run, "--epochs"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_attar"));
    command.args(arguments).arg("3000").stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let journal = Path::new(&run).join("journal.jsonl");
    let has_stepped =
        || std::fs::read_to_string(&journal).is_ok_and(|text| text.contains("\"event\":\"step\""));
    for _ in 0..600 {
        if has_stepped() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("`--resume`"), "{}", stderr(&output));
    assert!(Path::new(&run).join("checkpoints").exists());
    let other = attar(&[&arguments[..], &["2999", "--resume"]].concat());
    assert_eq!(other.status.code(), Some(2));
    assert!(stderr(&other).contains("`options.length.epochs` was 3000"), "{}", stderr(&other));
    let begun_again = attar(&[&arguments[..], &["3000"]].concat());
    assert!(stderr(&begun_again).contains("holds an unfinished run"), "{}", stderr(&begun_again));
}

#[test]
fn the_examples_of_the_help_run() {
    let folder = Folder::new("help");
    std::fs::rename(folder.images(40), folder.0.join("fashion-mnist")).unwrap();
    folder.topics();
    let tokenizer = folder.tokenizer();
    folder.write("texts.txt", topic_rows(20, 3));
    folder.write("beir/corpus.jsonl", "{\"_id\":\"d\",\"text\":\"team ball\"}\n");
    folder.write("beir/queries.jsonl", "{\"_id\":\"q\",\"text\":\"goal\"}\n");
    folder.write("beir/qrels/train.tsv", "q\td\t1\n");
    let cnn = ["--size", "12", "--channels", "1", "--widths", "4,8", "--classes", "2"];
    folder.model("cnn", "cnn", &cnn);
    let lstm = ["--tokenizer", &tokenizer, "--hidden", "4", "--classes", "2"];
    let lstm = folder.model("lstm", "lstm", &lstm);
    let bert = "--layers 1 --hidden 8 --heads 2 --ffn 16 --tokenizer".split(' ');
    let bert: Vec<&str> = bert.chain([&tokenizer[..]]).collect();
    let student = folder.model("minilm", "bert", &bert);
    std::fs::rename(&student, folder.0.join("minilm/minilm.onnx")).unwrap();
    let student = folder.path("student.onnx");
    assert!(attar(&[&["new", "bert", "-o", &student], &bert[..]].concat()).status.success());
    let pruned = folder.path("runs/pruned");
    let step = ["--step", "prune.magnitude:sparsity=0.3", "--no-timing", "-o", &pruned];
    assert!(attar(&[&["compress", &lstm], &step[..]].concat()).status.success());
    let help = stdout(&attar(&["train", "--help"])).replace("\\\n", " ");
    let (_, examples) = help.split_once("Examples:\n").unwrap();
    let commands: Vec<&str> =
        examples.lines().filter_map(|line| line.trim().strip_prefix("attar ")).collect();
    assert_eq!(commands.len(), 7, "{examples}");
    for command in commands {
        let mut attar = Command::new(env!("CARGO_BIN_EXE_attar"));
        let output =
            attar.args(command.split_whitespace()).current_dir(&folder.0).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}: {}", stderr(&output));
    }
}
