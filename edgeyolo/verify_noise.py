"""Figures of signal to noise against golden data: what the checks of all float targets have in common.

Other than with integers, equal means close here: float sums depend on their order, and a value next to the border of
two codes takes either. What is allowed stands in the bundle (``golden/index.json``), measured when it was exported.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.bundle import Bundle
from edgeyolo.errors import BundleError, InputError
from edgeyolo.export.device_files import FLOOR_DB, GOLDEN_INDEX, golden_name, noise_db
from edgeyolo.export.pictures import PictureSet
from edgeyolo.ort import Arrays, open_session, run
from edgeyolo.quant.calibrate import to_float

ORT_DB = 40.0
"""ONNX Runtime against itself on another machine: other orders of float sums, and the few codes that they flip."""
MAX_GOLDEN = 1000
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True)
class Check:
    """One line of the verdict: what was checked, ``passed``, ``failed`` or ``skipped``, and figures or the reason."""

    name: str
    status: str
    detail: str


@dataclass(frozen=True, eq=False)
class Case:
    """One picture: the network's input (1, C, H, W) float32 and the outputs that are expected, by name."""

    name: str
    feed: npt.NDArray[np.float32]
    expected: Arrays


def golden_cases(bundle: Bundle, model: ir.Model, part: str = "output") -> tuple[dict[str, float], list[Case]]:
    """Tolerances in dB, by precision, and the stored pictures; none of both in a bundle without golden data.

    Args:
        bundle: opened.
        model: whose outputs they are to be.
        part: what the files with expected values are called.

    Raises BundleError if they cannot be read, or are not of ``model``.
    """
    if GOLDEN_INDEX not in bundle.manifest["files"]:
        return {}, []
    try:
        index = json.loads(bundle.read(GOLDEN_INDEX))
        count, names = index["pictures"], index["outputs"]
        tolerances = {str(key): max(FLOOR_DB, float(value)) for key, value in index["tolerance_db"].items()}
        if not tolerances:
            raise ValueError("no tolerance_db")
        if type(count) is not int or not 0 < count <= MAX_GOLDEN or names != [str(v.name) for v in model.graph.outputs]:
            raise ValueError(f"{count} pictures with outputs {names}")
        cases = [
            Case(
                f"golden {number}",
                _npy(bundle.read(golden_name(number, "input"))),
                {name: _npy(bundle.read(golden_name(number, f"{part}-{i}"))) for i, name in enumerate(names)},
            )
            for number in range(count)
        ]
    except BundleError:
        raise
    except Exception as error:  # numpy's reader has many: BadZipFile, EOFError, TokenError ...
        where = bundle.path / GOLDEN_INDEX
        raise BundleError("the golden data cannot be read", where=where, got=str(error)[:200]) from error
    return tolerances, cases


def _npy(data: bytes) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.int64):
        raise ValueError(f"an array of {getattr(array, 'dtype', 'several')}")
    return array


def more_cases(source: Path | None, model: ir.Model) -> list[Case]:
    """Pictures of the user's own; ``model.onnx`` in ONNX Runtime says what to expect."""
    if source is None:
        return []
    from edgeyolo.passes.graph import read_detector

    detector, session = read_detector(model), open_session(model, optimise=False)
    pictures = PictureSet.find(source, detector.preprocess)
    cases = []
    for path, pixels in zip(pictures.paths, pictures, strict=True):
        feed = to_float(pixels, detector)
        cases.append(Case(path.name, feed, run(session, feed)))
    return cases


def compare(
    name: str,
    cases: Collection[Case],
    execute: Callable[[npt.NDArray[np.float32]], Arrays],
    tolerance: float,
    own: Mapping[str, float] | None = None,
) -> Check:
    """Signal to noise of every float output over all pictures; the worst of them must reach the tolerance.

    ``own`` has tolerances of some outputs.
    """
    got = [execute(case.feed) for case in cases]
    expected = [case.expected for case in cases]
    _check_alike(name, expected, got)
    decibels = noise_db(expected, got)
    if not decibels:
        raise InputError("there is no output of real numbers to compare", where=name)
    wanted = {key: (own or {}).get(key, tolerance) for key in decibels}
    # What is not a number is worse than any noise.
    output = min(decibels, key=lambda key: -np.inf if np.isnan(decibels[key]) else decibels[key] - wanted[key])
    text = f"{decibels[output]:.1f} dB at {output} ({wanted[output]:.1f} dB wanted), {len(cases)} picture(s)"
    return Check(name, PASSED if decibels[output] >= wanted[output] else FAILED, text)


def _check_alike(name: str, expected: Sequence[Arrays], got: Sequence[Arrays]) -> None:
    """Every output is there, float32 where it should be, and of the shape that is expected: nothing is broadcast.

    How many boxes suppression leaves depends on values; its integers are not compared.
    """
    wrong = []
    for wanted, found in zip(expected, got, strict=True):
        for key, value in wanted.items():
            other = found.get(key)
            if other is None or (other.dtype, other.dtype == np.float32 and other.shape) != (
                value.dtype, value.dtype == np.float32 and value.shape
            ):  # fmt: skip
                text = "nothing" if other is None else f"{other.dtype} {other.shape}"
                wrong.append(f"{key}: {text} instead of {value.dtype} {value.shape}")
    if wrong:
        raise InputError("golden data and outputs are not of one network", where=name, got="; ".join(wrong[:5]))
