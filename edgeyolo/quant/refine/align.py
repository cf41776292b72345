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
    steps = np.where(peaks > 0, peaks / qtype.hi, 1.0)[:, None] * SCALES  # (O, S)
    codes = np.clip(np.rint(rows[:, None, :] / steps[:, :, None]), qtype.lo, qtype.hi)
    errors = np.square(codes * steps[:, :, None] - rows[:, None, :]).sum(axis=2)
    best: Float64 = np.take_along_axis(steps, errors.argmin(axis=1)[:, None], axis=1)[:, 0]
    return np.where(peaks > 0, best, 1.0)
