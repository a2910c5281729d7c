"""The table of all that was measured."""

import statistics

import numpy as np

from data import interval

# The engine that runs a model, and the recipe that made it: f32 is the model as it was given.
VARIANTS = {
    "torch:f32": "PyTorch, f32",
    "torch:torch-dynamic": "PyTorch, torchao dynamic int8",
    "ort:f32": "ONNX Runtime, f32",
    "ort:ort-dynamic": "ONNX Runtime, dynamic int8",
    "ort:ort-minmax": "ONNX Runtime, static int8, MinMax",
    "ort:ort-products": "ONNX Runtime, static int8, products alone",
    "ort:ort-percentile": "ONNX Runtime, static int8, percentile",
    "ort:ort-entropy": "ONNX Runtime, static int8, entropy",
    "openvino:f32": "OpenVINO, f32 ¹",
    "openvino:openvino-nncf": "OpenVINO, NNCF int8",
    "attar:f32": "attar, f32 on `builtin`",
    "attar:attar-int8": "attar, int8 on `builtin`",
    "ort:attar-int8": "attar, int8 on ONNX Runtime",
    "openvino:attar-int8": "attar, int8 on OpenVINO",
    "attar:attar-small": "attar, for the collection, on `builtin`",
    "ort:attar-small": "attar, for the collection, on ONNX Runtime",
    "openvino:attar-small": "attar, for the collection, on OpenVINO",
}
OURS = "attar:attar-int8"
REFERENCE = "ort:f32"


def time_columns(cells):
    """(threads, shape) of every time that was measured, and its cell."""
    found = {}
    for place in sorted(cells.folder.glob("time-*.json")):
        _, shape, threads = place.stem.split("-")
        found[int(threads), tuple(map(int, shape.split("x")))] = cells.get(place.stem)
    return dict(sorted(found.items()))


def ratio_to_ours(cell, variant):
    """How many times as long as ours: the median over rounds, which pairs what ran in turn."""
    if variant == OURS or not cell.get(OURS):
        return ""
    pairs = zip(cell[variant], cell[OURS])
    return f" ({statistics.median(time / ours for time, ours in pairs):.2f}×)"


def quality_text(cells, variant):
    """The metric, and its difference to f32 with a 95 % interval."""
    cell = cells.get(f"quality-{variant.replace(':', '-')}")
    if cell is None:
        return "", "", ""
    alone = cell.get("invariance")
    bits = f"{alone['equal']} of {alone['count']}" if alone else ""
    if alone and alone["cosine_min"] is not None and alone["equal"] < alone["count"]:
        bits += f", cosine ≥ {alone['cosine_min']:.4f}"
    if "values" not in cell:
        return f"{cell['value']['value']:.4f}", difference_text(cell["difference"]), bits
    value = f"{np.mean(cell['values']):.4f}"
    reference = cells.get(f"quality-{REFERENCE.replace(':', '-')}")
    if reference is None or variant == REFERENCE:
        return value, "", bits
    mean, low, high = interval(np.subtract(cell["values"], reference["values"]))
    return value, difference_text({"value": mean, "low": low, "high": high}), bits


def difference_text(difference):
    if difference is None:
        return ""
    value, low, high = (difference[key] for key in ("value", "low", "high"))
    return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"


def table(cells, subject):
    times = time_columns(cells)
    threads = {1: "1 thread"}
    heads = [
        f"{batch}×{length}, {threads.get(count, f'{count} threads')}"
        for count, (batch, length) in times
    ]
    metric = "top-1" if subject.image else "nDCG@10"
    head = ["", *heads, "size", "quantizing", metric, "difference to f32", "same bits in a batch"]
    rows = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for variant, label in VARIANTS.items():
        columns = [
            f"{statistics.median(cell[variant]):.2f} ms{ratio_to_ours(cell, variant)}"
            if variant in cell
            else ""
            for cell in times.values()
        ]
        recipe = variant.split(":")[1]
        made = cells.get(f"quantize-{recipe}")
        size, cost = "", ""
        if made:
            size = f"{made['size_mb']:.1f} MB"
            if "seconds" in made:
                cost = f"{made['seconds']:.1f} s, {made['peak_mb']:.0f} MB"
        elif recipe == "f32":
            size = f"{subject.model.stat().st_size / 1e6:.1f} MB"
        quality = quality_text(cells, variant)
        if any(columns) or any(quality):
            rows.append("| " + " | ".join([label, *columns, size, cost, *quality]) + " |")
    notes = (
        "\nTimes: medians of rounds in which all run in turn; in brackets how many times as long as "
        "attar's int8 on `builtin`. Quantizing: wall time and peak memory of the whole process. "
        "Brackets behind a difference: its 95 % interval.\n"
        "¹ By its defaults, which compute in bf16 where the CPU has it.\n"
    )
    return "\n".join(rows) + "\n" + notes
