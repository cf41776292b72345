"""A run as people read it: a rich table, Markdown and CSV, all of the same rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from edgeyolo.bench.record import RunRecord
from edgeyolo.errors import printable

COLUMNS = (
    *("contender", "infer p50", "NMS p50", "total p50", "p90", "p99", "jitter", "FPS", "x first", "query p90"),
    *(
        "query p99",
        "first ms",
        "load ms",
        "RSS MiB",
        "bytes",
        "conf",
        "IoU",
        "before",
        "after",
        "J/frame",
        "AP50",
        "AP",
    ),
)
"""Milliseconds where nothing else is said; ``x first``: median total as a multiple of the first contender's, which
has none itself."""
OPTIONAL = ("query p90", "query p99", "J/frame", "AP50", "AP")
"""Columns that are left out where nobody has them."""
NOISE = 0.1
"""An interval that reaches so far to both sides of 1 hides a difference that a user would want to know."""


def cells(record: RunRecord) -> list[str]:
    """One row; what was not measured is ``-``."""
    infer, nms, total = (record.spread(stage) for stage in ("infer", "nms", "total"))
    if infer is None or nms is None or total is None:
        return [record.contender, failure(record), *["-"] * (len(COLUMNS) - 2)]
    ratio = record.ratio and f"{record.ratio['value']:.2f} [{record.ratio['low']:.2f}, {record.ratio['high']:.2f}]"
    query = record.query_ms or {}
    return [
        record.contender, f"{infer.p50:.2f}", f"{nms.p50:.3f}", f"{total.p50:.2f}", f"{total.p90:.2f}",
        f"{total.p99:.2f}", f"{total.jitter:.2f}", _figure(record.fps, ".1f"), ratio or "-",
        _figure(query.get("p90"), ".2f"), _figure(query.get("p99"), ".2f"),
        _figure(record.first_ms, ".1f"), _figure(record.load_ms, ".0f"),
        _figure(record.rss_bytes and record.rss_bytes / 2**20, ".0f"), f"{record.artefact_bytes:,}",
        f"{record.setting['conf']:g}", f"{record.setting['iou']:g}",
        _figure(record.candidates, ".1f"), _figure(record.kept, ".1f"), _figure(record.joules, ".3g"),
        _figure(record.ap50, ".4f"), _figure(record.ap, ".4f"),
    ]  # fmt: skip


def failure(record: RunRecord) -> str:
    """Why a record has no figures, in one line."""
    return f"{record.status}: {next(iter((record.reason or 'nothing measured').splitlines()), '')}"


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def columns(records: Sequence[RunRecord]) -> list[int]:
    """Which columns say anything."""
    rows = [cells(record) for record in records]
    return [i for i, name in enumerate(COLUMNS) if name not in OPTIONAL or any(row[i] != "-" for row in rows)]


def caption(records: Sequence[RunRecord]) -> str:
    """What the figures rest on, in one line, and what they do not tell, in more."""
    settings = [r.setting for r in records]
    confs = ", ".join(f"{c:g}" for c in dict.fromkeys(s["conf"] for s in settings))
    kinds = ", ".join(sorted({str(s.get("nms")) for s in settings if s.get("nms")})) or "-"
    frames, runs = [r.frames for r in records if r.ms], {r.run for r in records}
    lines = [
        f"ms a frame, from picture file to boxes; NMS is inside total: score > {confs}, overlap <= "
        f"{settings[0]['iou']:g} ({kinds}), at most {settings[0]['max_det']}; {records[0].pictures} pictures, "
        f"{min(frames, default=0)} frames or more each, {'interleaved' if len(runs) == 1 else 'measured apart'}"
    ]
    return "\n".join([*lines, *_scored(records), *_energy(records), *_doubts(records)])


def _scored(records: Sequence[RunRecord]) -> Iterator[str]:
    for s in (r.ap_setting for r in records if r.ap_setting is not None):
        yield (
            f"AP: COCO's, {s.get('pictures')} pictures of {s.get('data')}, score > {s.get('conf')}, "
            f"overlap <= {s.get('iou')}, at most {s.get('max_det')}"
        )
        return


def _energy(records: Sequence[RunRecord]) -> Iterator[str]:
    """Where joules come from, or why there are none; both once."""
    texts = dict.fromkeys(r.energy for r in records if r.energy and r.ms)
    yield from (f"energy: {text}" for text in texts)


def _doubts(records: Sequence[RunRecord]) -> Iterator[str]:
    """Who cannot be told from the first: as fast as it, or too noisy to know."""
    open_ = [r for r in records if r.ms and r.ratio is not None and r.ratio["low"] <= 1 <= r.ratio["high"]]
    noisy = [r for r in open_ if r.ratio is not None and max(1 - r.ratio["low"], r.ratio["high"] - 1) > NOISE]
    level = [r for r in open_ if r not in noisy]
    for rows, what in ((level, "as fast as the first, as far as this run shows"), (noisy, "too noisy to tell")):
        if rows:
            yield f"{what}: {', '.join(r.contender for r in rows)}"


TERMINAL = (
    *("contender", "infer p50", "NMS p50", "total p50", "p99", "FPS", "x first", "query p99", "before", "J/frame"),
    "AP50",
)
"""What a terminal has room for; the rest stands in the files."""


def run_table(records: Sequence[RunRecord]) -> Group:
    """For a terminal, with the caption below; a contender that failed has its reason there."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    shown = [i for i in columns(records) if COLUMNS[i] in TERMINAL]
    for i in shown:
        first = i == 0
        table.add_column(COLUMNS[i], justify="left" if first else "right", overflow="fold", ratio=1 if first else None)
    for record in records:
        row = cells(record)
        row[COLUMNS.index("x first")] = _short_ratio(record)
        table.add_row(*(printable(row[i]) if record.ms or i == 0 else "-" for i in shown))
    failed = [f"{r.contender}: {failure(r)}" for r in records if not r.ms]
    return Group(table, *(Text(printable(line)) for line in (*failed, *caption(records).splitlines())))


def _short_ratio(record: RunRecord) -> str:
    """Without the interval: ``~`` where it contains 1, so that nobody knows who is faster."""
    if record.ratio is None:
        return "-"
    return f"{'~' * (record.ratio['low'] <= 1 <= record.ratio['high'])}{record.ratio['value']:.2f}"


def run_markdown(records: Sequence[RunRecord]) -> str:
    """A Markdown table with its caption."""
    shown = columns(records)
    rows = [[COLUMNS[i] for i in shown], ["---", *["---:"] * (len(shown) - 1)]]
    rows += [[_markdown(cells(record)[i]) for i in shown] for record in records]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", caption(records), ""])


def _markdown(cell: str) -> str:
    return printable(cell).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")


def run_csv(records: Sequence[RunRecord]) -> str:
    """Comma-separated values with a header."""
    shown, text = columns(records), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([COLUMNS[i] for i in shown])
    writer.writerows([cells(record)[i] for i in shown] for record in records)
    return text.getvalue()
