"""Writes the official test cases of ONNX operators, a folder each.

    data/test-venv/bin/python tests/reference/node_tests.py FOLDER

A case is `model.onnx` and, for each of its data sets N, `test_data_set_N` with `input_I.pb` and
`output_I.pb`: TensorProto, SequenceProto or OptionalProto, as the model's types say.
"""

import sys
import warnings
from pathlib import Path

from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases

ENCODERS = {
    "map_type": numpy_helper.from_dict,
    "sequence_type": numpy_helper.from_list,
    "optional_type": numpy_helper.from_optional,
}


def encoded(value, info):
    if isinstance(value, TensorProto):
        return value
    encode = ENCODERS.get(info.type.WhichOneof("value"), numpy_helper.from_array)
    return encode(value, info.name)


def write(folder, kind, values, infos):
    for index, (value, info) in enumerate(zip(values, infos)):
        path = folder / f"{kind}_{index}.pb"
        path.write_bytes(encoded(value, info).SerializeToString(deterministic=True))


def main(folder):
    warnings.simplefilter("ignore")  # Cases with NaN and infinity compute them on purpose.
    cases = collect_testcases(None)
    for case in cases:
        target = folder / case.name
        target.mkdir(parents=True)
        model = case.model
        (target / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
        for index, (inputs, outputs) in enumerate(case.data_sets):
            data = target / f"test_data_set_{index}"
            data.mkdir()
            write(data, "input", inputs, model.graph.input)
            write(data, "output", outputs, model.graph.output)
    print(f"{len(cases)} cases", file=sys.stderr)


main(Path(sys.argv[1]))
