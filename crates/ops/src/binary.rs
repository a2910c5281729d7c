//! Add, Sub, Mul, Div, Pow, Mod (opset 7 and later): element by element, broadcasting, each type in
//! its own arithmetic; integers wrap.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::broadcast::{Loops, Operand, broadcast_facts, broadcast_shapes, zip, zip_rows};
use crate::gradient::{gradient, sum_to};
use crate::kernels::{elementwise, for_rows};
use crate::number::{Number, by_integer, by_number};
use crate::{
    Fact, Flow, Gradient, Kernel, OpError, Operator, Pool, Reads, Run, Training, required,
};

type DimRule = fn(&Dim, &Dim) -> Dim;

/// The loops of an operation on f32.
#[derive(Clone, Copy)]
struct F32Loops {
    /// out = a ∘ b.
    into: fn(&mut [f32], Operand<'_, f32>, Operand<'_, f32>),
    /// data = data ∘ other.
    assign: fn(&mut [f32], Operand<'_, f32>),
}

macro_rules! arithmetic {
    ($($op:ident, $since:expr, $kernel:expr, $dims:expr, $gradient:expr;)*) => {$(
        pub(crate) struct $op;

        impl Operator for $op {
            fn op_type(&self) -> &'static str {
                stringify!($op)
            }

            fn since_opset(&self) -> i64 {
                $since
            }

            fn input_count(&self) -> std::ops::RangeInclusive<usize> {
                2..=2
            }

            fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
                infer(inputs, $dims)
            }

            fn channels(&self, _: &Node, tensors: &$crate::channels::Tensors) -> Option<$crate::channels::Channels> {
                Some($crate::channels::Channels::elementwise(tensors, 0..tensors.inputs.len()))
            }

            fn kernel(
                &self,
                node: &Node,
                _: &[Option<&Tensor>],
            ) -> Result<Box<dyn Kernel>, OpError> {
                let kernel: fn(&Node) -> Result<Box<dyn Kernel>, OpError> = $kernel;
                kernel(node)
            }

            fn gradient(
                &self,
                _: &Node,
                training: &Training,
            ) -> Result<Box<dyn Gradient>, OpError> {
                let gradient: fn(&Training) -> Result<Box<dyn Gradient>, OpError> = $gradient;
                gradient(training)
            }

            fn widens_half(&self) -> bool {
                true
            }
        }
    )*};
}

/// The kernel of an operation: loops for f32, a function of two numbers for the other types.
macro_rules! typed {
    ($loops:expr, $value:ident) => {
        |_| {
            Ok(Box::new(|run: &mut Run| {
                check_types(run)?;
                if run.input(0)?.dtype() == DType::F32 {
                    return binary_f32(run, $loops);
                }
                let pair = [run.input(0)?, run.input(1)?];
                let dtype = pair[0].dtype();
                Ok(vec![by_number!(dtype, T => zip::<T, T, T>(run.pool, pair, dtype, T::$value),
                                   found => Err(OpError::DType { index: 0, found }))?])
            }))
        }
    };
}

const ADD: F32Loops = F32Loops { into: elementwise::add, assign: elementwise::add_in_place };
const SUB: F32Loops = F32Loops { into: elementwise::sub, assign: elementwise::sub_in_place };
const MUL: F32Loops = F32Loops { into: elementwise::mul, assign: elementwise::mul_in_place };
const DIV: F32Loops = F32Loops { into: elementwise::div, assign: elementwise::div_in_place };

arithmetic! {
    Add, 7, typed!(ADD, plus), Some(|a, b| a + b), |_| sum_gradient(1.0);
    Sub, 7, typed!(SUB, minus), Some(|a, b| a - b), |_| sum_gradient(-1.0);
    Mul, 7, typed!(MUL, times), Some(|a, b| a * b), product_gradient;
    Div, 7, |_| Ok(divide()), Some(Dim::floor_div), quotient_gradient;
    Mod, 10, modulo, None, remainder_gradient;
}

