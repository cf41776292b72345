"""Execute an ONNX file with ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeyolo.detector import METADATA_KEY, Detector
from edgeyolo.errors import InputError
from edgeyolo.ort import open_session

DECODED = ("boxes", "scores")
"""Outputs of a graph that decodes by itself."""


class OnnxRunner:
    """The four methods over an ONNX Runtime session; ``detector`` comes from the file's metadata.

    Args:
        optimise: ORT's graph optimisations; off gives the exact oracle.
        threads: intra-op threads, 0 for all cores.
        spinning: see ``open_session``.
    """

    def __init__(self, *, optimise: bool = True, threads: int = 0, spinning: bool = True) -> None:
        self.optimise, self.threads, self.spinning = optimise, threads, spinning
        self.detector: Detector | None = None
        self._session: Any = None  # onnxruntime has no type stubs
        self._names: list[str] = []
        self._feeds: dict[str, npt.NDArray[Any]] = {}
        self._outputs: list[npt.NDArray[Any]] = []
        self._batched = False

    def load(self, path: Path | bytes) -> None:
        """Open an ONNX file, or its bytes.

        Raises InputError if onnxruntime is missing, the file cannot be loaded, its metadata cannot be read, or its
        outputs are neither the detector's heads nor boxes and scores.
        """
        session = open_session(path, optimise=self.optimise, threads=self.threads, spinning=self.spinning)
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        self.detector = None if text is None else Detector.from_json(text)
        self._names = output_names([output.name for output in session.get_outputs()], self.detector)
        self._session, self._feeds, self._outputs = session, {}, []

    def set_inputs(self, pixels: npt.NDArray[Any]) -> None:
        """Take (C, H, W) network pixels: uint8 are multiplied by the detector's scale, float32 are fed as they are.

        (N, C, H, W) are N pictures at a time, for a model with that batch; its outputs keep the batch axis.

        Raises InputError if the pixels are uint8 and the file does not say the scale.
        """
        if pixels.dtype == np.uint8:
            if self.detector is None:
                raise InputError(
                    f"the model has no {METADATA_KEY} metadata that says how to scale its input",
                    hint="export it with this tool, or feed float32",
                )
            pixels = pixels.astype(np.float32) * np.float32(self.detector.preprocess.scale)
        self._batched = pixels.ndim == 4
        self._feeds = {self._loaded().get_inputs()[0].name: pixels if self._batched else pixels[None]}

    def infer(self) -> None:
        """Run the session once. Raises InputError if the input does not fit the model."""
        try:
            self._outputs = self._loaded().run(self._names, self._feeds)
        except Exception as error:  # ORT raises many private types
            raise InputError("ONNX Runtime cannot run the model on this input", got=str(error)[:500]) from error

    def outputs(self) -> list[npt.NDArray[np.float32]]:
        """Return the picture's heads without the batch axis, or the boxes and scores of a graph that decodes itself."""
        return [np.asarray(output if self._batched else output[0], np.float32) for output in self._outputs]

    def _loaded(self) -> Any:
        """Return the session, or say that there is none."""
        if self._session is None:
            raise InputError("no model is loaded")
        return self._session


def output_names(present: list[str], detector: Detector | None) -> list[str]:
    """Choose which outputs to fetch, in which order: the detector's heads, or boxes and scores.

    Raises InputError if ``present`` has neither. Without a detector all are fetched as they come.
    """
    if detector is None:
        return present
    heads = [head.output for head in detector.heads]
    for names in (heads, list(DECODED)):
        if names and set(names) <= set(present):
            return names
    raise InputError(
        "the model's outputs are not those that its metadata names",
        got=", ".join(present),
        allowed=f"{', '.join(heads)}; or {', '.join(DECODED)}",
        hint="export the model again",
    )
