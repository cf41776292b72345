"""RunRecord: one contender's measurement as one JSON line; files of them only grow (docs/run-records.md)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
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
SCENARIOS = ("SingleStream", "MultiStream", "Offline", "Server")
"""After MLPerf; ``scenarios.py`` says what each of them is."""

Rule = Callable[[Any], bool]


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
        scenario: how frames were asked for, see ``scenarios.SCENARIOS``; ``generator`` says who asked.
        frames, pictures: how many were measured, of how many different pictures.
        ms: stage -> figures of a frame in milliseconds, see ``STAGES`` and ``Spread``.
        query_ms: figures of whole queries in milliseconds, from the moment they were due; waiting counts.
        fps: frames a second: 1000 / mean total one after the other; those finished by the clock in other scenarios.
        load_ms, first_ms: opening the model; its first inference.
        rss_bytes: most memory that the process held; None where the system does not tell.
        artefact_bytes: what is shipped.
        candidates, kept: boxes above ``conf`` before suppression and after it, means over frames.
        curve: (candidates, median milliseconds of suppression), a point for every number of candidates.
        joules: a frame, of what ``energy`` names; where there are none ``energy`` says why.
        ap50, ap: COCO's, where labelled pictures were given; ``ap_setting`` says on which and with which thresholds.
        ratio: to the run's first contender: ``value``, ``low``, ``high`` of the median total.
        totals_ms: every frame's total in order of time.
        rounds: how many frames each round had, in order.
        states: of the machine during the run: seconds since its start, load, clock, temperature, one a round.
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
    scenario: str = "SingleStream"
    generator: str = ""
    frames: int = 0
    pictures: int = 0
    ms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    query_ms: Mapping[str, float] | None = None
    fps: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    rss_bytes: int | None = None
    artefact_bytes: int = 0
    candidates: float | None = None
    kept: float | None = None
    curve: tuple[tuple[float, float], ...] = ()
    joules: float | None = None
    energy: str = ""
    ap50: float | None = None
    ap: float | None = None
    ap_setting: Mapping[str, Any] | None = None
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
        return json.dumps({"schema": SCHEMA, **asdict(self)}, separators=(",", ":"), allow_nan=False) + "\n"


def append_records(path: Path, records: Iterable[RunRecord]) -> None:
    """Add lines to a results file; those that are there stay, whatever happens.

    All lines are one write, so that two runs may share a file; half a line that an earlier one left is ended first.
    Raises InputError if the file cannot be written. A disk that fills leaves half a line: it cannot be cut off, since
    the other run may have gone on behind it, but readers skip it.
    """
    data = "".join(record.to_line() for record in records).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as stream:
            if stream.seekable() and stream.seek(0, os.SEEK_END):
                stream.seek(-1, os.SEEK_END)
                data = (b"" if stream.read(1) == b"\n" else b"\n") + data
            while data:  # where only a part fits, the next attempt says why
                data = data[stream.write(data) :]
            with suppress(OSError):  # a pipe cannot be synchronised
                os.fsync(stream.fileno())
    except OSError as error:
        raise InputError("cannot write the results", where=path, got=error.strerror) from error


def check_results(path: Path) -> None:
    """Raise InputError if ``path`` cannot be a results file; nothing is written."""
    if path.is_dir() or not os.access(path if path.exists() else _existing(path.parent), os.W_OK):
        what = "a folder" if path.is_dir() else "no permission to write"
        raise InputError("cannot write the results", where=path, got=what, hint="name a file")


def _existing(folder: Path) -> Path:
    """The nearest folder that exists."""
    return folder if folder.exists() else _existing(folder.parent)


def read_records(path: Path) -> list[RunRecord]:
    """All records of a results file, which may come from anywhere.

    Half a line, which a run that was killed or a disk that was full leaves, is not one of them.
    Raises InputError: missing, too large, not such a file, or of a newer schema; it names the line.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError("the results file is too large", where=path, allowed=f"{MAX_BYTES} bytes")
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise InputError("cannot read the results", where=path, got=str(error)[:200]) from error
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            records += [parse_record(line, f"{path}, line {number}")] if line.strip() else []
        except InputError:
            if not _is_half(line):
                raise
    if not records:
        raise InputError("there are no results in this file", where=path, hint="edgeyolo benchmark --json writes some")
    return records


def _is_half(line: str) -> bool:
    """Whether this is the beginning of a record whose end is missing."""
    with suppress(ValueError, RecursionError):
        json.loads(line)
        return False
    return line.startswith(_BEGIN) or _BEGIN.startswith(line)


def parse_record(line: str, where: str) -> RunRecord:
    """One line of a results file. Raises InputError: damaged, of a newer schema, or no such line at all."""
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
        wrong = [key for key, value in data.items() if not _RULES[key](value)]
        if wrong:
            raise ValueError(f"wrong type: {', '.join(wrong[:5])}")
        return RunRecord(**{key: _frozen(value) for key, value in data.items()})
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError("this is no line of a results file", where=where, got=str(error)[:200]) from error


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _optional(rule: Rule) -> Rule:
    return lambda value: value is None or rule(value)


def _every(rule: Rule) -> Rule:
    return lambda value: isinstance(value, list) and all(map(rule, value))


def _having(keys: Iterable[str], rule: Rule) -> Rule:
    """An object with these keys at least, whose values are all as ``rule`` wants."""
    wanted = set(keys)
    return lambda value: isinstance(value, dict) and wanted <= set(value) and all(map(rule, value.values()))


def _setting(value: Any) -> bool:
    return isinstance(value, dict) and all(_number(value.get(key)) for key in ("conf", "iou", "max_det"))


def _stages(value: Any) -> bool:
    return _having((), _spread)(value) and (not value or set(value) == set(STAGES))


def _spread(value: Any) -> bool:
    return _having(_SPREAD, _number)(value) and set(value) == _SPREAD


def _point(value: Any) -> bool:
    return _every(_number)(value) and len(value) == 2


def _any_object(value: Any) -> bool:
    return isinstance(value, dict)


_BEGIN = '{"schema":'
_SPREAD = {f.name for f in fields(Spread)}
_RULES: dict[str, Rule] = {
    **dict.fromkeys(("run", "started", "contender", "model", "model_sha256"), _text),
    **dict.fromkeys(("backend", "backend_version", "generator", "energy"), _text),
    **dict.fromkeys(("threads", "batch", "frames", "pictures", "artefact_bytes"), _count),
    **dict.fromkeys(("fps", "load_ms", "first_ms", "candidates", "kept", "joules", "ap50", "ap"), _optional(_number)),
    "status": lambda value: value in STATUSES,
    "scenario": lambda value: value in SCENARIOS,
    "setting": _setting,
    "ms": _stages,
    "query_ms": _optional(_spread),
    "rss_bytes": _optional(_count),
    "curve": _every(_point),
    "ap_setting": _optional(_any_object),
    "ratio": _optional(_having(("value", "low", "high"), _number)),
    "totals_ms": _every(_number),
    "rounds": _every(_count),
    "states": _every(_having((), _optional(_number))),
    "machine": _any_object,
    "reason": _optional(_text),
}
"""What every key's value has to be: the file may come from anywhere."""
