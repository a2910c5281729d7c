"""Whether attar's messages are those of the official onnx package, field by field.

    data/test-venv/bin/python tests/reference/schema.py crates/onnx/src/messages.rs

Prints each difference, and ends with status 1 if there is one.
"""

import re
import sys
from pathlib import Path

from onnx import ModelProto, TensorProto

# Messages within messages have names of their own; two pairs have the same fields.
NAMES = {
    "TypeProto.Tensor": "TensorTypeProto",
    "TypeProto.SparseTensor": "TensorTypeProto",
    "TypeProto.Sequence": "ElementTypeProto",
    "TypeProto.Optional": "ElementTypeProto",
    "TypeProto.Map": "MapTypeProto",
    "TypeProto.Opaque": "OpaqueTypeProto",
    "TensorShapeProto.Dimension": "DimensionProto",
    "TensorProto.Segment": "Segment",
}

# By their numbers in FieldDescriptor; an enum is an int32 on the wire.
SCALARS = {1: "double", 2: "float", 3: "int64", 4: "uint64", 5: "int32", 9: "string", 12: "bytes", 14: "int32"}

FIELD = re.compile(r"^\s+(\w+) (\w+) (?:r#)?(\w+) = ([\d |]+);", re.MULTILINE)


def name_of(descriptor):
    name = descriptor.full_name.removeprefix("onnx.")
    return NAMES.get(name, name)


def declared(text):
    """Fields by number of each message: (label, kind, name), of a oneof its name alone."""
    messages = {}
    for message, body in re.findall(r"struct (\w+) \{(.*?)\n    \}", text, re.DOTALL):
        fields = messages[message] = {}
        for label, kind, name, numbers in FIELD.findall(body):
            for number in numbers.split(" | "):
                label = "optional" if label == "boxed" else label
                field = ("oneof", name) if label == "oneof" else (label, kind, name)
                fields[int(number)] = field
    return messages


def official(descriptor, messages):
    """The same of a message of the package, and of all that it can hold."""
    if descriptor.full_name in messages:
        return messages
    fields = messages[descriptor.full_name] = {}
    for field in descriptor.fields:
        if field.message_type:
            official(field.message_type, messages)
        if field.containing_oneof:
            fields[field.number] = ("oneof", field.containing_oneof.name)
            continue
        label = "optional"
        if field.is_repeated:
            label = "packed" if field.is_packed else "repeated"
        kind = name_of(field.message_type) if field.message_type else SCALARS[field.type]
        fields[field.number] = (label, kind, field.name)
    return messages


def main(path):
    ours, differences = declared(path.read_text()), 0
    theirs = official(ModelProto.DESCRIPTOR, {})
    for full_name, fields in theirs.items():
        name = full_name.removeprefix("onnx.")
        found = ours.get(NAMES.get(name, name), {})
        for number in sorted(fields.keys() | found.keys()):
            if fields.get(number) != found.get(number):
                print(f"{name} {number}: {found.get(number)}, expected {fields.get(number)}")
                differences += 1
    print(f"{len(theirs)} messages, {max(TensorProto.DataType.values())} element types")
    return 1 if differences else 0


sys.exit(main(Path(sys.argv[1])))
