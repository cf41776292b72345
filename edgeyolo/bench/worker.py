"""A contender's process: loads one model into one backend and runs frames when it is told to; otherwise it waits.

One JSON object a line on standard input, one answer a line on what was standard output; what libraries print goes to
standard error. ``python -m edgeyolo.bench.worker`` is started by ``contender.py`` and by nobody else.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgeyolo.bench.backends import Backend, open_backend
from edgeyolo.bench.frames import Frames, Setting
from edgeyolo.errors import EdgeYoloError
from edgeyolo.progress import peak_memory


class _Worker:
    """What stays between requests."""

    def __init__(self) -> None:
        self.backend: Backend | None = None
        self.frames: Frames | None = None

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
        self.frames = Frames(backend, pictures, Setting(**request["setting"]))
        first = self.frames.one()
        assert backend.detector is not None
        return {
            "load_ms": (loaded - start) / 1e6,
            "first_ms": first.infer,
            "version": backend.version(),
            "nms": backend.detector.nms_kind,
        }

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Measure frames until there are enough of them and enough time has passed."""
        assert self.frames is not None
        end = time.perf_counter() + request["seconds"]
        frames = [self.frames.one()]
        while len(frames) < request["frames"] or time.perf_counter() < end:
            frames.append(self.frames.one())
        return {"frames": frames, "rss": peak_memory()}


def main() -> None:
    """Answer requests until there are no more."""
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


if __name__ == "__main__":
    main()
