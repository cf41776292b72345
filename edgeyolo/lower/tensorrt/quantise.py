"""From a float graph and pictures to the graph with Q/DQ pairs: place, scale channels, choose scales, insert, judge."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.lower.tensorrt.calibrate import METHODS, choose_scales
from edgeyolo.lower.tensorrt.insert import Scales, insert_pairs
from edgeyolo.lower.tensorrt.placement import Placement, place
from edgeyolo.quant.calibrate import Pixels, copy_model, observe
from edgeyolo.quant.compare import head_snr
from edgeyolo.quant.refine.equalise import equalise
from edgeyolo.quant.subset import Subset, split

Track = Callable[[Collection[Any], str], Iterable[Any]]
ALIASES = {"entropy": "kl"}


@dataclass(frozen=True)
class Int8Config:
    """What the user asked for.

    Args:
        method: how activation scales are chosen, one of ``METHODS`` (``entropy`` is ``kl``).
        keep_float: weighted layers that stay float: ``first``, ``head``, ``depthwise`` or patterns over names.
        equalise: scale channels across layers, kept where it helps on held-out pictures.
    """

    method: str = "mse"
    keep_float: tuple[str, ...] = ("head",)
    equalise: bool = True

    def __post_init__(self) -> None:
        if ALIASES.get(self.method, self.method) not in METHODS:
            allowed = ", ".join([*METHODS, *ALIASES])
            raise InputError("unknown method to choose scales", where="--method", got=self.method, allowed=allowed)


@dataclass(frozen=True, eq=False)
class Int8Candidate:
    """One way to quantise: the float graph, the graph with pairs, the SNR of its heads on held-out pictures."""

    name: str
    reference: ir.Model
    model: ir.Model
    scales: Scales
    head_snr_db: float


@dataclass(frozen=True, eq=False)
class Int8Result:
    """All candidates in order, the best of them, and where the pairs stand."""

    candidates: tuple[Int8Candidate, ...]
    best: Int8Candidate
    placement: Placement


def quantise_int8(
    model: ir.Model, pictures: Collection[Pixels], config: Int8Config, track: Track = lambda items, _: items
) -> Int8Result:
    """Quantise a float graph for TensorRT.

    Args:
        model: BN-folded and simplified, raw heads, with detector metadata; its batch may be symbolic.
        pictures: network pixels (C, H, W) uint8; iterated several times.
        config: the request.
        track: wraps an iteration over pictures, with a title.

    Raises:
        UnsupportedError: no layer can be quantised. InputError: no pictures; ``keep_float`` names no layer.
    """
    if not len(pictures):
        raise InputError("there are no calibration pictures")
    placement = place(model, config.keep_float)
    if not placement.weighted:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(placement.floats.items())[:8])
        raise UnsupportedError("no layer can run in int8", got=reasons or "no Conv, ConvTranspose or Gemm")
    rest, held_out = split(len(pictures))
    judges = Subset(pictures, frozenset(held_out))

    def candidate(name: str, reference: ir.Model) -> Int8Candidate:
        """Quantise ``reference``, whose layers and values are called as those of ``model``."""
        places = place(reference, config.keep_float)
        method = ALIASES.get(config.method, config.method)
        scales = choose_scales(reference, places, track(pictures, f"observing: {name}"), method)
        quantised = insert_pairs(reference, places, scales)
        return Int8Candidate(name, reference, quantised, scales, head_snr(model, quantised, judges))

    found = [candidate("round to nearest", model)]
    if config.equalise:
        scaled = copy_model(model)
        _, peaks = observe(scaled, track(Subset(pictures, frozenset(rest)), "observing channels"))
        if equalise(scaled, peaks, per_channel=True):
            found.append(candidate("equalise", scaled))
    best = max(found, key=lambda c: c.head_snr_db)
    return Int8Result(tuple(found), best, placement)
