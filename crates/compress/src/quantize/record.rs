//! What quantization did to each value and product, for the report.

use std::collections::BTreeMap;

use attar_graph::{Graph, Node, Value};
use serde::{Deserialize, Serialize};

use super::product::{Rounded, Rounding};
use super::sites::Site;

/// Ranges, methods and errors of a static quantization.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QuantizationRecord {
    pub ranges: Vec<RangeRecord>,
    /// The products with the greatest error first.
    pub products: Vec<ProductRecord>,
    /// Error of each output of the model in f32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<OutputRecord>,
}

/// One output of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputRecord {
    pub value: String,
    /// ‖ŷ − y‖ / ‖y‖ on calibration data, measured.
    pub relative_error: f64,
}

/// The 8-bit grid of one value: real = (q − `zero_point`) · `scale`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RangeRecord {
    pub value: String,
    /// The observer that chose the range.
    pub observer: String,
    /// The least and greatest value seen in calibration.
    pub seen: [f32; 2],
    /// Whether its channels are divided before, by SmoothQuant's factors.
    pub is_smoothed: bool,
    pub scale: f32,
    pub zero_point: u16,
    /// Error of what reads the value, relative to what it reads, as its histogram predicts it.
    pub relative_error: f64,
}

/// One `MatMul`, Gemm, Conv or recurrent layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProductRecord {
    pub node: String,
    pub op_type: String,
    /// How its weights were rounded.
    pub rounding: String,
    /// ‖ŷ − y‖ / ‖y‖ that comes from rounding its input alone, and its weights alone: predicted.
    pub input_error: f64,
    pub weight_error: f64,
    /// The same of both and all before it, measured: the quantized model beside the original.
    /// `None` where it was not measured.
    pub output_error: Option<f64>,
    /// Whether it stays in float, and why.
    pub kept_float: Option<String>,
}

/// Products that the remarks name.
const NAMED: usize = 5;

impl QuantizationRecord {
    pub(crate) fn new(
        graph: &Graph,
        sites: &BTreeMap<String, Site>,
        rounded: &[(usize, Rounded)],
    ) -> Self {
        let range = |(value, site): (&String, &Site)| RangeRecord {
            value: value.clone(),
            observer: site.chosen.observer.to_string(),
            seen: [site.statistics.lowest(), site.statistics.highest()],
            is_smoothed: site.divisors.is_some(),
            scale: site.chosen.range.scale,
            zero_point: site.chosen.range.zero_point,
            relative_error: site.chosen.relative_error,
        };
        let product = |(index, rounded): &(usize, Rounded)| {
            let node = &graph.nodes[*index];
            let site = sites.get(&node.inputs[0]);
            ProductRecord {
                node: node.label().to_string(),
                op_type: node.op_type.clone(),
                rounding: rounded.rounding.name().to_string(),
                input_error: site.map_or(0.0, |site| site.chosen.relative_error),
                weight_error: rounded.error,
                output_error: None,
                kept_float: None,
            }
        };
        Self {
            ranges: sites.iter().map(range).collect(),
            products: rounded.iter().map(product).collect(),
            outputs: Vec::new(),
        }
    }

    /// Enters the relative error of a layer's weights.
    pub(crate) fn weights_of_layer(&mut self, node: &Node, error: f64) {
        let layer = self.products.iter_mut().find(|product| product.node == node.label());
        if let Some(layer) = layer {
            layer.weight_error = error;
        }
    }

    /// Adds a recurrent layer.
    pub(crate) fn add_layer(&mut self, node: &Node, sites: &BTreeMap<String, Site>) {
        self.products.push(ProductRecord {
            node: node.label().to_string(),
            op_type: node.op_type.clone(),
            rounding: Rounding::Nearest.name().to_string(),
            input_error: sites.get(&node.inputs[0]).map_or(0.0, |site| site.chosen.relative_error),
            weight_error: 0.0,
            output_error: None,
            kept_float: None,
        });
    }

    /// Notes which products stay in float, by the index of their nodes, and why.
    pub(crate) fn keep_float(&mut self, graph: &Graph, kept: Vec<(usize, String)>) {
        for (index, reason) in kept {
            let node = graph.nodes[index].label();
            if let Some(product) = self.products.iter_mut().find(|product| product.node == node) {
                product.kept_float = Some(reason);
            }
        }
    }

    /// What the products compute and what the model gives, by name.
    pub(crate) fn values(&self, graph: &Graph) -> Vec<String> {
        let is_product = |label: &str| self.products.iter().any(|product| product.node == label);
        let nodes = graph.nodes.iter().filter(|node| is_product(node.label()));
        let mut values: Vec<String> =
            nodes.filter_map(|node| first_output(node).map(str::to_string)).collect();
        for output in &graph.outputs {
            if !values.contains(&output.name) {
                values.push(output.name.clone());
            }
        }
        values
    }

    /// Enters what was measured, by the name of the output, and puts the worst product first.
    pub(crate) fn measured(&mut self, graph: &Graph, errors: &BTreeMap<String, f64>) {
        for product in &mut self.products {
            let node = graph.nodes.iter().find(|node| node.label() == product.node);
            let output = node.and_then(first_output);
            product.output_error = output.and_then(|output| errors.get(output)).copied();
        }
        self.products.sort_by(|a, b| b.own_error().total_cmp(&a.own_error()));
        let error = |output: &Value| {
            let relative_error = *errors.get(&output.name)?;
            Some(OutputRecord { value: output.name.clone(), relative_error })
        };
        self.outputs = graph.outputs.iter().filter_map(error).collect();
    }

    /// The greatest relative error of an output.
    pub(crate) fn worst_output(&self) -> f64 {
        self.outputs.iter().map(|output| output.relative_error).fold(0.0, f64::max)
    }

    /// The products that hurt most, and those left in float, one sentence each.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        let smoothed = self.ranges.iter().filter(|range| range.is_smoothed).count();
        if smoothed > 0 {
            remarks.push(format!("{smoothed} activations are smoothed, by a multiplication each"));
        }
        let in_integers = self.products.iter().filter(|product| product.kept_float.is_none());
        let worst: Vec<String> = in_integers
            .take(NAMED)
            .map(|product| {
                let total = product.output_error.map_or(String::new(), |error| {
                    format!(", {:.1} % with all before it", 100.0 * error)
                });
                format!("`{}` {:.1} %{total}", product.node, 100.0 * product.own_error())
            })
            .collect();
        if !worst.is_empty() {
            remarks.push(format!("relative error of outputs, largest first: {}", worst.join("; ")));
        }
        let off: Vec<String> = (self.outputs.iter())
            .map(|output| format!("`{}` by {:.1} %", output.value, 100.0 * output.relative_error))
            .collect();
        if !off.is_empty() {
            let size = "the outputs are off, relative to their size";
            remarks.push(format!("{size}: {}", off.join(", ")));
        }
        for product in &self.products {
            if let Some(reason) = &product.kept_float {
                remarks.push(format!("`{}` stays float: {reason}", product.node));
            }
        }
        remarks
    }
}

/// The first output that has a name: a layer may give its last state alone.
fn first_output(node: &Node) -> Option<&str> {
    node.outputs.iter().map(String::as_str).find(|name| !name.is_empty())
}

impl ProductRecord {
    /// The error that comes from rounding this product's input and weights, predicted.
    pub fn own_error(&self) -> f64 {
        self.input_error.hypot(self.weight_error)
    }
}
