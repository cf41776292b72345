"""Read the Q/DQ pairs of anybody's ONNX graph: the float graph without them, and which edge had which pair."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.passes.graph import constant, drop_unused
from edgeyolo.quant.calibrate import copy_model

HALF = 2.0**-10
"""Scales of a pair may differ by a rounding to float16, where only one of its nodes computes in it."""
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
        unequal: whether the two nodes have different scales or zero points.
    """

    name: str
    scale: npt.NDArray[np.floating] | None
    zero: npt.NDArray[np.integer] | None
    dtype: ir.DataType | None
    axis: int
    weight: bool
    unequal: bool = False

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
    _bypass_casts(copy)
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
    unequal = False
    if quantise is not None:
        pairs = [(quantise.inputs[i : i + 1], dequantise.inputs[i : i + 1]) for i in (1, 2)]
        unequal = any(not _same(*(constant(v[0]) if v else None for v in both)) for both in pairs)
    axis = dequantise.attributes["axis"].as_int() if "axis" in dequantise.attributes else 1
    name = str(dequantise.name or dequantise.outputs[0].name)
    return Pair(name, constant(dequantise.inputs[1]), zero, dtype, axis, weight, unequal)


def _same(a: npt.NDArray[np.generic] | None, b: npt.NDArray[np.generic] | None) -> bool:
    """Whether two constants say the same; the types may differ, and no zero point is zero."""
    if a is None or b is None:
        return bool(a is b or not np.any(a if b is None else b))
    return bool(a.shape == b.shape and np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=HALF, atol=0))


def _bypass_casts(model: ir.Model) -> None:
    """Casts between float types change no place of a pair: read through them, except in front of graph outputs."""
    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    for node in [n for n in model.graph if n.op_type == "Cast"]:
        source, value = node.inputs[0], node.outputs[0]
        if source is None or node.attributes["to"].as_int() not in floats or source.dtype not in (*floats, None):
            continue
        for use in list(value.uses()):
            use.node.replace_input_with(use.idx, source)
