//! Which initializers are trained.

use std::collections::HashSet;

use attar_graph::{Model, NamePatterns, Node};
use attar_ops::infer_graph;
use attar_tensor::DType;

use crate::{TrainError, WeightOptions};

/// Inputs that hold what an operator multiplies by or adds, by operator.
const WEIGHT_PLACES: &[(&str, &[usize])] = &[
    ("Attention", &[1, 2]),
    ("BatchNormalization", &[1, 2]),
    ("BiasGelu", &[1]),
    ("Conv", &[1, 2]),
    ("ConvTranspose", &[1, 2]),
    ("DeformConv", &[1, 3]),
    ("Einsum", &[0, 1, 2, 3]),
    ("EmbedLayerNormalization", &[2, 3, 4, 5, 6]),
    ("FastGelu", &[1]),
    ("FusedConv", &[1, 2]),
    ("FusedMatMul", &[0, 1]),
    ("GRU", &[1, 2, 3]),
    ("Gather", &[0]),
    ("Gemm", &[0, 1, 2]),
    ("GroupNormalization", &[1, 2]),
    ("InstanceNormalization", &[1, 2]),
    ("LSTM", &[1, 2, 3, 7]),
    ("LayerNormalization", &[1, 2]),
    ("MatMul", &[0, 1]),
    ("PRelu", &[1]),
    ("RMSNormalization", &[1]),
    ("RNN", &[1, 2, 3]),
    ("SimplifiedLayerNormalization", &[1]),
    ("SkipLayerNormalization", &[2, 3, 4]),
    ("SkipSimplifiedLayerNormalization", &[2, 3]),
];

/// Inputs that say how an operator works, or hold state: never trained unless asked for by name.
const SETTING_PLACES: &[(&str, &[usize])] = &[
    ("BatchNormalization", &[3, 4]),
    ("Clip", &[1, 2]),
    ("ConstantOfShape", &[0]),
    ("CumSum", &[1]),
    ("DequantizeLinear", &[1, 2]),
    ("Dropout", &[1, 2]),
    ("Expand", &[1]),
    ("FakeQuantize", &[1, 2]),
    ("GRU", &[4, 5]),
    ("Gather", &[1]),
    ("GatherBlockQuantized", &[1, 2, 3]),
    ("GridSample", &[1]),
    ("LSTM", &[4, 5, 6]),
    ("MatMulNBits", &[1, 2, 3, 4]),
    ("OneHot", &[1, 2]),
    ("Pad", &[1, 2, 3]),
    ("Pow", &[1]),
    ("QuantizeLinear", &[1, 2]),
    ("RNN", &[4, 5]),
    ("Range", &[0, 1, 2]),
    ("Resize", &[1, 2, 3]),
    ("RoiAlign", &[1, 2]),
    ("STFT", &[1, 2, 3]),
    ("Tile", &[1]),
    ("TopK", &[1]),
    ("Upsample", &[1]),
    ("Where", &[0]),
];

