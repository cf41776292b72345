"""Opening the model of a command, and the second one that it is compared with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgeyolo.errors import InputError

if TYPE_CHECKING:
    from edgeyolo.detector import Detector
    from edgeyolo.runners import Runner

BUNDLE_KINDS = {
    "auto": "integer program, numpy interpreter",
    "integer": "integer program, numpy interpreter",
    "engine": "integer program, C engine",
    "ort": "quantised ONNX file, ONNX Runtime",
    "tensorrt": "engine, TensorRT",
}


class Opened(NamedTuple):
    """A loaded model with what the user calls it, what executes it in a few words, and its facts."""

    name: str
    kind: str
    runner: Runner
    detector: Detector


def open_model(path: Path, runner: str = "auto", weights: Path | None = None, names: Path | None = None) -> Opened:
    """Load a model as ``runners.open_runner`` does; ``names`` is a file of class names that replaces its own.

    Raises InputError if it cannot be used, does not say how its outputs read, or the names are too many or too few.
    """
    from edgeyolo.runners import open_runner

    opened = open_runner(path, runner, weights)
    exact = runner == "auto" and type(opened).__name__ == "OnnxRunner"
    kinds = BUNDLE_KINDS["ort" if exact else runner] if path.is_dir() else "Darknet, float32"
    kind = "ONNX Runtime" if path.suffix.lower() == ".onnx" and not path.is_dir() else kinds
    return Opened(str(path), kind, opened, named(opened.detector, names, path))


def named(detector: Detector | None, names: Path | None, model: Path) -> Detector:
    """The model's facts with the class names of ``names``, if given. Raises InputError as ``open_model`` does."""
    from edgeyolo.detector import read_names

    if detector is None:
        raise InputError(
            "the model does not say how its outputs read",
            where=model,
            hint="export it with this tool, which writes that into the file",
        )
    if names is None:
        return detector
    found = read_names(names)
    if len(found) != detector.classes:
        raise InputError("wrong number of class names", where=names, got=len(found), allowed=detector.classes)
    return replace(detector, names=found)


def same_classes(model: Opened, other: Opened) -> tuple[Opened, Opened]:
    """Both models with the names that either has. Raises InputError, listing both, if their classes differ."""
    a, b = model.detector, other.detector
    if a.classes != b.classes or (a.names and b.names and a.names != b.names):
        raise InputError(
            "the two models have different classes and cannot be compared",
            where=other.name,
            got=f"{b.classes}: {', '.join(b.names) or 'names unknown'}",
            allowed=f"those of {model.name}, {a.classes}: {', '.join(a.names) or 'names unknown'}",
        )
    names = a.names or b.names
    return model._replace(detector=replace(a, names=names)), other._replace(detector=replace(b, names=names))
