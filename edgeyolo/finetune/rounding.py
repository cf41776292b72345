"""Rounding with a gradient: the integers of docs/fixed-point.md forwards, a straight line backwards.

    forwards   y = clamp(rint(leaky(a) * 2^f), lo, hi) * 2^-f      rint: half to even
    backwards  dy/da = slope of leaky where the code is inside lo .. hi, 0 where it saturates

Every number here is an integer times a power of two that float32 holds, so the forward pass rounds nowhere else.

Source: the straight-through estimator of Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons
for Conditional Computation" (2013).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SLOPE_REACH = 4
"""A table's slope is taken over so many codes to each side: its entries are rounded, single differences are noise."""


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Requantise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, acc: Tensor, alpha: float | None, frac: int, lo: int, hi: int) -> Tensor:
        active = acc if alpha is None else functional.leaky_relu(acc, alpha)
        codes = (active * 2.0**frac).round_()
        clipped = codes.clamp(lo, hi)
        ctx.alpha = alpha
        ctx.save_for_backward(clipped == codes, None if alpha is None else acc < 0)
        return clipped.mul_(2.0**-frac)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inside, negative = ctx.saved_tensors
        grad = grads[0] * inside
        if negative is not None:
            grad = torch.where(negative, grad * ctx.alpha, grad)
        return grad, None, None, None, None


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor, x: Tensor, table: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(index, slopes)
        return table[index]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        index, slopes = ctx.saved_tensors
        return None, grads[0] * slopes[index], None, None


def round_through(x: Tensor) -> Tensor:
    """``x`` to the nearest integer, half to even; the gradient passes."""
    rounded: Tensor = _Round.apply(x)  # type: ignore[no-untyped-call]
    return rounded


def requantise(acc: Tensor, frac: int, lo: int, hi: int, alpha: float | None = None) -> Tensor:
    """Real values to real values with ``frac`` fraction bits whose codes lie in ``lo`` .. ``hi``.

    Args:
        acc: any shape, float32.
        frac: fraction bits of the result.
        lo, hi: saturation bounds as codes.
        alpha: slope of negative values before they are rounded; None is linear.
    """
    result: Tensor = _Requantise.apply(acc, alpha, frac, lo, hi)  # type: ignore[no-untyped-call]
    return result


def lookup(x: Tensor, frac: int, lowest: int, table: Tensor) -> Tensor:
    """``table[code - lowest]`` of the codes ``x * 2^frac``; the slope of the table is the gradient.

    Args:
        x: real values, exact multiples of 2^-frac.
        frac: fraction bits of ``x``.
        lowest: the code of the first entry.
        table: (n,) real values.
    """
    reach = torch.arange(len(table), device=table.device)
    low, high = (reach - SLOPE_REACH).clamp_min(0), (reach + SLOPE_REACH).clamp_max(len(table) - 1)
    slopes = (table[high] - table[low]) / (high - low) * 2.0**frac
    index = (x.detach() * 2.0**frac).long() - lowest
    result: Tensor = _Lookup.apply(index, x, table, slopes)  # type: ignore[no-untyped-call]
    return result
