"""Measure contenders in one run: A B C A B C, each in its own process and paused while another runs.

Warm-up lasts until the medians of its blocks settle. Then rounds: every contender measures one block, and the order
moves on by one each round, until every contender has its frames and its time. What disturbs the machine hits all alike.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edgeyolo.bench.contender import Contender, ContenderError, Process
from edgeyolo.bench.frames import Frame, Setting
from edgeyolo.bench.machine import machine_facts, machine_state
from edgeyolo.bench.record import STAGES, RunRecord
from edgeyolo.bench.stats import Spread, ratio, settled
from edgeyolo.bundle import sha256
from edgeyolo.errors import InputError
from edgeyolo.output import MANIFEST
from edgeyolo.progress import Log

BLOCK_SECONDS = 0.1
"""Of one contender in one round: long beside a switch of processes, short beside what disturbs a machine."""
MIN_ROUNDS = 5
"""Fewer do not show how much rounds differ."""


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Args:
        seconds: of every contender, at least.
        frames: of every contender, at least.
        warmup: seconds after which warming up ends, settled or not.
    """

    seconds: float = 5.0
    frames: int = 50
    warmup: float = 10.0

    def __post_init__(self) -> None:
        if self.frames < 1 or self.seconds < 0 or self.warmup < 0:
            raise InputError(
                "there would be nothing to measure", got=f"{self.frames} frames, {self.seconds:g} s",
                allowed="at least 1 frame",
            )  # fmt: skip


@dataclass
class _Running:
    """One contender and what was measured of it so far."""

    contender: Contender
    process: Process | None = None
    rounds: list[list[Frame]] = field(default_factory=list)
    states: list[dict[str, float | None]] = field(default_factory=list)
    settled: bool = False
    failed: str | None = None

    @property
    def alive(self) -> bool:
        return self.failed is None

    def attempt(self, action: Callable[[Process], None]) -> None:
        """Do something with the process; where that fails the contender is out."""
        assert self.process is not None
        try:
            action(self.process)
        except ContenderError as error:
            self.failed = error.what
            self.process.close()

    def seconds(self) -> float:
        return sum(frame.total for block in self.rounds for frame in block) / 1e3

    def frames(self) -> int:
        return sum(map(len, self.rounds))


def measure(
    contenders: Sequence[Contender], pictures: Sequence[Path], setting: Setting, plan: Plan, log: Log
) -> list[RunRecord]:
    """Run all contenders; one record each, in their order. An interruption keeps what there is.

    Args:
        contenders: the first is the reference of the ratios.
        pictures: files, at least one.
        setting: thresholds.
        plan: how long.
        log: receives stages and a progress bar.
    """
    running = [_Running(contender) for contender in contenders]
    started, stopped = datetime.now(timezone.utc).isoformat(timespec="seconds"), False
    try:
        _load(running, pictures, setting, log)
        _warm_up(running, plan, log)
        _rounds(running, plan, log)
    except KeyboardInterrupt:
        stopped = True
        log.warn("interrupted: what was measured so far is kept")
    finally:
        for one in running:
            if one.process is not None:
                one.process.close()
    shared = {"run": uuid.uuid4().hex[:12], "started": started, "machine": machine_facts(), "pictures": len(pictures)}
    return [_record(one, running[0], setting, shared, stopped=stopped) for one in running]


def _load(running: list[_Running], pictures: Sequence[Path], setting: Setting, log: Log) -> None:
    for one in log.track(running, "loading", len(running)):
        one.process = Process(one.contender)
        one.attempt(lambda process: process.load(pictures, setting))
        if one.failed is not None:
            log.warn(f"{one.contender.label} is out: {one.failed}")


def _warm_up(running: list[_Running], plan: Plan, log: Log) -> None:
    """Blocks in turn until each contender's medians settle."""
    medians: dict[int, list[float]] = {i: [] for i in range(len(running))}
    end = time.perf_counter() + plan.warmup * max(1, sum(one.alive for one in running))
    while time.perf_counter() < end and not all(one.settled or not one.alive for one in running):
        for i, one in enumerate(running):
            if one.alive and not one.settled:
                one.attempt(lambda process, i=i: medians[i].append(_median(process.run(1, BLOCK_SECONDS))))  # type: ignore[misc]
                one.settled = settled(medians[i])
    restless = [one.contender.label for one in running if one.alive and not one.settled]
    if restless and plan.warmup:
        log.warn(f"still changing after the warm-up: {', '.join(restless)}")


def _median(frames: Sequence[Frame]) -> float:
    return float(np.median([frame.total for frame in frames]))


def _rounds(running: list[_Running], plan: Plan, log: Log) -> None:
    for number in log.track(_until_done(running, plan), "measuring"):
        alive = [one for one in running if one.alive]
        turn = number % max(1, len(alive))
        for one in [*alive[turn:], *alive[:turn]]:
            one.attempt(lambda process, one=one: one.rounds.append(process.run(1, BLOCK_SECONDS)))  # type: ignore[misc]
            one.states.append(machine_state())


def _until_done(running: list[_Running], plan: Plan) -> Any:
    number = 0
    while any(one.alive for one in running):
        if number >= MIN_ROUNDS and all(
            one.frames() >= plan.frames and one.seconds() >= plan.seconds for one in running if one.alive
        ):
            return
        yield number
        number += 1


def _record(
    one: _Running, reference: _Running, setting: Setting, shared: dict[str, Any], *, stopped: bool
) -> RunRecord:  # fmt: skip
    c, loaded = one.contender, one.process.loaded if one.process is not None else {}
    frames = [frame for block in one.rounds for frame in block]
    ms = {stage: Spread.of([getattr(f, stage) for f in frames]).to_json() for stage in STAGES if frames}
    size, digest = _artefact(c.path)
    return RunRecord(
        status="failed" if one.failed else "stopped" if stopped else "ok", reason=one.failed,
        contender=c.label, model=c.path.name, model_sha256=digest, artefact_bytes=size,
        backend=c.backend, backend_version=str(loaded.get("version", "")), threads=c.threads, batch=1,
        setting={**asdict(setting), "nms": loaded.get("nms")}, frames=len(frames), ms=ms,
        fps=round(1000 / ms["total"]["mean"], 3) if frames else None,
        load_ms=loaded.get("load_ms"), first_ms=loaded.get("first_ms"),
        rss_bytes=one.process.rss if one.process is not None else None,
        candidates=float(np.mean([f.candidates for f in frames])) if frames else None,
        kept=float(np.mean([f.kept for f in frames])) if frames else None,
        ratio=_ratio(one, reference), totals_ms=tuple(round(f.total, 4) for f in frames),
        rounds=tuple(map(len, one.rounds)), states=tuple(one.states), **shared,
    )  # fmt: skip


def _ratio(one: _Running, reference: _Running) -> dict[str, float] | None:
    """Of the median total to the reference's, over the rounds that both have."""
    count = min(len(one.rounds), len(reference.rounds))
    if one is reference or count < MIN_ROUNDS:
        return None
    own, other = ([np.array([f.total for f in b]) for b in side.rounds[:count]] for side in (one, reference))
    return {key: round(value, 4) for key, value in asdict(ratio(own, other)).items()}


def _artefact(path: Path) -> tuple[int, str]:
    """Bytes of a model and its SHA-256: of a file itself, of a bundle its listed files and its manifest."""
    if path.is_dir():
        size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        return size, sha256((path / MANIFEST).read_bytes())
    return path.stat().st_size, sha256(path.read_bytes())
