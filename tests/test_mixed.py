"""Mixed precision: what one layer does alone is measured, the choice of bits is the best one and within its budget."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import ARRAYS, build, net, normal, pictures
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeyolo.errors import InputError
from edgeyolo.export.costs import plan_bytes
from edgeyolo.ort import open_session, run
from edgeyolo.quant.calibrate import observe
from edgeyolo.quant.compare import head_snr
from edgeyolo.quant.config import Keep, QuantConfig
from edgeyolo.quant.insert_qdq import insert_qdq
from edgeyolo.quant.knapsack import knapsack
from edgeyolo.quant.mixed import Sensitivity, choose_acts, choose_bits, frontier, pattern, sensitivities
from edgeyolo.quant.mixture import Layer, Mixture
from edgeyolo.quant.plan import Plan, make_plan, quantise_weights

BITS = range(2, 9)
SAMPLE = pictures(3, 3, 16, 16)
CONFIG = QuantConfig(4)
EQUAL = 1e-9
"""Relative: sums of the same float64 losses in another order."""
SAME = 1e-3
"""Relative: noise of a network that adds the same products in another order."""
BIAS_STEP = 0.05
"""Relative: a mixture's biases are rounded to the accumulator's steps, the probe's are not."""


def measured(model: ir.Model, config: QuantConfig = CONFIG, **options: Any) -> tuple[Plan, list[Sensitivity]]:
    plan = make_plan(model, observe(model, SAMPLE)[0], config)
    return plan, sensitivities(model, plan, SAMPLE, config, BITS, **options)


@pytest.fixture(scope="module")
def found() -> tuple[Plan, list[Sensitivity]]:
    return measured(net())


def made_up(seed: int, count: int, widths: tuple[int, ...] = (2, 3, 4, 6, 8)) -> list[Sensitivity]:
    """Layers of any size and guilt whose noise falls with bits, unevenly."""
    rng = np.random.default_rng(seed)
    guilt = 10.0 ** rng.uniform(-4, 0, count)
    return [
        Sensitivity(
            Layer(f"c{i}", "dense", True, f"c{i}", weights=int(rng.integers(1, 5000))),
            {b: float(guilt[i] * 4.0**-b * rng.uniform(0.6, 1.6)) for b in widths},
            {8: float(rng.random()), **({16: 1e-6} if i % 3 else {})},
            int(rng.integers(1, 64)),
            int(rng.integers(1, 1000)),
        )
        for i in range(count)
    ]


