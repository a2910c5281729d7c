//! ONNX Runtime, loaded when it is asked for: the reference, and the usual place to deploy to.

mod library;
mod values;

use std::path::Path;

use ::ort::logging::LogLevel;
use ::ort::session::Session as OrtLibrarySession;
use ::ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel, SessionBuilder};
use attar_graph::{Model, Value};
use attar_onnx::{OnnxError, SaveOptions};
use attar_tensor::Tensor;

use self::library::{Library, TemporaryFolder};
use self::values::{from_ort, to_ort};
use crate::feeds::check_feeds;
use crate::{RunOptions, Runtime, RuntimeError, Session};

/// ONNX Runtime on the CPU.
#[derive(Clone, Debug)]
pub struct Ort {
    /// Whether ONNX Runtime may rewrite the graph. Without, each operator runs as the model has it.
    pub optimize: bool,
    loaded: Library,
}

impl Ort {
    /// Finds and loads the library: at `path`, else where `ORT_DYLIB_PATH` says, else in the
    /// `onnxruntime` package of the `python3` on this machine.
    ///
    /// # Errors
    /// [`RuntimeError::OrtNotFound`] with what was tried. A path that was named must work: another
    /// library than the one meant would give other numbers. A process can use one library.
    pub fn find(path: Option<&Path>) -> Result<Self, RuntimeError> {
        Ok(Self { optimize: true, loaded: Library::find(path)? })
    }

    /// A session of a model file as it is: attar reads it only for the types of inputs and outputs.
    ///
    /// # Errors
    /// A file that attar cannot read, and what [`load`](Runtime::load) reports.
    pub fn load_file(
        &self,
        path: &Path,
        options: &RunOptions,
    ) -> Result<Box<dyn Session>, RuntimeError> {
        let model = attar_onnx::load(path).map_err(|error| not_handed_over(&error))?;
        check_types(&model)?;
        let mut builder = self.builder(options).map_err(ort_error)?;
        let session = builder.commit_from_file(path).map_err(ort_error)?;
        let inputs = model.graph.required_inputs().cloned().collect();
        Ok(Box::new(OrtSession { session, inputs, outputs: model.graph.outputs, observed: vec![] }))
    }

    fn builder(&self, options: &RunOptions) -> ::ort::Result<SessionBuilder> {
        let level = if self.optimize {
            GraphOptimizationLevel::All
        } else {
            GraphOptimizationLevel::Disable
        };
        let builder = OrtLibrarySession::builder(&self.loaded.environment)?
            .with_optimization_level(level)?
            .with_intra_threads(options.threads.get())?
            .with_inter_threads(1)?
            .with_parallel_execution(false)?
            // The default of the bindings may choose another device where there is one.
            .with_auto_device(AutoDevicePolicy::PreferCPU)?
            // Errors are returned; printing them too would put them before our own message.
            .with_log_level(LogLevel::Fatal)?;
        // Within a run, threads wait for work by spinning, as they do where ONNX Runtime is
        // deployed. Between runs they would take cores from whatever is measured next, and from
        // the caller; a run on one thread has no others.
        Ok(builder.with_config_entry("session.force_spinning_stop", "1")?)
    }
}

impl Runtime for Ort {
    fn name(&self) -> &'static str {
        "ort"
    }

    fn version(&self) -> String {
        self.loaded.version()
    }

    fn load(&self, model: &Model, options: &RunOptions) -> Result<Box<dyn Session>, RuntimeError> {
        check_types(model)?;
        let outputs = &model.graph.outputs;
        let mut builder = self.builder(options).map_err(ort_error)?;
        let observed = observed_values(model, &options.observed);
        let hidden: Vec<&String> =
            observed.iter().filter(|name| !model.graph.is_output(name)).collect();
        let session = if hidden.is_empty() {
            commit(&mut builder, model)?
        } else {
            commit(&mut builder, &with_outputs(model, &hidden))?
        };
        let inputs = model.graph.required_inputs().cloned().collect();
        Ok(Box::new(OrtSession { session, inputs, outputs: outputs.clone(), observed }))
    }
}

fn check_types(model: &Model) -> Result<(), RuntimeError> {
    let mut values = model.graph.required_inputs().chain(&model.graph.outputs);
    let is_other = |value: &&Value| {
        !matches!(value.value_type, Some(attar_graph::ValueType::Tensor { .. }) | None)
    };
    match values.find(is_other) {
        Some(value) => Err(RuntimeError::Unsupported {
            what: format!("`{}`, which is not a tensor, on ONNX Runtime", value.name),
        }),
        None => Ok(()),
    }
}

