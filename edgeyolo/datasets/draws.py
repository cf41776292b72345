"""Random numbers and bilinear sampling that give the same bits on every machine and with every NumPy.

NumPy promises the stream of a bit generator and of ``SeedSequence``, but not what ``Generator`` makes of it (NEP 19),
so the raw words are turned into numbers here. Arithmetic on arrays is restricted to what IEEE 754 rounds in one way
only: ``+ - * /``, ``sqrt``, ``rint`` and comparisons, element by element; no sums of floats, no sine, no power.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Item = TypeVar("Item")


class Draws:
    """The random numbers of one scene, from a list of integers that names it."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def integer(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def real(self, low: float, high: float) -> float:
        """A number from ``low`` up to ``high``."""
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def choice(self, items: Sequence[Item]) -> Item:
        """One of ``items``, all equally likely."""
        return items[self.integer(0, len(items) - 1)]

    def chance(self, share: float) -> bool:
        """True in ``share`` of all cases."""
        return self.real(0, 1) < share

    def octets(self, *shape: int) -> npt.NDArray[np.uint8]:
        """An array of ``shape`` with values from 0 to 255."""
        count = int(np.prod(shape))
        words = np.asarray(self._bits.random_raw(-(-count // 8)), np.uint64)
        return words.astype("<u8").view(np.uint8)[:count].reshape(shape)

    def colour(self) -> Floats:
        """(3,) RGB from 0 to 255."""
        return self.octets(3).astype(np.float32)

    def turn(self, limit: float) -> tuple[float, float]:
        """Cosine and sine of an angle of up to ``2 * atan(limit)`` to either side."""
        t = self.real(-limit, limit)
        return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)


def bilinear(image: npt.NDArray[np.generic], x: Floats, y: Floats) -> Floats:
    """Sample ``image`` (H, W) or (H, W, C) at the positions ``x``, ``y``; outside, the border goes on.

    ``x`` and ``y`` have, or broadcast to, the result's height and width; (0, 0) is the centre of the first pixel.
    """
    (height, width), rest = image.shape[:2], image.shape[2:]
    x0, x1, fx = _taps(x, width)
    y0, y1, fy = _taps(y, height)
    if rest:
        fx, fy = fx[..., None], fy[..., None]
    flat = image.reshape(height * width, *rest)  # one take from a flat array is faster than two indices
    upper = _between(flat.take(y0 * width + x0, 0), flat.take(y0 * width + x1, 0), fx)
    return _between(upper, _between(flat.take(y1 * width + x0, 0), flat.take(y1 * width + x1, 0), fx), fy)


def _taps(position: Floats, size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Floats]:
    """The two neighbours of every position and the weight of the second."""
    inside = np.clip(position.astype(np.float32), np.float32(0), np.float32(size - 1))
    low = inside.astype(np.intp)
    return low, np.minimum(low + 1, size - 1), inside - low.astype(np.float32)


def _between(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic], share: Floats) -> Floats:
    """``a + (b - a) * share`` in float32."""
    first: Floats = a.astype(np.float32)
    mixed: Floats = b.astype(np.float32)
    mixed -= first
    mixed *= share
    mixed += first
    return mixed
