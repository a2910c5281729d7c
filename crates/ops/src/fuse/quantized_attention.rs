//! Attention whose operands, and perhaps probabilities, are dequantized u8 → `QuantizedAttention`.

use attar_graph::{Edit, Graph, Links, Model, Node, Plan};
use attar_tensor::{DType, Tensor};

use super::attention::{context_after, heads_of, sum_of_addends, under_addends, unscaled};
use super::{producer, scalar};
use crate::kernels::attention8::HEAD_SIZE_MAX;
use crate::{ATTAR_DOMAIN, Facts, infer_graph};

pub fn plan(model: &Model) -> Plan {
    let facts = infer_graph(model);
    let graph = &model.graph;
    let links = Links::new(graph);
    let mut plan = Plan::default();
    for softmax in graph.nodes.iter().filter(|node| node.is("Softmax")) {
        if let Some(found) = Quantized::find(&links, &facts, softmax) {
            found.replace(graph, &mut plan);
        }
    }
    plan
}

/// Q, K or V.
struct Operand<'a> {
    /// [batch, sequence, hidden]: u8, or f32 yet to be quantized.
    source: &'a str,
    is_quantized: bool,
    heads: i64,
    scale: f32,
    zero_point: u8,
}

struct Quantized<'a> {
    operands: [Operand<'a>; 3],
    /// Addends to the scores: position bias, mask.
    addends: Vec<&'a str>,
    scale: f32,
    /// Of probabilities that are u8.
    probability_scale: Option<f32>,
    /// Index of the node whose output the fused one takes over, and how that is quantized.
    last: usize,
    result: Option<(f32, u8)>,
}

impl<'a> Quantized<'a> {
    fn find(links: &Links<'a>, facts: &Facts, softmax: &'a Node) -> Option<Self> {
        if !matches!(softmax.int_or("axis", -1), Ok(-1 | 3)) {
            return None;
        }
        let (probability_scale, probabilities) = probabilities(links, softmax)?;
        let (last, context, output) = context_after(links, facts, probabilities)?;
        let mut scale = 1.0;
        let mut others = 1.0;
        let value = operand(links, facts, context.input(1)?, &[0, 2, 1, 3], &mut others)?;
        let (scores, addends) = under_addends(links, facts, softmax.input(0)?)?;
        let (_, product) = producer(links, unscaled(links, scores, &mut scale), "MatMul")?;
        let query = operand(links, facts, product.input(0)?, &[0, 2, 1, 3], &mut scale)?;
        let key = operand(links, facts, product.input(1)?, &[0, 2, 3, 1], &mut scale)?;
        let heads = value.heads;
        if query.heads != heads || key.heads != heads || others != 1.0 || addends.len() > 2 {
            return None;
        }
        let result = links.only_use(output);
        let result =
            result.and_then(|(index, node)| Some((index, pair(links, node, "QuantizeLinear")?)));
        let (last, result) = match result {
            Some((index, result)) => (index, Some(result)),
            None => (last, None),
        };
        let operands = [query, key, value];
        Some(Self { operands, addends, scale, probability_scale, last, result })
    }

    fn replace(&self, graph: &Graph, plan: &mut Plan) {
        let last = &graph.nodes[self.last];
        let output = &last.outputs[0];
        let sources: Vec<String> = (self.operands.iter().zip(["query", "key", "value"]))
            .map(|(operand, part)| operand.quantized(&format!("{output}/{part}"), plan))
            .collect();
        let mut inputs: Vec<&str> = sources.iter().map(String::as_str).collect();
        let mask = sum_of_addends(&self.addends, output, plan);
        inputs.extend(mask.as_deref());
        let mut node = Node::new("QuantizedAttention", &last.name, &inputs, &[output])
            .with_domain(ATTAR_DOMAIN)
            .with_attribute("heads", self.operands[0].heads)
            .with_attribute("scale", self.scale);
        if let Some(scale) = self.probability_scale {
            node = node.with_attribute("p_scale", scale);
        }
        for (operand, name) in self.operands.iter().zip(["q", "k", "v"]) {
            node = node
                .with_attribute(&format!("{name}_scale"), operand.scale)
                .with_attribute(&format!("{name}_zero_point"), i64::from(operand.zero_point));
        }
        if let Some((scale, zero_point)) = self.result {
            node = node
                .with_attribute("y_scale", scale)
                .with_attribute("y_zero_point", i64::from(zero_point));
        }
        plan.push(Edit::ReplaceNode { index: self.last, node });
    }
}

