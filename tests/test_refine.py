"""Refinements: what each must give back, what it must leave as it is, and that one that does not help is not kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import ARRAYS, Array, assert_equals_ort, build, net, normal, outputs, pictures

from edgeyolo.passes.graph import constant, read_detector
from edgeyolo.quant import quantise as quantise_module
from edgeyolo.quant.calibrate import copy_model, observe, run_pictures, to_float
from edgeyolo.quant.compare import head_snr
from edgeyolo.quant.config import QuantConfig
from edgeyolo.quant.insert_qdq import insert_qdq
from edgeyolo.quant.plan import BIAS_LIMIT, Plan, limit_shifts, make_plan
from edgeyolo.quant.quantise import quantise
from edgeyolo.quant.refine import bias_correction
from edgeyolo.quant.refine.bias_correction import correct_bias
from edgeyolo.quant.refine.equalise import LIMIT, equalise
from edgeyolo.quant.walk import Step, walk

PICTURES = pictures(8, 3, 16, 16)
EQUAL_TOLERANCE = 2e-6
"""Relative to the largest output: scaled weights are rounded to float32 once more."""
MEAN_TOLERANCE = 0.005
"""Of a channel's mean, where activations reach 10: three Newton steps, and the rounding of the output itself."""

PAIR = """(float[1,3,16,16] images) => (float[1,6,16,16] head) {{
    c0 = Conv<pads=[1,1,1,1]>(images, w0, b0)
    a0 = {activation}
    {middle}
    head = Conv(a1, w5, b5)
}}"""
DEPTHWISE = "c1 = Conv<pads=[1,1,1,1], group=8>(a0, w1, b1)\na1 = Relu(c1)"
LEAKY = "LeakyRelu<alpha=0.1015625>(c0)"


def pair(activation: str = LEAKY, middle: str = "a1 = Conv(a0, w2)", **arrays: Array) -> ir.Model:
    return build(PAIR.format(activation=activation, middle=middle), {**ARRAYS, **arrays})


def uneven(seed: int = 3) -> dict[str, Array]:
    """A first layer whose output channels differ in range by up to 2**6, undone by the second layer."""
    scale = np.ldexp(np.float32(1), np.random.default_rng(seed).permutation(8) - 4)[:, None, None, None]
    first, bias, second = ARRAYS["w0"] * scale, ARRAYS["b0"] * scale.ravel(), ARRAYS["w2"] / scale.reshape(1, -1, 1, 1)
    return {"w0": first, "b0": bias, "w2": second}


def batch(model: ir.Model) -> Array:
    return np.concatenate([to_float(p, read_detector(model)) for p in PICTURES])


def planned(model: ir.Model, **options: Any) -> Plan:
    return make_plan(model, observe(model, PICTURES)[0], QuantConfig(**options))


def snr(model: ir.Model, plan: Plan) -> float:
    return head_snr(model, insert_qdq(model, plan), PICTURES)


def test_walking_computes_what_the_whole_graph_computes_and_forgets_what_is_dead():
    model = net()
    images = batch(model)[:2]
    values: dict[str, Array] = {"images": images}
    for step, dead in walk(model):
        assert set(step.reads) <= set(values)
        for name, value in zip(step.writes, [step.activate(v) for v in step.compute(values)], strict=True):
            values[name] = value
        for name in dead:
            del values[name]
    assert set(values) == {"head1", "head2"}
    for index in range(2):
        for name, expected in next(iter(run_pictures(model, ["head1", "head2"], [PICTURES[index]]))).items():
            assert np.abs(values[name][index : index + 1] - expected).max() <= EQUAL_TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize(
    "activation",
    [
        "Relu(c)",
        "LeakyRelu<alpha=0.125>(c)",
        "LeakyRelu(c)",
        "LeakyRelu<alpha=1.5>(c)",
        "Clip(c, lo, hi)",
        "Clip(c, , hi)",
    ],
)
def test_a_step_knows_its_activation(activation):
    body = f"c = Conv<pads=[1,1,1,1]>(images, w0)\nhead = {activation}"
    text = f"(float[1,3,8,8] images) => (float[1,8,8,8] head) {{ {body} }}"
    model = build(text, {**ARRAYS, "lo": np.float32(-0.5), "hi": np.float32(0.75)})
    step = Step(model.graph[0], 17)
    noise = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    assert step.writes == ["head"]
    got = step.activate(step.compute({"images": noise})[0])
    assert np.array_equal(got, outputs(model)["head"])


