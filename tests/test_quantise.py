"""From a float graph to a QDQ file that ONNX Runtime executes and the integer program reproduces: tolerance 0."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import ARRAYS, Array, assert_equals_ort, build, check_proto, net, normal, pictures

from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.export.golden import layer_codes
from edgeyolo.export.oracle import Oracle
from edgeyolo.lower.fixed import lower_fixed
from edgeyolo.ort import open_session, run
from edgeyolo.passes.graph import constant, read_detector
from edgeyolo.program import Add, Concat, Conv, accumulator_bound
from edgeyolo.quant.calibrate import observe, run_pictures, to_float
from edgeyolo.quant.config import ACT_BITS, GRANULARITIES, METHODS, WEIGHT_BITS, QuantConfig
from edgeyolo.quant.insert_qdq import insert_qdq
from edgeyolo.quant.observers import Histogram
from edgeyolo.quant.plan import BIAS_LIMIT, EXACT_BITS, Plan, make_plan
from edgeyolo.quant.quantise import quantise
from edgeyolo.runners.integer import input_codes

PICTURES = pictures(5, 3, 16, 16)


def planned(model: ir.Model, **options: Any) -> Plan:
    return make_plan(model, observe(model, PICTURES)[0], QuantConfig(**options))


def plain(model: ir.Model, **options: Any) -> ir.Model:
    """Quantised without refinements."""
    return insert_qdq(model, planned(model, **options))


def assert_exact_on_pictures(model: ir.Model) -> None:
    """Python integers equal ONNX Runtime in every layer of every picture."""
    program, oracle = lower_fixed(model), Oracle(model)
    for pixels in PICTURES:
        codes = input_codes(program, pixels)
        for op, want, got in zip(program.ops, layer_codes(program, codes), oracle.layers(program, codes), strict=True):
            assert np.array_equal(want, got), op.name


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", WEIGHT_BITS)
def test_every_width_of_weights_is_exact(bits, granularity):
    assert_exact_on_pictures(plain(net(), bits=bits, granularity=granularity))


@pytest.mark.parametrize("act_bits", ACT_BITS)
@pytest.mark.parametrize(("bits", "granularity"), [(8, "per-channel"), (4, "per-tensor")])
def test_every_width_of_activations_is_exact(bits, act_bits, granularity):
    model = plain(net(), bits=bits, act_bits=act_bits, granularity=granularity)
    check_proto(model)
    assert_exact_on_pictures(model)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("bits", "act_bits"), [(8, 8), (4, 6), (3, 16)])
def test_every_method_is_exact(method, granularity, bits, act_bits):
    assert_exact_on_pictures(plain(net(), bits=bits, act_bits=act_bits, granularity=granularity, method=method))


def test_the_refined_result_is_exact_and_runs_with_the_file_alone():
    result = quantise(net(), PICTURES, QuantConfig(bits=4))
    check_proto(result.model)
    assert_exact_on_pictures(result.model)
    assert_equals_ort(result.model)
    heads = run(open_session(result.model), to_float(PICTURES[0], read_detector(result.model)))
    assert {name: value.shape for name, value in heads.items()} == {"head1": (1, 6, 4, 4), "head2": (1, 5, 8, 8)}


def test_names_mean_the_same_in_the_float_and_in_the_quantised_file():
    model = net()
    plan = planned(model)
    names = [name for name in plan.sites if name != "images"]
    for exact, got in zip(
        run_pictures(model, names, PICTURES), run_pictures(insert_qdq(model, plan), names, PICTURES), strict=True
    ):
        for name in names:
            assert np.corrcoef(exact[name].ravel(), got[name].ravel())[0, 1] > 0.99


def test_the_float_model_is_left_alone():
    model = net()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    quantise(model, PICTURES, QuantConfig(bits=4))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_the_same_input_gives_the_same_file():
    first, second = (quantise(net(), PICTURES, QuantConfig(bits=4)).model for _ in range(2))
    assert ir.to_proto(first).SerializeToString(deterministic=True) == ir.to_proto(second).SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_and_activations_have_the_bits_that_were_asked_for(bits):
    model = plain(net(), bits=bits, act_bits=max(4, bits), head_bits=bits + 3)
    program = lower_fixed(model)
    convs = [op for op in program.ops if isinstance(op, Conv)]
    assert {op.weight_type.bits for op in convs} == {bits}
    assert all(-(1 << bits - 1) <= op.weight.min() and op.weight.max() < 1 << bits - 1 for op in convs)
    assert any(len(np.unique(op.weight)) > 1 for op in convs)
    assert {program.tensors[i].qtype.bits for i in program.outputs} == {bits + 3}
    inner = [t for i, t in enumerate(program.tensors) if i not in (program.input, *program.outputs)]
    assert {t.qtype.bits for t in inner} == {max(4, bits)}


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_exponents_of_weights_are_one_per_channel_or_one_per_tensor(granularity):
    arrays = {"w0": ARRAYS["w0"] * np.ldexp(np.float32(1), np.arange(8) % 4)[:, None, None, None]}
    program = lower_fixed(plain(net(arrays), granularity=granularity))
    first = next(op for op in program.ops if isinstance(op, Conv))
    assert (len(set(first.weight_frac.tolist())) > 1) == (granularity == "per-channel")
    assert first.weight_type.axis == (0 if granularity == "per-channel" else None)


def test_the_input_takes_the_pixels_as_they_are():
    program = lower_fixed(plain(net(), act_bits=4))
    source = program.tensors[program.input]
    assert (str(source.qtype), source.frac) == ("u8:pow2", 8)


def test_bias_codes_are_the_bias_at_the_accumulators_exponent():
    model = net()
    plan = planned(model)
    convs = {op.name: op for op in lower_fixed(insert_qdq(model, plan)).ops if isinstance(op, Conv)}
    for node in model.graph:
        if node.op_type != "Conv":
            continue
        codes, frac = plan.bias_codes(node)
        fx = int(plan.input_of(node).frac)
        assert np.array_equal(frac, plan.weights[node.name].quant.frac + fx)
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(8)
        assert np.array_equal(codes, np.rint(np.ldexp(bias.astype(np.float64), frac)).astype(np.int32))
        assert np.array_equal(convs[node.name].bias, codes)


def test_accumulators_of_wide_activations_stay_exact_in_float32():
    program = lower_fixed(plain(net(), act_bits=16))
    wide = [op for op in program.ops if isinstance(op, Conv) and program.tensors[op.input].qtype.bits > 8]
    assert len(wide) >= 4
    for op in wide:
        slope = max(1, op.leaky[0]) if op.leaky else 1
        assert accumulator_bound(op.weight, op.bias, program.tensors[op.input].qtype) * slope <= 1 << EXACT_BITS
    assert max(t.qtype.bits for t in program.tensors) == 16


@pytest.mark.parametrize("move", ["Slice(c0, z, all)", "Reshape(c0, shape)", "MaxPool<kernel_shape=[1,1]>(c0)"])
@pytest.mark.parametrize("reader", ["Conv(m, wide)", "Sigmoid(m)"], ids=["a wide accumulator", "a table"])
def test_the_limit_of_wide_activations_reaches_back_through_movements(move, reader):
    text = f"""(float[1,3,16,16] images) => (float[1,C,16,16] head) {{
        c0 = Conv<pads=[1,1,1,1]>(images, w0)
        m = {move}
        h = {reader}
        head = Relu(h)
    }}"""
    more = {"z": [0, 0], "all": [1, 8], "shape": [1, 8, 16, 16], "wide": np.ones((4, 8, 1, 1), np.float32)}
    program = assert_equals_ort(plain(build(text, {**ARRAYS, **more}), act_bits=16))
    inner = next(t for t in program.tensors if t.name == "c0")
    assert inner.qtype.bits == (8 if "Sigmoid" in reader else EXACT_BITS - 10)  # 8 weights of 64: 10 bits


def test_a_hard_sigmoid_written_out_takes_eight_bits_even_where_more_were_asked_for():
    text = """(float[1,3,16,16] images) => (float[1,8,16,16] head) {
        c = Conv<pads=[1,1,1,1]>(images, w0)
        t = Add(c, three)
        k = Clip(t, zero, six)
        head = Div(k, six)
    }"""
    constants = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}
    program = assert_equals_ort(plain(build(text, {**ARRAYS, **constants}), act_bits=16))
    assert {t.name: t.qtype.bits for t in program.tensors} == {"images.seen": 8, "c": 8, "head": 16}


def test_a_concat_shares_its_exponent_with_inputs_that_nobody_else_reads():
    text = """(float[1,3,16,16] images) => (float[1,5,16,16] head) {
        a = Conv<pads=[1,1,1,1]>(images, w0)
        b = Conv<pads=[1,1,1,1]>(images, small)
        m = MaxPool<kernel_shape=[1,1]>(b)
        c = Concat<axis=1>(a, m)
        head = Conv(c, w4)
    }"""
    program = assert_equals_ort(plain(build(text, {**ARRAYS, "small": ARRAYS["w0"] / 64})))
    join = next(op for op in program.ops if isinstance(op, Concat))
    assert join.shifts == (0, 0)
    fracs = {t.name: t.frac for t in program.tensors}
    assert fracs["a"] == fracs["b"] == fracs["m"] == fracs["c"]


def test_an_input_of_a_concat_that_somebody_else_reads_keeps_its_own_exponent():
    text = """(float[1,3,16,16] images) => (float[1,5,16,16] head, float[1,8,16,16] other) {
        a = Conv<pads=[1,1,1,1]>(images, w0)
        b = Conv<pads=[1,1,1,1]>(images, small)
        other = Conv(b, w2)
        c = Concat<axis=1>(a, b)
        head = Conv(c, w4)
    }"""
    program = assert_equals_ort(plain(build(text, {**ARRAYS, "small": ARRAYS["w0"] / 64})))
    fracs = {t.name: t.frac for t in program.tensors}
    assert fracs["b"] >= fracs["c"] + 5


def test_parts_of_a_split_keep_one_exponent_where_one_part_is_concatenated():
    text = """(float[1,3,16,16] images) => (float[1,6,16,16] head) {
        c0 = Conv<pads=[1,1,1,1]>(images, w0)
        x, y = Split<axis=1>(c0, halves)
        c1 = Conv(y, big)
        cat = Concat<axis=1>(x, c1)
        head = Conv(cat, w5)
    }"""
    arrays = {**ARRAYS, "halves": [4, 4], "big": normal(3, 4, 4, 1, 1, gain=20)}
    fracs = {t.name: t.frac for t in assert_equals_ort(plain(build(text, arrays))).tensors}
    assert fracs["x"] == fracs["y"] == fracs["c0"] > fracs["cat"]


def test_a_residual_add_aligns_its_operands_exactly():
    program = assert_equals_ort(plain(net()))
    add = next(op for op in program.ops if isinstance(op, Add))
    tensors = [program.tensors[i] for i in (*add.inputs, add.output)]
    common = max(t.frac for t in tensors[:2])
    assert add.aligns == (common - tensors[0].frac, common - tensors[1].frac)
    assert add.shift == common - tensors[2].frac


def test_a_channel_of_zeros_passes_its_bias_on_without_loss():
    weight = ARRAYS["w0"].copy()
    weight[3] = 0
    text = """(float[1,3,16,16] images) => (float[1,8,16,16] head) { head = Conv<pads=[1,1,1,1]>(images, w, b) }"""
    model = build(text, {"w": weight, "b": np.full(8, 0.3371, np.float32)})
    codes, frac = planned(model).bias_codes(model.graph[0])
    assert abs(np.ldexp(float(codes[3]), -int(frac[3])) - 0.3371) < 1e-4
    assert_equals_ort(plain(model))


def test_a_nearly_dead_channel_with_a_large_bias_keeps_its_bias_in_range():
    weight = ARRAYS["w0"].copy()
    weight[3] *= 1e-9
    text = """(float[1,3,16,16] images) => (float[1,8,16,16] head) {
        c = Conv<pads=[1,1,1,1]>(images, w, b)
        head = LeakyRelu<alpha=0.1015625>(c)
    }"""
    model = build(text, {"w": weight, "b": np.full(8, -3.0, np.float32)})
    codes, _ = planned(model).bias_codes(model.graph[0])
    assert np.abs(codes).max() * 13 <= BIAS_LIMIT
    assert_equals_ort(plain(model))


def test_a_computed_bias_is_refused_rather_than_dropped():
    text = """(float[1,3,16,16] images) => (float[1,8,16,16] head) {
        m = ReduceMean(images)
        s = Reshape(m, one)
        b = Mul(s, b0)
        head = Conv<pads=[1,1,1,1]>(images, w0, b)
    }"""
    with pytest.raises(UnsupportedError):
        lower_fixed(plain(build(text, {**ARRAYS, "one": [1]})))


def test_convolutions_of_one_name_are_refused():
    with pytest.raises(InputError, match="same name"):
        planned(net(named=False))


def test_several_inputs_are_refused():
    text = "(float[1,3,4,4] images, float[1,3,4,4] more) => (float[1,3,4,4] head) { head = Add(images, more) }"
    with pytest.raises(UnsupportedError, match="one input"):
        quantise(build(text), PICTURES, QuantConfig())


def test_calibration_memory_does_not_grow_with_the_number_of_pictures():
    held: list[weakref.ref[Array]] = []
    most = 0

    def stream() -> Iterator[Array]:
        nonlocal most
        for seed in range(40):
            pixels = pictures(1, 3, 16, 16, seed=seed)[0]
            held.append(weakref.ref(pixels))
            yield pixels
            most = max(most, sum(ref() is not None for ref in held))

    histograms, _ = observe(net(), stream())
    assert histograms["a0"].counts.sum() == 40 * 8 * 8 * 8
    assert most <= 2


def test_no_pictures_and_infinite_activations_are_refused():
    with pytest.raises(InputError, match="no calibration pictures"):
        quantise(net(), [], QuantConfig())
    with pytest.raises(InputError, match="infinite or not a number"):
        Histogram().update(np.array([1, np.inf], np.float32))
