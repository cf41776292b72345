"""Small float graphs for the TensorRT target, quantised ones made of them, and a Q/DQ pair put anywhere."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from graphs import build, normal, pictures

from edgeyolo.lower.tensorrt.calibrate import choose_scales
from edgeyolo.lower.tensorrt.insert import insert_pairs
from edgeyolo.lower.tensorrt.placement import Placement, place
from edgeyolo.passes.graph import new_initializer
from edgeyolo.quant.calibrate import copy_model

SHAPE = (3, 8, 8)
ARRAYS = {
    **{"w": normal(0, 3, 3, 1, 1), "d": normal(1, 3, 1, 3, 3), "w6": normal(2, 3, 6, 1, 1), "t": normal(3, 3, 3, 2, 2)},
    **{"b": normal(4, 3), "up": np.array([1, 1, 2, 2], np.float32), "wt": normal(6, 192, 6), "sq": normal(8, 6, 6)},
    **{"parts": [1, 2], "flat": [1, 192], "w2": normal(7, 3, 2, 1, 1)},
}
BODIES = {
    "residual": "c1 = Conv(images, w) r1 = Relu(c1) c2 = Conv(r1, w) s = Add(c2, r1) r2 = Relu(s) head = Conv(r2, w)",
    "residual of two": "a = Conv(images, w) b1 = Conv(images, w) s = Add(a, b1) head = Conv(s, w)",
    "residual, activated": "c1 = Conv(images, w) l1 = LeakyRelu(c1) c2 = Conv(l1, w) l2 = LeakyRelu(c2) s = Add(l1, l2)"
    " head = Conv(s, w)",
    "sum of sums": "a = Conv(images, w) s1 = Add(a, images) s2 = Add(s1, images) head = Conv(s2, w)",
    "concat": "a = Conv(images, w) r1 = Relu(a) c2 = Conv(r1, w) r2 = Relu(c2) k = Concat<axis=1>(r1, r2)"
    " m = Conv(k, w6) head = Conv(m, w)",
    "depthwise": "c1 = Conv(images, w) r1 = Relu(c1) c2 = Conv<group=3, pads=[1,1,1,1]>(r1, d) head = Conv(c2, w)",
    "silu": "c1 = Conv(images, w) g = Sigmoid(c1) y = Mul(c1, g) c2 = Conv(y, w) head = Conv(c2, w)",
    "mish": "c1 = Conv(images, w) p = Softplus(c1) g = Tanh(p) y = Mul(c1, g) c2 = Conv(y, w) head = Conv(c2, w)",
    "leaky": "c1 = Conv(images, w, b) y = LeakyRelu<alpha=0.1>(c1) c2 = Conv(y, w) head = Conv(c2, w)",
    "maxpool": "c1 = Conv(images, w) r1 = Relu(c1) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1) c2 = Conv(p, w)"
    " head = Conv(c2, w)",
    "upsample": 'c1 = Conv(images, w) u = Resize<mode="nearest">(c1, , up) c2 = Conv(u, w) head = Conv(c2, w)',
    "interpolation": 'c1 = Conv(images, w) u = Resize<mode="linear">(c1, , up) c2 = Conv(u, w) head = Conv(c2, w)',
    "split": "c1 = Conv(images, w) x1, x2 = Split<axis=1>(c1, parts) c2 = Conv(x2, w2) head = Conv(c2, w)",
    "transposed": "c1 = Conv(images, w) c2 = ConvTranspose<strides=[2,2]>(c1, t) head = Conv(c2, w)",
    "head behind a pool": "c1 = Conv(images, w) c2 = Conv(c1, w) head = MaxPool<kernel_shape=[1,1]>(c2)",
    "gemm": "c1 = Conv(images, w) f = Reshape(c1, flat) g = Gemm(f, wt) r = Relu(g) head = Gemm<transB=1>(r, sq)",
}
OUTPUT = {"gemm": "float[1,6] head"}
PICTURES = pictures(4, *SHAPE)


def graph(name: str) -> ir.Model:
    """The float graph ``name`` of ``BODIES``."""
    output = OUTPUT.get(name, "float[1,C,H,W] head")
    return build(f"(float[1,3,8,8] images) => ({output}) {{ {BODIES[name]} }}", ARRAYS, scale=1 / 255)


def quantised(model: ir.Model, keep_float: tuple[str, ...] = ("head",)) -> ir.Model:
    """``model`` with pairs, calibrated on noise."""
    placement = place(model, keep_float)
    return insert_pairs(model, placement, choose_scales(model, placement, PICTURES, "minmax"))


def edges(placement: Placement) -> dict[str, list[str]]:
    """Value -> the nodes that read it through its pair."""
    return {name: [str(use.node.name) for use in uses] for name, uses in placement.uses.items()}


def with_pair(model: ir.Model, value: str, reader: str | None, scale: float = 0.03, zero: int = 0) -> ir.Model:
    """A copy with one more pair between a value and its reader, or in front of the graph output ``value``."""
    copy = copy_model(model)
    values = {str(v.name): v for v in [*copy.graph.inputs, *(v for n in copy.graph for v in n.outputs)]}
    source = values[value]
    scalars = [
        new_initializer(copy.graph, f"{value}.{reader}.s", np.float32(scale)),
        new_initializer(copy.graph, f"{value}.{reader}.z", np.int8(zero)),
    ]
    quantise = ir.node("QuantizeLinear", [source, *scalars], name=f"{value}.{reader}.q")
    dequantise = ir.node("DequantizeLinear", [quantise.outputs[0], *scalars], name=f"{value}.{reader}.dq")
    producer = source.producer()
    nodes = [quantise, dequantise]
    if producer is None:
        copy.graph.insert_before(next(iter(copy.graph)), nodes)
    else:
        copy.graph.insert_after(producer, nodes)
    if reader is None:
        result = dequantise.outputs[0]
        result.type, result.shape = source.type, source.shape
        source.name, result.name = f"{value}.float", value
        copy.graph.outputs[[v.name for v in copy.graph.outputs].index(source.name)] = result
        return copy
    node = next(n for n in copy.graph if n.name == reader)
    node.replace_input_with(list(node.inputs).index(source), dequantise.outputs[0])
    return copy
