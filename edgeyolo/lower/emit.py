"""Write the integer record of one float segment."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgeyolo.lower.segments import Segment, Unsupported, activation_quant, epilogue, linear_quant, stored_codes
from edgeyolo.ort import model_bytes, open_session, run
from edgeyolo.passes.graph import constant, conv_groups, ints
from edgeyolo.program import (
    EXACT_BITS,
    MAX_ALIGN,
    MAX_INPUTS,
    MAX_SHIFT,
    Add,
    Concat,
    Conv,
    Int8,
    Int32,
    Lookup,
    MaxPool,
    Op,
    Pair,
    Reshape,
    Slice,
    Tensor,
    Upsample,
    accumulator_bound,
)
from edgeyolo.qtype import QType
from edgeyolo.quant.sites import ELEMENTWISE

MAX_TABLE_BITS = 8

Emit = Callable[[Segment, tuple[int, ...], int, list[Tensor]], Op]


def emit(segment: Segment, inputs: tuple[int, ...], output: int, tensors: list[Tensor]) -> Op:
    """The record that computes tensor ``output`` from ``inputs``. Raises Unsupported when there is none."""
    root = segment.root
    if not inputs:
        raise Unsupported("quantises a constant")
    if root is None:
        return _requantise(segment, inputs, output, tensors)
    known = _EMITTERS.get(root.op_type)
    if known is not None and (known is not _add or len(set(inputs)) > 1):
        return known(segment, inputs, output, tensors)
    if len(set(inputs)) == 1 and all(node.op_type in ELEMENTWISE for node in segment.nodes):
        return _lookup(segment, inputs, output, tensors)
    raise Unsupported(f"{root.op_type} has no record")


def _label(segment: Segment) -> str:
    assert segment.root is not None
    return str(segment.root.name or segment.root.outputs[0].name)


def _moved(segment: Segment, inputs: tuple[int, ...], output: int, tensors: list[Tensor]) -> str:
    """Check that a data movement keeps type and exponent; returns the operation's name."""
    ends = epilogue(segment)
    a, b = tensors[inputs[0]], tensors[output]
    if ends.leaky is not None or (ends.lo, ends.hi) != (b.qtype.lo, b.qtype.hi):
        raise Unsupported(f"{segment.tail[0].op_type} behind {segment.root.op_type if segment.root else ''}")
    if (a.qtype, a.frac) != (b.qtype, b.frac):
        raise Unsupported(f"changes the quantisation from {a.qtype} f{a.frac} to {b.qtype} f{b.frac}")
    return _label(segment)


def _pair(node: ir.Node, name: str) -> Pair:
    a, b = ints(node, name, (1, 1))
    return a, b


def _pads(node: ir.Node) -> tuple[int, int, int, int]:
    if "auto_pad" in node.attributes and node.attributes["auto_pad"].as_string() not in ("", "NOTSET"):
        raise Unsupported("auto_pad; explicit pads are needed")
    top, left, bottom, right = ints(node, "pads", (0, 0, 0, 0))
    return top, left, bottom, right


