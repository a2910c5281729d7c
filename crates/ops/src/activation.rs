//! Activation functions, element by element: Relu and what came after it.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::binary::check_types;
use crate::broadcast::{Operand, broadcast_shapes, zip, zip_rows};
use crate::channels::{Channels, Tensors};
use crate::gradient::{gradient, sum_to};
use crate::kernels::{elementwise, for_rows, slopes};
use crate::number::{Number, by_number};
use crate::unary::{Function, Integer, each, function, functions, steepen};
use crate::{Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

functions! {
    // max(0, x) + min(0, α·(exp(x/α) − 1)) (Barron, 2017, arXiv:1704.07483)
    Celu, |node| {
        let alpha = node.float_or("alpha", 1.0)?;
        exponential(1.0, alpha, alpha)
    };
    // x, or α·(exp x − 1) below 0 (Clevert et al., 2016, arXiv:1511.07289)
    Elu, |node| exponential(1.0, node.float_or("alpha", 1.0)?, 1.0);
    HardSigmoid, |node| {
        let (alpha, beta) = (node.float_or("alpha", 0.2)?, node.float_or("beta", 0.5)?);
        each(
            move |x| (alpha * x + beta).clamp(0.0, 1.0),
            move |x| (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0),
        )
        .slope_by_output(move |dy, y| slopes::hard_sigmoid(dy, y, alpha))
    };
    HardSwish, |_node| each(
        |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
    )
    .slope_by_input(slopes::hard_swish);
    LeakyRelu, |node| {
        let alpha = node.float_or("alpha", 0.01)?;
        let leaky = each(
            move |x| if x < 0.0 { alpha * x } else { x },
            move |x| if x < 0.0 { f64::from(alpha) * x } else { x },
        );
        let slope = move |dy: &mut [f32], values: &[f32]| slopes::leaky(dy, values, alpha);
        if alpha > 0.0 { leaky.slope_by_output(slope) } else { leaky.slope_by_input(slope) }
    };
    // x·tanh(softplus x) (Misra, 2020, arXiv:1908.08681)
    Mish, |_node| function(elementwise::mish, |x| x * softplus(x).tanh())
        .slope_by_input(slopes::mish);
    Relu, |_node| function(
        |data| elementwise::clamp(data, 0.0, f32::INFINITY),
        |x| if x < 0.0 { 0.0 } else { x },
    )
    .and_integers(Integer::Relu)
    .slope_by_output(slopes::relu);
    // γ·x, or γ·α·(exp x − 1) below 0 (Klambauer et al., 2017, arXiv:1706.02515)
    Selu, |node| {
        let alpha = node.float_or("alpha", 1.673_263_2)?;
        let gamma = node.float_or("gamma", 1.050_701)?;
        exponential(gamma, gamma * alpha, 1.0)
    };
    Sigmoid, |_node| function(elementwise::sigmoid, |x| 1.0 / (1.0 + (-x).exp()))
        .slope_by_output(slopes::sigmoid);
    // ln(1 + exp x)
    Softplus, |_node| function(elementwise::softplus, softplus).slope_by_input(slopes::softplus);
    Softsign, |_node| each(|x| x / (1.0 + x.abs()), |x| x / (1.0 + x.abs()))
        .slope_by_output(slopes::softsign);
    // x·sigmoid(α·x) (Ramachandran et al., 2017, arXiv:1710.05941)
    Swish, |node| {
        let alpha = node.float_or("alpha", 1.0)?;
        function(
            move |data| elementwise::swish(data, alpha),
            move |x| x / (1.0 + (-f64::from(alpha) * x).exp()),
        )
        .slope_by_input(move |dy, x| slopes::swish(dy, x, alpha))
    };
    ThresholdedRelu, |node| {
        let alpha = node.float_or("alpha", 1.0)?;
        each(
            move |x| if x > alpha { x } else { 0.0 },
            move |x| if x > f64::from(alpha) { x } else { 0.0 },
        )
        .slope_by_input(move |dy, x| slopes::above(dy, x, alpha))
    };
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// up·x from 0 on, down·(exp(x/width) − 1) below.
fn exponential(up: f32, down: f32, width: f32) -> Function {
    let (up_wide, down_wide, width_wide) = (f64::from(up), f64::from(down), f64::from(width));
    let narrowing = 1.0 / width;
    let unit = function(
        move |data| elementwise::exponential_unit(data, up, down, narrowing),
        move |x| if x < 0.0 { down_wide * (x / width_wide).exp_m1() } else { up_wide * x },
    );
    if up > 0.0 && down > 0.0 && width > 0.0 {
        // The output then has the sign of the input.
        return unit.slope_by_output(move |dy, y| {
            slopes::exponential_unit(dy, y, up, down, narrowing);
        });
    }
    unit.slope_by_input(move |dy, x| {
        slopes::exponential_unit_of_input(dy, x, up, down, narrowing);
    })
}

/// `PRelu` (opset 7 and later): x, or slope·x below 0, the slope broadcast to x.
pub(crate) struct PRelu;

impl Operator for PRelu {
    fn op_type(&self) -> &'static str {
        "PRelu"
    }

    fn since_opset(&self) -> i64 {
        7
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        Some(Channels::elementwise(tensors, 0..tensors.inputs.len()))
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| {
            check_types(run)?;
            let pair = [run.input(0)?, run.input(1)?];
            let dtype = pair[0].dtype();
            if broadcast_shapes(pair[0].shape(), pair[1].shape())? != pair[0].shape() {
                return Err(OpError::shapes(pair[0].shape(), pair[1].shape()));
            }
            let y = match dtype {
                DType::F32 => zip_rows(run.pool, pair, dtype, elementwise::prelu),
                _ => by_number!(dtype, T => zip::<T, T, T>(run.pool, pair, dtype, leaked),
                                found => Err(OpError::DType { index: 0, found })),
            };
            Ok(vec![y?])
        }))
    }

    /// dx = dy·(x < 0 ? slope : 1), dslope = Σ dy·min(x, 0).
    fn gradient(&self, _: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let reads = Reads::NOTHING.input(0).input_if(1, training.wants(0));
        gradient(reads, |run| {
            let dy = run.take_gradient();
            let x = run.input(0)?;
            let dslope = if run.wants(1) {
                let below = |dy: f32, x: f32| if x < 0.0 { dy * x } else { 0.0 };
                let part = zip::<f32, f32, f32>(run.pool, [&dy, x], DType::F32, below)?;
                Some(sum_to(part, run.shape(1), run.pool).into())
            } else {
                None
            };
            if !run.wants(0) {
                return Ok(vec![None, dslope]);
            }
            // The gradient of slope·x where x is negative: slope and dy take the places of x.
            let steep = zip_rows(run.pool, [&dy, run.input(1)?], DType::F32, elementwise::mul)?;
            let mut dx = dy;
            let (steep_values, x) = (steep.slice::<f32>(), x.slice::<f32>());
            for_rows(dx.slice_mut::<f32>(), 1, |first, dx| {
                let rest = steep_values[first..].iter().zip(&x[first..]);
                dx.iter_mut()
                    .zip(rest)
                    .for_each(|(dx, (&s, &x))| *dx = if x < 0.0 { s } else { *dx });
            });
            run.pool.recycle(steep);
            Ok(vec![Some(dx.into()), dslope])
        })
    }

    fn widens_half(&self) -> bool {
        true
    }
}

