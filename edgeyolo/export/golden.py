"""Golden data: the input and every layer's output of some pictures, as the integer program computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgeyolo.errors import DifferenceError
from edgeyolo.images import Pixels
from edgeyolo.program import IntegerProgram
from edgeyolo.runners.integer import Codes, input_codes, run_integer


def layer_codes(program: IntegerProgram, codes: Codes) -> list[Codes]:
    """The output codes of every operation, in order."""
    layers: list[Codes] = []
    run_integer(program, codes, lambda _index, _op, result: layers.append(result))
    return layers


Contender = Callable[[Codes], list[Codes]]
"""Whatever computes the output codes of every operation from input codes."""
GOLDEN_INDEX = "golden/index.txt"


def golden_name(picture: int, part: str) -> str:
    """Where golden data stands in a bundle; ``part`` is ``input`` or the operation's three-digit index."""
    return f"golden/{picture:03d}/{part}.bin"


def golden_index(pictures: int, operations: int) -> bytes:
    """The content of ``golden/index.txt``, which the engine's self test reads."""
    return f"EYGOLD1 {pictures} {operations}\n".encode("ascii")


def first_difference(expected: Codes, got: Codes, axes: str = "c, y, x") -> str | None:
    """Where two arrays first differ, with both values, or None; the tolerance is 0. ``axes`` names the dimensions."""
    if expected.shape != got.shape:
        return f"shape {got.shape} instead of {expected.shape}"
    wrong = expected.astype(np.int64) != got.astype(np.int64)
    if not wrong.any():
        return None
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    values = f"{expected[first]} expected, {got[first]} got"
    return f"{int(wrong.sum())} of {wrong.size} elements differ, first at ({axes}) = {first}: {values}"


def write_golden(program: IntegerProgram, oracle: Contender, pictures: Sequence[Pixels], folder: Path) -> int:
    """Write the golden data of a bundle ``folder`` and check it against the oracle; returns the elements compared.

    Args:
        oracle: ONNX Runtime's answer, the output codes of every operation for input codes.

    Raises:
        DifferenceError: the integer program and ONNX Runtime disagree; names layer and element.
    """
    compared = 0
    (folder / "golden").mkdir()
    (folder / GOLDEN_INDEX).write_bytes(golden_index(len(pictures), len(program.ops)))
    for number, pixels in enumerate(pictures):
        codes = input_codes(program, pixels)
        layers = layer_codes(program, codes)
        (folder / golden_name(number, "input")).parent.mkdir()
        (folder / golden_name(number, "input")).write_bytes(little_endian(codes))
        for index, (layer, expected) in enumerate(zip(layers, oracle(codes), strict=True)):
            difference = first_difference(expected, layer)
            if difference:
                raise DifferenceError(
                    "the integer program differs from ONNX Runtime",
                    where=f"layer {index} {program.ops[index].name}",
                    got=difference,
                    hint="fewer bits keep the accumulators within the 24 bits that float32 holds exactly",
                )
            compared += layer.size
            (folder / golden_name(number, f"{index:03d}")).write_bytes(little_endian(layer))
    return compared


def little_endian(codes: Codes) -> bytes:
    """Raw codes, row-major, little endian."""
    return codes.astype(codes.dtype.newbyteorder("<")).tobytes()
