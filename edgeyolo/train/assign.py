"""Which anchor of which cell is responsible for which object, by Darknet's rule for YOLOv3 and v4.

An object belongs to the cell that its centre is in, at the anchor whose shape overlaps its own most, over the anchors
of all heads, and at every other anchor that overlaps it by more than ``assign_iou``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeyolo.detector import Head


@dataclass(frozen=True, eq=False)
class Objects:
    """The labelled objects of a batch: picture (n,) int64, classes (n,) int64, boxes (n, 4) x0 y0 x1 y1 in pixels."""

    picture: Tensor
    classes: Tensor
    boxes: Tensor

    def to(self, device: torch.device) -> Objects:
        """The same on another device."""
        return Objects(self.picture.to(device), self.classes.to(device), self.boxes.to(device))

    def padded(self, pictures: int) -> Tensor:
        """(pictures, most, 4): the boxes of each picture, zeros (which overlap nothing) behind the last."""
        counts = torch.bincount(self.picture, minlength=pictures)
        result = self.boxes.new_zeros(pictures, max(int(counts.max()), 1), 4)
        starts = counts.cumsum(0) - counts
        order = torch.argsort(self.picture, stable=True)
        rank = torch.arange(len(order), device=order.device) - starts[self.picture[order]]
        result[self.picture[order], rank] = self.boxes[order]
        return result


@dataclass(frozen=True, eq=False)
class Positives:
    """The responsible (picture, anchor, row, column) of one head, and the position of each one's object; all (m,)."""

    picture: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    target: Tensor


def shape_iou(sizes: Tensor, anchors: Tensor) -> Tensor:
    """Overlap of (n, 2) sizes with (k, 2) anchors when their centres coincide: (n, k)."""
    inner = torch.minimum(sizes[:, None], anchors[None]).prod(2)
    return inner / (sizes.prod(1)[:, None] + anchors.prod(1)[None] - inner).clamp(min=1e-9)


def assign(
    objects: Objects, heads: Sequence[Head], grids: Sequence[tuple[int, int]], assign_iou: float
) -> list[Positives]:
    """Find the positives of every head; ``grids`` are their (rows, columns)."""
    boxes = objects.boxes
    sizes, centres = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
    anchors = boxes.new_tensor([anchor for head in heads for anchor in head.anchors])
    overlap = shape_iou(sizes, anchors)
    chosen = overlap > assign_iou
    chosen[torch.arange(len(boxes), device=boxes.device), overlap.argmax(1)] = True
    found, first = [], 0
    for head, (rows, columns) in zip(heads, grids, strict=True):
        target, anchor = chosen[:, first : first + len(head.anchors)].nonzero(as_tuple=True)
        first += len(head.anchors)
        cell = (centres[target] / boxes.new_tensor(head.stride)).long()
        column, row = cell[:, 0].clamp(0, columns - 1), cell[:, 1].clamp(0, rows - 1)
        found.append(Positives(objects.picture[target], anchor, row, column, target))
    return found
