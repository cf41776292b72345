"""Read the Q/DQ pairs of anybody's ONNX graph: the float graph without them, and which edge had which pair."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.passes.graph import constant, drop_unused
from edgeyolo.quant.calibrate import copy_model

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True, eq=False)
class Pair:
    """One DequantizeLinear with the QuantizeLinear in front of it, if any (weights may be stored as integers).

    Args:
        name: the DequantizeLinear's, or its output's where it has none.
        scale: () or (n,) or, of blocks, more; None where it is computed.
        zero: of the same shape; None where there is none, or it is computed.
        dtype: of the codes; None where nothing says.
        axis: of the scale, where it is not a scalar.
        weight: whether the data are constant.
    """

    name: str
    scale: npt.NDArray[np.floating] | None
    zero: npt.NDArray[np.integer] | None
    dtype: ir.DataType | None
    axis: int
    weight: bool

    @property
    def per_channel(self) -> bool:
        """Whether there is more than one scale."""
        return self.scale is not None and self.scale.size > 1


@dataclass(frozen=True, eq=False)
class Stripped:
    """A float graph and what stood in it.

    Args:
        model: without pairs; edges lead where they led.
        edges: (node, input number) -> the pair that stood there.
        outputs: graph output name -> the pair in front of it.
        quantisers: value name -> how many QuantizeLinear read it.
    """

    model: ir.Model
    edges: dict[tuple[ir.Node, int], Pair] = field(default_factory=dict)
    outputs: dict[str, Pair] = field(default_factory=dict)
    quantisers: dict[str, int] = field(default_factory=dict)


def strip_pairs(model: ir.Model) -> Stripped:
    """Take all pairs out of a copy of ``model``."""
    copy = copy_model(model)
    stripped = Stripped(copy)
    for node in copy.graph:
        if node.op_type == QUANTISE and node.inputs[0] is not None and constant(node.inputs[0]) is None:
            name = str(node.inputs[0].name)
            stripped.quantisers[name] = stripped.quantisers.get(name, 0) + 1
    for node in [n for n in copy.graph if n.op_type == DEQUANTISE]:
        codes = node.inputs[0]
        assert codes is not None
        quantise = codes.producer()
        is_pair = quantise is not None and quantise.op_type == QUANTISE
        source = quantise.inputs[0] if quantise is not None and is_pair else codes
        if source is None or (not is_pair and constant(codes) is None):
            continue  # integers that the graph computes: no pair
        pair = _pair(node, quantise if is_pair else None, weight=constant(source) is not None)
        value = node.outputs[0]
        for use in list(value.uses()):
            stripped.edges[use.node, use.idx] = pair
            use.node.replace_input_with(use.idx, source)
        for index, output in enumerate(copy.graph.outputs):
            if output is value:
                stripped.outputs[str(value.name)] = pair
                copy.graph.outputs[index] = source
    drop_unused(copy)
    return stripped


def _pair(dequantise: ir.Node, quantise: ir.Node | None, *, weight: bool) -> Pair:
    zero = constant(dequantise.inputs[2]) if len(dequantise.inputs) > 2 else None
    codes = dequantise.inputs[0]
    dtype = ir.DataType.from_numpy(zero.dtype) if zero is not None else codes.dtype if codes is not None else None
    if dtype is None and quantise is not None:
        dtype = ir.DataType.UINT8  # what QuantizeLinear makes where nothing says otherwise
    axis = dequantise.attributes["axis"].as_int() if "axis" in dequantise.attributes else 1
    name = str(dequantise.name or dequantise.outputs[0].name)
    return Pair(name, constant(dequantise.inputs[1]), zero, dtype, axis, weight)
