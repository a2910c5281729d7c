//! `QuantizeLinear` (opset 10; per axis from 13): q = clamp(round(x / scale) + `zero_point`), round
//! half to even. 8-bit types.

use attar_graph::Node;
use attar_tensor::{DType, Tensor};

use crate::fact::resolve_axis;
use crate::kernels::{for_rows, quantize};
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct QuantizeLinear;

/// Scales and zero points of a tensor: one pair, or one per index of an axis.
pub(crate) struct Parameters {
    pub(crate) scales: Vec<f32>,
    pub(crate) zero_points: Vec<i32>,
    /// Elements that share a pair before the next one's turn.
    pub(crate) inner: usize,
}

impl Parameters {
    /// Reads them from inputs 1 and 2.
    pub(crate) fn new(run: &Run, axis: i64) -> Result<Self, OpError> {
        let (x, scale) = (run.input(0)?, run.typed::<f32>(1)?);
        let scales = scale.values::<f32>().into_owned();
        let zero_points: Vec<i32> = match run.optional(2) {
            Some(zero_point) => zero_point
                .to_i64()
                .ok_or(OpError::DType { index: 2, found: zero_point.dtype() })?
                .iter()
                .map(|&zero_point| zero_point as i32)
                .collect(),
            None => vec![0; scales.len()],
        };
        if scales.len() != zero_points.len() {
            return Err(OpError::shapes(&[scales.len()], &[zero_points.len()]));
        }
        if scales.len() == 1 {
            return Ok(Self { scales, zero_points, inner: x.element_count().max(1) });
        }
        let axis = resolve_axis(axis, x.rank())
            .ok_or_else(|| OpError::value("axis", axis, format!("below {}", x.rank())))?;
        if scale.rank() != 1 || scales.len() != x.shape()[axis] {
            let what = OpError::Unsupported { what: "quantization by blocks".into() };
            return Err(if scale.rank() == x.rank() {
                what
            } else {
                OpError::shapes(x.shape(), scale.shape())
            });
        }
        Ok(Self {
            scales,
            zero_points,
            inner: x.shape()[axis + 1..].iter().product::<usize>().max(1),
        })
    }

    /// The pair for the run of equal pairs number `index`.
    pub(crate) fn pair(&self, index: usize) -> (f32, i32) {
        let index = index % self.scales.len();
        (self.scales[index], self.zero_points[index])
    }

    /// Elements that a kernel call may take at once, of a tensor of `count`.
    pub(crate) fn is_single(&self) -> bool {
        self.scales.len() == 1
    }
}

/// The quantized type: that of the zero point, or of the attribute, or u8.
fn target(node: &Node, zero_point: Option<DType>) -> Result<DType, OpError> {
    let dtype = match (zero_point, node.int_or("output_dtype", 0)?) {
        (Some(dtype), _) => dtype,
        (None, 0 | 2) => DType::U8,
        (None, 3) => DType::I8,
        (None, code) => {
            return Err(OpError::Unsupported { what: format!("quantizing to ONNX type {code}") });
        }
    };
    if matches!(dtype, DType::U8 | DType::I8) {
        return Ok(dtype);
    }
    Err(OpError::Unsupported { what: format!("quantizing to {dtype}") })
}

impl Operator for QuantizeLinear {
    fn op_type(&self) -> &'static str {
        "QuantizeLinear"
    }

    fn since_opset(&self) -> i64 {
        10
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        2..=3
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let zero_point = inputs.get(2).copied().flatten().map(|fact| fact.dtype);
        Ok(vec![required(inputs, 0)?.with_dtype(target(node, zero_point)?)])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        let axis = node.int_or("axis", 1)?;
        Ok(Box::new(move |run: &mut Run| {
            let x = run.typed::<f32>(0)?;
            let dtype = target(&node, run.optional(2).map(Tensor::dtype))?;
            let parameters = Parameters::new(run, axis)?;
            let mut y = run.pool.tensor(dtype, x.shape());
            let x = x.slice::<f32>();
            match dtype {
                DType::U8 => each_run(y.slice_mut::<u8>(), x, &parameters, quantize::quantize_u8),
                _ => each_run(y.slice_mut::<i8>(), x, &parameters, quantize::quantize_i8),
            }
            Ok(vec![y])
        }))
    }
}

/// Calls `convert` for every run of elements with one scale and zero point.
pub(crate) fn each_run<T: Send, S: Sync>(
    y: &mut [T],
    x: &[S],
    parameters: &Parameters,
    convert: fn(&mut [T], &[S], f32, i32),
) {
    if parameters.is_single() {
        let (scale, zero_point) = parameters.pair(0);
        return for_rows(y, 1, |first, y| {
            convert(y, &x[first..first + y.len()], scale, zero_point);
        });
    }
    let runs = y.chunks_exact_mut(parameters.inner).zip(x.chunks_exact(parameters.inner));
    for (index, (y, x)) in runs.enumerate() {
        let (scale, zero_point) = parameters.pair(index);
        convert(y, x, scale, zero_point);
    }
}
