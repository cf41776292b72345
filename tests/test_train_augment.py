"""Training pictures and their boxes move together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgeyolo.train.augment import Labelled, crop, make_mosaic, mirror, move, recolour
from edgeyolo.train.recipe import Recipe


def block(x0: int, y0: int, x1: int, y1: int, side: int = 64) -> Labelled:
    """A white block on black, labelled."""
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    return Labelled(pixels, np.array([[x0, y0, x1, y1]], np.float32), np.array([1]))


def seen(pixels: np.ndarray) -> list[int]:
    """The box of what is bright."""
    rows, columns = (np.flatnonzero((pixels[..., 0] > 127).any(axis)) for axis in (1, 0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize("seed", range(20))
def test_boxes_move_with_their_pixels(seed):
    random = np.random.default_rng(seed)
    moved = move(block(20, 25, 40, 50), Recipe(scale=0.4, shift=0.1), random, 0)
    assert np.abs(moved.boxes[0] - seen(moved.pixels)).max() <= 1  # half a pixel of bilinear blur on each side
    mirrored = mirror(moved)
    assert np.abs(mirrored.boxes[0] - seen(mirrored.pixels)).max() <= 1


@pytest.mark.parametrize("seed", range(20))
def test_mosaic_boxes_cover_the_pixels_of_their_parts(seed):
    corners = [(20, 25, 40, 50), (5, 5, 30, 20), (30, 30, 60, 60), (10, 40, 25, 60)]
    mosaic = make_mosaic([block(*corner) for corner in corners], np.random.default_rng(seed))
    covered = np.zeros((64, 64), bool)
    for x0, y0, x1, y1 in mosaic.boxes.astype(int):
        assert (mosaic.pixels[y0:y1, x0:x1] == 255).all()
        covered[y0:y1, x0:x1] = True
    missed = (mosaic.pixels[..., 0] == 255) & ~covered
    assert missed.sum() < 0.35 * sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in corners)  # crumbs have no label


def test_little_that_is_left_of_a_box_is_dropped_and_what_was_small_before_stays():
    boxes = np.array([[-10, 0, 10, 20], [-19, 0, 1, 20], [50, 50, 52, 60], [62, 50, 65, 60]], np.float32)
    kept, keep = crop(boxes, (0, 0, 64, 64))
    assert keep.tolist() == [True, False, True, False] and kept.tolist() == [[0, 0, 10, 20], [50, 50, 52, 60]]


def test_colours_change_only_where_asked():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    neutral = Recipe(hue=0, saturation=1, exposure=1)
    assert recolour(pixels, neutral, np.random.default_rng(1)) is pixels
    bright = recolour(pixels, dataclasses.replace(neutral, exposure=2), np.random.default_rng(1))
    assert bright.dtype == np.uint8 and (bright != pixels).any()
