"""The report of a run as one HTML file: table, plots, what failed, everything about every contender.

Texts of records come from models, libraries and command lines: all of them pass ``escape``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeyolo.bench.record import STAGES, RunRecord
from edgeyolo.bench.report_plots import blocks, plots
from edgeyolo.bench.report_style import SCRIPT, STYLE
from edgeyolo.bench.stats import CONFIDENCE, MIN_ROUNDS, TimeRatio, ratio
from edgeyolo.bench.tables import COLUMNS, caption, cells, columns
from edgeyolo.html import escape, page
from edgeyolo.plots import require_matplotlib

PARTS = {"pre": "picture file to pixels", "infer": "network", "decode": "heads to boxes", "nms": "suppression"}
"""The stages that make up the total, with what they are."""
ROOM = 9
"""Percent of the longest bar that a segment must have to hold its figure."""
METHOD = """Contenders took turns in rounds, in changing order, each in a process of its own that was paused while
another ran: what disturbed the machine met all alike."""
READING = f"""Press a head to sort. x first: the median as a multiple of the first contender's in the same scenario,
with a {CONFIDENCE:.0%} bootstrap interval over rounds; grey where it contains 1, so that this run cannot tell which of
the two is faster. jitter: p99 - p50. before, after: boxes a frame before and after suppression. RSS: the most memory
that the process held."""


def need_plots() -> None:
    """Raise InputError with the way to get it, if what draws the report's plots is missing."""
    require_matplotlib("the report's plots")


def report_html(records: Sequence[RunRecord]) -> str:
    """The whole document.

    Args:
        records: all of one run, the failed ones too; at least one.

    Raises InputError if matplotlib is missing.
    """
    need_plots()
    title = f"Benchmark of {', '.join(dict.fromkeys(r.model for r in records))}"
    parts = [
        f"<h1>{escape(title)}</h1>\n", *_headline(records), *_run(records), *_table(records), *_failed(records),
        *_stack(records), *_plots(records), *_details(records),
    ]  # fmt: skip
    return page(title, STYLE, "".join(parts), SCRIPT)


def _run(records: Sequence[RunRecord]) -> Iterator[str]:
    """How it was measured, and on what."""
    first = records[0]
    failed = sum(r.status == "failed" for r in records)
    stopped = ", stopped before its end" if any(r.status == "stopped" for r in records) else ""
    facts = {
        "run": f"{first.run}, started {first.started}{stopped}",
        "contenders": f"{len(records)}" + f", {failed} of them failed" * bool(failed),
        "method": METHOD,
        **{key.replace("_", " "): value for key, value in first.machine.items()},
    }
    yield f'<section><h2>Run and machine</h2>\n<dl class="facts">\n{_facts(facts)}</dl></section>\n'


def _facts(facts: Mapping[str, object]) -> str:
    rows = ((key, _plain(key, value) or "-") for key, value in facts.items())
    return "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>\n" for key, value in rows)


