"""Say the same with the operators of another opset.

Downwards, the two schemas of an operator decide: it is what it was if it has the older one's attributes with the same
defaults, what the newer one adds is not used, and all types are among the older one's. Where the meaning changed and
the schema does not tell, ``NEW_VALUES``, ``REDEFINED`` and ``CEILED`` do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeyolo.errors import UnsupportedError
from edgeyolo.passes.graph import constant, ints, with_types

if TYPE_CHECKING:
    from onnx.defs import OpSchema

OLDEST = 13
REVIEWED = 28
"""The newest opset whose operators' texts were compared with those before; what a newer one changes is refused."""

NEW_VALUES: dict[tuple[str, int], tuple[str, frozenset[Any]]] = {
    ("ScatterElements", 18): ("reduction", frozenset({"max", "min"})),
    ("ScatterND", 18): ("reduction", frozenset({"max", "min"})),
    ("Pad", 19): ("mode", frozenset({"wrap"})),
    ("Resize", 19): ("coordinate_transformation_mode", frozenset({"half_pixel_symmetric"})),
    ("AveragePool", 19): ("auto_pad", frozenset({"VALID", "SAME_UPPER", "SAME_LOWER"})),
    ("Cast", 24): ("to", frozenset({17, 18, 19, 20})),
}
"""(Operator, opset) -> an attribute, and its values that the opset added or gave another meaning: pooling's output has
another size, infinity another code in float8."""
REDEFINED = frozenset({
    *(("RoiAlign", 16), ("GroupNormalization", 21), ("Attention", 24), ("CastLike", 24)),
    *(("OptionalHasElement", 18), ("OptionalGetElement", 18), ("BitShift", 28), ("Mod", 28)),
})  # fmt: skip
"""(Operator, opset): from there on the same words mean something else, or something where they meant nothing."""
CEILED = frozenset({"MaxPool", "AveragePool"})
"""From opset 22 on they leave out windows that start behind the picture."""
REDUCTIONS = frozenset({
    *("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
})  # fmt: skip
"""Their axes are an input from opset 18 on, an attribute before."""


def with_opset(model: ir.Model, opset: int) -> ir.Model:
    """A copy of ``model`` with the operators of ``opset``, in a file that its readers know; the metadata stay.

    Raises UnsupportedError, listing all operators that ``opset`` does not have.
    """
    from onnx import defs, helper, version_converter

    present, known = model.graph.opset_imports[""], defs.onnx_opset_version()
    if present > known:
        raise UnsupportedError(
            "the installed onnx does not know the model's opset", got=present, allowed=f"up to {known}",
            hint="update onnx, or export the model with an older opset",
        )  # fmt: skip
    if opset > present:
        copy = ir.from_proto(version_converter.convert_version(ir.to_proto(model), opset))
        copy.metadata_props.update(model.metadata_props)
        return copy
    copy = with_types(model)
    if copy.functions:  # their operators are of that opset too
        copy = with_types(common_passes.InlinePass()(copy).model)
    nodes = list(ir.traversal.RecursiveGraphIterator(copy.graph)) if opset < present else []
    if missing := sorted({text for node in nodes if (text := _lower(node, present, opset)) is not None}):
        raise UnsupportedError(
            "the model needs a newer opset than is allowed", got=", ".join(missing), allowed=f"opset {opset}",
            hint="choose another --board, with a newer runtime, or export the model with an older opset",
        )  # fmt: skip
    copy.graph.opset_imports[""] = opset
    # A runtime that ends at this opset ends at the file format of its time too.
    newest = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
    copy.ir_version = min(copy.ir_version, newest)
    return copy


def _lower(node: ir.Node, present: int, opset: int) -> str | None:
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
    if newer.since_version > REVIEWED or _redefined(node, older, newer):
        return f"{node.op_type} of opset {present}"
    return _lower_attributes(node, older, newer) or _misfit(node, older, newer)


def _redefined(node: ir.Node, older: OpSchema, newer: OpSchema) -> bool:
    """Whether the older operator, with the attributes that it has too, is another one."""
    if any((node.op_type, opset) in REDEFINED for opset in range(older.since_version + 1, newer.since_version + 1)):
        return True
    kept = {name: newer.attributes.get(name) for name in older.attributes}
    if node.op_type in REDUCTIONS:
        kept.pop("axes", None)
    return any(new is None or new.default_value != older.attributes[name].default_value for name, new in kept.items())


def _lower_attributes(node: ir.Node, older: OpSchema, newer: OpSchema) -> str | None:
    """Take away what the older operator does without; what it cannot do without, or None."""
    crossed = range(older.since_version + 1, newer.since_version + 1)
    for name, values in (NEW_VALUES[node.op_type, opset] for opset in crossed if (node.op_type, opset) in NEW_VALUES):
        if name in node.attributes and node.attributes[name].value in values:
            return f"{node.op_type} with {name} {node.attributes[name].value}"
    if node.op_type in CEILED and 22 in crossed and _pads_windows(node):
        return f"{node.op_type} with ceil_mode and windows behind the picture"
    if node.op_type in REDUCTIONS and 18 in crossed:
        return _axes_to_attribute(node)
    if node.op_type == "Split" and "num_outputs" in node.attributes and not _splits_evenly(node):
        return "Split into unequal parts"
    for name in [name for name in node.attributes if name not in older.attributes]:
        if name != "num_outputs" and not _is_default(node.attributes[name], newer):
            return f"{node.op_type} with {name}"
        del node.attributes[name]
    return None


def _misfit(node: ir.Node, older: OpSchema, newer: OpSchema) -> str | None:
    """An input, output or type that the older operator does not have, or None."""
    bound: dict[str, str] = {}
    inputs = (node.inputs, older.inputs, older.max_input, newer.inputs)
    outputs = (node.outputs, older.outputs, older.max_output, newer.outputs)
    for values, formals, most, known in (inputs, outputs):
        for index, value in enumerate(values):
            if value is None or not value.name:
                continue
            if index >= most:
                return f"{node.op_type} with {known[index].name}"
            formal = formals[min(index, len(formals) - 1)]  # the last one may stand for several
            if value.type is None:  # behind another domain's operator
                continue
            tensor = isinstance(value.type, ir.TensorType)
            kind = f"tensor({value.type.dtype.name.lower()})" if tensor else type(value.type).__name__
            if kind not in formal.types or (formal.is_homogeneous and bound.setdefault(formal.type_str, kind) != kind):
                return f"{node.op_type} of {kind}"
    if len(node.inputs) > older.max_input:
        node.resize_inputs(older.max_input)
    return None


def _is_default(attribute: ir.Attr, schema: OpSchema) -> bool:
    default = schema.attributes[attribute.name].default_value
    if not default.name:
        return attribute.name == "dilations" and set(attribute.as_ints()) == {1}
    return bool(ir.serde.deserialize_attribute(default).value == attribute.value)


def _pads_windows(node: ir.Node) -> bool:
    """Whether, the size rounded up, a window may start behind the picture, in its padding."""
    if "ceil_mode" not in node.attributes or not node.attributes["ceil_mode"].as_int():
        return False
    kernel = ints(node, "kernel_shape", ())
    ones = (1,) * len(kernel)
    ends = ints(node, "pads", (0, 0) * len(kernel))[len(kernel) :]
    sizes = zip(kernel, ints(node, "strides", ones), ints(node, "dilations", ones), ends, strict=True)
    return any(end + stride > (size - 1) * dilation + 1 for size, stride, dilation, end in sizes)


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
    noop = node.attributes.pop("noop_with_empty_axes", None)
    if noop is not None and noop.as_int() and not axes.size:
        return f"{node.op_type} with noop_with_empty_axes"
    if axes.size:
        node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes])
    node.resize_inputs(1)
    return None
