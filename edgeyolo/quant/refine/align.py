"""Align channels with the power-of-two grid, so that it is as good as a grid of real scales.

With a real scale per output channel, a row w of weights would be rounded at its best scale s. A power of two can be
off by a factor of up to sqrt(2) either way. But a channel that one convolution alone makes may be multiplied by any
factor that its readers divide by (channels.py):

    w := w * 2^round(log2 s) / s

Then 2^round(log2 s) is its best scale: the grid of powers of two loses nothing, and nothing is paid at run time.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.qtype import QType
from edgeyolo.quant.plan import constants
from edgeyolo.quant.refine.channels import find_channels, scale_columns

Float64 = npt.NDArray[np.float64]

SCALES = np.linspace(0.4, 1.0, 49)
"""Scales that are tried, relative to the one that clips nothing."""


def align(model: ir.Model, bits: Mapping[str, int]) -> int:
    """Scale the channels of ``model`` in place; returns how many. ``bits`` are the weights', by Conv node name."""
    channels = find_channels(model)
    makers = np.zeros(channels.count, np.int64)
    for _, _, outputs in channels.convs(model):
        np.add.at(makers, outputs, 1)
    makers[0] = 0
    factors = np.ones(channels.count)
    for node, inputs, outputs in channels.convs(model):  # in execution order: factors of the inputs are known
        weight, _ = constants(node)
        assert weight is not None
        alone = makers[outputs] == 1
        read = scale_columns(node, weight, factors[inputs])
        scales = best_scales(read.reshape(len(read), -1), QType(bits[str(node.name)]))
        factors[outputs[alone]] = (scales / 2.0 ** np.round(np.log2(scales)))[alone]
    channels.rescale(model, factors)
    return int(np.count_nonzero(makers == 1))


def best_scales(rows: Float64, qtype: QType) -> Float64:
    """The scale (O,) at which each of ``rows`` (O, K) rounds with the least squared error; 1 for rows of zeros."""
    peaks = np.abs(rows).max(axis=1)
    widest = np.where(peaks > 0, peaks / qtype.hi, 1.0)
    best, least = np.ones(len(rows)), np.full(len(rows), np.inf)
    for scale in SCALES:
        step = (widest * scale)[:, None]
        error = np.square(np.clip(np.rint(rows / step), qtype.lo, qtype.hi) * step - rows).sum(axis=1)
        wins = (error < least) & (peaks > 0)
        best, least = np.where(wins, step[:, 0], best), np.where(wins, error, least)
    return best
