"""Operators that no TensorRT parses: asked of the newest parser, so older ones know fewer."""

from __future__ import annotations

import onnx_ir as ir

from edgeyolo.errors import UnsupportedError

UNPARSED = frozenset({
    *("AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr"),
    *("BitwiseXor", "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "CumProd"),
    *("DFT", "DeformConv", "Det", "DynamicQuantizeLinear", "ImageDecoder", "MatMulInteger", "MaxRoiPool"),
    *("MaxUnpool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "Optional"),
    *("OptionalGetElement", "OptionalHasElement", "QLinearConv", "QLinearMatMul", "RegexFullMatch"),
    *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"),
    *("SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat"),
    *("StringNormalizer", "StringSplit", "SwiGLU", "TfIdfVectorizer", "Unique"),
})  # fmt: skip
"""What ``OnnxParser.supports_operator`` of TensorRT-RTX 1.7 denies, of all operators that ONNX 1.23 defines."""


def unparsed(model: ir.Model) -> dict[str, str]:
    """Node name -> operator, of all that TensorRT cannot parse: those above, and what is not ONNX's own."""
    return {
        str(node.name or node.outputs[0].name): f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for node in model.graph
        if node.domain not in ("", "ai.onnx") or node.op_type in UNPARSED
    }


def check_operators(model: ir.Model) -> None:
    """Raise UnsupportedError that lists every node that TensorRT cannot parse."""
    found = unparsed(model)
    if found:
        listed = ", ".join(
            f"{op} ({', '.join(n for n in found if found[n] == op)})" for op in sorted({*found.values()})
        )
        hint = "replace them in the model, or cut it in front of them"
        raise UnsupportedError("the model has operators that TensorRT does not parse", got=listed, hint=hint)
