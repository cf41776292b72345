"""Channels filled up to whole blocks: the network computes the same, and what cannot be filled up is left alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from graphs import build
from numpy.testing import assert_array_equal

from edgeyolo.ort import open_session, run
from edgeyolo.passes.graph import constant, conv_groups, read_detector, with_types
from edgeyolo.passes.widen import widen
from edgeyolo.quant.calibrate import copy_model


def whole(*shape: int) -> np.ndarray:
    """Small integers: their sums are exact in any order."""
    return np.random.default_rng(sum(shape)).integers(-3, 4, shape).astype(np.float32)


def network(body: str, arrays: Mapping[str, np.ndarray], channels: int = 4) -> ir.Model:
    return build(f"(float[1,3,8,8] images) => (float[1,{channels},8,8] head) {{ {body} }}", arrays)


def widened(model: ir.Model, block: int = 16) -> tuple[int, ir.Model, list[int]]:
    """How many are wider, the model, and what each convolution makes; all heads are equal."""
    wide = copy_model(model)
    count = widen(wide, block)
    wide = with_types(wide)
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8)).astype(np.float32)
    before, after = (run(open_session(m, optimise=False), image) for m in (model, wide))
    for name, value in before.items():
        assert_array_equal(after[name], value)
    assert read_detector(wide) == read_detector(model)
    return count, wide, [len(constant(node.inputs[1])) for node in wide.graph if node.op_type == "Conv"]


STEM = {"a": whole(8, 3, 3, 3), "ab": whole(8), "b": whole(24, 8, 1, 1), "bb": whole(24), "h": whole(4, 24, 1, 1)}
FIRST = "s = Conv<pads=[1,1,1,1]>(images, a, ab) t = LeakyRelu<alpha=0.125>(s) u = Conv(t, b, bb)"


def test_zeros_go_through_everything_that_treats_channels_alike() -> None:
    arrays = STEM | {"d": whole(24, 1, 3, 3), "e": whole(24, 24, 1, 1), "two": np.float32([1, 1, 2, 2])}
    arrays |= {"c": whole(4, 56, 1, 1)}
    body = f"""{FIRST} v = Conv<group=24, pads=[1,1,1,1]>(u, d) w = Conv(v, e) x = Add(u, w)
        y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) z = Resize<mode="nearest">(y, , two)
        j = Concat<axis=1>(z, t, x) head = Conv(j, c)"""
    count, wide, outputs = widened(network(body, arrays))
    assert count == 3 and outputs == [16, 32, 32, 32, 4], "the head makes what it made"
    convs = [node for node in wide.graph if node.op_type == "Conv"]
    assert [conv_groups(node) for node in convs] == [1, 1, 32, 1, 1]
    assert [constant(node.inputs[1]).shape[1] for node in convs] == [3, 16, 1, 32, 80]
    assert set(wide.graph.initializers) & set(arrays) == {"two"}, "the narrow weights are not in the file"
    joined = constant(convs[-1].inputs[1])
    assert_array_equal(joined[:, 48:80][:, :24], arrays["c"][:, 32:])
    assert not joined[:, [*range(24, 32), *range(40, 48), *range(72, 80)]].any()


def test_whole_blocks_stay() -> None:
    arrays = {"a": whole(16, 3, 1, 1), "h": whole(4, 16, 1, 1)}
    assert widened(network("s = Conv(images, a) head = Conv(s, h)", arrays))[0] == 0
    assert widened(network(f"{FIRST} head = Conv(u, h)", STEM), block=1)[0] == 0
    assert widened(network(f"{FIRST} head = Conv(u, h)", STEM), block=8)[2] == [8, 24, 4]


MIXED = STEM | {"p": whole(12, 3, 1, 1), "i": whole(24, 24, 1, 1), "g": whole(24, 4, 3, 3), "slope": whole(24, 1, 1)}
MIXED["shape"] = np.array([1, 24, 8, 8])


@pytest.mark.parametrize(
    ("rest", "outputs"),
    [
        # Twelve and twelve side by side stand otherwise than 24: the last three convolutions stay.
        ("k = Conv(images, p) l = Concat<axis=1>(k, k) m = Add(u, l) head = Conv(m, h)", [16, 24, 12, 4]),
        ("v = Reshape(u, shape) head = Conv(v, h)", [16, 24, 4]),
        ("v = Conv<group=2, pads=[1,1,1,1]>(k, g) head = Conv(v, h)", [16, 24, 4]),
        ("v = PRelu(u, slope) head = Conv(v, h)", [16, 24, 4]),
        ("v = Transpose<perm=[0,1,3,2]>(u) w = Conv(v, i) head = Conv(w, h)", [16, 24, 32, 4]),
        ("v = Resize<mode=\"nearest\">(u, , , shape) head = Conv(v, h)", [16, 24, 4]),
        ("v = Identity(u) head = Conv(u, h)", [16, 32, 4]),
    ],
)  # fmt: skip
def test_what_would_meet_something_else_stays(rest: str, outputs: list[int]) -> None:
    if "group=2" in rest:
        arrays = MIXED | {"b": whole(8, 8, 1, 1), "bb": whole(8)}
        model = network(f"{FIRST.replace('u = ', 'k = ')} {rest}", arrays)
        outputs = [16, 8, 24, 4]
    else:
        model = network(f"{FIRST} {rest}", MIXED)
    assert widened(model)[2] == outputs


def test_a_concatenation_needs_to_know_how_many_channels_are_whole_already() -> None:
    arrays = STEM | {"w": whole(16, 3, 1, 1), "c": whole(4, 40, 1, 1)}
    model = network(f"{FIRST} v = Conv(images, w) j = Concat<axis=1>(v, u) head = Conv(j, c)", arrays)
    blind = copy_model(model)
    for value in (v for node in blind.graph for v in node.outputs if v.name == "v"):
        value.shape = None
    assert widen(blind, 16) == 1, "the stem; what is joined stays"
    assert widened(with_types(model))[2] == [16, 32, 16, 4]


def test_results_of_the_network_stay() -> None:
    text = "(float[1,3,8,8] images) => (float[1,8,8,8] t, float[1,4,8,8] head)"
    model = build(f"{text} {{ {FIRST} head = Conv(u, h) }}", STEM)
    assert widened(model)[2] == [8, 32, 4]


def test_a_graph_with_a_graph_inside_is_left_alone() -> None:
    model = network(f"{FIRST} head = Conv(u, h)", STEM)
    inner = ir.Graph([], [], nodes=[])
    node = next(iter(model.graph))
    node.attributes["inside"] = ir.AttrGraph("inside", inner)
    assert widen(model, 16) == 0
