"""Quantizes one model with each tool, measures all of them, and prints one markdown table.

Every cell is kept in the output folder; what is there is not measured again, so a run that was
broken off, or made in parts (`--only`, `--shapes`, `--threads`), goes on with the same command.
Times are medians over rounds in which every engine runs in turn, each in a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import data
from table import VARIANTS, table

HERE = Path(__file__).resolve().parent
WORK = ("quantize", "time", "quality")


def arguments():
    parser = argparse.ArgumentParser(
        prog="bench/peers/run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="f32 model (.onnx) with attar.toml beside it")
    add("--torch", type=Path, help="the folder PyTorch reads the same weights from")
    add("--calibration", type=Path, required=True, help="texts, one a line, or labelled images")
    add("--count", type=int, default=300, help="calibration texts [300]")
    add("--data", type=Path, help="BEIR folder for quality; images: the other half of --calibration")
    add("--output", type=Path, required=True, help="folder for models, cells and table.md")
    add("--attar", type=Path, default=Path("target/release/attar"), help="attar's binary")
    add("--step", default="quantize.static", help="attar's step [quantize.static]")
    add("--small", type=Path, help="run folder of attar's recipe for one collection, search.toml")
    add("--do", nargs="+", choices=WORK, default=WORK, help="what to measure [all]")
    add("--only", nargs="+", metavar="VARIANT", help=f"of {', '.join(VARIANTS)}")
    add("--shapes", nargs="+", help="batch × length [1x16 1x128 32x32], of images 1x224")
    add("--threads", nargs="+", type=int, default=[1, 2])
    add("--rounds", type=int, default=5, help="rounds of a time [5]")
    add("--burst", type=float, default=0.5, help="least seconds of one engine in a round [0.5]")
    add("--renew", nargs="*", default=[], metavar="VARIANT", help="forget these variants' cells")
    return parser.parse_args()


def run_process(command, log):
    """Runs a command to its end: its seconds and its peak memory in MB. ONNX Runtime's tools leave
    files where they are run: that is a folder that goes with them.
    """
    start = time.perf_counter()
    with open(log, "w") as file, tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, cwd=folder)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        tail = Path(log).read_text().splitlines()[-5:]
        raise RuntimeError(f"{command[1:4]} failed, see {log}:\n" + "\n".join(tail))
    return time.perf_counter() - start, usage.ru_maxrss / 1024


class Cells:
    """Results by name, each a JSON file, written once it is whole."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name):
        place = self.folder / f"{name}.json"
        return json.loads(place.read_text()) if place.exists() else None

    def set(self, name, value):
        part = self.folder / f"{name}.part"
        part.write_text(json.dumps(value))
        part.rename(self.folder / f"{name}.json")

    def forget(self, name):
        (self.folder / f"{name}.json").unlink(missing_ok=True)


