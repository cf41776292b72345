"""Fold BatchNormalization into the convolution (or Gemm) in front of it.

    y = g * (W x + b - mean) / sqrt(var + eps) + beta
      = (g / s) W x  +  (g / s) (b - mean) + beta          with s = sqrt(var + eps)

per output channel, so grouped and depthwise convolutions fold the same way. Folding is done in float64 and rounded
once. A BatchNormalization declines when it does not follow a Conv or Gemm of its own with constant weights, or
normalises by its batch's statistics; it then stays.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeyolo.passes.graph import constant, new_initializer


class FoldBatchNorm(ir.passes.InPlacePass):
    """Replace Conv/Gemm + BatchNormalization by one Conv/Gemm; see the module for the algebra.

    ``folded`` counts the rewrites, ``declined`` says why the others stayed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folded = 0
        self.declined: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every match in place."""
        for node in [n for n in model.graph if n.op_type == "BatchNormalization"]:
            reason = self._check(node)
            if reason:
                self.declined.append(f"{node.name}: {reason}")
                continue
            self._rewrite(model.graph, node)
            self.folded += 1
        return ir.passes.PassResult(model, modified=self.folded > 0)

    @staticmethod
    def _check(node: ir.Node) -> str | None:
        """Why this node cannot be folded, or None."""
        if "training_mode" in node.attributes and node.attributes["training_mode"].as_int():
            return "it is in training mode"
        source = node.inputs[0]
        producer = source.producer() if source is not None else None
        if producer is None or producer.op_type not in ("Conv", "Gemm"):
            return "does not follow a Conv or Gemm"
        if source is not None and (len(source.uses()) != 1 or source.is_graph_output()):
            return "the unnormalised value is used elsewhere"
        if constant(producer.inputs[1]) is None:
            return "the weights are not constant"
        if any(constant(value) is None for value in node.inputs[1:5]):
            return "the statistics are not constant"
        if len(producer.inputs) > 2 and producer.inputs[2] is not None and constant(producer.inputs[2]) is None:
            return "the bias is not constant"
        gemm_attributes = [producer.attributes[k].value for k in ("alpha", "beta") if k in producer.attributes]
        if any(value != 1.0 for value in gemm_attributes):
            return "Gemm with alpha or beta"
        return None

    @staticmethod
    def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
        conv = node.inputs[0].producer()  # type: ignore[union-attr]
        assert conv is not None
        gamma, beta, mean, var = (_float64(value) for value in node.inputs[1:5])
        epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
        factor = gamma / np.sqrt(var + epsilon)
        weight, dtype = _float64(conv.inputs[1]), constant(conv.inputs[1]).dtype  # type: ignore[union-attr]
        bias = _float64(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else 0.0
        transposed = conv.op_type == "Gemm" and not ("transB" in conv.attributes and conv.attributes["transB"].as_int())
        axis = 1 if transposed else 0
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        output = node.outputs[0]
        name = conv.name or output.name or "conv"
        conv.resize_inputs(3)
        conv.replace_input_with(
            1, new_initializer(graph, f"{name}.weight", (weight * factor.reshape(shape)).astype(dtype))
        )
        conv.replace_input_with(
            2, new_initializer(graph, f"{name}.bias", ((bias - mean) * factor + beta).astype(dtype))
        )
        if output.is_graph_output():
            output.name, conv.outputs[0].name = None, output.name
            conv.outputs[0].type, conv.outputs[0].shape = output.type, output.shape
        ir.convenience.replace_all_uses_with(output, conv.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _float64(value: ir.Value | None) -> np.ndarray:
    array = constant(value)
    assert array is not None
    return array.astype(np.float64)
