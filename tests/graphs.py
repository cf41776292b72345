"""Tiny graphs written as ONNX text, hand-made QDQ graphs, and the comparison of their lowering with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import numpy_helper, parser

from edgeyolo.detector import Detector, Head, Preprocess
from edgeyolo.export.golden import layer_codes
from edgeyolo.export.oracle import Oracle
from edgeyolo.lower.fixed import lower_fixed
from edgeyolo.ort import open_session, run
from edgeyolo.passes.graph import write_detector
from edgeyolo.program import IntegerProgram

Array = npt.NDArray[Any]

PAIR = """(float[1,3,16,16] images) => (float[1,6,16,16] head) {{
    c0 = Conv<pads=[1,1,1,1]>(images, w0, b0)
    a0 = {activation}
    {middle}
    head = Conv(a1, w5, b5)
}}"""
LEAKY = "LeakyRelu<alpha=0.1015625>(c0)"
"""Two convolutions around what a test puts between them, and an activation."""


def build(
    text: str,
    arrays: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    named: bool = True,
    scale: float = 1 / 256,
    facts: bool = True,
) -> ir.Model:
    """A float model from ``(float[1,3,8,8] images) => (float[1,4,8,8] head) { c = Conv(images, w) ... }``.

    ``arrays`` become initializers; a node is called after its first output; the detector's facts follow from the
    shapes, with raw heads and ``scale``, unless ``facts`` is false.
    """
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {text}')
    initializers = [numpy_helper.from_array(_array(v), name) for name, v in (arrays or {}).items()]
    proto.graph.initializer.extend(initializers)
    for node in proto.graph.node:
        node.name = node.name or node.output[0] if named else ""
    model = ir.from_proto(proto)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    if len(shape) == 4 and facts:
        heads = tuple(Head(value.name, "raw") for value in proto.graph.output)
        write_detector(model, Detector("onnx", Preprocess(shape[3], shape[2], shape[1], scale=scale), heads))
    return model


def _array(value: Any) -> Array:
    """Python numbers as ONNX has them: int64 or float32."""
    array = np.asarray(value)
    if isinstance(value, np.ndarray | np.generic):
        return array
    return array.astype(np.int64 if array.dtype.kind == "i" else np.float32)


def normal(seed: int, *shape: int, gain: float = 1.0) -> npt.NDArray[np.float32]:
    """Gaussian weights whose outputs have about the variance of their inputs, times ``gain``."""
    fan = max(1, int(np.prod(shape[1:])))
    return (np.random.default_rng(seed).standard_normal(shape) * gain / np.sqrt(fan)).astype(np.float32)


def pictures(count: int, *shape: int, seed: int = 0) -> list[npt.NDArray[np.uint8]]:
    """Seeded noise with a gradient, so that channels and places differ."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 120, int(np.prod(shape))).reshape(shape)
    return [(ramp + rng.integers(0, 136, shape)).astype(np.uint8) for _ in range(count)]


def outputs(model: ir.Model, seed: int = 0) -> dict[str, Array]:
    """What ONNX Runtime gives for seeded noise in [0, 1)."""
    shape = model.graph.inputs[0].shape
    assert shape is not None
    return run(open_session(model, optimise=False), np.random.default_rng(seed).random(list(shape), np.float32))