/// Operators that show their first input in another form: a weight behind one stands in the place
/// that its result stands in.
const VIEWS: &[&str] = &[
    "Cast",
    "Concat",
    "FakeQuantize",
    "Flatten",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

fn is_in(table: &[(&str, &[usize])], op_type: &str, input: usize) -> bool {
    table.iter().any(|(name, inputs)| *name == op_type && inputs.contains(&input))
}

/// The initializers to train, in file order. By default those of f32, f16 or bf16 that lead to `outputs` with
/// more than one element or in a weight's place, and of `Constant` nodes those in a weight's place;
/// by patterns, any of these types; and scales that are to learn.
///
/// # Errors
/// [`TrainError::Unmatched`] for a pattern that fits none, [`TrainError::NothingToTrain`], and
/// [`TrainError::ThroughBodies`] where that is for an If, Loop or Scan.
pub(crate) fn trained_initializers(
    model: &Model,
    outputs: &[String],
    options: &WeightOptions,
) -> Result<Vec<String>, TrainError> {
    let places = Places::of(model, outputs);
    let floats: Vec<(&str, usize)> = (model.graph.constants())
        .filter(|(_, tensor)| matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16))
        .map(|(name, tensor)| (name, tensor.element_count()))
        .collect();
    let names: Vec<&str> = floats.iter().map(|(name, _)| *name).collect();
    let [train, freeze] =
        [&options.train, &options.freeze].map(|patterns| NamePatterns::new(patterns.clone()));
    let scales = options.scales.as_ref().map_or(&[][..], |scales| &scales.names);
    let absent = scales.iter().map(String::as_str).filter(|name| !names.contains(name));
    let patterns = train.unmatched(&names).into_iter().chain(freeze.unmatched(&names));
    let mut unmatched = patterns.chain(absent);
    if let Some(pattern) = unmatched.next() {
        return Err(TrainError::Unmatched { pattern: pattern.into() });
    }
    let scales: HashSet<&str> = scales.iter().map(String::as_str).collect();
    let is_trained = |name: &str, count: usize| {
        if scales.contains(name) {
            return true;
        }
        if !train.is_empty() {
            return train.matches(name);
        }
        let is_stored = model.graph.initializers.contains_key(name);
        let is_large = is_stored && count > 1 && places.others.contains(name);
        count > 0 && (places.weights.contains(name) || is_large)
    };
    let trained: Vec<String> = (floats.iter())
        .filter(|(name, count)| is_trained(name, *count) && !freeze.matches(name))
        .map(|(name, _)| (*name).to_string())
        .collect();
    if trained.is_empty() {
        let outputs = outputs.join(", ");
        return Err(match places.bodies {
            Some(node) if options.freeze.is_empty() => TrainError::ThroughBodies {
                node: node.label().into(),
                op_type: node.op_type.clone(),
                outputs,
            },
            _ => TrainError::NothingToTrain { outputs },
        });
    }
    Ok(trained)
}

/// Values that have part in the outputs as numbers.
struct Places<'a> {
    /// Read in a weight's place.
    weights: HashSet<&'a str>,
    /// Read in another place that is no setting.
    others: HashSet<&'a str>,
    /// The last node with graphs inside that leads to the outputs.
    bodies: Option<&'a Node>,
}