fn leaked<T: Number>(x: T, slope: T) -> T {
    if x < T::ZERO { x.times(slope) } else { x }
}

/// `Shrink` (opset 9): x moved toward 0 by the bias outside of ±λ, 0 within.
pub(crate) struct Shrink;

impl Operator for Shrink {
    fn op_type(&self) -> &'static str {
        "Shrink"
    }

    fn since_opset(&self) -> i64 {
        9
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(x.dtype)])
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        Some(Channels::like_input(tensors, &[]))
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let (lambda, bias) = (node.float_or("lambd", 0.5)?, node.float_or("bias", 0.0)?);
        let (lambda, bias) = (f64::from(lambda), f64::from(bias));
        Ok(Box::new(move |run: &mut Run| {
            let x = run.input(0)?;
            let mut y = run.pool.tensor(x.dtype(), x.shape());
            by_number!(x.dtype(), T => {
                let pairs = y.slice_mut::<T>().iter_mut().zip(x.slice::<T>());
                pairs.for_each(|(y, x)| *y = T::from_f64(shrunk(x.as_f64(), lambda, bias)));
            }, found => return Err(OpError::DType { index: 0, found }));
            Ok(vec![y])
        }))
    }

    /// dx = dy outside of ±λ.
    fn gradient(&self, node: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let lambda = node.float_or("lambd", 0.5)?;
        gradient(Reads::NOTHING.input(0), move |run| {
            let mut dx = run.take_gradient();
            steepen(&mut dx, run.input(0)?, |dy, x| slopes::outside(dy, x, lambda));
            Ok(vec![Some(dx.into())])
        })
    }

    fn widens_half(&self) -> bool {
        true
    }
}

