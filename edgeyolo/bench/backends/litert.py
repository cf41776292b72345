"""LiteRT on the CPU, with XNNPACK as it chooses.

A ``.tflite`` file says what it is in a metadata entry that has the same name and text as in an ONNX file. It may be
laid out as (1, H, W, C) or (1, C, H, W), input and heads alike; its heads stand in the detector's order.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeyolo.bench.backends.source import cannot_execute, check_file, network_input, no_detector, refusing
from edgeyolo.detector import METADATA_KEY, Detector


class Backend:
    """A ``.tflite`` file with float32 input and outputs; what lies between may have 8 bits."""

    def __init__(self) -> None:
        self._interpreters: Any = importlib.import_module("ai_edge_litert.interpreter")
        self.detector: Detector | None = None

    def load(self, path: Path, threads: int = 1, weights: Path | None = None) -> None:
        """See the protocol."""
        with refusing("LiteRT", path):
            text = _metadata(check_file("litert", path, ".tflite").read_bytes())
            if text is None:
                raise no_detector(path)
            self.detector = Detector.from_json(text)
            self._interpreter = self._interpreters.Interpreter(str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        wrong = [f"{entry['name']}: {entry['dtype'].__name__}" for entry in inputs + outputs if not _is_float(entry)]
        if wrong:
            raise cannot_execute("this backend", path, f"inputs and outputs that are not float32: {', '.join(wrong)}")
        size, shape = self.detector.preprocess, tuple(inputs[0]["shape"].tolist())
        shapes = ((1, size.channels, size.height, size.width), (1, size.height, size.width, size.channels))
        if len(inputs) != 1 or shape not in shapes:
            raise cannot_execute("this backend", path, f"{len(inputs)} inputs, {shape} instead of {shapes}")
        self._channels_last = shape == shapes[1]
        self._input, self._outputs = inputs[0]["index"], [entry["index"] for entry in outputs]

    def set_inputs(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Take (C, H, W) network pixels."""
        assert self.detector is not None
        x = network_input(pixels, self.detector)
        self._interpreter.set_tensor(self._input, x.transpose(0, 2, 3, 1) if self._channels_last else x)

    def infer(self) -> None:
        """Execute once."""
        self._interpreter.invoke()

    def outputs(self) -> list[npt.NDArray[np.float32]]:
        """See the protocol."""
        results = [self._interpreter.get_tensor(index)[0] for index in self._outputs]
        return [x.transpose(2, 0, 1) if self._channels_last and x.ndim == 3 else x for x in results]

    def version(self) -> str:
        """Of LiteRT."""
        return importlib.metadata.version("ai-edge-litert")


def _is_float(entry: dict[str, Any]) -> bool:
    return bool(entry["dtype"] == np.float32)


def _metadata(data: bytes) -> str | None:
    """The detector's text, or None. Raises what flatbuffers raises on damaged files."""
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    if not schema.Model.ModelBufferHasIdentifier(data, 0):
        raise ValueError("no TFL3 file")
    model = schema.Model.GetRootAs(data, 0)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == METADATA_KEY.encode():
            return bytes(model.Buffers(entry.Buffer()).DataAsNumpy()).decode()
    return None
