"""Explain what TensorRT will refuse or run slowly in a quantised ONNX graph, whoever made it.

Two parts: what the parser refuses, pair by pair; and the difference between where pairs stand and where ``placement``
would put them, every missing or extra one with its consequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.lower.tensorrt.operators import unparsed
from edgeyolo.lower.tensorrt.pairs import Pair, Stripped, strip_pairs
from edgeyolo.lower.tensorrt.placement import Placement, place
from edgeyolo.lower.tensorrt.rules import (
    ACTIVATIONS,
    GATES,
    data_inputs,
    fused_branch,
    gated,
    is_residual,
    last_layers,
    moves,
    weight_axis,
)
from edgeyolo.passes.graph import constant
from edgeyolo.passes.layer_names import LayerNames

SEVERITIES = {
    "refused": "TensorRT will not build it",
    "slow": "it costs speed",
    "note": "worth knowing",
}
"""Worst first."""


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Args:
        severity: one of ``SEVERITIES``.
        rule: a short name, the same for all findings of its kind.
        node: the layer or pair it is about.
        text: what is wrong and what it costs.
        fix: what to do.
    """

    severity: str
    rule: str
    node: str
    text: str
    fix: str

    def to_json(self) -> dict[str, str]:
        """JSON-able."""
        return asdict(self)


def lint(model: ir.Model) -> list[Finding]:
    """All findings about ``model``, the worst first, each rule's together."""
    stripped = strip_pairs(model)
    operators = [
        Finding("refused", "operator", name, f"{name} is a {op}, which TensorRT does not parse", "replace it")
        for name, op in unparsed(model).items()
    ]
    if not (stripped.edges or stripped.outputs):
        return operators
    nodes = list(stripped.model.graph)
    if len({node.name for node in nodes}) < len(nodes) or not all(node.name for node in nodes):
        LayerNames()(stripped.model)
    order = list(SEVERITIES)
    pairs = {pair.name: pair for pair in [*stripped.edges.values(), *stripped.outputs.values()]}
    findings = operators + [found for pair in pairs.values() for found in _refused_pair(pair)]
    findings += _edges(stripped, nodes)
    rules = list(dict.fromkeys(finding.rule for finding in findings))
    return sorted(findings, key=lambda finding: (order.index(finding.severity), rules.index(finding.rule)))


def _refused_pair(pair: Pair) -> Iterator[Finding]:
    """What no parser accepts, whoever reads the pair."""
    name, symmetric = pair.name, "quantise symmetrically: int8 with zero point 0"
    if pair.dtype is not None and pair.dtype not in (ir.DataType.INT8, ir.DataType.INT32, ir.DataType.INT4):
        yield Finding(
            "refused", "integer type", name, f"{name} has {pair.dtype.name} codes; TensorRT has int8", symmetric
        )
    elif pair.zero is not None and np.any(pair.zero != 0):
        text = f"{name} has zero point {_first_nonzero(pair.zero)}; TensorRT is symmetric only"
        yield Finding("refused", "asymmetric", name, text, symmetric)
    if pair.scale is None:
        yield Finding(
            "refused", "computed scale", name, f"the scale of {name} is computed at run time", "make it a constant"
        )
    elif not pair.scale.size or not np.all(np.isfinite(pair.scale)) or np.any(pair.scale <= 0):
        worst = float(np.min(pair.scale, initial=0))
        yield Finding("refused", "scale", name, f"{name} has a scale of {worst:g}", "scales are positive numbers")
    if pair.unequal:
        text = f"{name} and its QuantizeLinear have different scales or zero points: values come back as others"
        yield Finding("slow", "unequal pair", name, text, "give both the same scale and zero point")
    if pair.per_channel and not pair.weight:
        text = f"{name} has a scale per channel on an activation; int8 kernels read one per tensor"
        yield Finding("slow", "per-channel activation", name, text, "use one scale")


def _first_nonzero(zero: npt.NDArray[np.integer]) -> int:
    return int(zero[zero != 0][0])


def _edges(stripped: Stripped, nodes: list[ir.Node]) -> Iterator[Finding]:
    """Compare where pairs stand with where they should."""
    quantised = [n for n in nodes if weight_axis(n) is not None and (n, 1) in stripped.edges]
    floats = [str(n.name) for n in nodes if weight_axis(n) is not None and n not in quantised]
    placement = place(stripped.model, [_literal(name) for name in floats])
    order = {node: i for i, node in enumerate(nodes)}
    wanted = {(use.node, use.index) for uses in placement.uses.values() for use in uses}
    heads = last_layers(stripped.model)
    for node in nodes:
        if weight_axis(node) is not None:
            yield from _weighted(node, stripped, heads)
        for index, value in enumerate(node.inputs):
            if value is None or constant(value) is not None:
                continue
            edge = (node, index)
            if edge in stripped.edges and edge not in wanted and weight_axis(node) is None:
                yield _extra(node, index, stripped, order)
            elif edge in wanted and edge not in stripped.edges:
                yield from _missing(node, index, stripped)
    yield from _scales(stripped, placement)
    for name, pair in stripped.outputs.items():
        text = f"output {name} is quantised and comes back as float: two conversions, less precision"
        yield Finding("slow", "quantised output", pair.name, text, "leave outputs in float")


