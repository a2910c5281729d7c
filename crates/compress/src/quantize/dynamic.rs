//! Dynamic quantization: 8-bit weights, activations quantized by the range of the batch at hand.

use std::collections::HashSet;

use attar_graph::{Edit, Links, Model, Node, Plan};
use serde::Deserialize;

use super::dynamic_lstm::quantize_layers;
use super::embedding::quantize_embeddings;
use super::nodes::{Builder, Weight, weight_of};
use super::static_::default_true;
use crate::{Context, OptionEntry, Pass, PassError};

/// `MatMul` and Gemm → `DynamicQuantizeLinear` + `MatMulInteger`; LSTM → `DynamicQuantizeLSTM`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DynamicQuantize {
    #[serde(default = "default_true")]
    embeddings: bool,
}

pub(crate) const OPTIONS: &[OptionEntry] = &[OptionEntry {
    key: "embeddings",
    default: "true",
    help: "embedding tables in 8 bits too, one scale per row",
}];

impl Pass for DynamicQuantize {
    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        if model.opset() < 11 {
            return Err(PassError::Opset { found: model.opset(), needed: 11 });
        }
        let links = Links::new(&model.graph);
        let mut builder = Builder::new(&model.graph);
        let mut inputs = HashSet::new();
        let (mut count, mut convolutions) = (0, 0);
        for (index, node) in model.graph.nodes.iter().enumerate() {
            let Some(weight) = weight_of(&links, node) else { continue };
            if context.exclude.matches(node.label()) || context.exclude.matches(weight.name) {
                continue;
            }
            if node.is("Conv") {
                convolutions += 1;
            } else if is_plain(node) {
                replace(&mut builder, index, node, &weight, &mut inputs)?;
                count += 1;
            } else {
                builder
                    .plan
                    .remark(format!("`{}` stays float: it scales or transposes", node.label()));
            }
        }
        let layers = quantize_layers(&mut builder, &links, context)?;
        let tables =
            if self.embeddings { quantize_embeddings(&mut builder, &links, context)? } else { 0 };
        let mut plan = builder.finish();
        if convolutions > 0 {
            plan.remark(format!(
                "{convolutions} convolutions stay float: with ranges found while running they are \
                 slower than float; use `quantize.static`"
            ));
        }
        if layers > 0 {
            plan.remark(format!("{layers} LSTMs in 8 bits (DynamicQuantizeLSTM)"));
        }
        let others = model.graph.nodes.iter().filter(|node| node.is("GRU") || node.is("RNN"));
        let others = others.count();
        if others > 0 {
            plan.remark(format!(
                "{others} GRUs and RNNs stay float: no runtime has them so; `quantize.weights` \
                 makes them smaller"
            ));
        }
        plan.remark(match count + layers + tables {
            0 => "nothing to quantize: no product or embedding with a constant f32 weight".into(),
            _ => format!("{count} products and {tables} embedding tables in 8 bits"),
        });
        if count + layers > 0 {
            plan.warn(
                "activations are quantized by the range of the whole batch: the vector of a text \
                 will depend on the texts beside it; `quantize.static` keeps it fixed",
            );
        }
        Ok(plan)
    }
}

/// α = β = 1 and nothing transposed but the constant.
fn is_plain(node: &Node) -> bool {
    node.is("MatMul")
        || (node.float_or("alpha", 1.0) == Ok(1.0)
            && node.float_or("beta", 1.0) == Ok(1.0)
            && node.int_or("transA", 0) == Ok(0))
}

fn replace(
    builder: &mut Builder,
    index: usize,
    node: &Node,
    weight: &Weight,
    inputs: &mut HashSet<String>,
) -> Result<(), PassError> {
    let x = &node.inputs[0];
    let named = |suffix: &str| format!("{x}_{suffix}");
    let (q, x_scale, x_zero) = (named("quantized"), named("scale"), named("zero_point"));
    if inputs.insert(x.clone()) {
        let outputs = [q.as_str(), &x_scale, &x_zero];
        builder.add(Node::new("DynamicQuantizeLinear", &q, &[x], &outputs));
    }
    // MatMulInteger has no transposition: a transposed constant is stored the other way round.
    let w = if weight.axis == 0 {
        let name = format!("{}_transposed", weight.name);
        builder.weight(&name, &transposed(weight.tensor), 1, 127)?
    } else {
        builder.weight(weight.name, weight.tensor, 1, 127)?
    };
    builder.replaced(weight.name);
    let output = &node.outputs[0];
    let named = |suffix: &str| format!("{output}_{suffix}");
    let (sums, real, scale) = (named("sums"), named("real"), named("scale"));
    builder.add(Node::new("MatMulInteger", &sums, &[&q, &w.values, &x_zero], &[&sums]));
    builder.add(Node::new("Cast", &real, &[&sums], &[&real]).with_attribute("to", 1_i64));
    builder.add(Node::new("Mul", &scale, &[&x_scale, &w.scale], &[&scale]));
    let replacement = match node.input(2) {
        Some(bias) => {
            let product = named("product");
            builder.add(Node::new("Mul", &product, &[&real, &scale], &[&product]));
            Node::new("Add", node.label(), &[&product, bias], &[output])
        }
        None => Node::new("Mul", node.label(), &[&real, &scale], &[output]),
    };
    builder.plan.push(Edit::ReplaceNode { index, node: replacement });
    Ok(())
}

fn transposed(x: &attar_tensor::Tensor) -> attar_tensor::Tensor {
    let [rows, columns] = [x.shape()[0], x.shape()[1]];
    let values = x.values::<f32>();
    let moved: Vec<f32> =
        (0..rows * columns).map(|i| values[i % rows * columns + i / rows]).collect();
    attar_tensor::Tensor::new(&[columns, rows], &moved)
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;
    use attar_runtime::Builtin;

    use super::*;

    #[test]
    fn the_batch_dependence_is_a_warning() {
        let graph = graph_from_text("w = [1 2; 3 4]\ny = MatMul(x, w)");
        let opsets = [(String::new(), 17)].into_iter().collect();
        let model = Model { opsets, graph, ..Model::default() };
        let context = Context::new(&Builtin);
        let plan = DynamicQuantize { embeddings: true }.plan(&model, &context).unwrap();
        let [warning] = plan.warnings.as_slice() else { panic!("{:?}", plan.warnings) };
        assert!(warning.contains("depend on the texts beside it"), "{warning}");
    }
}
