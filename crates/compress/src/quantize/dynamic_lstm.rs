//! LSTM → `DynamicQuantizeLSTM` of ONNX Runtime: weights in 8 bits with a scale per column, inputs and
//! states quantized while running.

use attar_graph::{Edit, Links};
use attar_ops::MICROSOFT_DOMAIN;
use attar_tensor::{DType, Tensor};

use super::nodes::Builder;
use super::product::transposed;
use super::weight::quantize_channels;
use crate::{Context, PassError};

/// Replaces every LSTM of constant weights, and says how many.
///
/// # Errors
/// Weights that are not finite.
pub(super) fn quantize_layers(
    builder: &mut Builder,
    links: &Links,
    context: &Context,
) -> Result<usize, PassError> {
    let mut count = 0;
    for (index, node) in builder.graph.nodes.iter().enumerate() {
        if !node.is("LSTM") || context.exclude.matches(node.label()) {
            continue;
        }
        let weight = |input: usize| {
            let name = node.input(input)?;
            let fits =
                |w: &&Tensor| w.dtype() == DType::F32 && w.rank() == 3 && w.element_count() > 0;
            let tensor = links.constant(name).filter(fits)?;
            (!context.exclude.matches(name)).then_some((name, tensor))
        };
        let (Some(w), Some(r)) = (weight(1), weight(2)) else { continue };
        if node.int_or("layout", 0) != Ok(0) {
            builder.plan.remark(format!("`{}` stays float: its batch comes first", node.label()));
            continue;
        }
        let mut inputs: Vec<String> =
            (0..8).map(|input| node.input(input).unwrap_or("").to_string()).collect();
        let mut parameters = Vec::new();
        for (input, (name, tensor)) in [(1, w), (2, r)] {
            let [levels, scale, zero] = columns(builder, name, tensor)?;
            builder.replaced(name);
            inputs[input] = levels;
            parameters.extend([scale, zero]);
        }
        inputs.extend(parameters);
        let mut layer = node.clone().with_domain(MICROSOFT_DOMAIN);
        layer.op_type = "DynamicQuantizeLSTM".into();
        layer.inputs = inputs;
        builder.plan.push(Edit::ReplaceNode { index, node: layer });
        count += 1;
    }
    Ok(count)
}

/// Weights [directions, rows, depth] as levels [directions, depth, rows], with the names of these, the
/// scales and the zero points.
fn columns(builder: &mut Builder, name: &str, tensor: &Tensor) -> Result<[String; 3], PassError> {
    let [directions, rows, depth] = [0, 1, 2].map(|axis| tensor.shape()[axis]);
    let flat = tensor.reshaped(&[directions * rows, depth]);
    let rounded = quantize_channels(name, &flat, 0, 127)?;
    let levels: Vec<i8> = rounded
        .values
        .slice::<i8>()
        .chunks_exact((rows * depth).max(1))
        .flat_map(|direction| transposed(direction, rows))
        .collect();
    let names = ["quantized", "scale", "zero_point"].map(|part| format!("{name}_{part}"));
    builder.set(&names[0], Tensor::new(&[directions, depth, rows], &levels));
    let shape = [directions, rows];
    builder.set(&names[1], Tensor::new(&shape, rounded.scales.slice::<f32>()));
    builder.set(&names[2], Tensor::new(&shape, &vec![0_i8; directions * rows]));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;
    use attar_graph::{Model, apply};
    use attar_runtime::{Builtin, RunOptions, Runtime};

    use super::*;
    use crate::pass_entry;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn both_directions_keep_their_columns() {
        let mut graph = graph_from_text(
            "x: f32[6, 2, 5]\ny = LSTM(x, w, r, b, hidden_size=3, direction=bidirectional)",
        );
        for (name, shape) in [("w", [2, 12, 5]), ("r", [2, 12, 3])] {
            let values = numbers(shape.iter().product(), 1);
            graph.set_initializer(name, Tensor::new(&shape, &values));
        }
        graph.set_initializer("b", Tensor::new(&[2, 24], &numbers(48, 2)));
        graph.inputs.retain(|input| input.name == "x");
        let opsets = [(String::new(), 17)].into_iter().collect();
        let mut model = Model { opsets, graph, ..Model::default() };
        let run = |model: &Model| {
            let mut session = Builtin.load(model, &RunOptions::default()).unwrap();
            let x = Tensor::new(&[6, 2, 5], &numbers(60, 3));
            session.run(&[("x", &x)]).unwrap()[0].values::<f32>().into_owned()
        };
        let expected = run(&model);
        let pass = pass_entry("quantize.dynamic").unwrap().build(toml::Table::new()).unwrap();
        let plan = pass.plan(&model, &Context::new(&Builtin)).unwrap();
        apply(&mut model.graph, &plan).unwrap();
        model.import_domains();
        assert!(plan.warnings.iter().any(|warning| warning.contains("depend on the texts")));
        assert_eq!(model.graph.nodes[0].op_type, "DynamicQuantizeLSTM");
        let worst =
            run(&model).iter().zip(&expected).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        // Levels of a 127th of weights around 1, over sums of 8 and six steps.
        assert!(worst < 0.02, "{worst}");
        assert!(worst > 0.0);
    }
}
