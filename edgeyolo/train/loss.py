"""The loss of YOLOv3 and v4: overlap of boxes, objectness of every cell, and one yes or no per class.

Sums over anchors and cells, a mean over pictures. IoU: Rezatofighi et al. 2019 (GIoU), Zheng et al. 2020 (CIoU).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from edgeyolo.detector import Head
from edgeyolo.errors import UnsupportedError
from edgeyolo.train.assign import Objects, Positives, assign
from edgeyolo.train.recipe import Recipe

MAX_LOG_SIZE = 8.0
"""exp() of a raw width or height stops here while training: 3,000 anchors wide is no box, but it would be infinite."""
_TINY = 1e-9


class Loss(NamedTuple):
    """The weighted parts, each a scalar; their sum is what is minimised."""

    box: Tensor
    objectness: Tensor
    classification: Tensor

    @property
    def total(self) -> Tensor:
        """The sum."""
        return self.box + self.objectness + self.classification


def check_trainable(heads: Sequence[Head]) -> None:
    """Raise UnsupportedError, listing them, if any head is not a [yolo] head with plain coordinates."""
    bad = [f"{h.output} ({h.kind}{', new_coords' if h.new_coords else ''})" for h in heads
           if h.kind != "yolo" or h.new_coords]  # fmt: skip
    if bad or not heads:
        raise UnsupportedError("only [yolo] heads can be trained", got=", ".join(bad) or "no heads",
                               allowed="[yolo] without new_coords")  # fmt: skip


def detection_loss(outputs: Sequence[Tensor], heads: Sequence[Head], objects: Objects, recipe: Recipe) -> Loss:
    """Compare raw heads with what should be found.

    Args:
        outputs: one raw tensor per head, (N, anchors * (5 + classes), rows, columns).
        heads: in the same order.
        objects: of the N pictures.
        recipe: weights and thresholds.
    """
    pictures = outputs[0].shape[0]
    raw = [_cells(output.float(), head) for output, head in zip(outputs, heads, strict=True)]
    grids = [(cells.shape[2], cells.shape[3]) for cells in raw]
    truth = objects.padded(pictures)
    box = objectness = classification = raw[0].sum() * 0.0
    for cells, head, positives in zip(raw, heads, assign(objects, heads, grids, recipe.assign_iou), strict=True):
        parts = _head_loss(cells, head, positives, objects, truth, recipe)
        box, objectness, classification = box + parts[0], objectness + parts[1], classification + parts[2]
    return Loss(
        recipe.box * box / pictures,
        recipe.objectness * objectness / pictures,
        recipe.classification * classification / pictures,
    )


def _cells(output: Tensor, head: Head) -> Tensor:
    """(N, A * E, H, W) to (N, A, H, W, E)."""
    pictures, channels, rows, columns = output.shape
    anchors = len(head.anchors)
    return output.view(pictures, anchors, channels // anchors, rows, columns).permute(0, 1, 3, 4, 2)


def _head_loss(
    cells: Tensor, head: Head, positives: Positives, objects: Objects, truth: Tensor, recipe: Recipe
) -> tuple[Tensor, Tensor, Tensor]:
    """Box, objectness and class loss of one head, summed."""
    where = (positives.picture, positives.anchor, positives.row, positives.column)
    chosen = cells[where]
    wanted = objects.boxes[positives.target]
    predicted = _boxes_at(chosen[:, :4], head, positives)
    overlap, box_loss = box_overlap(predicted, wanted, recipe.box_loss)

    with torch.no_grad():
        target = cells.new_zeros(cells.shape[:4])
        share = overlap.detach().clamp(min=0) * recipe.iou_target + (1 - recipe.iou_target)
        # One cell may be responsible for two objects; the better of them counts, whatever the order of writing.
        target.view(-1).scatter_reduce_(0, _flat(where, target.shape), share, "amax")
        ignored = best_iou(_all_boxes(cells[..., :4].detach(), head), truth) > recipe.ignore_iou
        counts = (target > 0) | ~ignored
    objectness = functional.binary_cross_entropy_with_logits(cells[..., 4], target, reduction="none")

    one_hot = functional.one_hot(objects.classes[positives.target], head.classes).to(chosen.dtype)
    one_hot = one_hot * (1 - 2 * recipe.label_smoothing) + recipe.label_smoothing
    classes = functional.binary_cross_entropy_with_logits(chosen[:, 5:], one_hot, reduction="sum")
    return box_loss.sum(), (objectness * counts).sum(), classes


def _flat(where: tuple[Tensor, ...], shape: torch.Size) -> Tensor:
    """Positions in the flattened tensor."""
    index = where[0]
    for part, size in zip(where[1:], shape[1:], strict=True):
        index = index * size + part
    return index


def _boxes_at(raw: Tensor, head: Head, positives: Positives) -> Tensor:
    """(m, 4) raw values of the positives to boxes in pixels."""
    cell = torch.stack([positives.column, positives.row], 1).to(raw.dtype)
    anchors = raw.new_tensor(head.anchors)[positives.anchor]
    return _corners(raw, cell, anchors, head)


def _all_boxes(raw: Tensor, head: Head) -> Tensor:
    """(N, A, H, W, 4) raw values to boxes in pixels."""
    _, anchors, rows, columns, _ = raw.shape
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    cell = torch.stack([x, y], -1).to(raw)
    return _corners(raw, cell, raw.new_tensor(head.anchors).view(anchors, 1, 1, 2), head)


def _corners(raw: Tensor, cell: Tensor, anchors: Tensor, head: Head) -> Tensor:
    """Decode (..., 4) as postprocess does."""
    centre = torch.sigmoid(raw[..., :2]) * head.scale_x_y - 0.5 * (head.scale_x_y - 1)
    centre = (centre + cell) * raw.new_tensor(head.stride)
    half = 0.5 * torch.exp(raw[..., 2:].clamp(max=MAX_LOG_SIZE)) * anchors
    return torch.cat([centre - half, centre + half], -1)


def best_iou(boxes: Tensor, truth: Tensor) -> Tensor:
    """Largest overlap of every box (N, A, H, W, 4) with any object (N, M, 4) of its picture: (N, A, H, W)."""
    best = torch.zeros_like(boxes[..., 0])
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    for number in range(truth.shape[1]):  # one object of each picture at a time: memory stays that of the boxes
        x0, y0, x1, y1 = (truth[:, number, i].view(-1, 1, 1, 1) for i in range(4))
        width = (torch.minimum(boxes[..., 2], x1) - torch.maximum(boxes[..., 0], x0)).clamp(min=0)
        height = (torch.minimum(boxes[..., 3], y1) - torch.maximum(boxes[..., 1], y0)).clamp(min=0)
        inner = width * height
        best = torch.maximum(best, inner / (area + (x1 - x0) * (y1 - y0) - inner + _TINY))
    return best


def box_overlap(a: Tensor, b: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """IoU (m,) of (m, 4) boxes pair by pair, and 1 - CIoU or 1 - GIoU."""
    size_a, size_b = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    inner = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    union = size_a.prod(1) + size_b.prod(1) - inner + _TINY
    iou = inner / union
    hull = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    if kind == "giou":
        return iou, 1 - iou + (hull.prod(1) - union) / (hull.prod(1) + _TINY)
    distance = ((a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) ** 2).sum(1) / 4 / ((hull**2).sum(1) + _TINY)
    angle = torch.atan(size_a[:, 0] / (size_a[:, 1] + _TINY)) - torch.atan(size_b[:, 0] / (size_b[:, 1] + _TINY))
    shape = 4 / math.pi**2 * angle**2
    with torch.no_grad():
        weight = shape / (1 - iou + shape + _TINY)
    return iou, 1 - iou + distance + weight * shape
