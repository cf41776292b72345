"""Run an engine that was built on this machine: what stands in ``targets/jetson`` behind the four methods.

An engine contains code for one GPU. It is loaded only where the user names it, or asks for the bundle's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeyolo.bundle import Bundle
from edgeyolo.detector import Detector
from edgeyolo.errors import InputError
from edgeyolo.targets.jetson import engine as device
from edgeyolo.targets.jetson.tensorrt_api import TensorRTError

ENGINES = "engines"
"""Folder of a bundle for what is built on a device; the manifest does not list it."""
SUFFIX = ".engine"


@contextmanager
def as_input_error() -> Iterator[None]:
    """The device's error as the command line's."""
    try:
        yield
    except TensorRTError as error:
        raise InputError(
            error.what, where=error.where, got=error.got, allowed=error.allowed, hint=error.hint
        ) from error


@contextmanager
def open_engine(path: Path) -> Iterator[Any]:
    """An ``edgeyolo.targets.jetson.engine.Engine`` of the file ``path``, closed at the end.

    Raises InputError: no TensorRT, no GPU, or an engine of another model, GPU or TensorRT.
    """
    with as_input_error(), device.Engine() as engine:
        engine.load(path)
        yield engine


class TensorRTRunner:
    """The four methods over the engine of a bundle of the TensorRT target."""

    def __init__(self) -> None:
        self.detector: Detector | None = None
        self._engine = device.Engine()
        self._order: list[int] = []

    def load(self, path: Path) -> None:
        """Open the one engine that was built in the bundle ``path``.

        Raises InputError: there is none, or several, or it cannot be used here. BundleError: the bundle is damaged.
        """
        bundle = Bundle.open(path)
        found = sorted((path / ENGINES).glob(f"*{SUFFIX}"))
        if len(found) != 1:
            raise InputError(
                "no engine was built in this bundle" if not found else "the bundle has several engines",
                where=path / ENGINES,
                got=", ".join(item.name for item in found) or None,
                allowed=f"one {SUFFIX} file",
                hint="edgeyolo build, or build.sh, on this machine" if not found else "remove all but one",
            )
        with as_input_error():
            self._engine.load(found[0])
        self.detector = bundle.detector
        heads = [head.output for head in bundle.detector.heads]
        names = heads if set(heads) <= set(self._engine.names) else ["boxes", "scores"]
        missing = set(names) - set(self._engine.names)
        if missing:
            raise InputError("the engine has other outputs", where=found[0], got=", ".join(self._engine.names))
        self._order = [self._engine.names.index(name) for name in names]

    def set_inputs(self, pixels: npt.NDArray[Any]) -> None:
        """Take (C, H, W) uint8 network pixels, or float32 that are scaled already."""
        assert self.detector is not None
        if pixels.dtype == np.uint8:
            pixels = pixels.astype(np.float32) * np.float32(self.detector.preprocess.scale)
        with as_input_error():
            self._engine.set_inputs(pixels[None])

    def infer(self) -> None:
        """Launch once and wait."""
        with as_input_error():
            self._engine.infer()

    def outputs(self) -> list[npt.NDArray[np.float32]]:
        """Raw heads (C, grid_h, grid_w), or boxes (n, 4) and scores (n, classes), of the one picture."""
        with as_input_error():
            values = self._engine.outputs()
        return [np.asarray(values[i][0], np.float32) for i in self._order]
