"""From a float graph and pictures to the graph with Q/DQ pairs: place, scale channels, choose scales, refine, judge.

The refinements are those of the fixed-point targets (quant/refine/), on float scales: equalising, then reconstruction
of every convolution behind the quantised prefix, or a correction of biases alone. Held-out pictures decide what stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.lower.tensorrt.calibrate import METHODS, choose_scales
from edgeyolo.lower.tensorrt.insert import Scales, insert_pairs
from edgeyolo.lower.tensorrt.placement import Placement, place
from edgeyolo.ort import Arrays
from edgeyolo.passes.graph import drop_unused, new_initializer
from edgeyolo.quant.calibrate import Pixels, copy_model, observe
from edgeyolo.quant.compare import head_snr
from edgeyolo.quant.plan import Plan, WeightQuant, constants
from edgeyolo.quant.refine.equalise import equalise
from edgeyolo.quant.refine.sequential import refine_layers
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
        correct_bias: give every layer's output its mean back, kept where it helps.
        reconstruct: choose the weights' integers by what the layer computes, kept where it helps.
    """

    method: str = "mse"
    keep_float: tuple[str, ...] = ("head",)
    equalise: bool = True
    correct_bias: bool = True
    reconstruct: bool = True

    def __post_init__(self) -> None:
        if ALIASES.get(self.method, self.method) not in METHODS:
            allowed = ", ".join([*METHODS, *ALIASES])
            raise InputError("unknown method to choose scales", where="--method", got=self.method, allowed=allowed)


def site_peaks(model: ir.Model, _: Placement, pictures: Iterable[Pixels]) -> Arrays:
    """Largest magnitude per channel (C,) by value name, of what operations make with their activations."""
    return observe(model, pictures)[1]


@dataclass(frozen=True)
class Form:
    """How a runtime wants its integers.

    Args:
        place: where they are, from a graph and the layers that stay float.
        choose_scales: their scales, as ``calibrate.choose_scales``.
        insert: how they stand in the graph.
        peaks: of the values whose channels equalising makes even, as ``site_peaks``.
    """

    place: Callable[[ir.Model, Collection[str]], Any]
    choose_scales: Callable[[ir.Model, Any, Iterable[Pixels], str], Scales]
    insert: Callable[[ir.Model, Any, Scales], ir.Model]
    peaks: Callable[[ir.Model, Any, Iterable[Pixels]], Arrays]


TENSORRT = Form(place, choose_scales, insert_pairs, site_peaks)


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
    model: ir.Model,
    pictures: Collection[Pixels],
    config: Int8Config,
    track: Track = lambda items, _: items,
    form: Form = TENSORRT,
) -> Int8Result:
    """Quantise a float graph.

    Args:
        model: BN-folded and simplified, raw heads, with detector metadata; its batch may be symbolic.
        pictures: network pixels (C, H, W) uint8; iterated several times.
        config: the request.
        track: wraps an iteration over pictures, with a title.
        form: what the runtime wants.

    Raises:
        UnsupportedError: no layer can be quantised. InputError: no pictures; ``keep_float`` names no layer.
    """
    if not len(pictures):
        raise InputError("there are no calibration pictures")
    placement = form.place(model, config.keep_float)
    if not placement.weighted:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(placement.floats.items())[:8])
        raise UnsupportedError("no layer can run in int8", got=reasons or "no Conv, ConvTranspose or Gemm")
    rest, held_out = split(len(pictures))
    judges = Subset(pictures, frozenset(held_out))

    def candidate(name: str, reference: ir.Model, scales: Scales, refined: ir.Model | None = None) -> Int8Candidate:
        source = reference if refined is None else refined
        quantised = form.insert(source, form.place(source, config.keep_float), scales)
        return Int8Candidate(name, reference, quantised, scales, head_snr(model, quantised, judges))

    def scaled(name: str, reference: ir.Model) -> Int8Candidate:
        """Quantise ``reference``, whose layers and values are called as those of ``model``."""
        method = ALIASES.get(config.method, config.method)
        seen = track(pictures, f"observing: {name}")
        return candidate(name, reference, form.choose_scales(reference, placement, seen, method))

    found = [scaled("round to nearest", model)]
    working = Subset(pictures, frozenset(rest))
    if config.equalise:
        other = copy_model(model)
        peaks = form.peaks(other, placement, track(working, "observing channels"))
        if equalise(other, peaks, per_channel=True):
            found.append(scaled("equalise", other))
    if config.reconstruct or config.correct_bias:
        last = found[-1]
        plan = refine_layers(
            last.reference, _plan(last, placement), working, rebuild=config.reconstruct, correct=config.correct_bias,
            track=track,
        )  # fmt: skip
        name = f"{last.name} + {'reconstruct' if config.reconstruct else 'correct biases'}"
        found.append(candidate(name, last.reference, last.scales, _with_weights(last.reference, plan)))
    best = max(found, key=lambda c: c.head_snr_db)
    return Int8Result(tuple(found), best, placement)


def _plan(candidate: Int8Candidate, placement: Placement) -> Plan:
    """What the refinements work on: the convolutions' codes and biases, and the activations with pairs."""
    weights = {}
    for node in candidate.reference.graph:
        weight, bias = constants(node)
        if weight is None or str(node.name) not in placement.weighted:
            continue
        quant = candidate.scales.weights[str(node.name)]
        real_bias = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
        weights[str(node.name)] = WeightQuant(quant.quantise(weight).astype(np.int8), quant, real_bias)
    return Plan({}, weights, candidate.scales.acts)


def _with_weights(model: ir.Model, plan: Plan) -> ir.Model:
    """A copy whose convolutions have the plan's weights and biases."""
    copy = copy_model(model)
    for node in copy.graph:
        weight = plan.weights.get(str(node.name))
        if weight is None:
            continue
        node.resize_inputs(3)
        parts = {1: weight.quant.dequantise(weight.codes), 2: weight.bias.astype(np.float32)}
        for index, array in parts.items():
            node.replace_input_with(index, new_initializer(copy.graph, f"{node.name}.refined.{index}", array))
    drop_unused(copy)
    return copy
