//! Gemm (opset 7 and later): y = α·A′·B′ + β·C.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::broadcast::{Loops, broadcast_shapes};
use crate::channels::{Channels, Tensors, input, output};
use crate::gradient::{gradient, sum_to};
use crate::kernels::for_rows_of_work;
use crate::kernels::gemm::{self, PackedB, Right, Strided};
use crate::matmul::{multiply_row, right};
use crate::number::{Number, by_number};
use crate::{
    Backward, Fact, Flow, Gradient, Kernel, OpError, Operator, Reads, Run, Training, required,
};

pub(crate) struct Gemm;

struct Settings {
    alpha: f32,
    beta: f32,
    transpose_a: bool,
    transpose_b: bool,
}

impl Settings {
    fn new(node: &Node) -> Result<Self, OpError> {
        Ok(Self {
            alpha: node.float_or("alpha", 1.0)?,
            beta: node.float_or("beta", 1.0)?,
            transpose_a: node.int_or("transA", 0)? != 0,
            transpose_b: node.int_or("transB", 0)? != 0,
        })
    }
}

fn view<'a>(x: &'a Tensor, values: &'a [f32], transpose: bool) -> Strided<'a, f32> {
    let view = Strided::rows(values, x.shape()[0], x.shape()[1]);
    if transpose { view.transposed() } else { view }
}

fn expect_matrix(x: &Tensor) -> Result<&Tensor, OpError> {
    if x.rank() == 2 { Ok(x) } else { Err(OpError::value("an operand", x.shape(), "a matrix")) }
}

impl Operator for Gemm {
    fn op_type(&self) -> &'static str {
        "Gemm"
    }

    fn since_opset(&self) -> i64 {
        7
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=3
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let (a, b, settings) = (required(inputs, 0)?, required(inputs, 1)?, Settings::new(node)?);
        let (m_axis, n_axis) =
            (usize::from(settings.transpose_a), usize::from(!settings.transpose_b));
        let dim = |fact: &Fact, axis: usize| match &fact.shape {
            Some(shape) => shape.get(axis).cloned().unwrap_or(Dim::Unknown),
            None => Dim::Unknown,
        };
        Ok(vec![Fact::new(a.dtype, vec![dim(a, m_axis), dim(b, n_axis)])])
    }

    fn channels(&self, node: &Node, tensors: &Tensors) -> Option<Channels> {
        let settings = Settings::new(node).ok()?;
        let mut channels = Channels::default();
        let (k_of_a, k_of_b) =
            (usize::from(!settings.transpose_a), usize::from(settings.transpose_b));
        channels.tie_summed(tensors, input(0, k_of_a), input(1, k_of_b));
        channels.tie(tensors, input(0, 1 - k_of_a), output(0, 0));
        channels.tie(tensors, input(1, 1 - k_of_b), output(0, 1));
        channels.tie_broadcast(tensors, 2);
        Some(channels)
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let settings = Settings::new(node)?;
        let constant = constants.get(1).copied().flatten().filter(|b| b.dtype() == DType::F32);
        let packed = match constant {
            Some(b) => {
                let values = b.values::<f32>();
                let view = view(expect_matrix(b)?, &values, settings.transpose_b);
                Some((PackedB::new(view), view.size))
            }
            None => None,
        };
        // The executor drops the original of every constant right side.
        let held = constants.get(1).copied().flatten().filter(|_| packed.is_none());
        let held = held.map(Tensor::aligned);
        Ok(Box::new(move |run: &mut Run| {
            let a = expect_matrix(run.input(0)?)?;
            if a.dtype() != DType::F32 {
                return by_number!(a.dtype(), T => any::<T>(run, held.as_ref(), &settings),
                                  found => Err(OpError::DType { index: 0, found }));
            }
            let left = view(a, a.slice::<f32>(), settings.transpose_a);
            let (right, [depth, n]) = if let Some((packed, size)) = &packed {
                (Right::Packed(packed), *size)
            } else {
                let b = expect_matrix(right::<f32>(run, held.as_ref())?)?;
                let right = view(b, b.slice::<f32>(), settings.transpose_b);
                (Right::Strided(right), right.size)
            };
            let [m, k] = left.size;
            if k != depth {
                return Err(OpError::shapes(&[m, k], &[depth, n]));
            }
            let mut y = run.pool.tensor(DType::F32, &[m, n]);
            let c = run.optional(2);
            let is_row = c.is_some_and(|c| c.element_count() == n && c.shape().last() == Some(&n));
            let is_plain = settings.alpha == 1.0 && settings.beta == 1.0;
            if let (Some(c), true) = (c, is_row && is_plain && c.is_some_and(is_f32)) {
                gemm::matmul(y.slice_mut::<f32>(), left, right, Some(c.slice::<f32>()));
                return Ok(vec![y]);
            }
            gemm::matmul(y.slice_mut::<f32>(), left, right, None);
            finish::<f32>(&mut y, c, &settings)?;
            Ok(vec![y])
        }))
    }

    fn gradient(&self, node: &Node, training: &Training) -> Result<Box<dyn Gradient>, OpError> {
        let settings = Settings::new(node)?;
        let reads = Reads::NOTHING.input_if(1, training.wants(0)).input_if(0, training.wants(1));
        gradient(reads, move |run: &mut Backward| {
            let dy = run.take_gradient();
            flow_back(run, dy, &settings)
        })
    }

    fn widens_half(&self) -> bool {
        true
    }

    fn macs(&self, node: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        let k_axis = usize::from(!Settings::new(node).is_ok_and(|s| s.transpose_a));
        let depth = inputs[0].and_then(|a| a.shape.as_ref()?.get(k_axis).cloned());
        &outputs[0].element_count() * &depth.unwrap_or(Dim::Unknown)
    }

    fn keeps_constant(&self, input: usize) -> bool {
        input == 1
    }
}

