"""PyTorch's side of bench/src/bin/training: the same models, data and steps, and the same answers.

Run by that program: `python bench/training.py CASE THREADS`.
"""

import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

TOKENS = 10_000
RATE = 1e-4


def noise(*shape):
    count = 1
    for size in shape:
        count *= size
    index = torch.arange(count, dtype=torch.int64)
    return ((index * 7919 % 100_003).float() / 50_001.5 - 1.0).reshape(shape)


def tokens(batch, length):
    return (torch.arange(batch * length) * 7919 % TOKENS).reshape(batch, length)


class Layer(nn.Module):
    """A layer of BERT, with attention as PyTorch has it built in."""

    def __init__(self, hidden, heads, ffn):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=1e-12)
        self.wide = nn.Linear(hidden, ffn)
        self.narrow = nn.Linear(ffn, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=1e-12)

    def forward(self, x, mask):
        batch, length, hidden = x.shape

        def split(y):
            return y.view(batch, length, self.heads, -1).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        y = y.transpose(1, 2).reshape(batch, length, hidden)
        x = self.attention_norm(x + self.output(y))
        return self.output_norm(x + self.narrow(F.gelu(self.wide(x))))


class Encoder(nn.Module):
    def __init__(self, hidden=384, layers=6, heads=12, ffn=1536, vocabulary=30522, positions=512):
        super().__init__()
        self.words = nn.Embedding(vocabulary, hidden)
        self.positions = nn.Embedding(positions, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)
        self.layers = nn.ModuleList(Layer(hidden, heads, ffn) for _ in range(layers))
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids, mask):
        x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]])
        weights = mask.float()
        bias = ((1.0 - weights) * -1e9)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, bias)
        return (x * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1e-9)


def convolution(channels, out, size, stride, groups=1, clamped=True):
    parts = [
        nn.Conv2d(channels, out, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
    ]
    return nn.Sequential(*parts, nn.ReLU6(inplace=True)) if clamped else nn.Sequential(*parts)


class Residual(nn.Module):
    def __init__(self, channels, out, stride, expansion):
        super().__init__()
        wide = channels * expansion
        parts = [convolution(channels, wide, 1, 1)] if expansion > 1 else []
        parts.append(convolution(wide, wide, 3, stride, groups=wide))
        parts.append(convolution(wide, out, 1, 1, clamped=False))
        self.parts = nn.Sequential(*parts)
        self.adds = stride == 1 and channels == out

    def forward(self, x):
        y = self.parts(x)
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """With the strides for 32 pixels."""

    STAGES = [
        (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ]  # fmt: skip

    def __init__(self, classes=10):
        super().__init__()
        parts = [convolution(3, 32, 3, 1)]
        channels = 32
        for expansion, out, count, stride in self.STAGES:
            for index in range(count):
                parts.append(Residual(channels, out, stride if index == 0 else 1, expansion))
                channels = out
        parts.append(convolution(channels, 1280, 1, 1))
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Linear(1280, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class Recurrent(nn.Module):
    """A classifier of texts; `kind` is nn.LSTM or nn.GRU."""

    def __init__(self, kind, vocabulary=10_000, size=256, layers=2, classes=2):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, size)
        nn.init.uniform_(self.embedding.weight, -0.25, 0.25)
        self.layers = kind(size, size, layers)
        self.classifier = nn.Linear(size, classes)

    def forward(self, ids):
        _, state = self.layers(self.embedding(ids.T))
        last_h = state[0] if isinstance(state, tuple) else state
        return self.classifier(last_h[-1])


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)


def make(case):
    """The model, its inputs, its loss and its optimizer."""
    if case == "encoder":
        model = Encoder()
        inputs = (tokens(16, 32), torch.ones(16, 32, dtype=torch.int64))
        target = noise(16, 384)
        return model, inputs, lambda y: F.mse_loss(y, target), adamw(model)
    if case == "cnn":
        # The layout that PyTorch's convolutions are fastest in, on CPUs.
        model = MobileNetV2().to(memory_format=torch.channels_last)
        inputs = (noise(64, 3, 32, 32).contiguous(memory_format=torch.channels_last),)
        target = torch.arange(64) * 7 % 10
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, fused=True)
        return model, inputs, lambda y: F.cross_entropy(y, target), optimizer
    if case in ("lstm", "gru"):
        model = Recurrent(nn.LSTM if case == "lstm" else nn.GRU)
        target = torch.arange(32) * 7 % 2
        return model, (tokens(32, 64),), lambda y: F.cross_entropy(y, target), adamw(model)
    sys.exit(f"there is no case `{case}`")


def memory_mb(line):
    with open("/proc/self/status", encoding="utf-8") as status:
        for text in status:
            if text.startswith(line):
                return int(text.split()[1]) * 1024 / 1e6
    return float("nan")


def peak_gflops():
    size = 1024
    x, w = noise(size, size), noise(size, size)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        torch.mm(x, w)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def main():
    case, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    torch.manual_seed(0)
    resident = memory_mb("VmRSS:")
    model, inputs, loss_of, optimizer = make(case)
    model.train()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(parameters, 0, resident, flush=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model(*inputs))
        loss.backward()
        optimizer.step()
        return loss.item()

    for line in sys.stdin:
        words = line.split()
        if words[0] == "steps":
            until = time.perf_counter() + float(words[1])
            times = []
            while not times or time.perf_counter() < until:
                start = time.perf_counter()
                step()
                times.append(f"{(time.perf_counter() - start) * 1e3:.4f}")
            print(*times, flush=True)
        elif words[0] == "peak":
            with torch.no_grad():
                print(f"{peak_gflops():.2f}", flush=True)
        else:
            print(f"{memory_mb('VmHWM:'):.1f}", flush=True)
            break


main()
