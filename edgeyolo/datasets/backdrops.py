"""What stands behind the digits of a scene: photos, gradients, noise, and clutter of thin strokes over them."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from edgeyolo.datasets.draws import Draws, Floats, bilinear

LETTERS: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "X": ((0, 0, 1, 1), (1, 0, 0, 1)),
    "H": ((0, 0, 0, 1), (1, 0, 1, 1), (0, 0.5, 1, 0.5)),
    "T": ((0, 0, 1, 0), (0.5, 0, 0.5, 1)),
    "K": ((0, 0, 0, 1), (1, 0, 0, 0.5), (0, 0.5, 1, 1)),
    "M": ((0, 1, 0, 0), (0, 0, 0.5, 0.6), (0.5, 0.6, 1, 0), (1, 0, 1, 1)),
    "W": ((0, 0, 0.25, 1), (0.25, 1, 0.5, 0.3), (0.5, 0.3, 0.75, 1), (0.75, 1, 1, 0)),
    "E": ((0, 0, 0, 1), (0, 0, 1, 0), (0, 0.5, 0.8, 0.5), (0, 1, 1, 1)),
    "N": ((0, 1, 0, 0), (0, 0, 1, 1), (1, 1, 1, 0)),
    "V": ((0, 0, 0.5, 1), (0.5, 1, 1, 0)),
}
"""Letters as segments (x0, y0, x1, y1) in a unit box. None of them can pass for a digit, as I, O, S and Z could."""

MAX_PEN = 1.1
"""Half the width of a clutter stroke in pixels. The smallest digit's strokes are wider: a line is not a 1."""


@cache
def photos() -> tuple[npt.NDArray[np.uint8], ...]:
    """The two photos that scikit-learn ships, (H, W, 3) RGB each."""
    from sklearn.datasets import load_sample_images

    return tuple(load_sample_images().images)


def backdrop(draws: Draws, side: int) -> Floats:
    """A background, (side, side, 3) from 0 to 255."""
    pixels = draws.choice((_photo, _photo, _gradient, _noise))(draws, side)
    if draws.chance(0.6):
        _clutter(draws, pixels)
    return pixels


def _photo(draws: Draws, side: int) -> Floats:
    """A part of a photo, possibly mirrored, faded towards one colour so that digits on it can be read."""
    image = draws.choice(photos())
    width = draws.real(100, 420)
    step = width / side
    left, top = draws.real(0, image.shape[1] - width), draws.real(0, image.shape[0] - width)
    ramp = (np.arange(side) * step).astype(np.float32)
    x = np.float32(left) + (ramp[::-1] if draws.chance(0.5) else ramp)
    part = bilinear(image, x[None, :], (np.float32(top) + ramp)[:, None])
    fade = np.float32(draws.real(0.35, 0.9))
    colour = draws.colour()
    faded: Floats = colour + (part - colour) * fade
    return faded


def _gradient(draws: Draws, side: int) -> Floats:
    """One colour running into another in some direction."""
    first, second = draws.colour(), draws.colour()
    cosine, sine = draws.turn(1.0)
    ramp = (np.arange(side) / (side - 1) - 0.5).astype(np.float32)
    along = ramp[None, :] * np.float32(cosine) + ramp[:, None] * np.float32(sine) + np.float32(0.5)
    blend: Floats = first + (second - first) * np.clip(along, 0, 1)[..., None]
    return blend


def _noise(draws: Draws, side: int) -> Floats:
    """Blotches of two sizes around one colour."""
    pixels = np.broadcast_to(draws.colour(), (side, side, 3)).astype(np.float32)
    for low, high in ((3, 10), (16, 60)):
        cells, amount = draws.integer(low, high), np.float32(draws.real(0.05, 0.3))
        ramp = (np.arange(side) * ((cells - 1) / (side - 1))).astype(np.float32)
        blotches = bilinear(draws.octets(cells, cells, 3), ramp[None, :], ramp[:, None])
        pixels += (blotches - np.float32(127.5)) * amount
    return np.clip(pixels, 0, 255)


def _clutter(draws: Draws, pixels: Floats) -> None:
    """Draw long lines and strokes like letters into ``pixels``."""
    side = pixels.shape[0]
    for _ in range(draws.integer(0, 3)):
        ends = [draws.real(-0.1 * side, 1.1 * side) for _ in range(4)]
        _stroke(pixels, ends, draws.real(0.4, MAX_PEN), draws.colour(), draws.real(0.4, 0.9))
    for _ in range(draws.integer(0, 5)):
        height = draws.real(10, 40)
        width, x, y = height * draws.real(0.5, 1), draws.real(0, side), draws.real(0, side)
        cosine, sine = draws.turn(0.3)
        pen, colour, opacity = draws.real(0.4, MAX_PEN), draws.colour(), draws.real(0.4, 0.9)
        for x0, y0, x1, y1 in LETTERS[draws.choice(tuple(LETTERS))]:
            corners = ((x0 * width, y0 * height), (x1 * width, y1 * height))
            ends = [c for u, v in corners for c in (x + u * cosine - v * sine, y + u * sine + v * cosine)]
            _stroke(pixels, ends, pen, colour, opacity)


def _stroke(pixels: Floats, ends: list[float], pen: float, colour: Floats, opacity: float) -> None:
    """Draw the segment ``ends`` = (x0, y0, x1, y1) with a round pen of radius ``pen`` and soft edges."""
    x0, y0, x1, y1 = ends
    reach = pen + 1
    left, right = (int(v) for v in np.clip((min(x0, x1) - reach, max(x0, x1) + reach + 1), 0, pixels.shape[1]))
    top, bottom = (int(v) for v in np.clip((min(y0, y1) - reach, max(y0, y1) + reach + 1), 0, pixels.shape[0]))
    if right <= left or bottom <= top:
        return
    dx, dy = np.float32(x1 - x0), np.float32(y1 - y0)
    x = (np.arange(left, right) - x0).astype(np.float32)[None, :]
    y = (np.arange(top, bottom) - y0).astype(np.float32)[:, None]
    along = np.clip((x * dx + y * dy) / max(np.float32(1e-3), dx * dx + dy * dy), 0, 1)
    off_x, off_y = x - along * dx, y - along * dy
    distance = np.sqrt(off_x * off_x + off_y * off_y)
    cover = np.clip(np.float32(pen + 0.5) - distance, 0, 1) * np.float32(opacity)
    window = pixels[top:bottom, left:right]
    window += (colour - window) * cover[..., None]
