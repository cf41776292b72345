"""Everything that executes a model behind four methods, and the one function that picks the right one for a path."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeyolo.detector import Detector
from edgeyolo.errors import InputError

KINDS = ("auto", "ort", "integer", "engine", "tensorrt")
OWN_RUNNERS: dict[str, tuple[str, ...]] = {"fpga": ("integer", "engine"), "tensorrt": ("tensorrt",), "mobile": ()}
"""By the target of a bundle, beside ONNX Runtime."""


class Runner(Protocol):
    """A system under test: load, set inputs, infer, outputs. One picture at a time.

    ``detector`` says what the network expects and how its outputs read; None where the file does not say.
    """

    detector: Detector | None

    def load(self, path: Path) -> None:
        """Open the model. Raises EdgeYoloError if it cannot be used."""

    def set_inputs(self, pixels: npt.NDArray[Any]) -> None:
        """Take (C, H, W) uint8 network pixels; the runner makes of them what its model needs."""

    def infer(self) -> None:
        """Execute once; nothing but the execution, so that it can be timed."""

    def outputs(self) -> list[npt.NDArray[np.float32]]:
        """Return raw float32 values, (C, grid_h, grid_w) each, in the order of ``detector.heads``."""


def open_runner(path: Path, runner: str = "auto", weights: Path | None = None) -> Runner:
    """Load ``path`` into the runner that suits it.

    Args:
        path: a bundle folder, an ``.onnx`` file or a Darknet ``.cfg``.
        runner: ``auto``, ``ort`` (.onnx files, or a bundle's oracle), ``integer`` or ``engine`` (bundles for fpga),
            ``tensorrt`` (the engine built in a bundle for tensorrt). ``auto`` takes the numpy interpreter for bundles
            for fpga: it needs no compiler, and the engine gives the same integers; ``ort`` for the others.
        weights: the ``.weights`` file of a ``.cfg``.

    Raises:
        InputError: the path is missing or of no known kind, or the runner does not go with it.
    """
    opened: Runner
    if path.is_dir():
        return _open_bundle(path, runner)
    if not path.is_file():
        raise InputError("no such model", where=path, allowed="a bundle folder, an .onnx file or a .cfg")
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        _check(runner, ("auto", "ort"), path)
        from edgeyolo.runners.onnx import OnnxRunner

        opened = OnnxRunner()
    elif suffix == ".cfg":
        _check(runner, ("auto",), path)
        from edgeyolo.runners.darknet import DarknetRunner

        opened = DarknetRunner(weights)
    else:
        raise InputError("unknown kind of model", where=path, got=suffix, allowed="a bundle folder, .onnx, .cfg")
    opened.load(path)
    return opened


def _open_bundle(path: Path, runner: str) -> Runner:
    """Run what a bundle was made for, or its ONNX file exactly as the oracle does."""
    from edgeyolo.bundle import MODEL, Bundle

    bundle = Bundle.open(path)
    target = bundle.manifest["target"]
    if target not in OWN_RUNNERS:
        raise InputError("nothing runs this as a whole", where=path, got=target, hint="name one of its files")
    _check(runner, ("auto", "ort", *OWN_RUNNERS[target]), path)
    if runner == "tensorrt":
        from edgeyolo.runners.tensorrt import TensorRTRunner

        engine = TensorRTRunner()
        engine.load(path)
        return engine
    if runner == "ort" or target in ("tensorrt", "mobile"):
        from edgeyolo.runners.onnx import OnnxRunner

        oracle = OnnxRunner(optimise=False)
        oracle.load(bundle.read(MODEL))
        return oracle
    from edgeyolo.runners.integer import BundleRunner

    return BundleRunner(bundle, engine=runner == "engine")


def _check(runner: str, allowed: tuple[str, ...], path: Path) -> None:
    """Refuse a runner that cannot execute this kind of model."""
    if runner not in allowed:
        raise InputError(
            "this runner does not execute this kind of model", where=path, got=runner, allowed=", ".join(allowed)
        )
