"""Board profiles as files: one TOML file per board in ``targets/TARGET/``, found by its name or read from a path.

What the keys mean is the business of ``edgeyolo/profile.py`` (FPGA) and ``edgeyolo/jetson.py``. For both, every key is
required and no other key is accepted, so that a typing error cannot pass for a default.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgeyolo.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

MAX_FILE_BYTES = 1 << 16

Rule = tuple[Any, ...] | range | re.Pattern[str]
"""What a key accepts: one of some values, a number within limits, or text of a form."""

Profile = TypeVar("Profile")


def list_boards() -> dict[str, tuple[str, ...]]:
    """List the boards of every target that has profiles."""
    return {target: tuple(sorted(boards)) for target, boards in sorted(_shipped().items())}


def _shipped() -> dict[str, dict[str, Traversable]]:
    found: dict[str, dict[str, Traversable]] = {}
    for folder in files("edgeyolo.targets").iterdir():
        if folder.is_dir():
            boards = {f.name[: -len(".toml")]: f for f in folder.iterdir() if f.name.endswith(".toml")}
            found.update({folder.name: boards} if boards else {})
    return found


def read_profile(target: str, board: str) -> tuple[str, object]:
    """Read a board's file.

    Args:
        target: such as ``fpga``.
        board: name of a shipped profile of that target, or the path of a TOML file (it ends in ``.toml``).

    Returns:
        The text, and where it stands for messages.

    Raises InputError for an unknown target or board (the known ones are listed) and for an unreadable file.
    """
    shipped = _shipped()
    if target not in shipped:
        raise InputError("no board profiles for this target", got=target, allowed=", ".join(sorted(shipped)))
    if board.endswith(".toml"):
        return _read_path(Path(board)), Path(board)
    if board not in shipped[target]:
        raise InputError(
            f"unknown board of target {target}",
            got=board,
            allowed=", ".join(sorted(shipped[target])),
            hint="for a board of your own give the path of a .toml file",
        )
    return shipped[target][board].read_text("utf-8"), f"targets/{target}/{board}.toml"


def _read_path(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise InputError("the profile is too large", where=path, allowed=f"at most {MAX_FILE_BYTES} bytes")
        return data.decode("utf-8")
    except (OSError, ValueError) as error:
        raise InputError("the profile cannot be read", where=path, got=error) from error


def parse_toml(text: str, where: object) -> dict[str, Any]:
    """The keys of a profile. Raises InputError where the text is not TOML."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError("the profile is not valid TOML", where=where, got=error) from error


def find_offences(
    data: Mapping[str, Any], kind: type[object], rules: Mapping[str, Rule], may_be_empty: Collection[str] = ()
) -> list[str]:
    """List every unknown, missing or ill-typed key and every value that is not allowed.

    Args:
        data: what the file has.
        kind: the dataclass to make of it; its fields are str, int, tuples of those, or tables of text.
        rules: what a key's value, or each item of its list, has to be.
        may_be_empty: the lists that may have no items.
    """
    kinds = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]
    found = [f"unknown key {key!r}" for key in data if key not in kinds]
    found += [f"missing key {key!r}" for key in kinds if key not in data]
    for key, annotation in kinds.items():
        if key in data and (text := _offence(key, annotation, data[key], rules.get(key), key in may_be_empty)):
            found.append(text)
    return found


def _offence(key: str, annotation: str, value: object, rule: Rule | None, may_be_empty: bool) -> str | None:
    """Say what is wrong with ``value`` under ``key``, if anything; ``annotation`` is that of the field."""
    if annotation.startswith("dict"):
        good = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
        return None if good else f"{key} must be a table of text, got {value!r}"
    element = str if "str" in annotation else int
    many = annotation.startswith("tuple")
    items = value if many and isinstance(value, list) else [value]
    if many and (not isinstance(value, list) or not (value or may_be_empty)):
        return f"{key} must be a list{'' if may_be_empty else ' that is not empty'}, got {value!r}"
    if any(type(item) is not element for item in items):
        return f"{key} must be {'a list of ' if many else ''}{element.__name__}, got {value!r}"
    if rule is not None and not all(_allows(rule, item) for item in items):
        return f"{key} = {value!r} is not among {_describe(rule)}"
    return None


def _allows(rule: Rule, item: Any) -> bool:
    return bool(rule.fullmatch(item)) if isinstance(rule, re.Pattern) else item in rule


def _describe(rule: Rule) -> str:
    if isinstance(rule, re.Pattern):
        return f"text of the form {rule.pattern}"
    return f"{rule[0]} to {rule[-1]}" if isinstance(rule, range) else ", ".join(map(str, rule))


def make_profile(
    kind: type[Profile], data: Mapping[str, Any], offences: Collection[str], where: object, example: str
) -> Profile:
    """The profile that ``data`` describes; lists become tuples.

    Raises InputError with all ``offences`` where there are any; ``example`` is a file to compare with.
    """
    if offences:
        raise InputError(
            "the target profile is not usable",
            where=where,
            got="; ".join(offences),
            hint=f"compare it with {example}",
        )
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()})
