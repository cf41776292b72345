"""``edgeyolo compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from edgeyolo.bench.compare import Comparison, Match

COLUMNS = ("contender", "a ms", "b ms", "b / a", "", "infer", "NMS")
LONGEST = 200
"""Characters of a text from a file that are printed."""

EPILOG = """\b
Examples:
  edgeyolo compare before.jsonl after.jsonl
  edgeyolo compare before.jsonl after.jsonl --max-slowdown 1.1 --markdown change.md

The files are those of benchmark --json. The latest record of each contender counts. Contenders belong together by model
name, backend, threads, batch, scenario and thresholds; the model's content may differ. Where thresholds, the kind of
suppression, the number of pictures or the rate of queries (--qps) differ, there is no ratio.

b / a is of the median total (SingleStream), the time of a frame (Offline) or the p99 of a query (MultiStream, Server).
More than 1 is slower. Its 95 % interval is over the rounds of both runs; LIMIT is --max-slowdown, or 1.1 without it:

\b
  slower, faster       the interval lies above 1, below 1
  same within noise    it contains 1 and lies between 1 / LIMIT and LIMIT
  too noisy to tell    it contains 1 and reaches further; or there are fewer
                       than 5 rounds, so no interval

A p99 has no interval: up to LIMIT it is the same, and the ratio alone decides.

The interval knows what varied while each run lasted, not what changed between the two. Gate on a quiet machine, and
allow more than two runs of one model differ there. That the machine was another one, or busy, is a warning.

\b
Exit codes:
  0  nothing is slower than allowed. What is too noisy to tell or not
     comparable is a warning: a gate that fails without a cause is soon
     ignored. To be stricter, want "undecided" in --json to be empty
  2  bad input: a file cannot be read, or nothing in it can be compared
  4  a ratio above --max-slowdown with its interval above 1, or what was
     measured in a failed in b (with or without --max-slowdown)
"""


@click.command(epilog=EPILOG)
@click.argument("a", metavar="A.jsonl", type=click.Path(path_type=Path))
@click.argument("b", metavar="B.jsonl", type=click.Path(path_type=Path))
@click.option("--max-slowdown", type=float, help="Exit with 4 where a contender takes longer by more than this factor.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table as Markdown.")
@click.option("--force", is_flag=True, help="Replace the file of --markdown.")
def compare(a: Path, b: Path, max_slowdown: float | None, as_json: bool, markdown: Path | None, force: bool) -> None:
    """Compare two results files of benchmark: how much longer every contender takes in B than in A."""
    from edgeyolo.bench.compare import compare_files
    from edgeyolo.output import check_free_file, write_file
    from edgeyolo.progress import Log

    if markdown is not None:
        check_free_file(markdown, force=force)
    found, log = compare_files(a, b, max_slowdown), Log(quiet=as_json)
    if markdown is not None:
        write_file(markdown, _markdown(found).encode(), force=force)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
    log.table(_table(found))
    for line in _notes(found):
        log.table(line)
    for line in _warnings(found):
        log.warn(line)
    found.check()


def _clean(text: str) -> str:
    """A name from somebody's file, on one line and not longer than a reader wants."""
    from edgeyolo.errors import printable

    text = printable(text).replace("\n", " ")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _row(match: Match) -> list[str]:
    from edgeyolo.bench.compare import milliseconds

    times = [milliseconds(record) for record in (match.a, match.b)]
    parts = ["-" if part is None else f"{part:.2f}" for part in (match.infer, match.nms)]
    return [
        _clean(match.contender), *("-" if ms is None else f"{ms:.2f}" for ms in times), match.ratio_text(),
        match.verdict, *parts,
    ]  # fmt: skip


def _table(found: Comparison) -> Table:
    """For a terminal of 80 columns or more."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in COLUMNS:
        if name in ("contender", ""):
            table.add_column(name, overflow="fold", min_width=12)
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for match in found.matches:
        table.add_row(*_row(match))
    return table


def _markdown(found: Comparison) -> str:
    rows = [[*COLUMNS], ["---", "---:", "---:", "---:", "---", "---:", "---:"], *map(_row, found.matches)]
    lines = [f"| {' | '.join(map(_escaped, row))} |" for row in rows]
    notes = [f"- {_escaped(line)}" for line in (*_warnings(found), *_notes(found))]
    return "\n".join([*lines, "", *notes, ""])


def _escaped(text: str) -> str:
    """Names must not become cells, links or HTML."""
    return text.translate({ord(c): f"\\{c}" for c in "\\|<[]`*"})


def _notes(found: Comparison) -> list[str]:
    """What stands below the table, a line each."""
    from edgeyolo.bench.compare import METRICS
    from edgeyolo.bench.stats import CONFIDENCE

    lines = [f"{_clean(m.contender)}: {_clean(m.reason)}" for m in found.matches if m.reason]
    for match in found.matches:
        if match.changes:
            lines.append(f"{_clean(match.contender)}: {', '.join(_clean(str(change)) for change in match.changes)}")
    if found.software:
        lines.append(f"versions: {', '.join(_clean(str(change)) for change in found.software)}")
    for side, labels in (("a", found.only_a), ("b", found.only_b)):
        if labels:
            lines.append(f"only in {side}: {', '.join(map(_clean, labels))}")
    scenarios = sorted({match.b.scenario for match in found.matches})
    metrics = ", ".join(f"{scenario}: {METRICS[scenario]}" for scenario in scenarios)
    return [*lines, f"ms: {metrics}; [{CONFIDENCE:.0%} interval over rounds]; infer, NMS: b / a of medians"]


def _warnings(found: Comparison) -> list[str]:
    """What makes the ratios doubtful, or the gate blind."""
    lines = []
    if found.machines:
        differences = ", ".join(_clean(str(change)) for change in found.machines)
        lines.append(f"TWO MACHINES, so a ratio is no regression of the software: {differences}")
    if found.busy:
        lines.append(f"the machine was busy, so times are those of other work too: {'; '.join(found.busy)}")
    if found.max_slowdown is not None and found.undecided:
        names = ", ".join(f"{_clean(m.contender)} ({m.verdict})" for m in found.undecided)
        lines.append(f"not decided: {names}; measure longer, on a quiet machine")
    return lines
