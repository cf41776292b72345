"""The values that later layers still need, of all pictures, chunk by chunk: some in memory, the rest in files.

Refinements walk the network once, layer by layer, over all pictures; memory must not grow with their number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeyolo.errors import InputError
from edgeyolo.ort import Arrays

MEMORY = 1 << 28
"""256 MiB a stream stay in memory, the rest goes to files."""


class Stream:
    """Arrays by (value name, chunk); ``folder`` must exist and is the caller's to remove."""

    def __init__(self, folder: Path, memory: int = MEMORY) -> None:
        self.folder, self.free = folder, memory
        self._kept: dict[tuple[str, int], npt.NDArray[Any]] = {}
        self._files: dict[tuple[str, int], Path] = {}
        self._count = 0

    def put(self, name: str, chunk: int, array: npt.NDArray[Any]) -> None:
        """Store an array, over an earlier one of the same name."""
        self._drop((name, chunk))
        if array.nbytes <= self.free:
            self.free -= array.nbytes
            self._kept[name, chunk] = array
            return
        self._count += 1
        self._files[name, chunk] = self.folder / f"{self._count}.npy"
        try:
            np.save(self._files[name, chunk], array, allow_pickle=False)
        except OSError as error:
            hint = "free some space, set TMPDIR to a larger disk, or use fewer pictures (--calib-limit)"
            raise InputError(
                "no room for intermediate values", where=self.folder, got=error.strerror, hint=hint
            ) from error

    def get(self, name: str, chunk: int) -> npt.NDArray[Any]:
        """The array."""
        kept = self._kept.get((name, chunk))
        if kept is not None:
            return kept
        loaded: npt.NDArray[Any] = np.load(self._files[name, chunk], allow_pickle=False)
        return loaded

    def has(self, name: str) -> bool:
        """Whether a value is here."""
        return (name, 0) in self._kept or (name, 0) in self._files

    def gather(self, names: list[str], chunk: int) -> Arrays:
        """Several arrays of one chunk by name."""
        return {name: self.get(name, chunk) for name in names}

    def drop(self, name: str, chunks: int) -> None:
        """Forget a value."""
        for chunk in range(chunks):
            self._drop((name, chunk))

    def _drop(self, key: tuple[str, int]) -> None:
        if key in self._kept:
            self.free += self._kept.pop(key).nbytes
        elif key in self._files:
            self._files.pop(key).unlink()
