"""Some of the calibration pictures: those that a refinement is computed from, and those held out to judge it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from edgeyolo.quant.calibrate import Pixels

HELD_OUT_PICTURES = 16
"""Pictures that judge which refinements helped; never among those they were computed from, unless there are too few."""


@dataclass(frozen=True, eq=False)
class Subset:
    """Some of the pictures, in their order, and those mirrored where asked; decoded when iterated."""

    pictures: Collection[Pixels]
    positions: frozenset[int]
    mirrored: bool = False

    def __len__(self) -> int:
        return len(self.positions) * (2 if self.mirrored else 1)

    def __contains__(self, item: object) -> bool:
        return any(item is pixels for pixels in self)

    def __iter__(self) -> Iterator[Pixels]:
        for index, pixels in enumerate(self.pictures):
            if index in self.positions:
                yield pixels
                if self.mirrored:
                    yield np.ascontiguousarray(pixels[:, :, ::-1])


def split(count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(positions to refine on, held-out positions), spread evenly; the same picture when there is only one."""
    held = min(HELD_OUT_PICTURES, max(1, count // 4))
    held_out = tuple(sorted(set(np.linspace(0, count - 1, held).astype(int).tolist())))
    return tuple(i for i in range(count) if i not in held_out) or (0,), held_out
