//! Two towers that give queries and documents vectors of one space (Huang et al., 2013; Yang et al.,
//! 2020): the mean of the tokens' vectors, and linear layers over it.

use attar_graph::Dim;

use super::options::Options;
use super::text::{EMBEDDING, LENGTH, TABLE, Texts, VOCABULARY, embedding, pooled};
use super::{Architecture, ModelInput, option};
use crate::ImportError;
use crate::build::{Builder, scope};
use crate::text::normalize;
use crate::weights::drawing::Initial;

pub(super) const TWO_TOWER: Architecture = Architecture {
    name: "two-tower",
    summary: "Vectors of queries and documents by two light towers, or by one that both share",
    options: &[
        VOCABULARY,
        EMBEDDING,
        option(
            "hidden",
            "256",
            "Sizes of the layers over the mean of the tokens' vectors; 0: none",
        ),
        option("output", "128", "Size of the vectors that come out"),
        option("shared", "true", "Whether queries and documents share one tower"),
        option("normalize", "true", "Whether the vectors have length 1"),
        option("dropout", "0", "Fraction of the mean vector that training leaves out"),
        LENGTH,
    ],
    rule,
    build,
};

fn rule(name: &str, shape: &[usize]) -> Initial {
    match shape {
        _ if name.ends_with("embedding.weight") => TABLE,
        [_, _] if name.ends_with("output.weight") => Initial::Glorot,
        [_, _] => Initial::Kaiming,
        _ => Initial::Zeros,
    }
}

/// One tower has the inputs and the output of any encoder of texts, and a batch of `contrastive` is
/// its queries and then their documents. Two have inputs and outputs of their own.
fn build(b: &mut Builder, options: &Options) -> Result<ModelInput, ImportError> {
    if options.flag("shared")? {
        tower(b, options, "", "sentence_embedding")?;
    } else {
        for (network, output) in [("query", "query_embedding"), ("document", "document_embedding")]
        {
            b.network = network;
            tower(b, options, &format!("{network}_"), output)?;
        }
    }
    Ok(ModelInput::Text { length_max: options.count("length")? })
}

fn tower(
    b: &mut Builder,
    options: &Options,
    prefix: &str,
    output: &str,
) -> Result<(), ImportError> {
    let texts = Texts::declare(b, prefix);
    let (vocabulary, mut size) = (options.count("vocabulary")?, options.count("embedding")?);
    let tokens = embedding(b, "embedding", &texts.ids, [vocabulary, size])?;
    let mut x = pooled(b, "mean", &tokens, &texts.mask, size);
    x = b.dropout("/Dropout", &x, options.number("dropout", [0.0, 0.99])?);
    let hidden =
        if options.text("hidden") == "0" { Vec::new() } else { options.counts("hidden")? };
    for (index, out) in hidden.into_iter().enumerate() {
        let path = format!("hidden.{index}");
        let y = b.gemm(&path, &x, [out, size])?;
        x = b.node("Relu", &format!("{}/Relu", scope(&path)), &[&y]);
        size = out;
    }
    let out = options.count("output")?;
    let mut y = b.gemm("output", &x, [out, size])?;
    if options.flag("normalize")? {
        y = normalize(b, &y);
    }
    b.output(&y, output, &[Dim::symbol(&format!("{prefix}batch")), out.into()]);
    Ok(())
}
