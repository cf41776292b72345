"""The program image: round trips, canonical bytes, and images that somebody damaged or made up."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from random_programs import random_program

from edgeyolo.errors import BundleError
from edgeyolo.program import (
    Add,
    Concat,
    Conv,
    IntegerProgram,
    Lookup,
    MaxPool,
    Reshape,
    Slice,
    Tensor,
    Upsample,
    op_inputs,
)
from edgeyolo.program_check import lifetimes
from edgeyolo.program_image import decode_program, encode_program
from edgeyolo.qtype import QType

HEADER, TENSOR, OP, CRC_END = 48, 36, 128, 16


def same(a: Any, b: Any) -> bool:
    """Equality of records that hold arrays; (1, 0) is the linear slope."""
    for name in a.__dataclass_fields__:
        x, y = getattr(a, name), getattr(b, name)
        equal = np.array_equal(x, y) and x.dtype == y.dtype if isinstance(x, np.ndarray) else x == y
        if not equal and (name, x, y) != ("leaky", (1, 0), None):
            return False
    return type(a) is type(b)


def resealed(data: bytes | bytearray) -> bytes:
    """The same bytes with a size and CRC that match."""
    data = bytearray(data)
    struct.pack_into("<I", data, 8, len(data))
    struct.pack_into("<I", data, 12, zlib.crc32(data[CRC_END:]))
    return bytes(data)


def tiny() -> IntegerProgram:
    """One 1x1 convolution of two channels with 4-bit weights."""
    conv = Conv(
        "c", 0, 1, np.array([[[[1]], [[-2]]]], np.int8), QType(4), np.array([3], np.int32), np.array([-5], np.int32),
        np.array([4], np.int8), (1, 1), (0, 0, 0, 0), (1, 1), 1, (13, 7), -128, 127,
    )  # fmt: skip
    tensors = (Tensor("x", (2, 1, 1), QType(8), 5, 0), Tensor("y", (1, 1, 1), QType(8), 4, 2))
    return IntegerProgram(tensors, (conv,), 0, (1,), 3)


def pool_program(**changes: Any) -> IntegerProgram:
    """A 2x2 maximum over a 4x4 map, with some fields of the operation replaced."""
    op = replace(MaxPool("p", 0, 1, (2, 2), (2, 2), (0, 0, 0, 0)), **changes)
    rows = (4 + op.pads[0] + op.pads[2] - op.kernel[0]) // op.strides[0] + 1
    tensors = (Tensor("x", (1, 4, 4), QType(8), 0, 0), Tensor("y", (1, rows, 2), QType(8), 0, 16))
    return IntegerProgram(tensors, (op,), 0, (1,), 16 + rows * 2)


def test_a_tiny_image_byte_by_byte():
    """The literal the specification describes, so that an accidental change of the format is seen."""
    words = [2, 1, 1, 8, 1, 5, 0, 0, 1, 1, 1, 1, 8, 1, 4, 2, 1, 2]
    words += [1, 1, 1, *[0] * 8, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 4, 0, 13, 7, -128, 127, 0, 4, 8, 0]
    words += [1]
    body = struct.pack(f"<{len(words)}i", *words) + bytes.fromhex("e1000000 fbffffff 04000000")
    body += b"\x01\x00x\x01\x00y\x01\x00c"
    counts = struct.pack("<8I", 2, 1, 1, 0, 3, 12, 9, 0)
    crc = zlib.crc32(counts + body)
    assert encode_program(tiny()) == struct.pack("<4s3I", b"EYP1", 1, HEADER + len(body), crc) + counts + body


@pytest.mark.parametrize("seed", range(40))
def test_a_random_program_survives_the_round_trip(seed):
    program, _ = random_program(seed)
    data = encode_program(program)
    decoded = decode_program(data, "here")
    assert decoded.tensors == program.tensors
    assert all(same(a, b) for a, b in zip(program.ops, decoded.ops, strict=True))
    assert (decoded.input, decoded.outputs) == (program.input, program.outputs)
    assert decoded.arena_bytes == program.arena_bytes
    assert encode_program(decoded) == data == encode_program(program)


def test_random_programs_reach_every_operation():
    kinds = {type(op) for seed in range(40) for op in random_program(seed)[0].ops}
    assert kinds == {Conv, MaxPool, Upsample, Concat, Add, Slice, Reshape, Lookup}


def test_lifetimes_end_at_the_last_reader_and_outputs_never_end():
    program, _ = random_program(3)
    alive = lifetimes(program)
    for index, (first, last) in enumerate(alive):
        readers = [time for time, op in enumerate(program.ops, 1) if index in op_inputs(op)]
        expected = len(program.ops) + 1 if index in program.outputs else max([first, *readers])
        assert last == expected


def test_every_truncation_is_refused():
    data = encode_program(tiny())
    for size in range(len(data)):
        with pytest.raises(BundleError):
            decode_program(data[:size], "cut")
        if size >= HEADER:
            with pytest.raises(BundleError):
                decode_program(resealed(data[:size]), "cut")


def test_every_single_bit_flip_is_refused():
    data = encode_program(tiny())
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BundleError):
            decode_program(bytes(flipped), "flipped")


def test_trailing_bytes_are_refused():
    data = encode_program(tiny())
    with pytest.raises(BundleError, match="wrong size"):
        decode_program(data + b"\0", "long")
    with pytest.raises(BundleError, match="do not fill"):
        decode_program(resealed(data + b"\0"), "long")


@pytest.mark.parametrize("seed", range(3))
def test_damage_under_a_correct_crc_is_refused_or_canonical(seed):
    """Whatever a hostile image holds, decoding ends in a program that encodes to it, or in a BundleError."""
    original = encode_program(random_program(seed)[0])
    rng = np.random.default_rng(seed)
    accepted = 0
    for _ in range(400):
        data = bytearray(original)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(CRC_END // 4, len(data) // 4)) * 4
            word = int.from_bytes(data[at : at + 4], "little")
            word = int(rng.choice([0, 1, 255, 32768, 0x7FFFFFFF, 0xFFFFFFFF, word ^ 1, (word + 1) & 0xFFFFFFFF]))
            data[at : at + 4] = word.to_bytes(4, "little")
        image = resealed(data)
        try:
            program = decode_program(image, "hostile")
        except BundleError:
            continue
        accepted += 1
        assert encode_program(program) == image
    assert accepted < 400


def tampered(offset: int, value: int) -> bytes:
    """The tiny image with one word replaced and the CRC made right."""
    data = bytearray(encode_program(tiny()))
    struct.pack_into("<i", data, offset, value)
    return resealed(data)


FIRST_OP = HEADER + 2 * TENSOR
PARAMS = FIRST_OP + 44


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (4, 2, "version"),
        (16, 5000, "counts"),
        (28, 7, "tensor index"),
        (32, 2, "arena offset"),
        (44, 1, "canonical"),
        (HEADER, 0, "extent|impossible"),
        (HEADER, 40000, "extent|data section"),
        (HEADER + 4, 0, "extent"),
        (HEADER + 12, 1, "number of bits"),
        (HEADER + 12, 17, "number of bits"),
        (HEADER + 16, 2, "canonical"),
        (HEADER + 24, 1, "overlap"),
        (HEADER + 32, 0, "canonical"),
        (FIRST_OP, 9, "kind of operation"),
        (FIRST_OP + 4, 0, "channels|extent|input|too short|data section"),
        (FIRST_OP + 8, 9, "number of inputs"),
        (FIRST_OP + 12, 1, "channels|extent|data section|padding bits"),
        (FIRST_OP + 16, 1, "canonical"),
        (PARAMS, 0, "impossible"),
        (PARAMS, 1 << 30, "data section"),
        (PARAMS + 8, 0, "stride"),
        (PARAMS + 16, -1, "padding"),
        (PARAMS + 32, 0, "dilation"),
        (PARAMS + 40, 0, "groups|channels"),
        (PARAMS + 44, 9, "impossible"),
        (PARAMS + 52, 129, "numerator"),
        (PARAMS + 56, 17, "denominator|numerator"),
        (PARAMS + 60, -129, "saturation"),
        (PARAMS + 64, 128, "saturation"),
        (PARAMS + 68, 4, "canonical"),
        (PARAMS + 80, 1, "canonical"),
        (HEADER + 2 * TENSOR + OP, 2, "tensor index"),
        (HEADER + 2 * TENSOR + OP + 4, 0x1E1, "padding bits|canonical"),
        (HEADER + 2 * TENSOR + OP + 8, -(1 << 31), "accumulator"),
        (HEADER + 2 * TENSOR + OP + 12, 32, "shift"),
    ],
)
def test_a_field_out_of_range_is_named(offset, value, message):
    with pytest.raises(BundleError, match=message):
        decode_program(tampered(offset, value), "tampered")


def test_an_accumulator_that_fits_exactly_is_taken_and_one_more_is_not():
    """|bias| + sum |w| * 128 is at most 2**31 - 1: 3 * 128 stay below it by 2**31 - 385."""
    program = tiny()
    conv = program.ops[0]
    assert isinstance(conv, Conv)
    for bias, fits in (((1 << 31) - 385, True), ((1 << 31) - 384, False), (-(1 << 31) + 385, True)):
        changed = replace(program, ops=(replace(conv, bias=np.array([bias], np.int32)),))
        if fits:
            encode_program(changed)
        else:
            with pytest.raises(BundleError, match="accumulator"):
                encode_program(changed)


def test_windows_in_the_padding_alone_are_refused():
    encode_program(pool_program(pads=(1, 0, 0, 0), strides=(1, 2)))
    with pytest.raises(BundleError, match="padding alone"):
        encode_program(pool_program(pads=(2, 0, 0, 0), strides=(1, 2)))
    with pytest.raises(BundleError, match="padding alone"):
        encode_program(pool_program(pads=(0, 0, 2, 0), strides=(1, 2)))


def test_an_operation_must_not_write_over_its_input():
    program = pool_program()
    tensors = (program.tensors[0], replace(program.tensors[1], offset=12))
    with pytest.raises(BundleError, match="overlap"):
        encode_program(replace(program, tensors=tensors))


@pytest.mark.parametrize("ends", [((0, 2), (0, 2)), ((0, 0), (0, 2)), ((0, 1), (0, 1))])
def test_every_tensor_is_written_once(ends):
    tensors = tuple(Tensor(name, (1, 4, 4), QType(8), 0, 16 * i) for i, name in enumerate("xyz"))
    program = IntegerProgram(tensors, tuple(Reshape("r", a, b) for a, b in ends), 0, (2,), 48)
    with pytest.raises(BundleError, match="written"):
        encode_program(program)


def test_a_pool_must_keep_type_and_exponent():
    program = pool_program()
    with pytest.raises(BundleError, match="exponent"):
        encode_program(replace(program, tensors=(program.tensors[0], replace(program.tensors[1], frac=1))))


def test_shifts_must_follow_from_the_fraction_bits():
    program = tiny()
    conv = program.ops[0]
    assert isinstance(conv, Conv)
    with pytest.raises(BundleError, match="fx \\+ fw - fy"):
        encode_program(replace(program, ops=(replace(conv, weight_frac=np.array([4], np.int32)),)))


def test_long_names_are_refused_and_odd_ones_kept():
    program = tiny()
    odd = replace(program, tensors=(replace(program.tensors[0], name="/a\n\0é"), program.tensors[1]))
    assert decode_program(encode_program(odd), "odd").tensors[0].name == "/a\n\0é"
    with pytest.raises(BundleError, match="too long"):
        encode_program(replace(program, tensors=(replace(program.tensors[0], name="n" * 70000), program.tensors[1])))
