"""From raw heads to detections: decode, non-maximum suppression and the way back to the original picture.

The only copy of these rules in Python, with ``edgeyolo/nms.py`` for the suppression; numpy only. Boxes are
(x1, y1, x2, y2). Sources: Darknet's ``yolo``, ``Gaussian_yolo`` and ``region`` layers (AlexeyAB).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeyolo.detector import Detector, Head, Preprocess
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.nms import IOU as IOU  # noqa: PLC0414 - these three are offered here, too
from edgeyolo.nms import MAX_DET as MAX_DET  # noqa: PLC0414
from edgeyolo.nms import nms as nms  # noqa: PLC0414

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]
Size = tuple[int, int]
Decoded = tuple[Floats, Floats, Ints]

CONF, TOP_K = 0.25, 5
"""Default score threshold; classes shown for a classifier."""

MAX_LOG_SIZE = 16.0
"""exp() of a raw width or height stops here (8.9 million anchors wide), so that it never overflows."""

GATE_MARGIN = 1e-3
"""Slack of the gates in logit space, far above float32's rounding; the exact test on the score follows."""

OBJECTNESS = {"yolo": 4, "region": 4, "gaussian_yolo": 8}
"""Index of the objectness among the entries of one anchor; the classes follow it, the box stands before it."""


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one picture, best first.

    Args:
        boxes: (n, 4) float32, x1 y1 x2 y2 in pixels of the original picture.
        scores: (n,) float32, objectness times class probability.
        classes: (n,) int64 class indices.
    """

    boxes: Floats
    scores: Floats
    classes: Ints

    def __len__(self) -> int:
        return len(self.scores)

    def counts(self) -> dict[int, int]:
        """Return how many boxes each class has, the most frequent first."""
        found, number = np.unique(self.classes, return_counts=True)
        return {int(found[i]): int(number[i]) for i in np.argsort(-number, kind="stable")}


@dataclass(frozen=True, eq=False)
class Classification:
    """A classifier's best classes, best first: ``scores`` (k,) float32, ``classes`` (k,) int64."""

    scores: Floats
    classes: Ints


class Placement(NamedTuple):
    """Where the resized picture lies inside the network's input, in network pixels."""

    left: int
    top: int
    width: int
    height: int


