"""One engine in a process of its own, driven by main.py over its standard input:

    python bench/peers/worker.py JSON

`time` makes bursts of runs when asked, so that only one engine runs at a time; `measure` gives
quality and batch invariance.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

import data
from engines import engine

INVARIANCE_TEXTS = 128
INVARIANCE_BATCH = 16


def made_up(names, subject, batch, length):
    """The feeds of `attar bench`: ids of common words and a mask of ones, or smooth noise."""
    if subject.image:
        index = np.arange(batch * 3 * length * length)
        values = np.sin((index % 1009).astype(np.float32) * np.float32(0.37))
        return {names[0]: values.reshape(batch, 3, length, length)}
    ids = (1000 + np.arange(batch * length) * 37 % 1000).reshape(batch, length)
    make = {"mask": np.ones_like, "type": np.zeros_like}
    return {
        name: next((make[word](ids) for word in make if word in name), ids) for name in names
    }


def serve_times(runner, subject, batch, length):
    feeds = made_up(runner.names, subject, batch, length)
    for _ in range(3):
        runner.run(feeds)
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, times = float(line), []
        runner.run(feeds)
        start = time.perf_counter()
        while len(times) < 3 or time.perf_counter() - start < seconds:
            begin = time.perf_counter()
            runner.run(feeds)
            times.append((time.perf_counter() - begin) * 1e3)
        print(statistics.median(times), flush=True)


def vectors(runner, encodings, batch=32):
    order = sorted(range(len(encodings)), key=lambda index: len(encodings[index].ids))
    rows = None
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        feeds = data.token_feeds([encodings[index] for index in chosen], runner.names)
        part = runner.run(feeds)
        rows = np.empty((len(encodings), part.shape[1]), np.float32) if rows is None else rows
        rows[chosen] = part
    return rows


def invariance(runner, encodings):
    """Vectors alone against the same padded in a batch of texts as they come."""
    equal, cosine_min = 0, 1.0
    for start in range(0, len(encodings), INVARIANCE_BATCH):
        batch = encodings[start : start + INVARIANCE_BATCH]
        together = runner.run(data.token_feeds(batch, runner.names))
        for encoding, row in zip(batch, together):
            alone = runner.run(data.token_feeds([encoding], runner.names))[0]
            if alone.tobytes() == row.tobytes():
                equal += 1
                continue
            a, b = alone.astype(np.float64), row.astype(np.float64)
            cosine_min = min(cosine_min, a @ b / np.sqrt((a @ a) * (b @ b)))
    return {"equal": equal, "count": len(encodings), "cosine_min": cosine_min}


def measure_texts(runner, subject, place):
    retrieval = data.Retrieval(place)
    encodings = subject.tokenizer().encode_batch(retrieval.texts())
    rows = vectors(runner, encodings)
    documents, queries = np.split(rows, [len(retrieval.documents)])
    values = [
        data.ndcg(documents @ query, grades)
        for query, grades in zip(queries, retrieval.grades)
    ]
    chosen = data.spread(len(encodings), INVARIANCE_TEXTS)
    alone = invariance(runner, [encodings[index] for index in chosen])
    return {"values": values, "invariance": alone}


def measure_images(runner, subject, place):
    values, equal, batch = [], 0, 16
    images = data.labelled_images(place)
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        pixels = np.stack([data.image_tensor(path, subject.image) for path, _ in part])
        together = runner.run({runner.names[0]: pixels})
        for (_, label), image, row in zip(part, pixels, together):
            values.append(float(row.argmax() == label))
            equal += runner.run({runner.names[0]: image[None]})[0].tobytes() == row.tobytes()
    alone = {"equal": equal, "count": len(images), "cosine_min": None}
    return {"values": values, "invariance": alone}


def main():
    request = json.loads(sys.argv[1])
    subject = data.Subject(request["model"])
    places = {name: Path(place) for name, place in request["places"].items()}
    runner = engine(request["variant"], places, request["threads"])
    if request["do"] == "time":
        serve_times(runner, subject, *request["shape"])
        return
    measure = measure_texts if subject.text else measure_images
    print(json.dumps(measure(runner, subject, request["data"])), flush=True)


if __name__ == "__main__":
    main()
