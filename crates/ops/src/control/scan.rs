//! Scan (opset 9 and later): a graph run once for each slice of its scanned inputs.
//!
//! Inputs: the initial states, then the scanned inputs. The body takes the states and one slice
//! of each scanned input; it gives the states and one slice of each scan output.

use attar_graph::{Dim, Graph, Node};
use attar_tensor::Tensor;

use super::{body_tensor, graph_of, stacked, take_body};
use crate::fact::resolve_axis;
use crate::{Body, DataKernel, DataRun, Datum, Fact, Kernel, OpError, Operator, OverData};

pub(crate) struct Scan;

impl Operator for Scan {
    fn op_type(&self) -> &'static str {
        "Scan"
    }

    fn since_opset(&self) -> i64 {
        9
    }

    fn input_count(&self) -> std::ops::RangeInclusive<usize> {
        1..=usize::MAX
    }

    fn infer(&self, _: &Node, _: &[Option<&Fact>]) -> Result<Vec<Fact>, OpError> {
        Ok(Vec::new())
    }

    fn kernel(&self, _: &Node, _: &[Option<&Tensor>]) -> Result<Box<dyn Kernel>, OpError> {
        Err(OpError::Unsupported { what: "Scan without its body".into() })
    }

    fn over_data(&self) -> Option<&dyn OverData> {
        Some(self)
    }
}

struct Settings {
    state_count: usize,
    /// Per scanned input: axis, and whether it is read from the end.
    inputs: Vec<(i64, bool)>,
    /// Per scan output, likewise.
    outputs: Vec<(i64, bool)>,
}

impl Settings {
    fn new(node: &Node, body_outputs: usize) -> Result<Self, OpError> {
        let scanned = node.int_or("num_scan_inputs", 0)?;
        let count = usize::try_from(scanned).ok().filter(|n| (1..=node.inputs.len()).contains(n));
        let expected = || format!("1 to {}", node.inputs.len());
        let count = count.ok_or_else(|| OpError::value("num_scan_inputs", scanned, expected()))?;
        let state_count = node.inputs.len() - count;
        let Some(output_count) = body_outputs.checked_sub(state_count) else {
            let expected = format!("at least {state_count}");
            return Err(OpError::value("the count of the body's outputs", body_outputs, expected));
        };
        Ok(Self {
            state_count,
            inputs: directions(node, "scan_input_axes", "scan_input_directions", count)?,
            outputs: directions(node, "scan_output_axes", "scan_output_directions", output_count)?,
        })
    }
}

fn directions(
    node: &Node,
    axes: &str,
    directions: &str,
    count: usize,
) -> Result<Vec<(i64, bool)>, OpError> {
    let list = |name: &str| -> Result<Vec<i64>, OpError> {
        let values = node.ints(name)?.map_or_else(|| vec![0; count], <[i64]>::to_vec);
        if values.len() == count {
            return Ok(values);
        }
        Err(OpError::value(name, values, format!("{count} values")))
    };
    Ok(list(axes)?.into_iter().zip(list(directions)?).map(|(a, d)| (a, d != 0)).collect())
}

struct ScanKernel {
    body: Body,
    settings: Settings,
}

impl OverData for Scan {
    fn data_kernel(
        &self,
        node: &Node,
        mut bodies: Vec<Body>,
    ) -> Result<Box<dyn DataKernel>, OpError> {
        let body = take_body(&mut bodies, "body")?;
        let settings = Settings::new(node, body.output_count())?;
        if body.input_count() != node.inputs.len() {
            let (found, expected) = (body.input_count(), node.inputs.len().to_string());
            return Err(OpError::value("the count of the body's inputs", found, expected));
        }
        Ok(Box::new(ScanKernel { body, settings }))
    }

    fn infer_bodies(
        &self,
        node: &Node,
        inputs: &[Option<&Fact>],
        infer: &mut dyn FnMut(&Graph, Vec<Option<Fact>>) -> Vec<Option<Fact>>,
    ) -> Result<Vec<Option<Fact>>, OpError> {
        let body = graph_of(node, "body")?;
        let settings = Settings::new(node, body.outputs.len())?;
        let (states, scanned) = inputs.split_at(settings.state_count.min(inputs.len()));
        // ONNX lets no iteration change the shape of a state.
        let mut fed: Vec<Option<Fact>> =
            states.iter().map(|fact| fact.map(|fact| fact.with_dtype(fact.dtype))).collect();
        let mut length = Dim::Unknown;
        for (fact, (axis, _)) in scanned.iter().zip(&settings.inputs) {
            fed.push(fact.map(|fact| slice_fact(fact, *axis, &mut length)));
        }
        let mut facts = infer(body, fed);
        for (fact, (axis, _)) in facts.iter_mut().skip(settings.state_count).zip(&settings.outputs)
        {
            let shape = fact.as_ref().and_then(|fact| fact.shape.clone());
            let Some((fact, mut shape)) = fact.as_mut().zip(shape) else { continue };
            if let Some(axis) = resolve_axis(*axis, shape.len() + 1) {
                shape.insert(axis, length.clone());
                *fact = Fact::new(fact.dtype, shape);
            }
        }
        Ok(facts)
    }
}

