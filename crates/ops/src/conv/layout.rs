//! Channels first [n, c, spatial…] ⇄ channels last [n, spatial…, c], and the operators
//! `ToChannelsLast` and `ToChannelsFirst` that fusion puts around what runs with channels last.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::gradient::gradient;
use crate::kernels::transpose::transpose_matrix;
use crate::{
    ATTAR_DOMAIN, Fact, Gradient, Kernel, OpError, Operator, Pool, Reads, Run, Training, required,
};

pub(crate) struct ToLayout {
    op_type: &'static str,
    is_to_last: bool,
}

pub(crate) const TO_CHANNELS_LAST: ToLayout =
    ToLayout { op_type: "ToChannelsLast", is_to_last: true };
pub(crate) const TO_CHANNELS_FIRST: ToLayout =
    ToLayout { op_type: "ToChannelsFirst", is_to_last: false };

impl Operator for ToLayout {
    fn op_type(&self) -> &'static str {
        self.op_type
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, _: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let mut dims: Vec<Dim> = shape.clone();
        check_rank(dims.len())?;
        if self.is_to_last {
            dims[1..].rotate_left(1);
        } else {
            dims[1..].rotate_right(1);
        }
        Ok(vec![Fact::new(x.dtype, dims)])
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let is_to_last = self.is_to_last;
        Ok(Box::new(move |run: &mut Run| {
            let x = run.input(0)?;
            if !matches!(x.dtype(), DType::F32 | DType::U8) {
                return Err(OpError::DType { index: 0, found: x.dtype() });
            }
            check_rank(x.rank())?;
            let convert = if is_to_last { to_channels_last } else { to_channels_first };
            Ok(vec![convert(run.pool, x)])
        }))
    }

    /// dx is dy moved back.
    fn gradient(&self, _: &Node, _: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let convert = if self.is_to_last { to_channels_first } else { to_channels_last };
        gradient(Reads::NOTHING, move |run| {
            let dy = run.take_gradient();
            let dx = convert(run.pool, &dy);
            run.pool.recycle(dy);
            Ok(vec![Some(dx.into())])
        })
    }
}

fn check_rank(rank: usize) -> Result<(), OpError> {
    let is_enough = rank >= 2;
    is_enough.then_some(()).ok_or_else(|| OpError::value("the rank", rank, "2 or more"))
}

/// [n, c, spatial…] → [n, spatial…, c], of f32, i32 or bytes.
pub(crate) fn to_channels_last(pool: &Pool, x: &Tensor) -> Tensor {
    let mut shape = x.shape().to_vec();
    shape[1..].rotate_left(1);
    let inner = x.shape()[2..].iter().product();
    transposed(pool, x, &shape, [x.shape()[1], inner])
}

/// [n, spatial…, c] → [n, c, spatial…], of f32, i32 or bytes.
pub(crate) fn to_channels_first(pool: &Pool, x: &Tensor) -> Tensor {
    let mut shape = x.shape().to_vec();
    shape[1..].rotate_right(1);
    let (channels, outer) = x.shape()[1..].split_last().expect("rank is at least 2");
    transposed(pool, x, &shape, [outer.iter().product(), *channels])
}

fn transposed(pool: &Pool, x: &Tensor, shape: &[usize], size: [usize; 2]) -> Tensor {
    // A single row or column keeps its order.
    if size.contains(&1) || x.element_count() == 0 {
        return x.reshaped(shape);
    }
    let mut y = pool.tensor(x.dtype(), shape);
    match x.dtype() {
        DType::U8 => transpose_matrix(y.slice_mut::<u8>(), x.slice(), size),
        DType::I8 => transpose_matrix(y.slice_mut::<i8>(), x.slice(), size),
        DType::I32 => transpose_matrix(y.slice_mut::<i32>(), x.slice(), size),
        _ => transpose_matrix(y.slice_mut::<f32>(), x.slice(), size),
    }
    y
}
