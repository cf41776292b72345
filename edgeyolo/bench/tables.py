"""A run as people read it: a rich table, Markdown and CSV, all of the same rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich import box
from rich.table import Table

from edgeyolo.bench.record import RunRecord
from edgeyolo.errors import printable

COLUMNS = (
    *(
        "contender",
        "infer p50",
        "NMS p50",
        "total p50",
        "p90",
        "p99",
        "jitter",
        "FPS",
        "x first",
        "first ms",
        "load ms",
    ),
    *("RSS MiB", "bytes", "before", "after", "AP50", "AP"),
)
"""Milliseconds where nothing else is said; ``x first``: median total as a multiple of the first contender's."""


def cells(record: RunRecord) -> list[str]:
    """One row; what was not measured is ``-``."""
    infer, nms, total = (record.spread(stage) for stage in ("infer", "nms", "total"))
    if infer is None or nms is None or total is None:
        reason = (record.reason or "nothing measured").splitlines()[0]
        return [record.contender, f"{record.status}: {reason}", *["-"] * (len(COLUMNS) - 2)]
    ratio = record.ratio and f"{record.ratio['value']:.2f} [{record.ratio['low']:.2f}, {record.ratio['high']:.2f}]"
    return [
        record.contender, f"{infer.p50:.2f}", f"{nms.p50:.3f}", f"{total.p50:.2f}", f"{total.p90:.2f}",
        f"{total.p99:.2f}", f"{total.jitter:.2f}", _figure(record.fps, ".1f"), ratio or "1",
        _figure(record.first_ms, ".1f"), _figure(record.load_ms, ".0f"),
        _figure(record.rss_bytes and record.rss_bytes / 2**20, ".0f"), f"{record.artefact_bytes:,}",
        _figure(record.candidates, ".1f"), _figure(record.kept, ".1f"), _figure(record.ap50, ".4f"),
        _figure(record.ap, ".4f"),
    ]  # fmt: skip


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def columns(records: Sequence[RunRecord]) -> list[int]:
    """Which columns say anything: AP only where somebody has it."""
    judged = any(record.ap is not None for record in records)
    return [i for i, name in enumerate(COLUMNS) if judged or not name.startswith("AP")]


def caption(records: Sequence[RunRecord]) -> str:
    """What the figures rest on, in one line."""
    s = records[0].setting
    kinds = ", ".join(sorted({str(r.setting.get("nms")) for r in records if r.setting.get("nms")})) or "-"
    frames = [r.frames for r in records if r.ms]
    return (
        f"ms a frame, from picture file to boxes; NMS is inside total: score > {s['conf']:g}, overlap <= {s['iou']:g} "
        f"({kinds}), at most {s['max_det']}; {records[0].pictures} pictures, "
        f"{min(frames, default=0)} frames or more each, interleaved"
    )


TERMINAL = ("contender", "infer p50", "NMS p50", "total p50", "p99", "FPS", "x first", "before", "after", "AP50", "AP")
"""What a terminal has room for; the rest stands in the files."""


def run_table(records: Sequence[RunRecord]) -> Table:
    """For a terminal; a contender that failed has its reason below the table."""
    failed = [f"{r.contender}: {cells(r)[1]}" for r in records if not r.ms]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption="\n".join(
        [*map(printable, failed), caption(records)]
    ))  # fmt: skip
    shown = [i for i in columns(records) if COLUMNS[i] in TERMINAL]
    for i in shown:
        table.add_column(
            COLUMNS[i], justify="left" if i == 0 else "right", overflow="fold", min_width=12 if i == 0 else None
        )
    for record in records:
        row = cells(record)
        table.add_row(*(printable(row[i]) if record.ms or i == 0 else "-" for i in shown))
    return table


def run_markdown(records: Sequence[RunRecord]) -> str:
    """A Markdown table with its caption."""
    shown = columns(records)
    rows = [[COLUMNS[i] for i in shown], ["---", *["---:"] * (len(shown) - 1)]]
    rows += [[cells(record)[i].replace("|", "\\|") for i in shown] for record in records]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", caption(records), ""])


def run_csv(records: Sequence[RunRecord]) -> str:
    """Comma-separated values with a header."""
    shown, text = columns(records), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([COLUMNS[i] for i in shown])
    writer.writerows([cells(record)[i] for i in shown] for record in records)
    return text.getvalue()
