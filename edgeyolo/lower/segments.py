"""Find the float segment between DequantizeLinear nodes and one QuantizeLinear, and what its quantiser says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeyolo.passes.dyadic_leaky import SLOPE_BITS
from edgeyolo.passes.graph import constant
from edgeyolo.qtype import IntArray, QType, TensorQuant
from edgeyolo.quant.insert_qdq import QTYPE_KEY

MAX_SEGMENT = 64
"""Nodes between two quantisers; a longer run is not one table or one operation."""


class Unsupported(Exception):  # noqa: N818 - collected, never shown as such
    """One part that has no integer form; collected into one UnsupportedError."""


@dataclass(frozen=True, eq=False)
class Segment:
    """One operation in float.

    Args:
        quantise: the QuantizeLinear that ends it.
        nodes: all nodes in execution order.
        root: the node that reads the sources, or None when the quantiser reads its source directly.
        tail: the nodes behind the root, in order, if they form a chain; the whole segment otherwise.
        sources: the values it reads: results of DequantizeLinear nodes, or the graph input.
    """

    quantise: ir.Node
    nodes: tuple[ir.Node, ...]
    root: ir.Node | None
    tail: tuple[ir.Node, ...]
    sources: tuple[ir.Value, ...]


def is_source(value: ir.Value) -> bool:
    """Whether looking back stops here."""
    producer = value.producer()
    return producer is None or producer.op_type == "DequantizeLinear"


def find_segment(quantise: ir.Node) -> Segment:
    """Look back from ``quantise`` to its sources. Raises Unsupported for a segment that is too long."""
    order: list[ir.Node] = []
    seen: set[ir.Node] = set()
    sources: list[ir.Value] = []

    def visit(value: ir.Value | None) -> None:
        if value is None or constant(value) is not None or _is_weight(value):
            return
        if is_source(value):
            sources.append(value)
            return
        node = value.producer()
        assert node is not None
        if node in seen:
            return
        seen.add(node)
        if len(seen) > MAX_SEGMENT:
            raise Unsupported(f"more than {MAX_SEGMENT} float nodes in front of one quantiser")
        for source in node.inputs:
            visit(source)
        order.append(node)

    visit(quantise.inputs[0])
    root, tail = _chain(quantise, order)
    unique = tuple(sources) if root is not None and root.op_type in ("Concat", "Add") else tuple(dict.fromkeys(sources))
    return Segment(quantise, tuple(order), root, tail, unique)


def _chain(quantise: ir.Node, order: list[ir.Node]) -> tuple[ir.Node | None, tuple[ir.Node, ...]]:
    """The first node and the ones behind it; a segment that is no chain has its last node's ancestors as tail."""
    tail: list[ir.Node] = []
    value = quantise.inputs[0]
    while value is not None and not is_source(value):
        node = value.producer()
        assert node is not None
        tail.append(node)
        value = node.inputs[0] if node.inputs else None
    chain = tail[::-1]
    if not chain:
        return None, ()
    return chain[0], tuple(chain[1:])


def _is_weight(value: ir.Value) -> bool:
    """Whether the value is a dequantised constant."""
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear" and stored_codes(producer) is not None


def stored_codes(dequantise: ir.Node) -> IntArray | None:
    """The constant codes behind a DequantizeLinear, or None; some tools store float weights behind a QuantizeLinear."""
    codes = constant(dequantise.inputs[0])
    if codes is not None:
        return codes
    quantise = dequantise.inputs[0].producer() if dequantise.inputs[0] is not None else None
    real = constant(quantise.inputs[0]) if quantise is not None and quantise.op_type == "QuantizeLinear" else None
    if quantise is None or real is None:
        return None
    return linear_quant(quantise, _container(quantise)).quantise(real)


def linear_quant(node: ir.Node, container: np.dtype[np.generic]) -> TensorQuant:
    """The TensorQuant of a Quantize- or DequantizeLinear whose codes have the numpy type ``container``."""
    scale = constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None:
        raise Unsupported("its scale is computed, not constant")
    axis = None
    if scale.ndim > 1:
        raise Unsupported("has a scale per block")
    if scale.size > 1:
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        if axis != 0:
            raise Unsupported(f"has a scale per index of axis {axis}; only weights may have one, along axis 0")
    else:
        scale = scale.reshape(())
    stated = node.metadata_props.get(QTYPE_KEY)
    qtype = QType.parse(stated) if stated else QType(container.itemsize * 8, container.kind == "i")
    if qtype.dtype != container:
        raise Unsupported(f"states {stated} but its codes are {container}")
    qtype = QType(qtype.bits, qtype.signed, axis)
    points = np.zeros(scale.shape, np.int64) if zero is None else np.broadcast_to(zero.reshape(-1), (scale.size,))
    return TensorQuant(qtype, scale.astype(np.float32), points.reshape(scale.shape).astype(np.int64))


