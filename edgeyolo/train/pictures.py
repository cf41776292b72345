"""Training pictures: resized once, kept in memory as far as it reaches, and put together to batches.

Which pictures make a batch, and what happens to each, follows from (seed, epoch, position) alone: not from the number
of workers or devices, nor from whether a training was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from edgeyolo.datasets.sample import Pixels, Problem, Sample, load_again
from edgeyolo.detector import Preprocess
from edgeyolo.errors import InputError
from edgeyolo.images import to_input
from edgeyolo.postprocess import placement
from edgeyolo.progress import Log
from edgeyolo.train.assign import Objects
from edgeyolo.train.augment import Labelled, augment
from edgeyolo.train.recipe import Recipe

CACHE_BYTES = 2 << 30
"""Resized pictures that stay in memory: 27,000 of 160x160, 4,100 of 416x416. The others are decoded each time."""


def _in_memory() -> Pixels:
    """Stand in for the pixels of a picture that has been resized and kept."""
    raise AssertionError("this picture is in memory")


class Pictures:
    """Labelled pictures at the network's size: ``pictures[i]`` is a Labelled."""

    def __init__(self, samples: Sequence[Sample], classes: Any, preprocess: Preprocess) -> None:
        """``classes`` maps the data set's classes to the model's, as ``evaluate.match_classes`` gives it."""
        self.samples, self.classes, self.preprocess = samples, classes, replace(preprocess, channels=3)
        self._cache: dict[int, Labelled] = {}

    @classmethod
    def load(
        cls, samples: Sequence[Sample], classes: Any, preprocess: Preprocess, log: Log, problems: list[Problem]
    ) -> Pictures:
        """Resize and keep what memory allows; pictures that do not decode are left out and become ``problems``.

        Raises InputError if there is no picture, or no object on any.
        """
        pictures = cls([], classes, preprocess)
        most = CACHE_BYTES // (3 * preprocess.width * preprocess.height)
        good: list[Sample] = []
        for number, sample in enumerate(log.track(samples, "loading pictures", len(samples))):
            if len(good) < most:
                try:
                    pictures._cache[len(good)] = pictures._resized(sample)
                except InputError as error:
                    problems.append(Problem(sample.name, "picture does not decode", "left out", str(error.got)[:60]))
                    continue
            # A generated scene holds its pixels: here they would be in memory twice, or without a limit.
            load = _in_memory if len(good) < most else partial(load_again, samples, number)
            good.append(replace(sample, load=load))
        pictures.samples = good
        if not any(len(sample.boxes) for sample in good):
            raise InputError("there is nothing to learn: no readable picture shows a labelled object",
                             got=f"{len(good)} readable pictures")  # fmt: skip
        return pictures

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Labelled:
        cached = self._cache.get(index)
        return self._resized(self.samples[index]) if cached is None else cached

    def _resized(self, sample: Sample) -> Labelled:
        pixels = np.ascontiguousarray(to_input(sample.load(), self.preprocess).transpose(1, 2, 0))
        left, top, width, height = placement(self.preprocess, sample.size)
        factor = np.array([width / sample.size[0], height / sample.size[1]] * 2, np.float32)
        boxes = (sample.boxes * factor + np.array([left, top] * 2, np.float32)).astype(np.float32)
        return Labelled(pixels, boxes, self.classes[sample.classes])


class _Augmented(Dataset[Labelled]):
    """Takes (epoch, position in the epoch, picture) and gives the augmented picture."""

    def __init__(self, pictures: Pictures, recipe: Recipe) -> None:
        self.pictures, self.recipe = pictures, recipe

    def __getitem__(self, key: tuple[int, int, int]) -> Labelled:
        epoch, _, index = key
        random = np.random.default_rng((self.recipe.seed, *key))
        mosaic = epoch < self.recipe.whole_from * self.recipe.epochs
        fill = self.pictures.preprocess.fill
        return augment(
            index, self.pictures.__getitem__, len(self.pictures), self.recipe, random, mosaic=mosaic, fill=fill
        )


class EpochBatches(BatchSampler):
    """The batches of one epoch for one of ``world`` devices; the last, smaller batch is left out."""

    def __init__(self, count: int, recipe: Recipe, rank: int, world: int) -> None:
        if recipe.batch % world:
            raise InputError("the batch does not divide by the number of devices", where="--batch", got=recipe.batch,
                             allowed=f"a multiple of {world}")  # fmt: skip
        self.count, self.recipe, self.rank, self.world, self.epoch = count, recipe, rank, world, 0
        self.batch = min(recipe.batch, count - count % world)
        if not self.batch:
            raise InputError("there are fewer pictures than devices", got=count, allowed=f"at least {world}")

    def __len__(self) -> int:
        return self.count // self.batch

    def __iter__(self) -> Iterator[list[Any]]:
        order = np.random.default_rng((self.recipe.seed, self.epoch)).permutation(self.count)
        for start in range(0, len(self) * self.batch, self.batch):
            positions = range(start + self.rank, start + self.batch, self.world)
            yield [(self.epoch, position, int(order[position])) for position in positions]


def collate(items: list[Labelled]) -> tuple[torch.Tensor, Objects]:
    """(N, 3, H, W) uint8 in channels-last memory, and the objects of the batch."""
    pixels = torch.from_numpy(np.stack([item.pixels for item in items])).permute(0, 3, 1, 2)
    counts = torch.tensor([len(item.boxes) for item in items])
    picture = torch.repeat_interleave(torch.arange(len(items)), counts)
    classes = torch.from_numpy(np.concatenate([item.classes for item in items]))
    boxes = torch.from_numpy(np.concatenate([item.boxes for item in items]))
    return pixels, Objects(picture, classes, boxes)


def make_loader(pictures: Pictures, recipe: Recipe, batches: EpochBatches, workers: int) -> DataLoader[Any]:
    """Batches of augmented pictures, in the order of ``batches``; set ``batches.epoch`` before each iteration."""
    # Workers are forked, so that they share the pictures in memory; elsewhere this process does it all.
    workers = workers if "fork" in torch.multiprocessing.get_all_start_methods() else 0
    return DataLoader(
        _Augmented(pictures, recipe), batch_sampler=batches, collate_fn=collate, num_workers=workers,
        prefetch_factor=2 if workers else None, multiprocessing_context="fork" if workers else None,
    )  # fmt: skip
