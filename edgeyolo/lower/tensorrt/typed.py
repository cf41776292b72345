"""The strongly typed form of a graph: float16 where it is safe, float32 elsewhere, every conversion an explicit Cast.

TensorRT 11 has no precision flags: a layer runs in the type that the graph gives it. Inputs and outputs stay float32.
A QuantizeLinear has the type of what it reads, a DequantizeLinear that of who reads it, so int8 costs no Cast.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeyolo.lower.tensorrt.rules import moves, weight_axis
from edgeyolo.passes.graph import constant, drop_unused, new_initializer, with_types
from edgeyolo.passes.opset import with_opset

OPSET = 19
"""The first whose QuantizeLinear takes float16."""
UNSAFE = frozenset({
    *("Exp", "Log", "Pow", "Softplus", "CumSum", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceProd"),
    *("LayerNormalization", "InstanceNormalization", "BatchNormalization", "NonMaxSuppression", "Erf"),
})  # fmt: skip
"""Operations whose inner values leave float16's range, or that lose too much in it."""
LARGEST = float(np.finfo(np.float16).max) / 2
"""A value that came near float16's end on calibration pictures may pass it on others."""
FINEST = float(np.finfo(np.float16).tiny)
"""Weights that are all smaller than this lose precision in float16."""
FLOAT32_INPUTS = {"Resize": (2,)}
"""Inputs that are float32 whatever the type of the operation: the scales of a Resize."""


def unsafe_layers(model: ir.Model, peaks: Mapping[str, float]) -> dict[str, str]:
    """The nodes that must stay float32, with the reason.

    Args:
        model: float or quantised graph.
        peaks: largest magnitude seen of some values, by name.
    """
    found: dict[str, str] = {}
    for node in model.graph:
        values = [str(v.name) for v in (*node.inputs, *node.outputs) if v is not None]
        arrays = [a for v in node.inputs if (a := constant(v)) is not None and a.dtype == np.float32 and a.size]
        if node.op_type in UNSAFE and not _is_mish(node):
            found[str(node.name)] = f"{node.op_type} leaves float16's range"
        elif (peak := max((peaks.get(name, 0.0) for name in values), default=0.0)) > LARGEST:
            found[str(node.name)] = f"values up to {peak:.3g}"
        if node.op_type not in ("Resize", "QuantizeLinear", "DequantizeLinear"):
            for array in arrays:
                largest = float(np.abs(array).max())
                if largest > LARGEST or 0 < largest < FINEST:
                    found[str(node.name)] = f"constants up to {largest:.3g}"
    return found


def _is_mish(node: ir.Node) -> bool:
    """Softplus in front of Tanh may overflow: tanh(infinity) is 1, as it should be."""
    return node.op_type == "Softplus" and all(use.node.op_type == "Tanh" for use in node.outputs[0].uses())


def behind_heads(model: ir.Model) -> list[str]:
    """Names of the nodes behind the last weighted layers, if they compute anything: box coordinates need float32."""
    needed: set[ir.Node] = set()
    todo = [node for node in model.graph if weight_axis(node) is not None]
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo += [n for v in node.inputs if v is not None and (n := v.producer()) is not None]
    behind = [node for node in model.graph if node not in needed]
    return [str(node.name) for node in behind] if any(not moves(node) for node in behind) else []


def to_typed(model: ir.Model, unsafe: Collection[str]) -> ir.Model:
    """Return a typed copy of ``model`` of opset 19.

    Args:
        model: float32 graph, quantised or not, of opset 13 to 19; all floats in it are float32.
        unsafe: names of nodes that stay float32.
    """
    raised = with_opset(model, OPSET) if model.graph.opset_imports[""] < OPSET else model
    raised = with_types(raised)
    # The converter's Constant nodes hold tensors whose names depend on the way here; initializers have the value's.
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(raised)
    typed = _Typed(raised)
    typed.split_dequantisers(unsafe)
    for node in list(typed.model.graph):
        typed.convert(node, ir.DataType.FLOAT if typed.is_float32(node, unsafe) else ir.DataType.FLOAT16)
    typed.finish()
    drop_unused(typed.model)
    return typed.model


