//! Pow (opset 7; exponents of any type from 12): y = aᵇ in the type of a, broadcasting.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::broadcast::{broadcast_facts, zip};
use crate::channels::{Channels, Tensors};
use crate::gradient::{gradient, sum_to};
use crate::kernels::slopes;
use crate::number::{Number, by_integer, by_number};
use crate::unary::steepen;
use crate::{Fact, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required};

pub(crate) struct Pow;

impl Operator for Pow {
    fn op_type(&self) -> &'static str {
        "Pow"
    }

    fn since_opset(&self) -> i64 {
        7
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=2
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
        Ok(vec![broadcast_facts(&[a, b], a.dtype)?])
    }

    fn channels(&self, _: &Node, tensors: &Tensors) -> Option<Channels> {
        Some(Channels::elementwise(tensors, 0..tensors.inputs.len()))
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| {
            // Halves are computed in f32. The executor does not widen them: it would take a base
            // of f32 for a widened one where the exponent is a half.
            let wide = |index: usize| -> Result<Tensor, OpError> {
                let x = run.input(index)?;
                let found = x.dtype();
                match found {
                    DType::F16 | DType::BF16 => x.converted(DType::F32),
                    _ => Ok(x.clone()),
                }
                .map_err(|_| OpError::DType { index, found })
            };
            let (base, exponent, dtype) = (wide(0)?, wide(1)?, run.input(0)?.dtype());
            let y = power(run, &base, &exponent)?;
            if y.dtype() == dtype {
                return Ok(vec![y]);
            }
            let y = y.converted(dtype);
            Ok(vec![y.map_err(|_| OpError::DType { index: 0, found: dtype })?])
        }))
    }

    /// da = dy·b·aᵇ⁻¹, db = dy·aᵇ·ln a, 0 where a is.
    fn gradient(&self, _: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let reads = Reads::NOTHING.input(0).input(1);
        let reads = if training.wants(1) { reads.output(0) } else { reads };
        gradient(reads, |run| {
            let dy = run.take_gradient();
            let (a, b) = (run.input(0)?, run.input(1)?);
            let found = b.dtype();
            let b = b.converted(DType::F32).map_err(|_| OpError::DType { index: 1, found })?;
            let db = if run.wants(1) {
                let y = run.output(0);
                let logarithm = |y: f32, a: f32| if a == 0.0 { 0.0 } else { y * a.ln() };
                let slope = zip::<f32, f32, f32>(run.pool, [y, a], DType::F32, logarithm)?;
                let db = zip::<f32, f32, f32>(run.pool, [&dy, &slope], DType::F32, f32::times)?;
                run.pool.recycle(slope);
                Some(sum_to(db, run.shape(1), run.pool).into())
            } else {
                None
            };
            if !run.wants(0) {
                return Ok(vec![None, db]);
            }
            let mut da = dy;
            if let ([exponent], true) = (b.slice::<f32>(), a.shape() == da.shape()) {
                steepen(&mut da, a, |dy, a| power_slope(dy, a, *exponent));
            } else {
                let power = |a: f32, b: f32| if b == 0.0 { 0.0 } else { b * a.powf(b - 1.0) };
                let slope = zip::<f32, f32, f32>(run.pool, [a, &b], DType::F32, power)?;
                da = zip::<f32, f32, f32>(run.pool, [&da, &slope], DType::F32, f32::times)?;
                run.pool.recycle(slope);
            }
            Ok(vec![Some(sum_to(da, run.shape(0), run.pool).into()), db])
        })
    }
}

/// dy = dy·b·aᵇ⁻¹.
fn power_slope(dy: &mut [f32], a: &[f32], b: f32) {
    if b == 2.0 {
        slopes::square(dy, a);
    } else if b == 3.0 {
        slopes::cube(dy, a);
    } else if b == 0.5 {
        slopes::root(dy, a);
    } else if b == -1.0 {
        slopes::inverse(dy, a);
    } else if b == 0.0 {
        dy.fill(0.0);
    } else if b != 1.0 {
        dy.iter_mut().zip(a).for_each(|(dy, a)| *dy *= b * a.powf(b - 1.0));
    }
}

fn power(run: &Run, base: &Tensor, exponent: &Tensor) -> Result<Tensor, OpError> {
    let (dtype, error) = (base.dtype(), OpError::DType { index: 1, found: exponent.dtype() });
    let pair = [base, exponent];
    match (dtype, exponent.dtype()) {
        (DType::F32, DType::F32 | DType::F64) if exponent.element_count() == 1 => {
            let exponent = exponent.converted(DType::F32).map_err(|_| error)?;
            f32_power(run, base, &exponent)
        }
        // Whole numbers to whole powers stay exact.
        (a, b) if !a.is_float() && a == b => {
            by_integer!(a, T => zip::<T, T, T>(run.pool, pair, a, T::power),
                        found => Err(OpError::DType { index: 0, found }))
        }
        (a, b) if !a.is_float() && !b.is_float() => {
            let wide = |x: &Tensor, index: usize| {
                x.converted(DType::I64).map_err(|_| OpError::DType { index, found: x.dtype() })
            };
            let wide = [&wide(base, 0)?, &wide(exponent, 1)?];
            let y = zip::<i64, i64, i64>(run.pool, wide, DType::I64, i64::power)?;
            y.converted(a).map_err(|_| OpError::DType { index: 0, found: a })
        }
        (DType::F32, _) => {
            let exponent = exponent.converted(DType::F32).map_err(|_| error)?;
            zip::<f32, f32, f32>(run.pool, [base, &exponent], dtype, f32::powf)
        }
        _ => {
            let exponent = exponent.converted(DType::F64).map_err(|_| error)?;
            by_number!(dtype, T => zip::<T, f64, T>(run.pool, [base, &exponent], dtype, |a, b| {
                T::from_f64(a.as_f64().powf(b))
            }), found => Err(OpError::DType { index: 0, found }))
        }
    }
}

/// The powers that models take of whole tensors, without a logarithm.
fn f32_power(run: &Run, base: &Tensor, exponent: &Tensor) -> Result<Tensor, OpError> {
    let pair = [base, exponent];
    let value: fn(f32, f32) -> f32 = match exponent.slice::<f32>() {
        [2.0] => return zip::<f32, f32, f32>(run.pool, pair, DType::F32, |a, _| a * a),
        [3.0] => return zip::<f32, f32, f32>(run.pool, pair, DType::F32, |a, _| a * a * a),
        _ => f32::powf,
    };
    zip::<f32, f32, f32>(run.pool, pair, DType::F32, value)
}