/// y = a + sign·b: da = dy, db = sign·dy.
fn sum_gradient(sign: f32) -> Result<Box<dyn Gradient>, OpError> {
    gradient(Reads::NOTHING, move |run| {
        let dy = run.take_gradient();
        let da = run.wants(0).then(|| sum_to(dy.clone(), run.shape(0), run.pool));
        let db = run.wants(1).then(|| {
            let mut db = sum_to(dy, run.shape(1), run.pool);
            if sign < 0.0 {
                elementwise::mul_in_place(db.slice_mut::<f32>(), Operand::Scalar(sign));
            }
            db
        });
        Ok(vec![da.map(Flow::from), db.map(Flow::from)])
    })
}

/// y = a·b: da = dy·b, db = dy·a.
fn product_gradient(training: &Training) -> Result<Box<dyn Gradient>, OpError> {
    let reads = Reads::NOTHING.input_if(1, training.wants(0)).input_if(0, training.wants(1));
    gradient(reads, |run| {
        let dy = run.take_gradient();
        let part = |other: usize| -> Result<Flow, OpError> {
            let whole = combined(run.pool, MUL, &dy, run.input(other)?);
            Ok(sum_to(whole, run.shape(1 - other), run.pool).into())
        };
        let da = run.wants(0).then(|| part(1)).transpose()?;
        let db = run.wants(1).then(|| part(0)).transpose()?;
        run.pool.recycle(dy);
        Ok(vec![da, db])
    })
}

/// y = a/b: da = dy/b, db = −da·y.
fn quotient_gradient(training: &Training) -> Result<Box<dyn Gradient>, OpError> {
    let reads = Reads::NOTHING.input(1);
    let reads = if training.wants(1) { reads.output(0) } else { reads };
    gradient(reads, |run| {
        let dy = run.take_gradient();
        let whole = combined(run.pool, DIV, &dy, run.input(1)?);
        run.pool.recycle(dy);
        let db = run.wants(1).then(|| {
            let mut db = combined(run.pool, MUL, &whole, run.output(0));
            elementwise::mul_in_place(db.slice_mut::<f32>(), Operand::Scalar(-1.0));
            sum_to(db, run.shape(1), run.pool).into()
        });
        let da = run.wants(0).then(|| sum_to(whole, run.shape(0), run.pool).into());
        Ok(vec![da, db])
    })
}

/// y = a − q·b, q whole: da = dy, db = −dy·q = dy·(y − a)/b.
fn remainder_gradient(training: &Training) -> Result<Box<dyn Gradient>, OpError> {
    let wants = training.wants(1);
    let reads = Reads::NOTHING.input_if(0, wants).input_if(1, wants);
    gradient(if wants { reads.output(0) } else { reads }, |run| {
        let dy = run.take_gradient();
        let db = if run.wants(1) {
            let mut db = combined(run.pool, SUB, run.output(0), run.input(0)?);
            let quotient = combined(run.pool, DIV, &db, run.input(1)?);
            for ((db, q), dy) in
                db.slice_mut::<f32>().iter_mut().zip(quotient.slice::<f32>()).zip(dy.slice::<f32>())
            {
                *db = q.round() * dy;
            }
            run.pool.recycle(quotient);
            Some(sum_to(db, run.shape(1), run.pool).into())
        } else {
            None
        };
        let da = run.wants(0).then(|| sum_to(dy, run.shape(0), run.pool).into());
        Ok(vec![da, db])
    })
}

/// a ∘ b in f32, where `b` broadcasts to the shape of `a`.
fn combined(pool: &Pool, loops: F32Loops, a: &Tensor, b: &Tensor) -> Tensor {
    let mut out = pool.tensor(DType::F32, a.shape());
    let (left, right) = (a.slice::<f32>(), b.slice::<f32>());
    let rows = Loops::new([a.shape(), b.shape()], a.shape());
    let [stride_a, stride_b] = rows.inner_strides();
    rows.for_each_row_of(out.slice_mut::<f32>(), |out, [at_a, at_b]| {
        let size = out.len();
        let a = Operand::new(left, at_a, stride_a, size);
        (loops.into)(out, a, Operand::new(right, at_b, stride_b, size));
    });
    out
}

