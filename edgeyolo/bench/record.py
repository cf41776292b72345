"""RunRecord: one contender's measurement as one JSON line; files of them only grow (docs/run-records.md)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from edgeyolo.bench.stats import Spread
from edgeyolo.errors import InputError

SCHEMA = 1
MAX_LINE = 1 << 24
MAX_BYTES = 1 << 30
STAGES = ("pre", "infer", "decode", "nms", "total")
"""Of one frame: picture file to network pixels; the network; heads to boxes; suppression; all of it."""
STATUSES = ("ok", "failed", "stopped")


@dataclass(frozen=True)
class RunRecord:
    """What one contender did in one run.

    Args:
        run: identifies the run; its contenders ran interleaved.
        started: UTC, ISO 8601.
        status: ``ok``, ``failed`` (``reason`` says why) or ``stopped`` (the user interrupted; what there is counts).
        contender: label in tables, such as ``yf8 ort x1``.
        model: file or folder name; ``model_sha256`` of the file, or of the bundle's manifest.
        backend: which one, and its version.
        threads, batch: as asked.
        setting: thresholds: ``conf``, ``iou``, ``max_det``, ``nms`` (kind of overlap).
        frames, pictures: how many were measured, of how many different pictures.
        ms: stage -> figures of a frame in milliseconds, see ``STAGES`` and ``Spread``.
        fps: frames a second, one after the other: 1000 / mean total.
        load_ms, first_ms: opening the model; its first inference.
        rss_bytes: most memory that the process held; None where the system does not tell.
        artefact_bytes: what is shipped.
        candidates, kept: boxes above ``conf`` before suppression and after it, means over frames.
        ap50, ap: COCO's, where labelled pictures were given.
        ratio: to the run's first contender: ``value``, ``low``, ``high`` of the median total.
        totals_ms: every frame's total in order of time.
        rounds: how many frames each round had, in order.
        states: of the machine during the run: load, clock, temperature, one a round.
        machine: facts of the machine.
        reason: why it failed.
    """

    run: str
    started: str
    status: str
    contender: str
    model: str
    model_sha256: str
    backend: str
    backend_version: str
    threads: int
    batch: int
    setting: Mapping[str, Any]
    frames: int = 0
    pictures: int = 0
    ms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    fps: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    rss_bytes: int | None = None
    artefact_bytes: int = 0
    candidates: float | None = None
    kept: float | None = None
    ap50: float | None = None
    ap: float | None = None
    ratio: Mapping[str, float] | None = None
    totals_ms: tuple[float, ...] = ()
    rounds: tuple[int, ...] = ()
    states: tuple[Mapping[str, float | None], ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None

    def spread(self, stage: str) -> Spread | None:
        """The figures of one stage; None where it was not measured."""
        return Spread(**self.ms[stage]) if stage in self.ms else None

    def to_line(self) -> str:
        """One line of JSON with the schema's number first."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, separators=(",", ":")) + "\n"


def append_records(path: Path, records: Iterable[RunRecord]) -> None:
    """Add lines to a results file; those that are there stay, whatever happens.

    Raises InputError if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            for record in records:
                stream.write(record.to_line())
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise InputError("cannot write the results", where=path, got=error.strerror) from error


def read_records(path: Path) -> list[RunRecord]:
    """All records of a results file, which may come from anywhere.

    Raises InputError: missing, too large, not such a file, or of a newer schema; it names the line.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError("the results file is too large", where=path, allowed=f"{MAX_BYTES} bytes")
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError("cannot read the results", where=path, got=str(error)[:200]) from error
    records = [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise InputError("there are no results in this file", where=path, hint="edgeyolo benchmark --json writes some")
    return records


_NUMBER = (int, float)
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("run", "started", "status", "contender", "model", "model_sha256"), (str,)),
    **dict.fromkeys(("backend", "backend_version"), (str,)),
    **dict.fromkeys(("threads", "batch", "frames", "pictures", "artefact_bytes"), (int,)),
    **dict.fromkeys(("setting", "ms", "machine"), (dict,)),
    **dict.fromkeys(("fps", "load_ms", "first_ms", "candidates", "kept", "ap50", "ap"), (*_NUMBER, type(None))),
    **dict.fromkeys(("totals_ms", "rounds", "states"), (list,)),
    "rss_bytes": (int, type(None)),
    "ratio": (dict, type(None)),
    "reason": (str, type(None)),
}


def _parse(line: str, where: str) -> RunRecord:
    try:
        if len(line) > MAX_LINE:
            raise ValueError(f"{len(line)} characters")
        data = json.loads(line)
        if not isinstance(data, dict):
            raise ValueError("no JSON object")
        schema = data.pop("schema", None)
        if type(schema) is int and schema > SCHEMA:
            raise InputError(
                "the results are of a newer schema", where=where, got=schema, allowed=f"up to {SCHEMA}",
                hint="read them with a newer edgeyolo",
            )  # fmt: skip
        known = {f.name for f in fields(RunRecord)}
        if schema != SCHEMA or set(data) - known:
            raise ValueError(f"schema {schema}, unknown keys {sorted(set(data) - known)[:5]}")
        wrong = [key for key, value in data.items() if not isinstance(value, _KINDS[key]) or isinstance(value, bool)]
        if wrong or data.get("status") not in STATUSES:
            raise ValueError(f"wrong type: {', '.join(wrong[:5]) or 'status'}")
        if any(
            type(stage) is not dict or set(stage) != _SPREAD or not _numbers(stage) for stage in data["ms"].values()
        ):
            raise ValueError("wrong type: ms")
        if not all(_is_number(value) for value in data["totals_ms"]):
            raise ValueError("wrong type: totals_ms")
        frozen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return RunRecord(**frozen)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError("this is no line of a results file", where=where, got=str(error)[:200]) from error


_SPREAD = {f.name for f in fields(Spread)}


def _is_number(value: object) -> bool:
    return isinstance(value, _NUMBER) and not isinstance(value, bool)


def _numbers(stage: Mapping[str, object]) -> bool:
    return all(_is_number(value) for value in stage.values())
