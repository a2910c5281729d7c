//! Gradients of every operator against finite differences of its forward run in f64, over the
//! cases that hold it against ONNX Runtime.

use std::collections::{BTreeSet, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use attar_graph::{AttributeValue, Model, Value};
use attar_ops::fuse::for_training;
use attar_ops::{OPERATORS, OpError, Pool, has_gradient};
use attar_runtime::{Builtin, RunOptions, Runtime};
use attar_tensor::{DType, Tensor};
use attar_tests::numbers;
use attar_train::{StepContext, Tape, TapeOptions, TrainError};

use crate::case::{Case, bytes_i8, case, f32s, i64s, model_of, positive};

/// Elements of each input that are moved, spread evenly.
const MOVED_MAX: usize = 24;

/// Largest difference allowed, relative to the input's largest derivative: sums of f32 against f64.
const TOLERANCE: f64 = 5e-5;

/// Difference of the slopes on both sides above which a function has a kink.
const KINK_MIN: f64 = 1e-3;

/// Inputs with a number above this are tests of the forward run.
const WILD_MIN: f32 = 1e4;

/// What rounding makes of a slope, relative to the loss: f64's precision over the step.
const NOISE: f64 = 1e-9;

/// Slopes beyond what f32 holds are not compared, nor those at the border of a domain.
const SLOPE_MAX: f64 = 1e37;

/// Inputs that are settings: no gradient flows to them.
const SETTINGS: &[(&str, usize)] =
    &[("Resize", 1), ("Resize", 2), ("RoiAlign", 1), ("Upsample", 1)];

/// What became of a case.
#[derive(Debug)]
pub(crate) enum Checked {
    /// Every gradient agreed.
    Agrees,
    /// One did not; says which.
    Differs(String),
    /// No f32 input, or no float output.
    NothingFlows,
    /// The operator has no gradient.
    NoGradient(#[allow(dead_code)] String),
    /// The kernel does not run in f64, so there is nothing to compare with.
    NoReference,
}

/// Compares the gradients of a case with finite differences.
///
/// # Panics
/// When it does not run.
pub(crate) fn check_gradients(case: &Case, unfused: bool) -> Checked {
    let case = &tamed(case);
    let mut model = model_of(case);
    keep_all(&mut model);
    let trained = trained_names(case, &model);
    if trained.is_empty() {
        return Checked::NothingFlows;
    }
    for (name, tensor) in case.feeds.iter().filter(|(name, _)| trained.contains(&(*name).into())) {
        model.graph.inputs.retain(|input| input.name != *name);
        model.graph.set_initializer(*name, tensor.clone());
    }
    let options = TapeOptions { unfused, ..TapeOptions::default() };
    let tape = match Tape::new(&model, &trained, &options) {
        Ok(tape) => tape,
        Err(TrainError::NoGradient { op_type, .. }) => return Checked::NoGradient(op_type),
        Err(TrainError::NothingToTrain { .. }) => return Checked::NothingFlows,
        Err(TrainError::Node { op_type, source, .. })
            if matches!(*source, OpError::Unsupported { .. }) =>
        {
            return Checked::NoGradient(op_type);
        }
        Err(error) => panic!("{}: {error}", case.text),
    };
    let Some(reference) = Reference::new(case, &model, &tape) else {
        return Checked::NoReference;
    };
    match compare(case, &model, &tape, &reference) {
        Ok(()) => Checked::Agrees,
        Err(difference) => Checked::Differs(difference),
    }
}

/// The case without what only tests of the forward run are for: NaN, and numbers so great that
/// nothing is left of a small difference.
fn tamed(case: &Case) -> Case {
    let is_wild = |x: &f32| x.is_nan() || x.abs() > WILD_MIN;
    let tame = |x: &f32| if x.is_nan() { 0.7 } else { x.clamp(-30.0, 30.0) };
    let mut case = case.clone();
    for (_, tensor) in case.feeds.iter_mut().filter(|(_, tensor)| tensor.dtype() == DType::F32) {
        let values = tensor.values::<f32>().into_owned();
        if values.iter().any(is_wild) {
            let values: Vec<f32> = values.iter().map(tame).collect();
            *tensor = Tensor::new(tensor.shape(), &values);
        }
    }
    case
}

/// Makes `Dropout` drop nothing: what it drops is drawn anew in every run.
fn keep_all(model: &mut Model) {
    let dropouts = model.graph.nodes.iter_mut().filter(|node| node.is("Dropout"));
    let count = dropouts.map(|node| {
        node.inputs.truncate(1);
        node.inputs.push("dropout/nothing".into());
    });
    if count.count() > 0 {
        model.graph.set_initializer("dropout/nothing", Tensor::scalar(0.0_f32));
    }
}

/// A batch normalization whose scale or bias is trained runs on the batch's statistics.
fn on_batch_statistics(model: &mut Model, trained: &[String]) {
    for node in model.graph.nodes.iter_mut().filter(|node| node.is("BatchNormalization")) {
        if node.inputs[1..3].iter().any(|input| trained.contains(input)) {
            node.attributes.insert("training_mode".into(), AttributeValue::from(1_i64).into());
        }
    }
}

/// The f32 feeds that are no settings.
fn trained_names(case: &Case, model: &Model) -> Vec<String> {
    let is_setting = |name: &str| {
        model.graph.nodes.iter().any(|node| {
            let place = node.inputs.iter().position(|input| input == name);
            place.is_some_and(|place| SETTINGS.contains(&(node.op_type.as_str(), place)))
        })
    };
    let feeds = case.feeds.iter().filter(|(name, tensor)| {
        tensor.dtype() == DType::F32 && tensor.element_count() > 0 && !is_setting(name)
    });
    feeds.map(|(name, _)| (*name).to_string()).collect()
}

/// The forward run in f64, and the weights of its outputs in the loss.
#[derive(Clone)]
struct Reference {
    model: Model,
    feeds: Vec<(String, Tensor)>,
    /// `None` for what is no float; 0 where an output is no finite number.
    weights: Vec<Option<Tensor>>,
    is_finite: bool,
}

impl Reference {
    fn new(case: &Case, trained: &Model, tape: &Tape) -> Option<Self> {
        let widen = |tensor: &Tensor| match tensor.dtype() {
            DType::F32 => tensor.converted(DType::F64).expect("floats convert"),
            _ => tensor.clone(),
        };
        let mut model = case.model_in_f64().unwrap_or_else(|| trained.clone());
        on_batch_statistics(&mut model, tape.trained());
        let feeds = case.feeds.iter().map(|(name, t)| ((*name).to_string(), widen(t))).collect();
        for (name, tensor) in &case.feeds {
            model.graph.initializers.shift_remove(*name);
            model.graph.inputs.retain(|input| input.name != *name);
            let dims = tensor.shape().iter().map(|&size| size.into()).collect();
            model.graph.inputs.push(Value::tensor(*name, widen(tensor).dtype(), dims));
        }
        for stored in model.graph.initializers.values_mut() {
            stored.tensor = widen(&stored.tensor);
        }
        let mut reference = Self { model, feeds, weights: Vec::new(), is_finite: true };
        let outputs = reference.outputs()?;
        assert_eq!(outputs.len(), tape.outputs().len());
        for (index, output) in outputs.iter().enumerate() {
            if output.dtype() != DType::F64 {
                reference.weights.push(None);
                continue;
            }
            let mut weights = numbers(output.element_count(), 7 + index as u64);
            for (weight, y) in weights.iter_mut().zip(output.values::<f64>().iter()) {
                if !y.is_finite() {
                    *weight = 0.0;
                    reference.is_finite = false;
                }
            }
            reference.weights.push(Some(Tensor::new(output.shape(), &weights)));
        }
        Some(reference)
    }

    fn outputs(&self) -> Option<Vec<Tensor>> {
        let feeds: Vec<(&str, &Tensor)> = self.feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let mut session = Builtin.load(&self.model, &RunOptions::default()).ok()?;
        let outputs = session.run(&feeds).ok()?;
        outputs.iter().all(|y| y.dtype() != DType::F32).then_some(outputs)
    }

    fn loss(&self) -> f64 {
        let outputs = self.outputs().expect("it ran before");
        let terms = outputs.iter().zip(&self.weights).filter_map(|(y, w)| Some((y, w.as_ref()?)));
        let term = |(y, w): (&Tensor, &Tensor)| {
            let (y, w) = (y.values::<f64>(), w.slice::<f32>());
            let weighted = y.iter().zip(w).filter(|(_, w)| **w != 0.0);
            weighted.map(|(y, w)| y * f64::from(*w)).sum::<f64>()
        };
        terms.map(term).sum()
    }

    /// The slopes of the loss along element `at` of the feed at `index`, to its left and right:
    /// two where it stands at a kink.
    fn slopes(&mut self, index: usize, at: usize, here: f64) -> [f64; 2] {
        let original = self.feeds[index].1.clone();
        let x = original.values::<f64>()[at];
        let step = 1e-6 * x.abs().max(1.0);
        let mut moved_loss = |x: f64| {
            let mut values = original.values::<f64>().into_owned();
            values[at] = x;
            self.feeds[index].1 = Tensor::new(original.shape(), &values);
            self.loss()
        };
        let (left, right) = (moved_loss(x - step), moved_loss(x + step));
        self.feeds[index].1 = original;
        let slopes = [(here - left) / step, (right - here) / step];
        let middle = (right - left) / (2.0 * step);
        if (slopes[1] - slopes[0]).abs() > KINK_MIN * middle.abs().max(1.0) {
            return slopes;
        }
        [middle; 2]
    }
}

fn compare(case: &Case, model: &Model, tape: &Tape, reference: &Reference) -> Result<(), String> {
    let pool = Pool::default();
    let variables: Vec<Tensor> = tape
        .variables()
        .iter()
        .map(|name| model.graph.initializers[name].tensor.aligned())
        .collect();
    let feed = |value: &Value| {
        let found = case.feeds.iter().find(|(name, _)| *name == value.name);
        found.expect("every input is fed").1.clone()
    };
    let feeds = tape.inputs().iter().map(feed).collect();
    let place = &case.text;
    let recording = tape
        .forward(&variables, feeds, StepContext::default(), &pool)
        .unwrap_or_else(|error| panic!("{place}: {error}"));
    let gradients = reference.weights.clone();
    let mut sums = vec![None; tape.trained().len()];
    tape.backward(&variables, recording, gradients, &mut sums, &pool)
        .unwrap_or_else(|error| panic!("{place}: {error}"));
    let mut reference = reference.clone();
    let here = reference.loss();
    for (name, sum) in tape.trained().iter().zip(sums) {
        let index =
            case.feeds.iter().position(|(feed, _)| feed == name).expect("a feed is trained");
        let count = case.feeds[index].1.element_count();
        let found = sum.map(|flow| flow.into_dense(&pool));
        let spread = attar_evaluate::data::spread(count, MOVED_MAX);
        let slopes: Vec<[f64; 2]> =
            spread.iter().map(|&at| reference.slopes(index, at, here)).collect();
        let smooth = slopes.iter().filter(|[left, right]| left == right);
        let scale = smooth.fold(1e-2, |most: f64, [slope, _]| most.max(slope.abs()));
        for (&at, [left, right]) in spread.iter().zip(slopes) {
            let found = found.as_ref().map_or(0.0, |g| f64::from(g.slice::<f32>()[at]));
            let margin = TOLERANCE * scale + NOISE * here.abs();
            let is_compared = left.abs().max(right.abs()) <= SLOPE_MAX && !(left + right).is_nan();
            if !is_compared || (found.is_nan() && !reference.is_finite) {
                continue;
            }
            // At a kink the slope of any piece that meets others there will do, or one between.
            let margin = margin + (right - left).abs();
            if !(left.min(right) - margin..=left.max(right) + margin).contains(&found) {
                return Err(format!(
                    "{place}: d/d{name}[{at}] is {found}, by differences {left} and {right}"
                ));
            }
        }
    }
    Ok(())
}

/// Operators through which no gradient flows, by the reason.
const WITHOUT_GRADIENT: &[(&str, &[&str])] = &[
    (
        "gives integers, truth values or sizes",
        &[
            "And",
            "ArgMax",
            "ArgMin",
            "BitShift",
            "BitwiseAnd",
            "BitwiseNot",
            "BitwiseOr",
            "BitwiseXor",
            "Equal",
            "Greater",
            "GreaterOrEqual",
            "IsInf",
            "IsNaN",
            "Less",
            "LessOrEqual",
            "NonMaxSuppression",
            "NonZero",
            "Not",
            "Or",
            "Shape",
            "Size",
            "Xor",
        ],
    ),
    (
        "reads nothing that is trained",
        &[
            "BlackmanWindow",
            "Constant",
            "ConstantOfShape",
            "HammingWindow",
            "HannWindow",
            "MelWeightMatrix",
        ],
    ),
    ("reads bits as another type", &["BitCast"]),
    ("is put in by fusion where a model runs, not where it is trained", &["attar.Spectrum"]),
    ("runs a graph on the scores of attention", &["ai.onnx.preview.FlexAttention"]),
    (
        "runs graphs, or holds a sequence",
        &[
            "ConcatFromSequence",
            "If",
            "Loop",
            "Optional",
            "OptionalGetElement",
            "OptionalHasElement",
            "Scan",
            "SequenceAt",
            "SequenceConstruct",
            "SequenceEmpty",
            "SequenceErase",
            "SequenceInsert",
            "SequenceLength",
            "SequenceMap",
            "SplitToSequence",
        ],
    ),
    ("gives as many elements as differ, which a step may change", &["Unique"]),
    (
        "reads text or labels",
        &[
            "RegexFullMatch",
            "StringConcat",
            "StringNormalizer",
            "StringSplit",
            "TfIdfVectorizer",
            "ai.onnx.ml.LabelEncoder",
        ],
    ),
    (
        "computes on quantized numbers; a model is trained before, or with QuantizeLinear and \
         DequantizeLinear in pairs",
        &[
            "ConvInteger",
            "DynamicQuantizeLinear",
            "MatMulInteger",
            "QLinearConv",
            "QLinearMatMul",
            "QuantizeLinear",
            "attar.QuantizedAttention",
            "attar.ChannelsLastQuantizedConv",
            "attar.DequantizedGather",
            "attar.LevelTable",
            "attar.QuantizedConv",
            "attar.QuantizedGRU",
            "attar.QuantizedLSTM",
            "attar.QuantizedLayerNormalization",
            "attar.QuantizedMatMul",
            "attar.QuantizedMatMuls",
            "attar.QuantizedRNN",
            "com.microsoft.DequantizeLinear",
            "com.microsoft.DynamicQuantizeLSTM",
            "com.microsoft.DynamicQuantizeMatMul",
            "com.microsoft.GatherBlockQuantized",
            "com.microsoft.MatMulIntegerToFloat",
            "com.microsoft.MatMulNBits",
            "com.microsoft.QAttention",
            "com.microsoft.QGemm",
            "com.microsoft.QLinearAdd",
            "com.microsoft.QLinearAveragePool",
            "com.microsoft.QLinearConcat",
            "com.microsoft.QLinearGlobalAveragePool",
            "com.microsoft.QLinearLeakyRelu",
            "com.microsoft.QLinearMul",
            "com.microsoft.QLinearSigmoid",
            "com.microsoft.QLinearSoftmax",
            "com.microsoft.QuantizeLinear",
        ],
    ),
];

/// Operators with a gradient that differences do not show, and what does.
const SHOWN_ELSEWHERE: &[(&str, &str)] = &[
    ("Multinomial", "gives integers, but draws others in every step: a test in `random.rs`"),
    ("RandomNormal", "reads nothing, but draws other numbers in every step: as above"),
    ("RandomUniform", "as above"),
    ("attar.FusedAttention", "made by fusion, f32 alone: a BERT beside PyTorch's, `import_tiny`"),
    ("attar.FusedBatchNormalization", "made by fusion: equal to its parts, `convolutions.rs`"),
    ("attar.FusedConv", "as above"),
    ("attar.FusedMatMul", "as FusedAttention"),
    ("attar.SkipLayerNormalization", "as FusedAttention"),
    ("attar.FakeQuantize", "is not the derivative: tests in `fake_quantize/tests.rs`"),
    ("attar.QuantizeDequantize", "is not the derivative: tests in `quantize_dequantize.rs`"),
];

/// Cases of what ONNX Runtime is not asked to run in f32.
pub(crate) fn cases() -> Vec<Case> {
    let (x, columns) = (f32s(&[3, 5]), i64s(&[4, 0, 4]));
    let running = |settings: &str| {
        let feeds = vec![("x", f32s(&[3, 4, 2])), ("a", Tensor::scalar(1_i64))];
        case(format!("y = CumProd(x, a{settings})"), feeds).opset(26)
    };
    vec![
        running(""),
        running(", exclusive=1"),
        running(", reverse=1"),
        running(", exclusive=1, reverse=1"),
        case("y = DequantizeLinear(q, s)", vec![("q", bytes_i8(&[4, 6])), ("s", positive(&[]))])
            .in_f64("d = Sub(s, s)\nc = CastLike(q, d)\ny = Mul(c, s)"),
        case("y = BiasSoftmax(x, b, axis=1)", vec![("x", x.clone()), ("b", f32s(&[1, 5]))])
            .attribute(0, "is_inner_broadcast", 0_i64)
            .domain("com.microsoft", 1)
            .in_f64("z = Add(x, b)\ny = Softmax(z, axis=-1)"),
        case("y = ArrayFeatureExtractor(x, i)", vec![("x", x.clone()), ("i", columns)])
            .domain("ai.onnx.ml", 1),
        case("y = Binarizer(x)", vec![("x", x)]).domain("ai.onnx.ml", 1),
    ]
}

/// What is wrong with the gradients of the operators, or with what is said of them above, given
/// the operators whose gradients have agreed.
pub(crate) fn problems(agreed: &BTreeSet<String>) -> Vec<String> {
    let listed: Vec<&str> =
        WITHOUT_GRADIENT.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    let mut known = BTreeSet::new();
    let mut problems = Vec::new();
    for operator in OPERATORS {
        let name = name_of(operator.domain(), operator.op_type());
        let is_shown =
            agreed.contains(&name) || SHOWN_ELSEWHERE.iter().any(|(other, _)| *other == name);
        match (listed.contains(&name.as_str()), has_gradient(*operator)) {
            (true, true) => {
                problems.push(format!("{name} has a gradient, and is listed as without"));
            }
            (false, false) => {
                problems.push(format!("{name} has no gradient, for no listed reason"));
            }
            (false, true) if !is_shown => {
                problems.push(format!("{name}: no case holds its gradient against differences"));
            }
            _ => {}
        }
        known.insert(name);
    }
    let unknown = listed.iter().filter(|name| !known.contains(**name));
    problems.extend(unknown.map(|name| format!("{name} is listed, and no operator")));
    problems
}

fn name_of(domain: &str, op_type: &str) -> String {
    if domain.is_empty() { op_type.into() } else { format!("{domain}.{op_type}") }
}

/// The operators of a case through which gradients flow, as the tape runs them.
fn flowing(case: &Case, unfused: bool) -> Vec<String> {
    let mut model = model_of(case);
    let mut reached: HashSet<String> = trained_names(case, &model).into_iter().collect();
    for (name, tensor) in case.feeds.iter().filter(|(name, _)| reached.contains(*name)) {
        model.graph.inputs.retain(|input| input.name != *name);
        model.graph.set_initializer(*name, tensor.clone());
    }
    let model = for_training(&model, &reached, !unfused).expect("a tape was made of it");
    let mut flowing = Vec::new();
    for node in &model.graph.nodes {
        if node.inputs.iter().any(|input| reached.contains(input)) {
            reached.extend(node.outputs.iter().filter(|output| !output.is_empty()).cloned());
            flowing.push(name_of(&node.domain, &node.op_type));
        }
    }
    flowing
}

/// The operators whose gradients agree in some case. With `ATTAR_GRADIENTS="OP_TYPE,… WORD …"`
/// in the environment, looks at the cases of some operators whose text holds the words, and shows
/// them.
///
/// # Panics
/// When a gradient differs.
pub(crate) fn agreed(cases: &[Case]) -> BTreeSet<String> {
    let only = std::env::var("ATTAR_GRADIENTS").ok();
    let (agreed, differences) = (Mutex::new(BTreeSet::new()), Mutex::new(Vec::new()));
    let next = AtomicUsize::new(0);
    let check_next = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let model = model_of(case);
            let is_asked = |asked: &String| {
                let (ops, words) = asked.split_once(' ').unwrap_or((asked, ""));
                let is_of = |op_type: &String| ops.split(',').any(|op| op == op_type);
                model.graph.nodes.iter().any(|node| is_of(&node.op_type))
                    && words.split_whitespace().all(|word| case.text.contains(word))
            };
            if !only.as_ref().is_none_or(is_asked) {
                continue;
            }
            for unfused in [true, false] {
                let checked = check_gradients(case, unfused);
                if only.is_some() {
                    eprintln!("{checked:?}: {}", case.text);
                }
                match checked {
                    Checked::Agrees => {
                        agreed.lock().expect("no panic").extend(flowing(case, unfused));
                    }
                    Checked::Differs(text) => differences.lock().expect("no panic").push(text),
                    _ => {}
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(check_next)));
    });
    let mut differences = differences.into_inner().expect("no panic");
    differences.sort();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    agreed.into_inner().expect("no panic")
}
