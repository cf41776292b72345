"""Prove a TensorRT bundle as far as a machine allows: files, placement, ONNX Runtime, TensorRT-RTX, and an engine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.bundle import MODEL, Bundle
from edgeyolo.errors import BundleError, EdgeYoloError, InputError
from edgeyolo.export.acceptance import accept
from edgeyolo.export.device_files import FLOOR_DB, FP32_DB, MARGIN_DB, TYPED, noise_db
from edgeyolo.frontend.onnx_file import load_onnx
from edgeyolo.lower.tensorrt.execute import TypedGraph
from edgeyolo.lower.tensorrt.lint import lint
from edgeyolo.lower.tensorrt.typed import to_typed
from edgeyolo.ort import Arrays, model_bytes, open_session, run
from edgeyolo.progress import Log
from edgeyolo.quant.calibrate import with_outputs
from edgeyolo.verify_noise import FAILED, ORT_DB, PASSED, SKIPPED, Case, Check, compare, golden_cases, more_cases

CHECKS = ("ort", "rtx", "engine")
"""What may be left out: ONNX Runtime, TensorRT-RTX, an engine on this machine's GPU."""


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
    tolerances, cases = golden_cases(bundle, model)
    tolerance = next(iter(tolerances.values()), ORT_DB)
    cases += more_cases(more, model)
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


def _ort(bundle: Bundle, model: ir.Model, cases: Collection[Case], tolerance: float, log: Log) -> list[Check]:
    """Both graphs in ONNX Runtime, optimisations off."""
    with log.stage("run"):
        session = open_session(model, optimise=False)
        checks = [compare(f"{MODEL}, ONNX Runtime", cases, lambda feed: run(session, feed), ORT_DB)]
        if TYPED in bundle.manifest["files"]:
            typed = TypedGraph(load_onnx(bundle.path / TYPED)[0])
            checks.append(compare(f"{TYPED}, ONNX Runtime", cases, typed, tolerance))
    return checks


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


def _with_values(model: ir.Model, names: Sequence[str], cases: list[Case]) -> list[Case]:
    """The cases with what ONNX Runtime computes for more values, which ``edgeyolo build --mark`` made outputs."""
    if not names:
        return cases
    known = {str(v.name) for node in model.graph for v in node.outputs}
    if unknown := [name for name in names if name not in known]:
        raise InputError("the engine has outputs that the model has not", got=", ".join(unknown[:5]))
    session = open_session(with_outputs(model, names), optimise=False)
    return [replace(case, expected={**case.expected, **run(session, case.feed)}) for case in cases]


def _inner(bundle: Bundle, names: Sequence[str], cases: list[Case]) -> dict[str, float]:
    """Tolerances of values inside the graph: as for the outputs, what the typed graph makes of them in ONNX Runtime."""
    if not names or TYPED not in bundle.manifest["files"]:
        return {}
    graph = TypedGraph(load_onnx(bundle.path / TYPED)[0])
    typed = [{k: v.astype(np.float32) for k, v in graph(case.feed, names).items()} for case in cases]
    noise = noise_db([{name: case.expected[name] for name in names} for case in cases], typed)
    return {name: min(FP32_DB, max(FLOOR_DB, decibels - MARGIN_DB)) for name, decibels in noise.items()}


def _engine(path: Path | None, bundle: Bundle, model: ir.Model, cases: list[Case], tolerance: float) -> Check:
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
        return compare(f"engine {path.name}", cases, execute, tolerance, _inner(bundle, marked, cases))
