"""Figures of many timings: percentiles and jitter of one contender, and the ratio of two with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
CONFIDENCE = 0.95
SEED = 0
MIN_ROUNDS = 5
"""Fewer do not show how much rounds differ: without them there is no ratio."""

Floats = npt.NDArray[np.float64]
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Spread:
    """Milliseconds of one stage over all frames; ``jitter`` is p99 - p50."""

    mean: float
    min: float
    p50: float
    p90: float
    p99: float
    jitter: float

    @classmethod
    def of(cls, milliseconds: Sequence[float] | Floats) -> Spread:
        """Of at least one value; percentiles interpolate between neighbours."""
        values = np.asarray(milliseconds, np.float64)
        p50, p90, p99 = (float(p) for p in np.percentile(values, (50, 90, 99)))
        return cls(float(values.mean()), float(values.min()), p50, p90, p99, p99 - p50)

    def to_json(self) -> dict[str, float]:
        """Rounded to the nanosecond."""
        return {key: round(value, 6) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class TimeRatio:
    """The median time of one contender as a multiple of another's, with a bootstrap interval over the rounds."""

    value: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether the interval says which of the two is faster."""
        return self.low > 1 or self.high < 1

    def to_json(self) -> dict[str, float]:
        """Rounded to what an interval can tell."""
        return {key: round(value, 4) for key, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio(blocks: Sequence[Floats], reference: Sequence[Floats]) -> TimeRatio:
    """How much longer ``blocks`` took than ``reference``.

    What disturbs a machine lasts longer than a frame, so frames of one block are alike: blocks are drawn, not frames,
    and both contenders meet the same draws, since block i of both ran next to each other.

    Args:
        blocks, reference: times of the frames of each round, as many rounds on both sides.
    """
    own, other = (np.array([np.median(block) for block in side]) for side in (blocks, reference))
    draws = np.random.default_rng(SEED).integers(0, len(own), (RESAMPLES, len(own)))
    drawn = np.median(own[draws], axis=1) / np.median(other[draws], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(q) for q in np.quantile(drawn, (tail, 1 - tail)))
    return TimeRatio(float(np.median(own) / np.median(other)), low, high)


def independent_ratio(blocks: Sequence[Floats], reference: Sequence[Floats]) -> TimeRatio:
    """How much longer ``blocks`` took than ``reference``, which was measured in another run.

    As ``ratio``, but no round of one ran next to a round of the other: each side has draws of its own. What changed
    between the runs, such as other work on the machine, is in the ratio and not in the interval.

    Args:
        blocks, reference: times of the frames of each round; they need not have as many rounds.
    """
    rng = np.random.default_rng(SEED)
    own, other = (np.array([np.median(block) for block in side]) for side in (blocks, reference))
    drawn = _drawn_medians(own, rng) / _drawn_medians(other, rng)
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(q) for q in np.quantile(drawn, (tail, 1 - tail)))
    return TimeRatio(float(np.median(own) / np.median(other)), low, high)


def _drawn_medians(values: Floats, rng: np.random.Generator) -> Floats:
    """(RESAMPLES,) medians of draws with replacement; in portions, as a file may have very many rounds."""
    rows = max(1, 1_000_000 // len(values))
    portions = [min(rows, RESAMPLES - done) for done in range(0, RESAMPLES, rows)]
    return np.concatenate([np.median(rng.choice(values, (count, len(values))), axis=1) for count in portions])


def medians_by_count(counts: Sequence[float] | Floats, milliseconds: Sequence[float] | Floats) -> Points:
    """(count, median of its milliseconds) for every count that occurs, in their order."""
    times: dict[float, list[float]] = {}
    for count, value in zip(counts, milliseconds, strict=True):
        times.setdefault(float(count), []).append(float(value))
    return tuple((count, round(float(np.median(times[count])), 6)) for count in sorted(times))


def settled(medians: Sequence[float], tolerance: float = 0.05, window: int = 3) -> bool:
    """Whether the last ``window`` medians of blocks lie within ``tolerance`` of one another."""
    last = medians[-window:]
    return len(last) == window and max(last) <= (1 + tolerance) * min(last)
