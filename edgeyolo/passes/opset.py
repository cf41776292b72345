"""Say the same with the operators of another opset."""

from __future__ import annotations

import onnx_ir as ir

from edgeyolo.errors import UnsupportedError

WIDENED = frozenset({"Add", "Sub", "Mul", "Div", "Relu", "LeakyRelu", "PRelu", "Identity", "Pow", "Where"})
"""Operators whose later versions (up to opset 17) only take more types: on floats they are what they were in 13."""
OLDEST = 13


def with_opset(model: ir.Model, opset: int) -> ir.Model:
    """A copy of ``model`` with the operators of ``opset``; the metadata stay.

    Raises UnsupportedError, listing all operators that ``opset`` does not have.
    """
    proto, present = ir.to_proto(model), model.graph.opset_imports[""]
    if opset > present:
        import onnx.version_converter

        proto = onnx.version_converter.convert_version(proto, opset)
    elif opset < present:
        if missing := _missing(model, present, opset):
            raise UnsupportedError(
                "the model needs a newer opset than is allowed", got=", ".join(missing), allowed=f"opset {opset}"
            )
        for entry in proto.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = opset
    converted = ir.from_proto(proto)
    converted.metadata_props.update(model.metadata_props)
    return converted


def _missing(model: ir.Model, present: int, opset: int) -> list[str]:
    """Operators of ``model`` that mean something else, or nothing, in the older ``opset``."""
    from onnx import defs

    if opset < OLDEST:
        return [f"all: opsets below {OLDEST} are not written"]
    found = set()
    for node in model.graph:
        try:
            older = defs.get_schema(node.op_type, opset).since_version
        except defs.SchemaError:
            found.add(f"{node.op_type} (not in opset {opset})")
            continue
        if older == defs.get_schema(node.op_type, present).since_version or node.op_type in WIDENED:
            continue
        options = [name for name in ("allowzero", "start", "end") if name in node.attributes]
        plain = node.op_type in ("Reshape", "Shape") and not any(node.attributes[o].as_int() for o in options)
        if not plain or "end" in options:
            found.add(f"{node.op_type} of opset {present}")
    return sorted(found)
