"""Target profiles: the shipped files, what a mistake in a file gets, and what a program may need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_programs import small_program

from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.profile import OPERATORS, accumulator_bits, check_program, list_boards, load_profile, parse_profile
from edgeyolo.program import Conv

GENERIC = Path(__file__).parents[1] / "targets" / "fpga" / "generic.toml"


def test_every_shipped_profile_loads_and_is_named_after_its_file() -> None:
    boards = list_boards()["fpga"]
    assert {"generic", "zynq-7020", "zu3eg", "artix-7-100t"} <= set(boards)
    for board in boards:
        profile = load_profile("fpga", board)
        assert profile.name == board
        # No design uses more multipliers at once than the tile has products.
        assert profile.tm * profile.tn <= profile.dsps


def test_the_default_board_is_generic_and_allows_everything() -> None:
    profile = load_profile("fpga")
    assert profile.name == "generic"
    assert set(profile.operators) == set(OPERATORS)
    check_program(small_program(), profile)


def test_a_board_of_ones_own_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GENERIC.read_text().replace('name = "generic"', 'name = "mine"').replace("tm = 16", "tm = 32"))
    profile = load_profile("fpga", str(path))
    assert (profile.name, profile.tm) == ("mine", 32)


def test_unknown_targets_and_boards_list_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="zynq-7020"):
        load_profile("fpga", "zynq7020")
    with pytest.raises(InputError, match="fpga"):
        load_profile("../fpga")
    with pytest.raises(InputError, match="cannot be read"):
        load_profile("fpga", str(tmp_path / "absent.toml"))


def test_all_mistakes_are_listed_at_once() -> None:
    text = GENERIC.read_text().replace("tm = 16", 'tm = "16"').replace("dsps = 512\n", "").replace("tn =", "tnn =")
    text = text.replace("weight_bits = [2,", "weight_bits = [true,").replace('layout = "oihw"', 'layout = "hwio"')
    text = text.replace("alignment = 64", "alignment = 48").replace('"MaxPool"', '"Maxpool"')
    with pytest.raises(InputError) as caught:
        parse_profile(text, "mine.toml")
    message = str(caught.value)
    for fragment in (
        "unknown key 'tnn'",
        "missing key 'tn'",
        "missing key 'dsps'",
        "tm must be int",
        "weight_bits must",
    ):
        assert fragment in message
    for fragment in ("layout = 'hwio'", "alignment = 48", "operators = "):
        assert fragment in message


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("granularity = [", "granularity = [] #"),
        ("activation_bits = [2, 3", "activation_bits = [1, 3"),
        ("word_bits = 64", "word_bits = 20"),
        ("tm = 16", "tm = 0"),
        ("clock_mhz = 100", "clock_mhz = 100.0"),
        ("max_shift = 31", "max_shift = 32"),
        ('endianness = "little"', 'endianness = "middle"'),
        ("dsps = 512", "dsps = 512\ndsps = 513"),
    ],
)
def test_a_single_bad_value_is_refused(before: str, after: str) -> None:
    text = GENERIC.read_text()
    assert before in text
    with pytest.raises(InputError):
        parse_profile(text.replace(before, after), "mine.toml")


def test_oversized_and_binary_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.toml"
    path.write_text("#" * 70_000)
    with pytest.raises(InputError, match="too large"):
        load_profile("fpga", str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        load_profile("fpga", str(path))


def test_everything_a_board_lacks_is_listed() -> None:
    generic = load_profile("fpga")
    poor = replace(
        generic,
        operators=("Conv", "MaxPool", "Concat", "Slice", "Reshape", "Lookup", "Upsample"),
        weight_bits=(4,),
        activation_bits=(4,),
        granularity=("per-tensor",),
        max_shift=0,
        bias_bits=8,
        accumulator_bits=12,
    )
    with pytest.raises(UnsupportedError) as caught:
        check_program(small_program(), poor)
    message = str(caught.value)
    expected = ["8 bit activations (t0, t1, ", "operator Add (add)", "8 bit weights (depthwise)", "a shift of 9 (stem"]
    expected += ["exponent per output channel (stem, depthwise, ", "beyond 8 bits (stem", "an accumulator of 1"]
    for fragment in expected:
        assert fragment in message


def test_accumulator_width_is_the_smallest_that_cannot_overflow() -> None:
    program = small_program()
    op = program.ops[0]
    assert isinstance(op, Conv)
    # 2 * 255 + 1 = 511 needs ten bits with its sign, 512 would need eleven.
    tiny = replace(op, weight=np.full((1, 1, 1, 2), -1, np.int8), bias=np.array([1], np.int32))
    assert accumulator_bits(tiny, program) == 10
    assert accumulator_bits(replace(tiny, bias=np.array([-2], np.int32)), program) == 11
