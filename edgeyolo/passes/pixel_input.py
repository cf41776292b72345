"""Let the network read raw 8-bit pixels: x = p / 256 instead of x = p * scale.

    W (p * scale) = (W * 256 * scale) (p / 256)

The input then quantises to unsigned 8 bit with 8 fraction bits without any error: the code *is* the pixel, and the
device needs no preprocessing arithmetic. Declines when something other than convolutions reads the input: a pad or an
addition there would not commute with the factor.
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
        readers = [use.node for use in model.graph.inputs[0].uses()]
        movers = {"Slice", "Concat"}
        convs: list[ir.Node] = []
        while readers:
            node = readers.pop()
            if node.op_type == "Conv" and constant(node.inputs[1]) is not None:
                convs.append(node)
            elif node.op_type in movers and not any(v.is_graph_output() for v in node.outputs):
                readers.extend(use.node for value in node.outputs for use in value.uses())
            else:
                return ir.passes.PassResult(model, modified=False)
        if factor == 1 or not convs:
            return ir.passes.PassResult(model, modified=False)
        for conv in dict.fromkeys(convs):
            weight = constant(conv.inputs[1])
            assert weight is not None
            scaled = (weight.astype(np.float64) * factor).astype(np.float32)
            conv.replace_input_with(1, new_initializer(model.graph, f"{conv.name}.pixel_weight", scaled))
        preprocess = dataclasses.replace(detector.preprocess, scale=PIXEL_SCALE)
        write_detector(model, dataclasses.replace(detector, preprocess=preprocess))
        return ir.passes.PassResult(model, modified=True)
