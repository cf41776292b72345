"""Which channels of a network may be scaled, and which must be scaled together.

LeakyRelu and Relu commute with positive factors, and so does moving data, so for any s > 0 per channel

    W2 act(W1 x + b1) = (W2 * s) act((W1 x + b1) / s)

Channels that meet in an addition share one factor; a concatenation lists them. What enters the network, leaves it, or
passes anything else (SiLU, a Clip, a Split) keeps its scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.passes.graph import constant, conv_groups, new_initializer
from edgeyolo.quant.plan import constants

Float64 = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

SAME = frozenset({"LeakyRelu", "Relu", "MaxPool", "Resize", "Identity"})
"""Operations that treat every channel alone and commute with a positive factor."""
CHANNEL_AXES = (1, -3)


@dataclass(frozen=True, eq=False)
class Channels:
    """The groups of channels that share a factor: of every value by name, (C,); group 0 keeps its scale."""

    of: dict[str, Ids]
    count: int

    def convs(self, model: ir.Model) -> Iterator[tuple[ir.Node, Ids, Ids]]:
        """Every Conv with constant weights: (node, groups of its inputs (I,), of its outputs (O,))."""
        for node in model.graph:
            weight, _ = constants(node)
            if weight is not None and weight.ndim == 4:
                width = weight.shape[1] * conv_groups(node)
                read = self.of.get(str(node.inputs[0].name), np.zeros(width, np.int64))  # type: ignore[union-attr]
                yield node, read, self.of[str(node.outputs[0].name)]

    def rescale(self, model: ir.Model, factors: Float64) -> None:
        """Divide every channel by its group's factor (count,), in place; the network still computes the same."""
        factors = np.concatenate([[1.0], factors[1:]])
        for node, inputs, outputs in self.convs(model):
            weight, bias = constants(node)
            assert weight is not None
            scaled = scale_columns(node, weight, factors[inputs]) / factors[outputs][:, None, None, None]
            _replace(model.graph, node, 1, scaled)
            if bias is not None:
                _replace(model.graph, node, 2, bias / factors[outputs])


def scale_columns(node: ir.Node, weight: npt.NDArray[Any], factors: Float64) -> Float64:
    """Weights (O, I/g, KH, KW) of a Conv, multiplied by a factor per input channel (I,)."""
    groups = conv_groups(node)
    up = np.repeat(factors.reshape(groups, weight.shape[1]), len(weight) // groups, axis=0)
    scaled: Float64 = weight * up[:, :, None, None]
    return scaled


def find_channels(model: ir.Model) -> Channels:
    """Follow the channels through the graph."""
    union = _Union()
    of: dict[str, Ids] = {}
    for node in model.graph:
        read = [of.get(str(v.name)) for v in node.inputs if v is not None and constant(v) is None]
        made = _channels_of(node, read, union)
        if made is None:
            for ids in read:
                union.join(ids)
        else:
            of.update({str(v.name): ids for v, ids in zip(node.outputs, made, strict=True)})
    for value in model.graph.outputs:
        union.join(of.get(str(value.name)))
    roots, packed = np.unique([union.find(i) for i in range(len(union.parent))], return_inverse=True)
    return Channels({name: packed[ids] for name, ids in of.items()}, len(roots))


def _channels_of(node: ir.Node, read: list[Ids | None], union: _Union) -> list[Ids] | None:
    """The groups of a node's outputs, or None where it keeps its inputs' scale fixed."""
    weight, _ = constants(node)
    if node.op_type == "Conv" and weight is not None and weight.ndim == 4:
        return [union.new(len(weight))]
    known = [ids for ids in read if ids is not None]
    if not known or len(known) < len(read):
        return None
    if node.op_type in SAME and len(read) == 1:
        return [known[0]] * len(node.outputs)
    if node.op_type == "Concat" and len(known) == len(node.inputs) and node.attributes["axis"].as_int() in CHANNEL_AXES:
        return [np.concatenate(known)]
    if node.op_type == "Add" and len(known) == len(node.inputs) and len({len(ids) for ids in known}) == 1:
        union.join(*known)
        return [known[0]]
    return None


class _Union:
    """Union-find over integers; element 0 stands for what keeps its scale, and stays the root of its set."""

    def __init__(self) -> None:
        self.parent = [0]

    def new(self, count: int) -> Ids:
        start = len(self.parent)
        self.parent += range(start, start + count)
        return np.arange(start, start + count)

    def find(self, item: int) -> int:
        while self.parent[item] != item:
            self.parent[item] = self.parent[self.parent[item]]
            item = self.parent[item]
        return item

    def join(self, first: Ids | None, second: Ids | None = None) -> None:
        """Unite element by element; with one argument, with 0. None is nothing."""
        for index, item in enumerate([] if first is None else first.tolist()):
            a, b = self.find(item), self.find(0 if second is None else int(second[index]))
            self.parent[max(a, b)] = min(a, b)


def _replace(graph: ir.Graph, node: ir.Node, index: int, array: Float64) -> None:
    name = f"{node.name}.scaled_{'wb'[index - 1]}"
    node.replace_input_with(index, new_initializer(graph, name, array.astype(np.float32)))
