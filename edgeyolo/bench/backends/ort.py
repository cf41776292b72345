"""ONNX Runtime on the CPU as it is meant to be used: graph optimisations on. The exact oracle is another runner."""

from __future__ import annotations

from pathlib import Path

from edgeyolo.bench.backends.source import no_detector, onnx_file
from edgeyolo.runners.onnx import OnnxRunner


class Backend(OnnxRunner):
    """An ``.onnx`` file, or the one in a bundle."""

    def __init__(self) -> None:
        # Threads that spin after their work would take the time of what comes after it.
        super().__init__(optimise=True, spinning=False)

    def load(self, path: Path | bytes, threads: int = 1, weights: Path | None = None) -> None:
        """See the protocol. Operators run one after the other, so there are no inter-op threads."""
        assert isinstance(path, Path)
        self.threads = threads
        super().load(onnx_file("ort", path))
        if self.detector is None:
            raise no_detector(path)

    def version(self) -> str:
        """Of onnxruntime."""
        import onnxruntime

        return str(onnxruntime.__version__)
