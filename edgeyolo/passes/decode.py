"""Put the box decoding into the graph: raw heads become ``boxes`` and ``scores``.

    centre = (s * sigmoid(t_xy) - (s - 1) / 2 + cell) * stride    = sigmoid(t_xy) * (s * stride) + offset
    size   = exp(t_wh) * anchor          new_coords: (2 * t_wh)^2 * anchor, no sigmoid anywhere
    boxes  = [centre - size / 2, centre + size / 2]               (N, total, 4), x1 y1 x2 y2 in network pixels
    scores = sigmoid(t_obj) * sigmoid(t_class)                    (N, total, classes); softmax in region heads
             * (1 - mean of the four sigmoid(t_sigma))            in gaussian_yolo heads

``total`` counts heads, then anchors, then cells in row-major order. The batch dimension is copied from the input, never
written into the graph. Standard operators of opset 17 only. The rules are those of ``edgeyolo.postprocess.decode``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.detector import Detector, Head, Preprocess
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.passes.graph import new_initializer
from edgeyolo.postprocess import MAX_LOG_SIZE, head_entries

BOXES, SCORES = "boxes", "scores"
Attribute = int | list[int]
GAUSSIAN_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])
"""Gaussian heads interleave means and deviations; this brings the four means to the front."""


def add_decode(model: ir.Model, detector: Detector) -> ir.Model:
    """Replace the raw outputs of ``model`` by ``boxes`` and ``scores``, in place; the model is returned.

    Raises:
        UnsupportedError: a head without boxes, or the graph has other outputs than the detector's heads.
        InputError: a head's shape is not what the detector says.
    """
    _check(model.graph, detector)
    raw = {value.name: value for value in model.graph.outputs}
    parts = [_decode_head(model.graph, raw[head.output], head, detector.preprocess) for head in detector.heads]
    shape = model.graph.inputs[0].shape
    batch = None if shape is None else shape[0]
    total = sum(_rows(head, detector.preprocess) for head in detector.heads)
    outputs = []
    for name, width, values in zip((BOXES, SCORES), (4, detector.classes), zip(*parts, strict=True), strict=True):
        output = _op(model.graph, "Concat", *values, axis=1, name=name)
        output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([batch, total, width])
        outputs.append(output)
    model.graph.outputs[:] = outputs
    return model


def _check(graph: ir.Graph, detector: Detector) -> None:
    """Decline what cannot be decoded, before anything is changed."""
    names, wanted = [value.name for value in graph.outputs], [head.output for head in detector.heads]
    if set(names) != set(wanted) or not wanted:
        raise UnsupportedError(
            "the graph's outputs are not the detector's heads",
            got=", ".join(map(str, names)),
            allowed=", ".join(wanted) or "at least one head",
            hint="decode the exported model with raw heads",
        )
    for head, value in ((h, v) for h in detector.heads for v in graph.outputs if v.name == h.output):
        channels = len(head.anchors) * head_entries(head)
        if value.shape is not None and tuple(value.shape)[1:] != (channels, *_grid(head, detector.preprocess)):
            raise InputError(
                "a head does not have the shape that the detector says",
                where=head.output,
                got=tuple(value.shape),
                allowed=f"(N, {channels}, grid_h, grid_w) with strides {head.stride}",
            )


def _grid(head: Head, preprocess: Preprocess) -> tuple[int, int]:
    """Return the head's grid (height, width)."""
    return round(preprocess.height / head.stride[1]), round(preprocess.width / head.stride[0])


def _rows(head: Head, preprocess: Preprocess) -> int:
    """Count the head's boxes: anchors times cells."""
    height, width = _grid(head, preprocess)
    return len(head.anchors) * height * width


def _op(graph: ir.Graph, op_type: str, *inputs: ir.Value, name: str | None = None, **attributes: Attribute) -> ir.Value:
    """Append one node and return its output."""
    node = ir.node(op_type, list(inputs), attributes)
    graph.append(node)
    if name:
        node.outputs[0].name = name
    return node.outputs[0]


