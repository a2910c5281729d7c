//! The edits that put a projection into a graph.

use std::collections::HashSet;

use attar_graph::{Edit, Links, Model, Node, Value, ValueType, all_names};
use attar_tensor::Tensor;

use super::ending::{Ending, Source};
use crate::PassError;

/// What becomes of a row of `width`.
pub(super) struct Projection<'a> {
    pub(super) width: usize,
    pub(super) size: usize,
    /// Rows whose products with it are the result [size, width]; without them, its first are.
    pub(super) vectors: Option<&'a [f64]>,
}

impl Projection<'_> {
    /// Projects rows, one after the other.
    fn of(&self, rows: &[f32]) -> Vec<f32> {
        let mut projected = Vec::with_capacity(rows.len() / self.width * self.size);
        for row in rows.chunks_exact(self.width) {
            let Some(vectors) = self.vectors else {
                projected.extend_from_slice(&row[..self.size]);
                continue;
            };
            projected.extend(vectors.chunks_exact(self.width).map(|vector| {
                vector.iter().zip(row).map(|(v, &x)| v * f64::from(x)).sum::<f64>() as f32
            }));
        }
        projected
    }

    /// P [width, size], which a row is multiplied with.
    fn matrix(&self, vectors: &[f64]) -> Tensor {
        let values = (0..self.width * self.size)
            .map(|at| vectors[at % self.size * self.width + at / self.size] as f32);
        Tensor::new(&[self.width, self.size], &values.collect::<Vec<f32>>())
    }
}

/// Projects the value that `ending` names, in the weights of `source` if there is one.
///
/// # Errors
/// An output that no node makes.
pub(super) fn edits(
    model: &Model,
    output: &str,
    ending: &Ending,
    source: Option<&Source>,
    projection: &Projection,
) -> Result<Vec<Edit>, PassError> {
    let mut edits = match source {
        Some(source) => folded(model, source, projection),
        None => added(model, output, ending, projection)?,
    };
    let declared = model.graph.outputs.iter().find(|value| value.name == output);
    edits.extend(declared.and_then(|value| shortened(value, projection.size)));
    Ok(edits)
}

/// The output's declaration with its new size; `None` where none was declared.
fn shortened(value: &Value, size: usize) -> Option<Edit> {
    let mut value = value.clone();
    let Some(ValueType::Tensor { shape: Some(shape), .. }) = &mut value.value_type else {
        return None;
    };
    *shape.last_mut()? = size.into();
    Some(Edit::SetOutput { value })
}

fn folded(model: &Model, source: &Source, projection: &Projection) -> Vec<Edit> {
    let constant = |name: &str| {
        model.graph.constant(name).expect("the source of a value names constants of the graph")
    };
    let weight = constant(&source.weight);
    let (values, inputs) = (weight.values::<f32>(), weight.element_count() / projection.width);
    let tensor = if source.is_transposed {
        let rows = transposed(&values, [projection.width, inputs]);
        let projected = projection.of(&rows);
        Tensor::new(&[projection.size, inputs], &transposed(&projected, [inputs, projection.size]))
    } else {
        Tensor::new(&[inputs, projection.size], &projection.of(&values))
    };
    let mut edits = vec![Edit::SetInitializer { name: source.weight.clone(), tensor }];
    if let Some(name) = &source.bias {
        let bias = constant(name);
        let mut shape = bias.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = projection.size;
        }
        let tensor = Tensor::new(&shape, &projection.of(&bias.values::<f32>()));
        edits.push(Edit::SetInitializer { name: name.clone(), tensor });
    }
    edits
}

fn transposed(values: &[f32], [rows, columns]: [usize; 2]) -> Vec<f32> {
    (0..values.len()).map(|at| values[at % rows * columns + at / rows]).collect()
}

/// Names that the graph does not have yet.
struct Names {
    known: HashSet<String>,
    output: String,
}

impl Names {
    fn fresh(&mut self, what: &str) -> String {
        let first = format!("{}/{what}", self.output);
        let mut name = first.clone();
        for number in 2.. {
            if self.known.insert(name.clone()) {
                break;
            }
            name = format!("{first}_{number}");
        }
        name
    }
}

fn added(
    model: &Model,
    output: &str,
    ending: &Ending,
    projection: &Projection,
) -> Result<Vec<Edit>, PassError> {
    let graph = &model.graph;
    let mut names = Names { known: all_names(graph), output: output.into() };
    let mut edits = Vec::new();
    let (from, to);
    if ending.is_normalized() {
        (from, to) = (ending.value.clone(), names.fresh("short"));
        for &index in &ending.nodes {
            let mut node = graph.nodes[index].clone();
            let is_reader = node.inputs.contains(&from);
            node.inputs
                .iter_mut()
                .filter(|name| **name == from)
                .for_each(|name| name.clone_from(&to));
            if is_reader {
                edits.push(Edit::ReplaceNode { index, node });
            }
        }
    } else {
        (from, to) = (names.fresh("whole"), output.to_string());
        let Some((index, node)) = Links::new(graph).producer(output) else {
            let (output, reason) = (output.into(), "no node makes it".into());
            return Err(PassError::Output { output, reason });
        };
        let mut node = node.clone();
        let own = node.outputs.iter_mut().filter(|name| name.as_str() == output);
        own.for_each(|name| name.clone_from(&from));
        edits.push(Edit::ReplaceNode { index, node });
        edits.push(Edit::ReplaceUses { from: output.into(), to: from.clone() });
    }
    match projection.vectors {
        Some(vectors) => {
            let tensor = projection.matrix(vectors);
            let matrix = names.fresh("projection");
            let label = names.fresh("project/MatMul");
            let node = Node::new("MatMul", &label, &[&from, &matrix], &[&to]);
            edits.push(Edit::SetInitializer { name: matrix, tensor });
            edits.push(Edit::AddNode { node });
        }
        None => first(model.opset(), &mut names, &mut edits, projection.size, [&from, &to]),
    }
    Ok(edits)
}

/// Slice took its bounds as attributes before opset 10.
fn first(opset: i64, names: &mut Names, edits: &mut Vec<Edit>, size: usize, [from, to]: [&str; 2]) {
    let label = names.fresh("first/Slice");
    let bounds = [("starts", 0), ("ends", size as i64), ("axes", -1)];
    if opset < 10 {
        let mut node = Node::new("Slice", &label, &[from], &[to]);
        for (name, bound) in bounds {
            node = node.with_attribute(name, vec![bound]);
        }
        edits.push(Edit::AddNode { node });
        return;
    }
    let mut inputs = vec![from.to_string()];
    for (name, bound) in bounds {
        let name = names.fresh(&format!("first/{name}"));
        edits
            .push(Edit::SetInitializer { name: name.clone(), tensor: Tensor::new(&[1], &[bound]) });
        inputs.push(name);
    }
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    edits.push(Edit::AddNode { node: Node::new("Slice", &label, &inputs, &[to]) });
}
