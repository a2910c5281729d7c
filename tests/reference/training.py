"""Writes what PyTorch makes of small networks in a few steps of training, for
tests/tests/training_reference.rs to compare with.

    python3 -m venv venv && venv/bin/pip install -r requirements-training.txt
    venv/bin/python training.py ../../target/release/attar

Of each network, training/ holds NAME.onnx, the network before the first step; NAME.safetensors, its
weights after the last, by the names of the ONNX file; and in reference.json how it was trained, and
the loss of each step. All is computed in f64. The batches are not kept: `noise` and `integers` make
them from their number, and the test makes the same.

The convolutional network is put together here, the others by `attar new`, so that this holds too
that what attar makes is what PyTorch has of that name.
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from torch import nn
from torch.nn import functional as F

FOLDER = Path(__file__).parent / "training"
STEPS = 20
# The same batches come again and again, so that there is something to learn.
BATCHES = 4


def integers(shape, step, bound):
    """Whole numbers below `bound`."""
    index = np.arange(math.prod(shape), dtype=np.int64)
    return ((index + step * 1009) * 7919 % 10007 % bound).reshape(shape)


def noise(shape, step):
    """From -1 to 1, each a multiple of 2^-12."""
    return (integers(shape, step, 8192).astype(np.float64) - 4096.0) / 4096.0


class Network:
    """A network in training: `weights` are its parameters by their names in the ONNX file."""

    def __init__(self, name, settings):
        self.name = name
        self.settings = settings
        self.file = onnx.load(FOLDER / f"{name}.onnx")
        self.initial = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in self.file.graph.initializer
        }
        self.state = {}
        self.weights = {
            key: torch.tensor(value, dtype=torch.float64, requires_grad=True)
            for key, value in self.initial.items()
            if value.dtype == np.float32 and value.size > 1 and "running_" not in key
        }

    def optimizer(self):
        settings = self.settings
        # Vectors do not decay: biases, and scales of normalizations.
        groups = [
            {"params": [w for w in self.weights.values() if w.ndim > 1]},
            {"params": [w for w in self.weights.values() if w.ndim <= 1], "weight_decay": 0.0},
        ]
        if settings["optimizer"] == "sgd":
            return torch.optim.SGD(
                groups,
                lr=settings["learning_rate"],
                momentum=settings["momentum"],
                nesterov=settings["nesterov"],
                weight_decay=settings["weight_decay"],
            )
        return torch.optim.AdamW(
            groups,
            lr=settings["learning_rate"],
            betas=(settings["beta1"], settings["beta2"]),
            eps=settings["epsilon"],
            weight_decay=settings["weight_decay"],
        )

    def rate(self, step):
        """Even warm-up, then half a cosine down to zero."""
        warm_up, most = self.settings["warm_up"], self.settings["learning_rate"]
        if step < warm_up:
            return most * (step + 1) / warm_up
        if not self.settings["cosine"]:
            return most
        progress = (step - warm_up) / (STEPS - warm_up)
        return most * 0.5 * (1.0 + math.cos(math.pi * progress))

    def train(self, logits):
        """Trains and writes; `logits` gives the scores of a batch, and its classes."""
        optimizer = self.optimizer()
        losses = []
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = self.rate(step)
            optimizer.zero_grad()
            scores, classes = logits(self, step % BATCHES)
            loss = F.cross_entropy(scores, torch.tensor(classes))
            loss.backward()
            if self.settings["clip_norm"]:
                nn.utils.clip_grad_norm_(self.weights.values(), self.settings["clip_norm"])
            optimizer.step()
            losses.append(loss.item())
        final = {key: value.detach() for key, value in self.weights.items()} | self.state
        final = {key: value.numpy().astype(np.float32) for key, value in final.items()}
        save_file(final, FOLDER / f"{self.name}.safetensors")
        return {"settings": self.settings, "losses": losses}


# The convolutional network.


def batch_norm(network, x, path):
    """As torch.nn.BatchNorm2d in training."""
    for part, shape in (("running_mean", 0.0), ("running_var", 1.0)):
        count = network.weights[f"{path}.weight"].shape[0]
        start = torch.full((count,), shape, dtype=torch.float64)
        network.state.setdefault(f"{path}.{part}", start)
    return F.batch_norm(
        x,
        network.state[f"{path}.running_mean"],
        network.state[f"{path}.running_var"],
        network.weights[f"{path}.weight"],
        network.weights[f"{path}.bias"],
        training=True,
        momentum=0.1,
        eps=1e-5,
    )


def cnn_logits(network, step):
    w = network.weights
    x = torch.tensor(noise((8, 3, 12, 12), step))
    x = F.conv2d(x, w["stem.weight"], padding=1)
    x = F.max_pool2d(F.relu(batch_norm(network, x, "stem_norm")), 2)
    x = F.conv2d(x, w["depthwise.weight"], padding=1, groups=8)
    x = F.relu6(batch_norm(network, x, "depthwise_norm"))
    x = F.conv2d(x, w["pointwise.weight"], w["pointwise.bias"], stride=2)
    x = F.relu(x).mean((2, 3))
    return F.linear(x, w["classifier.weight"], w["classifier.bias"]), integers((8,), step, 5)


def make_cnn():
    """Convolutions of all three kinds, with and without normalization."""
    generator = np.random.default_rng(0)
    tensors = {}

    def weight(name, *shape):
        scale = math.sqrt(2.0 / math.prod(shape[1:]))
        tensors[name] = (generator.standard_normal(shape) * scale).astype(np.float32)
        return name

    def vector(name, value, count):
        tensors[name] = np.full(count, value, np.float32)
        return name

    def node(op_type, inputs, **attributes):
        output = f"{op_type}_{len(nodes)}"
        nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        return output

    def norm(x, path, count):
        parts = (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0))
        inputs = [vector(f"{path}.{part}", value, count) for part, value in parts]
        return node("BatchNormalization", [x, *inputs], epsilon=1e-5)

    nodes = []
    x = node("Conv", ["image", weight("stem.weight", 8, 3, 3, 3)], pads=[1] * 4)
    x = node("Relu", [norm(x, "stem_norm", 8)])
    x = node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    x = node("Conv", [x, weight("depthwise.weight", 8, 1, 3, 3)], pads=[1] * 4, group=8)
    tensors["least"], tensors["most"] = np.float32(0.0), np.float32(6.0)
    x = node("Clip", [norm(x, "depthwise_norm", 8), "least", "most"])
    pointwise = [weight("pointwise.weight", 16, 8, 1, 1), vector("pointwise.bias", 0.0, 16)]
    x = node("Relu", [node("Conv", [x, *pointwise], strides=[2, 2])])
    x = node("Flatten", [node("GlobalAveragePool", [x])])
    classifier = [weight("classifier.weight", 5, 16), vector("classifier.bias", 0.0, 5)]
    nodes.append(helper.make_node("Gemm", [x, *classifier], ["logits"], name="Gemm", transB=1))
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 12, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, FOLDER / "cnn.onnx")


# Texts.


def texts(step, count, length, vocabulary):
    """Ids and how many tokens each text has, at least one."""
    ids = integers((count, length), step, vocabulary)
    lengths = 1 + integers((count,), step + 500, length)
    lengths[step % count] = length
    return torch.tensor(ids), torch.tensor(lengths)


def gates(tensor, order):
    """Blocks of the first axis in another order."""
    blocks = tensor.chunk(len(order))
    return torch.cat([blocks[index] for index in order])


def recurrent_logits(kind, order):
    """`order` gives, for each gate of PyTorch, its place in ONNX."""

    def logits(network, step):
        w = network.weights
        ids, lengths = texts(step, 6, 9, 40)
        hidden = w["layers.0.recurrent_weight"].shape[2]
        x = w["embedding.weight"][ids]
        layer_count = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("layers"))
        for index in range(layer_count):
            path = f"layers.{index}"
            directions = w[f"{path}.bias"].shape[0]
            layer = kind(x.shape[2], hidden, batch_first=True, bidirectional=directions == 2)
            parts = {}
            for direction in range(directions):
                suffix = "l0_reverse" if direction else "l0"
                halves = w[f"{path}.bias"][direction].chunk(2)
                parts[f"weight_ih_{suffix}"] = gates(w[f"{path}.input_weight"][direction], order)
                parts[f"weight_hh_{suffix}"] = gates(
                    w[f"{path}.recurrent_weight"][direction], order
                )
                parts[f"bias_ih_{suffix}"] = gates(halves[0], order)
                parts[f"bias_hh_{suffix}"] = gates(halves[1], order)
            packed = nn.utils.rnn.pack_padded_sequence(
                x, lengths, batch_first=True, enforce_sorted=False
            )
            y, state = torch.func.functional_call(layer.double(), parts, (packed,))
            x, _ = nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=9)
        state = state[0] if kind is nn.LSTM else state
        vector = torch.cat(list(state), dim=1)
        scores = F.linear(vector, w["classifier.weight"], w["classifier.bias"])
        return scores, integers((6,), step + 900, 3)

    return logits


def bert_logits(network, step):
    w = network.weights
    heads = network.settings["heads"]
    ids, lengths = texts(step, 5, 8, 50)
    mask = torch.arange(8)[None, :] < lengths[:, None]

    def norm(x, path):
        size = x.shape[-1:]
        return F.layer_norm(x, size, w[f"{path}.weight"], w[f"{path}.bias"], eps=1e-12)

    def linear(x, path):
        # The ONNX file has them transposed.
        return x @ w[f"{path}.weight"] + w[f"{path}.bias"]

    positions = w["embeddings.position_embeddings.weight"][:8]
    x = norm(w["embeddings.word_embeddings.weight"][ids] + positions, "embeddings.LayerNorm")
    layer_count = 1 + max(int(name.split(".")[2]) for name in w if name.startswith("encoder"))
    for index in range(layer_count):
        path = f"encoder.layer.{index}"

        def split(y):
            return y.view(5, 8, heads, -1).transpose(1, 2)

        query, key, value = (
            split(linear(x, f"{path}.attention.self.{part}")) for part in ("query", "key", "value")
        )
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        y = linear(y.transpose(1, 2).reshape(x.shape), f"{path}.attention.output.dense")
        x = norm(x + y, f"{path}.attention.output.LayerNorm")
        y = F.gelu(linear(x, f"{path}.intermediate.dense"))
        x = norm(x + linear(y, f"{path}.output.dense"), f"{path}.output.LayerNorm")
    vector = torch.tanh(linear(x[:, 0], "pooler.dense"))
    return linear(vector, "classifier"), integers((5,), step + 900, 3)


SGD = dict(
    optimizer="sgd",
    learning_rate=0.05,
    momentum=0.9,
    nesterov=True,
    weight_decay=0.01,
    warm_up=0,
    cosine=False,
    clip_norm=None,
)
# Epsilon is larger than usual: some gradients are zero but for rounding (those of the keys' biases,
# which softmax cancels), and a step by the ratio of such would be of any size.
ADAMW = dict(
    optimizer="adamw",
    learning_rate=0.01,
    beta1=0.9,
    beta2=0.99,
    epsilon=1e-5,
    weight_decay=0.05,
    warm_up=4,
    cosine=True,
    clip_norm=0.5,
)

RECURRENT = "--vocabulary 40 --embedding 10 --hidden 12 --pooling last --classes 3 --dropout 0"
NETWORKS = {
    "cnn": (None, SGD, cnn_logits),
    "lstm": (f"lstm {RECURRENT} --layers 2", ADAMW, recurrent_logits(nn.LSTM, (0, 2, 3, 1))),
    "gru": (
        f"gru {RECURRENT} --bidirectional false",
        SGD | {"learning_rate": 0.2},
        recurrent_logits(nn.GRU, (1, 0, 2)),
    ),
    "bert": (
        "bert --layers 2 --hidden 24 --heads 3 --ffn 40 --vocabulary 50 --positions 10 --length 8 "
        "--head classifier --classes 3 --dropout 0",
        ADAMW | {"heads": 3},
        bert_logits,
    ),
}


def main():
    FOLDER.mkdir(exist_ok=True)
    reference = {}
    for name, (command, settings, logits) in NETWORKS.items():
        if command is None:
            make_cnn()
        else:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "model.onnx"
                subprocess.run(
                    [sys.argv[1], "new", *command.split(), "-o", file],
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                (FOLDER / f"{name}.onnx").write_bytes(file.read_bytes())
        reference[name] = Network(name, settings).train(logits)
        losses = reference[name]["losses"]
        first, last = sum(losses[:BATCHES]) / BATCHES, sum(losses[-BATCHES:]) / BATCHES
        print(f"{name}: loss {first:.4f} to {last:.4f}")
    text = json.dumps({"steps": STEPS, "batches": BATCHES, "networks": reference}, indent=1)
    (FOLDER / "reference.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
