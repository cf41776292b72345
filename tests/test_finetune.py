"""Self-distillation: the student's exactness, its gradients, what it gains, and the guard that reverts it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphs import build, net, normal, pictures
from torch.nn import functional

from edgeyolo import assets
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.export.fpga import fixed_point_form
from edgeyolo.export.pictures import PictureSet
from edgeyolo.export.prepare import Stages, prepare
from edgeyolo.finetune.distil import FinetuneResult, finetune, make_student, updated
from edgeyolo.finetune.judge import Judge, Verdict, held_out
from edgeyolo.finetune.lessons import Lessons
from edgeyolo.finetune.polish import polish
from edgeyolo.finetune.rounding import lookup, requantise, round_through
from edgeyolo.finetune.settings import FinetuneSettings
from edgeyolo.frontend import load_source
from edgeyolo.lower.fixed import lower_fixed
from edgeyolo.passes.graph import read_detector
from edgeyolo.progress import Log
from edgeyolo.quant.calibrate import Pixels, observe, run_pictures, to_float
from edgeyolo.quant.compare import head_snr
from edgeyolo.quant.config import QuantConfig
from edgeyolo.quant.insert_qdq import insert_qdq
from edgeyolo.quant.plan import Plan, make_plan
from edgeyolo.quant.quantise import quantise

QUIET = Log(quiet=True)
GAIN_DB = 5.0
"""What a short training must gain on the toy net at 3 bits, which it takes from -2.7 to 8.7 dB."""

SHUFFLE = """(float[1,3,8,8] images) => (float[1,6,4,4] head) {
    left, right = Split<axis=1>(images, halves)
    c0 = Conv<pads=[1,0,0,1]>(left, w0)
    a0 = Clip(c0, zero, six)
    c1 = Conv<pads=[0,1,1,0], dilations=[1,1]>(right, w1)
    a1 = Relu(c1)
    m = Mish(a1)
    cat = Concat<axis=1>(a0, m)
    p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[0,0,1,1]>(cat)
    s = Slice(p, from, to, axes)
    head = Conv(s, w2)
}"""
SHUFFLE_ARRAYS = {
    "halves": [2, 1],
    "w0": normal(0, 5, 2, 2, 2, gain=2),
    "w1": normal(1, 5, 1, 2, 2, gain=2),
    "w2": normal(2, 6, 8, 1, 1),
    "zero": np.float32(0),
    "six": np.float32(0.5),
    "from": [1],
    "to": [9],
    "axes": [1],
}


def plan_of(model: ir.Model, seen: list[Pixels], **options: object) -> Plan:
    """Rounded to nearest."""
    histograms, _ = observe(model, seen)
    return make_plan(model, histograms, QuantConfig(**options))


def assert_exact(model: ir.Model, plan: Plan, seen: list[Pixels]) -> None:
    """Every value of the student is ONNX Runtime's, to the last bit."""
    quantised = insert_qdq(model, plan)
    program = lower_fixed(quantised)
    names = [program.tensors[op.output].name for op in program.ops]
    student = make_student(model, plan, names)
    detector = read_detector(model)
    for pixels, wanted in zip(seen, run_pictures(quantised, names, seen), strict=True):
        with torch.no_grad():
            got = student(torch.from_numpy(to_float(pixels, detector)))
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            assert np.array_equal(got[name].numpy(), value), name


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4},
        {"bits": 8, "act_bits": 16},
        {"bits": 3, "granularity": "per-tensor"},
        {"bits": 2, "act_bits": 5},
    ],
    ids=str,
)
def test_the_student_equals_onnx_runtime_in_every_layer(options):
    seen = pictures(4, 3, 16, 16)
    assert_exact(net(), plan_of(net(), seen, **options), seen)


def test_the_student_equals_onnx_runtime_on_uneven_padding_splits_slices_and_clips():
    model, seen = build(SHUFFLE, SHUFFLE_ARRAYS, opset=18), pictures(4, 3, 8, 8)
    assert_exact(model, plan_of(model, seen, bits=4), seen)


