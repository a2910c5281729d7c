//! The messages of ONNX's protobuf schema up to IR version 14, field by field.
//!
//! Names are the schema's own. An `optional` scalar stays an `Option`, because a field that is
//! absent and one that is written with its default value are different files. `bytes` fields are
//! shared, so that decoding from a mapped file copies no weight. What no declaration knows stays in
//! `unknown`, and is written again.

use prost::Oneof;

use crate::wire::{codec, field_encode, field_len, field_merge, field_type, kind_type, messages};

messages! {
    struct ModelProto {
        optional int64 ir_version = 1;
        optional string producer_name = 2;
        optional string producer_version = 3;
        optional string domain = 4;
        optional int64 model_version = 5;
        optional string doc_string = 6;
        optional GraphProto graph = 7;
        repeated OperatorSetIdProto opset_import = 8;
        repeated StringStringEntryProto metadata_props = 14;
        repeated TrainingInfoProto training_info = 20;
        repeated FunctionProto functions = 25;
        repeated DeviceConfigurationProto configuration = 26;
    }

    struct OperatorSetIdProto {
        optional string domain = 1;
        optional int64 version = 2;
    }

    struct StringStringEntryProto {
        optional string key = 1;
        optional string value = 2;
    }

    struct TrainingInfoProto {
        optional GraphProto initialization = 1;
        optional GraphProto algorithm = 2;
        repeated StringStringEntryProto initialization_binding = 3;
        repeated StringStringEntryProto update_binding = 4;
    }

    struct DeviceConfigurationProto {
        optional string name = 1;
        optional int32 num_devices = 2;
        repeated string device = 3;
    }

    struct FunctionProto {
        optional string name = 1;
        repeated string input = 4;
        repeated string output = 5;
        repeated string attribute = 6;
        repeated NodeProto node = 7;
        optional string doc_string = 8;
        repeated OperatorSetIdProto opset_import = 9;
        optional string domain = 10;
        repeated AttributeProto attribute_proto = 11;
        repeated ValueInfoProto value_info = 12;
        optional string overload = 13;
        repeated StringStringEntryProto metadata_props = 14;
    }

    struct GraphProto {
        repeated NodeProto node = 1;
        optional string name = 2;
        repeated TensorProto initializer = 5;
        optional string doc_string = 10;
        repeated ValueInfoProto input = 11;
        repeated ValueInfoProto output = 12;
        repeated ValueInfoProto value_info = 13;
        repeated TensorAnnotation quantization_annotation = 14;
        repeated SparseTensorProto sparse_initializer = 15;
        repeated StringStringEntryProto metadata_props = 16;
    }

    struct TensorAnnotation {
        optional string tensor_name = 1;
        repeated StringStringEntryProto quant_parameter_tensor_names = 2;
    }

    struct ValueInfoProto {
        optional string name = 1;
        optional TypeProto r#type = 2;
        optional string doc_string = 3;
        repeated StringStringEntryProto metadata_props = 4;
    }

    struct NodeProto {
        repeated string input = 1;
        repeated string output = 2;
        optional string name = 3;
        optional string op_type = 4;
        repeated AttributeProto attribute = 5;
        optional string doc_string = 6;
        optional string domain = 7;
        optional string overload = 8;
        repeated StringStringEntryProto metadata_props = 9;
        repeated NodeDeviceConfigurationProto device_configurations = 10;
    }

    struct NodeDeviceConfigurationProto {
        optional string configuration_id = 1;
        repeated ShardingSpecProto sharding_spec = 2;
        optional int32 pipeline_stage = 3;
    }

    struct ShardingSpecProto {
        optional string tensor_name = 1;
        repeated int64 device = 2;
        repeated IntIntListEntryProto index_to_device_group_map = 3;
        repeated ShardedDimProto sharded_dim = 4;
    }

    struct IntIntListEntryProto {
        optional int64 key = 1;
        repeated int64 value = 2;
    }

    struct ShardedDimProto {
        optional int64 axis = 1;
        repeated SimpleShardedDimProto simple_sharding = 2;
    }

    struct SimpleShardedDimProto {
        oneof DimValue dim = 1 | 2;
        optional int64 num_shards = 3;
    }

    struct AttributeProto {
        optional string name = 1;
        optional float f = 2;
        optional int64 i = 3;
        optional bytes s = 4;
        optional TensorProto t = 5;
        optional GraphProto g = 6;
        repeated float floats = 7;
        repeated int64 ints = 8;
        repeated bytes strings = 9;
        repeated TensorProto tensors = 10;
        repeated GraphProto graphs = 11;
        optional string doc_string = 13;
        optional TypeProto tp = 14;
        repeated TypeProto type_protos = 15;
        /// An [`AttributeType`](attribute_type).
        optional int32 r#type = 20;
        optional string ref_attr_name = 21;
        optional SparseTensorProto sparse_tensor = 22;
        repeated SparseTensorProto sparse_tensors = 23;
    }

    struct TensorProto {
        repeated int64 dims = 1;
        optional int32 data_type = 2;
        optional Segment segment = 3;
        packed float float_data = 4;
        packed int32 int32_data = 5;
        repeated bytes string_data = 6;
        packed int64 int64_data = 7;
        optional string name = 8;
        optional bytes raw_data = 9;
        packed double double_data = 10;
        packed uint64 uint64_data = 11;
        optional string doc_string = 12;
        repeated StringStringEntryProto external_data = 13;
        /// 0 for data in this message, [`EXTERNAL`] for data in another file.
        optional int32 data_location = 14;
        repeated StringStringEntryProto metadata_props = 16;
    }

    struct Segment {
        optional int64 begin = 1;
        optional int64 end = 2;
    }

    struct SparseTensorProto {
        optional TensorProto values = 1;
        optional TensorProto indices = 2;
        repeated int64 dims = 3;
    }

    struct TypeProto {
        oneof TypeValue value = 1 | 4 | 5 | 7 | 8 | 9;
        optional string denotation = 6;
    }

    struct TensorTypeProto {
        optional int32 elem_type = 1;
        optional TensorShapeProto shape = 2;
    }

    struct ElementTypeProto {
        boxed TypeProto elem_type = 1;
    }

    struct MapTypeProto {
        optional int32 key_type = 1;
        boxed TypeProto value_type = 2;
    }

    struct OpaqueTypeProto {
        optional string domain = 1;
        optional string name = 2;
    }

    struct TensorShapeProto {
        repeated DimensionProto dim = 1;
    }

    struct DimensionProto {
        oneof DimValue value = 1 | 2;
        optional string denotation = 3;
    }

    /// A file of its own, as ONNX's test data has it: a sequence, of tensors as far as attar reads
    /// it.
    struct SequenceProto {
        optional string name = 1;
        optional int32 elem_type = 2;
        repeated TensorProto tensor_values = 3;
    }

    /// Likewise an optional.
    struct OptionalProto {
        optional string name = 1;
        optional int32 elem_type = 2;
        optional TensorProto tensor_value = 3;
        optional SequenceProto sequence_value = 5;
    }
}

