"""Give every process of ``pytest -n`` a core of its own, with all that it starts.

Thread pools of several workers on the same cores wait for each other at full load: on two busy cores a test has been
seen to take 400 seconds instead of 30. Threads that exist already stay where they are, so conftest.py imports this
before anything that starts some.
"""

from __future__ import annotations

import os


def take_one_core() -> None:
    """Leave all cores but one to the other workers; without xdist, or where there is no such call, do nothing."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


take_one_core()
