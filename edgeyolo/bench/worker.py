"""A contender's process: loads one model into one backend and runs frames when it is told to; otherwise it waits.

One JSON object a line on standard input, one answer a line on what was standard output; what libraries print goes to
standard error. ``contender.py`` starts it, and nobody else.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeyolo.bench import loadgen, scenarios
from edgeyolo.bench.backends import Backend, open_backend
from edgeyolo.bench.frames import Frames, Setting
from edgeyolo.errors import EdgeYoloError
from edgeyolo.progress import peak_memory

PR_SET_PDEATHSIG = 1


class _Worker:
    """What stays between requests."""

    def __init__(self) -> None:
        self.backend: Backend | None = None
        self.frames: Frames | None = None
        self.generator = loadgen.generator()

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Pin the process, open the model, run it once."""
        if request["cpus"] and hasattr(os, "sched_setaffinity"):
            with suppress(OSError):
                os.sched_setaffinity(0, request["cpus"])
        start = time.perf_counter_ns()
        self.backend = backend = open_backend(request["backend"])
        weights = request["weights"]
        backend.load(Path(request["path"]), request["threads"], None if weights is None else Path(weights))
        loaded = time.perf_counter_ns()
        pictures = [Path(name) for name in request["pictures"]]
        self.frames = Frames(backend, pictures, Setting(**request["setting"]), request["batch"])
        first = self.frames.one()
        assert backend.detector is not None
        return {
            "load_ms": (loaded - start) / 1e6,
            "first_ms": first.infer * request["batch"],
            "version": backend.version(),
            "generator": self.generator,
            "nms": backend.detector.nms_kind,
            "suppression": self.frames.suppression,
        }

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Measure frames until there are enough of them and enough time has passed."""
        assert self.frames is not None
        one, least, seconds = self.frames.one, request["frames"], request["seconds"]
        self.frames.seek(request["turn"], least)
        if request["scenario"] is not None:
            run = scenarios.run if self.generator == scenarios.OWN else loadgen.run
            load = run(request["scenario"], one, least, seconds, request["rate"], request["turn"])
            return {**load._asdict(), "rss": peak_memory()}
        start = time.perf_counter()
        frames = [one()]
        while len(frames) < least or time.perf_counter() < start + seconds:
            frames.append(one())
        return {"frames": frames, "query_ms": [], "seconds": time.perf_counter() - start, "rss": peak_memory()}

    def judge(self, request: dict[str, Any]) -> dict[str, Any]:
        """Average precision of this model in this backend."""
        from edgeyolo.datasets import load_dataset
        from edgeyolo.evaluate import Setting as Choices
        from edgeyolo.evaluate import evaluate
        from edgeyolo.progress import Log

        assert self.backend is not None and self.backend.detector is not None
        choices = Choices()
        score = evaluate(
            self.backend, self.backend.detector, load_dataset(request["data"]), choices, Log(quiet=True)
        )  # fmt: skip
        setting = {"data": request["data"], "pictures": score.pictures, **asdict(choices)}
        return {"ap50": score.values["AP50"], "ap": score.values["AP"], "setting": setting}


def _die_with(parent: int) -> None:
    """Have the kernel end this process, which may be paused, when its parent is gone, however that ended."""
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


def main() -> None:
    """Answer requests until there are no more. The last argument is the parent's number."""
    _die_with(int(sys.argv[-1]))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = _Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request["do"])(request)
        except EdgeYoloError as error:
            answer = {"error": str(error)}
        except Exception as error:  # whatever a library raises costs this contender its row, with the reason
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
