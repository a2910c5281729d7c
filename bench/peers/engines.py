"""The runtimes: each takes a model and a number of threads, and gives an array of rows for feeds."""

import numpy as np


class OnnxRuntime:
    def __init__(self, model, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self.names = [value.name for value in self.session.get_inputs()]
        shapes = {value.name: value.shape for value in self.session.get_outputs()}
        rows = [name for name, shape in shapes.items() if shape is not None and len(shape) == 2]
        self.output = rows[0] if len(rows) == 1 else "sentence_embedding"

    def run(self, feeds):
        return self.session.run([self.output], feeds)[0]


class OpenVino:
    def __init__(self, model, threads):
        import openvino

        core = openvino.Core()
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        self.compiled = core.compile_model(core.read_model(model), "CPU", settings)
        self.names = [value.get_any_name() for value in self.compiled.inputs]
        rows = [
            index
            for index, value in enumerate(self.compiled.outputs)
            if len(value.get_partial_shape()) == 2
        ]
        self.output = rows[0]
        self.request = self.compiled.create_infer_request()

    def run(self, feeds):
        self.request.infer(feeds, share_inputs=True)
        return np.array(self.request.get_output_tensor(self.output).data)


def torch_model(folder):
    """A Hugging Face encoder with mean pooling and normalization, or torchvision's MobileNetV2."""
    import torch

    weights = sorted(folder.glob("*.pth"))
    if weights:
        from torchvision.models import mobilenet_v2

        model = mobilenet_v2()
        model.load_state_dict(torch.load(weights[0], weights_only=True))
        return model.eval()

    from transformers import AutoModel

    class Sentence(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = AutoModel.from_pretrained(folder)

        def forward(self, input_ids, attention_mask, token_type_ids):
            encoded = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state
            mask = attention_mask[..., None].to(encoded.dtype)
            mean = (encoded * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    return Sentence().eval()


def quantized_torch(model):
    """torchao's dynamic int8 of every Linear."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


class Torch:
    def __init__(self, folder, threads, is_quantized):
        import torch

        torch.set_num_threads(threads)
        self.torch = torch
        model = torch_model(folder)
        self.names = ["input_ids", "attention_mask", "token_type_ids"]
        if not hasattr(model, "encoder"):
            self.names = ["input"]
        if is_quantized:
            model = torch.compile(quantized_torch(model), dynamic=True)
        self.model = model

    def run(self, feeds):
        with self.torch.inference_mode():
            given = [self.torch.from_numpy(feeds[name]) for name in self.names]
            return self.model(*given).numpy()


def engine(variant, places, threads):
    """The engine of a variant; `places` has the paths of models by recipe, and of PyTorch's folder."""
    runtime, _, recipe = variant.partition(":")
    if runtime == "torch":
        return Torch(places["torch"], threads, recipe != "f32")
    model = str(places[recipe])
    return OpenVino(model, threads) if runtime == "openvino" else OnnxRuntime(model, threads)
