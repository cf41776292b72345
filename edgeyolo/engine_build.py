"""Build the engine of a bundle with the TensorRT that Python finds here, or ahead of time with TensorRT-RTX."""

from __future__ import annotations

import fnmatch
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeyolo.bundle import MODEL, Bundle, sha256
from edgeyolo.engine_process import CACHE, build_apart
from edgeyolo.errors import BundleError, InputError
from edgeyolo.export.acceptance import without_nms
from edgeyolo.export.device_files import TYPED
from edgeyolo.jetson import PRECISIONS
from edgeyolo.output import check_free_file, write_file
from edgeyolo.progress import Log
from edgeyolo.runners.tensorrt import ENGINES, SUFFIX, as_input_error
from edgeyolo.targets.jetson import runner, tensorrt_api


@dataclass(frozen=True)
class Built:
    """An engine file, its size, and the note beside it."""

    path: Path
    nbytes: int
    note: dict[str, Any]


def build_bundle(
    path: Path, log: Log, *, targets: Sequence[str] = (), mark: Sequence[str] = (), force: bool = False
) -> Built:
    """Build and write ``BUNDLE/engines/NAME.engine``, the note NAME.json and, on its GPU, NAME.layers.json.

    Args:
        path: a bundle of the TensorRT target.
        log: receives the stages.
        targets: TensorRT-RTX's names of architectures; none: for the GPU of this machine.
        mark: patterns over layer names: their values become outputs of the engine too.
        force: replace an engine of that name.

    Raises:
        InputError: not such a bundle, no TensorRT, or it refuses the model or the options; nothing is written.
    """
    bundle = Bundle.open(path)
    options = bundle.manifest.get("options")
    if bundle.manifest["target"] != "tensorrt" or not isinstance(options, dict):
        raise InputError("this bundle is not for TensorRT", where=path, got=bundle.manifest["target"][:40])
    if options.get("precision") not in PRECISIONS:
        got, allowed = repr(options.get("precision"))[:40], ", ".join(PRECISIONS)
        raise BundleError("the manifest's precision is none", where=path, got=got, allowed=allowed)
    modules = tensorrt_api.RTX if targets else tensorrt_api.TENSORRT + tensorrt_api.RTX
    with as_input_error():
        trt = tensorrt_api.load(modules)
    dla = options.get("dla") if isinstance(options.get("dla"), int) else None
    typed = TYPED in bundle.manifest["files"] and tensorrt_api.is_typed(trt, dla)
    source, rtx, precision = TYPED if typed else MODEL, tensorrt_api.is_rtx(trt), str(options.get("precision"))
    kind = f"{'rtx' if rtx else 'trt'}{trt.__version__}"
    name = "-".join(["model", precision, kind, *targets, *(["marked"] if mark else [])])
    engine = path / ENGINES / f"{name}{SUFFIX}"
    check_free_file(engine, force=force)
    data = bundle.read(source)
    with log.stage("build") as details:
        wanted = _options(bundle, options, precision, targets, dla)
        graph, left_out = _graph(data, mark, bundle.read(MODEL), rtx=rtx)
        plan = build_apart(graph, wanted, (trt.__name__,))
        details.append(f"{trt.__name__} {trt.__version__}, {source}: {len(plan.data):,} bytes")
        details.extend(["without NonMaxSuppression, which TensorRT-RTX does not have"] * left_out)
    note = {
        "builder": "python",
        "compute_capability": [f"{t[2:-1]}.{t[-1]}" for t in targets] or None,
        "file": source,
        "gpu": None,
        "model_sha256": sha256(data),
        "precision": precision,
        "rtx": rtx,
        "tensorrt": trt.__version__,
    }
    if plan.timing_cache is not None:
        write_file(path / ENGINES / CACHE, plan.timing_cache, force=True)
    write_file(engine, plan.data, force=force)
    write_file(engine.with_suffix(".json"), (json.dumps(note, indent=1, sort_keys=True) + "\n").encode(), force=True)
    _describe(engine)
    return Built(engine, len(plan.data), note)


def _describe(engine: Path) -> None:
    """Write what TensorRT says of the engine's layers beside it, where there is a GPU for it here."""
    layers = engine.with_suffix(".layers.json")
    layers.unlink(missing_ok=True)
    command = [sys.executable, "-m", runner.__name__, "inspect", str(engine.absolute())]
    with tempfile.TemporaryDirectory() as empty:  # -m looks for modules in the working folder first
        said = subprocess.run(command, cwd=empty, capture_output=True, check=False)
    if said.returncode == 0:
        write_file(layers, said.stdout, force=True)


def _options(
    bundle: Bundle, options: dict[str, Any], precision: str, targets: Sequence[str], dla: int | None
) -> tensorrt_api.BuildOptions:  # fmt: skip
    board, layers, batch = bundle.manifest.get("profile"), bundle.manifest.get("layers"), options.get("max_batch")
    workspace = board.get("workspace_mib") if isinstance(board, dict) else None
    float32 = layers.get("typed_float32") if isinstance(layers, dict) else None
    return tensorrt_api.BuildOptions(
        precision=precision,
        batch=(1, batch, batch) if isinstance(batch, int) else None,
        workspace_mib=workspace if isinstance(workspace, int) and not targets else None,
        dla=dla,
        targets=tuple(targets),
        timing_cache=None if targets else bundle.path / ENGINES / CACHE,
        float_layers=tuple(map(str, float32)) if isinstance(float32, list) else (),
    )


def _graph(data: bytes, mark: Sequence[str], original: bytes, *, rtx: bool) -> tuple[bytes, bool]:
    """The graph as it is, or with the values of the layers that ``mark`` names among its outputs.

    Only values of the ``original`` float32 graph can be marked: nobody could say what others should be. Also returned:
    whether suppression was left out.
    """
    import onnx
    import onnx_ir as ir

    from edgeyolo.ort import model_bytes

    if not mark and not rtx:
        return data, False
    try:
        model, left_out = ir.from_proto(onnx.load_model_from_string(data)), False
    except Exception as error:  # protobuf and the parser raise many private types
        raise BundleError("the bundle's graph is not valid ONNX", got=str(error)[:200]) from error
    if rtx:
        model, left_out = without_nms(model)
    known = {name for node in onnx.load_model_from_string(original).graph.node for name in node.output}
    values = {
        str(v.name): v
        for node in model.graph
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Cast")
        for v in node.outputs
        if v.name in known
    }
    if unknown := [p for p in mark if not fnmatch.filter(values, p)]:
        allowed = f"a pattern over {', '.join(list(values)[:4])} ..."
        raise InputError("--mark names no layer of the model", got=", ".join(unknown), allowed=allowed)
    present = set(model.graph.outputs)
    chosen = [v for n, v in values.items() if any(fnmatch.fnmatchcase(n, p) for p in mark)]
    model.graph.outputs.extend(v for v in chosen if v not in present)
    return model_bytes(model), left_out
