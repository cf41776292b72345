"""The oracle of the integer program in numpy: every record executed as docs/fixed-point.md defines it.

Written for clarity. Convolutions run as float64 matrix products, which are exact because every value is an integer
below 2**53.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeyolo.bundle import PROGRAM, Bundle
from edgeyolo.detector import Detector
from edgeyolo.errors import InputError
from edgeyolo.program import (
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
from edgeyolo.program_image import decode_program
from edgeyolo.qtype import TensorQuant, round_shift

Codes = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]
Hook = Callable[[int, Op, Codes], None]
"""Called after every operation with its index, its record and its output codes (C, H, W)."""


def input_codes(program: IntegerProgram, pixels: npt.NDArray[np.uint8]) -> Codes:
    """Network pixels (C, H, W) uint8 to input codes; a model that reads raw pixels takes them as they are."""
    tensor = program.tensors[program.input]
    assert program.detector is not None
    real = pixels.astype(np.float32) * np.float32(program.detector.preprocess.scale)
    return TensorQuant.pow2(tensor.qtype, tensor.frac).quantise(real)


def run_integer(program: IntegerProgram, codes: Codes, hook: Hook | None = None) -> list[Codes]:
    """Execute ``program`` on input codes (C, H, W); returns the outputs' codes, each in its tensor's container type."""
    tensor = program.tensors[program.input]
    if codes.shape != tensor.shape or codes.dtype != tensor.qtype.dtype:
        raise InputError(
            "the input codes do not fit",
            got=f"{codes.dtype} {codes.shape}",
            allowed=f"{tensor.qtype.dtype} {tensor.shape}",
        )
    last_use = {i: step for step, op in enumerate(program.ops) for i in op_inputs(op)}
    last_use.update(dict.fromkeys(program.outputs, len(program.ops)))
    values: dict[int, Codes] = {program.input: codes}
    for step, op in enumerate(program.ops):
        inputs = [values[i] for i in op_inputs(op)]
        output = program.tensors[op.output]
        result = run_op(op, inputs, output).astype(output.qtype.dtype)
        values[op.output] = result
        if hook is not None:
            hook(step, op, result)
        for index in [i for i in values if last_use.get(i, -1) <= step]:
            del values[index]
    return [values[i] for i in program.outputs]


def run_op(op: Op, inputs: list[Codes], output: Tensor) -> Codes:
    """One operation on its inputs' codes; values are in range of the output type."""
    x = inputs[0]
    if isinstance(op, Conv):
        return _finish(accumulate(op, x), op.shift.astype(np.int64)[:, None, None], op.leaky, op.lo, op.hi)
    if isinstance(op, MaxPool):
        windows = _windows(x, op.kernel, op.strides, (1, 1), op.pads, np.iinfo(x.dtype).min)
        pooled: Codes = windows.max(axis=(3, 4))
        return pooled
    if isinstance(op, Upsample):
        return x.repeat(op.scale[0], axis=1).repeat(op.scale[1], axis=2)
    if isinstance(op, Concat):
        parts = [np.clip(round_shift(part, shift), op.lo, op.hi) for part, shift in zip(inputs, op.shifts, strict=True)]
        return np.concatenate(parts)
    if isinstance(op, Add):
        a, b = (part.astype(np.int64) << align for part, align in zip(inputs, op.aligns, strict=True))
        return _finish(a + b, op.shift, op.leaky, op.lo, op.hi)
    if isinstance(op, Slice):
        window = tuple(
            slice(start, start + step * (size - 1) + 1, step)
            for start, step, size in zip(op.start, op.step, output.shape, strict=True)
        )
        return x[window]
    if isinstance(op, Reshape):
        return x.reshape(output.shape)
    assert isinstance(op, Lookup)
    size = len(op.table)
    lowest = -(size // 2) if x.dtype.kind == "i" else 0
    return op.table[x.astype(np.int64) - lowest]


def accumulate(op: Conv, x: Codes) -> Int64:
    """The accumulator (O, OH, OW) of a convolution before activation and shift."""
    windows = _windows(x, (op.weight.shape[2], op.weight.shape[3]), op.strides, op.dilations, op.pads, 0)
    channels, height, width = windows.shape[:3]
    per_group = channels // op.groups
    filters = op.weight.reshape(op.groups, len(op.weight) // op.groups, -1).astype(np.float64)
    columns = windows.transpose(0, 3, 4, 1, 2).reshape(op.groups, per_group * windows[0, 0, 0].size, -1)
    total: Int64 = np.matmul(filters, columns.astype(np.float64)).astype(np.int64)
    return total.reshape(-1, height, width) + op.bias.astype(np.int64)[:, None, None]


def _finish(acc: Int64, shift: Int64 | int, leaky: Pair | None, lo: int, hi: int) -> Int64:
    """Leaky slope, one rounding shift, saturation."""
    if leaky is not None:
        numerator, bits = leaky
        acc = np.where(acc < 0, acc * numerator, acc << bits)
        shift = shift + bits
    clipped: Int64 = np.clip(round_shift(acc, shift), lo, hi)
    return clipped


def _windows(
    x: Codes, kernel: Pair, strides: Pair, dilations: Pair, pads: tuple[int, int, int, int], fill: int
) -> Codes:
    """All windows of ``x`` (C, H, W) as a view (C, OH, OW, KH, KW); padding holds ``fill``."""
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right)), constant_values=fill)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(1, 2))
    return views[:, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]


class BundleRunner:
    """The four methods over a bundle's integer program: in numpy, or in the C engine compiled on this machine."""

    def __init__(self, bundle: Bundle | None = None, *, engine: bool = False) -> None:
        self.detector: Detector | None = None
        self._engine = engine
        if bundle is not None:
            self._open(bundle)

    def load(self, path: Path) -> None:
        """Open the bundle and check it. Raises BundleError or InputError."""
        self._open(Bundle.open(path))

    def _open(self, bundle: Bundle) -> None:
        image = bundle.read(PROGRAM)
        self.program = replace(decode_program(image, str(bundle.path / PROGRAM)), detector=bundle.detector)
        self.detector = bundle.detector
        self._run: Callable[[Codes], list[Codes]] = lambda codes: run_integer(self.program, codes)
        if self._engine:
            from edgeyolo.runners.engine import EngineRunner

            self._run = EngineRunner(image).run

    def set_inputs(self, pixels: npt.NDArray[Any]) -> None:
        """Take (C, H, W) uint8 network pixels."""
        self._codes = input_codes(self.program, pixels)

    def infer(self) -> None:
        """Execute the program once."""
        self._outputs = self._run(self._codes)

    def outputs(self) -> list[npt.NDArray[np.float32]]:
        """Raw heads (C, grid_h, grid_w) float32: codes * 2**-frac."""
        tensors = [self.program.tensors[i] for i in self.program.outputs]
        pairs = zip(tensors, self._outputs, strict=True)
        return [TensorQuant.pow2(t.qtype, t.frac).dequantise(codes) for t, codes in pairs]
