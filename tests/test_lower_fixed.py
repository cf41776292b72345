"""Every operation of a QDQ graph becomes its integer record; each layer equals ONNX Runtime with tolerance 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import Qdq, assert_equals_ort, codes8, net, pictures

from edgeyolo.errors import UnsupportedError
from edgeyolo.lower.fixed import lower_fixed
from edgeyolo.passes.graph import read_detector
from edgeyolo.program import Add, Concat, Conv, IntegerProgram, Lookup, MaxPool, Op, Reshape, Slice, Upsample
from edgeyolo.program_check import check_program
from edgeyolo.quant.config import QuantConfig
from edgeyolo.quant.quantise import quantise

LEAKY = "LeakyRelu<alpha=0.1015625>"


def only(program: IntegerProgram, kind: type[Op]) -> Any:
    """The one record of its kind."""
    found = [op for op in program.ops if isinstance(op, kind)]
    assert len(found) == 1
    return found[0]


def checked(graph: Qdq, *results: str, opset: int = 17) -> IntegerProgram:
    """Lower, compare with ONNX Runtime, and check the rules that every engine relies on."""
    program = assert_equals_ort(graph.model(*results, opset=opset))
    check_program(program, "here")
    return program


def source(channels: int = 4, size: int = 8) -> Qdq:
    """A graph whose input is int8 with 5 fraction bits."""
    return Qdq((1, channels, size, size), 5, np.int8)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("activation", [None, "Relu", LEAKY, "LeakyRelu<alpha=0.5>", "Clip"])
@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ("pads=[1,1,1,1]", (5, 3, 3, 3)),
        ("", (4, 3, 1, 1)),
        ("pads=[0,1,2,0], strides=[2,1]", (2, 3, 3, 2)),
        ("dilations=[2,3], pads=[1,1,1,1]", (3, 3, 2, 2)),
        ("group=3, pads=[1,1,1,1]", (3, 1, 3, 3)),
        ("group=3", (6, 1, 3, 3)),
    ],
    ids=["3x3", "1x1", "asymmetric", "dilated", "depthwise", "multiplier"],
)
def test_a_convolution_of_any_shape(attributes, shape, activation, per_channel):
    graph = Qdq()  # uint8 input with 8 fraction bits
    frac = 7 + np.arange(shape[0]) % 3 if per_channel else 7
    weight = graph.weight(codes8(1, *shape), frac)
    bias = graph.weight(np.random.default_rng(2).integers(-20000, 20000, shape[0]).astype(np.int32), frac + 8)
    value = graph.node(f"Conv<{attributes}>({graph.input}, {weight}, {bias})".replace("<>", ""))
    if activation == "Clip":
        value = graph.node(f"Clip({value}, {graph.constant(0.0)}, {graph.constant(6.0)})")
    elif activation:
        value = graph.node(f"{activation}({value})")
    op = only(checked(graph, graph.quantise(value, 4)), Conv)
    assert op.weight_type.axis == (0 if per_channel else None)
    assert np.array_equal(op.shift, np.broadcast_to(frac + 8 - 4, shape[0]))
    assert op.leaky == {None: None, "Clip": None, "Relu": (0, 0), LEAKY: (13, 7)}.get(activation, (1, 1))
    assert (op.lo, op.hi) == {"Clip": (0, 96), "Relu": (0, 127)}.get(activation, (-128, 127))


@pytest.mark.parametrize("frac", [-2, 0, 3, 12, 14])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
def test_a_convolution_into_any_type_and_exponent(dtype, frac):
    graph = source(3)
    value = graph.node(f"Conv({graph.input}, {graph.weight(codes8(1, 4, 3, 3, 3), 7)})")
    program = checked(graph, graph.quantise(value, frac, dtype), opset=21)
    assert program.tensors[-1].qtype.dtype == dtype
    assert only(program, Conv).shift.tolist() == [5 + 7 - frac] * 4


def test_a_bias_may_be_a_float_constant():
    graph = source()
    weight, bias = graph.weight(codes8(1, 2, 4, 1, 1), 7), graph.constant(np.array([0.25, -3.0], np.float32))
    value = graph.node(f"Conv({graph.input}, {weight}, {bias})")
    assert only(checked(graph, graph.quantise(value, 4)), Conv).bias.tolist() == [0.25 * 4096, -3 * 4096]


def test_a_value_with_several_readers_is_computed_once():
    graph = source()
    shared = graph.quantise(graph.node(f"Conv({graph.input}, {graph.weight(codes8(1, 4, 4, 1, 1), 6)})"), 4)
    left = graph.quantise(graph.node(f"Conv({shared}, {graph.weight(codes8(2, 4, 4, 1, 1), 6)})"), 4)
    right = graph.quantise(graph.node(f"MaxPool<kernel_shape=[1,1]>({shared})"), 4)
    program = checked(graph, graph.quantise(graph.node(f"Add({left}, {right})"), 3), shared)
    assert [type(op) for op in program.ops] == [Conv, Conv, MaxPool, Add]
    assert program.outputs == (4, 1)


def test_every_reader_may_have_a_dequantiser_of_its_own():
    graph = source()
    codes = graph.node(
        f"QuantizeLinear({graph.input}, {graph.constant(np.float32(0.25))}, {graph.constant(np.int8(0))})"
    )
    scalars = [f"{graph.constant(np.float32(0.25))}, {graph.constant(np.int8(0))}" for _ in range(2)]
    reals = [graph.node(f"DequantizeLinear({codes}, {pair})") for pair in scalars]
    weight = graph.weight(codes8(1, 4, 4, 1, 1), 6)
    heads = [graph.quantise(graph.node(f"Conv({real}, {weight})"), 3) for real in reals]
    assert [type(op) for op in checked(graph, *heads).ops] == [Concat, Conv, Conv]


@pytest.mark.parametrize("output", [4, 1, 7])
def test_a_concat_of_different_exponents(output):
    graph = source()
    finer, coarser = graph.quantise(graph.input, 6), graph.quantise(graph.input, 2)
    joined = graph.quantise(graph.node(f"Concat<axis=1>({finer}, {coarser}, {graph.input})"), output)
    program = checked(graph, joined)
    assert program.ops[-1].shifts == (6 - output, 2 - output, 5 - output)


def test_a_concat_may_join_different_types_and_one_value_twice():
    graph = Qdq((1, 2, 4, 4), 8, np.uint8)
    wide = graph.quantise(graph.input, 12, np.int16)
    joined = graph.node(f"Concat<axis=-3>({wide}, {graph.input}, {graph.input})")
    assert checked(graph, graph.quantise(joined, 10, np.int16), opset=21).ops[-1].shifts == (2, -2, -2)


@pytest.mark.parametrize("activation", [None, "Relu", LEAKY])
@pytest.mark.parametrize(("fa", "fb", "output"), [(5, 5, 4), (7, 3, 4), (2, 6, 7), (5, 5, -1), (0, 9, 9)])
def test_an_add_of_any_exponents(fa, fb, output, activation):
    graph = source()
    a, b = graph.quantise(graph.input, fa), graph.quantise(graph.node(f"Neg({graph.input})"), fb)
    value = graph.node(f"Add({a}, {b})")
    value = graph.node(f"{activation}({value})") if activation else value
    op = only(checked(graph, graph.quantise(value, output)), Add)
    assert op.aligns == (max(fa, fb) - fa, max(fa, fb) - fb)
    assert op.shift == max(fa, fb) - output


def test_an_add_of_all_pairs_of_codes_rounds_half_to_even():
    graph = Qdq((1, 2, 256, 256), 0, np.int8)
    parts = [f"{graph.constant([c])}, {graph.constant([c + 1])}, {graph.constant([1])}" for c in (0, 1)]
    a, b = (graph.quantise(graph.node(f"Slice({graph.input}, {part})"), 0) for part in parts)
    model = graph.model(graph.quantise(graph.node(f"Add({a}, {b})"), -1))
    from edgeyolo.export.golden import layer_codes
    from edgeyolo.export.oracle import Oracle

    program, pairs = lower_fixed(model), np.stack(np.mgrid[-128:128, -128:128]).astype(np.int8)
    got, want = layer_codes(program, pairs)[-1], Oracle(model).layers(program, pairs)[-1]
    assert np.array_equal(got, want)
    assert np.count_nonzero((pairs.astype(int).sum(0) & 3) == 1) > 4000  # ties that half-up rounds wrongly


@pytest.mark.parametrize(
    "attributes",
    [
        "kernel_shape=[2,2], strides=[2,2]",
        "kernel_shape=[2,2], strides=[1,1], pads=[0,0,1,1]",
        "kernel_shape=[2,2], strides=[1,1], pads=[1,1,0,0]",
        "kernel_shape=[5,5], strides=[1,1], pads=[2,2,2,2]",
        "kernel_shape=[3,2], strides=[2,1], pads=[1,0,0,1], dilations=[1,1], ceil_mode=0",
    ],
)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_a_maxpool(attributes, dtype):
    graph = Qdq((1, 3, 8, 8), 6, dtype)
    checked(graph, graph.quantise(graph.node(f"MaxPool<{attributes}>({graph.input})"), 6, dtype))


@pytest.mark.parametrize("factors", [(2, 2), (3, 1), (1, 4)])
@pytest.mark.parametrize(
    "mode",
    [
        'coordinate_transformation_mode="asymmetric", nearest_mode="floor"',
        'coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_floor"',
        'coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_ceil"',
        'mode="nearest"',
    ],
)
@pytest.mark.parametrize("by", ["scales", "sizes"])
def test_a_resize_to_the_nearest_neighbour(mode, factors, by):
    graph = source(2, 5)
    scales = graph.constant(np.array([1, 1, *factors], np.float32))
    sizes = graph.constant([1, 2, 5 * factors[0], 5 * factors[1]])
    arguments = f"{graph.input}, , {scales}" if by == "scales" else f"{graph.input}, , , {sizes}"
    value = graph.node(f"Resize<{mode}>({arguments})")
    assert only(checked(graph, graph.quantise(value, 5)), Upsample).scale == factors


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([1], [3], [1], [1]),
        ([0, 1], [1 << 62, 1 << 62], [2, 3], [2, 2]),
        ([1, 0], [8, 8], [-2, -1], [3, 2]),
        ([-2], [1 << 62], [1], [1]),
        ([0, 0], [1, 2], [0, 1], [1, 1]),
        ([0], [-1], [3], [1]),
    ],
)
def test_a_slice(starts, ends, axes, steps):
    graph = source()
    parts = ", ".join(graph.constant(part) for part in (starts, ends, axes, steps))
    only(checked(graph, graph.quantise(graph.node(f"Slice({graph.input}, {parts})"), 5)), Slice)


def test_a_slice_without_axes_and_steps():
    graph = source()
    value = graph.node(f"Slice({graph.input}, {graph.constant([0, 1, 2])}, {graph.constant([1, 3, 8])})")
    assert only(checked(graph, graph.quantise(value, 5)), Slice).start == (1, 2, 0)


def test_focus():
    graph = Qdq((1, 3, 8, 8), 8, np.uint8)
    axes, steps, end = graph.constant([2, 3]), graph.constant([2, 2]), graph.constant([8, 8])
    corners = [
        graph.quantise(
            graph.node(f"Slice({graph.input}, {graph.constant([i, j])}, {end}, {axes}, {steps})"), 8, np.uint8
        )
        for j in (0, 1)
        for i in (0, 1)
    ]
    joined = graph.quantise(graph.node(f"Concat<axis=1>({', '.join(corners)})"), 8, np.uint8)
    value = graph.node(f"Conv<pads=[1,1,1,1]>({joined}, {graph.weight(codes8(1, 4, 12, 3, 3), 7)})")
    program = checked(graph, graph.quantise(value, 3))
    assert [op.start for op in program.ops if isinstance(op, Slice)] == [(0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]


def test_a_split_of_which_some_parts_are_read():
    graph = source(6)
    graph.lines.append(f"p, q, r = Split<axis=1>({graph.input}, {graph.constant([1, 2, 3])})")
    program = checked(graph, graph.quantise("r", 5), graph.quantise("p", 5))
    assert [op.start for op in program.ops] == [(3, 0, 0), (0, 0, 0)]


def test_an_identity_that_nobody_removed_is_a_reshape():
    graph = source()
    only(checked(graph, graph.quantise(graph.node(f"Identity({graph.input})"), 5)), Reshape)


def test_a_reshape_keeps_the_order():
    graph = source()
    value = graph.node(f"Reshape({graph.input}, {graph.constant([1, 16, -1, 2])})")
    only(checked(graph, graph.quantise(value, 5)), Reshape)


TABLES = {
    "silu": "s = Sigmoid({x})\nt = Mul({x}, s)",
    "h-swish": "a = Add({x}, {three})\nr = Clip(a, {zero}, {six})\nm = Mul({x}, r)\nt = Div(m, {six})",
    "mish": "s = Softplus({x})\nh = Tanh(s)\nt = Mul({x}, h)",
    "sigmoid": "t = Sigmoid({x})",
    "doubled": "t = Add({x}, {x})",
    "leaky behind a quantiser": "t = LeakyRelu<alpha=0.1>({x})",
}


@pytest.mark.parametrize("body", list(TABLES.values()), ids=list(TABLES))
@pytest.mark.parametrize(("dtype", "output"), [(np.int8, np.int8), (np.uint8, np.int16), (np.int8, np.uint8)])
def test_a_table_for_every_other_activation(body, dtype, output):
    graph = Qdq((1, 2, 16, 16), 5, dtype)
    numbers = {name: graph.constant(value) for name, value in {"zero": 0.0, "three": 3.0, "six": 6.0}.items()}
    graph.lines += body.format(x=graph.input, **numbers).splitlines()
    op = only(checked(graph, graph.quantise("t", 6, output), opset=21), Lookup)
    assert op.table.shape == (256,)


def test_a_requantisation_is_a_concat_of_one():
    graph = source()
    assert only(checked(graph, graph.quantise(graph.input, 2)), Concat).shifts == (3,)


def test_the_input_may_be_quantised_more_than_once_alike():
    graph = source()
    again = graph.quantise("images", 5, np.int8)
    program = checked(graph, graph.quantise(graph.node(f"Add({graph.input}, {again})"), 4))
    assert [type(op) for op in program.ops] == [Lookup]


@pytest.mark.parametrize(("bits", "act_bits", "head_bits"), [(8, 8, 8), (4, 5, 16), (2, 12, 16), (8, 8, 4)])
def test_our_own_files_carry_types_outputs_and_detector(bits, act_bits, head_bits):
    config = QuantConfig(bits=bits, act_bits=act_bits, head_bits=head_bits)
    result = quantise(net(), pictures(3, 3, 16, 16), config)
    program = assert_equals_ort(result.model)
    check_program(program, "here")
    assert program.detector == read_detector(result.model)
    assert [program.tensors[i].name for i in program.outputs] == ["head1", "head2"]
    assert {program.tensors[i].qtype.bits for i in program.outputs} == {head_bits}
    inner = [t for i, t in enumerate(program.tensors) if i not in (program.input, *program.outputs)]
    assert inner and {t.qtype.bits for t in inner} <= set(range(4, act_bits + 1))
    assert [op.name for op in program.ops if isinstance(op, Conv)] == ["c0", "c1", "c2", "c3", "head2", "head1"]


def test_all_offenders_are_listed_at_once():
    graph = source()
    pooled = graph.quantise(graph.node(f"AveragePool<kernel_shape=[2,2]>({graph.input})"), 5)
    moved = graph.quantise(graph.node(f"Transpose<perm=[0,1,3,2]>({graph.input})"), 5)
    scaled = graph.quantise(graph.input, 0, scale=0.3)
    sloped = graph.quantise(
        graph.node(
            f"LeakyRelu<alpha=0.1>({graph.node(f'Conv({graph.input}, {graph.weight(codes8(1, 4, 4, 1, 1), 6)})')})"
        ),
        4,
    )
    with pytest.raises(UnsupportedError) as caught:
        lower_fixed(graph.model(pooled, moved, scaled, sloped, graph.node(f"Relu({graph.input})")))
    text = str(caught.value)
    for part in ("AveragePool", "Transpose", "power of two", "0.1", "graph output"):
        assert part in text
    assert text.startswith("6 part(s)")  # four operations, and two outputs that nothing computes


def test_a_model_whose_input_is_not_quantised_is_refused():
    graph = Qdq()
    graph.lines.clear()
    value = graph.quantise(graph.node(f"Conv(images, {graph.weight(codes8(1, 4, 3, 1, 1), 6)})"), 4)
    with pytest.raises(UnsupportedError, match="graph input images: is not quantised"):
        lower_fixed(graph.model(value))
