"""What every integer program must fulfil so that no target overflows, divides by nothing or reads out of bounds.

docs/program-image.md states these rules; ``targets/engine/check.c`` checks the same ones before it runs anything.
"""

from __future__ import annotations

import numpy as np

from edgeyolo.errors import BundleError
from edgeyolo.program import (
    MAX_ALIGN,
    MAX_INPUTS,
    MAX_SHIFT,
    Add,
    Concat,
    Conv,
    IntegerProgram,
    Lookup,
    MaxPool,
    Op,
    Pair,
    Reshape,
    Slice,
    Tensor,
    Upsample,
    accumulator_bound,
    op_inputs,
)
from edgeyolo.qtype import QType

MAX_TENSORS, MAX_OUTPUTS, MAX_EXTENT, MAX_FRAC, MAX_ARENA = 4096, 64, 32767, 255, 1 << 30
MAX_WINDOW, MAX_LEAKY_LOG2, MAX_WEIGHT_BITS = 255, 16, 8
ACCUMULATOR_HI = (1 << 31) - 1


def lifetimes(program: IntegerProgram) -> list[tuple[int, int]]:
    """(first, last) of every tensor: the operation that writes it and the last that needs it, counted from 1.

    The program's input lives from 0 on, its outputs until after the last operation. A tensor that nothing writes gets
    (-1, -1).
    """
    first, last = [-1] * len(program.tensors), [-1] * len(program.tensors)
    first[program.input] = last[program.input] = 0
    for time, op in enumerate(program.ops, 1):
        first[op.output] = last[op.output] = time
        for index in op_inputs(op):
            last[index] = time
    for index in program.outputs:
        last[index] = len(program.ops) + 1
    return list(zip(first, last, strict=True))


def check_program(program: IntegerProgram, where: object) -> None:
    """Raise BundleError unless ``program`` keeps all rules; ``where`` names it in the message."""
    _check_counts(program, where)
    for tensor in program.tensors:
        _check_tensor(tensor, program.arena_bytes, f"{where}, tensor {tensor.name!r}")
    for index, op in enumerate(program.ops):
        _check_op(op, program.tensors, f"{where}, operation {index} ({op.name!r})")
    _check_plan(program, where)


def _require(condition: bool, what: str, where: object, got: object = None, allowed: object = None) -> None:
    if not condition:
        raise BundleError(what, where=where, got=got, allowed=allowed)


def _require_range(value: int, lo: int, hi: int, what: str, where: object) -> None:
    _require(lo <= value <= hi, f"{what} is out of range", where, value, f"{lo} to {hi}")


def _check_counts(program: IntegerProgram, where: object) -> None:
    tensors, ops = len(program.tensors), len(program.ops)
    _require_range(tensors, 2, MAX_TENSORS, "number of tensors", where)
    _require(
        tensors == ops + 1, "not every tensor is the input or the output of one operation", where, tensors, ops + 1
    )
    _require_range(len(program.outputs), 1, MAX_OUTPUTS, "number of outputs", where)
    _require_range(program.arena_bytes, 0, MAX_ARENA, "arena size", where)
    for index in (program.input, *program.outputs):
        _require_range(index, 0, tensors - 1, "tensor index", where)


def _check_tensor(tensor: Tensor, arena_bytes: int, where: object) -> None:
    for extent in tensor.shape:
        _require_range(extent, 1, MAX_EXTENT, "extent", where)
    qtype = tensor.qtype
    _require(qtype.axis is None and qtype.scale == "pow2", "type is not per-tensor pow2", where, qtype)
    _require_range(tensor.frac, -MAX_FRAC, MAX_FRAC, "number of fraction bits", where)
    _require_range(tensor.offset, 0, arena_bytes - tensor.nbytes, "arena offset", where)
    _require(tensor.offset % qtype.dtype.itemsize == 0, "arena offset is not aligned", where, tensor.offset)


