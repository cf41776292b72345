"""Raw pixels in: the first layer takes over the input's scale, and the input's codes are the pixels themselves."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import build, normal, pictures

from edgeyolo.ort import open_session, run
from edgeyolo.passes.graph import read_detector
from edgeyolo.passes.pixel_input import PIXEL_SCALE, PixelInput
from edgeyolo.qtype import QType, TensorQuant
from edgeyolo.quant.calibrate import copy_model, to_float

PIXEL_TOLERANCE = 2e-6
"""Relative to the largest output: the scale 256/255 is rounded into float32 weights instead of into the input."""

WEIGHTS = {"w": normal(0, 4, 3, 3, 3), "b": normal(1, 4), "w2": normal(2, 4, 12, 1, 1)}
FOCUS = """
    x00 = Slice(images, o00, end, hw, two)
    x10 = Slice(images, o10, end, hw, two)
    x01 = Slice(images, o01, end, hw, two)
    x11 = Slice(images, o11, end, hw, two)
    x = Concat<axis=1>(x00, x10, x01, x11)
"""
CORNERS = {
    **{f"o{i}{j}": [i, j] for i in (0, 1) for j in (0, 1)},
    "end": [1 << 40, 1 << 40],
    "hw": [2, 3],
    "two": [2, 2],
}


def graph(body: str, scale: float = 1 / 255) -> ir.Model:
    text = f"(float[1,3,8,8] images) => (float[1,C,H,W] head) {{ {body} }}"
    return build(text, {**WEIGHTS, **CORNERS, "ones": np.ones((1, 9, 4, 4), np.float32)}, scale=scale)


def heads(model: ir.Model, pixels: np.ndarray) -> np.ndarray:
    return run(open_session(model, optimise=False), to_float(pixels, read_detector(model)))["head"]


@pytest.mark.parametrize(
    "body",
    [
        "head = Conv<pads=[1,1,1,1]>(images, w, b)",
        "a = Conv<pads=[1,1,1,1]>(images, w, b)\nc = Conv<pads=[1,1,1,1]>(images, w)\nhead = Add(a, c)",
        FOCUS + "head = Conv(x, w2, b)",
    ],
    ids=["conv", "two readers", "focus"],
)
@pytest.mark.parametrize("scale", [1 / 255, 1 / 128, 1.0])
def test_the_first_convolutions_take_over_the_scale(body, scale):
    model = graph(body, scale)
    after = copy_model(model)
    assert PixelInput()(after).modified
    assert read_detector(after).preprocess.scale == PIXEL_SCALE
    assert read_detector(after).preprocess.width == 8
    pixels = pictures(1, 3, 8, 8)[0]
    expected = heads(model, pixels)
    assert np.abs(heads(after, pixels) - expected).max() <= PIXEL_TOLERANCE * max(1.0, np.abs(expected).max())
    assert not PixelInput()(after).modified


def test_the_codes_of_the_input_are_the_pixels():
    model = graph("head = Conv<pads=[1,1,1,1]>(images, w, b)")
    PixelInput()(model)
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    real = to_float(pixels, read_detector(model))[0]
    quant = TensorQuant.pow2(QType(8, signed=False), 8)
    assert np.array_equal(quant.quantise(real), pixels)
    assert np.array_equal(quant.fake(real), real)


@pytest.mark.parametrize(
    "body",
    [
        "k = Add(images, images)\nhead = Conv(k, w)",
        "p = Pad(images, pads)\nhead = Conv(p, w)",
        "a = Conv<pads=[1,1,1,1]>(images, w)\nhead = Concat<axis=1>(a, images)",
        FOCUS.replace("x11)", "x11, ones)") + "h = Conv(x, w3)\nhead = Relu(h)",
        "k = Exp(w)\nhead = Conv(images, k)",
        "head = Conv(constant, images)",
    ],
    ids=["add", "pad", "skip", "joined with a constant", "computed weights", "as weights"],
)
def test_it_declines_where_something_else_reads_the_input(body):
    text = f"(float[1,3,8,8] images) => (float[1,C,H,W] head) {{ {body} }}"
    more = {
        "ones": np.ones((1, 9, 4, 4), np.float32),
        "pads": [0, 0, 1, 1, 0, 0, 1, 1],
        "w3": normal(3, 4, 21, 1, 1),
        "constant": normal(4, 1, 3, 9, 9),
    }
    model = build(text, {**WEIGHTS, **CORNERS, **more}, scale=1 / 255)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not PixelInput()(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_it_declines_where_the_slices_are_an_output():
    text = "(float[1,3,8,8] images) => (float[1,C,H,W] head, float[1,3,4,4] x00) {" + FOCUS + "head = Conv(x, w2, b) }"
    model = build(text, {**WEIGHTS, **CORNERS}, scale=1 / 255)
    assert not PixelInput()(model).modified
