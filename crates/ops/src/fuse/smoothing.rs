//! Factors of channels in front of a `QuantizeLinear`, as `SmoothQuant` leaves them where they cannot
//! go into weights: round(x·f / s) = round(x / (s / f)), a scale for each channel.
//!
//! A value within an ulp of a tie may fall to its other side.

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_tensor::{DType, Tensor};

use super::quantized::is_plain_quantize;
use crate::{ATTAR_DOMAIN, Facts, infer_graph};

/// `Mul` by a constant row and `QuantizeLinear` → `QuantizeLinear` with a scale for each channel,
/// behind operators that it can become the end of.
pub(super) fn plan(model: &Model) -> Plan {
    let facts = infer_graph(model);
    let links = Links::new(&model.graph);
    let mut plan = Plan::default();
    for (index, quantize) in model.graph.nodes.iter().enumerate() {
        if is_plain_quantize(&links, quantize)
            && let Some(edits) = with_scales(&links, &facts, index, quantize)
        {
            plan.edits.extend(edits);
        }
    }
    plan
}

fn with_scales(links: &Links, facts: &Facts, index: usize, quantize: &Node) -> Option<[Edit; 3]> {
    let (_, product) = links.producer(quantize.input(0)?).filter(|(_, node)| node.is("Mul"))?;
    links.only_use(quantize.input(0)?)?;
    let (a, b) = (product.input(0)?, product.input(1)?);
    let (value, factors) = match (links.constant(a), links.constant(b)) {
        (None, Some(factors)) => (a, factors),
        (Some(factors), None) => (b, factors),
        _ => return None,
    };
    let (_, source) = links.producer(value)?;
    let is_attar = |op: &str| source.domain == ATTAR_DOMAIN && source.op_type == op;
    let is_norm = (source.is("LayerNormalization") || is_attar("SkipLayerNormalization"))
        && source.outputs.len() == 1;
    let is_product = (is_attar("QuantizedMatMul") || is_attar("QuantizedAttention"))
        && links.only_use(value).is_some();
    let size = facts.get(value)?.shape.as_ref()?.last()?.known()?;
    let is_row = factors.dtype() == DType::F32 && factors.shape() == [usize::try_from(size).ok()?];
    if !is_row || !(is_norm || is_product) {
        return None;
    }
    let scale = links.constant(quantize.input(1)?)?.values::<f32>()[0];
    let zero = links.constant(quantize.input(2)?)?.slice::<u8>()[0];
    let scales: Vec<f32> = factors.values::<f32>().iter().map(|factor| scale / factor).collect();
    if !scales.iter().all(|scale| scale.is_normal() && *scale > 0.0) {
        return None;
    }
    let base = &quantize.outputs[0];
    let [scales_name, zeros_name] = ["scales", "zero_points"].map(|part| format!("{base}/{part}"));
    let inputs = [value, &scales_name, &zeros_name];
    let node = Node::new("QuantizeLinear", &quantize.name, &inputs, &[base])
        .with_attribute("axis", -1_i64);
    let zeros = Tensor::new(&[scales.len()], &vec![zero; scales.len()]);
    Some([
        Edit::SetInitializer { name: scales_name, tensor: Tensor::new(&[scales.len()], &scales) },
        Edit::SetInitializer { name: zeros_name, tensor: zeros },
        Edit::ReplaceNode { index, node },
    ])
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;

    use super::*;
    use crate::fuse::fuse_for_runtime;
    use crate::{Datum, Pool, Program};

    const SIZE: usize = 24;

    /// A graph over x (f32[1, n, 24]) with constants of its products and quantizations.
    fn model(text: &str) -> Model {
        let mut graph = graph_from_text(&format!("x: f32[1, n, {SIZE}]\n{text}"));
        let wave = |count: usize, step: f32, size: f32| -> Vec<f32> {
            (0..count).map(|i| (i as f32 * step).sin() * size).collect()
        };
        let row = |values: Vec<f32>| Tensor::new(&[values.len()], &values);
        let mut set = |name: &str, tensor: Tensor| graph.set_initializer(name, tensor);
        let weights: Vec<i8> =
            wave(SIZE * SIZE, 0.7, 127.0).iter().map(|w| w.round() as i8).collect();
        set("w", Tensor::new(&[SIZE, SIZE], &weights));
        set("ws", Tensor::scalar(0.004_f32));
        set("b", row(wave(SIZE, 0.9, 0.5)));
        set("g", row(wave(SIZE, 0.5, 0.3).iter().map(|g| 1.0 + g).collect()));
        set("f", row(wave(SIZE, 1.1, 1.5).iter().map(|f| f.exp()).collect()));
        set("s", Tensor::scalar(0.02_f32));
        set("z", Tensor::scalar(120_u8));
        set("t", Tensor::scalar(0.03_f32));
        set("split", Tensor::new(&[4], &[0_i64, 0, 3, 8]));
        set("merge", Tensor::new(&[3], &[0_i64, 0, SIZE as i64]));
        let constants = &graph.initializers;
        graph.inputs.retain(|input| !constants.contains_key(&input.name));
        let opsets = [(String::new(), 17)].into_iter().collect();
        Model { graph, opsets, ..Model::default() }
    }

    fn run(model: &Model, rows: usize, is_unfused: bool) -> Vec<Tensor> {
        let names = model.graph.nodes.iter().flat_map(|node| node.outputs.clone());
        let observed: Vec<String> = names.filter(|_| is_unfused).collect();
        let program = Program::new(model.clone(), &observed).unwrap();
        let x: Vec<f32> = (0..rows * SIZE).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let feeds = vec![Datum::Tensor(Tensor::new(&[1, rows, SIZE], &x))];
        let outputs = program.run(feeds, &Pool::default()).unwrap();
        outputs.into_iter().map(|datum| datum.into_tensor(0).unwrap()).collect()
    }

    const PRODUCT: &str = "q = QuantizeLinear(x, s, z)\nd = DequantizeLinear(q, s, z)\n\
        v = DequantizeLinear(w, ws)\nm = MatMul(d, v)\na = Add(m, b)\n";
    const HEADS: &str = "q8 = QuantizeLinear(x, s, z)\nq1 = DequantizeLinear(q8, s, z)\n\
        q2 = Reshape(q1, split)\nqh = Transpose(q2, perm=0,2,1,3)\n\
        kh = Transpose(q2, perm=0,2,3,1)\nvh = Transpose(q2, perm=0,2,1,3)\n\
        c = MatMul(qh, kh)\np = Softmax(c, axis=-1)\nc1 = MatMul(p, vh)\n\
        c2 = Transpose(c1, perm=0,2,1,3)\na = Reshape(c2, merge)\n";

    #[test]
    fn factors_become_scales_of_the_operator_before() {
        let tail = "n = Mul(a, f)\nr = QuantizeLinear(n, t, z)";
        for (text, expected) in [
            (format!("{PRODUCT}{tail}"), "QuantizedMatMul"),
            (
                format!("{PRODUCT}e = Gelu(a)\nn = Mul(f, e)\nr = QuantizeLinear(n, t, z)"),
                "QuantizedMatMul",
            ),
            (
                format!("a = LayerNormalization(x, g, b)\n{tail}\no = Neg(a)"),
                "QuantizedLayerNormalization",
            ),
            (
                format!(
                    "k = Neg(x)\ni = Add(x, k)\na = LayerNormalization(i, g, b)\n{tail}\no = Neg(a)"
                ),
                "QuantizedLayerNormalization",
            ),
            (format!("{HEADS}{tail}"), "QuantizedAttention"),
        ] {
            let model = model(&text);
            let mut fused = model.clone();
            fuse_for_runtime(&mut fused).unwrap();
            let found: Vec<&str> =
                fused.graph.nodes.iter().map(|node| node.op_type.as_str()).collect();
            assert!(found.contains(&expected) && !found.contains(&"Mul"), "{found:?}");
            for rows in [1, 9, 40] {
                let (fused, apart) = (run(&model, rows, false), run(&model, rows, true));
                let levels = |outputs: &[Tensor]| -> Vec<u8> {
                    let found = outputs.iter().find(|tensor| tensor.dtype() == DType::U8);
                    found.unwrap().slice::<u8>().to_vec()
                };
                let apart: Vec<Tensor> = apart.into_iter().take(fused.len()).collect();
                let (fused, apart) = (levels(&fused), levels(&apart));
                assert!(fused.iter().zip(&apart).all(|(a, b)| a.abs_diff(*b) <= 1), "{text}");
                let moved = fused.iter().zip(&apart).filter(|(a, b)| a != b).count();
                assert!(moved <= 1 + fused.len() / 100, "{text}: {moved} of {}", fused.len());
                assert!(fused.iter().min() < fused.iter().max(), "{text}");
            }
        }
    }

    #[test]
    fn what_is_read_twice_or_is_no_row_stays() {
        for tail in [
            "n = Mul(a, f)\nr = QuantizeLinear(n, t, z)\no = Neg(n)",
            "n = Mul(a, f)\nr = QuantizeLinear(n, t, z)\no = Neg(a)",
            "n = Mul(a, x)\nr = QuantizeLinear(n, t, z)",
        ] {
            let mut model = model(&format!("{PRODUCT}{tail}"));
            fuse_for_runtime(&mut model).unwrap();
            assert!(model.graph.nodes.iter().any(|node| node.is("Mul")), "{tail}");
        }
    }
}
