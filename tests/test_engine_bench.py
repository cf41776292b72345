"""``targets/engine/bench.c``: its timings, its check against golden data, and what it refuses; all under sanitizers."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_programs import Codes, execute, random_program
from test_engine import ENGINE, make_bundle

from edgeyolo.program import IntegerProgram, Tensor
from edgeyolo.program_image import encode_program

PAGE = ENGINE.parents[1] / "docs" / "phone-native.md"
TOOLS = ("cc", "make")
SANITIZE = "-O1 -g -std=c99 -Wall -Wextra -Wconversion -Werror -fsanitize=address,undefined -fno-sanitize-recover=all"
QUICK = ("--seconds", "0", "--warmup", "0", "--frames", "3")
NANOSECOND = 1e-6
"""In milliseconds: what is printed is rounded to it."""

pytestmark = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="there is no C compiler or no make")


def make(folder: Path, target: str, *options: str) -> Path:
    """Build a target in a copy of the engine's folder."""
    shutil.copytree(ENGINE, folder, ignore=shutil.ignore_patterns("selftest", "bench", "bench-*", "__pycache__"))
    subprocess.run(["make", "-s", "-C", str(folder), target, *options], check=True, timeout=300)
    return folder / target


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("bench") / "engine", "bench", f"CFLAGS={SANITIZE}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle's program and golden data of one picture; the input has one byte a code."""
    make_bundle(tmp_path, *_case(7))
    return tmp_path


def _case(seed: int) -> tuple[IntegerProgram, list[Codes]]:
    program, codes = random_program(seed)
    return program, [codes]


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120, check=False)


def measured(*command: object) -> dict[str, Any]:
    """The JSON of a run that must succeed."""
    done = run(*command, "--json")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (line,) = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def made_up(tensor: Tensor) -> Codes:
    """The picture that bench.c makes up."""
    x, count, codes = 1, int(np.prod(tensor.shape)), []
    for _ in range(count):
        x = (x * 1664525 + 1013904223) % 2**32
        codes.append(tensor.qtype.lo + (x >> 16) % (tensor.qtype.hi - tensor.qtype.lo + 1))
    return np.array(codes, tensor.qtype.dtype).reshape(tensor.shape)


def outputs_crc(program: IntegerProgram, codes: Codes) -> str:
    """What plain integers give for the outputs."""
    by_tensor = dict(zip((op.output for op in program.ops), execute(program, codes), strict=True))
    outputs = [by_tensor.get(index, codes) for index in program.outputs]
    return f"{zlib.crc32(b''.join(o.astype(o.dtype.newbyteorder('<')).tobytes() for o in outputs)):08x}"


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16"])
def test_a_made_up_picture_gives_the_outputs_of_plain_integers(kind: str, bench: Path, tmp_path: Path) -> None:
    cases = (random_program(seed)[0] for seed in range(100))
    program = next(p for p in cases if p.tensors[p.input].qtype.dtype == np.dtype(kind))
    image = encode_program(program)
    (tmp_path / "program.bin").write_bytes(image)
    found = measured(bench, tmp_path / "program.bin", *QUICK)
    assert found["outputs_crc32"] == outputs_crc(program, made_up(program.tensors[program.input]))
    assert (found["image_bytes"], found["image_crc32"]) == (len(image), f"{zlib.crc32(image):08x}")
    assert found["operations"] == len(program.ops) and found["arena_bytes"] >= program.arena_bytes
    assert found["golden_elements"] is None and found["cpu"] is None


def test_the_figures_are_those_of_the_times(bench: Path, folder: Path) -> None:
    found = measured(bench, folder / "program.bin", "--frames", 40, "--seconds", "0.1", "--warmup", "0.5")
    page = PAGE.read_text("utf-8")
    assert [key for key in found if f"`{key}`" not in page] == [], "not documented"
    times = np.array(found["infer_ms"])
    assert len(times) == found["frames"] >= 40 and times.min() > 0
    assert type(found["settled"]) is bool
    assert found["load_ms"] > 0 and found["first_ms"] > 0
    figures = found["ms"]["infer"]
    p50, p90, p99 = np.percentile(times, (50, 90, 99))
    expected = {"mean": times.mean(), "min": times.min(), "p50": p50, "p90": p90, "p99": p99, "jitter": p99 - p50}
    assert figures == pytest.approx(expected, rel=0, abs=2 * NANOSECOND)


def test_seconds_and_frames_are_both_lower_bounds(bench: Path, folder: Path) -> None:
    found = measured(bench, folder / "program.bin", "--frames", 1, "--seconds", "0.2", "--warmup", 0)
    assert found["frames"] > 1
    assert measured(bench, folder / "program.bin", *QUICK)["frames"] == 3