def _plain(key: str, value: object) -> str:
    """A JSON value as people write it; empty where there is none."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, int) and key.endswith("bytes"):
        return f"{value:,} ({value / 2**20:,.1f} MiB)"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _headline(records: Sequence[RunRecord]) -> Iterator[str]:
    """Inference, NMS, total and FPS of the fastest; what is asked of contenders decides with whom they compare."""
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in records:
        if record.ms:
            key = record.scenario, *(f"{name} {record.setting.get(name)}" for name in ("conf", "iou", "max_det"))
            groups.setdefault(key, []).append(record)
    for key, group in groups.items():
        best = min(group, key=lambda r: r.ms["total"]["p50"])
        own = [word for word, words in zip(key, zip(*groups, strict=True), strict=True) if len(set(words)) > 1]
        which = f" ({escape(', '.join(own))})" if own else ""
        yield f"<section><h2>{'Lowest median total' if len(group) > 1 else 'Medians'}{which}</h2>\n"
        stages = (("infer", "inference", ".2f"), ("nms", "NMS", ".3f"), ("total", "total", ".2f"))
        figures = [(format(best.ms[stage]["p50"], form), f"{label}, ms") for stage, label, form in stages]
        figures += [(f"{best.fps:.1f}", "FPS")] if best.fps is not None else []
        tiles = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for value, label in figures)
        yield f'<p><b>{escape(best.contender)}</b></p>\n<dl class="tiles">{tiles}</dl>\n'
        rivals = [r.contender for r in group if r is not best and not _slower(r, best)]
        if rivals:
            yield f"<p>This run cannot tell whether these are slower: {escape(', '.join(rivals))}.</p>\n"
        yield "</section>\n"


def _slower(record: RunRecord, best: RunRecord) -> bool:
    """Whether the run is sure of it; the rounds of both are compared."""
    pairs = [(a, b) for a, b in zip(blocks(record), blocks(best), strict=False) if len(a) and len(b)]
    return len(pairs) >= MIN_ROUNDS and ratio([a for a, _ in pairs], [b for _, b in pairs]).low > 1


def _table(records: Sequence[RunRecord]) -> Iterator[str]:
    """The same rows as everywhere; a press on a head sorts."""
    shown = columns(records)
    yield "<section><h2>All contenders</h2>\n"
    yield "".join(f"<p>{escape(line)}</p>\n" for line in caption(records).splitlines())
    heads = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{escape(COLUMNS[i])}</button></th>' for i in shown
    )
    yield f'<div class="wide" tabindex="0"><table class="sortable"><thead><tr>{heads}</tr></thead>\n<tbody>\n'
    for record in records:
        row = cells(record)
        inner = "".join(_cell(row[i], COLUMNS[i], record) for i in shown[1:])
        yield f'<tr><th scope="row">{escape(row[0])}</th>{inner}</tr>\n'
    yield f"</tbody></table></div>\n<p><small>{escape(READING)}</small></p></section>\n"


def _cell(value: str, column: str, record: RunRecord) -> str:
    """A cell with the number it sorts by, if it is one."""
    if record.status == "failed" and value.startswith("failed"):
        return "<td>failed</td>"
    unsure = column == "x first" and record.ratio is not None and not TimeRatio(**record.ratio).sure
    number = _number(value)
    attributes = "" if number is None else f' data-number="{number!r}"'
    attributes += ' class="unsure"' if unsure else ""
    return f"<td{attributes}>{escape(value)}</td>"


def _number(value: str) -> float | None:
    """The number that a cell begins with."""
    try:
        number = float(value.split(maxsplit=1)[0].replace(",", ""))
    except (ValueError, IndexError):
        return None
    return number if math.isfinite(number) else None


def _failed(records: Sequence[RunRecord]) -> Iterator[str]:
    failed = [r for r in records if r.status == "failed"]
    if failed:
        rows = "".join(f"<dt>{escape(r.contender)}</dt><dd>{_lines(r.reason or '-')}</dd>\n" for r in failed)
        yield f"<section><h2>Failed</h2>\n<dl>\n{rows}</dl></section>\n"


def _lines(value: str) -> str:
    return "<br>".join(map(escape, value.splitlines()))


def _stack(records: Sequence[RunRecord]) -> Iterator[str]:
    """A bar a contender, of the medians of its stages."""
    measured = [r for r in records if r.ms]
    if not measured:
        return
    longest = max(sum(r.ms[stage]["p50"] for stage in PARTS) for r in measured) or 1.0
    yield "<section><h2>Stages of a frame</h2>\n<p>Medians in ms; on the right the median of the whole frame.</p>\n"
    legend = "".join(f'<span><i class="{stage}"></i>{stage}: {text}</span> ' for stage, text in PARTS.items())
    yield f'<p class="legend">{legend}</p>\n<div class="stack">\n'
    for record in measured:
        bar = "".join(_segment(stage, record.ms[stage]["p50"], longest) for stage in PARTS)
        total = f"{record.ms['total']['p50']:.2f}"
        yield f'<span>{escape(record.contender)}</span><div class="bar">{bar}</div><b>{total}</b>\n'
    yield "</div></section>\n"


def _segment(stage: str, ms: float, longest: float) -> str:
    share, figure = 100 * ms / longest, f"{ms:.2f}"
    text = figure if share > ROOM else ""
    return f'<i class="{stage}" style="width:{share:.2f}%" title="{stage} {figure} ms">{text}</i>'


def _plots(records: Sequence[RunRecord]) -> Iterator[str]:
    """Inline SVG, side by side where there is room."""
    figures = [
        f"<figure><h2>{title}</h2><figcaption>{escape(text)}</figcaption>{drawn}</figure>\n"
        for title, text, drawn in plots(records)
    ]
    if figures:
        yield f'<section class="plots">\n{"".join(figures)}</section>\n'


def _details(records: Sequence[RunRecord]) -> Iterator[str]:
    yield "<section><h2>Every contender</h2>\n"
    for record in records:
        yield f"<details><summary>{escape(record.contender)} <small>{escape(record.status)}</small></summary>\n"
        yield f"<dl>\n{_facts(_detail(record))}</dl>\n{_spreads(record)}</details>\n"
    yield "</section>\n"


def _detail(r: RunRecord) -> dict[str, Any]:
    """All that the table has no room for."""
    found = TimeRatio(**r.ratio) if r.ratio is not None else None
    facts = {
        "model": r.model,
        "SHA-256": r.model_sha256,
        "artefact bytes": r.artefact_bytes,
        "backend": f"{r.backend} {r.backend_version}",
        "threads": r.threads,
        "batch": r.batch,
        "scenario": f"{r.scenario}, asked for by {r.generator}" if r.generator else r.scenario,
        "thresholds": r.setting,
        "measured": f"{r.frames} frames of {r.pictures} pictures in {len(r.rounds)} rounds",
        "load in ms": r.load_ms,
        "first inference in ms": r.first_ms,
        "most memory, bytes": r.rss_bytes,
        "candidates before suppression": r.candidates,
        "boxes after it": r.kept,
        "x first": f"{found}{'' if found.sure else ': this run cannot tell'}" if found is not None else None,
        "joules a frame": r.joules,
        "energy": r.energy,
        "AP50": r.ap50,
        "AP": r.ap,
        "AP measured with": r.ap_setting,
        "reason": r.reason,
    }
    return {key: value for key, value in facts.items() if value not in (None, "")}


def _spreads(record: RunRecord) -> str:
    """The figures of every stage, and of whole queries."""
    rows = [(stage, record.ms[stage]) for stage in STAGES if stage in record.ms]
    rows += [("query", record.query_ms)] if record.query_ms else []
    if not rows:
        return ""
    heads = ("mean", "min", "p50", "p90", "p99", "jitter")
    lines = "".join(
        f'<tr><th scope="row">{stage}</th>{"".join(f"<td>{figures[head]:.3f}</td>" for head in heads)}</tr>\n'
        for stage, figures in rows
    )
    head = "".join(f'<th scope="col">{head}</th>' for head in ("ms", *heads))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{lines}</tbody></table></div>\n'
