//! `FakeQuantize`, made to train a quantized model: what `QuantizeLinear` and the `DequantizeLinear`
//! after it give, in f32, on any grid of integers:
//! y = scale·(clamp(round(x / scale) + z, `level_min`, `level_max`) − z), z = round(zero point),
//! round half to even; or of two levels alone, `mode = "signs"`: y = scale where x ≥ 0, else −scale.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::gradient::gradient;
use crate::kernels::fake_quantize::{
    clipped_sum, nearest, round_to_levels, sign_slopes, signs, step_slopes, straight_through,
    within_reach,
};
use crate::quantization::Parameters;
use crate::{
    ATTAR_DOMAIN, Backward, Fact, Flow, Gradient, Kernel, OpError, Operator, Reads, Run, Training,
    required,
};

/// Inputs: x, a scale for all or for each index of `axis`, and perhaps as many zero points, in f32.
pub(crate) struct FakeQuantize;

impl Operator for FakeQuantize {
    fn op_type(&self) -> &'static str {
        "FakeQuantize"
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=3
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(vec![required(inputs, 0)?.with_dtype(DType::F32)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let levels = Levels::new(node)?;
        Ok(Box::new(move |run: &mut Run| {
            let x = run.typed::<f32>(0)?;
            let parameters = levels.parameters(run)?;
            let mut y = run.pool.tensor(DType::F32, x.shape());
            let (values, x) = (y.slice_mut::<f32>(), x.slice::<f32>());
            match levels.mode {
                Mode::Signs => parameters.each_run(values, x, |y, x, scale, _| signs(y, x, scale)),
                Mode::Ends(ends) => parameters.each_run(values, x, |y, x, scale, zero| {
                    round_to_levels(y, x, scale, ends.map(|end| end - zero));
                }),
            }
            Ok(vec![y])
        }))
    }

    /// Straight through to x within the grid; to the scale that of learned step size quantization,
    /// see [`grid_flows`], and to the zero point that of LSQ+ (Bhalgat et al., 2020,
    /// arXiv:2004.09576): −scale·dy where x is clipped. Of two levels, dx = dy where |x| ≤ 1
    /// (XNOR-Net, Rastegari et al., 2016, arXiv:1603.05279), dscale = g·Σ dy·sign(x).
    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let levels = Levels::new(node)?;
        gradient(Reads::NOTHING.input(0).input(1).input(2), move |run| {
            let settings = Run { inputs: run.inputs.clone(), pool: run.pool };
            let parameters = levels.parameters(&settings)?;
            let x = settings.typed::<f32>(0)?.slice::<f32>();
            match levels.mode {
                Mode::Signs => Ok(sign_flows(run, &parameters, x)),
                Mode::Ends(ends) => Ok(grid_flows(run, &parameters, x, ends)),
            }
        })
    }
}

/// The levels of a constant, in i32: what a node of this kind would make of it, in integers.
///
/// # Errors
/// Attributes, types or shapes that the operator does not take.
pub fn fake_quantize_levels(
    node: &Node,
    x: &Tensor,
    scale: &Tensor,
    zero_point: Option<&Tensor>,
) -> Result<Tensor, OpError> {
    let levels = Levels::new(node)?;
    let pool = crate::Pool::default();
    let inputs = [Some(x), Some(scale), zero_point].map(|tensor| tensor.map(Tensor::aligned));
    let run = Run { inputs: inputs.to_vec(), pool: &pool };
    let x = run.typed::<f32>(0)?;
    let mut q = vec![0_i32; x.element_count()];
    let parameters = levels.parameters(&run)?;
    parameters.each_run(&mut q, x.slice::<f32>(), |q, x, scale, zero| {
        for (q, &x) in q.iter_mut().zip(x) {
            *q = match levels.mode {
                Mode::Signs if x >= 0.0 => 1,
                Mode::Signs => -1,
                Mode::Ends([low, high]) => {
                    (nearest((x / scale).max(low - zero).min(high - zero)) + zero) as i32
                }
            };
        }
    });
    Ok(Tensor::new(x.shape(), &q))
}