/// Values of [`AttributeProto::type`].
pub(crate) mod attribute_type {
    pub(crate) const UNDEFINED: i32 = 0;
    pub(crate) const FLOAT: i32 = 1;
    pub(crate) const INT: i32 = 2;
    pub(crate) const STRING: i32 = 3;
    pub(crate) const TENSOR: i32 = 4;
    pub(crate) const GRAPH: i32 = 5;
    pub(crate) const FLOATS: i32 = 6;
    pub(crate) const INTS: i32 = 7;
    pub(crate) const STRINGS: i32 = 8;
    pub(crate) const TENSORS: i32 = 9;
    pub(crate) const GRAPHS: i32 = 10;
    pub(crate) const SPARSE_TENSOR: i32 = 11;
    pub(crate) const SPARSE_TENSORS: i32 = 12;
    pub(crate) const TYPE_PROTO: i32 = 13;
    pub(crate) const TYPE_PROTOS: i32 = 14;
}

/// The [`TensorProto::data_location`] of data in another file.
pub(crate) const EXTERNAL: i32 = 1;

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum TypeValue {
    #[prost(message, tag = "1")]
    Tensor(TensorTypeProto),
    #[prost(message, tag = "4")]
    Sequence(ElementTypeProto),
    #[prost(message, tag = "5")]
    Map(MapTypeProto),
    #[prost(message, tag = "7")]
    Opaque(OpaqueTypeProto),
    /// The schema has a message of its own for it, with the fields of a dense tensor's type.
    #[prost(message, tag = "8")]
    SparseTensor(TensorTypeProto),
    /// Likewise with the field of a sequence's type.
    #[prost(message, tag = "9")]
    Optional(ElementTypeProto),
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum DimValue {
    #[prost(int64, tag = "1")]
    Value(i64),
    #[prost(string, tag = "2")]
    Param(String),
}

/// The [`OptionalProto::elem_type`] of an optional tensor.
pub(crate) const OPTIONAL_TENSOR: i32 = 1;
/// The [`OptionalProto::elem_type`] of an optional sequence.
pub(crate) const OPTIONAL_SEQUENCE: i32 = 3;
