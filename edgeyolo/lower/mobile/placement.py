"""Which values of a float graph become integers so that ONNX Runtime's int8 kernels run, and who reads them.

ONNX Runtime replaces  DequantizeLinear -> operation -> QuantizeLinear  by one int8 kernel, and only that. A Conv that
reads integers but has no QuantizeLinear behind it stays a float Conv with a conversion in front: slower than before.
So a pair stands behind every int8 layer as well, in front of an activation that is a kernel of its own. Relu and
Clip(0, c) vanish in the QuantizeLinear behind them if its codes end where they do. Between two values that are integers
anyway, whatever has an int8 kernel uses it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgeyolo.lower.tensorrt.placement import Placement, choose_layers
from edgeyolo.lower.tensorrt.rules import Use, data_inputs, moves
from edgeyolo.passes.graph import constant

KERNELS = frozenset({"LeakyRelu", "Sigmoid", "AveragePool", "GlobalAveragePool", "Add", "Mul", "Concat"})
"""Operations with an int8 kernel whose result has a scale of its own; those that move data keep their input's."""
LEAST_LIMIT = 2.0**-40
"""A Clip that leaves less than this leaves nothing: codes up to there would have no step."""
NO_KERNEL = "ONNX Runtime has no int8 kernel for it"


@dataclass(frozen=True, eq=False)
class MobilePlacement(Placement):
    """Where pairs go.

    Args:
        made: values that int8 kernels make: everybody reads them through the pair, graph outputs included.
        limits: value name -> the largest real number that its codes may stand for, behind a Clip.
    """

    made: set[str] = field(default_factory=set)
    limits: dict[str, float] = field(default_factory=dict)


def place(model: ir.Model, keep_float: Collection[str] = ("head",)) -> MobilePlacement:
    """Decide about every value.

    Args:
        model: float graph; layers have names.
        keep_float: ``first``, ``head``, ``depthwise`` or patterns over layer names: weighted layers that stay float.

    Raises:
        InputError: a pattern that means no layer.
    """
    placement = MobilePlacement()
    choose_layers(model, keep_float, placement)
    nodes = list(model.graph)
    for node in nodes:
        if str(node.name) in placement.weighted and node.op_type != "Conv":
            del placement.weighted[str(node.name)]
            placement.floats[str(node.name)] = NO_KERNEL
    kernels = _kernels(nodes, placement)
    for node in kernels:
        results = [_folded(value, placement) for value in node.outputs]
        placement.made.update(str(value.name) for value in results)
        for index, value in _reads(node):
            placement.uses.setdefault(str(value.name), []).append(Use(node, index))
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    in_order = [*inputs, *(v for node in nodes for v in node.outputs)]
    _all_readers(in_order, placement)
    ordered = {str(v.name): placement.uses[str(v.name)] for v in in_order if str(v.name) in placement.uses}
    placement.uses.clear()
    placement.uses.update(ordered)
    _group(kernels, placement)
    return placement


def _reads(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """The inputs of ``node`` that must be integers."""
    return [(0, node.inputs[0])] if node.op_type == "Conv" and node.inputs[0] is not None else data_inputs(node)


def _kernels(nodes: list[ir.Node], placement: Placement) -> list[ir.Node]:
    """The nodes that run in int8, in order: the chosen layers, and what lies between integers."""
    wanted: set[ir.Value] = set()
    possible: set[ir.Node] = set()
    for node in reversed(nodes):
        chosen = str(node.name) in placement.weighted
        if chosen or (_has_kernel(node) and any(_end(value) in wanted for value in node.outputs)):
            possible.add(node)
            wanted.update(value for _, value in _reads(node))
    made: set[ir.Value] = set()
    found = []
    for node in nodes:
        chosen = str(node.name) in placement.weighted
        if node in possible and (chosen or any(value in made for _, value in _reads(node))):
            found.append(node)
            made.update(_end(value) for value in node.outputs)
    return found


def _has_kernel(node: ir.Node) -> bool:
    inputs = data_inputs(node)
    if node.op_type in ("Add", "Mul"):
        return len(inputs) == 2  # a constant would need a pair of its own
    return node.op_type in KERNELS or moves(node)


def _end(value: ir.Value) -> ir.Value:
    """``value``, or what the Relu or Clip behind it makes of it, if nobody else reads it."""
    uses, producer = list(value.uses()), value.producer()
    if len(uses) != 1 or value.is_graph_output() or _upper(uses[0].node) is None:
        return value
    if producer is None or moves(producer):
        return value
    return uses[0].node.outputs[0]


def _upper(node: ir.Node) -> float | None:
    """The upper limit of a Relu or Clip(0, limit); None for other nodes, and for a limit that leaves nothing."""
    if node.op_type == "Relu":
        return float("inf")
    if node.op_type != "Clip" or {"min", "max"} & set(node.attributes):
        return None
    low, high = (constant(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2))
    computed = any(constant(v) is None for v in node.inputs[1:] if v is not None)
    if computed or low is None or low != 0:
        return None
    limit = float("inf") if high is None else float(np.asarray(high))
    return limit if limit >= LEAST_LIMIT else None


def _folded(value: ir.Value, placement: MobilePlacement) -> ir.Value:
    """Where the pair behind an int8 kernel stands; notes the limit of its codes."""
    end = _end(value)
    producer = end.producer()
    limit = None if end is value or producer is None else _upper(producer)
    if limit is not None and np.isfinite(limit):
        placement.limits[str(end.name)] = limit
    return end


def _all_readers(values: Iterable[ir.Value], placement: MobilePlacement) -> None:
    """Integers are all there is of what an int8 kernel made."""
    for value in values:
        if str(value.name) in placement.made:
            placement.uses[str(value.name)] = [Use(use.node, use.idx) for use in value.uses()]


def _group(kernels: list[ir.Node], placement: MobilePlacement) -> None:
    """What moves data has one scale in front and behind. A Concat has a table for each input with another scale."""
    placement.group.update({name: name for name in placement.uses})
    for node in kernels:
        if node.op_type != "Concat" and moves(node) and node.inputs[0] is not None:
            first = placement.group[str(node.inputs[0].name)]
            placement.group.update({str(value.name): first for value in node.outputs})
