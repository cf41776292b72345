"""YOLO txt trees: ``images/**/a.jpg`` with ``labels/**/a.txt``, or the text beside the picture, as Darknet has it too.

A line is ``class cx cy w h``, or ``class x y x y x y ...`` for a polygon, all shares of the picture's width and height
from 0 to 1. A picture without a text, or with an empty one, shows nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from edgeyolo.datasets.check import Label, Labelled
from edgeyolo.datasets.files import read_text, short
from edgeyolo.datasets.sample import Problem
from edgeyolo.errors import InputError

SLACK = 1e-3
"""How far a share may be off the range from 0 to 1 before it is taken for something else, such as pixels."""


def label_path(picture: Path) -> Path:
    """Where the labels of a picture are: the last ``images`` or ``JPEGImages`` in its path becomes ``labels``."""
    parts = list(picture.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] in ("images", "JPEGImages"):
            parts[i] = "labels"
            return Path(*parts).with_suffix(".txt")
    return picture.with_suffix(".txt")


def read_yolo(pictures: Iterable[Path], root: Path, problems: list[Problem]) -> Iterator[Labelled]:
    """Read the labels of ``pictures``; they are named by their paths below ``root``."""
    for picture in pictures:
        name = (picture.relative_to(root) if picture.is_relative_to(root) else Path(picture.name)).as_posix()
        path = label_path(picture)
        try:
            text = read_text(path) if path.exists() else ""
        except InputError as error:
            problems.append(Problem(str(path), "unreadable labels", "left out", short(error.what)))
            continue
        rows = enumerate(text.splitlines(), 1)
        parsed = (_label(f"{path}:{number}", row, problems) for number, row in rows if row.strip())
        yield Labelled(name, picture, [label for label in parsed if label], shares=True)


def orphans(pictures: Iterable[Path], labels: Path, problems: list[Problem]) -> None:
    """Report every text below the folder ``labels`` that belongs to no picture."""
    wanted = {label_path(picture) for picture in pictures}
    for path in sorted(labels.rglob("*.txt")):
        if path not in wanted and path.name != "classes.txt":
            problems.append(Problem(str(path), "labels without a picture", "dropped"))


def _label(where: str, row: str, problems: list[Problem]) -> Label | None:
    """Read one line."""
    try:
        kind, *numbers = (float(word) for word in row.split())
        polygon = len(numbers) >= 6 and len(numbers) % 2 == 0
        if not (len(numbers) == 4 or polygon) or not kind.is_integer():
            raise ValueError
    except ValueError:
        problems.append(Problem(where, "unreadable line", "dropped", short(row)))
        return None
    if any(v < -SLACK or v > 1 + SLACK for v in numbers):
        problems.append(Problem(where, "not from 0 to 1", "dropped", short(row)))
        return None
    if polygon:
        x, y = numbers[::2], numbers[1::2]
        return Label(where, int(kind), (min(x), min(y), max(x), max(y)))
    cx, cy, w, h = numbers
    return Label(where, int(kind), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
