"""What else differs between two records of one contender: model, versions, machine, sizes, accuracy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from edgeyolo.bench.record import RunRecord

Value = str | int | float | None

ACCURACY = ("AP50", "AP")
MACHINE = ("system", "machine", "cpu", "cpus", "cpu_flags", "governor")
"""Facts that must be equal for a difference in time to be one of the software."""
NOTICEABLE = {
    **dict.fromkeys(("load_ms", "first_ms"), 1.5),
    **dict.fromkeys(("rss_bytes", "candidates", "kept", "joules"), 1.1),
    "artefact_bytes": 1.0,
}
"""Factors beyond which a figure has changed. Opening and the first inference happen once a run, so they vary most."""


@dataclass(frozen=True)
class Change:
    """Something that has one value in a and another in b."""

    what: str
    a: Value
    b: Value

    def __str__(self) -> str:
        """``artefact_bytes 1,234 -> 2,000``; accuracies with their difference."""
        if self.what in ACCURACY and isinstance(self.a, float) and isinstance(self.b, float):
            return f"{self.what} {self.a:.4f} -> {self.b:.4f} ({self.b - self.a:+.4f})"
        return f"{self.what} {_shown(self.a)} -> {_shown(self.b)}"


def changes(a: RunRecord, b: RunRecord) -> tuple[Change, ...]:
    """What a reader of a ratio has to know of one contender; AP always where both have it."""
    found = [
        Change("model", a.model_sha256[:12], b.model_sha256[:12]),
        Change("backend", a.backend_version, b.backend_version),
        Change("generator", a.generator, b.generator),
    ]
    found = [change for change in found if change.a and change.b and change.a != change.b]
    for key, factor in NOTICEABLE.items():
        before, after = getattr(a, key), getattr(b, key)
        same = key != "joules" or a.energy == b.energy
        if before is not None and after is not None and same and _apart(before, after, factor):
            found.append(Change(key, before, after))
    return (*found, *_accuracy(a, b))


def _accuracy(a: RunRecord, b: RunRecord) -> list[Change]:
    if a.ap is None or b.ap is None:
        return []
    if a.ap_setting != b.ap_setting:
        return [Change("no AP, it was scored on", _value(a.ap_setting), _value(b.ap_setting))]
    pairs = zip(ACCURACY, (a.ap50, a.ap), (b.ap50, b.ap), strict=True)
    return [Change(what, float(x), float(y)) for what, x, y in pairs if x is not None and y is not None]


def _apart(before: float, after: float, factor: float) -> bool:
    low, high = sorted((before, after))
    return high > low * factor if low > 0 else high != low


def differing_machines(pairs: Iterable[tuple[RunRecord, RunRecord]]) -> tuple[Change, ...]:
    """Facts of the machine that differ in any pair; of lists, such as flags, what only one side has."""
    return _unique(pairs, lambda r: {key: r.machine.get(key) for key in MACHINE})


def differing_software(pairs: Iterable[tuple[RunRecord, RunRecord]]) -> tuple[Change, ...]:
    """Versions that differ in any pair: Python, packages, this tool's revision."""

    def versions(record: RunRecord) -> dict[str, Any]:
        packages = record.machine.get("packages")
        own = {key: record.machine.get(key) for key in ("python", "git")}
        return {**(packages if isinstance(packages, dict) else {}), **own}

    return _unique(pairs, versions)


def _unique(
    pairs: Iterable[tuple[RunRecord, RunRecord]], facts: Callable[[RunRecord], dict[str, Any]]
) -> tuple[Change, ...]:
    found: dict[Change, None] = {}
    for a, b in pairs:
        before, after = facts(a), facts(b)
        for key in sorted(before.keys() | after.keys()):
            x, y = before.get(key), after.get(key)
            if x != y:
                found[Change(key, _value(x, y), _value(y, x))] = None
    return tuple(found)


def _value(value: Any, other: Any = None) -> Value:
    """JSON from anywhere as one plain value."""
    if isinstance(value, list) and isinstance(other, list):
        missing = {json.dumps(item) for item in other}
        return " ".join(str(item) for item in value if json.dumps(item) not in missing) or None
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True)


def _shown(value: Value) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value if len(value) <= 60 else f"{value[:60]}..."
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def busy(record: RunRecord) -> str | None:
    """Where the machine had more to do than it has processors: the load, which says that times measure other work."""
    loads = [load for state in record.states if (load := state.get("load")) is not None]
    cpus = record.machine.get("cpus")
    if not loads or not isinstance(cpus, int) or median(loads) <= cpus:
        return None
    return f"load {median(loads):.1f} on {cpus} processors"
