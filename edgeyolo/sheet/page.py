"""The sheet as one HTML file: pictures and plots inside it, no script, nothing fetched.

Every text that comes from a file or a command line passes ``escape``; the content security policy in the head would
stop what slipped through from running or loading anything.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from edgeyolo.evaluate import RECALLS, ClassScore, Score
from edgeyolo.html import escape, page
from edgeyolo.plots import INK, svg
from edgeyolo.postprocess import Floats
from edgeyolo.sheet.content import Sheet, Side, choice_text, choose
from edgeyolo.sheet.panes import OTHER, SAME, panes
from edgeyolo.sheet.plots import COLOURS, figures
from edgeyolo.sheet.style import STYLE

JPEG_QUALITY = 82
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def html_page(sheet: Sheet) -> str:
    """The whole document. Raises InputError if a picture cannot be read again."""
    colours = "".join(f"--{role}:{colour};" for role, colour in COLOURS.items())
    colours += "".join(f"--{name}:rgb{colour};" for name, colour in (("same", SAME), ("other", OTHER)))
    parts = [*_header(sheet), *_figures(sheet), *_plots(sheet), *_pictures(sheet), *_classes(sheet), *_layers(sheet)]
    return page(sheet.title, f":root{{{colours}}}\n{STYLE}", "".join(parts))


def _header(sheet: Sheet) -> Iterator[str]:
    """Title, models, data and settings."""
    yield f"<header><h1>{escape(sheet.title)}</h1>\n<dl>\n"
    for side in sheet.sides:
        role = sheet.role(side)
        yield f'<dt><i class="{role}"></i>{role}</dt><dd><b>{escape(side.name)}</b> ({escape(side.kind)})</dd>\n'
    yield f"<dt>data</dt><dd>{escape(sheet.data)}</dd>\n"
    yield f"<dt>settings</dt><dd>{'<br>'.join(escape(line) for line in sheet.settings)}</dd>\n</dl></header>\n"


def _figures(sheet: Sheet) -> Iterator[str]:
    """Average precision of each side, and how far they agree."""
    scores = [(sheet.role(side), side.score) for side in sheet.sides if side.score is not None]
    agreement = sheet.agreement()
    if not scores and agreement is None:
        return
    yield "<section><h2>Figures</h2>\n"
    if scores:
        names = [name for name in FIGURES if any(score.values[name] is not None for _, score in scores)]
        yield f'<div class="wide"><table><tr><th></th>{"".join(f"<th>{name}</th>" for name in names)}</tr>\n'
        for role, score in scores:
            yield f'<tr><th><i class="{role}"></i>{role}</th>{_cells(score.values[name] for name in names)}</tr>\n'
        if len(scores) > 1:
            yield f"<tr><th>difference</th>{_differences(scores[0][1], scores[1][1], names)}</tr>\n"
        yield "</table></div>\n"
    if agreement is not None:
        counts = f"{agreement.matched} boxes matched, {agreement.missed} missed, {agreement.invented} invented"
        value = f"F1 {agreement.f1:.3f}" if agreement.judged else "nothing found by either"
        yield f"<p>Agreement of the two models on {len(sheet.pictures)} pictures: <b>{value}</b> ({counts}).</p>\n"
    yield "</section>\n"


def _cells(values: Iterator[float | None]) -> str:
    return "".join(f"<td>{_figure(value)}</td>" for value in values)


def _figure(value: float | None, sign: str = "") -> str:
    """Three digits, a dash for what is not defined, a true minus."""
    return "–" if value is None else f"{value:{sign}.3f}".replace("-", "−")


def _differences(before: Score, after: Score, names: Sequence[str]) -> str:
    pairs = [(before.values[name], after.values[name]) for name in names]
    return "".join(f"<td>{_figure(_difference(a, b), '+')}</td>" for a, b in pairs)


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _plots(sheet: Sheet) -> Iterator[str]:
    """Inline SVG, side by side where there is room."""
    plots = [
        f"<figure><figcaption>{title}</figcaption>{svg(figure)}</figure>\n" for title, figure in figures(sheet, INK)
    ]
    if plots:
        yield f'<section class="plots">\n{"".join(plots)}</section>\n'


def _pictures(sheet: Sheet) -> Iterator[str]:
    """The chosen pictures, one card each; a pane enlarges when it is touched."""
    chosen, _ = choose(sheet)
    yield f"<section><h2>Pictures</h2>\n<p>{choice_text(sheet)} Touch one to enlarge it.</p>\n"
    yield f'{_legend(sheet)}<div class="cards n{len(sheet.sides) + sheet.labelled}">\n'
    for i in chosen:
        counts = sheet.compared(i)
        text = ""
        if counts is not None:
            text = f"{counts.matched} matched, {counts.missed} missed, {counts.invented} invented"
        yield f"<article><h3>{escape(sheet.pictures[i].name)} <small>{text}</small></h3>\n<div>\n"
        for pane in panes(sheet, i):
            image = f'<img alt="{pane.role}: {pane.caption}" src="{_data_uri(pane.image)}">'
            zoom = f'<label><input type="checkbox" aria-label="enlarge: {pane.role}">{image}</label>'
            yield f"<figure>{zoom}<figcaption><b>{pane.role}</b> {pane.caption}</figcaption></figure>\n"
        yield "</div></article>\n"
    yield "</div></section>\n"


def _legend(sheet: Sheet) -> str:
    """What the boxes' colours mean."""
    if sheet.against is None and not sheet.labelled:
        return ""
    pair = "model and labels" if sheet.against is None else "model and reference"
    also = " Labels are compared with the model." if sheet.against is not None and sheet.labelled else ""
    return (
        f'<p class="legend"><i class="same"></i>on both sides ({pair}: same class, IoU at least 0.5) '
        f'<i class="other"></i>on one side only.{also} '
        "Missed: only the reference or the labels have it; invented: only the model.</p>\n"
    )


