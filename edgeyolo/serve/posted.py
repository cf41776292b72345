"""What phones post, checked: all of it is hostile until it has come through here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeyolo.bench.record import STAGES
from edgeyolo.errors import printable

MAX_FACTS = 40
MAX_TEXT = 300
MAX_NAME = 60
"""Characters of what the user calls a device."""
MAX_REASON = 2000
MAX_NUMBER = 1e18
ROW = ("model", "round", *STAGES, "candidates", "kept")
"""What the page says of a frame: which of the run's models measured it, in which round, and the figures."""

Row = list[float]


class RefusedError(Exception):
    """A request that is not answered with what it asked for: HTTP status and one sentence."""

    def __init__(self, status: int, text: str) -> None:
        self.status, self.text = status, text
        super().__init__(text)


def text(data: dict[str, Any], key: str, most: int = MAX_TEXT) -> str:
    """A printable text. Raises RefusedError."""
    value = data.get(key)
    if type(value) is not str or len(value) > most or not value.isprintable():
        raise RefusedError(400, f"{key} is not a text of at most {most} printable characters")
    return value


def name(data: dict[str, Any], key: str, most: int = MAX_TEXT) -> str:
    """A name as people type it; what does not print, such as an emoji's joiner, is a space. Raises RefusedError."""
    value = data.get(key)
    if type(value) is not str or len(value) > most:
        raise RefusedError(400, f"{key} is not a text of at most {most} characters")
    return _spaced(value)


def _spaced(value: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def count(data: dict[str, Any], key: str) -> int:
    """A number from 0 on. Raises RefusedError."""
    value = data.get(key)
    if type(value) is not int or value < 0:
        raise RefusedError(400, f"{key} is not a number from 0 on")
    return value


def choice(data: dict[str, Any], key: str, allowed: Sequence[str]) -> str:
    """One of some words. Raises RefusedError."""
    value = data.get(key)
    if type(value) is not str or value not in allowed:
        raise RefusedError(400, f"{key} is none of {', '.join(allowed)}")
    return value


def line(data: dict[str, Any], key: str) -> str | None:
    """Any text, on one line and without what a terminal obeys; None where there is none."""
    return None if data.get(key) is None else printable(str(data[key])[:MAX_REASON]).replace("\n", " ")


def order(data: dict[str, Any], key: str, models: int) -> list[int]:
    """Which of so many models are measured, in their order, each once. Raises RefusedError."""
    value = data.get(key)
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        value = []
    if not value or len(set(value)) < len(value) or not set(value) <= set(range(models)):
        raise RefusedError(400, f"{key} is not a list of different models that are here")
    return value


def milliseconds(value: Any) -> float:
    """Rounded as the page rounds them, so that none is too small to divide by. Raises RefusedError."""
    if type(value) not in (int, float) or not 0 <= value <= 1e7:
        raise RefusedError(400, "a time is no number of milliseconds")
    return round(float(value), 4)


def rows(value: Any, models: int) -> list[Row]:
    """Frames as the page sends them, each as ``ROW`` says, of a run with so many models. Raises RefusedError."""
    if type(value) is not list or any(type(row) is not list or len(row) != len(ROW) for row in value):
        raise RefusedError(400, f"frames are not lists of {', '.join(ROW)}")
    if any(type(row[0]) is not int or type(row[1]) is not int or not 0 <= row[0] < models for row in value):
        raise RefusedError(400, "a frame does not say which model measured it, in which round")
    return [[milliseconds(figure) for figure in row] for row in value]


def check_rounds(frames: Sequence[Row], before: int) -> None:
    """Rounds follow one another, ``before`` being the last one so far, -1 if there is none. Raises RefusedError."""
    last = float(before)
    for row in frames:
        if row[1] not in (last, last + 1):
            raise RefusedError(400, "a round is missing before this one")
        last = row[1]


def outcomes(value: Any, models: int) -> list[dict[str, Any]]:
    """What is known of each of a run's models besides its frames: checked, and only what there is.

    ``load_ms`` and ``first_ms`` in milliseconds, ``golden`` is the verdict, ``failed`` why it is out. Raises
    RefusedError.
    """
    if value is None:
        return [{} for _ in range(models)]
    if type(value) is not list or len(value) != models or any(type(one) is not dict for one in value):
        raise RefusedError(400, "outcomes is not a list of objects, one for each model")
    found: list[dict[str, Any]] = []
    for one in value:
        times = {key: milliseconds(one[key]) for key in ("load_ms", "first_ms") if one.get(key) is not None}
        texts = {"golden": text(one, "golden")} if one.get("golden") is not None else {}
        failed = line(one, "failed")
        found.append({**times, **texts, **({} if failed is None else {"failed": failed})})
    return found


def facts(value: Any) -> dict[str, Any]:
    """What the phone says of itself: a few words and numbers. Raises RefusedError."""
    if type(value) is not dict or len(value) > MAX_FACTS:
        raise RefusedError(400, f"machine is not an object of at most {MAX_FACTS} facts")
    for key, fact in value.items():
        number = type(fact) in (int, float, bool) and abs(fact) <= MAX_NUMBER
        words = type(fact) is str and len(fact) <= MAX_TEXT
        if len(key) > MAX_TEXT or not key.isprintable() or not (fact is None or number or words):
            raise RefusedError(400, "a fact of the machine is neither a short text nor a number")
    return {key: _spaced(fact) if type(fact) is str else fact for key, fact in value.items()}
