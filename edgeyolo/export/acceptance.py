"""What a real TensorRT says of a graph: TensorRT-RTX parses it and builds an engine from it, without a GPU.

That proves that the graph is accepted and can be built, by RTX for one of its architectures. It does not show which
kernels it chose, nor what they compute: an engine cannot be opened without its GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from edgeyolo.engine_process import build_apart
from edgeyolo.errors import InputError
from edgeyolo.ort import model_bytes
from edgeyolo.passes.graph import drop_unused
from edgeyolo.quant.calibrate import copy_model
from edgeyolo.targets.jetson import tensorrt_api

DEFAULT_SM = "SM86"
"""What is built for where the board has no architecture that TensorRT-RTX knows: the nearest to Orin's SM87."""
PACKAGES = "tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings"


@dataclass(frozen=True)
class Acceptance:
    """The answer.

    Args:
        status: ``accepted``, ``refused`` or ``skipped``.
        text: with what, for what, or why.
    """

    status: str
    text: str

    def to_json(self) -> dict[str, str]:
        """JSON-able."""
        return asdict(self)


def installed() -> bool:
    """Whether TensorRT-RTX is there."""
    return any(importlib.util.find_spec(name) for name in tensorrt_api.RTX)


def accept(model: ir.Model, targets: Sequence[str] = (), max_batch: int | None = None) -> Acceptance:
    """Let TensorRT-RTX parse and build ``model``.

    Args:
        model: typed graph; suppression is left out, because TensorRT-RTX has no kernel for it.
        targets: its names of architectures; the first is built for.
        max_batch: of a graph whose batch is symbolic.
    """
    if not installed():
        return Acceptance("skipped", f"TensorRT-RTX is not installed: pip install {PACKAGES}")
    target = targets[0] if targets else DEFAULT_SM
    graph, left_out = without_nms(model)
    batch = None if max_batch is None else (1, max_batch, max_batch)
    try:
        options = tensorrt_api.BuildOptions(batch=batch, targets=(target,))
        plan = build_apart(model_bytes(graph), options, tensorrt_api.RTX)
    except InputError as error:
        return Acceptance("refused", str(error))
    text = f"TensorRT-RTX {plan.version} built {len(plan.data):,} bytes for {target}"
    return Acceptance("accepted", text + ", without NonMaxSuppression, which it does not have" * left_out)


def without_nms(model: ir.Model) -> tuple[ir.Model, bool]:
    """``model`` without outputs that NonMaxSuppression makes, and whether there were any."""
    copy = copy_model(model)
    kept: list[Any] = [v for v in copy.graph.outputs if (n := v.producer()) is None or n.op_type != "NonMaxSuppression"]
    left_out = len(kept) < len(copy.graph.outputs)
    copy.graph.outputs[:] = kept
    drop_unused(copy)
    return copy, left_out
