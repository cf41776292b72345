"""What TensorRT makes of a graph, as far as the place of a Q/DQ pair depends on it. Placement and lint share it.

A *pair* is QuantizeLinear -> DequantizeLinear on one value. The rules, from NVIDIA's guide to explicit quantisation:

- A weighted layer runs in int8 when its data and its weights come from pairs. Its result stays float: whoever reads it
  says whether it is quantised again.
- An activation behind a weighted layer is computed by the same kernel, so no pair stands between them. SiLU is
  ``x * sigmoid(x)``: three nodes, one activation.
- ``conv + skip`` is one kernel when the convolution's result reaches the Add without a pair; the other branch has one.
- Layers that only move data run in int8 when a pair stands in front of them and behind them with the same scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgeyolo.passes.graph import constant

WEIGHTED = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0}
"""Layers with int8 kernels, and the axis of their weights' output channels (a Gemm's is 1 without transB)."""
MOVERS = frozenset({
    *("MaxPool", "Resize", "Concat", "Slice", "Split", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"),
    "Identity",
})  # fmt: skip
"""Operations that move data or choose among it: in and out share one scale."""
ACTIVATIONS = frozenset({
    *("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Softplus", "Mish", "Elu", "Selu"),
    *("Celu", "Gelu", "Swish", "PRelu", "ThresholdedRelu"),
})  # fmt: skip
"""Element-wise functions of one value, which the kernel in front computes."""
GATES = frozenset({"Sigmoid", "HardSigmoid", "Tanh"})
"""``x * gate(x)`` is an activation too: SiLU, h-swish, and Mish written as ``x * tanh(softplus(x))``."""


@dataclass(frozen=True, eq=False)
class Use:
    """One edge: ``node`` reads a value as its input number ``index``."""

    node: ir.Node
    index: int


def weight_axis(node: ir.Node) -> int | None:
    """The axis of the output channels of a weighted layer's weights; None for other nodes."""
    if node.op_type not in WEIGHTED or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Gemm":
        return 0 if "transB" in node.attributes and node.attributes["transB"].as_int() else 1
    return WEIGHTED[node.op_type]


def moves(node: ir.Node) -> bool:
    """Whether ``node`` only moves data. A Resize that interpolates computes new values."""
    if node.op_type == "Resize":
        return "mode" not in node.attributes or node.attributes["mode"].as_string() == "nearest"
    return node.op_type in MOVERS


def data_inputs(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """The inputs of ``node`` that carry computed data: all of a Concat's or Add's, the first of others."""
    inputs = [(i, v) for i, v in enumerate(node.inputs) if v is not None and constant(v) is None]
    return inputs if node.op_type in ("Concat", "Add", "Mul", "Sub", "Div") else inputs[:1]


def is_residual(node: ir.Node) -> bool:
    """Whether ``node`` adds two computed values."""
    return node.op_type == "Add" and len({v for _, v in data_inputs(node)}) > 1


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read ``value``."""
    return [use.node for use in value.uses()]


def behind_activation(value: ir.Value) -> ir.Value:
    """The value in front of the activation that makes ``value``; ``value`` itself where there is none."""
    node = value.producer()
    if node is None:
        return value
    if node.op_type in ACTIVATIONS and node.inputs[0] is not None:
        return node.inputs[0]
    source = gated(node)
    return value if source is None else source


def gated(node: ir.Node) -> ir.Value | None:
    """``x`` where ``node`` is ``x * gate(x)``, else None."""
    if node.op_type != "Mul":
        return None
    for x, gate in (node.inputs, node.inputs[::-1]):
        inner = gate.producer() if gate is not None else None
        if x is None or inner is None or inner.op_type not in GATES or inner.inputs[0] is None:
            continue
        source = inner.inputs[0]
        before = source.producer()
        if source is x or (before is not None and before.op_type == "Softplus" and before.inputs[0] is x):
            return x
    return None


def weighted_branch(value: ir.Value) -> ir.Node | None:
    """The weighted layer whose kernel could add to ``value``: it makes it, alone or with an activation, for one reader.

    None where somebody else needs ``value`` too: it is then written to memory anyway.
    """
    if len(value.uses()) != 1 or value.is_graph_output():
        return None
    before = behind_activation(value)
    if before is not value and not {use.node for use in before.uses()} <= _between(before, value):
        return None  # somebody else reads it in front of the activation
    node = before.producer()
    return node if node is not None and weight_axis(node) is not None else None


def _between(before: ir.Value, value: ir.Value) -> set[ir.Node]:
    """The nodes that make ``value`` of ``before``."""
    found: set[ir.Node] = set()
    todo = [value]
    while todo:
        node = todo.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            todo += [v for v in node.inputs if v is not None and v is not before]
    return found


def fused_branch(add: ir.Node, order: dict[ir.Node, int]) -> tuple[int, ir.Node] | None:
    """(input number, weighted layer) of the branch that a residual Add is fused to: the one that is computed last.

    Args:
        add: for which ``is_residual``.
        order: position of every node in execution order.
    """
    found = [(i, node) for i, value in data_inputs(add) if (node := weighted_branch(value)) is not None]
    return max(found, key=lambda item: order[item[1]], default=None)


def last_layers(model: ir.Model) -> frozenset[str]:
    """Names of the weighted layers from which an output is reached without another one between: the heads."""
    found: set[str] = set()
    seen: set[ir.Value] = set()
    todo = list(model.graph.outputs)
    while todo:
        value = todo.pop()
        node = value.producer()
        if value in seen or node is None:
            continue
        seen.add(value)
        if weight_axis(node) is not None:
            found.add(str(node.name))
        else:
            todo += [v for v in node.inputs if v is not None]
    return frozenset(found)