def placement(preprocess: Preprocess, size: Size) -> Placement:
    """Return where a picture of ``size`` (width, height) goes; as in Darknet, sizes and offsets are rounded down.

    Raises InputError for an unknown ``preprocess.resize``.
    """
    width, height = preprocess.width, preprocess.height
    if preprocess.resize == "stretch":
        return Placement(0, 0, width, height)
    if preprocess.resize != "letterbox":
        raise InputError("unknown way to resize", got=preprocess.resize, allowed="stretch, letterbox")
    if width * size[1] < height * size[0]:
        height = max(1, size[1] * width // size[0])
    else:
        width = max(1, size[0] * height // size[1])
    return Placement((preprocess.width - width) // 2, (preprocess.height - height) // 2, width, height)


def scale_boxes(boxes: Floats, preprocess: Preprocess, size: Size) -> Floats:
    """Map (n, 4) boxes in network pixels to the original picture of ``size`` (width, height); not clipped."""
    left, top, width, height = placement(preprocess, size)
    factor = np.array([size[0] / width, size[1] / height] * 2)
    scaled: Floats = (boxes - np.array([left, top, left, top])) * factor
    return scaled


def sigmoid(x: Floats) -> Floats:
    """Compute 1 / (1 + exp(-x)) in float64, without overflow."""
    y: Floats = 1 / (1 + np.exp(-np.maximum(x.astype(np.float64), -700)))
    return y


def softmax(x: Floats) -> Floats:
    """Compute exp(x) / sum(exp(x)) over the last axis in float64, without overflow."""
    e = np.exp(x.astype(np.float64) - np.max(x, axis=-1, keepdims=True))
    y: Floats = e / e.sum(axis=-1, keepdims=True)
    return y


def logit(p: Any) -> Any:
    """Invert sigmoid; -inf at 0, inf at 1."""
    with np.errstate(divide="ignore"):
        return np.log(p) - np.log1p(-np.asarray(p, np.float64))


def decode(heads: Sequence[Floats], detector: Detector, conf: float = CONF) -> Decoded:
    """Return all boxes that score above ``conf``, before suppression.

    The gates stand in front of the arithmetic: only cells whose raw objectness exceeds logit(conf) are decoded at all,
    and of those only classes whose raw value can still lift objectness * probability above ``conf``. A box is emitted
    once for every class that does so, as in Darknet. Boxes that are not finite are dropped.

    Args:
        heads: raw (C, grid_h, grid_w) float32 in the order of ``detector.heads``; or the (total, 4) boxes and the
            (total, classes) scores of a graph that decodes by itself.
        detector: the network's facts.
        conf: score threshold in [0, 1].

    Returns:
        boxes (n, 4) in network pixels, scores (n,), both float64, and classes (n,) int64.

    Raises:
        InputError: a head's shape is not what the detector says, or ``conf`` is out of range.
        UnsupportedError: the network is a classifier or has a kind of head that is unknown.
    """
    _check_range("conf", conf)
    if len(heads) == 2 and heads[0].ndim == 2:
        return _gate_decoded(heads[0], heads[1], conf)
    if len(heads) != len(detector.heads) or not heads:
        raise InputError("wrong number of heads", got=len(heads), allowed=len(detector.heads))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        parts = [_decode_head(raw, head, conf) for raw, head in zip(heads, detector.heads, strict=True)]
    boxes, scores, classes = (np.concatenate(column) for column in zip(*parts, strict=True))
    finite = np.isfinite(boxes).all(axis=1)
    return boxes[finite], scores[finite], classes[finite]


def _gate_decoded(boxes: Floats, scores: Floats, conf: float) -> Decoded:
    """Gate the boxes of a graph that decodes by itself."""
    if boxes.shape[1:] != (4,) or scores.ndim != 2 or len(boxes) != len(scores):
        raise InputError("not boxes and scores", got=f"{boxes.shape}, {scores.shape}", allowed="(n, 4), (n, classes)")
    rows, classes = np.nonzero(scores > conf)
    return boxes[rows].astype(np.float64), scores[rows, classes].astype(np.float64), classes


def head_entries(head: Head) -> int:
    """Count the channels of one anchor: box, objectness, classes. Raises UnsupportedError for a head without boxes."""
    if head.kind not in OBJECTNESS:
        raise UnsupportedError(
            "this head has no known reading as boxes", where=head.output, got=head.kind, allowed=", ".join(OBJECTNESS)
        )
    return OBJECTNESS[head.kind] + 1 + head.classes


def _decode_head(raw: Floats, head: Head, conf: float) -> Decoded:
    """Decode one head; see ``decode``."""
    anchors, entries = len(head.anchors), head_entries(head)
    if raw.ndim != 3 or raw.shape[0] != anchors * entries:
        raise InputError(
            "a head does not have the shape that the detector says",
            where=head.output,
            got=raw.shape,
            allowed=f"({anchors * entries}, grid_h, grid_w)",
        )
    cells = raw.reshape(anchors, entries, -1)
    where = OBJECTNESS[head.kind]
    bound = conf if head.new_coords else logit(conf)
    anchor, cell = np.nonzero(cells[:, where] > bound - GATE_MARGIN)
    t = cells[anchor, :, cell].astype(np.float64)  # (n, entries)

    objectness = t[:, where] if head.new_coords else sigmoid(t[:, where])
    possible = objectness > conf
    if head.kind == "gaussian_yolo":
        factor = objectness * (1 - sigmoid(t[:, 1:8:2]).mean(axis=1))
        possible &= factor > conf
    else:
        factor = objectness
    anchor, cell, t, factor = anchor[possible], cell[possible], t[possible], factor[possible]
    rows, classes, scores = _class_scores(t[:, where + 1 :], factor, head, conf)
    boxes = _boxes(t, head, anchor, cell, raw.shape[2])
    return boxes[rows], scores, classes


def _class_scores(raw: Floats, factor: Floats, head: Head, conf: float) -> tuple[Ints, Ints, Floats]:
    """Find the (row, class) pairs with factor * probability above ``conf``, and that score.

    ``raw`` is (n, classes), ``factor`` (n,) and above ``conf``.
    """
    if head.softmax:
        probability = softmax(raw) if len(raw) else raw
        rows, classes = np.nonzero(factor[:, None] * probability > conf)
        return rows, classes, factor[rows] * probability[rows, classes]
    needed = conf / factor
    bound = needed if head.new_coords else logit(needed)
    rows, classes = np.nonzero(raw > bound[:, None] - GATE_MARGIN)
    values = raw[rows, classes]
    scores = factor[rows] * (values if head.new_coords else sigmoid(values))
    keep = scores > conf
    return rows[keep], classes[keep], scores[keep]


def _boxes(t: Floats, head: Head, anchor: Ints, cell: Ints, grid_w: int) -> Floats:
    """Turn (n, entries) raw values into (n, 4) boxes in network pixels."""
    raw = t[:, 0:8:2] if head.kind == "gaussian_yolo" else t[:, :4]
    centre = raw[:, :2] if head.new_coords else sigmoid(raw[:, :2])
    centre = head.scale_x_y * centre - 0.5 * (head.scale_x_y - 1)
    centre = (centre + np.stack([cell % grid_w, cell // grid_w], axis=1)) * np.array(head.stride)
    size = 4 * raw[:, 2:] ** 2 if head.new_coords else np.exp(np.minimum(raw[:, 2:], MAX_LOG_SIZE))
    half = 0.5 * size * np.array(head.anchors)[anchor]
    return np.concatenate([centre - half, centre + half], axis=1)


def detect(
    heads: Sequence[Floats],
    detector: Detector,
    size: Size,
    conf: float = CONF,
    iou: float = IOU,
    max_det: int = MAX_DET,
) -> Detections:
    """Turn raw heads into detections in the original picture.

    Decodes, suppresses with the network's own ``nms_kind``, and clips to the picture. As in Darknet the overlap is
    taken on coordinates relative to the picture, before clipping.

    Args:
        heads: see ``decode``.
        detector: the network's facts.
        size: (width, height) of the original picture.
        conf: boxes that score above it count, .25 by default.
        iou: boxes that overlap a better one by more than it fall, .45 by default.
        max_det: at most so many of the best boxes are kept, 300 by default.

    Raises:
        InputError, UnsupportedError: see ``decode`` and ``nms``.
    """
    if min(size) < 1:
        raise InputError("a picture without pixels", got=size)
    boxes, scores, classes = decode(heads, detector, conf)
    picture = np.array([size[0], size[1]] * 2, np.float64)
    boxes = scale_boxes(boxes, detector.preprocess, size)
    keep = nms(boxes / picture, scores, classes, iou, detector.nms_kind, detector.beta_nms, max_det)
    clipped = np.clip(boxes[keep], 0, picture).astype(np.float32)
    return Detections(clipped, scores[keep].astype(np.float32), classes[keep].astype(np.int64))


def is_classifier(detector: Detector) -> bool:
    """Whether the network names one class per picture instead of finding boxes."""
    return any(head.kind == "classifier" for head in detector.heads)


def classify(heads: Sequence[Floats], detector: Detector, top: int = TOP_K) -> Classification:
    """Return the ``top`` best classes of a classifier; ``heads`` holds its raw values, (classes,) or (classes, 1, 1).

    Raises InputError if the values are not one per class.
    """
    values = np.ravel(heads[0])
    if len(heads) != 1 or len(values) != detector.classes:
        raise InputError("not a classifier's output", got=[h.shape for h in heads], allowed=f"({detector.classes},)")
    scores = softmax(values) if detector.heads[0].softmax else values.astype(np.float64)
    best = np.argsort(-scores, kind="stable")[:top]
    return Classification(scores[best].astype(np.float32), best.astype(np.int64))


def _check_range(name: str, value: float) -> None:
    """Refuse a threshold outside [0, 1]."""
    if not 0 <= value <= 1:
        raise InputError(f"{name} is out of range", got=value, allowed="0 to 1")