/// The values to observe in the order they are computed.
fn observed_values(model: &Model, names: &[String]) -> Vec<String> {
    let produced = model.graph.nodes.iter().flat_map(|node| &node.outputs);
    produced.filter(|name| !name.is_empty() && names.contains(name)).cloned().collect()
}

/// The model with more outputs. ONNX Runtime shows no other value, and infers their types.
fn with_outputs(model: &Model, names: &[&String]) -> Model {
    let mut shown = model.clone();
    shown.graph.outputs.extend(names.iter().map(|&name| Value {
        name: name.clone(),
        value_type: None,
        doc_string: String::new(),
        extra: attar_tensor::Bytes::new(),
    }));
    shown
}

fn commit(builder: &mut SessionBuilder, model: &Model) -> Result<OrtLibrarySession, RuntimeError> {
    match attar_onnx::to_bytes(model) {
        Ok(bytes) => builder.commit_from_memory(&bytes).map_err(ort_error),
        Err(OnnxError::TooLarge { .. }) => {
            commit_from_file(builder, model, &SaveOptions::default())
        }
        Err(error) => Err(not_handed_over(&error)),
    }
}

/// What no message can hold goes through a file with its data beside it.
fn commit_from_file(
    builder: &mut SessionBuilder,
    model: &Model,
    options: &SaveOptions,
) -> Result<OrtLibrarySession, RuntimeError> {
    let folder = TemporaryFolder::new().map_err(|error| not_handed_over(&error))?;
    let path = folder.path().join("model.onnx");
    attar_onnx::save(model, &path, options).map_err(|error| not_handed_over(&error))?;
    builder.commit_from_file(&path).map_err(ort_error)
}

fn not_handed_over(error: &dyn std::error::Error) -> RuntimeError {
    RuntimeError::Ort { message: format!("the model cannot be handed over: {error}") }
}

/// The message as ONNX Runtime gives it: it names the node.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn ort_error<R>(error: ::ort::Error<R>) -> RuntimeError {
    RuntimeError::Ort { message: error.message().trim().to_owned() }
}

struct OrtSession {
    session: OrtLibrarySession,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    observed: Vec<String>,
}

impl OrtSession {
    fn run_and_show(
        &mut self,
        feeds: &[(&str, &Tensor)],
        visit: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Vec<Tensor>, RuntimeError> {
        check_feeds(&self.inputs, feeds)?;
        let values = feeds.iter().map(|&(name, tensor)| Ok((name, to_ort(name, tensor)?)));
        let values = values.collect::<Result<Vec<_>, RuntimeError>>()?;
        let results = self.session.run(values).map_err(ort_error)?;
        let read = |name: &String| {
            let value = results.get(name).expect("ONNX Runtime gives every output of the model");
            from_ort(name, value)
        };
        for name in &self.observed {
            visit(name, &read(name)?);
        }
        self.outputs.iter().map(|output| read(&output.name)).collect()
    }
}

impl Session for OrtSession {
    fn inputs(&self) -> &[Value] {
        &self.inputs
    }

    fn outputs(&self) -> &[Value] {
        &self.outputs
    }

    fn run(&mut self, feeds: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, RuntimeError> {
        let observed = std::mem::take(&mut self.observed);
        let outputs = self.run_and_show(feeds, &mut |_, _| {});
        self.observed = observed;
        outputs
    }

    fn observe(
        &mut self,
        feeds: &[(&str, &Tensor)],
        visit: &mut (dyn FnMut(&str, &Tensor) + Send),
    ) -> Result<Vec<Tensor>, RuntimeError> {
        self.run_and_show(feeds, visit)
    }
}

#[cfg(test)]
mod tests {
    use attar_graph::testing::graph_from_text;
    use attar_graph::{Dim, Graph, Node};
    use attar_tensor::{DType, bf16, f16};

    use super::*;
    use crate::Builtin;

    /// The library that `test.sh` names or fetches.
    fn ort() -> Ort {
        if std::env::var_os("ORT_DYLIB_PATH").is_some() {
            return Ort::find(None).unwrap();
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let data = std::env::var_os("ATTAR_DATA").map_or(root.join("data"), Into::into);
        let files = std::fs::read_dir(data.join("onnxruntime")).into_iter().flatten().flatten();
        let is_library = |path: &std::path::PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().contains("libonnxruntime."))
        };
        let library = files.map(|file| file.path()).find(is_library);
        let library = library.expect("there is no ONNX Runtime here: run ./test.sh, it brings one");
        Ort::find(Some(&library)).unwrap()
    }

