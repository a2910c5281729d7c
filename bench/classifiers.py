"""Classifiers that benchmarks train, compress and measure by attar's binary.

What is there is not made again: a run that was broken off goes on with the same command.
"""

import argparse
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

IMAGES = "--channels 1 --size 28".split()
FASHION = "--epochs 6 --batch 128 --learning-rate 0.003 --augment flip --validation 0.05".split()


@dataclass
class Classifier:
    """A model, and the data it is trained on."""

    title: str
    new: list
    data: str
    train: list
    text: bool = False


def arguments(program, description, names):
    """The flags that all such benchmarks have."""
    parser = argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--attar", type=Path, default=Path("target/release/attar"), help="attar's binary")
    add("--data", type=Path, default=Path("data"), help="folder with the data sets")
    add("--output", type=Path, required=True, help="folder for models and table.md")
    add("--only", nargs="+", choices=names, default=list(names), help="models [all]")
    add("--do", nargs="+", choices=["make", "measure"], default=["make", "measure"])
    add("--threads", default="2", help="to train with [2]")
    return parser


def check(options):
    """The path of the binary in full, or the end of the program."""
    options.attar = options.attar.absolute()
    if not options.attar.is_file():
        raise SystemExit(f"error: {options.attar} is not there\nhint: cargo build --release -p attar-cli")


class Maker:
    """Runs attar for one classifier, and keeps what it made."""

    def __init__(self, options, name, case):
        self.options, self.case = options, case
        self.folder = options.output / name
        self.data = options.data / case.data

    def attar(self, *words):
        words = [str(word) for word in words]
        print("attar", *words, flush=True)
        found = subprocess.run([self.options.attar, *words], capture_output=True, text=True)
        if found.returncode == 2:
            raise SystemExit(found.stderr)
        return found.stdout

    def dense(self):
        """The run folder of the model as it was trained."""
        target = self.folder / "dense"
        if (target / "model.onnx").exists():
            return target
        new = self.folder / "new.onnx"
        words = ["new", *self.case.new, "-o", new]
        if self.case.text:
            tokenizer = self.folder / "tokenizer.json"
            self.attar("new", "tokenizer", "--data", self.data / "train.tsv", "-o", tokenizer)
            words += ["--tokenizer", tokenizer]
        self.attar(*words)
        self.attar(
            *["train", new, "--data", self.data, *self.case.train],
            *["--threads", self.options.threads, "-o", target, *resumed(target)],
        )
        return target

    def compressed(self, name, steps, count):
        """The run folder of what these steps make of the dense model, calibrated on `count` examples."""
        target = self.folder / name
        if (target / "report.json").exists():
            return target
        steps = [word for step in steps for word in ("--step", step)]
        self.attar(
            *["compress", self.dense(), *steps, "--training", self.data],
            *["--calibration", self.data, "--calibration-count", count, "--no-timing"],
            *["--threads", self.options.threads, "-o", target, *resumed(target)],
        )
        return target

    def quality(self, target):
        """The metrics of the dense model and of another, on the test data."""
        words = ["evaluate", self.dense(), target, "--data", self.data, "--json"]
        return json.loads(self.attar(*words))["quality"]["models"]

    def work(self, target):
        return json.loads(self.attar("inspect", target / "model.onnx", "--json"))


def resumed(target):
    """What goes on with a run that was broken off."""
    return ["--resume"] if target.exists() else []


def quality_cells(models, is_dense):
    """The first metric in percent, and its difference from the dense model's in points."""
    metric = models[1]["metrics"][0]
    value = f"{100 * metric['interval']['value']:.2f} %"
    if is_dense:
        return [value, ""]
    bounds = (100 * metric["difference"][key] for key in ("value", "low", "high"))
    return [value, "{:+.2f} [{:+.2f}, {:+.2f}]".format(*bounds)]


def table(title, header, rows):
    """Lines of markdown."""
    lines = [f"**{title}**", "", "| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def show(options, lines):
    if lines:
        text = "\n".join(lines)
        (options.output / "table.md").write_text(text)
        print(text)
