"""Writes what the original frameworks compute, for tests/tests/import.rs to compare with.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt
    venv/bin/python make_reference.py ../../data

Each network runs in its framework's own code, in f32 on one thread. Token ids are written too, so
that the tests need no tokenizer.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torchvision.models import mobilenet_v2
from transformers import AutoModel

TEXTS = [
    "A cat sits on the mat.",
    "how do I reset my password?",
    "The Eiffel Tower, finished in 1889, stands 330 metres above the Champ de Mars in Paris and "
    "was for forty-one years the tallest structure that people had built.",
    "naïve café — 東京 №5 ☕",
    "x",
    "",
]
# Longer than 128 tokens, where MPNet's distances leave the logarithm.
TEXTS.append("The river bends twice before the mill, and nobody crosses it in spring. " * 12)


def padded(tokenizer, texts, pad_id, length_max):
    tokenizer.no_padding()
    tokenizer.enable_truncation(length_max)
    rows = [tokenizer.encode(text).ids for text in texts]
    length = max(map(len, rows))
    return rows, [row + [pad_id] * (length - len(row)) for row in rows]


def rounded(tensor):
    return [float(f"{value:.8g}") for value in tensor.flatten().tolist()]


def text_reference(folder, name):
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    length_max = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows, ids = padded(tokenizer, TEXTS, model.config.pad_token_id, length_max)
    ids = torch.tensor(ids)
    mask = torch.tensor([[1] * len(row) + [0] * (ids.shape[1] - len(row)) for row in rows])
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(-1).float()
    means = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    vectors = torch.nn.functional.normalize(means, p=2, dim=1)
    return {
        "model": name,
        "pad_token_id": model.config.pad_token_id,
        "ids": rows,
        "sentence_embedding": [rounded(vector) for vector in vectors],
        # Of each text's first and last token, the first values.
        "first_token": [rounded(text[0, :16]) for text in hidden],
        "last_token": [rounded(text[len(row) - 1, :16]) for text, row in zip(hidden, rows)],
    }


def image(size_y, size_x):
    """Waves of another length in each channel, within what normalized photographs have."""
    y = torch.arange(size_y, dtype=torch.float64).reshape(-1, 1)
    x = torch.arange(size_x, dtype=torch.float64).reshape(1, -1)
    channels = [
        torch.sin(0.05 * (c + 1) * x + 0.3 * c) * 1.5 + torch.cos(0.07 * (c + 1) * y) * 0.8
        for c in range(3)
    ]
    return torch.stack(channels).unsqueeze(0).float()


def image_reference(path):
    model = mobilenet_v2(weights=None).eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    with torch.no_grad():
        return {
            "images": [
                {"height": y, "width": x, "logits": rounded(model(image(y, x))[0])}
                for y, x in [(224, 224), (192, 256)]
            ]
        }


def main():
    data = Path(sys.argv[1])
    torch.set_num_threads(1)
    references = {
        "minilm": text_reference(data / "minilm", "minilm"),
        "mpnet": text_reference(data / "mpnet", "mpnet"),
        "mobilenet_v2": image_reference(data / "mobilenet" / "mobilenet_v2-b0353104.pth"),
    }
    for name, reference in references.items():
        path = Path(__file__).parent / f"{name}.json"
        path.write_text(json.dumps(reference, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