    fn model(graph: Graph) -> Model {
        let opsets = [(String::new(), 20)].into_iter().collect();
        Model { ir_version: 10, opsets, graph, ..Model::default() }
    }

    fn run(model: &Model, feeds: &[(&str, &Tensor)]) -> Vec<Tensor> {
        ort().load(model, &RunOptions::default()).unwrap().run(feeds).unwrap()
    }

    const DENSE: &str = "x: f32[batch, 2]
        w = [1 2 3; 4 5 6]
        h = MatMul(x, w)
        y = Relu(h)";

    #[test]
    fn a_model_gives_what_builtin_gives() {
        let model = model(graph_from_text(DENSE));
        let x = Tensor::new(&[2, 2], &[1.0_f32, -1.0, 0.5, 0.25]);
        for optimize in [true, false] {
            let ort = Ort { optimize, ..ort() };
            let mut session = ort.load(&model, &RunOptions::default()).unwrap();
            assert_eq!(session.inputs()[0].name, "x");
            assert_eq!(session.outputs()[0].name, "y");
            let y = session.run(&[("x", &x)]).unwrap();
            assert_eq!(y, [Tensor::new(&[2, 3], &[0.0_f32, 0.0, 0.0, 1.5, 2.25, 3.0])]);
            let mut builtin = Builtin.load(&model, &RunOptions::default()).unwrap();
            assert_eq!(builtin.run(&[("x", &x)]).unwrap(), y);
        }
    }

    #[test]
    fn a_model_too_large_for_memory_goes_through_files() {
        let model = model(graph_from_text(DENSE));
        let options = SaveOptions { external_data_min_bytes: Some(0) };
        let mut builder = ort().builder(&RunOptions::default()).unwrap();
        let mut session = commit_from_file(&mut builder, &model, &options).unwrap();
        let x = Tensor::new(&[1, 2], &[1.0_f32, 2.0]);
        let results = session.run(vec![("x", to_ort("x", &x).unwrap())]).unwrap();
        let y = Tensor::new(&[1, 3], &[9.0_f32, 12.0, 15.0]);
        assert_eq!(from_ort("y", &results["y"]).unwrap(), y);
    }

    #[test]
    fn every_type_goes_in_and_comes_out() {
        let tensors = [
            Tensor::new(&[2], &[1.5_f32, -2.0]),
            Tensor::new(&[2], &[1.5_f64, -2.0]),
            Tensor::new(&[2], &[f16::from_f32(1.5), f16::NEG_INFINITY]),
            Tensor::new(&[2], &[bf16::from_f32(1.5), bf16::NEG_INFINITY]),
            Tensor::new(&[1, 2], &[i64::MIN, 7]),
            Tensor::new(&[2], &[i32::MIN, 7]),
            Tensor::new(&[2], &[i16::MIN, 7]),
            Tensor::new(&[2], &[i8::MIN, 7]),
            Tensor::new(&[2], &[u64::MAX, 7]),
            Tensor::new(&[2], &[u32::MAX, 7]),
            Tensor::new(&[2], &[u16::MAX, 7]),
            Tensor::new(&[2], &[u8::MAX, 7]),
            Tensor::from_bools(&[2], &[true, false]),
            Tensor::scalar(0.5_f32),
            Tensor::zeros(DType::I64, &[0, 3]),
        ];
        for tensor in tensors {
            let dims = vec![Dim::Unknown; tensor.rank()];
            let graph = Graph {
                name: "identity".into(),
                nodes: vec![Node::new("Identity", "same", &["x"], &["y"])],
                inputs: vec![Value::tensor("x", tensor.dtype(), dims.clone())],
                outputs: vec![Value::tensor("y", tensor.dtype(), dims)],
                ..Graph::default()
            };
            assert_eq!(run(&model(graph), &[("x", &tensor)]), [tensor]);
        }
    }

    #[test]
    fn bytes_at_any_alignment_can_be_fed() {
        let mut bytes = vec![0_u8];
        bytes.extend([1.0_f32, 2.0].iter().flat_map(|x| x.to_le_bytes()));
        let unaligned = attar_tensor::Bytes::from(bytes).slice(1..);
        let x = Tensor::from_bytes(DType::F32, &[1, 2], unaligned).unwrap();
        let y = run(&model(graph_from_text(DENSE)), &[("x", &x)]);
        assert_eq!(y, [Tensor::new(&[1, 3], &[9.0_f32, 12.0, 15.0])]);
    }

