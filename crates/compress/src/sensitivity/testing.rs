//! Small models and data of these tests.

use attar_graph::testing::graph_from_text;
use attar_graph::{Model, Value};
use attar_runtime::{Builtin, RunOptions, Runtime};
use attar_tensor::Tensor;
use attar_train::Rng;

use crate::{Calibration, PassError};

/// Feeds of `x`, one a batch.
pub(super) struct Feeds(pub(super) Vec<Tensor>);

impl Calibration for Feeds {
    fn for_each_batch(
        &self,
        _: &[Value],
        visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        self.0.iter().try_for_each(|tensor| visit(&[("x", tensor)]))
    }
}

pub(super) fn drawn(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = Rng::new(&[seed]);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
    Tensor::new(shape, &values)
}

/// A graph with weights drawn for the names that it does not define.
pub(super) fn model(text: &str, weights: &[(&str, Vec<usize>)]) -> Model {
    let mut graph = graph_from_text(text);
    for (seed, (name, shape)) in weights.iter().enumerate() {
        graph.inputs.retain(|input| input.name != *name);
        if graph.nodes.iter().any(|node| node.inputs.iter().any(|input| input == name)) {
            graph.set_initializer(*name, drawn(1000 + seed as u64, shape));
        }
    }
    let opsets = [(String::new(), 17)].into_iter().collect();
    Model { ir_version: 8, opsets, graph, ..Model::default() }
}

/// The first output of all feeds.
pub(super) fn outputs(model: &Model, feeds: &Feeds) -> Vec<f32> {
    let mut session = Builtin.load(model, &RunOptions::default()).unwrap();
    let run = |x: &Tensor| session.run(&[("x", x)]).unwrap()[0].values::<f32>().into_owned();
    feeds.0.iter().flat_map(run).collect()
}
