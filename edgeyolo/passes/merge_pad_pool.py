"""Merge an infinite Pad into the MaxPool behind it.

    MaxPool(Pad(x, p, -inf)) = MaxPool(x, pads += p)

because ONNX's MaxPool pads with -inf itself. A Pad in front of a MaxPool with a finite constant is different arithmetic
and stays: a finite value such as -1e4 would be seen by calibration. So does one that reaches as far as the window
(MaxPool's own pads must not), in front of a MaxPool whose other attributes or outputs depend on the input's extent.
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
            if pad is None or spatial is None or _depends_on_extent(pool):
                continue
            merged = [a + b for a, b in zip(ints(pool, "pads", (0, 0, 0, 0)), spatial, strict=True)]
            if any(amount >= kernel for amount, kernel in zip(merged, ints(pool, "kernel_shape", ()) * 2, strict=True)):
                continue
            pool.attributes["pads"] = ir.AttrInt64s("pads", merged)
            pool.replace_input_with(0, pad.inputs[0])
            modified = True
        if modified:
            drop_unused(model)
        return ir.passes.PassResult(model, modified=modified)


def _depends_on_extent(pool: ir.Node) -> bool:
    """Whether the MaxPool counts from its input's border: automatic pads, ceil_mode, an output of indices."""
    automatic = "auto_pad" in pool.attributes and pool.attributes["auto_pad"].as_string() != "NOTSET"
    ceil = "ceil_mode" in pool.attributes and pool.attributes["ceil_mode"].as_int() != 0
    return automatic or ceil or any(value.uses() or value.is_graph_output() for value in pool.outputs[1:])


def _infinite_spatial_pads(pad: ir.Node) -> tuple[int, ...] | None:
    """(top, left, bottom, right) of a constant -inf Pad over H and W of NCHW, or None."""
    if "mode" in pad.attributes and pad.attributes["mode"].as_string() != "constant":
        return None
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        return None
    amounts = constant(pad.inputs[1]) if len(pad.inputs) > 1 else None  # an attribute before opset 11
    value = constant(pad.inputs[2]) if len(pad.inputs) > 2 else None
    if amounts is None or value is None or not np.isneginf(value).all() or amounts.size != 8:
        return None
    n0, c0, top, left, n1, c1, bottom, right = (int(v) for v in amounts)
    if any((n0, c0, n1, c1)) or min(top, left, bottom, right) < 0:
        return None
    return top, left, bottom, right