def _check_op(op: Op, tensors: tuple[Tensor, ...], where: object) -> None:
    for index in (*op_inputs(op), op.output):
        _require_range(index, 0, len(tensors) - 1, "tensor index", where)
    ins, out = [tensors[i] for i in op_inputs(op)], tensors[op.output]
    if isinstance(op, Conv):
        _check_conv(op, ins[0], out, where)
    elif isinstance(op, MaxPool):
        _check_maxpool(op, ins[0], out, where)
    elif isinstance(op, Concat):
        _check_concat(op, ins, out, where)
    elif isinstance(op, Add):
        _check_add(op, ins, out, where)
    elif isinstance(op, Lookup):
        _check_lookup(op, ins[0], out, where)
    else:
        _check_move(op, ins[0], out, where)


def _check_clamp(lo: int, hi: int, out: Tensor, where: object) -> None:
    legal = out.qtype.lo <= lo <= hi <= out.qtype.hi
    _require(legal, "saturation bounds leave the output type", where, (lo, hi), (out.qtype.lo, out.qtype.hi))


def _check_leaky(leaky: Pair | None, where: object) -> None:
    if leaky is not None:
        _require_range(leaky[1], 0, MAX_LEAKY_LOG2, "slope's denominator", where)
        _require_range(leaky[0], 0, 1 << leaky[1], "slope's numerator", where)


def _check_same_type(a: Tensor, b: Tensor, where: object) -> None:
    same = (a.qtype, a.frac) == (b.qtype, b.frac)
    _require(same, "type or exponent changes", where, (str(b.qtype), b.frac), (str(a.qtype), a.frac))


def _check_window(op: Conv | MaxPool, ins: Tensor, out: Tensor, kernel: Pair, dilations: Pair, where: object) -> None:
    for value in (*kernel, *op.strides, *dilations):
        _require_range(value, 1, MAX_WINDOW, "kernel, stride or dilation", where)
    for value in op.pads:
        _require_range(value, 0, MAX_WINDOW, "padding", where)
    for side in (0, 1):
        room = ins.shape[1 + side] + op.pads[side] + op.pads[2 + side] - (kernel[side] - 1) * dilations[side] - 1
        fits = room >= 0 and room // op.strides[side] + 1 == out.shape[1 + side]
        _require(fits, "output extent does not follow from input, kernel, stride and padding", where, out.shape)


def _check_conv(op: Conv, ins: Tensor, out: Tensor, where: object) -> None:
    _require(op.weight.ndim == 4, "weight is not (O, I, KH, KW)", where, op.weight.shape)
    o, i, kh, kw = op.weight.shape
    _check_window(op, ins, out, (kh, kw), op.dilations, where)
    _require(op.groups >= 1 and o % op.groups == 0, "output channels do not divide into groups", where, op.groups)
    _require((o, i * op.groups) == (out.shape[0], ins.shape[0]), "channels do not match the weight", where, (o, i))
    qtype = op.weight_type
    signed = qtype.signed and qtype.scale == "pow2" and qtype.axis in (None, 0) and qtype.bits <= MAX_WEIGHT_BITS
    _require(signed, "weight type is not signed pow2 of at most 8 bits", where, qtype)
    weight = op.weight.reshape(o, -1).astype(np.int64)
    _require_range(int(weight.min()), qtype.lo, qtype.hi, "weight", where)
    _require_range(int(weight.max()), qtype.lo, qtype.hi, "weight", where)
    for name, values in (("bias", op.bias), ("shift", op.shift), ("weight_frac", op.weight_frac)):
        _require(values.shape == (o,), f"{name} does not have one value per output channel", where, values.shape)
    _require(int(np.abs(op.shift.astype(np.int64)).max()) <= MAX_SHIFT, "shift is out of range", where, op.shift)
    fracs = op.shift.astype(np.int64) - ins.frac + out.frac
    _require(np.array_equal(op.weight_frac, fracs), "shift is not fx + fw - fy", where, op.shift)
    _require_range(accumulator_bound(op.weight, op.bias, ins.qtype), 0, ACCUMULATOR_HI, "worst-case accumulator", where)
    _check_leaky(op.leaky, where)
    _check_clamp(op.lo, op.hi, out, where)


def max_code(qtype: QType) -> int:
    """The largest magnitude of a code."""
    return max(-qtype.lo, qtype.hi)


