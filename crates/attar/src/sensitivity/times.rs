//! What the products of each weight take on `builtin`, in float and with activations in 8 bits too.

use std::num::NonZeroUsize;

use attar_compress::{Context, PassError, pass_entry};
use attar_evaluate::Shape;
use attar_graph::{Links, Model, apply};
use attar_runtime::Builtin;
use serde::Serialize;

use crate::layers::{NodeTime, times};
use crate::pipeline::raise_opset;

/// Milliseconds of all products that read a weight, at a batch of one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WeightTime {
    pub tensor: String,
    /// With weights that were floats when the model was loaded: those in 2, 4 or 16 bits too.
    pub float_ms: Option<f64>,
    /// As `quantize.static` leaves them; `None` where products are run as one.
    pub integer_ms: Option<f64>,
}

/// The times of these weights; nothing where the model has no form in 8 bits, or does not run on
/// made-up inputs.
pub(super) fn weight_times(
    model: &Model,
    tensors: &[&str],
    shape: Shape,
    context: &Context,
) -> Vec<WeightTime> {
    let Ok(integers) = in_integers(model, context) else { return Vec::new() };
    let Ok(rows) = times(&[model, &integers], &Builtin, NonZeroUsize::MIN, shape) else {
        return Vec::new();
    };
    let links = Links::new(&model.graph);
    let time = |tensor: &&str| {
        let readers = links.uses(tensor).iter();
        let labels: Vec<&str> =
            readers.map(|reader| model.graph.nodes[reader.node].label()).collect();
        let [float_ms, integer_ms] = [0, 1].map(|index| together(&rows, &labels, index));
        WeightTime { tensor: (*tensor).to_string(), float_ms, integer_ms }
    };
    tensors.iter().map(time).collect()
}

/// The sum over nodes; `None` where one of them was not timed.
fn together(rows: &[NodeTime], labels: &[&str], model: usize) -> Option<f64> {
    let of = |label: &&str| {
        let own = rows.iter().filter(|row| row.node == **label);
        own.filter_map(|row| row.ms[model]).reduce(|sum, ms| sum + ms)
    };
    labels.iter().map(of).sum::<Option<f64>>().filter(|_| !labels.is_empty())
}

/// As `quantize.static` makes it in the shortest time: its products take as long whatever their
/// weights are.
fn in_integers(model: &Model, context: &Context) -> Result<Model, PassError> {
    let mut settings = toml::Table::new();
    for (key, value) in [("observer", "minmax"), ("smooth", "off"), ("rounding", "nearest")] {
        settings.insert(key.into(), value.into());
    }
    settings.insert("keep_float".into(), "off".into());
    let pass = pass_entry("quantize.static")?.build(settings)?;
    let mut model = model.clone();
    raise_opset(&mut model, pass.opset_min())?;
    let prepared = pass.prepare(&model)?;
    apply(&mut model.graph, &prepared)?;
    let plan = pass.plan(&model, context)?;
    apply(&mut model.graph, &plan)?;
    Ok(model)
}
