//! Products of a dequantized activation and a dequantized constant → `QuantizedMatMul`, and what is
//! quantized behind them.

use attar_graph::{Edit, Links, Model, Node, Plan};
use attar_tensor::{DType, Tensor};

use super::producer;
use crate::quantized_matmul::EACH;
use crate::{ATTAR_DOMAIN, infer_graph};

/// `MatMul` and `Gemm` between dequantized values → `QuantizedMatMul`.
pub fn plan(model: &Model) -> Plan {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    let is_product = |node: &&Node| node.is("MatMul") || node.is("Gemm");
    for (index, node) in graph.nodes.iter().enumerate().filter(|(_, node)| is_product(node)) {
        if let Some((node, row)) = quantized(&links, node) {
            plan.edits.extend(row);
            plan.push(Edit::ReplaceNode { index, node });
        }
    }
    plan
}

/// The node, and the edit that makes its bias, where that was dequantized.
fn quantized(links: &Links, product: &Node) -> Option<(Node, Option<Edit>)> {
    let is_transposed = product.is("Gemm") && product.int_or("transB", 0).ok()? != 0;
    if product.is("Gemm") {
        let is_plain = product.int_or("transA", 0).ok()? == 0
            && product.float_or("alpha", 1.0).ok()? == 1.0
            && product.float_or("beta", 1.0).ok()? == 1.0;
        if !is_plain {
            return None;
        }
    }
    let (_, left) = producer(links, product.input(0)?, "DequantizeLinear")?;
    let (_, right) = producer(links, product.input(1)?, "DequantizeLinear")?;
    let constant = |node: &Node, index: usize| links.constant(node.input(index)?);
    has_scalars(links, left).then_some(())?;
    let weight = constant(right, 0).filter(|w| w.dtype() == DType::I8 && w.rank() == 2)?;
    let scale = constant(right, 1).filter(|scale| scale.dtype() == DType::F32)?;
    let column_axis = usize::from(!is_transposed);
    let columns = weight.shape()[column_axis];
    let axis = right.int_or("axis", 1).ok()?;
    let axis = if axis < 0 { axis + 2 } else { axis };
    let is_per_column = scale.shape() == [columns] && usize::try_from(axis) == Ok(column_axis);
    let is_symmetric = match right.input(2) {
        Some(zero) => links.constant(zero)?.bytes().iter().all(|&byte| byte == 0),
        None => true,
    };
    if !(is_per_column || scale.element_count() == 1) || !is_symmetric {
        return None;
    }
    let mut inputs =
        vec![left.input(0)?, left.input(1)?, left.input(2)?, right.input(0)?, right.input(1)?];
    let bias = product.input(2).map(|bias| bias_row(links, bias, columns));
    let (bias, row) = match bias {
        Some(found) => found.map(|(name, row)| (Some(name), row))?,
        None => (None, None),
    };
    inputs.extend(bias.as_deref());
    let node = Node::new("QuantizedMatMul", &product.name, &inputs, &[&product.outputs[0]]);
    let node = if is_transposed { node.with_attribute("transB", 1_i64) } else { node };
    Some((node.with_domain(ATTAR_DOMAIN), row))
}

/// The bias of a `Gemm`, if it is one constant per column; where that is int32 dequantized by
/// constants, with the edit that makes it f32.
fn bias_row(links: &Links, bias: &str, columns: usize) -> Option<(String, Option<Edit>)> {
    let fits = |tensor: &Tensor| {
        tensor.element_count() == columns && tensor.shape().last() == Some(&columns)
    };
    if let Some(tensor) = links.constant(bias) {
        return (tensor.dtype() == DType::F32 && fits(tensor)).then(|| (bias.to_string(), None));
    }
    let (_, dequantize) = producer(links, bias, "DequantizeLinear")?;
    let levels = links.constant(dequantize.input(0)?).filter(|levels| fits(levels))?;
    let scales = links.constant(dequantize.input(1)?).filter(|s| s.dtype() == DType::F32)?;
    let is_symmetric = match dequantize.input(2) {
        Some(zero) => links.constant(zero)?.bytes().iter().all(|&byte| byte == 0),
        None => true,
    };
    let is_per_column = levels.rank() == 1 && scales.shape() == [columns];
    let is_known = levels.dtype() == DType::I32 && is_symmetric;
    if !is_known || !(is_per_column || scales.element_count() == 1) {
        return None;
    }
    let scales = scales.values::<f32>();
    let levels = levels.values::<i32>();
    let real = |(column, &level): (usize, &i32)| level as f32 * scales[column % scales.len()];
    let values: Vec<f32> = levels.iter().enumerate().map(real).collect();
    let name = format!("{bias}/row");
    let row = Edit::SetInitializer { name: name.clone(), tensor: Tensor::new(&[columns], &values) };
    Some((name, Some(row)))
}