def activation_quant(quantise: ir.Node) -> TensorQuant:
    """The TensorQuant of an activation: true bits from our metadata, the container's where there is none."""
    container = _container(quantise)
    quant = linear_quant(quantise, container)
    if quant.qtype.axis is not None:
        raise Unsupported("an activation needs one scale per tensor")
    if quant.qtype.bits < container.itemsize * 8 and not _clips_to(quantise, quant):
        raise Unsupported(f"states {quant.qtype} without a Clip to its range in front")
    return quant


def _container(quantise: ir.Node) -> np.dtype[np.generic]:
    """The numpy type that a QuantizeLinear makes: its zero point's, or what opset 21's attribute says."""
    zero = constant(quantise.inputs[2]) if len(quantise.inputs) > 2 else None
    stated = quantise.attributes["output_dtype"].as_int() if "output_dtype" in quantise.attributes else 0
    container = zero.dtype if zero is not None else ir.DataType(stated).numpy() if stated else np.dtype(np.uint8)
    if container not in (np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int16)):
        raise Unsupported(f"quantises to {container}; int8, uint8 or int16 are supported")
    return container


def _clips_to(quantise: ir.Node, quant: TensorQuant) -> bool:
    """Whether a Clip directly in front keeps the codes inside ``quant``'s range, which its container exceeds."""
    clip = quantise.inputs[0].producer() if quantise.inputs[0] is not None else None
    if clip is None or clip.op_type != "Clip":
        return False
    low, high = clip_bounds(clip)
    step = float(quant.scale)
    return low is not None and high is not None and quant.qtype.lo <= low / step and high / step <= quant.qtype.hi


def clip_bounds(clip: ir.Node) -> tuple[float | None, float | None]:
    """(min, max) of a Clip, None where it has none. Raises Unsupported for computed bounds and those of opset 6."""
    if "min" in clip.attributes or "max" in clip.attributes:
        raise Unsupported("Clip with bounds as attributes; convert the model to opset 11 or later")
    bounds: list[float | None] = []
    for value in (*clip.inputs[1:3], None, None)[:2]:
        array = constant(value)
        if value is not None and (array is None or array.size != 1):
            raise Unsupported("Clip with computed bounds")
        bounds.append(None if array is None else float(array.reshape(())))
    return bounds[0], bounds[1]


@dataclass(frozen=True)
class Epilogue:
    """What follows a linear operation: a slope (numerator, log2 of denominator) or None, and saturation bounds."""

    leaky: tuple[int, int] | None
    lo: int
    hi: int


def epilogue(segment: Segment) -> Epilogue:
    """Read the activations between the root and the quantiser. Raises Unsupported for any but leaky, relu and clip."""
    quant = activation_quant(segment.quantise)
    leaky: tuple[int, int] | None = None
    lo, hi = quant.qtype.lo, quant.qtype.hi
    if segment.nodes != ((segment.root, *segment.tail) if segment.root else ()):
        raise Unsupported("combines values in a way that has no record: " + ", ".join(n.op_type for n in segment.nodes))
    for position, node in enumerate(segment.tail):
        if node.op_type == "Clip":
            codes = [None if b is None else int(quant.quantise(np.asarray(b))) for b in clip_bounds(node)]
            lo = lo if codes[0] is None else max(lo, codes[0])
            hi = hi if codes[1] is None else min(hi, codes[1])
        elif node.op_type == "Relu" and position == 0:
            leaky, lo = (0, 0), max(lo, 0)
        elif node.op_type == "LeakyRelu" and position == 0:
            alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 0.01
            numerator = alpha * (1 << SLOPE_BITS)
            if not 0 <= alpha <= 1 or numerator != int(numerator):
                raise Unsupported(f"slope {alpha} is no multiple of 1/{1 << SLOPE_BITS} in [0, 1]; run dyadic_leaky")
            leaky = _lowest_terms(int(numerator))
        else:
            raise Unsupported(f"{node.op_type} behind {segment.root.op_type if segment.root else 'nothing'}")
    if lo > hi:
        raise Unsupported("clips to an empty range")
    return Epilogue(leaky, lo, hi)


def _lowest_terms(numerator: int) -> tuple[int, int]:
    bits = SLOPE_BITS
    while bits and numerator % 2 == 0:
        numerator, bits = numerator // 2, bits - 1
    return numerator, bits
