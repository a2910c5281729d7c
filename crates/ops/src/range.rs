//! Range (opset 11 and later): start, start + delta, … while below (above) limit.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::gradient::gradient;
use crate::{
    Fact, Flow, Gradient, Kernel, OpError, Operator, Pool, Reads, Run, Training, required,
};

pub(crate) struct Range;

/// Longest range whose elements are followed.
const FOLLOWED_MAX: i64 = 64;

impl Operator for Range {
    fn op_type(&self) -> &'static str {
        "Range"
    }

    fn since_opset(&self) -> i64 {
        11
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        3..=3
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let facts = [required(inputs, 0)?, required(inputs, 1)?, required(inputs, 2)?];
        let dtype = facts[0].dtype;
        let element = |i: usize| facts[i].elements().and_then(<[Dim]>::first).cloned();
        let bounds = [element(0), element(1), element(2)];
        let [Some(start), Some(limit), Some(delta)] = bounds else {
            return Ok(vec![Fact::new(dtype, vec![Dim::Unknown])]);
        };
        let count = match (start.known(), limit.known(), delta.known()) {
            (Some(start), Some(limit), Some(delta)) => {
                Dim::from(integer_count(start, limit, delta)?)
            }
            (_, _, Some(1)) => &limit - &start,
            _ => Dim::Unknown,
        };
        let mut fact = Fact::new(dtype, vec![count.clone()]);
        if let Some(count) = count.known().filter(|count| (0..=FOLLOWED_MAX).contains(count)) {
            let element = |i: i64| &start + &(&Dim::Known(i) * &delta);
            fact.set_elements((0..count).map(element).collect());
        }
        Ok(vec![fact])
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(|run: &mut Run| {
            let bounds = [run.input(0)?, run.input(1)?, run.input(2)?];
            let dtype = bounds[0].dtype();
            for (index, bound) in bounds.iter().enumerate() {
                if bound.dtype() != dtype {
                    return Err(OpError::DType { index, found: bound.dtype() });
                }
                if bound.element_count() != 1 {
                    return Err(OpError::value("a bound", bound.shape(), "a scalar"));
                }
            }
            Ok(vec![if dtype.is_float() {
                floats(run.pool, bounds)?
            } else {
                integers(run.pool, bounds)?
            }])
        }))
    }

    /// dstart = Σ dyᵢ, ddelta = Σ i·dyᵢ; the limit sets only the count.
    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        gradient(Reads::NOTHING, |run| {
            let dy = run.take_gradient();
            let scalar = |index: usize, value: f64| {
                let mut flow = run.tensor(run.shape(index));
                flow.slice_mut::<f32>().fill(value as f32);
                Some(Flow::from(flow))
            };
            let terms = || dy.slice::<f32>().iter().map(|&dy| f64::from(dy)).enumerate();
            let start = scalar(0, terms().map(|(_, dy)| dy).sum());
            let delta = scalar(2, terms().map(|(i, dy)| i as f64 * dy).sum());
            run.pool.recycle(dy);
            Ok(vec![start, None, delta])
        })
    }

    fn widens_half(&self) -> bool {
        true
    }
}

/// ⌈(limit − start) / delta⌉, at least 0.
fn integer_count(start: i64, limit: i64, delta: i64) -> Result<usize, OpError> {
    let error = || OpError::value("delta", delta, "one that reaches the limit");
    let distance = i128::from(limit) - i128::from(start);
    let delta = i128::from(delta);
    let whole = distance.checked_div_euclid(delta).ok_or_else(error)?;
    let has_rest = whole * delta != distance;
    let rounded_up = if has_rest && delta > 0 { whole + 1 } else { whole };
    usize::try_from(rounded_up.max(0)).map_err(|_| error())
}

fn floats(pool: &Pool, bounds: [&Tensor; 3]) -> Result<Tensor, OpError> {
    let dtype = bounds[0].dtype();
    let value = |i: usize| bounds[i].to_f64().expect("a float is a number")[0];
    let (start, limit, delta) = (value(0), value(1), value(2));
    // The distance is rounded to the type, as ONNX Runtime does.
    let distance = match dtype {
        DType::F32 => f64::from(limit as f32 - start as f32),
        _ => limit - start,
    };
    let count = (distance / delta).ceil().max(0.0);
    if count.is_nan() || count >= isize::MAX as f64 {
        return Err(OpError::value("the count of elements", count, "finite"));
    }
    let mut y = pool.declared(dtype, &[count as usize])?;
    match dtype {
        DType::F32 => {
            let (start, delta) = (start as f32, delta as f32);
            let elements = y.slice_mut::<f32>().iter_mut().enumerate();
            elements.for_each(|(i, y)| *y = start + i as f32 * delta);
        }
        DType::F64 => {
            let elements = y.slice_mut::<f64>().iter_mut().enumerate();
            elements.for_each(|(i, y)| *y = start + i as f64 * delta);
        }
        found => return Err(OpError::DType { index: 0, found }),
    }
    Ok(y)
}

fn integers(pool: &Pool, bounds: [&Tensor; 3]) -> Result<Tensor, OpError> {
    let dtype = bounds[0].dtype();
    let value = |i: usize| {
        let error = OpError::DType { index: i, found: dtype };
        bounds[i].to_i64().map(|values| values[0]).ok_or(error)
    };
    let (start, limit, delta) = (value(0)?, value(1)?, value(2)?);
    let count = integer_count(start, limit, delta)?;
    let mut y = pool.declared(dtype, &[count])?;
    macro_rules! fill {
        ($($dtype:ident => $ty:ty),*) => {
            match dtype {
                $(DType::$dtype => {
                    let elements = y.slice_mut::<$ty>().iter_mut().enumerate();
                    // Every element lies between the bounds; the product may pass around.
                    elements.for_each(|(i, y)| {
                        *y = start.wrapping_add((i as i64).wrapping_mul(delta)) as $ty;
                    });
                })*
                found => return Err(OpError::DType { index: 0, found }),
            }
        };
    }
    fill!(I64 => i64, I32 => i32, I16 => i16, I8 => i8, U64 => u64, U32 => u32, U16 => u16,
          U8 => u8);
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_rounded_up_and_a_delta_of_zero_is_refused() {
        assert_eq!(integer_count(1, 6, 2), Ok(3));
        assert_eq!(integer_count(10, 0, -3), Ok(4));
        assert_eq!(integer_count(10, 1, -3), Ok(3));
        assert_eq!(integer_count(0, -5, 1), Ok(0));
        assert!(integer_count(0, 5, 0).is_err());
        assert!(integer_count(i64::MIN, i64::MAX, 1).is_ok());
    }
}
