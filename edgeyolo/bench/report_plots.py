"""The report's plots.

A contender has the same colour, dash and marker in all of them, so that colour alone decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgeyolo.bench.record import RunRecord
from edgeyolo.bench.stats import Floats
from edgeyolo.errors import printable
from edgeyolo.plots import INK, SIZE, plot, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2f86d0", "#e8751a", "#159a74", "#c76fa4", "#c9970c", "#7a7ff0")
"""After Okabe and Ito, who chose by what colour-blind people can tell apart; readable on white and on black."""
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MAX_NAME = 54
TAIL = 99.5
"""Histograms end at this percentile of the slowest contender: one outlier would press all others into one bar."""
BINS = 60
PEAK = 0.55
"""Of a row; the name stands above."""
ROW, LEGEND_ROW, MARGIN = 0.42, 0.18, 0.62
"""Inches: of one contender's histogram, of a line in a legend, of an axis with its label."""
LOG_SPAN = 6
"""Values whose largest is so many times the smallest need a logarithmic axis."""


Numbered = Sequence[tuple[int, RunRecord]]
"""Records with their place in the run, which decides their style."""
Plot = tuple[str, str, str]
"""Heading, what there is to see, SVG."""
MACHINE = (("clock_mhz", "clock", "MHz"), ("celsius", "hottest", "°C"))
"""What a state has to say about throttling: key, name, unit."""
NEAR = (0.03, 0.05)
"""Marks closer than this share of the axes have one number in common."""


def blocks(record: RunRecord) -> list[Floats]:
    """Totals of the frames of each round, in order of time."""
    return np.split(np.array(record.totals_ms, np.float64), np.cumsum(record.rounds)[:-1]) if record.rounds else []


def plots(records: Sequence[RunRecord]) -> Iterator[Plot]:
    """Every plot that the records have data for."""
    measured = [(i, r) for i, r in enumerate(records) if r.totals_ms]
    if measured:
        yield _histograms(measured)
        yield _over_time(measured)
    curves = [(i, r) for i, r in measured if r.curve]
    if curves:
        yield _suppression(curves)
    judged = [(i, r) for i, r in measured if r.ap is not None]
    if len(judged) > 1:
        yield _pareto(judged, "time")
        yield _pareto(judged, "size")


def name(record: RunRecord) -> str:
    """A contender's label as it fits into a plot."""
    text = printable(record.contender).replace("\n", " ")
    half = MAX_NAME // 2  # the end says how it ran
    return text if len(text) <= MAX_NAME else f"{text[: half - 1]}…{text[-half:]}"


def _histograms(measured: Numbered) -> Plot:
    """One row a contender over a common axis, the highest bars of all equally high."""
    times = {i: np.array(r.totals_ms, np.float64) for i, r in measured}
    low = min(float(t.min()) for t in times.values())
    high = max(float(np.percentile(t, TAIL)) for t in times.values())
    logarithmic = _spans(low, high)
    low, high = (low / 1.03, high * 1.03) if high < 1.1 * low or logarithmic else (low, high)
    edges = np.geomspace(low, high, BINS + 1) if logarithmic else np.linspace(low, high, BINS + 1)
    with plot(INK, "histograms", (SIZE[0], MARGIN + ROW * max(2, len(measured)))) as figure:
        axes = figure.add_subplot(yticks=[], ylim=(0, len(measured)), xlim=(low, high))
        axes.spines["left"].set_visible(False)
        for base, (i, record) in enumerate(reversed(measured)):
            values = times[i]
            counts = np.histogram(values, edges)[0]
            heights = base + PEAK * counts / max(1, counts.max())
            axes.stairs(heights, edges, baseline=base, fill=True, color=COLOURS[i % len(COLOURS)], alpha=0.85)
            axes.vlines(float(np.median(values)), base, base + PEAK, color=INK, linewidth=1)
            axes.axhline(base, color=INK, linewidth=0.5)
            beyond = int((values > high).sum())
            tail = f"  ({beyond} slower, up to {values.max():.4g} ms)" if beyond else ""
            place = axes.get_yaxis_transform()
            text = axes.text(0, base + 0.92, f"{name(record)}{tail}", transform=place, fontsize=7.5, va="top")
            text.set_in_layout(False)  # a long name does not make the axes narrow
        axes.set_xlabel("total of a frame in ms, line: median")
        if logarithmic:
            _logarithmic(axes, "x", low, high)
        drawn = svg(figure)
    caption = f"How many frames took how long. The axis ends at the {TAIL:g}th percentile of the slowest contender."
    return "Frame times", caption, drawn


