"""Darknet's ``.data`` files (``train``, ``valid``, ``names``, ``classes``) and lists of pictures; labels: yolo.py."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edgeyolo.datasets.files import read_text, short
from edgeyolo.detector import read_names
from edgeyolo.errors import InputError
from edgeyolo.images import list_images

PARENTS = 4
"""Darknet is run from the folder that its paths start from; that many folders above a file are tried for it."""


class DataFile(NamedTuple):
    """Splits (``train``, ``val``) with their list files, and class names."""

    splits: dict[str, Path]
    names: tuple[str, ...]


def read_data_file(path: Path) -> DataFile:
    """Read a ``.data`` file.

    Raises InputError for a row without ``=``, a missing file, or names that are not as many as ``classes`` says.
    """
    values = {}
    for number, row in enumerate(read_text(path).splitlines(), 1):
        line = row.strip()
        if not line or line[0] in "#;":
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            raise InputError("this is not a row 'key = value'", where=f"{path}:{number}", got=short(row))
        values[key] = value
    splits = {name: _find(path, values[key]) for name, key in (("train", "train"), ("val", "valid")) if key in values}
    if not splits:
        raise InputError("the file names no pictures", where=path, allowed="train = LIST, valid = LIST")
    names = read_names(_find(path, values["names"])) if "names" in values else ()
    stated = values.get("classes")
    if names and stated is not None and stated != str(len(names)):
        raise InputError("classes and names disagree", where=path, got=f"classes {short(stated)}, {len(names)} names")
    return DataFile(splits, names)


def listed_pictures(path: Path) -> list[Path]:
    """The pictures in a list file, whose paths start from its folder or from one above it."""
    pictures, folder = list_images(path), path.parent
    if pictures[0].is_absolute() and not pictures[0].is_relative_to(folder):
        return pictures
    for base in _bases(path):
        if (base / pictures[0].relative_to(folder)).is_file():
            return [base / p.relative_to(folder) if p.is_relative_to(folder) else p for p in pictures]
    return pictures


def _bases(path: Path) -> list[Path]:
    return [path.parent, *list(path.absolute().parent.parents)[:PARENTS]]


def _find(path: Path, text: str) -> Path:
    """The file that ``text`` in ``path`` means."""
    try:
        found = next((base / text for base in _bases(path) if (base / text).exists()), None)
    except (OSError, ValueError):
        found = None
    if found is None:
        raise InputError("the file names another that does not exist", where=path, got=short(text))
    return found
