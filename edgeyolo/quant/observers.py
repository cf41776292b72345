"""Collect value distributions in bounded memory, and choose exponents or float scales from them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeyolo.errors import InputError
from edgeyolo.qtype import QType, pow2_frac

Float64 = npt.NDArray[np.float64]

BINS = 16384
PERCENTILE = 99.99
"""Percent of the values that ``percentile`` keeps inside the range."""
CANDIDATES = 7
"""``mse`` and ``kl`` try the exponent that clips nothing and this many minus one finer ones."""
FRAC_LIMIT = 40
"""Exponents stay within +-FRAC_LIMIT: beyond that a tensor is numerically zero or infinite."""
SHARES = np.linspace(0.2, 1.0, 81)
"""Of the largest magnitude: what ``mse`` and ``kl`` try as the end of the range where a scale may be any number."""


class Histogram:
    """Counts of values over [-reach, reach), ``reach`` a power of two that doubles (bins merge in pairs) as needed.

    Memory is constant however many values it has seen.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.reach = 0.0
        self.low, self.high = np.inf, -np.inf

    def update(self, values: npt.NDArray[np.float32]) -> None:
        """Add all values of an array of any shape. Raises InputError if one is infinite or not a number."""
        flat = values.ravel()
        if not np.isfinite(flat).all():
            raise InputError("an activation is infinite or not a number", hint="run the float model on these pictures")
        self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
        self._grow(max(abs(self.low), abs(self.high)))
        index = ((flat + np.float32(self.reach)) * np.float32(BINS / 2 / self.reach)).astype(np.int32)
        np.clip(index, 0, BINS - 1, out=index)
        self.counts += np.bincount(index, minlength=BINS)

    def _grow(self, largest: float) -> None:
        if self.reach == 0.0:
            self.reach = float(np.ldexp(1.0, int(np.frexp(max(largest, 1e-30))[1])))
        while self.reach < largest:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([np.zeros(BINS // 4, np.int64), pairs, np.zeros(BINS // 4, np.int64)])
            self.reach *= 2

    def samples(self) -> tuple[Float64, Float64]:
        """(values, counts) of the occupied bins; the extreme bins stand at the extreme values seen."""
        width = 2 * self.reach / BINS
        occupied = np.flatnonzero(self.counts)
        centres = -self.reach + (occupied + 0.5) * width
        values = np.clip(centres, self.low, self.high)
        values[0] = self.low
        if len(values) > 1 or self.high > -self.low:
            values[-1] = self.high
        return values, self.counts[occupied].astype(np.float64)


def choose_frac(values: Float64, counts: Float64, qtype: QType, method: str) -> int:
    """Fraction bits for values that occur ``counts`` times, by one of ``config.METHODS``.

    Args:
        values: (n,) real numbers; counts: (n,) their weights.
        qtype: the integer type the values must fit.
    """
    widest = _fitting(float(values.max()), float(values.min()), qtype)
    if method == "minmax" or not np.any(values):
        return widest
    if method == "nearest":
        exponent = int(np.rint(np.log2(np.abs(values).max())))
        return _bounded(qtype.bits - int(qtype.signed) - exponent)
    if method == "percentile":
        order = np.argsort(np.abs(values))
        cumulative = np.cumsum(counts[order])
        kept = order[: int(np.searchsorted(cumulative, cumulative[-1] * PERCENTILE / 100)) + 1]
        return _fitting(float(values[kept].max()), float(values[kept].min()), qtype)
    cost = _divergence if method == "kl" else _squared_error
    fracs = [_bounded(widest + i) for i in range(CANDIDATES)]
    return min(fracs, key=lambda frac: cost(values, counts, qtype, float(np.ldexp(1.0, -frac))))


def choose_scale(values: Float64, counts: Float64, qtype: QType, method: str) -> float:
    """A float scale for values that occur ``counts`` times; symmetric, zero point 0. 1 where all values are zero.

    Args:
        values: (n,) real numbers; counts: (n,) their weights.
        qtype: a signed type.
        method: one of ``config.METHODS`` but ``nearest``, which is about powers of two.
    """
    magnitudes = np.abs(values)
    largest = float(magnitudes.max())
    if not largest > 0:
        return 1.0
    if method == "minmax":
        return largest / qtype.hi
    if method == "percentile":
        order = np.argsort(magnitudes)
        cumulative = np.cumsum(counts[order])
        end = int(np.searchsorted(cumulative, cumulative[-1] * PERCENTILE / 100))
        return float(magnitudes[order[min(end, len(order) - 1)]]) / qtype.hi or largest / qtype.hi
    cost = _divergence if method == "kl" else _squared_error
    scales = [float(share) * largest / qtype.hi for share in SHARES]
    return min(scales, key=lambda scale: cost(values, counts, qtype, scale))


def _bounded(frac: int) -> int:
    return max(-FRAC_LIMIT, min(FRAC_LIMIT, frac))


def _fitting(high: float, low: float, qtype: QType) -> int:
    """The finest exponent at which [low, high] fits without clipping."""
    fits = [pow2_frac(high, qtype.hi)] if high > 0 else []
    if low < 0 and qtype.signed:
        fits.append(pow2_frac(-low, -qtype.lo))
    return _bounded(min(fits, default=0))


def _codes(values: Float64, qtype: QType, scale: float) -> Float64:
    return np.clip(np.rint(values / scale), qtype.lo, qtype.hi)


def _squared_error(values: Float64, counts: Float64, qtype: QType, scale: float) -> float:
    return float(counts @ (values - _codes(values, qtype, scale) * scale) ** 2)


def _divergence(values: Float64, counts: Float64, qtype: QType, scale: float) -> float:
    """KL divergence between the clipped distribution and its quantised version spread evenly over each code's values.

    Clipped mass counts at the border in P but is missing in Q, which is what clipping costs (the TensorRT
    calibrator's rule).
    """
    low, high = (qtype.lo - 0.5) * scale, (qtype.hi + 0.5) * scale
    inside = (values >= low) & (values <= high)
    if not inside.any():
        return float("inf")
    kept, mass = values[inside], counts[inside]
    p = mass.copy()
    p[np.argmin(kept)] += counts[values < low].sum()
    p[np.argmax(kept)] += counts[values > high].sum()
    _, group = np.unique(_codes(kept, qtype, scale), return_inverse=True)
    q = (np.bincount(group, mass) / np.bincount(group))[group]
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))
