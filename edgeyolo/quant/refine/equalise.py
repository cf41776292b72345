"""Cross-layer equalisation: move scale between two convolutions so that their channels use the integer grid evenly.

LeakyRelu and Relu commute with positive factors, so for any s > 0 per channel

    W2 act(W1 x + b1) = (W2 * s) act((W1 x + b1) / s)

s is the geometric balance of what shares one exponent: the activation's channel ranges a (always), the first layer's
rows r1 where its weights have one exponent per tensor, and the second layer's columns c2, except where that is
grouped and has an exponent per output channel, for then its columns scale for free:

    s = sqrt(a / c2)    per channel                       s = a    where c2 is free
    s = sqrt(sqrt(a r1) / c2)    per tensor

with every term relative to its largest; s is then divided by its geometric mean and limited.

Source: Nagel et al. (2019), section 4.1, with the activation range as one more term; weights alone can ruin
activations.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.ort import Arrays
from edgeyolo.passes.graph import constant, new_initializer
from edgeyolo.quant.plan import result_of

LIMIT = 16.0
"""A channel is scaled by at most this factor: nearly dead channels would otherwise ask for any."""

Float64 = npt.NDArray[np.float64]


def equalise(model: ir.Model, peaks: Arrays, per_channel: bool) -> int:
    """Scale all Conv -> (LeakyRelu | Relu) -> Conv pairs of ``model`` in place; returns how many pairs.

    Args:
        peaks: largest magnitude per channel (C,) by value name, from observe; updated to the scaled model.
        per_channel: weights will have one exponent per output channel.
    """
    pairs = 0
    for first in [n for n in model.graph if n.op_type == "Conv"]:
        second = _follower(first)
        if second is None:
            continue
        _scale_pair(model.graph, first, second, peaks, per_channel)
        pairs += 1
    return pairs


def _follower(first: ir.Node) -> ir.Node | None:
    """The Conv that alone reads what ``first`` produces, or None."""
    if constant(first.inputs[1]) is None or len(first.inputs) < 3 or constant(first.inputs[2]) is None:
        return None
    value = first.outputs[0]
    reader = _only_reader(value)
    if reader is not None and reader.op_type in ("LeakyRelu", "Relu"):
        reader = _only_reader(reader.outputs[0])
    if reader is None or reader.op_type != "Conv" or constant(reader.inputs[1]) is None:
        return None
    return reader


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value`` as its data input, or None."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].idx != 0:
        return None
    reader: ir.Node = uses[0].node
    return reader


def _scale_pair(graph: ir.Graph, first: ir.Node, second: ir.Node, peaks: Arrays, per_channel: bool) -> None:
    w1, b1, w2 = (np.asarray(constant(v), np.float64) for v in (first.inputs[1], first.inputs[2], second.inputs[1]))
    groups = second.attributes["group"].as_int() if "group" in second.attributes else 1
    name = result_of(first)
    peak = np.maximum(np.asarray(peaks[name], np.float64), 1e-12)
    shrink = [_relative(peak)]
    grow: list[Float64] = []
    if not per_channel:
        shrink.append(_relative(np.abs(w1.reshape(len(w1), -1)).max(axis=1)))
    columns = _columns(w2, groups)
    if groups == 1 or not per_channel:
        grow.append(_relative(columns))
    logs = sum(np.log(t) for t in shrink) / len(shrink) - (sum(np.log(t) for t in grow) / len(grow) if grow else 0.0)
    s = np.exp(logs / (2.0 if grow else 1.0))
    s = np.clip(s / np.exp(np.log(s).mean()), 1 / LIMIT, LIMIT)
    first.replace_input_with(
        1, new_initializer(graph, f"{first.name}.equal_w", (w1 / s[:, None, None, None]).astype(np.float32))
    )
    first.replace_input_with(2, new_initializer(graph, f"{first.name}.equal_b", (b1 / s).astype(np.float32)))
    per_input = np.repeat(s.reshape(groups, -1), len(w2) // groups, axis=0)  # (O, I/groups)
    scaled = (w2 * per_input[:, :, None, None]).astype(np.float32)
    second.replace_input_with(1, new_initializer(graph, f"{second.name}.equal_w", scaled))
    peaks[name] = (peak / s).astype(np.float32)


def _columns(weight: Float64, groups: int) -> Float64:
    """Largest weight magnitude that reads each input channel, (I,)."""
    grouped = np.abs(weight).max(axis=(2, 3)).reshape(groups, -1, weight.shape[1])
    columns: Float64 = grouped.max(axis=1).reshape(-1)
    return columns


def _relative(ranges: Float64) -> Float64:
    relative: Float64 = np.maximum(ranges / max(ranges.max(), 1e-30), 1e-6)
    return relative
