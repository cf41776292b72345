"""The PyTorch module of a Darknet cfg, compiled by torch.compile's own defaults."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeyolo.bench.backends.torch import Backend as Eager
from edgeyolo.errors import InputError


class Backend(Eager):
    """A ``.cfg`` with its weights. The load time has the compilation in it, shorter where torch kept an earlier one."""

    name = "torch-compile"

    def load(self, path: Path, threads: int = 1, weights: Path | None = None) -> None:
        """See the protocol. Raises InputError too if torch finds no C++ compiler that works."""
        super().load(path, threads, weights)
        assert self.detector is not None and self._module is not None
        size = self.detector.preprocess
        self._module.compile()
        try:
            self.set_inputs(np.zeros((size.channels, size.height, size.width), np.uint8))
            self.infer()  # torch compiles at the first call
        except Exception as error:  # its compilers raise many private types
            got = str(error).strip()[:500]
            hint = "install g++, or set CXX to a C++ compiler"
            raise InputError("torch.compile does not work here", where=path, got=got, hint=hint) from error