def _literal(name: str) -> str:
    """A pattern that means this name only."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _weighted(node: ir.Node, stripped: Stripped, heads: frozenset[str]) -> Iterator[Finding]:
    """The weights and the bias of one weighted layer."""
    name, axis = str(node.name), weight_axis(node)
    weight, bias = stripped.edges.get((node, 1)), stripped.edges.get((node, 2))
    if bias is not None:
        text = f"the bias of {name} is quantised; TensorRT wants a float bias"
        yield Finding("refused", "quantised bias", bias.name, text, "store the bias as float")
    if weight is not None and weight.per_channel and weight.axis != axis:
        text = (
            f"weights of {name} have a scale along axis {weight.axis}; int8 kernels of {node.op_type} want axis {axis}"
        )
        yield Finding("slow", "weight axis", weight.name, text, f"one scale per output channel: axis {axis}")
    if weight is None and (node, 0) in stripped.edges:
        text = f"{name} reads int8 data but has float weights: it runs in float"
        yield Finding("slow", "half quantised", name, text, "quantise its weights too, or take the pair in front away")
    elif weight is None and constant(node.inputs[1]) is not None and name not in heads:
        yield Finding(
            "note", "float layer", name, f"{name} has no pairs: it runs in float", "quantise it if it is slow"
        )
    elif weight is not None and name in heads:
        text = f"{name} makes an output in int8: scores and boxes get 256 values"
        yield Finding("note", "int8 head", name, text, "leave the last layers in float")


def _extra(node: ir.Node, index: int, stripped: Stripped, order: dict[ir.Node, int]) -> Finding:
    """A pair that nobody wants, and what it breaks."""
    pair, name = stripped.edges[node, index], str(node.name)
    value = node.inputs[index]
    maker = value.producer() if value is not None else None
    if is_residual(node) and (fused := fused_branch(node, order)) is not None and fused[0] == index:
        text = f"blocks conv+add fusion at node {name}: the result of {fused[1].name} is quantised before it is added"
        return Finding("slow", "residual", pair.name, text, "quantise the other branch only")
    if node.op_type in ACTIVATIONS or gated(node) is not None or _is_gate_product(node):
        layer = maker.name if maker is not None and weight_axis(maker) is not None else None
        text = f"splits {layer} from its activation {name}" if layer else f"{name} computes in float"
        return Finding("slow", "activation", pair.name, text, "quantise behind the activation")
    if moves(node):
        text = f"{name} ({node.op_type}) moves data to layers that read float"
        return Finding("slow", "extra", pair.name, text, "take the pair away")
    return Finding("slow", "extra", pair.name, f"{name} ({node.op_type}) reads it in float", "take the pair away")


def _is_gate_product(node: ir.Node) -> bool:
    """Whether ``node`` multiplies by a gate of its own other input, a pair in between or not."""
    makers = [v.producer() for v in node.inputs if v is not None]
    return node.op_type == "Mul" and any(m is not None and m.op_type in GATES for m in makers)


def _missing(node: ir.Node, index: int, stripped: Stripped) -> Iterator[Finding]:
    """A reader in int8 that gets float."""
    name, value = str(node.name), node.inputs[index]
    assert value is not None
    if weight_axis(node) is not None:
        maker = value.producer()
        if maker is not None and moves(maker) and all((maker, i) in stripped.edges for i, _ in data_inputs(maker)):
            return  # the pairs in front of what moves the data come along
        text = f"{name} has int8 weights but reads float data: it runs in float"
        yield Finding("slow", "half quantised", name, text, f"put a pair on {value.name}")
    elif is_residual(node):
        text = f"{name} reads its skip branch {value.name} in float: four times the bytes, and no int8 kernel"
        yield Finding("slow", "residual", name, text, f"put a pair on {value.name} in front of {name}")
    elif node.op_type == "Concat":
        text = f"{name} joins int8 with float: input {value.name} has no pair"
        yield Finding("slow", "concat", name, text, f"put a pair on {value.name} with the scale of the others")
    else:  # TensorRT moves the pair behind it to the front
        others = any((use.node, use.idx) in stripped.edges for use in node.outputs[0].uses())
        if not others:
            yield Finding("slow", "missing", name, f"{name} moves float data", f"put a pair on {value.name}")


def _scales(stripped: Stripped, placement: Placement) -> Iterator[Finding]:
    """Values that should share one scale and do not; values that are quantised twice."""
    for name, count in stripped.quantisers.items():
        if count > 1 and len(_scales_of(name, stripped)) > 1:
            text = f"{name} is quantised {count} times with different scales: written to memory once for each"
            yield Finding("slow", "scales", name, text, "one pair for all its readers")
    for node in stripped.model.graph:
        if not moves(node):
            continue
        names = [str(v.name) for v in (*node.inputs, *node.outputs) if v is not None and str(v.name) in placement.group]
        scales = {scale for name in names for scale in _scales_of(name, stripped)}
        if len(scales) > 1:
            shown = ", ".join(f"{scale:.4g}" for scale in sorted(scales))
            what = "joins inputs" if node.op_type == "Concat" else f"({node.op_type}) stands between pairs"
            text = f"{node.name} {what} of different scales ({shown}): they are quantised again"
            yield Finding("slow", "concat" if node.op_type == "Concat" else "scales", str(node.name), text, "one scale")


def _scales_of(name: str, stripped: Stripped) -> set[float]:
    found: set[float] = set()
    for (node, index), pair in stripped.edges.items():
        value = node.inputs[index]
        if value is not None and value.name == name and pair.scale is not None and pair.scale.size == 1:
            found.add(float(np.ravel(pair.scale)[0]))
    return found
