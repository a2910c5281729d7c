//! A graph in the making: names, constants and the layers that all networks share.

use std::ops::RangeInclusive;

use attar_graph::{Dim, Graph, Model, Node, Value};
use attar_tensor::{DType, Tensor};

use crate::ImportError;
use crate::weights::Weights;

/// A graph, and the weights it is filled from.
pub(crate) struct Builder {
    pub(crate) weights: Weights,
    pub(crate) opset: i64,
    /// What stands before the names of nodes and weights: one of several networks in the graph.
    pub(crate) network: &'static str,
    graph: Graph,
}

impl Builder {
    pub(crate) fn new(name: &str, weights: Weights, opset: i64) -> Self {
        Self { weights, opset, network: "", graph: Graph { name: name.into(), ..Graph::default() } }
    }

    pub(crate) fn input(&mut self, name: &str, dtype: DType, dims: &[Dim]) {
        self.graph.inputs.push(Value::tensor(name, dtype, dims.to_vec()));
    }

    /// Makes `value` a float output called `name`.
    pub(crate) fn output(&mut self, value: &str, name: &str, dims: &[Dim]) {
        for node in &mut self.graph.nodes {
            for other in node.inputs.iter_mut().chain(&mut node.outputs) {
                if other == value {
                    *other = name.into();
                }
            }
        }
        self.graph.outputs.push(Value::tensor(name, DType::F32, dims.to_vec()));
    }

    /// Adds a node that is called `name`, and names its output.
    pub(crate) fn node(&mut self, op_type: &str, name: &str, inputs: &[&str]) -> String {
        self.push(Node::new(op_type, name, inputs, &[]))
    }

    /// Adds a node without outputs yet, and names its output.
    pub(crate) fn push(&mut self, mut node: Node) -> String {
        if !self.network.is_empty() {
            node.name = format!("/{}{}", self.network, node.name);
        }
        let output = format!("{}_output", node.name);
        node.outputs.push(output.clone());
        self.graph.nodes.push(node);
        output
    }

    /// As [`push`](Self::push), with a second output called `second`.
    pub(crate) fn push_with(&mut self, node: Node, second: &str) -> String {
        let output = self.push(node);
        let node = self.graph.nodes.last_mut().expect("it was pushed");
        node.outputs.push(second.into());
        output
    }

    /// A constant of the architecture, shared by all that ask for the name.
    pub(crate) fn constant(&mut self, name: &str, tensor: Tensor) -> String {
        self.graph.set_initializer(name, tensor);
        name.into()
    }

    pub(crate) fn scalar(&mut self, name: &str, value: f32) -> String {
        self.constant(name, Tensor::scalar(value))
    }

    pub(crate) fn integers(&mut self, name: &str, values: &[i64]) -> String {
        self.constant(name, Tensor::new(&[values.len()], values))
    }

    /// The weight `name` as an initializer; gives the name it has in the file.
    pub(crate) fn weight(&mut self, name: &str, shape: &[usize]) -> Result<String, ImportError> {
        let (name, tensor) = self.weights.take(&self.in_network(name), shape)?;
        Ok(self.constant(&name, tensor))
    }

    fn in_network(&self, name: &str) -> String {
        if self.network.is_empty() { name.into() } else { format!("{}.{name}", self.network) }
    }

    /// The matrix `name`, stored [rows, columns], transposed as a right factor needs it.
    pub(crate) fn transposed(
        &mut self,
        name: &str,
        shape: [usize; 2],
    ) -> Result<String, ImportError> {
        let (name, tensor) = self.weights.take(&self.in_network(name), &shape)?;
        Ok(self.constant(&name, transpose(&tensor, shape)))
    }

    /// y = x·Wᵀ + b, the weights being those of a `PyTorch` `Linear` at `path`.
    pub(crate) fn linear(
        &mut self,
        path: &str,
        x: &str,
        [out_size, in_size]: [usize; 2],
    ) -> Result<String, ImportError> {
        let product = self.product(path, x, [out_size, in_size])?;
        let bias = self.weight(&format!("{path}.bias"), &[out_size])?;
        Ok(self.node("Add", &format!("{}/Add", scope(path)), &[&product, &bias]))
    }

    /// y = x·Wᵀ, the weights being those of a `PyTorch` `Linear` without bias at `path`.
    pub(crate) fn product(
        &mut self,
        path: &str,
        x: &str,
        size: [usize; 2],
    ) -> Result<String, ImportError> {
        let weight = self.transposed(&format!("{path}.weight"), size)?;
        Ok(self.node("MatMul", &format!("{}/MatMul", scope(path)), &[x, &weight]))
    }

    /// y = x·Wᵀ + b for the rows of a matrix, in one operator.
    pub(crate) fn gemm(
        &mut self,
        path: &str,
        x: &str,
        [out_size, in_size]: [usize; 2],
    ) -> Result<String, ImportError> {
        let weight = self.weight(&format!("{path}.weight"), &[out_size, in_size])?;
        let bias = self.weight(&format!("{path}.bias"), &[out_size])?;
        let gemm = Node::new("Gemm", &format!("{}/Gemm", scope(path)), &[x, &weight, &bias], &[]);
        Ok(self.push(gemm.with_attribute("transB", 1_i64)))
    }

