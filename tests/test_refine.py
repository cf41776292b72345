"""Refinements: what each must give back, what it must leave as it is, and that one that does not help is not kept."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import ARRAYS, LEAKY, PAIR, Array, assert_equals_ort, build, net, normal, outputs, pictures

from edgeyolo.passes.graph import read_detector
from edgeyolo.quant import quantise as quantise_module
from edgeyolo.quant.calibrate import observe, run_pictures, to_float
from edgeyolo.quant.compare import head_snr
from edgeyolo.quant.config import QuantConfig
from edgeyolo.quant.insert_qdq import insert_qdq
from edgeyolo.quant.plan import BIAS_LIMIT, Plan, limit_shifts, make_plan
from edgeyolo.quant.quantise import quantise
from edgeyolo.quant.refine.channels import find_channels
from edgeyolo.quant.refine.sequential import refine_layers
from edgeyolo.quant.walk import Step, walk

PICTURES = pictures(8, 3, 16, 16)
EQUAL_TOLERANCE = 2e-6
"""Relative to the largest output: scaled weights are rounded to float32 once more."""
MEAN_TOLERANCE = 0.005
"""Of a channel's mean, where activations reach 10: three Newton steps, and the rounding of the output itself."""


def pair(activation: str = LEAKY, middle: str = "a1 = Conv(a0, w2)", **arrays: Array) -> ir.Model:
    return build(PAIR.format(activation=activation, middle=middle), {**ARRAYS, **arrays})


def uneven(seed: int = 3) -> dict[str, Array]:
    """A first layer whose output channels differ in range by up to 2**6, undone by the second layer."""
    scale = np.ldexp(np.float32(1), np.random.default_rng(seed).permutation(8) - 4)[:, None, None, None]
    first, bias, second = ARRAYS["w0"] * scale, ARRAYS["b0"] * scale.ravel(), ARRAYS["w2"] / scale.reshape(1, -1, 1, 1)
    return {"w0": first, "b0": bias, "w2": second}


def planned(model: ir.Model, **options: Any) -> Plan:
    return make_plan(model, observe(model, PICTURES)[0], QuantConfig(**options))


def snr(model: ir.Model, plan: Plan) -> float:
    return head_snr(model, insert_qdq(model, plan), PICTURES)


def test_walking_computes_what_the_whole_graph_computes_and_forgets_what_is_dead():
    model = net()
    images = np.concatenate([to_float(p, read_detector(model)) for p in PICTURES[:2]])
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

    before, after = off(plan), off(refine_layers(model, plan, PICTURES, rebuild=False))
    assert np.abs(before).max() > 10 * MEAN_TOLERANCE
    assert np.abs(after).max() <= MEAN_TOLERANCE


@pytest.mark.parametrize("bits", [3, 4])
def test_bias_correction_raises_the_heads_snr(bits):
    model = net()
    plan = planned(model, bits=bits)
    corrected = refine_layers(model, plan, PICTURES, rebuild=False)
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


def assert_same_heads(before: ir.Model, after: ir.Model) -> None:
    expected, got = (next(iter(run_pictures(m, ["head"], PICTURES)))["head"] for m in (before, after))
    assert np.abs(expected - got).max() <= EQUAL_TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("granularity", ["per-tensor", "per-channel"])
def test_equalisation_raises_the_heads_snr_where_channel_ranges_differ_wildly(granularity):
    config = QuantConfig(
        bits=6, act_bits=6, granularity=granularity, correct_bias=False, align=False, reconstruct=False
    )
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
    assert snr(model, refine_layers(model, plan, PICTURES, rebuild=False)) > snr(model, plan) + 1  # dB
    assert_equals_ort(quantise(model, PICTURES, QuantConfig(bits=3)).model)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_few_pictures_suffice(count):
    result = quantise(net(), PICTURES[:count], QuantConfig(bits=4))
    assert_equals_ort(result.model)
    assert all(np.isfinite(step.head_snr_db) for step in result.steps)


NAMES = (
    "round to nearest",
    "round to nearest + correct biases",
    "equalise",
    "equalise + correct biases",
    "equalise, align",
    "equalise, align + correct biases",
)


