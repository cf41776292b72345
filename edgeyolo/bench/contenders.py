"""From what the user names to contenders: every model in every backend that suits it, with every number of threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeyolo.bench.backends import KINDS
from edgeyolo.bench.contender import Contender
from edgeyolo.bundle import read_target
from edgeyolo.errors import InputError

SUITABLE = {
    "fpga": ("engine", "ort", "openvino"),
    "tensorrt": ("ort", "tensorrt", "openvino"),
    ".onnx": ("ort", "openvino", "ncnn", "opencv"),
    ".cfg": ("torch", "torch-compile"),
    ".tflite": ("litert",),
}
"""Kind of model -> backends, the one that is taken where none is named first."""
SINGLE = ("engine", "tensorrt")
"""Backends that use one thread of the host, whatever is asked for."""


def find_contenders(
    models: Sequence[Path], backends: Sequence[str], threads: Sequence[int], weights: Path | None
) -> list[Contender]:
    """All combinations that make sense; the first is the reference.

    Args:
        models: files or bundles.
        backends: names; none: the first that suits each model.
        threads: numbers from 1 on; those of ``SINGLE`` run with 1 only.
        weights: of the ``.cfg`` among them.

    Raises InputError: an unknown backend, one that suits none of the models, or a model of no known kind.
    """
    unknown = [name for name in backends if name not in KINDS]
    if unknown:
        raise InputError("unknown backend", where="--backend", got=", ".join(unknown), allowed=", ".join(KINDS))
    if any(count < 1 for count in threads) or not threads:
        raise InputError("not a number of threads", where="--threads", got=list(threads), allowed="1, 2, ...")
    found: list[Contender] = []
    for model in models:
        suitable = SUITABLE[_kind(model)]
        for backend in [name for name in backends if name in suitable] or ([] if backends else suitable[:1]):
            for count in [1] if backend in SINGLE else threads:
                label = f"{model.stem if model.is_file() else model.name} {backend} x{count}"
                found.append(Contender(label, model, backend, count, weights if model.suffix == ".cfg" else None))
    idle = [name for name in backends if name not in {c.backend for c in found}]
    if idle:
        takes = "; ".join(f"{name}: {KINDS[name].takes}" for name in idle)
        raise InputError("no model suits this backend", where="--backend", got=", ".join(idle), allowed=takes)
    return found


def _kind(model: Path) -> str:
    """A key of ``SUITABLE``."""
    kind = read_target(model) if model.is_dir() else model.suffix.lower()
    if not model.exists() or kind not in SUITABLE:
        allowed = "a bundle, .onnx, .cfg (with --weights) or .tflite"
        raise InputError(
            "no such model" if not model.exists() else "unknown kind of model", where=model, allowed=allowed
        )
    return kind
