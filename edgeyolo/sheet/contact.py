"""The sheet as one PNG picture: header, curves, and a card for every chosen picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from edgeyolo.errors import printable
from edgeyolo.plots import png
from edgeyolo.sheet.content import Sheet, choice_text, choose
from edgeyolo.sheet.panes import panes
from edgeyolo.sheet.plots import PAPER_INK, figures

PANE = (360, 270)
"""Place of one pane in pixels; the picture fits into it."""
CAPTION, GAP, MARGIN, LINE = 22, 8, 16, 24
CARDS_ACROSS = 2
MAX_CHARACTERS = 200
WHITE, INK, DIM = (255, 255, 255), (28, 30, 33), (95, 102, 112)


def contact_sheet(sheet: Sheet) -> bytes:
    """The PNG file's bytes. Raises InputError if a picture cannot be read again."""
    chosen, _ = choose(sheet)
    lines = _lines(sheet)
    plots = [Image.open(io.BytesIO(png(figure))).convert("RGB") for _, figure in figures(sheet, PAPER_INK)]
    card = card_size(sheet)
    across = min(CARDS_ACROSS, len(chosen))
    width = max(across * card[0], sum(plot.width for plot in plots), 2 * PANE[0]) + 2 * MARGIN
    top = MARGIN + LINE * len(lines) + GAP + max((plot.height for plot in plots), default=0)
    canvas = Image.new("RGB", (width, top + -(-len(chosen) // across) * card[1] + MARGIN), WHITE)
    pen = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        text = _fitting(pen, line, _font(18 if row == 0 else 14), width - 2 * MARGIN)
        pen.text((MARGIN, MARGIN + LINE * row), text, INK, _font(18 if row == 0 else 14))
    left = MARGIN
    for plot in plots:
        canvas.paste(plot, (left, MARGIN + LINE * len(lines) + GAP))
        left += plot.width
    for place, i in enumerate(chosen):
        corner = (MARGIN + place % across * card[0], top + place // across * card[1])
        canvas.paste(_card(sheet, i, card), corner)
    data = io.BytesIO()
    canvas.save(data, "PNG", optimize=True)
    return data.getvalue()


def card_size(sheet: Sheet) -> tuple[int, int]:
    """(width, height) in pixels of one picture's card: a title, and its panes in a row with their captions."""
    count = len(sheet.sides) + sheet.labelled
    return count * (PANE[0] + GAP) + GAP, CAPTION + PANE[1] + CAPTION + 2 * GAP


def _card(sheet: Sheet, i: int, size: tuple[int, int]) -> Image.Image:
    """One picture's panes from left to right."""
    card = Image.new("RGB", size, WHITE)
    pen, font = ImageDraw.Draw(card), _font(13)
    counts = sheet.compared(i)
    text = sheet.pictures[i].name
    if counts is not None:
        text += f": {counts.matched} matched, {counts.missed} missed, {counts.invented} invented"
    pen.text((0, 2), _fitting(pen, text, font, size[0] - GAP), INK, font)
    for column, pane in enumerate(panes(sheet, i)):
        image = pane.image
        image.thumbnail(PANE, Image.Resampling.LANCZOS)
        left = column * (PANE[0] + GAP)
        card.paste(image, (left + (PANE[0] - image.width) // 2, CAPTION + (PANE[1] - image.height) // 2))
        caption = _fitting(pen, f"{pane.role}: {pane.caption}", font, PANE[0])
        pen.text((left, CAPTION + PANE[1] + 2), caption, DIM, font)
    return card


def _lines(sheet: Sheet) -> Sequence[str]:
    """The header."""
    lines = [sheet.title]
    for side in sheet.sides:
        values = side.score.values if side.score else {}
        figures = "".join(f", {name} {values[name]:.3f}" for name in ("AP", "AP50") if values.get(name) is not None)
        lines.append(f"{sheet.role(side)}: {side.name} ({side.kind}){figures}")
    agreement = sheet.agreement()
    if agreement is not None and agreement.judged:
        lines.append(f"agreement of the two models: F1 {agreement.f1:.3f} on {len(sheet.pictures)} pictures")
    colours = len(sheet.sides) + sheet.labelled > 1
    legend = "Boxes: green on both sides, magenta on one side only." if colours else ""
    return [*lines, f"data: {sheet.data}", *sheet.settings, f"{choice_text(sheet)} {legend}"]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitting(
    pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
    """The text in one line, cut where it is too long."""
    text = printable(text).replace("\n", " ")[:MAX_CHARACTERS]
    if pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength(f"{text}...", font) > width:
        text = text[:-1]
    return f"{text}..."
