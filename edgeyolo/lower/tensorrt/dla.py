"""What a deep learning accelerator (DLA) of a Jetson refuses, layer by layer, so that TensorRT takes it to the GPU.

The limits are those of "DLA Supported Layers and Restrictions" in NVIDIA's TensorRT developer guide (8.5), and of the
operator table in NVIDIA's repository Deep-Learning-Accelerator-SW. They hold for both generations, Xavier and Orin.
TensorRT has the last word: it also refuses combinations of layers that exceed a DLA's memory, which cannot be told from
a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from edgeyolo.passes.graph import constant, conv_groups, ints

MAX_BATCH = 4096
MAX_SIZE = 8192
"""Of every other dimension, of output channels and of groups."""
REFUSED_PRECISIONS = {
    "int8": "TensorRT runs no Q/DQ on a DLA, and int8 comes as Q/DQ; fp16 runs there",
    "fp32": "a DLA has no float32; fp16 runs there",
}
FOLDED = frozenset({"Constant", "Identity", "Dropout", "Shape"})
"""What TensorRT removes while it builds, for static shapes."""


@dataclass(frozen=True)
class Fallback:
    """One layer that runs on the GPU instead: its name, its operator, and the reason in words."""

    layer: str
    op_type: str
    reason: str


def dla_fallbacks(model: ir.Model, precision: str) -> list[Fallback]:
    """List the layers of ``model`` that a DLA refuses, in execution order.

    Args:
        model: a float graph, or one with Q/DQ. It is not changed.
        precision: ``int8``, ``fp16`` or ``fp32``, that the engine is to have.
    """
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True))
    found = []
    for node in inferred.graph:
        inputs = [v for v in node.inputs if v is not None and constant(v) is None]
        if node.op_type in FOLDED or not inputs:
            continue
        reason = REFUSED_PRECISIONS.get(precision) or _reason(node, inputs)
        if reason:
            found.append(Fallback(str(node.name), node.op_type, reason))
    return found


def _reason(node: ir.Node, inputs: Sequence[ir.Value]) -> str | None:
    """Why a DLA refuses ``node``, whose computed inputs are ``inputs``; None where it runs it."""
    if node.op_type not in _CHECKS or node.domain not in ("", "ai.onnx"):
        return "a DLA has no such layer" if node.op_type != "Softmax" else "Xavier's DLA has no such layer"
    for value in (*inputs, *node.outputs):
        if reason := _shape_reason(value):
            return reason
    return _CHECKS[node.op_type](node)


def _shape_reason(value: ir.Value) -> str | None:
    if value.shape is None or any(not isinstance(size, int) for size in value.shape):
        return f"{value.name} has a dimension that is not fixed"
    shape = value.shape.numpy()
    if len(shape) != 4:
        return f"{value.name} has {len(shape)} dimensions, a DLA takes 4"
    if shape[0] > MAX_BATCH or max(shape[1:]) > MAX_SIZE:
        return f"{value.name} is {'x'.join(map(str, shape))}, beyond {MAX_BATCH} pictures or {MAX_SIZE} a dimension"
    return None


def _runs(node: ir.Node) -> str | None:
    """No limits of its own."""
    return None


def _outside(what: str, values: Collection[int], low: int, high: int) -> str | None:
    wrong = sorted({v for v in values if not low <= v <= high})
    return f"{what} {', '.join(map(str, wrong))}, a DLA takes {low} to {high}" if wrong else None


def _conv(node: ir.Node) -> str | None:
    weight = constant(node.inputs[1])
    if weight is None:
        return "weights that are computed"
    kernel, pads = weight.shape[2:], ints(node, "pads", (0, 0, 0, 0))
    return (
        _outside("kernel", kernel, 1, 32)
        or _outside("padding", pads, 0, 31)
        or ("padding as large as the kernel" if any(p >= k for p, k in zip(pads, 2 * kernel, strict=True)) else None)
        or _outside("stride", ints(node, "strides", (1, 1)), 1, 8)
        or _outside("dilation", ints(node, "dilations", (1, 1)), 1, 32)
        or _outside("output channels", weight.shape[:1], 1, MAX_SIZE)
        or _outside("groups", (conv_groups(node),), 1, MAX_SIZE)
    )


def _deconv(node: ir.Node) -> str | None:
    weight = constant(node.inputs[1])
    if weight is None:
        return "weights that are computed"
    extra = ints(node, "output_padding", (0, 0))
    return (
        _outside("kernel", weight.shape[2:], 1, 32)
        or _outside("padding", (*ints(node, "pads", (0, 0, 0, 0)), *extra), 0, 0)
        or _outside("dilation", ints(node, "dilations", (1, 1)), 1, 1)
        or _outside("groups", (conv_groups(node),), 1, 1)
    )


def _matmul(node: ir.Node) -> str | None:
    return "a second factor that is computed" if constant(node.inputs[1]) is None else None


def _pool(node: ir.Node) -> str | None:
    return (
        _outside("window", ints(node, "kernel_shape", ()), 1, 8)
        or _outside("padding", ints(node, "pads", (0, 0, 0, 0)), 0, 7)
        or _outside("stride", ints(node, "strides", (1, 1)), 1, 16)
        or _outside("dilation", ints(node, "dilations", (1, 1)), 1, 1)
    )


def _leaky(node: ir.Node) -> str | None:
    slope = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 0.01
    return "a negative slope" if slope < 0 else None


def _prelu(node: ir.Node) -> str | None:
    return "a slope that is computed" if constant(node.inputs[1]) is None else None


def _clip(node: ir.Node) -> str | None:
    limits = [constant(value) for value in node.inputs[1:]]
    low, high = (None if limit is None else float(limit) for limit in (*limits, None, None)[:2])
    return None if low == 0 and high is not None and 1 <= high <= 127 else "limits other than 0 and 1 to 127"


def _lrn(node: ir.Node) -> str | None:
    size = node.attributes["size"].as_int()
    return None if size in (3, 5, 7, 9) else f"a window of {size}, a DLA takes 3, 5, 7 or 9"


def _concat(node: ir.Node) -> str | None:
    if len(node.inputs) < 2:
        return "a single input"
    return None if node.attributes["axis"].as_int() in (1, -3) else "an axis other than the channels"


def _slice(node: ir.Node) -> str | None:
    if any(v is not None and constant(v) is None for v in node.inputs[1:]):
        return "a range that is computed"
    given = node.inputs[3] if len(node.inputs) > 3 else None
    axes = constant(given)
    return "a cut through the batch" if axes is None or any(a in (0, -4) for a in axes.tolist()) else None


def _split(node: ir.Node) -> str | None:
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    return "a cut through the batch" if axis in (0, -4) else None


def _resize(node: ir.Node) -> str | None:
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "nearest"
    largest = {"nearest": 32, "linear": 4}.get(mode)
    if largest is None:
        return f"mode {mode}, a DLA has nearest and linear"
    before, after = _dims(node.inputs[0]), _dims(node.outputs[0])
    if before[:2] != after[:2]:
        return "a scale of batch or channels"
    if any(b % a or b // a > largest for a, b in zip(before[2:], after[2:], strict=True)):
        return f"a scale that is not 1 to {largest} in whole numbers"
    return None


def _shuffle(node: ir.Node) -> str | None:
    moved = node.op_type == "Transpose" and ints(node, "perm", (3, 2, 1, 0))[0] != 0
    return "it changes the batch" if moved or _dims(node.inputs[0])[0] != _dims(node.outputs[0])[0] else None


def _dims(value: ir.Value | None) -> tuple[int, ...]:
    assert value is not None and value.shape is not None  # _shape_reason has seen it
    return value.shape.numpy()


_CHECKS: dict[str, Callable[[ir.Node], str | None]] = {
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "Abs", "BatchNormalization"), _runs),
    **dict.fromkeys(("Add", "Sub", "Mul", "Max", "Min", "Sum"), _runs),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    **dict.fromkeys(("Reshape", "Flatten", "Transpose"), _shuffle),
    **dict.fromkeys(("Gemm", "MatMul"), _matmul),
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _deconv,
    "LRN": _lrn,
    "LeakyRelu": _leaky,
    "PRelu": _prelu,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
}
"""The layers that a DLA has, each with what says why not."""
