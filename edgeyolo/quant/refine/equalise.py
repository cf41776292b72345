"""Cross-layer equalisation: move scale between convolutions so that channels use the integer grids evenly.

Channels may be divided by any s > 0 that their readers multiply with (channels.py). What shares one exponent wants
equal ranges: the activation's channels a (always), the columns c of the dense convolutions that read them, and the
rows r of those that make them where weights have one exponent per tensor. The columns of a depthwise convolution with
an exponent per output channel scale for free. Each term relative to its largest:

    s = (a / c)^POWER          per channel
    s = a                      per channel, where no dense convolution reads
    s = (a r)^(POWER/2) / c^POWER    ... per tensor

POWER is below the 1/2 that would balance both ends: reconstruction makes up for uneven columns, and extreme factors
serve channels that carry little. s is limited, and divided by its geometric mean.

Source: Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction" (2019), section 4.1,
with the activation range as one more term; weights alone can ruin activations.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.ort import Arrays
from edgeyolo.passes.graph import conv_groups
from edgeyolo.quant.plan import constants
from edgeyolo.quant.refine.channels import Channels, find_channels

POWER = 0.3
LIMIT = 16.0
"""A channel is scaled by at most this factor: nearly dead channels would otherwise ask for any."""

Float64 = npt.NDArray[np.float64]


def equalise(model: ir.Model, peaks: Arrays, per_channel: bool) -> int:
    """Scale the channels of ``model`` in place; returns how many groups of channels may be scaled.

    Args:
        peaks: largest magnitude per channel (C,) by value name, of the values that become integers.
        per_channel: weights will have one exponent per output channel.
    """
    channels = find_channels(model)
    acts, columns, rows = (np.zeros(channels.count) for _ in range(3))
    dense = np.zeros(channels.count, np.bool_)
    for name, ids in channels.of.items():
        if name in peaks:
            np.maximum.at(acts, ids, _relative(peaks[name].astype(np.float64)))
    for node, inputs, outputs in channels.convs(model):
        weight, _ = constants(node)
        assert weight is not None
        magnitude = np.abs(weight).max(axis=(2, 3)).astype(np.float64)
        np.maximum.at(rows, outputs, _relative(magnitude.max(axis=1)))
        depthwise = conv_groups(node) > 1 and weight.shape[1] == 1
        if not (depthwise and per_channel):
            grouped = magnitude.reshape(conv_groups(node), -1, weight.shape[1]).max(axis=1)
            np.maximum.at(columns, inputs, _relative(grouped.ravel()))
            dense[inputs] = True
    acts, columns, rows = (np.maximum(term, 1e-6) for term in (acts, columns, rows))
    made = acts if per_channel else np.sqrt(acts * rows)
    factors = np.where(dense, (made / columns) ** POWER, made)
    _apply(channels, model, factors)
    return channels.count - 1


def _apply(channels: Channels, model: ir.Model, factors: Float64) -> None:
    free = factors[1:]
    if len(free):
        factors = np.clip(factors / np.exp(np.log(free).mean()), 1 / LIMIT, LIMIT)
        channels.rescale(model, factors)


def _relative(ranges: Float64) -> Float64:
    relative: Float64 = np.maximum(ranges / max(ranges.max(), 1e-30), 1e-6)
    return relative
