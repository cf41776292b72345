"""The one home of rounding: shifts against exact fractions, codes against ONNX Runtime's QuantizeLinear."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from graphs import build
from hypothesis import given
from hypothesis import strategies as st

from edgeyolo.errors import InputError
from edgeyolo.ort import open_session, run
from edgeyolo.qtype import QType, TensorQuant, pow2_frac, round_shift

QTYPES = st.builds(
    QType, st.integers(2, 16), st.booleans(), st.none() | st.integers(0, 3), st.sampled_from(("pow2", "float"))
)


@given(st.integers(-(1 << 31), (1 << 31) - 1), st.integers(-31, 38))
def test_round_shift_is_the_exact_quotient_rounded_half_to_even(acc, shift):
    assert int(round_shift(np.int64(acc), shift)) == round(Fraction(acc) / Fraction(2) ** shift)


@given(st.integers(-(1 << 20), 1 << 20), st.integers(1, 38))
def test_round_shift_takes_every_tie_to_the_even_side(quotient, shift):
    tie = (2 * quotient + 1) << (shift - 1)
    assert int(round_shift(np.int64(tie), shift)) == quotient + quotient % 2


def test_round_shift_broadcasts_one_shift_per_channel():
    acc = np.array([[[6]], [[6]], [[6]]])
    assert round_shift(acc, np.array([2, 1, -1])[:, None, None]).ravel().tolist() == [2, 3, 12]


@given(QTYPES)
def test_a_type_survives_its_text(qtype):
    assert QType.parse(str(qtype)) == qtype


@pytest.mark.parametrize("text", ["", "i4", "i4:pow3", "x4:pow2", "i4[]:pow2", "i4[-1]:pow2", " i4:pow2", "i4:pow2\n"])
def test_text_that_is_no_type_is_refused(text):
    with pytest.raises(InputError, match="not a quantised type"):
        QType.parse(text)


@pytest.mark.parametrize("bits", [-1, 0, 1, 17, 99])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(InputError, match="bits"):
        QType(bits)


@pytest.mark.parametrize(
    ("text", "lo", "hi", "dtype"),
    [
        ("i2:pow2", -2, 1, "int8"),
        ("i8:pow2", -128, 127, "int8"),
        ("u8:pow2", 0, 255, "uint8"),
        ("i9:pow2", -256, 255, "int16"),
        ("u16:float", 0, 65535, "uint16"),
    ],
)
def test_range_and_container_follow_from_the_bits(text, lo, hi, dtype):
    qtype = QType.parse(text)
    assert (qtype.lo, qtype.hi, qtype.dtype) == (lo, hi, np.dtype(dtype))


@given(QTYPES.filter(lambda q: q.axis is None), st.integers(-40, 40), st.integers(0, 1 << 30))
def test_quantise_dequantise_and_fake_agree_for_powers_of_two(qtype, frac, seed):
    quant = TensorQuant.pow2(qtype, frac)
    real = np.random.default_rng(seed).normal(0, (qtype.hi + 1) * 2.0**-frac, 64).astype(np.float32)
    codes = quant.quantise(real)
    assert codes.dtype == qtype.dtype
    assert codes.min() >= qtype.lo and codes.max() <= qtype.hi
    assert np.array_equal(quant.fake(real), quant.dequantise(codes))
    assert np.array_equal(quant.quantise(quant.dequantise(codes)), codes)


def test_every_code_and_its_scale_survive_the_round_trip():
    for frac in (-149 + 40, -7, 0, 7, 100):
        quant = TensorQuant.pow2(QType(8), frac)
        codes = np.arange(-128, 128).astype(np.int8)
        assert int(quant.frac) == frac
        assert np.array_equal(quant.quantise(quant.dequantise(codes)), codes)


def test_one_scale_per_channel_spreads_along_its_axis():
    quant = TensorQuant.pow2(QType(4, axis=0), np.array([0, 1, 2]))
    real = np.full((3, 2, 1, 1), 1.5, np.float32)
    assert quant.quantise(real)[:, 0, 0, 0].tolist() == [2, 3, 6]
    assert np.array_equal(quant.fake(real), quant.dequantise(quant.quantise(real)))
    assert quant.frac.tolist() == [0, 1, 2]


@pytest.mark.parametrize("scale", [0.1, 3.0, 0.0, -0.5, np.inf, np.nan])
def test_fraction_bits_of_another_scale_are_refused(scale):
    with pytest.raises(InputError, match="power of two"):
        _ = TensorQuant(QType(8), np.float32(scale), np.int64(0)).frac


def test_fraction_bits_with_a_zero_point_are_refused():
    with pytest.raises(InputError, match="zero point"):
        _ = TensorQuant(QType(8), np.float32(0.5), np.int64(3)).frac


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("frac", [-3, 0, 5])
def test_every_tie_and_its_neighbours_quantise_as_in_onnx_runtime(dtype, frac):
    info = np.iinfo(dtype)
    halves = np.arange(2 * info.min - 6, 2 * info.max + 7, dtype=np.int64)  # in half steps: every code and every tie
    real = np.ldexp(halves.astype(np.float32), -1 - frac)
    real = np.concatenate([real, np.nextafter(real, np.float32(np.inf)), np.nextafter(real, np.float32(-np.inf))])
    text = f"(float[1,1,1,N] x) => ({dtype}[1,1,1,N] y) {{ y = QuantizeLinear(x, s, z) }}"
    model = build(text, {"s": np.float32(2.0**-frac), "z": info.dtype.type(0)}, opset=21)
    expected = run(open_session(model, optimise=False), real.reshape(1, 1, 1, -1))["y"].ravel()
    got = TensorQuant.pow2(QType(info.bits, info.min < 0), frac).quantise(real)
    assert np.array_equal(got, expected)


@given(st.floats(1e-30, 1e30), st.sampled_from([1, 7, 127, 128, 255, 32767]))
def test_pow2_frac_is_the_finest_exponent_that_fits(limit, hi):
    frac = pow2_frac(limit, hi)
    assert Fraction(limit) * Fraction(2) ** frac <= hi < Fraction(limit) * Fraction(2) ** (frac + 1)


def test_pow2_frac_of_nothing_is_zero():
    assert pow2_frac(0.0, 127) == 0
