//! BERT (Devlin et al., 2018, arXiv:1810.04805) of any size, as an encoder of texts or a
//! classifier.

use serde_json::json;

use super::options::Options;
use super::text::{POOLINGS, pooling_mode};
use super::{Architecture, ModelInput, option};
use crate::ImportError;
use crate::build::Builder;
use crate::config::ConfigFile;
use crate::text::{self, Config, Output, Pooling};
use crate::weights::drawing::Initial;

pub(super) const BERT: Architecture = Architecture {
    name: "bert",
    summary: "Transformer encoder of texts, BERT's: a vector of each text, or scores",
    options: &[
        option("layers", "6", "Layers"),
        option("hidden", "384", "Size of the vectors between layers, a multiple of `heads`"),
        option("heads", "12", "Heads of attention in each layer"),
        option("ffn", "1536", "Size of the vectors inside feed-forward parts"),
        option("activation", "gelu", "gelu, gelu_new, relu or silu"),
        option("vocabulary", "30522", "Tokens that the tokenizer knows"),
        option("positions", "512", "Tokens that a text may have"),
        option("types", "0", "Kinds of tokens; 2 to tell the texts of a pair apart"),
        option("length", "128", "Tokens that texts are cut to"),
        option("head", "embedding", "embedding, classifier or tokens"),
        option("pooling", "mean", "How tokens become an embedding: mean, cls, max"),
        option("normalize", "true", "Whether an embedding has length 1"),
        option("classes", "2", "Scores of a classifier"),
        option("dropout", "0.1", "Fraction of each part's output that training leaves out"),
    ],
    rule,
    build,
};

/// As its authors have it: one deviation for tables and matrices.
fn rule(name: &str, _: &[usize]) -> Initial {
    if name.ends_with("LayerNorm.weight") {
        Initial::Ones
    } else if name.ends_with("bias") {
        Initial::Zeros
    } else {
        Initial::TruncatedNormal(0.02)
    }
}

fn build(b: &mut Builder, options: &Options) -> Result<ModelInput, ImportError> {
    let (hidden, heads) = (options.count("hidden")?, options.count("heads")?);
    if hidden % heads != 0 {
        let expected = format!("a multiple of the {heads} heads");
        return Err(options.wrong("hidden", &hidden.to_string(), &expected));
    }
    let positions = options.count("positions")?;
    let length_max = options.count("length")?;
    if length_max > positions {
        let expected = format!("no more than the {positions} positions");
        return Err(options.wrong("length", &length_max.to_string(), &expected));
    }
    let types = if options.text("types") == "0" { 0 } else { options.count("types")? };
    let values = json!({
        "hidden_size": hidden,
        "num_hidden_layers": options.count("layers")?,
        "num_attention_heads": heads,
        "intermediate_size": options.count("ffn")?,
        "hidden_act": options.choice("activation", &["gelu", "gelu_new", "relu", "silu"])?,
        "max_position_embeddings": positions,
        "vocab_size": options.count("vocabulary")?,
        "type_vocab_size": types,
    });
    let serde_json::Value::Object(values) = values else { unreachable!("it is written as one") };
    let mut config = Config::new(&ConfigFile::of_values(values), &text::BERT)?;
    config.layers.dropout = options.number("dropout", [0.0, 0.99])?;
    let pooling = Pooling {
        modes: vec![pooling_mode(options.choice("pooling", &POOLINGS)?)],
        is_normalized: options.flag("normalize")?,
    };
    let class_count = options.count("classes")?;
    b.weights.declare("classifier.weight", &[class_count, hidden]);
    let output = match options.choice("head", &["embedding", "classifier", "tokens"])? {
        "embedding" => Output::Pooled(&pooling),
        "classifier" => Output::Scores,
        _ => Output::Tokens,
    };
    text::BERT.build(b, &config, output)?;
    Ok(ModelInput::Text { length_max })
}
