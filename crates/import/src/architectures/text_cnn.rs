//! Convolutions over the tokens of a text, of several widths, and the greatest of each (Kim, 2014,
//! arXiv:1408.5882).

use attar_graph::Node;

use super::options::Options;
use super::text::{
    CLASSES, DROPOUT, EMBEDDING, LENGTH, TABLE, Texts, VOCABULARY, classifier, embedding,
};
use super::{Architecture, ModelInput, option};
use crate::ImportError;
use crate::build::Builder;
use crate::weights::drawing::Initial;

pub(super) const TEXT_CNN: Architecture = Architecture {
    name: "text-cnn",
    summary: "Classifier of texts by convolutions over words, the greatest value of each kept",
    options: &[
        VOCABULARY,
        EMBEDDING,
        option("windows", "3,4,5", "Tokens that a filter sees"),
        option("filters", "100", "Filters of each window"),
        DROPOUT,
        CLASSES,
        LENGTH,
    ],
    rule,
    build,
};

/// The most that a window may span.
const WINDOW_MAX: usize = 64;

fn rule(name: &str, shape: &[usize]) -> Initial {
    match (name, shape.len()) {
        ("embedding.weight", _) => TABLE,
        ("classifier.weight", _) => Initial::Glorot,
        (_, 3) => Initial::Kaiming,
        _ => Initial::Zeros,
    }
}

fn build(b: &mut Builder, options: &Options) -> Result<ModelInput, ImportError> {
    let texts = Texts::declare(b, "");
    let (vocabulary, size) = (options.count("vocabulary")?, options.count("embedding")?);
    let filters = options.count("filters")?;
    let x = embedding(b, "embedding", &texts.ids, [vocabulary, size])?;
    // What stands after a text is zero, as what stands before it.
    let axis = b.integers("axis.2", &[2]);
    let mask = b.node("Unsqueeze", "/mask/Unsqueeze", &[&texts.mask, &axis]);
    let x = b.node("Mul", "/mask/Mul", &[&x, &mask]);
    let turned = Node::new("Transpose", "/embedding/Transpose", &[&x], &[]);
    let x = b.push(turned.with_attribute("perm", vec![0, 2, 1]));
    let mut vectors = Vec::new();
    for window in options.counts("windows")? {
        if window > WINDOW_MAX {
            let expected = format!("{WINDOW_MAX} at most");
            return Err(options.wrong("windows", &window.to_string(), &expected));
        }
        vectors.push(filtered(b, &x, [filters, size, window])?);
    }
    let inputs: Vec<&str> = vectors.iter().map(String::as_str).collect();
    let joined = Node::new("Concat", "/filters/Concat", &inputs, &[]);
    let vector = b.push(joined.with_attribute("axis", 1_i64));
    classifier(b, options, &vector, filters * inputs.len())?;
    Ok(ModelInput::Text { length_max: options.count("length")? })
}

/// max over positions of relu(conv(x)): [batch, filters].
fn filtered(b: &mut Builder, x: &str, shape: [usize; 3]) -> Result<String, ImportError> {
    let [filters, _, window] = shape;
    let (path, place) = (format!("filters.{window}"), format!("/filters.{window}"));
    let weight = b.weight(&format!("{path}.weight"), &shape)?;
    let bias = b.weight(&format!("{path}.bias"), &[filters])?;
    // Padded on both sides, so that a text shorter than the window has values too.
    let padding = window as i64 - 1;
    let conv = Node::new("Conv", &format!("{place}/Conv"), &[x, &weight, &bias], &[])
        .with_attribute("kernel_shape", vec![window as i64])
        .with_attribute("pads", vec![padding; 2]);
    let y = b.push(conv);
    let y = b.node("Relu", &format!("{place}/Relu"), &[&y]);
    Ok(b.reduce("ReduceMax", &format!("{place}/ReduceMax"), &y, 2, false))
}
