"""Prove a TensorRT bundle as far as a machine allows: files, placement, ONNX Runtime, TensorRT-RTX, and an engine.

Other than with integers, equal means close here: float sums depend on their order, and a value next to the border of
two codes takes either. What is allowed stands in the bundle (``golden/index.json``), measured when it was exported.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.bundle import MODEL, Bundle
from edgeyolo.errors import BundleError, EdgeYoloError, InputError
from edgeyolo.export.acceptance import accept
from edgeyolo.export.device_files import FLOOR_DB, FP32_DB, GOLDEN_INDEX, MARGIN_DB, TYPED, golden_name, noise_db
from edgeyolo.export.pictures import PictureSet
from edgeyolo.frontend.onnx_file import load_onnx
from edgeyolo.lower.tensorrt.execute import TypedGraph
from edgeyolo.lower.tensorrt.lint import lint
from edgeyolo.lower.tensorrt.typed import to_typed
from edgeyolo.ort import Arrays, model_bytes, open_session, run
from edgeyolo.progress import Log
from edgeyolo.quant.calibrate import to_float, with_outputs

CHECKS = ("ort", "rtx", "engine")
"""What may be left out: ONNX Runtime, TensorRT-RTX, an engine on this machine's GPU."""
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
class _Case:
    """One picture: the network's input (1, C, H, W) float32 and the outputs that are expected, by name."""

    name: str
    feed: npt.NDArray[np.float32]
    expected: Arrays


def verify_tensorrt(
    path: Path, log: Log, *, skip: Sequence[str] = (), more: Path | None = None, engine: Path | None = None
) -> list[Check]:
    """Check a bundle of the TensorRT target.

    Args:
        path: the bundle.
        skip: those of ``CHECKS`` to leave out.
        more: further pictures beside the golden ones.
        engine: an engine file to run on this machine's GPU; None: there is none, which is said.

    Raises:
        InputError, BundleError: the bundle is missing, damaged or inconsistent, or nothing is left to compare.
    """
    with log.stage("files") as details:
        bundle = Bundle.open(path)
        _check_listed(bundle)
        model, detector = load_onnx(path / MODEL)
        if detector != bundle.detector:
            raise BundleError(f"the manifest's detector is not that of {MODEL}", where=path, hint="export it again")
        checks = [Check("files", PASSED, f"{len(bundle.manifest['files'])} files match size and SHA-256")]
        checks.append(_same_graph(bundle, model))
        details.append(checks[-1].detail)
    checks.append(_lint(model))
    tolerance, cases = _golden(bundle, model)
    cases += _more(more, model)
    if not cases:
        raise InputError("nothing to compare: the bundle has no golden pictures", where=path, hint="add --pictures DIR")
    if "ort" not in skip:
        checks += _ort(bundle, model, cases, tolerance, log)
    if "rtx" in skip:
        checks.append(Check("TensorRT-RTX", SKIPPED, "--skip rtx"))
    else:
        with log.stage("accept"):
            checks.append(_accepted(bundle, model))
    checks.append(
        _engine(engine, bundle, model, cases, tolerance) if "engine" not in skip else _skipped_engine("--skip engine")
    )
    return checks


def _check_listed(bundle: Bundle) -> None:
    """Only listed files are known to be whole; a bundle is never without the graph that it was made for."""
    options = bundle.manifest.get("options")
    precision = options.get("precision") if isinstance(options, dict) else None
    missing = [
        name for name in (MODEL, *([TYPED] if precision != "fp32" else [])) if name not in bundle.manifest["files"]
    ]
    if missing:
        raise BundleError("the manifest does not list a graph", where=bundle.path, got=", ".join(missing))


def _same_graph(bundle: Bundle, model: ir.Model) -> Check:
    """The typed graph must be what ``model.onnx`` becomes, or two graphs would go by one name."""
    if TYPED not in bundle.manifest["files"]:
        return Check("typed graph", PASSED, f"none: {MODEL} is float32 throughout")
    layers = bundle.manifest.get("layers")
    names = layers.get("typed_float32") if isinstance(layers, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BundleError("the manifest does not say which layers stay float32", where=bundle.path)
    try:
        same = model_bytes(to_typed(model, names)) == bundle.read(TYPED)
    except EdgeYoloError:
        raise
    except Exception as error:  # a hostile graph can break anything that reads it
        raise BundleError(f"{MODEL} cannot be typed", where=bundle.path, got=repr(error)[:300]) from error
    text = f"{TYPED} is what {MODEL} becomes" if same else f"{TYPED} is not what {MODEL} becomes: export it again"
    return Check("typed graph", PASSED if same else FAILED, text)


def _lint(model: ir.Model) -> Check:
    findings = [finding for finding in lint(model) if finding.severity != "note"]
    if not findings:
        return Check("placement", PASSED, "no missing and no extra Q/DQ")
    return Check("placement", FAILED, "; ".join(finding.text for finding in findings[:5]))


def _golden(bundle: Bundle, model: ir.Model) -> tuple[float, list[_Case]]:
    """The tolerance in dB and the stored pictures."""
    if GOLDEN_INDEX not in bundle.manifest["files"]:
        return ORT_DB, []
    try:
        index = json.loads(bundle.read(GOLDEN_INDEX))
        count, names = index["pictures"], index["outputs"]
        tolerance = max(FLOOR_DB, float(next(iter(index["tolerance_db"].values()))))
        if type(count) is not int or not 0 < count <= MAX_GOLDEN or names != [str(v.name) for v in model.graph.outputs]:
            raise ValueError(f"{count} pictures with outputs {names}")
        cases = [
            _Case(
                f"golden {number}",
                _npy(bundle.read(golden_name(number, "input"))),
                {name: _npy(bundle.read(golden_name(number, f"output-{i}"))) for i, name in enumerate(names)},
            )
            for number in range(count)
        ]
    except BundleError:
        raise
    except Exception as error:  # numpy's reader has many: BadZipFile, EOFError, TokenError ...
        where = bundle.path / GOLDEN_INDEX
        raise BundleError("the golden data cannot be read", where=where, got=str(error)[:200]) from error
    return tolerance, cases


def _npy(data: bytes) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.int64):
        raise ValueError(f"an array of {getattr(array, 'dtype', 'several')}")
    return array


