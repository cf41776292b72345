"""Decode and scaling against slow scalar versions of the same rules. Suppression has ``test_nms.py``."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from edgeyolo import postprocess
from edgeyolo.detector import Detector, Head, Preprocess
from edgeyolo.errors import InputError, UnsupportedError

ANCHORS = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0))
HEADS = {
    "yolo": Head("a", "yolo", (8.0, 8.0), ANCHORS, 5),
    "scale_x_y": Head("a", "yolo", (16.0, 8.0), ANCHORS, 5, scale_x_y=1.2),
    "new_coords": Head("a", "yolo", (8.0, 8.0), ANCHORS, 5, scale_x_y=2.0, new_coords=True),
    "gaussian": Head("a", "gaussian_yolo", (8.0, 8.0), ANCHORS, 5, scale_x_y=1.1),
    "region": Head("a", "region", (32.0, 32.0), ANCHORS, 5, softmax=True),
    "region without softmax": Head("a", "region", (32.0, 32.0), ANCHORS, 5),
}
SCALAR_TOLERANCE = 1e-9
"""Relative: both sides compute in float64, with exp from numpy here and from the C library there."""


def detector(*heads: Head, size: tuple[int, int] = (64, 48), **options: object) -> Detector:
    return Detector("darknet", Preprocess(*size, resize=options.pop("resize", "stretch")), heads, **options)


def random_head(head: Head, shape: tuple[int, int] = (3, 4), seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    raw = generator.normal(0, 2, (len(head.anchors) * postprocess.head_entries(head), *shape)).astype(np.float32)
    return 1 / (1 + np.exp(-raw)) if head.new_coords else raw


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def scalar_decode(raw: np.ndarray, head: Head, conf: float) -> list[tuple[float, ...]]:
    """Cell by cell as Darknet's layers write it, no gates: (x1, y1, x2, y2, score, class)."""
    squash = (lambda v: v) if head.new_coords else logistic
    gaussian = head.kind == "gaussian_yolo"
    entries, found = postprocess.head_entries(head), []
    for n, (anchor_w, anchor_h) in enumerate(head.anchors):
        for row in range(raw.shape[1]):
            for column in range(raw.shape[2]):
                t = [float(v) for v in raw[n * entries : (n + 1) * entries, row, column]]
                tx, ty, tw, th = t[0:8:2] if gaussian else t[:4]
                rest = t[8:] if gaussian else t[4:]
                shift = 0.5 * (head.scale_x_y - 1)
                x = (column + head.scale_x_y * squash(tx) - shift) * head.stride[0]
                y = (row + head.scale_x_y * squash(ty) - shift) * head.stride[1]
                w, h = (4 * v * v if head.new_coords else math.exp(v) for v in (tw, th))
                w, h = w * anchor_w, h * anchor_h
                objectness = squash(rest[0])
                if objectness <= conf:
                    continue
                certainty = 1 - sum(logistic(v) for v in t[1:8:2]) / 4 if gaussian else 1
                total = sum(math.exp(v) for v in rest[1:])
                for index, value in enumerate(rest[1:]):
                    p = math.exp(value) / total if head.softmax else squash(value)
                    if objectness * p * certainty > conf:
                        found.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2, objectness * p * certainty, index))
    return found


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("conf", [0.0, 0.05, 0.4])
def test_decode_is_darknets_formula(kind: str, conf: float) -> None:
    head = HEADS[kind]
    raw = random_head(head)
    boxes, scores, classes = postprocess.decode([raw], detector(head), conf)
    rows = np.column_stack([boxes, scores, classes])
    expected = np.array(scalar_decode(raw, head, conf))
    assert len(expected) > 3
    np.testing.assert_allclose(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)], rtol=SCALAR_TOLERANCE)


def test_decode_emits_one_box_for_every_class_above_the_threshold() -> None:
    head = Head("a", "yolo", (8.0, 8.0), ANCHORS[:1], 3)
    raw = np.full((8, 1, 1), 5.0, np.float32)
    raw[6] = -5
    boxes, _, classes = postprocess.decode([raw], detector(head), 0.5)
    assert classes.tolist() == [0, 2]
    assert (boxes[0] == boxes[1]).all()


def test_decode_concatenates_heads_in_order() -> None:
    heads = (HEADS["yolo"], HEADS["gaussian"])
    raws = [random_head(h, seed=i) for i, h in enumerate(heads)]
    both = postprocess.decode(raws, detector(*heads), 0.1)
    single = [postprocess.decode([r], detector(h), 0.1) for r, h in zip(raws, heads, strict=True)]
    for column in range(3):
        np.testing.assert_array_equal(both[column], np.concatenate([s[column] for s in single]))


