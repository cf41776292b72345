"""Fill the channels that convolutions make up to whole blocks with zeros, which kernels for wide registers like better.

    y' = [y, 0]     rows of zeros in weights and bias
    z = [W, 0] y'   and columns of zeros in whatever reads them

What a network computes stays the same, up to the order of sums. Zeros pass depthwise convolutions, which get as many
groups more, and operations that treat every channel alike; whatever they become on the way, nobody reads it. A
convolution declines where its zeros would meet anything else: a result of the network, an addition of channels that
stand otherwise, a reshape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.passes.graph import constant, conv_groups, drop_unused, new_initializer

ALIKE = frozenset({
    *("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "HardSigmoid", "HardSwish", "Softplus", "Mish", "Elu"),
    *("Identity", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize"),
})  # fmt: skip
"""They treat every channel alike, and have no input but the first that knows how many there are."""
PAIRED = frozenset({"Add", "Sub", "Mul"})
"""Of two values with the same channels."""

Layout = npt.NDArray[np.intp]
"""(C',) which channel stands there; -1: a zero that was added."""


@dataclass(frozen=True)
class _Padded:
    """How the channels of a value stand, and the convolutions whose zeros are among them."""

    layout: Layout
    makers: frozenset[ir.Node]


@dataclass
class _Plan:
    """Which value is padded how, where ``narrow`` convolutions stay as they are; ``offenders`` have to become such."""

    narrow: frozenset[ir.Node]
    block: int
    values: dict[ir.Value, _Padded] = field(default_factory=dict)
    offenders: set[ir.Node] = field(default_factory=set)

    def visit(self, node: ir.Node) -> None:
        padded = [self.values.get(v) if v is not None else None for v in node.inputs]
        found = None
        if node.op_type == "Conv" and _fixed(node) and not any(padded[1:]):
            found = self._conv(node, padded[0])
        elif any(padded):
            found = _passed(node, padded)
            if found is None:
                self._blame(padded)
        if found is not None:
            self.values[node.outputs[0]] = found

    def _conv(self, node: ir.Node, source: _Padded | None) -> _Padded | None:
        weight = constant(node.inputs[1])
        assert weight is not None
        groups = conv_groups(node)
        if groups == len(weight) and weight.shape[1] == 1 and groups > 1:
            return source
        if groups > 1:
            self._blame([source])
            return None
        missing = -len(weight) % self.block
        if node in self.narrow or not missing:
            return None
        layout = np.concatenate([np.arange(len(weight)), np.full(missing, -1)])
        return _Padded(layout, frozenset({node}))

    def _blame(self, padded: Sequence[_Padded | None]) -> None:
        for one in padded:
            self.offenders |= one.makers if one is not None else set()


def widen(model: ir.Model, block: int) -> int:
    """Fill up channels in place, in blocks of ``block``; returns how many convolutions make more of them than before.

    The shapes of what lies between inputs and results are forgotten. Graphs with a graph inside are left alone.
    """
    graph = model.graph
    if block < 2 or any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for n in graph for a in n.attributes.values()
    ):
        return 0
    narrow: frozenset[ir.Node] = frozenset()
    while True:
        plan = _Plan(narrow, block)
        for node in graph:
            plan.visit(node)
        plan._blame([plan.values.get(value) for value in graph.outputs])
        if not plan.offenders:
            break
        narrow |= plan.offenders
    for node in list(graph):
        if node.op_type == "Conv":
            _rewrite(graph, node, plan.values)
    for value in plan.values:
        value.shape = None
    drop_unused(model)
    return len(frozenset().union(*(one.makers for one in plan.values.values())))


def _fixed(node: ir.Node) -> bool:
    """Whether weights and bias are constants."""
    return all(value is None or constant(value) is not None for value in node.inputs[1:])


def _passed(node: ir.Node, padded: Sequence[_Padded | None]) -> _Padded | None:
    """How the result of an operation stands; None where it cannot read such channels."""
    first = padded[0] if padded else None
    if len(node.outputs) != 1:
        return None
    if node.op_type in ALIKE and first is not None:
        sized = node.op_type == "Resize" and len(node.inputs) > 3 and node.inputs[3] is not None
        return None if sized else first
    if node.op_type in PAIRED:
        a, b = padded
        alike = a is not None and b is not None and np.array_equal(a.layout, b.layout)
        return _Padded(a.layout, a.makers | b.makers) if alike and a and b else None
    return _joined(node, padded) if node.op_type == "Concat" and node.attributes["axis"].as_int() == 1 else None


def _joined(node: ir.Node, padded: Sequence[_Padded | None]) -> _Padded | None:
    """How the channels of a concatenation stand; None where the number of some is not known."""
    parts, count, makers = [], 0, frozenset[ir.Node]()
    for value, one in zip(node.inputs, padded, strict=True):
        if one is not None:
            layout, makers = one.layout, makers | one.makers
        else:
            size = value.shape[1] if value is not None and value.shape is not None else None
            if not isinstance(size, int):
                return None
            layout = np.arange(size)
        parts.append(np.where(layout >= 0, layout + count, -1))
        count += int((layout >= 0).sum())
    return _Padded(np.concatenate(parts), makers)


def _rewrite(graph: ir.Graph, node: ir.Node, values: dict[ir.Value, _Padded]) -> None:
    """Put the zeros into weights and bias of one convolution."""
    source, made = (values.get(v) if v is not None else None for v in (node.inputs[0], node.outputs[0]))
    weight = constant(node.inputs[1])
    if weight is None or (source is None and made is None):
        return
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if source is not None and conv_groups(node) == 1:
        weight = _spread(weight.swapaxes(0, 1), source.layout).swapaxes(0, 1)
    if made is not None:
        weight = _spread(weight, made.layout)
        bias = None if bias is None else _spread(bias, made.layout)
        if conv_groups(node) > 1:
            node.attributes["group"] = ir.AttrInt64("group", len(weight))
    node.replace_input_with(1, new_initializer(graph, f"{node.name}.wide.weight", weight))
    if bias is not None:
        node.replace_input_with(2, new_initializer(graph, f"{node.name}.wide.bias", bias))


def _spread(array: npt.NDArray[np.generic], layout: Layout) -> npt.NDArray[np.generic]:
    """Entries of the first axis to their new places, zeros between."""
    wide = np.zeros((len(layout), *array.shape[1:]), array.dtype)
    wide[layout >= 0] = array[layout[layout >= 0]]
    return wide
