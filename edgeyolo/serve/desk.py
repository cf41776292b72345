"""Who has the page open, what is being measured, and the records that come of it.

A phone posts its frames while it measures, so that what it did is kept when it disappears. Whatever it posts is hostile
until checked; model, hash, time and run are ours and never the phone's.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeyolo.bench.frames import Setting
from edgeyolo.bench.record import STAGES, RunRecord, parse_record
from edgeyolo.bench.stats import Spread, medians_by_count
from edgeyolo.errors import InputError, printable
from edgeyolo.serve.served import Served

Doubles = npt.NDArray[np.float64]

MAX_FRAMES = 20_000
MAX_SESSIONS = 200
MAX_RECORDS = 1000
"""Of one server, which has them all in memory until it ends."""
MAX_FACTS = 40
MAX_TEXT = 300
MAX_REASON = 2000
MAX_NUMBER = 1e18
SILENCE_SECONDS = 15.0
"""A page that measures reports every second; one that is silent for so long has gone away."""
ROUND_MS = 100.0
"""Frames of a round last so long together, as in ``edgeyolo benchmark``."""
ROW = (*STAGES, "candidates", "kept")
"""What the page says of a frame."""
BACKENDS = ("wasm", "webgpu")
ENDS = ("ok", "failed", "stopped")
GONE = "the phone went away"


class RefusedError(Exception):
    """A request that is not answered with what it asked for: HTTP status and one sentence."""

    def __init__(self, status: int, text: str) -> None:
        self.status, self.text = status, text
        super().__init__(text)


@dataclass
class Session:
    """An open page."""

    number: int
    address: str
    seen: float
    device: str = ""
    run: str | None = None

    @property
    def name(self) -> str:
        """As the log has it."""
        return f"#{self.number} {self.device or 'a browser'} at {self.address}"


@dataclass
class Run:
    """A measurement that has begun."""

    session: str
    model: Served
    backend: str
    threads: int
    machine: dict[str, Any]
    started: str
    version: str = ""
    frames: list[list[float]] = field(default_factory=list)
    load_ms: float | None = None
    first_ms: float | None = None


class Desk:
    """Takes what pages post and hands out records.

    Args:
        models: what may be measured.
        setting: thresholds of all of them.
        pictures: how many different ones there are.
        keep: is called with every finished record; raises InputError if it cannot be kept, and is called again later.
        say: receives lines for the user.
        clock: seconds.
    """

    def __init__(
        self, models: Sequence[Served], setting: Setting, pictures: int, keep: Callable[[RunRecord], None],
        say: Callable[[str], None], clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._models, self._setting, self._pictures = models, setting, pictures
        self._keep, self._say, self._clock = keep, say, clock
        self._lock = threading.RLock()
        self._sessions: dict[str, Session] = {}
        self._runs: dict[str, Run] = {}
        self._count = 0
        self.records: list[RunRecord] = []
        self.unsaved: list[RunRecord] = []  # those of them that could not be kept yet

    def open(self, address: str) -> dict[str, Any]:
        """A page was opened."""
        with self._lock:
            self._forget()
            if len(self._sessions) >= MAX_SESSIONS:
                raise RefusedError(503, "too many pages are open")
            self._count += 1
            key = secrets.token_hex(8)
            self._sessions[key] = session = Session(self._count, address, self._clock())
            return {"session": key, "number": session.number, **self._others(key)}

    def alive(self, data: dict[str, Any]) -> dict[str, Any]:
        """A page that does not measure says that it is there."""
        with self._lock:
            return self._others(self._touch(_text(data, "session")))

    def start(self, data: dict[str, Any]) -> dict[str, Any]:
        """A page begins to measure; a run that it had begun before ends here."""
        with self._lock:
            key = self._touch(_text(data, "session"))
            model = _count(data, "model")
            if model >= len(self._models) or data.get("backend") not in BACKENDS:
                raise RefusedError(400, "no such model or backend")
            threads = _count(data, "threads")
            if not 1 <= threads <= 1024:
                raise RefusedError(400, "threads is out of range")
            if len(self.records) + len(self._runs) >= MAX_RECORDS:
                raise RefusedError(503, f"this server has taken {MAX_RECORDS} measurements: start it again")
            machine, started = _facts(data.get("machine")), datetime.now(timezone.utc).isoformat(timespec="seconds")
            run = Run(key, self._models[model], str(data["backend"]), threads, machine, started)
            session = self._sessions[key]
            if session.run is not None:
                self._end(session.run, "the page began another measurement")
            session.device = _text(data, "device")[:60]
            name = secrets.token_hex(6)
            self._runs[name], session.run = run, name
            self._say(f"{session.name}: measures {_label(run)}")
            return {"run": name, **self._others(key)}

    def report(self, data: dict[str, Any]) -> dict[str, Any]:
        """Frames of a run since the last report; with a ``status`` they are the last, and the record is kept."""
        with self._lock:
            name, status = _text(data, "run"), data.get("status")
            run = self._runs.get(name)
            if status not in (None, *ENDS):
                raise RefusedError(400, "no such status")
            rows, first = _rows(data.get("frames")), _count(data, "first")
            if run is None:
                return self._again(name, status, first + len(rows))
            if first > len(run.frames):
                raise RefusedError(409, "frames are missing before these")
            rows = rows[len(run.frames) - first :]  # a report whose answer was lost comes again
            if len(run.frames) + len(rows) > MAX_FRAMES:
                raise RefusedError(413, f"more than {MAX_FRAMES} frames")
            self._touch(run.session)
            times = {key: _milliseconds(data[key]) for key in ("load_ms", "first_ms") if data.get(key) is not None}
            texts = {key: _text(data, key) for key in ("golden", "version") if data.get(key) is not None}
            reason = None if data.get("reason") is None else _line(str(data["reason"])[:MAX_REASON])
            run.frames += rows
            run.load_ms, run.first_ms = times.get("load_ms", run.load_ms), times.get("first_ms", run.first_ms)
            run.version = texts.get("version", run.version)
            if "golden" in texts:
                run.machine["golden"] = texts["golden"]
            if status is None:
                return self._others(run.session)
            return self._answer(self._finish(name, status, reason))

    def _again(self, name: str, status: str | None, frames: int) -> dict[str, Any]:
        """The last report of a run has come before, but the phone got no answer. Raises RefusedError: it has not."""
        for record in self.records:
            if (record.run, record.status, record.frames) == (name, status, frames):
                self._save()
                return self._answer(record)
        raise RefusedError(409, "this measurement has ended here: start another one")

    def leave(self, data: dict[str, Any]) -> dict[str, Any]:
        """A page is closed; what it has measured so far is kept."""
        with self._lock:
            key = self._touch(_text(data, "session"))
            session = self._sessions[key]
            if session.run is not None:
                self._say(f"{session.name}: left after {len(self._runs[session.run].frames)} frames; they are kept")
                self._end(session.run, "the page was closed")
            del self._sessions[key]
            return {}

    def runs(self) -> list[Run]:
        """What is being measured now."""
        with self._lock:
            return list(self._runs.values())

    def sweep(self) -> None:
        """Keep what those measured that have gone away."""
        with self._lock:
            now = self._clock()
            for name, run in list(self._runs.items()):
                session = self._sessions[run.session]
                if now - session.seen > SILENCE_SECONDS:
                    self._say(f"{session.name}: went away after {len(run.frames)} frames; they are kept")
                    self._end(name, GONE)

    def close(self) -> None:
        """Keep what is being measured now, and what could not be kept before: the server stops."""
        with self._lock:
            for name in list(self._runs):
                self._end(name, "the server was stopped")
            self._save()

    def _end(self, name: str, reason: str) -> None:
        """Finish a run that nobody waits for."""
        try:
            self._finish(name, "stopped", reason)
        except InputError as error:
            self._say(f"there is no record: {error}")

    def _finish(self, name: str, status: str, reason: str | None) -> RunRecord:
        run = self._runs.pop(name)
        session = self._sessions[run.session]
        session.run = None
        device = f"{session.device or 'a browser'} (page {session.number})"
        record = _record(name, run, self._setting, self._pictures, (status, reason), device)
        self.records.append(record)
        self.unsaved.append(record)
        spread = record.spread("total")
        figures = f"median {spread.p50:.2f} ms" if spread else "nothing measured"
        self._say(f"{session.name}: {status}, {record.frames} frames, {figures}{f' ({reason})' if reason else ''}")
        self._save()
        return record

    def _save(self) -> None:
        """Keep all that is not kept yet; what cannot be waits for the next time."""
        try:
            while self.unsaved:
                self._keep(self.unsaved[0])
                del self.unsaved[0]
        except InputError as error:
            self._say(f"{len(self.unsaved)} not written yet: {error}")

    def _answer(self, record: RunRecord) -> dict[str, Any]:
        """What the phone gets for its last report. Raises RefusedError if the record is not kept yet."""
        if any(one is record for one in self.unsaved):
            raise RefusedError(500, "the server cannot write the results; who started it reads why")
        return {"record": json.loads(record.to_line())}

    def _touch(self, key: str) -> str:
        session = self._sessions.get(key)
        if session is None:
            raise RefusedError(409, "this page is not known any more: reload it")
        session.seen = self._clock()
        return key

    def _others(self, key: str) -> dict[str, int]:
        """How many other pages are open, and how many of them measure."""
        now = self._clock()
        there = [s for k, s in self._sessions.items() if k != key and now - s.seen <= SILENCE_SECONDS]
        return {"others": len(there), "measuring": sum(s.run is not None for s in there)}

    def _forget(self) -> None:
        """Drop the sessions that have been silent for long; those with a run stay until it is swept."""
        limit = self._clock() - 20 * SILENCE_SECONDS
        self._sessions = {k: s for k, s in self._sessions.items() if s.seen >= limit or s.run is not None}


def _label(run: Run) -> str:
    return f"{run.model.name} ort-web {run.backend} x{run.threads}"


def _record(
    name: str, run: Run, setting: Setting, pictures: int, end: tuple[str, str | None], device: str
) -> RunRecord:  # fmt: skip
    """The record as every other device's; it is read back by the rules of the results file. Raises InputError."""
    columns = dict(zip(ROW, np.array(run.frames, np.float64).T, strict=True)) if run.frames else {}
    totals = columns.get("total", np.zeros(0))
    record = RunRecord(
        run=name, started=run.started, status=end[0], reason=end[1],
        contender=f"{_label(run)} on {device}", model=run.model.name,
        model_sha256=run.model.sha256, artefact_bytes=run.model.artefact_bytes,
        backend=f"ort-web {run.backend}", backend_version=run.version, threads=run.threads, batch=1,
        setting={
            "conf": setting.conf, "iou": setting.iou, "max_det": setting.max_det, "nms": run.model.detector.nms_kind,
        },
        frames=len(run.frames), pictures=pictures,
        ms={stage: Spread.of(columns[stage]).to_json() for stage in STAGES} if columns else {},
        fps=round(1000 / float(totals.mean()), 3) if columns and totals.mean() > 0 else None,
        load_ms=run.load_ms, first_ms=run.first_ms,
        candidates=float(columns["candidates"].mean()) if columns else None,
        kept=float(columns["kept"].mean()) if columns else None,
        curve=medians_by_count(columns["candidates"], columns["nms"]) if columns else (),
        energy="a browser does not tell", totals_ms=tuple(round(float(t), 4) for t in totals),
        rounds=_rounds(totals.tolist()), machine=run.machine,
    )  # fmt: skip
    return parse_record(record.to_line(), "what a phone sent")


