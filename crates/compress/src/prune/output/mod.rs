//! Shorter vectors: the output of an embedding model loses dimensions.
//!
//! Vectors are compared by dot products, so these have to stay. Of all matrices of rank k, the one
//! nearest to the dot products X·Xᵀ of vectors X is that of X·V, where V holds the k first
//! eigenvectors of the second moments XᵀX (Eckart and Young, "The approximation of one matrix by
//! another of lower rank", 1936). So nothing is centred, as a principal component analysis would do:
//! the mean is part of every dot product. A model that scales its vectors to length 1 is given the
//! projection before that, and its moments are those of the scaled vectors: each counts alike.
//!
//! Models that were trained for it (Kusupati et al., "Matryoshka Representation Learning", 2022,
//! arXiv:2205.13147) have what matters most in the first dimensions, which are kept as they are.

mod edits;
mod eigen;
mod ending;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use attar_graph::{Links, Model, Plan, apply};
use attar_ops::{Facts, infer_graph};
use attar_tensor::{DType, Tensor};
use serde::Deserialize;

use self::edits::{Projection, edits};
use self::eigen::Eigen;
use self::ending::{Ending, Source};
use super::unstructured::contradiction;
use crate::quantize::calibrate::{Fold, observe};
use crate::quantize::gram::Gram;
use crate::{Context, OptionEntry, Pass, PassError};

/// Projects the vector that a model gives onto fewer dimensions.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutputPrune {
    size: NonZeroUsize,
    #[serde(default)]
    method: Method,
    #[serde(default)]
    output: String,
}

/// Which dimensions stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Method {
    #[default]
    Pca,
    Truncate,
}

pub(crate) const OPTIONS: &[OptionEntry] = &[
    OptionEntry { key: "size", default: "", help: "dimensions that the vector keeps" },
    OptionEntry {
        key: "method",
        default: "\"pca\"",
        help: "\"pca\": those that keep dot products best, from calibration data; \"truncate\": the \
               first, for models that were trained for it (Matryoshka)",
    },
    OptionEntry {
        key: "output",
        default: "\"\"",
        help: "the output's name; \"\" for the only one, or the only one that has a vector for each \
               example",
    },
];

const PASS: &str = "prune.output";

/// The output that becomes shorter.
struct Target {
    output: String,
    rank: usize,
    width: usize,
    dtype: DType,
}

impl Pass for OutputPrune {
    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        let graph = &model.graph;
        let mut plan = Plan::default();
        if graph.nodes.is_empty() {
            return Ok(plan);
        }
        let facts = infer_graph(model);
        let target = self.target(model, &facts)?;
        let (size, width) = (self.size.get(), target.width);
        if size > width {
            let message = format!("`size` is {size}, and `{}` has {width}", target.output);
            return Err(contradiction(PASS, message));
        }
        if size == width {
            plan.remark(format!("`{}` has {width} dimensions already", target.output));
            return Ok(plan);
        }
        let links = Links::new(graph);
        let ending = Ending::of(&links, graph, &target.output, target.rank);
        let eigen = match self.method {
            Method::Pca => Some(self.decompose(model, &target, &ending, context, &mut plan)?),
            Method::Truncate => None,
        };
        let projection = Projection {
            width,
            size,
            vectors: eigen.as_ref().map(|eigen| &eigen.vectors[..size * width]),
        };
        let source = Source::of(&links, graph, &ending, width, &context.exclude);
        let place = match &source {
            Some(source) => format!("folded into `{}`", source.weight),
            None if ending.is_normalized() => "before the normalization".into(),
            None => "at the end".into(),
        };
        plan.edits = edits(model, &target.output, &ending, source.as_ref(), &projection)?;
        check(model, &plan, &facts, &target, size)?;
        plan.remark(format!("`{}`: {width} dimensions become {size}, {place}", target.output));
        if !ending.is_normalized() {
            plan.remark("the model does not scale its vectors to length 1, before or now");
        }
        Ok(plan)
    }
}

