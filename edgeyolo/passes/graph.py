"""Small questions and edits that several passes share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeyolo.detector import METADATA_KEY, Detector
from edgeyolo.errors import InputError


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array behind an initializer or Constant node, or None when the value is computed.

    Identity nodes are looked through: exporters share equal tensors by them, such as batch norms that nobody trained.
    """
    while value is not None and (node := value.producer()) is not None and node.op_type == "Identity":
        value = node.inputs[0]
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def new_initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """Register ``array`` as an initializer; the name gets a suffix when it is taken."""
    unique, count = name, 1
    while unique in graph.initializers:
        unique, count = f"{name}.{count}", count + 1
    tensor = ir.tensor(np.asarray(array, order="C"), name=unique)
    value = ir.Value(name=unique, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def ints(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """An integer list attribute, or its default."""
    return tuple(node.attributes[name].as_ints()) if name in node.attributes else default


def conv_groups(node: ir.Node) -> int:
    """The ``group`` attribute of a Conv."""
    return node.attributes["group"].as_int() if "group" in node.attributes else 1


def read_detector(model: ir.Model) -> Detector:
    """The detector facts that ride in the model's metadata. Raises InputError when there are none."""
    text = model.metadata_props.get(METADATA_KEY)
    if text is None:
        raise InputError("the model carries no detector metadata", hint="export it with edgeyolo")
    return Detector.from_json(text)


def write_detector(model: ir.Model, detector: Detector) -> None:
    """Store the detector facts in the model's metadata."""
    model.metadata_props[METADATA_KEY] = detector.to_json()


def drop_unused(model: ir.Model) -> None:
    """Remove nodes and initializers that nothing reads."""
    common_passes.RemoveUnusedNodesPass()(model)


def fix_batch(model: ir.Model) -> None:
    """Make the batch of all inputs and outputs 1 where it is symbolic, in place."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
            value.shape = ir.Shape([1, *list(value.shape)[1:]])


def with_types(model: ir.Model) -> ir.Model:
    """A copy in which every value has its type: not every file records them, and what computes shapes is integer."""
    import onnx

    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))
