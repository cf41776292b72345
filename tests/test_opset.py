"""Another opset, the same function: up by ONNX's own converter, down where operators are what they were."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import build, outputs
from onnx import checker
from tensorrt_graphs import ARRAYS, BODIES, graph

from edgeyolo.errors import UnsupportedError
from edgeyolo.ort import model_bytes
from edgeyolo.passes.graph import read_detector
from edgeyolo.passes.opset import with_opset

NEWER = {
    "allowzero": "head = Reshape<allowzero=1>(images, shape)",
    "part of a shape": "s = Shape<start=1>(images) f = Cast<to=1>(s) m = ReduceMax<keepdims=0>(f) head = Add(m, m)",
    "new operator": "head = HardSwish(images)",
}


@pytest.mark.parametrize("opset", [13, 15, 17, 19, 21])
@pytest.mark.parametrize("name", BODIES)
def test_the_function_stays(name, opset):
    model = graph(name)
    other = with_opset(model, opset)
    checker.check_model(model_bytes(other), full_check=True)
    assert other.graph.opset_imports[""] == opset and model.graph.opset_imports[""] == 17
    assert np.array_equal(outputs(model)["head"], outputs(other)["head"])
    assert read_detector(other) == read_detector(model)


@pytest.mark.parametrize("name", NEWER)
def test_what_an_older_opset_cannot_say_is_refused(name):
    arrays = {**ARRAYS, "shape": [1, 3, 8, 8]}
    model = build(f"(float[1,3,8,8] images) => (float[1,3,8,8] head) {{ {NEWER[name]} }}", arrays)
    with pytest.raises(UnsupportedError, match=r"(Reshape|Shape|HardSwish)"):
        with_opset(model, 13)
    assert with_opset(model, 17).graph.opset_imports[""] == 17


def test_very_old_opsets_are_not_written():
    with pytest.raises(UnsupportedError, match="below 13"):
        with_opset(graph("leaky"), 11)
