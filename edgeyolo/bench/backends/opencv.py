"""OpenCV's DNN module on the CPU."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeyolo.bench.backends.source import check_file, network_input, read_onnx, refusing
from edgeyolo.detector import Detector


class Backend:
    """An ``.onnx`` file."""

    def __init__(self) -> None:
        self._cv2: Any = importlib.import_module("cv2")
        self.detector: Detector | None = None
        self._results: Any = ()

    def load(self, path: Path, threads: int = 1, weights: Path | None = None) -> None:
        """See the protocol; the number of threads is that of the whole process."""
        self.detector, _, self._names = read_onnx(check_file("opencv", path, ".onnx"))
        self._path = path
        with refusing("OpenCV", path):
            self._cv2.setNumThreads(threads)
            self._net = self._cv2.dnn.readNetFromONNX(str(path))

    def set_inputs(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Take (C, H, W) network pixels."""
        assert self.detector is not None
        self._net.setInput(network_input(pixels, self.detector))

    def infer(self) -> None:
        """Execute once. Raises InputError: OpenCV finds some of what it cannot do only now."""
        with refusing("OpenCV", self._path):
            self._results = self._net.forward(self._names)

    def outputs(self) -> list[npt.NDArray[np.float32]]:
        """See the protocol."""
        return [np.array(result[0], np.float32) for result in self._results]

    def version(self) -> str:
        """Of OpenCV."""
        return str(self._cv2.__version__)