/// Whether a `QuantizeLinear` or `DequantizeLinear` has one f32 scale and one u8 zero point.
pub(super) fn has_scalars(links: &Links, node: &Node) -> bool {
    let is_scalar = |index: usize, dtype: DType| {
        let constant = node.input(index).and_then(|name| links.constant(name));
        constant.is_some_and(|tensor| tensor.element_count() == 1 && tensor.dtype() == dtype)
    };
    is_scalar(1, DType::F32) && is_scalar(2, DType::U8)
}

/// Whether a node quantizes to u8 by scalars, its division in f32.
pub(super) fn is_plain_quantize(links: &Links, node: &Node) -> bool {
    is_quantize(node) && has_scalars(links, node)
}

fn is_quantize(node: &Node) -> bool {
    node.is("QuantizeLinear")
        && node.attribute("precision").is_none()
        && node.attribute("output_dtype").is_none()
}

/// Whether a node quantizes to u8 as the end of another can: by scalars, or by one scale for each
/// place on the last axis and the same zero point for all.
fn ends_another(links: &Links, node: &Node) -> bool {
    let constant = |index: usize| node.input(index).and_then(|name| links.constant(name));
    let is_row = || match (constant(1), constant(2)) {
        (Some(scales), Some(zeros)) => {
            let is_u8 = zeros.dtype() == DType::U8;
            let is_one = || zeros.slice::<u8>().windows(2).all(|pair| pair[0] == pair[1]);
            scales.dtype() == DType::F32 && scales.rank() == 1 && is_u8 && is_one()
        }
        _ => false,
    };
    let is_last = || matches!(node.int_or("axis", 1), Ok(-1));
    is_quantize(node) && (has_scalars(links, node) || (is_last() && is_row()))
}

/// `QuantizedMatMul` or `QuantizedAttention` read by one `QuantizeLinear` alone → one node that gives
/// levels.
pub fn plan_levels(model: &Model) -> Plan {
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    for (index, quantize) in graph.nodes.iter().enumerate() {
        if !ends_another(&links, quantize) {
            continue;
        }
        let Some((_, product)) = links.producer(&quantize.inputs[0]) else { continue };
        let is_alone = links.only_use(&quantize.inputs[0]).is_some();
        if is_alone && let Some(node) = attention_levels(&links, product, quantize) {
            plan.push(Edit::ReplaceNode { index, node });
            continue;
        }
        let is_product = product.domain == ATTAR_DOMAIN
            && product.op_type == "QuantizedMatMul"
            && product.inputs.len() <= 6;
        if is_product && is_alone {
            let mut node = product.clone();
            node.outputs.clone_from(&quantize.outputs);
            node.inputs.resize(6, String::new());
            node.inputs.extend(quantize.inputs[1..3].iter().cloned());
            plan.push(Edit::ReplaceNode { index, node });
        }
    }
    plan
}

/// An attention that gives f32, as one that gives the levels of what quantizes it.
fn attention_levels(links: &Links, attention: &Node, quantize: &Node) -> Option<Node> {
    let is_attention =
        attention.domain == ATTAR_DOMAIN && attention.op_type == "QuantizedAttention";
    let is_float = ["y_scale", "y_scales"].iter().all(|name| attention.attribute(name).is_none());
    if !is_attention || !is_float {
        return None;
    }
    let scales = links.constant(quantize.input(1)?)?.values::<f32>().into_owned();
    let zero_point = *links.constant(quantize.input(2)?)?.slice::<u8>().first()?;
    let mut node = attention.clone().with_attribute("y_zero_point", i64::from(zero_point));
    node = match scales.as_slice() {
        [scale] => node.with_attribute("y_scale", *scale),
        _ => node.with_attribute("y_scales", scales),
    };
    node.outputs.clone_from(&quantize.outputs);
    Some(node)
}

