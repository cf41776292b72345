"""OpenVINO on the CPU, one stream, for the shortest time of one frame."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeyolo.bench.backends.source import network_input, onnx_file, read_onnx, refusing
from edgeyolo.detector import Detector

PRECISION = "f32"
"""What floats are computed in. By itself OpenVINO takes bfloat16 where a CPU has it: other outputs, another contest.
What a file has in 8 bits stays in 8 bits."""


class Backend:
    """An ``.onnx`` file, or the one in a bundle."""

    def __init__(self) -> None:
        # Importing OpenVINO sends an event to its makers and writes to the user's home, unless this module is missing.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        self._openvino: Any = importlib.import_module("openvino")
        self.detector: Detector | None = None

    def load(self, path: Path, threads: int = 1, weights: Path | None = None) -> None:
        """See the protocol; a symbolic batch becomes 1, until a batch comes."""
        self._file, self._threads = onnx_file("openvino", path), threads
        self.detector, _, self._names = read_onnx(self._file)
        self._compile(1)

    def _compile(self, batch: int) -> None:
        assert self.detector is not None
        size = self.detector.preprocess
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self._threads,
            "INFERENCE_PRECISION_HINT": PRECISION,
        }
        with refusing("OpenVINO", self._file):
            core = self._openvino.Core()
            model = core.read_model(self._file)
            if model.is_dynamic() or batch != 1:
                model.reshape([batch, size.channels, size.height, size.width])
            self._compiled = core.compile_model(model, "CPU", settings)
            self._request = self._compiled.create_infer_request()
            self._heads = [self._request.get_tensor(name) for name in self._names]
        self._batch = batch

    def set_inputs(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Take (C, H, W) network pixels, or (N, C, H, W); the first batch of a new size compiles the model again."""
        assert self.detector is not None
        x = network_input(pixels, self.detector)
        if len(x) != self._batch:
            self._compile(len(x))
        self._batched = pixels.ndim == 4
        self._request.set_input_tensor(self._openvino.Tensor(x))

    def infer(self) -> None:
        """Execute once."""
        self._request.infer()

    def outputs(self) -> list[npt.NDArray[np.float32]]:
        """See the protocol."""
        return [np.array(head.data if self._batched else head.data[0], np.float32) for head in self._heads]

    def version(self) -> str:
        """Of OpenVINO."""
        return str(self._openvino.__version__)
