"""The numpy oracle against plain Python integers, element by element: tolerance 0."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from random_programs import execute, random_codes, random_program
from small_programs import small_program

from edgeyolo.errors import InputError
from edgeyolo.program import Add, Concat, Conv, MaxPool, Tensor, accumulator_bound
from edgeyolo.qtype import QType
from edgeyolo.runners.integer import Codes, accumulate, input_codes, run_integer, run_op

I8 = QType(8)


def layers(program, codes) -> list[Codes]:
    results: list[Codes] = []
    run_integer(program, codes, lambda _index, _op, result: results.append(result))
    return results


@pytest.mark.parametrize("seed", range(1000, 1080))
def test_random_programs_equal_plain_integers_in_every_layer(seed):
    program, codes = random_program(seed)
    for op, got, want in zip(program.ops, layers(program, codes), execute(program, codes), strict=True):
        assert got.dtype == want.dtype
        assert np.array_equal(got, want), op


def test_every_kind_of_operation_in_one_program_equals_plain_integers():
    program = small_program()
    codes = random_codes(np.random.default_rng(0), program.tensors[0])
    wanted = execute(program, codes)
    assert all(np.array_equal(a, b) for a, b in zip(layers(program, codes), wanted, strict=True))
    heads = run_integer(program, codes)
    assert np.array_equal(heads[0], wanted[4]) and np.array_equal(heads[1], wanted[-1])


def point(value: int, weight: int, bias: int, shift: int, leaky: tuple[int, int] | None = None) -> int:
    """One multiplication through a convolution record."""
    one = np.array([[[[weight]]]], np.int8)
    op = Conv(
        "one", 0, 1, one, I8, np.zeros(1, np.int32), np.array([bias], np.int32), np.array([shift], np.int8),
        (1, 1), (0, 0, 0, 0), (1, 1), 1, leaky, -128, 127,
    )  # fmt: skip
    return int(run_op(op, [np.array([[[value]]], np.int8)], Tensor("y", (1, 1, 1), I8, 0))[0, 0, 0])


@pytest.mark.parametrize(
    ("accumulator", "shift", "wanted"),
    [(1, 1, 0), (3, 1, 2), (5, 1, 2), (-1, 1, 0), (-3, 1, -2), (-5, 1, -2), (7, 2, 2), (10, 2, 2), (-14, 2, -4)],
)
def test_a_convolution_rounds_half_to_even(accumulator, shift, wanted):
    assert point(accumulator, 1, 0, shift) == wanted


def test_slope_and_shift_share_one_rounding():
    for accumulator in range(-128, 128):
        slope = Fraction(13, 128) if accumulator < 0 else Fraction(1)
        for shift in (-2, 0, 1, 3):
            exact = round(accumulator * slope / Fraction(2) ** shift)
            assert point(accumulator, 1, 0, shift, (13, 7)) == min(max(exact, -128), 127)


def test_relu_is_the_slope_zero():
    assert [point(v, 1, 0, 0, (0, 0)) for v in (-128, -1, 0, 1, 127)] == [0, 0, 0, 1, 127]


def test_the_largest_accumulators_do_not_overflow():
    assert point(-128, -128, (1 << 31) - 1 - (1 << 14), 31) == 1
    assert point(-128, -128, (1 << 31) - 1 - (1 << 14), -31) == 127
    assert point(127, 127, -(1 << 31) + (1 << 14), -31, (1, 0)) == -128


def test_accumulate_reaches_the_stated_bound_and_no_more():
    rng = np.random.default_rng(1)
    weight = rng.integers(-128, 128, (3, 4, 3, 3)).astype(np.int8)
    bias = rng.integers(-1000, 1000, 3).astype(np.int32)
    op = Conv(
        "worst", 0, 1, weight, I8, np.zeros(3, np.int32), bias, np.zeros(3, np.int8),
        (1, 1), (0, 0, 0, 0), (1, 1), 1, None, -128, 127,
    )  # fmt: skip
    bound = accumulator_bound(weight, bias, I8)
    worst = 0
    for channel in range(3):
        for sign in (1, -1):
            x = np.where(weight[channel] * sign > 0, -128, 127).astype(np.int8)  # |x| = 128 wherever it can be
            worst = max(worst, int(np.abs(accumulate(op, x)).max()))
    assert worst <= bound
    assert worst >= bound * 0.97  # +128 does not exist, and a bias may have the other sign


@pytest.mark.parametrize("qtype", [QType(8), QType(8, False), QType(4), QType(16)])
def test_padding_never_wins_a_maximum(qtype):
    lowest = np.full((1, 2, 2), qtype.lo).astype(qtype.dtype)
    op = MaxPool("pool", 0, 1, (2, 2), (1, 1), (1, 1, 1, 1))
    assert np.array_equal(run_op(op, [lowest], Tensor("y", (1, 3, 3), qtype, 0)), np.full((1, 3, 3), qtype.lo))


def test_add_aligns_before_it_rounds_once():
    op = Add("add", (0, 1), 2, (3, 0), 4, None, -128, 127)
    a, b = (codes.astype(np.int8).reshape(1, 256, 256) for codes in np.mgrid[-128:128, -128:128])
    got = run_op(op, [a, b], Tensor("y", (1, 256, 256), I8, 0))
    exact = np.rint((a.astype(np.float64) * 8 + b) / 16)  # numpy's rint is half to even, and float64 is exact here
    assert np.array_equal(got, np.clip(exact, -128, 127))


def test_concat_requantises_each_input_by_its_own_shift():
    op = Concat("concat", (0, 1), 2, (1, -2), -128, 100)
    x = np.array([[[3, 5, -128]]], np.int8)
    assert run_op(op, [x, x], Tensor("y", (2, 1, 3), I8, 0)).tolist() == [[[2, 2, -64]], [[12, 20, -128]]]


def test_input_codes_are_the_pixels_where_the_network_reads_pixels():
    program = small_program()
    tensor = program.tensors[0]
    pixels = np.random.default_rng(0).integers(0, 256, tensor.shape).astype(np.uint8)
    assert np.array_equal(input_codes(program, pixels), pixels)


def test_input_codes_elsewhere_are_rounded_and_saturated():
    program = small_program()
    signed = replace(program.tensors[0], qtype=I8, frac=7)
    program = replace(program, tensors=(signed, *program.tensors[1:]))
    pixels = np.array([0, 1, 3, 5, 254, 255, 255, 0, 0, 0], np.uint8)
    pixels = np.resize(pixels, signed.shape)
    wanted = [min(round(Fraction(int(p), 2)), 127) for p in pixels.ravel()]  # p / 256 * 2**7
    got = input_codes(program, pixels)
    assert got.dtype == np.int8
    assert got.ravel().tolist() == wanted


@pytest.mark.parametrize("change", [{"dtype": np.int8}, {"shape": (3, 5, 5)}, {"shape": (1, 3, 6, 5)}])
def test_codes_that_do_not_fit_the_input_are_refused(change):
    program = small_program()
    codes = np.zeros(change.get("shape", program.tensors[0].shape), change.get("dtype", np.uint8))
    with pytest.raises(InputError, match="do not fit"):
        run_integer(program, codes)


def test_inputs_and_inner_tensors_may_be_outputs_too():
    program = small_program()
    codes = random_codes(np.random.default_rng(3), program.tensors[0])
    source, inner = run_integer(replace(program, outputs=(0, 4)), codes)
    assert np.array_equal(source, codes)
    assert np.array_equal(inner, layers(program, codes)[3])
