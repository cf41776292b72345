"""Pictures of limited size with boxes whose colour says whether the other side has them too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from edgeyolo.draw import Colour, class_colour, draw_boxes
from edgeyolo.postprocess import Detections, Floats
from edgeyolo.sheet.content import Mask, Sheet, counted, partners

SIDE = 480
"""The longer side of a pane in pixels."""
MAX_LABEL = 24
"""Characters of a class name on a picture."""
MAX_LABELS = 12
"""Labels on a picture: more would hide it. Boxes that differ come first, then those with the best scores."""
SAME: Colour = (64, 201, 109)
OTHER: Colour = (255, 69, 181)
"""Green and magenta: told apart with any colour vision; what differs has thicker lines besides."""


class Pane(NamedTuple):
    """One picture with one side's boxes; ``role`` is ``reference``, ``model`` or ``labels``."""

    role: str
    image: Image.Image
    caption: str


def panes(sheet: Sheet, i: int) -> list[Pane]:
    """Picture ``i`` once for each side, from left to right, and with its labels at last. Raises InputError."""
    subject = sheet.pictures[i]
    image = Image.fromarray(subject.load()).convert("RGB")
    ratio = SIDE / max(image.size)
    small = image.resize((max(1, round(image.width * ratio)), max(1, round(image.height * ratio))), _filter(ratio))
    scale = np.array([small.width / image.width, small.height / image.height] * 2)
    masks, seen = partners(sheet, i)
    drawn = []
    for side in sheet.sides:
        found, role = side.found[i], sheet.role(side)
        canvas = _drawn(small, found, scale, sheet.names, masks.get(role), scores=True)
        drawn.append(Pane(role, canvas, _caption(found, subject.truth)))
    if subject.truth is not None:
        canvas = _drawn(small, subject.truth, scale, sheet.names, seen, scores=False)
        drawn.append(Pane("labels", canvas, f"{len(subject.truth)} labelled"))
    return drawn


def _filter(ratio: float) -> Image.Resampling:
    """Averaging to shrink, smooth to enlarge."""
    return Image.Resampling.LANCZOS if ratio < 1 else Image.Resampling.BICUBIC


def _drawn(
    image: Image.Image, found: Detections, scale: Floats, names: Sequence[str], known: Mask | None, *, scores: bool
) -> Image.Image:
    """A copy of ``image`` with boxes: in the classes' colours, or by whether they have a partner."""
    canvas, classes = image.copy(), found.classes.tolist()
    labels = [names[c][:MAX_LABEL] for c in classes]
    if scores:
        labels = [f"{label} {score:.2f}" for label, score in zip(labels, found.scores.tolist(), strict=True)]
    partner = [] if known is None else known.tolist()
    for i in sorted(range(len(labels)), key=lambda i: i < len(partner) and partner[i])[MAX_LABELS:]:
        labels[i] = ""
    colours = [SAME if same else OTHER for same in partner] if known is not None else [class_colour(c) for c in classes]
    draw_boxes(canvas, found.boxes * scale, labels, colours, [not same for same in partner])
    return canvas


def _caption(found: Detections, truth: Detections | None) -> str:
    """How many boxes, and how they compare with the labels."""
    boxes = f"{len(found)} found"
    if truth is None:
        return boxes
    counts = counted(truth, found)
    return f"{boxes}: {counts.matched} of {len(truth)} labelled, {counts.invented} false"