def _conv(segment: Segment, inputs: tuple[int, ...], output: int, tensors: list[Tensor]) -> Conv:
    node, ends = segment.root, epilogue(segment)
    assert node is not None
    if len(inputs) != 1:
        raise Unsupported("Conv with computed weights")
    x, y = tensors[inputs[0]], tensors[output]
    producer = node.inputs[1].producer() if node.inputs[1] is not None else None
    codes = stored_codes(producer) if producer is not None and producer.op_type == "DequantizeLinear" else None
    if producer is None or codes is None or codes.dtype != np.int8:
        raise Unsupported("Conv whose weights are not int8 behind a DequantizeLinear")
    quant = linear_quant(producer, codes.dtype)
    if quant.scale.size not in (1, len(codes)):
        raise Unsupported(f"{quant.scale.size} scales for {len(codes)} output channels")
    if codes.min() < quant.qtype.lo or codes.max() > quant.qtype.hi:
        raise Unsupported(f"weights outside the stated {quant.qtype}")
    frac = np.broadcast_to(quant.frac, (len(codes),)).astype(np.int32)
    shift = frac + x.frac - y.frac
    if np.abs(shift).max() > MAX_SHIFT:
        raise Unsupported(f"a shift of {int(shift[np.abs(shift).argmax()])} is beyond {MAX_SHIFT}")
    bias = _bias(node, frac + x.frac)
    weight: Int8 = np.ascontiguousarray(codes, np.int8)
    if accumulator_bound(weight, bias, x.qtype) >= 1 << 31:
        raise Unsupported("its worst-case accumulator exceeds 32 bits")
    groups = conv_groups(node)
    strides, dilations = _pair(node, "strides"), _pair(node, "dilations")
    return Conv(
        _label(segment), inputs[0], output, weight, QType(quant.qtype.bits, True, quant.qtype.axis), frac, bias,
        shift.astype(np.int8), strides, _pads(node), dilations, groups, ends.leaky, ends.lo, ends.hi,
    )  # fmt: skip


