"""Where objects are counts more: the maps of weights, their resampling, and that reconstruction listens to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from graphs import net, pictures

from edgeyolo.detector import Detector, Head, Preprocess
from edgeyolo.passes.graph import read_detector, write_detector
from edgeyolo.postprocess import Detections
from edgeyolo.quant.calibrate import observe
from edgeyolo.quant.config import QuantConfig
from edgeyolo.quant.plan import make_plan
from edgeyolo.quant.refine import sequential
from edgeyolo.quant.refine.attention import GAIN, _draw, attention, resample
from edgeyolo.quant.refine.sequential import refine_layers

PICTURES = pictures(8, 3, 16, 16)


def found(*boxes: tuple[float, ...], scores: tuple[float, ...]) -> Detections:
    return Detections(np.array(boxes, np.float32), np.array(scores, np.float32), np.zeros(len(boxes), np.int64))


def described() -> ir.Model:
    """The toy net, whose first head is said to be a yolo head of one class and one anchor."""
    model = net()
    detector = read_detector(model)
    head = Head("head1", "yolo", (4.0, 4.0), ((6.0, 6.0),), 1)
    write_detector(model, replace(detector, heads=(head,)))
    return model


def test_cells_around_a_centre_weigh_by_the_best_score_there():
    weights = _draw(found((0, 0, 8, 8), (4, 4, 12, 12), scores=(0.5, 0.9)), (4, 8), (32, 16))
    assert weights.shape == (4, 8)
    assert weights[1, 1] == pytest.approx(1 + GAIN * 0.9) and weights[0, 0] == pytest.approx(1 + GAIN * 0.5)
    assert weights[3, 7] == 1 and weights.min() == 1


def test_a_centre_on_the_border_stays_in_the_map():
    weights = _draw(found((30, 14, 34, 18), scores=(1.0,)), (4, 8), (32, 16))
    assert weights[3, 7] == pytest.approx(1 + GAIN) and np.count_nonzero(weights > 1) == 1


def test_a_coarser_grid_keeps_the_largest_weight_and_a_finer_one_repeats():
    fine = np.ones((4, 6), np.float32)
    fine[3, 5] = 9
    coarse = resample(fine, 2, 3)
    assert coarse.tolist() == [[1, 1, 1], [1, 1, 9]]
    assert np.array_equal(resample(coarse, 4, 6)[2:, 4:], np.full((2, 2), 9))
    assert resample(fine, 3, 5).max() == 9  # sizes that do not divide
    assert resample(fine, 4, 6) is not fine and np.array_equal(resample(fine, 4, 6), fine)


def test_heads_that_nobody_described_give_no_map():
    model = net()
    raw = Detector(Preprocess(16, 16), (Head("head1", "raw"), Head("head2", "raw")))
    write_detector(model, replace(read_detector(model), heads=raw.heads))
    assert attention(model, PICTURES) is None


def test_a_detector_gives_one_map_a_picture():
    maps = attention(described(), PICTURES)
    assert maps is not None and len(maps) == len(PICTURES)
    assert all(m.shape == (4, 4) for m in maps) and any(m.max() > 1 for m in maps)


def test_reconstruction_listens(monkeypatch: pytest.MonkeyPatch):
    model = described()
    plan = make_plan(model, observe(model, PICTURES)[0], QuantConfig(3))
    weighted = refine_layers(model, plan, PICTURES, rebuild=True)
    monkeypatch.setattr(sequential, "attention", lambda *_: None)
    alike = refine_layers(model, plan, PICTURES, rebuild=True)
    assert any(not np.array_equal(alike.weights[n].codes, w.codes) for n, w in weighted.weights.items())
