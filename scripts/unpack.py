#!/usr/bin/env python3
"""Takes files out of downloaded packages and keeps a manifest of them, for scripts/fetch.

    unpack.py sha256 FILE             print the file's sha256
    unpack.py take FOLDER PIN TAKE... -- ARCHIVE...
                                      unpack into FOLDER and write its manifest
    unpack.py check FOLDER PIN        print what is wrong with FOLDER, if anything (see check)

A TAKE is `[verb:]FOLDER//PATTERN`: the files of the archive that match, named as they stand
after the `//`. The verbs are the functions in VERBS.
"""

import fnmatch
import gzip
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile

MANIFEST = ".fetched"


class Problem(Exception):
    """Something in the world is wrong; the message says what."""


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# Archives: each reader yields (name, open file) for the regular files in it.


def members(path):
    if path.endswith(".deb"):
        yield from deb_members(path)
    elif path.endswith((".tgz", ".tar.gz")):
        with tarfile.open(path, "r:gz") as tar:
            yield from tar_members(tar)
    else:
        with zipfile.ZipFile(path) as archive:
            yield from zip_members(archive)


def deb_members(path):
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            yield from tar_members(tar)
        process.stdout.read()
    if process.returncode != 0:
        raise Problem(f"dpkg-deb cannot read {path}")


def tar_members(tar):
    for member in tar:
        if member.isfile():
            yield member.name.removeprefix("./"), tar.extractfile(member)


def zip_members(archive):
    for name in archive.namelist():
        if not name.endswith("/"):
            with archive.open(name) as file:
                yield name, file


class Joined:
    """Files read one after the other, as the zip reader wants them: seekable."""

    def __init__(self, parts):
        self.parts = parts
        self.ends = []
        for part in parts:
            self.ends.append((self.ends[-1] if self.ends else 0) + part.seek(0, os.SEEK_END))
        self.position = 0

    def seekable(self):
        return True

    def tell(self):
        return self.position

    def seek(self, offset, whence=os.SEEK_SET):
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.ends[-1]}[whence]
        self.position = base + offset
        return self.position

    def read(self, size=-1):
        end = self.ends[-1] if size < 0 else min(self.position + size, self.ends[-1])
        blocks, start = [], 0
        for part, stop in zip(self.parts, self.ends):
            if start <= self.position < stop and self.position < end:
                part.seek(self.position - start)
                blocks.append(part.read(min(end, stop) - self.position))
                self.position += len(blocks[-1])
            start = stop
        return b"".join(blocks)


# Verbs: each is given the archives and a pattern, and yields (name, open file).


def plain(archives, pattern):
    for archive in archives:
        for name, file in members(archive):
            if fnmatch.fnmatchcase(name, pattern):
                yield name, file


def gunzip(archives, pattern):
    for name, file in plain(archives, pattern):
        yield name.removesuffix(".gz"), gzip.open(file)


def join(archives, pattern):
    """The archives hold one zip cut into `.001`, `.002`, …; the parts are joined unread."""
    opened = [zipfile.ZipFile(archive) for archive in archives]
    parts = []
    for archive in opened:
        for name in archive.namelist():
            if name.rpartition(".")[2].isdigit():
                parts.append((name.rpartition("/")[2], archive.open(name)))
    parts.sort(key=lambda part: part[0])
    with zipfile.ZipFile(Joined([file for _, file in parts])) as archive:
        for name, file in zip_members(archive):
            if fnmatch.fnmatchcase(name, pattern):
                yield name, file
    for archive in opened:
        archive.close()


