"""Prove a mobile bundle: files, every variant against golden data, .ort files against their .onnx files.

The last row says how far int8 is from float32, and whether that is as far as when the bundle was made: golden data of
its own would not show integers of another network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeyolo.bundle import MODEL, Bundle
from edgeyolo.errors import BundleError, InputError
from edgeyolo.export.device_files import FLOOR_DB, GOLDEN_INDEX, MARGIN_DB
from edgeyolo.export.mobile import VARIANTS
from edgeyolo.export.mobile_golden import DEFINING, EXACT, PARTS
from edgeyolo.export.ort_files import ort_file
from edgeyolo.frontend.onnx_file import load_onnx
from edgeyolo.lower.mobile.formats import encode, form_of
from edgeyolo.mobile import CPU
from edgeyolo.ort import open_session, run
from edgeyolo.progress import Log
from edgeyolo.verify_noise import FAILED, ORT_DB, PASSED, SKIPPED, Case, Check, compare, golden_cases, more_cases

SAME_DB = {"fp32": 100.0, "int8": ORT_DB}
"""An .ort file against its .onnx file converted here, which has the same kernels: the same version of ONNX Runtime
makes every bit equal. Another one may order float sums otherwise; in the int8 graph that flips a few codes."""


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
        _, right = golden_cases(bundle, models["fp32"], PARTS["fp32"])
        if not right:
            raise InputError("nothing to compare: the bundle has no golden pictures", where=path)
        distance = _int8_distance(bundle)
        for variant, model in models.items():
            tolerances, cases = golden_cases(bundle, model, PARTS[variant])
            cases += more_cases(more, model if variant in DEFINING else models["fp32"])
            checks += _variant(variant, model, cases, tolerances.get(variant, ORT_DB))
            if variant in SAME_DB and f"{variant}.ort" in bundle.manifest["files"]:
                checks += _ort_file(bundle, variant, model, cases, tolerances.get(variant, ORT_DB))
        whole = partial(run, open_session(models["int8"], optimise=False))
        checks.append(compare("int8 against float32", right, whole, distance))
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


def _int8_distance(bundle: Bundle) -> float:
    """How near to float32 int8 must be at least, in dB. Raises BundleError if the golden data do not say."""
    try:
        stated = json.loads(bundle.read(GOLDEN_INDEX))["distance_db"]
        return max(FLOOR_DB, float(stated["int8"]) - MARGIN_DB)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise BundleError(
            "the golden data do not say how far int8 is from float32", where=bundle.path / GOLDEN_INDEX,
            got=f"{type(error).__name__}: {error}"[:200], hint="export the bundle again",
        ) from error  # fmt: skip


def _chosen(bundle: Bundle) -> Check:
    """``model.onnx`` is one of the variants."""
    data = bundle.read(MODEL)
    for variant in VARIANTS:
        if bundle.read(f"{variant}.onnx") == data:
            return Check(MODEL, PASSED, f"is {variant}.onnx")
    return Check(MODEL, FAILED, f"is none of {', '.join(VARIANTS)}: export it again")


def saturates(form: str | None) -> bool:
    """Whether ONNX Runtime's kernels for integers of this format saturate on this processor; None has none.

    Those for U8S8 do on x86 without VNNI, where two products are added in 16 bits.
    """
    import onnx.parser

    if form is None:
        return False
    types = [np.dtype(np.int8 if letter == "S" else np.uint8) for letter in form[::2]]
    graph = f"g ({types[0]}[2,8] a, {types[1]}[8,2] b) => (int32[2,2] y) {{ y = MatMulInteger(a, b) }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 13]> {graph}')
    largest = [int(np.iinfo(dtype).max) for dtype in types]
    feeds = {"a": np.full((2, 8), largest[0], types[0]), "b": np.full((8, 2), largest[1], types[1])}
    return bool(np.any(run(open_session(model.SerializeToString()), feeds)["y"] != 8 * largest[0] * largest[1]))


def _on_x86(form: str | None) -> str | None:
    """What x86 makes of a format when it opens an .onnx file: activations are unsigned there."""
    return "U8S8" if form == "S8S8" else form


def _variant(variant: str, model: ir.Model, cases: Sequence[Case], tolerance: float) -> list[Check]:
    """One network as defined, and as ONNX Runtime runs it; where that saturates, with bytes that do not."""
    name, fused = f"{variant}.onnx", model
    if saturates(_on_x86(form_of(model))):
        name, fused = f"{name} as {EXACT}, the bytes that do not saturate on this processor", encode(model, EXACT)
    rows = (
        (f"{variant}.onnx, optimisations off", model, False, ORT_DB if variant in DEFINING else tolerance),
        (name, fused, True, tolerance),
    )
    return [
        compare(title, cases, partial(run, open_session(graph, optimise=optimise)), wanted)
        for title, graph, optimise, wanted in rows
    ]


def _ort_file(
    bundle: Bundle, variant: str, model: ir.Model, cases: Sequence[Case], tolerance: float
) -> list[Check]:  # fmt: skip
    """The file that phones load, against golden data and against its .onnx file converted here."""
    name = f"{variant}.ort"
    execute = partial(run, open_session(bundle.path / name))
    facts = bundle.manifest
    try:
        plain, arm = facts["session"]["providers"][0][0] != CPU, facts["profile"]["machine"] == "aarch64"
    except (TypeError, KeyError, IndexError) as error:
        raise BundleError("the manifest does not say what the .ort files are for", where=bundle.path) from error
    again = open_session(ort_file(name, bundle.read(f"{variant}.onnx"), arm=arm, plain=plain))
    same = [replace(case, expected=run(again, case.feed)) for case in cases]
    form = form_of(model)
    if saturates(form if arm else _on_x86(form)):
        reason = "its kernels saturate on this processor and not on the board's: see the next row"
        golden = Check(name, SKIPPED, reason)
    else:
        golden = compare(name, cases, execute, tolerance)
    return [golden, compare(f"{name} against {variant}.onnx, converted here", same, execute, SAME_DB[variant])]
