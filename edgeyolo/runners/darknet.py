"""Execute a Darknet cfg with its weights in PyTorch, as a reference and for a first look before any export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeyolo.detector import Detector
from edgeyolo.errors import InputError
from edgeyolo.frontend.darknet import load_darknet

if TYPE_CHECKING:
    import torch


class DarknetRunner:
    """The four methods over the torch module of a cfg; ``weights`` is its weights file."""

    def __init__(self, weights: Path | None) -> None:
        self.weights = weights
        self.detector: Detector | None = None
        self._module: torch.nn.Module | None = None
        self._input: torch.Tensor | None = None
        self._outputs: list[torch.Tensor] = []
        self._batched = False

    @classmethod
    def of(cls, module: torch.nn.Module, detector: Detector) -> DarknetRunner:
        """Run a module that is already there, on the device that it is on."""
        runner = cls(None)
        runner.detector, runner._module = detector, module
        return runner

    def load(self, path: Path) -> None:
        """Read the cfg and the weights. Raises InputError without weights or torch, else as the front end."""
        if self.weights is None:
            raise InputError("a cfg needs its weights", where=path, hint="add --weights FILE")
        try:
            loaded = load_darknet(path, self.weights)
        except ModuleNotFoundError as error:
            hint = "pip install 'edgeyolo[export]'"
            raise InputError("PyTorch is not installed", got=error.name, hint=hint) from error
        self.detector, self._module = loaded.detector, loaded.module.eval()

    def set_inputs(self, pixels: npt.NDArray[Any]) -> None:
        """Take (C, H, W) uint8 network pixels; or (N, C, H, W), and the outputs keep the batch axis."""
        import torch

        if self.detector is None:
            raise InputError("no model is loaded")
        self._batched = pixels.ndim == 4
        batch = pixels if self._batched else pixels[None]
        x = torch.from_numpy(batch.astype(np.float32) * np.float32(self.detector.preprocess.scale))
        first = next(self._module.parameters(), None) if self._module is not None else None
        self._input = x if first is None else x.to(first.device)

    def infer(self) -> None:
        """Run the module once."""
        import torch

        if self._module is None or self._input is None:
            raise InputError("no model is loaded, or it has no input")
        with torch.inference_mode():
            self._outputs = list(self._module(self._input))

    def outputs(self) -> list[npt.NDArray[np.float32]]:
        """Return the raw heads, in the order of ``detector.heads``."""
        return [(output if self._batched else output[0]).cpu().numpy() for output in self._outputs]