impl<'a> Places<'a> {
    fn of(model: &'a Model, outputs: &'a [String]) -> Self {
        let facts = infer_graph(model);
        let is_float = |name: &str| facts.get(name).is_none_or(|fact| fact.dtype.is_float());
        let mut places = Self { weights: HashSet::new(), others: HashSet::new(), bodies: None };
        places.others.extend(outputs.iter().map(String::as_str));
        for node in model.graph.nodes.iter().rev() {
            let named = || node.outputs.iter().filter(|name| !name.is_empty() && is_float(name));
            let is_weight = named().any(|name| places.weights.contains(name.as_str()));
            if !is_weight && !named().any(|name| places.others.contains(name.as_str())) {
                continue;
            }
            if places.bodies.is_none() && node.subgraphs().next().is_some() {
                places.bodies = Some(node);
            }
            let is_weight = is_weight && VIEWS.contains(&node.op_type.as_str());
            for (input, name) in node.inputs.iter().enumerate() {
                if name.is_empty() || is_in(SETTING_PLACES, &node.op_type, input) {
                    continue;
                }
                if is_weight || is_in(WEIGHT_PLACES, &node.op_type, input) {
                    places.weights.insert(name);
                } else {
                    places.others.insert(name);
                }
            }
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ScaleOptions, Span};
    use attar_graph::testing::graph_from_text;
    use attar_tensor::Tensor;

    fn model(text: &str) -> Model {
        let opsets = [(String::new(), 17)].into_iter().collect();
        Model { ir_version: 8, opsets, graph: graph_from_text(text), ..Model::default() }
    }

    fn trained(model: &Model, options: &WeightOptions) -> Result<Vec<String>, TrainError> {
        let outputs: Vec<String> = model.graph.outputs.iter().map(|o| o.name.clone()).collect();
        trained_initializers(model, &outputs, options)
    }

    const TEXT: &str = "x: f32[n, 2]
        w = [1 2; 3 4]
        bias = [1 2]
        half = [0.5]
        low = [0]
        scale = [1 1]
        shift = [0 0]
        mean = [0 0]
        variance = [1 1]
        unused = [1 2]
        turned = Transpose(w)
        h = MatMul(x, turned)
        i = Add(h, bias)
        j = Mul(i, half)
        k = Clip(j, low)
        y = BatchNormalization(k, scale, shift, mean, variance)";

    #[test]
    fn weights_are_trained_and_settings_and_statistics_are_not() {
        let mut model = model(TEXT);
        model.graph.outputs.retain(|output| output.name == "y");
        let options = WeightOptions::default();
        assert_eq!(trained(&model, &options).unwrap(), ["w", "bias", "scale", "shift"]);
        let freeze = vec!["s*".into()];
        let options = WeightOptions { freeze, ..WeightOptions::default() };
        assert_eq!(trained(&model, &options).unwrap(), ["w", "bias"]);
        let train = vec!["half".into(), "bias".into()];
        let options = WeightOptions { train, ..WeightOptions::default() };
        assert_eq!(trained(&model, &options).unwrap(), ["bias", "half"]);
    }

    #[test]
    fn a_quantized_weight_is_trained_and_its_scale_only_where_it_is_asked_to_learn() {
        let mut model = model(
            "x: f32[n, 2]\nw = [1 2; 3 4]\ns = [0.5 0.25]\nr = [0.1]\nt = Exp(s)\n\
             q = FakeQuantize(x, r)\nf = FakeQuantize(w, t)\ny = MatMul(q, f)",
        );
        for node in model.graph.nodes.iter_mut().filter(|node| node.is("FakeQuantize")) {
            node.domain = "attar".into();
        }
        assert_eq!(trained(&model, &WeightOptions::default()).unwrap(), ["w"]);
        let learning = |name: &str| {
            let scales = ScaleOptions { names: vec![name.into()], until: Span::Fraction(0.5) };
            WeightOptions { scales: Some(scales), ..WeightOptions::default() }
        };
        assert_eq!(trained(&model, &learning("s")).unwrap(), ["w", "s"]);
        let error = trained(&model, &learning("u")).unwrap_err();
        assert_eq!(error, TrainError::Unmatched { pattern: "u".into() });
    }

    #[test]
    fn scales_of_tables_and_weights_in_few_bits_are_settings() {
        let mut model = model(
            "x: i64[n]\nw = [1 2; 3 4]\ne = GatherBlockQuantized(q, x, s)\n\
             h = MatMulNBits(e, b, t)\ny = MatMul(h, w)",
        );
        model.graph.inputs.retain(|input| input.name == "x");
        for name in ["q", "b"] {
            model.graph.set_initializer(name, Tensor::new(&[2, 1], &[1_u8, 2]));
        }
        for name in ["s", "t"] {
            model.graph.set_initializer(name, Tensor::new(&[2, 1], &[0.5_f32, 0.25]));
        }
        for node in model.graph.nodes.iter_mut().filter(|node| !node.is("MatMul")) {
            node.domain = "com.microsoft".into();
        }
        model.graph.outputs.retain(|output| output.name == "y");
        assert_eq!(trained(&model, &WeightOptions::default()).unwrap(), ["w"]);
        let train = vec!["s".into(), "w".into()];
        let options = WeightOptions { train, ..WeightOptions::default() };
        let mut asked = trained(&model, &options).unwrap();
        asked.sort();
        assert_eq!(asked, ["s", "w"]);
    }

    #[test]
    fn a_pattern_that_fits_nothing_is_an_error() {
        let freeze = vec!["encoder.*".into()];
        let options = WeightOptions { freeze, ..WeightOptions::default() };
        let error = trained(&model(TEXT), &options).unwrap_err();
        assert_eq!(error, TrainError::Unmatched { pattern: "encoder.*".into() });
        let freeze = vec!["*".into()];
        let options = WeightOptions { freeze, ..WeightOptions::default() };
        let error = trained(&model(TEXT), &options).unwrap_err();
        assert!(matches!(error, TrainError::NothingToTrain { .. }));
    }

    #[test]
    fn constant_nodes_are_trained_in_a_weights_place_only() {
        let mut model = model("x: f32[n, 2]\nh = MatMul(x, w)\ny = Add(h, table)");
        model.graph.inputs.retain(|input| input.name == "x");
        for name in ["w", "table"] {
            let tensor = Tensor::new(&[2, 2], &[1.0_f32, 2.0, 3.0, 4.0]);
            let node = Node::new("Constant", name, &[], &[name]).with_attribute("value", tensor);
            model.graph.nodes.insert(0, node);
        }
        assert_eq!(trained(&model, &WeightOptions::default()).unwrap(), ["w"]);
    }
}
