"""Build the engine of a bundle with the TensorRT that Python finds here, or ahead of time with TensorRT-RTX."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeyolo.bundle import MODEL, Bundle
from edgeyolo.engine_process import build_apart
from edgeyolo.errors import InputError
from edgeyolo.export.acceptance import without_nms
from edgeyolo.export.device_files import TYPED
from edgeyolo.output import check_free_file, write_file
from edgeyolo.progress import Log
from edgeyolo.runners.tensorrt import ENGINES, SUFFIX, as_input_error, open_engine
from edgeyolo.targets.jetson import tensorrt_api


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
        plan = build_apart(_graph(data, mark, rtx=rtx), wanted, (trt.__name__,)).data
        details.append(f"{trt.__name__} {trt.__version__}, {source}: {len(plan):,} bytes")
    note = {
        "builder": "python",
        "compute_capability": [f"{t[2:-1]}.{t[-1]}" for t in targets] or None,
        "file": source,
        "gpu": None,
        "model_sha256": hashlib.sha256(data).hexdigest(),
        "precision": precision,
        "rtx": rtx,
        "tensorrt": trt.__version__,
    }
    write_file(engine, plan, force=force)
    write_file(engine.with_suffix(".json"), (json.dumps(note, indent=1, sort_keys=True) + "\n").encode(), force=True)
    layers = engine.with_suffix(".layers.json")
    layers.unlink(missing_ok=True)
    with suppress(InputError), open_engine(engine) as opened:  # where there is no GPU for it, nothing can be said
        write_file(layers, opened.inspect().encode(), force=True)
    return Built(engine, len(plan), note)


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
        timing_cache=None if targets else bundle.path / ENGINES / "timing.cache",
        float_layers=tuple(map(str, float32)) if isinstance(float32, list) else (),
    )


def _graph(data: bytes, mark: Sequence[str], *, rtx: bool) -> bytes:
    """The graph as it is, or with the values of the layers that ``mark`` names among its outputs."""
    import onnx
    import onnx_ir as ir

    from edgeyolo.ort import model_bytes

    if not mark and not rtx:
        return data
    model, _ = without_nms(ir.from_proto(onnx.load_model_from_string(data)))
    if not mark:
        return model_bytes(model)
    values = {
        str(v.name): v
        for node in model.graph
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Cast")
        for v in node.outputs
    }
    chosen = [v for n, v in values.items() if any(fnmatch.fnmatchcase(n, p) for p in mark)]
    if not chosen:
        allowed = f"a pattern over {', '.join(list(values)[:4])} ..."
        raise InputError("--mark names no layer of the model", got=", ".join(mark), allowed=allowed)
    present = set(model.graph.outputs)
    model.graph.outputs.extend(v for v in chosen if v not in present)
    return model_bytes(model)
