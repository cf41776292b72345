"""Scaling channels: what may be scaled, that nothing computes anything else afterwards, and what is gained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from graphs import ARRAYS, LEAKY, PAIR, Array, build, net, normal, pictures

from edgeyolo.passes.graph import constant
from edgeyolo.qtype import QType
from edgeyolo.quant.calibrate import copy_model, observe, run_pictures
from edgeyolo.quant.config import QuantConfig
from edgeyolo.quant.plan import conv_roles, quantise_weights
from edgeyolo.quant.refine.align import align, best_scales
from edgeyolo.quant.refine.channels import find_channels
from edgeyolo.quant.refine.equalise import LIMIT, POWER, equalise

PICTURES = pictures(4, 3, 16, 16)
EQUAL_TOLERANCE = 5e-6
"""Relative to the largest output: scaled weights are rounded to float32 once more."""
FACTOR_TOLERANCE = 1e-4
"""Relative; of factors that are read off weights and activations in float32."""

EXTRA: dict[str, Array] = {
    "w16": normal(20, 8, 16, 1, 1),
    "w10": normal(21, 8, 10, 1, 1),
    "half": normal(22, 8, 4, 1, 1),
    "wide": normal(23, 16, 4, 3, 3),
    "b2": normal(24, 8),
    "lo": np.float32(-1),
    "hi": np.float32(1),
    "addend": normal(25, 1, 8, 1, 1),
    "map": normal(26, 1, 1, 16, 16),
    "more": normal(27, 1, 2, 16, 16),
    "start": np.array([4]),
    "end": np.array([8]),
    "axis": np.array([1]),
}
# What stands between, which activation, how many groups of channels may be scaled, whether those of c0 are among them.
CASES: dict[str, tuple[str, str, int, bool]] = {
    "chain": ("c1 = Conv(a0, w2, b2)\na1 = Relu(c1)", LEAKY, 16, True),
    "no activation": ("a1 = Conv(a0, w2)", "Identity(c0)", 16, True),
    "residual": ("v = Conv(a0, w2, b2)\na1 = Add(v, a0)", LEAKY, 8, True),
    "residuals in a row": (
        "v = Conv(a0, w2, b2)\nr = Add(v, a0)\nq = Relu(r)\nu = Conv(q, w3)\na1 = Add(q, u)",
        LEAKY,
        8,
        True,
    ),
    "concat": ("v = Conv(a0, w2)\nk = Concat<axis=1>(v, a0)\na1 = Conv(k, w16)", LEAKY, 24, True),
    "concat from behind": ("v = Conv(a0, w2)\nk = Concat<axis=-3>(a0, v)\na1 = Conv(k, w16)", LEAKY, 24, True),
    "concat twice": ("k = Concat<axis=1>(a0, a0)\na1 = Conv(k, w16)", LEAKY, 16, True),
    "concat with a constant": ("k = Concat<axis=1>(a0, more)\na1 = Conv(k, w10)", LEAKY, 8, False),
    "split": ("p, q = Split<axis=1>(a0)\nk = Concat<axis=1>(q, p)\na1 = Conv(k, w2)", LEAKY, 8, False),
    "slice": ("s = Slice(a0, start, end, axis)\na1 = Conv(s, half)", LEAKY, 8, False),
    "pool": ("p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(a0)\na1 = Conv(p, w2)", LEAKY, 16, True),
    "resize": ('r = Resize<mode="nearest">(a0, , up)\na1 = Conv<strides=[2,2]>(r, w2)', LEAKY, 16, True),
    "depthwise": ("c1 = Conv<pads=[1,1,1,1], group=8>(a0, w1, b1)\na1 = Relu(c1)", LEAKY, 16, True),
    "grouped": ("g = Conv<pads=[1,1,1,1], group=2>(a0, wide)\na1 = Conv(g, w16)", LEAKY, 32, True),
    "shared weights": ("u = Conv(a0, w2, b2)\nr = Relu(u)\na1 = Conv(r, w2, b2)", LEAKY, 24, True),
    "silu": ("m = Mul(c0, a0)\na1 = Conv(m, w2)", "Sigmoid(c0)", 8, False),
    "clip": ("a1 = Conv(a0, w2)", "Clip(c0, lo, hi)", 8, False),
    "constant addend": ("t = Add(a0, addend)\na1 = Conv(t, w2)", LEAKY, 8, False),
    "an addend that all channels share": ("t = Add(a0, map)\na1 = Conv(t, w2)", LEAKY, 8, False),
    "average": ("m = GlobalAveragePool(a0)\nv = Conv(a0, w2)\na1 = Add(v, m)", LEAKY, 0, False),
    "computed weights": ("k = Exp(w2)\na1 = Conv(a0, k)", LEAKY, 0, False),
}


def made(case: str, **arrays: Array) -> ir.Model:
    middle, activation, *_ = CASES[case]
    return build(PAIR.format(activation=activation, middle=middle), {**ARRAYS, **EXTRA, **arrays})


def weights(model: ir.Model, name: str) -> Array:
    node = next(node for node in model.graph if node.name == name)
    array = constant(node.inputs[1])
    assert array is not None
    return array


def assert_same_heads(before: ir.Model, after: ir.Model) -> None:
    names = [str(v.name) for v in before.graph.outputs]
    for exact, got in zip(*(run_pictures(m, names, PICTURES) for m in (before, after)), strict=True):
        for name, value in exact.items():
            assert np.abs(value - got[name]).max() <= EQUAL_TOLERANCE * np.abs(value).max()


@pytest.mark.parametrize("case", list(CASES))
def test_scaled_by_any_factors_the_network_computes_the_same(case):
    *_, free, first = CASES[case]
    model = made(case)
    channels = find_channels(model)
    assert channels.count - 1 == free
    assert bool(channels.of["c0"].all()) is first and channels.of["c0"].any() is not first
    factors = np.exp(np.random.default_rng(0).uniform(-2, 2, channels.count))
    after = copy_model(model)
    channels.rescale(after, factors)
    assert_same_heads(model, after)
    assert np.array_equal(weights(after, "c0"), ARRAYS["w0"]) is not first
    values = ["c0"] + ["a1"] * ("Add" not in CASES[case][0] and "Exp" not in CASES[case][0])
    exact, got = (next(iter(run_pictures(m, values, PICTURES))) for m in (model, after))
    for name in values:  # every channel was divided by the factor that its group has
        by = np.where(channels.of[name] > 0, factors[channels.of[name]], 1.0)[:, None, None]
        assert np.allclose(got[name][0] * by, exact[name][0], rtol=FACTOR_TOLERANCE, atol=FACTOR_TOLERANCE)


def test_an_addition_ties_its_channels_one_by_one_and_outputs_are_fixed():
    channels = find_channels(made("residual"))
    for name in ("v", "a1"):
        assert np.array_equal(channels.of[name], channels.of["a0"])
    assert len(set(channels.of["a0"].tolist())) == 8 and not channels.of["head"].any()
    whole = find_channels(net())  # c2 passes SiLU, and what it gives is added to a0
    assert not any(whole.of[name].any() for name in ("a0", "c2", "head1", "head2"))
    assert whole.of["a1"].all()


def test_a_value_that_is_also_an_output_keeps_its_scale():
    text = """(float[1,3,16,16] images) => (float[1,8,16,16] c1, float[1,6,16,16] head) {
        c0 = Conv<pads=[1,1,1,1]>(images, w0, b0)
        c1 = Conv(c0, w2)
        head = Conv(c1, w5, b5)
    }"""
    channels = find_channels(build(text, ARRAYS))
    assert not channels.of["c1"].any() and channels.of["c0"].all()


def uneven(model: ir.Model, seed: int = 3) -> ir.Model:
    """The same network with channels of very different ranges."""
    channels, scaled = find_channels(model), copy_model(model)
    factors = np.ldexp(1.0, np.random.default_rng(seed).integers(-1, 2, channels.count))
    channels.rescale(scaled, factors)
    return scaled


def factors_of(before: ir.Model, after: ir.Model, node: str) -> Array:
    """What the rows of a convolution that reads the picture were divided by."""
    axes = (1, 2, 3)
    ratio: Array = np.abs(weights(before, node)).max(axis=axes) / np.abs(weights(after, node)).max(axis=axes)
    return ratio


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("case", [name for name, (*_, first) in CASES.items() if first])
def test_equalisation_preserves_the_function_and_evens_the_ranges(case, per_channel):
    model = uneven(made(case))
    after = copy_model(model)
    assert equalise(after, observe(model, PICTURES)[1], per_channel) == CASES[case][2]
    assert_same_heads(model, after)
    spread = [
        _spread(observe(m, PICTURES)[1]["a0" if "a0" in observe(m, PICTURES)[1] else "c0"]) for m in (model, after)
    ]
    assert spread[1] < spread[0]


def _spread(peaks: Array) -> float:
    """Logarithmic standard deviation of the channels that are alive."""
    return float(np.log(peaks[peaks > 0]).std())


def test_channels_that_only_free_columns_read_get_equal_ranges():
    model = uneven(made("depthwise"))
    after = copy_model(model)
    equalise(after, observe(model, PICTURES)[1], True)
    before, peaks = (observe(m, PICTURES)[1]["a0"] for m in (model, after))
    assert before.max() > 4 * before.min() and peaks.max() <= peaks.min() * (1 + FACTOR_TOLERANCE)


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_factors_are_those_of_the_formula(per_channel):
    model = uneven(made("chain"))
    peaks, after = observe(model, PICTURES)[1], copy_model(model)
    equalise(after, peaks, per_channel)
    columns = np.abs(weights(model, "c1")).max(axis=(0, 2, 3))
    rows = np.abs(weights(model, "c0")).max(axis=(1, 2, 3))
    wanted = ((peaks["a0"] if per_channel else np.sqrt(peaks["a0"] * rows)) / columns) ** POWER
    got = factors_of(model, after, "c0")
    assert np.allclose(got / got[0], wanted / wanted[0], rtol=FACTOR_TOLERANCE)


def test_no_channel_is_scaled_by_more_than_the_limit():
    first, bias = ARRAYS["w0"].copy(), ARRAYS["b0"].copy()
    first[2] *= 1e-9  # dead
    bias[2] *= 1e-9
    model = made("depthwise", w0=first, b0=bias)
    after = copy_model(model)
    equalise(after, observe(model, PICTURES)[1], True)
    got = factors_of(model, after, "c0")
    assert got.min() == pytest.approx(1 / LIMIT, rel=FACTOR_TOLERANCE)
    assert got.max() <= LIMIT * (1 + FACTOR_TOLERANCE)


def _align(model: ir.Model, bits: int = 4) -> int:
    return align(model, dict.fromkeys(conv_roles(model), bits))


@pytest.mark.parametrize("scale", [lambda m: equalise(m, observe(m, PICTURES)[1], False), _align])
def test_a_layer_of_zeros_scales_to_numbers(scale: Callable[[ir.Model], int]):
    model = made("chain", w2=np.zeros((8, 8, 1, 1), np.float32))
    after = copy_model(model)
    scale(after)
    assert all(np.isfinite(v.const_value.numpy()).all() for v in after.graph.initializers.values())
    assert_same_heads(model, after)


def best(model: ir.Model, name: str, bits: int = 4) -> Array:
    """log2 of the best scales of a convolution's rows."""
    rows = weights(model, name).astype(np.float64)
    return np.asarray(np.log2(best_scales(rows.reshape(len(rows), -1), QType(bits))))


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("case", ["chain", "depthwise", "grouped", "concat", "pool", "shared weights"])
def test_aligned_rows_have_powers_of_two_as_best_scales(case, bits):
    model = made(case)
    after = copy_model(model)
    assert _align(after, bits) == CASES[case][2]
    assert_same_heads(model, after)
    for name in find_channels(model).of.keys() & conv_roles(model).keys() - {"head"}:
        off = [np.abs(exponent - np.rint(exponent)).max() for exponent in (best(m, name, bits) for m in (model, after))]
        assert off[0] > 0.1 and off[1] < FACTOR_TOLERANCE, name
        assert np.abs(best(after, name, bits) - best(model, name, bits)).max() < 2  # the nearest power


