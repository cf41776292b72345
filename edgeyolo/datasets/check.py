"""Checks labels and makes samples of them: the same rules for every format.

A label is *dropped* when its class is unknown, its box is no box (not finite, empty) or lies outside the picture, or
when it says what another has said; it is *repaired* (clipped) when its box reaches over the edge. A picture is *left
out* when it is missing or does not have the size that the labels were made for. Each such case is a ``Problem``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeyolo.datasets.files import short
from edgeyolo.datasets.sample import Dataset, Problem, Sample
from edgeyolo.detector import MAX_CLASSES
from edgeyolo.errors import InputError
from edgeyolo.images import image_size, load_image

Box = tuple[float, float, float, float]

ROUNDING = 0.01
"""Pixels that a box may reach over the edge without a word: what six decimals of a share of 8192 pixels round to. A
side shorter than this is none."""


class Label(NamedTuple):
    """One label as a file has it.

    Args:
        where: file and line or entry.
        kind: class, as a number or as a name.
        box: x0 y0 x1 y1, in pixels or as shares of the picture's size.
    """

    where: str
    kind: int | str
    box: Box


class Labelled(NamedTuple):
    """A picture and its labels as a file has them.

    Args:
        name: the sample's name.
        picture: the file.
        labels: any number.
        shares: boxes are shares of the picture's width and height.
        size: (width, height) that the labels are for, where the file says it.
    """

    name: str
    picture: Path
    labels: list[Label]
    shares: bool = False
    size: tuple[int, int] | None = None


def assemble(
    items: Iterable[Labelled],
    problems: list[Problem],
    *,
    own: tuple[str, ...] = (),
    given: tuple[str, ...] = (),
) -> Dataset:
    """Check every label and make the data set.

    Args:
        items: from a reader.
        problems: what the reader has met; the data set's list starts with these.
        own: class names that the set states, in the order of its class numbers.
        given: class names that the user wants, in this order; labels are matched by name when ``own`` is known.

    Raises:
        InputError: no picture is left, or no class name of the set is among those given.
    """
    pictures = list(items)
    names = given or own or _derived(pictures)
    if own and given and not set(own) & set(given):
        raise InputError(
            "none of the data set's classes is among the names given", got=short(own), allowed=short(given)
        )
    positions: dict[int | str, int] = {name: i for i, name in reversed(list(enumerate(names)))}
    source = own if own and given else names
    positions |= {i: positions[name] for i, name in enumerate(source) if name in positions}
    samples = [s for item in pictures if (s := _sample(item, positions, problems)) is not None]
    if not samples:
        first = "; ".join(f"{p.where}: {p.reason}" for p in problems[:3])
        raise InputError("no labelled picture is left", got=first or "an empty data set")
    return Dataset(names, tuple(samples), tuple(problems))


def _derived(pictures: list[Labelled]) -> tuple[str, ...]:
    """Names of a set that states none: its names in alphabetical order, or its numbers from 0 to the largest."""
    kinds = {label.kind for item in pictures for label in item.labels}
    words = sorted(kind for kind in kinds if isinstance(kind, str))[:MAX_CLASSES]
    numbers = [kind for kind in kinds if isinstance(kind, int) and 0 <= kind < MAX_CLASSES]
    return tuple(words or (str(i) for i in range(max(numbers, default=-1) + 1)))


def _sample(item: Labelled, positions: dict[int | str, int], problems: list[Problem]) -> Sample | None:
    """The checked sample, or None if the picture is left out."""
    try:
        size = image_size(item.picture)
    except InputError as error:
        reason = "unreadable picture" if item.picture.is_file() else "missing picture"
        got = f"{len(item.labels)} labels; {short(error.got or error.what)}"
        problems.append(Problem(item.name, reason, "left out", got))
        return None
    if item.size and item.size != size:
        got = f"{size[0]}x{size[1]}, {len(item.labels)} labels for {item.size[0]}x{item.size[1]}"
        problems.append(Problem(item.name, "the picture has another size than its labels say", "left out", got))
        return None
    if not item.labels:
        problems.append(Problem(item.name, "no labels for the picture", "kept"))
    boxes: list[Box] = []
    kinds: list[int] = []
    seen: set[tuple[int, Box]] = set()
    for label in item.labels:
        position = positions.get(label.kind)
        if position is None:
            problems.append(Problem(label.where, "unknown class", "dropped", short(label.kind)))
            continue
        box = _box(label, size if item.shares else (1, 1), size, problems)
        if box is None:
            continue
        if (position, box) in seen:
            problems.append(Problem(label.where, "said twice", "dropped", short(label.box)))
            continue
        seen.add((position, box))
        boxes.append(box)
        kinds.append(position)
    made = np.array(boxes, np.float32).reshape(-1, 4)
    return Sample(item.name, size, made, np.array(kinds, np.int64), partial(load_image, item.picture))


def _box(label: Label, unit: tuple[int, int], size: tuple[int, int], problems: list[Problem]) -> Box | None:
    """The box in pixels inside the picture, or None if there is none."""

    def problem(reason: str, action: str = "dropped") -> None:
        problems.append(Problem(label.where, reason, action, short(label.box)))

    if not all(map(math.isfinite, label.box)):
        problem("not a number")
        return None
    x0, y0, x1, y1 = (v * u for v, u in zip(label.box, unit * 2, strict=True))
    if min(x1 - x0, y1 - y0) < ROUNDING:
        problem("empty box")
        return None
    left, right = (min(max(x, 0.0), float(size[0])) for x in (x0, x1))
    top, bottom = (min(max(y, 0.0), float(size[1])) for y in (y0, y1))
    if min(right - left, bottom - top) < ROUNDING:
        problem("outside the picture")
        return None
    if max(left - x0, top - y0, x1 - right, y1 - bottom) > ROUNDING:
        problem("out of range", "repaired")
    return left, top, right, bottom
