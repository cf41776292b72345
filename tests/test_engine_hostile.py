"""The C engine against damaged images and wrong calls: it refuses with the right status, as the decoder does."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_programs import random_program

from edgeyolo.errors import BundleError
from edgeyolo.program import IntegerProgram, MaxPool, Reshape, Tensor
from edgeyolo.program_image import _encode, decode_program, encode_program
from edgeyolo.qtype import QType

ENGINE = Path(__file__).resolve().parents[1] / "targets" / "engine"
FUZZ = Path(__file__).with_name("engine_fuzz.c")
SANITIZE = ["-O1", "-g", "-std=c99", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
OK, BAD_ARGUMENT, BAD_IMAGE, BAD_VERSION, BAD_CRC, BAD_TENSOR, BAD_OP, BAD_PLAN, TOO_SMALL, BAD_CODE, NOT_READY = range(
    11
)
CRC_END, HEADER, TENSOR, OP = 16, 48, 36, 128
FUZZ_CASES = 2000
ENCODING_ONLY = ("canonical", "UTF-8", "names do not fill", "padding bits")
"""Rules that say how an image is written, not what it means; the engine needs none of them."""

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def units() -> list[str]:
    programs = ("selftest.c", "bench.c", "host.c")
    return [str(path) for path in sorted(ENGINE.glob("*.c")) if path.name not in programs]


class Library:
    """The engine as a shared library; the model is opaque memory, larger than any ``ey_model``."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.ey_load.argtypes = [
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.c_size_t,
        ]
        self.library.ey_set_input.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        self.library.ey_infer.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        self.library.ey_get_output.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p]
        self.model = ctypes.create_string_buffer(512)

    def __getattr__(self, name: str) -> Any:
        """``library.load(...)`` is ``ey_load(model, ...)``."""
        function = getattr(self.library, f"ey_{name}")
        return lambda *arguments: function(self.model, *arguments)

    def judge(self, image: bytes) -> int:
        """The status of an image without an arena; ``TOO_SMALL`` means that it is accepted."""
        status: int = self.load(image, len(image), None, 0)
        return status

    def arena_bytes(self) -> int:
        """The third field of ``ey_model``."""
        return int(ctypes.cast(self.model, ctypes.POINTER(ctypes.c_size_t))[2])


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    path = tmp_path_factory.mktemp("library") / "engine.so"
    subprocess.run(["cc", "-O2", "-std=c99", "-shared", "-fPIC", "-o", str(path), *units()], check=True)
    return Library(path)


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "engine_fuzz"
    subprocess.run(["cc", *SANITIZE, f"-I{ENGINE}", "-o", str(path), str(FUZZ), *units()], check=True)
    return path


def resealed(data: bytes | bytearray) -> bytes:
    """The same bytes with a size and CRC that match."""
    data = bytearray(data)
    struct.pack_into("<I", data, 8, len(data))
    struct.pack_into("<I", data, 12, zlib.crc32(data[CRC_END:]))
    return bytes(data)


def pool() -> IntegerProgram:
    """A 2x2 maximum over a 4x4 map of signed bytes."""
    tensors = (Tensor("x", (1, 4, 4), QType(4), 0, 0), Tensor("y", (1, 2, 2), QType(4), 0, 16))
    return IntegerProgram(tensors, (MaxPool("p", 0, 1, (2, 2), (2, 2), (0, 0, 0, 0)),), 0, (1,), 20)


def tampered(offset: int, value: int) -> bytes:
    """The pool's image with one word replaced and the CRC made right."""
    data = bytearray(encode_program(pool()))
    struct.pack_into("<i", data, offset, value)
    return resealed(data)


def test_every_truncation_is_refused(library):
    data = encode_program(random_program(4)[0])
    assert library.judge(data) == TOO_SMALL
    assert {library.judge(data[:size]) for size in range(len(data))} == {BAD_IMAGE}
    repaired = {library.judge(resealed(data[:size])) for size in range(HEADER, len(data), 3)}
    assert repaired == {BAD_IMAGE}