def test_channels_that_several_convolutions_make_are_not_aligned():
    model = made("residual")
    after = copy_model(model)
    assert _align(after) == 0
    for name in ("c0", "v", "head"):
        assert np.array_equal(weights(after, name), weights(model, name))


def test_heads_and_what_does_not_commute_are_not_aligned():
    model = net()
    after = copy_model(model)
    assert _align(after) == 8  # c1
    for name in ("c0", "c2"):
        exponent = best(after, name)
        assert np.abs(exponent - np.rint(exponent)).max() > 0.1
    assert np.array_equal(weights(after, "c0"), weights(model, "c0"))
    assert_same_heads(model, after)


def test_an_aligned_grid_of_powers_of_two_is_as_good_as_one_of_real_scales():
    model = build(PAIR.format(activation=LEAKY, middle="a1 = Conv(a0, w2)"), {**ARRAYS, "w0": normal(9, 8, 3, 3, 3)})
    after = copy_model(model)
    _align(after)

    def error(candidate: ir.Model) -> Array:
        rows = weights(candidate, "c0")
        codes, quant = quantise_weights(rows, 4, QuantConfig(bits=4))
        off: Array = np.square(quant.dequantise(codes) - rows).sum(axis=(1, 2, 3)) / np.square(rows).sum(axis=(1, 2, 3))
        return off

    rows = weights(model, "c0").reshape(8, -1).astype(np.float64)
    scale = best_scales(rows, QType(4))[:, None]
    real = np.square(np.clip(np.rint(rows / scale), -8, 7) * scale - rows).sum(axis=1) / np.square(rows).sum(axis=1)
    assert np.all(error(after) <= real * (1 + FACTOR_TOLERANCE))
    assert error(after).mean() < 0.9 * error(model).mean()
