"""The C engine equals plain integer arithmetic, on this machine and on others; every comparison has tolerance 0."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_programs import Builder, Codes, execute, place, random_codes, random_program

from edgeyolo.errors import BundleError, InputError
from edgeyolo.program import Add, Concat, Conv, IntegerProgram, Tensor, op_inputs
from edgeyolo.program_image import encode_program
from edgeyolo.qtype import QType
from edgeyolo.runners.engine import EngineRunner, compile_engine

ENGINE = Path(__file__).resolve().parents[1] / "targets" / "engine"
STRICT = ("-O3", "-std=c99", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
SMALL_BLOCKS = ("-DEY_PLANE_BYTES=64", "-DEY_BLOCK_PIXELS=10")
SANITIZE = ("-O1", "-g", "-std=c99", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", *SMALL_BLOCKS)
CORTEX_M = ("-ffreestanding", "-mcpu=cortex-m4", "-mthumb", "-O2", *STRICT[1:])

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_engine(tmp_path_factory.mktemp("engine"), flags=STRICT)


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_engine(tmp_path_factory.mktemp("sanitized"), flags=SANITIZE)


def check(program: IntegerProgram, codes: Codes, executable: Path, emulator: tuple[str, ...] = ()) -> None:
    """Every layer and output that the engine computes is what plain integers give."""
    expected = execute(program, codes)
    with EngineRunner(encode_program(program), executable=executable, emulator=emulator) as runner:
        for index, (want, got) in enumerate(zip(expected, runner.layers(codes), strict=True)):
            assert got.dtype == want.dtype
            assert np.array_equal(got, want), f"operation {index}: {program.ops[index]}"
        by_tensor = {program.input: codes, **dict(zip((op.output for op in program.ops), expected, strict=True))}
        for index, got in zip(program.outputs, runner.run(codes), strict=True):
            assert np.array_equal(got, by_tensor[index])


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_equal_plain_integers(seed, engine):
    check(*random_program(seed), engine)


@pytest.mark.parametrize("seed", range(40, 60))
def test_random_programs_in_small_blocks_under_sanitizers(seed, sanitized):
    check(*random_program(seed), sanitized)


def single(op: Conv | Add | Concat, *tensors: Tensor) -> IntegerProgram:
    """A program of one operation that reads the first tensor."""
    return place(IntegerProgram(tensors, (op,), 0, (1,), 0))


def convolution(weight: Codes, shift: int, bias: int, bits: tuple[int, int], signed: bool = True) -> IntegerProgram:
    """A convolution with leaky slope 13/128 over a 5x6 map; ``bits`` of weights and activations."""
    out, channels, kernel, _ = weight.shape
    x = Tensor("x", (channels, 5, 6), QType(bits[1], signed), 0)
    y = Tensor("y", (out, 5, 6), QType(bits[1], signed), 0)
    many = np.full(out, shift)
    conv = Conv(
        "c", 0, 1, weight.astype(np.int8), QType(bits[0]), many.astype(np.int32), np.full(out, bias, np.int32),
        many.astype(np.int8), (1, 1), (kernel // 2,) * 4, (1, 1), 1, (13, 7), y.qtype.lo, y.qtype.hi,
    )  # fmt: skip
    return single(conv, x, y)


@pytest.mark.parametrize("weight", [-128, -127, -1, 1, 127])
@pytest.mark.parametrize(("act_bits", "signed"), [(8, True), (8, False), (16, True), (16, False)])
def test_constant_extreme_operands_do_not_overflow(weight, act_bits, signed, engine):
    """All inputs at one end of their range meet all weights at one end: sums in 16 and 32 bits reach their limits."""
    for kernel, channels in ((1, 9), (3, 4)):
        program = convolution(np.full((2, channels, kernel, kernel), weight), 13, -77, (8, act_bits), signed)
        tensor = program.tensors[0]
        for code in (tensor.qtype.lo, tensor.qtype.hi):
            check(program, np.full(tensor.shape, code, tensor.qtype.dtype), engine)


@pytest.mark.parametrize("scale", [4, 16, 31, 32, 33, 63, 64, 65, 100, 127])
def test_sums_of_eight_weights_around_the_16_bit_limit(scale, engine):
    """8 * 31 * 128 fits int16, 8 * 32 * 128 does not; pairs fit up to 127."""
    rng = np.random.default_rng(scale)
    weight = rng.choice((-scale, scale), (3, 8, 1, 1))
    weight[0] = scale
    program = convolution(weight, 9, 5, (8, 8))
    check(program, random_codes(rng, program.tensors[0]), engine)
    check(program, np.full((8, 5, 6), -128, np.int8), engine)


@pytest.mark.parametrize("shift", [-31, -8, -1, 0, 1, 2, 7, 24, 30, 31])
@pytest.mark.parametrize("bias", [0, (1 << 31) - 1 - 128, -(1 << 31) + 1 + 128])
def test_every_kind_of_shift_on_small_and_huge_accumulators(shift, bias, engine):
    program = convolution(np.array([[[[1]]], [[[-1]]]]), shift, bias, (2, 8))
    check(program, np.arange(-15, 15, dtype=np.int8).reshape(1, 5, 6), engine)


@pytest.mark.parametrize(("half", "rounded"), [(65, 32), (67, 34)])
def test_ties_round_to_even_where_32_bits_do_not_suffice(half, rounded, engine):
    """The accumulator half * 2**19 times 2**7 of the slope leaves 32 bits, so the general path shifts it by 20."""
    program = convolution(np.ones((1, 1, 1, 1)), 20, half << 19, (2, 8))
    codes = np.zeros((1, 5, 6), np.int8)
    check(program, codes, engine)
    with EngineRunner(encode_program(program), executable=engine) as runner:
        assert set(runner.run(codes)[0].ravel()) == {rounded}


@pytest.mark.parametrize("shift", [0, 1, 2, 4, -1])
def test_requantising_all_codes_rounds_half_to_even(shift, engine):
    x, y = Tensor("x", (1, 16, 16), QType(8), 0), Tensor("y", (1, 16, 16), QType(8), 0)
    program = single(Concat("c", (0,), 1, (shift,), -128, 127), x, y)
    codes = np.arange(-128, 128, dtype=np.int8).reshape(1, 16, 16)
    check(program, codes, engine)
    if shift == 1:
        with EngineRunner(encode_program(program), executable=engine) as runner:
            assert list(runner.run(codes)[0].ravel()[[129, 131, 133, 127, 125]]) == [0, 2, 2, 0, -2]


def test_adding_at_the_accumulators_limit(engine):
    x, y = Tensor("x", (1, 2, 2), QType(16), 0), Tensor("y", (1, 2, 2), QType(16), 0)
    program = single(Add("a", (0, 0), 1, (15, 14), 14, (1, 3), -32768, 32767), x, y)
    check(program, np.array([[[-32768, 32767], [-1, 1]]], np.int16), engine)
    with pytest.raises(BundleError, match="accumulator"):
        encode_program(single(Add("a", (0, 0), 1, (15, 15), 14, None, -32768, 32767), x, y))


def test_large_maps_and_many_channels_in_several_blocks(engine):
    """Big enough that the default block sizes split the rows of a dense, a strided and a depthwise convolution."""
    builder = Builder(5)
    builder.tensors = [Tensor("input", (70, 30, 80), QType(8), 0)]
    rng = builder.rng
    for groups, kernel, stride, out in ((1, 3, 1, 4), (4, 3, 1, 4), (1, 3, 2, 2)):
        x = builder.tensors[-1]
        shape = (out, (x.shape[1] - 1) // stride + 1, (x.shape[2] - 1) // stride + 1)
        weight = rng.integers(-127, 128, (out, x.shape[0] // groups, kernel, kernel)).astype(np.int8)
        shift = np.full(out, 12, np.int8)
        builder.tensors.append(Tensor(f"t{groups}{stride}", shape, QType(8), 0))
        builder.ops.append(
            Conv(
                "c", len(builder.tensors) - 2, len(builder.tensors) - 1, weight, QType(8), shift.astype(np.int32),
                np.zeros(out, np.int32), shift, (stride, stride), (1, 1, 1, 1), (1, 1), groups, None, -128, 127,
            )
        )  # fmt: skip
    program = place(IntegerProgram(tuple(builder.tensors), tuple(builder.ops), 0, (3,), 0))
    codes = random_codes(rng, program.tensors[0])
    with EngineRunner(encode_program(program), executable=engine) as runner:
        for index, got in enumerate(runner.layers(codes)):
            codes = windows_times_weights(program, codes, index)
            assert np.array_equal(got, codes)


def windows_times_weights(program: IntegerProgram, x: Codes, index: int) -> Codes:
    """A 3x3 convolution without slope in int64, tap by tap."""
    op, out = program.ops[index], program.tensors[program.ops[index].output]
    assert isinstance(op, Conv)
    padded = np.pad(x.astype(np.int64), ((0, 0), (1, 1), (1, 1)))
    acc, stride, per_group = np.zeros(out.shape, np.int64), op.strides[0], op.weight.shape[1]
    for o in range(out.shape[0]):
        base = o * op.groups // out.shape[0] * per_group
        for (i, ky, kx), w in np.ndenumerate(op.weight[o]):
            view = padded[base + i, ky : ky + x.shape[1] : stride, kx : kx + x.shape[2] : stride]
            acc[o] += int(w) * view
    exact = acc / 4096
    return np.clip(np.rint(exact), -128, 127).astype(np.int8)


def test_the_runner_compiles_the_installed_sources_and_times_every_operation():
    program, codes = random_program(1)
    with EngineRunner(encode_program(program)) as runner:
        folder = runner._path
        timing = runner.time(codes, 3)
        assert [got.shape for got in runner.run(codes)] == [program.tensors[i].shape for i in program.outputs]
    assert len(timing.per_op_ns) == len(program.ops)
    assert 0 < timing.min_ns <= timing.median_ns
    assert timing.arena_bytes > program.arena_bytes
    assert not folder.exists()


def test_what_the_runner_refuses(engine, tmp_path, monkeypatch):
    program, codes = random_program(1)
    image = encode_program(program)
    with pytest.raises(InputError, match="no C compiler"):
        EngineRunner(image, cc="a-compiler-nobody-has")
    with pytest.raises(InputError, match="sources are missing"):
        EngineRunner(image, tmp_path)
    (tmp_path / "broken.c").write_text("int main(void) { return ; }\n")
    with pytest.raises(InputError, match="does not compile"):
        EngineRunner(image, tmp_path, flags=("-Werror",))
    with pytest.raises(BundleError):
        EngineRunner(image[:-1], executable=engine)
    with EngineRunner(image, executable=engine) as runner, pytest.raises(InputError, match="do not fit"):
        runner.run(codes[:, 1:])


def test_input_codes_outside_the_inputs_range_are_refused(engine):
    program = convolution(np.ones((1, 1, 1, 1)), 0, 0, (2, 8))
    tensors = (replace(program.tensors[0], qtype=QType(4)), program.tensors[1])
    image = encode_program(replace(program, tensors=tensors))
    with EngineRunner(image, executable=engine) as runner:
        runner.run(np.full((1, 5, 6), 7, np.int8))
        with pytest.raises(InputError, match="not the codes"):
            runner.run(np.full((1, 5, 6), 8, np.int8))


@pytest.mark.parametrize(
    ("compiler", "emulator"),
    [("aarch64-linux-gnu-gcc", "qemu-aarch64-static"), ("arm-linux-gnueabihf-gcc", "qemu-arm-static")],
)
def test_the_same_integers_on_another_machine(compiler, emulator, tmp_path):
    for tool in (compiler, emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    executable = compile_engine(tmp_path, cc=compiler, flags=(*STRICT, "-static"))
    for seed in range(100, 112):
        check(*random_program(seed), executable, (emulator,))


def test_it_compiles_freestanding_for_a_microcontroller(tmp_path):
    compiler = "arm-none-eabi-gcc"
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    for source in sorted(ENGINE.glob("*.c")):
        if source.name not in ("selftest.c", "bench.c", "host.c"):
            target = str(tmp_path / f"{source.stem}.o")
            subprocess.run([compiler, *CORTEX_M, "-c", "-o", target, str(source)], check=True)
    symbols = subprocess.run(
        ["arm-none-eabi-nm", *map(str, tmp_path.glob("*.o"))], check=True, capture_output=True, text=True
    ).stdout.split("\n")
    missing = {line.split()[1] for line in symbols if line.strip().startswith("U ")}
    own = {line.split()[2] for line in symbols if len(line.split()) == 3}
    allowed = {"memcpy", "memset", "memmove"}
    assert {name for name in missing - own if not name.startswith("__aeabi_")} <= allowed
    assert not [line for line in symbols if len(line.split()) == 3 and line.split()[1] in "BDCbd"], "mutable globals"


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_it_compiles_without_a_warning(compiler, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    compile_engine(tmp_path, cc=compiler, flags=STRICT)


def make_bundle(folder: Path, program: IntegerProgram, pictures: list[Codes]) -> None:
    """The part of a bundle that the engine's Makefile works with."""
    shutil.copytree(ENGINE, folder / "engine", ignore=shutil.ignore_patterns("selftest", "__pycache__"))
    (folder / "program.bin").write_bytes(encode_program(program))
    for number, codes in enumerate(pictures):
        golden = folder / "golden" / f"{number:03d}"
        golden.mkdir(parents=True)
        layers = execute(program, codes)
        for name, array in (("input", codes), *((f"{i:03d}", layer) for i, layer in enumerate(layers))):
            (golden / f"{name}.bin").write_bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())
    (folder / "golden" / "index.txt").write_text(f"EYGOLD1 {len(pictures)} {len(program.ops)}\n")


