"""Where it matters: output positions at which the float network sees something count more.

Nearly all cells of a head show background. Least squares over all of them alike makes a network whose background is
right and whose objects are faint: scores shrink, and what stood just above the threshold is missed. So a position
weighs 1 + GAIN * s, with s the best score of the float network's detections whose centre is in that cell of the finest
head or next to it, and 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo import postprocess
from edgeyolo.errors import EdgeYoloError
from edgeyolo.ort import model_bytes, open_session, run
from edgeyolo.passes.graph import read_detector
from edgeyolo.quant.calibrate import Pixels, to_float

GAIN = 40.0
CONF = 0.05
"""Faint detections count as well, by their score."""
IOU = 0.6
MAX_OBJECTS = 300

Map = npt.NDArray[np.float32]


def attention(model: ir.Model, pictures: Iterable[Pixels]) -> list[Map] | None:
    """One map of weights a picture, on the finest head's grid; None where the heads show no boxes."""
    detector = read_detector(model)
    size = (detector.preprocess.width, detector.preprocess.height)
    session = open_session(model_bytes(model))
    maps: list[Map] = []
    for pixels in pictures:
        values = run(session, to_float(pixels, detector))
        heads = [values[head.output][0] for head in detector.heads]
        try:
            found = postprocess.detect(heads, detector, size, CONF, IOU, MAX_OBJECTS)
        except EdgeYoloError:  # a classifier, or heads that nobody has described
            return None
        grid = max((head.shape[-2:] for head in heads), key=lambda shape: shape[0] * shape[1])
        maps.append(_draw(found, grid, size))
    return maps


def _draw(found: postprocess.Detections, grid: tuple[int, ...], size: tuple[int, int]) -> Map:
    weights = np.ones(grid, np.float32)
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2 / np.array(size) * np.array(grid)[::-1]
    for (x, y), score in zip(centres.astype(int).tolist(), found.scores.tolist(), strict=True):
        near = np.s_[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        weights[near] = np.maximum(weights[near], 1 + GAIN * score)
    return weights


def resample(weights: Map, height: int, width: int) -> Map:
    """A map on another grid: the largest weight within a coarser cell, the weight around a finer one."""
    for axis, wanted in enumerate((height, width)):
        starts = np.arange(wanted) * weights.shape[axis] // wanted
        coarser = wanted < weights.shape[axis]
        weights = np.maximum.reduceat(weights, starts, axis) if coarser else np.take(weights, starts, axis)
    return weights
