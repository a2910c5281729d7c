//! Unique (opset 11 and later): the different elements, or slices along an axis, sorted or in
//! the order of their first occurrence; with the places of these, the number of each input's
//! among them, and how often each occurs. NaNs count as equal, and as the largest.

use attar_graph::{Dim, Node};
use attar_tensor::{DType, Tensor};

use super::axis_of;
use crate::gather::Gather;
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct Unique;

impl Operator for Unique {
    fn op_type(&self) -> &'static str {
        "Unique"
    }

    fn since_opset(&self) -> i64 {
        11
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        let y = match (&x.shape, node.int("axis")?) {
            (_, None) => Fact::new(x.dtype, vec![Dim::Unknown]),
            (Some(shape), Some(_)) => {
                let mut shape = shape.clone();
                let axis = axis_of(node, 0, shape.len())?;
                shape[axis] = Dim::Unknown;
                Fact::new(x.dtype, shape)
            }
            (None, Some(_)) => Fact::unranked(x.dtype),
        };
        let list = Fact::new(DType::I64, vec![Dim::Unknown]);
        Ok(vec![y, list.clone(), list.clone(), list])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        let sorted = node.int_or("sorted", 1)? != 0;
        Ok(Box::new(move |run: &mut Run| {
            let x = run.input(0)?;
            let x = match node.int("axis")? {
                Some(_) => x.clone(),
                None => x.reshaped(&[x.element_count()]),
            };
            let axis = axis_of(&node, 0, x.rank())?;
            let keys = keys(&x).ok_or(OpError::DType { index: 0, found: x.dtype() })?;
            let groups = Groups::new(&items(&keys, x.shape(), axis), sorted);
            let list = |values: &[usize]| {
                let values: Vec<i64> = values.iter().map(|&value| value as i64).collect();
                Tensor::new(&[values.len()], &values)
            };
            let firsts = list(&groups.firsts);
            let gather = Node::new("Gather", "", &[], &[]).with_attribute("axis", axis as i64);
            let mut inputs = Run { inputs: vec![Some(x), Some(firsts.clone())], pool: run.pool };
            let mut outputs = Gather.kernel(&gather, &[])?.run(&mut inputs)?;
            outputs.extend([firsts, list(&groups.number_of), list(&groups.counts)]);
            Ok(outputs)
        }))
    }
}

/// A number for each element that orders as the elements do.
fn keys(x: &Tensor) -> Option<Vec<u64>> {
    const SIGN: u64 = 1 << 63;
    Some(match x.dtype() {
        DType::String => {
            let mut all: Vec<_> = x.strings().iter().collect();
            all.sort_unstable();
            all.dedup();
            let rank = |string| all.binary_search(&string).expect("every string is listed") as u64;
            x.strings().iter().map(rank).collect()
        }
        DType::U64 => x.values::<u64>().into_owned(),
        dtype if dtype.is_float() => {
            let key = |x: f64| match (x + 0.0).to_bits() {
                _ if x.is_nan() => u64::MAX,
                bits if bits & SIGN != 0 => !bits,
                bits => bits | SIGN,
            };
            x.to_f64()?.into_iter().map(key).collect()
        }
        _ => x.to_i64()?.into_iter().map(|x| x as u64 ^ SIGN).collect(),
    })
}

/// The keys of each slice along `axis`.
fn items(keys: &[u64], shape: &[usize], axis: usize) -> Vec<Vec<u64>> {
    let size = shape[axis];
    let inner: usize = shape[axis + 1..].iter().product();
    let mut items = vec![Vec::with_capacity(keys.len() / size.max(1)); size];
    if keys.is_empty() {
        return items;
    }
    for block in keys.chunks_exact(size * inner) {
        for (item, part) in items.iter_mut().zip(block.chunks_exact(inner)) {
            item.extend_from_slice(part);
        }
    }
    items
}

/// Equal items together.
struct Groups {
    /// First occurrence of each.
    firsts: Vec<usize>,
    counts: Vec<usize>,
    /// The group of each item.
    number_of: Vec<usize>,
}

impl Groups {
    fn new(items: &[Vec<u64>], sorted: bool) -> Self {
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|&index| &items[index]);
        let mut members: Vec<&[usize]> = order.chunk_by(|&a, &b| items[a] == items[b]).collect();
        if !sorted {
            // A stable sort: each group begins with its first occurrence.
            members.sort_by_key(|group| group[0]);
        }
        let mut number_of = vec![0; items.len()];
        for (number, group) in members.iter().enumerate() {
            group.iter().for_each(|&index| number_of[index] = number);
        }
        let firsts = members.iter().map(|group| group[0]).collect();
        Self { firsts, counts: members.iter().map(|group| group.len()).collect(), number_of }
    }
}
