"""Load after the scenarios of MLPerf: what is asked for when, that waiting counts, and that errors come out."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edgeyolo.bench import loadgen, scenarios
from edgeyolo.bench.frames import Frame
from edgeyolo.bench.scenarios import SCENARIOS, Load, arrivals
from edgeyolo.errors import EdgeYoloError

SERVICE = 0.001
"""Seconds of one frame at least: sleeping never takes less."""
CLOCKS = 1e-3
"""Of a duration: the generator's clock and Python's may be adjusted while it lasts."""

installed = pytest.mark.skipif(
    importlib.util.find_spec("mlperf_loadgen") is None, reason="mlcommons-loadgen is not installed"
)
generators = pytest.mark.parametrize(
    "run", [pytest.param(scenarios.run, id="own"), pytest.param(loadgen.run, id="mlcommons", marks=installed)]
)
every = pytest.mark.parametrize("scenario", SCENARIOS)


class Camera:
    """Frames that take ``SERVICE`` and tell it; the ``broken``-th one raises ``error``."""

    def __init__(self, broken: int = 0, error: BaseException | None = None) -> None:
        self.calls, self.threads = 0, set()
        self.broken, self.error = broken, error

    def one(self) -> Frame:
        start = time.perf_counter()
        self.calls += 1
        self.threads.add(threading.get_ident())
        if self.calls == self.broken:
            assert self.error is not None
            raise self.error
        time.sleep(SERVICE)
        return Frame(0, 0, 0, 0, (time.perf_counter() - start) * 1e3, self.calls, 0)


def check(load: Load, camera: Camera, queries: int, frames: int) -> None:
    assert [f.candidates for f in load.frames] == list(range(1, frames + 1)) and camera.calls == frames
    assert len(load.query_ms) == queries and camera.threads == {threading.get_ident()}
    size = frames // queries
    for i, latency in enumerate(load.query_ms):
        assert latency >= sum(f.total for f in load.frames[i * size : (i + 1) * size]) * (1 - CLOCKS)
    assert load.seconds >= frames * SERVICE * (1 - CLOCKS)


@generators
@pytest.mark.parametrize(
    ("scenario", "queries", "frames"),
    [("SingleStream", 10, 10), ("MultiStream", 2, 16), ("Offline", 1, 10), ("Server", 10, 10)],
)
def test_queries_have_their_frames(run, scenario, queries, frames, tmp_path, monkeypatch, capfd):
    """Block after block in one process, whatever lies in the working directory; nothing is printed or left."""
    monkeypatch.chdir(tmp_path)
    Path("audit.config").write_text("*.*.max_query_count = 1\n*.*.performance_issue_unique = 1\n")
    for seed in range(3):
        camera = Camera()
        check(run(scenario, camera.one, 10, 0, 1000, seed), camera, queries, frames)
    assert [p.name for p in tmp_path.iterdir()] == ["audit.config"] and capfd.readouterr() == ("", "")


@generators
@every
def test_a_block_lasts_as_long_as_it_should(run, scenario):
    """With too few frames for that; the one query of Offline is sized by the expected rate."""
    camera, seconds, rate = Camera(), 0.03, 1 / SERVICE
    load = run(scenario, camera.one, 1, seconds, rate)
    assert load.seconds >= seconds * (1 - CLOCKS) and len(load.frames) == camera.calls > 1
    if scenario == "Offline":
        assert len(load.frames) == 30 and len(load.query_ms) == 1


@generators
def test_a_server_that_is_too_slow_makes_queries_wait(run):
    """Each query finds a longer queue than the one before, all are served, and the waiting is in their latency."""
    camera = Camera()
    load = run("Server", camera.one, 30, 0, 20 / SERVICE)
    assert len(load.query_ms) == 30 and all(a < b for a, b in pairwise(load.query_ms))
    assert load.query_ms[-1] > 20 * SERVICE * 1e3, "the last one waited for most of the others"


@generators
def test_a_server_waits_for_queries_that_are_not_due(run):
    load = run("Server", Camera().one, 4, 0, 0.1 / SERVICE, 3)
    assert load.seconds * 1e3 > sum(f.total for f in load.frames) and len(load.query_ms) == 4


def test_arrivals_are_a_poisson_process():
    due = arrivals(10, 100, 50, 1)
    gaps = [b - a for a, b in pairwise(due)]
    assert due[0] == 0 and due[-2] < 100 <= due[-1] and len(arrivals(10, 0, 50, 1)) == 10
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(1 / 50, rel=0.05) and deviation == pytest.approx(mean, rel=0.05)
    assert arrivals(10, 100, 50, 1) == due != arrivals(10, 100, 50, 2)


@generators
@every
@pytest.mark.parametrize("error", [ValueError("broken picture"), KeyboardInterrupt()])
def test_what_a_frame_raises_comes_out(run, scenario, error):
    """As it is, at once, and the next block works."""
    camera = Camera(3, error)
    with pytest.raises(type(error)) as caught:
        run(scenario, camera.one, 20, 0, 1000)
    assert caught.value is error and camera.calls == 3
    assert len(run(scenario, Camera().one, 8, 0, 1000).frames) == 8


@installed
@every
def test_latencies_are_those_that_mlcommons_sums_up(scenario, monkeypatch):
    """Its percentile p of n sorted values is number n * p; it cuts rates to 6 digits."""
    summary: list[str] = []

    def read(path: Path, queries: int) -> Any:
        summary.append((path.parent / "mlperf_log_summary.txt").read_text())
        return read_trace(path, queries)

    read_trace = loadgen.read_trace
    monkeypatch.setattr(loadgen, "read_trace", read)
    load = loadgen.run(scenario, Camera().one, 40, 0, 700)
    said = dict(re.findall(r"^(\S[^:\n]*?) *: *(\S+)$", summary[0], re.M))
    ordered = sorted(load.query_ms)
    for p in (50, 90, 99):
        ns = float(said[f"{p}.00 percentile latency (ns)"])
        assert ordered[len(ordered) * p // 100] * 1e6 == pytest.approx(ns, abs=1)
    if scenario == "Offline":
        assert len(load.frames) / load.seconds == pytest.approx(float(said["Samples per second"]), rel=1e-4)
    if scenario == "Server":
        done = float(said["Completed samples per second"])
        assert (len(load.frames) - 1) / load.seconds == pytest.approx(done, rel=1e-3)


@pytest.mark.parametrize("text", ["", '{"name":"Sample","ph":"b"}\n', '{"name":"Sample",\n', None])
def test_a_trace_that_tells_nothing_is_refused(text, tmp_path):
    path = tmp_path / "trace.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(EdgeYoloError, match=r"mlcommons-loadgen does not tell"):
        loadgen.read_trace(path, 1)


def test_which_generator_is_used(monkeypatch):
    name = loadgen.generator()
    assert re.fullmatch(r"mlcommons-loadgen [\d.]+", name) if importlib.util.find_spec("mlperf_loadgen") else True
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    assert loadgen.generator() == scenarios.OWN, "it is not installed"
