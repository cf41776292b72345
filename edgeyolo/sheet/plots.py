"""Curves by matplotlib, without a display and without its global state."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgeyolo.errors import InputError, printable
from edgeyolo.evaluate import RECALLS
from edgeyolo.sheet.content import Sheet, Side

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"reference": "#4a8fe7", "model": "#e8751a"}
"""A side's colour in every curve, readable on white and on black."""
INK = "#012345"
"""Stands for the page's text colour, which is known to the reader's browser only."""
PAPER_INK = "#222222"
SIZE = (4.6, 3.3)
"""Inches. Small, so that letters are still readable where a telephone shows the plot over its whole width."""
LOWEST = 5
MAX_NAME = 40
DPI = 150


def require_matplotlib() -> None:
    """Raise InputError with the way to get it, if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("the sheet's curves need matplotlib", hint="pip install 'edgeyolo[eval]'") from error


def figures(sheet: Sheet, ink: str) -> Iterator[tuple[str, Figure]]:
    """Every plot of the sheet with its title: precision over recall, and the layers' noise of each bundle."""
    if all(side.score is not None for side in sheet.sides):
        with _figure(ink, "precision") as (figure, axes):
            _precision(axes, sheet)
            yield "Precision and recall at IoU 0.5, mean over the classes that occur", figure
    for side in sheet.sides:
        if side.layers:
            with _figure(ink, sheet.role(side)) as (figure, axes):
                _noise(axes, side, COLOURS[sheet.role(side)])
                yield f"Signal over quantisation noise of every layer, {sheet.role(side)}", figure


def svg(figure: Figure) -> str:
    """The figure as inline SVG that takes the page's text colour; its text comes from matplotlib escaped."""
    data = io.StringIO()
    figure.savefig(
        data, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = data.getvalue()
    text = re.sub(r' id="[\w.]+_\d+"', "", text[text.index("<svg") :])  # would repeat in the next figure
    return text.replace(INK, "currentColor")


def png(figure: Figure) -> bytes:
    """The figure as PNG on white."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return data.getvalue()


@contextmanager
def _figure(ink: str, salt: str) -> Iterator[tuple[Figure, Axes]]:
    """Give a figure with one axes; names from files are no formulas, and the same data give the same bytes.

    ``salt`` keeps the identifiers of plots apart that stand in one page.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    keys = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        **mpl.rcParamsDefault,
        **dict.fromkeys(keys, ink),
        **{"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": salt, "backend": "agg"},
        **{"font.size": 9, "axes.spines.top": False, "axes.spines.right": False},
    }
    with mpl.rc_context(style):
        figure = Figure(SIZE, layout="constrained")
        axes = figure.add_subplot(facecolor="none")
        axes.grid(color="#808080", alpha=0.25)
        yield figure, axes


def _precision(axes: Axes, sheet: Sheet) -> None:
    """One curve a side; the area under it is AP50."""
    for side in sheet.sides:
        assert side.score is not None
        role, ap = sheet.role(side), side.score.values["AP50"]
        style = "-" if role == "model" else "--"
        label = f"{role}, AP50 {ap:.3f}"
        axes.plot(RECALLS, side.score.precision, style, color=COLOURS[role], label=label, linewidth=1.8)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False, loc="lower left")


def _noise(axes: Axes, side: Side, colour: str) -> None:
    """One dot a layer; the lowest are numbered and named."""
    values = [layer.snr_db for layer in side.layers]
    axes.plot(range(len(values)), values, "-o", color=colour, markersize=2.5, linewidth=0.8)
    lowest = sorted(range(len(values)), key=values.__getitem__)[:LOWEST]
    for place, i in enumerate(sorted(lowest)):
        below = (0, -11 - 9 * (place % 2))  # neighbours at different heights
        rank = str(lowest.index(i) + 1)
        axes.annotate(rank, (i, values[i]), below, textcoords="offset points", ha="center", fontweight="bold")
    names = [printable(side.layers[i].name).replace("\n", " ")[:MAX_NAME] for i in lowest]
    rows = [f"{rank}  {name}  {values[i]:.1f} dB" for rank, (i, name) in enumerate(zip(lowest, names, strict=True), 1)]
    axes.set(xlabel="layer, in order of execution\n\n" + "\n".join(rows), ylabel="SNR in dB")
    axes.margins(y=0.18)
