"""The integer program as a torch module whose integers can be trained: the student.

Values are real numbers, code * 2^-f in float32; within the bounds of docs/fixed-point.md the forward pass gives the
very numbers of every other executor. Trained are

    latent weights  in units of one weight code; what acts is their rounding, clipped to the weight's range
    biases          in units of one output code; what acts is their rounding to the accumulator's scale

so that one learning rate means the same in every layer, whatever its exponents.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeyolo.finetune.rounding import lookup, requantise, round_through
from edgeyolo.program import (
    Add,
    Concat,
    Conv,
    Int8,
    Int32,
    IntegerProgram,
    Lookup,
    MaxPool,
    Op,
    Pair,
    Slice,
    Upsample,
    op_inputs,
)
from edgeyolo.quant.plan import BIAS_LIMIT

Float64 = npt.NDArray[np.float64]
MAX_RESIDUAL = 0.49
"""A latent weight begins at most so far from its code, so that the student begins with the quantiser's codes."""


class TrainedConv(nn.Module):
    """The integers of one convolution.

    Args:
        op: its record.
        real: the float weights (O, I/groups, KH, KW). A latent weight begins there where its code is the nearest, so
            that what is nearly in the middle moves first, and at its code where a refinement chose another one.
        bias: (O,) real biases.
        frac_x, frac_y: fraction bits of its input and output.
    """

    def __init__(self, op: Conv, real: npt.NDArray[np.floating], bias: Float64, frac_x: int, frac_y: int) -> None:
        super().__init__()
        self.op = op
        units = np.ldexp(real.astype(np.float64), op.weight_frac.reshape(-1, 1, 1, 1))
        residual = np.where(np.abs(units - op.weight) <= 0.5, units - op.weight, 0.0)
        latent = op.weight + np.clip(residual, -MAX_RESIDUAL, MAX_RESIDUAL)
        self.weight = nn.Parameter(torch.tensor(latent, dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(np.ldexp(bias, frac_y), dtype=torch.float64))
        frac = op.weight_frac.astype(np.int64) + frac_x
        self.register_buffer("weight_scale", _pow2(-op.weight_frac).reshape(-1, 1, 1, 1).float())
        self.register_buffer("bias_scale", _pow2(-frac))
        self.register_buffer("bias_units", _pow2(frac - frac_y))
        numerator = max(1, op.leaky[0]) if op.leaky else 1
        self.limit = max(BIAS_LIMIT // numerator, int(np.abs(op.bias.astype(np.int64)).max()))

    weight_scale: Tensor
    bias_scale: Tensor
    bias_units: Tensor

    def bias_codes(self) -> Tensor:
        """(O,) float64 integers at the accumulator's scale."""
        return round_through(self.bias * self.bias_units).clamp(-self.limit, self.limit)

    def codes(self) -> tuple[Int8, Float64, Int32]:
        """Weight codes, the real biases (O,) and their codes."""
        with torch.no_grad():
            weight, bias = torch.round(self.weight).cpu().numpy(), self.bias_codes().cpu().numpy()
        return weight.astype(np.int8), bias * self.bias_scale.cpu().numpy(), bias.astype(np.int32)

    def forward(self, x: Tensor) -> Tensor:
        """The accumulator, as real values (N, O, OH, OW)."""
        op = self.op
        weight = round_through(self.weight) * self.weight_scale
        bias = (self.bias_codes() * self.bias_scale).float()
        top, left, bottom, right = op.pads
        if top == bottom and left == right:
            return functional.conv2d(x, weight, bias, op.strides, (top, left), op.dilations, op.groups)
        padded = functional.pad(x, (left, right, top, bottom))
        return functional.conv2d(padded, weight, bias, op.strides, 0, op.dilations, op.groups)


class Student(nn.Module):
    """An integer program with trainable convolutions.

    Args:
        program: what it computes at first.
        weights, biases: real values by the name of a convolution; see ``TrainedConv``.
        names: of the tensors that ``forward`` returns.
    """

    def __init__(
        self, program: IntegerProgram, weights: Mapping[str, npt.NDArray[np.floating]], biases: Mapping[str, Float64],
        names: Collection[str],
    ) -> None:  # fmt: skip
        super().__init__()
        self.program, self.names = program, frozenset(names)
        fracs = [tensor.frac for tensor in program.tensors]
        convs = {op.output: op for op in program.ops if isinstance(op, Conv)}
        self.convs = nn.ModuleDict({
            str(i): TrainedConv(op, weights[op.name], biases[op.name], fracs[op.input], fracs[i])
            for i, op in convs.items()
        })  # fmt: skip
        for op in program.ops:
            if isinstance(op, Lookup):
                table = np.ldexp(op.table.astype(np.float32), -fracs[op.output])
                self.register_buffer(f"table{op.output}", torch.from_numpy(table))

    def trained(self) -> list[TrainedConv]:
        """The convolutions in execution order."""
        return [conv for conv in self.convs.values() if isinstance(conv, TrainedConv)]

    def clip(self) -> None:
        """Bring the latent weights back into the range of their codes, in place."""
        with torch.no_grad():
            for conv in self.trained():
                conv.weight.clamp_(conv.op.weight_type.lo, conv.op.weight_type.hi)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Real values by name, for network inputs (N, C, H, W) float32: pixels times the preprocessing's scale."""
        tensors = self.program.tensors
        source = tensors[self.program.input]
        values = {self.program.input: requantise(images, source.frac, source.qtype.lo, source.qtype.hi)}
        for op in self.program.ops:
            values[op.output] = self._compute(op, [values[i] for i in op_inputs(op)])
        return {tensors[i].name: value for i, value in values.items() if tensors[i].name in self.names}

    def _compute(self, op: Op, inputs: list[Tensor]) -> Tensor:
        x, tensor = inputs[0], self.program.tensors[op.output]
        if isinstance(op, Conv):
            return requantise(self.convs[str(op.output)](x), tensor.frac, op.lo, op.hi, _slope(op.leaky))
        if isinstance(op, Add):
            return requantise(x + inputs[1], tensor.frac, op.lo, op.hi, _slope(op.leaky))
        if isinstance(op, Concat):
            full = (op.lo, op.hi) == (tensor.qtype.lo, tensor.qtype.hi)
            types = [self.program.tensors[i].qtype for i in op.inputs]
            return torch.cat([
                part if full and shift == 0 and qtype == tensor.qtype else requantise(part, tensor.frac, op.lo, op.hi)
                for part, shift, qtype in zip(inputs, op.shifts, types, strict=True)
            ], dim=1)  # fmt: skip
        if isinstance(op, MaxPool):
            top, left, bottom, right = op.pads
            padded = functional.pad(x, (left, right, top, bottom), value=float("-inf")) if any(op.pads) else x
            return functional.max_pool2d(padded, op.kernel, op.strides)
        if isinstance(op, Upsample):
            return x.repeat_interleave(op.scale[0], 2).repeat_interleave(op.scale[1], 3)
        if isinstance(op, Slice):
            window = (
                slice(start, start + step * (size - 1) + 1, step)
                for start, step, size in zip(op.start, op.step, tensor.shape, strict=True)
            )
            return x[(slice(None), *window)]
        if isinstance(op, Lookup):
            source = self.program.tensors[op.input]
            return lookup(x, source.frac, source.qtype.lo, self.get_buffer(f"table{op.output}"))
        return x.reshape(-1, *tensor.shape)


def _slope(leaky: Pair | None) -> float | None:
    return None if leaky is None else leaky[0] / (1 << leaky[1])


def _pow2(exponents: npt.NDArray[np.integer]) -> Tensor:
    return torch.tensor(np.ldexp(1.0, exponents), dtype=torch.float64)