/// What flows back through a grid from the level `ends[0]` to `ends[1]`: dx = dy where x / scale is
/// within it. For the scale, that of learned step size quantization (Esser et al., 2020,
/// arXiv:1902.08153): dscale = g·Σ dy·r, r = round(x / scale) − x / scale within the grid and its end
/// outside, g = 1/√(n·Q) for the n elements that share the scale and Q the greatest level.
pub(crate) fn grid_flows(
    run: &mut Backward,
    parameters: &Parameters<f32>,
    x: &[f32],
    ends: [f32; 2],
) -> Vec<Option<Flow>> {
    let mut dx = run.take_gradient();
    let sharing = x.len() as f64 / parameters.scales.len().max(1) as f64;
    let factor = 1.0 / (sharing * f64::from(ends[1]).max(1.0)).sqrt();
    let sums = |input: usize, term: fn(&[f32], &[f32], f32, [f32; 2]) -> f64| {
        let sums = parameters.sum_runs(dx.slice::<f32>(), x, |dy, x, scale, zero| {
            term(dy, x, scale, ends.map(|end| end - zero))
        });
        flow_of(run, input, &sums, factor)
    };
    let dscale = run.wants(1).then(|| sums(1, step_slopes));
    let dzero = run.wants(2).then(|| sums(2, clipped_sum));
    parameters.each_run(dx.slice_mut::<f32>(), x, |dx, x, scale, zero| {
        straight_through(dx, x, scale, ends.map(|end| end - zero));
    });
    vec![Some(dx.into()), dscale, dzero]
}

fn sign_flows(run: &mut Backward, parameters: &Parameters<f32>, x: &[f32]) -> Vec<Option<Flow>> {
    let mut dx = run.take_gradient();
    let sharing = x.len() as f64 / parameters.scales.len().max(1) as f64;
    let dscale = run.wants(1).then(|| {
        let sums = parameters.sum_runs(dx.slice::<f32>(), x, |dy, x, _, _| sign_slopes(dy, x));
        flow_of(run, 1, &sums, 1.0 / sharing.sqrt())
    });
    parameters.each_run(dx.slice_mut::<f32>(), x, |dx, x, _, _| within_reach(dx, x));
    vec![Some(dx.into()), dscale]
}

/// The sums, one for each scale, in the shape of an input.
fn flow_of(run: &Backward, input: usize, sums: &[f64], factor: f64) -> Flow {
    let mut flow = run.tensor(run.shape(input));
    let to = flow.slice_mut::<f32>().iter_mut();
    to.zip(sums).for_each(|(to, sum)| *to = (sum * factor) as f32);
    flow.into()
}

/// The levels that values are rounded to.
#[derive(Clone, Copy)]
struct Levels {
    mode: Mode,
    axis: i64,
}

#[derive(Clone, Copy)]
enum Mode {
    /// −1 and 1.
    Signs,
    /// All integers between the two.
    Ends([f32; 2]),
}

impl Levels {
    fn new(node: &Node) -> Result<Self, OpError> {
        let axis = node.int_or("axis", 1)?;
        match node.text("mode")?.unwrap_or("levels") {
            "signs" => return Ok(Self { mode: Mode::Signs, axis }),
            "levels" => {}
            other => return Err(OpError::value("mode", other, "\"levels\" or \"signs\"")),
        }
        let end = |name: &str| {
            let found = node.int(name)?;
            found.ok_or_else(|| OpError::value(name, "absent", "an integer"))
        };
        let (low, high) = (end("level_min")?, end("level_max")?);
        // Levels beyond 24 bits are those that an f32 holds; a zero point is for smaller ones.
        if low >= high || i32::try_from(low).is_err() || i32::try_from(high).is_err() {
            return Err(OpError::value("level_max", high, format!("an i32 above {low}")));
        }
        Ok(Self { mode: Mode::Ends([low as f32, high as f32]), axis })
    }

    fn parameters(&self, run: &Run) -> Result<Parameters<f32>, OpError> {
        Parameters::new(run, self.axis, 0, |zero| {
            Some(zero.to_f32()?.into_iter().map(nearest).collect())
        })
    }
}

#[cfg(test)]
mod tests;
