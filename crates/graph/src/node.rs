//! Model, graph, node and value, as ONNX has them.

use attar_tensor::{Bytes, DType, Tensor};
use indexmap::IndexMap;

use crate::{Dim, GraphError};

/// A graph with the operator sets that give its nodes their meaning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    pub ir_version: i64,
    /// Version of each operator set by domain; the domain of ONNX itself is `""`.
    pub opsets: IndexMap<String, i64>,
    pub producer_name: String,
    pub producer_version: String,
    pub domain: String,
    pub model_version: i64,
    pub doc_string: String,
    pub metadata: IndexMap<String, String>,
    pub functions: Vec<Function>,
    pub graph: Graph,
    /// What the file says beyond this structure, kept as its reader encoded it.
    pub extra: Bytes,
}

impl Model {
    /// The model around an empty graph: what a graph inside one of its nodes is read with.
    pub fn without_graph(&self) -> Self {
        Self {
            ir_version: self.ir_version,
            opsets: self.opsets.clone(),
            functions: self.functions.clone(),
            ..Self::default()
        }
    }

    /// Names version 1 of every operator set that a node is of and that the model does not name: a
    /// pass may have brought it in.
    pub fn import_domains(&mut self) {
        fn visit(graph: &Graph, opsets: &mut IndexMap<String, i64>) {
            for node in &graph.nodes {
                if !node.domain.is_empty() && !opsets.contains_key(&node.domain) {
                    opsets.insert(node.domain.clone(), 1);
                }
                node.subgraphs().for_each(|subgraph| visit(subgraph, opsets));
            }
        }
        visit(&self.graph, &mut self.opsets);
    }

    /// Version of the ONNX operator set; 1 where the model names none.
    pub fn opset(&self) -> i64 {
        self.opsets.get("").copied().unwrap_or(1)
    }
}

/// An operator defined by nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Function {
    pub name: String,
    pub domain: String,
    pub overload: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub attributes: Vec<String>,
    pub attribute_defaults: IndexMap<String, Attribute>,
    pub nodes: Vec<Node>,
    pub opsets: IndexMap<String, i64>,
    pub doc_string: String,
    pub extra: Bytes,
}

/// Nodes in an order in which each can run, and the constants they read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    pub name: String,
    pub nodes: Vec<Node>,
    pub initializers: IndexMap<String, StoredTensor>,
    pub inputs: Vec<Value>,
    pub outputs: Vec<Value>,
    /// Types recorded for values in between.
    pub values: Vec<Value>,
    pub doc_string: String,
    pub extra: Bytes,
}

impl Graph {
    /// The constant called `name`: an initializer, or the `value` of a `Constant` node.
    pub fn constant(&self, name: &str) -> Option<&Tensor> {
        if let Some(stored) = self.initializers.get(name) {
            return Some(&stored.tensor);
        }
        self.nodes.iter().find(|node| node.outputs.first().is_some_and(|o| o == name))?.constant()
    }

    /// Every constant with its name: initializers, then `Constant` nodes, in file order.
    pub fn constants(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let stored = self.initializers.iter().map(|(name, stored)| (name.as_str(), &stored.tensor));
        let nodes = self
            .nodes
            .iter()
            .filter_map(|node| Some((node.outputs.first()?.as_str(), node.constant()?)));
        stored.chain(nodes)
    }

    /// Inputs that the caller must feed: those without an initializer of the same name.
    pub fn required_inputs(&self) -> impl Iterator<Item = &Value> {
        self.inputs.iter().filter(|input| !self.initializers.contains_key(&input.name))
    }

    pub fn is_output(&self, value: &str) -> bool {
        self.outputs.iter().any(|output| output.name == value)
    }

    /// Adds a constant, or replaces the one of that name.
    pub fn set_initializer(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.initializers.insert(name.into(), tensor.into());
    }
}

/// A tensor as a file holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTensor {
    pub tensor: Tensor,
    pub form: TensorForm,
    pub extra: Bytes,
}

/// How a file writes a tensor's elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TensorForm {
    /// As their bytes.
    #[default]
    Raw,
    /// As a list of numbers.
    Typed,
    /// Only those that are not zero, with their indices. `extra` then holds the whole of it.
    Sparse,
}

impl From<Tensor> for StoredTensor {
    fn from(tensor: Tensor) -> Self {
        Self { tensor, form: TensorForm::Raw, extra: Bytes::new() }
    }
}

