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

    def load(self, path: Path, threads: int, weights: Path | None) -> None:
        """See the protocol; a symbolic batch becomes 1."""
        file = onnx_file("openvino", path)
        self.detector, _, names = read_onnx(file)
        size = self.detector.preprocess
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": PRECISION,
        }
        with refusing("OpenVINO", path):
            core = self._openvino.Core()
            model = core.read_model(file)
            if model.is_dynamic():
                model.reshape([1, size.channels, size.height, size.width])
            self._compiled = core.compile_model(model, "CPU", settings)
            self._request = self._compiled.create_infer_request()
            self._heads = [self._request.get_tensor(name) for name in names]

    def set_inputs(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Take (C, H, W) network pixels."""
        assert self.detector is not None
        self._request.set_input_tensor(self._openvino.Tensor(network_input(pixels, self.detector)))

    def infer(self) -> None:
        """Execute once."""
        self._request.infer()

    def outputs(self) -> list[npt.NDArray[np.float32]]:
        """See the protocol."""
        return [np.array(head.data[0], np.float32) for head in self._heads]

    def version(self) -> str:
        """Of OpenVINO."""
        return str(self._openvino.__version__)
