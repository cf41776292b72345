"""``--layout seed-v1``: the six files that older YOLO accelerators read, byte for byte.

The family was introduced by the public YOLOv3v4-ModelCompression project (its ``convert_FPGA.py`` with ``--FPGA`` and
``--reorder``). docs/blob-layouts.md describes the format; this is our own implementation of that description.

    <stem>_weights.bin  codes of all convolutions, tile by tile: m-tile, n-tile, KH*KW, m, n; partial tiles unpadded
    <stem>_bias.bin     codes of all biases, in the container of the weights, at an exponent of their own
    <stem>_w_scale.bin  int32 exponent per convolution: value = code * 2**-e
    <stem>_b_scale.bin  int32 exponent per convolution
    <stem>_a_scale.bin  int32 exponent of the input, then of every convolution's output
    <stem>_s_scale.bin  int32 exponent of every shortcut's output
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.lower.blob_files import write_files
from edgeyolo.program import Add, Concat, Conv, Int32, IntegerProgram, Lookup
from edgeyolo.qtype import IntArray, round_shift

SLOPE = 1 / 8
"""The negative slope of that hardware."""


SEED_V1, SEED_V1_BITS = "seed-v1", 16
"""The layout's name, and the width of codes that rounds biases least."""


@dataclass(frozen=True)
class SeedFiles:
    """File name to bytes, and what a reader of these files cannot see, in sentences for people."""

    contents: dict[str, bytes]
    notes: tuple[str, ...]


def tile_ragged(weight: IntArray, tm: int, tn: int) -> IntArray:
    """Put (O, I, KH, KW) codes in tile order without padding: the last tiles of a row or column are simply smaller.

    The order is m-tile, n-tile, KH, KW, m, n; every code appears exactly once.
    """
    tiles = [
        weight[m : m + tm, n : n + tn].transpose(2, 3, 0, 1).reshape(-1)
        for m in range(0, weight.shape[0], tm)
        for n in range(0, weight.shape[1], tn)
    ]
    return np.concatenate(tiles)


def fit_bias(bias: Int32, frac: int, bits: int) -> tuple[IntArray, int]:
    """Round a bias of ``frac`` fraction bits to ``bits`` bits, keeping as many fraction bits as fit.

    Returns the codes and their number of fraction bits, ``frac`` itself where nothing is lost.
    """
    hi = (1 << (bits - 1)) - 1
    for dropped in range(64):
        codes = round_shift(bias.astype(np.int64), dropped)
        if codes.min(initial=0) >= -hi - 1 and codes.max(initial=0) <= hi:
            return codes, frac - dropped
    raise AssertionError("an int32 fits any container after 32 shifts")


def _offences(program: IntegerProgram) -> list[str]:
    """List what the six files have no place for."""
    channels = [op.name for op in program.ops if isinstance(op, Conv) and len({int(f) for f in op.weight_frac}) != 1]
    tables = [op.name for op in program.ops if isinstance(op, Lookup)]
    reasons = {"a weight exponent per output channel": channels, "lookup tables": tables}
    return [f"{reason} ({', '.join(names)})" for reason, names in reasons.items() if names]


def _notes(program: IntegerProgram, losses: list[tuple[float, str]], bits: int) -> tuple[str, ...]:
    """Say what the hardware must know besides the files, and what rounding the biases cost."""
    notes: list[str] = []
    convs = [op for op in program.ops if isinstance(op, Conv)]
    if unsigned := [t.name for t in program.tensors if not t.qtype.signed]:
        notes.append(
            f"seed-v1 does not record that activations are unsigned ({len(unsigned)} tensors, {unsigned[0]} first)"
        )
    slopes = {op.leaky for op in convs if op.leaky is not None}
    if unusual := sorted(f"{num}/{1 << log2}" for num, log2 in slopes if num / (1 << log2) not in (0, SLOPE)):
        notes.append(
            f"seed-v1 does not record negative slopes; this model has {', '.join(unusual)}, that hardware usually 1/8"
        )
    for op in program.ops:
        if isinstance(op, Concat) and any(op.shifts):
            inputs = ", ".join(str(program.tensors[i].frac) for i in op.inputs)
            notes.append(
                f"seed-v1 has no exponent for concatenations; {op.name} brings its inputs ({inputs}) to "
                f"{program.tensors[op.output].frac}, hardware that aligns otherwise rounds otherwise"
            )
    if losses:
        worst, name = max(losses)
        notes.append(
            f"biases of {len(losses)} of {len(convs)} convolutions were rounded to {bits} bits, by up to "
            f"{worst:.3g} steps of the output ({name}); results differ from the golden vectors"
        )
    return tuple(notes)


