"""What a DLA refuses: every layer kind at its limits, and whole graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import pytest
from graphs import build, normal

from edgeyolo.lower.tensorrt.dla import Fallback, dla_fallbacks


def reasons(text: str, arrays: Mapping[str, Any] | None = None, precision: str = "fp16") -> dict[str, str]:
    """Layer -> why a DLA refuses it, for a graph of ``graphs.build``."""
    return {f.layer: f.reason for f in dla_fallbacks(build(text, arrays, facts=False), precision)}


def conv(attributes: str = "pads=[1,1,1,1]", weight: tuple[int, ...] = (4, 3, 3, 3), size: int = 16) -> dict[str, str]:
    text = f"(float[1,3,{size},{size}] images) => (float[] head) {{ head = Conv<{attributes}>(images, w) }}"
    return reasons(text, {"w": normal(0, *weight)})


def layer(call: str, arrays: Mapping[str, Any] | None = None, shape: str = "1,4,8,8") -> str | None:
    """The reason against one layer that reads ``x`` and makes ``y``."""
    return reasons(f"(float[{shape}] x) => (float[] y) {{ y = {call} }}", arrays).get("y")


def test_a_plain_network_runs_on_a_dla_leaky_relu_included():
    text = """(float[1,3,32,32] images) => (float[1,8,16,16] head) {
        c = Conv<pads=[1,1,1,1], strides=[2,2]>(images, w)
        a = LeakyRelu<alpha=0.1>(c)
        d = Conv<pads=[1,1,1,1], group=8>(a, dw)
        r = Relu(d)
        p = MaxPool<kernel_shape=[5,5], pads=[2,2,2,2], strides=[1,1]>(r)
        s = Add(p, a)
        g = Sigmoid(s)
        silu = Mul(s, g)
        cat = Concat<axis=1>(silu, p)
        up = Resize<mode="nearest">(cat, none, scales)
        down = AveragePool<kernel_shape=[2,2], strides=[2,2]>(up)
        head = Conv(down, v)
    }"""
    arrays = {"w": normal(0, 8, 3, 3, 3), "dw": normal(1, 8, 1, 3, 3), "v": normal(2, 8, 16, 1, 1)}
    assert reasons(text, {**arrays, "none": normal(0, 0), "scales": [1.0, 1.0, 2.0, 2.0]}) == {}


def test_int8_and_fp32_leave_everything_to_the_gpu_with_the_reason():
    text = "(float[1,3,8,8] x) => (float[1,3,8,8] y) { a = Relu(x)  y = Sigmoid(a) }"
    assert set(reasons(text, precision="int8")) == {"a", "y"}
    assert all("Q/DQ" in reason for reason in reasons(text, precision="int8").values())
    assert all("float32" in reason for reason in reasons(text, precision="fp32").values())


def test_qdq_is_refused_and_what_is_constant_is_no_layer():
    text = """(float[1,3,8,8] x) => (float[1,4,8,8] y) {
        q = QuantizeLinear(x, scale, zero)
        d = DequantizeLinear(q, scale, zero)
        wd = DequantizeLinear(wq, scale, zero)
        same = Identity(wd)
        y = Conv(d, same)
    }"""
    arrays = {"scale": normal(0).reshape(()), "zero": normal(0).reshape(()).astype("int8")}
    found = reasons(text, {**arrays, "wq": normal(1, 4, 3, 1, 1).astype("int8")})
    assert {"q", "d"} <= set(found)
    assert "same" not in found
    assert found["q"] == "a DLA has no such layer"


def test_the_list_is_in_execution_order_and_leaves_the_model_alone():
    text = "(float[1,3,8,8] x) => (float[1,3,8,8] y) { a = Exp(x)  b = Relu(a)  y = Softplus(b) }"
    model = build(text, facts=False)
    before = ir.to_proto(model).SerializeToString()
    wanted = [Fallback(n, op, "a DLA has no such layer") for n, op in (("a", "Exp"), ("y", "Softplus"))]
    assert dla_fallbacks(model, "fp16") == wanted
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("op", ["Div(x, x)", "Exp(x)", "HardSwish(x)", "GlobalAveragePool(x)", "Softmax<axis=1>(x)"])
def test_layers_that_a_dla_does_not_have(op: str):
    assert "no such layer" in str(layer(op))


def test_a_batch_that_is_not_fixed_is_refused():
    assert "not fixed" in str(layer("Relu(x)", shape="N,4,8,8"))
    assert layer("Relu(x)", shape="4096,4,8,8") is None
    assert "beyond" in str(layer("Relu(x)", shape="4097,4,8,8"))
    assert layer("Relu(x)", shape="1,8192,8,8") is None
    assert "beyond" in str(layer("Relu(x)", shape="1,8193,8,8"))
    assert "3 dimensions" in str(layer("Relu(x)", shape="1,8,8"))


@pytest.mark.parametrize(
    ("attributes", "weight", "refused"),
    [
        ("pads=[0,0,0,0]", (4, 3, 32, 32), None),
        ("pads=[0,0,0,0]", (4, 3, 33, 1), "kernel 33"),
        ("pads=[31,31,31,31]", (4, 3, 32, 32), None),
        ("pads=[0,0,0,1]", (4, 3, 1, 1), "as large as the kernel"),
        ("pads=[32,0,0,0]", (4, 3, 32, 32), "padding 32"),
        ("strides=[8,8]", (4, 3, 1, 1), None),
        ("strides=[9,8]", (4, 3, 1, 1), "stride 9"),
        ("dilations=[32,1]", (4, 3, 2, 1), None),
        ("dilations=[33,1]", (4, 3, 2, 1), "dilation 33"),
        ("group=3", (3, 1, 1, 1), None),
        ("group=1", (8192, 3, 1, 1), None),
        ("group=1", (8193, 3, 1, 1), "beyond"),
    ],
)
def test_the_limits_of_a_convolution(attributes: str, weight: tuple[int, ...], refused: str | None):
    found = conv(attributes, weight, size=64)
    assert found == {} if refused is None else refused in found["head"]


@pytest.mark.parametrize(
    ("call", "refused"),
    [
        ("MaxPool<kernel_shape=[8,8]>(x)", None),
        ("MaxPool<kernel_shape=[9,9], pads=[4,4,4,4]>(x)", "window 9"),
        ("MaxPool<kernel_shape=[8,8], pads=[7,7,7,7]>(x)", None),
        ("MaxPool<kernel_shape=[1,1], strides=[17,17]>(x)", "stride 17"),
        ("MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x)", "dilation 2"),
        ("LeakyRelu<alpha=-0.1>(x)", "negative slope"),
        ("PRelu(x, x)", "slope that is computed"),
        ("Concat<axis=1>(x, x)", None),
        ("Concat<axis=2>(x, x)", "axis other than the channels"),
        ("Concat<axis=1>(x)", "single input"),
        ("Clip(x, zero, six)", None),
        ("Clip(x, one, six)", "limits"),
        ("Clip(x, zero, half)", "limits"),
        ("Clip(x, zero)", "limits"),
        ("Slice(x, i0, i2, i1)", None),
        ("Slice(x, i0, i2, i0)", "through the batch"),
        ("Slice(x, i0, i1)", "through the batch"),
        ("Transpose<perm=[0,2,3,1]>(x)", None),
        ("Transpose<perm=[1,0,2,3]>(x)", "changes the batch"),
        ("Reshape(x, flat)", "2 dimensions"),
        ("Reshape(x, five)", "5 dimensions"),
        ("Reshape(x, four)", None),
        ('Resize<mode="nearest">(x, none, up32)', None),
        ('Resize<mode="nearest">(x, none, up33)', "1 to 32"),
        ('Resize<mode="linear">(x, none, up32)', "1 to 4"),
        ('Resize<mode="nearest">(x, none, half2)', "1 to 32"),
        ('Resize<mode="nearest">(x, none, channels)', "batch or channels"),
        ('Resize<mode="cubic">(x, none, up32)', "mode cubic"),
        ("ConvTranspose<strides=[2,2]>(x, w)", None),
        ("ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, w)", "padding 1"),
        ("ConvTranspose<group=2>(x, w)", "groups 2"),
        ("LRN<size=5>(x)", None),
        ("LRN<size=11>(x)", "window of 11"),
        ("MatMul(x, x)", "second factor"),
    ],
)
def test_the_limits_of_other_layers(call: str, refused: str | None):
    arrays: dict[str, Any] = {"zero": 0.0, "one": 1.0, "six": 6.0, "half": 0.5, "i0": [0], "i1": [1], "i2": [2]}
    arrays |= {"flat": [1, 256], "five": [1, 2, 2, 8, 8], "four": [1, 2, 16, 8], "none": normal(0, 0)}
    arrays |= {"up32": [1.0, 1.0, 32.0, 2.0], "up33": [1.0, 1.0, 33.0, 2.0], "half2": [1.0, 1.0, 0.5, 0.5]}
    arrays |= {"channels": [1.0, 2.0, 1.0, 1.0], "w": normal(3, 4, 4, 2, 2)}
    used = {name: value for name, value in arrays.items() if name in call.replace("<", "(").replace(",", "(")}
    found = layer(call, used)
    assert found is None if refused is None else refused in str(found)


def test_a_split_along_the_channels_runs():
    text = "(float[2,4,8,8] x) => (float[] a, float[] b) {{ a, b = Split<axis={axis}>(x) }}"
    assert reasons(text.format(axis=1)) == {}
    assert "through the batch" in reasons(text.format(axis=0))["a"]


def test_a_transpose_of_the_batch_is_refused_where_the_sizes_hide_it():
    assert "changes the batch" in str(layer("Transpose<perm=[1,0,2,3]>(x)", shape="4,4,8,8"))
