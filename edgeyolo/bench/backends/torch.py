"""The PyTorch module of a Darknet cfg, as trained: eager, BatchNorm not folded."""

from __future__ import annotations

from pathlib import Path

from edgeyolo.bench.backends.source import check_file
from edgeyolo.runners.darknet import DarknetRunner


class Backend(DarknetRunner):
    """A ``.cfg`` with its weights."""

    name = "torch"

    def __init__(self) -> None:
        super().__init__(None)

    def load(self, path: Path, threads: int = 1, weights: Path | None = None) -> None:
        """See the protocol; the number of threads is that of the whole process."""
        import torch

        self.weights = weights
        super().load(check_file(self.name, path, ".cfg"))
        torch.set_num_threads(threads)

    def version(self) -> str:
        """Of torch."""
        import torch

        return str(torch.__version__)
