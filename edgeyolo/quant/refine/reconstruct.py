"""Layer reconstruction: the integers whose layer output is nearest to the float layer's, in closed form.

Behind the already quantised prefix a convolution reads x^ where the float one reads x. With y the float layer's output
and H, B the moments of moments.py (of x^ and y), per output channel w (K,):

1. Refit. The real weights that suit what is really read: ridge regression towards the float weights,

       w* = argmin E|y - w x^|^2 + r |w - w_float|^2  =  (B + r w_float) (H + r I)^-1

2. Round together (rounding.py). For every v, E|y - v x^|^2 + r |v - w_float|^2 is (v - w*) (H + r I) (v - w*)^T plus
   a constant: the integers nearest to w* in that metric, at each exponent around the plan's.

The bias takes the difference of the means; bias_correction.py makes it exact behind the activation.

Patches of one picture are alike, and a layer has as many unknowns as a small set has pictures: without care this fits
the calibration set (heads 4 dB better there than elsewhere). So r is chosen per layer, by the squared error of the
rounded weights on pictures that did not take part in the fit; then all pictures fit.

Where an addition is all that reads the layer, y is what the sum lacks: y := y + (z - z^), z being the other addend.
So a layer also takes back the error that came past it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgeyolo.qtype import TensorQuant
from edgeyolo.quant.plan import WeightQuant
from edgeyolo.quant.refine.moments import Moments
from edgeyolo.quant.refine.rounding import Problem, Rounded, best_rounding

Float64 = npt.NDArray[np.float64]

RIDGES = (0.001, 0.01, 0.1, 0.3, 1.0)
"""Of the mean of H's diagonal."""
TRIED = (-1, 0, 1)
"""Exponents around the plan's: finer steps clip more, coarser ones round more."""
LARGE = 1 << 31
"""Beyond so many products (O * K * K) one ridge and the plan's exponent must do: searching would take minutes."""
LARGE_RIDGE = 0.1


@dataclass(frozen=True)
class Limits:
    """What the hardware allows: exponents (O,) from ``lo`` to ``hi``, and the largest sum of |codes| of a channel."""

    lo: npt.NDArray[np.int64]
    hi: npt.NDArray[np.int64]
    total: float = np.inf


def reconstruct(
    weights: npt.NDArray[np.float32],
    planned: WeightQuant,
    fitted: Moments,
    judging: Moments | None,
    limits: Limits | None,
) -> WeightQuant:
    """Codes, exponents and bias of one layer.

    Args:
        weights: the float weights (O, I/g, KH, KW).
        planned: their quantisation in the plan; its type is kept.
        fitted: moments of most pictures.
        judging: of the others, to choose the ridge by; None: there are none.
        limits: of exponents and codes; None: scales are any numbers, and stay those of the plan.
    """
    groups, per_group = fitted.y.shape
    real = weights.astype(np.float64).reshape(groups, per_group, -1)
    large = real.size * real.shape[2] > LARGE
    ridge, moments = LARGE_RIDGE, fitted
    if judging is not None:
        moments = fitted + judging
        if not large:
            trials = {r: _round(real, planned, fitted, r, limits, TRIED) for r in RIDGES}
            ridge = min(RIDGES, key=lambda r: _error(_real(trials[r]), judging))
    found = _round(real, planned, moments, ridge, limits, (0,) if large else TRIED)
    quant = planned.quant
    if limits is not None:
        frac = np.rint(-np.log2(found.scale)).astype(np.int64).ravel()
        quant = TensorQuant.pow2(planned.quant.qtype, frac if planned.quant.qtype.axis == 0 else frac[0])
    bias = moments.y - np.einsum("gmk,gk->gm", _real(found), moments.x)
    codes = found.codes.reshape(planned.codes.shape).astype(np.int8)
    return replace(planned, codes=codes, quant=quant, bias=bias.ravel())


def refit(weights: Float64, moments: Moments, ridge: float) -> tuple[Float64, Float64]:
    """(w* (G, M, K), H + r I (G, K, K)) of float weights (G, M, K); ``ridge`` is relative to H's mean diagonal."""
    size = moments.h.shape[1]
    r = ridge * np.maximum(np.trace(moments.h, axis1=1, axis2=2) / size, 1e-12)[:, None, None]
    hessian = moments.h + r * np.eye(size)
    solved: Float64 = np.linalg.solve(hessian, (moments.b + r * weights).transpose(0, 2, 1)).transpose(0, 2, 1)
    return solved, hessian


def _round(
    real: Float64, planned: WeightQuant, moments: Moments, ridge: float, limits: Limits | None, tried: tuple[int, ...]
) -> Rounded:
    qtype, shape = planned.quant.qtype, real.shape[:2]
    target, hessian = refit(real, moments, ridge)
    problem = Problem(hessian, target, qtype.lo, qtype.hi, np.inf if limits is None else limits.total)
    planned_scale = np.broadcast_to(planned.quant.scale.astype(np.float64), shape[0] * shape[1])
    codes, scale = planned.codes.astype(np.int64).reshape(real.shape), planned_scale.reshape(shape)
    start, joint = Rounded(codes, scale, problem.cost(codes, scale)), qtype.axis is None
    scales = [scale] if limits is None else _scales(planned, limits, shape, tried)
    return best_rounding(problem, start, scales, joint=joint)


def _scales(
    planned: WeightQuant, limits: Limits, shape: tuple[int, int], tried: tuple[int, ...]
) -> list[Float64]:  # fmt: skip
    """(G, M) each: the plan's exponents and those around them, within the limits."""
    frac = np.broadcast_to(planned.quant.frac, shape[0] * shape[1])
    joint = planned.quant.qtype.axis is None
    lo, hi = (limits.lo.max(), limits.hi.min()) if joint else (limits.lo, limits.hi)
    fracs = [np.clip(frac + step, np.minimum(lo, frac), np.maximum(hi, frac)) for step in tried]
    return [np.ldexp(1.0, -f).reshape(shape) for f in fracs]


def _real(rounded: Rounded) -> Float64:
    real: Float64 = rounded.codes * rounded.scale[:, :, None]
    return real


def _error(weights: Float64, moments: Moments) -> float:
    """Variance of y - v x over all channels, up to a constant; the bias takes the mean."""
    return float(np.sum((weights @ moments.h - 2 * moments.b) * weights))