fn divide() -> Box<dyn Kernel> {
    Box::new(|run: &mut Run| {
        check_types(run)?;
        if run.input(0)?.dtype() == DType::F32 {
            return binary_f32(run, DIV);
        }
        let pair = [run.input(0)?, run.input(1)?];
        let dtype = pair[0].dtype();
        check_divisor(pair[1])?;
        Ok(vec![by_number!(dtype, T => zip::<T, T, T>(run.pool, pair, dtype, T::over),
                           found => Err(OpError::DType { index: 0, found }))?])
    })
}

fn modulo(node: &Node) -> Result<Box<dyn Kernel>, OpError> {
    let truncates = node.int_or("fmod", 0)? != 0;
    Ok(Box::new(move |run: &mut Run| {
        check_types(run)?;
        let pair = [run.input(0)?, run.input(1)?];
        let dtype = pair[0].dtype();
        check_divisor(pair[1])?;
        let y = by_number!(dtype, T => {
            let value = if truncates { T::remainder } else { T::modulo };
            zip::<T, T, T>(run.pool, pair, dtype, value)
        }, found => Err(OpError::DType { index: 0, found }));
        Ok(vec![y?])
    }))
}

/// Whether both operands have one type.
pub(crate) fn check_types(run: &Run) -> Result<(), OpError> {
    let (a, found) = (run.input(0)?.dtype(), run.input(1)?.dtype());
    if a == found { Ok(()) } else { Err(OpError::DType { index: 1, found }) }
}

/// No integer may be divided by 0.
fn check_divisor(b: &Tensor) -> Result<(), OpError> {
    let has_zero = by_integer!(b.dtype(), T => b.slice::<T>().contains(&0), _ => false);
    if has_zero {
        return Err(OpError::value("a divisor", "0", "another integer than 0"));
    }
    Ok(())
}

fn infer(inputs: &[Option<&Fact>], rule: Option<DimRule>) -> Result<Vec<Fact>, OpError> {
    let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
    let mut fact = broadcast_facts(&[a, b], a.dtype)?;
    if let (Some(rule), Some(x), Some(y)) = (rule, a.elements(), b.elements())
        && fact.rank().is_some_and(|rank| rank <= 1)
        && !a.dtype.is_float()
    {
        let count = if x.is_empty() || y.is_empty() { 0 } else { x.len().max(y.len()) };
        let at = |dims: &[Dim], i: usize| dims[if dims.len() == 1 { 0 } else { i }].clone();
        if (x.len() == count || x.len() == 1) && (y.len() == count || y.len() == 1) {
            fact.set_elements((0..count).map(|i| rule(&at(x, i), &at(y, i))).collect());
        }
    }
    Ok(vec![fact])
}

fn binary_f32(run: &mut Run, loops: F32Loops) -> Result<Vec<Tensor>, OpError> {
    let [a, b] = [run.input(0)?, run.input(1)?];
    let shape = broadcast_shapes(a.shape(), b.shape())?;
    let is_whole = a.shape() == shape && (b.shape() == shape || b.element_count() == 1);
    if is_whole && let Some(mut y) = run.take_unique(0) {
        let b = run.typed::<f32>(1)?.slice::<f32>();
        for_rows(y.slice_mut::<f32>(), 1, |first, row| {
            let stride = usize::from(b.len() > 1);
            (loops.assign)(row, Operand::new(b, first * stride, stride, row.len()));
        });
        return Ok(vec![y]);
    }
    let pair = [run.input(0)?, run.input(1)?];
    Ok(vec![zip_rows(run.pool, pair, DType::F32, loops.into)?])
}