def _check_maxpool(op: MaxPool, ins: Tensor, out: Tensor, where: object) -> None:
    _check_window(op, ins, out, op.kernel, (1, 1), where)
    _require(ins.shape[0] == out.shape[0], "channels change", where, out.shape, ins.shape)
    _check_same_type(ins, out, where)
    for side in (0, 1):
        last = (out.shape[1 + side] - 1) * op.strides[side] - op.pads[side]
        inside = op.pads[side] < op.kernel[side] and last < ins.shape[1 + side]
        _require(inside, "a window lies in the padding alone", where, op.pads)


def _check_concat(op: Concat, ins: list[Tensor], out: Tensor, where: object) -> None:
    _require_range(len(ins), 1, MAX_INPUTS, "number of inputs", where)
    _require(len(op.shifts) == len(ins), "not one shift per input", where, op.shifts)
    shape = (sum(t.shape[0] for t in ins), *out.shape[1:])
    matches = shape == out.shape and all(t.shape[1:] == out.shape[1:] for t in ins)
    _require(matches, "shapes do not concatenate", where, [t.shape for t in ins], out.shape)
    for shift in op.shifts:
        _require_range(shift, -MAX_SHIFT, MAX_SHIFT, "shift", where)
    _check_clamp(op.lo, op.hi, out, where)


def _check_add(op: Add, ins: list[Tensor], out: Tensor, where: object) -> None:
    _require(ins[0].shape == ins[1].shape == out.shape, "shapes differ", where, [t.shape for t in ins], out.shape)
    for align in op.aligns:
        _require_range(align, 0, MAX_ALIGN, "alignment", where)
    worst = sum(max_code(t.qtype) << align for t, align in zip(ins, op.aligns, strict=True))
    _require_range(worst, 0, ACCUMULATOR_HI, "worst-case accumulator", where)
    _require_range(op.shift, -MAX_SHIFT, MAX_SHIFT, "shift", where)
    _check_leaky(op.leaky, where)
    _check_clamp(op.lo, op.hi, out, where)


def _check_lookup(op: Lookup, ins: Tensor, out: Tensor, where: object) -> None:
    _require(ins.shape == out.shape, "shape changes", where, out.shape, ins.shape)
    _require_range(ins.qtype.bits, 2, 8, "number of bits of a table's input", where)
    _require(op.table.shape == (1 << ins.qtype.bits,), "table has the wrong size", where, op.table.shape)
    _require_range(int(op.table.min()), out.qtype.lo, out.qtype.hi, "table entry", where)
    _require_range(int(op.table.max()), out.qtype.lo, out.qtype.hi, "table entry", where)


def _check_move(op: Upsample | Slice | Reshape, ins: Tensor, out: Tensor, where: object) -> None:
    _check_same_type(ins, out, where)
    if isinstance(op, Upsample):
        for value in op.scale:
            _require_range(value, 1, MAX_WINDOW, "scale", where)
        shape = (ins.shape[0], ins.shape[1] * op.scale[0], ins.shape[2] * op.scale[1])
        _require(shape == out.shape, "shape is not the input's times the scale", where, out.shape, shape)
    elif isinstance(op, Reshape):
        _require(ins.nbytes == out.nbytes, "number of codes changes", where, out.shape, ins.shape)
    else:
        for start, step, extent, have in zip(op.start, op.step, out.shape, ins.shape, strict=True):
            _require_range(step, 1, MAX_EXTENT, "step", where)
            inside = start >= 0 and start + (extent - 1) * step < have
            _require(inside, "slice leaves its input", where, (op.start, op.step), ins.shape)


def _check_plan(program: IntegerProgram, where: object) -> None:
    alive = lifetimes(program)
    for time, op in enumerate(program.ops, 1):
        _require(alive[op.output][0] == time, "a tensor is written twice", where, op.name)
        early = [program.tensors[i].name for i in op_inputs(op) if not 0 <= alive[i][0] < time]
        _require(not early, "a tensor is read before it is written", where, early)
    first, last = np.array(alive, np.int64).T
    begin = np.array([t.offset for t in program.tensors], np.int64)
    end = begin + [t.nbytes for t in program.tensors]
    together = (first[:, None] <= last) & (first <= last[:, None]) & (begin[:, None] < end) & (begin < end[:, None])
    pairs = np.argwhere(np.triu(together, 1))
    names = [(program.tensors[a].name, program.tensors[b].name) for a, b in pairs[:4]]
    _require(not names, "tensors that are alive together overlap in the arena", where, names)