def _data_uri(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _classes(sheet: Sheet) -> Iterator[str]:
    """A row for each class with its curves; what the model lost most comes first."""
    scored = [(sheet.role(side), {c.name: c for c in side.score.per_class}) for side in sheet.sides if side.score]
    if not scored:
        return
    names = list(scored[-1][1])
    order = "in their order"
    if len(scored) > 1:
        order = "the largest loss of AP50 first"
        names.sort(key=lambda name: scored[1][1][name].ap50 - scored[0][1][name].ap50)
    yield f"<section><h2>Classes</h2>\n<p>{len(names)} that occur, {order}; precision over recall at IoU 0.5.</p>\n"
    heads = "".join(f'<th><i class="{role}"></i>{figure}</th>' for figure in ("AP50", "AP") for role, _ in scored)
    change = "<th>change of AP50</th>" if len(scored) > 1 else ""
    yield f'<div class="wide"><table><tr><th>class</th><th>boxes</th>{heads}{change}<th>curve</th></tr>\n'
    for name in names:
        rows = [classes[name] for _, classes in scored]
        curves = _curves([(role, classes[name]) for role, classes in scored])
        cells = _cells(iter([*(c.ap50 for c in rows), *(c.ap for c in rows)]))
        cells += f"<td>{_figure(rows[1].ap50 - rows[0].ap50, '+')}</td>" if len(rows) > 1 else ""
        yield f"<tr><th>{escape(name)}</th><td>{rows[0].boxes}</td>{cells}<td>{curves}</td></tr>\n"
    yield "</table></div></section>\n"


def _curves(rows: Sequence[tuple[str, ClassScore]]) -> str:
    """Both sides' precision over recall, 100 units each way."""
    lines = "".join(f'<polyline class="{role}" points="{_points(row.precision)}"/>' for role, row in rows)
    return f'<svg class="curve" viewBox="-2 -2 104 104" preserveAspectRatio="none" aria-hidden="true">{lines}</svg>'


def _points(precision: Floats) -> str:
    """The corners of a curve; points on a level line are left out."""
    level = np.rint(precision * 100).astype(int)
    corner = np.ones(len(level), np.bool_)
    corner[1:-1] = (level[1:-1] != level[:-2]) | (level[1:-1] != level[2:])
    return " ".join(f"{100 * r:.0f},{100 - p}" for r, p in zip(RECALLS[corner], level[corner], strict=True))


def _layers(sheet: Sheet) -> Iterator[str]:
    """The figures of every layer of a bundle, folded."""
    for side in sheet.sides:
        if side.layers:
            yield f"<section><details><summary>Layers of the {sheet.role(side)}: {len(side.layers)}</summary>\n"
            yield from _layer_table(side)
            yield "</details></section>\n"


def _layer_table(side: Side) -> Iterator[str]:
    heads = ("layer", "type", "SNR in dB", "beyond the range", "at its ends")
    yield f'<div class="wide"><table><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr>\n'
    for layer in side.layers:
        figures = f"{layer.snr_db:.1f}".replace("-", "−"), f"{layer.clipped:.2%}", f"{layer.saturated:.2%}"
        cells = "".join(f"<td>{cell}</td>" for cell in (escape(layer.qtype), *figures))
        yield f"<tr><th>{escape(layer.name)}</th>{cells}</tr>\n"
    yield "</table></div>\n"
