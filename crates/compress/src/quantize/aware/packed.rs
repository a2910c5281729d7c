//! Levels of few values in whole bytes: 8 signs, 5 of three values or 4 of four in each. A table in the
//! graph unpacks them, by operators that every runtime computes once, when it loads the model.

use attar_graph::{Edit, Node};
use attar_tensor::Tensor;

/// `int32` of ONNX: what `Gather` takes as indices.
const INT32: i64 = 6;

/// The edits that pack i8 levels within `low..=high`, of which there are four at most, and give them as
/// `BASE_quantized`; `None` for more.
pub(super) fn pack(base: &str, levels: &Tensor, [low, high]: [i64; 2]) -> Option<Vec<Edit>> {
    let values = values_of(levels.slice::<i8>(), [low, high])?;
    let each = (1..=8).rev().find(|&each| values.len().pow(each) <= 256)? as usize;
    let digit = |level: i8| values.iter().position(|&value| value == level).unwrap_or(0);
    let code = |part: &[i8]| {
        part.iter().rev().fold(0, |code, &level| code * values.len() + digit(level)) as u8
    };
    let codes: Vec<u8> = levels.slice::<i8>().chunks(each).map(code).collect();
    let count = values.len().pow(each as u32);
    let entry = |index: usize| {
        let (row, place) = (index / each, index % each);
        values[row / values.len().pow(place as u32) % values.len()]
    };
    let table: Vec<i8> = (0..count * each).map(entry).collect();
    let named = |suffix: &str| format!("{base}_{suffix}");
    let table_name = format!("levels_{}_to_{}_of_{}", low, high, values.len());
    let shape: Vec<i64> = levels.shape().iter().map(|&size| size as i64).collect();
    let set = |name: &str, tensor: Tensor| Edit::SetInitializer { name: name.into(), tensor };
    let mut edits = vec![
        set(&named("packed"), Tensor::new(&[codes.len()], &codes)),
        set(&table_name, Tensor::new(&[count, each], &table)),
        set(&named("shape"), Tensor::new(&[shape.len()], &shape)),
    ];
    let mut add = |op: &str, inputs: &[&str], output: &str| {
        let node = Node::new(op, output, inputs, &[output]);
        let node = if op == "Cast" { node.with_attribute("to", INT32) } else { node };
        edits.push(Edit::AddNode { node });
    };
    let (indices, rows, flat, own, all) =
        (named("indices"), named("rows"), named("flat"), named("own"), named("quantized"));
    add("Cast", &[&named("packed")], &indices);
    add("Gather", &[&table_name, &indices], &rows);
    if levels.element_count().is_multiple_of(each) {
        add("Reshape", &[&rows, &named("shape")], &all);
    } else {
        // The last byte holds more than there is.
        add("Reshape", &[&rows, &named("every")], &flat);
        add("Slice", &[&flat, &named("first"), &named("count")], &own);
        add("Reshape", &[&own, &named("shape")], &all);
        for (name, value) in [("every", -1), ("first", 0), ("count", levels.element_count() as i64)]
        {
            edits.push(set(&named(name), Tensor::new(&[1], &[value])));
        }
    }
    Some(edits)
}

/// The values that levels take: signs where no zero is among ±1, else all of the grid.
fn values_of(levels: &[i8], [low, high]: [i64; 2]) -> Option<Vec<i8>> {
    if levels.iter().all(|level| level.abs() == 1) {
        return Some(vec![-1, 1]);
    }
    let count = high - low + 1;
    (2..=4).contains(&count).then(|| (low..=high).map(|level| level as i8).collect())
}

#[cfg(test)]
mod tests {
    use attar_graph::{Graph, Model, apply};
    use attar_runtime::{Builtin, RunOptions, Runtime};

    use super::*;

    #[test]
    fn what_is_packed_comes_out_again() {
        for (low, high, each) in [(-1, 1, 5), (-2, 1, 4), (0, 3, 4)] {
            for shape in [vec![3, 7], vec![40], vec![1], vec![2, 5, 2, 2]] {
                let count: usize = shape.iter().product();
                let level = |i: usize| (low + (i * 7 % 5) as i64 % (high - low + 1)) as i8;
                let levels = Tensor::new(&shape, &(0..count).map(level).collect::<Vec<_>>());
                check(&levels, [low, high], each);
            }
        }
        let signs: Vec<i8> = (0..77).map(|i| if i * i % 3 == 0 { -1 } else { 1 }).collect();
        check(&Tensor::new(&[11, 7], &signs), [-1, 1], 8);
        assert!(pack("w", &Tensor::new(&[2], &[-8_i8, 7]), [-8, 7]).is_none());
    }

    fn check(levels: &Tensor, ends: [i64; 2], each: usize) {
        let packed = pack("w", levels, ends).unwrap();
        let bytes = packed.iter().find_map(|edit| match edit {
            Edit::SetInitializer { name, tensor } if name == "w_packed" => {
                Some(tensor.size_bytes())
            }
            _ => None,
        });
        // Levels of a shape with fewer values than the grid are signs by chance.
        assert!(bytes.unwrap() <= levels.element_count().div_ceil(each));
        let mut graph = Graph::default();
        let untyped = attar_graph::testing::graph_from_text("y = Identity(x)").outputs.remove(0);
        graph.outputs =
            vec![attar_graph::Value { name: "w_quantized".into(), value_type: None, ..untyped }];
        let plan = attar_graph::Plan { edits: packed, ..Default::default() };
        // The output is there once the edits are.
        let output = std::mem::take(&mut graph.outputs);
        apply(&mut graph, &plan).unwrap();
        graph.outputs = output;
        let opsets = [(String::new(), 13)].into_iter().collect();
        let model = Model { ir_version: 8, opsets, graph, ..Model::default() };
        let mut session = Builtin.load(&model, &RunOptions::default()).unwrap();
        assert_eq!(session.run(&[]).unwrap()[0], *levels);
    }
}
