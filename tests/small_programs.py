"""Integer programs small enough to check by hand, with every kind of operation."""

from __future__ import annotations

import numpy as np

from edgeyolo.detector import Detector, Head, Preprocess
from edgeyolo.program import (
    Add,
    Concat,
    Conv,
    IntegerProgram,
    Lookup,
    MaxPool,
    Reshape,
    Slice,
    Tensor,
    Upsample,
)
from edgeyolo.qtype import QType

SHA = "0123456789abcdef" * 4


def conv(
    name: str,
    ends: tuple[int, int],
    shape: tuple[int, int, int, int],
    *,
    bits: int = 4,
    groups: int = 1,
    per_channel: bool = True,
    leaky: tuple[int, int] | None = (13, 7),
    fracs: tuple[int, int] = (8, 4),
) -> Conv:
    """A convolution with seeded weights that use the whole range of ``bits``; padding keeps height and width."""
    rng = np.random.default_rng(sum(shape) + bits)
    out, _, kh, kw = shape
    limit = 1 << (bits - 1)
    frac = np.array([3 + (c % 3 if per_channel else 0) for c in range(out)], np.int32)
    shift = fracs[0] + frac - fracs[1]
    return Conv(
        name=name,
        input=ends[0],
        output=ends[1],
        weight=rng.integers(-limit, limit, shape).astype(np.int8),
        weight_type=QType(bits, True, 0 if per_channel else None),
        weight_frac=frac,
        bias=rng.integers(-3000, 3000, out).astype(np.int32),
        shift=shift.astype(np.int8),
        strides=(1, 1),
        pads=(kh // 2, kw // 2, kh // 2, kw // 2),
        dilations=(1, 1),
        groups=groups,
        leaky=leaky,
        lo=-128,
        hi=127,
    )


def small_program(bits: int = 4, per_channel: bool = True) -> IntegerProgram:
    """3 -> 5 (3x3), depthwise, add, concat, 10 -> 4 (1x1), table, pool, upsample, slice, reshape; two heads."""
    i8, u8 = QType(8, True), QType(8, False)
    shapes = [(3, 6, 5), (5, 6, 5), (5, 6, 5), (5, 6, 5), (10, 6, 5), (4, 6, 5)]
    shapes += [(4, 6, 5), (4, 3, 2), (4, 6, 4), (2, 3, 2), (12, 1, 1)]
    tensors, offset = [], 0
    for i, shape in enumerate(shapes):
        tensors.append(Tensor(f"t{i}", shape, i8 if i else u8, 4 if i else 8, offset))
        offset += -(-tensors[-1].nbytes // 16) * 16
    table = np.arange(-128, 128, dtype=np.int16)[::-1].copy()
    ops = (
        conv("stem", (0, 1), (5, 3, 3, 3), bits=bits, per_channel=per_channel),
        conv("depthwise", (1, 2), (5, 1, 3, 3), bits=8, groups=5, per_channel=per_channel, fracs=(4, 4)),
        Add("add", (1, 2), 3, (0, 1), 1, None, -128, 127),
        Concat("concat", (1, 3), 4, (0, 0), -128, 127),
        conv("*/ point\nwise \\", (4, 5), (4, 10, 1, 1), bits=bits, per_channel=per_channel, leaky=None, fracs=(4, 4)),
        Lookup("swish", 5, 6, table),
        MaxPool("pool", 6, 7, (2, 2), (2, 2), (0, 0, 0, 0)),
        Upsample("up", 7, 8, (2, 2)),
        Slice("slice", 8, 9, (0, 0, 0), (2, 2, 2)),
        Reshape("flat", 9, 10),
    )
    heads = (
        Head("t5", "yolo", (8.0, 8.0), ((10.5, 14.0), (23.0, 27.25)), 3, 1.05),
        Head("t10", "classifier", classes=12),
    )
    names = ("person", 'a "quoted" \\ name??/', "Hund")
    detector = Detector("darknet", Preprocess(5, 6, 3, "letterbox", 127, 1 / 256), heads, names, "greedynms")
    return IntegerProgram(tuple(tensors), ops, 0, (5, 10), offset, detector)
