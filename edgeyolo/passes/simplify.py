"""Simplify with onnxsim, and check that the function stayed the same.

onnxsim folds constants, removes identities and merges what it can. The result is compared with the input on seeded
noise before it is accepted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeyolo.errors import EdgeYoloError
from edgeyolo.ort import open_session, run

SIMPLIFY_TOLERANCE = 1e-4
"""Relative to the largest output: constants are folded in float32 by another kernel, in another order of additions."""
NEXT = "export with --no-simplify and report the model"
_DIFFERENT = "the simplified model computes something else"


@dataclass(frozen=True)
class SimplifyReport:
    """Node counts by operator before and after, and the largest difference of the outputs seen."""

    before: dict[str, int]
    after: dict[str, int]
    max_abs_difference: float


def simplify(model: ir.Model) -> tuple[ir.Model, SimplifyReport]:
    """Return the simplified model and what changed. Metadata and opset stay.

    Raises:
        EdgeYoloError: onnxsim fails, or the simplified model computes something else.
    """
    import onnxsim

    try:
        simplified_proto, _ = onnxsim.simplify(ir.to_proto(model))
    except Exception as error:  # onnxsim raises what its C++ part raises
        raise EdgeYoloError("onnxsim cannot simplify the model", got=str(error)[:300], hint=NEXT) from error
    simplified = ir.from_proto(simplified_proto)
    simplified.metadata_props.update(model.metadata_props)
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(simplified)
    common_passes.RemoveUnusedNodesPass()(simplified)
    difference = _difference(model, simplified)
    return simplified, SimplifyReport(count_nodes(model), count_nodes(simplified), difference)


def count_nodes(model: ir.Model) -> dict[str, int]:
    """How many nodes of each operator."""
    return dict(sorted(Counter(node.op_type for node in model.graph).items()))


def _difference(model: ir.Model, simplified: ir.Model) -> float:
    feeds: dict[str, Any] = {}
    generator = np.random.default_rng(0)
    for value in model.graph.inputs:
        assert value.shape is not None and value.name is not None
        shape = [d if isinstance(d, int) else 1 for d in value.shape]
        feeds[value.name] = generator.random(shape, np.float32)
    expected, got = (run(open_session(m, optimise=False), feeds) for m in (model, simplified))
    worst = 0.0
    for name, array in expected.items():
        other = got.get(name)
        if other is None or other.shape != array.shape or other.dtype != array.dtype:
            what = "nothing" if other is None else f"{other.dtype} {other.shape}"
            raise EdgeYoloError(_DIFFERENT, where=name, got=what, allowed=f"{array.dtype} {array.shape}", hint=NEXT)
        if array.dtype.kind != "f" or array.size == 0:
            continue
        difference = float(np.abs(other - array).max())
        worst = max(worst, difference)
        if not difference <= SIMPLIFY_TOLERANCE * max(1.0, float(np.abs(array).max())):
            raise EdgeYoloError(_DIFFERENT, where=name, got=f"largest difference {difference:.3g}", hint=NEXT)
    return worst
