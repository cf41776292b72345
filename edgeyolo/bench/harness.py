"""Measure contenders in one run: A B C A B C, each in its own process and paused while another runs.

Warm-up lasts until the medians of its blocks settle. Then rounds: every contender measures one block of the same
pictures, and the order moves on by one each round, until there are enough frames and time. What disturbs the machine
hits all alike, and a picture that is slow to decode is in everybody's block.
"""

from __future__ import annotations

import math
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edgeyolo.bench.backends import KINDS, Device
from edgeyolo.bench.contender import Block, Contender, ContenderError, Process
from edgeyolo.bench.energy import Meter
from edgeyolo.bench.machine import machine_state
from edgeyolo.bench.record import RunRecord
from edgeyolo.bench.scenarios import SERVER_LOAD
from edgeyolo.bench.stats import MIN_ROUNDS, settled
from edgeyolo.bench.summary import Measured, summary
from edgeyolo.errors import InputError
from edgeyolo.evaluate import spread_positions
from edgeyolo.progress import Log

BLOCK_SECONDS = 0.1
"""Of the fastest in one round: long beside a switch of processes, short beside what disturbs a machine."""
LONGEST_SECONDS = 2.0
"""Of the slowest in one round, unless a single picture takes longer."""
SERVER_QUERIES = 50
"""Of a block in Server: its queue is empty when it begins, and needs some queries to fill."""
METER_MARGIN = 1.5
"""A block for a meter is so much longer than the shortest that it measures: the next one may be a little faster."""
SCENARIO_SECONDS = 1.0
"""The same in a scenario, whose queries come in bursts or at their own times."""
OVERLOAD = 3.0
"""More frames than so many times what a contender can do only measure how long the queue was allowed to grow."""


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Args:
        seconds: for every contender in the mean, at least: the same frames take some of them longer.
        frames: of every contender, at least.
        warmup: seconds after which warming up ends, settled or not.
        qps: frames a second in the scenario Server; None: ``SERVER_LOAD`` of what the slowest contender can do.
        data: labelled pictures to score on, as ``datasets.load_dataset`` takes them; None: nothing is scored.
    """

    seconds: float = 5.0
    frames: int = 50
    warmup: float = 10.0
    qps: float | None = None
    data: str | None = None

    def __post_init__(self) -> None:
        numbers = (self.seconds, self.warmup, self.qps or 1.0)
        if self.frames < 1 or not all(math.isfinite(value) and value >= 0 for value in numbers):
            raise InputError(
                "there would be nothing to measure",
                got=f"{self.frames} frames, {self.seconds:g} s, {self.warmup:g} s of warm-up",
                allowed="at least 1 frame, and finite times",
            )  # fmt: skip


@dataclass
class _Running:
    """One contender, its process and its meter, and what was measured of it so far."""

    contender: Contender
    meter: Meter | str
    process: Process | None = None
    measured: Measured = field(default_factory=Measured)
    settled: bool = False
    rate: float = 1.0

    @property
    def alive(self) -> bool:
        return self.measured.failed is None

    def attempt(self, action: Callable[[Process], Any]) -> Any:
        """Do something with the process; where that fails the contender is out."""
        assert self.process is not None
        try:
            return action(self.process)
        except ContenderError as error:
            self.measured.failed = error.what
            self.process.close()
            return None

    def block(self, pictures: int) -> None:
        """Measure one block of so many pictures, in a scenario of some time; and what the machine takes meanwhile."""
        contender, turn = self.contender, len(self.measured.blocks)
        steps, seconds = (-(-pictures // contender.batch), 0.0) if contender.scenario is None else (1, SCENARIO_SECONDS)
        if contender.scenario == "Server":
            seconds = max(seconds, SERVER_QUERIES / self.rate)
        meter = None if isinstance(self.meter, str) else self.meter
        if meter is not None:
            seconds = max(seconds, METER_MARGIN * meter.shortest)
            meter.start()
        block: Block | None = self.attempt(
            lambda process: process.run(steps, seconds, turn, contender.scenario, self.rate)
        )
        joules = None if meter is None else meter.stop()
        if block is not None:
            self.measured.blocks.append(replace(block, joules=joules))

    @property
    def frames(self) -> int:
        """Measured so far."""
        return self.contender.batch * sum(len(block.frames) for block in self.measured.blocks)

    @property
    def seconds(self) -> float:
        """Spent on measuring so far."""
        return sum(block.seconds for block in self.measured.blocks)


def measure(
    contenders: Sequence[Contender],
    pictures: Sequence[Path],
    plan: Plan,
    log: Log,
    meter: Callable[[Device], Meter | str] = lambda device: "not measured",
) -> list[RunRecord]:
    """Run all contenders; one record each, in their order. An interruption keeps what there is.

    Args:
        contenders: the first is the reference of the ratios.
        pictures: files, at least one; of more than ``plan.frames`` so many, evenly spread, so that everybody sees all.
        plan: how long.
        log: receives stages and a progress bar.
        meter: measures the energy of a kind of device, or says why nothing does.
    """
    pictures = [pictures[i] for i in spread_positions(len(pictures), plan.frames)]
    meters = {device: meter(device) for device in {KINDS[c.backend].device for c in contenders}}
    running = [_Running(c, meters[KINDS[c.backend].device], measured=Measured.of(c)) for c in contenders]
    started, stopped = datetime.now(timezone.utc).isoformat(timespec="seconds"), False
    try:
        _load(running, pictures, log)
        _warm_up(running, plan, log)
        _rounds(running, plan, log)
        if plan.data is not None:
            _judge(running, plan.data, log)
    except KeyboardInterrupt:
        stopped = True
        log.warn("interrupted: what was measured so far is kept")
    finally:
        for one in running:
            if one.process is not None:
                one.process.close()
    shared = {"run": uuid.uuid4().hex[:12], "started": started, "pictures": len(pictures)}
    for one in running:
        one.measured.loaded = one.process.loaded if one.process is not None else {}
        one.measured.energy = one.meter if isinstance(one.meter, str) else one.meter.name
        one.measured.rate = one.rate if one.contender.scenario == "Server" else None
    pairs = [(one.contender, one.measured) for one in running]
    return summary(pairs, shared, stopped=stopped)


@contextmanager
def ending_like_ctrl_c() -> Iterator[None]:
    """While this lasts a SIGTERM or SIGHUP interrupts, so that what was measured is kept."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    inside = threading.current_thread() is threading.main_thread()  # only it may handle signals
    before = {name: signal.signal(getattr(signal, name), signal.default_int_handler) for name in names if inside}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _load(running: list[_Running], pictures: Sequence[Path], log: Log) -> None:
    for one in log.track(running, "loading", len(running)):
        one.process = Process(one.contender)
        one.attempt(lambda process: process.load(pictures))
        if not one.alive:
            log.warn(f"{one.contender.label} is out: {one.measured.failed}")


