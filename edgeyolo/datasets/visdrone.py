"""VisDrone-DET: ``images/a.jpg`` and ``annotations/a.txt``, rows ``left,top,width,height,score,category,...``.

Category 0 (ignored regions), 11 (others) and rows with score 0 are not to be counted by the set's own rules: dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from edgeyolo.datasets.check import Label, Labelled
from edgeyolo.datasets.files import read_text, short
from edgeyolo.datasets.sample import Problem
from edgeyolo.errors import InputError

NAMES = (
    *("pedestrian", "people", "bicycle", "car", "van"),
    *("truck", "tricycle", "awning-tricycle", "bus", "motor"),
)


def read_visdrone(pictures: Iterable[Path], annotations: Path, problems: list[Problem]) -> Iterator[Labelled]:
    """Read the labels of ``pictures`` from the folder ``annotations``; a picture without a text is left out."""
    for picture in pictures:
        path = annotations / f"{picture.stem}.txt"
        try:
            text = read_text(path)
        except InputError as error:
            problems.append(Problem(picture.name, "unreadable labels", "left out", short(error.what)))
            continue
        rows = enumerate(text.splitlines(), 1)
        labels = (_label(f"{path}:{number}", row, problems) for number, row in rows if row.strip())
        yield Labelled(picture.name, picture, [label for label in labels if label])


def _label(where: str, row: str, problems: list[Problem]) -> Label | None:
    """Read one row."""
    try:
        x, y, w, h, score, kind = (int(word) for word in row.split(",")[:6])
        box = (float(x), float(y), float(x + w), float(y + h))
    except (ValueError, OverflowError):
        problems.append(Problem(where, "unreadable line", "dropped", short(row)))
        return None
    if kind in (0, 11) or score == 0:
        problems.append(Problem(where, "an ignored region", "dropped", short(row)))
        return None
    return Label(where, kind - 1, box)