    /// The normalization at `path` over the last axis, which has `size` elements.
    pub(crate) fn layer_norm(
        &mut self,
        path: &str,
        x: &str,
        size: usize,
        epsilon: f32,
    ) -> Result<String, ImportError> {
        let scale = self.weight(&format!("{path}.weight"), &[size])?;
        let bias = self.weight(&format!("{path}.bias"), &[size])?;
        let name = format!("{}/LayerNormalization", scope(path));
        let node = Node::new("LayerNormalization", &name, &[x, &scale, &bias], &[]);
        Ok(self.push(node.with_attribute("epsilon", epsilon)))
    }

    /// The maxima of windows of `size`×`size`.
    pub(crate) fn max_pool(
        &mut self,
        name: &str,
        x: &str,
        [size, stride, padding]: [i64; 3],
    ) -> String {
        let node = Node::new("MaxPool", name, &[x], &[])
            .with_attribute("kernel_shape", vec![size; 2])
            .with_attribute("strides", vec![stride; 2])
            .with_attribute("pads", vec![padding; 4]);
        self.push(node)
    }

    /// Leaves out a `fraction` of `x` in training alone; nothing where that is none.
    pub(crate) fn dropout(&mut self, name: &str, x: &str, fraction: f64) -> String {
        if fraction == 0.0 {
            return x.into();
        }
        let ratio = self.scalar(&format!("dropout.{fraction}"), fraction as f32);
        self.node("Dropout", name, &[x, &ratio])
    }

    /// The vector of token `index` of `tokens` [batch, sequence, hidden].
    pub(crate) fn token(&mut self, name: &str, tokens: &str, index: i64) -> String {
        let index = self.constant(&format!("token.{index}"), Tensor::scalar(index));
        let node = Node::new("Gather", name, &[tokens, &index], &[]);
        self.push(node.with_attribute("axis", 1_i64))
    }

    /// One reduction; where its axes stand depends on operator and opset.
    pub(crate) fn reduce(
        &mut self,
        op_type: &str,
        name: &str,
        x: &str,
        axis: i64,
        keeps_axis: bool,
    ) -> String {
        let axes_are_input = self.opset >= if op_type == "ReduceSum" { 13 } else { 18 };
        let node = if axes_are_input {
            let axes = self.integers(&format!("axis.{axis}"), &[axis]);
            Node::new(op_type, name, &[x, &axes], &[])
        } else {
            Node::new(op_type, name, &[x], &[]).with_attribute("axes", vec![axis])
        };
        self.push(node.with_attribute("keepdims", i64::from(keeps_axis)))
    }

    /// The finished model, and the names of tensors that it has no use for.
    pub(crate) fn finish(self) -> (Model, Weights) {
        let model = Model {
            ir_version: ir_version(self.opset),
            opsets: [(String::new(), self.opset)].into_iter().collect(),
            producer_name: "attar".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: self.graph,
            ..Model::default()
        };
        (model, self.weights)
    }
}

/// Opsets that can be written: from the first with `LayerNormalization` on.
pub const OPSETS: RangeInclusive<i64> = 17..=21;

/// # Errors
/// An opset that is none of [`OPSETS`].
pub(crate) fn check_opset(found: i64) -> Result<(), ImportError> {
    if OPSETS.contains(&found) { Ok(()) } else { Err(ImportError::Opset { found, range: OPSETS }) }
}

/// The file format of the release that brought `opset`, the oldest that readers of it take.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=18 => 8,
        19..=20 => 9,
        _ => 10,
    }
}

/// Where a module stands, as node names say it: `encoder.layer.0.output` → `/encoder/layer.0/output`.
pub(crate) fn scope(path: &str) -> String {
    let mut scope = String::new();
    for part in path.split('.') {
        let is_index = part.bytes().all(|byte| byte.is_ascii_digit());
        scope.push(if is_index { '.' } else { '/' });
        scope.push_str(part);
    }
    scope
}

/// Rows to columns, block by block so that both sides stay in the cache.
fn transpose(matrix: &Tensor, [rows, columns]: [usize; 2]) -> Tensor {
    const BLOCK: usize = 32;
    let x = matrix.values::<f32>();
    let mut transposed = Tensor::zeros(DType::F32, &[columns, rows]);
    let y = transposed.slice_mut::<f32>();
    for top in (0..rows).step_by(BLOCK) {
        for left in (0..columns).step_by(BLOCK) {
            for column in left..(left + BLOCK).min(columns) {
                for row in top..(top + BLOCK).min(rows) {
                    y[column * rows + row] = x[row * columns + column];
                }
            }
        }
    }
    transposed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_stays_with_the_list_it_counts() {
        assert_eq!(scope("encoder.layer.0.attention.self"), "/encoder/layer.0/attention/self");
        assert_eq!(scope("features.1.conv.0.0"), "/features.1/conv.0.0");
    }

    #[test]
    fn matrices_larger_than_a_block_transpose() {
        let values: Vec<f32> = (0..70 * 33).map(|x| x as f32).collect();
        let once = transpose(&Tensor::new(&[70, 33], &values), [70, 33]);
        assert_eq!(once.shape(), [33, 70]);
        assert_eq!(once.slice::<f32>()[1].to_bits(), 33.0_f32.to_bits());
        assert_eq!(transpose(&once, [33, 70]).slice::<f32>(), values);
    }
}
