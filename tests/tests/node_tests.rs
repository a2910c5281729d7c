//! The official ONNX node tests on `builtin`: every case passes, or stands in a list with the
//! reason.
//!
//! `ATTAR_NODE_TESTS=NAME cargo test -p attar-tests --test node_tests -- --nocapture` shows what
//! becomes of the cases with NAME in theirs; `ATTAR_WRITE=1` writes the lists anew, keeping the
//! reasons that are there.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use attar_graph::ValueType;
use attar_onnx::OptionalContent;
use attar_ops::{Datum, OpError, Pool, Program, ProgramError};
use attar_tensor::{Bytes, DType, Tensor};
use attar_tests::data;

/// A folder of cases, and the list of those that do not pass.
struct Suite {
    folders: Vec<PathBuf>,
    list: &'static str,
}

/// A case: its name and its folder.
fn cases(suite: &Suite) -> BTreeMap<String, PathBuf> {
    let mut cases = BTreeMap::new();
    for folder in &suite.folders {
        for entry in std::fs::read_dir(folder).expect("the folder is readable").flatten() {
            if entry.path().join("model.onnx").exists() {
                let name = entry.file_name().to_string_lossy().into_owned();
                cases.insert(name, entry.path());
            }
        }
    }
    cases
}

/// Why a case does not pass.
#[derive(Debug)]
enum Failure {
    /// The first operator attar does not know.
    Operator(String),
    Other(String),
}

fn run_case(folder: &Path) -> Result<(), Failure> {
    let other = |error: &dyn std::fmt::Display| Failure::Other(error.to_string());
    let model = attar_onnx::load(&folder.join("model.onnx")).map_err(|error| other(&error))?;
    let program = Program::new(model.clone(), &[]).map_err(|error| {
        unknown_operator(&error).map_or_else(|| other(&error), Failure::Operator)
    })?;
    for set in 0.. {
        let set = folder.join(format!("test_data_set_{set}"));
        if !set.exists() {
            break;
        }
        let read = |tag: &str, values: &[attar_graph::Value]| -> Result<Vec<Datum>, Failure> {
            let with_index = values.iter().enumerate();
            with_index
                .map(|(index, value)| {
                    let bytes = std::fs::read(set.join(format!("{tag}_{index}.pb")))
                        .map_err(|error| other(&error))?;
                    datum(bytes.into(), value.value_type.as_ref()).map_err(|error| other(&error))
                })
                .collect()
        };
        // Data for every input, or only for those without an initializer.
        let graph = &model.graph;
        let all = graph.inputs.len();
        let required: Vec<_> = graph.required_inputs().cloned().collect();
        let has_all = all > 0 && set.join(format!("input_{}.pb", all - 1)).exists();
        let inputs = if has_all { graph.inputs.clone() } else { required };
        let fed: Vec<Datum> = (inputs.iter().zip(read("input", &inputs)?))
            .filter(|(input, _)| !graph.initializers.contains_key(&input.name))
            .map(|(_, feed)| aligned(feed))
            .collect();
        let expected = read("output", &model.graph.outputs)?;
        let run = AssertUnwindSafe(|| program.run(fed, &Pool::default()));
        let found = std::panic::catch_unwind(run)
            .map_err(|_| Failure::Other("it panicked".into()))?
            .map_err(|error| other(&error))?;
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            compare(found, expected)
                .map_err(|text| Failure::Other(format!("output {index}: {text}")))?;
        }
    }
    Ok(())
}

fn aligned(datum: Datum) -> Datum {
    match datum {
        Datum::Tensor(tensor) => Datum::Tensor(tensor.aligned()),
        Datum::Sequence(all) => Datum::Sequence(all.iter().map(Tensor::aligned).collect()),
        Datum::Empty => Datum::Empty,
    }
}

/// The operator that attar does not know, if that is why a model is refused.
fn unknown_operator(error: &ProgramError) -> Option<String> {
    let ProgramError::Node { source, .. } = error else { return None };
    let mut source = source;
    while let OpError::Inner { source: inner, .. } = source.as_ref() {
        source = inner;
    }
    match source.as_ref() {
        OpError::Unknown { op_type, domain } if domain.is_empty() => {
            Some(format!("ai.onnx.{op_type}"))
        }
        OpError::Unknown { op_type, domain } => Some(format!("{domain}.{op_type}")),
        _ => None,
    }
}

fn datum(bytes: Bytes, value_type: Option<&ValueType>) -> Result<Datum, attar_onnx::OnnxError> {
    Ok(match value_type {
        Some(ValueType::Sequence(_)) => Datum::Sequence(attar_onnx::sequence_from_bytes(bytes)?),
        Some(ValueType::Optional(_)) => match attar_onnx::optional_from_bytes(bytes)? {
            None => Datum::Empty,
            Some(OptionalContent::Tensor(tensor)) => Datum::Tensor(tensor),
            Some(OptionalContent::Sequence(tensors)) => Datum::Sequence(tensors),
        },
        _ => Datum::Tensor(attar_onnx::tensor_from_bytes(bytes)?),
    })
}

