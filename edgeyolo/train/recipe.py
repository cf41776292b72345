"""Every choice that a training depends on, in one frozen record that travels with its checkpoints."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from edgeyolo.errors import InputError

BOX_LOSSES = ("ciou", "giou")


def _number(default: Any, low: float, high: float, text: str) -> Any:
    """A field with its range and a line for people."""
    return field(default=default, metadata={"low": low, "high": high, "help": text})


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the same recipe, data and machine give the same network."""

    epochs: int = _number(100, 1, 1e5, "Passes over the training pictures.")
    batch: int = _number(64, 1, 1 << 14, "Pictures a step, over all devices together.")
    lr: float = _number(0.002, 1e-9, 10, "Highest learning rate (AdamW).")
    final_lr: float = _number(0.02, 0, 1, "Share of it at the end of the cosine.")
    warmup: float = _number(1.0, 0, 1e5, "Epochs, or a part of one, over which the learning rate rises.")
    weight_decay: float = _number(0.01, 0, 10, "Of convolution weights; biases and batch norm have none.")
    clip_norm: float = _number(30.0, 1e-6, 1e9, "Largest norm of the gradient.")
    ema: float = _number(0.999, 0, 0.99999, "Decay a step of the average of the weights: what is scored and written.")
    box: float = _number(5.0, 0, 1e4, "Weight of the box loss.")
    objectness: float = _number(1.0, 0, 1e4, "Weight of the objectness loss.")
    classification: float = _number(0.5, 0, 1e4, "Weight of the class loss.")
    box_loss: str = field(default="ciou", metadata={"help": "ciou or giou."})
    assign_iou: float = _number(0.4, 0, 1, "Besides the best anchor, those whose shape overlaps by more find it.")
    ignore_iou: float = _number(0.6, 0, 1, "A box that overlaps an object by more is no negative.")
    iou_target: float = _number(1.0, 0, 1, "Share of the overlap in the objectness target; 0 is Darknet's 1 for all.")
    label_smoothing: float = _number(0.0, 0, 0.5, "Class targets are this much nearer to one half.")
    mosaic: float = _number(0.5, 0, 1, "Share of pictures put together from four.")
    flip: float = _number(0.5, 0, 1, "Share of pictures that are mirrored; 0 where left and right matter.")
    scale: float = _number(0.3, 0, 0.9, "Largest change of size.")
    shift: float = _number(0.1, 0, 0.9, "Largest shift, as a share of the side.")
    hue: float = _number(0.02, 0, 0.5, "Largest turn of hue; 1 is all around.")
    saturation: float = _number(1.4, 1, 10, "Largest factor of saturation.")
    exposure: float = _number(1.4, 1, 10, "Largest factor of brightness.")
    whole_from: float = _number(0.85, 0, 1, "Share of the epochs after which no mosaics are made.")
    seed: int = _number(0, 0, (1 << 32) - 1, "Of order and augmentation.")

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, limits = getattr(self, entry.name), entry.metadata
            if "low" in limits and not limits["low"] <= value <= limits["high"]:  # NaN is in no range
                raise InputError("out of range", where=f"--{entry.name.replace('_', '-')}", got=value,
                                 allowed=f"{limits['low']:g} to {limits['high']:g}")  # fmt: skip
        if self.box_loss not in BOX_LOSSES:
            raise InputError("unknown box loss", got=self.box_loss, allowed=", ".join(BOX_LOSSES))

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Linear warm-up, then a cosine from ``lr`` to ``final_lr * lr``. ``step`` counts from 0."""
        rise, total = self.warmup * steps_per_epoch, self.epochs * steps_per_epoch
        if step < rise:
            return self.lr * (step + 1) / (rise + 1)
        progress = (step - rise) / max(total - rise, 1)
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: object) -> Recipe:
        """Read what ``to_json`` gave. Raises InputError on anything else."""
        known = {f.name: type(f.default) for f in fields(cls)}
        if not isinstance(values, dict) or set(values) != set(known):
            raise InputError("this is no training recipe", got=str(values)[:80], allowed=", ".join(known))
        for name, kind in known.items():
            if type(values[name]) is not kind:
                raise InputError("a wrong value in a training recipe", where=name, got=values[name], allowed=kind)
        return cls(**values)
