"""One tool's best documented recipe for int8, run as a process of its own by main.py:

    python bench/peers/quantize.py RECIPE MODEL CALIBRATION OUTPUT
"""

import sys
from pathlib import Path

from data import Subject, calibration_feeds


class Feeds:
    """Calibration inputs, one example at a time, as ONNX Runtime's tools and NNCF read them."""

    def __init__(self, *place):
        self.place = place
        self.feeds = iter(self)

    def __iter__(self):
        return calibration_feeds(*self.place)

    def get_next(self):
        return next(self.feeds, None)


def input_names(model):
    import onnx

    graph = onnx.load(model).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in constants]


def preprocessed(subject, output):
    """ONNX Runtime's preparation: shapes inferred and the graph simplified.

    Its guide leaves symbolic shapes out where a model has some that it cannot infer.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    place = str(output.with_suffix(".prepared.onnx"))
    try:
        quant_pre_process(str(subject.model), place)
    except Exception as error:
        print(f"without symbolic shapes: {error}", file=sys.stderr)
        quant_pre_process(str(subject.model), place, skip_symbolic_shape=True)
    return place


def ort_dynamic(subject, _, output):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared = preprocessed(subject, output)
    quantize_dynamic(prepared, output, weight_type=QuantType.QInt8, per_channel=True)


def ort_static(method, subject, calibration, output, **more):
    """u8 activations and i8 weights per channel in QDQ form, which its guide gives for x86 CPUs.

    Its histograms take values of one shape only, so texts are padded for them.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    prepared = preprocessed(subject, output)
    quantize_static(
        prepared,
        output,
        Feeds(subject, calibration, input_names(prepared), method != "MinMax"),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        calibrate_method=getattr(CalibrationMethod, method),
        **more,
    )


def ort_products(*given):
    """As above, with everything but products left in f32, which its guide advises where the whole
    loses too much."""
    ort_static("MinMax", *given, op_types_to_quantize=["MatMul", "Gemm", "Conv"])


def openvino_nncf(subject, calibration, output):
    """NNCF's post-training quantization; for a transformer with its SmoothQuant."""
    import nncf
    import openvino

    model = openvino.convert_model(subject.model)
    names = [value.get_any_name() for value in model.inputs]
    feeds = Feeds(subject, calibration, names)
    count = sum(1 for _ in feeds)
    options = {}
    if subject.text:
        options["model_type"] = nncf.ModelType.TRANSFORMER
    else:
        options["preset"] = nncf.QuantizationPreset.MIXED
    quantized = nncf.quantize(model, nncf.Dataset(feeds), subset_size=count, **options)
    openvino.save_model(quantized, output.with_suffix(".xml"), compress_to_fp16=False)


def torch_dynamic(folder, _, output):
    """torchao's dynamic int8: activations by token, weights by channel."""
    import torch

    from engines import quantized_torch, torch_model

    torch.save(quantized_torch(torch_model(folder)).state_dict(), output)


RECIPES = {
    "ort-dynamic": ort_dynamic,
    "ort-minmax": lambda *given: ort_static("MinMax", *given),
    "ort-products": ort_products,
    "ort-percentile": lambda *given: ort_static("Percentile", *given),
    "ort-entropy": lambda *given: ort_static("Entropy", *given),
    "openvino-nncf": openvino_nncf,
    "torch-dynamic": torch_dynamic,
}

if __name__ == "__main__":
    recipe, model, calibration, output = sys.argv[1:]
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    given = Path(model) if recipe.startswith("torch") else Subject(model)
    RECIPES[recipe](given, calibration, Path(output))