@pytest.mark.parametrize("kind", HEADS)
def test_decode_survives_extreme_and_undefined_values(kind: str) -> None:
    head = HEADS[kind]
    raw = random_head(head)
    generator = np.random.default_rng(1)
    special = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 88.8, 710.0], np.float32)
    mask = generator.random(raw.shape) < 0.3
    raw[mask] = generator.choice(special, int(mask.sum()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        boxes, scores, _ = postprocess.decode([raw], detector(head), 0.01)
    assert np.isfinite(boxes).all()
    assert not np.isnan(scores).any()


def test_sigmoid_and_softmax_do_not_overflow() -> None:
    with np.errstate(over="raise"):
        assert postprocess.sigmoid(np.array([-1e4, 0, 1e4])).tolist() == pytest.approx([0, 0.5, 1], abs=1e-300)
        assert postprocess.softmax(np.array([1e4, 1e4, -1e4])).tolist() == [0.5, 0.5, 0]


def test_decode_refuses_what_does_not_fit() -> None:
    head = HEADS["yolo"]
    raw = random_head(head)
    with pytest.raises(InputError, match="shape"):
        postprocess.decode([raw[:-1]], detector(head))
    with pytest.raises(InputError, match="number of heads"):
        postprocess.decode([raw, raw], detector(head))
    with pytest.raises(InputError, match="conf"):
        postprocess.decode([raw], detector(head), 1.5)
    with pytest.raises(UnsupportedError, match="no known reading"):
        postprocess.decode([raw], detector(Head("a", "classifier", classes=5)))


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("size", [(100, 50), (50, 100), (640, 480), (1, 1), (1000, 1)])
def test_scale_boxes_brings_the_placed_picture_back(resize: str, size: tuple[int, int]) -> None:
    preprocess = Preprocess(416, 320, resize=resize)
    place = postprocess.placement(preprocess, size)
    corners = np.array([[place.left, place.top, place.left + place.width, place.top + place.height]], float)
    np.testing.assert_allclose(postprocess.scale_boxes(corners, preprocess, size), [[0, 0, *size]], atol=1e-9)
    assert place.left >= 0 and place.top >= 0
    assert place.width == 416 or place.height == 320


def test_letterbox_keeps_the_aspect_ratio_as_darknet_does() -> None:
    """768 x 576 into 320 x 320: 320 x 240 with bars of 40."""
    assert postprocess.placement(Preprocess(320, 320, resize="letterbox"), (768, 576)) == (0, 40, 320, 240)
    with pytest.raises(InputError, match="resize"):
        postprocess.placement(Preprocess(320, 320, resize="crop"), (768, 576))


def test_detect_clips_to_the_picture_after_suppression() -> None:
    head = Head("a", "yolo", (32.0, 32.0), ((300.0, 20.0),), 1)
    raw = np.zeros((6, 2, 2), np.float32)
    raw[4:] = -20
    raw[4:, 0, 1] = 20
    facts = detector(head, size=(64, 64))
    found = postprocess.detect([raw], facts, (128, 32))
    np.testing.assert_allclose(found.boxes, [[0, 3, 128, 13]], atol=1e-4)
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert found.counts() == {0: 1} and len(found) == 1


def test_detect_takes_the_overlap_relative_to_the_picture() -> None:
    """In a non-square input the DIoU penalty differs from that in network pixels; Darknet's is the relative one."""
    head = Head("a", "yolo", (8.0, 8.0), ((40.0, 40.0),), 1)
    raw = np.full((6, 4, 32), -20, np.float32)
    raw[:4] = 0
    raw[4:, 2, 10] = 20
    raw[4:, 2, 12] = 15
    facts = detector(head, size=(256, 32), nms_kind="greedynms")
    boxes, scores, classes = postprocess.decode([raw], facts, 0.25)
    relative = postprocess.nms(boxes / np.array([256, 32, 256, 32]), scores, classes, 0.35, "greedynms")
    assert relative.tolist() != postprocess.nms(boxes, scores, classes, 0.35, "greedynms").tolist()
    np.testing.assert_allclose(postprocess.detect([raw], facts, (256, 32), iou=0.35).scores, scores[relative])


def test_boxes_and_scores_of_a_decoding_graph_are_gated_and_suppressed() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40]], np.float32)
    scores = np.array([[0.9, 0.1], [0.8, 0.7], [0.2, 0.3]], np.float32)
    found = postprocess.detect([boxes, scores], detector(size=(64, 48)), (64, 48))
    assert found.classes.tolist() == [0, 1, 1]
    with pytest.raises(InputError, match="boxes and scores"):
        postprocess.decode([boxes, scores[:2]], detector())


def test_classify_ranks_and_normalises() -> None:
    values = np.array([1.0, 4.0, 2.0, 3.0], np.float32)
    plain = postprocess.classify([values[:, None, None]], detector(Head("p", "classifier", classes=4)), top=2)
    assert plain.classes.tolist() == [1, 3] and plain.scores.tolist() == [4, 3]
    soft = postprocess.classify([values], detector(Head("p", "classifier", classes=4, softmax=True)), top=4)
    assert soft.scores.sum() == pytest.approx(1)
    with pytest.raises(InputError):
        postprocess.classify([values], detector(Head("p", "classifier", classes=5)))
