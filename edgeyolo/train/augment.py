"""What training does to pictures and their boxes: mosaic, size and place, mirror, colours.

Pictures are (H, W, 3) uint8 at the network's size, boxes (n, 4) float32 x0 y0 x1 y1 in pixels. Everything is drawn from
the generator that is handed in, so a picture of an epoch is the same whoever makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgeyolo.datasets.sample import Boxes, Classes, Pixels
from edgeyolo.train.recipe import Recipe

MIN_VISIBLE = 0.35
"""A box of which less is left after cropping is dropped."""
MIN_SIDE = 3.0
"""In pixels, of what a crop leaves."""


class Labelled(NamedTuple):
    """A picture and what is on it."""

    pixels: Pixels
    boxes: Boxes
    classes: Classes


Draw = Callable[[int], Labelled]


def augment(
    index: int, draw: Draw, count: int, recipe: Recipe, random: np.random.Generator, *, mosaic: bool, fill: int
) -> Labelled:
    """Make training picture ``index`` of ``count``; ``draw`` gives one as it is. ``fill`` colours what is outside."""
    if mosaic and random.random() < recipe.mosaic:
        others = random.integers(0, count, 3).tolist()
        picture = make_mosaic([draw(i) for i in (index, *others)], random)
    else:
        picture = draw(index)
    picture = move(picture, recipe, random, fill)
    if random.random() < recipe.flip:
        picture = mirror(picture)
    return picture._replace(pixels=recolour(picture.pixels, recipe, random))


def make_mosaic(pictures: list[Labelled], random: np.random.Generator) -> Labelled:
    """Put parts of four pictures of one size around a random point, each at its own scale of 1: nothing is resized."""
    height, width = pictures[0].pixels.shape[:2]
    cx, cy = (int(side * random.uniform(0.3, 0.7)) for side in (width, height))
    canvas = np.empty_like(pictures[0].pixels)
    boxes, classes = [], []
    corners = ((0, 0, cx, cy), (cx, 0, width, cy), (0, cy, cx, height), (cx, cy, width, height))
    for picture, (x0, y0, x1, y1) in zip(pictures, corners, strict=True):
        left, top = int(random.integers(0, width - (x1 - x0) + 1)), int(random.integers(0, height - (y1 - y0) + 1))
        canvas[y0:y1, x0:x1] = picture.pixels[top : top + y1 - y0, left : left + x1 - x0]
        moved = picture.boxes + np.array([x0 - left, y0 - top] * 2, np.float32)
        kept, keep = crop(moved, (x0, y0, x1, y1))
        boxes.append(kept)
        classes.append(picture.classes[keep])
    return Labelled(canvas, np.concatenate(boxes), np.concatenate(classes))


def crop(boxes: Boxes, window: tuple[float, float, float, float]) -> tuple[Boxes, npt.NDArray[np.bool_]]:
    """Clip boxes to a window; returns those of which enough is left, and which those are."""
    x0, y0, x1, y1 = window
    low, high = np.array([x0, y0] * 2, np.float32), np.array([x1, y1] * 2, np.float32)
    inside = np.clip(boxes, low, high).astype(np.float32)
    before, after = boxes[:, 2:] - boxes[:, :2], inside[:, 2:] - inside[:, :2]
    enough = (after.min(axis=1, initial=np.inf) >= MIN_SIDE) & (after.prod(1) >= MIN_VISIBLE * before.prod(1))
    keep = enough | (inside == boxes).all(axis=1)  # what was small before stays
    return inside[keep], keep


def move(picture: Labelled, recipe: Recipe, random: np.random.Generator, fill: int) -> Labelled:
    """Change size and place: both axes by nearly the same factor, about the centre, then a shift."""
    if not recipe.scale and not recipe.shift:
        return picture
    height, width = picture.pixels.shape[:2]
    both = np.exp(random.uniform(-1, 1) * np.log1p(recipe.scale))
    stretch = np.exp(random.uniform(-0.5, 0.5) * np.log1p(recipe.scale) * 0.5)
    fx, fy = both * stretch, both / stretch
    dx = width * (0.5 - 0.5 * fx + random.uniform(-recipe.shift, recipe.shift))
    dy = height * (0.5 - 0.5 * fy + random.uniform(-recipe.shift, recipe.shift))
    inverse = (1 / fx, 0.0, -dx / fx, 0.0, 1 / fy, -dy / fy)
    image = Image.fromarray(picture.pixels)
    moved = image.transform(
        (width, height), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR, fillcolor=(fill,) * 3
    )
    boxes = picture.boxes * np.array([fx, fy] * 2, np.float32) + np.array([dx, dy] * 2, np.float32)
    boxes, keep = crop(boxes, (0, 0, width, height))
    return Labelled(np.asarray(moved), boxes, picture.classes[keep])


def mirror(picture: Labelled) -> Labelled:
    """Swap left and right."""
    width = np.float32(picture.pixels.shape[1])
    boxes = picture.boxes.copy()
    boxes[:, [0, 2]] = width - picture.boxes[:, [2, 0]]
    return picture._replace(pixels=picture.pixels[:, ::-1], boxes=boxes)


def recolour(pixels: Pixels, recipe: Recipe, random: np.random.Generator) -> Pixels:
    """Turn the hue, and multiply saturation and brightness (Darknet's exposure) by a factor or its inverse."""
    turn = random.uniform(-recipe.hue, recipe.hue)
    factors = [float(np.exp(random.uniform(-1, 1) * np.log(f))) for f in (recipe.saturation, recipe.exposure)]
    if not recipe.hue and factors == [1.0, 1.0]:
        return pixels
    hsv = Image.fromarray(pixels).convert("HSV")
    ramp = np.arange(256)
    hue = np.mod(ramp + round(turn * 256), 256)
    tables = [hue, *(np.minimum(np.rint(ramp * factor), 255) for factor in factors)]
    lut = np.concatenate(tables).astype(int).tolist()
    return np.asarray(hsv.point(lut).convert("RGB"))
