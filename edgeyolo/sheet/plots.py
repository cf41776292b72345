"""The sheet's curves: precision over recall, and the noise of a bundle's layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgeyolo.errors import printable
from edgeyolo.evaluate import RECALLS
from edgeyolo.plots import plot
from edgeyolo.sheet.content import Sheet, Side

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"reference": "#4a8fe7", "model": "#e8751a"}
"""A side's colour in every curve, readable on white and on black."""
PAPER_INK = "#222222"
LOWEST = 5
MAX_NAME = 40


def figures(sheet: Sheet, ink: str) -> Iterator[tuple[str, Figure]]:
    """Every plot of the sheet with its title: precision over recall, and the layers' noise of each bundle."""
    if all(side.score is not None for side in sheet.sides):
        with _axes(ink, "precision") as (figure, axes):
            _precision(axes, sheet)
            yield "Precision and recall at IoU 0.5, mean over the classes that occur", figure
    for side in sheet.sides:
        if side.layers:
            with _axes(ink, sheet.role(side)) as (figure, axes):
                _noise(axes, side, COLOURS[sheet.role(side)])
                yield f"Signal over quantisation noise of every layer, {sheet.role(side)}", figure


@contextmanager
def _axes(ink: str, salt: str) -> Iterator[tuple[Figure, Axes]]:
    """Give a figure with one axes."""
    with plot(ink, salt) as figure:
        yield figure, figure.add_subplot()


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
