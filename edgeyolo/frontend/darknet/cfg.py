"""Darknet's cfg text: sections of ``key=value`` lines, read by Darknet's own rules.

All spaces and tabs vanish, even inside a line; a line that starts with ``#`` or ``;`` is a comment; section names have
aliases; the first of duplicate keys wins; text after a number is ignored. Source: ``read_cfg`` in AlexeyAB/darknet
src/parser.c and ``read_option`` in src/option_list.c.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeyolo.errors import InputError

MAX_CFG_BYTES = 4 << 20
"""Larger than any cfg in circulation by a factor of 50."""
MAX_SECTIONS = 4096
MAX_LIST = 256
"""Entries of a list such as ``layers=`` or, in pairs, ``anchors=``."""
MAX_INT = 2**31 - 1

_ALIASES = {
    "network": "net",
    "conv": "convolutional",
    "max": "maxpool",
    "avg": "avgpool",
    "local_avg": "local_avgpool",
    "conn": "connected",
    "soft": "softmax",
    "silence": "empty",
    "normalization": "lrn",
}
_INTEGER = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_BLANKS = str.maketrans("", "", " \t\r\n")


@dataclass(frozen=True)
class Option:
    """The text after ``=`` without blanks, and its line number (from 1)."""

    value: str
    line: int


@dataclass(frozen=True)
class Section:
    """One ``[kind]`` with its options.

    Args:
        kind: the name without brackets, aliases resolved.
        index: the layer number as Darknet counts: [net] is -1, the first layer 0.
        line: line number of the bracket.
        options: the first occurrence of every key.
        ignored: lines with no value, which Darknet ignores.
        file: where the text came from.
    """

    kind: str
    index: int
    line: int
    options: Mapping[str, Option]
    ignored: tuple[int, ...] = ()
    file: str = "cfg"

    def place(self, key: str | None = None) -> str:
        """Section number, name and line of ``key`` (or of the section) for messages."""
        option = self.options.get(key) if key else None
        name = "[net]" if self.index < 0 else f"section {self.index} [{self.kind}]"
        return f"line {option.line if option else self.line}, {name}"

    def where(self, key: str | None = None) -> str:
        """File and place for messages."""
        return f"{self.file}, {self.place(key)}"


def read_bytes(path: Path, what: str, limit: int) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes. Raises InputError otherwise."""
    try:
        if not path.is_file():
            raise InputError(f"the {what} is not a file", where=path, hint="check the path")
        size = path.stat().st_size
        if size > limit:
            raise InputError(f"the {what} is too large", where=path, got=f"{size} bytes", allowed=f"at most {limit}")
        with path.open("rb") as file:
            return file.read(limit)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"the {what} cannot be read", where=path, got=str(error)) from error


def read_cfg(path: Path) -> list[Section]:
    """The sections of a cfg file; see ``parse_cfg``. Comments may be in any encoding."""
    data = read_bytes(path, "cfg", MAX_CFG_BYTES)
    if b"\0" in data:
        raise InputError("the cfg is not a text file", where=path, hint="give the .cfg, and the .weights as --weights")
    return parse_cfg(data.decode("utf-8-sig", errors="replace"), str(path))


def parse_cfg(text: str, where: str) -> list[Section]:
    """Split cfg text into its sections, [net] first.

    Args:
        text: the whole file.
        where: the file's name for messages.

    Raises:
        InputError: too large, an option before the first section, no [net] at the start.
    """
    if len(text) > MAX_CFG_BYTES:
        raise InputError("the cfg is too large", where=where, got=len(text), allowed=f"at most {MAX_CFG_BYTES} bytes")
    sections: list[Section] = []
    options: dict[str, Option] = {}
    ignored: list[int] = []

    def close() -> None:
        if sections:
            last = sections.pop()
            sections.append(Section(last.kind, last.index, last.line, dict(options), tuple(ignored), where))
        options.clear()
        ignored.clear()

    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.translate(_BLANKS)
        if not line.isprintable():  # what reaches a message must not steer a terminal
            line = "".join(c if c.isprintable() else "?" for c in line)
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            close()
            sections.append(Section(_kind(line), len(sections) - 1, number, {}, (), where))
            if len(sections) > MAX_SECTIONS:
                raise InputError("the cfg has too many sections", where=where, allowed=f"at most {MAX_SECTIONS}")
            continue
        if not sections:
            raise InputError("an option before the first section", where=f"{where}, line {number}", got=line[:80])
        key, _, value = line.partition("=")
        if not value:
            ignored.append(number)
        else:
            options.setdefault(key, Option(value, number))
    close()
    if not sections or sections[0].kind != "net":
        got = f"[{sections[0].kind}]" if sections else "no section"
        raise InputError("the first section must be [net]", where=where, got=got, hint="is this a Darknet cfg?")
    return sections


def _kind(line: str) -> str:
    name = line[1:-1] if line.endswith("]") else line
    return _ALIASES.get(name, name)


def integer(section: Section, key: str, default: int, lo: int = -MAX_INT, hi: int = MAX_INT) -> int:
    """An integer option as C's atoi reads it. Raises InputError where it has no digits or is out of lo..hi."""
    option = section.options.get(key)
    if option is None:
        return default
    return _to_int(section, key, option.value, lo, hi)


def real(section: Section, key: str, default: float) -> float:
    """A finite number as C's atof reads it. Raises InputError where there is none."""
    option = section.options.get(key)
    return default if option is None else _to_float(section, key, option.value)


def text(section: Section, key: str, default: str) -> str:
    """A word option, verbatim."""
    option = section.options.get(key)
    return default if option is None else option.value


def integers(section: Section, key: str) -> tuple[int, ...]:
    """A comma-separated list of integers, () if the key is missing. Raises InputError as ``integer`` does."""
    return tuple(_to_int(section, key, item, -MAX_INT, MAX_INT) for item in _items(section, key))


def reals(section: Section, key: str) -> tuple[float, ...]:
    """A comma-separated list of finite numbers, () if the key is missing."""
    return tuple(_to_float(section, key, item) for item in _items(section, key))


def _items(section: Section, key: str) -> list[str]:
    option = section.options.get(key)
    if option is None:
        return []
    items = option.value.split("#", 1)[0].rstrip(",").split(",", 2 * MAX_LIST)
    if len(items) > 2 * MAX_LIST:
        raise InputError(f"{key} has too many entries", where=section.where(key), allowed=f"at most {2 * MAX_LIST}")
    return items


def _to_int(section: Section, key: str, value: str, lo: int, hi: int) -> int:
    match = _INTEGER.match(value)
    if match is None:
        raise InputError(f"{key} is not an integer", where=section.where(key), got=value[:80])
    digits = match.group().lstrip("+-0") or "0"  # never int() on text of unbounded length
    number = int(digits) if len(digits) <= 10 else MAX_INT + 1
    number = -number if value[0] == "-" else number
    if not lo <= number <= hi:
        raise InputError(f"{key} is out of range", where=section.where(key), got=value[:80], allowed=f"{lo} to {hi}")
    return number


def _to_float(section: Section, key: str, value: str) -> float:
    match = _FLOAT.match(value)
    if match is None or not math.isfinite(float(match.group())):
        raise InputError(f"{key} is not a finite number", where=section.where(key), got=value[:80])
    return float(match.group())