def _over_time(measured: Numbered) -> Plot:
    """Medians of the rounds beside the contender's own; below them what the machine did meanwhile."""
    states = [state for _, r in measured for state in r.states]
    timed = bool(states) and all(state.get("at") is not None for state in states)
    below = [(label, unit, _states(measured, key, timed=timed)) for key, label, unit in MACHINE]
    below = [row for row in below if row[2]]
    size = (SIZE[0], SIZE[1] + 0.75 * len(below) + _legend_height(measured))
    with plot(INK, "over-time", size) as figure:
        ratios = [3.4, *[1.0] * len(below)]
        rows = figure.subplots(len(ratios), sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        shares: list[float] = []
        for i, record in measured:
            middle = float(np.median(record.totals_ms))
            found = [(at, float(np.median(b)) / middle) for at, b in _rounds(record, timed=timed) if len(b)]
            rows[0].plot([at for at, _ in found], [v for _, v in found], **_style(i), label=name(record),
                         markersize=2.5, linewidth=1, alpha=0.75)  # fmt: skip
            shares += [v for _, v in found]
        rows[0].set_ylabel("a round's median as a multiple\nof the contender's own")
        _fitting(rows[0], "y", shares)
        for axes, (label, unit, points) in zip(rows[1:], below, strict=True):
            axes.plot([at for at, _ in points], [v for _, v in points], color=INK, linewidth=1)
            axes.set_ylabel(f"{label}\nin {unit}")
            axes.margins(y=0.2)
        rows[-1].set_xlabel("seconds since measuring began" if timed else "round")
        _legend(figure, rows[0])
        drawn = svg(figure)
    ranges = [f"{label} {min(v for _, v in p):.0f} to {max(v for _, v in p):.0f} {unit}" for label, unit, p in below]
    known = ", ".join(ranges) or "the system tells neither clock nor temperature"
    return "Over time", f"Where all times rise and the clock falls, the machine throttled. Here: {known}.", drawn


def _rounds(record: RunRecord, *, timed: bool) -> list[tuple[float, Floats]]:
    """When each round ended, in seconds if that is known, else its number; the totals of its frames."""
    ends = [float(state["at"] or 0) for state in record.states] if timed else range(1, len(record.rounds) + 1)
    return list(zip(ends, blocks(record), strict=False))


def _states(measured: Numbered, key: str, *, timed: bool) -> list[tuple[float, float]]:
    """What the machine said of itself, in order of time."""
    found = []
    for _, record in measured:
        for number, state in enumerate(record.states, 1):
            if state.get(key) is not None:
                found.append((float(state["at"] or 0) if timed else number, float(state[key] or 0)))
    return sorted(found)


def _suppression(curves: Numbered) -> Plot:
    """Time of suppression against the boxes that it had to look at."""
    with plot(INK, "suppression", (SIZE[0], SIZE[1] + _legend_height(curves))) as figure:
        axes = figure.add_subplot()
        for i, record in curves:
            counts, times = zip(*record.curve, strict=True)
            axes.plot(counts, times, **_style(i), label=name(record), markersize=3, linewidth=0.8)
        _fitting(axes, "y", [ms for _, r in curves for _, ms in r.curve])
        _fitting(axes, "x", [count for _, r in curves for count, _ in r.curve])
        axes.set(xlabel="candidates before suppression", ylabel="median time of NMS in ms")
        _legend(figure, axes)
        drawn = svg(figure)
    text = "A point for every number of candidates that occurred. Suppression is the same code for all contenders."
    return "NMS against candidates", text, drawn


def _pareto(judged: Numbered, kind: str) -> Plot:
    """AP against what it costs; the line joins those that nobody beats in both."""
    points = {i: (_cost(record, kind), float(record.ap or 0)) for i, record in judged}
    with plot(INK, f"pareto-{kind}", (SIZE[0], SIZE[1] + _legend_height(judged))) as figure:
        axes = figure.add_subplot()
        for i, record in judged:
            label = f"{i + 1}  {name(record)}"
            axes.plot(*points[i], **{**_style(i), "linestyle": "none"}, label=label, markersize=6, alpha=0.9)
        best = front([points[i] for i, _ in judged])
        axes.step(*zip(*best, strict=True), where="post", color=INK, linewidth=1, zorder=1)
        _fitting(axes, "x", [x for x, _ in points.values()])
        axes.set(
            xlabel="median total of a frame in ms" if kind == "time" else "shipped bytes in MB", ylabel="AP (COCO)"
        )
        axes.margins(0.12)
        _numbers(axes, points)
        _legend(figure, axes)
        drawn = svg(figure)
    title = "AP against time" if kind == "time" else "AP against size"
    return title, "Up and to the left is better; what lies on the line is beaten by nobody in both.", drawn


def _cost(record: RunRecord, kind: str) -> float:
    spread = record.spread("total")
    assert spread is not None
    return spread.p50 if kind == "time" else record.artefact_bytes / 1e6


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front of (cost, gain), cheapest first: every point gains more than all cheaper ones."""
    best: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or gain > best[-1][1]:
            best.append((cost, gain))
    return best


def _numbers(axes: Axes, points: dict[int, tuple[float, float]]) -> None:
    """Contenders' numbers beside their marks, neighbours at different heights; marks at one place share a label."""
    axes.autoscale_view()
    places = {i: axes.transAxes.inverted().transform(axes.transData.transform(point)) for i, point in points.items()}
    groups: list[list[int]] = []
    for i in sorted(points, key=points.__getitem__):
        near = [g for g in groups if all(abs(places[i] - places[g[0]]) < NEAR)]
        if near:
            near[0].append(i)
        else:
            groups.append([i])
    for place, group in enumerate(groups):
        away, side = ((-4, 5), "right") if place % 2 else ((4, -11), "left")  # where the line does not pass
        label = _runs([i + 1 for i in sorted(group)])
        axes.annotate(label, points[group[0]], away, textcoords="offset points", ha=side, fontsize=7)


def _runs(numbers: Sequence[int]) -> str:
    """1, 2, 3, 5 as ``1-3 5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _style(i: int) -> dict[str, Any]:
    """Colour, dash and marker; 210 contenders pass before one repeats."""
    marker, colour = MARKERS[i % len(MARKERS)], COLOURS[i % len(COLOURS)]
    return {"color": colour, "linestyle": DASHES[i % len(DASHES)], "marker": marker}


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the axes, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower left", ncols=_legend_columns(labels), frameon=False, fontsize=8,
        handlelength=3.2, labelspacing=0.3, columnspacing=1.2,
    )  # fmt: skip


def _legend_columns(labels: Sequence[str]) -> int:
    return 2 if max(map(len, labels)) <= MAX_NAME // 2 else 1


def _legend_height(numbered: Numbered) -> float:
    columns = _legend_columns([name(record) for _, record in numbered])
    return LEGEND_ROW * -(-len(numbered) // columns)


def _spans(low: float, high: float) -> bool:
    return low > 0 and high > LOG_SPAN * low


def _fitting(axes: Axes, letter: Literal["x", "y"], values: Sequence[float]) -> None:
    """A logarithmic axis where the values need one."""
    if values and _spans(min(values), max(values)):
        _logarithmic(axes, letter, min(values), max(values))


def _logarithmic(axes: Axes, letter: Literal["x", "y"], low: float, high: float) -> None:
    """Ticks as plain numbers: 1, 2, 5, 10 ... or, over many decades, 1, 10, 100."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{letter}scale": "log"})
    axis = axes.xaxis if letter == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