@pytest.fixture(scope="module")
def digits() -> tuple[ir.Model, list[Pixels]]:
    """The embedded default in fixed form, and two of its scenes."""
    source = load_source(assets.CFG, weights=assets.WEIGHTS, names=assets.NAMES)
    seen = PictureSet.find(assets.DATA, read_detector(source.model).preprocess, 2)
    ready, _ = prepare(source.model, list(seen), Stages(None), QUIET)
    return fixed_point_form(ready, seen, Stages(None), QUIET)[0], list(seen)


def test_the_student_equals_onnx_runtime_on_the_default_model(digits):
    model, seen = digits
    assert_exact(model, plan_of(model, seen, bits=4), seen)


def test_the_student_still_equals_onnx_runtime_after_training():
    model, seen = net(), pictures(16, 3, 16, 16)
    start = plan_of(model, seen, bits=4)
    after = finetune(model, start, seen, FinetuneSettings(steps=4, weight_lr=0.2, checks=1), QUIET).tried.plan
    assert any((after.weights[n].codes != w.codes).any() for n, w in start.weights.items())
    assert_exact(model, after, seen[:3])


def test_every_weight_and_bias_gets_a_gradient():
    model, seen = net(), pictures(8, 3, 16, 16)
    student = make_student(model, plan_of(model, seen))
    lessons = Lessons(model, seen, [0], FinetuneSettings(batch=4))
    images, heads = lessons.batch()
    lessons.loss(student(images), heads).backward()
    assert len(student.trained()) == 6
    for conv in student.trained():
        for parameter in (conv.weight, conv.bias):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, conv.op.name


def test_rounding_is_half_to_even_and_its_gradient_passes():
    x = torch.tensor([0.5, 1.5, -0.5, 2.4], requires_grad=True)
    y = round_through(x)
    y.sum().backward()
    assert y.tolist() == [0, 2, 0, 2]
    assert x.grad is not None and x.grad.tolist() == [1, 1, 1, 1]


def test_the_gradient_stops_where_a_code_saturates_and_has_the_slope_below_zero():
    x = torch.tensor([-100.0, -0.75, 0.25, 0.625, 100.0], requires_grad=True)
    y = requantise(x, 2, -8, 7, alpha=0.125)
    y.sum().backward()
    assert y.tolist() == [-2.0, 0.0, 0.25, 0.5, 1.75]
    assert x.grad is not None and x.grad.tolist() == [0, 0.125, 1, 1, 0]


def test_the_gradient_of_a_table_is_about_that_of_its_function():
    codes = torch.arange(-128, 128)
    table = torch.round(functional.silu(codes / 16) * 16) / 16
    x = (codes / 16).requires_grad_()
    lookup(x, 4, -128, table).sum().backward()
    exact = torch.autograd.grad(functional.silu(x).sum(), x)[0]
    assert x.grad is not None
    assert (x.grad - exact)[8:-8].abs().max() < 0.15  # entries are rounded to 1/16 and 8 apart


def test_training_gains_on_pictures_that_it_never_saw():
    model, seen = net(), pictures(24, 3, 16, 16)
    start = plan_of(model, seen, bits=3)
    result = finetune(model, start, seen, FinetuneSettings(steps=60, batch=4, weight_lr=0.01, checks=3), QUIET)
    assert result.improved
    unseen = Judge(model, pictures(8, 3, 16, 16, seed=99))
    assert unseen.verdict(result.plan).head_snr_db > unseen.verdict(start).head_snr_db + GAIN_DB


def test_only_integers_change():
    model, seen = net(), pictures(8, 3, 16, 16)
    start = plan_of(model, seen, bits=3)
    after = finetune(model, start, seen, FinetuneSettings(steps=5, weight_lr=0.3, checks=1), QUIET).tried.plan
    assert after.acts is start.acts and after.sites is start.sites
    for name, weight in after.weights.items():
        assert weight.quant is start.weights[name].quant
        assert weight.codes.dtype == np.int8 and weight.codes.min() >= -4 and weight.codes.max() <= 3
        assert weight.bias.dtype == np.float64


def test_an_absurd_learning_rate_is_reverted_to_the_very_plan():
    model, seen = net(), pictures(8, 3, 16, 16)
    start = plan_of(model, seen)
    result = finetune(model, start, seen, FinetuneSettings(steps=6, weight_lr=1, bias_lr=1, checks=3), QUIET)
    assert result.tried.head_snr_db < result.start.head_snr_db
    assert not result.improved and result.plan is start


