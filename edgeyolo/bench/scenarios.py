"""How frames are asked for, after the four scenarios of MLPerf Inference, and our own generator of such load.

Source: V. J. Reddi et al., MLPerf Inference Benchmark, ISCA 2020, arXiv:1911.02549, section on scenarios.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from edgeyolo.bench.frames import Frame


class Scenario(NamedTuple):
    """What is asked for, and which figure counts: ``p90`` or ``p99`` of a query's latency, or ``fps``."""

    figure: str
    text: str


SCENARIOS = {
    "SingleStream": Scenario("p90", "one frame a query, the next when it is done"),
    "MultiStream": Scenario("p99", "8 frames a query, the next when they are done"),
    "Offline": Scenario("fps", "all frames in one query"),
    "Server": Scenario("p99", "one frame a query, arriving at random (Poisson), whether the last is done or not"),
}
STREAMS = 8
"""Frames of a query of MultiStream."""
SERVER_LOAD = 0.7
"""Of the rate that a contender reaches without pause: queries queue now and then, and the queue does not grow."""
OWN = "edgeyolo"
"""Name of the generator below."""


class Load(NamedTuple):
    """What was measured.

    Args:
        frames: each result of ``one``, in order.
        query_ms: milliseconds of each query from the moment it was due until its last frame was done, in order.
        seconds: from the first query's issue to the last one's end.
    """

    frames: list[Frame]
    query_ms: list[float]
    seconds: float


def run(
    scenario: str, one: Callable[[], Frame], frames: int, seconds: float, rate: float, seed: int = 0
) -> Load:  # fmt: skip
    """Run at least so many frames for at least so long, all in the calling thread.

    Args:
        scenario: a key of ``SCENARIOS``.
        one: runs one frame; what it raises comes out of here.
        frames: from 1 on.
        seconds: in Offline about so long, by ``rate``, since its one query is sized in advance.
        rate: frames a second, above 0. Server issues so many whether they are reached or not; otherwise those to
            expect.
        seed: of the arrivals in Server.
    """
    if scenario == "Server":
        return _server(one, arrivals(frames, seconds, rate, seed))
    size = {"SingleStream": 1, "MultiStream": STREAMS, "Offline": offline_frames(frames, seconds, rate)}[scenario]
    done: list[Frame] = []
    query_ms: list[float] = []
    start = now = time.perf_counter()
    while len(done) < frames or (scenario != "Offline" and now < start + seconds):
        due = time.perf_counter()
        done += [one() for _ in range(size)]
        now = time.perf_counter()
        query_ms.append((now - due) * 1e3)
    return Load(done, query_ms, now - start)


def _server(one: Callable[[], Frame], schedule: list[float]) -> Load:
    """Nothing waits for a query but those behind it: one that starts late has waited since it was due."""
    done: list[Frame] = []
    query_ms: list[float] = []
    start = now = time.perf_counter()
    for due in schedule:
        time.sleep(max(0.0, start + due - now))
        done.append(one())
        now = time.perf_counter()
        query_ms.append((now - start - due) * 1e3)
    return Load(done, query_ms, now - start)


def arrivals(frames: int, seconds: float, rate: float, seed: int) -> list[float]:
    """Seconds at which queries of Server are due: the first at 0, the last is the first that is not before ``seconds``.

    At least ``frames`` of them, ``rate`` a second in the mean, at exponential distances.
    """
    rng, due = np.random.default_rng(seed), [0.0]
    while len(due) < frames or due[-1] < seconds:
        due.append(due[-1] + float(rng.exponential(1 / rate)))
    return due


def offline_frames(frames: int, seconds: float, rate: float) -> int:
    """Frames of the query of Offline: enough for ``seconds`` if ``rate`` is right."""
    return max(frames, math.ceil(seconds * rate))