class _Typed:
    """A graph under conversion, in execution order; ``made`` has what was cast already."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.floats = {v for v in self._values() if v.dtype in (ir.DataType.FLOAT, None)} - set(self._integers())
        self.made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def _values(self) -> list[ir.Value]:
        graph = self.model.graph
        return [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]

    def _integers(self) -> list[ir.Value]:
        """Values without a recorded type that are no floats."""
        makers = ("QuantizeLinear", "Shape", "NonMaxSuppression", "ArgMax")
        return [v for node in self.model.graph if node.op_type in makers for v in node.outputs]

    def is_float32(self, node: ir.Node, unsafe: Collection[str]) -> bool:
        """Whether ``node`` computes in float32; a DequantizeLinear does what its readers do."""
        if node.op_type != "DequantizeLinear":
            return str(node.name) in unsafe
        uses = list(node.outputs[0].uses())
        return bool(uses) and all(str(use.node.name) in unsafe for use in uses)

    def split_dequantisers(self, unsafe: Collection[str]) -> None:
        """One DequantizeLinear for float16 readers and one for float32 readers, so that no Cast hides a pair."""
        for node in [n for n in self.model.graph if n.op_type == "DequantizeLinear"]:
            uses = list(node.outputs[0].uses())
            wide = [use for use in uses if str(use.node.name) in unsafe]
            if not wide or len(wide) == len(uses):
                continue
            name = f"{node.name}.f32"
            twin = ir.node("DequantizeLinear", list(node.inputs), dict(node.attributes), name=name)
            result = twin.outputs[0]
            result.name, result.type, result.shape = name, node.outputs[0].type, node.outputs[0].shape
            self.floats.add(result)
            self.model.graph.insert_after(node, twin)
            for use in wide:
                use.node.replace_input_with(use.idx, result)

    def convert(self, node: ir.Node, wanted: ir.DataType) -> None:
        """Give ``node`` inputs of type ``wanted``, and note the type of what it makes."""
        if node.op_type == "Constant":
            return
        if node.op_type == "Cast" or not any(v in self.floats for v in (*node.inputs, *node.outputs)):
            return
        if node.op_type == "QuantizeLinear":
            assert node.inputs[0] is not None
            wanted = self._type(node.inputs[0])
        for index, value in enumerate(node.inputs):
            fixed = index in FLOAT32_INPUTS.get(node.op_type, ())
            if value is not None and value in self.floats and not fixed:
                node.replace_input_with(index, self._as(value, wanted, node))
        for value in node.outputs:
            if value in self.floats:
                value.type = ir.TensorType(wanted)

    def _type(self, value: ir.Value) -> ir.DataType:
        """float32 of inputs, float16 of initializers (they are stored anew as needed), else what the producer makes."""
        if constant(value) is not None:
            return ir.DataType.FLOAT16
        return value.dtype or ir.DataType.FLOAT

    def _as(self, value: ir.Value, wanted: ir.DataType, before: ir.Node) -> ir.Value:
        """``value`` in the type ``wanted``: itself, a constant stored anew, or a Cast behind its producer."""
        array = constant(value)
        if array is None and self._type(value) == wanted:
            return value
        if array is not None and wanted == ir.DataType.FLOAT:
            return value
        if (value, wanted) not in self.made:
            if array is not None:
                self.made[value, wanted] = new_initializer(
                    self.model.graph, f"{value.name}.f16", array.astype(np.float16)
                )
            else:
                self.made[value, wanted] = self._cast(value, wanted, before)
        return self.made[value, wanted]

    def _cast(self, value: ir.Value, wanted: ir.DataType, before: ir.Node | None) -> ir.Value:
        suffix = "f16" if wanted == ir.DataType.FLOAT16 else "f32"
        cast = ir.node("Cast", [value], {"to": wanted}, name=f"{value.name}.{suffix}")
        cast.outputs[0].name, cast.outputs[0].type = f"{value.name}.{suffix}", ir.TensorType(wanted)
        cast.outputs[0].shape = value.shape
        producer = value.producer()
        if producer is not None:
            self.model.graph.insert_after(producer, cast)
        else:
            assert before is not None
            self.model.graph.insert_before(before, cast)
        return cast.outputs[0]

    def finish(self) -> None:
        """Graph outputs are float32 and keep their names."""
        graph = self.model.graph
        for index, value in enumerate(graph.outputs):
            if value in self.floats and self._type(value) == ir.DataType.FLOAT16:
                name = str(value.name)
                value.name = f"{name}.f16"
                result = self._cast(value, ir.DataType.FLOAT, None)
                result.name = name
                graph.outputs[index] = result
