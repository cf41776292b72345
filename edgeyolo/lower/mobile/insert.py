"""Write the integers into the graph as ONNX Runtime wants them.

    layer -> v.float -> v.q: QuantizeLinear -> v.dq: DequantizeLinear -> v          a value that an int8 kernel made
    v -> v.q -> v.dq -> v.seen                                                      a float value, for int8 readers
    int8 weights, int32 bias -> DequantizeLinear -> Conv

A bias stands on the accumulator's grid: the input's scale times the weights'.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeyolo.lower.mobile.placement import MobilePlacement
from edgeyolo.lower.tensorrt.insert import Scales
from edgeyolo.passes.graph import constant, drop_unused, new_initializer
from edgeyolo.passes.opset import OLDEST, with_opset
from edgeyolo.qtype import TensorQuant
from edgeyolo.quant.calibrate import copy_model


def insert_integers(model: ir.Model, placement: MobilePlacement, scales: Scales) -> ir.Model:
    """Return a copy of ``model`` with int8 codes everywhere (S8S8)."""
    old = model.graph.opset_imports[""] < OLDEST
    copy = with_opset(model, OLDEST) if old else copy_model(model)
    graph = copy.graph
    nodes = {str(node.name): node for node in graph}
    values = {str(v.name): v for v in [*graph.inputs, *(v for node in graph for v in node.outputs)]}
    for name in placement.weighted:
        node = nodes[name]
        assert node.inputs[0] is not None
        _conv(graph, node, scales.acts[str(node.inputs[0].name)], scales.weights[name])
    for name, uses in placement.uses.items():
        made = name in placement.made
        readers = [(nodes[str(use.node.name)], use.index) for use in uses]
        _pair(graph, values[name], name, scales.acts[name], readers, made=made)
    drop_unused(copy)
    common_passes.TopologicalSortPass()(copy)
    return copy


def _dequantiser(graph: ir.Graph, name: str, codes: npt.NDArray[Any], scale: npt.NDArray[Any]) -> ir.Node:
    inputs = [new_initializer(graph, f"{name}.codes", codes), new_initializer(graph, f"{name}.scale", scale)]
    # A bias needs none by ONNX's rules, but ONNX Runtime's converter to .ort for other providers insists. All layers
    # of so many channels share their zeros.
    shared = f"zeros.{codes.dtype}.{len(codes)}"
    known = graph.initializers.get(shared)
    inputs.append(known if known is not None else new_initializer(graph, shared, np.zeros(len(codes), codes.dtype)))
    node = ir.node("DequantizeLinear", inputs, {"axis": 0}, name=f"{name}.dq")
    node.outputs[0].name = f"{name}.real"
    return node


def _conv(graph: ir.Graph, node: ir.Node, source: TensorQuant, quant: TensorQuant) -> None:
    weight, bias = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    assert weight is not None
    grid = quant.scale * np.float32(source.scale)
    parts = {1: _dequantiser(graph, f"{node.name}.weight", quant.quantise(weight), quant.scale)}
    if bias is not None:
        node.resize_inputs(3)
        codes = np.clip(np.rint(bias / grid.astype(np.float64)), -(2.0**31), 2.0**31 - 1).astype(np.int32)
        parts[2] = _dequantiser(graph, f"{node.name}.bias", codes, grid)
    for index, part in parts.items():
        graph.insert_before(node, part)
        node.replace_input_with(index, part.outputs[0])


def _pair(
    graph: ir.Graph, value: ir.Value, name: str, quant: TensorQuant, readers: list[tuple[ir.Node, int]], *, made: bool
) -> None:
    scalars = [
        new_initializer(graph, f"{name}.scale", quant.scale.astype(np.float32)),
        new_initializer(graph, f"{name}.zero", quant.zero_point.astype(quant.qtype.dtype)),
    ]
    quantise = ir.node("QuantizeLinear", [value, *scalars], name=f"{name}.q")
    quantise.outputs[0].name = f"{name}.codes"
    dequantise = ir.node("DequantizeLinear", [quantise.outputs[0], *scalars], name=f"{name}.dq")
    result = dequantise.outputs[0]
    result.name, result.type, result.shape = f"{name}.seen", value.type, value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(next(iter(graph)), [quantise, dequantise])
    else:
        graph.insert_after(producer, [quantise, dequantise])
    for node, index in readers:
        node.replace_input_with(index, result)
    if made:
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = result
        value.name, result.name = f"{name}.float", name
