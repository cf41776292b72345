"""Which values of a float graph get a Q/DQ pair for TensorRT, who reads it, and which of them share a scale.

A pair stands on a value when a layer that shall run in int8 reads it: a weighted layer, an operation that moves data
towards one, an Add that has no convolution to be fused to, and the skip branch of one that has. Nobody else gets one.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from dataclasses import dataclass, field

import onnx_ir as ir

from edgeyolo.errors import InputError
from edgeyolo.lower.tensorrt.rules import Use, data_inputs, fused_branch, is_residual, last_layers, moves, weight_axis
from edgeyolo.passes.graph import constant
from edgeyolo.quant.config import ROLES
from edgeyolo.quant.plan import conv_roles


@dataclass(frozen=True, eq=False)
class Placement:
    """Where pairs go.

    Args:
        weighted: int8 layers by name, with the axis of their weights' scales.
        floats: the other weighted layers by name, with the reason why they stay float.
        uses: value name -> who reads it through the pair; the others read it as it is.
        group: value name -> the value whose scale it shares (itself for most).
    """

    weighted: dict[str, int] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)
    uses: dict[str, list[Use]] = field(default_factory=dict)
    group: dict[str, str] = field(default_factory=dict)

    def members(self, name: str) -> list[str]:
        """All values that share the scale of ``name``."""
        return [other for other, first in self.group.items() if first == self.group[name]]


def place(model: ir.Model, keep_float: Collection[str] = ("head",)) -> Placement:
    """Decide about every value.

    Args:
        model: float graph with raw heads; layers have names.
        keep_float: ``first``, ``head``, ``depthwise`` or patterns over layer names: weighted layers that stay float.

    Raises:
        InputError: a pattern that means no layer.
    """
    placement = Placement()
    choose_layers(model, keep_float, placement)
    nodes = list(model.graph)
    order = {node: i for i, node in enumerate(nodes)}
    wanted: set[ir.Value] = set()
    for node in reversed(nodes):
        for index in _int8_inputs(node, order, wanted, placement):
            value = node.inputs[index]
            assert value is not None
            wanted.add(value)
            placement.uses.setdefault(str(value.name), []).append(Use(node, index))
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    in_order = [*inputs, *(v for node in nodes for v in node.outputs)]
    pairs = {str(v.name): placement.uses[str(v.name)][::-1] for v in in_order if str(v.name) in placement.uses}
    placement.uses.clear()
    placement.uses.update(pairs)
    _group(nodes, placement)
    return placement


def choose_layers(model: ir.Model, keep_float: Collection[str], placement: Placement) -> None:
    """Fill in which weighted layers shall run in int8 and which stay float; as for ``place``."""
    roles, heads = conv_roles(model), last_layers(model)
    layers = [node for node in model.graph if weight_axis(node) is not None]
    for pattern in keep_float:
        if pattern not in ROLES and not any(fnmatch.fnmatchcase(str(node.name), pattern) for node in layers):
            allowed = f"{', '.join(ROLES)}, or a pattern over {', '.join(str(n.name) for n in layers[:3])} ..."
            raise InputError("--keep-float names a layer that is not in the model", got=pattern, allowed=allowed)
    for node in layers:
        name, axis = str(node.name), weight_axis(node)
        played = {*roles.get(name, ())} | ({"head", "last"} if name in heads else set())
        kept = [p for p in keep_float if p in played or fnmatch.fnmatchcase(name, p)]
        if constant(node.inputs[1]) is None:
            placement.floats[name] = "its weights are computed"
        elif kept:
            placement.floats[name] = f"--keep-float {kept[0]}"
        else:
            assert axis is not None
            placement.weighted[name] = axis


def _int8_inputs(
    node: ir.Node, order: dict[ir.Node, int], wanted: set[ir.Value], placement: Placement
) -> list[int]:  # fmt: skip
    """Which inputs of ``node`` come from pairs. ``wanted``: values that somebody behind reads through a pair."""
    if str(node.name) in placement.weighted and weight_axis(node) is not None:
        return [0]
    inputs = [index for index, _ in data_inputs(node)]
    if is_residual(node):
        fused = fused_branch(node, order)
        if fused is not None:
            return [i for i in inputs if i != fused[0]] if str(fused[1].name) in placement.weighted else []
        return inputs if node.outputs[0] in wanted else []
    if moves(node) and any(value in wanted for value in node.outputs):
        return inputs
    return []


def _group(nodes: list[ir.Node], placement: Placement) -> None:
    """Values in front of and behind an operation that moves data share one scale, a Concat's inputs among them."""
    first = {name: name for name in placement.uses}

    def root(name: str) -> str:
        while first[name] != name:
            name = first[name]
        return name

    for node in nodes:
        if not moves(node):
            continue
        values = [v for _, v in data_inputs(node)] + list(node.outputs)
        names = [str(v.name) for v in values if str(v.name) in first]
        for name in names[1:]:
            a, b = root(names[0]), root(name)
            early, late = sorted((a, b), key=list(first).index)
            first[late] = early
    placement.group.update({name: root(name) for name in first})