fn compare(found: &Datum, expected: &Datum) -> Result<(), String> {
    match (found, expected) {
        (Datum::Tensor(found), Datum::Tensor(expected)) => compare_tensors(found, expected),
        (Datum::Sequence(found), Datum::Sequence(expected)) if found.len() == expected.len() => {
            found.iter().zip(expected).try_for_each(|(a, b)| compare_tensors(a, b))
        }
        (Datum::Empty, Datum::Empty) => Ok(()),
        _ => Err(format!("found {}, expected {}", found.kind(), expected.kind())),
    }
}

/// One unit in the last place, relative: half types may differ by their rounding.
fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2.0_f64.powi(-10),
        DType::BF16 => 2.0_f64.powi(-7),
        _ => 0.0,
    }
}

/// The tolerance of ONNX's own runner: 1e-3 relative and 1e-7 absolute for floats; the same values
/// for everything else.
fn compare_tensors(found: &Tensor, expected: &Tensor) -> Result<(), String> {
    if found.dtype() != expected.dtype() || found.shape() != expected.shape() {
        let text = |t: &Tensor| format!("{}{:?}", t.dtype(), t.shape());
        return Err(format!("found {}, expected {}", text(found), text(expected)));
    }
    if !expected.dtype().is_float() {
        return if found == expected { Ok(()) } else { Err("other values".into()) };
    }
    let relative = unit(expected.dtype()).max(1e-3);
    let (a, b) = (found.to_f64().expect("floats"), expected.to_f64().expect("floats"));
    for (index, (&a, &b)) in a.iter().zip(&b).enumerate() {
        let same =
            a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-7 + relative * b.abs();
        if !same {
            return Err(format!("element {index} is {a}, expected {b}"));
        }
    }
    Ok(())
}

fn list_path(list: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("node_tests").join(list)
}

fn read_list(list: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(list_path(list)).unwrap_or_default();
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    rows.filter_map(|row| row.split_once('\t'))
        .map(|(name, reason)| (name.to_string(), reason.to_string()))
        .collect()
}

fn write_list(suite: &Suite, failures: &BTreeMap<String, Failure>) {
    let known = read_list(suite.list);
    let mut text = String::from("# Cases that do not pass, with the reason.\n");
    for (name, failure) in failures {
        let reason = match (failure, known.get(name)) {
            (Failure::Operator(operator), known) => {
                let short = format!("{operator} is not supported");
                known.filter(|reason| reason.starts_with(&short)).cloned().unwrap_or(short)
            }
            (Failure::Other(_), Some(reason)) if !reason.ends_with("is not supported") => {
                reason.clone()
            }
            (Failure::Other(error), _) => error.replace(['\n', '\t'], " "),
        };
        text.push_str(&format!("{name}\t{reason}\n"));
    }
    std::fs::write(list_path(suite.list), text).expect("the list is writable");
}

#[allow(clippy::print_stdout)] // what the test shows
fn check_suite(suite: &Suite) {
    let wanted = std::env::var("ATTAR_NODE_TESTS").ok();
    let mut failures = BTreeMap::new();
    let cases = cases(suite);
    assert!(!cases.is_empty(), "there are no cases: run ./test.sh, which makes them");
    for (name, folder) in &cases {
        if wanted.as_ref().is_some_and(|wanted| !name.contains(wanted.as_str())) {
            continue;
        }
        let result = run_case(folder);
        if wanted.is_some() {
            println!("{name}: {result:?}");
        }
        if let Err(failure) = result {
            failures.insert(name.clone(), failure);
        }
    }
    if wanted.is_some() {
        println!("{} of those shown do not pass", failures.len());
        return;
    }
    let unsupported = failures.values().filter(|f| matches!(f, Failure::Operator(_))).count();
    println!(
        "{}: {} passed, {} supported, {} in all",
        suite.list,
        cases.len() - failures.len(),
        cases.len() - unsupported,
        cases.len()
    );
    if std::env::var_os("ATTAR_WRITE").is_some() {
        write_list(suite, &failures);
    }
    let listed = read_list(suite.list);
    for (name, failure) in &failures {
        assert!(listed.contains_key(name), "{name} does not pass any more: {failure:?}");
    }
    let passing: BTreeSet<&String> =
        listed.keys().filter(|name| !failures.contains_key(*name)).collect();
    assert!(passing.is_empty(), "these pass now, take them off {}: {passing:?}", suite.list);
}

#[test]
fn node_tests_of_the_newest_operator_set_pass_or_are_listed() {
    check_suite(&Suite { folders: vec![data("node-tests")], list: "newest.tsv" });
}

#[test]
fn node_tests_of_older_operator_sets_pass_or_are_listed() {
    let root = data("onnx-testdata");
    let folders =
        ["node", "simple", "pytorch-converted", "pytorch-operator"].map(|f| root.join(f)).to_vec();
    check_suite(&Suite { folders, list: "opset21.tsv" });
}
