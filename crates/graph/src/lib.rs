//! The graph of a network and the only code that changes one. Knows no file and no operator.

mod dim;
mod edit;
mod inline;
mod links;
mod name_patterns;
mod node;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod validate;

pub use dim::{Dim, parse_dim};
pub use edit::{Edit, Plan, apply};
pub use inline::{inline_branch, inline_functions};
pub use links::{Links, Use, all_names, captured_names};
pub use name_patterns::NamePatterns;
pub use node::{
    Attribute, AttributeValue, Function, Graph, Model, Node, StoredTensor, TensorForm, Value,
    ValueType,
};
pub use validate::{sort_nodes, validate, validate_function};

/// Why a graph is not well formed, or an edit cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GraphError {
    #[error("value `{value}` is produced twice, the second time by node `{node}`")]
    Redefined { value: String, node: String },

    #[error("node `{node}` ({op_type}) reads `{value}`, which nothing produces")]
    Dangling { node: String, op_type: String, value: String },

    #[error(
        "node `{node}` ({op_type}) reads `{value}`, which only node `{producer}` after it produces"
    )]
    Unsorted { node: String, op_type: String, value: String, producer: String },

    #[error("graph input `{value}` is there twice")]
    DuplicateInput { value: String },

    #[error("graph output `{value}` is produced by nothing")]
    MissingOutput { value: String },

    #[error("node `{node}` ({op_type}) takes part in a cycle")]
    Cycle { node: String, op_type: String },

    #[error("an edit names node {index}, the graph has {count}")]
    NoSuchNode { index: usize, count: usize },

    #[error("an edit names value `{value}`, which the graph does not have")]
    NoSuchValue { value: String },

    #[error("attribute `{attribute}` of node `{node}` is {found}, expected {expected}")]
    AttributeType { node: String, attribute: String, found: &'static str, expected: &'static str },

    #[error("node `{node}` calls the function `{function}` with {reason}")]
    FunctionCall { node: String, function: String, reason: String },

    #[error("subgraphs of node `{node}` are nested more than {limit} deep")]
    TooDeep { node: String, limit: usize },
}
