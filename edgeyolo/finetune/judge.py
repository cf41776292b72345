"""Held-out pictures judge a plan by its exact integers: the SNR of ONNX Runtime's heads on the QDQ file.

A training that is judged ten times will once look better by luck. So one plan beats another only where the noise that
it saves, picture by picture, is above zero by more than ``SURE`` standard errors of its mean.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.errors import InputError
from edgeyolo.quant.calibrate import Pixels, run_pictures
from edgeyolo.quant.compare import HeadSnr
from edgeyolo.quant.insert_qdq import insert_qdq
from edgeyolo.quant.plan import Plan
from edgeyolo.quant.subset import split

MIN_PICTURES = 4
"""One picture of four judges; with fewer there is nothing to learn from or nobody to judge."""


SURE = 2.0


@dataclass(frozen=True, eq=False)
class Verdict:
    """The SNR of all heads together in dB, and the noise energy of each held-out picture (N,)."""

    head_snr_db: float
    noise: npt.NDArray[np.float64]

    def beats(self, other: Verdict) -> bool:
        """Whether it is better by more than chance; a single picture is believed."""
        saved = other.noise - self.noise
        error = saved.std(ddof=1) / np.sqrt(len(saved)) if len(saved) > 1 else 0.0
        return bool(saved.mean() > SURE * error)


class Judge:
    """Remembers the float model's heads on the held-out pictures."""

    def __init__(self, reference: ir.Model, pictures: list[Pixels]) -> None:
        self._reference, self._pictures = reference, pictures
        self._names = [str(v.name) for v in reference.graph.outputs]
        self._exact = list(run_pictures(reference, self._names, pictures))

    def verdict(self, plan: Plan) -> Verdict:
        """What the pictures say of ``plan``."""
        snr, noise = HeadSnr(), list[float]()
        quantised = insert_qdq(self._reference, plan)
        for exact, got in zip(self._exact, run_pictures(quantised, self._names, self._pictures), strict=True):
            snr.add(exact, got)
            noise.append(sum(float(np.square(got[n] - exact[n], dtype=np.float64).sum()) for n in self._names))
        return Verdict(snr.decibel, np.array(noise))


def held_out(pictures: Collection[Pixels]) -> frozenset[int]:
    """Positions of the pictures that judge, spread evenly over the set; the others teach.

    Raises InputError if there are too few.
    """
    count = len(pictures)
    if count < MIN_PICTURES:
        raise InputError(
            "too few pictures to hold some out", got=count, allowed=f"at least {MIN_PICTURES}",
            hint="add calibration pictures; they need no labels",
        )  # fmt: skip
    return frozenset(split(count)[1])