def test_the_best_state_is_kept_and_not_the_last():
    model, seen = net(), pictures(24, 3, 16, 16)
    start = plan_of(model, seen, bits=3)
    result = finetune(model, start, seen, FinetuneSettings(steps=40, weight_lr=0.01, checks=8), QUIET)
    best = max(result.checks, key=lambda check: check.head_snr_db)
    assert result.plan is best.plan
    assert Judge(model, [seen[i] for i in held_out(seen)]).verdict(result.plan).head_snr_db == best.head_snr_db
    assert [check.step for check in result.checks] == [0, 5, 10, 15, 20, 25, 30, 35, 40]


def test_a_gain_counts_where_it_is_more_than_chance():
    before = Verdict(0, np.array([4.0, 5, 6, 5]))
    assert Verdict(0, before.noise - [0.5, 0.6, 0.4, 0.5]).beats(before)
    assert not Verdict(0, before.noise - [4.0, -1, 0.5, -1]).beats(before)
    assert not before.beats(before)
    assert Verdict(0, np.array([1.0])).beats(Verdict(0, np.array([1.1])))


def test_the_verdict_is_the_head_snr_of_the_comparison():
    model, seen = net(), pictures(4, 3, 16, 16)
    plan = plan_of(model, seen)
    verdict = Judge(model, seen).verdict(plan)
    assert verdict.head_snr_db == head_snr(model, insert_qdq(model, plan), seen)
    assert len(verdict.noise) == 4 and verdict.noise.min() > 0


def integers(result: FinetuneResult) -> list[bytes]:
    """All of them."""
    return [part.tobytes() for w in result.checks[-1].plan.weights.values() for part in (w.codes, w.bias)]


def test_the_same_seed_gives_the_same_integers_and_another_seed_others():
    model, seen = net(), pictures(8, 3, 16, 16)
    start = plan_of(model, seen, bits=3)
    settings = FinetuneSettings(steps=8, weight_lr=0.05, checks=1)
    runs = [finetune(model, start, seen, replace(settings, seed=seed), QUIET) for seed in (0, 0, 1)]
    assert integers(runs[0]) == integers(runs[1])
    assert integers(runs[0]) != integers(runs[2])


def test_the_clock_ends_a_training_without_steps():
    model, seen = net(), pictures(4, 3, 16, 16)
    result = finetune(model, plan_of(model, seen), seen, FinetuneSettings(minutes=0.01, checks=2), QUIET)
    assert len(result.checks) == 3 and result.checks[-1].seconds >= 0.6


def test_pictures_that_judge_never_teach():
    model, seen = net(), [np.full((3, 16, 16), i, np.uint8) for i in range(9)]
    judging = held_out(seen)
    assert len(judging) == 2
    images, _ = Lessons(model, seen, judging, FinetuneSettings(batch=64)).batch()
    taught = {round(float(image.max()) * 256) for image in images}
    assert taught == set(range(9)) - judging


def test_no_lesson_comes_twice():
    model, seen = net(), pictures(4, 3, 16, 16)
    lessons = Lessons(model, seen, [0, 1, 2], FinetuneSettings(batch=32))
    images = lessons.batch()[0].numpy()
    assert images.shape == (32, 3, 16, 16) and images.min() >= 0 and images.max() < 1
    assert len({image.tobytes() for image in images}) > 24


def test_a_layer_that_would_leave_the_exact_range_keeps_its_integers():
    """512 inputs of 16 bits times 2-bit weights: codes of 0 fit 2**24, codes of 1 do not."""
    weight = np.zeros((2, 512, 1, 1), np.float32)
    weight[:, :4] = 0.5
    model = build(
        "(float[1,3,4,4] images) => (float[1,2,4,4] head) { c = Conv(images, w0) head = Conv(c, w1) }",
        {"w0": normal(0, 512, 3, 1, 1), "w1": weight},
    )
    seen = pictures(4, 3, 4, 4)
    start = plan_of(model, seen, bits=2, act_bits=16)
    student = make_student(model, start)
    with torch.no_grad():
        student.trained()[0].weight.clamp_(max=0)
        student.trained()[1].weight.fill_(-2)
    after = updated(start, student)
    assert np.array_equal(after.weights["head"].codes, start.weights["head"].codes)
    assert after.weights["c"].codes.max() == 0