impl Operand<'_> {
    /// The name of the u8 value; made here, with names under `base`, where heads were quantized.
    fn quantized(&self, base: &str, plan: &mut Plan) -> String {
        if self.is_quantized {
            return self.source.to_string();
        }
        let [scale, zero, output] =
            ["scale", "zero_point", "quantized"].map(|part| format!("{base}/{part}"));
        let tensor = Tensor::scalar(self.scale);
        plan.push(Edit::SetInitializer { name: scale.clone(), tensor });
        let tensor = Tensor::scalar(self.zero_point);
        plan.push(Edit::SetInitializer { name: zero.clone(), tensor });
        let inputs = [self.source, &scale, &zero];
        let node = Node::new("QuantizeLinear", &output, &inputs, &[&output]);
        plan.push(Edit::AddNode { node });
        output
    }
}

/// Scale and zero point of a node that quantizes to u8, or back, by one pair of constants.
fn pair(links: &Links, node: &Node, op_type: &str) -> Option<(f32, u8)> {
    let zero = links.constant(node.input(2)?).filter(|zero| zero.dtype() == DType::U8)?;
    let is_plain = node.is(op_type)
        && zero.element_count() == 1
        && node.attribute("output_dtype").is_none()
        && node.attribute("precision").is_none();
    let scale = scalar(links, node.input(1)?).filter(|scale| is_plain && *scale > 0.0)?;
    Some((scale, zero.values::<u8>()[0]))
}

/// What the product with V reads, and the scale of the u8 that it was dequantized from, if it was.
fn probabilities<'a>(links: &Links<'a>, softmax: &'a Node) -> Option<(Option<f32>, &'a str)> {
    let output = softmax.outputs.first()?;
    let (_, quantize) = links.only_use(output)?;
    if !quantize.is("QuantizeLinear") {
        return Some((None, output));
    }
    let (scale, zero_point) = pair(links, quantize, "QuantizeLinear")?;
    let (_, dequantize) = links.only_use(&quantize.outputs[0])?;
    let is_same = pair(links, dequantize, "DequantizeLinear")? == (scale, 0);
    // With about 1 as the greatest probability, the levels of a row add up to about that, however
    // many keys there are, and what they are multiplied by stays within 32 bits.
    let is_whole = (1.0 / 256.0..=1.0 / 128.0).contains(&scale);
    (is_same && zero_point == 0 && is_whole).then_some((Some(scale), &dequantize.outputs[0]))
}

