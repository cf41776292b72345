"""What the backends share: which files they take, what a model says of itself, and a library's errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeyolo.bench.backends import KINDS
from edgeyolo.bundle import MODEL, Bundle
from edgeyolo.detector import METADATA_KEY, Detector
from edgeyolo.errors import EdgeYoloError, InputError
from edgeyolo.runners.onnx import output_names


def check_file(backend: str, path: Path, suffix: str) -> Path:
    """``path``, if it is a file of this kind. Raises InputError."""
    if not path.exists():
        raise InputError("no such model", where=path, allowed=KINDS[backend].takes)
    if not path.is_file() or path.suffix.lower() != suffix:
        raise _wrong_kind(backend, path, "a folder" if path.is_dir() else path.suffix)
    return path


def check_bundle(backend: str, path: Path, *targets: str) -> Bundle:
    """The bundle at ``path``, if it is for one of ``targets``. Raises InputError or BundleError."""
    if path.is_file():
        raise _wrong_kind(backend, path, path.suffix)
    bundle = Bundle.open(path)
    if bundle.manifest["target"] not in targets:
        raise _wrong_kind(backend, path, f"a bundle for {bundle.manifest['target']}")
    return bundle


def onnx_file(backend: str, path: Path) -> Path:
    """An ``.onnx`` file itself, or the one in a bundle that was checked. Raises InputError or BundleError."""
    if path.is_dir():
        return check_bundle(backend, path, "fpga", "tensorrt").path / MODEL
    return check_file(backend, path, ".onnx")


def _wrong_kind(backend: str, path: Path, got: str) -> InputError:
    what = f"backend {backend} does not execute this kind of model"
    return InputError(what, where=path, got=got, allowed=KINDS[backend].takes)


def check_one_thread(backend: str, threads: int) -> None:
    """Raises InputError if more than one thread is asked for."""
    if threads != 1:
        raise InputError(f"backend {backend} has one thread", where="--threads", got=threads, allowed=1)


def read_onnx(path: Path) -> tuple[Detector, list[str], list[str]]:
    """The detector, the names of all outputs in the file's order, and of those to fetch in the detector's.

    Raises InputError: not an ONNX file, without detector metadata, or with other outputs than the metadata says.
    """
    import onnx

    with refusing("onnx", path):
        model = onnx.load(path, load_external_data=False)
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if not texts:
        raise no_detector(path)
    detector = Detector.from_json(texts[0])
    present = [output.name for output in model.graph.output]
    return detector, present, output_names(present, detector)


def no_detector(path: Path) -> InputError:
    """The error of a model that does not say how its input and its outputs read."""
    return InputError(
        f"the model has no {METADATA_KEY} metadata that says what it reads and finds",
        where=path,
        hint="export it with edgeyolo",
    )


def network_input(pixels: npt.NDArray[np.uint8], detector: Detector) -> npt.NDArray[np.float32]:
    """Pixels (C, H, W) or (N, C, H, W) as (N, C, H, W) float32, scaled, contiguous: libraries read its memory."""
    batch = pixels if pixels.ndim == 4 else pixels[None]
    return batch.astype(np.float32, order="C") * np.float32(detector.preprocess.scale)


@contextmanager
def refusing(library: str, path: Path) -> Iterator[None]:
    """Whatever ``library`` raises, as InputError with the beginning of its words."""
    try:
        yield
    except EdgeYoloError:
        raise
    except Exception as error:  # libraries raise many private types
        raise cannot_execute(library, path, f"{type(error).__name__}: {error}") from error


def cannot_execute(library: str, path: Path, got: Any) -> InputError:
    """The error for a model that ``library`` refuses."""
    return InputError(f"{library} cannot execute the model", where=path, got=str(got).strip()[:500])
