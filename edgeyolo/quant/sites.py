"""Where quantisers go: which values of a float graph become integer tensors.

A convolution or addition and the activation behind it are one operation, so only the activation's result is a site. A
run of element-wise operations that depends on one site only (SiLU = x * sigmoid(x), h-swish, Mish ...) is a table, so
only its ends are sites. Operations that move data (MaxPool, Resize, Slice, Split, Reshape ...) share their input's
exponent.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgeyolo.passes.graph import constant

FUSED = frozenset({"LeakyRelu", "Relu", "Clip"})
"""Activations that the operation in front computes on its accumulator."""
FUSING = frozenset({"Conv", "Gemm", "Add"})
"""Operations that compute the activation behind them on their accumulator."""
MOVES = frozenset(
    {"MaxPool", "Resize", "Slice", "Split", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"}
)
ELEMENTWISE = frozenset(
    {
        *("Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Softplus", "Softsign", "Mish", "Elu", "Selu", "Celu", "Gelu"),
        *("Swish", "Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Clip", "Erf", "Exp", "Log", "Neg", "Abs", "Sqrt"),
        *("Pow", "Mul", "Add", "Sub", "Div", "Min", "Max"),
    }
)


@dataclass(frozen=True)
class Site:
    """A value to quantise. ``same_as`` names the site whose exponent it must share; ``head`` marks graph outputs."""

    name: str
    same_as: str | None = None
    head: bool = False


def fused_activation(node: ir.Node) -> ir.Node | None:
    """The activation that ``node`` (Conv, Gemm or Add) computes itself, or None: its only reader, in ``FUSED``."""
    value = node.outputs[0]
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    reader: ir.Node = uses[0].node
    if reader.op_type not in FUSED or reader.inputs[0] is not value:
        return None
    if reader.op_type == "Clip" and not _has_constant_bounds(reader):
        return None
    return reader


def _has_constant_bounds(clip: ir.Node) -> bool:
    """Whether a Clip's bounds are constant inputs; before opset 11 they were attributes, which makes it a table."""
    if "min" in clip.attributes or "max" in clip.attributes:
        return False
    return all(constant(v) is not None for v in clip.inputs[1:] if v is not None)


def find_sites(model: ir.Model) -> dict[str, Site]:
    """All sites in execution order, the graph input first."""
    graph = model.graph
    sites = {str(graph.inputs[0].name): Site(str(graph.inputs[0].name))}
    origin: dict[ir.Value, ir.Value] = {graph.inputs[0]: graph.inputs[0]}
    fused: set[ir.Node] = set()
    tables: list[ir.Node] = []
    for node in graph:
        inputs = [v for v in node.inputs if v is not None and constant(v) is None]
        origins = {origin.get(v, v) for v in inputs}
        if node in fused:
            pass
        elif node.op_type in MOVES and inputs:
            for value in node.outputs:
                sites[str(value.name)] = Site(str(value.name), str(inputs[0].name), value.is_graph_output())
        elif node.op_type in ELEMENTWISE and len(origins) == 1:
            tables.append(node)
            origin.update({value: next(iter(origins)) for value in node.outputs})
            continue
        elif node.op_type in FUSING and (activation := fused_activation(node)):
            fused.add(activation)
            continue
        for value in node.outputs:
            if node.op_type not in MOVES:
                sites[str(value.name)] = Site(str(value.name), None, value.is_graph_output())
            origin[value] = value
    _add_table_ends(tables, origin, sites)
    return {str(v.name): sites[str(v.name)] for v in _values_in_order(graph) if str(v.name) in sites}


def _add_table_ends(tables: list[ir.Node], origin: dict[ir.Value, ir.Value], sites: dict[str, Site]) -> None:
    """A table's value is a site where something outside the table reads it."""
    members = set(tables)
    for node in tables:
        for value in node.outputs:
            outside = [
                u for u in value.uses() if u.node not in members or origin[u.node.outputs[0]] is not origin[value]
            ]
            if outside or value.is_graph_output():
                sites[str(value.name)] = Site(str(value.name), None, value.is_graph_output())


def _values_in_order(graph: ir.Graph) -> list[ir.Value]:
    return [graph.inputs[0], *(value for node in graph for value in node.outputs)]
