"""Figures by matplotlib, without a display and without its global state, as inline SVG or PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgeyolo.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#012345"
"""Stands for the page's text colour, which is known to the reader's browser only."""
SIZE = (4.6, 3.3)
"""Inches. Small, so that letters are still readable where a telephone shows the plot over its whole width."""
DPI = 150


def require_matplotlib(what: str) -> None:
    """Raise InputError with the way to get matplotlib if it is missing; ``what`` needs it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(f"{what} need matplotlib", hint="pip install 'edgeyolo[eval]'") from error


@contextmanager
def plot(ink: str, salt: str, size: tuple[float, float] = SIZE) -> Iterator[Figure]:
    """Give an empty figure, to be saved inside; names from files are no formulas, the same data give the same bytes.

    Args:
        ink: colour of text and axes.
        salt: keeps the identifiers of plots apart that stand in one page.
        size: inches.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    keys = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = {
        **mpl.rcParamsDefault,
        **dict.fromkeys(keys, ink),
        **{"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": salt, "backend": "agg"},
        **{"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none"},
        **{"axes.grid": True, "grid.color": "#808080", "grid.alpha": 0.25},
    }
    with mpl.rc_context(style):
        yield Figure(size, layout="constrained")


def svg(figure: Figure) -> str:
    """The figure as inline SVG that takes the page's text colour; its text comes from matplotlib escaped.

    Call it inside ``plot``, whose settings and salt it saves with.
    """
    from matplotlib import rcParams

    data = io.StringIO()
    figure.savefig(
        data, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = data.getvalue()
    text = re.sub(r' id="[\w.]+_\d+"', "", text[text.index("<svg") :])  # would repeat in the next figure
    # Identifiers are hashes of positions, whose last bits differ from run to run where axes stand below one another.
    hashes = dict.fromkeys(re.findall(r' id="([a-z][0-9a-f]{10})"', text))
    for number, identifier in enumerate(hashes):
        text = text.replace(identifier, f"{rcParams['svg.hashsalt']}-{number}")
    return text.replace(INK, "currentColor")


def png(figure: Figure) -> bytes:
    """The figure as PNG on white."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return data.getvalue()
