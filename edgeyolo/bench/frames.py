"""One frame under the stopwatch: picture file, network, boxes, suppression, each stage by itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeyolo.bench.backends import Backend
from edgeyolo.errors import UnsupportedError
from edgeyolo.images import load_image, to_input
from edgeyolo.nms import IOU, MAX_DET, fast_nms
from edgeyolo.postprocess import CONF, OBJECTNESS, decode, scale_boxes


@dataclass(frozen=True)
class Setting:
    """Thresholds; latency without them means nothing."""

    conf: float = CONF
    iou: float = IOU
    max_det: int = MAX_DET


class Frame(NamedTuple):
    """Milliseconds of the stages, and boxes before and after suppression."""

    pre: float
    infer: float
    decode: float
    nms: float
    total: float
    candidates: int
    kept: int


class Frames:
    """Runs a loaded backend on pictures, again and again in the same order.

    Args:
        backend: loaded.
        pictures: files, at least one.
        setting: thresholds.

    Raises UnsupportedError if nobody knows how the model's outputs read as boxes.
    """

    def __init__(self, backend: Backend, pictures: Sequence[Path], setting: Setting) -> None:
        detector = backend.detector
        kinds = {head.kind for head in detector.heads} if detector is not None else set()
        if detector is None or not kinds or not kinds <= set(OBJECTNESS):
            raise UnsupportedError(
                "there is no decoder for this model's outputs, so there is no frame to measure",
                got=", ".join(sorted(kinds)) or "no detector metadata",
                allowed=", ".join(OBJECTNESS),
                hint="export the model with this tool from its .cfg: a foreign ONNX file does not say what heads mean",
            )
        self._backend, self._detector = backend, detector
        self._pictures, self._setting, self._next = list(pictures), setting, 0
        self._nms = fast_nms()

    def one(self) -> Frame:
        """Measure the next picture."""
        path = self._pictures[self._next]
        self._next = (self._next + 1) % len(self._pictures)
        setting, detector, backend = self._setting, self._detector, self._backend
        start = time.perf_counter_ns()
        picture = load_image(path)
        size = (picture.shape[1], picture.shape[0])
        backend.set_inputs(to_input(picture, detector.preprocess))
        ready = time.perf_counter_ns()
        backend.infer()
        heads = backend.outputs()
        inferred = time.perf_counter_ns()
        boxes, scores, classes = decode(heads, detector, setting.conf)
        whole = np.array([*size, *size], np.float64)
        boxes = scale_boxes(boxes, detector.preprocess, size)
        decoded = time.perf_counter_ns()
        keep = self._nms(
            boxes / whole, scores, classes, setting.iou, detector.nms_kind, detector.beta_nms, setting.max_det
        )  # fmt: skip
        end = time.perf_counter_ns()
        ends = (start, ready, inferred, decoded, end)
        pre, infer, decoding, suppression = ((b - a) / 1e6 for a, b in pairwise(ends))
        return Frame(pre, infer, decoding, suppression, (end - start) / 1e6, len(scores), len(keep))
