"""Where Q/DQ pairs stand for TensorRT: golden graphs, written out by hand, and what is written into the file."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import build, pictures
from onnx import checker
from tensorrt_graphs import ARRAYS, BODIES, PICTURES, SHAPE, edges, graph, quantised

from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.lower.tensorrt.calibrate import METHODS, choose_scales, float16_scale, weight_quant
from edgeyolo.lower.tensorrt.insert import insert_pairs
from edgeyolo.lower.tensorrt.placement import place
from edgeyolo.lower.tensorrt.quantise import Int8Config, quantise_int8
from edgeyolo.ort import model_bytes
from edgeyolo.passes.graph import constant
from edgeyolo.quant.calibrate import run_pictures
from edgeyolo.quant.compare import head_snr

GOLDEN = {
    "residual": {"images": ["c1"], "r1": ["c2", "s"]},
    "residual of two": {"images": ["a", "b1"], "a": ["s"]},
    "residual, activated": {"images": ["c1"], "l1": ["c2", "s"]},
    "sum of sums": {"images": ["a", "s1"]},
    "concat": {"images": ["a"], "r1": ["c2", "k"], "r2": ["k"], "k": ["m"]},
    "depthwise": {"images": ["c1"], "r1": ["c2"]},
    "silu": {"images": ["c1"], "y": ["c2"]},
    "mish": {"images": ["c1"], "y": ["c2"]},
    "leaky": {"images": ["c1"], "y": ["c2"]},
    "maxpool": {"images": ["c1"], "r1": ["p"], "p": ["c2"]},
    "upsample": {"images": ["c1"], "c1": ["u"], "u": ["c2"]},
    "interpolation": {"images": ["c1"], "u": ["c2"]},
    "split": {"images": ["c1"], "c1": ["x1"], "x2": ["c2"]},
    "transposed": {"images": ["c1"], "c1": ["c2"]},
    "head behind a pool": {"images": ["c1"]},
    "gemm": {"images": ["c1"], "c1": ["f"], "f": ["g"]},
}
"""Value -> who reads it quantised. All other edges are float; the last layer is."""
GROUPS = {
    "concat": [{"r1", "r2", "k"}],
    "maxpool": [{"r1", "p"}],
    "upsample": [{"c1", "u"}],
    "split": [{"c1", "x2"}],
    "gemm": [{"c1", "f"}],
}
"""Values that share one scale; all others have their own."""


@pytest.mark.parametrize("name", BODIES)
def test_golden_placement(name):
    placement = place(graph(name))
    assert edges(placement) == GOLDEN[name]
    groups = [set(placement.members(value)) for value in placement.uses]
    assert [g for i, g in enumerate(groups) if len(g) > 1 and g not in groups[:i]] == GROUPS.get(name, [])


@pytest.mark.parametrize("name", BODIES)
def test_the_file_has_exactly_those_pairs(name):
    model, placement = graph(name), place(graph(name))
    result = quantised(model)
    checker.check_model(model_bytes(result), full_check=True)
    readers = {
        str(node.inputs[0].producer().inputs[0].name): sorted({str(u.node.name) for u in node.outputs[0].uses()})
        for node in result.graph
        if node.op_type == "DequantizeLinear" and constant(node.inputs[0].producer().inputs[0]) is None
    }
    assert readers == {value: sorted(set(nodes)) for value, nodes in GOLDEN[name].items()}
    for node in result.graph:
        weighted = str(node.name) in placement.weighted
        source = node.inputs[1].producer() if len(node.inputs) > 1 and node.op_type in ("Conv", "Gemm") else None
        assert (source is not None) == (weighted and node.op_type in ("Conv", "Gemm"))
        if node.op_type == "QuantizeLinear":
            assert not np.any(constant(node.inputs[2])) and constant(node.inputs[2]).dtype == np.int8
        bias = node.inputs[2] if node.op_type == "Conv" and len(node.inputs) > 2 else None
        assert bias is None or constant(bias).dtype == np.float32


@pytest.mark.parametrize("name", BODIES)
def test_the_quantised_graph_computes_nearly_the_same(name):
    assert 20 < head_snr(graph(name), quantised(graph(name)), PICTURES) < 80  # one to three layers of 8 bits


def test_axes_of_weights():
    for name, layer, axis in (("depthwise", "c2", 0), ("transposed", "c2", 1), ("gemm", "g", 1)):
        model = graph(name)
        assert place(model).weighted[layer] == axis
        node = next(n for n in quantised(model).graph if n.name == layer)
        dequantise = node.inputs[1].producer()
        scale, weight = constant(dequantise.inputs[1]), constant(dequantise.inputs[0].producer().inputs[0])
        assert dequantise.attributes["axis"].as_int() == axis and scale.shape == (weight.shape[axis],)


def test_weights_stand_on_their_grid_whatever_rounds_them():
    node = next(n for n in quantised(graph("leaky")).graph if n.name == "c2")
    quantise = node.inputs[1].producer().inputs[0].producer()
    weight, scale = constant(quantise.inputs[0]), constant(quantise.inputs[1])[:, None, None, None]
    codes = weight.astype(np.float64) / scale
    assert np.abs(codes - np.rint(codes)).max() < 1e-5 and np.abs(codes).max() <= 127.001
    halves = weight.astype(np.float16).astype(np.float64) / scale  # what the typed file stores
    assert np.array_equal(np.rint(halves), np.rint(codes))


def test_layers_that_stay_float():
    model = graph("depthwise")
    assert place(model).floats == {"head": "--keep-float head"}
    assert list(place(model, ()).weighted) == ["c1", "c2", "head"]
    kept = place(model, ("head", "depthwise"))
    assert kept.floats["c2"] == "--keep-float depthwise" and edges(kept) == {"images": ["c1"]}
    assert "c1" in place(model, ("first",)).floats and "c1" in place(model, ("c[1]",)).floats
    with pytest.raises(InputError, match="not in the model"):
        place(model, ("nothing",))


def test_a_float_convolution_in_front_of_an_add_takes_no_pair():
    placement = place(graph("residual"), ("head", "c2"))
    assert edges(placement) == {"images": ["c1"]}


@pytest.mark.parametrize("value", [1e-9, 0.1, 0.02, 1.0, 3.3333])
def test_scales_are_float16_numbers(value):
    scale = float16_scale(value)
    assert np.float32(np.float16(scale)) == scale >= value
    assert scale <= max(value * (1 + 2**-10), float(np.finfo(np.float16).tiny))


def test_a_scale_beyond_float16_is_refused():
    for value in (1e6, float("inf"), float("nan")):
        with pytest.raises(InputError, match="float16"):
            float16_scale(value)


@pytest.mark.parametrize("method", METHODS)
def test_methods_choose_sensible_scales(method):
    model = graph("leaky")
    placement = place(model)
    quant = choose_scales(model, placement, PICTURES, method).acts["images"]
    largest = max(p.max() for p in PICTURES) / 255
    assert 0.2 * largest <= 127 * quant.scale <= 1.01 * largest
    if method == "minmax":
        assert 127 * quant.scale == pytest.approx(largest, rel=2**-9)


def test_mse_clips_where_that_pays_and_minmax_does_not():
    weight = np.concatenate([np.random.default_rng(0).normal(0, 1, 4095), [40.0]]).reshape(1, -1)
    tight, wide = (weight_quant(weight, 0, method) for method in ("mse", "minmax"))
    errors = [np.square(weight - q.fake(weight.astype(np.float32))).sum() for q in (tight, wide)]
    assert wide.scale[0] >= 40 / 127 > tight.scale[0] and errors[0] < errors[1]


def test_concat_groups_are_calibrated_on_all_their_values():
    model = graph("concat")
    placement = place(model)
    scales = choose_scales(model, placement, PICTURES, "minmax").acts
    assert scales["r1"] is scales["r2"] is scales["k"]
    seen = [max(float(np.abs(v[name]).max()) for v in run_pictures(model, [name], PICTURES)) for name in ("r1", "r2")]
    assert seen[0] != seen[1]
    assert 127 * scales["k"].scale == pytest.approx(max(seen), rel=2**-9)


def test_refinements_are_kept_only_where_they_help():
    names = {
        (True, True, True): ["round to nearest", "equalise", "equalise + reconstruct"],
        (True, True, False): ["round to nearest", "equalise", "equalise + correct biases"],
        (False, True, True): ["round to nearest", "round to nearest + reconstruct"],
        (False, False, False): ["round to nearest"],
    }
    for switches, expected in names.items():
        result = quantise_int8(graph("depthwise"), PICTURES, Int8Config("mse", ("head",), *switches))
        assert [c.name for c in result.candidates] == expected
        assert result.best.head_snr_db == max(c.head_snr_db for c in result.candidates)
        checker.check_model(model_bytes(result.candidates[-1].model), full_check=True)
        for candidate in result.candidates:  # scaling leaves the float network what it is
            assert head_snr(graph("depthwise"), candidate.reference, PICTURES) > 80


def test_refinements_help_a_deeper_network():
    """Figures seen: 24.4 dB rounded, 25.7 reconstructed; 31.5 equalised."""
    body = "c1 = Conv(images, w) r1 = LeakyRelu(c1) c2 = Conv<group=3, pads=[1,1,1,1]>(r1, d) r2 = LeakyRelu(c2) "
    body += "c3 = Conv(r2, w) s = Add(c3, r1) c4 = Conv<group=3, pads=[1,1,1,1]>(s, d) r4 = LeakyRelu(c4) "
    body += "head = Conv(r4, w)"
    arrays = {**ARRAYS, "d": ARRAYS["d"] * np.array([1, 9, 0.2], np.float32)[:, None, None, None]}
    model = build(f"(float[1,3,8,8] images) => (float[1,3,8,8] head) {{ {body} }}", arrays, scale=1 / 255)
    seen = pictures(24, *SHAPE)
    rounded, equalised, *_ = quantise_int8(model, seen, Int8Config()).candidates
    assert equalised.head_snr_db > rounded.head_snr_db + 3
    refined = quantise_int8(model, seen, Int8Config(equalise=False)).best
    assert refined.name.endswith("+ reconstruct") and refined.head_snr_db > rounded.head_snr_db + 0.5


def test_what_cannot_be_quantised_is_said():
    with pytest.raises(InputError, match="no calibration pictures"):
        quantise_int8(graph("leaky"), [], Int8Config())
    with pytest.raises(UnsupportedError, match=r"no layer can run in int8[\s\S]*--keep-float"):
        quantise_int8(graph("leaky"), PICTURES, Int8Config(keep_float=("c*", "head")))
    with pytest.raises(InputError, match="unknown method"):
        Int8Config(method="nearest")
    assert Int8Config(method="entropy").method == "entropy"


def test_the_float_graph_is_left_alone():
    model = graph("concat")
    before = model_bytes(model)
    placement = place(model)
    insert_pairs(model, placement, choose_scales(model, placement, PICTURES, "mse"))
    assert model_bytes(model) == before