/// `LayerNormalization` or `SkipLayerNormalization`, and a `QuantizeLinear` that reads it →
/// `QuantizedLayerNormalization`, which gives both results.
pub fn plan_normalization(model: &Model) -> Plan {
    let graph = &model.graph;
    let facts = infer_graph(model);
    let links = Links::new(graph);
    let mut plan = Plan::default();
    let mut taken = std::collections::HashSet::new();
    for (index, quantize) in graph.nodes.iter().enumerate() {
        if !ends_another(&links, quantize) {
            continue;
        }
        let Some((norm_index, norm)) = links.producer(&quantize.inputs[0]) else { continue };
        let has_skip = norm.domain == ATTAR_DOMAIN && norm.op_type == "SkipLayerNormalization";
        let is_norm = (has_skip || norm.is("LayerNormalization")) && norm.outputs.len() == 1;
        let is_f32 = |name: &String| {
            name.is_empty() || facts.get(name).is_some_and(|fact| fact.dtype == DType::F32)
        };
        // The scale tells the row: the last axis alone.
        let parameter = norm.input(if has_skip { 2 } else { 1 });
        let is_row =
            parameter.and_then(|name| links.constant(name)).is_some_and(|scale| scale.rank() == 1)
                && matches!(norm.int_or("axis", -1), Ok(-1));
        let is_plain = is_row && norm.inputs.iter().all(is_f32);
        if !is_norm || !is_plain || !taken.insert(norm_index) {
            continue;
        }
        let mut node = norm.clone().with_domain(ATTAR_DOMAIN);
        node.op_type = "QuantizedLayerNormalization".into();
        if !has_skip {
            node.inputs.insert(1, String::new());
        }
        node.inputs.resize(4, String::new());
        node.inputs.extend(quantize.inputs[1..3].iter().cloned());
        node.outputs.push(quantize.outputs[0].clone());
        plan.push(Edit::ReplaceNode { index: norm_index, node });
        plan.push(Edit::RemoveNode { index });
    }
    plan
}

