"""Who has the page open, what is being measured, and the records that come of it.

A phone posts its frames while it measures, so that what it did is kept when it disappears. Whatever it posts is hostile
until checked (``posted.py``); model, hash, time and run are ours and never the phone's.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from edgeyolo.bench.frames import Setting
from edgeyolo.bench.record import RunRecord
from edgeyolo.errors import InputError
from edgeyolo.serve import posted
from edgeyolo.serve.posted import MAX_NAME, RefusedError
from edgeyolo.serve.results import Part, Run, records_of
from edgeyolo.serve.served import Served

MAX_FRAMES = 20_000
"""Of one run, over all of its models."""
MAX_SESSIONS = 200
MAX_RECORDS = 1000
"""Of one server, which has them all in memory until it ends."""
SILENCE_SECONDS = 15.0
"""A page that measures reports every second; one that is silent for so long has gone away."""
BACKENDS = ("wasm", "webgpu")
SOURCES = ("golden", "camera")
ENDS = ("ok", "failed", "stopped")
GONE = "the phone went away"


@dataclass
class Session:
    """An open page; ``system`` is what its browser says it runs on, ``device`` what the user calls it."""

    number: int
    address: str
    seen: float
    system: str = ""
    device: str = ""
    run: str | None = None

    @property
    def name(self) -> str:
        """As the log has it."""
        return f"#{self.number} {self.device or self.system or 'a browser'} at {self.address}"

    @property
    def label(self) -> str:
        """As records have it; a name that nobody gave is told from others by the page's number."""
        return self.device or f"{self.system or 'a browser'} (page {self.number})"


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
        self.say, self._keep, self._clock = say, keep, clock
        self._lock = threading.RLock()
        self._writing = threading.Lock()  # a slow disk makes only those wait who have a record to write
        self._sessions: dict[str, Session] = {}
        self._runs: dict[str, Run] = {}
        self._ends: dict[str, tuple[str, int]] = {}  # finished run -> status and number of frames
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
            return self._others(self._touch(posted.text(data, "session")))

    def start(self, data: dict[str, Any]) -> dict[str, Any]:
        """A page begins to measure; a run that it had begun before ends here, and is kept if it has frames."""
        with self._lock:
            key = self._touch(posted.text(data, "session"))
            models = posted.order(data, "models", len(self._models))
            backend, source = posted.choice(data, "backend", BACKENDS), posted.choice(data, "source", SOURCES)
            threads = posted.count(data, "threads")
            if not 1 <= threads <= 1024:
                raise RefusedError(400, "threads is out of range")
            system, device = posted.name(data, "system"), posted.name(data, "device", MAX_NAME)
            machine = {**posted.facts(data.get("machine")), "device": device or system or "a browser"}
            started = datetime.now(timezone.utc).isoformat(timespec="seconds")
            if len(self.records) + sum(len(run.parts) for run in self._runs.values()) + len(models) > MAX_RECORDS:
                raise RefusedError(503, f"this server has {MAX_RECORDS} records: start it again")
            parts = [Part(self._models[model]) for model in models]
            run = Run(key, parts, backend, threads, machine, started, camera=source == "camera")
            session = self._sessions[key]
            if session.run is not None and not self._runs[session.run].frames:
                self._drop(session.run)
            replaced = session.run
            if replaced is not None:
                self._end(replaced, "the page began another measurement")
            session.system, session.device = system[:MAX_NAME], device
            name = secrets.token_hex(6)
            self._runs[name], session.run = run, name
            self.say(f"{session.name}: measures {run.label}")
            answer = {"run": name, **self._others(key)}
        if replaced is not None:
            self._save()
        return answer

    def report(self, data: dict[str, Any]) -> dict[str, Any]:
        """Frames of a run since the last report; with a ``status`` they are the last, and the records are kept."""
        name = posted.text(data, "run")
        with self._lock:
            others = self._take(name, data)
        if others is not None:
            return others
        self._save()
        with self._lock:
            return self._answer(name)

    def _take(self, name: str, data: dict[str, Any]) -> dict[str, int] | None:
        """What a report says; None where the run has ended. Raises RefusedError or InputError."""
        first = posted.count(data, "first")
        status = None if data.get("status") is None else posted.choice(data, "status", ENDS)
        run = self._runs.get(name)
        rows = posted.rows(data.get("frames", []), len(self._models) if run is None else len(run.parts))
        if run is None:
            if self._ends.get(name) != (status, first + len(rows)):  # else the phone asks for an answer that was lost
                raise RefusedError(409, "this measurement has ended here: start another one")
            return None
        if first > len(run.frames):
            raise RefusedError(409, "frames are missing before these")
        rows = rows[len(run.frames) - first :]  # a report whose answer was lost comes again
        if len(run.frames) + len(rows) > MAX_FRAMES:
            raise RefusedError(413, f"more than {MAX_FRAMES} frames")
        posted.check_rounds(rows, run.last_round)
        self._touch(run.session)
        outcomes = posted.outcomes(data.get("outcomes"), len(run.parts))
        version = posted.text(data, "version") if data.get("version") is not None else run.version
        reason = posted.line(data, "reason")
        run.frames += rows
        run.version = version
        for part, outcome in zip(run.parts, outcomes, strict=True):
            for key, value in outcome.items():
                setattr(part, key, value)
        if status is None:
            return self._others(run.session)
        self._finish(name, status, reason)
        return None

    def leave(self, data: dict[str, Any]) -> dict[str, Any]:
        """A page is closed; what it has measured so far is kept."""
        with self._lock:
            key = self._touch(posted.text(data, "session"))
            session = self._sessions[key]
            left = session.run
            if left is not None:
                self.say(f"{session.name}: left after {len(self._runs[left].frames)} frames; they are kept")
                self._end(left, "the page was closed")
            del self._sessions[key]
        if left is not None:
            self._save()
        return {}

    def runs(self) -> list[Run]:
        """What is being measured now."""
        with self._lock:
            return list(self._runs.values())

    def sweep(self) -> None:
        """Keep what those measured that have gone away."""
        now = self._clock()  # whoever has come since is here, even if it waits for the lock
        with self._lock:
            gone = [name for name, run in self._runs.items() if now - self._seen(run) > SILENCE_SECONDS]
            for name in gone:
                run = self._runs[name]
                session = self._sessions[run.session]
                self.say(f"{session.name}: went away after {len(run.frames)} frames; they are kept")
                self._end(name, GONE)
        if gone:
            self._save()

    def close(self) -> None:
        """Keep what is being measured now, and what could not be kept before: the server stops."""
        with self._lock:
            for name in list(self._runs):
                self._end(name, "the server was stopped")
        self._save()

    def _end(self, name: str, reason: str) -> None:
        """Finish a run that nobody waits for; what makes no record is dropped, or it would come again forever."""
        try:
            self._finish(name, "stopped", reason)
        except Exception as error:  # whatever it is, the runs of others go on
            self.say(f"there is no record: {error}")
            self._drop(name)

    def _drop(self, name: str) -> None:
        run = self._runs.pop(name, None)
        if run is not None:
            self._sessions[run.session].run = None

    def _finish(self, name: str, status: str, reason: str | None) -> None:
        """Make the records of a run, which ``_save`` has to write afterwards. Raises InputError: it stays as it is."""
        run = self._runs[name]
        session = self._sessions[run.session]
        records = records_of(name, run, self._setting, self._pictures, (status, reason), session.label)
        self._drop(name)
        self._ends[name] = (status, len(run.frames))
        self.unsaved += records
        self.records += records
        for record in records:
            spread = record.spread("total")
            figures = f"median {spread.p50:.2f} ms" if spread else "nothing measured"
            why = f" ({record.reason})" if record.reason else ""
            self.say(f"{session.name}: {record.model} {record.status}, {record.frames} frames, {figures}{why}")

    def _save(self) -> None:
        """Keep all that is not kept yet; what cannot be waits for the next time. Never under the desk's own lock."""
        with self._writing:
            try:
                while self.unsaved:
                    self._keep(self.unsaved[0])
                    with self._lock:
                        del self.unsaved[0]
            except InputError as error:
                self.say(f"{len(self.unsaved)} not written yet: {error}")

    def _answer(self, name: str) -> dict[str, Any]:
        """What the phone gets for its last report. Raises RefusedError if the records are not kept yet."""
        if any(record.run == name for record in self.unsaved):
            raise RefusedError(500, "the server cannot write the results; who started it reads why")
        return {"records": [json.loads(record.to_line()) for record in self.records if record.run == name]}

    def _seen(self, run: Run) -> float:
        return self._sessions[run.session].seen

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
