"""The program image: one little-endian file that holds an integer program, read by the C engine.

docs/program-image.md is the normative text. Images are canonical: ``encode_program(decode_program(data, w)) == data``.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from edgeyolo.errors import BundleError
from edgeyolo.packing import pack_bits, packed_size, unpack_bits
from edgeyolo.program import (
    MAX_INPUTS,
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
    op_inputs,
)
from edgeyolo.program_check import MAX_OUTPUTS, MAX_TENSORS, MAX_WEIGHT_BITS, check_program, lifetimes
from edgeyolo.qtype import MAX_BITS, MIN_BITS, QType

MAGIC, VERSION = b"EYP1", 1
KINDS: tuple[type[Op], ...] = (Conv, MaxPool, Upsample, Concat, Add, Slice, Reshape, Lookup)
"""Operation kind k is ``KINDS[k - 1]``."""

_HEADER = struct.Struct("<4s11I")
_CRC_END = 16
_TENSOR = struct.Struct("<5Ii3I")
_OP = struct.Struct("<11I21i")
_PARAMS = 21
_LINEAR = (1, 0)


def encode_program(program: IntegerProgram) -> bytes:
    """The image of ``program``; the same program gives the same bytes. The detector is not in the image.

    Raises BundleError where the program breaks a rule of docs/program-image.md.
    """
    check_program(program, "program")
    return _encode(program)


def _encode(program: IntegerProgram) -> bytes:
    data = bytearray()
    ops = b"".join(_encode_op(op, data) for op in program.ops)
    tensors = b"".join(
        _TENSOR.pack(*t.shape, t.qtype.bits, t.qtype.signed, t.frac, t.offset, *life)
        for t, life in zip(program.tensors, lifetimes(program), strict=True)
    )
    outputs = struct.pack(f"<{len(program.outputs)}I", *program.outputs)
    strings = b"".join(_encode_name(x.name) for x in (*program.tensors, *program.ops))
    body = tensors + ops + outputs + bytes(data) + strings
    counts = (len(program.tensors), len(program.ops), len(program.outputs), program.input, program.arena_bytes)
    total = _HEADER.size + len(body)
    fields = (*counts, len(data), len(strings), 0)
    crc = zlib.crc32(_HEADER.pack(MAGIC, VERSION, total, 0, *fields)[_CRC_END:] + body)
    return _HEADER.pack(MAGIC, VERSION, total, crc, *fields) + body


def _encode_name(name: str) -> bytes:
    text = name.encode(errors="backslashreplace")
    if len(text) > 0xFFFF:
        raise BundleError("a name is too long", got=f"{name[:40]}...", allowed="65535 bytes of UTF-8")
    return struct.pack("<H", len(text)) + text


def _append(data: bytearray, block: bytes) -> int:
    """Add a block and fill up to a multiple of 4. Returns where the block begins."""
    offset = len(data)
    data += block + bytes(-len(block) % 4)
    return offset


def _encode_op(op: Op, data: bytearray) -> bytes:
    inputs = op_inputs(op)
    slots = (*inputs, *[0] * (MAX_INPUTS - len(inputs)))
    params = _encode_params(op, data)
    kind = KINDS.index(type(op)) + 1
    return _OP.pack(kind, op.output, len(inputs), *slots, *params, *[0] * (_PARAMS - len(params)))


def _encode_params(op: Op, data: bytearray) -> tuple[int, ...]:
    if isinstance(op, Conv):
        weights = _append(data, pack_bits(op.weight, op.weight_type.bits))
        bias = _append(data, op.bias.astype("<i4").tobytes())
        shifts = _append(data, op.shift.astype("<i1").tobytes())
        window = (*op.weight.shape[2:], *op.strides, *op.pads, *op.dilations)
        weight_type = (op.weight_type.bits, int(op.weight_type.axis == 0))
        return (*window, op.groups, *weight_type, *(op.leaky or _LINEAR), op.lo, op.hi, weights, bias, shifts)
    if isinstance(op, MaxPool):
        return (*op.kernel, *op.strides, *op.pads)
    if isinstance(op, Upsample):
        return op.scale
    if isinstance(op, Concat):
        return (op.lo, op.hi, *op.shifts)
    if isinstance(op, Add):
        return (*op.aligns, op.shift, *(op.leaky or _LINEAR), op.lo, op.hi)
    if isinstance(op, Slice):
        return (*op.start, *op.step)
    if isinstance(op, Lookup):
        return (_append(data, op.table.astype("<i2").tobytes()),)
    return ()


def decode_program(data: bytes, where: object) -> IntegerProgram:
    """Invert ``encode_program``. ``data`` may come from anywhere; ``where`` names it in messages.

    Raises BundleError unless ``data`` is exactly what ``encode_program`` gives for a program that keeps all rules.
    """
    try:
        program = _decode(data)
        check_program(program, where)
        canonical = _encode(program) == data
    except BundleError as error:
        raise BundleError(
            error.what, where=error.where or where, got=error.got, allowed=error.allowed, hint=_HINT
        ) from error
    if not canonical:
        raise BundleError("the program image is not in canonical form", where=where, hint=_HINT)
    return program


_HINT = "copy or export the bundle again"


def _decode(data: bytes) -> IntegerProgram:
    if len(data) < _HEADER.size or data[:4] != MAGIC:
        raise BundleError("not a program image", got=data[:4], allowed=MAGIC)
    _, version, total, crc, n_tensors, n_ops, n_outputs, source, arena, data_size, string_size, _ = _HEADER.unpack_from(
        data
    )
    if version != VERSION:
        raise BundleError("unknown version of the program image", got=version, allowed=VERSION)
    if total != len(data):
        raise BundleError("the program image has the wrong size", got=f"{len(data)} bytes", allowed=f"{total} bytes")
    if crc != zlib.crc32(memoryview(data)[_CRC_END:]):
        raise BundleError("the program image is damaged: its CRC-32 does not match")
    if n_tensors > MAX_TENSORS or n_ops != n_tensors - 1 or n_outputs > MAX_OUTPUTS:
        raise BundleError("counts are out of range", got=(n_tensors, n_ops, n_outputs))
    sizes = (n_tensors * _TENSOR.size, n_ops * _OP.size, n_outputs * 4, data_size, string_size)
    if _HEADER.size + sum(sizes) != total:
        raise BundleError("the sections do not fill the program image", got=_HEADER.size + sum(sizes), allowed=total)
    sections = _cut(data, sizes)
    names = _decode_names(sections[4], n_tensors + n_ops)
    tensors = tuple(
        Tensor(next(names), (c, h, w), _qtype(bits, signed), frac, offset)
        for c, h, w, bits, signed, frac, offset, _, _ in _TENSOR.iter_unpack(sections[0])
    )
    blocks = _Blocks(sections[3])
    ops = tuple(_decode_op(words, blocks, tensors, next(names)) for words in _OP.iter_unpack(sections[1]))
    outputs = struct.unpack(f"<{n_outputs}I", sections[2])
    return IntegerProgram(tensors, ops, source, outputs, arena)


def _cut(data: bytes, sizes: tuple[int, ...]) -> list[memoryview]:
    """The consecutive sections after the header."""
    view, at, sections = memoryview(data), _HEADER.size, []
    for size in sizes:
        sections.append(view[at : at + size])
        at += size
    return sections


def _decode_names(strings: memoryview, count: int) -> Iterator[str]:
    at, names = 0, []
    for _ in range(count):
        end = at + 2 + int.from_bytes(strings[at : at + 2], "little")
        try:
            names.append(str(strings[at + 2 : end], "utf-8"))
        except UnicodeDecodeError as error:
            raise BundleError("a name is not UTF-8", got=bytes(strings[at + 2 : end][:40])) from error
        at = end
    if at != len(strings):
        raise BundleError("the names do not fill their section", got=at, allowed=len(strings))
    return iter(names)


def _qtype(bits: int, signed: int, axis: int | None = None) -> QType:
    if not MIN_BITS <= bits <= MAX_BITS:
        raise BundleError("number of bits is out of range", got=bits, allowed=f"{MIN_BITS} to {MAX_BITS}")
    return QType(bits, bool(signed), axis)


def _tensor(tensors: tuple[Tensor, ...], index: int) -> Tensor:
    if index >= len(tensors):
        raise BundleError("tensor index is out of range", got=index, allowed=f"0 to {len(tensors) - 1}")
    return tensors[index]


class _Blocks:
    """The data section, read block by block; the offsets in the records are checked by encoding again."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> memoryview:
        """The next ``size`` bytes."""
        begin = self._at
        if size > len(self._data) - begin:
            raise BundleError("the data section is too short", got=len(self._data), allowed=begin + size)
        self._at += size + -size % 4
        return self._data[begin : begin + size]