def _judge(running: list[_Running], data: str, log: Log) -> None:
    """Score every model in every backend once: threads and batches do not change what it finds."""
    scores: dict[tuple[Path, str], dict[str, Any]] = {}
    for one in log.track(running, "scoring", len(running)):
        key = (one.contender.path, one.contender.backend)
        if one.alive and key not in scores:
            assert one.process is not None
            try:
                scores[key] = one.process.judge(data)
            except ContenderError as error:
                log.warn(f"{one.contender.label} has no AP: {error.what}")
                scores[key] = {}
        one.measured.score = scores.get(key, {})


def _warm_up(running: list[_Running], plan: Plan, log: Log) -> None:
    """Blocks in turn until each contender's medians settle."""
    medians: dict[int, list[float]] = {i: [] for i in range(len(running))}
    end = time.perf_counter() + plan.warmup * max(1, sum(one.alive for one in running))
    while True:
        for i, one in enumerate(running):
            if one.alive and not one.settled:
                block: Block | None = one.attempt(lambda process: process.run(1, BLOCK_SECONDS))
                if block is not None:
                    medians[i].append(float(np.median([frame.total for frame in block.frames])))
                one.settled = settled(medians[i])
        if time.perf_counter() >= end or all(one.settled or not one.alive for one in running):
            break
    _set_rates(running, medians, plan, log)
    restless = [one.contender.label for one in running if one.alive and not one.settled]
    if restless and plan.warmup:
        log.warn(f"still changing after the warm-up: {', '.join(restless)}")


def _set_rates(running: list[_Running], medians: dict[int, list[float]], plan: Plan, log: Log) -> None:
    """Frames a second to expect; in Server those that come, the same for all, as fast as the slowest can stand."""
    for i, one in enumerate(running):
        if one.alive:
            one.rate = 1000 / medians[i][-1]
    servers = [one for one in running if one.alive and one.contender.scenario == "Server"]
    rate = plan.qps or SERVER_LOAD * min((one.rate for one in servers), default=1.0)
    for one in servers:
        text = f"{rate:.4g} frames a second come, {one.rate:.4g} are what {one.contender.label} can do"
        if rate > OVERLOAD * one.rate:
            one.measured.failed = f"{text}: ask for less with --qps"
        elif rate > one.rate:
            log.warn(f"{text}: its queue grows as long as it is measured")
        one.rate = rate


def _rounds(running: list[_Running], plan: Plan, log: Log) -> None:
    start, pictures = time.perf_counter(), _block_pictures(running)
    for number in log.track(_until_done(running, plan), "measuring"):
        alive = [one for one in running if one.alive]
        first = number % max(1, len(alive))
        for one in [*alive[first:], *alive[:first]]:
            one.block(pictures)
            one.measured.states.append({"at": round(time.perf_counter() - start, 3), **machine_state()})


def _block_pictures(running: list[_Running]) -> int:
    """Pictures of a block: whole batches of everybody, long enough for the fastest, short enough for the slowest.

    Where the two are far apart, the slowest decides: a round that takes minutes would interleave nothing.
    """
    plain = [one for one in running if one.alive and one.contender.scenario is None]
    whole = math.lcm(*(one.contender.batch for one in plain))
    fastest, slowest = (pick((one.rate for one in plain), default=1.0) for pick in (max, min))
    blocks = min(fastest * BLOCK_SECONDS, max(1.0, slowest * LONGEST_SECONDS)) / whole
    return whole * max(1, math.ceil(blocks))


def _until_done(running: list[_Running], plan: Plan) -> Iterator[int]:
    number = 0
    while alive := [one for one in running if one.alive]:
        spent = sum(one.seconds for one in alive) / len(alive)
        if number >= MIN_ROUNDS and spent >= plan.seconds and all(one.frames >= plan.frames for one in alive):
            return
        yield number
        number += 1
