"""What a user sees while long work runs: one line per finished stage with its time, and progress bars."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edgeyolo.errors import printable

T = TypeVar("T")


class Log:
    """Lines and bars on a console; ``quiet`` prints nothing (for --json and tests)."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, highlight=False, markup=False, emoji=False)
        self.results = console or Console(highlight=False, markup=False, emoji=False)
        self.quiet = quiet
        self.seconds: dict[str, float] = {}

    def say(self, text: str) -> None:
        """Print one line."""
        if not self.quiet:
            self.console.print(printable(text), markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning, which is never silenced: it goes to the console of errors even with --json."""
        self.console.print(f"warning: {printable(text)}", style="bold yellow", markup=False, soft_wrap=True)

    def table(self, table: object) -> None:
        """Print a rich table: results go to stdout, what happens on the way to stderr."""
        if not self.quiet:
            self.results.print(table)

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Time a stage; what the block appends to the list stands behind the name in its line."""
        details: list[str] = []
        start = time.perf_counter()
        yield details
        self.seconds[name] = time.perf_counter() - start
        self.say(f"{name:<12} {self.seconds[name]:6.1f} s  {'; '.join(details)}")

    def track(self, items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
        """Iterate with a progress bar that disappears when done."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden = self.quiet or not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=hidden) as progress:
            yield from progress.track(items, description=title, total=total)


def peak_memory() -> int | None:
    """The most bytes of memory that this process has held so far; None where the system does not tell."""
    try:
        # getrusage would count what the process held that started this one, up to the moment of exec.
        status = Path("/proc/self/status").read_text("utf-8")
        return 1024 * int(re.search(r"^VmHWM:\s*(\d+) kB$", status, re.M)[1])  # type: ignore[index]
    except (OSError, TypeError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
