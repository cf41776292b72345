"""What every refinement is worth on the embedded default model: each of these fails when one is switched off."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import Array

from edgeyolo import assets
from edgeyolo.datasets.scenes import make_scene
from edgeyolo.export.prepare import Stages, prepare
from edgeyolo.frontend import load_source
from edgeyolo.passes.dyadic_leaky import DyadicLeaky
from edgeyolo.passes.pixel_input import PixelInput
from edgeyolo.progress import Log
from edgeyolo.quant.calibrate import copy_model, observe, run_pictures
from edgeyolo.quant.compare import head_snr
from edgeyolo.quant.config import QuantConfig
from edgeyolo.quant.insert_qdq import insert_qdq
from edgeyolo.quant.plan import Plan, make_plan
from edgeyolo.quant.refine import reconstruct, sequential
from edgeyolo.quant.refine.equalise import equalise
from edgeyolo.quant.refine.sequential import refine_layers

POSITIONS = 4096
"""Output positions per layer: an eighth of what an export takes, so that a test takes seconds."""
BIAS_GAIN = 2.0
"""dB at the heads, over rounding to nearest at 4 bits; measured 4.2."""
RECONSTRUCTION_GAIN = 1.5
"""dB, over corrected biases; measured 3.5."""
EQUALISATION_GAIN = 2.5
"""dB with one exponent per tensor, biases corrected; measured 5.7."""
HEAD_GAIN = 1.5
"""Boxes' squared error with 8 bit heads over that with 16, all weights at 8 bits."""


def scenes(count: int, seed: int) -> list[Array]:
    """Network pixels (3, 160, 160) of scenes from the calibration's split."""
    return [np.ascontiguousarray(make_scene("train", i, seed)[0].transpose(2, 0, 1)) for i in range(count)]


@pytest.fixture(scope="module")
def model() -> ir.Model:
    source = load_source(assets.CFG, weights=assets.WEIGHTS, names=assets.NAMES)
    simple, _ = prepare(source.model, [], Stages(None), Log(quiet=True))
    PixelInput()(simple)
    DyadicLeaky()(simple)
    return simple


@pytest.fixture(scope="module")
def calibration() -> list[Array]:
    return scenes(8, seed=1)


@pytest.fixture(scope="module")
def held_out() -> list[Array]:
    return scenes(4, seed=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequential, "POSITIONS", POSITIONS)
    monkeypatch.setattr(reconstruct, "LARGE", 0)  # one ridge, the plan's exponents


def planned(model: ir.Model, pictures: list[Array], **options: int | str) -> Plan:
    return make_plan(model, observe(model, pictures)[0], QuantConfig(**options))  # type: ignore[arg-type]


def test_biases_and_reconstruction_each_raise_the_heads_snr(model, calibration, held_out):
    plan = planned(model, calibration, bits=4)
    plans = [plan, *(refine_layers(model, plan, calibration, rebuild=rebuild) for rebuild in (False, True))]
    nearest, biases, rebuilt = (head_snr(model, insert_qdq(model, p), held_out) for p in plans)
    assert biases > nearest + BIAS_GAIN
    assert rebuilt > biases + RECONSTRUCTION_GAIN


def test_equalisation_raises_the_heads_snr(model, calibration, held_out):
    snr = []
    scaled = copy_model(model)
    assert equalise(scaled, observe(model, calibration)[1], False) > 0
    for candidate in (model, scaled):
        plan = planned(candidate, calibration, bits=4, granularity="per-tensor")
        corrected = refine_layers(candidate, plan, calibration, rebuild=False)
        snr.append(head_snr(model, insert_qdq(candidate, corrected), held_out))
    assert snr[1] > snr[0] + EQUALISATION_GAIN


def test_wide_heads_keep_the_boxes(model, calibration, held_out):
    heads = [str(v.name) for v in model.graph.outputs]
    wide, narrow = planned(model, calibration, bits=8), planned(model, calibration, bits=8, head_bits=8)
    assert [wide.acts[name].qtype.bits for name in heads] == [16] * len(heads)
    assert [narrow.acts[name].qtype.bits for name in heads] == [8] * len(heads)
    errors = []
    for plan in (narrow, wide):
        pairs = zip(*(run_pictures(m, heads, held_out) for m in (model, insert_qdq(model, plan))), strict=True)
        boxes = [_boxes(got[name]) - _boxes(exact[name]) for exact, got in pairs for name in heads]
        errors.append(np.mean([np.square(error).mean() for error in boxes]))
    assert errors[0] > HEAD_GAIN * errors[1]


def _boxes(head: Array) -> Array:
    """Four of every fifteen channels: three anchors of a box, an objectness and ten classes."""
    return head.reshape(3, 15, -1)[:, :4]
