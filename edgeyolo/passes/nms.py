"""Put the suppression into the graph: ONNX NonMaxSuppression beside ``boxes`` and ``scores``.

    selected = {(batch, class, box) : score > conf, no better box of its class that stayed has IoU > iou}

The operator suppresses per picture and per class, takes scores as (N, classes, total), and accepts any two opposite
corners in either order of the axes, so x1 y1 x2 y2 serves. It knows plain IoU only: a network whose ``nms_kind`` is
greedynms or diounms suppresses a little more eagerly here than in ``edgeyolo.postprocess.nms``. ``max_det`` is the
operator's limit: boxes per class, not per picture.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.passes.decode import BOXES, SCORES
from edgeyolo.passes.graph import new_initializer
from edgeyolo.postprocess import CONF, IOU, MAX_DET

SELECTED = "selected"


def add_nms(model: ir.Model, iou: float = IOU, conf: float = CONF, max_det: int = MAX_DET) -> ir.Model:
    """Append ``selected`` (K, 3) int64 [batch, class, box] to the outputs, in place; the model is returned.

    Raises:
        UnsupportedError: the outputs are not ``boxes`` and ``scores``.
        InputError: a threshold out of range.
    """
    if not (0 <= iou <= 1 and 0 <= conf <= 1 and max_det >= 1):
        raise InputError(
            "a threshold is out of range",
            got=f"iou {iou}, conf {conf}, max_det {max_det}",
            allowed="iou and conf in 0 to 1, max_det from 1",
        )
    graph = model.graph
    names = [value.name for value in graph.outputs]
    if names != [BOXES, SCORES]:
        raise UnsupportedError(
            "suppression needs decoded boxes",
            got=", ".join(map(str, names)),
            allowed=f"{BOXES}, {SCORES}",
            hint="decode first (--decode --nms)",
        )
    boxes, scores = graph.outputs
    by_class = ir.node("Transpose", [scores], {"perm": [0, 2, 1]})
    limits = [
        new_initializer(graph, "nms.max_det", np.array([max_det], np.int64)),
        new_initializer(graph, "nms.iou", np.array([iou], np.float32)),
        new_initializer(graph, "nms.conf", np.array([conf], np.float32)),
    ]
    suppress = ir.node("NonMaxSuppression", [boxes, by_class.outputs[0], *limits])
    graph.extend([by_class, suppress])
    selected = suppress.outputs[0]
    selected.name, selected.type, selected.shape = SELECTED, ir.TensorType(ir.DataType.INT64), ir.Shape([None, 3])
    graph.outputs.append(selected)
    return model
