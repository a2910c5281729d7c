//! One-shot pruning with second-order compensation, layer by layer (`SparseGPT`, 2023,
//! arXiv:2301.00774): see [`compensate`](super::compensate).

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use attar_graph::{Edit, Model, Plan, Value, apply};
use attar_ops::fuse::dead_nodes;
use attar_tensor::Tensor;
use serde::Deserialize;

use super::compensate::{Choice, Problem};
use super::pattern::mark_groups;
use super::unstructured::{SENSITIVITY_HELP, SPARSITY_HELP, contradiction, sparsity};
use super::{Cut, Pattern, matrices, prunable};
use crate::moments::{Product, Rows, SecondMoments, products};
use crate::quantize::calibrate::{Fold, observe};
use crate::sensitivity::SensitivitySetting;
use crate::{Context, Fraction, OptionEntry, Pass, PassError};

/// Sets weights to zero and the others so that each product changes least.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ObsPrune {
    sparsity: Option<Fraction>,
    #[serde(default)]
    pattern: Pattern,
    #[serde(default)]
    sensitivity: SensitivitySetting,
}

pub(crate) const OPTIONS: &[OptionEntry] = &[
    OptionEntry { key: "sparsity", default: "0.5", help: SPARSITY_HELP },
    OptionEntry {
        key: "pattern",
        default: "\"element\"",
        help: "\"element\", or N:M as \"2:4\": N of every M successive inputs stay",
    },
    OptionEntry { key: "sensitivity", default: "\"\"", help: SENSITIVITY_HELP },
];

/// Runs over the calibration data: stages are divided among so many, and each run is of the model
/// with all before its own stages pruned.
const RUNS_MAX: usize = 12;
/// Inputs of a product beyond which its moments would take more memory than they are worth.
const INPUTS_MAX: usize = 1 << 13;

impl Pass for ObsPrune {
    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        let whole = sparsity("prune.obs", self.sparsity, self.pattern)?;
        if matches!(self.pattern, Pattern::Block { .. }) {
            let message = "`pattern` is \"element\" or N:M; blocks are for prune.unstructured";
            return Err(contradiction("prune.obs", message.into()));
        }
        if !self.sensitivity.is_empty() && self.pattern.sparsity().is_some() {
            let message = "`sensitivity` gives each tensor its sparsity: no N:M";
            return Err(contradiction("prune.obs", message.into()));
        }
        let names = prunable(model, context)?;
        if names.is_empty() {
            return Ok(Plan::default());
        }
        context.calibration.ok_or(PassError::NoCalibration)?;
        let allotted = self.sensitivity.allotted(model, context, whole)?;
        let choice = |name: &str| match self.pattern {
            Pattern::Kept { kept, of } => Choice::Kept { kept, of },
            _ => Choice::Sparsity(allotted.as_ref().map_or(whole, |allotted| allotted.of(name))),
        };
        let mut products = products(model, &names);
        products.retain(|product| product.matrices[0].inputs.len() <= INPUTS_MAX);
        let known: BTreeSet<&str> = products.iter().map(|product| product.name.as_str()).collect();
        let others: Vec<&String> =
            names.iter().filter(|name| !known.contains(name.as_str())).collect();
        let mut found: BTreeMap<String, Tensor> = BTreeMap::new();
        let mut plain: Vec<String> = Vec::new();
        for name in others {
            found.insert(name.clone(), by_magnitude(model, name, choice(name)));
            plain.push(name.clone());
        }
        let mut pruned = model.clone();
        set(&mut pruned, &found);
        let stages = stages(&products);
        for stages in stages.chunks(stages.len().div_ceil(RUNS_MAX).max(1)) {
            let moments = moments(&pruned, stages, context)?;
            for (product, moments) in stages.iter().flatten().zip(&moments.of_product) {
                let choice = choice(&product.name);
                let tensor = compensated(model, product, moments, choice).unwrap_or_else(|| {
                    plain.push(product.name.clone());
                    by_magnitude(model, &product.name, choice)
                });
                let changed = BTreeMap::from([(product.name.clone(), tensor)]);
                set(&mut pruned, &changed);
                found.extend(changed);
            }
        }
        Ok(plan(model, &names, found, &plain))
    }
}

/// Products by the value that they read, in the order of the graph: what stands above is pruned
/// before a value is looked at.
fn stages(products: &[Product]) -> Vec<Vec<&Product>> {
    let mut stages: Vec<Vec<&Product>> = Vec::new();
    let mut ordered: Vec<&Product> = products.iter().collect();
    ordered.sort_by_key(|product| product.index);
    for product in ordered {
        match stages.iter_mut().find(|stage| stage[0].data == product.data) {
            Some(stage) => stage.push(product),
            None => stages.push(vec![product]),
        }
    }
    stages
}

fn set(model: &mut Model, tensors: &BTreeMap<String, Tensor>) {
    let mut plan = Plan::default();
    for (name, tensor) in tensors {
        plan.push(Edit::SetInitializer { name: name.clone(), tensor: tensor.clone() });
    }
    apply(&mut model.graph, &plan).expect("contents of the same shape replace others");
}