def digits(archives, pattern):
    """`0.json` … `9.json`, pixels as 0 … 1 with two decimals, to IDX: one of each digit in turn.

    The last fifth of each digit is the test part: the package does not say which is which.
    """
    by_digit, folder = {}, ""
    for name, file in plain(archives, pattern):
        folder, _, base = name.rpartition("/")
        pixels = bytes(round(value * 255) for value in json.load(file)["data"])
        by_digit[int(base.removesuffix(".json"))] = [
            pixels[at : at + 784] for at in range(0, len(pixels), 784)
        ]
    for part, cut in (
        ("train", lambda images: images[: len(images) * 4 // 5]),
        ("t10k", lambda images: images[len(images) * 4 // 5 :]),
    ):
        rows = sorted(
            (index, digit, image)
            for digit, images in by_digit.items()
            for index, image in enumerate(cut(images))
        )
        images = struct.pack(">4I", 0x803, len(rows), 28, 28) + b"".join(row[2] for row in rows)
        labels = struct.pack(">2I", 0x801, len(rows)) + bytes(row[1] for row in rows)
        yield f"{folder}/{part}-images-idx3-ubyte", Bytes(images)
        yield f"{folder}/{part}-labels-idx1-ubyte", Bytes(labels)


class Bytes:
    def __init__(self, data):
        self.data = data

    def read(self, size):
        block, self.data = self.data[:size], self.data[size:]
        return block


VERBS = {"": plain, "gunzip": gunzip, "join": join, "digits": digits}


def take(folder, pin, takes, archives):
    lines = []
    for rule in takes:
        verb, _, path = rule.rpartition(":")
        stem, slashes, pattern = path.partition("//")
        if verb not in VERBS or not slashes:
            raise Problem(f"`{rule}` is not [verb:]FOLDER//PATTERN")
        count = 0
        for name, file in VERBS[verb](archives, f"{stem}/{pattern}"):
            count += 1
            lines.append(write(folder, name[len(stem) + 1 :], file))
        if count == 0:
            raise Problem(f"nothing in the package matches `{rule}`")
    with open(os.path.join(folder, MANIFEST), "w", encoding="utf-8") as file:
        file.write("".join([f"pin {pin}\n", *sorted(lines, key=lambda line: line.split(" ", 2)[2])]))


def write(folder, name, file):
    path = os.path.normpath(os.path.join(folder, name))
    if not path.startswith(os.path.normpath(folder) + os.sep):
        raise Problem(f"`{name}` would be written outside its folder")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as output:
        shutil.copyfileobj(file, output, 1 << 20)
    return f"{sha256(path)} {os.path.getsize(path)} {name}\n"


def check(folder, pin):
    """Prints nothing when whole; else one of
    `absent`, `stale` (other pins), `changed NAME`, `foreign NAME` (a file not ours is at stake).
    """
    if not os.path.isdir(folder) or not os.listdir(folder):
        return "absent"
    ours, found = {}, None
    try:
        with open(os.path.join(folder, MANIFEST), encoding="utf-8") as file:
            found = file.readline().removeprefix("pin ").strip()
            for line in file:
                digest, size, name = line.rstrip("\n").split(" ", 2)
                ours[name] = (digest, int(size))
    except FileNotFoundError:
        pass
    state = "stale" if found != pin else first_changed(folder, ours)
    if state:
        for base, _, names in os.walk(folder):
            for name in sorted(names):
                path = os.path.relpath(os.path.join(base, name), folder)
                if path != MANIFEST and path not in ours:
                    return f"foreign {path}"
    return state


def first_changed(folder, ours):
    for name, (digest, size) in ours.items():
        path = os.path.join(folder, name)
        if not os.path.isfile(path) or os.path.getsize(path) != size or sha256(path) != digest:
            return f"changed {name}"
    return ""


def main(arguments):
    command, *rest = arguments or [""]
    if command == "sha256" and len(rest) == 1:
        print(sha256(rest[0]))
    elif command == "take" and "--" in rest[2:]:
        split = rest.index("--")
        take(rest[0], rest[1], rest[2:split], rest[split + 1 :])
    elif command == "check" and len(rest) == 2:
        print(check(rest[0], rest[1]))
    else:
        raise Problem("usage: see the head of unpack.py")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except (Problem, OSError, zipfile.BadZipFile, tarfile.TarError) as problem:
        sys.exit(f"{problem}")