def seed_files(program: IntegerProgram, *, stem: str, tm: int = 64, tn: int = 8, bits: int = 8) -> SeedFiles:
    """Produce the six files.

    Args:
        program: convolutions in the order of the source's layers, weight exponents per tensor.
        stem: what the file names begin with; the original uses the name of the cfg without its extension.
        tm: output channels of a tile (the original's default 64).
        tn: input channels of a tile (the original's default 8).
        bits: 8 or 16, the container of weight and bias codes.

    Raises UnsupportedError listing everything that the format cannot express, InputError for bad arguments.
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", stem) is None:
        raise InputError("not usable as the beginning of a file name", got=stem[:100], allowed="letters, digits, _ . -")
    if bits not in (8, 16) or tm < 1 or tn < 1:
        raise InputError("bad geometry of seed-v1 files", got=f"bits {bits}, tm {tm}, tn {tn}", allowed="bits 8 or 16")
    if offences := _offences(program):
        raise UnsupportedError(
            "layout seed-v1 cannot express this model",
            got="; ".join(offences),
            allowed="one weight exponent per convolution, activations that are linear, ReLU or leaky",
            hint="quantise with --granularity per-tensor, or use another layout",
        )
    return _encode(program, stem, (tm, tn), bits)


def _encode(program: IntegerProgram, stem: str, tile: tuple[int, int], bits: int) -> SeedFiles:
    """Lay the files out; everything in ``program`` is known to be expressible."""
    weights: list[IntArray] = []
    biases: list[IntArray] = []
    exponents: dict[str, list[int]] = {"w": [], "a": [program.tensors[program.input].frac], "b": [], "s": []}
    losses: list[tuple[float, str]] = []
    for op in program.ops:
        if isinstance(op, Conv):
            frac = program.tensors[op.input].frac + int(op.weight_frac[0])
            codes, bias_frac = fit_bias(op.bias, frac, bits)
            lost = np.abs((codes << (frac - bias_frac)) - op.bias.astype(np.int64)) / np.exp2(op.shift.astype(float))
            losses += [(float(lost.max()), op.name)] if lost.any() else []
            weights.append(tile_ragged(op.weight, *tile))
            biases.append(codes)
            exponents["w"].append(int(op.weight_frac[0]))
            exponents["b"].append(bias_frac)
            exponents["a"].append(program.tensors[op.output].frac)
        elif isinstance(op, Add):
            exponents["s"].append(program.tensors[op.output].frac)
    container = np.dtype(f"<i{bits // 8}")
    contents = {
        f"{stem}_weights.bin": b"".join(w.astype(container).tobytes() for w in weights),
        f"{stem}_bias.bin": b"".join(b.astype(container).tobytes() for b in biases),
    }
    contents.update({f"{stem}_{key}_scale.bin": np.array(e, "<i4").tobytes() for key, e in exponents.items()})
    return SeedFiles(contents, _notes(program, losses, bits))


def write_seed_v1(
    program: IntegerProgram, folder: Path, *, stem: str, tm: int = 64, tn: int = 8, bits: int = 8
) -> SeedFiles:
    """Write ``seed_files`` into ``folder``, all or nothing; the arguments and errors are those of ``seed_files``."""
    files = seed_files(program, stem=stem, tm=tm, tn=tn, bits=bits)
    write_files(folder, files.contents)
    return files
