"""Merge an infinite Pad into the MaxPool behind it.

    MaxPool(Pad(x, p, -inf)) = MaxPool(x, pads += p)

because ONNX's MaxPool pads with -inf itself. A Pad in front of a MaxPool with a finite constant is different arithmetic
and stays: a finite value such as -1e4 would be seen by calibration.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeyolo.passes.graph import constant, drop_unused, ints


class MergePadPool(ir.passes.InPlacePass):
    """Replace Pad(-inf) + MaxPool by one MaxPool with (possibly asymmetric) pads."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every match in place."""
        modified = False
        for pool in [n for n in model.graph if n.op_type == "MaxPool"]:
            pad = pool.inputs[0].producer() if pool.inputs[0] is not None else None
            spatial = _infinite_spatial_pads(pad) if pad is not None and pad.op_type == "Pad" else None
            automatic = "auto_pad" in pool.attributes and pool.attributes["auto_pad"].as_string() != "NOTSET"
            if pad is None or spatial is None or automatic:
                continue
            merged = [a + b for a, b in zip(ints(pool, "pads", (0, 0, 0, 0)), spatial, strict=True)]
            pool.attributes["pads"] = ir.AttrInt64s("pads", merged)
            pool.replace_input_with(0, pad.inputs[0])
            modified = True
        if modified:
            drop_unused(model)
        return ir.passes.PassResult(model, modified=modified)


def _infinite_spatial_pads(pad: ir.Node) -> tuple[int, ...] | None:
    """(top, left, bottom, right) of a constant -inf Pad over H and W of NCHW, or None."""
    if "mode" in pad.attributes and pad.attributes["mode"].as_string() != "constant":
        return None
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        return None
    amounts = constant(pad.inputs[1])
    value = constant(pad.inputs[2]) if len(pad.inputs) > 2 else None
    if amounts is None or value is None or not np.isneginf(value).all() or amounts.size != 8:
        return None
    n0, c0, top, left, n1, c1, bottom, right = (int(v) for v in amounts)
    if any((n0, c0, n1, c1)) or min(top, left, bottom, right) < 0:
        return None
    return top, left, bottom, right
