"""How long and how carefully a plan is finetuned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeyolo.errors import InputError

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class FinetuneSettings:
    """The options of one finetuning.

    Args:
        minutes: of training and judging.
        steps: so many updates instead, which give the same result every time.
        batch: pictures in one update.
        weight_lr: weight codes by which one update moves a latent weight, about.
        bias_lr: output codes by which one update moves a bias, about.
        checks: how often the held-out pictures judge.
        seed: of the order of the pictures and their flips.
        device: ``cpu`` or ``cuda``; on a GPU sums may differ in their last digits from run to run.
    """

    minutes: float = 5.0
    steps: int | None = None
    batch: int = 2
    weight_lr: float = 0.0005
    bias_lr: float = 0.01
    checks: int = 10
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        _check("minutes", self.minutes, 0 < self.minutes < math.inf, "a number above 0")
        _check("steps", self.steps, self.steps is None or self.steps >= 1, "1 or more")
        _check("batch", self.batch, 1 <= self.batch <= 256, "1 to 256")
        for name in ("weight_lr", "bias_lr"):
            rate = getattr(self, name)
            _check(name, rate, 0 <= rate <= 1, "0 to 1 codes an update")
        _check("checks", self.checks, self.checks >= 1, "1 or more")
        _check("seed", self.seed, 0 <= self.seed < 1 << 32, "0 to 2^32 - 1")
        _check("device", self.device, self.device in DEVICES, ", ".join(DEVICES))


def _check(name: str, value: object, good: bool, allowed: str) -> None:
    if not good:
        raise InputError("cannot finetune so", where=f"--{name.replace('_', '-')}", got=value, allowed=allowed)
