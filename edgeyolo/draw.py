"""Draw detections onto a picture: boxes, labels and a strip with the counts per class."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from edgeyolo.detector import Detector
from edgeyolo.postprocess import Classification, Detections

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

GOLDEN_ANGLE = 0.381966
"""Hues of successive classes lie this far apart (in turns), so that neighbours always differ."""
WHITE, BLACK, STRIP = (255, 255, 255), (0, 0, 0), (0, 0, 0, 150)


def class_colour(index: int) -> Colour:
    """Return the colour of class ``index``, the same in every picture."""
    hue = (0.02 + index * GOLDEN_ANGLE) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 if index % 2 else 0.7, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(image: npt.NDArray[np.uint8], detections: Detections, detector: Detector) -> Image.Image:
    """Return a copy of ``image`` (H, W, 3) RGB with boxes, labels (name and score) and the counts per class."""
    canvas = Image.fromarray(image).convert("RGB")
    labels = [
        f"{detector.class_name(c)} {score:.2f}"
        for c, score in zip(detections.classes.tolist(), detections.scores.tolist(), strict=True)
    ]
    draw_boxes(canvas, detections.boxes, labels, [class_colour(c) for c in detections.classes.tolist()])
    rows = [(class_colour(c), f"{detector.class_name(c)} {n}") for c, n in detections.counts().items()]
    _strip(ImageDraw.Draw(canvas, "RGBA"), rows or [(WHITE, "nothing found")], _font(canvas), canvas.size)
    return canvas


def draw_boxes(
    canvas: Image.Image,
    boxes: npt.NDArray[np.floating[Any]],
    labels: Sequence[str],
    colours: Sequence[Colour],
    bold: Sequence[bool] = (),
) -> None:
    """Draw (n, 4) boxes, the best first, into an RGB picture; a label may be empty, ``bold`` boxes have thick lines."""
    pen = ImageDraw.Draw(canvas, "RGBA")
    thin, font = max(2, round(min(canvas.size) / 220)), _font(canvas)
    corners = [_corners(box, canvas.size) for box in boxes]
    order = range(len(boxes) - 1, -1, -1)  # the best box last, on top
    for i in order:
        width = 2 * thin if i < len(bold) and bold[i] else thin
        pen.rectangle(corners[i], outline=(*BLACK, 110), width=width + 2)
        pen.rectangle(corners[i], outline=colours[i], width=width)
    taken: list[Box] = []
    for i in reversed(order):  # the best label first, at the best place
        if not labels[i]:
            continue
        place = _place_label(pen, labels[i], font, corners[i], canvas.size, taken)
        _label(pen, place, labels[i], font, colours[i])
        taken.append(place)


def draw_classification(image: npt.NDArray[np.uint8], result: Classification, detector: Detector) -> Image.Image:
    """Return a copy of ``image`` (H, W, 3) RGB with a classifier's best classes and their scores."""
    canvas = Image.fromarray(image).convert("RGB")
    pairs = zip(result.classes.tolist(), result.scores.tolist(), strict=True)
    rows = [(class_colour(c), f"{detector.class_name(c)} {score:.2f}") for c, score in pairs]
    _strip(ImageDraw.Draw(canvas, "RGBA"), rows, _font(canvas), canvas.size)
    return canvas


def _font(canvas: Image.Image) -> Font:
    """Return Pillow's own font at a size that reads well on this picture."""
    return ImageFont.load_default(max(11, round(min(canvas.size) / 30)))


def _corners(box: Any, size: tuple[int, int]) -> Box:
    """Return the box as ordered whole pixels inside the picture."""
    x1, x2 = (min(max(round(float(v)), 0), size[0] - 1) for v in (box[0], box[2]))
    y1, y2 = (min(max(round(float(v)), 0), size[1] - 1) for v in (box[1], box[3]))
    return x1, y1, max(x1, x2), max(y1, y2)


def _text_size(pen: ImageDraw.ImageDraw, text: str, font: Font) -> tuple[int, int, int]:
    """Return width and height of a label with its margins, and the margin."""
    margin = max(2, round(font.getbbox("X")[3] / 5))
    left, _, right, _ = pen.textbbox((0, 0), text, font)
    return round(right - left) + 2 * margin, round(font.getbbox("Xg")[3]) + 2 * margin, margin


def _place_label(
    pen: ImageDraw.ImageDraw, text: str, font: Font, box: Box, size: tuple[int, int], taken: list[Box]
) -> Box:
    """Choose the first free place: above the box, inside its top, below it, inside its bottom; else the first."""
    width, height, _ = _text_size(pen, text, font)
    left = max(0.0, min(box[0], size[0] - width))
    tops = [box[1] - height, box[1], box[3], box[3] - height]
    places = [(left, top, left + width, top + height) for top in tops if 0 <= top <= size[1] - height]
    for place in places:
        if not any(place[0] < t[2] and t[0] < place[2] and place[1] < t[3] and t[1] < place[3] for t in taken):
            return place
    return places[0] if places else (left, 0, left + width, height)


def _label(pen: ImageDraw.ImageDraw, place: Box, text: str, font: Font, colour: Colour) -> None:
    """Write ``text`` on a plate of ``colour``, in black or white, whichever reads better."""
    margin = _text_size(pen, text, font)[2]
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    pen.rectangle(place, fill=colour)
    pen.text((place[0] + margin, place[1] + margin), text, fill=BLACK if luma > 120 else WHITE, font=font)


def _strip(pen: ImageDraw.ImageDraw, rows: list[tuple[Colour, str]], font: Font, size: tuple[int, int]) -> None:
    """Write one line per row on a dark plate in the lower left corner, each after a square of its colour."""
    height = _text_size(pen, "X", font)[1]
    fitting = rows[: max(1, size[1] // height - 1)]
    width = height + max(_text_size(pen, text, font)[0] for _, text in fitting)
    top = size[1] - height * len(fitting)
    pen.rectangle((0, top, min(width, size[0]), size[1]), fill=STRIP)
    for i, (colour, text) in enumerate(fitting):
        y, inset = top + i * height, height // 4
        pen.rectangle((inset, y + inset, height - inset, y + height - inset), fill=colour)
        pen.text((height, y + _text_size(pen, text, font)[2]), text, fill=WHITE, font=font)