def _bias(node: ir.Node, frac: Int32) -> Int32:
    """Bias codes at the accumulator's scale, from a dequantised int32 or a float constant (O,)."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(len(frac), np.int32)
    real = constant(value)
    producer = value.producer()
    if real is None and producer is not None and producer.op_type == "DequantizeLinear":
        codes, scale = constant(producer.inputs[0]), constant(producer.inputs[1])
        zero = constant(producer.inputs[2]) if len(producer.inputs) > 2 else None
        if codes is None or scale is None or (zero is not None and zero.any()):
            raise Unsupported("a computed bias, or one with a zero point")
        real = codes.astype(np.float64) * scale.astype(np.float64)
    if real is None:
        raise Unsupported("a computed bias")
    aligned = np.ldexp(real.astype(np.float64), frac)
    if np.any(aligned != np.rint(aligned)) or np.any(np.abs(aligned) >= 1 << 31):
        raise Unsupported("a bias that is no int32 at the accumulator's scale")
    codes32: Int32 = aligned.astype(np.int32)
    return codes32


def _max_pool(segment: Segment, inputs: tuple[int, ...], output: int, tensors: list[Tensor]) -> MaxPool:
    name, node = _moved(segment, inputs, output, tensors), segment.root
    assert node is not None
    if _pair(node, "dilations") != (1, 1):
        raise Unsupported("MaxPool with dilations")
    if "ceil_mode" in node.attributes and node.attributes["ceil_mode"].as_int():
        raise Unsupported("MaxPool with ceil_mode")
    return MaxPool(name, inputs[0], output, _pair(node, "kernel_shape"), _pair(node, "strides"), _pads(node))


def _upsample(segment: Segment, inputs: tuple[int, ...], output: int, tensors: list[Tensor]) -> Upsample:
    name, node = _moved(segment, inputs, output, tensors), segment.root
    assert node is not None
    attributes = {k: a.as_string() for k, a in node.attributes.items() if a.type == ir.AttributeType.STRING}
    mode, position = attributes.get("mode", "nearest"), attributes.get("coordinate_transformation_mode", "half_pixel")
    rounding = attributes.get("nearest_mode", "round_prefer_floor")
    (c, h, w), (oc, oh, ow) = tensors[inputs[0]].shape, tensors[output].shape
    # With integer factors these say y[i] = x[i // factor]; the others shift the grid. Half-pixel positions never lie
    # in the middle between two, so it does not matter which one is preferred.
    regular = (position, rounding) in (
        ("asymmetric", "floor"),
        ("half_pixel", "round_prefer_floor"),
        ("half_pixel", "round_prefer_ceil"),
    )
    # A factor of 2.01 may give the same shape, but it reads other pixels.
    scales = constant(node.inputs[1 if len(node.inputs) == 2 else 2])  # opset 10 has no region in between
    whole = scales is None or not scales.size or np.array_equal(scales, (1, 1, oh / h, ow / w))
    if mode != "nearest" or not regular or c != oc or oh % h or ow % w or not whole:
        raise Unsupported(
            f"Resize {mode}, {position}, {rounding}, {h}x{w} to {oh}x{ow}; nearest by integers is supported"
        )
    return Upsample(name, inputs[0], output, (oh // h, ow // w))


def _concat(segment: Segment, inputs: tuple[int, ...], output: int, tensors: list[Tensor]) -> Concat:
    assert segment.root is not None
    ends, axis = epilogue(segment), segment.root.attributes["axis"].as_int()
    if axis not in (1, -3) or ends.leaky is not None:
        raise Unsupported(f"Concat along axis {axis}; only channels can be joined")
    if len(inputs) != len(segment.root.inputs):
        raise Unsupported("Concat with a constant")
    if len(inputs) > MAX_INPUTS:
        raise Unsupported(f"Concat of {len(inputs)} inputs; at most {MAX_INPUTS}")
    return Concat(_label(segment), inputs, output, _shifts(inputs, output, tensors), ends.lo, ends.hi)


def _shifts(inputs: tuple[int, ...], output: int, tensors: list[Tensor]) -> tuple[int, ...]:
    shifts = tuple(tensors[i].frac - tensors[output].frac for i in inputs)
    if max(map(abs, shifts)) > MAX_SHIFT:
        raise Unsupported(f"shifts {shifts} beyond {MAX_SHIFT}")
    return shifts


def _requantise(segment: Segment, inputs: tuple[int, ...], output: int, tensors: list[Tensor]) -> Concat:
    qtype = tensors[output].qtype
    name = str(segment.quantise.name or segment.quantise.outputs[0].name)
    return Concat(name, inputs, output, _shifts(inputs, output, tensors), qtype.lo, qtype.hi)


def _add(segment: Segment, inputs: tuple[int, ...], output: int, tensors: list[Tensor]) -> Add:
    ends = epilogue(segment)
    if len(inputs) != 2 or tensors[inputs[0]].shape != tensors[inputs[1]].shape:
        raise Unsupported("Add of a constant or of different shapes")
    fa, fb = (tensors[i].frac for i in inputs)
    common = max(fa, fb)
    shift = common - tensors[output].frac
    if common - min(fa, fb) > MAX_ALIGN or abs(shift) > MAX_SHIFT:
        raise Unsupported(f"Add of exponents {fa} and {fb} into {tensors[output].frac}: too far apart")
    worst = sum(max(-t.qtype.lo, t.qtype.hi) << (common - t.frac) for t in (tensors[i] for i in inputs))
    if worst * (max(1, ends.leaky[0]) if ends.leaky else 1) > 1 << EXACT_BITS:
        raise Unsupported(f"Add of exponents {fa} and {fb}: float32, the oracle, cannot hold every sum exactly")
    a, b = inputs
    return Add(_label(segment), (a, b), output, (common - fa, common - fb), shift, ends.leaky, ends.lo, ends.hi)


def _slice(segment: Segment, inputs: tuple[int, ...], output: int, tensors: list[Tensor]) -> Slice:
    name, node = _moved(segment, inputs, output, tensors), segment.root
    assert node is not None
    parts = [constant(v) for v in node.inputs[1:]]
    if any(p is None and v is not None for p, v in zip(parts, node.inputs[1:], strict=True)):
        raise Unsupported("Slice with computed bounds")
    starts, ends = (p.tolist() for p in parts[:2] if p is not None)
    axes = parts[2].tolist() if len(parts) > 2 and parts[2] is not None else list(range(len(starts)))
    steps = parts[3].tolist() if len(parts) > 3 and parts[3] is not None else [1] * len(starts)
    shape = (1, *tensors[inputs[0]].shape)
    start, step = [0, 0, 0, 0], [1, 1, 1, 1]
    for first, last, axis, by in zip(starts, ends, axes, steps, strict=True):
        begin, _, stride = slice(first, last, by).indices(shape[axis])
        start[axis], step[axis] = begin, stride
    if min(step) < 1 or start[0] != 0:
        raise Unsupported("Slice backwards or over the batch")
    return Slice(name, inputs[0], output, (start[1], start[2], start[3]), (step[1], step[2], step[3]))


def _split(segment: Segment, inputs: tuple[int, ...], output: int, tensors: list[Tensor]) -> Slice:
    name, node = _moved(segment, inputs, output, tensors), segment.root
    assert node is not None
    if node.attributes.get("axis") is None or node.attributes["axis"].as_int() not in (1, -3):
        raise Unsupported("Split along another axis than the channels")
    behind = segment.tail[0].inputs[0] if segment.tail else segment.quantise.inputs[0]
    position = next(i for i, value in enumerate(node.outputs) if value is behind)
    start = sum(int(str(v.shape[1])) for v in node.outputs[:position] if v.shape is not None)
    return Slice(f"{name}.{position}", inputs[0], output, (start, 0, 0), (1, 1, 1))


def _reshape(segment: Segment, inputs: tuple[int, ...], output: int, tensors: list[Tensor]) -> Reshape:
    return Reshape(_moved(segment, inputs, output, tensors), inputs[0], output)


def _lookup(segment: Segment, inputs: tuple[int, ...], output: int, tensors: list[Tensor]) -> Lookup:
    """Ask ONNX Runtime for the result of every code: the table is exact by construction."""
    x = tensors[inputs[0]]
    if x.qtype.bits > MAX_TABLE_BITS:
        raise Unsupported(f"a table over {x.qtype.bits} bits; at most {MAX_TABLE_BITS}")
    codes = np.arange(x.qtype.lo, x.qtype.hi + 1, dtype=x.qtype.dtype)
    real = np.ldexp(codes.astype(np.float32), -x.frac).reshape(1, 1, 1, -1).astype(np.float32)
    source = ir.Value(name="source", type=ir.TensorType(ir.DataType.FLOAT))
    mapping = dict.fromkeys(segment.sources, source)  # one tensor, though each reader may dequantise it for itself
    initializers: list[ir.Value] = []
    nodes: list[ir.Node] = []
    for node in segment.nodes:
        arguments: list[ir.Value | None] = []
        for value in node.inputs:
            array = constant(value)
            if value is not None and array is not None and value not in mapping:
                if array.size != 1:
                    raise Unsupported(f"{node.op_type} with a constant per element")
                tensor = ir.tensor(array, name=f"constant.{len(initializers)}")
                mapping[value] = ir.Value(name=tensor.name, const_value=tensor)
                initializers.append(mapping[value])
            if value is not None and value not in mapping:
                raise Unsupported(f"{node.op_type} reads a dequantised constant")
            arguments.append(None if value is None else mapping[value])
        nodes.append(ir.Node(node.domain, node.op_type, arguments, node.attributes.values(), name=node.name))
        nodes[-1].outputs[0].name = f"v{len(nodes)}"
        mapping[node.outputs[0]] = nodes[-1].outputs[0]
    result = nodes[-1].outputs[0]
    result.type = ir.TensorType(ir.DataType.FLOAT)
    opset = segment.nodes[0].graph.opset_imports[""] if segment.nodes[0].graph is not None else 17
    graph = ir.Graph(
        [source], [result], nodes=nodes, initializers=initializers, opset_imports={"": opset}, name="table"
    )
    answer = run(open_session(model_bytes(ir.Model(graph, ir_version=8)), optimise=False), real)
    table = activation_quant(segment.quantise).quantise(next(iter(answer.values())).reshape(-1))
    return Lookup(_label(segment), inputs[0], output, table.astype(np.int16))


_EMITTERS: dict[str, Emit] = {
    "Conv": _conv,
    "MaxPool": _max_pool,
    "Resize": _upsample,
    "Concat": _concat,
    "Add": _add,
    "Slice": _slice,
    "Split": _split,
    "Reshape": _reshape,
    "Identity": _reshape,
}
