"""Prove a mobile bundle: files, every variant against golden data, .ort files against their .onnx files.

The last rows are information: how far int8 and float16 are from float32, which no proof of equality says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeyolo.bundle import MODEL, Bundle
from edgeyolo.errors import BundleError, InputError
from edgeyolo.export.device_files import noise_db
from edgeyolo.export.mobile import VARIANTS
from edgeyolo.export.mobile_golden import PARTS
from edgeyolo.frontend.onnx_file import load_onnx
from edgeyolo.ort import open_session, run
from edgeyolo.progress import Log
from edgeyolo.verify_noise import FAILED, ORT_DB, PASSED, Case, Check, compare, golden_cases, more_cases


def verify_mobile(path: Path, log: Log, *, more: Path | None = None) -> list[Check]:
    """Check a bundle of the mobile target in the ONNX Runtime of this machine.

    Args:
        path: the bundle.
        log: receives stages.
        more: further pictures beside the golden ones.

    Raises:
        InputError, BundleError: the bundle is missing, damaged or inconsistent, or nothing is left to compare.
    """
    with log.stage("files") as details:
        bundle = Bundle.open(path)
        models = _models(bundle)
        checks = [Check("files", PASSED, f"{len(bundle.manifest['files'])} files match size and SHA-256")]
        checks.append(_chosen(bundle))
        details.append(checks[0].detail)
    with log.stage("run"):
        for variant, model in models.items():
            tolerances, cases = golden_cases(bundle, model, PARTS[variant])
            cases += more_cases(more, model if PARTS[variant] == variant else models["fp32"])
            if not cases:
                raise InputError("nothing to compare: the bundle has no golden pictures", where=path)
            checks += _variant(bundle, variant, model, cases, tolerances.get(variant, ORT_DB))
            if variant != "fp32":
                checks.append(_distance(variant, model, models["fp32"], cases))
    return checks


def _models(bundle: Bundle) -> dict[str, ir.Model]:
    """All variants, float32 last. Raises BundleError if one is missing or of another network."""
    missing = [name for v in VARIANTS if (name := f"{v}.onnx") not in bundle.manifest["files"]]
    if missing:
        raise BundleError("the manifest does not list a variant", where=bundle.path, got=", ".join(missing))
    models = {}
    for variant in VARIANTS:
        models[variant], detector = load_onnx(bundle.path / f"{variant}.onnx")
        if detector != bundle.detector:
            raise BundleError(f"the manifest's detector is not that of {variant}.onnx", where=bundle.path)
    return models


def _chosen(bundle: Bundle) -> Check:
    """``model.onnx`` is one of the variants."""
    data = bundle.read(MODEL)
    for variant in VARIANTS:
        if bundle.read(f"{variant}.onnx") == data:
            return Check(MODEL, PASSED, f"is {variant}.onnx")
    return Check(MODEL, FAILED, f"is none of {', '.join(VARIANTS)}: export it again")


def _variant(
    bundle: Bundle, variant: str, model: ir.Model, cases: Sequence[Case], tolerance: float
) -> list[Check]:  # fmt: skip
    """One network as defined, as ONNX Runtime runs it, and as the .ort file that phones load."""
    own = PARTS[variant] == variant or variant == "fp32"
    sessions = {
        f"{variant}.onnx, optimisations off": (open_session(model, optimise=False), ORT_DB if own else tolerance),
        f"{variant}.onnx": (open_session(model), tolerance),
    }
    if f"{variant}.ort" in bundle.manifest["files"]:
        sessions[f"{variant}.ort"] = open_session(bundle.path / f"{variant}.ort"), tolerance
    return [compare(name, cases, partial(run, session), wanted) for name, (session, wanted) in sessions.items()]


def _distance(variant: str, model: ir.Model, reference: ir.Model, cases: Sequence[Case]) -> Check:
    """How far a variant is from float32."""
    sides = [[run(open_session(m, optimise=False), case.feed) for case in cases] for m in (reference, model)]
    decibels: Mapping[str, float] = noise_db(*sides)
    text = ", ".join(f"{name} {value:.1f} dB" for name, value in decibels.items())
    known = all(not np.isnan(value) for value in decibels.values())
    return Check(
        f"{variant} against float32", PASSED if known else FAILED, f"{text}; not judged, see the ledger for AP"
    )