def _rounds(totals: Sequence[float]) -> tuple[int, ...]:
    """Cut the frames into rounds that last ``ROUND_MS`` at least."""
    counts, count, spent = [], 0, 0.0
    for total in totals:
        count, spent = count + 1, spent + total
        if spent >= ROUND_MS:
            counts.append(count)
            count, spent = 0, 0.0
    return tuple([*counts, count] if count else counts)


def _text(data: dict[str, Any], key: str) -> str:
    value = data.get(key)
    if type(value) is not str or len(value) > MAX_TEXT or not value.isprintable():
        raise RefusedError(400, f"{key} is not a text of at most {MAX_TEXT} characters")
    return value


def _count(data: dict[str, Any], key: str) -> int:
    value = data.get(key)
    if type(value) is not int or value < 0:
        raise RefusedError(400, f"{key} is not a number from 0 on")
    return value


def _line(text: str) -> str:
    """On one line, and without what a terminal obeys."""
    return printable(text).replace("\n", " ")


def _milliseconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1e7:
        raise RefusedError(400, "a time is no number of milliseconds")
    return float(value)


def _rows(value: Any) -> list[list[float]]:
    """Frames as the page sends them, each as ``ROW`` says."""
    if value is None:
        return []
    if type(value) is not list or any(type(row) is not list or len(row) != len(ROW) for row in value):
        raise RefusedError(400, f"frames are not lists of {', '.join(ROW)}")
    return [[_milliseconds(figure) for figure in row] for row in value]


def _facts(value: Any) -> dict[str, Any]:
    """What the phone says of itself: a few words and numbers."""
    if type(value) is not dict or len(value) > MAX_FACTS:
        raise RefusedError(400, f"machine is not an object of at most {MAX_FACTS} facts")
    for key, fact in value.items():
        number = type(fact) in (int, float, bool) and abs(fact) <= MAX_NUMBER
        text = type(fact) is str and len(fact) <= MAX_TEXT and fact.isprintable()
        if len(key) > MAX_TEXT or not key.isprintable() or not (fact is None or number or text):
            raise RefusedError(400, "a fact of the machine is neither a short text nor a number")
    return dict(value)
