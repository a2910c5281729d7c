"""Calibration and evaluation data, read as attar reads them, and turned into a model's inputs."""

import json
import os
import tomllib
from pathlib import Path

import numpy as np

LENGTH_DEFAULT = 256


class Subject:
    """A model with what feeds it, from the `attar.toml` beside it."""

    def __init__(self, model):
        self.model = Path(model).resolve()
        settings = tomllib.loads((self.model.parent / "attar.toml").read_text())
        self.text = settings.get("text")
        self.image = settings.get("image")

    def tokenizer(self):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.model.parent / self.text["tokenizer"]))
        tokenizer.enable_truncation(self.text.get("length_max", LENGTH_DEFAULT))
        tokenizer.no_padding()
        return tokenizer


def spread(total, count):
    """`count` indices, evenly over `total`, as attar chooses its calibration examples."""
    count = min(total, count)
    return [i * total // count for i in range(count)]


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file if line.strip()]


def json_rows(path):
    rows = (json.loads(line) for line in lines(path))
    return {row["_id"]: " ".join(filter(None, [row.get("title"), row["text"]])) for row in rows}


class Retrieval:
    """A BEIR folder: documents, the queries that have a relevant document, and their grades."""

    def __init__(self, folder):
        folder = Path(folder)
        documents = json_rows(folder / "corpus.jsonl")
        queries = json_rows(folder / "queries.jsonl")
        number = {name: index for index, name in enumerate(documents)}
        qrels = folder / "qrels" / "test.tsv"
        if not qrels.exists():
            qrels = sorted((folder / "qrels").glob("*.tsv"))[0]
        grades = {}
        for line in lines(qrels)[1:]:
            query, document, grade = line.split("\t")[:3]
            if float(grade) > 0 and document in number and query in queries:
                grades.setdefault(query, {})[number[document]] = float(grade)
        self.documents = list(documents.values())
        chosen = [name for name in queries if name in grades]
        self.queries = [queries[name] for name in chosen]
        self.grades = [grades[name] for name in chosen]

    def texts(self):
        return self.documents + self.queries


def ndcg(scores, grades, count=10):
    """Discounted gain of the best `count` over that of the best order; ties keep their order."""
    best = np.argsort(-scores, kind="stable")[:count]
    gain = sum(grades.get(int(d), 0.0) / np.log2(rank + 2) for rank, d in enumerate(best))
    ideal = sorted(grades.values(), reverse=True)[:count]
    return gain / sum(grade / np.log2(rank + 2) for rank, grade in enumerate(ideal))


def interval(values, resamples=10_000, seed=0x5EED):
    """The mean and its 95 % interval by the bootstrap."""
    values = np.asarray(values)
    generator = np.random.default_rng(seed)
    means = [
        values[generator.integers(len(values), size=len(values))].mean() for _ in range(resamples)
    ]
    return values.mean(), *np.quantile(means, [0.025, 0.975])


def token_feeds(encodings, names, length=0):
    """int64 inputs [batch, longest], padded at the end to `length` at least."""
    longest = max(length, *(len(encoding.ids) for encoding in encodings))
    feeds = {name: np.zeros((len(encodings), longest), np.int64) for name in names}
    for row, encoding in enumerate(encodings):
        length = len(encoding.ids)
        for name, values in feeds.items():
            if "mask" in name:
                values[row, :length] = 1
            elif "type" in name:
                values[row, :length] = encoding.type_ids
            else:
                values[row, :length] = encoding.ids
    return feeds


def image_tensor(path, settings):
    """One image as f32 [3, size, size]: short side resized, centre cut, normalized."""
    from PIL import Image

    image = Image.open(path).convert("RGB")
    short = min(image.size)
    scaled = [max(side * settings["resize"] // short, settings["size"]) for side in image.size]
    image = image.resize(scaled, Image.Resampling.BILINEAR)
    size = settings["size"]
    left, top = (round((side - size) / 2) for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
    mean, std = (np.asarray(settings[key], np.float32) for key in ("mean", "std"))
    return ((pixels - mean) / std).transpose(2, 0, 1)


def labelled_images(folder):
    """(path, class) of a folder with `labels.tsv`."""
    folder = Path(folder)
    rows = [line.split("\t") for line in lines(folder / "labels.tsv")[1:]]
    return [(folder / row[0], int(row[1])) for row in rows]


def divide_images(folder, output):
    """Two folders of links: images of odd rows to calibrate with, the others to evaluate on."""
    images = labelled_images(folder)
    for name, part in (("calibration", images[::2]), ("evaluation", images[1::2])):
        place = output / name
        place.mkdir(parents=True, exist_ok=True)
        rows = ["file\tclass_index"]
        for path, label in part:
            link = place / path.name
            if not link.exists():
                os.symlink(path.resolve(), link)
            rows.append(f"{path.name}\t{label}")
        (place / "labels.tsv").write_text("\n".join(rows) + "\n")


def calibration_feeds(subject, place, names, is_padded=False):
    """Inputs of one example at a time, of a `.txt` of texts or a folder of images.

    `is_padded` makes all texts as long as the longest.
    """
    if subject.text:
        encodings = subject.tokenizer().encode_batch(lines(place))
        length = max(len(encoding.ids) for encoding in encodings) if is_padded else 0
        for encoding in encodings:
            yield token_feeds([encoding], names, length)
    else:
        for path, _ in labelled_images(place):
            yield {names[0]: image_tensor(path, subject.image)[None]}
