//! How much of the outputs is lost where one weight changes a little, for many weights at once.
//!
//! For a change Δ of a weight, outputs y and a vector v of random signs, ⟨∂(v·y)/∂W, Δ⟩ = v·(J·Δ),
//! whose square is on average ‖J·Δ‖², what the outputs move by to first order (Hutchinson, 1990). One
//! gradient for each example thus serves every change of every weight, where measuring would run the
//! model once for each.

use attar_graph::Model;

use crate::importance::{GradientTarget, Scoring, each_gradient};
use crate::{Context, PassError};

/// Examples of the calibration data that gradients are taken of.
const EXAMPLES_MAX: usize = 64;

/// ‖Δy‖ / ‖y‖ for each change of a weight, to first order.
///
/// # Errors
/// No data, a model through which no gradient flows, or values that are not finite.
pub(super) fn reached(
    model: &Model,
    context: &Context,
    names: &[String],
    changes: &[Vec<f32>],
    seed: u64,
) -> Result<Vec<f64>, PassError> {
    let scoring = Scoring { model, names, context, seed };
    let mut sums = vec![0.0_f64; names.len()];
    let target = GradientTarget::RelativeOutputs;
    let count = each_gradient(&scoring, target, EXAMPLES_MAX, &mut |index, _, gradient| {
        let moved = dot(gradient, &changes[index]);
        sums[index] += moved * moved;
        moved.is_finite()
    })?;
    Ok(sums.iter().map(|sum| (sum / count.max(1) as f64).sqrt()).collect())
}

/// In runs of f32, whose sums are added in f64.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    const RUN: usize = 256;
    let runs = a.chunks(RUN).zip(b.chunks(RUN));
    runs.map(|(a, b)| f64::from(a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>())).sum()
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;
    use attar_graph::{Edit, Plan, Value, apply};
    use attar_runtime::Builtin;
    use attar_tensor::Tensor;
    use attar_train::Rng;

    use super::*;
    use crate::Calibration;
    use crate::reference::Reference;

    const SIZE: usize = 12;

    struct Rows;

    impl Calibration for Rows {
        fn for_each_batch(
            &self,
            _: &[Value],
            visit: &mut dyn FnMut(&[(&str, &Tensor)]) -> Result<(), PassError>,
        ) -> Result<(), PassError> {
            (0..EXAMPLES_MAX as u64)
                .try_for_each(|batch| visit(&[("x", &numbers(&[8, SIZE], 100 + batch, 1.0))]))
        }
    }

    fn numbers(shape: &[usize], seed: u64, size: f32) -> Tensor {
        let mut rng = Rng::new(&[seed]);
        let count = shape.iter().product();
        let drawn = (0..count).map(|_| size * (rng.uniform() as f32 - 0.5)).collect::<Vec<f32>>();
        Tensor::new(shape, &drawn)
    }

    #[test]
    fn what_is_predicted_of_all_is_what_each_alone_does() {
        let text = format!("x: f32[8, {SIZE}]\nh = MatMul(x, a)\nt = Tanh(h)\ny = MatMul(t, b)");
        let mut graph = graph_from_text(&text);
        graph.inputs.retain(|input| input.name == "x");
        let opsets = [(String::new(), 17)].into_iter().collect();
        graph.set_initializer("a", numbers(&[SIZE, 10], 1, 1.0));
        graph.set_initializer("b", numbers(&[10, 6], 2, 1.0));
        let model = Model { graph, opsets, ..Model::default() };
        let context = Context { calibration: Some(&Rows), ..Context::new(&Builtin) };
        let names = ["a", "b"].map(String::from);
        let changes = [numbers(&[SIZE, 10], 3, 0.02), numbers(&[10, 6], 4, 0.05)];
        let values = changes.clone().map(|change| change.values::<f32>().into_owned());
        let found = reached(&model, &context, &names, &values, 7).unwrap();
        let reference = Reference::new(&model, &context).unwrap();
        for ((name, change), found) in names.iter().zip(&changes).zip(found) {
            let w = model.graph.constant(name).unwrap();
            let pairs = w.slice::<f32>().iter().zip(change.slice::<f32>());
            let moved: Vec<f32> = pairs.map(|(w, change)| w + change).collect();
            let mut plan = Plan::default();
            let tensor = Tensor::new(w.shape(), &moved);
            plan.push(Edit::SetInitializer { name: name.clone(), tensor });
            let mut other = model.clone();
            apply(&mut other.graph, &plan).unwrap();
            let expected = reference.lost(&other).unwrap().sqrt();
            // 64 squares of nearly normal numbers: a deviation of a tenth of the root.
            assert!((found / expected - 1.0).abs() < 0.3, "{name}: {found} of {expected}");
        }
    }
}