def test_every_flipped_bit_is_refused_by_the_crc(library):
    data = encode_program(pool())
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        expected = {0: BAD_IMAGE, 1: BAD_VERSION, 2: BAD_IMAGE}.get(bit // 32, BAD_CRC)
        assert library.judge(bytes(flipped)) == expected


FIRST_OP = HEADER + 2 * TENSOR


@pytest.mark.parametrize(
    ("offset", "value", "status"),
    [
        (4, 2, BAD_VERSION),
        (16, 3, BAD_IMAGE),
        (16, 0, BAD_IMAGE),
        (24, 0, BAD_IMAGE),
        (24, 65, BAD_IMAGE),
        (28, 2, BAD_IMAGE),
        (32, 19, BAD_TENSOR),
        (32, -1, BAD_IMAGE),
        (36, 2, BAD_IMAGE),
        (40, -1, BAD_IMAGE),
        (44, 1, BAD_IMAGE),
        (HEADER, 0, BAD_TENSOR),
        (HEADER + 4, 32768, BAD_TENSOR),
        (HEADER + 12, 1, BAD_TENSOR),
        (HEADER + 12, 17, BAD_TENSOR),
        (HEADER + 16, 2, BAD_TENSOR),
        (HEADER + 20, 256, BAD_TENSOR),
        (HEADER + 24, 5, BAD_TENSOR),
        (HEADER + 24, 4, BAD_PLAN),
        (HEADER + 24, -1, BAD_TENSOR),
        (HEADER + 28, 1, BAD_PLAN),
        (HEADER + 32, 0, BAD_PLAN),
        (HEADER + 32, 3, BAD_TENSOR),
        (HEADER + TENSOR + 28, 0, BAD_PLAN),
        (HEADER + TENSOR + 32, 1, BAD_PLAN),
        (FIRST_OP, 0, BAD_OP),
        (FIRST_OP, 9, BAD_OP),
        (FIRST_OP + 4, 2, BAD_OP),
        (FIRST_OP + 8, 0, BAD_OP),
        (FIRST_OP + 8, 9, BAD_OP),
        (FIRST_OP + 12, 2, BAD_OP),
        (FIRST_OP + 12, 1, BAD_OP),
        (FIRST_OP + 16, 1, BAD_OP),
        (FIRST_OP + 44, 0, BAD_OP),
        (FIRST_OP + 44, 256, BAD_OP),
        (FIRST_OP + 52, 0, BAD_OP),
        (FIRST_OP + 60, 2, BAD_OP),
        (FIRST_OP + 60, -1, BAD_OP),
        (FIRST_OP + 76, 1, BAD_OP),
        (FIRST_OP + OP, 2, BAD_PLAN),
        (FIRST_OP + OP, 0, BAD_PLAN),
    ],
)
def test_a_field_out_of_range_has_its_status(offset, value, status, library):
    image = tampered(offset, value)
    assert library.judge(image) == status
    with pytest.raises(BundleError):
        decode_program(image, "tampered")


def wrong_programs() -> dict[str, tuple[int, IntegerProgram]]:
    """Programs that break a rule by more than one word, and the engine's status."""
    x, y, z = (Tensor(name, (1, 4, 4), QType(8), 0, 16 * i) for i, name in enumerate("xyz"))
    down = replace(y, shape=(1, 4, 2))

    def pooled(pads: tuple[int, int, int, int], strides: tuple[int, int], out: Tensor) -> IntegerProgram:
        return IntegerProgram((x, out), (MaxPool("p", 0, 1, (2, 2), strides, pads),), 0, (1,), 48)

    def chained(*ends: tuple[int, int]) -> IntegerProgram:
        return IntegerProgram((x, y, z), tuple(Reshape("r", a, b) for a, b in ends), 0, (2,), 48)

    return {
        "first row in the padding": (BAD_OP, pooled((2, 0, 0, 0), (2, 2), replace(y, shape=(1, 3, 2)))),
        "last row in the padding": (BAD_OP, pooled((0, 0, 2, 0), (2, 2), replace(y, shape=(1, 3, 2)))),
        "first column in the padding": (BAD_OP, pooled((0, 2, 0, 0), (1, 2), replace(y, shape=(1, 3, 3)))),
        "last column in the padding": (BAD_OP, pooled((0, 0, 0, 2), (1, 2), replace(y, shape=(1, 3, 3)))),
        "another type": (BAD_OP, pooled((0, 0, 1, 0), (1, 2), replace(down, qtype=QType(8, False)))),
        "another exponent": (BAD_OP, pooled((0, 0, 1, 0), (1, 2), replace(down, frac=1))),
        "read before written": (BAD_PLAN, chained((2, 1), (0, 2))),
        "read by its own operation": (BAD_PLAN, chained((1, 1), (0, 2))),
    }


@pytest.mark.parametrize("name", wrong_programs())
def test_a_program_that_breaks_a_rule_is_refused_by_both(name, library):
    status, program = wrong_programs()[name]
    image = _encode(program)
    assert library.judge(image) == status
    with pytest.raises(BundleError):
        decode_program(image, name)
    with pytest.raises(BundleError):
        encode_program(program)


def test_the_arena_must_be_as_large_and_aligned_as_stated(library):
    image = encode_program(pool())
    assert library.judge(image) == TOO_SMALL
    need = library.arena_bytes()
    arena = ctypes.create_string_buffer(need + 16)
    start = ctypes.addressof(arena) + -ctypes.addressof(arena) % 16
    assert library.load(image, len(image), start, need - 1) == TOO_SMALL
    assert library.load(image, len(image), start + 1, need) == BAD_ARGUMENT
    assert library.load(None, 0, start, need) == BAD_ARGUMENT
    assert library.load(image, len(image), start, need) == OK


def test_calls_in_the_wrong_order_or_with_wrong_arguments(library):
    image = encode_program(pool())
    library.judge(image)
    arena = (ctypes.c_uint32 * (library.arena_bytes() // 4 + 1))()
    codes, desc, result = np.arange(-8, 8, dtype=np.int8), ctypes.create_string_buffer(256), ctypes.c_void_p()

    def output(index: int = 0) -> int:
        return int(library.get_output(index, desc, ctypes.byref(result)))

    assert library.load(image[:-1], len(image) - 1, arena, ctypes.sizeof(arena)) == BAD_IMAGE
    assert [library.set_input(codes.ctypes.data, 16), library.infer(None, None), output()] == [NOT_READY] * 3
    assert library.load(image, len(image), arena, ctypes.sizeof(arena)) == OK
    assert [library.infer(None, None), output()] == [NOT_READY] * 2
    assert library.set_input(codes.ctypes.data, 15) == BAD_ARGUMENT
    assert library.set_input(None, 16) == BAD_ARGUMENT
    for code in (-9, 8):
        wrong = codes.copy()
        wrong[15] = code
        assert library.set_input(wrong.ctypes.data, 16) == BAD_CODE
    assert library.set_input(codes.ctypes.data, 16) == OK
    assert output() == NOT_READY
    assert library.infer(None, None) == OK
    assert output(1) == BAD_ARGUMENT
    assert library.get_output(0, None, None) == BAD_ARGUMENT
    assert output() == OK
    assert list(ctypes.string_at(result.value or 0, 4)) == [253, 255, 5, 7]
    assert library.infer(None, None) == NOT_READY


def mutants(seed: int, count: int) -> Iterator[bytes]:
    """Images with one to three changed words under a correct CRC."""
    rng = np.random.default_rng(seed)
    original = encode_program(random_program(seed, ops=5, size=6)[0])
    for _ in range(count):
        data = bytearray(original)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(CRC_END // 4, len(data) // 4)) * 4
            word = int.from_bytes(data[at : at + 4], "little")
            word = int(rng.choice([0, 1, 2, 16, 255, 32768, 0x7FFFFFFF, 0xFFFFFFFF, word ^ 1, (word + 1) & 0xFFFFFFFF]))
            data[at : at + 4] = word.to_bytes(4, "little")
        yield resealed(data)


@pytest.mark.parametrize("seed", range(4))
def test_engine_and_decoder_accept_the_same_images(seed, library):
    accepted = 0
    for image in mutants(seed, 400):
        status = library.judge(image)
        try:
            decode_program(image, "mutant")
        except BundleError as error:
            known = any(rule in error.what for rule in ENCODING_ONLY)
            assert status != TOO_SMALL or known, f"only the decoder refuses: {error}"
        else:
            accepted += 1
            assert status == TOO_SMALL, f"only the engine refuses: status {status}"
    assert accepted > 0


@pytest.mark.parametrize("seed", range(4))
def test_damaged_images_never_leave_their_bounds(seed, fuzzer, tmp_path):
    """Seeded bit flips, odd words and cuts, half of them under a correct CRC, in a build with sanitizers."""
    image = tmp_path / "program.bin"
    image.write_bytes(encode_program(random_program(seed + 20, ops=12, size=7)[0]))
    done = subprocess.run(
        [str(fuzzer), str(image), str(seed), str(FUZZ_CASES)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    words = done.stdout.split()
    counts = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    assert sum(counts.values()) == FUZZ_CASES
    assert min(counts.values()) > 0
