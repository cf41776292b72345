"""A contender as its measurer sees it: what it is, and the process that runs it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeyolo.bench.frames import Frame, Setting
from edgeyolo.errors import EdgeYoloError

ANSWER_SECONDS = 900
"""Loading may compile; nothing takes longer than this."""
JUDGE_SECONDS = 24 * 3600
"""Scoring thousands of pictures takes its time."""
LAST_WORDS = 2000
"""Bytes from the end of what a dead process wrote to standard error."""
START = """
import sys
sys.path[:] = [path for path in sys.path if path] # the working directory may hold anything
sys.path.insert(0, sys.argv[1])
from edgeyolo.bench.worker import main
main()
"""
"""The package that is running, and no module that happens to lie beside the user's files."""
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    **dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(1 << 25)),
}
"""Of every contender. Threads that spin while they wait take the time of the one that does the rest of a frame. glibc
gives large blocks back to the system after every frame, until a larger one was freed, such as the weights of a float
model: preprocessing would take longer in the process of a smaller model."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class ContenderError(EdgeYoloError):
    """A contender could not go on; the others do."""


@dataclass(frozen=True)
class Contender:
    """A model in a backend, and how it is to run.

    Args:
        label: its name in tables.
        path: the model.
        backend: one of ``backends.KINDS``.
        threads: from 1 on.
        weights: of a ``.cfg``.
        batch: pictures that the network gets at a time.
        setting: thresholds.
        scenario: how frames are asked for; None: one after the other.
    """

    label: str
    path: Path
    backend: str
    threads: int = 1
    weights: Path | None = None
    batch: int = 1
    setting: Setting = field(default_factory=Setting)
    scenario: str | None = None


@dataclass(frozen=True)
class Block:
    """What one contender did in one turn.

    Args:
        frames: in order of time.
        query_ms: latency of whole queries, from the moment they were due; empty outside scenarios.
        seconds: from the first query to the end of the last.
        rss: most bytes of memory so far; None where the system does not tell.
        joules: of the machine meanwhile; None where nothing measures them.
    """

    frames: list[Frame]
    query_ms: list[float]
    seconds: float
    rss: int | None
    joules: float | None = None


class Process:
    """The process of one contender. It is paused wherever another one runs."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.loaded: dict[str, Any] = {}
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(contender.threads))}
        environment.update(ENVIRONMENT)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, str(Path(__file__).resolve().parents[2]), str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment,
            start_new_session=True,
        )  # fmt: skip
        self._rest = b""

    def load(self, pictures: Sequence[Path]) -> None:
        """Open the model and run it once. Raises ContenderError."""
        c = self.contender
        self.loaded = self._ask(
            do="load", backend=c.backend, path=str(c.path), threads=c.threads, cpus=pinned(c.threads),
            weights=None if c.weights is None else str(c.weights), pictures=[str(p) for p in pictures],
            setting=asdict(c.setting), batch=c.batch,
        )  # fmt: skip
        self._pause()

    def run(
        self, frames: int, seconds: float, turn: int = 0, scenario: str | None = None, rate: float = 1
    ) -> Block:  # fmt: skip
        """Measure at least so many frames (or batches) for at least so long. Raises ContenderError.

        Args:
            frames, seconds: at least.
            turn: counts from 0: with equal ``frames`` every contender gets the same pictures in the same turn; in a
                scenario the seed of the arrivals.
            scenario, rate: as in ``scenarios.run``; without a scenario one frame follows another.
        """
        self._signal("SIGCONT")
        answer = self._ask(do="run", frames=frames, seconds=seconds, scenario=scenario, rate=rate, turn=turn)
        self._pause()
        return Block([Frame(*f) for f in answer["frames"]], answer["query_ms"], answer["seconds"], answer["rss"])

    def judge(self, data: str) -> dict[str, Any]:
        """Score the model on labelled pictures: ``ap50``, ``ap`` and their ``setting``. Raises ContenderError."""
        self._signal("SIGCONT")
        try:
            return self._ask(JUDGE_SECONDS, do="judge", data=data)
        finally:
            self._pause()

    def close(self) -> None:
        """End the process, and whatever it has started."""
        self._signal("SIGKILL")
        self._process.wait()
        self._errors.close()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):  # what was not read before the end is left in it
                    stream.close()

    def _ask(self, limit: float = ANSWER_SECONDS, /, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._line(limit))
        except (OSError, ValueError) as error:
            raise ContenderError(self._death()) from error
        if "error" in answer:
            raise ContenderError(answer["error"])
        return answer

    def _line(self, limit: float) -> bytes:
        """The next line of the other process. Raises ValueError where it ends or takes too long."""
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            ready, _, _ = select.select([handle], [], [], limit)
            part = os.read(handle, 1 << 16) if ready else b""
            if not part:
                raise ValueError("no answer")
            self._rest += part
        line, self._rest = self._rest.split(b"\n", 1)
        return line

    def _death(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "no answer in time"
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - LAST_WORDS))
        words = self._errors.read().decode("utf-8", errors="replace").strip().splitlines()
        end = f"its process ended by signal {-code}" if code < 0 else f"its process ended with exit code {code}"
        return f"{end}: {words[-1]}" if words else end

    def _pause(self) -> None:
        """Threads of a library may spin while they wait: stop them."""
        self._signal("SIGSTOP")

    def _signal(self, name: str) -> None:
        """To the process and those it started, which are a session of their own."""
        with suppress(OSError):
            if hasattr(signal, name) and self._process.poll() is None:
                os.killpg(self._process.pid, getattr(signal, name))


def pinned(threads: int) -> list[int]:
    """The processors to pin ``threads`` threads to; empty where there are too few, or the system cannot say."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[:threads] if threads <= len(cpus) else []