impl OutputPrune {
    fn target(&self, model: &Model, facts: &Facts) -> Result<Target, PassError> {
        let outputs = &model.graph.outputs;
        let names = || outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>();
        let shape = |name: &str| facts.get(name).and_then(|fact| fact.shape.as_ref());
        let is_float = |name: &str| facts.get(name).is_some_and(|fact| fact.dtype.is_float());
        let is_vector =
            |name: &&str| is_float(name) && shape(name).is_some_and(|shape| shape.len() == 2);
        let vectors: Vec<&str> = names().into_iter().filter(is_vector).collect();
        let output = match (names().as_slice(), vectors.as_slice()) {
            (all, _) if !self.output.is_empty() => {
                *all.iter().find(|name| **name == self.output).ok_or_else(|| {
                    let (given, known) = (&self.output, all.join(", "));
                    contradiction(PASS, format!("no output is called `{given}`; there are {known}"))
                })?
            }
            ([only], _) | (_, [only]) => *only,
            (all, several) => {
                let which = if several.is_empty() { all } else { several }.join(", ");
                let message = format!("`output` has to say which is the vector: {which}");
                return Err(contradiction(PASS, message));
            }
        };
        let unknown =
            |reason: &str| PassError::Output { output: output.into(), reason: reason.into() };
        let fact = facts.get(output).filter(|_| is_float(output));
        let fact = fact.ok_or_else(|| unknown("its type is not one of floats"))?;
        let shape = fact.shape.as_ref().filter(|shape| !shape.is_empty());
        let width = shape.and_then(|shape| shape.last()?.known());
        let width = width.and_then(|width| usize::try_from(width).ok());
        let width = width.ok_or_else(|| unknown("the number of its dimensions is not known"))?;
        let rank = shape.map_or(0, Vec::len);
        Ok(Target { output: output.into(), rank, width, dtype: fact.dtype })
    }

    /// The second moments of the vectors, with what they say.
    fn decompose(
        &self,
        model: &Model,
        target: &Target,
        ending: &Ending,
        context: &Context,
        plan: &mut Plan,
    ) -> Result<Eigen, PassError> {
        let (size, output) = (self.size.get(), &target.output);
        if target.dtype != DType::F32 {
            let reason = format!("it is {}; \"pca\" reads f32", target.dtype);
            return Err(PassError::Output { output: output.clone(), reason });
        }
        let is_scaled = ending.is_normalized();
        let vectors = Vectors { gram: Gram::of_size(target.width), is_scaled };
        let mut records = BTreeMap::from([(ending.value.clone(), vectors)]);
        observe(model, &mut records, context)?;
        let gram = records.remove(&ending.value).map(|vectors| vectors.gram);
        let count = gram.as_ref().map_or(0, |gram| gram.rows);
        let moments = gram.map_or(Vec::new(), Gram::finish).into_iter().map(f64::from).collect();
        let eigen = Eigen::new(moments, target.width).ok_or_else(|| PassError::Output {
            output: output.clone(),
            reason: "its second moments are not finite".into(),
        })?;
        let sum = |values: &[f64]| values.iter().map(|value| value.max(0.0)).sum::<f64>();
        let (kept, all) = (sum(&eigen.values[..size]), sum(&eigen.values));
        let share = if all > 0.0 { 100.0 * kept / all } else { 100.0 };
        plan.remark(format!("{share:.2} % of the second moment of {count} vectors is kept"));
        if count < 2 * size {
            plan.warn(format!(
                "{count} vectors say little of {size} dimensions: more calibration data would help"
            ));
        }
        Ok(eigen)
    }
}

/// The second moments of vectors, scaled to length 1 where the model does so.
struct Vectors {
    gram: Gram,
    is_scaled: bool,
}

impl Fold for Vectors {
    fn fold(&mut self, tensor: &Tensor) -> bool {
        let values = tensor.values::<f32>();
        let mut scaled = Vec::with_capacity(self.gram.size);
        for row in values.chunks_exact(self.gram.size.max(1)) {
            let length = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            if !length.is_finite() {
                return false;
            }
            let scale = if self.is_scaled && length > 0.0 { 1.0 / length } else { 1.0 };
            scaled.clear();
            scaled.extend(row.iter().map(|&x| (f64::from(x) * scale) as f32));
            self.gram.push(&scaled);
        }
        true
    }
}

/// That the result has the shape that is meant, and nothing else went wrong.
fn check(
    model: &Model,
    plan: &Plan,
    before: &Facts,
    target: &Target,
    size: usize,
) -> Result<(), PassError> {
    let mut after = model.clone();
    apply(&mut after.graph, plan)?;
    let facts = infer_graph(&after);
    let problem = |reason: String| PassError::Output { output: target.output.clone(), reason };
    if let Some((node, error)) = facts.problems.iter().find(|p| !before.problems.contains(p)) {
        return Err(problem(format!("at `{node}`: {error}")));
    }
    let shape = facts.get(&target.output).and_then(|fact| fact.shape.as_ref());
    match shape.and_then(|shape| shape.last()) {
        Some(found) if found.known() == Some(size as i64) => Ok(()),
        Some(found) => Err(problem(format!("it would have {found} dimensions, expected {size}"))),
        None => Err(problem("it would be of unknown shape".into())),
    }
}
