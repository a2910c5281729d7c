"""Writes what `transformers` computes with tiny networks of every architecture, for
tests/tests/import_tiny.rs to compare with.

    python3 -m venv venv && venv/bin/pip install -r requirements-tiny.txt
    venv/bin/python make_tiny_reference.py

No weights are kept: each element is made from the tensor's name and its index by `values`, and the
test makes the same. What is kept of a network, in tiny/NAME.json, is its config.json, the names and
shapes of the tensors that `save_pretrained` writes, the inputs, and the outputs, computed in f64.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

SIZES = dict(
    vocab_size=99,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=40,
)
DISTIL_SIZES = dict(
    vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=40
)
IMAGE_SIZES = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    image_size=24,
    patch_size=8,
)

# Name, class, settings, and the type that the weights are stored in.
NETWORKS = [
    ("bert", "BertModel", dict(SIZES, hidden_act="gelu_new"), "float32"),
    ("bert_f16", "BertModel", SIZES, "float16"),
    ("bert_ranker", "BertForSequenceClassification", dict(SIZES, num_labels=1), "float32"),
    ("bert_trained", "BertModel", SIZES, "float32"),
    ("roberta", "RobertaModel", dict(SIZES, type_vocab_size=1, layer_norm_eps=1e-5), "float32"),
    (
        "roberta_ranker",
        "RobertaForSequenceClassification",
        dict(SIZES, type_vocab_size=1, num_labels=1),
        "float32",
    ),
    ("xlm_roberta", "XLMRobertaModel", dict(SIZES, type_vocab_size=1), "bfloat16"),
    (
        "xlm_roberta_ranker",
        "XLMRobertaForSequenceClassification",
        # Two kinds of token: such a network takes `token_type_ids`.
        dict(SIZES, type_vocab_size=2, num_labels=3),
        "float32",
    ),
    ("camembert", "CamembertModel", dict(SIZES, type_vocab_size=1), "float32"),
    ("distilbert", "DistilBertModel", DISTIL_SIZES, "float32"),
    (
        "distilbert_ranker",
        "DistilBertForSequenceClassification",
        dict(DISTIL_SIZES, activation="relu"),
        "float32",
    ),
    ("electra", "ElectraModel", dict(SIZES, embedding_size=32), "float32"),
    (
        "electra_ranker",
        "ElectraForSequenceClassification",
        dict(SIZES, embedding_size=16, hidden_act="silu"),
        "float32",
    ),
    ("mpnet", "MPNetModel", SIZES, "float32"),
    ("mpnet_ranker", "MPNetForSequenceClassification", SIZES, "float32"),
    ("vit", "ViTModel", IMAGE_SIZES, "float32"),
    (
        "vit_classifier",
        "ViTForImageClassification",
        dict(IMAGE_SIZES, qkv_bias=False, num_channels=1, patch_size=[8, 4], num_labels=5),
        "bfloat16",
    ),
    ("deit_classifier", "DeiTForImageClassification", dict(IMAGE_SIZES, num_labels=5), "float32"),
    (
        "deit_distilled",
        "DeiTForImageClassificationWithTeacher",
        dict(IMAGE_SIZES, num_labels=5),
        "float32",
    ),
]

# Networks that are also trained for a few steps.
TRAINED = ["bert_trained"]

# Token ids that are padding (0 or 1, as the network has it) in no place that the mask lets through.
TEXTS = [[2, 17, 45, 98, 3, 60, 5, 33, 71], [2, 50, 9, 3]]
TYPES = [[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 1, 1]]


def values(name, count):
    """Multiples of 2⁻²⁵ between −¼ and ¼ (splitmix64 over FNV-1a of the name), exact in f32."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2**25 - 0.25


def weights(name, shape):
    """Around 1 where a normalization scales, around 0 everywhere else."""
    centre = 1.0 if "norm" in name.lower() and name.endswith(".weight") else 0.0
    flat = values(name, int(np.prod(shape))) + centre
    return torch.tensor(flat.reshape(shape), dtype=torch.float32)


def network(class_name, settings, dtype):
    """The network with our weights, as its own `from_pretrained` reads them; and what it is."""
    of_class = getattr(transformers, class_name)
    with tempfile.TemporaryDirectory() as folder:
        of_class(of_class.config_class(**settings)).save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        with safe_open(file, "pt") as stored:
            shapes = {name: list(stored.get_slice(name).get_shape()) for name in stored.keys()}
        tensors = {name: weights(name, shape).to(dtype) for name, shape in shapes.items()}
        save_file(tensors, file, metadata={"format": "pt"})
        model, loading = of_class.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float64, output_loading_info=True
        )
        assert not any(loading.values()), loading
        config = json.loads((Path(folder) / "config.json").read_text())
    return model.eval(), config, shapes


def padded(rows, fill):
    length = max(map(len, rows))
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows])


def inputs(config):
    if "image_size" in config:
        size = config["image_size"]
        shape = [2, config["num_channels"], size, size]
        image = values("image", int(np.prod(shape))).reshape(shape) * 8
        return {"pixel_values": torch.tensor(image, dtype=torch.float64)}
    feeds = {
        "input_ids": padded(TEXTS, config["pad_token_id"]),
        "attention_mask": padded([[1] * len(row) for row in TEXTS], 0),
    }
    if config.get("type_vocab_size", 0) > 1:
        feeds["token_type_ids"] = padded(TYPES, 0)
    return feeds


def rounded(tensor):
    return [float(f"{value:.8g}") for value in tensor.flatten().tolist()]


def trained(model, feeds, steps=5, rate=0.05):
    """Losses of steps of plain gradient descent, and of each weight after them its sum and the
    elements at 16 places spread evenly. The loss is the mean square of what the last layer gives,
    less a target."""
    # PyTorch keeps the row of the padding as it is; a graph knows no such row.
    model.embeddings.word_embeddings.padding_idx = None
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        y = model(**feeds).last_hidden_state
        target = torch.tensor(values("target", y.numel()).reshape(y.shape) * 4)
        loss = ((y - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    kept = {}
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            flat = weight.detach().flatten()
            places = [i * flat.numel() // 16 for i in range(16)]
            kept[name] = rounded(torch.stack([flat.sum(), *flat[places]]))
    return {"rate": rate, "losses": rounded(torch.tensor(losses, dtype=torch.float64)), "weights": kept}


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    folder = Path(__file__).parent / "tiny"
    folder.mkdir(exist_ok=True)
    for name, class_name, settings, dtype in NETWORKS:
        model, config, shapes = network(class_name, settings, getattr(torch, dtype))
        feeds = inputs(config)
        with torch.no_grad():
            results = model(**feeds)
        # What attar gives: of texts no pooler's output, which sentence-transformers does not use.
        kept = ["last_hidden_state", "logits"]
        if "pixel_values" in feeds:
            kept.append("pooler_output")
        reference = {
            "config": config,
            "stored_as": dtype,
            "tensors": shapes,
            "inputs": {
                key: tensor.tolist() for key, tensor in feeds.items() if key != "pixel_values"
            },
            "outputs": {
                key: rounded(results[key])
                for key in kept
                if results.get(key) is not None
            },
        }
        if name in TRAINED:
            reference["training"] = trained(model, feeds)
        path = folder / f"{name}.json"
        path.write_text(json.dumps(reference, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
