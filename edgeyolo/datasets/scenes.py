"""Detection scenes that every machine can make: real handwritten digits on varied backgrounds.

The digits are the 1,797 of scikit-learn's ``load_digits`` (8x8 pixels, 17 grey levels; the test part of the UCI data
set "Optical Recognition of Handwritten Digits", CC BY 4.0). Of each class every fifth image belongs to ``val``, the
others to ``train``: no image is in both. Who wrote an image is not recorded, so a writer may be in both, and so are
the backgrounds.

A scene is 160x160 RGB with 0 to 8 digits, later ones over earlier ones. Rules that make its labels fair:

- *Ink* is every pixel that a digit covers by at least half. A box is tight around the ink that can be seen.
- At least ``MIN_VISIBLE`` of each digit's ink can be seen: the picture's edge and other digits hide no more. A digit
  that finds no such place is left out, so nothing is drawn that has no label.
- When it is placed, a digit's ink is at least ``MIN_HEIGHT`` pixels high, its box has at most ``MAX_IOU`` with any
  other (so that suppression can keep both) and its brightness is meant to differ from what it covers, on average, by
  at least ``MIN_CONTRAST`` (of 255).
- Digits lean up to about 25 degrees, so that 6 and 9 keep apart.

Everything follows from (seed, split, index); see ``draws.py`` for how the bits stay the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from edgeyolo.datasets.backdrops import backdrop
from edgeyolo.datasets.draws import Draws, Floats, bilinear
from edgeyolo.datasets.sample import Boxes, Classes, Pixels, Sample
from edgeyolo.errors import InputError

SIDE = 160
NAMES = tuple("0123456789")
SPLITS = ("train", "val")
VAL_EVERY = 5
DEFAULT_COUNT = {"train": 8192, "val": 512}
MAX_COUNT = 1 << 24
MAX_SEED = 1 << 32

MAX_DIGITS = 8
TRIES = 6
MIN_VISIBLE = 0.8
MIN_HEIGHT = 18
MAX_IOU = 0.2
MIN_CONTRAST = 70

Mask = npt.NDArray[np.bool_]
_PAD, _ZOOM = 2, 4


class Digit(NamedTuple):
    """A digit to be painted: coverage (h, w) from 0 to 1 and ink (h, w)."""

    cover: Floats
    ink: Mask


@dataclass(frozen=True)
class SceneDataset(Sequence[Sample]):
    """``n`` scenes of ``split`` (``train`` or ``val``), made when asked for; scene i depends on (seed, split, i) only.

    Raises InputError for another split or a count or seed out of range, and if scikit-learn is not installed.
    """

    split: str
    n: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise InputError("unknown split of the scenes", got=self.split, allowed=", ".join(SPLITS))
        if not (0 < self.n <= MAX_COUNT and 0 <= self.seed < MAX_SEED):
            allowed = f"1 to {MAX_COUNT} scenes, a seed from 0 to {MAX_SEED - 1}"
            raise InputError("impossible scenes", got=f"{self.n} scenes, seed {self.seed}", allowed=allowed)
        glyphs(self.split)

    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.n))]
        number = range(self.n)[index]
        pixels, boxes, classes = make_scene(self.split, number, self.seed)
        name = f"{self.split}-{self.seed}-{number:06d}"
        return Sample(name, (SIDE, SIDE), boxes, classes, lambda: pixels)


def digit_indices(split: str) -> tuple[tuple[int, ...], ...]:
    """For each class the positions in ``load_digits`` of the images that belong to ``split``."""
    target = _digits()[1]
    per_class = [np.flatnonzero(target == digit) for digit in range(len(NAMES))]
    wanted = [(np.arange(len(found)) % VAL_EVERY == VAL_EVERY - 1) == (split == "val") for found in per_class]
    return tuple(tuple(int(i) for i in found[keep]) for found, keep in zip(per_class, wanted, strict=True))


@cache
def _digits() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Images (1797, 8, 8) from 0 to 16 and classes (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "the scenes are made of the digits that scikit-learn ships, and it is not installed",
            hint="pip install 'edgeyolo[eval]'",
        ) from error
    digits = load_digits()
    return digits.images.astype(np.int64), digits.target.astype(np.int64)


@cache
def glyphs(split: str) -> tuple[tuple[Floats, ...], ...]:
    """For each class the digits of ``split``, smoothly enlarged to (48, 48) with an empty margin, from 0 to 1."""
    images = np.pad(_digits()[0], ((0, 0), (_PAD, _PAD), (_PAD, _PAD)))
    for axis in (1, 2, 1, 2):
        images = _double(images, axis)
    smooth = (images / np.float64(16 * 4**4)).astype(np.float32)
    return tuple(tuple(smooth[i] for i in indices) for indices in digit_indices(split))


def _double(images: npt.NDArray[np.int64], axis: int) -> npt.NDArray[np.int64]:
    """Twice as many pixels along ``axis``, times 4: the subdivision rule (1 3), (3 1) of the quadratic B-spline."""
    before, after = np.roll(images, 1, axis), np.roll(images, -1, axis)
    pairs = np.stack((3 * images + before, 3 * images + after), axis + 1)
    shape = list(images.shape)
    shape[axis] *= 2
    return pairs.reshape(shape)


def make_scene(split: str, index: int, seed: int) -> tuple[Pixels, Boxes, Classes]:
    """One scene: (160, 160, 3) uint8 RGB, read-only; (n, 4) float32 boxes in pixels; (n,) int64 classes."""
    draws = Draws(seed, SPLITS.index(split), index)
    canvas = backdrop(draws, SIDE)
    owner = np.full((SIDE, SIDE), -1, np.int8)  # which digit's ink is on top
    boxes: list[tuple[int, int, int, int]] = []
    total: list[int] = []
    classes: list[int] = []
    for _ in range(0 if draws.chance(1 / 32) else draws.integer(1, MAX_DIGITS)):
        label = draws.integer(0, len(NAMES) - 1)
        digit = _digit(draws, draws.choice(glyphs(split)[label]))
        place = _place(draws, digit, owner, boxes, total)
        if place is None:
            continue
        left, top = place
        seen = _shown(digit.ink, left, top)
        _paint(draws, canvas, _shown(digit.cover, left, top), seen, max(left, 0), max(top, 0))
        window = owner[max(top, 0) :, max(left, 0) :][: seen.shape[0], : seen.shape[1]]
        window[seen] = len(classes)
        boxes.append(_around(seen, max(left, 0), max(top, 0)))
        total.append(int(digit.ink.sum()))
        classes.append(label)
    grain = draws.octets(2, SIDE, SIDE, 3).astype(np.float32)
    grain[0] -= grain[1]
    grain[0] *= np.float32(draws.real(0, 12) / 255)
    canvas += grain[0]
    pixels = np.rint(np.clip(canvas, 0, 255, out=canvas), out=canvas).astype(np.uint8)
    pixels.flags.writeable = False
    visible = [_around(owner == number, 0, 0) for number in range(len(classes))]
    return pixels, np.array(visible, np.float32).reshape(-1, 4), np.array(classes, np.int64)


def _digit(draws: Draws, glyph: Floats) -> Digit:
    """Scale, lean and slant a glyph; cut to its ink and one pixel around it."""
    size = 24 + 76 * draws.real(0, 1) * draws.real(
        0, 1
    )  # height of the original 8 rows in pixels: small ones are common
    aspect, slant = draws.real(0.8, 1.2), draws.real(-0.15, 0.15)
    cosine, sine = draws.turn(0.22)
    step = 8 * _ZOOM / size  # glyph pixels per scene pixel
    reach = int(0.9 * size) + 2
    axis = np.arange(-reach, reach + 1).astype(np.float64)
    dx, dy = axis[None, :] + draws.real(-0.5, 0.5), axis[:, None] + draws.real(-0.5, 0.5)
    down = (dy * cosine - dx * sine) * step
    across = (dx * cosine + dy * sine) * (step / aspect) + slant * down
    middle = (glyph.shape[0] - 1) / 2
    value = bilinear(glyph, (across + middle).astype(np.float32), (down + middle).astype(np.float32))
    edge, sharpness = np.float32(draws.real(0.38, 0.52)), np.float32(draws.real(3, 7))
    cover = np.clip((value - edge) * sharpness + np.float32(0.5), 0, 1)
    ink = value >= edge
    x0, y0, x1, y1 = _around(ink, 0, 0)
    cut = (slice(max(y0 - 1, 0), y1 + 1), slice(max(x0 - 1, 0), x1 + 1))
    return Digit(cover[cut], ink[cut])


def _place(
    draws: Draws,
    digit: Digit,
    owner: npt.NDArray[np.int8],
    boxes: list[tuple[int, int, int, int]],
    total: list[int],
) -> tuple[int, int] | None:
    """Find where the digit's upper left corner may go by the rules above, or None."""
    height, width = digit.ink.shape
    shown = np.bincount(owner.ravel().astype(np.intp) + 1, minlength=len(total) + 1)[1:]
    for _ in range(TRIES):
        left, top = (draws.integer(-(size // 8), SIDE - size + size // 8) for size in (width, height))
        seen = _shown(digit.ink, left, top)
        if int(seen.sum()) < MIN_VISIBLE * int(digit.ink.sum()):
            continue
        box = _around(seen, max(left, 0), max(top, 0))
        if box[3] - box[1] < MIN_HEIGHT or any(_iou(box, other) > MAX_IOU for other in boxes):
            continue
        window = owner[max(top, 0) :, max(left, 0) :][: seen.shape[0], : seen.shape[1]]
        hidden = np.bincount(window[seen].astype(np.intp) + 1, minlength=len(total) + 1)[1:]
        if all(s - h >= MIN_VISIBLE * t for s, h, t in zip(shown, hidden, total, strict=True)):
            return left, top
    return None


def _shown(image: npt.NDArray[np.generic], left: int, top: int) -> npt.NDArray[np.generic]:
    """The part of ``image`` that is inside the scene when its corner stands at (left, top)."""
    return image[max(-top, 0) : SIDE - top, max(-left, 0) : SIDE - left]


def _around(mask: npt.NDArray[np.generic], left: int, top: int) -> tuple[int, int, int, int]:
    """The tight box (x0, y0, x1, y1) of a mask whose corner stands at (left, top)."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1


def _iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection over union of two boxes."""
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return shared / (areas - shared)


def _paint(
    draws: Draws, canvas: Floats, cover: npt.NDArray[np.generic], ink: npt.NDArray[np.generic], left: int, top: int
) -> None:
    """Paint a digit in a colour that is clearly lighter or darker than what it covers."""
    window = canvas[top : top + ink.shape[0], left : left + ink.shape[1]]
    # Whole numbers, because their sum does not depend on the order of the additions.
    red, green, blue = (int(v) for v in np.rint(window[ink.astype(np.bool_)]).astype(np.int64).sum(0))
    ground = (77 * red + 150 * green + 29 * blue) / (256 * int(ink.sum()))
    lighter, darker = 255 - ground, ground
    lighten = draws.chance(0.5) if min(lighter, darker) >= MIN_CONTRAST else lighter > darker
    contrast = draws.real(MIN_CONTRAST, min(max(lighter if lighten else darker, MIN_CONTRAST), 200))
    level = ground + contrast if lighten else ground - contrast
    tint = [draws.real(-60, 60) for _ in range(3)]
    mean = (77 * tint[0] + 150 * tint[1] + 29 * tint[2]) / 256
    colour = np.clip(np.array([level + t - mean for t in tint], np.float32), 0, 255)
    window += (colour - window) * (cover.astype(np.float32) * np.float32(draws.real(0.85, 1)))[..., None]
