"""Whether copies of models are equal to them, by the judgement of the official onnx package.

    data/test-venv/bin/python tests/reference/round_trip.py < PAIRS

`PAIRS` has two paths a line, parted by a tab: a model and its copy. External data is taken in on
both sides. Prints what is not equal, and ends with status 1 if anything is.
"""

import sys

import onnx


def are_equal(path, copy):
    first, second = onnx.load(path), onnx.load(copy)
    # Bytes in the order of field numbers, with the fields that the package does not know. The
    # messages themselves are unequal where they hold a NaN.
    same_bytes = first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )
    return same_bytes and (first == second or first != first)


def main(lines):
    pairs = [line.rstrip("\n").split("\t") for line in lines]
    differ = [path for path, copy in pairs if not are_equal(path, copy)]
    for path in differ:
        print(f"{path} is not as it was")
    print(f"{len(pairs) - len(differ)} of {len(pairs)} models are equal")
    return 1 if differ else 0


sys.exit(main(sys.stdin))
