"""Whether attar writes models as it read them, by the judgement of the official onnx package.

    data/test-venv/bin/python tests/reference/round_trip.py ATTAR MODEL...

`ATTAR` is a program that is called with pairs of paths, and saves the model of each first one as
the second. Both files are parsed, external data is taken in on both sides, and the messages must be
equal, fields included that the package does not know. Names every model that is not.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import onnx


def canonical(message):
    """The message for comparison: bytes, since a NaN in a message does not equal itself."""
    return message.SerializeToString(deterministic=True)


def main(attar, paths):
    with tempfile.TemporaryDirectory() as folder:
        written = [Path(folder) / str(index) / "model.onnx" for index in range(len(paths))]
        for path in written:
            path.parent.mkdir()
        pairs = [str(path) for pair in zip(paths, written) for path in pair]
        subprocess.run([attar], input="\n".join(pairs), text=True, check=True)
        differ = []
        for path, copy in zip(paths, written):
            original, again = onnx.load(path), onnx.load(copy)
            if original != again and canonical(original) != canonical(again):
                differ.append(path)
    for path in differ:
        print(f"{path} is not as it was")
    print(f"{len(paths) - len(differ)} of {len(paths)} models are equal")
    return 1 if differ else 0


sys.exit(main(sys.argv[1], sys.argv[2:]))
