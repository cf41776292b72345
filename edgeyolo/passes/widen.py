"""Fill the channels that convolutions make up to whole blocks with zeros, which kernels for wide registers like better.

    y' = [y, 0]     rows of zeros in weights and bias
    z = [W, 0] y'   and columns of zeros in whatever reads them

What a network computes stays the same, up to the order of sums. Zeros pass depthwise convolutions, which get as many
groups more, and operations that treat every channel alike; whatever they become on the way, nobody reads it. A
convolution declines where its zeros would meet anything else: a result of the network, an addition of channels that
stand otherwise, a reshape. Graphs may have Q/DQ pairs: a zero is then the code of zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.passes.graph import constant, conv_groups, drop_unused, new_initializer, with_types

ALIKE = frozenset({
    *("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "HardSigmoid", "HardSwish", "Softplus", "Mish", "Elu"),
    *("Identity", "Cast", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize"),
})  # fmt: skip
"""They treat every channel alike, and have no input but the first that knows how many there are."""
CODED = ("QuantizeLinear", "DequantizeLinear")
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
        if node.op_type == "Conv" and _fixed(node):
            found = self._conv(node, padded[0])
        elif any(padded):
            found = _passed(node, padded)
            if found is None:
                self._blame(padded)
        if found is not None:
            self.values[node.outputs[0]] = found

    def _conv(self, node: ir.Node, source: _Padded | None) -> _Padded | None:
        weight = _numbers(node.inputs[1])
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
        _rewrite(graph, node, plan.values)
    for value in plan.values:
        value.shape = None
    drop_unused(model)
    return len(frozenset().union(*(one.makers for one in plan.values.values())))


def widened(model: ir.Model, block: int) -> ir.Model:
    """A copy of ``model`` with channels in whole blocks; the model itself where a block is one channel."""
    if block < 2:
        return model
    copy = with_types(model)
    widen(copy, block)
    return with_types(copy)


def _fixed(node: ir.Node) -> bool:
    """Whether weights and bias are constants, or codes of such with a scale for every output channel."""
    return all(value is None or _numbers(value) is not None for value in node.inputs[1:])


def _reader(value: ir.Value | None) -> ir.Node | None:
    """What makes numbers of constant codes, one scale and zero point for each of the first axis; None for others."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) < 3:
        return None
    arrays = [constant(each) for each in node.inputs]
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    lengths = {() if array is None else array.shape[:1] for array in arrays}
    return node if axis == 0 and len(lengths) == 1 and () not in lengths else None


def _numbers(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """A constant, or the codes of one."""
    reader = _reader(value)
    return constant(value if reader is None else reader.inputs[0])


def _passed(node: ir.Node, padded: Sequence[_Padded | None]) -> _Padded | None:
    """How the result of an operation stands; None where it cannot read such channels."""
    first = padded[0] if padded else None
    if len(node.outputs) != 1:
        return None
    if node.op_type in CODED and first is not None:
        scale = constant(node.inputs[1])
        return first if scale is not None and scale.size == 1 else None
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
    if node.op_type != "Conv" or not _fixed(node) or (source is None and made is None):
        return
    rows = None if made is None else made.layout
    columns = source.layout if source is not None and conv_groups(node) == 1 else None
    for index, value in enumerate(node.inputs):
        if index and value is not None:
            node.replace_input_with(index, _spread(graph, node, value, rows, columns if index == 1 else None))
    if rows is not None and conv_groups(node) > 1:
        node.attributes["group"] = ir.AttrInt64("group", len(rows))


def _spread(
    graph: ir.Graph, node: ir.Node, value: ir.Value, rows: Layout | None, columns: Layout | None
) -> ir.Value:  # fmt: skip
    """Weights or bias with zeros in between; of codes a new reader with their scales and zero points."""
    reader = _reader(value)
    if reader is None:
        array = constant(value)
        assert array is not None
        return new_initializer(graph, f"{value.name}.wide", _filled(_filled(array, rows, 0), columns, 0, axis=1))
    codes, scale, zero = (constant(each) for each in reader.inputs)
    assert codes is not None and scale is not None and zero is not None
    fill, like = zero.flat[0], scale.flat[0]  # the bias's scale stays the product of the input's and the weights'
    wider = _filled(_filled(codes, rows, fill), columns, fill, axis=1)
    arrays = [wider, _filled(scale, rows, like), _filled(zero, rows, fill)]
    inputs = [
        new_initializer(graph, f"{each.name}.wide", array)
        for each, array in zip(reader.inputs, arrays, strict=True)
        if each is not None
    ]
    wide = ir.node("DequantizeLinear", inputs, {"axis": 0}, name=f"{reader.name}.wide")
    wide.outputs[0].name = f"{value.name}.wide"
    wide.outputs[0].type = value.type
    graph.insert_before(node, wide)
    return wide.outputs[0]


def _filled(
    array: npt.NDArray[np.generic], layout: Layout | None, fill: Any, axis: int = 0
) -> npt.NDArray[np.generic]:  # fmt: skip
    """Entries along an axis in their new places, with ``fill`` between."""
    if layout is None:
        return array
    old = np.moveaxis(array, axis, 0)
    wide = np.full((len(layout), *old.shape[1:]), fill, array.dtype)
    wide[layout >= 0] = old[layout[layout >= 0]]
    return np.moveaxis(wide, 0, axis)