def make_test(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-s", "-C", str(folder / "engine"), *options, "test"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_test_says_whether_this_machine_computes_the_model(tmp_path):
    program, codes = random_program(7)
    rng = np.random.default_rng(0)
    make_bundle(tmp_path, program, [codes, random_codes(rng, program.tensors[0])])
    elements = 2 * sum(int(np.prod(program.tensors[op.output].shape)) for op in program.ops)
    done = make_test(tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{len(program.ops)} layers, {elements} elements, 0 differ" in done.stdout

    damaged = tmp_path / "golden" / "001" / "002.bin"
    tensor = program.tensors[program.ops[2].output]
    layer = bytearray(damaged.read_bytes())
    layer[-tensor.qtype.dtype.itemsize] ^= 1
    damaged.write_bytes(layer)
    done = make_test(tmp_path)
    c, y, x = (extent - 1 for extent in tensor.shape)
    assert done.returncode != 0
    assert f"001/002.bin differs: operation 2, element ({c}, {y}, {x})" in done.stdout
    for spoil in (
        lambda: damaged.write_bytes(b""),
        damaged.unlink,
        lambda: (tmp_path / "program.bin").write_bytes(b""),
    ):
        spoil()
        done = subprocess.run(
            [str(tmp_path / "engine/selftest"), "test", str(tmp_path)], capture_output=True, check=False
        )
        assert done.returncode == 2


def test_programs_reuse_memory():
    """Otherwise the tests above would not notice an operation that writes beyond its output."""
    program, _ = random_program(2)
    assert program.arena_bytes < sum(t.nbytes for t in program.tensors)
    assert any(len(op_inputs(op)) > 1 for op in program.ops)
