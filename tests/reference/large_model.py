"""Writes a model of 2.5 GB that takes no room on disk: its weights are a hole in a sparse file.

    data/test-venv/bin/python tests/reference/large_model.py FOLDER

The model multiplies a vector by matrices. `cargo run --release -p attar-bench --bin load -- --copy
COPY FOLDER/model.onnx` then shows what reading and writing it takes.
"""

import sys
from pathlib import Path

from onnx import StringStringEntryProto, TensorProto, helper, save

SIDE = 5120
COUNT = 24


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    size = SIDE * SIDE * 4
    weights = []
    for index in range(COUNT):
        tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[SIDE, SIDE])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in ("location", "model.onnx.data"), ("offset", index * size), ("length", size):
            tensor.external_data.append(StringStringEntryProto(key=key, value=str(value)))
        weights.append(tensor)
    with open(folder / "model.onnx.data", "wb") as data:
        data.truncate(COUNT * size)
    nodes = [
        helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"x{index + 1}"])
        for index in range(COUNT)
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", SIDE])
        for name in ("x0", f"x{COUNT}")
    ]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    save(model, str(folder / "model.onnx"))


main(Path(sys.argv[1]))
