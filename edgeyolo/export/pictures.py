"""Calibration pictures: decoded one at a time, as often as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgeyolo.detector import Preprocess
from edgeyolo.images import Pixels, Skipped, iter_images, list_images, load_image, to_input

CACHE_BYTES = 1 << 28
"""256 MiB hold 870 pictures of 320x320."""


@dataclass
class PictureSet:
    """A collection of pictures as network pixels (C, H, W) uint8, preprocessed as the model's metadata says.

    The files that do not decode are left out and listed in ``skipped``. Decoded pictures are kept up to
    ``CACHE_BYTES``,
    the others are decoded each time: memory does not grow with their number.
    """

    paths: list[Path]
    preprocess: Preprocess
    skipped: Skipped = field(default_factory=list)
    cache: dict[Path, Pixels] = field(default_factory=dict)

    @classmethod
    def find(cls, source: Path, preprocess: Preprocess, limit: int | None = None) -> PictureSet:
        """All pictures that ``source`` stands for, or ``limit`` of them spread evenly; undecodable ones are dropped.

        Raises:
            InputError: none is there or none decodes.
        """
        paths = list_images(source)
        if limit is not None and limit < len(paths):
            paths = [paths[i] for i in np.linspace(0, len(paths) - 1, limit).astype(int)]
        pictures = cls(paths, preprocess)
        pictures.paths = []
        for picture in iter_images(paths, preprocess, pictures.skipped):
            pictures.paths.append(picture.path)
            if (len(pictures.cache) + 1) * picture.pixels.nbytes <= CACHE_BYTES:
                pictures.cache[picture.path] = picture.pixels
        return pictures

    def __iter__(self) -> Iterator[Pixels]:
        for path in self.paths:
            cached = self.cache.get(path)
            yield to_input(load_image(path), self.preprocess) if cached is None else cached

    def __len__(self) -> int:
        return len(self.paths)

    def __contains__(self, item: object) -> bool:
        return item in self.paths

    def spread(self, count: int) -> PictureSet:
        """At most ``count`` of them, evenly spread."""
        chosen = np.linspace(0, len(self.paths) - 1, min(count, len(self.paths))).astype(int)
        return PictureSet([self.paths[i] for i in chosen], self.preprocess, cache=self.cache)
