"""COCO json: ``images``, ``annotations`` (``bbox`` = x y w h in pixels) and ``categories``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeyolo.datasets.check import Box, Label, Labelled
from edgeyolo.datasets.files import below, finite, short
from edgeyolo.datasets.sample import Problem
from edgeyolo.errors import InputError

MAX_SIDE = 1 << 26


def read_coco(
    data: dict[str, Any], path: Path, folder: Path, problems: list[Problem]
) -> tuple[tuple[str, ...], list[Labelled]]:
    """Class names in the order of their ids, and the labelled pictures below ``folder``.

    Crowds (``iscrowd``) are regions with many objects and no box of one: they are dropped. Raises InputError if the
    file has not the three lists.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            raise InputError("this is not a COCO file", where=path, got=f"no list {key!r}")
    categories = {
        entry["id"]: entry["name"]
        for entry in data["categories"]
        if isinstance(entry, dict) and type(entry.get("id")) is int and type(entry.get("name")) is str
    }
    pictures: dict[int, Labelled] = {}
    for number, entry in enumerate(data["images"]):
        picture = below(folder, entry.get("file_name")) if isinstance(entry, dict) else None
        if picture is None or type(entry.get("id")) is not int or entry["id"] in pictures:
            problems.append(Problem(f"{path}: images[{number}]", "unreadable entry", "left out", short(entry)))
            continue
        size = (entry.get("width"), entry.get("height"))
        known = all(type(side) is int and 0 < side <= MAX_SIDE for side in size)
        pictures[entry["id"]] = Labelled(entry["file_name"], picture, [], size=size if known else None)
    for number, entry in enumerate(data["annotations"]):
        where = f"{path}: annotations[{number}]"
        box = _box(entry)
        if box is None:
            problems.append(Problem(where, "unreadable entry", "dropped", short(entry)))
        elif type(entry.get("image_id")) is not int or entry["image_id"] not in pictures:
            problems.append(Problem(where, "labels without a picture", "dropped", short(entry.get("image_id"))))
        elif entry.get("iscrowd"):
            problems.append(Problem(where, "a crowd", "dropped"))
        else:
            kind = entry.get("category_id")
            name = categories.get(kind) if type(kind) is int else None
            pictures[entry["image_id"]].labels.append(Label(where, name or f"category {short(kind)}", box))
    return tuple(categories[key] for key in sorted(categories)), list(pictures.values())


def _box(entry: Any) -> Box | None:
    """The box of an annotation."""
    if not isinstance(entry, dict) or not isinstance(entry.get("bbox"), list) or len(entry["bbox"]) != 4:
        return None
    x, y, w, h = map(finite, entry["bbox"])
    return x, y, x + w, y + h
