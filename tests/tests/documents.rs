//! Documents that are made from tables in the code say what the code says.
//!
//! `ATTAR_WRITE=1 cargo test -p attar-tests --test documents` writes them anew.

use std::path::Path;

use attar::STAGES;
use attar_compress::{IMPORTANCES, PASSES};
use attar_import::{ARCHITECTURES, ArchitectureOption, COMMON_OPTIONS};
use attar_ops::{OPERATORS, has_gradient};

fn check(file: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file);
    if std::env::var_os("ATTAR_WRITE").is_some() {
        std::fs::write(&path, expected).expect("the folder docs is writable");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "docs/{file} is out of date: run this test with ATTAR_WRITE=1");
}

#[test]
fn the_table_of_operators_is_that_of_the_code() {
    let mut text = String::from(
        "# Operators\n\nWhat `builtin` runs and attar infers shapes and cost for. Through those \
         with a gradient, weights before them train. Made from `OPERATORS` in `crates/ops`; \
         `attar operators` prints the same.\n\n\
         | operator | domain | since opset | gradient |\n| --- | --- | --- | --- |\n",
    );
    for operator in OPERATORS {
        let (domain, since) = match operator.domain() {
            "" => ("ai.onnx", operator.since_opset().to_string()),
            domain => (domain, "made by fusion".into()),
        };
        let gradient = if has_gradient(*operator) { "yes" } else { "" };
        let name = operator.op_type();
        text.push_str(&format!("| {name} | {domain} | {since} | {gradient} |\n"));
    }
    check("operators.md", &text);
}

#[test]
fn the_reference_of_passes_is_that_of_the_code() {
    let mut text = String::from(
        "# Passes\n\nSteps of a recipe. Made from `PASSES` in `crates/compress`; `attar passes` \
         prints the same. Every step also takes `exclude`, a list of node and tensor names in \
         which `*` stands for any text.\n",
    );
    let passes = PASSES.iter().map(|entry| (entry.name, entry.summary, entry.options));
    let stages = STAGES.iter().map(|entry| (entry.name, entry.summary, entry.options));
    for (name, summary, options) in passes.chain(stages) {
        text.push_str(&format!("\n## `{name}`\n\n{summary}.\n"));
        if !options.is_empty() {
            text.push_str("\n| setting | default | meaning |\n| --- | --- | --- |\n");
        }
        for option in options {
            let default = match option.default {
                "" => "must be given".to_string(),
                default => format!("`{default}`"),
            };
            text.push_str(&format!("| `{}` | {default} | {} |\n", option.key, option.help));
        }
    }
    text.push_str(
        "\n## Importances\n\nWhat passes that prune go by: a score per weight. Made from \
         `IMPORTANCES` in `crates/compress`.\n\n| importance | score | calibration data |\n\
         | --- | --- | --- |\n",
    );
    for entry in IMPORTANCES {
        let data = if entry.needs_data { "yes" } else { "" };
        let summary = entry.summary.replace('|', "\\|");
        text.push_str(&format!("| `{}` | {summary} | {data} |\n", entry.name));
    }
    check("passes.md", &text);
}

#[test]
fn the_recipes_that_come_with_attar_are_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let files = std::fs::read_dir(folder).expect("there are recipes").flatten();
    let recipes: Vec<_> = files.map(|file| attar::Recipe::load(&file.path())).collect();
    assert!(recipes.len() >= 5);
    for recipe in recipes {
        assert!(!recipe.expect("a recipe is read").steps.is_empty());
    }
}

#[test]
fn the_reference_of_new_models_is_that_of_the_code() {
    fn rows(options: &[ArchitectureOption]) -> String {
        let mut text = String::from("\n| option | default | meaning |\n| --- | --- | --- |\n");
        for option in options {
            let (key, default, help) = (option.key, option.default, option.help);
            text.push_str(&format!("| `--{key}` | `{default}` | {help} |\n"));
        }
        text
    }
    let mut text = String::from(
        "# New models\n\nWhat `attar new ARCHITECTURE -o model.onnx` makes. Made from \
         `ARCHITECTURES` in `crates/import`; `attar new --list` prints the same. Those that read \
         texts also take `--tokenizer FILE`, which is copied beside the model and says its \
         vocabulary. All take:\n",
    );
    text.push_str(&rows(&COMMON_OPTIONS));
    for architecture in ARCHITECTURES {
        text.push_str(&format!("\n## `{}`\n\n{}.\n", architecture.name, architecture.summary));
        text.push_str(&rows(architecture.options));
    }
    check("architectures.md", &text);
}