fn shrunk(x: f64, lambda: f64, bias: f64) -> f64 {
    if x < -lambda {
        x + bias
    } else if x > lambda {
        x - bias
    } else {
        0.0
    }
}

/// `SwiGLU` (opset 28): y = a·sigmoid(α·a)·b, both of one shape (Shazeer, 2020, arXiv:2002.05202).
pub(crate) struct SwiGLU;

impl Operator for SwiGLU {
    fn op_type(&self) -> &'static str {
        "SwiGLU"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
        let known = if a.shape.is_some() { a } else { b };
        Ok(vec![known.with_dtype(a.dtype)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let alpha = node.float_or("alpha", 1.0)?;
        Ok(Box::new(move |run: &mut Run| {
            check_types(run)?;
            let pair = [run.input(0)?, run.input(1)?];
            if pair[0].shape() != pair[1].shape() {
                return Err(OpError::shapes(pair[0].shape(), pair[1].shape()));
            }
            let y = match pair[0].dtype() {
                DType::F32 => zip_rows::<f32, f32, f32>(run.pool, pair, DType::F32, |y, a, b| {
                    if let (Operand::Row(a), Operand::Row(b)) = (a, b) {
                        y.copy_from_slice(a);
                        elementwise::swish(y, alpha);
                        elementwise::mul_in_place(y, Operand::Row(b));
                    } else if let (Operand::Scalar(a), Operand::Scalar(b)) = (a, b) {
                        y.fill(a);
                        elementwise::swish(y, alpha);
                        elementwise::mul_in_place(y, Operand::Scalar(b));
                    }
                }),
                DType::F64 => zip::<f64, f64, f64>(run.pool, pair, DType::F64, |a, b| {
                    a / (1.0 + (-f64::from(alpha) * a).exp()) * b
                }),
                found => Err(OpError::DType { index: 0, found }),
            };
            Ok(vec![y?])
        }))
    }

    /// da = dy·b·swish′(a), db = dy·swish(a).
    fn gradient(&self, node: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let alpha = node.float_or("alpha", 1.0)?;
        let reads = Reads::NOTHING.input(0).input_if(1, training.wants(0));
        gradient(reads, move |run| {
            let dy = run.take_gradient();
            let a = run.input(0)?;
            let db = run.wants(1).then(|| {
                let mut db = run.tensor(a.shape());
                let (a, dy) = (a.slice::<f32>(), dy.slice::<f32>());
                for_rows(db.slice_mut::<f32>(), 1, |first, db| {
                    db.copy_from_slice(&a[first..first + db.len()]);
                    elementwise::swish(db, alpha);
                    elementwise::mul_in_place(db, Operand::Row(&dy[first..first + db.len()]));
                });
                db.into()
            });
            if !run.wants(0) {
                return Ok(vec![None, db]);
            }
            let mut da = dy;
            steepen(&mut da, a, |dy, a| slopes::swish(dy, a, alpha));
            steepen(&mut da, run.input(1)?, |dy, b| {
                elementwise::mul_in_place(dy, Operand::Row(b));
            });
            Ok(vec![Some(da.into()), db])
        })
    }

    fn widens_half(&self) -> bool {
        true
    }
}
