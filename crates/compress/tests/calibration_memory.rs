//! Calibration holds one batch, whatever the number of batches. A test of its own process: it
//! looks at the peak of what the process held.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use attar_compress::{Calibration, Context, PassError, pass_entry};
use attar_graph::testing::graph_from_text;
use attar_graph::{Model, Value};
use attar_runtime::Builtin;
use attar_tensor::Tensor;

const ROWS: usize = 256;
const COLUMNS: usize = 1024;
const BATCHES: usize = 400;

/// 400 MB, a megabyte at a time.
struct Long;

impl Calibration for Long {
    fn for_each_batch(
        &self,
        _: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        for batch in 0..BATCHES {
            let values: Vec<f32> =
                (0..ROWS * COLUMNS).map(|i| ((i + batch) % 17) as f32 - 8.0).collect();
            visit(&[("x", &Tensor::new(&[ROWS, COLUMNS], &values))])?;
        }
        Ok(())
    }
}

fn peak_kilobytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn memory_does_not_grow_with_the_calibration_data() {
    let mut graph = graph_from_text(&format!("x: f32[batch, {COLUMNS}]\ny = MatMul(x, w)"));
    graph.inputs.retain(|input| input.name == "x");
    let weight: Vec<f32> = (0..COLUMNS * 8).map(|i| (i % 13) as f32 - 6.0).collect();
    graph.set_initializer("w", Tensor::new(&[COLUMNS, 8], &weight));
    let opsets = [(String::new(), 17)].into_iter().collect();
    let model = Model { ir_version: 8, opsets, graph, ..Model::default() };
    let pass = pass_entry("quantize.static").unwrap().build(toml::Table::new()).unwrap();
    let context = Context { calibration: Some(&Long), ..Context::new(&Builtin) };
    let before = peak_kilobytes();
    pass.plan(&model, &context).unwrap();
    let grown = peak_kilobytes() - before;
    // A few batches of 1 MB, each with its copies, and the weights.
    assert!(grown < 40 * 1024, "{grown} kB for {BATCHES} batches of 1 MB");
}
