"""Write Q/DQ pairs into a float graph as TensorRT wants them.

    value  ->  value.q: QuantizeLinear  ->  value.dq: DequantizeLinear  ->  the readers that the placement names
    float weights -> QuantizeLinear -> DequantizeLinear -> layer        bias: float

Symmetric int8, zero point 0. The value itself keeps its name and its float readers. Weights stay float in front of
their QuantizeLinear, which every version from 8.5 on accepts; they are rounded already, so that no two versions can
round them differently.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeyolo.lower.tensorrt.placement import Placement
from edgeyolo.passes.graph import constant, drop_unused, new_initializer
from edgeyolo.qtype import TensorQuant
from edgeyolo.quant.calibrate import copy_model
from edgeyolo.quant.insert_qdq import QTYPE_KEY


@dataclass(frozen=True, eq=False)
class Scales:
    """Quantisations: of every value with a pair by its name, of every int8 layer's weights by the layer's name."""

    acts: dict[str, TensorQuant]
    weights: dict[str, TensorQuant]


def insert_pairs(model: ir.Model, placement: Placement, scales: Scales) -> ir.Model:
    """Return a copy of ``model`` with the pairs of ``placement``."""
    copy = copy_model(model)
    nodes = {str(node.name): node for node in copy.graph}
    values = {str(v.name): v for v in [*copy.graph.inputs, *(v for node in copy.graph for v in node.outputs)]}
    for name, uses in placement.uses.items():
        quantised = _pair(copy.graph, values[name], name, scales.acts[name], before=_first(copy.graph, values[name]))
        for use in uses:
            nodes[str(use.node.name)].replace_input_with(use.index, quantised)
    for name in placement.weighted:
        node, quant = nodes[name], scales.weights[name]
        weight = constant(node.inputs[1])
        assert weight is not None
        rounded = new_initializer(copy.graph, f"{name}.weight", quant.dequantise(quant.quantise(weight)))
        node.replace_input_with(1, _pair(copy.graph, rounded, f"{name}.weight", quant, before=node))
    drop_unused(copy)
    return copy


def _first(graph: ir.Graph, value: ir.Value) -> ir.Node | None:
    """The node to insert in front of for a graph input; None where the value has a producer."""
    return next(iter(graph)) if value.producer() is None else None


def _pair(graph: ir.Graph, value: ir.Value, name: str, quant: TensorQuant, *, before: ir.Node | None) -> ir.Value:
    scalars = [
        new_initializer(graph, f"{name}.scale", quant.scale.astype(np.float32)),
        new_initializer(graph, f"{name}.zero", quant.zero_point.astype(quant.qtype.dtype)),
    ]
    attributes = {} if quant.qtype.axis is None else {"axis": quant.qtype.axis}
    quantise = ir.node("QuantizeLinear", [value, *scalars], attributes, name=f"{name}.q")
    quantise.outputs[0].name = f"{name}.codes"
    quantise.metadata_props[QTYPE_KEY] = str(quant.qtype)
    dequantise = ir.node("DequantizeLinear", [quantise.outputs[0], *scalars], attributes, name=f"{name}.dq")
    result = dequantise.outputs[0]
    result.name, result.type, result.shape = f"{name}.dq", value.type, value.shape
    if before is not None:
        graph.insert_before(before, [quantise, dequantise])
    else:
        producer = value.producer()
        assert producer is not None
        graph.insert_after(producer, [quantise, dequantise])
    return result
