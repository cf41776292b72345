"""The decoding and suppressing graphs against the numpy rules, for every kind of head and several batch sizes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import checker
from onnx.shape_inference import infer_shapes

from edgeyolo import postprocess
from edgeyolo.detector import Detector, Head, Preprocess
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.ort import open_session, run
from edgeyolo.passes.decode import add_decode
from edgeyolo.passes.nms import add_nms

ANCHORS = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0))
HEADS = {
    "yolo": (Head("a", "yolo", (8.0, 8.0), ANCHORS, 4),),
    "scale_x_y": (Head("a", "yolo", (16.0, 8.0), ANCHORS[:2], 4, scale_x_y=1.2),),
    "new_coords": (Head("a", "yolo", (8.0, 8.0), ANCHORS, 4, scale_x_y=2.0, new_coords=True),),
    "gaussian": (Head("a", "gaussian_yolo", (8.0, 8.0), ANCHORS, 4, scale_x_y=1.1),),
    "region": (Head("a", "region", (16.0, 16.0), ANCHORS, 4, softmax=True),),
    "region without softmax": (Head("a", "region", (16.0, 16.0), ANCHORS, 4),),
    "one class": (Head("a", "yolo", (16.0, 16.0), ANCHORS, 1),),
    "two heads": (
        Head("coarse", "yolo", (32.0, 16.0), ANCHORS[1:], 4),
        Head("fine", "gaussian_yolo", (16.0, 8.0), ANCHORS, 4, scale_x_y=1.05),
    ),
}
BOX_TOLERANCE, BOX_RELATIVE = 1e-3, 1e-6
"""Network pixels, and relative for huge boxes: the graph computes in float32, numpy in float64."""
SCORE_TOLERANCE = 1e-6
"""A few float32 roundings of numbers below 1."""


def detector_of(heads: tuple[Head, ...]) -> Detector:
    return Detector("darknet", Preprocess(96, 64), heads)


def shape_of(head: Head) -> tuple[int, int, int]:
    return len(head.anchors) * postprocess.head_entries(head), round(64 / head.stride[1]), round(96 / head.stride[0])


def raw_model(heads: tuple[Head, ...], batch: int | str, opset: int = 17) -> ir.Model:
    """A graph that hands its inputs on as raw heads."""
    inputs, nodes = [], []
    for head in heads:
        shape = ir.Shape([batch, *shape_of(head)])
        inputs.append(ir.val(f"{head.output}.in", ir.DataType.FLOAT, shape))
        nodes.append(ir.node("Identity", [inputs[-1]]))
        output = nodes[-1].outputs[0]
        output.name, output.shape, output.type = head.output, shape, inputs[-1].type
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": opset}, name="raw")
    return ir.Model(graph, ir_version=8)


def random_heads(heads: tuple[Head, ...], batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    values = {f"{h.output}.in": generator.normal(0, 2, (batch, *shape_of(h))).astype(np.float32) for h in heads}
    new_coords = any(h.new_coords for h in heads)
    return {name: 1 / (1 + np.exp(-v)) if new_coords else v for name, v in values.items()}


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("kind", HEADS)
def test_decoded_graph_equals_numpy(kind: str, opset: int) -> None:
    heads = HEADS[kind]
    detector = detector_of(heads)
    session = open_session(add_decode(raw_model(heads, "N", opset), detector))
    for batch in (1, 3):
        feeds = random_heads(heads, batch, seed=batch)
        got = run(session, feeds)
        assert got["boxes"].shape[0] == got["scores"].shape[0] == batch
        for i in range(batch):
            boxes, scores, classes = postprocess.decode([feeds[f"{h.output}.in"][i] for h in heads], detector, 0.0)
            count = detector.classes
            assert classes.tolist() == list(range(count)) * (len(scores) // count)
            np.testing.assert_allclose(got["scores"][i], scores.reshape(-1, count), atol=SCORE_TOLERANCE, rtol=0)
            np.testing.assert_allclose(got["boxes"][i], boxes[::count], atol=BOX_TOLERANCE, rtol=BOX_RELATIVE)


def test_decoded_graph_clamps_sizes_where_numpy_does() -> None:
    heads = HEADS["yolo"]
    feeds = random_heads(heads, 1)
    feeds["a.in"][:, 2::9] = 1e4
    boxes = run(open_session(add_decode(raw_model(heads, 1), detector_of(heads))), feeds)["boxes"]
    expected = postprocess.decode([feeds["a.in"][0]], detector_of(heads), 0.0)[0][:: heads[0].classes]
    np.testing.assert_allclose(boxes[0], expected, atol=BOX_TOLERANCE, rtol=BOX_RELATIVE)


@pytest.mark.parametrize("batch", [1, 2, "N"])
def test_shapes_are_declared_and_nothing_bakes_the_batch_in(batch: int | str) -> None:
    heads = HEADS["two heads"]
    model = add_nms(add_decode(raw_model(heads, batch), detector_of(heads)))
    proto = ir.to_proto(model)
    checker.check_model(proto)
    infer_shapes(proto, strict_mode=True)
    total = sum(shape_of(h)[1] * shape_of(h)[2] * len(h.anchors) for h in heads)
    shapes = {v.name: [d if isinstance(d, int) else d.value for d in v.shape] for v in model.graph.outputs}
    assert shapes["boxes"] == [batch, total, 4] and shapes["scores"] == [batch, total, 4]


def test_detect_reads_a_decoded_graph_as_it_reads_raw_heads() -> None:
    heads = HEADS["two heads"]
    detector = detector_of(heads)
    feeds = random_heads(heads, 1)
    decoded = run(open_session(add_decode(raw_model(heads, 1), detector)), feeds)
    raw = postprocess.detect([v[0] for v in feeds.values()], detector, (200, 100))
    again = postprocess.detect([decoded["boxes"][0], decoded["scores"][0]], detector, (200, 100))
    assert len(raw) > 10
    assert raw.classes.tolist() == again.classes.tolist()
    np.testing.assert_allclose(raw.boxes, again.boxes, atol=2 * BOX_TOLERANCE)


@pytest.mark.parametrize("batch", [1, 3])
def test_selected_boxes_are_those_of_numpy_nms(batch: int) -> None:
    heads = HEADS["two heads"]
    detector = detector_of(heads)
    session = open_session(add_nms(add_decode(raw_model(heads, "N"), detector), iou=0.4, conf=0.3))
    feeds = random_heads(heads, batch)
    got = run(session, feeds)
    for i in range(batch):
        boxes, scores = got["boxes"][i], got["scores"][i]
        rows, classes = np.nonzero(scores > 0.3)
        keep = postprocess.nms(boxes[rows], scores[rows, classes], classes, 0.4)
        expected = {(int(c), int(r)) for c, r in zip(classes[keep], rows[keep], strict=True)}
        assert 3 < len(expected) < len(rows)
        assert {(int(c), int(b)) for n, c, b in got["selected"] if n == i} == expected


def test_max_det_limits_the_boxes_of_a_class() -> None:
    heads = HEADS["one class"]
    model = add_nms(add_decode(raw_model(heads, "N"), detector_of(heads)), iou=1.0, conf=0.0, max_det=7)
    assert len(run(open_session(model), random_heads(heads, 2))["selected"]) == 14


def test_decode_declines_and_leaves_the_graph_alone() -> None:
    heads = HEADS["yolo"]
    model = raw_model(heads, 1)
    before = len(list(model.graph))
    with pytest.raises(UnsupportedError, match="not the detector's heads"):
        add_decode(model, detector_of(HEADS["two heads"]))
    with pytest.raises(UnsupportedError, match="no known reading"):
        add_decode(model, detector_of((Head("a", "classifier", classes=4),)))
    with pytest.raises(InputError, match="shape"):
        add_decode(model, detector_of((Head("a", "yolo", (16.0, 16.0), ANCHORS, 4),)))
    with pytest.raises(UnsupportedError, match="decoded"):
        add_nms(model)
    assert len(list(model.graph)) == before and [v.name for v in model.graph.outputs] == ["a"]
    add_decode(model, detector_of(heads))
    with pytest.raises(InputError, match="threshold"):
        add_nms(model, iou=1.5)
