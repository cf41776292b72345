"""Bit packing and weight layouts: byte literals worked out by hand, and round trips for every width."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeyolo.errors import BundleError, InputError
from edgeyolo.packing import from_layout, layout_size, pack_bits, packed_size, tile_counts, to_layout, unpack_bits


@pytest.mark.parametrize(
    ("codes", "bits", "expected"),
    [
        ([1, -2, 7], 4, "e107"),  # element 0 in the low nibble; the last high nibble is padding
        ([-1, 0, 1, -2], 2, "93"),  # 11 00 01 10 from the low end: 0b10_01_00_11
        ([3, -4, 1], 3, "6300"),  # 011 100 001 from the low end: 0b0_01_100_011, then the ninth bit, 0
        ([-128, 127], 8, "807f"),
        ([1, -2], 16, "0100feff"),
    ],
)
def test_packed_bytes_are_the_ones_worked_out_by_hand(codes: list[int], bits: int, expected: str) -> None:
    assert pack_bits(np.array(codes, np.int16), bits).hex() == expected


def test_unsigned_codes_use_the_unsigned_range() -> None:
    assert pack_bits(np.array([15, 0, 9], np.uint8), 4).hex() == "0f09"
    assert unpack_bits(bytes.fromhex("0f09"), 4, 3, signed=False).tolist() == [15, 0, 9]


@given(data=st.data(), bits=st.integers(1, 16), signed=st.booleans(), count=st.integers(0, 70))
def test_every_width_comes_back(data: st.DataObject, bits: int, signed: bool, count: int) -> None:
    lo, hi = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    values = data.draw(st.lists(st.integers(lo, hi), min_size=count, max_size=count))
    packed = pack_bits(np.array(values, np.int32 if signed else np.uint32), bits)
    assert len(packed) == packed_size(count, bits)
    # The definition itself: the stream is one large little-endian number with element i at bit i * bits.
    number = sum((v & ((1 << bits) - 1)) << (i * bits) for i, v in enumerate(values))
    assert int.from_bytes(packed, "little") == number
    assert unpack_bits(packed, bits, count, signed).tolist() == values


@pytest.mark.parametrize(("value", "bits"), [(8, 4), (-9, 4), (2, 2), (128, 8), (-32769, 16)])
def test_a_code_that_does_not_fit_is_refused(value: int, bits: int) -> None:
    with pytest.raises(InputError, match=f"do not fit {bits} bits"):
        pack_bits(np.array([0, value], np.int32), bits)


def test_floats_and_impossible_widths_are_refused() -> None:
    with pytest.raises(InputError, match="only integers"):
        pack_bits(np.array([1.0]), 8)
    for bits in (0, 17):
        with pytest.raises(InputError, match="cannot be packed"):
            pack_bits(np.array([1]), bits)


@pytest.mark.parametrize(("data", "count"), [(b"\x00", 3), (b"\x00\x00\x00", 3), (b"", -1)])
def test_packed_data_of_the_wrong_size_is_refused(data: bytes, count: int) -> None:
    with pytest.raises(BundleError, match="wrong size"):
        unpack_bits(data, 4, count, signed=True)


def test_padding_bits_must_be_zero() -> None:
    with pytest.raises(BundleError, match="padding bits"):
        unpack_bits(b"\x21\x13", 4, 3, signed=True)


WEIGHT = np.arange(3 * 3 * 1 * 2, dtype=np.int8).reshape(3, 3, 1, 2)
"""Code = 6 * output channel + 2 * input channel + column."""


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("oihw", list(range(18))),
        ("ohwi", [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11, 12, 14, 16, 13, 15, 17]),
        (  # tm 2, tn 2: m-tile, n-tile, column, m, n; the third output and the third input channel are alone
            "tiled",
            [
                *(0, 2, 6, 8, 1, 3, 7, 9),  # outputs 0 1, inputs 0 1
                *(4, 0, 10, 0, 5, 0, 11, 0),  # outputs 0 1, input 2
                *(12, 14, 0, 0, 13, 15, 0, 0),  # output 2, inputs 0 1
                *(16, 0, 0, 0, 17, 0, 0, 0),  # output 2, input 2
            ],
        ),
    ],
)
def test_layout_orders_are_the_ones_worked_out_by_hand(layout: str, expected: list[int]) -> None:
    flat = to_layout(WEIGHT, layout, 2, 2)
    assert flat.tolist() == expected
    assert np.array_equal(from_layout(flat, WEIGHT.shape, layout, 2, 2), WEIGHT)


@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3), st.integers(1, 3)),
    layout=st.sampled_from(["oihw", "ohwi", "tiled"]),
    tm=st.integers(1, 9),
    tn=st.integers(1, 9),
)
def test_every_layout_comes_back(shape: tuple[int, int, int, int], layout: str, tm: int, tn: int) -> None:
    weight = np.arange(1, 1 + int(np.prod(shape)), dtype=np.int16).reshape(shape)
    flat = to_layout(weight, layout, tm, tn)
    assert len(flat) == layout_size(shape, layout, tm, tn)
    assert np.count_nonzero(flat) == weight.size
    assert np.array_equal(from_layout(flat, shape, layout, tm, tn), weight)


def test_tile_counts_round_up() -> None:
    assert tile_counts((5, 3, 1, 1), 4, 2) == (2, 2)
    assert tile_counts((4, 2, 1, 1), 4, 2) == (1, 1)


def test_a_filler_that_is_not_zero_is_refused() -> None:
    flat = to_layout(WEIGHT, "tiled", 2, 2)
    flat[9] = 1
    with pytest.raises(BundleError, match="filler"):
        from_layout(flat, WEIGHT.shape, "tiled", 2, 2)


def test_layouts_of_wrong_size_or_name_are_refused() -> None:
    with pytest.raises(BundleError, match="wrong size"):
        from_layout(np.zeros(17, np.int8), WEIGHT.shape, "oihw", 1, 1)
    with pytest.raises(InputError, match="unknown weight layout"):
        to_layout(WEIGHT, "hwio", 1, 1)
    with pytest.raises(InputError, match="at least 1"):
        to_layout(WEIGHT, "tiled", 0, 1)
