"""``data.yaml`` of a YOLO data set: the small part of YAML that such files use, read without a YAML library.

Of the top-level keys ``path``, ``train``, ``val``, ``test`` and ``nc`` are plain values, and ``names`` is a list ``[a,
b]`` (over any number of rows) or rows ``- a`` or ``0: a``. Other keys are passed over. Where one of these is written in
another way, the file is refused; the names can then be given in a .names file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from edgeyolo.datasets.files import read_text, short
from edgeyolo.detector import MAX_CLASSES
from edgeyolo.errors import InputError

SPLITS = ("train", "val", "test")
_KEY = re.compile(r"(?:(\w[\w./ -]*)|\"([^\"]*)\"|'([^']*)')\s*:(?:\s+(.*))?")
_DASH = re.compile(r"\s*-\s+(.*)")
_NUMBERED = re.compile(r"\s+(\d{1,6})\s*:\s+(.*)")
_ITEM = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^,\[\]{}"']+))\s*(?:,|$)""")


class DataYaml(NamedTuple):
    """Splits (name -> folder or list file) and class names."""

    splits: dict[str, Path]
    names: tuple[str, ...]


def read_data_yaml(path: Path) -> DataYaml:
    """Read the file. Raises InputError for anything beyond the subset above and when it names no pictures."""
    blocks = _blocks(read_text(path), path)
    plain = {key: _plain(" ".join(blocks[key]), path) for key in ("path", "nc", *SPLITS) if key in blocks}
    root = path.parent / plain.get("path", "")
    if not root.is_dir():
        root = path.parent
    splits = {key: root / plain[key] for key in SPLITS if plain.get(key)}
    if not splits:
        raise InputError("the file names no pictures", where=path, allowed="train: FOLDER, val: FOLDER")
    names = _names(blocks.get("names", []), path)
    if len(names) > MAX_CLASSES or (names and plain.get("nc", str(len(names))) != str(len(names))):
        raise InputError("nc and names disagree", where=path, got=f"nc {short(plain.get('nc'))}, {len(names)} names")
    return DataYaml(splits, names)


def _blocks(text: str, path: Path) -> dict[str, list[str]]:
    """Top-level keys with the rest of their row and the rows below it, without comments."""
    blocks: dict[str, list[str]] = {}
    rows: list[str] = []
    for number, row in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*$", "", row).rstrip()
        if not line or line in ("---", "..."):
            continue
        if match := _KEY.fullmatch(line):
            key = next(group for group in match.groups()[:3] if group is not None)
            rows = blocks[key] = [match[4]] if match[4] else []
        elif blocks:
            rows.append(line)
        else:
            raise _refused(f"{path}:{number}", row)
    return blocks


def _names(rows: list[str], path: Path) -> tuple[str, ...]:
    """Class names in one of the three ways; numbered ones must run from 0."""
    text = " ".join(rows).strip()
    if text.startswith("["):
        return _bracketed(text, path)
    dashed = [match[1] for row in rows if (match := _DASH.fullmatch(row))]
    numbered = {int(match[1]): match[2] for row in rows if (match := _NUMBERED.fullmatch(row))}
    if numbered and sorted(numbered) != list(range(len(numbered))):
        raise InputError("the class numbers do not run from 0", where=path, got=short(sorted(numbered)))
    names = dashed or [numbered[i] for i in range(len(numbered))]
    if len(names) != len(rows):
        raise _refused(path, text)
    return tuple(_plain(name, path) for name in names)


def _bracketed(text: str, path: Path) -> tuple[str, ...]:
    """The items of ``[a, 'b']``."""
    inner, items, at = text[1:-1].strip(), [], 0
    if not text.endswith("]"):
        raise _refused(path, text)
    while at < len(inner):
        match = _ITEM.match(inner, at)
        if match is None:
            raise _refused(path, inner[at:])
        items.append(next(group for group in match.groups() if group is not None).strip())
        at = match.end()
    return tuple(items)


def _plain(text: str, path: Path) -> str:
    """A word or a quoted text."""
    text = text.strip()
    if text and text[0] in "{[&*!|>%@`":
        raise _refused(path, text)
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _refused(where: object, got: str) -> InputError:
    return InputError(
        "this is beyond the part of YAML that is read here",
        where=where,
        got=short(got),
        hint="give the folder of pictures as the source and the class names in a .names file",
    )
