//! A `BatchNormalization` after a convolution is part of its weights and bias:
//! w′ = w · γ/√(σ² + ε), b′ = (b − μ) · γ/√(σ² + ε) + β (Jacob et al., 2018, arXiv:1712.05877).

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_tensor::{DType, Tensor};

use super::producer;

pub fn plan(model: &Model) -> Plan {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    let norms = graph.nodes.iter().enumerate().filter(|(_, node)| node.is("BatchNormalization"));
    for (index, norm) in norms {
        match folded(&links, norm) {
            Ok((node, weight, bias)) => {
                // Names of their own: another convolution may share the original weights.
                let set = |name: &str, tensor| Edit::SetInitializer { name: name.into(), tensor };
                plan.push(set(&node.inputs[1], weight));
                plan.push(set(&node.inputs[2], bias));
                let convolution = producer(&links, &norm.inputs[0], "Conv").map(|(at, _)| at);
                plan.edits.extend(convolution.map(|index| Edit::RemoveNode { index }));
                plan.push(Edit::ReplaceNode { index, node });
            }
            Err(why) => plan.remark(format!("`{}` stays: {why}", norm.label())),
        }
    }
    plan
}

/// The convolution that stands for both, with its new weight and bias; or why there is none.
fn folded(links: &Links, norm: &Node) -> Result<(Node, Tensor, Tensor), String> {
    let (_, conv) = producer(links, &norm.inputs[0], "Conv")
        .ok_or("what it normalizes does not come from a convolution")?;
    if links.only_use(&conv.outputs[0]).is_none() {
        return Err("other nodes read the convolution too".into());
    }
    if norm.outputs.len() > 1 || norm.int_or("training_mode", 0) != Ok(0) {
        return Err("it is in training mode".into());
    }
    let vector = |name: &str| {
        let tensor = links.constant(name).filter(|tensor| tensor.dtype() == DType::F32);
        tensor.map(|tensor| tensor.values::<f32>()).ok_or(format!("`{name}` is no f32 constant"))
    };
    let weight = links
        .constant(&conv.inputs[1])
        .filter(|weight| weight.dtype() == DType::F32 && weight.rank() > 2)
        .ok_or(format!("`{}` is no f32 constant", conv.inputs[1]))?;
    let [gamma, beta, mean, variance] = [
        vector(&norm.inputs[1])?,
        vector(&norm.inputs[2])?,
        vector(&norm.inputs[3])?,
        vector(&norm.inputs[4])?,
    ];
    let outputs = weight.shape()[0];
    let bias = match conv.input(2) {
        Some(bias) => vector(bias)?.into_owned(),
        None => vec![0.0; outputs],
    };
    if [&gamma, &beta, &mean, &variance].iter().any(|v| v.len() != outputs) || bias.len() != outputs
    {
        return Err(format!("its parameters are not of size {outputs}"));
    }
    let epsilon = f64::from(norm.float_or("epsilon", 1e-5).map_err(|error| error.to_string())?);
    // In f64: the folded weights are rounded to f32 once.
    let factors: Vec<f64> = (0..outputs)
        .map(|c| f64::from(gamma[c]) / (f64::from(variance[c]) + epsilon).sqrt())
        .collect();
    let size = weight.element_count() / outputs.max(1);
    let values = weight.values::<f32>();
    let scaled: Vec<f32> = values
        .iter()
        .enumerate()
        .map(|(i, &w)| (f64::from(w) * factors[i / size]) as f32)
        .collect();
    let shifted: Vec<f32> = (0..outputs)
        .map(|c| {
            ((f64::from(bias[c]) - f64::from(mean[c])) * factors[c] + f64::from(beta[c])) as f32
        })
        .collect();
    let mut node = conv.clone();
    node.outputs.clone_from(&norm.outputs);
    let suffix = |name: &str| format!("{name}.folded");
    let bias_name = format!("{}.bias", conv.inputs[1]);
    node.inputs = vec![conv.inputs[0].clone(), suffix(&conv.inputs[1]), suffix(&bias_name)];
    Ok((node, Tensor::new(weight.shape(), &scaled), Tensor::new(&[outputs], &shifted)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use attar_graph::testing::graph_from_text;

    #[test]
    fn a_normalization_without_convolution_stays_and_says_why() {
        let graph = graph_from_text("g = [1]\ny = BatchNormalization(x, g, g, g, g)");
        let plan = plan(&Model { graph, ..Model::default() });
        assert!(plan.is_empty());
        assert_eq!(
            plan.remarks,
            ["`y` stays: what it normalizes does not come from a convolution"]
        );
    }
}
