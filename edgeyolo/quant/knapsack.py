"""The multiple-choice knapsack, exactly: one option of every item, the least loss, whole costs within a limit.

Dynamic programming over the items: a state is what the items so far cost and lose. A state goes when another costs no
more and loses no more, and when the bound on what it can still become is beyond a solution that is known already:

    loss so far + relaxed loss of the items to come, given what is left of the limit  >  loss of the greedy solution

Relaxed, an item may be split between two options, so the best loss of several items is a convex function of their
cost: start with the cheapest options and take the steps of all lower hulls by loss saved a unit of cost, the largest
first. The greedy solution takes the same steps, except those that do not fit. It is so near the bound that few states
are left.

Source: Kellerer, Pferschy, Pisinger, "Knapsack Problems" (2004), chapter 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Point = tuple[int, float]

SLACK = 1e-12
"""Of the loss at the cheapest options: a bound that rounding made too high by less must not cut off the best."""


def knapsack(losses: Sequence[Sequence[float]], costs: Sequence[Sequence[int]], limit: int) -> list[int]:
    """For each item the index of its option, so that the summed loss is least and the summed cost within ``limit``.

    Losses are at least 0. Among equals the cheaper choice wins. Raises ValueError if even the cheapest options cost
    more.
    """
    hulls = [_hull(sorted(zip(cost, loss, strict=True))) for cost, loss in zip(costs, losses, strict=True)]
    bounds = [_relaxed(hulls[index:]) for index in range(len(hulls) + 1)]
    if bounds[0][0][0] > limit:
        raise ValueError(f"the cheapest options cost {bounds[0][0][0]:.0f}, more than {limit}")
    known = _greedy(hulls, limit) + SLACK * bounds[0][1][0]
    cost, loss = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[Int64, Int64]] = []
    for option_costs, option_losses, (to_come, relaxed) in zip(costs, losses, bounds[1:], strict=True):
        new_cost = (cost[:, None] + np.array(option_costs, np.int64)).ravel()
        new_loss = (loss[:, None] + np.array(option_losses, np.float64)).ravel()
        left = limit - new_cost
        hopeful = np.flatnonzero((left >= to_come[0]) & (new_loss + np.interp(left, to_come, relaxed) <= known))
        hopeful = hopeful[np.lexsort((new_loss[hopeful], new_cost[hopeful]))]
        least = np.minimum.accumulate(np.concatenate([[np.inf], new_loss[hopeful]]))
        kept = hopeful[new_loss[hopeful] < least[:-1]]
        cost, loss = new_cost[kept], new_loss[kept]
        steps.append((kept // len(option_costs), kept % len(option_costs)))
    picked, state = [0] * len(steps), len(loss) - 1  # costs ascend, so losses descend
    for index in reversed(range(len(steps))):
        parents, chosen = steps[index]
        picked[index], state = int(chosen[state]), int(parents[state])
    return picked


def _hull(points: list[Point]) -> list[Point]:
    """The lower convex hull of (cost, loss), from the cheapest point down to the least loss."""
    hull: list[Point] = []
    for cost, loss in points:
        if hull and loss >= hull[-1][1]:
            continue
        while len(hull) > 1 and _rate(hull[-2], hull[-1]) <= _rate(hull[-1], (cost, loss)):
            hull.pop()
        hull.append((cost, loss))
    return hull


def _rate(start: Point, end: Point) -> float:
    """Loss saved a unit of cost."""
    return (start[1] - end[1]) / (end[0] - start[0]) if end[0] > start[0] else np.inf


def _steps(hulls: Sequence[list[Point]]) -> list[tuple[float, int, int, float]]:
    """All hulls' steps, the most rewarding first: (-rate, item, cost, loss)."""
    return sorted(
        (-_rate(start, end), item, end[0] - start[0], end[1] - start[1])
        for item, hull in enumerate(hulls)
        for start, end in pairwise(hull)
    )


def _relaxed(hulls: Sequence[list[Point]]) -> tuple[Float64, Float64]:
    """The relaxed loss of several items as a function of their cost: corners (costs, losses)."""
    steps = _steps(hulls)
    start = (sum(hull[0][0] for hull in hulls), sum(hull[0][1] for hull in hulls))
    costs = np.cumsum([start[0], *(cost for _, _, cost, _ in steps)])
    return costs.astype(np.float64), np.cumsum([start[1], *(loss for _, _, _, loss in steps)])


def _greedy(hulls: Sequence[list[Point]], limit: int) -> float:
    """The loss of a good solution."""
    left, loss = limit - sum(hull[0][0] for hull in hulls), sum(hull[0][1] for hull in hulls)
    stopped: set[int] = set()
    for _, item, cost, gain in _steps(hulls):
        if item not in stopped and cost <= left:
            left, loss = left - cost, loss + gain
        else:
            stopped.add(item)
    return loss
