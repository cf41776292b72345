"""Front ends: whatever a model comes as, an ONNX graph with detector metadata goes out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeyolo.detector import read_names
from edgeyolo.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

KINDS = ".cfg (Darknet, with --weights), .onnx"


@dataclass(frozen=True, eq=False)
class Source:
    """A loaded model.

    Args:
        model: float graph with detector metadata, BatchNorm not yet folded.
        name: the file's name.
        sha256: hash over the bytes of all files it came from, in order.
        notes: what the reader should know (cut-off weights, ignored keys ...).
    """

    model: ir.Model
    name: str
    sha256: str
    notes: tuple[str, ...] = ()


def load_source(
    path: Path,
    *,
    weights: Path | None = None,
    imgsz: str | None = None,
    names: Path | None = None,
    bn_eps: str = "alexeyab",
    dynamic_batch: bool = False,
) -> Source:
    """Load any model the tool reads, by its suffix. Raises InputError for a missing file or an unknown kind."""
    if not path.is_file():
        raise InputError("no such model", where=path, allowed=KINDS)
    suffix = path.suffix.lower()
    if suffix == ".cfg":
        from edgeyolo.frontend.darknet import load_darknet
        from edgeyolo.frontend.torch_export import export_module

        if weights is None:
            raise InputError("a cfg needs its weights", where=path, hint="add --weights FILE")
        loaded = load_darknet(path, weights, imgsz=imgsz, bn_eps=bn_eps, names=names)
        model = export_module(loaded.module, loaded.detector, dynamic_batch=dynamic_batch)
        return Source(model, path.name, _hash(path, weights), loaded.notes)
    if suffix == ".onnx":
        from edgeyolo.frontend.onnx_file import load_onnx

        if weights is not None or imgsz is not None:
            raise InputError("an ONNX file has its weights and input size inside", got="--weights or --imgsz")
        model, _ = load_onnx(path, read_names(names) if names else ())
        if (
            dynamic_batch
            and model.graph.inputs[0].shape is not None
            and isinstance(model.graph.inputs[0].shape[0], int)
        ):
            raise InputError(
                "the ONNX file has a fixed batch", where=path, got=list(model.graph.inputs[0].shape),
                hint="leave --dynamic-batch out, or export the file with a symbolic batch",
            )  # fmt: skip
        return Source(model, path.name, _hash(path))
    raise InputError("unknown kind of model", where=path, got=suffix or "no suffix", allowed=KINDS)


def _hash(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
