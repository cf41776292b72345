"""What every reader gives: labelled pictures, and a list of everything that was wrong with the labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgeyolo.images import Pixels

__all__ = ["Boxes", "Classes", "Dataset", "Pixels", "Problem", "Sample", "load_again"]

Boxes = npt.NDArray[np.float32]
Classes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sample:
    """One labelled picture.

    Args:
        name: identifies it in its data set; never a path outside of it.
        size: (width, height) in pixels, upright.
        boxes: (n, 4) float32, x0 y0 x1 y1 in pixels, inside the picture and not empty.
        classes: (n,) int64, positions in the data set's names.
        load: gives the picture, (height, width, 3) uint8 RGB; raises InputError if it does not decode.
    """

    name: str
    size: tuple[int, int]
    boxes: Boxes
    classes: Classes
    load: Callable[[], Pixels]


def load_again(samples: Sequence[Sample], number: int) -> Pixels:
    """Decode, or make, a picture once more: for those who must not hold the pixels that a generated sample holds."""
    return samples[number].load()


class Problem(NamedTuple):
    """Something wrong or remarkable about a label or a picture.

    Args:
        where: file and line or entry.
        reason: a few words, the same for the same kind of problem.
        action: ``dropped`` (a label), ``repaired`` (clipped), ``kept`` (only told) or ``left out`` (a whole picture).
        got: the beginning of the offending value.
    """

    where: str
    reason: str
    action: str
    got: str = ""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled pictures, their class names, and every problem that was met; nothing is dropped without one."""

    names: tuple[str, ...]
    samples: Sequence[Sample]
    problems: tuple[Problem, ...] = ()

    def counts(self) -> dict[tuple[str, str], int]:
        """How often each (action, reason) occurs, the most frequent first."""
        return dict(Counter((p.action, p.reason) for p in self.problems).most_common())

    def summary(self) -> str:
        """One line for a person: ``12 x unknown class (dropped), 3 x out of range (repaired)``; or ``""``."""
        return ", ".join(f"{count} x {reason} ({action})" for (action, reason), count in self.counts().items())
