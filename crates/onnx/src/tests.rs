//! Facts about whole models: they come back as they were, and hostile ones end in errors.

use std::path::PathBuf;

use attar_graph::GraphError;
use attar_tensor::Bytes;
use prost::Message;

use crate::fields::entry;
use crate::messages::{
    AttributeProto, DeviceConfigurationProto, DimValue, DimensionProto, ElementTypeProto,
    FunctionProto, GraphProto, IntIntListEntryProto, MapTypeProto, ModelProto,
    NodeDeviceConfigurationProto, NodeProto, OpaqueTypeProto, OperatorSetIdProto, ShardedDimProto,
    ShardingSpecProto, SimpleShardedDimProto, SparseTensorProto, StringStringEntryProto,
    TensorAnnotation, TensorProto, TensorShapeProto, TensorTypeProto, TrainingInfoProto, TypeProto,
    TypeValue, ValueInfoProto, attribute_type as kind,
};
use crate::wire::Unknown;
use crate::{OnnxError, from_bytes, to_bytes};

/// A new folder that goes when it is dropped.
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
}

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("attar-onnx-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self { path }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.path).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[expect(clippy::unnecessary_wraps, reason = "fields are optional")]
fn text(text: &str) -> Option<String> {
    Some(text.into())
}

fn tensor_type(dims: Vec<DimensionProto>) -> TypeProto {
    let shape = Some(TensorShapeProto { dim: dims, ..TensorShapeProto::default() });
    let tensor = TensorTypeProto { elem_type: Some(1), shape, ..TensorTypeProto::default() };
    TypeProto { value: Some(TypeValue::Tensor(tensor)), denotation: None, ..TypeProto::default() }
}

fn value(name: &str, value_type: Option<TypeProto>) -> ValueInfoProto {
    ValueInfoProto { name: text(name), r#type: value_type, ..ValueInfoProto::default() }
}

fn boxed(value_type: TypeProto) -> ElementTypeProto {
    ElementTypeProto { elem_type: Some(Box::new(value_type)), ..ElementTypeProto::default() }
}

#[expect(clippy::unnecessary_wraps, reason = "fields are optional")]
fn of(value: TypeValue) -> Option<TypeProto> {
    Some(TypeProto { value: Some(value), denotation: None, ..TypeProto::default() })
}

fn values_of_every_type() -> Vec<ValueInfoProto> {
    let dims = vec![
        DimensionProto {
            value: Some(DimValue::Param("batch".into())),
            denotation: text("N"),
            ..DimensionProto::default()
        },
        DimensionProto {
            value: Some(DimValue::Value(3)),
            denotation: None,
            ..DimensionProto::default()
        },
        DimensionProto::default(),
    ];
    let tensor = || tensor_type(vec![]);
    let map = MapTypeProto {
        key_type: Some(7),
        value_type: Some(Box::new(tensor())),
        ..MapTypeProto::default()
    };
    let sparse = TensorTypeProto { elem_type: Some(11), shape: None, ..TensorTypeProto::default() };
    let opaque =
        OpaqueTypeProto { domain: text(""), name: text("image"), ..OpaqueTypeProto::default() };
    let mut documented = value("h", Some(tensor_type(dims)));
    documented.doc_string = text("hidden");
    documented.metadata_props = vec![entry("k", "v")];
    vec![
        documented,
        value("untyped", None),
        value(
            "empty",
            Some(TypeProto { value: None, denotation: text(""), ..TypeProto::default() }),
        ),
        value("sequence", of(TypeValue::Sequence(boxed(tensor())))),
        value("optional", of(TypeValue::Optional(boxed(tensor())))),
        value("map", of(TypeValue::Map(map))),
        value("sparse", of(TypeValue::SparseTensor(sparse))),
        value("opaque", of(TypeValue::Opaque(opaque))),
    ]
}

fn attribute(name: &str, code: i32) -> AttributeProto {
    AttributeProto { name: text(name), r#type: Some(code), ..AttributeProto::default() }
}

fn sharded() -> NodeDeviceConfigurationProto {
    let group = IntIntListEntryProto {
        key: Some(-1),
        value: vec![0, 1],
        ..IntIntListEntryProto::default()
    };
    let dim = Some(DimValue::Param("batch".into()));
    let simple =
        SimpleShardedDimProto { dim, num_shards: Some(2), ..SimpleShardedDimProto::default() };
    let dim = ShardedDimProto {
        axis: Some(0),
        simple_sharding: vec![simple],
        ..ShardedDimProto::default()
    };
    let spec = ShardingSpecProto {
        tensor_name: text("x"),
        device: vec![0, 1],
        index_to_device_group_map: vec![group],
        sharded_dim: vec![dim],
        ..ShardingSpecProto::default()
    };
    NodeDeviceConfigurationProto {
        configuration_id: text("pair"),
        sharding_spec: vec![spec],
        pipeline_stage: Some(1),
        ..NodeDeviceConfigurationProto::default()
    }
}

fn node(op_type: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: text(op_type),
        input: inputs.iter().map(|&input| input.into()).collect(),
        output: vec![output.into()],
        ..NodeProto::default()
    }
}

fn initializer(name: &str) -> TensorProto {
    TensorProto {
        name: text(name),
        dims: vec![2],
        data_type: Some(1),
        raw_data: Some(Bytes::from_static(&[0, 0, 128, 63, 0, 0, 0, 64])),
        ..TensorProto::default()
    }
}

/// `y = If(c) { x + w }`, with something in every field that a model can have.
fn full_graph() -> GraphProto {
    let branch = |name: &str| GraphProto {
        name: text(name),
        node: vec![node("Add", &["x", "w"], name)],
        output: vec![value(name, None)],
        ..GraphProto::default()
    };
    let then_branch =
        AttributeProto { g: Some(branch("a")), ..attribute("then_branch", kind::GRAPH) };
    let else_branch =
        AttributeProto { g: Some(branch("b")), ..attribute("else_branch", kind::GRAPH) };
    let choice = NodeProto {
        name: text("choose"),
        domain: text(""),
        overload: text(""),
        doc_string: text("one of two"),
        attribute: vec![then_branch, else_branch],
        metadata_props: vec![entry("k", "v")],
        device_configurations: vec![sharded()],
        ..node("If", &["c"], "y")
    };
    let typed = TensorProto { float_data: vec![0.5], raw_data: None, ..initializer("") };
    let constant = NodeProto {
        attribute: vec![AttributeProto {
            t: Some(TensorProto { dims: vec![1], name: None, ..typed }),
            ..attribute("value", kind::TENSOR)
        }],
        ..node("Constant", &[], "k")
    };
    let call = NodeProto { domain: text("local"), ..node("Twice", &["k", ""], "z") };
    GraphProto {
        node: vec![choice, constant, call],
        name: text("main"),
        initializer: vec![initializer("w")],
        doc_string: text("documented"),
        input: vec![value("x", Some(tensor_type(vec![]))), value("c", None)],
        output: vec![value("y", Some(tensor_type(vec![]))), value("z", None)],
        value_info: values_of_every_type(),
        quantization_annotation: vec![TensorAnnotation {
            tensor_name: text("w"),
            quant_parameter_tensor_names: vec![entry("SCALE_TENSOR", "w_scale")],
            ..TensorAnnotation::default()
        }],
        sparse_initializer: vec![],
        metadata_props: vec![entry("k", "v")],
        ..GraphProto::default()
    }
}

fn full_model() -> ModelProto {
    let sparse = SparseTensorProto {
        values: Some(initializer("v")),
        indices: Some(TensorProto { int64_data: vec![0, 4], ..initializer("i") }),
        dims: vec![5],
        ..SparseTensorProto::default()
    };
    let reference =
        AttributeProto { ref_attr_name: text("factor"), ..attribute("alpha", kind::FLOAT) };
    let function = FunctionProto {
        name: text("Twice"),
        domain: text("local"),
        overload: text("float"),
        input: vec!["p".into()],
        output: vec!["q".into()],
        attribute: vec!["mode".into()],
        attribute_proto: vec![AttributeProto { f: Some(2.0), ..attribute("factor", kind::FLOAT) }],
        node: vec![NodeProto { attribute: vec![reference], ..node("LeakyRelu", &["p"], "q") }],
        opset_import: vec![OperatorSetIdProto {
            domain: text(""),
            version: Some(20),
            ..OperatorSetIdProto::default()
        }],
        doc_string: text("doubles"),
        value_info: vec![value("q", None)],
        metadata_props: vec![entry("k", "v")],
        ..FunctionProto::default()
    };
    let training = TrainingInfoProto {
        initialization: Some(GraphProto {
            sparse_initializer: vec![sparse],
            ..GraphProto::default()
        }),
        algorithm: Some(full_graph()),
        initialization_binding: vec![entry("w", "w0")],
        update_binding: vec![StringStringEntryProto {
            key: text("w"),
            value: None,
            ..StringStringEntryProto::default()
        }],
        ..TrainingInfoProto::default()
    };
    let opset = |domain: &str, version| OperatorSetIdProto {
        domain: text(domain),
        version,
        ..OperatorSetIdProto::default()
    };
    ModelProto {
        ir_version: Some(13),
        producer_name: text("hand"),
        producer_version: text(""),
        domain: text("example"),
        model_version: Some(0),
        doc_string: text("everything"),
        graph: Some(full_graph()),
        opset_import: vec![opset("", Some(20)), opset("local", Some(1))],
        metadata_props: vec![entry("b", "2"), entry("a", "1")],
        training_info: vec![training],
        functions: vec![function],
        configuration: vec![DeviceConfigurationProto {
            name: text("pair"),
            num_devices: Some(2),
            device: vec!["cpu".into(), "gpu".into()],
            ..DeviceConfigurationProto::default()
        }],
        ..ModelProto::default()
    }
}

#[test]
fn a_model_with_every_field_comes_back_as_it_was() {
    let original = full_model();
    let model = from_bytes(original.encode_to_vec().into(), None).unwrap();
    assert_eq!(model.opset(), 20);
    assert_eq!(model.functions[0].attribute_defaults["factor"].value, 2.0.into());
    let written = to_bytes(&model).unwrap();
    assert_eq!(ModelProto::decode(written.as_slice()).unwrap(), original);
    assert_eq!(from_bytes(written.into(), None).unwrap(), model);
}

/// A field of each wire type, under numbers that no message has.
fn unknown() -> Unknown {
    let records = [
        (0xf8_u8, &[7_u8][..]),
        (0xf9, &[1, 2, 3, 4, 5, 6, 7, 8]),
        (0xfa, &[3, b'a', b'b', b'c']),
        (0xfd, &[1, 2, 3, 4]),
    ];
    let bytes: Vec<u8> =
        records.iter().flat_map(|(key, value)| [&[*key, 0x3f], *value].concat()).collect();
    OperatorSetIdProto::decode(bytes.as_slice()).unwrap().unknown
}

#[test]
fn fields_that_no_version_defines_come_back() {
    let changes: [(&str, fn(&mut ModelProto) -> &mut Unknown); 15] = [
        ("model", |model| &mut model.unknown),
        ("operator set", |model| &mut model.opset_import[1].unknown),
        ("default operator set", |model| &mut model.opset_import[0].unknown),
        ("metadata", |model| &mut model.metadata_props[0].unknown),
        ("function", |model| &mut model.functions[0].unknown),
        ("function node", |model| &mut model.functions[0].node[0].unknown),
        ("training", |model| &mut model.training_info[0].unknown),
        ("graph", |model| &mut model.graph.as_mut().unwrap().unknown),
        ("node", |model| &mut model.graph.as_mut().unwrap().node[0].unknown),
        ("attribute", |model| &mut model.graph.as_mut().unwrap().node[0].attribute[0].unknown),
        ("initializer", |model| &mut model.graph.as_mut().unwrap().initializer[0].unknown),
        ("input", |model| &mut model.graph.as_mut().unwrap().input[0].unknown),
        ("type", |model| {
            &mut model.graph.as_mut().unwrap().input[0].r#type.as_mut().unwrap().unknown
        }),
        ("dimension", |model| {
            let value = &mut model.graph.as_mut().unwrap().value_info[0];
            match value.r#type.as_mut().unwrap().value.as_mut().unwrap() {
                TypeValue::Tensor(tensor) => &mut tensor.shape.as_mut().unwrap().dim[1].unknown,
                _ => panic!("no tensor"),
            }
        }),
        ("annotation", |model| {
            &mut model.graph.as_mut().unwrap().quantization_annotation[0].unknown
        }),
    ];
    for (place, change) in changes {
        let mut original = full_model();
        *change(&mut original) = unknown();
        let bytes = original.encode_to_vec();
        let written = to_bytes(&from_bytes(bytes.clone().into(), None).unwrap()).unwrap();
        assert_eq!(ModelProto::decode(written.as_slice()).unwrap(), original, "{place}");
        assert!(crate::testing::say_the_same(&bytes, &written), "{place}");
    }
}

#[test]
fn a_field_of_another_wire_type_is_refused_by_name() {
    // The model's version, field 1, as text; and a group.
    for (bytes, message) in [
        (&b"\x0a\x01a"[..], "`ModelProto.ir_version`: invalid wire type"),
        (b"\x9b\x06\x9c\x06", "`ModelProto`: invalid wire type"),
        (b"\x3a\x03\x0a\x05\x00", "`ModelProto.graph.node`: buffer underflow"),
    ] {
        let error = from_bytes(Bytes::from_static(bytes), None).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn weights_are_not_copied() {
    let bytes = Bytes::from(full_model().encode_to_vec());
    let model = from_bytes(bytes.clone(), None).unwrap();
    let weights = model.graph.constant("w").unwrap().bytes().as_ptr_range();
    let file = bytes.as_ptr_range();
    assert!(file.start < weights.start && weights.end <= file.end);
}

#[test]
fn a_file_cut_anywhere_is_an_error_or_a_smaller_model() {
    let bytes = Bytes::from(full_model().encode_to_vec());
    for end in 0..bytes.len() {
        if let Ok(model) = from_bytes(bytes.slice(..end), None) {
            to_bytes(&model).unwrap();
        }
    }
}

#[test]
fn a_file_with_any_byte_changed_is_an_error_or_another_model() {
    let bytes = full_model().encode_to_vec();
    for index in 0..bytes.len() {
        for change in [0x01, 0x10, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[index] ^= change;
            if let Ok(model) = from_bytes(changed.into(), None) {
                to_bytes(&model).unwrap();
            }
        }
    }
}

fn error_of(change: impl FnOnce(&mut GraphProto)) -> OnnxError {
    let mut graph = full_graph();
    change(&mut graph);
    let model = ModelProto { graph: Some(graph), ..ModelProto::default() };
    from_bytes(model.encode_to_vec().into(), None).unwrap_err()
}

#[test]
fn what_is_wrong_is_named() {
    let twice = error_of(|graph| graph.initializer.push(initializer("w")));
    assert_eq!(twice.to_string(), "`w` (initializer) is there twice");
    let unnamed = error_of(|graph| graph.initializer[0].name = None);
    assert_eq!(unnamed.to_string(), "initializer 0 has no name");
    let dangling = error_of(|graph| graph.node[2].input[0] = "nowhere".into());
    assert!(matches!(dangling, OnnxError::Graph(GraphError::Dangling { .. })));
    let unsorted = error_of(|graph| graph.node.swap(1, 2));
    assert!(matches!(unsorted, OnnxError::Graph(GraphError::Unsorted { .. })));
    let cycle = error_of(|graph| graph.node[2].input[0] = "z".into());
    assert!(matches!(cycle, OnnxError::Graph(GraphError::Cycle { .. })));
    for error in [twice, unnamed, dangling] {
        assert!(error.hint().is_some());
    }
}

#[test]
fn what_is_not_a_model_is_an_error() {
    for bytes in [&b""[..], b"version https://git-lfs.github.com/spec/v1\noid sha256:0", b"\x7fELF"]
    {
        assert!(from_bytes(Bytes::from_static(bytes), None).is_err());
    }
    assert!(matches!(from_bytes(Bytes::new(), None), Err(OnnxError::NoGraph)));
    let error = crate::load(std::path::Path::new("no/such/model.onnx")).unwrap_err();
    assert!(error.to_string().starts_with("`no/such/model.onnx`: "));
}

#[test]
fn a_function_reads_only_what_it_is_given() {
    let mut model = full_model();
    model.functions[0].node[0].input[0] = "x".into();
    let error = from_bytes(model.encode_to_vec().into(), None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "function `local.Twice`: node `q` (LeakyRelu) reads `x`, which nothing produces"
    );
}

#[test]
fn a_hundred_thousand_nodes_take_no_long_time() {
    let count = 100_000;
    let name = |index: usize| format!("v{index}");
    let nodes = (0..count).map(|index| node("Relu", &[&name(index)], &name(index + 1)));
    let graph = GraphProto {
        node: nodes.collect(),
        input: vec![value("v0", None)],
        output: vec![value(&name(count), None)],
        ..GraphProto::default()
    };
    let model = ModelProto { graph: Some(graph), ..ModelProto::default() };
    let bytes = Bytes::from(model.encode_to_vec());
    let start = std::time::Instant::now();
    let mut model = from_bytes(bytes, None).unwrap();
    attar_graph::sort_nodes(&mut model.graph).unwrap();
    let taken = start.elapsed();
    // Alone on the machine a tenth of a second; unoptimized or in company more. What is quadratic
    // takes minutes.
    assert!(taken.as_secs() < 10, "{taken:?}");
    assert_eq!(model.graph.nodes.len(), count);
}

#[test]
fn thirty_subgraphs_in_one_another_are_read() {
    let mut graph = GraphProto { output: vec![value("x", None)], ..GraphProto::default() };
    for _ in 0..30 {
        let body = AttributeProto { g: Some(graph), ..attribute("body", kind::GRAPH) };
        let node = NodeProto { attribute: vec![body], ..node("If", &["x"], "y") };
        let output = vec![value("y", None)];
        graph = GraphProto { node: vec![node], output, ..GraphProto::default() };
    }
    graph.input = vec![value("x", None)];
    let model = ModelProto { graph: Some(graph), ..ModelProto::default() };
    let bytes = model.encode_to_vec();
    let written = to_bytes(&from_bytes(bytes.clone().into(), None).unwrap()).unwrap();
    assert!(crate::testing::say_the_same(&bytes, &written));
}

#[test]
fn deep_nesting_ends_in_an_error() {
    let mut graph = GraphProto::default();
    for _ in 0..200 {
        let body = AttributeProto { g: Some(graph), ..attribute("body", kind::GRAPH) };
        let node = NodeProto { attribute: vec![body], ..NodeProto::default() };
        graph = GraphProto { node: vec![node], ..GraphProto::default() };
    }
    let model = ModelProto { graph: Some(graph), ..ModelProto::default() };
    let error = from_bytes(model.encode_to_vec().into(), None).unwrap_err();
    assert!(matches!(error, OnnxError::TooDeep { .. }));
    assert_eq!(
        error.to_string(),
        "messages are nested more than 100 deep, in \
         `ModelProto.graph.node.attribute.g.node.attribute.g.…`"
    );
}
