"""The integer program: a list of frozen records that a fixed-point target executes, and nothing more.

Tensors are (C, H, W) in row-major order, one picture at a time; their codes live in one arena at ``offset`` bytes.
Every operation reads tensors by index and writes exactly one. docs/fixed-point.md defines what each record computes;
``runners/integer.py`` is its oracle in numpy, ``targets/engine`` its implementation in C.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeyolo.detector import Detector
from edgeyolo.qtype import QType

Int8 = npt.NDArray[np.int8]
Int16 = npt.NDArray[np.int16]
Int32 = npt.NDArray[np.int32]
Pair = tuple[int, int]

EXACT_BITS = 24
"""float32 represents every integer up to 2**24: sums within it are exact in ONNX Runtime, the oracle."""
MAX_INPUTS = 8
MAX_SHIFT = 31
MAX_ALIGN = 16
"""Largest left shift that aligns an operand of Add."""


@dataclass(frozen=True)
class Tensor:
    """A quantised activation: ``value = code * 2**-frac``; shape (C, H, W); ``offset`` bytes into the arena."""

    name: str
    shape: tuple[int, int, int]
    qtype: QType
    frac: int
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes in the arena."""
        return int(np.prod(self.shape)) * self.qtype.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Conv:
    """y = clamp(round_shift(leaky(sum(x * w) + bias), shift)), groups included; padding is the code 0.

    Args:
        weight: (O, I/groups, KH, KW) int8 codes of ``weight_type``; ``weight_frac`` (O,) fraction bits.
        bias: (O,) int32 at the accumulator's scale 2**-(fx + fw).
        shift: (O,) int8, fx + fw - fy, -31 to 31.
        pads: top, left, bottom, right.
        leaky: (numerator, log2 of denominator) of the negative slope; (0, 0) is ReLU; None is linear.
        lo, hi: saturation bounds, inside the output type's range.
    """

    name: str
    input: int
    output: int
    weight: Int8
    weight_type: QType
    weight_frac: Int32
    bias: Int32
    shift: Int8
    strides: Pair
    pads: tuple[int, int, int, int]
    dilations: Pair
    groups: int
    leaky: Pair | None
    lo: int
    hi: int


@dataclass(frozen=True)
class MaxPool:
    """Maximum over a window; padding never wins. Input and output share one exponent."""

    name: str
    input: int
    output: int
    kernel: Pair
    strides: Pair
    pads: tuple[int, int, int, int]


@dataclass(frozen=True)
class Upsample:
    """Nearest neighbour by integer factors (vertical, horizontal): y[c, i, j] = x[c, i // v, j // h]."""

    name: str
    input: int
    output: int
    scale: Pair


@dataclass(frozen=True)
class Concat:
    """Channels of all inputs in order, input i as clamp(round_shift(x, shifts[i]), lo, hi); one input: requantise."""

    name: str
    inputs: tuple[int, ...]
    output: int
    shifts: tuple[int, ...]
    lo: int
    hi: int


@dataclass(frozen=True)
class Add:
    """y = clamp(round_shift(leaky((a << aligns[0]) + (b << aligns[1])), shift), lo, hi); aligns are 0 to 16."""

    name: str
    inputs: Pair
    output: int
    aligns: Pair
    shift: int
    leaky: Pair | None
    lo: int
    hi: int


@dataclass(frozen=True)
class Slice:
    """y[c, i, j] = x[c0 + c * cs, i0 + i * is, j0 + j * js]; ``start`` (c0, i0, j0), ``step`` (cs, is, js) positive."""

    name: str
    input: int
    output: int
    start: tuple[int, int, int]
    step: tuple[int, int, int]


@dataclass(frozen=True)
class Reshape:
    """The same codes in the same order under another (C, H, W)."""

    name: str
    input: int
    output: int


@dataclass(frozen=True, eq=False)
class Lookup:
    """y = table[x - lo(x's type)]; ``table`` has one output code for each of the input's 2**bits, bits at most 8."""

    name: str
    input: int
    output: int
    table: Int16


Op = Conv | MaxPool | Upsample | Concat | Add | Slice | Reshape | Lookup


@dataclass(frozen=True, eq=False)
class IntegerProgram:
    """Tensors, operations in execution order, and which tensors are the input and the outputs.

    ``arena_bytes`` covers every tensor's [offset, offset + nbytes); tensors that are alive together never overlap.
    """

    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    input: int
    outputs: tuple[int, ...]
    arena_bytes: int
    detector: Detector | None = None


def op_inputs(op: Op) -> tuple[int, ...]:
    """The tensor indices that ``op`` reads."""
    return op.inputs if isinstance(op, Concat | Add) else (op.input,)


def accumulator_bound(weight: Int8, bias: Int32, qtype: QType) -> int:
    """The largest magnitude that any partial sum can reach for any input of ``qtype``, in any order of additions.

    max over output channels of  sum |w| * max |x| + |bias|
    """
    total = np.abs(weight.reshape(len(weight), -1).astype(np.int64)).sum(axis=1)
    bound = total * max(-qtype.lo, qtype.hi) + np.abs(bias.astype(np.int64))
    return int(bound.max())


def is_float32_exact(op: Conv, qtype: QType) -> bool:
    """Whether float32 computes ``op`` exactly for any input of ``qtype``.

    Every sum must stay within 2**24, and so must its product with the slope's numerator, unless what is beyond
    saturates: codes end at ``lo``, which a product of magnitude |lo| * 2**(shift + log2 of the denominator) has reached
    already, and rounding to float32 does not bring a larger one back.
    """
    limit = 1 << EXACT_BITS
    if accumulator_bound(op.weight, op.bias, qtype) > limit:
        return False
    numerator, log2 = op.leaky or (1, 0)
    for weight, bias, shift in zip(op.weight, op.bias, op.shift, strict=True):
        product = accumulator_bound(weight[None], bias[None], qtype) * max(1, numerator)
        if product > limit and abs(op.lo) << max(int(shift) + log2, 0) > limit:
            return False
    return True
