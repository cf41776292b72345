"""Write a plan into the graph as QuantizeLinear / DequantizeLinear pairs: the oracle's file.

Every site's value ``v`` becomes  v.float -> [Clip] -> QuantizeLinear -> v.codes -> DequantizeLinear -> v,  so that
names, graph outputs included, mean the same in the float and in the quantised file. Clip stands where a tensor has
fewer bits than its container. Weights and biases become integer initializers behind a DequantizeLinear.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeyolo.passes.graph import new_initializer
from edgeyolo.passes.opset import with_opset
from edgeyolo.qtype import QType, TensorQuant
from edgeyolo.quant.calibrate import copy_model
from edgeyolo.quant.plan import Plan

QTYPE_KEY = "edgeyolo.qtype"
"""Metadata of a Quantize- or DequantizeLinear node: the true QType, which may have fewer bits than the container."""
INT16_OPSET = 21
"""The first opset whose QuantizeLinear makes 16-bit integers."""


def insert_qdq(model: ir.Model, plan: Plan) -> ir.Model:
    """Return a quantised copy of the float ``model``."""
    if any(quant.qtype.bits > 8 for quant in plan.acts.values()):
        model = with_opset(model, INT16_OPSET)
    copy = copy_model(model)
    values = {str(v.name): v for v in [copy.graph.inputs[0], *(v for n in copy.graph for v in n.outputs)]}
    for node in [n for n in copy.graph if str(n.name) in plan.weights and n.op_type == "Conv"]:
        _quantise_conv(copy.graph, node, plan)
    for name in plan.sites:
        _quantise_value(copy.graph, values[name], plan.acts[name])
    common_passes.RemoveUnusedNodesPass()(copy)
    common_passes.TopologicalSortPass()(copy)
    return copy


def _scalars(graph: ir.Graph, name: str, quant: TensorQuant, dtype: np.dtype[np.generic]) -> list[ir.Value]:
    scale = new_initializer(graph, f"{name}.scale", quant.scale.astype(np.float32))
    return [scale, new_initializer(graph, f"{name}.zero", quant.zero_point.astype(dtype))]


def _quantise_conv(graph: ir.Graph, node: ir.Node, plan: Plan) -> None:
    weight = plan.weights[str(node.name)]
    bias, frac = plan.bias_codes(node)
    accumulator = TensorQuant.pow2(QType(16, axis=0), frac)  # only the scale is used: bias codes are int32
    node.resize_inputs(3)
    parts: list[tuple[str, npt.NDArray[Any], TensorQuant]] = [
        ("weight", weight.codes, weight.quant),
        ("bias", bias, accumulator),
    ]
    for index, (part, codes, quant) in enumerate(parts, start=1):
        name = f"{node.name}.{part}"
        stored = new_initializer(graph, f"{name}.codes", codes)
        attributes = {} if quant.qtype.axis is None else {"axis": 0}
        dequantise = ir.node(
            "DequantizeLinear", [stored, *_scalars(graph, name, quant, codes.dtype)], attributes, name=f"{name}.dq"
        )
        dequantise.outputs[0].name = f"{name}.real"
        if part == "weight":
            dequantise.metadata_props[QTYPE_KEY] = str(quant.qtype)
        graph.insert_before(node, dequantise)
        node.replace_input_with(index, dequantise.outputs[0])


def _quantise_value(graph: ir.Graph, value: ir.Value, quant: TensorQuant) -> None:
    name, qtype = str(value.name), quant.qtype
    uses = list(value.uses())
    is_input = value.is_graph_input()
    nodes: list[ir.Node] = []
    source = value
    if qtype.bits < qtype.dtype.itemsize * 8:
        limits = quant.dequantise(np.array([qtype.lo, qtype.hi]))
        bounds = [new_initializer(graph, f"{name}.{k}", v) for k, v in zip(("lo", "hi"), limits, strict=True)]
        nodes.append(ir.node("Clip", [source, *bounds], name=f"{name}.clip"))
        nodes[-1].outputs[0].name = f"{name}.clipped"
        source = nodes[-1].outputs[0]
    scalars = _scalars(graph, name, quant, qtype.dtype)
    quantise = ir.node("QuantizeLinear", [source, *scalars], name=f"{name}.q")
    quantise.outputs[0].name = f"{name}.codes"
    quantise.metadata_props[QTYPE_KEY] = str(qtype)
    dequantise = ir.node("DequantizeLinear", [quantise.outputs[0], *scalars], name=f"{name}.dq")
    nodes += [quantise, dequantise]
    result = dequantise.outputs[0]
    result.type, result.shape = value.type, value.shape
    producer = value.producer()
    if producer is None:
        first = next(iter(graph))
        graph.insert_before(first, nodes)
    else:
        graph.insert_after(producer, nodes)
    for user, index in uses:
        user.replace_input_with(index, result)
    if is_input:
        result.name = f"{name}.seen"
        return
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = result
    value.name, result.name = f"{name}.float", name
