"""LeakyRelu on unsigned codes as two kernels: nearly the table's codes, and only where both ends are codes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import build

from edgeyolo.lower.mobile.leaky import split_leaky
from edgeyolo.ort import open_session, run
from edgeyolo.quant.calibrate import copy_model

NEAR_TIES = 4
"""Of 256 codes so few may lie so near the middle of two that another order of sums rounds them the other way."""
CODES = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
TEXT = """(uint8[1,1,16,16] images) => (uint8[1,1,16,16] head) {{
    x = DequantizeLinear(images, step, zero)
    y = LeakyRelu<alpha={slope}>(x)
    head = QuantizeLinear(y, other, third)
}}"""


def model(slope: float, zero: int, third: int) -> ir.Model:
    arrays = {"step": np.float32(0.037), "zero": np.uint8(zero), "other": np.float32(0.021), "third": np.uint8(third)}
    return build(TEXT.format(slope=slope), arrays, facts=False)


def codes(graph: ir.Model, *, optimise: bool = True) -> np.ndarray:
    return run(open_session(graph, optimise=optimise), CODES)["head"].astype(int)


@pytest.mark.parametrize(("slope", "zero", "third"), [(0.1, 128, 20), (0.125, 200, 3), (0.9, 0, 0), (0.01, 255, 250)])
def test_all_codes_come_out_as_from_the_table_up_to_one_rounding(slope: float, zero: int, third: int) -> None:
    whole = model(slope, zero, third)
    split = copy_model(whole)
    split_leaky(split)
    assert [node.op_type for node in split.graph].count("Clip") == 1
    assert "LeakyRelu" not in {node.op_type for node in split.graph}
    for optimise in (True, False):
        difference = codes(split, optimise=optimise) - codes(whole)
        assert np.abs(difference).max() <= 1 and np.count_nonzero(difference) <= NEAR_TIES


def test_what_is_no_table_stays() -> None:
    for slope in (1.5, 0.0, -0.1):
        steep = model(slope, 128, 128)
        split_leaky(steep)
        assert [node.op_type for node in steep.graph].count("LeakyRelu") == 1, slope
    text = TEXT.format(slope=0.1).replace("head)", "head, float[1,1,16,16] y)")
    arrays = {"step": np.float32(0.1), "zero": np.uint8(9), "other": np.float32(0.1), "third": np.uint8(9)}
    seen = build(text, arrays, facts=False)
    split_leaky(seen)
    assert "LeakyRelu" in {node.op_type for node in seen.graph}, "its float result is a result of the graph"
