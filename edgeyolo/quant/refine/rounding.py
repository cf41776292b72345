"""Rounding a layer's weights together: the integers with the least squared error at the layer's output.

With H the second moment of what the layer reads and w the best real weights, integers q at scale s cost

    (s q - w) H (s q - w)^T    per output channel

A nearest lattice point problem. Sequential rounding hands the error of every weight on to the weights that are still
free; coordinate descent then moves one weight at a time to the best integer with all others fixed, until none moves.

Source: Frantar et al., "GPTQ" (2023) for the sequential part; Nagel et al., "Up or Down? Adaptive Rounding for
Post-Training Quantization" (2020) for the objective.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

SWEEPS = 40
"""Descent stops by itself, mostly within 15 sweeps."""


@dataclass(frozen=True, eq=False)
class Problem:
    """One layer: H (G, K, K) positive definite, real weights (G, M, K), range of the integers, largest sum of |q|."""

    hessian: Float64
    weights: Float64
    lo: int
    hi: int
    total: float = np.inf

    def cost(self, codes: Int64, scale: Float64) -> Float64:
        """(G, M) error of integers (G, M, K) at ``scale`` (G, M); infinite where they are too large together."""
        error = codes * scale[:, :, None] - self.weights
        cost: Float64 = np.einsum("gmk,gmk->gm", error @ self.hessian, error)
        return np.where(np.abs(codes).sum(axis=2) <= self.total, cost, np.inf)


@dataclass(frozen=True, eq=False)
class Rounded:
    """Integers (G, M, K), their scale (G, M) and what they cost (G, M)."""

    codes: Int64
    scale: Float64
    cost: Float64

    def better(self, other: Rounded, *, joint: bool) -> Rounded:
        """The cheaper one, channel by channel or, where all channels share a scale, as a whole."""
        wins = other.cost < self.cost
        if joint:
            wins = np.full_like(wins, other.cost.sum() < self.cost.sum())
        pairs = ((self.scale, other.scale), (self.cost, other.cost))
        scale, cost = (np.where(wins, b, a) for a, b in pairs)
        return Rounded(np.where(wins[:, :, None], other.codes, self.codes), scale, cost)


def best_rounding(problem: Problem, start: Rounded, scales: Iterable[Float64], *, joint: bool) -> Rounded:
    """The cheapest of ``start`` and what sequential rounding and descent find at each of ``scales`` (G, M)."""
    best = start
    for scale in scales:
        codes = descend(problem, scale, sequential(problem, scale))
        best = best.better(Rounded(codes, scale, problem.cost(codes, scale)), joint=joint)
    return best


def sequential(problem: Problem, scale: Float64) -> Int64:
    """Round weight by weight, largest variance first, handing every error on to the weights still free."""
    order = np.argsort(-np.diagonal(problem.hessian, axis1=1, axis2=2), axis=1, kind="stable")
    groups = np.arange(len(order))[:, None]
    hessian = problem.hessian[groups[:, :, None], order[:, :, None], order[:, None, :]]
    # Row i of U, with H^-1 = U^T U, says how the best values of the weights from i on follow an error of weight i.
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).transpose(0, 2, 1)
    free = np.take_along_axis(problem.weights, order[:, None, :], axis=2)
    codes = np.empty(free.shape, np.int64)
    for k in range(free.shape[2]):
        codes[:, :, k] = np.clip(np.rint(free[:, :, k] / scale), problem.lo, problem.hi)
        error = (free[:, :, k] - codes[:, :, k] * scale) / upper[:, k, k, None]
        free[:, :, k:] -= error[:, :, None] * upper[:, k, None, k:]
    ordered: Int64 = np.take_along_axis(codes, np.argsort(order, axis=1)[:, None, :], axis=2)
    return ordered


def descend(problem: Problem, scale: Float64, codes: Int64) -> Int64:
    """Cyclic coordinate descent from ``codes`` (G, M, K); never increases the error."""
    groups, per_group, size = codes.shape
    group, steps = np.repeat(np.arange(groups), per_group), scale.ravel()
    # Channels know nothing of each other: as rows (G * M, K), of which those that a sweep has left alone are done.
    gradient = ((codes * scale[:, :, None] - problem.weights) @ problem.hessian).reshape(-1, size)
    curvature = np.diagonal(problem.hessian, axis1=1, axis2=2)[group] * steps[:, None]
    best, rows = codes.reshape(-1, size).astype(np.float64), np.arange(groups * per_group)
    for _ in range(SWEEPS):
        at, slope, bend, moved = best[rows], gradient[rows], curvature[rows], np.zeros(len(rows), bool)
        for k in range(size):
            wanted = np.rint(at[:, k] - slope[:, k] / bend[:, k])
            change = np.minimum(np.maximum(wanted, problem.lo), problem.hi) - at[:, k]
            hit = change.nonzero()[0]
            if len(hit):
                moved[hit] = True
                at[hit, k] += change[hit]
                which = rows[hit]
                slope[hit] += (change[hit] * steps[which])[:, None] * problem.hessian[group[which], k]
        best[rows], gradient[rows], rows = at, slope, rows[moved]
        if not len(rows):
            break
    return best.astype(np.int64).reshape(codes.shape)