# --- the knapsack ----------------------------------------------------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[float]], list[list[int]], int]:
    """Up to 6 items of up to 4 options, with ties, dominated options and zeros; the limit is feasible."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=0, max_size=6))
    loss = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 10, allow_subnormal=False))
    losses = [draw(st.lists(loss, min_size=n, max_size=n)) for n in sizes]
    costs = [draw(st.lists(st.integers(0, 12), min_size=n, max_size=n)) for n in sizes]
    least, most = (sum(f(c) for c in costs) for f in (min, max))
    return losses, costs, draw(st.integers(least, most + 2))


@settings(deadline=None, max_examples=150)
@given(problems())
def test_nothing_that_fits_loses_less(problem: tuple[list[list[float]], list[list[int]], int]) -> None:
    losses, costs, limit = problem
    picked = knapsack(losses, costs, limit)
    assert sum(c[i] for c, i in zip(costs, picked, strict=True)) <= limit
    best = min(
        sum(loss[i] for loss, i in zip(losses, choice, strict=True))
        for choice in itertools.product(*(range(len(c)) for c in costs))
        if sum(c[i] for c, i in zip(costs, choice, strict=True)) <= limit
    )
    assert sum(loss[i] for loss, i in zip(losses, picked, strict=True)) == pytest.approx(best, rel=EQUAL, abs=EQUAL)


@pytest.mark.parametrize("seed", range(4))
def test_a_network_of_realistic_size_agrees_with_an_integer_solver(
    seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """HiGHS, an independent solver; its own tolerances are what the comparison allows."""
    optimize = pytest.importorskip("scipy.optimize")
    layers = made_up(seed, 80)
    noise = [[v for _, v in sorted(s.weights.items())] for s in layers]
    cost = [[s.layer.weights * b for b in sorted(s.weights)] for s in layers]
    limit = 9 * sum(s.layer.weights for s in layers) // 2
    picked = knapsack(noise, cost, limit)
    once = (np.arange(80)[:, None] == np.repeat(np.arange(80), 5)).astype(float)
    flat = np.concatenate(noise)
    rows = [optimize.LinearConstraint(once, 1, 1), optimize.LinearConstraint(np.concatenate(cost), -np.inf, limit)]
    solved = optimize.milp(
        flat / flat.min(), integrality=1, bounds=optimize.Bounds(0, 1), constraints=rows, options={"mip_rel_gap": 0}
    )
    capfd.readouterr()  # the solver prints
    assert sum(c[i] for c, i in zip(cost, picked, strict=True)) <= limit
    got = sum(n[i] for n, i in zip(noise, picked, strict=True))
    assert got == pytest.approx(solved.fun * flat.min(), rel=1e-6)


def test_what_cannot_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="the cheapest options cost 5, more than 4"):
        knapsack([[1.0], [1.0, 2.0]], [[2], [3, 4]], 4)


# --- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_budget_is_never_exceeded_and_more_of_it_never_hurts(seed: int) -> None:
    layers = made_up(seed, 30)
    before = np.inf
    for average in np.arange(2, 8.3, 0.1):
        choice = choose_bits(layers, average=float(average))
        total = sum(s.layer.weights for s in layers)
        bits = sum(s.layer.weights * choice.weight_bits[s.layer.name] for s in layers)
        assert bits <= average * total * (1 + 1e-12) and choice.average_bits == bits / total
        assert choice.noise <= before * (1 + EQUAL)
        before = choice.noise
    assert set(choice.weight_bits.values()) == {8}


def test_an_average_that_floats_cannot_hold_is_met_to_the_last_bit() -> None:
    """4.6 times 25 weights is 115 bits; the product of floats is below that."""
    layers = [replace(s, layer=replace(s.layer, weights=1)) for s in made_up(0, 25, widths=tuple(BITS))]
    assert math.floor(4.6 * 25) == 114
    assert sum(choose_bits(layers, average=4.6).weight_bits.values()) == 115


@pytest.mark.parametrize("seed", range(5))
def test_bytes_are_counted_as_they_are_packed(seed: int) -> None:
    layers = made_up(seed, 20)
    least = choose_bits(layers, average=2).weight_bytes
    for size in range(least, least * 3, 997):
        choice = choose_bits(layers, max_bytes=size)
        packed = sum((s.layer.weights * choice.weight_bits[s.layer.name] + 7) // 8 + 4 * s.biases for s in layers)
        assert choice.weight_bytes == packed <= size


def test_an_infeasible_budget_is_refused_with_the_range() -> None:
    layers = made_up(1, 10, widths=(3, 4, 8))
    with pytest.raises(InputError) as error:
        choose_bits(layers, average=2.99)
    assert error.value.allowed == "3 to 8" and error.value.where == "--avg-bits"
    least, most = (choose_bits(layers, average=bits).weight_bytes for bits in (3.0, 8.0))
    assert choose_bits(layers, max_bytes=least).average_bits == 3
    with pytest.raises(InputError) as error:
        choose_bits(layers, max_bytes=least - 1)
    assert error.value.where == "--max-bytes" and error.value.allowed == f"{least} to {most}"
    for average, size in ((float("nan"), None), (None, None), (4.0, 1 << 20)):
        with pytest.raises(InputError):
            choose_bits(layers, average=average, max_bytes=size)


def test_wide_results_are_the_noisiest_that_fit_their_share() -> None:
    layers = [
        Sensitivity(Layer(name, "dense", True, name), {4: 0.0}, acts, 1, elements)
        for name, acts, elements in (
            ("loud", {8: 0.5, 14: 0.01}, 40), ("huge", {8: 0.6, 16: 0.01}, 50), ("quiet", {8: 1e-3, 16: 0.0}, 5),
            ("bound", {8: 9.0}, 5),
        )
    ]  # fmt: skip
    assert choose_acts(layers, 0.0) == {}
    assert choose_acts(layers, 0.04) == {}
    assert choose_acts(layers, 0.05) == {"quiet": 16}
    assert choose_acts(layers, 0.45) == {"loud": 14, "quiet": 16}
    assert choose_acts(layers, 1) == {"loud": 14, "huge": 16, "quiet": 16}
    choice = choose_bits(layers, average=4, act_share=0.4)
    assert choice.act_bits == {"loud": 14} and choice.noise == pytest.approx(0.01 + 0.6 + 1e-3 + 9)
    assert {k.pattern: k.act_bits for k in choice.keeps} == {"loud": 14, "huge": None, "quiet": None, "bound": None}
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError):
            choose_acts(layers, share)


def test_the_frontier_runs_from_the_narrowest_weights_to_the_widest() -> None:
    choices = frontier(made_up(3, 12), step=0.5)
    assert [choices[0].average_bits, choices[-1].average_bits] == [2, 8] and len(choices) == 13
    noises = [c.noise for c in choices]
    assert noises == sorted(noises, reverse=True) and noises[0] > noises[-1]
    assert choices[4] == choose_bits(made_up(3, 12), average=4)


NAMES = ("c[0]", "c*", "c?", "c0", "first", "head", "a,b", "[!x]", "layers.1.conv", " c")


def test_a_pattern_means_its_own_layer_only() -> None:
    roles = dict.fromkeys(NAMES, frozenset({"first", "head"}))
    for name in NAMES:
        keep = Keep(pattern(name), 8)
        assert [other for other, part in roles.items() if keep.matches(other, part)] == [name]


# --- the measurement -------------------------------------------------------------------------------------------------


def test_noise_is_that_of_the_network_in_which_one_layer_is_quantised(found: tuple[Plan, list[Sensitivity]]) -> None:
    """The same as by inserting the quantisers; biases corrected for the mean need a mixture of corrected biases."""
    plan, layers = found
    model = net()
    moved = plan.with_biases({name: weight.bias + 1e-12 for name, weight in plan.weights.items()})
    mixture = Mixture(model, moved, SAMPLE)
    assert [s.layer.name for s in layers] == [layer.name for layer in mixture.layers]
    for s in layers:
        act = 10 ** (-mixture.snr(mixture.model([], [s.layer.site])) / 10)
        assert s.acts[plan.acts[s.layer.site].qtype.bits] == pytest.approx(act, rel=SAME, abs=1e-12)
        if s.layer.conv:
            alone = 10 ** (-mixture.snr(mixture.model([s.layer.name], [])) / 10)
            assert s.weights[4] == pytest.approx(alone, rel=BIAS_STEP)


def test_every_convolution_has_every_width_and_more_bits_make_less_noise(
    found: tuple[Plan, list[Sensitivity]],
) -> None:
    plan, layers = found
    convs = {s.layer.name: s for s in layers if s.layer.conv}
    assert set(convs) == set(plan.weights)
    for name, s in convs.items():
        assert list(s.weights) == list(BITS)
        assert s.weights[2] > s.weights[4] > s.weights[6] > s.weights[8] > 0
        assert s.layer.weights == plan.weights[name].codes.size and s.biases == len(plan.weights[name].bias)
    assert all(not s.weights for s in layers if not s.layer.conv)
    sizes = {s.layer.name: s.elements for s in layers}
    assert sizes["c0"] == 8 * 8 * 8 and sizes["head1"] == 6 * 4 * 4 and sizes["images"] == 3 * 16 * 16


def test_results_that_keep_can_widen_are_measured_wide(found: tuple[Plan, list[Sensitivity]]) -> None:
    """Promised bits are what a plan with these exceptions gives; additions and concatenations have none to choose."""
    plan, layers = found
    wide = choose_acts(layers, 1.0)
    assert wide and all(s.acts[max(s.acts)] < s.acts[8] / 10 for s in layers if len(s.acts) > 1)
    choice = choose_bits(layers, average=4, act_share=1.0)
    kept = tuple(replace(keep, weight_bits=4) for keep in choice.keeps)  # what stays exact depends on the weights
    planned = make_plan(net(), observe(net(), SAMPLE)[0], replace(CONFIG, keep=kept))
    sites = {s.layer.name: s.layer.site for s in layers}
    for name, bits in wide.items():
        assert planned.acts[sites[name]].qtype.bits == bits > plan.acts[sites[name]].qtype.bits
    assert all(len(s.acts) == 1 for s in layers if s.layer.kind in ("concat", "add", "input"))


def test_narrower_wide_results_are_respected() -> None:
    _, layers = measured(net(), wide=10)
    assert max(bits for s in layers if "head" not in s.layer.roles for bits in s.acts) == 10


def test_the_same_twice(found: tuple[Plan, list[Sensitivity]]) -> None:
    again = measured(net())[1]
    assert again == found[1]
    assert frontier(again, act_share=0.3) == frontier(found[1], act_share=0.3)


def test_the_measured_network_keeps_its_outputs() -> None:
    """No quantiser and no changed bias is left behind in the graph that is measured."""
    model = net()
    before = run(open_session(model, optimise=False), SAMPLE[0][None].astype(np.float32))
    measured(model)
    after = run(open_session(model, optimise=False), SAMPLE[0][None].astype(np.float32))
    assert len(model.graph.inputs) == 1 and all(np.array_equal(before[k], after[k]) for k in before)


def test_a_mean_that_rounding_takes_is_given_back() -> None:
    """Convolution c reads a constant: rounding shifts its results, and its bias takes all of that back."""
    model = build(
        "(float[1,3,16,16] images) => (float[1,4,16,16] head) {"
        " z = Conv(images, wz, bz)\n a = Relu(z)\n c = Conv(a, w0)\n d = Conv(images, w1)\n head = Add(c, d) }",
        {"wz": np.zeros((3, 3, 1, 1), np.float32), "bz": np.ones(3, np.float32), "w0": normal(0, 4, 3, 1, 1),
         "w1": normal(1, 4, 3, 1, 1, gain=0.01)},
    )  # fmt: skip
    _, layers = measured(model)
    lost = {s.layer.name: s.weights for s in layers if s.layer.conv}
    codes, quant = quantise_weights(normal(0, 4, 3, 1, 1), 2, CONFIG)
    assert np.abs(normal(0, 4, 3, 1, 1) - quant.dequantise(codes)).max() > 0.01
    assert lost["c"][2] < 1e-6 < lost["d"][2]


def test_a_sensitive_layer_gets_more_bits_and_the_mixture_beats_equal_bits() -> None:
    """One layer is louder in the heads: its gain is taken back by no other layer."""
    model = net({"w5": 30 * ARRAYS["w5"]})
    plan, layers = measured(model)
    choice = choose_bits(layers, average=4)
    loud = choice.weight_bits["head1"]
    assert loud > max(bits for name, bits in choice.weight_bits.items() if name in ("head2", "c2"))
    assert choice.noise < sum(s.weights.get(4, 0.0) + s.acts[min(s.acts)] for s in layers)
    mixed = make_plan(model, observe(model, SAMPLE)[0], replace(CONFIG, keep=choice.keeps))
    assert plan_bytes(mixed) == choice.weight_bytes
    assert {name: w.quant.qtype.bits for name, w in mixed.weights.items()} == choice.weight_bits
    gain = head_snr(model, insert_qdq(model, mixed), SAMPLE) - head_snr(model, insert_qdq(model, plan), SAMPLE)
    assert gain > 1
