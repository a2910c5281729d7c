#!/usr/bin/env python3
"""Crops of photographs, beside each folder of them, to measure a classifier's accuracy more finely.

    python bench/crops.py FOLDER [FOLDER ...]

A folder holds photographs and `labels.tsv` (file, class index, ...). FOLDER-crops gets eight parts of
85 to 100 % of each side of every photograph, half of them mirrored, and labels for them. The same
folders in the same order give the same parts. Needs Pillow (`scripts/bench-venv peers`).
"""

import argparse
import random
from pathlib import Path

from PIL import Image

COUNT = 8


def crops(folder, draw):
    target = folder.with_name(folder.name + "-crops")
    target.mkdir(parents=True, exist_ok=True)
    head, *rows = (folder / "labels.tsv").read_text().splitlines()
    lines = [head]
    for row in rows:
        name, *label = row.split("\t")
        photograph = Image.open(folder / name).convert("RGB")
        for number in range(COUNT):
            part = cropped(photograph, draw)
            if number % 2:
                part = part.transpose(Image.FLIP_LEFT_RIGHT)
            file = f"{Path(name).stem}_{number}.jpg"
            part.save(target / file, quality=95)
            lines.append("\t".join([file, *label]))
    (target / "labels.tsv").write_text("\n".join(lines) + "\n")
    print(f"{target}: {len(lines) - 1} crops")


def cropped(photograph, draw):
    share = draw.uniform(0.85, 1)
    width, height = (int(size * share) for size in photograph.size)
    left = draw.randint(0, photograph.width - width)
    top = draw.randint(0, photograph.height - height)
    return photograph.crop((left, top, left + width, top + height))


def main():
    parser = argparse.ArgumentParser(
        prog="bench/crops.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    draw = random.Random(1)
    for folder in parser.parse_args().folders:
        crops(folder, draw)


if __name__ == "__main__":
    main()
