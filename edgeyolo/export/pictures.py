"""Calibration pictures: decoded one at a time, as often as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeyolo.datasets import Dataset, Sample, load_dataset
from edgeyolo.datasets.recipe import load_recipe, recipe_dataset
from edgeyolo.detector import Preprocess
from edgeyolo.errors import InputError
from edgeyolo.images import Pixels, Skipped, list_images, load_image, to_input

CACHE_BYTES = 1 << 28
"""256 MiB hold 870 pictures of 320x320."""
TABLES = (".json", ".yaml", ".yml", ".data")
"""Files that describe a labelled set."""


class Entry(NamedTuple):
    """A picture: its path, or the name that its data set gives it, and what decodes it to (H, W, 3) uint8 RGB."""

    path: Path
    load: Callable[[], Pixels]


Track = Callable[[Sequence[int]], Iterable[int]]
"""Wraps the iteration over the pictures' positions, for a progress bar."""


@dataclass
class PictureSet:
    """A collection of pictures as network pixels (C, H, W) uint8, preprocessed as the model's metadata says.

    The pictures that do not decode are left out and listed in ``skipped``. Decoded pictures are kept up to
    ``CACHE_BYTES``, the others are decoded each time: memory does not grow with their number.
    """

    entries: list[Entry]
    preprocess: Preprocess
    skipped: Skipped = field(default_factory=list)
    cache: dict[Entry, Pixels] = field(default_factory=dict)
    """By entry, not by path: pictures in different folders may share the name that their data set gives them."""

    @classmethod
    def find(
        cls, source: Path | str, preprocess: Preprocess, limit: int | None = None, track: Track = iter
    ) -> PictureSet:
        """All pictures that ``source`` stands for, or ``limit`` of them spread evenly; undecodable ones are dropped.

        Args:
            source: what ``list_images`` or ``load_dataset`` takes, or a recipe (.toml); labels are ignored.
            preprocess: the model's.
            limit: at most so many.
            track: wraps the iteration.

        Raises:
            InputError: none is there or none decodes.
        """
        entry, count, skipped = _source(source)
        indices = range(count)
        if limit is not None and limit < count:
            indices = np.linspace(0, count - 1, limit).astype(int).tolist()
        return cls.of((entry(i) for i in track(indices)), preprocess, skipped)

    @classmethod
    def of(cls, entries: Iterable[Entry], preprocess: Preprocess, skipped: Skipped | None = None) -> PictureSet:
        """Decode each entry once. Raises InputError if none decodes."""
        pictures = cls([], preprocess, [] if skipped is None else skipped)
        for entry in entries:
            try:
                pixels = to_input(entry.load(), preprocess)
            except InputError as error:
                pictures.skipped.append((entry.path, f"{error.what}: {error.got}"))
                continue
            pictures.entries.append(entry)
            if (len(pictures.cache) + 1) * pixels.nbytes <= CACHE_BYTES:
                pictures.cache[entry] = pixels
        if not pictures.entries:
            got = "; ".join(f"{path}: {reason}" for path, reason in pictures.skipped[:3])
            raise InputError(f"none of {len(pictures.skipped)} pictures could be decoded", got=got or None)
        return pictures

    @classmethod
    def noise(cls, preprocess: Preprocess, count: int) -> PictureSet:
        """``count`` pictures of seeded noise, for who has none: they show nothing that a detector knows."""
        shape = (preprocess.height, preprocess.width, 3)

        def draw(seed: int) -> Pixels:
            pixels: Pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
            return pixels

        return cls.of((Entry(Path(f"noise-{i}"), partial(draw, i)) for i in range(count)), preprocess)

    @property
    def paths(self) -> list[Path]:
        """Path or name of every picture."""
        return [entry.path for entry in self.entries]

    def __iter__(self) -> Iterator[Pixels]:
        for entry in self.entries:
            cached = self.cache.get(entry)
            yield to_input(entry.load(), self.preprocess) if cached is None else cached

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, item: object) -> bool:
        return item in self.paths

    def spread(self, count: int) -> PictureSet:
        """At most ``count`` of them, evenly spread."""
        chosen = np.linspace(0, len(self) - 1, min(count, len(self))).astype(int)
        return PictureSet([self.entries[i] for i in chosen], self.preprocess, cache=self.cache)


def latest(samples: Sequence[Sample]) -> Callable[[int], Sample]:
    """``samples[i]``, the last one remembered: generated scenes are made when asked for, picture and labels at once."""
    return lru_cache(maxsize=1)(samples.__getitem__)


def sample_entry(sample: Callable[[int], Sample], index: int) -> Entry:
    """The picture of ``sample(index)``, which holds no pixels."""
    return Entry(Path(sample(index).name), lambda: sample(index).load())


def _source(source: Path | str) -> tuple[Callable[[int], Entry], int, Skipped]:
    """What gives the entry at a position, the number of positions, and the pictures that its reader left out."""
    path = Path(source)
    if path.suffix.lower() == ".toml":
        return _dataset(recipe_dataset(load_recipe(path)))
    try:
        exists = path.exists()
    except (OSError, ValueError):  # the listing below says what is wrong with it
        exists = False
    if path.suffix.lower() in TABLES or (not exists and ":" in str(source)):
        return _dataset(load_dataset(source if isinstance(source, str) else str(source)))
    paths = list_images(path)
    return lambda i: Entry(paths[i], partial(load_image, paths[i])), len(paths), []


def _dataset(dataset: Dataset) -> tuple[Callable[[int], Entry], int, Skipped]:
    """A labelled set without its labels."""
    left_out = [(Path(p.where), p.reason) for p in dataset.problems if p.action == "left out"]
    return partial(sample_entry, latest(dataset.samples)), len(dataset.samples), left_out
