"""Float scales for every pair: symmetric int8, per tensor for activations, per output channel for weights.

Scales are numbers that float16 holds exactly, so that the typed float16 graph has the very same grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.errors import InputError
from edgeyolo.lower.tensorrt.insert import Scales
from edgeyolo.lower.tensorrt.placement import Placement
from edgeyolo.passes.graph import constant
from edgeyolo.qtype import QType, TensorQuant
from edgeyolo.quant.calibrate import Pixels, observe_values
from edgeyolo.quant.observers import Histogram, choose_scale

BITS = 8
METHODS = ("mse", "minmax", "percentile", "kl")
"""How activation scales are chosen; weights take ``minmax`` where ``kl`` or ``percentile`` is asked for."""
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
"""The finest step of float16; a channel of weights below 127 of them is zero for all that matters."""


def float16_scale(scale: float) -> np.float32:
    """The smallest float16 number that is at least ``scale``: nothing clips that did not clip before.

    Raises InputError if ``scale`` is beyond float16.
    """
    if not scale <= float(np.finfo(np.float16).max):
        raise InputError("a scale is too large for float16", got=scale, hint="check the model's weights and pictures")
    rounded = np.float16(max(scale, SMALLEST))
    if float(rounded) < scale:
        rounded = np.nextafter(rounded, np.float16(np.inf))
    return np.float32(rounded)


def weight_quant(weight: npt.NDArray[Any], axis: int, method: str) -> TensorQuant:
    """Scales for the weights of one layer, one per output channel along ``axis``."""
    qtype = QType(BITS, axis=axis, scale="float")
    # A few hundred weights have no distribution to diverge from, and no tail to cut off.
    method = method if method == "mse" else "minmax"
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    scales = [float16_scale(choose_scale(row, np.ones_like(row), qtype, method)) for row in rows]
    return TensorQuant(qtype, np.array(scales, np.float32), np.zeros(len(scales), np.int64))


def choose_scales(
    model: ir.Model, placement: Placement, pictures: Iterable[Pixels], method: str
) -> Scales:  # fmt: skip
    """Observe ``pictures`` in the float ``model`` and choose every scale by ``method``."""
    histograms, _ = observe_values(model, list(placement.uses), pictures)
    return Scales(activation_quants(placement, histograms, method), weight_quants(model, placement, method))


def activation_quants(
    placement: Placement, histograms: Mapping[str, Histogram], method: str
) -> dict[str, TensorQuant]:  # fmt: skip
    """One scale for each group of values; a group's distribution is that of all its members together."""
    qtype = QType(BITS, scale="float")
    quants: dict[str, TensorQuant] = {}
    for first in dict.fromkeys(placement.group.values()):
        samples = [histograms[name].samples() for name in placement.members(first)]
        values, counts = (np.concatenate(parts) for parts in zip(*samples, strict=True))
        scale = float16_scale(choose_scale(values, counts, qtype, method))
        quants[first] = TensorQuant(qtype, np.asarray(scale), np.asarray(0))
    return {name: quants[first] for name, first in placement.group.items()}


def weight_quants(model: ir.Model, placement: Placement, method: str) -> dict[str, TensorQuant]:
    """Of every int8 layer, by its name."""
    weights = {str(n.name): constant(n.inputs[1]) for n in model.graph if str(n.name) in placement.weighted}
    return {
        name: weight_quant(weight, placement.weighted[name], method)
        for name, weight in weights.items()
        if weight is not None
    }