class Bench:
    def __init__(self, options):
        options.attar = options.attar.resolve()
        self.options = options
        self.output = options.output.resolve()
        self.cells = Cells(self.output / "cells")
        self.subject = data.Subject(options.model)
        self.calibration, self.data = self.divide()
        self.places = {
            "f32": self.subject.model,
            "torch": options.torch and options.torch.resolve(),
            "attar-int8": self.output / "attar-int8" / "model.onnx",
            "attar-small": options.small and options.small.resolve() / "model.onnx",
            "openvino-nncf": self.output / "openvino-nncf.xml",
        }
        for recipe in ("ort-dynamic", "ort-minmax", "ort-products", "ort-percentile", "ort-entropy"):
            self.places[recipe] = self.output / f"{recipe}.onnx"
        chosen = options.only or list(VARIANTS)
        self.variants = [name for name in chosen if self.is_possible(name)]

    def is_possible(self, variant):
        """PyTorch needs its folder, and its dynamic int8 knows no convolution; what was made for a
        collection is given.
        """
        if variant not in VARIANTS:
            sys.exit(f"error: there is no variant `{variant}`; there are {', '.join(VARIANTS)}")
        if variant == "torch:torch-dynamic" and self.subject.image:
            return False
        if variant.endswith("attar-small"):
            return self.options.small is not None
        return not variant.startswith("torch") or self.options.torch is not None

    def divide(self):
        """The calibration examples, the same for all, and the place of the data for quality."""
        options = self.options
        if self.subject.image:
            data.divide_images(options.calibration, self.output)
            return self.output / "calibration", self.output / "evaluation"
        rows = [line.split("\t")[0] for line in data.lines(options.calibration)]
        rows = list(dict.fromkeys(rows))
        place = self.output / "calibration.txt"
        chosen = [rows[index] for index in data.spread(len(rows), options.count)]
        place.write_text("\n".join(chosen) + "\n", encoding="utf-8")
        return place, options.data and options.data.resolve()

    def quantize(self):
        recipes = dict.fromkeys(name.split(":")[1] for name in self.variants)
        for recipe in recipes:
            if recipe == "f32" or self.cells.get(f"quantize-{recipe}"):
                continue
            if recipe == "attar-small":
                self.cells.set(f"quantize-{recipe}", {"size_mb": self.size_mb(recipe)})
                continue
            print(f"quantizing: {recipe}", file=sys.stderr)
            log = self.output / f"quantize-{recipe}.log"
            try:
                seconds, peak = run_process(self.quantize_command(recipe), log)
            except RuntimeError as error:
                self.failed(recipe, error)
                continue
            cell = {"seconds": seconds, "peak_mb": peak, "size_mb": self.size_mb(recipe)}
            self.cells.set(f"quantize-{recipe}", cell)

    def failed(self, name, error):
        """Says so and leaves the rest to be measured; nothing is kept, so it is tried again."""
        print(f"warning: {name} left out: {error}", file=sys.stderr)
        self.variants = [known for known in self.variants if name not in (known, known.split(":")[1])]

    def quantize_command(self, recipe):
        options = self.options
        if recipe == "attar-int8":
            folder = self.places[recipe].parent
            subprocess.run(["rm", "-rf", folder], check=True)
            command = [options.attar, "compress", self.subject.model, "--step", options.step]
            command += ["--calibration", self.calibration, "--calibration-count", options.count]
            return [*command, "--no-timing", "-o", folder]
        model = self.places["torch"] if recipe == "torch-dynamic" else self.subject.model
        place = self.places.get(recipe, self.output / f"{recipe}.pt")
        return [sys.executable, HERE / "quantize.py", recipe, model, self.calibration, place]

    def size_mb(self, recipe):
        place = self.places.get(recipe, self.output / f"{recipe}.pt")
        size = place.stat().st_size
        if place.suffix == ".xml":
            size += place.with_suffix(".bin").stat().st_size
        return size / 1e6

    def request(self, variant, **more):
        places = {name: str(place) for name, place in self.places.items() if place}
        more |= {"variant": variant, "model": str(self.subject.model), "places": places}
        return [sys.executable, str(HERE / "worker.py"), json.dumps(more)]

    def attar(self, command, variant, *flags):
        """The JSON of an attar command on the model of a variant, on `builtin`."""
        models = [self.places[variant.split(":")[1]]]
        if command == "evaluate" and models[0] != self.subject.model:
            models.insert(0, self.subject.model)
        given = [self.options.attar, command, *models, "--runtime", "builtin", "--json", *flags]
        done = subprocess.run(list(map(str, given)), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{given[1:]} failed:\n{done.stderr}")
        return json.loads(done.stdout)

    def time(self):
        usual = ["1x224"] if self.subject.image else ["1x16", "1x128", "32x32"]
        for threads in self.options.threads:
            for shape in self.options.shapes or usual:
                name = f"time-{shape}-{threads}"
                known = self.cells.get(name) or {}
                if all(variant in known for variant in self.variants):
                    continue
                print(f"timing: {shape}, {threads} threads", file=sys.stderr)
                self.cells.set(name, known | self.rounds(shape, threads))

    def rounds(self, shape, threads):
        batch, length = map(int, shape.split("x"))
        workers = {}
        try:
            for variant in self.variants:
                if not variant.startswith("attar"):
                    given = {"do": "time", "threads": threads, "shape": [batch, length]}
                    workers[variant] = Worker(self.request(variant, **given), variant)
            for worker in workers.values():
                worker.answer()
            times = {variant: [] for variant in self.variants}
            flags = ["--batch", batch, "--length", length, "--threads", threads]
            flags += ["--seconds", self.options.burst]
            for _ in range(self.options.rounds):
                for variant in self.variants:
                    if variant in workers:
                        times[variant].append(float(workers[variant].ask(self.options.burst)))
                    else:
                        rows = self.attar("bench", variant, *flags)
                        times[variant].append(rows[0]["models"][0]["p50_ms"])
            return times
        finally:
            for worker in workers.values():
                worker.stop()

    def quality(self):
        for variant in self.variants:
            name = f"quality-{variant.replace(':', '-')}"
            if self.data is None or self.cells.get(name):
                continue
            print(f"quality: {variant}", file=sys.stderr)
            try:
                self.cells.set(name, self.measured(variant))
            except RuntimeError as error:
                self.failed(variant, error)

    def measured(self, variant):
        if variant.startswith("attar"):
            return self.attar_quality(variant)
        command = self.request(variant, do="measure", threads=1, data=str(self.data))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{variant} failed:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def attar_quality(self, variant):
        answer = self.attar("evaluate", variant, "--data", self.data)
        first = answer["quality"]["models"][-1]["metrics"][0]
        alone = answer["invariance"]
        cell = {"metric": first["name"], "value": first["interval"], "difference": first["difference"]}
        if alone:
            alone = alone["models"][-1]
            keys = {"equal": "bit_equal_count", "count": "text_count", "cosine_min": "cosine_min"}
            cell["invariance"] = {key: alone[name] for key, name in keys.items()}
        return cell


class Worker:
    """An engine that waits in a process of its own until it is asked for a burst of runs."""

    def __init__(self, command, variant):
        self.variant = variant
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def answer(self):
        for line in self.child.stdout:
            word = line.strip()
            if word == "ready" or word.replace(".", "").replace("e-", "").isdigit():
                return word
        raise RuntimeError(f"{self.variant} ended without an answer")

    def ask(self, seconds):
        self.child.stdin.write(f"{seconds}\n")
        self.child.stdin.flush()
        return self.answer()

    def stop(self):
        self.child.stdin.close()
        self.child.wait()


def main():
    options = arguments()
    bench = Bench(options)
    for variant in options.renew:
        recipe = variant.split(":")[1]
        bench.cells.forget(f"quality-{variant.replace(':', '-')}")
        bench.cells.forget(f"quantize-{recipe}")
        for place in bench.cells.folder.glob("time-*.json"):
            cell = json.loads(place.read_text())
            cell.pop(variant, None)
            bench.cells.set(place.stem, cell)
    for work in options.do:
        getattr(bench, work)()
    text = table(bench.cells, bench.subject)
    (bench.output / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
