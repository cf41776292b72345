"""A moving average of the weights: less noisy than the last step's, and what is scored and written."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

RAMP = 2000.0
"""Steps over which the decay rises to its final value, so that the random start is forgotten."""


class Average:
    """The average of ``module``'s parameters and buffers; ``module`` itself is left alone."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards ``module``; ``step`` counts from 0."""
        share = 1 - self.decay * (1 - math.exp(-(step + 1) / RAMP))
        mine, theirs = self.module.state_dict(), module.state_dict()
        floats = [name for name, value in mine.items() if value.is_floating_point()]
        old: list[Tensor] = [mine[name] for name in floats]
        torch._foreach_lerp_(old, [theirs[name].detach() for name in floats], share)
        for name in mine.keys() - set(floats):
            mine[name].copy_(theirs[name])
