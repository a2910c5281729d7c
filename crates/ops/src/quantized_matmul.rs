//! `QuantizedMatMul`, made by fusion: y = activation((q − zero)·b · scales + bias), and perhaps the
//! levels of y instead of y.
//!
//! Inputs: q (u8), its scale and zero point (scalars), b (i8, symmetric; n by k with `transB`), scales
//! of b (one, or one per column), and perhaps a bias, and scales (one, or one per column) and zero
//! points (u8, all the same) of the levels; all but q constant. The sums are exact 32-bit integers.
//!
//! `QuantizedMatMuls` has the last five of these again for every further product of the same q, and an
//! output for each: the projections of an attention divide their work over threads once.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use crate::fused_matmul::activation;
use crate::kernels::elementwise;
use crate::kernels::gemm::Strided;
use crate::kernels::int8::{Activation, Output, Product, Rows, Target, Values, Weights, run_all};
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
        infer_products(node, inputs)
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(Products::new(node, constants)?))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        product_macs(inputs, outputs)
    }

    fn keeps_constant(&self, _: usize) -> bool {
        true
    }
}

pub(crate) struct QuantizedMatMuls;

impl Operator for QuantizedMatMuls {
    fn op_type(&self) -> &'static str {
        "QuantizedMatMuls"
    }

    fn domain(&self) -> &'static str {
        ATTAR_DOMAIN
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        8..=usize::MAX
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        infer_products(node, inputs)
    }

    fn kernel(
        &self,
        node: &Node,
        constants: &[Option<&Tensor>],
    ) -> Result<Box<dyn Kernel>, OpError> {
        Ok(Box::new(Products::new(node, constants)?))
    }

    fn macs(&self, _: &Node, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Dim {
        let each = outputs.iter().map(|output| product_macs(inputs, std::slice::from_ref(output)));
        each.reduce(|sum, macs| &sum + &macs).unwrap_or(Dim::Unknown)
    }

    fn keeps_constant(&self, _: usize) -> bool {
        true
    }
}

/// Inputs of q, and of each product.
const SHARED: usize = 3;
pub(crate) const EACH: usize = 5;

fn infer_products(node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
    let mut facts = Vec::new();
    for index in (SHARED..inputs.len()).step_by(EACH) {
        let gives_levels = inputs.get(index + 3).copied().flatten().is_some();
        let dtype = if gives_levels { DType::U8 } else { DType::F32 };
        let (a, b) = (required(inputs, 0)?, required(inputs, index)?);
        facts.push(match (&a.shape, &b.shape) {
            (Some(a), Some(b)) => {
                let mut b = b.clone();
                if is_transposed(node)? {
                    b.reverse();
                }
                Fact::new(dtype, product_dims(a, &b)?)
            }
            _ => Fact::unranked(dtype),
        });
    }
    Ok(facts)
}

/// Products of one q.
struct Products(Vec<Product>);

impl Products {
    fn new(node: &Node, constants: &[Option<&Tensor>]) -> Result<Self, OpError> {
        let firsts = (SHARED..constants.len()).step_by(EACH);
        let products: Result<_, _> = firsts.map(|first| product(node, constants, first)).collect();
        Ok(Self(products?))
    }
}

impl Kernel for Products {
    fn run(&self, run: &mut Run) -> Result<Vec<Tensor>, OpError> {
        let q = run.typed::<u8>(0)?;
        let mut outputs = Vec::with_capacity(self.0.len());
        let mut rows = Rows { data: q.slice::<u8>(), count: 0, stride: 0 };
        for product in &self.0 {
            let sizes = Sizes::new(q.shape(), &[product.depth(), product.columns()])?;
            rows.count = sizes.batch.iter().product::<usize>() * sizes.m;
            rows.stride = sizes.k;
            outputs.push(run.pool.tensor(product.dtype(), &sizes.output));
        }
        let targets = self.0.iter().zip(&mut outputs).map(|(product, y)| {
            let stride = product.columns();
            let target = match product.dtype() {
                DType::U8 => Target { values: Values::U8(y.slice_mut::<u8>()), stride },
                _ => Target { values: Values::F32(y.slice_mut::<f32>()), stride },
            };
            (product, target)
        });
        run_all(rows, targets);
        Ok(outputs)
    }
}

fn is_transposed(node: &Node) -> Result<bool, OpError> {
    Ok(node.int_or("transB", 0)? != 0)
}

/// The product whose own inputs begin at `first`.
fn product(node: &Node, constants: &[Option<&Tensor>], first: usize) -> Result<Product, OpError> {
    let optional = |index: usize| constants.get(index).copied().flatten();
    let constant = |index: usize| optional(index).ok_or(OpError::MissingInput { index });
    let (b, b_scales) = (constant(first)?, constant(first + 1)?.values::<f32>());
    if b.dtype() != DType::I8 || b.rank() != 2 {
        return Err(OpError::DType { index: first, found: b.dtype() });
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
    let has_bias = node.input(first + 2).is_some();
    let bias = has_bias.then(|| constant(first + 2)).transpose()?.map(Tensor::values::<f32>);
    if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != n) {
        return Err(OpError::shapes(&matrix.size, &[bias.len()]));
    }
    let level_scales = optional(first + 3).map(Tensor::values::<f32>);
    let output = match &level_scales {
        None => Output::F32,
        Some(scales) if scales.len() != n && scales.len() != 1 => {
            return Err(OpError::shapes(&matrix.size, &[scales.len()]));
        }
        Some(scales) => {
            Output::U8 { scales, zero_point: shared_zero(constant(first + 4)?, first + 4)? }
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

/// The zero point of levels, the same for all columns.
pub(crate) fn shared_zero(tensor: &Tensor, index: usize) -> Result<u8, OpError> {
    if tensor.dtype() != DType::U8 {
        return Err(OpError::DType { index, found: tensor.dtype() });
    }
    match tensor.slice::<u8>() {
        [first, rest @ ..] if rest.iter().all(|zero| zero == first) => Ok(*first),
        _ => Err(OpError::value("the zero points of levels", "several", "one for all columns")),
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