/// `QuantizedMatMul`s of the same levels, without activation → one `QuantizedMatMuls`.
pub fn plan_shared(model: &Model) -> Plan {
    let graph = &model.graph;
    let mut plan = Plan::default();
    let is_joinable = |node: &Node| {
        node.domain == ATTAR_DOMAIN
            && node.op_type == "QuantizedMatMul"
            && node.attributes.is_empty()
    };
    let mut is_taken = vec![false; graph.nodes.len()];
    for (first, node) in graph.nodes.iter().enumerate() {
        if is_taken[first] || !is_joinable(node) {
            continue;
        }
        let mut joined = node.clone();
        for (index, other) in graph.nodes.iter().enumerate().skip(first + 1) {
            if is_joinable(other) && other.inputs[..3] == node.inputs[..3] {
                is_taken[index] = true;
                // The groups before end with their last input, absent or not.
                joined.inputs.resize(3 + EACH * joined.outputs.len(), String::new());
                joined.inputs.extend(other.inputs[3..].iter().cloned());
                joined.outputs.extend(other.outputs.iter().cloned());
                plan.push(Edit::RemoveNode { index });
            }
        }
        if joined.outputs.len() > 1 {
            joined.op_type = "QuantizedMatMuls".into();
            plan.push(Edit::ReplaceNode { index: first, node: joined });
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;

    use super::*;
    use crate::{Datum, Pool, Program};

    /// Values between −1 and 1 that look random.
    fn values(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..count).map(next).collect()
    }

    const K: usize = 30;
    const N: usize = 70;

    /// A graph over x (f32[n, s, 30]) with 8-bit weights of both shapes, their scales, and the
    /// scalars of two quantizations.
    fn model(text: &str) -> Model {
        let mut graph = graph_from_text(text);
        let mut set = |name: &str, tensor: Tensor| graph.set_initializer(name, tensor);
        let levels = |count: usize, seed: u32| -> Vec<i8> {
            values(count, seed).iter().map(|x| (x * 128.0).floor() as i8).collect()
        };
        set("w", Tensor::new(&[K, N], &levels(K * N, 1)));
        set("wt", Tensor::new(&[N, K], &levels(K * N, 1)));
        let scales: Vec<f32> = values(N, 2).iter().map(|x| 0.002 + 0.001 * x).collect();
        set("ws", Tensor::new(&[N], &scales));
        set("wz", Tensor::new(&[N], &[0_i8; N]));
        set("b", Tensor::new(&[N], &values(N, 3)));
        set("c", Tensor::new(&[N], &levels(N, 9).map_to_i32()));
        set("cs", Tensor::scalar(0.01_f32));
        set("s", Tensor::scalar(0.011_f32));
        set("z", Tensor::scalar(121_u8));
        set("t", Tensor::scalar(0.017_f32));
        set("y", Tensor::scalar(31_u8));
        set("g", Tensor::new(&[K], &values(K, 4)));
        set("h", Tensor::new(&[K], &values(K, 5)));
        // They were inputs of unknown content before.
        let constants = &graph.initializers;
        graph.inputs.retain(|input| !constants.contains_key(&input.name));
        graph.outputs.iter_mut().for_each(|output| output.value_type = None);
        let opsets = [(String::new(), 21)].into_iter().collect();
        Model { ir_version: 10, opsets, graph, ..Model::default() }
    }

    trait MapToI32 {
        fn map_to_i32(&self) -> Vec<i32>;
    }

    impl MapToI32 for Vec<i8> {
        fn map_to_i32(&self) -> Vec<i32> {
            self.iter().map(|&level| i32::from(level)).collect()
        }
    }

    /// Operators of the model as it is run, in order.
    fn operators(model: &Model) -> Vec<String> {
        let mut model = model.clone();
        super::super::fuse_for_runtime(&mut model).unwrap();
        model.graph.nodes.iter().map(|node| node.op_type.clone()).collect()
    }

    /// The outputs of one run; operator by operator where every value is observed.
    fn run(model: &Model, feeds: &[Tensor], is_unfused: bool) -> Vec<Tensor> {
        let names = model.graph.nodes.iter().flat_map(|node| node.outputs.clone());
        let observed: Vec<String> = names.filter(|_| is_unfused).collect();
        let program = Program::new(model.clone(), &observed).unwrap();
        let feeds = feeds.iter().cloned().map(Datum::Tensor).collect();
        let outputs = program.run(feeds, &Pool::default()).unwrap();
        outputs.into_iter().map(|datum| datum.into_tensor(0).unwrap()).collect()
    }

    const PRODUCT: &str = "q = QuantizeLinear(x, s, z)\nd = DequantizeLinear(q, s, z)\n\
        v = DequantizeLinear(w, ws, wz)\nm = MatMul(d, v)\na = Add(m, b)\n";

    /// Products and what follows them, each ending with the levels `r`.
    fn cases() -> Vec<(String, &'static str)> {
        let product = |tail: &str| format!("{PRODUCT}{tail}");
        let gemm = "f = Flatten(x, axis=2)\nq = QuantizeLinear(f, s, z)\n\
            d = DequantizeLinear(q, s, z)\nv = DequantizeLinear(wt, ws, wz, axis=0)\n\
            e = DequantizeLinear(c, cs)\na = Gemm(d, v, e, transB=1)\n\
            r = QuantizeLinear(a, t, y)";
        vec![
            (product("r = QuantizeLinear(a, t, y)"), "bias"),
            (product("o = Relu(a)\nr = QuantizeLinear(o, t, y)"), "relu"),
            (product("o = Gelu(a)\nr = QuantizeLinear(o, t, y)"), "gelu"),
            (product("o = Gelu(a, approximate=tanh)\nr = QuantizeLinear(o, t, y)"), "gelu tanh"),
            (product("o = Sigmoid(a)\nr = QuantizeLinear(o, t, y)"), "sigmoid"),
            (gemm.to_string(), "gemm"),
        ]
    }

    fn feed(rows: usize) -> Tensor {
        Tensor::new(&[1, rows, K], &values(rows * K, 7))
    }

    #[test]
    fn levels_are_within_one_of_the_graph_run_operator_by_operator() {
        for (text, what) in cases() {
            let model = model(&text);
            let found = operators(&model);
            assert_eq!(found.last().unwrap(), "QuantizedMatMul", "{what}: {found:?}");
            assert!(
                !found.iter().any(|op| op == "MatMul" || op == "Gemm" || op == "Add"),
                "{what}"
            );
            for rows in [1, 5, 40] {
                let [fused, plain] =
                    [false, true].map(|plain| run(&model, &[feed(rows)], plain).remove(0));
                assert_eq!((fused.dtype(), fused.shape()), (plain.dtype(), plain.shape()));
                let (fused, plain) = (fused.slice::<u8>(), plain.slice::<u8>());
                let distances = fused.iter().zip(plain).map(|(a, b)| a.abs_diff(*b));
                assert!(distances.clone().max() <= Some(1), "{what}");
                // Only a value near a tie may fall to its other side.
                let moved = distances.filter(|&distance| distance > 0).count();
                assert!(moved <= 1 + fused.len() / 200, "{what}: {moved} of {}", fused.len());
                let least = fused.iter().min();
                assert!(least < fused.iter().max(), "{what}: all levels are alike");
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_in_any_batch_and_on_any_number_of_threads() {
        for (text, what) in cases() {
            let model = model(&text);
            let many = feed(90);
            let whole = run(&model, std::slice::from_ref(&many), false).remove(0);
            for row in [0, 37, 89] {
                let one = Tensor::new(&[1, 1, K], &many.slice::<f32>()[row * K..][..K]);
                let alone = run(&model, &[one], false).remove(0);
                assert!(alone.slice::<u8>() == &whole.slice::<u8>()[row * N..][..N], "{what}");
            }
            for threads in [2, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let found = pool.install(|| run(&model, std::slice::from_ref(&many), false));
                assert!(found[0].slice::<u8>() == whole.slice::<u8>(), "{what}");
            }
        }
    }

    #[test]
    fn a_normalization_gives_its_result_and_its_levels_in_one() {
        let norm = "n = LayerNormalization(x, g, h)\nr = QuantizeLinear(n, s, z)\no = Neg(n)";
        let skip = "k = Mul(x, x)\ni = Add(x, k)\nn = LayerNormalization(i, g, h)\n\
            r = QuantizeLinear(n, s, z)\no = Neg(n)";
        for text in [norm, skip] {
            let text = format!("x: f32[1, n, {K}]\n{text}");
            let model = model(&text);
            let found = operators(&model);
            assert!(found.contains(&"QuantizedLayerNormalization".to_string()), "{found:?}");
            assert!(!found.contains(&"QuantizeLinear".to_string()), "{found:?}");
            for rows in [1, 7, 2000] {
                let [fused, plain] = [false, true].map(|plain| run(&model, &[feed(rows)], plain));
                for (fused, plain) in fused.iter().zip(&plain) {
                    assert!(fused.bytes() == plain.bytes(), "{rows} rows");
                }
            }
        }
    }

    #[test]
    fn products_of_the_same_levels_become_one_and_give_the_same_bits() {
        let text = "q = QuantizeLinear(x, s, z)\nd = DequantizeLinear(q, s, z)\n\
            v = DequantizeLinear(w, ws, wz)\nm = MatMul(d, v)\na = Add(m, b)\n\
            u = DequantizeLinear(w, cs)\ne = MatMul(d, u)\n\
            n = MatMul(d, v)\nr = QuantizeLinear(n, t, y)\n\
            o = MatMul(d, v)\np = QuantizeLinear(o, s, z)";
        let model = model(text);
        assert_eq!(operators(&model), ["QuantizeLinear", "QuantizedMatMuls"]);
        let outputs = run(&model, &[feed(50)], false);
        let plain = run(&model, &[feed(50)], true);
        for (found, plain) in outputs.iter().zip(&plain) {
            assert_eq!((found.dtype(), found.shape()), (plain.dtype(), plain.shape()));
            if found.dtype() == DType::F32 {
                // The product of dequantized values is summed in f32 there.
                let pairs = found.slice::<f32>().iter().zip(plain.slice::<f32>());
                pairs
                    .for_each(|(a, b)| assert!((a - b).abs() < 1e-5 * b.abs().max(1.0), "{a} {b}"));
            } else {
                let pairs = found.slice::<u8>().iter().zip(plain.slice::<u8>());
                pairs.for_each(|(a, b)| assert!(a.abs_diff(*b) <= 1));
            }
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let threads = pool.install(|| run(&model, &[feed(50)], false));
        assert!(threads.iter().zip(&outputs).all(|(a, b)| a.bytes() == b.bytes()));
    }

    #[test]
    fn what_others_read_stays_a_float() {
        let text = format!("{PRODUCT}r = QuantizeLinear(a, t, y)\no = Neg(a)");
        assert!(operators(&model(&text)).contains(&"QuantizeLinear".to_string()));
        // A Gemm that scales, and weights along the wrong axis.
        for gemm in ["Gemm(d, v, b, alpha=2.0)", "Gemm(d, v, b, beta=0.5)"] {
            let text = format!(
                "f = Flatten(x, axis=2)\nq = QuantizeLinear(f, s, z)\n\
                 d = DequantizeLinear(q, s, z)\nv = DequantizeLinear(w, ws, wz)\no = {gemm}"
            );
            assert!(!operators(&model(&text)).contains(&"QuantizedMatMul".to_string()), "{gemm}");
        }
    }
}