/// A named value: graph input, output, or something in between.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    pub name: String,
    pub value_type: Option<ValueType>,
    pub doc_string: String,
    pub extra: Bytes,
}

impl Value {
    pub fn tensor(name: impl Into<String>, dtype: DType, shape: Vec<Dim>) -> Self {
        let value_type = Some(ValueType::Tensor { dtype: Some(dtype), shape: Some(shape) });
        Self { name: name.into(), value_type, doc_string: String::new(), extra: Bytes::new() }
    }

    /// A value of which nothing but the name is known.
    pub fn untyped(name: impl Into<String>) -> Self {
        let (doc_string, extra) = (String::new(), Bytes::new());
        Self { name: name.into(), value_type: None, doc_string, extra }
    }

    pub fn dtype(&self) -> Option<DType> {
        match self.value_type {
            Some(ValueType::Tensor { dtype, .. }) => dtype,
            _ => None,
        }
    }

    pub fn shape(&self) -> Option<&[Dim]> {
        match &self.value_type {
            Some(ValueType::Tensor { shape, .. }) => shape.as_deref(),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum ValueType {
    /// `None` where the file leaves the element type or the shape open.
    Tensor {
        dtype: Option<DType>,
        shape: Option<Vec<Dim>>,
    },
    SparseTensor {
        dtype: Option<DType>,
        shape: Option<Vec<Dim>>,
    },
    Sequence(Option<Box<ValueType>>),
    Optional(Option<Box<ValueType>>),
    Map {
        key: Option<DType>,
        value: Option<Box<ValueType>>,
    },
    Opaque {
        domain: String,
        name: String,
    },
    /// A type message with no kind set.
    Unspecified,
}

/// One application of an operator. An absent optional input is the empty string.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    pub name: String,
    pub op_type: String,
    pub domain: String,
    pub overload: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub attributes: IndexMap<String, Attribute>,
    pub doc_string: String,
    pub extra: Bytes,
}

impl Node {
    /// A node of the ONNX domain.
    pub fn new(op_type: &str, name: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        Self {
            name: name.into(),
            op_type: op_type.into(),
            inputs: inputs.iter().map(|&value| value.into()).collect(),
            outputs: outputs.iter().map(|&value| value.into()).collect(),
            ..Self::default()
        }
    }

    pub fn with_attribute(mut self, name: &str, value: impl Into<AttributeValue>) -> Self {
        self.attributes.insert(name.into(), value.into().into());
        self
    }

    pub fn with_domain(mut self, domain: &str) -> Self {
        self.domain = domain.into();
        self
    }

    /// How messages call this node: its name, or its first output where it has none.
    pub fn label(&self) -> &str {
        if self.name.is_empty() {
            self.outputs.first().map_or("", String::as_str)
        } else {
            &self.name
        }
    }

    /// The input at `index`, unless it is absent.
    pub fn input(&self, index: usize) -> Option<&str> {
        self.inputs.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Whether this is `op_type` of the ONNX domain.
    pub fn is(&self, op_type: &str) -> bool {
        self.op_type == op_type && matches!(self.domain.as_str(), "" | "ai.onnx")
    }

    /// The tensor of a `Constant` node.
    pub fn constant(&self) -> Option<&Tensor> {
        if !self.is("Constant") {
            return None;
        }
        match &self.attributes.get("value")?.value {
            AttributeValue::Tensor(stored) => Some(&stored.tensor),
            _ => None,
        }
    }

    /// Replaces the tensor of a `Constant` node that has one; leaves other nodes alone.
    pub fn set_constant(&mut self, tensor: Tensor) {
        if self.constant().is_none() {
            return;
        }
        if let Some(attribute) = self.attributes.get_mut("value") {
            attribute.value = AttributeValue::Tensor(tensor.into());
        }
    }

    pub fn attribute(&self, name: &str) -> Option<&AttributeValue> {
        self.attributes.get(name).map(|attribute| &attribute.value)
    }

    fn typed<'a, T>(
        &'a self,
        name: &str,
        expected: &'static str,
        get: impl Fn(&'a AttributeValue) -> Option<T>,
    ) -> Result<Option<T>, GraphError> {
        let Some(value) = self.attribute(name) else { return Ok(None) };
        get(value).map(Some).ok_or_else(|| GraphError::AttributeType {
            node: self.label().into(),
            attribute: name.into(),
            found: value.kind(),
            expected,
        })
    }

    /// # Errors
    /// When the attribute is there with another type; so for the accessors below.
    pub fn int(&self, name: &str) -> Result<Option<i64>, GraphError> {
        self.typed(name, "an int", |value| match value {
            AttributeValue::Int(x) => Some(*x),
            _ => None,
        })
    }

    pub fn int_or(&self, name: &str, default: i64) -> Result<i64, GraphError> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    pub fn float_or(&self, name: &str, default: f32) -> Result<f32, GraphError> {
        let value = self.typed(name, "a float", |value| match value {
            AttributeValue::Float(x) => Some(*x),
            _ => None,
        })?;
        Ok(value.unwrap_or(default))
    }

    pub fn ints(&self, name: &str) -> Result<Option<&[i64]>, GraphError> {
        self.typed(name, "ints", |value| match value {
            AttributeValue::Ints(x) => Some(x.as_slice()),
            _ => None,
        })
    }

    pub fn text(&self, name: &str) -> Result<Option<&str>, GraphError> {
        self.typed(name, "a string", |value| match value {
            AttributeValue::String(x) => std::str::from_utf8(x).ok(),
            _ => None,
        })
    }

    /// Graphs in the attributes (`If`, `Loop`, `Scan`).
    pub fn subgraphs(&self) -> impl Iterator<Item = &Graph> {
        self.attributes.values().flat_map(|attribute| match &attribute.value {
            AttributeValue::Graph(graph) => std::slice::from_ref(graph.as_ref()),
            AttributeValue::Graphs(graphs) => graphs.as_slice(),
            _ => &[],
        })
    }

    pub fn subgraphs_mut(&mut self) -> impl Iterator<Item = &mut Graph> {
        self.attributes.values_mut().flat_map(|attribute| match &mut attribute.value {
            AttributeValue::Graph(graph) => std::slice::from_mut(graph.as_mut()),
            AttributeValue::Graphs(graphs) => graphs.as_mut_slice(),
            _ => &mut [],
        })
    }
}

/// A named setting of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribute {
    pub value: AttributeValue,
    pub doc_string: String,
    pub extra: Bytes,
}

impl<T: Into<AttributeValue>> From<T> for Attribute {
    fn from(value: T) -> Self {
        Self { value: value.into(), doc_string: String::new(), extra: Bytes::new() }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum AttributeValue {
    Float(f32),
    Int(i64),
    String(Bytes),
    Tensor(StoredTensor),
    Graph(Box<Graph>),
    Type(ValueType),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Strings(Vec<Bytes>),
    Tensors(Vec<StoredTensor>),
    Graphs(Vec<Graph>),
    Types(Vec<ValueType>),
    /// In a function body: the attribute of the calling node with this name.
    Reference(String),
    /// A kind the reader keeps encoded (sparse tensors).
    Encoded(Bytes),
}

impl AttributeValue {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Float(_) => "a float",
            Self::Int(_) => "an int",
            Self::String(_) => "a string",
            Self::Tensor(_) => "a tensor",
            Self::Graph(_) => "a graph",
            Self::Type(_) => "a type",
            Self::Floats(_) => "floats",
            Self::Ints(_) => "ints",
            Self::Strings(_) => "strings",
            Self::Tensors(_) => "tensors",
            Self::Graphs(_) => "graphs",
            Self::Types(_) => "types",
            Self::Reference(_) => "a reference",
            Self::Encoded(_) => "an encoded value",
        }
    }
}

impl From<i64> for AttributeValue {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<f32> for AttributeValue {
    fn from(value: f32) -> Self {
        Self::Float(value)
    }
}

impl From<&str> for AttributeValue {
    fn from(value: &str) -> Self {
        Self::String(Bytes::copy_from_slice(value.as_bytes()))
    }
}

impl From<Vec<i64>> for AttributeValue {
    fn from(values: Vec<i64>) -> Self {
        Self::Ints(values)
    }
}

impl From<Vec<f32>> for AttributeValue {
    fn from(values: Vec<f32>) -> Self {
        Self::Floats(values)
    }
}

impl From<Tensor> for AttributeValue {
    fn from(tensor: Tensor) -> Self {
        Self::Tensor(tensor.into())
    }
}

impl From<Graph> for AttributeValue {
    fn from(graph: Graph) -> Self {
        Self::Graph(Box::new(graph))
    }
}
