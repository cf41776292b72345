"""Seeded random integer programs, and a slow, independent execution of them in plain integers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeyolo.program import (
    Add,
    Concat,
    Conv,
    IntegerProgram,
    Lookup,
    MaxPool,
    Op,
    Reshape,
    Slice,
    Tensor,
    Upsample,
    op_inputs,
)
from edgeyolo.qtype import QType

Codes = npt.NDArray[Any]
KINDS = ("conv", "conv", "conv", "depthwise", "maxpool", "upsample", "concat", "add", "slice", "reshape", "lookup")
LEAKIES = (None, None, (0, 0), (13, 7), (1, 3), (26, 8), (6554, 16), (1, 0), (0, 5))


class Builder:
    """Grows a program operation by operation; every choice comes from one seed."""

    def __init__(self, seed: int, size: int = 9) -> None:
        self.rng = np.random.default_rng(seed)
        shape = (self.pick(1, 6), self.pick(3, size), self.pick(3, size))
        self.tensors = [Tensor("input", shape, self.qtype(), self.pick(-3, 12))]
        self.ops: list[Op] = []

    def pick(self, lo: int, hi: int) -> int:
        """A number in [lo, hi]."""
        return int(self.rng.integers(lo, hi + 1))

    def choose(self, options: Any) -> Any:
        """One of the options."""
        return options[self.pick(0, len(options) - 1)]

    def qtype(self) -> QType:
        """8 bits mostly, but any width from 2 to 16."""
        return QType(self.choose((8, 8, 8, 8, 16, self.pick(2, 16))), bool(self.pick(0, 1)))

    def emit(self, make: Any, shape: tuple[int, ...], like: Tensor | None = None) -> None:
        """Append ``make(name, output index, output tensor)`` and that tensor, of the type of ``like``."""
        index = len(self.tensors)
        qtype, frac = (like.qtype, like.frac) if like else (self.qtype(), self.pick(-3, 12))
        out = Tensor(f"t{index}", (shape[0], shape[1], shape[2]), qtype, frac)
        self.tensors.append(out)
        self.ops.append(make(f"op {index}", index, out))

    def clamp(self, out: Tensor) -> tuple[int, int]:
        """Saturation bounds: the type's range, or part of it."""
        lo, hi = out.qtype.lo, out.qtype.hi
        return (lo, hi) if self.pick(0, 2) else tuple(sorted((self.pick(lo, hi), self.pick(lo, hi))))  # type: ignore

    def grow(self, kind: str) -> None:
        """Append one operation of this kind, if some tensor can feed it."""
        source = self.pick(max(0, len(self.tensors) - 3), len(self.tensors) - 1)
        getattr(self, f"grow_{kind}")(source, self.tensors[source])

    def window(self, x: Tensor, kernel: int) -> tuple[Any, ...]:
        """Kernel, strides, pads, dilations and the output's height and width."""
        sizes = [self.pick(1, kernel), self.pick(1, kernel)]
        strides = (self.choose((1, 1, 2, 3)), self.choose((1, 1, 2, 3)))
        dilations, pads, extents = [self.choose((1, 1, 1, 2, 3)), self.choose((1, 1, 2))], [0, 0, 0, 0], []
        for side in (0, 1):
            have = x.shape[1 + side]
            pads[side], pads[side + 2] = self.pick(0, sizes[side]), self.pick(0, sizes[side])
            if have + pads[side] + pads[side + 2] < (sizes[side] - 1) * dilations[side] + 1:
                sizes[side] = 1
            reach = (sizes[side] - 1) * dilations[side] + 1
            extents.append((have + pads[side] + pads[side + 2] - reach) // strides[side] + 1)
        return tuple(sizes), strides, tuple(pads), tuple(dilations), tuple(extents)

    def grow_conv(self, source: int, x: Tensor) -> None:
        groups = self.choose([g for g in (1, 1, 2, 3, 4) if x.shape[0] % g == 0])
        self.convolve(source, x, groups, groups * self.pick(1, 6 // groups + 1))

    def grow_depthwise(self, source: int, x: Tensor) -> None:
        self.convolve(source, x, x.shape[0], x.shape[0])

    def convolve(self, source: int, x: Tensor, groups: int, channels: int) -> None:
        kernel, strides, pads, dilations, extents = self.window(x, 5)
        bits = self.pick(2, 8)
        weight_type = QType(bits, axis=self.choose((None, 0)))
        shape = (channels, x.shape[0] // groups, *kernel)
        weight = self.rng.integers(weight_type.lo, weight_type.hi + 1, shape).astype(np.int8)
        if self.pick(0, 2) == 0:
            weight[self.rng.random(shape) < 0.6] = 0
        if self.pick(0, 5) == 0:
            weight[:] = weight_type.lo
        sums = np.abs(weight.astype(np.int64)).sum((1, 2, 3)) * max(-x.qtype.lo, x.qtype.hi)
        room = np.full(channels, (1 << 31) - 1) - sums
        spread = np.minimum(room, self.choose((10, 1000, 1 << 31)) * 1)
        bias = self.rng.integers(-spread, spread + 1).astype(np.int32)
        leaky = self.choose(LEAKIES)

        def make(name: str, index: int, out: Tensor) -> Conv:
            wanted = np.log2(sums + np.abs(bias) + 1.0) - out.qtype.bits
            shift = np.clip(np.rint(wanted).astype(int) + self.rng.integers(-3, 3, channels), -31, 31).astype(np.int8)
            if self.pick(0, 4) == 0:
                shift = self.rng.integers(-31, 32, channels).astype(np.int8)
            fw = (shift.astype(int) - x.frac + out.frac).astype(np.int32)
            return Conv(
                name, source, index, weight, weight_type, fw, bias, shift, strides, pads, dilations, groups, leaky,
                *self.clamp(out),
            )  # fmt: skip

        self.emit(make, (channels, *extents))

    def grow_maxpool(self, source: int, x: Tensor) -> None:
        kernel, strides, pads, _, _ = self.window(x, 4)
        pads = tuple(min(pad, kernel[i % 2] - 1) for i, pad in enumerate(pads))
        room = [x.shape[1 + s] + pads[s] + pads[s + 2] - kernel[s] for s in (0, 1)]
        extents = [room[s] // strides[s] + 1 for s in (0, 1)]
        outside = [(extents[s] - 1) * strides[s] - pads[s] >= x.shape[1 + s] for s in (0, 1)]
        if min(room) >= 0 and not any(outside):
            self.emit(lambda name, out, _: MaxPool(name, source, out, kernel, strides, pads), (x.shape[0], *extents), x)

    def grow_upsample(self, source: int, x: Tensor) -> None:
        scale = (self.pick(1, 3), self.pick(1, 3))
        if max(x.shape) <= 12:
            shape = (x.shape[0], x.shape[1] * scale[0], x.shape[2] * scale[1])
            self.emit(lambda name, out, _: Upsample(name, source, out, scale), shape, x)

    def grow_concat(self, source: int, x: Tensor) -> None:
        fitting = [i for i, t in enumerate(self.tensors) if t.shape[1:] == x.shape[1:]]
        inputs = tuple(self.choose(fitting) for _ in range(self.pick(1, 4)))
        shifts = tuple(self.choose((0, 1, 2, -1, 5, self.pick(-31, 31))) for _ in inputs)
        channels = sum(self.tensors[i].shape[0] for i in inputs)
        self.emit(lambda name, out, t: Concat(name, inputs, out, shifts, *self.clamp(t)), (channels, *x.shape[1:]))

    def grow_add(self, source: int, x: Tensor) -> None:
        others = [i for i, t in enumerate(self.tensors) if t.shape == x.shape and i != source]
        if not others:
            others = [len(self.tensors)]
            self.emit(lambda name, out, t: Concat(name, (source,), out, (1,), t.qtype.lo, t.qtype.hi), x.shape)
        other = self.choose(others)
        pair = (x, self.tensors[other])
        aligns = tuple(self.pick(0, min(16, 30 - t.qtype.bits)) for t in pair)
        leaky, shift = self.choose(LEAKIES), self.choose((self.pick(0, 12), self.pick(-31, 31)))
        self.emit(
            lambda name, out, t: Add(name, (source, other), out, (aligns[0], aligns[1]), shift, leaky, *self.clamp(t)),
            x.shape,
        )

    def grow_slice(self, source: int, x: Tensor) -> None:
        start = tuple(self.pick(0, extent - 1) for extent in x.shape)
        step = tuple(self.choose((1, 1, 2, 3)) for _ in x.shape)
        shape = tuple(self.pick(1, (x.shape[i] - 1 - start[i]) // step[i] + 1) for i in range(3))
        self.emit(lambda name, out, _: Slice(name, source, out, start, step), shape, x)  # type: ignore

    def grow_reshape(self, source: int, x: Tensor) -> None:
        c, h, w = x.shape
        self.emit(
            lambda name, out, _: Reshape(name, source, out), self.choose(((h, c, w), (1, c * h, w), (c, w, h))), x
        )

    def grow_lookup(self, source: int, x: Tensor) -> None:
        if x.qtype.bits <= 8:

            def make(name: str, index: int, out: Tensor) -> Lookup:
                lo, hi = out.qtype.lo, min(out.qtype.hi, 32767)
                return Lookup(name, source, index, self.rng.integers(lo, hi + 1, 1 << x.qtype.bits).astype(np.int16))

            self.emit(make, x.shape)


def random_program(seed: int, ops: int = 8, size: int = 9) -> tuple[IntegerProgram, Codes]:
    """A program of up to ``ops`` random operations in a tight arena, and input codes that include the extremes."""
    builder = Builder(seed, size)
    builder.grow("conv")
    for _ in range(ops - 1):
        if np.prod(builder.tensors[-1].shape) < 2000:
            builder.grow(builder.choose(KINDS))
    last = len(builder.tensors) - 1
    outputs = (last, builder.pick(0, last))
    program = place(IntegerProgram(tuple(builder.tensors), tuple(builder.ops), 0, outputs, 0))
    return program, random_codes(builder.rng, program.tensors[0])


def random_codes(rng: np.random.Generator, tensor: Tensor) -> Codes:
    """Codes of the tensor's type, a fifth of them the smallest or largest."""
    lo, hi = tensor.qtype.lo, tensor.qtype.hi
    codes = rng.integers(lo, hi + 1, tensor.shape)
    extreme = rng.random(tensor.shape)
    return np.where(extreme < 0.1, lo, np.where(extreme < 0.2, hi, codes)).astype(tensor.qtype.dtype)


def place(program: IntegerProgram) -> IntegerProgram:
    """Give every tensor the lowest offset that is free while it lives."""
    steps = len(program.ops)
    first = {program.input: -1, **{op.output: i for i, op in enumerate(program.ops)}}
    last = {i: max([first[i], *(j for j, op in enumerate(program.ops) if i in op_inputs(op))]) for i in first}
    last.update(dict.fromkeys(program.outputs, steps))
    placed: dict[int, Tensor] = {}
    for i in sorted(first, key=lambda i: first[i]):
        tensor, offset = program.tensors[i], 0
        rivals = [t for j, t in placed.items() if first[j] <= last[i] and first[i] <= last[j]]
        while any(offset < t.offset + t.nbytes and t.offset < offset + tensor.nbytes for t in rivals):
            offset += tensor.qtype.dtype.itemsize
        placed[i] = replace(tensor, offset=offset)
    tensors = tuple(placed[i] for i in range(len(placed)))
    return replace(program, tensors=tensors, arena_bytes=max(t.offset + t.nbytes for t in tensors))


def execute(program: IntegerProgram, codes: Codes) -> list[Codes]:
    """What every operation writes, computed element by element with Python integers."""
    values = {program.input: codes.astype(object)}
    for op in program.ops:
        out = program.tensors[op.output]
        result = np.empty(out.shape, object)
        compute = FORMULAS[type(op)]
        inputs = [values[i] for i in op_inputs(op)]
        for index in np.ndindex(*out.shape):
            result[index] = compute(op, inputs, index, program)
        values[op.output] = result
    return [values[op.output].astype(program.tensors[op.output].qtype.dtype) for op in program.ops]


def rounded(value: int, shift: int) -> int:
    """value / 2**shift, half to even."""
    if shift <= 0:
        return value << -shift
    quotient, rest = divmod(value, 1 << shift)
    twice = 2 * rest - (1 << shift)
    return quotient + (twice > 0 or (twice == 0 and quotient % 2 == 1))


def finish(op: Conv | Add, value: int, shift: int) -> int:
    """Slope, shift, clamp."""
    num, log2 = op.leaky or (1, 0)
    value = value << log2 if value >= 0 else value * num
    return min(max(rounded(value, shift + log2), op.lo), op.hi)


def conv_element(op: Conv, inputs: list[Codes], index: tuple[int, ...], _: IntegerProgram) -> int:
    x, (o, row, column) = inputs[0], index
    per_group = op.weight.shape[1]
    base = o // (op.weight.shape[0] // op.groups) * per_group
    total = int(op.bias[o])
    for (i, ky, kx), w in np.ndenumerate(op.weight[o]):
        r = row * op.strides[0] - op.pads[0] + ky * op.dilations[0]
        c = column * op.strides[1] - op.pads[1] + kx * op.dilations[1]
        if w and 0 <= r < x.shape[1] and 0 <= c < x.shape[2]:
            total += int(w) * x[base + i, r, c]
    return finish(op, total, int(op.shift[o]))


def maxpool_element(op: MaxPool, inputs: list[Codes], index: tuple[int, ...], _: IntegerProgram) -> int:
    top, left = (index[1 + side] * op.strides[side] - op.pads[side] for side in (0, 1))
    rows = slice(max(top, 0), top + op.kernel[0])
    return inputs[0][index[0], rows, max(left, 0) : left + op.kernel[1]].max()


def upsample_element(op: Upsample, inputs: list[Codes], index: tuple[int, ...], _: IntegerProgram) -> int:
    return inputs[0][index[0], index[1] // op.scale[0], index[2] // op.scale[1]]


def concat_element(op: Concat, inputs: list[Codes], index: tuple[int, ...], _: IntegerProgram) -> int:
    channel = index[0]
    for x, shift in zip(inputs, op.shifts, strict=True):
        if channel < len(x):
            return min(max(rounded(x[channel, index[1], index[2]], shift), op.lo), op.hi)
        channel -= len(x)
    raise AssertionError("channel beyond all inputs")


def add_element(op: Add, inputs: list[Codes], index: tuple[int, ...], _: IntegerProgram) -> int:
    return finish(op, sum(x[index] << align for x, align in zip(inputs, op.aligns, strict=True)), op.shift)


def slice_element(op: Slice, inputs: list[Codes], index: tuple[int, ...], _: IntegerProgram) -> int:
    return inputs[0][tuple(s + i * d for s, i, d in zip(op.start, index, op.step, strict=True))]


def reshape_element(op: Reshape, inputs: list[Codes], index: tuple[int, ...], program: IntegerProgram) -> int:
    return inputs[0].flat[np.ravel_multi_index(index, program.tensors[op.output].shape)]


def lookup_element(op: Lookup, inputs: list[Codes], index: tuple[int, ...], program: IntegerProgram) -> int:
    return int(op.table[inputs[0][index] - program.tensors[op.input].qtype.lo])


FORMULAS: dict[type, Any] = {
    Conv: conv_element,
    MaxPool: maxpool_element,
    Upsample: upsample_element,
    Concat: concat_element,
    Add: add_element,
    Slice: slice_element,
    Reshape: reshape_element,
    Lookup: lookup_element,
}
