"""BDD100K json: a list of pictures, with ``name`` and ``labels`` (``category``, ``box2d`` = x1 y1 x2 y2, pixels)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeyolo.datasets.check import Label, Labelled
from edgeyolo.datasets.files import below, finite, short
from edgeyolo.datasets.sample import Problem


def read_bdd(data: list[Any], path: Path, folder: Path, problems: list[Problem]) -> Iterator[Labelled]:
    """The labelled pictures below ``folder``. Labels without a box (lanes, drivable areas) are dropped."""
    seen: set[str] = set()
    for number, entry in enumerate(data):
        where = f"{path}: [{number}]"
        picture = below(folder, entry.get("name")) if isinstance(entry, dict) else None
        rows = (entry.get("labels") or []) if picture else None
        if picture is None or not isinstance(rows, list) or entry["name"] in seen:
            problems.append(Problem(where, "unreadable entry", "left out", short(entry)))
            continue
        seen.add(entry["name"])
        labels = [_label(f"{where}.labels[{i}]", row, problems) for i, row in enumerate(rows)]
        yield Labelled(entry["name"], picture, [label for label in labels if label])


def _label(where: str, row: Any, problems: list[Problem]) -> Label | None:
    """Read one label."""
    if not isinstance(row, dict) or type(row.get("category")) is not str:
        problems.append(Problem(where, "unreadable entry", "dropped", short(row)))
        return None
    box = row.get("box2d")
    if not isinstance(box, dict):
        problems.append(Problem(where, "not a box", "dropped", short(row["category"])))
        return None
    x0, y0, x1, y1 = (finite(box.get(key)) for key in ("x1", "y1", "x2", "y2"))
    return Label(where, row["category"], (x0, y0, x1, y1))
