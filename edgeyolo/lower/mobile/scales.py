"""Scales and zero points of every value that becomes integers, for ONNX Runtime's CPU kernels.

Weights: symmetric int8, per output channel. Activations: one scale and one zero point per tensor, so that the codes
cover what was seen and not its mirror image; behind a Relu the lowest code is zero. The network's input are pixels.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.lower.mobile.placement import MobilePlacement
from edgeyolo.lower.tensorrt.insert import Scales
from edgeyolo.ort import Arrays
from edgeyolo.passes.graph import constant, read_detector
from edgeyolo.qtype import QType, TensorQuant
from edgeyolo.quant.calibrate import Pixels, observe_values
from edgeyolo.quant.observers import choose_scale

CODES = QType(8, scale="float")
BIAS_LIMIT = 1 << 30
"""A bias code takes at most half of the int32 accumulator."""
SMALLEST = 2.0**-60
"""A step of what is always zero; the product of two of them is still a normal float32."""


def choose_scales(model: ir.Model, placement: MobilePlacement, pictures: Iterable[Pixels], method: str) -> Scales:
    """Observe ``pictures`` in the float ``model`` and choose every scale by ``method``."""
    histograms, _ = observe_values(model, list(placement.uses), pictures)
    source, pixel = str(model.graph.inputs[0].name), read_detector(model).preprocess.scale
    quants: dict[str, TensorQuant] = {}
    for first in dict.fromkeys(placement.group.values()):
        samples = [histograms[name].samples() for name in placement.members(first)]
        values, counts = (np.concatenate(parts) for parts in zip(*samples, strict=True))
        limit = min(placement.limits.get(name, np.inf) for name in placement.members(first))
        furthest = choose_scale(values, counts, CODES, method) * CODES.hi
        low, high = max(float(values.min()), -furthest), min(float(values.max()), furthest, limit)
        quants[first] = pixels(pixel) if first == source else between(low, high, limit)
    acts = {name: quants[first] for name, first in placement.group.items()}
    return Scales(acts, _weights(model, placement, acts, method))


def channel_peaks(model: ir.Model, placement: MobilePlacement, pictures: Iterable[Pixels]) -> Arrays:
    """Largest magnitude per channel (C,) of every value that becomes integers, by name.

    What a convolution makes is among them where its activation is a kernel of its own: behind a LeakyRelu a channel
    that is mostly negative looks small, but in front of it decides the scale of all others.
    """
    return observe_values(model, list(placement.uses), pictures)[1]


def pixels(scale: float) -> TensorQuant:
    """The grid on which the input stands already."""
    return TensorQuant(CODES, np.asarray(scale, np.float32), np.asarray(CODES.lo))


def between(low: float, high: float, limit: float = np.inf) -> TensorQuant:
    """Codes for [low, high], zero among them; they span no more than ``limit``, which is positive."""
    low, high = min(low, 0.0), max(high, 0.0)
    steps = CODES.hi - CODES.lo
    scale = np.float32(min(max((high - low) / steps, SMALLEST), limit / steps))
    while scale * np.float32(steps) > limit:  # rounded up; a Clip vanishes only if no code is beyond it
        scale = np.nextafter(scale, np.float32(0))
    zero = CODES.lo + int(np.clip(np.rint(-low / float(scale)), 0, steps))
    return TensorQuant(CODES, np.asarray(scale), np.asarray(zero))


def _weights(
    model: ir.Model, placement: MobilePlacement, acts: dict[str, TensorQuant], method: str
) -> dict[str, TensorQuant]:
    found = {}
    for node in model.graph:
        weight = constant(node.inputs[1]) if str(node.name) in placement.weighted else None
        if weight is None or node.inputs[0] is None:
            continue
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        least = np.zeros(len(weight)) if bias is None else np.abs(bias.astype(np.float64)) / BIAS_LIMIT
        found[str(node.name)] = weight_quant(weight, least / float(acts[str(node.inputs[0].name)].scale), method)
    return found


def weight_quant(weight: npt.NDArray[np.float32], least: npt.NDArray[np.float64], method: str) -> TensorQuant:
    """Scales of one convolution's weights (O, ...), one per output channel, at least ``least`` (O,)."""
    qtype = QType(8, axis=0, scale="float")
    method = method if method == "mse" else "minmax"  # a few hundred weights have no tail to cut off
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    chosen = [choose_scale(row, np.ones_like(row), qtype, method) for row in rows]
    scales = np.maximum(np.maximum(chosen, least), SMALLEST)
    return TensorQuant(qtype, scales.astype(np.float32), np.zeros(len(scales), np.int64))