/// The fact of one slice; `length` takes the size of the axis that goes.
fn slice_fact(fact: &Fact, axis: i64, length: &mut Dim) -> Fact {
    let Some(shape) = &fact.shape else { return Fact::unranked(fact.dtype) };
    let Some(axis) = resolve_axis(axis, shape.len()) else { return Fact::unranked(fact.dtype) };
    let mut shape = shape.clone();
    *length = shape.remove(axis);
    Fact::new(fact.dtype, shape)
}

/// Slice `index` along `axis`, which goes.
fn slice(x: &Tensor, axis: usize, index: usize) -> Result<Tensor, OpError> {
    let size = x.shape()[axis];
    let outer: usize = x.shape()[..axis].iter().product();
    let mut shape = x.shape().to_vec();
    shape.remove(axis);
    let inner: usize = shape[axis..].iter().product();
    let bits = x.dtype().bits();
    if bits == 0 {
        let row = |i: usize| (i * size + index) * inner..(i * size + index + 1) * inner;
        let strings = (0..outer).flat_map(|i| x.strings()[row(i)].iter().cloned()).collect();
        return Ok(Tensor::from_strings(&shape, strings).expect("counts were kept"));
    }
    if !bits.is_multiple_of(8) {
        return Err(OpError::Unsupported { what: format!("scanning {}", x.dtype()) });
    }
    let block = inner * bits / 8;
    let mut bytes = Vec::with_capacity(outer * block);
    for i in 0..outer {
        bytes.extend_from_slice(&x.bytes()[(i * size + index) * block..][..block]);
    }
    Ok(Tensor::from_bytes(x.dtype(), &shape, bytes.into()).expect("sizes were kept").aligned())
}

impl DataKernel for ScanKernel {
    fn run(&self, run: &mut DataRun) -> Result<Vec<Datum>, OpError> {
        let Settings { state_count, inputs, outputs } = &self.settings;
        let mut scanned = Vec::with_capacity(inputs.len());
        let mut length: Option<usize> = None;
        for (index, &(axis, reversed)) in inputs.iter().enumerate() {
            let x = run.tensor(state_count + index)?.clone();
            let expected = || format!("an axis of {:?}", x.shape());
            let axis = resolve_axis(axis, x.rank())
                .ok_or_else(|| OpError::value("scan_input_axes", axis, expected()))?;
            let size = x.shape()[axis];
            if length.is_some_and(|length| length != size) {
                let expected = format!("{length:?}, as of the others");
                return Err(OpError::value("the length of a scanned input", size, expected));
            }
            length = Some(size);
            scanned.push((x, axis, reversed));
        }
        let length = length.expect("at least one input is scanned");
        let mut states: Vec<Datum> = run.inputs[..*state_count]
            .iter_mut()
            .map(|d| d.take().unwrap_or(Datum::Empty))
            .collect();
        let mut scans: Vec<Vec<Tensor>> = vec![Vec::with_capacity(length); outputs.len()];
        for iteration in 0..length {
            let mut fed = std::mem::take(&mut states);
            for (x, axis, reversed) in &scanned {
                let at = if *reversed { length - 1 - iteration } else { iteration };
                fed.push(Datum::Tensor(slice(x, *axis, at)?));
            }
            let mut results = self.body.run(fed, run)?.into_iter();
            states.extend(results.by_ref().take(*state_count));
            for (scan, result) in scans.iter_mut().zip(results) {
                scan.push(body_tensor(result, "a scan output")?);
            }
        }
        let mut results = states;
        for (scan, &(axis, reversed)) in scans.iter().zip(outputs) {
            let empty = || Err(OpError::Unsupported { what: "a scan over nothing".into() });
            results.push(Datum::Tensor(stacked(scan, axis, reversed, empty)?));
        }
        Ok(results)
    }
}
