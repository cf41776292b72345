"""One frame under the stopwatch: picture file, network, boxes, suppression, each stage by itself.

Of a batch every stage is timed as a whole, and a frame has its share.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeyolo.bench.backends import Backend
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.images import Pixels, load_image, to_input
from edgeyolo.nms import IOU, MAX_DET, fast_nms, nms
from edgeyolo.postprocess import CONF, OBJECTNESS, Decoded, Floats, Ints, decode, scale_boxes


@dataclass(frozen=True)
class Setting:
    """Thresholds; latency without them means nothing."""

    conf: float = CONF
    iou: float = IOU
    max_det: int = MAX_DET


class Frame(NamedTuple):
    """Milliseconds of the stages, and boxes before and after suppression; of a batch the means of its pictures."""

    pre: float
    infer: float
    decode: float
    nms: float
    total: float
    candidates: float
    kept: float


class Frames:
    """Runs a loaded backend on pictures, again and again in the same order.

    Args:
        backend: loaded.
        pictures: files, at least one.
        setting: thresholds.
        batch: pictures that the network gets at a time.

    Raises UnsupportedError if nobody knows how the model's outputs read as boxes.
    """

    def __init__(self, backend: Backend, pictures: Sequence[Path], setting: Setting, batch: int = 1) -> None:
        detector = backend.detector
        kinds = {head.kind for head in detector.heads} if detector is not None else set()
        if detector is None or not kinds or not kinds <= set(OBJECTNESS):
            raise UnsupportedError(
                "there is no decoder for this model's outputs, so there is no frame to measure",
                got=", ".join(sorted(kinds)) or "no detector metadata",
                allowed=", ".join(OBJECTNESS),
                hint="export the model with this tool from its .cfg: a foreign ONNX file does not say what heads mean",
            )
        self._backend, self._detector, self._batch = backend, detector, batch
        self._pictures, self._setting, self._next = list(pictures), setting, 0
        self._nms = fast_nms()
        self.suppression = "numpy" if self._nms is nms else "C"

    def seek(self, turn: int, frames: int) -> None:
        """Go on with the picture that is next after so many turns of so many frames or batches."""
        self._next = turn * frames * self._batch

    def one(self) -> Frame:
        """Measure the next picture, or batch of pictures. Raises InputError if the model does not take the batch."""
        paths = [self._pictures[(self._next + i) % len(self._pictures)] for i in range(self._batch)]
        self._next += self._batch
        backend = self._backend
        start = time.perf_counter_ns()
        pictures = [load_image(path) for path in paths]
        pixels = [to_input(picture, self._detector.preprocess) for picture in pictures]
        backend.set_inputs(pixels[0] if self._batch == 1 else np.stack(pixels))
        ready = time.perf_counter_ns()
        results = self._infer()
        inferred = time.perf_counter_ns()
        found = [self._decode(heads, picture) for heads, picture in zip(results, pictures, strict=True)]
        decoded = time.perf_counter_ns()
        kept = [len(self._suppress(*boxes)) for boxes in found]
        end = time.perf_counter_ns()
        ends = (start, ready, inferred, decoded, end)
        pre, infer, decoding, suppression = ((b - a) / 1e6 / self._batch for a, b in pairwise(ends))
        total, candidates = (end - start) / 1e6 / self._batch, sum(len(scores) for _, scores, _ in found)
        return Frame(pre, infer, decoding, suppression, total, candidates / self._batch, sum(kept) / self._batch)

    def _infer(self) -> list[list[Floats]]:
        """The heads of each picture."""
        if self._batch == 1:
            self._backend.infer()
            return [self._backend.outputs()]
        try:
            self._backend.infer()
        except InputError as error:
            what = f"the model does not take {self._batch} pictures at a time"
            raise InputError(what, got=error.got, hint="export it with --dynamic-batch") from error
        return [list(heads) for heads in zip(*self._backend.outputs(), strict=True)]

    def _decode(self, heads: list[Floats], picture: Pixels) -> Decoded:
        """Boxes above the threshold, relative to the picture; their scores and classes."""
        size = (picture.shape[1], picture.shape[0])
        boxes, scores, classes = decode(heads, self._detector, self._setting.conf)
        boxes = scale_boxes(boxes, self._detector.preprocess, size) / np.array([*size, *size], np.float64)
        return boxes, scores, classes

    def _suppress(self, boxes: Floats, scores: Floats, classes: Ints) -> Ints:
        d, s = self._detector, self._setting
        return self._nms(boxes, scores, classes, s.iou, d.nms_kind, d.beta_nms, s.max_det)
