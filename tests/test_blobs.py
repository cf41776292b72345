"""Weight images: bytes worked out by hand, equal bytes in every format, and refusal of everything damaged."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_programs import SHA, conv, small_program

from edgeyolo.errors import BundleError, InputError, UnsupportedError
from edgeyolo.lower.blob_index import BlobIndex
from edgeyolo.lower.blobs import INDEX_FILE, read_blobs, write_blobs
from edgeyolo.packing import LAYOUTS
from edgeyolo.profile import TargetProfile, load_profile
from edgeyolo.program import Conv, IntegerProgram, Lookup, Tensor
from edgeyolo.qtype import QType

ALL = ("bin", "mem", "coe", "h")


@pytest.fixture(scope="module")
def profile() -> TargetProfile:
    return replace(load_profile("fpga"), tm=2, tn=2, alignment=8, word_bits=32, accumulator_bits=40)


def _write(folder: Path, profile: TargetProfile, layout: str = "tiled", formats: tuple[str, ...] = ALL) -> BlobIndex:
    return write_blobs(small_program(), folder, layout=layout, profile=profile, formats=formats, source_sha256=SHA)


def _two_convs() -> IntegerProgram:
    """3 outputs of 1 input, then 1 of 3, at 4 bits: small enough for a byte literal."""
    kind = QType(8)
    tensors = tuple(Tensor(f"t{i}", (c, 1, 1), kind, 4) for i, c in enumerate((1, 3, 1)))
    first = replace(
        conv("a", (0, 1), (3, 1, 1, 1)),
        weight=np.array([1, -2, 7], np.int8).reshape(3, 1, 1, 1),
        bias=np.array([1, -1, 256], np.int32),
        shift=np.array([3, 4, -1], np.int8),
    )
    second = replace(
        conv("b", (1, 2), (1, 3, 1, 1)),
        weight=np.array([-8, 0, 5], np.int8).reshape(1, 3, 1, 1),
        bias=np.array([-(1 << 31)], np.int32),
        shift=np.array([7], np.int8),
    )
    return IntegerProgram(tensors, (first, second), 0, (2,), 5)


GOLDEN = {
    # layout oihw: 1 -2 7 in nibbles, to the next multiple of 4, then -8 0 5; the image ends on a word of 4 bytes.
    ("oihw", "weights.bin"): "e1070000 08050000",
    # layout tiled with tm 2, tn 2: tiles of outputs 0 1 and of output 2; then inputs 0 1 and input 2 of one output.
    ("tiled", "weights.bin"): "010e0700 08000500",
    ("oihw", "bias.bin"): "01000000 ffffffff 00010000 00000080",
    ("oihw", "shift.bin"): "0304ff00 07000000",
    ("oihw", "weights.mem"): "000007e1 00000508",
    ("oihw", "shift.mem"): "00ff0403 00000007",
}


@pytest.mark.parametrize(("layout", "name"), GOLDEN)
def test_images_are_the_bytes_worked_out_by_hand(
    tmp_path: Path, profile: TargetProfile, layout: str, name: str
) -> None:
    board = replace(profile, alignment=4)
    write_blobs(_two_convs(), tmp_path, layout=layout, profile=board, formats=ALL, source_sha256=SHA)
    data = (tmp_path / name).read_bytes()
    if name.endswith(".mem"):
        assert [line for line in data.decode().splitlines() if line[0] not in "/@"] == GOLDEN[layout, name].split()
    else:
        assert data.hex() == GOLDEN[layout, name].replace(" ", "")


def test_a_big_endian_word_starts_with_the_first_byte(tmp_path: Path, profile: TargetProfile) -> None:
    board = replace(profile, alignment=4, endianness="big")
    index = write_blobs(_two_convs(), tmp_path, layout="oihw", profile=board, formats=ALL, source_sha256=SHA)
    assert (tmp_path / "weights.mem").read_text().splitlines()[-2:] == ["e1070000", "08050000"]
    assert (tmp_path / "weights.bin").read_bytes().hex() == "e107000008050000"
    read_blobs(tmp_path, index, _two_convs())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_come_back_from_every_layout(tmp_path: Path, profile: TargetProfile, layout: str) -> None:
    program = small_program(bits=3)
    index = write_blobs(program, tmp_path, layout=layout, profile=profile, formats=ALL, source_sha256=SHA)
    assert BlobIndex.from_json((tmp_path / INDEX_FILE).read_text()) == index
    codes = read_blobs(tmp_path, index, program)
    convs = {i: op for i, op in enumerate(program.ops) if isinstance(op, Conv)}
    assert codes.convs.keys() == convs.keys()
    for i, op in convs.items():
        found = codes.convs[i]
        assert found.weight.dtype == np.int8
        assert np.array_equal(found.weight, op.weight)
        assert np.array_equal(found.bias, op.bias)
        assert np.array_equal(found.shift, op.shift)
    tables = {i: op.table for i, op in enumerate(program.ops) if isinstance(op, Lookup)}
    assert codes.tables.keys() == tables.keys()
    assert all(np.array_equal(codes.tables[i], tables[i]) for i in tables)


@pytest.mark.parametrize(("word_bits", "endianness"), [(8, "little"), (32, "big"), (64, "little"), (512, "little")])
def test_mem_and_coe_carry_the_bytes_of_bin(
    tmp_path: Path, profile: TargetProfile, word_bits: int, endianness: str
) -> None:
    """Parsed here from the formats' own rules, not with the package's parsers."""
    index = _write(tmp_path, replace(profile, word_bits=word_bits, endianness=endianness))
    for image, size in zip(("weights", "bias", "shift", "table"), index.image_bytes, strict=True):
        expected = (tmp_path / f"{image}.bin").read_bytes()
        assert len(expected) == size
        mem = re.sub(r"//.*", "", (tmp_path / f"{image}.mem").read_text()).split()
        assert mem[0] == "@0"
        coe = re.sub(r"(?m)^;.*", "", (tmp_path / f"{image}.coe").read_text())
        keys = dict(part.split("=") for part in coe.replace("\n", "").rstrip(";").split(";"))
        assert keys["memory_initialization_radix"] == "16"
        for words in (mem[1:], keys["memory_initialization_vector"].split(",")):
            assert all(len(word) == word_bits // 4 for word in words)
            assert b"".join(int(word, 16).to_bytes(word_bits // 8, endianness) for word in words) == expected


def test_index_states_offsets_sizes_and_exponents(tmp_path: Path, profile: TargetProfile) -> None:
    index = _write(tmp_path, profile)
    stem, depthwise, pointwise = index.convs
    assert (stem.name, stem.op, stem.shape, stem.bits, stem.tiles) == ("stem", 0, (5, 3, 3, 3), 4, (3, 2))
    assert stem.weights.nbytes == 3 * 2 * 9 * 2 * 2 // 2  # tiles, 4 bit codes
    assert depthwise.weights.nbytes == 3 * 1 * 9 * 2 * 2  # 8 bit, tn of one input channel padded to two
    assert depthwise.weights.offset == 112  # 108 rounded up to the alignment
    assert (stem.input_frac, stem.output_frac, depthwise.input_frac) == (8, 4, 4)
    assert stem.weight_frac == (3, 4, 5, 3, 4)
    assert [entry.entries for entry in index.tables] == [256]
    for conv_blob in (stem, depthwise, pointwise):
        for section in (conv_blob.weights, conv_blob.bias, conv_blob.shift):
            assert section.offset % 8 == 0


def test_the_same_program_gives_the_same_files(tmp_path: Path, profile: TargetProfile) -> None:
    for name in ("a", "b"):
        _write(tmp_path / name, profile)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) > 12
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_only_the_formats_asked_for_are_written(tmp_path: Path, profile: TargetProfile) -> None:
    index = _write(tmp_path, profile, formats=("coe",))
    assert {p.suffix for p in tmp_path.iterdir()} == {".coe", ".json"}
    assert set(read_blobs(tmp_path, index, small_program()).convs) == {0, 1, 4}
    with pytest.raises(InputError, match="unknown format"):
        _write(tmp_path, profile, formats=("bin", "hex"))
    with pytest.raises(InputError, match="unknown weight layout"):
        _write(tmp_path, profile, layout="hwio")


def test_what_the_profile_forbids_is_refused_before_anything_is_written(tmp_path: Path, profile: TargetProfile) -> None:
    with pytest.raises(UnsupportedError, match="8 bit weights"):
        _write(tmp_path / "new", replace(profile, weight_bits=(4,)))
    assert not (tmp_path / "new").exists()


def test_a_program_without_convolutions_is_refused(tmp_path: Path, profile: TargetProfile) -> None:
    program = replace(small_program(), ops=small_program().ops[6:7])
    with pytest.raises(UnsupportedError, match="no convolution"):
        write_blobs(program, tmp_path, layout="oihw", profile=profile, formats=("bin",), source_sha256=SHA)


@pytest.mark.skipif(not Path("/dev/full").exists() or sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, profile: TargetProfile) -> None:
    (tmp_path / "shift.bin").symlink_to("/dev/full")
    with pytest.raises(InputError, match="cannot write"):
        _write(tmp_path, profile)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == []


def _flip(folder: Path, name: str, position: int, bit: int = 0) -> None:
    data = bytearray((folder / name).read_bytes())
    data[position] ^= 1 << bit
    (folder / name).write_bytes(data)


def test_damaged_images_are_refused(tmp_path: Path, profile: TargetProfile) -> None:
    program = small_program()
    index = _write(tmp_path, profile, formats=("bin",))
    gap = index.convs[0].weights.nbytes
    assert gap < index.convs[1].weights.offset
    filler = index.convs[1].weights.offset + 2  # 8 bit code of output 0 and the input channel that does not exist
    for name, position, message in [
        ("weights.bin", gap, "between two layers"),
        ("weights.bin", filler - 1, "filler"),
        ("shift.bin", index.image_bytes[2] - 1, "between two layers"),
    ]:
        _flip(tmp_path, name, position)
        with pytest.raises(BundleError, match=message):
            read_blobs(tmp_path, index, program)
        _flip(tmp_path, name, position)
    read_blobs(tmp_path, index, program)
    (tmp_path / "bias.bin").write_bytes((tmp_path / "bias.bin").read_bytes()[:-1])
    with pytest.raises(BundleError, match="wrong size"):
        read_blobs(tmp_path, index, program)
    (tmp_path / "bias.bin").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        read_blobs(tmp_path, index, program)


def test_formats_that_disagree_are_refused(tmp_path: Path, profile: TargetProfile) -> None:
    index = _write(tmp_path, profile)
    _flip(tmp_path, "weights.bin", 0)
    with pytest.raises(BundleError, match="disagree"):
        read_blobs(tmp_path, index, small_program())


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("weights.mem", "@0", "@1"),
        ("weights.mem", "\n", "\r\nzz\n"),
        ("weights.coe", "radix=16", "radix=10"),
        ("weights.coe", ";\n", "\n"),
        ("bias.coe", ",", " "),
        ("bias.mem", "0", "é"),
    ],
)
def test_malformed_text_images_are_refused(
    tmp_path: Path, profile: TargetProfile, name: str, before: str, after: str
) -> None:
    index = _write(tmp_path, profile)
    path = tmp_path / name
    lines = path.read_text().split("\n")
    tail = "\n".join(lines[2:])
    assert before in tail
    path.write_text("\n".join([*lines[:2], tail.replace(before, after)]), encoding="utf-8")
    with pytest.raises(BundleError):
        read_blobs(tmp_path, index, small_program())


def test_an_oversized_text_image_is_refused_by_its_size(tmp_path: Path, profile: TargetProfile) -> None:
    index = _write(tmp_path, profile)
    with (tmp_path / "weights.mem").open("a") as file:
        file.write("//" + " " * 10_000)
    with pytest.raises(BundleError, match="wrong size"):
        read_blobs(tmp_path, index, small_program())


def test_an_index_that_lies_is_refused(tmp_path: Path, profile: TargetProfile) -> None:
    index = _write(tmp_path, profile, formats=("bin",))
    text = index.to_json()
    for before, after in [
        ('"offset": 112', '"offset": 104'),
        ('"bits": 4', '"bits": 5'),
        ('"name": "stem"', '"name": "root"'),
        ('"layout": "tiled"', '"layout": "oihw"'),
        ('"alignment": 8', '"alignment": 4'),
    ]:
        assert before in text
        with pytest.raises(BundleError, match="does not fit"):
            read_blobs(tmp_path, BlobIndex.from_json(text.replace(before, after)), small_program())
    with pytest.raises(BundleError, match="does not fit"):
        read_blobs(tmp_path, index, small_program(bits=5))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"alignment": 8', '"alignment": 0'),
        ('"tm": 2', '"tm": 1000000000'),
        ('"word_bits": 32', '"word_bits": 12'),
        ('"tn": 2', '"tn": 2.5'),
        ('"version": 1', '"version": 2'),
        ('"endianness": "little"', '"endianness": "middle"'),
        ('"form"', '"from"'),
        ("{", "["),
        ('"shape": [', '"shape": 7, "x": ['),
    ],
)
def test_an_index_that_cannot_be_is_refused(tmp_path: Path, profile: TargetProfile, before: str, after: str) -> None:
    text = _write(tmp_path, profile).to_json()
    assert before in text
    with pytest.raises(BundleError):
        BlobIndex.from_json(text.replace(before, after))


def _mutate(value: object, rng: np.random.Generator) -> object:
    """One random place of a JSON value replaced by something else."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or rng.random() < 0.2:
        return [None, -1, 1 << 70, 1.5, "x", [], {}][rng.integers(7)]
    key = keys[rng.integers(len(keys))]
    value[key] = _mutate(value[key], rng)  # type: ignore[index]
    return value


def test_a_mutated_index_is_refused_with_our_own_error(tmp_path: Path, profile: TargetProfile) -> None:
    program = small_program()
    text = _write(tmp_path, profile, formats=("bin",)).to_json()
    rng = np.random.default_rng(0)
    for _ in range(300):
        with pytest.raises((BundleError, InputError)):
            read_blobs(tmp_path, BlobIndex.from_json(json.dumps(_mutate(json.loads(text), rng))), program)
