//! `LabelEncoder` of `ai.onnx.ml`: each element replaced by the value that stands at its key, or by
//! a default.

use std::collections::HashMap;

use attar_graph::Node;
use attar_tensor::{Bytes, DType, Tensor};

use super::{float_list, string_list, string_tensor, tensor_attribute};
use crate::gather::Gather;
use crate::{Fact, Kernel, OpError, Operator, Run, required};

pub(crate) struct LabelEncoder;

/// An element that can be looked up. Floats are their bits, all NaNs one.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    Number(u64),
    Text(Bytes),
}

fn keys(x: &Tensor) -> Option<Vec<Key>> {
    let bits = |x: f64| if x.is_nan() { f64::NAN.to_bits() } else { (x + 0.0).to_bits() };
    Some(match x.dtype() {
        DType::String => x.strings().iter().cloned().map(Key::Text).collect(),
        dtype if dtype.is_float() => {
            x.to_f64()?.into_iter().map(|x| Key::Number(bits(x))).collect()
        }
        _ => x.to_i64()?.into_iter().map(|x| Key::Number(x as u64)).collect(),
    })
}

/// A list given as strings, integers, floats or a tensor: `keys_strings`, `keys_int64s`, …
fn list(node: &Node, name: &str) -> Result<Option<Tensor>, OpError> {
    if let Some(strings) = string_list(node, &format!("{name}_strings"))? {
        return Ok(Some(string_tensor(&[strings.len()], strings.to_vec())));
    }
    if let Some(integers) = node.ints(&format!("{name}_int64s"))? {
        return Ok(Some(Tensor::new(&[integers.len()], integers)));
    }
    if let Some(floats) = float_list(node, &format!("{name}_floats"))? {
        return Ok(Some(Tensor::new(&[floats.len()], floats)));
    }
    let tensor = tensor_attribute(node, &format!("{name}_tensor"))?;
    Ok(tensor.map(|tensor| tensor.reshaped(&[tensor.element_count()])))
}

/// Keys and values. Version 1 had one list, of classes, and turned names into their numbers or
/// back.
fn pairs(node: &Node, input: DType) -> Result<(Tensor, Tensor), OpError> {
    let (keys, values) = if let Some(names) = string_list(node, "classes_strings")? {
        let numbers: Vec<i64> = (0..names.len() as i64).collect();
        let names = string_tensor(&[names.len()], names.to_vec());
        let numbers = Tensor::new(&[numbers.len()], &numbers);
        if input == DType::String { (names, numbers) } else { (numbers, names) }
    } else {
        let missing = |name| OpError::value(name, "absent", "a list");
        let keys = list(node, "keys")?.ok_or_else(|| missing("keys"))?;
        (keys, list(node, "values")?.ok_or_else(|| missing("values"))?)
    };
    if keys.shape() != values.shape() {
        return Err(OpError::shapes(keys.shape(), values.shape()));
    }
    Ok((keys, values))
}

/// What stands for an element without a key, in the type of the values.
fn default(node: &Node, dtype: DType) -> Result<Tensor, OpError> {
    let value = if let Some(tensor) = tensor_attribute(node, "default_tensor")? {
        tensor
    } else if dtype == DType::String {
        let text = node.text("default_string")?.unwrap_or("_Unused");
        string_tensor(&[1], vec![Bytes::copy_from_slice(text.as_bytes())])
    } else if dtype.is_float() {
        Tensor::scalar(node.float_or("default_float", -0.0)?)
    } else {
        Tensor::scalar(node.int_or("default_int64", -1)?)
    };
    let error = || OpError::value("the default", value.dtype(), dtype.name());
    if value.element_count() != 1 {
        return Err(OpError::value("the default's shape", value.shape(), "[1]"));
    }
    Ok(value.converted(dtype).map_err(|_| error())?.reshaped(&[1]))
}

/// The values with the default behind them.
fn table(values: Tensor, default: Tensor) -> Result<Tensor, OpError> {
    let node = Node::new("Concat", "", &[], &[]).with_attribute("axis", 0_i64);
    let kernel = crate::concat::Concat.kernel(&node, &[])?;
    let pool = crate::Pool::default();
    let inputs = vec![Some(values), Some(default)];
    Ok(kernel.run(&mut Run { inputs, pool: &pool })?.remove(0))
}

impl Operator for LabelEncoder {
    fn op_type(&self) -> &'static str {
        "LabelEncoder"
    }

    fn domain(&self) -> &'static str {
        "ai.onnx.ml"
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=1
    }

    fn infer(&self, node: &Node, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        let x = required(inputs, 0)?;
        Ok(vec![x.with_dtype(pairs(node, x.dtype)?.1.dtype())])
    }

    fn kernel(&self, node: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        let node = node.clone();
        let gather = Gather.kernel(&Node::new("Gather", "", &[], &[]), &[])?;
        let prepare = |input: DType| -> Result<_, OpError> {
            let (listed, values) = pairs(&node, input)?;
            let found = listed.dtype();
            let listed = keys(&listed).ok_or(OpError::DType { index: 0, found })?;
            let count = listed.len() as i64;
            // Of a key that is listed twice, the first counts.
            let mut place_of: HashMap<Key, i64> = HashMap::new();
            for (key, place) in listed.into_iter().zip(0..) {
                place_of.entry(key).or_insert(place);
            }
            let default = default(&node, values.dtype())?;
            Ok((found, place_of, count, table(values, default)?))
        };
        // Classes of version 1 go either way.
        let both = [prepare(DType::String)?, prepare(DType::I64)?];
        Ok(Box::new(move |run: &mut Run| {
            let x = run.input(0)?;
            let error = OpError::DType { index: 0, found: x.dtype() };
            let prepared = both.iter().find(|(dtype, ..)| *dtype == x.dtype());
            let (_, place_of, count, table) = prepared.ok_or(error)?;
            let keys = keys(x).expect("a type that has keys");
            let places = keys.iter().map(|key| *place_of.get(key).unwrap_or(count));
            let places = Tensor::new(x.shape(), &places.collect::<Vec<i64>>());
            let inputs = vec![Some(table.clone()), Some(places)];
            gather.run(&mut Run { inputs, pool: run.pool })
        }))
    }
}