def test_what_was_tried_stands_in_the_ledger_and_the_best_is_kept():
    model = net()
    result = quantise(model, PICTURES, QuantConfig(bits=4))
    names = [step.name for step in result.steps]
    assert tuple(names[:-1]) == NAMES and names[-1] in [f"{name} + reconstruct" for name in NAMES[::2]]
    best = max(result.steps, key=lambda step: step.head_snr_db)
    assert [step for step in result.steps if step.kept] == [best]
    kept = result.candidates[result.steps.index(best)]
    assert result.model is kept.model and result.plan is kept.plan and result.reference is kept.reference
    assert_equals_ort(result.model)


@pytest.mark.parametrize("off", ["equalise", "align", "correct_bias", "reconstruct"])
def test_every_refinement_can_be_switched_off(off):
    result = quantise(net(), PICTURES, QuantConfig(bits=4, **{off: False}))  # type: ignore[arg-type]
    told = off.replace("correct_bias", "correct biases")
    assert result.steps and not any(told in step.name for step in result.steps)


@pytest.mark.parametrize("recipe", ["fast", "default", "max"])
def test_a_recipe_says_how_much_is_reconstructed_and_from_what(recipe, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[bool, list[Array]]] = []

    def recorded(model: ir.Model, plan: Plan, some: Collection[Array], **options: Any) -> Plan:
        assert len(some) == len(list(some))
        seen.append((options["rebuild"], list(some)))
        return plan

    monkeypatch.setattr(quantise_module, "refine_layers", recorded)
    result = quantise(net(), PICTURES, QuantConfig(bits=4, recipe=recipe))
    rebuilt = [step.name for step in result.steps if "reconstruct" in step.name]
    wanted = {"fast": 0, "default": 1, "max": 3}[recipe]
    assert len(rebuilt) == wanted == sum(rebuild for rebuild, _ in seen)
    if recipe == "max":
        assert rebuilt == [f"{name} + reconstruct" for name in NAMES[::2]]
    held_out = {p.tobytes() for p in (PICTURES[0], PICTURES[-1])}
    for rebuild, some in seen:
        used = [p.tobytes() for p in some]
        mirrored = rebuild and recipe == "max"
        assert not held_out & set(used)
        assert len(set(used)) == len(used) == (2 if mirrored else 1) * (len(PICTURES) - 2)
        assert (np.ascontiguousarray(PICTURES[3][:, :, ::-1]).tobytes() in used) is mirrored


@pytest.mark.parametrize("rebuild", [True, False])
def test_a_refinement_of_layers_that_does_not_help_is_not_kept(rebuild, monkeypatch: pytest.MonkeyPatch):
    real = quantise_module.refine_layers

    def harmful(model: ir.Model, plan: Plan, some: Any, **options: Any) -> Plan:
        found = real(model, plan, some, **options)
        if options["rebuild"] is not rebuild:
            return found
        return found.with_biases({name: weight.bias + 1.0 for name, weight in found.weights.items()})

    monkeypatch.setattr(quantise_module, "refine_layers", harmful)
    result = quantise(net(), PICTURES, QuantConfig(bits=4, equalise=False, align=False))
    kept = [step.kept for step in result.steps]
    assert kept == ([False, True, False] if rebuild else [False, False, True])


@pytest.mark.parametrize("method", ["equalise", "align"])
def test_a_scaling_that_does_not_help_is_not_kept(method, monkeypatch: pytest.MonkeyPatch):
    def harmful(model: ir.Model, *_: Any) -> int:
        channels = find_channels(model)
        channels.rescale(model, np.ldexp(1.0, np.arange(channels.count) % 8 * 2))
        return 1

    monkeypatch.setattr(quantise_module, method, harmful)
    model, off = pair(), {"equalise": False, "align": False, method: True}
    config = QuantConfig(bits=6, act_bits=6, granularity="per-tensor", correct_bias=False, reconstruct=False, **off)
    result = quantise(model, PICTURES, config)
    assert [(step.name, step.kept) for step in result.steps] == [("round to nearest", True), (method, False)]
    assert result.steps[1].head_snr_db < result.steps[0].head_snr_db
    assert result.reference is model


def test_alignment_raises_the_heads_snr_where_the_best_scales_lie_between_powers_of_two():
    signs = np.sign(normal(40, 8, 3, 3, 3)) * np.linspace(0.72, 0.78, 8)[:, None, None, None]
    model = pair(w0=signs.astype(np.float32))
    config = QuantConfig(bits=2, equalise=False, correct_bias=False, reconstruct=False)
    nearest, aligned = quantise(model, PICTURES, config).steps
    assert (nearest.name, aligned.name) == ("round to nearest", "align")
    assert aligned.kept and aligned.head_snr_db > nearest.head_snr_db + 1
