//! What is known of a value before anything runs.

use attar_graph::Dim;
use attar_tensor::{DType, Tensor};

/// Type, shape and, for constants and shape arithmetic, the elements of a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    pub dtype: DType,
    /// `None` when not even the rank is known.
    pub shape: Option<Vec<Dim>>,
    pub constant: Option<Tensor>,
    /// Elements of an integer scalar or vector, some perhaps symbolic.
    elements: Option<Vec<Dim>>,
}

/// Longest vector followed element by element: shapes and axes, not data.
const ELEMENTS_MAX: usize = 64;

impl Fact {
    pub fn new(dtype: DType, shape: Vec<Dim>) -> Self {
        Self { dtype, shape: Some(shape), constant: None, elements: None }
    }

    pub fn unranked(dtype: DType) -> Self {
        Self { dtype, shape: None, constant: None, elements: None }
    }

    /// The shape with the given type; unranked stays unranked.
    pub fn with_dtype(&self, dtype: DType) -> Self {
        Self { dtype, shape: self.shape.clone(), constant: None, elements: None }
    }

    pub fn constant(tensor: &Tensor) -> Self {
        let shape = tensor.shape().iter().map(|&dim| Dim::from(dim)).collect();
        let mut fact = Self::new(tensor.dtype(), shape);
        if tensor.rank() <= 1 && tensor.element_count() <= ELEMENTS_MAX {
            fact.elements =
                tensor.to_i64().map(|values| values.into_iter().map(Dim::Known).collect());
        }
        fact.constant = Some(tensor.clone());
        fact
    }

    /// A vector (`rank` 1) or scalar (`rank` 0) of i64 whose elements are followed.
    pub fn integers(elements: Vec<Dim>, rank: usize) -> Self {
        let shape = if rank == 0 { Vec::new() } else { vec![Dim::from(elements.len())] };
        let mut fact = Self::new(DType::I64, shape);
        fact.elements = (elements.len() <= ELEMENTS_MAX).then_some(elements);
        fact
    }

    pub fn elements(&self) -> Option<&[Dim]> {
        self.elements.as_deref()
    }

    pub fn set_elements(&mut self, elements: Vec<Dim>) {
        self.elements = (elements.len() <= ELEMENTS_MAX).then_some(elements);
    }

    /// Elements that are all known numbers.
    pub fn known_elements(&self) -> Option<Vec<i64>> {
        self.elements()?.iter().map(Dim::known).collect()
    }

    pub fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(Vec::len)
    }

    /// The number of elements; unknown for unranked values.
    pub fn element_count(&self) -> Dim {
        match &self.shape {
            Some(shape) => product(shape),
            None => Dim::Unknown,
        }
    }
}

/// Π dims, 1 for none.
pub(crate) fn product(dims: &[Dim]) -> Dim {
    dims.iter().fold(Dim::Known(1), |product, dim| &product * dim)
}

/// An axis counted from the end when negative, as an index below `rank`.
pub(crate) fn resolve_axis(axis: i64, rank: usize) -> Option<usize> {
    let resolved = if axis < 0 { axis.checked_add(rank as i64)? } else { axis };
    usize::try_from(resolved).ok().filter(|&index| index < rank)
}