def _leaky(num: int, log2: int) -> Pair | None:
    return None if (num, log2) == _LINEAR else (num, log2)


def _decode_op(words: tuple[int, ...], blocks: _Blocks, tensors: tuple[Tensor, ...], name: str) -> Op:
    kind, output, n_inputs, *slots = words[: 3 + MAX_INPUTS]
    p = words[3 + MAX_INPUTS :]
    if not 1 <= kind <= len(KINDS):
        raise BundleError("unknown kind of operation", got=kind, allowed=f"1 to {len(KINDS)}")
    if n_inputs > MAX_INPUTS:
        raise BundleError("number of inputs is out of range", got=n_inputs, allowed=f"at most {MAX_INPUTS}")
    inputs, source = tuple(slots[:n_inputs]), slots[0]
    cls = KINDS[kind - 1]
    if cls is Conv:
        return _decode_conv(p, blocks, tensors, name, source, output)
    if cls is MaxPool:
        return MaxPool(name, source, output, (p[0], p[1]), (p[2], p[3]), (p[4], p[5], p[6], p[7]))
    if cls is Upsample:
        return Upsample(name, source, output, (p[0], p[1]))
    if cls is Concat:
        return Concat(name, inputs, output, p[2 : 2 + n_inputs], p[0], p[1])
    if cls is Add:
        return Add(name, (slots[0], slots[1]), output, (p[0], p[1]), p[2], _leaky(p[3], p[4]), p[5], p[6])
    if cls is Slice:
        return Slice(name, source, output, (p[0], p[1], p[2]), (p[3], p[4], p[5]))
    if cls is Reshape:
        return Reshape(name, source, output)
    entries = 1 << min(_tensor(tensors, source).qtype.bits, 8)
    return Lookup(name, source, output, np.frombuffer(blocks.take(2 * entries), "<i2").astype(np.int16))


