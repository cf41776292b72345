"""Do two models see the same objects? F1 of one's detections against the other's, no labels needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeyolo.postprocess import Detections, Floats

CONF = 0.25
IOU = 0.5


@dataclass
class Agreement:
    """Counts of matched and unmatched detections over pictures; ``f1`` is 1 where neither side found anything."""

    matched: int = 0
    missed: int = 0
    invented: int = 0

    def add(self, reference: Detections, got: Detections) -> None:
        """Match one picture's detections greedily, best score first: same class and IoU of at least ``IOU``."""
        seen, known = match(reference, got)
        self.matched += int(known.sum())
        self.invented += int((~known).sum())
        self.missed += int((~seen).sum())

    @property
    def judged(self) -> bool:
        """Whether either side found anything at all; if not, ``f1`` says nothing."""
        return self.matched + self.missed + self.invented > 0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall against the reference."""
        total = 2 * self.matched + self.missed + self.invented
        return 2 * self.matched / total if total else 1.0


def match(reference: Detections, got: Detections) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which of the reference's boxes, and which of ``got``, have a partner on the other side; see ``Agreement.add``."""
    seen, known = np.zeros(len(reference), np.bool_), np.zeros(len(got), np.bool_)
    for i, (box, label) in enumerate(zip(got.boxes, got.classes, strict=True)):
        overlap = np.where(~seen & (reference.classes == label), _iou(box, reference.boxes), 0.0)
        best = int(overlap.argmax()) if len(overlap) else -1
        if best >= 0 and overlap[best] >= IOU:
            seen[best] = known[i] = True
    return seen, known


def _iou(box: Floats, boxes: Floats) -> Floats:
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[2:], boxes[:, 2:])
    inter = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    overlap: Floats = inter / np.maximum(areas - inter, 1e-9)
    return overlap