/// With dZ = α·dY: dA′ = dZ·B′ᵀ, dB′ = A′ᵀ·dZ, dC = β·dY, summed where C was broadcast.
fn flow_back(
    run: &Backward,
    mut dy: Tensor,
    settings: &Settings,
) -> Result<Vec<Option<Flow>>, OpError> {
    let [m, n] = [dy.shape()[0], dy.shape()[1]];
    let mut flows = vec![None, None, None];
    let multiply_by = |x: &mut Tensor, factor: f32| {
        if factor != 1.0 {
            x.slice_mut::<f32>().iter_mut().for_each(|x| *x *= factor);
        }
    };
    if run.wants(2) {
        let mut copy = run.tensor(&[m, n]);
        copy.slice_mut::<f32>().copy_from_slice(dy.slice::<f32>());
        let mut dc = sum_to(copy, run.shape(2), run.pool);
        multiply_by(&mut dc, settings.beta);
        flows[2] = Some(dc.into());
    }
    multiply_by(&mut dy, settings.alpha);
    let dz = Strided::rows(dy.slice::<f32>(), m, n);
    if run.wants(0) {
        let b = run.input(1)?;
        let b = view(b, b.slice::<f32>(), settings.transpose_b).transposed();
        let mut da = run.tensor(run.shape(0));
        product_into(da.slice_mut::<f32>(), dz, b, settings.transpose_a);
        flows[0] = Some(da.into());
    }
    if run.wants(1) {
        let a = run.input(0)?;
        let a = view(a, a.slice::<f32>(), settings.transpose_a).transposed();
        let mut db = run.tensor(run.shape(1));
        product_into(db.slice_mut::<f32>(), a, dz, settings.transpose_b);
        flows[1] = Some(db.into());
    }
    run.pool.recycle(dy);
    Ok(flows)
}

/// out = a·b, or its transpose bᵀ·aᵀ.
fn product_into(out: &mut [f32], a: Strided<f32>, b: Strided<f32>, transposes: bool) {
    let (a, b) = if transposes { (b.transposed(), a.transposed()) } else { (a, b) };
    gemm::matmul(out, a, Right::Strided(b), None);
}

fn is_f32(x: &Tensor) -> bool {
    x.dtype() == DType::F32
}

/// In the arithmetic of any number, by plain loops.
fn any<T: Number>(
    run: &Run,
    held: Option<&Tensor>,
    settings: &Settings,
) -> Result<Vec<Tensor>, OpError> {
    let a = row_major::<T>(expect_matrix(run.typed::<T>(0)?)?, settings.transpose_a);
    let b = row_major::<T>(expect_matrix(right::<T>(run, held)?)?, settings.transpose_b);
    let ([m, k], [depth, n]) = (a.1, b.1);
    if k != depth {
        return Err(OpError::shapes(&a.1, &b.1));
    }
    let mut y = run.pool.tensor(T::DTYPE, &[m, n]);
    for_rows_of_work(y.slice_mut::<T>(), n, m * k * n, |first, rows| {
        for (index, y) in rows.chunks_exact_mut(n).enumerate() {
            multiply_row(y, &a.0[(first + index) * k..][..k], &b.0);
        }
    });
    finish::<T>(&mut y, run.optional(2), settings)?;
    Ok(vec![y])
}

/// The elements by rows of the matrix or of its transpose, and its sizes.
fn row_major<T: Number>(x: &Tensor, transposes: bool) -> (Vec<T>, [usize; 2]) {
    let ([rows, columns], values) = ([x.shape()[0], x.shape()[1]], x.slice::<T>());
    if !transposes {
        return (values.to_vec(), [rows, columns]);
    }
    let transposed = (0..columns).flat_map(|c| (0..rows).map(move |r| values[r * columns + c]));
    (transposed.collect(), [columns, rows])
}

/// y = α·y + β·c, `c` broadcast.
fn finish<T: Number>(
    y: &mut Tensor,
    c: Option<&Tensor>,
    settings: &Settings,
) -> Result<(), OpError> {
    let shape = y.shape().to_vec();
    let values = y.slice_mut::<T>();
    let scaled = |x: T, factor: f32| match factor {
        1.0 => x,
        _ if T::DTYPE.is_float() => x.times(T::from_f64(f64::from(factor))),
        _ => T::from_f64(x.as_f64() * f64::from(factor)),
    };
    values.iter_mut().for_each(|y| *y = scaled(*y, settings.alpha));
    let Some(c) = c else { return Ok(()) };
    if c.dtype() != T::DTYPE {
        return Err(OpError::DType { index: 2, found: c.dtype() });
    }
    if broadcast_shapes(c.shape(), &shape)? != shape {
        return Err(OpError::shapes(c.shape(), &shape));
    }
    let loops = Loops::new([c.shape()], &shape);
    let [stride] = loops.inner_strides();
    let c = c.slice::<T>();
    let mut rows = values.chunks_exact_mut(loops.inner_size().max(1));
    loops.for_each_row(|[start]| {
        if let Some(row) = rows.next() {
            let terms = row.iter_mut().enumerate();
            terms.for_each(|(i, y)| *y = y.plus(scaled(c[start + i * stride], settings.beta)));
        }
    });
    Ok(())
}
