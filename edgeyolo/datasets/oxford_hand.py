"""Oxford hands: ``images/a.jpg`` with ``annotations/a.mat``, one class ``hand``.

Each .mat (MATLAB version 5) has a cell array ``boxes`` of structs whose fields ``a b c d`` are the corners (y, x) of a
rotated rectangle, counted from 1; the upright box around them is the label. Only what such files need is read: little-
endian cells, structs and arrays of numbers, compressed or not.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeyolo.datasets.check import Label, Labelled
from edgeyolo.datasets.files import read_bytes, short
from edgeyolo.datasets.sample import Problem
from edgeyolo.errors import InputError

NAMES = ("hand",)
MAX_FILE_BYTES = 1 << 20
MAX_PLAIN_BYTES = 1 << 24
MAX_DEPTH = 6

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT = 1, 2
_NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}


def read_oxford_hand(pictures: Iterable[Path], annotations: Path, problems: list[Problem]) -> Iterator[Labelled]:
    """Read the labels of ``pictures`` from the folder ``annotations``; a picture without a file is left out."""
    for picture in pictures:
        path = annotations / f"{picture.stem}.mat"
        try:
            entries = _boxes(path)
        except InputError as error:
            problems.append(Problem(picture.name, "unreadable labels", "left out", short(error.got or error.what)))
            continue
        labels = [_label(f"{path}: boxes[{i}]", entry, problems) for i, entry in enumerate(entries)]
        yield Labelled(picture.name, picture, [label for label in labels if label])


def _label(where: str, entry: Any, problems: list[Problem]) -> Label | None:
    """The upright box around the four corners."""
    corners = [entry.get(key) for key in "abcd"] if isinstance(entry, dict) else []
    if not corners or not all(isinstance(c, list) and len(c) == 2 for c in corners):
        problems.append(Problem(where, "unreadable entry", "dropped", short(entry)))
        return None
    y, x = zip(*corners, strict=True)
    return Label(where, 0, (min(x) - 1, min(y) - 1, max(x) - 1, max(y) - 1))


def _boxes(path: Path) -> list[Any]:
    """The variable ``boxes`` of a file, as lists, dictionaries and lists of numbers."""
    data = read_bytes(path, MAX_FILE_BYTES)
    try:
        if data[124:128] != b"\x00\x01IM":
            raise ValueError("no MATLAB 5 file, little-endian")
        for kind, part in _elements(data[_HEADER:]):
            inner = _inflated(part) if kind == _COMPRESSED else [(kind, part)]
            for inner_kind, body in inner:
                if inner_kind == _MATRIX:
                    name, value = _matrix(body, 0)
                    if name == "boxes" and isinstance(value, list):
                        return value
        raise ValueError("no cell array 'boxes'")
    except (ValueError, struct.error, zlib.error) as error:
        raise InputError("cannot read the .mat file", where=path, got=str(error)) from error


def _inflated(part: bytes) -> list[tuple[int, bytes]]:
    """The elements in a compressed one, of bounded size."""
    plain = zlib.decompressobj().decompress(part, MAX_PLAIN_BYTES + 1)
    if len(plain) > MAX_PLAIN_BYTES:
        raise ValueError(f"more than {MAX_PLAIN_BYTES} bytes once decompressed")
    return list(_elements(plain))


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split into elements: a type and a length, then that many bytes, padded to 8; up to 4 bytes stand in the head."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        small = kind >> 16
        start, size, kind = (at + 4, small, kind & 0xFFFF) if small else (at + 8, size, kind)
        if start + size > len(data):
            raise ValueError("truncated")
        yield kind, data[start : start + size]
        at = at + 8 if small else start + size + (-size % 8 if kind != _COMPRESSED else 0)


def _matrix(body: bytes, depth: int) -> tuple[str, Any]:
    """Name and value of a matrix: a list for a cell, a dictionary for one struct, a list of numbers for an array."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    parts = list(_elements(body))
    if len(parts) < 3 or not parts[0][1]:
        return "", None
    kind, name, rest = parts[0][1][0], parts[2][1].decode("latin-1"), parts[3:]
    if kind == _CELL:
        return name, [_matrix(part, depth + 1)[1] for _, part in rest]
    if kind == _STRUCT:
        if len(rest) < 2 or not 0 < (width := struct.unpack("<i", rest[0][1])[0]) <= 256:
            raise ValueError("a damaged struct")
        text = rest[1][1]
        keys = [text[i : i + width].split(b"\0")[0].decode("latin-1") for i in range(0, len(text), width)]
        return name, {key: _matrix(part, depth + 1)[1] for key, (_, part) in zip(keys, rest[2:], strict=False)}
    if rest and rest[0][0] in _NUMBERS:
        return name, [float(v) for v in np.frombuffer(rest[0][1], _NUMBERS[rest[0][0]])]
    return name, None
