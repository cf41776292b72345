"""Graph rewrites: each on a tiny graph, before against after in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import build, check_proto, normal, outputs

from edgeyolo.passes.dyadic_leaky import DyadicLeaky, dyadic
from edgeyolo.passes.fold_batchnorm import FoldBatchNorm
from edgeyolo.passes.merge_pad_pool import MergePadPool
from edgeyolo.quant.calibrate import copy_model

FOLD_TOLERANCE = 2e-6
"""Relative to the largest output: weights are rounded to float32 once more, sums of 36 products differ by a few ulp."""


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def assert_same_function(before: ir.Model, after: ir.Model, tolerance: float) -> None:
    check_proto(after)
    expected, got = outputs(before), outputs(after)
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name].shape == value.shape
        assert np.abs(got[name] - value).max() <= tolerance * max(1.0, np.abs(value).max()), name


def norm(channels: int, seed: int = 9) -> dict[str, np.ndarray]:
    """Statistics that scale channels very differently, one of them by a negative factor."""
    rng = np.random.default_rng(seed)
    gamma = rng.uniform(0.1, 3.0, channels) * np.where(np.arange(channels) == 1, -1, 1)
    parts = {"g": gamma, "t": rng.normal(0, 1, channels), "m": rng.normal(0, 1, channels)}
    return {k: v.astype(np.float32) for k, v in {**parts, "v": rng.uniform(0.01, 4.0, channels)}.items()}


@pytest.mark.parametrize("bias", [", b", ""])
@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ("pads=[1,1,1,1]", (8, 4, 3, 3)),
        ("group=2", (8, 2, 3, 3)),
        ("group=4, pads=[1,1,1,1], strides=[2,2]", (8, 1, 3, 3)),
        ("dilations=[2,2]", (8, 4, 3, 3)),
    ],
    ids=["dense", "grouped", "depthwise", "dilated"],
)
def test_batchnorm_folds_into_any_convolution(attributes, shape, bias):
    text = f"""(float[2,4,8,8] images) => (float[2,8,H,W] head) {{
        c = Conv<{attributes}>(images, w{bias})
        n = BatchNormalization<epsilon=0.001>(c, g, t, m, v)
        head = Relu(n)
    }}"""
    model = build(text, {"w": normal(1, *shape), "b": normal(2, 8), **norm(8)})
    folded, fold = copy_model(model), FoldBatchNorm()
    assert fold(folded).modified
    assert (fold.folded, fold.declined, ops(folded)) == (1, [], ["Conv", "Relu"])
    assert_same_function(model, folded, FOLD_TOLERANCE)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [", b", ""])
def test_batchnorm_folds_into_gemm(transposed, bias):
    text = f"""(float[2,6] images) => (float[2,5] head) {{
        c = Gemm<transB={transposed}>(images, w{bias})
        n = BatchNormalization(c, g, t, m, v)
        head = Relu(n)
    }}"""
    weight = normal(1, 5, 6)
    model = build(text, {"w": weight if transposed else weight.T.copy(), "b": normal(2, 5), **norm(5)})
    folded, fold = copy_model(model), FoldBatchNorm()
    fold(folded)
    assert (fold.folded, ops(folded)) == (1, ["Gemm", "Relu"])
    assert_same_function(model, folded, FOLD_TOLERANCE)


@pytest.mark.parametrize("named", [True, False])
def test_a_strangers_graph_folds_with_shared_weights_without_names_and_keeps_its_output_name(named):
    text = """(float[1,4,8,8] images) => (float[1,4,8,8] head) {
        c1 = Conv<pads=[1,1,1,1]>(images, w)
        n1 = BatchNormalization(c1, g, t, m, v)
        c2 = Conv<pads=[1,1,1,1]>(n1, w)
        head = BatchNormalization(c2, g, t, m, v)
    }"""
    model = build(text, {"w": normal(1, 4, 4, 3, 3), **norm(4)}, opset=13, named=named)
    folded, fold = copy_model(model), FoldBatchNorm()
    fold(folded)
    assert (fold.folded, ops(folded)) == (2, ["Conv", "Conv"])
    assert [v.name for v in folded.graph.outputs] == ["head"]
    assert_same_function(model, folded, FOLD_TOLERANCE * 4)  # two layers, each of gain 2


def test_statistics_that_an_exporter_shares_through_identity_fold():
    text = """(float[1,4,8,8] images) => (float[1,4,8,8] head) {
        c = Conv<pads=[1,1,1,1]>(images, w)
        g1 = Identity(g)
        v1 = Identity(g1)
        head = BatchNormalization(c, g1, t, m, v1)
    }"""
    parts = norm(4)
    parts["g"] = np.abs(parts["g"])
    model = build(text, {"w": normal(1, 4, 4, 3, 3), **{k: parts[k] for k in "gtm"}})
    folded, fold = copy_model(model), FoldBatchNorm()
    fold(folded)
    assert (fold.folded, fold.declined) == (1, [])
    assert_same_function(model, folded, FOLD_TOLERANCE)


CONV = "c = Conv(images, w)\n"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (CONV + "n = BatchNormalization(c, g, t, m, v)\nhead = Add(n, c)", "used elsewhere"),
        ("head = BatchNormalization(images, g, t, m, v)", "does not follow"),
        ("p = MaxPool<kernel_shape=[1,1]>(images)\nhead = BatchNormalization(p, g, t, m, v)", "does not follow"),
        ("k = Exp(w)\nc = Conv(images, k)\nhead = BatchNormalization(c, g, t, m, v)", "weights are not constant"),
        (CONV + "k = Exp(g)\nhead = BatchNormalization(c, k, t, m, v)", "statistics are not constant"),
        ("k = Exp(g)\nc = Conv(images, w, k)\nhead = BatchNormalization(c, g, t, m, v)", "bias is not constant"),
        (CONV + "head, x, y = BatchNormalization<training_mode=1>(c, g, t, m, v)", "training mode"),
    ],
)
def test_batchnorm_declines_with_a_reason(body, reason):
    text = f"(float[1,4,8,8] images) => (float[1,4,8,8] head) {{ {body} }}"
    model = build(text, {"w": normal(1, 4, 4, 1, 1), **norm(4)})
    kept, fold = copy_model(model), FoldBatchNorm()
    assert not fold(kept).modified
    assert fold.folded == 0
    assert len(fold.declined) == 1 and reason in fold.declined[0]
    assert_same_function(model, kept, 0.0)


def test_batchnorm_declines_where_the_convolution_is_an_output():
    text = """(float[1,4,8,8] images) => (float[1,4,8,8] c, float[1,4,8,8] head) {
        c = Conv(images, w)
        head = BatchNormalization(c, g, t, m, v)
    }"""
    model, fold = build(text, {"w": normal(1, 4, 4, 1, 1), **norm(4)}), FoldBatchNorm()
    fold(model)
    assert fold.folded == 0 and "used elsewhere" in fold.declined[0]


def test_gemm_with_alpha_declines():
    text = """(float[2,6] images) => (float[2,5] head) {
        c = Gemm<alpha=0.5>(images, w)
        head = BatchNormalization(c, g, t, m, v)
    }"""
    model, fold = build(text, {"w": normal(1, 6, 5), **norm(5)}), FoldBatchNorm()
    fold(model)
    assert fold.folded == 0 and "alpha" in fold.declined[0]


def test_folding_keeps_the_weights_type():
    text = """(float16[1,2,4,4] images) => (float16[1,2,4,4] head) {
        c = Conv(images, w)
        head = BatchNormalization(c, g, t, m, v)
    }"""
    arrays = {k: a.astype(np.float16) for k, a in {"w": normal(1, 2, 2, 1, 1), **norm(2)}.items()}
    model = build(text, arrays)
    FoldBatchNorm()(model)
    conv = model.graph[0]
    assert [str(v.const_value.dtype) for v in conv.inputs[1:3]] == ["FLOAT16", "FLOAT16"]


def padded_pool(pads: list[int], fill: float, pool: str) -> ir.Model:
    text = f"""(float[1,2,8,8] images) => (float[1,2,H,W] head) {{
        x = Neg(images)
        p = Pad(x, pads, fill)
        head = MaxPool<{pool}>(p)
    }}"""
    return build(text, {"pads": pads, "fill": np.float32(fill)})


@pytest.mark.parametrize(
    ("pads", "pool", "merged"),
    [
        ([0, 0, 1, 1, 0, 0, 1, 1], "kernel_shape=[3,3]", (1, 1, 1, 1)),
        ([0, 0, 0, 0, 0, 0, 1, 1], "kernel_shape=[2,2]", (0, 0, 1, 1)),
        ([0, 0, 1, 0, 0, 0, 2, 1], "kernel_shape=[5,3], strides=[2,1], pads=[1,1,0,0]", (2, 1, 2, 1)),
    ],
)
def test_an_infinite_pad_merges_into_the_pool(pads, pool, merged):
    model = padded_pool(pads, -np.inf, pool)
    after = copy_model(model)
    assert MergePadPool()(after).modified
    assert ops(after) == ["Neg", "MaxPool"]
    assert tuple(after.graph[1].attributes["pads"].as_ints()) == merged
    assert_same_function(model, after, 0.0)


@pytest.mark.parametrize(
    ("pads", "fill", "pool"),
    [
        ([0, 0, 1, 1, 0, 0, 1, 1], -1e4, "kernel_shape=[3,3]"),
        ([0, 0, 1, 1, 0, 0, 1, 1], -3.4028234e38, "kernel_shape=[3,3]"),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, "kernel_shape=[3,3]"),
        ([0, 0, 1, 1, 0, 0, 1, 1], np.inf, "kernel_shape=[3,3]"),
        ([0, 1, 1, 1, 0, 0, 1, 1], -np.inf, "kernel_shape=[3,3]"),
        ([1, 0, 1, 1, 0, 0, 1, 1], -np.inf, "kernel_shape=[3,3]"),
        ([0, 0, -1, 0, 0, 0, 0, 0], -np.inf, "kernel_shape=[3,3]"),
        ([0, 0, 2, 2, 0, 0, 2, 2], -np.inf, "kernel_shape=[2,2]"),
        ([0, 0, 1, 1, 0, 0, 1, 1], -np.inf, 'kernel_shape=[3,3], auto_pad="SAME_UPPER"'),
        ([0, 0, 0, 0, 0, 0, 1, 1], -np.inf, "kernel_shape=[2,2], strides=[2,2], ceil_mode=1"),
    ],
    ids=["-1e4", "lowest", "zero", "+inf", "channel", "batch", "crop", "wide", "auto_pad", "ceil"],
)
def test_any_other_pad_stays(pads, fill, pool):
    model = padded_pool(pads, fill, pool)
    before = outputs(model)["head"]
    assert not MergePadPool()(model).modified
    assert ops(model) == ["Neg", "Pad", "MaxPool"]
    assert np.array_equal(outputs(model)["head"], before)


def test_a_pad_whose_pool_tells_positions_stays():
    text = """(float[1,2,8,8] images) => (float[1,2,H,W] head, int64[1,2,H,W] where) {
        p = Pad(images, pads, fill)
        head, where = MaxPool<kernel_shape=[3,3]>(p)
    }"""
    model = build(text, {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "fill": np.float32(-np.inf)})
    assert not MergePadPool()(model).modified


def test_a_pad_of_an_old_opset_stays():
    text = """(float[1,2,8,8] images) => (float[1,2,H,W] head) {
        p = Pad<pads=[0,0,1,1,0,0,1,1], value=-1.0>(images)
        head = MaxPool<kernel_shape=[3,3]>(p)
    }"""
    assert not MergePadPool()(build(text, opset=10)).modified


def test_a_shared_pad_merges_for_its_pools_only():
    text = """(float[1,2,8,8] images) => (float[1,2,10,10] other, float[1,2,8,8] head) {
        p = Pad(images, pads, fill)
        other = Abs(p)
        head = MaxPool<kernel_shape=[3,3]>(p)
    }"""
    model = build(text, {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "fill": np.float32(-np.inf)})
    before = outputs(model)
    assert MergePadPool()(model).modified
    assert sorted(ops(model)) == ["Abs", "MaxPool", "Pad"]
    assert all(np.array_equal(outputs(model)[k], v) for k, v in before.items())


@pytest.mark.parametrize(
    ("slope", "fraction"),
    [(0.1, (13, 7)), (0.01, (1, 7)), (0.125, (1, 3)), (0.0, (0, 0)), (1.0, (1, 0)), (0.2, (13, 6))],
)
def test_the_nearest_dyadic_slope(slope, fraction):
    assert dyadic(slope) == fraction
    assert abs(fraction[0] / (1 << fraction[1]) - slope) <= 1 / 256


def test_slopes_become_dyadic_and_are_reported():
    text = """(float[1,1,1,8] images) => (float[1,1,1,8] head) {
        x = Neg(images)
        a = LeakyRelu<alpha=0.1>(x)
        b = LeakyRelu<alpha=0.25>(a)
        head = LeakyRelu(b)
    }"""
    model, leaky = build(text), DyadicLeaky()
    assert leaky(model).modified
    assert [n.attributes["alpha"].as_float() for n in model.graph if n.op_type == "LeakyRelu"] == [
        *(13 / 128, 0.25, 1 / 128)
    ]
    assert leaky.changed == {0.1: "13/128", 0.01: "1/128"}
    noise = np.random.default_rng(0).random((1, 1, 1, 8), np.float32)
    assert np.array_equal(outputs(model)["head"], -noise * np.float32(13 / 128 * 0.25 / 128))
    assert not DyadicLeaky()(model).modified