def _more(source: Path | None, model: ir.Model) -> list[_Case]:
    """Pictures of the user's own; ``model.onnx`` in ONNX Runtime says what to expect."""
    if source is None:
        return []
    from edgeyolo.passes.graph import read_detector

    detector, session = read_detector(model), open_session(model, optimise=False)
    pictures = PictureSet.find(source, detector.preprocess)
    cases = []
    for path, pixels in zip(pictures.paths, pictures, strict=True):
        feed = to_float(pixels, detector)
        cases.append(_Case(path.name, feed, run(session, feed)))
    return cases


def _ort(bundle: Bundle, model: ir.Model, cases: Collection[_Case], tolerance: float, log: Log) -> list[Check]:
    """Both graphs in ONNX Runtime, optimisations off."""
    with log.stage("run"):
        session = open_session(model, optimise=False)
        checks = [_compare(f"{MODEL}, ONNX Runtime", cases, lambda feed: run(session, feed), ORT_DB)]
        if TYPED in bundle.manifest["files"]:
            typed = TypedGraph(load_onnx(bundle.path / TYPED)[0])
            checks.append(_compare(f"{TYPED}, ONNX Runtime", cases, typed, tolerance))
    return checks


def _compare(
    name: str,
    cases: Collection[_Case],
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


def _accepted(bundle: Bundle, model: ir.Model) -> Check:
    profile, options = bundle.manifest.get("profile"), bundle.manifest.get("options")
    targets = profile.get("rtx_sm") if isinstance(profile, dict) else []
    targets = targets if isinstance(targets, list) else []
    batch = options.get("max_batch") if isinstance(options, dict) else None
    graph = load_onnx(bundle.path / TYPED)[0] if TYPED in bundle.manifest["files"] else model
    answer = accept(graph, [str(target) for target in targets], batch if isinstance(batch, int) else None)
    return Check("TensorRT-RTX", {"accepted": PASSED, "refused": FAILED}.get(answer.status, SKIPPED), answer.text)


def _skipped_engine(reason: str) -> Check:
    return Check("engine on this GPU", SKIPPED, reason)


def _with_values(model: ir.Model, names: Sequence[str], cases: list[_Case]) -> list[_Case]:
    """The cases with what ONNX Runtime computes for more values, which ``edgeyolo build --mark`` made outputs."""
    if not names:
        return cases
    known = {str(v.name) for node in model.graph for v in node.outputs}
    if unknown := [name for name in names if name not in known]:
        raise InputError("the engine has outputs that the model has not", got=", ".join(unknown[:5]))
    session = open_session(with_outputs(model, names), optimise=False)
    return [replace(case, expected={**case.expected, **run(session, case.feed)}) for case in cases]


def _inner(bundle: Bundle, names: Sequence[str], cases: list[_Case]) -> dict[str, float]:
    """Tolerances of values inside the graph: as for the outputs, what the typed graph makes of them in ONNX Runtime."""
    if not names or TYPED not in bundle.manifest["files"]:
        return {}
    graph = TypedGraph(load_onnx(bundle.path / TYPED)[0])
    typed = [{k: v.astype(np.float32) for k, v in graph(case.feed, names).items()} for case in cases]
    noise = noise_db([{name: case.expected[name] for name in names} for case in cases], typed)
    return {name: min(FP32_DB, max(FLOOR_DB, decibels - MARGIN_DB)) for name, decibels in noise.items()}


def _engine(path: Path | None, bundle: Bundle, model: ir.Model, cases: list[_Case], tolerance: float) -> Check:
    """Run an engine that was built on this machine."""
    if path is None:
        return _skipped_engine("no engine given: edgeyolo build, then --engine FILE, on a machine with a GPU")
    from edgeyolo.runners.tensorrt import open_engine

    integers = {v.name for v in model.graph.outputs if v.dtype == ir.DataType.INT64}
    with open_engine(path) as engine:

        def execute(feed: npt.NDArray[np.float32]) -> Arrays:
            engine.set_inputs(feed)
            engine.infer()
            found = zip(engine.names, engine.outputs(), strict=True)  # float32, all of them
            return {name: value.astype(np.int64) if name in integers else value for name, value in found}

        marked = [name for name in engine.names if name not in cases[0].expected]
        cases = _with_values(model, marked, cases)
        return _compare(f"engine {path.name}", cases, execute, tolerance, _inner(bundle, marked, cases))
