"""The scenarios with MLCommons' own load generator (the package mlcommons-loadgen), where it is installed.

It issues queries from the thread that starts the test, and ``one`` runs right there: in Server the next query is then
issued late, but its latency counts from the moment it was due, so this is a queue before one worker. Latencies are
those of the generator, from its trace: nothing else gives each query's, and only it knows when one was due.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeyolo.bench.frames import Frame
from edgeyolo.bench.scenarios import OWN, STREAMS, Load, offline_frames
from edgeyolo.errors import EdgeYoloError

PACKAGE = "mlcommons-loadgen"
FASTER = 2
"""A stream may be so many times faster than expected before the queries run out, and then twice as fast again."""
TRACE = "mlperf_log_trace.json"
_SAMPLE = '{"name":"Sample",'


def generator() -> str:
    """The name and version of the generator to use."""
    try:
        importlib.import_module("mlperf_loadgen")
        return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    except ImportError:
        return OWN


def run(
    scenario: str, one: Callable[[], Frame], frames: int, seconds: float, rate: float, seed: int = 0
) -> Load:  # fmt: skip
    """The same as ``scenarios.run``; SingleStream and MultiStream may end early if ``rate`` is far too low.

    Raises EdgeYoloError if the trace is not as it should be.
    """
    lg: Any = importlib.import_module("mlperf_loadgen")
    done: list[Frame] = []
    failed: list[BaseException] = []
    queries = 0

    def issue(samples: list[Any]) -> None:
        """Whatever ``one`` raises must not reach the generator, which would wait forever; it gets quick answers."""
        nonlocal queries
        queries += 1
        responses = [lg.QuerySampleResponse(sample.id, 0, 0) for sample in samples]
        try:
            done.extend(one() for _ in samples if not failed)
        except BaseException as error:
            failed.append(error)
        lg.QuerySamplesComplete(responses)

    settings = _settings(lg, scenario, frames, seconds, rate)
    settings.schedule_rng_seed = seed
    sut = lg.ConstructSUT(issue, _nothing)
    library = lg.ConstructQSL(1, 1, _nothing, _nothing)  # frames choose their pictures themselves
    try:
        with tempfile.TemporaryDirectory(prefix="edgeyolo-loadgen-") as folder:
            log = lg.LogSettings()
            log.log_output.outdir = folder
            log.enable_trace = True
            # Without a name it would obey an audit.config in the working directory.
            lg.StartTestWithLogSettings(sut, library, settings, log, str(Path(folder, "no-audit.config")))
            if failed:
                raise failed[0]
            return Load(done, *read_trace(Path(folder, TRACE), queries))
    finally:
        lg.DestroyQSL(library)
        lg.DestroySUT(sut)


def _nothing(*_: Any) -> None:
    """Loading and unloading samples, flushing queries."""


def _settings(lg: Any, scenario: str, frames: int, seconds: float, rate: float) -> Any:
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, scenario)
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_query_count = frames
    settings.min_duration_ms = math.ceil(seconds * 1e3)
    settings.single_stream_expected_latency_ns = 1e9 / (FASTER * rate)
    settings.multi_stream_expected_latency_ns = STREAMS * 1e9 / (FASTER * rate)
    settings.multi_stream_samples_per_query = STREAMS
    settings.server_target_qps = rate
    if scenario == "MultiStream":
        settings.min_query_count = math.ceil(frames / STREAMS)
    if scenario == "Offline":
        settings.min_query_count, settings.min_duration_ms = offline_frames(frames, seconds, rate), 0
    return settings


def read_trace(path: Path, queries: int) -> tuple[list[float], float]:
    """Milliseconds of each query in order, and seconds from the first one's issue to the last one's end.

    The file as a whole is no valid JSON (6.0.17 quotes some strings twice), its lines about samples are.
    Raises EdgeYoloError if it does not tell of so many ``queries``.
    """
    due: dict[int, float] = {}
    took: dict[int, float] = {}
    try:
        for line in path.read_text("utf-8", errors="replace").splitlines():
            if line.startswith(_SAMPLE) and (event := json.loads(line.rstrip(",")))["ph"] == "b":
                query = event["args"]["query_seq"]
                due[query] = event["ts"] / 1e3
                took[query] = max(took.get(query, 0.0), event["args"]["complete_ns"] / 1e6)
        if not queries or sorted(due) != list(range(queries)):
            raise ValueError(f"{len(due)} queries of {queries}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgeYoloError(
            "mlcommons-loadgen does not tell how long its queries took", where=TRACE, got=str(error)[:200],
            hint="install version 6.0.17 of it, or none: edgeyolo generates the load itself then",
        ) from error  # fmt: skip
    end = max(due[query] + took[query] for query in due)
    return [took[query] for query in range(queries)], (end - min(due.values())) / 1e3
