"""Reading what others wrote: bounded, and with every failure an InputError."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from edgeyolo.errors import InputError

MAX_LABEL_BYTES = 1 << 22
"""Size limit of one picture's labels: 4 MiB."""

MAX_TABLE_BYTES = 1 << 29
"""Size limit of a file with the labels of a whole set: 512 MiB, a little more than COCO's train2017."""


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file of at most ``limit`` bytes. Raises InputError if it is missing, larger or no plain file."""
    try:
        if not path.is_file():
            raise InputError("this is not a file", where=path)
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise InputError("cannot read the file", where=path, got=str(error)) from error
    if len(data) > limit:
        raise InputError("the file is too large", where=path, got=path.stat().st_size, allowed=f"{limit} bytes")
    return data


def read_text(path: Path, limit: int = MAX_LABEL_BYTES) -> str:
    """The same as text, UTF-8."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("the file is not UTF-8 text", where=path, got=str(error)) from error


def read_json(path: Path) -> Any:
    """A JSON file of at most ``MAX_TABLE_BYTES``. Raises InputError if it is none."""
    try:
        return json.loads(read_text(path, MAX_TABLE_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError("the file is not JSON", where=path, got=str(error)) from error


def below(folder: Path, name: object) -> Path | None:
    """``folder / name``, or None if ``name`` is no relative path or leads out of the folder."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return None
    parts = PurePosixPath(name)
    return None if parts.is_absolute() or ".." in parts.parts else folder / parts


def finite(value: object) -> float:
    """A JSON number as float; anything else becomes NaN, which no check lets pass."""
    if type(value) not in (int, float):
        return float("nan")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return float("nan")


def short(value: object) -> str:
    """The beginning of a value from a file."""
    return (value if isinstance(value, str) else repr(value))[:60]


def split_folder(folder: Path, split: str | None) -> Path:
    """The sub-folder of a split (``val``, or ``val2017``); ``folder`` itself when none is asked for."""
    if split is None:
        return folder
    for pattern in (split, f"{split}[0-9]*"):
        found = sorted(p for p in folder.glob(pattern) if p.is_dir())
        if found:
            return found[0]
    have = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    raise InputError("the data set has no such split", where=folder, got=split, allowed=", ".join(have) or "none")
