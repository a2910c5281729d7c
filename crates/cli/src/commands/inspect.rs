//! `attar inspect`: what a model is made of.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use attar::{Bindings, Error, Inspection, Subject, TreeRow};
use clap::Args;

use crate::print::{self, bytes, count};
use crate::table::Table;

/// Show what a model is made of: parameters, operations, memory, operators.
///
/// Open dimensions get a usual size (batch 1, sequence 128); give others by `--size`.
#[derive(Args)]
#[command(after_help = "Examples:
  attar inspect model.onnx
  attar inspect model.onnx --size batch=32 --size sequence=64 --nodes
  attar inspect model.onnx --tree --depth 5
  attar inspect model.onnx --json")]
pub(crate) struct Inspect {
    /// Model to read (.onnx, or a run folder)
    model: PathBuf,
    /// Size of an open dimension
    #[arg(long = "size", value_name = "NAME=N", value_parser = size)]
    sizes: Vec<(String, i64)>,
    /// List every node
    #[arg(long)]
    nodes: bool,
    /// Show the nodes as a tree, by the prefixes of their names
    #[arg(long)]
    tree: bool,
    /// Levels of the tree to show
    #[arg(long, value_name = "N", default_value_t = 3, requires = "tree")]
    depth: usize,
}

fn size(text: &str) -> Result<(String, i64), String> {
    let (name, size) = text.split_once('=').ok_or("a size is written NAME=N")?;
    let size: i64 = size.parse().map_err(|_| format!("`{size}` is no number"))?;
    if size < 0 { Err("a size is not negative".into()) } else { Ok((name.into(), size)) }
}

impl Inspect {
    pub(crate) fn run(&self, json: bool) -> Result<ExitCode, Error> {
        let subject = Subject::open(&self.model)?;
        let sizes: Bindings = self.sizes.iter().cloned().collect();
        let inspection = attar::inspect(&subject.model, &sizes);
        if let Some(name) = sizes.keys().find(|name| !inspection.sizes.contains_key(*name)) {
            let known: Vec<&str> = inspection.sizes.keys().map(String::as_str).collect();
            return Err(Error::Usage {
                message: format!("no dimension is called `{name}`"),
                hint: format!("the open dimensions are {}", known.join(", ")),
            });
        }
        if json {
            print::json(&inspection);
        } else {
            print::answer(&self.text(&inspection, subject.size_bytes));
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Inspect {
    fn text(&self, model: &Inspection, size_bytes: u64) -> String {
        let mut out = summary(model, size_bytes);
        let mut line = |text: String| {
            let _ = writeln!(out, "{text}");
        };
        line(format!("\n{} nodes\n{}", model.node_count, operator_table(model)));
        line(role_table(model).to_string());
        let mut table = Table::new(&["largest constants", "type", "size"]);
        for row in &model.largest_constants {
            let dtype = format!("{}{:?}", row.dtype, row.shape);
            table.row(vec![row.name.clone(), dtype, bytes(row.size_bytes)]);
        }
        line(table.to_string());
        if self.tree {
            let header = ["tree", "nodes", "parameters", "weights", "MACs", "results"];
            let mut table = Table::new(&header);
            tree_rows(&model.tree, 0, self.depth, &mut table);
            line(table.to_string());
        }
        if self.nodes {
            line(node_table(model).to_string());
        }
        for problem in &model.problems {
            line(format!("no shape for {problem}"));
        }
        out
    }
}

fn summary(model: &Inspection, size_bytes: u64) -> String {
    let opsets: Vec<String> = (model.opsets.iter())
        .map(|(domain, version)| match domain.as_str() {
            "" => format!("opset {version}"),
            domain => format!("{domain} {version}"),
        })
        .collect();
    let mut out = format!(
        "{} on disk, IR {}, {}{}\n",
        bytes(size_bytes),
        model.ir_version,
        opsets.join(", "),
        if model.producer.is_empty() { String::new() } else { format!(", by {}", model.producer) }
    );
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    line(format!("inputs    {}", model.inputs.join("\n          ")));
    line(format!("outputs   {}", model.outputs.join("\n          ")));
    let types: Vec<String> = model
        .bytes_by_dtype
        .iter()
        .map(|(dtype, size)| format!("{dtype} {}", bytes(*size)))
        .collect();
    line(format!(
        "weights   {} parameters, {} ({})",
        count(model.parameter_count),
        bytes(model.weight_bytes),
        types.join(", ")
    ));
    let sizes: Vec<String> =
        model.sizes.iter().map(|(name, size)| format!("{name}={size}")).collect();
    let at = if sizes.is_empty() { String::new() } else { format!(" at {}", sizes.join(", ")) };
    line(format!(
        "one run   {} multiply-accumulates, {} of results{at}",
        count(model.macs),
        bytes(model.activation_bytes)
    ));
    out
}

fn operator_table(model: &Inspection) -> Table {
    let mut table = Table::new(&["operator", "nodes", "MACs", "weights", "results", ""]);
    for row in &model.operators {
        table.row(vec![
            row.op_type.clone(),
            row.node_count.to_string(),
            count(row.macs),
            bytes(row.weight_bytes),
            bytes(row.activation_bytes),
            if row.is_supported { String::new() } else { "not on builtin".into() },
        ]);
    }
    table
}

/// What can be compressed, and by what.
fn role_table(model: &Inspection) -> Table {
    let mut table =
        Table::new(&["constants", "made smaller by", "count", "parameters", "size"]).left(2);
    for row in &model.roles {
        table.row(vec![
            row.role.into(),
            if row.passes.is_empty() { "-".into() } else { row.passes.join(", ") },
            row.constant_count.to_string(),
            count(row.parameter_count),
            bytes(row.size_bytes),
        ]);
    }
    table
}

fn tree_rows(row: &TreeRow, depth: usize, depth_max: usize, table: &mut Table) {
    let name = if row.name.is_empty() { "(all)" } else { &row.name };
    table.row(vec![
        format!("{}{name}", "  ".repeat(depth)),
        row.node_count.to_string(),
        count(row.parameter_count),
        bytes(row.weight_bytes),
        count(row.macs),
        bytes(row.activation_bytes),
    ]);
    if depth < depth_max {
        row.children.iter().for_each(|child| tree_rows(child, depth + 1, depth_max, table));
    }
}

fn node_table(model: &Inspection) -> Table {
    let mut table =
        Table::new(&["node", "operator", "result", "MACs", "weights", "results"]).left(3);
    for node in &model.nodes {
        table.row(vec![
            node.name.clone(),
            node.op_type.clone(),
            node.output_shape.clone(),
            node.macs.map_or("?".into(), count),
            bytes(node.weight_bytes),
            node.activation_bytes.map_or("?".into(), bytes),
        ]);
    }
    table
}