/// What heads are made of: u8 that is dequantized before it is split, or heads that are quantized
/// themselves. Factors in between go into `factor` if they apply to what is dequantized.
fn operand<'a>(
    links: &Links<'a>,
    facts: &Facts,
    value: &'a str,
    perm: &[i64],
    factor: &mut f32,
) -> Option<Operand<'a>> {
    let is_small = |heads: i64, source: &str| {
        let hidden = facts.get(source).and_then(|fact| fact.shape.as_ref()?.get(2)?.known());
        hidden.is_some_and(|hidden| hidden / heads.max(1) <= HEAD_SIZE_MAX as i64)
    };
    if let Some((_, dequantize)) = producer(links, value, "DequantizeLinear") {
        let (scale, zero_point) = pair(links, dequantize, "DequantizeLinear")?;
        let (_, quantize) = producer(links, dequantize.input(0)?, "QuantizeLinear")?;
        if pair(links, quantize, "QuantizeLinear")? != (scale, zero_point) {
            return None;
        }
        let mut inner = 1.0;
        let (source, heads) =
            heads_of(links, facts, unscaled(links, quantize.input(0)?, &mut inner), perm)?;
        // x·c on a grid of `scale` is x on one of scale / c, and c stays part of the scores.
        let is_f32 = facts.get(source)?.dtype == DType::F32;
        if !is_f32 || inner <= 0.0 || !is_small(heads, source) {
            return None;
        }
        *factor *= inner;
        let scale = scale / inner;
        return Some(Operand { source, is_quantized: false, heads, scale, zero_point });
    }
    let (source, heads) = heads_of(links, facts, unscaled(links, value, factor), perm)?;
    let (_, dequantize) = producer(links, source, "DequantizeLinear")?;
    let (scale, zero_point) = pair(links, dequantize, "DequantizeLinear")?;
    let source = dequantize.input(0)?;
    let is_u8 = facts.get(source)?.dtype == DType::U8;
    (is_u8 && is_small(heads, source)).then_some(Operand {
        source,
        is_quantized: true,
        heads,
        scale,
        zero_point,
    })
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;

    use super::*;
    use crate::fuse::fuse_for_runtime;
    use crate::{Datum, Pool, Program};

    const HEADS: usize = 3;
    const HIDDEN: usize = 24;

    /// Heads quantized before they are split.
    const BEFORE: &str = "
        q8 = QuantizeLinear(q, qs, qz)\nq1 = DequantizeLinear(q8, qs, qz)
        k8 = QuantizeLinear(k, ks, kz)\nk1 = DequantizeLinear(k8, ks, kz)
        v8 = QuantizeLinear(v, vs, vz)\nv1 = DequantizeLinear(v8, vs, vz)
        q2 = Reshape(q1, split)\nqh = Transpose(q2, perm=0,2,1,3)
        k2 = Reshape(k1, split)\nkh = Transpose(k2, perm=0,2,3,1)
        v2 = Reshape(v1, split)\nvh = Transpose(v2, perm=0,2,1,3)";

    /// Heads quantized where the products read them, Q after a factor.
    const BEHIND: &str = "
        q2 = Reshape(q, split)\nq3 = Transpose(q2, perm=0,2,1,3)\nq4 = Mul(q3, half)
        k2 = Reshape(k, split)\nk3 = Transpose(k2, perm=0,2,1,3)\nk4 = Transpose(k3, perm=0,1,3,2)
        v2 = Reshape(v, split)\nv3 = Transpose(v2, perm=0,2,1,3)
        q8 = QuantizeLinear(q4, qs, qz)\nqh = DequantizeLinear(q8, qs, qz)
        k8 = QuantizeLinear(k4, ks, kz)\nkh = DequantizeLinear(k8, ks, kz)
        v8 = QuantizeLinear(v3, vs, vz)\nvh = DequantizeLinear(v8, vs, vz)";

    const CORE: &str = "
        s = MatMul(qh, kh)\ns1 = Div(s, root)\ns2 = Add(s1, m)\np = Softmax(s2, axis=-1)
        p8 = QuantizeLinear(p, ps, pz)\np1 = DequantizeLinear(p8, ps, pz)
        c = MatMul(p1, vh)\nc1 = Transpose(c, perm=0,2,1,3)\nc2 = Reshape(c1, merge)";

    const RESULT: &str = "
        y8 = QuantizeLinear(c2, ys, yz)\ny = DequantizeLinear(y8, ys, yz)";

    const STEP: f32 = 0.02;

    /// `CORE` with probabilities that are not quantized.
    fn float_core() -> String {
        let pair = "p8 = QuantizeLinear(p, ps, pz)\np1 = DequantizeLinear(p8, ps, pz)\n";
        assert!(CORE.contains(pair));
        CORE.replace(pair, "").replace("MatMul(p1, vh)", "MatMul(p, vh)")
    }

    fn model(nodes: &[&str]) -> Model {
        let inputs = "q: f32[b, n, 24]\nk: f32[b, n, 24]\nv: f32[b, n, 24]\nm: f32[b, 1, 1, n]\n";
        let mut graph = graph_from_text(&(inputs.to_string() + &nodes.concat()));
        let scalars =
            [("qs", 0.03), ("ks", 0.025), ("vs", 0.02), ("ps", 1.0 / 255.0), ("ys", STEP)];
        let others = [("root", 8_f32.sqrt()), ("half", 0.5)];
        let scalars = scalars.into_iter().chain(others).map(|(n, x)| (n, Tensor::scalar(x)));
        let zeros = [("qz", 118_u8), ("kz", 131), ("vz", 90), ("pz", 0), ("yz", 120)];
        let zeros = zeros.map(|(name, zero)| (name, Tensor::scalar(zero)));
        let shapes = [("split", vec![0, 0, 3, 8]), ("merge", vec![0, 0, HIDDEN as i64])];
        let shapes = shapes.map(|(name, shape)| (name, Tensor::new(&[shape.len()], &shape)));
        for (name, tensor) in scalars.chain(zeros).chain(shapes) {
            graph.inputs.retain(|input| input.name != name);
            graph.set_initializer(name, tensor);
        }
        let opsets = [(String::new(), 17)].into_iter().collect();
        Model { graph, opsets, ..Model::default() }
    }

    fn wave(count: usize, step: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * step + (i / 7) as f32).sin() * 3.0).collect()
    }

    /// Q, K, V and a mask for texts of these lengths, padded to the longest.
    fn feeds(lengths: &[usize]) -> Vec<Tensor> {
        let (batch, size) = (lengths.len(), lengths.iter().copied().max().unwrap_or(0));
        let operand = |step: f32| {
            let mut values = Vec::new();
            for (text, &length) in lengths.iter().enumerate() {
                values.extend(wave(length * HIDDEN, step + text as f32 * 0.01));
                // Padding holds what must not matter.
                values.resize((text + 1) * size * HIDDEN, 1.7);
            }
            Tensor::new(&[batch, size, HIDDEN], &values)
        };
        let mut mask: Vec<f32> = Vec::new();
        for (text, &length) in lengths.iter().enumerate() {
            mask.resize(text * size + length, 0.0);
            mask.resize((text + 1) * size, -1e9);
        }
        let mask = Tensor::new(&[batch, 1, 1, size], &mask);
        vec![operand(0.37), operand(0.53), operand(0.71), mask]
    }

    fn run(program: &Program, feeds: &[Tensor]) -> Vec<f32> {
        let names = ["q", "k", "v", "m"];
        let feeds = (program.inputs().iter())
            .map(|input| names.iter().position(|name| *name == input.name).unwrap())
            .map(|index| Datum::Tensor(feeds[index].clone()))
            .collect();
        let outputs = program.run(feeds, &Pool::default()).unwrap();
        outputs[0].clone().into_tensor(0).unwrap().values::<f32>().into_owned()
    }

    fn op_types(mut model: Model) -> Vec<String> {
        fuse_for_runtime(&mut model).unwrap();
        model.graph.nodes.into_iter().map(|node| node.op_type).collect()
    }

    #[test]
    fn equals_the_graph_op_by_op_within_one_step() {
        for heads in [BEFORE, BEHIND] {
            let texts: [&[usize]; 4] = [&[1], &[37], &[5, 19, 12], &[64, 64]];
            let core = float_core();
            for (nodes, tolerance) in [
                // A step of the result.
                (vec![heads, CORE, RESULT], STEP * 1.001),
                (vec![heads, &core, RESULT], STEP * 1.001),
                // A step of one probability, at a value of at most 3.3.
                (vec![heads, CORE], 3.3 / 255.0),
                // Half a step of 16 bits in each of up to 64, all to one side.
                (vec![heads, &core], 64.0 * 3.3 * 0.5 / 65535.0),
            ] {
                // Each operand is quantized, and the result dequantized.
                let count = 4 + usize::from(nodes.len() == 3);
                let found = op_types(model(&nodes));
                assert!(found.contains(&"QuantizedAttention".to_string()), "{found:?}");
                assert_eq!(found.len(), count, "{found:?}");
                let fused = Program::new(model(&nodes), &[]).unwrap();
                // A value that is shown is not fused away.
                let apart = Program::new(model(&nodes), &["p".into()]).unwrap();
                for lengths in texts {
                    let feeds = feeds(lengths);
                    let (fused, apart) = (run(&fused, &feeds), run(&apart, &feeds));
                    assert_eq!(fused.len(), apart.len());
                    let worst = fused.iter().zip(&apart).map(|(a, b)| (a - b).abs());
                    let worst = worst.fold(0.0, f32::max);
                    assert!(worst <= tolerance, "{lengths:?}: {worst}");
                }
            }
        }
    }

    #[test]
    fn a_vector_depends_on_no_neighbour_no_padding_and_no_count_of_threads() {
        let program = Program::new(model(&[BEFORE, CORE, RESULT]), &[]).unwrap();
        let lengths = [9, 41, 1, 17];
        let together = feeds(&lengths);
        let run_on = |threads: usize, feeds: &[Tensor]| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(&program, feeds))
        };
        let expected = run_on(1, &together);
        assert_eq!(run_on(3, &together), expected);
        for (text, &length) in lengths.iter().enumerate() {
            let rows = |tensor: &Tensor| {
                let values = &tensor.slice::<f32>()[text * 41 * HIDDEN..][..length * HIDDEN];
                Tensor::new(&[1, length, HIDDEN], values)
            };
            let mut alone: Vec<Tensor> = together[..3].iter().map(rows).collect();
            alone.push(Tensor::zeros(DType::F32, &[1, 1, 1, length]));
            for threads in [1, 3] {
                let found = run_on(threads, &alone);
                assert_eq!(found, expected[text * 41 * HIDDEN..][..length * HIDDEN], "{text}");
            }
        }
    }

    #[test]
    fn texts_without_tokens_and_batches_without_texts_give_nothing() {
        let program = Program::new(model(&[BEFORE, CORE, RESULT]), &[]).unwrap();
        assert_eq!(run(&program, &feeds(&[0])), []);
        assert_eq!(run(&program, &feeds(&[])), []);
    }

    #[test]
    fn other_graphs_are_left_as_they_are() {
        let is_fused = |nodes: &[&str], change: &dyn Fn(&mut Model)| {
            let mut model = model(nodes);
            change(&mut model);
            op_types(model).contains(&"QuantizedAttention".to_string())
        };
        assert!(is_fused(&[BEFORE, CORE], &|_| {}));
        // Q in float.
        let heads = BEFORE.replace("q2 = Reshape(q1", "q2 = Reshape(q");
        assert!(!is_fused(&[&heads, CORE], &|_| {}));
        // The probabilities' steps are too small to reach 1, or do not start at 0.
        let set = |name: &'static str, tensor: Tensor| {
            move |model: &mut Model| model.graph.set_initializer(name, tensor.clone())
        };
        assert!(!is_fused(&[BEFORE, CORE], &set("ps", Tensor::scalar(1e-4_f32))));
        assert!(!is_fused(&[BEFORE, CORE], &set("pz", Tensor::scalar(3_u8))));
        // V in i8.
        assert!(!is_fused(&[BEFORE, CORE], &set("vz", Tensor::scalar(3_i8))));
        // One scale for each head.
        let scales = Tensor::new(&[HEADS], &[0.1_f32, 0.2, 0.3]);
        assert!(!is_fused(&[BEFORE, CORE], &set("ks", scales)));
    }
}