def _split(graph: ir.Graph, value: ir.Value, sizes: list[int], name: str) -> list[ir.Value]:
    """Cut the last axis into pieces."""
    sizes_value = new_initializer(graph, f"{name}.split", np.array(sizes, np.int64))
    node = ir.node("Split", [value, sizes_value], {"axis": -1}, num_outputs=len(sizes))
    graph.append(node)
    return list(node.outputs)


def _decode_head(graph: ir.Graph, raw: ir.Value, head: Head, preprocess: Preprocess) -> tuple[ir.Value, ir.Value]:
    """Append one head's arithmetic; returns its (N, n, 4) boxes and (N, n, classes) scores."""
    anchors, entries, rows = len(head.anchors), head_entries(head), _rows(head, preprocess)

    def constant(suffix: str, array: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> ir.Value:
        return new_initializer(graph, f"{head.output}.{suffix}", np.asarray(array, dtype))

    def sigmoid(value: ir.Value) -> ir.Value:
        return value if head.new_coords else _op(graph, "Sigmoid", value)

    # 0 copies a dimension: the batch stays whatever it is.
    x = _op(graph, "Reshape", raw, constant("by_anchor", [0, anchors, entries, -1], np.int64))
    x = _op(graph, "Transpose", x, perm=[0, 1, 3, 2])
    x = _op(graph, "Reshape", x, constant("by_row", [0, rows, entries], np.int64))
    deviation = None
    if head.kind == "gaussian_yolo":
        box, objectness, classes = _split(graph, x, [8, 1, head.classes], head.output)
        box = _op(graph, "Gather", box, constant("order", GAUSSIAN_ORDER, np.int64), axis=2)
        xy, wh, deviation = _split(graph, box, [2, 2, 4], f"{head.output}.box")
    else:
        xy, wh, objectness, classes = _split(graph, x, [2, 2, 1, head.classes], head.output)

    factor, offset, anchor = _constants(head, preprocess)
    centre = _op(graph, "Mul", sigmoid(xy), constant("factor", factor))
    centre = _op(graph, "Add", centre, constant("offset", offset))
    if head.new_coords:
        half = _op(graph, "Mul", _op(graph, "Mul", wh, wh), constant("half_anchor", 2 * anchor))
    else:
        limited = _op(graph, "Min", wh, constant("max_log_size", MAX_LOG_SIZE))
        half = _op(graph, "Mul", _op(graph, "Exp", limited), constant("half_anchor", 0.5 * anchor))
    boxes = _op(graph, "Concat", _op(graph, "Sub", centre, half), _op(graph, "Add", centre, half), axis=2)

    score = sigmoid(objectness)
    if deviation is not None:
        # The mean is a product: ReduceMean takes its axes in another way from opset 18 on.
        mean = _op(graph, "MatMul", _op(graph, "Sigmoid", deviation), constant("quarter", np.full((4, 1), 0.25)))
        score = _op(graph, "Mul", score, _op(graph, "Sub", constant("one", 1), mean))
    probability = _op(graph, "Softmax", classes, axis=-1) if head.softmax else sigmoid(classes)
    return boxes, _op(graph, "Mul", score, probability)


def _constants(head: Head, preprocess: Preprocess) -> tuple[npt.NDArray[np.float64], ...]:
    """Return factor (2,), offset (1, rows, 2) and anchor (1, rows, 2) of one head, rows being anchors x cells."""
    stride = np.array(head.stride)
    height, width = _grid(head, preprocess)
    y, x = np.divmod(np.arange(height * width), width)
    offset = (np.stack([x, y], axis=1) - 0.5 * (head.scale_x_y - 1)) * stride
    anchors = np.array(head.anchors, np.float64)
    tiled = np.tile(offset, (len(anchors), 1))[None]
    return head.scale_x_y * stride, tiled, np.repeat(anchors, height * width, axis=0)[None]
