"""LeakyRelu on codes without a table, for x86: ONNX Runtime looks every byte up there, one at a time.

    leaky(x) = a x + (1 - a) max(x, 0)

Both terms are readings of integers that stand there already: x's codes with the scale a s, and the codes not below
zero's with the scale (1 - a) s. Clip and QLinearAdd have vector kernels; the sum is rounded once, as in the table.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeyolo.passes.graph import constant, drop_unused, new_initializer


def split_leaky(model: ir.Model) -> None:
    """Rewrite, in place, every LeakyRelu between a DequantizeLinear and a QuantizeLinear."""
    graph = model.graph
    for node in list(graph):
        reader = node.inputs[0].producer() if node.op_type == "LeakyRelu" and node.inputs[0] is not None else None
        slope = float(node.attributes["alpha"].as_float()) if "alpha" in node.attributes else 0.01
        if reader is None or reader.op_type != "DequantizeLinear" or not 0 < slope < 1:
            continue
        if node.outputs[0].is_graph_output() or {use.node.op_type for use in node.outputs[0].uses()} != {
            "QuantizeLinear"
        }:
            continue
        codes, scale = reader.inputs[0], constant(reader.inputs[1])
        zero = reader.inputs[2] if len(reader.inputs) > 2 else None
        if codes is None or scale is None or zero is None or scale.size != 1:
            continue
        positive = ir.node("Clip", [codes, zero], name=f"{node.name}.positive")
        parts = []
        for name, source, share in (("all", codes, slope), ("above", positive.outputs[0], 1 - slope)):
            step = new_initializer(graph, f"{node.name}.{name}.scale", (scale * share).astype(np.float32))
            parts.append(ir.node("DequantizeLinear", [source, step, zero], name=f"{node.name}.{name}"))
        total = ir.node("Add", [part.outputs[0] for part in parts], name=f"{node.name}.sum")
        graph.insert_before(node, [positive, *parts, total])
        ir.convenience.replace_all_uses_with(node.outputs[0], total.outputs[0])
        graph.remove(node, safe=True)
    drop_unused(model)
