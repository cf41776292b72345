"""The real Yolo-Fastest weights on a well-known picture, against what Darknet itself prints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from edgeyolo.errors import InputError
from edgeyolo.frontend.darknet import load_darknet

SCORES = {"car": [0.883, 0.439], "dog": [0.649], "cat": [0.548], "bicycle": [0.547], "person": [0.329]}
"""What Darknet finds in dog.jpg above 0.3, after suppression at 0.45."""
SCORE_TOLERANCE = 2e-3
"""For the best score of a class. Another kind of resize moves scores by 0.01 to 0.1."""
NOISE_TOLERANCE = 8e-3
"""For all scores: JPEG decoders round differently, and one grey level of noise on half of the pixels does as much."""


def darknet_resize(image, width, height):
    """Bilinear between the outermost pixel centres: (H, W, 3) to (height, width, 3)."""

    def taps(source, target):
        position = np.arange(target) * ((source - 1) / (target - 1))
        low = np.minimum(position.astype(int), source - 2)
        return low, (position - low)

    (x, dx), (y, dy) = taps(image.shape[1], width), taps(image.shape[0], height)
    rows = image[:, x] * (1 - dx[None, :, None]) + image[:, x + 1] * dx[None, :, None]
    return rows[y] * (1 - dy[:, None, None]) + rows[y + 1] * dy[:, None, None]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def boxes(raw, head, size):
    """(n, 4) centre boxes and (n, classes) scores of one head."""
    grid = raw.reshape(len(head.anchors), 5 + head.classes, *raw.shape[1:])
    rows, cols = np.mgrid[: raw.shape[1], : raw.shape[2]]
    found = []
    for values, (width, height) in zip(grid, head.anchors, strict=True):
        x, y = sigmoid(values[0]) + cols, sigmoid(values[1]) + rows
        w, h = np.exp(values[2]) * width, np.exp(values[3]) * height
        scores = sigmoid(values[4]) * sigmoid(values[5:])
        box = np.stack([x * head.stride[0], y * head.stride[1], w, h]) / size
        found.append(np.concatenate([box, scores]).reshape(4 + head.classes, -1).T)
    return np.concatenate(found)


def overlap(a, b):
    """Plain IoU of two centre boxes."""
    low = np.maximum(a[:2] - a[2:4] / 2, b[:2] - b[2:4] / 2)
    high = np.minimum(a[:2] + a[2:4] / 2, b[:2] + b[2:4] / 2)
    common = np.prod(np.maximum(high - low, 0))
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def scores_on(model, image):
    pre = model.detector.preprocess
    x = darknet_resize(np.asarray(image, np.float64), pre.width, pre.height).transpose(2, 0, 1)[None] * pre.scale
    with torch.no_grad():
        raw = model.module(torch.from_numpy(x.astype(np.float32)))
    size = np.array([pre.width, pre.height] * 2)[:, None, None]
    rows = np.concatenate([boxes(r.numpy()[0], h, size) for r, h in zip(raw, model.detector.heads, strict=True)])
    found = {}
    for index, name in enumerate(model.detector.names):
        kept = []
        for row in sorted(rows[rows[:, 4 + index] > 0.3], key=lambda r: -r[4 + index]):
            if all(overlap(row, other) <= 0.45 for other in kept):
                kept.append(row)
        if kept:
            found[name] = [float(row[4 + index]) for row in kept]
    return found


@pytest.fixture(scope="module")
def models(data):
    return data / "models"


def load(models, name, weights_of=None):
    weights = weights_of or name
    return load_darknet(
        models / name / f"{name}.cfg", models / weights / f"{weights}.weights", names=models / "coco.names"
    )


def test_dog_jpg_scores_are_darknets(models, data):
    model = load(models, "yolo-fastest-1.1")
    found = scores_on(model, Image.open(data / "pictures" / "dog.jpg").convert("RGB"))
    assert found.keys() == SCORES.keys()
    for name, scores in SCORES.items():
        np.testing.assert_allclose(found[name][0], scores[0], atol=SCORE_TOLERANCE, rtol=0, err_msg=name)
        np.testing.assert_allclose(found[name], scores, atol=NOISE_TOLERANCE, rtol=0, err_msg=name)


def test_facts_of_the_real_cfg(models):
    model = load(models, "yolo-fastest-1.1")
    assert model.notes == ("weights trained on 14231680 pictures",)
    assert [head.stride for head in model.detector.heads] == [(32, 32), (16, 16)]
    assert model.detector.heads[1].anchors == ((12, 18), (37, 49), (52, 132))
    assert model.detector.nms_kind == "greedynms"
    assert sum(layer.macs for layer in model.layers) == 125_437_600
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.module.modules()) == 82


def test_the_larger_model_finds_the_dog(models, data):
    model = load(models, "yolo-fastest-1.1-xl")
    found = scores_on(model, Image.open(data / "pictures" / "dog.jpg").convert("RGB"))
    assert min(found["dog"][0], found["bicycle"][0]) > 0.9 and found["car"][0] > 0.75


def test_the_weights_of_another_cfg_are_refused(models):
    with pytest.raises(InputError, match="ends inside layer"):
        load(models, "yolo-fastest-1.1-xl", weights_of="yolo-fastest-1.1")
    with pytest.raises(InputError, match="goes on after layer 129"):
        load(models, "yolo-fastest-1.1", weights_of="yolo-fastest-1.1-xl")
