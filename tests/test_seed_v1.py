"""seed-v1: byte literals worked out from the format's description, and what it cannot express."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_programs import conv, small_program

from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.lower.seed_v1 import fit_bias, seed_files, tile_ragged, write_seed_v1
from edgeyolo.program import Add, Concat, IntegerProgram, Lookup, Tensor
from edgeyolo.qtype import QType

SUFFIXES = ("weights", "bias", "w_scale", "a_scale", "b_scale", "s_scale")


def _program() -> IntegerProgram:
    """3 -> 3 (1x2), 3 -> 1 (1x1) and a shortcut; code = 20 * output + 2 * input + column - 21."""
    kind = QType(8)
    shapes_fracs = (((3, 1, 2), 7), ((3, 1, 2), 4), ((1, 1, 2), 5), ((1, 1, 2), 3))
    tensors = tuple(Tensor(f"t{i}", shape, kind, frac) for i, (shape, frac) in enumerate(shapes_fracs))
    o, i, x = np.meshgrid(range(3), range(3), range(2), indexing="ij")
    first = replace(
        conv("first", (0, 1), (3, 3, 1, 2), per_channel=False, leaky=(1, 3)),
        weight=(20 * o + 2 * i + x - 21).astype(np.int8).reshape(3, 3, 1, 2),
        weight_frac=np.full(3, 6, np.int32),
        bias=np.array([5, -128, 100], np.int32),  # fits int8 at 7 + 6 fraction bits
        shift=np.full(3, 9, np.int8),
    )
    second = replace(
        conv("second", (1, 2), (1, 3, 1, 1), per_channel=False, leaky=None),
        weight=np.array([-8, 0, 7], np.int8).reshape(1, 3, 1, 1),
        weight_frac=np.full(1, 3, np.int32),
        bias=np.array([1001], np.int32),  # 125 after three shifts, at 4 + 3 - 3 fraction bits; half a step is 0.5
        shift=np.full(1, 2, np.int8),
    )
    shortcut = Add("shortcut", (2, 2), 3, (0, 0), 3, None, -128, 127)
    return IntegerProgram(tensors, (first, second, shortcut), 0, (3,), 16)


# Tiles of tm 2, tn 2; in a tile: column, output, input. Codes of the first convolution, by output and input:
#   o0: -21 -20 | -19 -18 | -17 -16    o1: -1 0 | 1 2 | 3 4    o2: 19 20 | 21 22 | 23 24   (columns 0 1)
FIRST = [
    *(-21, -19, -1, 1, -20, -18, 0, 2),  # outputs 0 1, inputs 0 1: column 0, then column 1
    *(-17, 3, -16, 4),  # outputs 0 1, input 2: not padded
    *(19, 21, 20, 22),  # output 2, inputs 0 1
    *(23, 24),  # output 2, input 2
]
SECOND = [-8, 0, 7]  # one output: inputs 0 1, then input 2


@pytest.mark.parametrize(("bits", "form"), [(8, "b"), (16, "h")])
def test_files_are_the_bytes_worked_out_by_hand(tmp_path: Path, bits: int, form: str) -> None:
    files = write_seed_v1(_program(), tmp_path, stem="net", tm=2, tn=2, bits=bits)
    read = {suffix: (tmp_path / f"net_{suffix}.bin").read_bytes() for suffix in SUFFIXES}
    assert len(list(tmp_path.iterdir())) == 6
    assert read["weights"] == struct.pack(f"<21{form}", *FIRST, *SECOND)
    # 1001 = 125.125 * 8: eight bits lose three of the seven fraction bits, sixteen lose none.
    last, frac = (125, 4) if bits == 8 else (1001, 7)
    assert read["bias"] == struct.pack(f"<4{form}", 5, -128, 100, last)
    assert read["w_scale"] == struct.pack("<2i", 6, 3)
    assert read["a_scale"] == struct.pack("<3i", 7, 4, 5)
    assert read["b_scale"] == struct.pack("<2i", 13, frac)
    assert read["s_scale"] == struct.pack("<i", 3)
    notes = " ".join(files.notes)
    # The lost 1 of the accumulator is a quarter of an output step: 2^-2.
    assert ("rounded to 8 bits, by up to 0.25 steps of the output (second)" in notes) == (bits == 8)
    assert "slope" not in notes


def test_int8_golden_as_hex() -> None:
    """The same as above, independent of struct: what a hex viewer shows."""
    contents = seed_files(_program(), stem="net", tm=2, tn=2).contents
    assert contents["net_weights.bin"].hex() == "ebedff01ecee0002" + "ef03f004" + "13151416" + "1718" + "f80007"
    assert contents["net_bias.bin"].hex() == "0580647d"
    assert contents["net_a_scale.bin"].hex() == "07000000" + "04000000" + "05000000"
    assert contents["net_b_scale.bin"].hex() == "0d000000" + "04000000"


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)),
    tm=st.integers(1, 10),
    tn=st.integers(1, 10),
)
def test_ragged_tiles_hold_every_code_once_at_its_place(shape: tuple[int, int, int, int], tm: int, tn: int) -> None:
    """Against the address formula of the format: whole tiles before, then the position inside a smaller tile."""
    weight = np.arange(np.prod(shape)).reshape(shape)
    out, inp, kh, kw = shape
    flat = tile_ragged(weight, tm, tn)
    assert flat.size == weight.size
    for (o, i, y, x), value in np.ndenumerate(weight):
        rows, columns = min(tm, out - o // tm * tm), min(tn, inp - i // tn * tn)
        before = o // tm * tm * inp * kh * kw + i // tn * tn * rows * kh * kw
        assert flat[before + ((y * kw + x) * rows + o % tm) * columns + i % tn] == value


@pytest.mark.parametrize(
    ("bias", "expected", "frac"),
    [
        ([127, -128], [127, -128], 10),
        ([128, 0], [64, 0], 9),
        ([-129], [-64], 9),  # -64.5 to even
        ([255], [64], 8),  # 127.5 rounds to 128, which does not fit: one bit more, 63.75
        ([-(1 << 31)], [-128], 10 - 24),
        ([0], [0], 10),
    ],
)
def test_biases_keep_as_many_fraction_bits_as_fit(bias: list[int], expected: list[int], frac: int) -> None:
    codes, found = fit_bias(np.array(bias, np.int32), 10, 8)
    assert (codes.tolist(), found) == (expected, frac)


def test_everything_that_cannot_be_expressed_is_listed() -> None:
    with pytest.raises(UnsupportedError) as caught:
        seed_files(small_program(), stem="net")
    message = str(caught.value)
    for fragment in ("per output channel (stem, depthwise, ", "lookup tables (swish)"):
        assert fragment in message


def test_what_the_files_do_not_say_is_said_to_the_user() -> None:
    program = small_program(per_channel=False)
    concat = program.ops[3]
    assert isinstance(concat, Concat)
    rest = tuple(op for op in program.ops[4:] if not isinstance(op, Lookup))
    program = replace(program, ops=(*program.ops[:3], replace(concat, shifts=(1, 0)), *rest))
    files = seed_files(program, stem="net", bits=16)
    notes = " ".join(files.notes)
    assert "unsigned (1 tensors, t0 first)" in notes
    assert "slopes; this model has 13/128" in notes
    assert "concat brings its inputs (4, 4) to 4" in notes
    assert "biases" not in notes
    # stem 5 x 3 x 9, depthwise 5 x 9, pointwise 4 x 10; one shortcut; the input and three outputs.
    assert len(files.contents["net_weights.bin"]) == 2 * (135 + 45 + 40)
    assert len(files.contents["net_a_scale.bin"]) == 4 * 4
    assert len(files.contents["net_s_scale.bin"]) == 4


@pytest.mark.parametrize("stem", ["", "../net", "a/b", ".hidden", "a b", "x" * 200])
def test_a_stem_that_is_no_plain_file_name_is_refused(stem: str) -> None:
    with pytest.raises(InputError, match="beginning of a file name"):
        seed_files(_program(), stem=stem)


def test_impossible_geometry_is_refused() -> None:
    for arguments in ({"bits": 4}, {"tm": 0}, {"tn": -1}):
        with pytest.raises(InputError, match="geometry"):
            seed_files(_program(), stem="net", **arguments)
