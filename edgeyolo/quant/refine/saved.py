"""Refined layers on disk, so that an export that was killed goes on behind the last finished layer."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo import __version__
from edgeyolo.ort import model_bytes
from edgeyolo.qtype import TensorQuant
from edgeyolo.quant.calibrate import Pixels
from edgeyolo.quant.plan import Plan, WeightQuant


def refinement_key(model: ir.Model, plan: Plan, pictures: Iterable[Pixels], rebuild: bool, correct: bool = True) -> str:
    """A digest of everything that the refined layers depend on."""
    digest = hashlib.sha256(f"{__version__} {rebuild} {correct}".encode() + model_bytes(model))
    for name, weight in plan.weights.items():
        digest.update(f"{name} {weight.quant.qtype} {np.asarray(weight.quant.frac).tolist()}".encode())
        digest.update(weight.codes.tobytes() + weight.bias.tobytes())
    digest.update(" ".join(f"{name} {act.qtype} {act.frac}" for name, act in plan.acts.items()).encode())
    for pixels in pictures:
        digest.update(pixels.tobytes())
    return digest.hexdigest()


MAX_FRAC = 256
"""No exponent comes near."""


class SavedLayers:
    """One small file a layer under ``folder``/``key``; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, key: str = "") -> None:
        self.folder = None if folder is None else folder / key[:16]
        self.loaded = 0
        try:
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # it only costs the chance to resume
            self.folder = None

    def load(self, index: int, planned: WeightQuant) -> WeightQuant | None:
        """The refined form of the ``index``-th layer, or None where it is missing, damaged or of another shape."""
        if self.folder is None:
            return None
        expected = {"codes": planned.codes, "frac": np.asarray(planned.quant.frac), "bias": planned.bias}
        try:
            with zipfile.ZipFile(self.folder / f"{index:04}.npz") as file:
                codes, frac, bias = (_read_array(file, name, array) for name, array in expected.items())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError):
            return None
        qtype = planned.quant.qtype
        inside = qtype.lo <= codes.min() and codes.max() <= qtype.hi and np.abs(frac).max() <= MAX_FRAC
        if not inside or not np.isfinite(bias).all():
            return None
        self.loaded += 1
        return replace(planned, codes=codes, quant=TensorQuant.pow2(planned.quant.qtype, frac), bias=bias)

    def store(self, index: int, weight: WeightQuant) -> None:
        """Keep a refined layer; a full disk costs only the chance to resume."""
        if self.folder is None:
            return
        path = self.folder / f"{index:04}.npz"
        try:
            with path.with_suffix(".part").open("wb") as file:
                np.savez(file, codes=weight.codes, frac=np.asarray(weight.quant.frac), bias=weight.bias)
            path.with_suffix(".part").replace(path)
        except OSError:
            path.with_suffix(".part").unlink(missing_ok=True)


def _read_array(file: zipfile.ZipFile, name: str, like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A member of an .npz, which must have the shape and type of ``like``: ValueError before anything is allocated."""
    with file.open(f"{name}.npy") as member:
        np.lib.format.read_magic(member)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        if shape != like.shape or dtype != like.dtype:
            raise ValueError(f"{name} is {dtype} {shape}")
        data = member.read(like.nbytes + 1)
        # Reading to the end has checked the checksum.
        if len(data) != like.nbytes:
            raise ValueError(f"{name} has another length")
    return np.frombuffer(data, like.dtype).reshape(shape, order="F" if fortran else "C")
