"""Say the same with the operators of another opset."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgeyolo.errors import UnsupportedError
from edgeyolo.passes.graph import constant

WIDENED = frozenset({
    *("Add", "Sub", "Mul", "Div", "Relu", "LeakyRelu", "PRelu", "Identity", "Pow", "Where", "Equal", "Cast"),
    *("Constant", "ConstantOfShape", "Reshape", "Shape", "Size", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
    *("Split", "Pad", "Resize", "AveragePool", "QuantizeLinear", "DequantizeLinear"),
})  # fmt: skip
"""Operators whose later versions (up to opset 21) take more types, or have options more: without those they are what
they were in 13."""
REDUCTIONS = frozenset(
    {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSumExp"}
)
"""Their axes are an input from opset 18 on, an attribute before."""
OLDEST = 13


def with_opset(model: ir.Model, opset: int) -> ir.Model:
    """A copy of ``model`` with the operators of ``opset``; the metadata stay.

    Raises UnsupportedError, listing all operators that ``opset`` does not have.
    """
    present = model.graph.opset_imports[""]
    copy = ir.from_proto(ir.to_proto(model))
    if opset > present:
        import onnx.version_converter

        copy = ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), opset))
    elif opset < present:
        if missing := sorted({text for node in copy.graph if (text := _lowered(node, present, opset)) is not None}):
            raise UnsupportedError(
                "the model needs a newer opset than is allowed", got=", ".join(missing), allowed=f"opset {opset}",
                hint="choose another --board, with a newer runtime, or export the model with an older opset",
            )  # fmt: skip
        copy.graph.opset_imports[""] = opset
    copy.metadata_props.update(model.metadata_props)
    return copy


def _lowered(node: ir.Node, present: int, opset: int) -> str | None:
    """Rewrite one node for the older ``opset``; what it cannot say there, or None."""
    from onnx import defs

    if opset < OLDEST:
        return f"all: opsets below {OLDEST} are not written"
    if node.domain not in ("", "ai.onnx"):
        return None
    try:
        older, newer = defs.get_schema(node.op_type, opset), defs.get_schema(node.op_type, present)
    except defs.SchemaError:
        return f"{node.op_type} (not in opset {opset})"
    if older.since_version == newer.since_version:
        return None
    if node.op_type in REDUCTIONS and older.since_version < 18 <= newer.since_version:
        return _axes_to_attribute(node)
    if node.op_type not in WIDENED:
        return f"{node.op_type} of opset {present}"
    if node.op_type == "Split" and "num_outputs" in node.attributes and not _splits_evenly(node):
        return "Split into unequal parts"
    for name in [name for name in node.attributes if name not in older.attributes]:
        if name != "num_outputs" and not _is_default(node.attributes[name], newer.attributes[name].default_value):
            return f"{node.op_type} with {name}"
        del node.attributes[name]
    inputs = [value for value in node.inputs if value is not None]
    return f"{node.op_type} with {len(inputs)} inputs" if len(inputs) > older.max_input else None


def _is_default(attribute: ir.Attr, default: Any) -> bool:
    import onnx

    return bool(onnx.helper.get_attribute_value(default) == attribute.value) if default.name else False


def _splits_evenly(node: ir.Node) -> bool:
    """Without sizes, older opsets split into equal parts only."""
    source = node.inputs[0]
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        return True
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    size = source.shape[axis] if source is not None and source.shape is not None else None
    return isinstance(size, int) and size % len(node.outputs) == 0


def _axes_to_attribute(node: ir.Node) -> str | None:
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else np.zeros(0, np.int64)
    if axes is None:
        return f"{node.op_type} with computed axes"
    if node.attributes.pop("noop_with_empty_axes", None) is not None and not axes.size:
        return f"{node.op_type} with noop_with_empty_axes"
    if axes.size:
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes])
    node.resize_inputs(1)
    return None