/// Moments of the rows of each product, in the order of the stages; by group.
struct Moments {
    of_product: Vec<Rc<Vec<Vec<f32>>>>,
}

/// Of one value, for each way in which products take rows out of it.
#[derive(Default)]
struct OfValue(Vec<(Rows, SecondMoments)>);

impl Fold for OfValue {
    fn fold(&mut self, tensor: &Tensor) -> bool {
        self.0.iter_mut().all(|(_, moments)| moments.fold(tensor))
    }
}

/// Runs the part of the model that leads to what the stages read.
fn moments(
    model: &Model,
    stages: &[Vec<&Product>],
    context: &Context,
) -> Result<Moments, PassError> {
    let mut records: BTreeMap<String, OfValue> = BTreeMap::new();
    for product in stages.iter().flatten() {
        let of_value = &mut records.entry(product.data.clone()).or_default().0;
        if !of_value.iter().any(|(rows, _)| *rows == product.rows) {
            of_value.push((product.rows.clone(), SecondMoments::new(product)));
        }
    }
    let mut part = model.clone();
    let is_computed = |value: &&String| !model.graph.inputs.iter().any(|i| i.name == **value);
    let computed: Vec<Value> = records.keys().filter(is_computed).map(Value::untyped).collect();
    if !computed.is_empty() {
        part.graph.outputs = computed;
        let plan = dead_nodes::plan(&part);
        apply(&mut part.graph, &plan)?;
    }
    observe(&part, &mut records, context)?;
    let finished: BTreeMap<String, Vec<(Rows, Rc<Vec<Vec<f32>>>)>> = records
        .into_iter()
        .map(|(value, OfValue(of_value))| {
            let finished = of_value.into_iter();
            (value, finished.map(|(rows, moments)| (rows, Rc::new(moments.finish()))).collect())
        })
        .collect();
    let find = |product: &&Product| {
        let mut of_value = finished[&product.data].iter();
        let found = of_value.find(|(rows, _)| *rows == product.rows);
        Rc::clone(&found.expect("every way was put in").1)
    };
    Ok(Moments { of_product: stages.iter().flatten().map(find).collect() })
}

/// The weight pruned and made up for, matrix by matrix; `None` where the moments are of no use.
fn compensated(
    model: &Model,
    product: &Product,
    moments: &[Vec<f32>],
    choice: Choice,
) -> Option<Tensor> {
    let tensor = model.graph.constant(&product.name)?;
    let mut values = tensor.values::<f32>().into_owned();
    for matrix in &product.matrices {
        let places = matrix.inputs.iter().flat_map(|i| matrix.outputs.iter().map(move |o| i + o));
        let w: Vec<f32> = places.clone().map(|place| values[place]).collect();
        let h = moments.get(matrix.group)?;
        let problem = Problem { w: &w, outputs: matrix.outputs.len(), h, run: matrix.run };
        let solved = problem.solve(choice)?;
        places.zip(solved).for_each(|(place, w)| values[place] = w);
    }
    values.iter().all(|w| w.is_finite()).then(|| Tensor::new(tensor.shape(), &values))
}

/// The weight without its least values.
fn by_magnitude(model: &Model, name: &str, choice: Choice) -> Tensor {
    let tensor = model.graph.constant(name).expect("the name is that of a constant");
    let mut values = tensor.values::<f32>().into_owned();
    let scores: Vec<f32> = values.iter().map(|w| w.abs()).collect();
    let mut marks = vec![false; values.len()];
    match choice {
        Choice::Sparsity(sparsity) => {
            let mut cut = Cut::of(&scores, sparsity.of(scores.len()));
            marks.iter_mut().zip(&scores).for_each(|(mark, score)| *mark = cut.takes(*score));
        }
        Choice::Kept { kept, of } => {
            if let Some(matrices) = matrices(&model.graph, name) {
                mark_groups(&matrices, [kept, of], &scores, &mut marks);
            }
        }
    }
    values.iter_mut().zip(marks).filter(|(_, mark)| *mark).for_each(|(w, _)| *w = 0.0);
    Tensor::new(tensor.shape(), &values)
}

fn plan(
    model: &Model,
    names: &[String],
    mut found: BTreeMap<String, Tensor>,
    plain: &[String],
) -> Plan {
    let mut plan = Plan::default();
    let (mut zeros, mut count) = (0, 0);
    for name in names {
        let Some(tensor) = found.remove(name) else { continue };
        zeros += tensor.slice::<f32>().iter().filter(|&&w| w == 0.0).count();
        count += tensor.element_count();
        if model.graph.constant(name) != Some(&tensor) {
            plan.push(Edit::SetInitializer { name: name.clone(), tensor });
        }
    }
    if !plan.is_empty() {
        let share = 100.0 * zeros as f64 / count.max(1) as f64;
        plan.remark(format!("{zeros} of {count} weights are zero ({share:.1} %)"));
    }
    for name in plain {
        plan.remark(format!("`{name}` lost its least weights without compensation"));
    }
    plan
}
