"""TensorRT: the engine that was built in a bundle on this machine."""

from __future__ import annotations

from pathlib import Path

from edgeyolo.bench.backends.source import check_bundle, check_one_thread
from edgeyolo.runners.tensorrt import TensorRTRunner


class Backend(TensorRTRunner):
    """A bundle for tensorrt."""

    def load(self, path: Path, threads: int = 1, weights: Path | None = None) -> None:
        """See the protocol. Raises InputError for more than one thread too: the work is the GPU's."""
        check_bundle("tensorrt", path, "tensorrt")
        check_one_thread("tensorrt", threads)
        super().load(path)

    def version(self) -> str:
        """Of TensorRT, or of TensorRT-RTX."""
        return f"{self._engine.trt.__name__} {self._engine.trt.__version__}"