@pytest.mark.parametrize("activation", [LEAKY, "Relu(c0)", "Clip(c0, lo, hi)"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_bias_correction_gives_the_layer_its_mean_back(activation, bits):
    text = f"""(float[1,3,16,16] images) => (float[1,8,16,16] a0) {{
        c0 = Conv<pads=[1,1,1,1]>(images, w0, b0)
        a0 = {activation}
    }}"""
    model = build(text, {**ARRAYS, "lo": np.float32(-2), "hi": np.float32(2)})
    plan = planned(model, bits=bits, act_bits=16, method="minmax")

    def off(candidate: Plan) -> Array:
        pairs = zip(*(run_pictures(m, ["a0"], PICTURES) for m in (model, insert_qdq(model, candidate))), strict=True)
        return np.mean([(got["a0"] - exact["a0"]).mean(axis=(0, 2, 3)) for exact, got in pairs], axis=0)

    before, after = off(plan), off(correct_bias(model, plan, batch(model)))
    assert np.abs(before).max() > 10 * MEAN_TOLERANCE
    assert np.abs(after).max() <= MEAN_TOLERANCE


@pytest.mark.parametrize("bits", [3, 4])
def test_bias_correction_raises_the_heads_snr(bits):
    model = net()
    plan = planned(model, bits=bits)
    corrected = correct_bias(model, plan, batch(model))
    assert snr(model, corrected) > snr(model, plan) + 3  # dB
    for name, weight in plan.weights.items():  # nothing but biases changed
        assert corrected.weights[name].codes is weight.codes and corrected.weights[name].quant is weight.quant
    assert corrected.acts == plan.acts


def test_a_corrected_bias_stays_in_range_where_a_channel_is_nearly_dead():
    weight, bias = ARRAYS["w0"].copy(), np.zeros(8, np.float32)
    weight[3] *= 1e-6
    text = """(float[1,3,16,16] images) => (float[1,8,16,16] head) {
        c = Conv<pads=[1,1,1,1]>(images, w, b)
        head = LeakyRelu<alpha=0.1015625>(c)
    }"""
    model = build(text, {"w": weight, "b": bias})
    plan = planned(model)
    assert plan.weights["c"].quant.frac[3] > plan.weights["c"].quant.frac.min() + 10
    moved = {"c": plan.weights["c"].bias + 0.25}  # as a correction may
    assert np.abs(plan.with_biases(moved).bias_codes(model.graph[0])[0]).max() > BIAS_LIMIT
    limited = limit_shifts(model, plan.with_biases(moved))
    codes, frac = limited.bias_codes(model.graph[0])
    assert np.abs(codes).max() * 13 <= BIAS_LIMIT
    assert np.abs(np.ldexp(codes.astype(np.float64), -frac) - 0.25).max() < 1e-4
    assert_equals_ort(insert_qdq(model, limited))


def test_bias_correction_keeps_every_bias_in_range(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bias_correction, "_correct", lambda step, plan, exact, quantised: _huge(step, exact, quantised))
    model = net()
    plan = correct_bias(model, planned(model), batch(model))
    for node in model.graph:
        if node.op_type == "Conv":
            assert np.abs(plan.bias_codes(node)[0]).max() <= BIAS_LIMIT


def _huge(step: Step, *values: dict[str, Array]) -> Array:
    """What a correction gone wild would return."""
    for batch_values in values:
        batch_values[step.writes[0]] = step.activate(step.compute(batch_values)[0])
    return np.full(len(constant(step.node.inputs[1])), 5000.0)


def test_bias_correction_is_on_by_default_and_can_be_switched_off():
    result = quantise(net(), PICTURES, QuantConfig(bits=4, equalise=False))
    without = quantise(net(), PICTURES, QuantConfig(bits=4, equalise=False, correct_bias=False))
    assert result.steps[-1].kept and "correct biases" in result.steps[-1].name
    assert [step.name for step in without.steps] == ["round to nearest"]
    assert result.steps[0].head_snr_db == without.steps[0].head_snr_db
    assert head_snr(result.reference, result.model, PICTURES) > head_snr(without.reference, without.model, PICTURES) + 3
    assert_equals_ort(result.model)


def test_a_bias_correction_that_does_not_help_is_not_kept(monkeypatch: pytest.MonkeyPatch):
    def harmful(_: ir.Model, plan: Plan, __: Array) -> Plan:
        return plan.with_biases({name: weight.bias + 1.0 for name, weight in plan.weights.items()})

    monkeypatch.setattr(quantise_module, "correct_bias", harmful)
    result = quantise(net(), PICTURES, QuantConfig(bits=4, equalise=False))
    assert [step.kept for step in result.steps] == [True, False]
    assert result.steps[1].head_snr_db < result.steps[0].head_snr_db
    assert np.array_equal(result.plan.weights["c0"].bias, ARRAYS["b0"].astype(np.float64))
    assert head_snr(result.reference, result.model, PICTURES) > -4


SECONDS = {
    "point": ("a1 = Conv(a0, w2)", (8, 8, 1, 1)),
    "depthwise": (DEPTHWISE, (8, 1, 3, 3)),
    "grouped": ("c1 = Conv<group=2>(a0, w2)\na1 = Relu(c1)", (8, 4, 1, 1)),
}


def equalised(model: ir.Model, per_channel: bool) -> tuple[ir.Model, int, dict[str, Array]]:
    """A scaled copy, how many pairs were scaled, and the peaks as equalise leaves them."""
    after, peaks = copy_model(model), dict(observe(model, PICTURES)[1])
    return after, equalise(after, peaks, per_channel), peaks


def assert_same_heads(before: ir.Model, after: ir.Model) -> None:
    expected, got = (next(iter(run_pictures(m, ["head"], PICTURES)))["head"] for m in (before, after))
    assert np.abs(expected - got).max() <= EQUAL_TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("activation", [LEAKY, "Relu(c0)"])
@pytest.mark.parametrize("second", list(SECONDS))
def test_equalisation_preserves_the_function_and_evens_the_ranges(second, activation, per_channel):
    middle, shape = SECONDS[second]
    model = pair(activation, middle, **{**uneven(), ("w1" if second == "depthwise" else "w2"): normal(5, *shape)})
    after, pairs, peaks = equalised(model, per_channel)
    assert pairs >= 1
    assert_same_heads(model, after)
    old, new = (observe(m, PICTURES)[1] for m in (model, after))
    alive = old["a0"] > 0
    spread = [values["a0"][alive].max() / values["a0"][alive].min() for values in (old, new)]
    assert spread[0] > 2 * spread[1]
    for name, peak in new.items():
        assert np.abs(peak - peaks[name]).max() <= EQUAL_TOLERANCE * peak.max()


def test_convolutions_without_an_activation_between_are_a_pair_too():
    text = "(float[1,3,16,16] images) => (float[1,8,16,16] head) { c = Conv(images, w, b0)\nhead = Conv(c, w2) }"
    model = build(text, {**ARRAYS, **uneven(), "w": uneven()["w0"][:, :, :1, :1].copy()})
    after, pairs, _ = equalised(model, True)
    assert pairs == 1
    assert_same_heads(model, after)


def test_no_channel_is_scaled_by_more_than_the_limit():
    weights = uneven()
    weights["w0"][2] *= 1e-9  # dead, but for its bias
    weights["b0"][2] *= 1e-9
    after, _, _ = equalised(pair(**weights), True)
    factors = np.abs(constant(after.graph[0].inputs[1])).max(axis=(1, 2, 3)) / np.abs(weights["w0"]).max(axis=(1, 2, 3))
    assert factors.max() <= LIMIT * 1.001 and factors.min() >= 1 / LIMIT * 0.999


@pytest.mark.parametrize(
    ("activation", "middle", "bias"),
    [
        ("Clip(c0, lo, hi)", "a1 = Conv(a0, w2)", "b0"),
        ("Sigmoid(c0)", "a1 = Conv(a0, w2)", "b0"),
        (LEAKY, "v = Conv(a0, w2)\na1 = Add(v, a0)", "b0"),
        (LEAKY, "p = MaxPool<kernel_shape=[1,1]>(a0)\na1 = Conv(p, w2)", "b0"),
        (LEAKY, "k = Exp(w2)\na1 = Conv(a0, k)", "b0"),
    ],
    ids=["clip", "sigmoid", "two readers", "pool", "computed weights"],
)
def test_what_does_not_commute_is_left_alone(activation, middle, bias):
    model = pair(activation, middle, lo=np.float32(-1), hi=np.float32(1))
    before = constant(model.graph[0].inputs[1])
    _, peaks = observe(model, PICTURES)
    equalise(model, peaks, True)
    assert constant(model.graph[0].inputs[1]) is before or np.array_equal(constant(model.graph[0].inputs[1]), before)


def test_a_layer_of_zeros_equalises_to_numbers():
    model = pair(w2=np.zeros((8, 8, 1, 1), np.float32))
    after, _, _ = equalised(model, False)
    assert all(np.isfinite(v.const_value.numpy()).all() for v in after.graph.initializers.values())
    assert_same_heads(model, after)


@pytest.mark.parametrize("granularity", ["per-tensor", "per-channel"])
def test_equalisation_raises_the_heads_snr_where_channel_ranges_differ_wildly(granularity):
    config = QuantConfig(bits=6, act_bits=6, granularity=granularity, correct_bias=False)
    model = pair(**uneven())
    result = quantise(model, PICTURES, config)
    steps = {step.name: step for step in result.steps}
    assert steps["equalise"].kept
    assert steps["equalise"].head_snr_db > steps["round to nearest"].head_snr_db + 6  # dB: one bit
    assert_same_heads(model, result.reference)
    assert_equals_ort(result.model)
    off = quantise(model, PICTURES, replace(config, equalise=False))
    assert [step.name for step in off.steps] == ["round to nearest"]
    assert head_snr(model, off.model, PICTURES) + 6 < head_snr(model, result.model, PICTURES)


def test_an_equalisation_that_does_not_help_is_not_kept(monkeypatch: pytest.MonkeyPatch):
    def harmful(model: ir.Model, *_: Any) -> int:
        conv, scale = model.graph[0], np.ldexp(np.float32(1), np.arange(8) * 2)
        for index, shape in ((1, (8, 1, 1, 1)), (2, (8,))):
            value = conv.inputs[index]
            value.const_value = ir.tensor(constant(value) * scale.reshape(shape))
        value = model.graph[2].inputs[1]
        value.const_value = ir.tensor(constant(value) / scale.reshape(1, 8, 1, 1))
        return 1

    monkeypatch.setattr(quantise_module, "equalise", harmful)
    model = pair()
    result = quantise(model, PICTURES, QuantConfig(bits=6, act_bits=6, granularity="per-tensor", correct_bias=False))
    assert [(step.name, step.kept) for step in result.steps] == [("round to nearest", True), ("equalise", False)]
    assert result.steps[1].head_snr_db < result.steps[0].head_snr_db
    assert np.array_equal(constant(result.reference.graph[0].inputs[1]), ARRAYS["w0"])


def test_a_batch_of_pictures_passes_a_reshape_and_a_resize_whose_constants_say_one():
    text = """(float[1,3,16,16] images) => (float[1,6,16,16] head) {
        c = Conv<pads=[1,1,1,1]>(images, w0)
        f = Reshape(c, folded)
        r = Resize<mode="nearest">(f, , , size)
        u = Reshape(r, flat)
        head = Conv(u, w5)
    }"""
    shapes = {"folded": [1, 32, 8, 8], "size": [1, 32, 16, 16], "flat": [1, 8, 32, 32]}
    model = build(text, {**ARRAYS, **shapes})
    plan = planned(model, bits=3)
    assert snr(model, correct_bias(model, plan, batch(model))) > snr(model, plan) + 1  # dB
    assert_equals_ort(quantise(model, PICTURES, QuantConfig(bits=3)).model)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_few_pictures_suffice(count):
    result = quantise(net(), PICTURES[:count], QuantConfig(bits=4))
    assert_equals_ort(result.model)
    assert all(np.isfinite(step.head_snr_db) for step in result.steps)
