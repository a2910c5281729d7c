//! Unstructured pruning by magnitude (Han et al., 2015, arXiv:1506.02626).

use std::collections::BTreeSet;

use attar_graph::{Edit, Graph, Model, Plan};
use attar_tensor::{DType, Tensor};
use serde::Deserialize;

use crate::{Context, Fraction, OptionEntry, Pass, PassError};

/// Sets the weights of least absolute value to zero.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MagnitudePrune {
    sparsity: Fraction,
    #[serde(default)]
    scope: Scope,
}

/// Which weights compete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Scope {
    #[default]
    Tensor,
    Global,
}

pub(crate) const OPTIONS: &[OptionEntry] = &[
    OptionEntry { key: "sparsity", default: "", help: "fraction of the weights set to zero" },
    OptionEntry {
        key: "scope",
        default: "\"tensor\"",
        help: "\"tensor\": that fraction of each tensor; \"global\": of all tensors ranked together",
    },
];

impl Pass for MagnitudePrune {
    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        let mut plan = Plan::default();
        let weights = prunable(&model.graph, context);
        for (name, tensor) in &weights {
            if tensor.values::<f32>().iter().any(|w| !w.is_finite()) {
                return Err(PassError::WeightNotFinite { tensor: name.clone() });
            }
        }
        let global = (self.scope == Scope::Global).then(|| {
            let all = weights.iter().flat_map(|(_, t)| t.values::<f32>().into_owned()).collect();
            Cut::new(all, self.sparsity)
        });
        let mut global_ties = global.as_ref().map_or(0, |cut| cut.ties);
        for (name, tensor) in &weights {
            let values = tensor.values::<f32>();
            let pruned = if let Some(cut) = &global {
                cut.apply(&values, &mut global_ties)
            } else {
                let cut = Cut::new(values.to_vec(), self.sparsity);
                cut.apply(&values, &mut cut.ties.clone())
            };
            if pruned != values.as_ref() {
                let tensor = Tensor::new(tensor.shape(), &pruned);
                plan.push(Edit::SetInitializer { name: name.clone(), tensor });
            }
        }
        if !plan.is_empty() {
            plan.remark(
                "zeros are stored like other weights: the file stays as large and as fast until \
                 it is packed or structures are removed",
            );
        }
        Ok(plan)
    }
}

/// Names and f32 tensors that products and convolutions multiply with, in file order.
fn prunable(graph: &Graph, context: &Context) -> Vec<(String, Tensor)> {
    let mut names = BTreeSet::new();
    for node in &graph.nodes {
        let is_product = ["MatMul", "Gemm", "Conv", "ConvTranspose"].iter().any(|op| node.is(op));
        if is_product && !context.exclude.matches(node.label()) {
            names.extend(node.inputs.iter().take(2).cloned());
        }
    }
    graph
        .constants()
        .filter(|(name, tensor)| {
            names.contains(*name)
                && tensor.dtype() == DType::F32
                && tensor.rank() >= 2
                && !context.exclude.matches(name)
        })
        .map(|(name, tensor)| (name.to_string(), tensor.clone()))
        .collect()
}

/// Where to cut: everything below the threshold goes, and so many that lie on it.
struct Cut {
    threshold: f32,
    ties: usize,
}

impl Cut {
    fn new(values: Vec<f32>, sparsity: Fraction) -> Self {
        let mut magnitudes: Vec<f32> = values.into_iter().map(f32::abs).collect();
        let count = sparsity.of(magnitudes.len());
        if count == 0 {
            return Self { threshold: 0.0, ties: 0 };
        }
        let (below, threshold, _) = magnitudes.select_nth_unstable_by(count - 1, f32::total_cmp);
        let threshold = *threshold;
        let smaller = below.iter().filter(|&&magnitude| magnitude < threshold).count();
        Self { threshold, ties: count - smaller }
    }

    /// Zeros what is cut; ties go in order until `ties` of them are used up.
    fn apply(&self, values: &[f32], ties: &mut usize) -> Vec<f32> {
        values
            .iter()
            .map(|&value| {
                let is_tie = value.abs() == self.threshold && *ties > 0;
                *ties -= usize::from(is_tie);
                if is_tie || value.abs() < self.threshold { 0.0 } else { value }
            })
            .collect()
    }
}
