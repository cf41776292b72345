"""What can execute a model under the stopwatch: one small file a backend, each with a class ``Backend``.

A backend has the four methods of a runner (load, set inputs, infer, outputs) and says its version. It runs in a process
of its own, which has the threads that were asked for and nothing else to do.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgeyolo.detector import Detector
from edgeyolo.errors import InputError

Device = Literal["cpu", "gpu"]


class Backend(Protocol):
    """One system under test, for one model and one picture at a time."""

    detector: Detector | None
    """The model's facts, from ``load`` on."""

    def load(self, path: Path, threads: int = 1, weights: Path | None = None) -> None:
        """Open the model for ``threads`` threads.

        Args:
            path: what the user named: an ``.onnx`` file, a bundle, a ``.cfg``.
            threads: from 1 on.
            weights: of a ``.cfg``.

        Raises InputError if this backend cannot execute it.
        """

    def set_inputs(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Take (C, H, W) network pixels; converting them to what the model reads belongs to the frame's time.

        Where ``Kind.batches``, (N, C, H, W) are N pictures at a time, and ``outputs`` keeps the batch axis.
        """

    def infer(self) -> None:
        """Execute once, synchronously."""

    def outputs(self) -> list[npt.NDArray[np.float32]]:
        """Raw heads (C, grid_h, grid_w), or boxes (n, 4) and scores (n, classes), as ``postprocess.decode`` reads."""

    def version(self) -> str:
        """Of the library that executes."""


@dataclass(frozen=True)
class Kind:
    """What is known of a backend before it is loaded.

    Args:
        name: as the user writes it.
        needs: packages, ``a|b`` for one of them; ``install`` says how to get them.
        takes: what it executes, in words.
        threads, batches: whether it runs with more than one thread, and with more than one picture at a time.
        device: where the work is done, so whose energy counts.
    """

    name: str
    needs: tuple[str, ...]
    install: str
    takes: str
    threads: bool = True
    batches: bool = False
    device: Device = "cpu"


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "ort", ("onnxruntime",), "pip install 'edgeyolo[onnx]'",
            ".onnx files and bundles: ONNX Runtime, CPU", batches=True,
        ),
        Kind("engine", (), "install gcc or clang", "bundles for fpga: the C99 integer engine", threads=False),
        Kind("torch", ("torch",), "pip install torch", ".cfg with --weights: eager", batches=True),
        Kind("torch-compile", ("torch",), "pip install torch", ".cfg with --weights: torch.compile"),
        Kind("ncnn", ("ncnn", "pnnx", "onnx"), "pip install ncnn pnnx onnx", ".onnx files: ncnn, converted by pnnx"),
        Kind(
            "openvino", ("openvino", "onnx"), "pip install openvino onnx",
            ".onnx files and bundles: OpenVINO, CPU", batches=True,
        ),
        Kind("opencv", ("cv2", "onnx"), "pip install opencv-python-headless onnx", ".onnx files: OpenCV DNN"),
        Kind("litert", ("ai_edge_litert",), "pip install ai-edge-litert", ".tflite files: LiteRT"),
        Kind(
            "tensorrt", ("tensorrt|tensorrt_rtx|tensorrt_rtx_bindings",),
            "pip install tensorrt; on a Jetson: python3-libnvinfer", "bundles for tensorrt: the engine built here",
            threads=False, device="gpu",
        ),
    )
}  # fmt: skip
"""Every backend by its name; the module of that name here (``-`` is ``_``) has a class ``Backend``."""


def check_backend(name: str) -> None:
    """Raise InputError if there is no backend called ``name``, or what it needs is not installed."""
    if name not in KINDS:
        raise InputError("unknown backend", where="--backend", got=name, allowed=", ".join(KINDS))
    kind = KINDS[name]
    missing = [need for need in kind.needs if not any(map(importlib.util.find_spec, need.split("|")))]
    if missing:
        got = f"no module {', '.join(missing)}".replace("|", " or ")
        raise InputError(f"backend {name} is not installed", got=got, hint=kind.install)


def open_backend(name: str) -> Any:
    """An instance of the backend called ``name``. Raises InputError as ``check_backend``."""
    check_backend(name)
    return importlib.import_module(f"edgeyolo.bench.backends.{name.replace('-', '_')}").Backend()
