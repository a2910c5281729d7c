//! Half types: weights stored in 16 bits, or the whole graph computed in them.

mod compute;
#[cfg(test)]
mod tests;

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_tensor::{DType, Tensor};
use serde::Deserialize;

use crate::{Context, OptionEntry, Pass, PassError};

/// f32 becomes f16 or bf16, where it fits.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HalfConvert {
    #[serde(default)]
    format: HalfType,
    #[serde(default)]
    compute: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum HalfType {
    #[default]
    F16,
    Bf16,
}

pub(crate) const OPTIONS: &[OptionEntry] = &[
    OptionEntry { key: "format", default: "\"f16\"", help: "\"f16\" or \"bf16\"" },
    OptionEntry {
        key: "compute",
        default: "false",
        help: "false: weights are stored so, and computed with in f32, which runtimes make of them \
               while they load; true: nodes compute so, but for those whose constants or values, as \
               calibration data show them, do not fit",
    },
];

impl HalfType {
    fn dtype(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// The largest finite number.
    fn largest(self) -> f32 {
        match self {
            Self::F16 => 65504.0,
            Self::Bf16 => 3.389_531_4e38,
        }
    }

    /// ONNX's number of the type.
    fn code(self) -> i64 {
        match self {
            Self::F16 => 10,
            Self::Bf16 => 16,
        }
    }

    /// The first operator set whose operators take it.
    fn opset_min(self) -> i64 {
        match self {
            Self::F16 => 7,
            Self::Bf16 => 13,
        }
    }

    /// The constant rounded, or `None` where something in it does not fit.
    fn rounded(self, tensor: &Tensor) -> Option<Tensor> {
        let fits = |x: &f32| x.abs() <= self.largest();
        tensor.values::<f32>().iter().all(fits).then(|| tensor.converted(self.dtype()).ok())?
    }
}

/// Elements from which a constant is stored in 16 bits: a smaller one does not pay for its node.
const ELEMENTS_MIN: usize = 256;

impl Pass for HalfConvert {
    fn opset_min(&self) -> i64 {
        self.format.opset_min()
    }

    fn plan(&self, model: &Model, context: &Context) -> Result<Plan, PassError> {
        if self.compute {
            return compute::plan(model, self.format, context);
        }
        Ok(self.plan_weights(model, context))
    }
}

impl HalfConvert {
    fn plan_weights(&self, model: &Model, context: &Context) -> Plan {
        let links = Links::new(&model.graph);
        let mut plan = Plan::default();
        let (mut count, mut elements, mut unfit) = (0, 0, Vec::new());
        for (name, tensor) in model.graph.constants() {
            let is_large = tensor.dtype() == DType::F32 && tensor.element_count() >= ELEMENTS_MIN;
            let is_excluded = context.exclude.matches(name)
                || links
                    .uses(name)
                    .iter()
                    .any(|each| context.exclude.matches(model.graph.nodes[each.node].label()));
            if !is_large || is_excluded || !links.is_read(name) || model.graph.is_output(name) {
                continue;
            }
            let Some(half) = self.format.rounded(tensor) else {
                unfit.push(name);
                continue;
            };
            store(&mut plan, name, half);
            (count, elements) = (count + 1, elements + tensor.element_count());
        }
        remark_unfit(&mut plan, &unfit, self.format);
        plan.remark(match count {
            0 => format!("nothing to store so: no f32 constant of {ELEMENTS_MIN} numbers"),
            _ => format!("{count} constants, {elements} numbers, in {}", self.format.dtype()),
        });
        plan
    }
}

/// Stores a constant in f16; one that holds larger numbers stays.
pub(crate) fn store_f16(plan: &mut Plan, name: &str, tensor: &Tensor) {
    if let Some(half) = HalfType::F16.rounded(tensor) {
        store(plan, name, half);
    }
}

/// Puts a constant in a half type in the place of its f32 form, which a Cast makes again.
fn store(plan: &mut Plan, name: &str, half: Tensor) {
    let (stored, real) = (format!("{name}_half"), format!("{name}_real"));
    plan.push(Edit::SetInitializer { name: stored.clone(), tensor: half });
    let cast = Node::new("Cast", &real, &[&stored], &[&real]).with_attribute("to", 1_i64);
    plan.push(Edit::AddNode { node: cast });
    plan.push(Edit::ReplaceUses { from: name.into(), to: real });
}

/// Names that a remark lists.
const NAMED: usize = 5;

fn remark_unfit(plan: &mut Plan, unfit: &[&str], format: HalfType) {
    if unfit.is_empty() {
        return;
    }
    let named: Vec<String> = unfit.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
    let more = unfit.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let (dtype, largest) = (format.dtype(), format.largest());
    plan.remark(format!(
        "stay f32, for they hold numbers beyond {largest:e}, the largest of {dtype}: {}{more}",
        named.join(", ")
    ));
}