def test_a_bias_never_leaves_its_range():
    model, seen = net(), pictures(4, 3, 16, 16)
    start = plan_of(model, seen)
    student = make_student(model, start)
    with torch.no_grad():
        for conv in student.trained():
            conv.bias.fill_(1e12)
    codes = [conv.codes()[2] for conv in student.trained()]
    assert all(c.min() > 0 and c.max() <= 1 << 23 for c in codes)
    assert lower_fixed(insert_qdq(model, updated(start, student))).ops


def test_polish_is_one_more_candidate_which_is_kept_where_it_is_better():
    seen = pictures(24, 3, 16, 16)
    quant = quantise(net(), seen, QuantConfig(3, equalise=False, correct_bias=False, align=False, reconstruct=False))
    for rate, kept in ((0.01, True), (1.0, False)):
        result = polish(quant, seen, FinetuneSettings(steps=30, weight_lr=rate, bias_lr=rate, checks=3), QUIET)
        assert result.candidates[:-1] == quant.candidates
        added = result.candidates[-1]
        assert added.name == result.steps[-1].name == "round to nearest + finetune"
        assert [step.kept for step in result.steps] == [not kept, kept]
        assert (result.model is added.model, result.plan is added.plan) == (kept, kept)


def test_too_few_pictures_are_refused():
    model, seen = net(), pictures(3, 3, 16, 16)
    with pytest.raises(InputError, match="too few pictures to hold some out"):
        finetune(model, plan_of(model, seen), seen, FinetuneSettings(steps=1), QUIET)


def test_a_node_without_integer_form_is_refused():
    model = build(
        "(float[1,3,8,8] images) => (float[1,4,8,8] head) { c = Conv(images, w) head = Softmax<axis=1>(c) }",
        {"w": normal(0, 4, 3, 1, 1)},
    )
    seen = pictures(4, 3, 8, 8)
    with pytest.raises(UnsupportedError, match="Softmax"):
        finetune(model, plan_of(model, seen), seen, FinetuneSettings(steps=1), QUIET)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named():
    seen = pictures(4, 3, 16, 16)
    with pytest.raises(InputError, match="no GPU"):
        finetune(net(), plan_of(net(), seen), seen, FinetuneSettings(steps=1, device="cuda"), QUIET)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_trains_as_well():
    model, seen = net(), pictures(24, 3, 16, 16)
    settings = FinetuneSettings(steps=60, batch=4, weight_lr=0.01, checks=3, device="cuda")
    assert finetune(model, plan_of(model, seen, bits=3), seen, settings, QUIET).improved


@pytest.mark.parametrize(
    ("name", "value"),
    [("minutes", 0), ("minutes", math.nan), ("steps", 0), ("batch", 0), ("weight_lr", -1), ("bias_lr", math.inf),
     ("checks", 0), ("seed", -1), ("device", "tpu")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=name.replace("_", "-")):
        FinetuneSettings(**{name: value})


def test_a_latent_weight_begins_at_the_real_one_or_at_a_code_that_was_chosen_otherwise():
    model = build(
        "(float[1,3,4,4] images) => (float[1,2,4,4] head) { head = Conv(images, w) }",
        {"w": np.array([[0.3, 0.55, 1.0], [-0.7, 0.25, -0.3]], np.float32).reshape(2, 3, 1, 1)},
    )
    start = plan_of(model, pictures(4, 3, 4, 4), bits=4, granularity="per-tensor")
    weight = start.weights["head"]
    step = float(weight.quant.scale)
    codes = weight.codes.copy()
    codes[0, 1] += 1  # 0.55 becomes two thirds of a step or more away
    student = make_student(model, replace(start, weights={"head": replace(weight, codes=codes)}))
    latent = student.trained()[0].weight.detach().numpy()
    assert latent[0, 1] == codes[0, 1]
    assert latent[1, 0] == pytest.approx(-0.7 / step)
    assert np.array_equal(np.rint(latent), codes)