def _decode_conv(
    p: tuple[int, ...], blocks: _Blocks, tensors: tuple[Tensor, ...], name: str, source: int, output: int
) -> Conv:
    kh, kw, sh, sw, top, left, bottom, right, dh, dw, groups, bits, per_channel, num, log2, lo, hi = p[:17]
    ins, out = _tensor(tensors, source), _tensor(tensors, output)
    shape = (out.shape[0], ins.shape[0] // max(groups, 1), kh, kw)
    count = math.prod(shape)
    if min(shape) < 1 or not MIN_BITS <= bits <= MAX_WEIGHT_BITS:
        raise BundleError("weights have an impossible shape or type", got=(shape, bits))
    packed = blocks.take(packed_size(count, bits))
    bias = np.frombuffer(blocks.take(4 * shape[0]), "<i4").astype(np.int32)
    shift = np.frombuffer(blocks.take(shape[0]), "<i1").astype(np.int8)
    return Conv(
        name=name,
        input=source,
        output=output,
        weight=unpack_bits(packed, bits, count, signed=True).astype(np.int8).reshape(shape),
        weight_type=_qtype(bits, 1, 0 if per_channel else None),
        weight_frac=(shift.astype(np.int64) - ins.frac + out.frac).astype(np.int32),
        bias=bias,
        shift=shift,
        strides=(sh, sw),
        pads=(top, left, bottom, right),
        dilations=(dh, dw),
        groups=groups,
        leaky=_leaky(num, log2),
        lo=lo,
        hi=hi,
    )