def test_every_layer_of_a_golden_picture_is_compared(bench: Path, folder: Path) -> None:
    program, (codes,) = _case(7)
    golden = folder / "golden" / "000"
    elements = sum(int(np.prod(program.tensors[op.output].shape)) for op in program.ops)
    found = measured(bench, folder / "program.bin", golden, *QUICK)
    assert found["golden_elements"] == elements
    assert (
        found["outputs_crc32"]
        == outputs_crc(program, codes)
        != outputs_crc(program, made_up(program.tensors[program.input]))
    )
    text = run(bench, folder / "program.bin", golden, *QUICK).stdout
    assert f"{elements} elements, 0 differ" in text and found["outputs_crc32"] in text and "p50" in text

    layer = golden / f"{len(program.ops) - 1:03d}.bin"
    layer.write_bytes(layer.read_bytes()[:-1] + bytes([layer.read_bytes()[-1] ^ 1]))
    for option in ((), ("--json",)):
        done = run(bench, folder / "program.bin", golden, *QUICK, *option)
        assert done.returncode == 1, done.stderr
        assert f"{layer} differs: operation {len(program.ops) - 1}" in done.stdout and "p50" not in done.stdout


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (Path.unlink, "cannot read"),
        (_folder, "cannot read"),
        (lambda path: path.write_bytes(b""), "refused"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "not all of one"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "not a program image"),
        (_flip, "damaged"),
    ],
)
def test_a_damaged_image_is_refused(spoil: Callable[[Path], Any], said: str, bench: Path, folder: Path) -> None:
    spoil(folder / "program.bin")
    refused(said, bench, folder / "program.bin", *QUICK)


@pytest.mark.parametrize("name", ["input.bin", "001.bin"])
@pytest.mark.parametrize("size", [None, 0, -1, 1 << 20])
def test_golden_data_of_another_size_is_refused(name: str, size: int | None, bench: Path, folder: Path) -> None:
    path = folder / "golden" / "000" / name
    data = path.read_bytes()
    path.unlink()
    if size is not None:
        path.write_bytes(data[:size] if size <= 0 else bytes(size))
    said = "cannot read" if size is None else "wrong size" if name == "001.bin" else "not the codes"
    refused(said, bench, folder / "program.bin", folder / "golden" / "000", *QUICK)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "usage"),
        (("p", "--frames", "0"), "--frames: not a number from 1 to"),
        (("p", "--frames", "1e9"), "--frames"),
        (("p", "--seconds", "nan"), "--seconds: not a number from 0 to 3600: nan"),
        (("p", "--warmup", "-1"), "--warmup"),
        (("p", "--seconds", "1x"), "--seconds"),
        (("p", "--seconds"), "--seconds"),
        (("p", "--cpu", "1024"), "--cpu"),
        (("p", "--cpu", "1023"), "does not let it run on processor: 1023"),
        (("p", "--threads", "2"), "unknown option: --threads"),
        (("p", "g", "h"), "one argument too many: h"),
        (("p", "g" * 5000), "cannot read: p"),
        (("--json",), "usage"),
    ],
)
def test_a_wrong_command_line_is_refused(words: tuple[str, ...], said: str, bench: Path) -> None:
    refused(said, bench, *words)


def test_a_path_that_is_too_long_is_refused(bench: Path, folder: Path) -> None:
    refused("too long", bench, folder / "program.bin", "g" * 5000)


def refused(said: str, *command: object) -> None:
    """It must end with 2, say why and print no results; a sanitizer that finds something ends it otherwise."""
    done = run(*command)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert said in done.stderr and len(done.stderr.splitlines()) == 1


def test_it_runs_on_the_processor_that_was_asked_for(bench: Path, folder: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    assert measured(bench, folder / "program.bin", "--cpu", cpu, *QUICK)["cpu"] == cpu


def test_a_static_program_for_aarch64_gives_the_same_outputs(tmp_path: Path) -> None:
    for tool in ("aarch64-linux-gnu-gcc", "qemu-aarch64-static"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    program, pictures = _case(7)
    make_bundle(tmp_path / "bundle", program, pictures)
    executable = make(tmp_path / "engine", "bench-aarch64")
    assert interpreter(executable.read_bytes()) is None, "Android has no GNU dynamic linker"
    command = ("qemu-aarch64-static", executable, tmp_path / "bundle" / "program.bin")
    found = measured(*command, *QUICK)
    assert found["outputs_crc32"] == outputs_crc(program, made_up(program.tensors[program.input]))
    assert found["system"].endswith("aarch64")
    done = run(*command, tmp_path / "bundle" / "golden" / "000", *QUICK)
    assert done.returncode == 0 and "elements, 0 differ" in done.stdout


def interpreter(elf: bytes) -> bytes | None:
    """What a 64-bit ELF file asks to be loaded by; None for a static one."""
    (table,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<2H", elf, 54)
    for entry in range(table, table + size * count, size):
        kind, _, offset, _, _, length = struct.unpack_from("<2I4Q", elf, entry)
        if kind == 3:
            return elf[offset : offset + length]
    return None
