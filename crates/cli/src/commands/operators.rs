//! `attar operators`: what `builtin` knows.

use std::process::ExitCode;

use attar::{Error, OPERATORS, has_gradient};
use clap::Args;
use serde::Serialize;

use crate::print;
use crate::table::Table;

/// List the operators that attar knows: shape inference, kernel, cost, gradient.
#[derive(Args)]
#[command(after_help = "Example:
  attar operators --json")]
pub(crate) struct Operators {}

#[derive(Serialize)]
struct Row {
    op_type: &'static str,
    domain: &'static str,
    since_opset: i64,
    has_gradient: bool,
}

impl Operators {
    #[allow(clippy::unused_self, clippy::unnecessary_wraps)] // as every command
    pub(crate) fn run(&self, json: bool) -> Result<ExitCode, Error> {
        let rows = OPERATORS.iter().map(|operator| Row {
            op_type: operator.op_type(),
            domain: operator.domain(),
            since_opset: operator.since_opset(),
            has_gradient: has_gradient(*operator),
        });
        if json {
            print::json(&rows.collect::<Vec<_>>());
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = Table::new(&["operator", "domain", "since opset", "gradient"]).left(2);
        for row in rows {
            let domain = if row.domain.is_empty() { "ai.onnx" } else { row.domain };
            let since =
                if row.domain.is_empty() { row.since_opset.to_string() } else { String::new() };
            let gradient = if row.has_gradient { "yes" } else { "" };
            table.row(vec![row.op_type.into(), domain.into(), since, gradient.into()]);
        }
        print::answer(&format!("{table}\nOperators of the domain `attar` are made by fusion.\n"));
        Ok(ExitCode::SUCCESS)
    }
}