    #[test]
    fn feeds_are_checked_before_they_are_handed_over() {
        let mut session =
            ort().load(&model(graph_from_text(DENSE)), &RunOptions::default()).unwrap();
        let x = Tensor::new(&[1, 2], &[1.0_f32, 2.0]);
        let error = session.run(&[]).unwrap_err();
        assert_eq!(error.to_string(), "input `x` is not fed");
        let error = session.run(&[("x", &x), ("z", &x)]).unwrap_err();
        assert_eq!(error.to_string(), "the model has no input `z`; it has x");
        let error = session.run(&[("x", &Tensor::new(&[1, 2], &[1_i64, 2]))]).unwrap_err();
        assert_eq!(error.to_string(), "input `x` is fed i64[1, 2], the model takes f32[batch, 2]");
        assert!(session.run(&[("x", &x.reshaped(&[2, 1]))]).is_err());
        assert!(session.run(&[("x", &x.reshaped(&[2]))]).is_err());
        assert!(session.run(&[("x", &x)]).is_ok());
    }

    #[test]
    fn errors_name_the_node() {
        let unknown = model(graph_from_text("x: f32[2]\ny = NoSuchOperator(x)"));
        let error = ort().load(&unknown, &RunOptions::default()).err().unwrap().to_string();
        assert!(error.starts_with("ONNX Runtime: ") && error.contains("NoSuchOperator"), "{error}");

        let mut graph = graph_from_text("x: f32[n]\nz: f32[m]\ny = Add(x, z)");
        graph.nodes[0].name = "sum".into();
        let mut session = ort().load(&model(graph), &RunOptions::default()).unwrap();
        let (two, three) = (Tensor::zeros(DType::F32, &[2]), Tensor::zeros(DType::F32, &[3]));
        let error = session.run(&[("x", &two), ("z", &three)]).unwrap_err().to_string();
        assert!(error.contains("Name:'sum'"), "{error}");
    }

    #[test]
    fn observed_values_come_in_execution_order_and_not_with_the_outputs() {
        let model = model(graph_from_text(DENSE));
        let observed = vec!["y".to_string(), "h".to_string()];
        let options = RunOptions { observed, ..RunOptions::default() };
        let x = Tensor::new(&[1, 2], &[-1.0_f32, 0.0]);
        let mut session = ort().load(&model, &options).unwrap();
        let mut seen = Vec::new();
        let outputs = session
            .observe(&[("x", &x)], &mut |name, tensor| {
                seen.push((name.to_string(), tensor.clone()));
            })
            .unwrap();
        let zeros = Tensor::new(&[1, 3], &[0.0_f32; 3]);
        let negative = Tensor::new(&[1, 3], &[-1.0_f32, -2.0, -3.0]);
        assert_eq!(seen, [("h".to_string(), negative), ("y".to_string(), zeros.clone())]);
        assert_eq!(outputs, std::slice::from_ref(&zeros));
        assert_eq!(session.run(&[("x", &x)]).unwrap(), [zeros]);
    }

    #[test]
    fn threads_do_not_change_the_result() {
        let model = model(graph_from_text(DENSE));
        let x = Tensor::new(&[64, 2], &[0.5_f32; 128]);
        let one = run(&model, &[("x", &x)]);
        let options = RunOptions { threads: 2.try_into().unwrap(), ..RunOptions::default() };
        let mut session = ort().load(&model, &options).unwrap();
        assert_eq!(session.run(&[("x", &x)]).unwrap(), one);
    }

    #[test]
    fn the_version_is_that_of_the_library() {
        let version = ort().version();
        let parts: Vec<u32> = version.split('.').map(|part| part.parse().unwrap()).collect();
        assert!(parts.len() == 3 && parts[0] == 1 && parts[1] >= 22, "{version}");
        assert_eq!(ort().name(), "ort");
    }

    #[test]
    fn one_process_uses_one_library() {
        let ort = ort();
        assert!(Ort::find(Some(&ort.loaded.path)).is_ok());
        let folder = TemporaryFolder::new().unwrap();
        let copy = folder.path().join("libonnxruntime.so");
        std::fs::copy(&ort.loaded.path, &copy).unwrap();
        let error = Ort::find(Some(&copy)).unwrap_err().to_string();
        assert!(error.contains("one process can use one library"), "{error}");
    }
}
