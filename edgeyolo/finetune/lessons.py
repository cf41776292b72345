"""What the student learns from: batches of pictures with the float net's heads, and how far off an answer is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from edgeyolo.finetune.settings import FinetuneSettings
from edgeyolo.ort import Arrays, open_session, run
from edgeyolo.passes.graph import read_detector
from edgeyolo.quant.calibrate import Pixels, to_float

SHUFFLED = 64
"""Pictures in memory that wait for their turn: the order is shuffled among so many, whatever their number."""
VARIANCE_PICTURES = 16
"""The heads' variance only scales the loss, which Adam does not notice."""
SMALLEST_PART = 0.5
"""Of a picture's sides: parts of pictures are new pictures, and some hundred are few."""
DEAD = 1e-12
"""Least variance of all heads together: a net whose heads are constant has nothing to teach, but divides by it."""


class Lessons:
    """Batches without end, in an order that follows from the seed; every picture is varied as the float net may see it.

    Args:
        reference: the float graph that teaches, batch 1, run by ONNX Runtime.
        pictures: network pixels (C, H, W) uint8; iterated as often as needed.
        judging: positions of pictures that must not teach.
        settings: batch, seed and device.
    """

    def __init__(
        self, reference: ir.Model, pictures: Collection[Pixels], judging: Collection[int], settings: FinetuneSettings
    ) -> None:
        self._detector = read_detector(reference)
        self._session = open_session(reference, threads=torch.get_num_threads())
        self._pictures, self._judging, self._settings = pictures, frozenset(judging), settings
        self._generator = np.random.default_rng(settings.seed)
        self._order = self._shuffled()
        self._power = self._signal_power()

    def batch(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Network inputs (N, C, H, W) float32 and the float heads by name."""
        inputs = []
        for _ in range(self._settings.batch):
            pixels = next(self._order)
            inputs.append(to_float(self._varied(pixels), self._detector))
        answers = [run(self._session, each) for each in inputs]
        heads = {name: self._tensor([answer[name] for answer in answers]) for name in answers[0]}
        return self._tensor(inputs), heads

    def _varied(self, pixels: Pixels) -> Pixels:
        """Mirrored or not, and a random part of it enlarged to the full size."""
        if self._generator.random() < 0.5:
            pixels = pixels[:, :, ::-1]
        size = np.array(pixels.shape[1:])
        part = np.maximum(1, np.rint(size * self._generator.uniform(SMALLEST_PART, 1)).astype(int))
        top, left = (int(v) for v in self._generator.integers(0, size - part + 1))
        window = np.ascontiguousarray(pixels[:, top : top + part[0], left : left + part[1]])
        enlarged = functional.interpolate(torch.from_numpy(window)[None].float(), tuple(size.tolist()), mode="bilinear")
        result: Pixels = enlarged[0].round().byte().numpy()
        return result

    def loss(self, got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
        """Noise power of all heads together over the signal's power: the inverse of the head SNR."""
        noise = torch.stack([torch.square(got[name] - wanted[name]).sum() for name in wanted]).sum()
        return noise / (self._power * len(next(iter(wanted.values()))))

    def _shuffled(self) -> Iterator[Pixels]:
        waiting: list[Pixels] = []
        room = min(SHUFFLED, len(self._pictures) - len(self._judging))
        while True:
            for index, pixels in enumerate(self._pictures):
                if index not in self._judging:
                    waiting.append(pixels)
                if len(waiting) == room:
                    yield waiting.pop(int(self._generator.integers(room)))

    def _signal_power(self) -> float:
        """Power of one picture's heads around their channel means."""
        teaching = (p for i, p in enumerate(self._pictures) if i not in self._judging)
        answers: list[Arrays] = [
            run(self._session, to_float(pixels, self._detector))
            for _, pixels in zip(range(VARIANCE_PICTURES), teaching, strict=False)
        ]
        heads = [np.concatenate([answer[name] for answer in answers]) for name in answers[0]]
        powers = [head.var(axis=(0, 2, 3)).sum() * head[0, 0].size for head in heads]
        return max(float(np.sum(powers)), DEAD)

    def _tensor(self, arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(self._settings.device)