class Qdq:
    """Writes a QDQ graph by hand, as a foreign tool might: no metadata, names of its own."""

    def __init__(self, shape: tuple[int, ...] = (1, 3, 8, 8), frac: int = 8, dtype: Any = np.uint8) -> None:
        self.shape = shape
        self.lines: list[str] = []
        self.arrays: dict[str, Array] = {}
        self.input = self.quantise("images", frac, dtype)

    def constant(self, value: Any) -> str:
        """An initializer; returns its name."""
        name = f"k{len(self.arrays)}"
        self.arrays[name] = _array(value)
        return name

    def node(self, call: str) -> str:
        """``"Relu(x)"``: append the node, return its output's name."""
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {call}")
        return name

    def quantise(self, source: str, frac: int, dtype: Any = np.int8, *, scale: float | None = None) -> str:
        """QuantizeLinear and DequantizeLinear behind ``source``; returns the dequantised value."""
        scalars = f"{self.constant(np.float32(2.0**-frac if scale is None else scale))}, {self.constant(dtype(0))}"
        return self.node(f"DequantizeLinear({self.node(f'QuantizeLinear({source}, {scalars})')}, {scalars})")

    def weight(self, codes: Array, frac: Any) -> str:
        """Integer codes behind a DequantizeLinear, along axis 0 where ``frac`` is an array."""
        scale = np.ldexp(np.float32(1), -np.asarray(frac)).astype(np.float32)
        axis = "<axis = 0>" if scale.ndim else ""
        zero = np.zeros(scale.shape, codes.dtype)
        return self.node(
            f"DequantizeLinear{axis}({self.constant(codes)}, {self.constant(scale)}, {self.constant(zero)})"
        )

    def model(self, *results: str, opset: int = 17) -> ir.Model:
        """The finished model with these graph outputs."""
        head = ", ".join(f"float[1,C{i},H{i},W{i}] {name}" for i, name in enumerate(results))
        images = ",".join(map(str, self.shape))
        body = "\n".join(self.lines)
        return build(
            f"(float[{images}] images) => ({head}) {{ {body} }}", self.arrays, opset=opset, named=False, facts=False
        )


def codes8(seed: int, *shape: int, bits: int = 8) -> npt.NDArray[np.int8]:
    """Seeded int8 weights of this many bits."""
    half = 1 << (bits - 1)
    return np.random.default_rng(seed).integers(-half, half, shape).astype(np.int8)


def assert_equals_ort(model: ir.Model, runs: int = 3) -> IntegerProgram:
    """Lower a QDQ model and compare every layer with ONNX Runtime on random codes: no element may differ."""
    program, oracle = lower_fixed(model), Oracle(model)
    source = program.tensors[program.input]
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        codes = rng.integers(source.qtype.lo, source.qtype.hi + 1, source.shape).astype(source.qtype.dtype)
        for op, got, want in zip(program.ops, layer_codes(program, codes), oracle.layers(program, codes), strict=True):
            assert got.dtype == want.dtype, op.name
            assert np.array_equal(got, want), f"{op.name}: {np.count_nonzero(got != want)} of {got.size} differ"
    return program


def check_proto(model: ir.Model) -> None:
    """ONNX's own checker accepts the model."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


NET = """(float[1,3,16,16] images) => (float[1,6,4,4] head1, float[1,5,8,8] head2) {
    c0 = Conv<pads=[1,1,1,1], strides=[2,2]>(images, w0, b0)
    a0 = LeakyRelu<alpha=0.1015625>(c0)
    c1 = Conv<pads=[1,1,1,1], group=8>(a0, w1, b1)
    a1 = Relu(c1)
    c2 = Conv(a1, w2)
    s2 = Sigmoid(c2)
    m2 = Mul(c2, s2)
    r = Add(a0, m2)
    p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
    c3 = Conv(p, w3, b3)
    a3 = LeakyRelu<alpha=0.1015625>(c3)
    u = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(a3, , up)
    cat = Concat<axis=1>(u, r)
    head2 = Conv(cat, w4, b4)
    head1 = Conv(a3, w5, b5)
}"""
SHAPES = [(8, 3, 3, 3), (8, 1, 3, 3), (8, 8, 1, 1), (8, 8, 1, 1), (5, 16, 1, 1), (6, 8, 1, 1)]
ARRAYS: dict[str, Array] = {
    **{f"w{i}": normal(i, *shape, gain=1.5) for i, shape in enumerate(SHAPES)},
    **{f"b{i}": normal(10 + i, shape[0]) for i, shape in enumerate(SHAPES)},
    "up": np.array([1, 1, 2, 2], np.float32),
}


def net(arrays: Mapping[str, Any] | None = None, *, named: bool = True) -> ir.Model:
    """Every operation: dense, depthwise and point convolutions, SiLU, residual, pool, upsample, concat, two heads."""
    return build(NET, {**ARRAYS, **(arrays or {})}, named=named)
