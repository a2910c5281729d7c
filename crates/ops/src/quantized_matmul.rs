//! `QuantizedMatMul`, made by fusion: y = activation((q − zero)·b · scales + bias), and perhaps the
//! levels of y instead of y.
//!
//! Inputs: q (u8), its scale and zero point (scalars), b (i8, symmetric; n by k with `transB`), scales
//! of b (one, or one per column), and perhaps a bias, and scale and zero point (u8) of the levels;
//! all but q constant. The sums are exact 32-bit integers.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::fused_matmul::activation;
use crate::kernels::elementwise;
use crate::kernels::gemm::Strided;
use crate::kernels::int8::{Activation, Addend, Output, Product, Rows, Target, Weights};
use crate::matmul::{Sizes, product_dims, product_macs};
use crate::{ATTAR_DOMAIN, Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct QuantizedMatMul;

impl Operator for QuantizedMatMul {
    fn op_type(&self) -> &'static str {
        "QuantizedMatMul"
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        5..=8
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let gives_levels = inputs.get(6).copied().flatten().is_some();
        let dtype = if gives_levels { DType::U8 } else { DType::F32 };
        let (a, b) = (required(inputs, 0)?, required(inputs, 3)?);
        let (Some(a), Some(b)) = (&a.shape, &b.shape) else {
            return Ok(vec![Fact::unranked(dtype)]);
        };
        let mut b = b.clone();
        if is_transposed(node)? {
            b.reverse();
        }
        Ok(vec![Fact::new(dtype, product_dims(a, &b)?)])
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        let product = product(node, constants)?;
        let shape = [product.depth(), product.columns()];
        let gives_levels = constants.get(6).copied().flatten().is_some();
        Ok(Box::new(move |run: &mut Run| {
            let q = run.typed::<u8>(0)?;
            let sizes = Sizes::new(q.shape(), &shape)?;
            let dtype = if gives_levels { DType::U8 } else { DType::F32 };
            let mut y = run.pool.tensor(dtype, &sizes.output);
            let count = sizes.batch.iter().product::<usize>() * sizes.m;
            let rows = Rows { data: q.slice::<u8>(), count, stride: sizes.k };
            let stride = sizes.n;
            let target = if gives_levels {
                Target { f32: None, u8: Some(y.slice_mut::<u8>()), stride }
            } else {
                Target { f32: Some(y.slice_mut::<f32>()), u8: None, stride }
            };
            product.run(rows, Addend::None, target);
            Ok(vec![y])
        }))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        product_macs(inputs, outputs)
    }

    fn keeps_constant(&self, _: usize) -> bool {
        true
    }
}

fn is_transposed(node: &Node) -> Result<bool, OpError> {
    Ok(node.int_or("transB", 0)? != 0)
}

fn product(node: &Node, constants: &[Option<&Tensor>]) -> Result<Product, OpError> {
    let optional = |index: usize| constants.get(index).copied().flatten();
    let constant = |index: usize| optional(index).ok_or(OpError::MissingInput { index });
    let (b, b_scales) = (constant(3)?, constant(4)?.values::<f32>());
    if b.dtype() != DType::I8 || b.rank() != 2 {
        return Err(OpError::DType { index: 3, found: b.dtype() });
    }
    let values = b.values::<i8>();
    let matrix = Strided::rows(&values, b.shape()[0], b.shape()[1]);
    let matrix = if is_transposed(node)? { matrix.transposed() } else { matrix };
    let n = matrix.size[1];
    let scale = scalar_of::<f32>(constant(1)?, 1)?;
    let scales: Vec<f32> = b_scales.iter().map(|b_scale| scale * b_scale).collect();
    if scales.len() != n && scales.len() != 1 {
        return Err(OpError::shapes(&matrix.size, &[scales.len()]));
    }
    let bias = optional(5).map(Tensor::values::<f32>);
    if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != n) {
        return Err(OpError::shapes(&matrix.size, &[bias.len()]));
    }
    let output = match optional(6) {
        None => Output::F32,
        Some(scale) => {
            Output::U8 { scale: scalar_of(scale, 6)?, zero_point: scalar_of(constant(7)?, 7)? }
        }
    };
    let zero_point = scalar_of(constant(2)?, 2)?;
    let (weights, activation) = (Weights::new(matrix), tile_activation(node)?);
    Ok(Product::new(weights, zero_point, &scales, bias.as_deref(), activation, output))
}

/// The one value of input `index`.
fn scalar_of<T: attar_tensor::Element + Copy>(tensor: &Tensor, index: usize) -> Result<T, OpError> {
    if !T::views(tensor.dtype()) {
        return Err(OpError::DType { index, found: tensor.dtype() });
    }
    let values = tensor.values::<T>();
    match *values {
        [value] => Ok(value),
        _ => Err(OpError::shapes(&[], tensor.shape())),
    }
}

/// What the `activation` attribute names, as the tile applies it.
fn tile_activation(node: &Node) -> Result<Activation, OpError> {
    Ok(match node.text("activation")?.unwrap_or("") {
        "Gelu" => Activation::Gelu,
        "GeluTanh" => Activation::Each(elementwise::gelu_tanh),
        "Relu" => Activation::Clip { low: 0.0, high: f32::INFINITY },
        _ => activation(node)?.map_or(Activation::None, Activation::Each),
    })
}
