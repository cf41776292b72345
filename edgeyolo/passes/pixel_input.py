"""Let the network read raw 8-bit pixels: x = p / 256 instead of x = p * scale.

    W (p * scale) = (W * 256 * scale) (p / 256)

The input then quantises to unsigned 8 bit with 8 fraction bits without any error: the code *is* the pixel, and the
device needs no preprocessing arithmetic. Declines when something other than convolutions reads the input, directly or
through slices and their concatenation: an addition or joining something else would not commute with the factor.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from edgeyolo.passes.graph import constant, new_initializer, read_detector, write_detector

PIXEL_SCALE = 1 / 256


class PixelInput(ir.passes.InPlacePass):
    """Fold ``256 * scale`` into the convolutions that read the input, and state the new contract in the metadata."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place; unchanged when it declines or nothing is to do."""
        detector = read_detector(model)
        factor = detector.preprocess.scale / PIXEL_SCALE
        convs = _readers(model.graph)
        if factor == 1 or not convs:
            return ir.passes.PassResult(model, modified=False)
        for conv in convs:
            weight = constant(conv.inputs[1])
            assert weight is not None
            scaled = (weight.astype(np.float64) * factor).astype(weight.dtype)
            conv.replace_input_with(1, new_initializer(model.graph, f"{conv.name}.pixel_weight", scaled))
        preprocess = dataclasses.replace(detector.preprocess, scale=PIXEL_SCALE)
        write_detector(model, dataclasses.replace(detector, preprocess=preprocess))
        return ir.passes.PassResult(model, modified=True)


def _readers(graph: ir.Graph) -> list[ir.Node]:
    """The convolutions that read nothing but the graph input's values, or [] if anything else reads them."""
    convs: dict[ir.Node, None] = {}
    pixels = {graph.inputs[0]}
    for node in graph:
        read = [value for value in node.inputs if value in pixels]
        if not read:
            continue
        if node.op_type == "Conv" and read == [node.inputs[0]] and constant(node.inputs[1]) is not None:
            convs[node] = None
        elif (node.op_type == "Slice" and read == [node.inputs[0]]) or (
            node.op_type == "Concat" and len(read) == len(node.inputs)
        ):
            pixels.update(node.outputs)
        else:
            return []
    return [] if any(value.is_graph_output() for value in pixels) else list(convs)
